/**
 * XSAVE and its kin: state components chosen by EDX:EAX under XCR0, in the standard and the compacted format.
 * Manual: SDM vol. 1 chapter 13, APM vol. 2 section 11.5.
 *
 * Components: x87 (0), SSE (1), AVX (2), PKRU (9); no supervisor component exists, so IA32_XSS is 0.
 */
import { CR0, CR4, RAX, RDX, Vector } from '../../state-layout.ts';
import type { FpuArea } from './area.ts';
import { done, type FpContext, type FpFunction, fpuOf } from './context.ts';
import { MXCSR_AT, putMxcsr, putX87, putXmm, takeX87, takeXmm, vectorCount, XMM_AT } from './fxsave.ts';
import { loadRange, probeRange, storeRange } from './image.ts';
import { INITIAL_CW, INITIAL_MXCSR, initialise, MXCSR_MASK } from './words.ts';

const X87 = 1;
const SSE = 2;
const AVX = 4;
const PKRU = 0x200;
const HEADER_AT = 512;
const HEADER_SIZE = 64;
/** Both formats: AVX is the first component behind the header. */
const AVX_AT = HEADER_AT + HEADER_SIZE;
const AVX_SIZE = 256;
/** Behind AVX; in the compacted format in its place if AVX is not listed. */
const PKRU_AT = AVX_AT + AVX_SIZE;
const PKRU_SIZE = 8;
const AREA_SIZE = PKRU_AT + PKRU_SIZE;
const COMPACTED = 1n << 63n;
const LOW32 = 0xffffffffn;

const view = new DataView(new ArrayBuffer(AREA_SIZE));

/** #UD without CR4.OSXSAVE, #NM with CR0.TS, #GP(0) for what is not aligned to 64 bytes. */
function checkArea(ctx: FpContext): void {
  if ((ctx.ops.getCr(4) & CR4.OSXSAVE) === 0n) ctx.raise(Vector.UD);
  if ((ctx.ops.getCr(0) & CR0.TS) !== 0n) ctx.raise(Vector.NM);
  const linear = ctx.linearize(ctx.insn.seg, ctx.effectiveAddress(), 1, false);
  if ((linear & 63n) !== 0n) ctx.raise(Vector.GP, 0);
}

/** EDX:EAX and XCR0: the requested-feature bitmap. */
function requested(ctx: FpContext): number {
  const mask = ((ctx.ops.readGpr(RDX) & LOW32) << 32n) | (ctx.ops.readGpr(RAX) & LOW32);
  return Number(mask & ctx.ops.getXcr(0) & BigInt(X87 | SSE | AVX | PKRU));
}

/** True: x87 is as FNINIT leaves it after RESET. */
function x87IsInitial(fpu: FpuArea): boolean {
  if (fpu.cw !== INITIAL_CW || fpu.sw !== 0 || fpu.tw !== 0 || fpu.opcode !== 0) return false;
  if (fpu.ip !== 0n || fpu.dp !== 0n) return false;
  for (let n = 0; n < 8; n++) if (fpu.register(n) !== 0n) return false;
  return true;
}

function someRegister(count: number, test: (n: number) => boolean): boolean {
  for (let n = 0; n < count; n++) if (test(n)) return true;
  return false;
}

const pkruOf = (ctx: FpContext): number => ctx.ops.getPkru?.() ?? 0;
/** Place of PKRU in an area whose compacted format lists these components (`standard`: all). */
const pkruAt = (listed: number): number => ((listed & AVX) !== 0 ? PKRU_AT : AVX_AT);
const STANDARD = AVX;

/** XINUSE: components that are not in their initial state (SDM vol. 1 section 13.6). */
export function componentsInUse(ctx: FpContext, fpu: FpuArea): number {
  const count = vectorCount(ctx);
  return (
    (x87IsInitial(fpu) ? 0 : X87) |
    (someRegister(count, (n) => fpu.xmm(n) !== 0n) ? SSE : 0) |
    (someRegister(count, (n) => fpu.high(n) !== 0n) ? AVX : 0) |
    (pkruOf(ctx) !== 0 ? PKRU : 0)
  );
}

