/**
 * FXSAVE and FXRSTOR, and the 512-byte region that they share with XSAVE.
 * Manual: APM vol. 5 (FXSAVE, FXRSTOR), APM vol. 2 section 11.4.4, SDM vol. 1 section 10.5 (the layout).
 */
import { CR0, Vector } from '../../state-layout.ts';
import type { FpuArea } from './area.ts';
import { done, type FpContext, type FpFunction, fpuOf } from './context.ts';
import { FX_SIZE, get80, Image, put80 } from './image.ts';
import { legalControlWord, MXCSR_MASK, updateSummary } from './words.ts';

/** Bytes that FXSAVE leaves to software. */
const FX_AVAILABLE = [464, 512] as const;
export const XMM_AT = 160;
export const MXCSR_AT = 24;

/** Their rows are integer ones: CR0.EM and TS give #NM; a misaligned image #GP(0). */
function checkImage(ctx: FpContext): void {
  if ((ctx.ops.getCr(0) & (CR0.EM | CR0.TS)) !== 0n) ctx.raise(Vector.NM);
  const linear = ctx.linearize(ctx.insn.seg, ctx.effectiveAddress(), FX_SIZE, false);
  if ((linear & 15n) !== 0n) ctx.raise(Vector.GP, 0);
}

/** Vector registers that exist in this mode. */
export const vectorCount = (ctx: FpContext): number => (ctx.mode === 'prot64' ? 16 : 8);

/** Bytes 0..23 and 32..159. `wide`: pointers of 64 bits (REX.W). */
export function putX87(view: DataView, fpu: FpuArea, wide: boolean): void {
  view.setUint16(0, fpu.cw, true);
  view.setUint16(2, fpu.sw, true);
  view.setUint8(4, fpu.tw);
  view.setUint8(5, 0);
  view.setUint16(6, fpu.opcode, true);
  view.setBigUint64(8, wide ? fpu.ip : fpu.ip & 0xffffffffn, true);
  view.setBigUint64(16, wide ? fpu.dp : fpu.dp & 0xffffffffn, true);
  for (let i = 0; i < 8; i++) {
    put80(view, 32 + i * 16, fpu.st(i));
    for (let pad = 10; pad < 16; pad += 2) view.setUint16(32 + i * 16 + pad, 0, true);
  }
}

export function takeX87(view: DataView, fpu: FpuArea, wide: boolean): void {
  fpu.cw = legalControlWord(view.getUint16(0, true));
  fpu.sw = view.getUint16(2, true);
  fpu.tw = view.getUint8(4);
  updateSummary(fpu);
  fpu.opcode = view.getUint16(6, true) & 0x7ff;
  fpu.ip = wide ? view.getBigUint64(8, true) : BigInt(view.getUint32(8, true));
  fpu.dp = wide ? view.getBigUint64(16, true) : BigInt(view.getUint32(16, true));
  for (let i = 0; i < 8; i++) fpu.setRegister(fpu.physical(i), get80(view, 32 + i * 16));
}

export function putMxcsr(view: DataView, fpu: FpuArea): void {
  view.setUint32(MXCSR_AT, fpu.mxcsr, true);
  view.setUint32(MXCSR_AT + 4, MXCSR_MASK, true);
}

export function putXmm(view: DataView, fpu: FpuArea, count: number): void {
  for (let n = 0; n < count; n++) {
    const value = fpu.xmm(n);
    view.setBigUint64(XMM_AT + n * 16, BigInt.asUintN(64, value), true);
    view.setBigUint64(XMM_AT + n * 16 + 8, value >> 64n, true);
  }
}

export function takeXmm(view: DataView, fpu: FpuArea, count: number): void {
  for (let n = 0; n < count; n++) {
    const high = view.getBigUint64(XMM_AT + n * 16 + 8, true);
    fpu.setXmm(n, (high << 64n) | view.getBigUint64(XMM_AT + n * 16, true));
  }
}

const fxsave: FpFunction = (ctx) => {
  checkImage(ctx);
  const fpu = fpuOf(ctx);
  const image = new Image(FX_SIZE);
  const count = vectorCount(ctx);
  putX87(image.view, fpu, ctx.insn.opSize === 8);
  putMxcsr(image.view, fpu);
  putXmm(image.view, fpu, count);
  image.store(ctx, [FX_AVAILABLE, [XMM_AT + count * 16, 416], [416, 464]]);
  return done();
};

const fxrstor: FpFunction = (ctx) => {
  checkImage(ctx);
  const fpu = fpuOf(ctx);
  const image = new Image(FX_SIZE);
  image.load(ctx);
  const mxcsr = image.view.getUint32(MXCSR_AT, true);
  if ((mxcsr & ~MXCSR_MASK) !== 0) ctx.raise(Vector.GP, 0);
  takeX87(image.view, fpu, ctx.insn.opSize === 8);
  fpu.mxcsr = mxcsr;
  takeXmm(image.view, fpu, vectorCount(ctx));
  return done();
};

export const FX_INSTRUCTIONS: Readonly<Record<string, FpFunction>> = { fxsave, fxrstor };
