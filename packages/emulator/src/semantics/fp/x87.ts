/**
 * What all x87 instructions on data share: stack faults, exception flags, rounding by FCW, operands in memory.
 * Manual: APM vol. 1 sections 6.2 to 6.8.
 */
import { Seg } from '../../state-layout.ts';
import { SseEnvironment } from '../simd/arithmetic.ts';
import type { FpuArea } from './area.ts';
import { checkPending, type FpContext, type FpFunction, fpuOf } from './context.ts';
import {
  DE,
  F80,
  type Format,
  fromInteger,
  IE,
  isNan,
  quiet,
  type Rounded,
  type Rounding,
  type Unpacked,
  unpack32,
  unpack64,
  ZE,
} from './float.ts';
import { updateSummary } from './words.ts';

export const C0 = 0x100;
export const C1 = 0x200;
export const C2 = 0x400;
export const C3 = 0x4000;
const SF = 0x40;
/** "Real indefinite". */
export const INDEFINITE = (0xffffn << 64n) | (3n << 62n);
/** Unmasked overflow and underflow scale a register's exponent by this (APM vol. 1 section 6.8.2). */
const WRAP = 24576;
/** Exceptions of the sources: unmasked, they leave everything as it was. */
export const PRE_COMPUTATION = IE | DE | ZE;

const PRECISIONS: readonly Format[] = [{ ...F80, p: 24 }, F80, { ...F80, p: 53 }, F80];

/** FCW during one instruction, with x87's own NaN rule. */
export class X87Environment extends SseEnvironment {
  /** By precision control. */
  format: Format = F80;
  up = false;

  start(cw: number, toRegister = true): void {
    this.flags = 0;
    this.up = false;
    this.daz = false;
    this.control.rounding = ((cw >> 10) & 3) as Rounding;
    this.control.masks = cw & 0x3f;
    this.control.wrap = toRegister ? WRAP : 0;
    this.format = PRECISIONS[(cw >> 8) & 3]!;
  }
  override take(result: Rounded): Unpacked {
    this.up = result.up;
    return super.take(result);
  }
  /** Unsupported encodings are invalid; of two NaNs the larger significand wins, and the positive one of equals. */
  override nan(x: Unpacked, y: Unpacked): Unpacked | undefined {
    if (x.kind === 'unsupported' || y.kind === 'unsupported') return this.invalid();
    if (!isNan(x) && !isNan(y)) return undefined;
    if (x.kind === 'snan' || y.kind === 'snan') this.flags |= IE;
    if (!isNan(x)) return quiet(y);
    if (!isNan(y)) return quiet(x);
    return quiet(largerNan(x, y));
  }
}

function largerNan(x: Unpacked, y: Unpacked): Unpacked {
  if (x.sig !== y.sig) return x.sig > y.sig ? x : y;
  return x.sign ? y : x;
}

export const x87 = new X87Environment();

/** Adds exception flags; ES and B follow. */
export function signal(fpu: FpuArea, flags: number): void {
  fpu.sw |= flags;
  updateSummary(fpu);
}

/** IE with SF; C1 says overflow. Returns whether the masked response is due. */
export function stackFault(fpu: FpuArea, overflow: boolean): boolean {
  fpu.sw = (fpu.sw & ~C1) | (overflow ? C1 : 0);
  signal(fpu, IE | SF);
  return (fpu.cw & IE) !== 0;
}

/** The collected flags have an unmasked exception of the sources: no result. */
export const isBlocked = (fpu: FpuArea): boolean => (x87.flags & ~fpu.cw & PRE_COMPUTATION) !== 0;

/** Sets C1 by the rounding and adds the collected flags. Blocked operations report the sources' exceptions only. */
export function finish(fpu: FpuArea): void {
  if (isBlocked(fpu)) {
    x87.flags &= PRE_COMPUTATION;
    x87.up = false;
  }
  fpu.sw = (fpu.sw & ~C1) | (x87.up ? C1 : 0);
  signal(fpu, x87.flags);
}

/** Puts a value below the top; the masked response to an overflow is the indefinite. */
export function push(fpu: FpuArea, value: bigint): void {
  if (!fpu.isEmpty(7)) {
    if (!stackFault(fpu, true)) return;
    value = INDEFINITE;
  }
  fpu.top = fpu.top - 1;
  fpu.setSt(0, value);
}

/** Where the instruction is and what it addresses, for FSTENV and FXSAVE. */
function notePointers(ctx: FpContext, fpu: FpuArea): void {
  const { insn } = ctx;
  const real = ctx.mode === 'real' || ctx.mode === 'vm86';
  fpu.opcode = ((insn.opcode & 7) << 8) | (insn.modrm & 0xff);
  fpu.ip = real ? ctx.rip + ctx.ops.getCachedSegmentBase(Seg.CS) : ctx.rip;
  if (insn.mod === 3) return;
  const offset = ctx.effectiveAddress();
  fpu.dp = real ? offset + ctx.ops.getCachedSegmentBase(insn.seg as 0) : offset;
}

/** An instruction on data: after pending exceptions, it is noted once it has not faulted. */
export const onData =
  (body: (ctx: FpContext, fpu: FpuArea) => void): FpFunction =>
  (ctx) => {
    const fpu = fpuOf(ctx);
    checkPending(ctx, fpu);
    body(ctx, fpu);
    notePointers(ctx, fpu);
    return 0;
  };

/** ST(i) of the instruction. */
export const indexOf = (ctx: FpContext): number => ctx.insn.rm & 7;

export type MemoryFormat = 'single' | 'double' | 'i16' | 'i32' | 'i64';
const BYTES: Readonly<Record<MemoryFormat, number>> = { single: 4, double: 8, i16: 2, i32: 4, i64: 8 };

export const bytesOf = (format: MemoryFormat): number => BYTES[format];

export function readOperand(ctx: FpContext, format: MemoryFormat): Unpacked {
  const bytes = BYTES[format];
  const value = ctx.read(ctx.insn.seg, ctx.effectiveAddress(), bytes);
  if (format === 'single') return unpack32(Number(value));
  if (format === 'double') return unpack64(value);
  return fromInteger(BigInt.asIntN(bytes * 8, value));
}

/** 80 bits, in two pieces; the limit is checked for the whole. */
/** @param parted the end of the operand is checked behind the access to its first part */
export function readTen(ctx: FpContext, parted = false): bigint {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  if (!parted) ctx.linearize(seg, offset, 10, false);
  const low = ctx.read(seg, offset, 8);
  if (parted) ctx.linearize(seg, offset, 10, false);
  return (ctx.read(seg, second(ctx, offset), 2) << 64n) | low;
}
export function writeTen(ctx: FpContext, value: bigint): void {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  probeTen(ctx);
  ctx.write(seg, offset, BigInt.asUintN(64, value), 8);
  ctx.write(seg, second(ctx, offset), value >> 64n, 2);
}
export function probeTen(ctx: FpContext): void {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  ctx.probeWrite(seg, offset, 8);
  ctx.linearize(seg, offset, 10, true);
  ctx.probeWrite(seg, second(ctx, offset), 2);
}
const second = (ctx: FpContext, offset: bigint): bigint => BigInt.asUintN(ctx.insn.addrSize * 8, offset + 8n);