/** Where the parts of a component lie in the area: [from, to), by mode. */
function partsOf(ctx: FpContext, components: number, mxcsr: boolean, listed: number): [number, number][] {
  const count = vectorCount(ctx);
  const parts: [number, number][] = [];
  if ((components & X87) !== 0) parts.push([0, MXCSR_AT], [32, XMM_AT]);
  if (mxcsr) parts.push([MXCSR_AT, 32]);
  if ((components & SSE) !== 0) parts.push([XMM_AT, XMM_AT + count * 16]);
  if ((components & AVX) !== 0) parts.push([AVX_AT, AVX_AT + count * 16]);
  if ((components & PKRU) !== 0) parts.push([pkruAt(listed), pkruAt(listed) + PKRU_SIZE]);
  return parts.sort((a, b) => a[0] - b[0]);
}

function putComponents(ctx: FpContext, fpu: FpuArea, components: number, listed: number): void {
  const count = vectorCount(ctx);
  if ((components & X87) !== 0) putX87(view, fpu, ctx.insn.opSize === 8);
  if ((components & SSE) !== 0) putXmm(view, fpu, count);
  if ((components & AVX) !== 0) {
    for (let n = 0; n < count; n++) {
      const value = fpu.high(n);
      view.setBigUint64(AVX_AT + n * 16, BigInt.asUintN(64, value), true);
      view.setBigUint64(AVX_AT + n * 16 + 8, value >> 64n, true);
    }
  }
  if ((components & PKRU) !== 0) view.setBigUint64(pkruAt(listed), BigInt(pkruOf(ctx)), true);
  putMxcsr(view, fpu);
}

/** All parts that a save writes: components, MXCSR if asked for, the first bytes of the header. They are found writable, or it faults. */
function writableParts(
  ctx: FpContext,
  components: number,
  mxcsr: boolean,
  headerBytes: number,
  listed: number,
): [number, number][] {
  const parts = partsOf(ctx, components, mxcsr, listed);
  parts.push([HEADER_AT, HEADER_AT + headerBytes]);
  for (const [from, to] of parts) probeRange(ctx, from, to);
  return parts;
}

function storeParts(
  ctx: FpContext,
  fpu: FpuArea,
  components: number,
  parts: readonly [number, number][],
  listed: number,
): void {
  putComponents(ctx, fpu, components, listed);
  for (const [from, to] of parts) storeRange(ctx, view, from, to);
}

/** XSAVE: everything requested; XSAVEOPT leaves out what is in its initial state. */
const standard =
  (optimised: boolean): FpFunction =>
  (ctx) => {
    checkArea(ctx);
    const fpu = fpuOf(ctx);
    const wanted = requested(ctx);
    const inUse = componentsInUse(ctx, fpu);
    const written = optimised ? wanted & inUse : wanted;
    const parts = writableParts(ctx, written, (wanted & (SSE | AVX)) !== 0, 8, STANDARD);
    loadRange(ctx, view, HEADER_AT, HEADER_AT + 8);
    const old = view.getBigUint64(HEADER_AT, true);
    view.setBigUint64(HEADER_AT, (old & ~BigInt(wanted)) | BigInt(wanted & inUse), true);
    storeParts(ctx, fpu, written, parts, STANDARD);
    return done();
  };

/** XSAVEC and XSAVES: the compacted format. MXCSR belongs to SSE, which a value other than the initial one puts into use. */
const compacted: FpFunction = (ctx) => {
  checkArea(ctx);
  const fpu = fpuOf(ctx);
  const wanted = requested(ctx);
  const inUse = componentsInUse(ctx, fpu) | (fpu.mxcsr !== INITIAL_MXCSR ? SSE : 0);
  const written = wanted & inUse;
  const parts = writableParts(ctx, written, (written & SSE) !== 0, 16, wanted);
  view.setBigUint64(HEADER_AT, BigInt(written), true);
  view.setBigUint64(HEADER_AT + 8, COMPACTED | BigInt(wanted), true);
  storeParts(ctx, fpu, written, parts, wanted);
  return done();
};

/** True: these bytes of the header are zero. */
function headerIsClear(from: number, to: number): boolean {
  for (let at = HEADER_AT + from; at < HEADER_AT + to; at += 8) {
    if (view.getBigUint64(at, true) !== 0n) return false;
  }
  return true;
}

/** Is the header one that XRSTOR accepts (SDM vol. 1 sections 13.8 and 13.12)? */
function headerIsLegal(ctx: FpContext, supervisor: boolean): boolean {
  const xcr0 = ctx.ops.getXcr(0);
  const present = view.getBigUint64(HEADER_AT, true);
  const format = view.getBigUint64(HEADER_AT + 8, true);
  // The standard form looks at bytes 23:8 alone (SDM vol. 1 section 13.8.1).
  if ((format & COMPACTED) === 0n) return !supervisor && (present & ~xcr0) === 0n && headerIsClear(8, 24);
  if (!supervisor && !ctx.ops.guestHas('xsavec')) return false;
  const listed = format & ~COMPACTED;
  return (listed & ~xcr0) === 0n && (present & ~listed) === 0n && headerIsClear(16, HEADER_SIZE);
}

/** Initial state of the components that the image says nothing of. */
function resetComponents(ctx: FpContext, fpu: FpuArea, components: number): void {
  const count = vectorCount(ctx);
  if ((components & X87) !== 0) {
    initialise(fpu);
    for (let n = 0; n < 8; n++) fpu.setRegister(n, 0n);
  }
  for (let n = 0; n < count; n++) {
    if ((components & SSE) !== 0) fpu.setXmm(n, 0n);
    if ((components & AVX) !== 0) fpu.clearHigh(n);
  }
  if ((components & PKRU) !== 0) ctx.ops.setPkru?.(0);
}

function takeComponents(ctx: FpContext, fpu: FpuArea, components: number, listed: number): void {
  const count = vectorCount(ctx);
  if ((components & PKRU) !== 0) ctx.ops.setPkru?.(view.getUint32(pkruAt(listed), true));
  if ((components & X87) !== 0) takeX87(view, fpu, ctx.insn.opSize === 8);
  if ((components & SSE) !== 0) takeXmm(view, fpu, count);
  if ((components & AVX) === 0) return;
  for (let n = 0; n < count; n++) {
    const high = view.getBigUint64(AVX_AT + n * 16 + 8, true);
    fpu.setHigh(n, (high << 64n) | view.getBigUint64(AVX_AT + n * 16, true));
  }
}

/** XRSTOR, XRSTORS. Nothing is changed before everything has been read and found legal. */
const restore =
  (supervisor: boolean): FpFunction =>
  (ctx) => {
    checkArea(ctx);
    const fpu = fpuOf(ctx);
    const wanted = requested(ctx);
    loadRange(ctx, view, HEADER_AT, HEADER_AT + HEADER_SIZE);
    if (!headerIsLegal(ctx, supervisor)) ctx.raise(Vector.GP, 0);
    const compact = (view.getBigUint64(HEADER_AT + 8, true) & COMPACTED) !== 0n;
    const listed = compact ? Number(view.getBigUint64(HEADER_AT + 8, true) & BigInt(AVX)) : STANDARD;
    const present = Number(view.getBigUint64(HEADER_AT, true) & BigInt(wanted));
    // In the standard format MXCSR comes with SSE or AVX, present or not; in the compacted one it is part of SSE.
    const loadsMxcsr = compact ? (present & SSE) !== 0 : (wanted & (SSE | AVX)) !== 0;
    for (const [from, to] of partsOf(ctx, present, loadsMxcsr, listed)) loadRange(ctx, view, from, to);
    const mxcsr = view.getUint32(MXCSR_AT, true);
    if (loadsMxcsr && (mxcsr & ~MXCSR_MASK) !== 0) ctx.raise(Vector.GP, 0);
    resetComponents(ctx, fpu, wanted & ~present);
    takeComponents(ctx, fpu, present, listed);
    if (loadsMxcsr) fpu.mxcsr = mxcsr;
    else if ((wanted & SSE) !== 0) fpu.mxcsr = INITIAL_MXCSR;
    return done();
  };

/** XGETBV with ECX 1: components in use of those that XCR0 enables. */
export const inUseOf = (ctx: FpContext): bigint => ctx.ops.getXcr(0) & BigInt(componentsInUse(ctx, fpuOf(ctx)));

export const XSAVE_INSTRUCTIONS: Readonly<Record<string, FpFunction>> = {
  xsave: standard(false),
  xsaveopt: standard(true),
  xsavec: compacted,
  xsaves: compacted,
  xrstor: restore(false),
  xrstors: restore(true),
};
