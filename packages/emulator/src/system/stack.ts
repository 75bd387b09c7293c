/**
 * Stacks of far transfers and events: frames are checked as a whole before anything is written, and read before RSP moves.
 * Manual: APM vol. 2 ch. 4.12 (limits) and 8.7-8.9 (frames), SDM vol. 3 ch. 6.12-6.14.
 */
import type { Segment } from '../state-layout.ts';
import { Attrib, RSP, Seg, Vector } from '../state-layout.ts';
import type { EventContext } from './common.ts';
import { endsAt4G, isCanonical, maskOf, untagged } from './common.ts';

/** Address size of a stack: 8 in 64-bit mode, else by SS.B. */
export const stackWidth = (ss: Segment, is64: boolean): 2 | 4 | 8 => (is64 ? 8 : ss.attrib & Attrib.DB ? 4 : 2);

/** True if `size` bytes at `offset` lie within the limit of a (possibly expand-down) segment. @param wraps over the end of 4 GiB they do, too */
export const withinLimit = (s: Segment, offset: number, size: number, wraps: boolean): boolean => {
  const last = offset + size - 1;
  const expandDown = (s.attrib & (Attrib.S | 12)) === (Attrib.S | 4);
  if (!expandDown) return last <= s.limit || (wraps && s.limit === 0xffff_ffff);
  return offset > s.limit && last <= (s.attrib & Attrib.DB ? 0xffff_ffff : 0xffff);
};

/** Where a frame goes. */
export interface StackTarget {
  ss: Segment;
  sp: bigint;
  width: 2 | 4 | 8;
  /** The stack of another privilege level: implicit supervisor accesses, which can't be probed. */
  system: boolean;
  /** Of #SS if the frame does not fit. */
  errorCode: number;
}

/** The stack that the processor uses now. */
export const currentStack = (ctx: EventContext, errorCode = 0): StackTarget => {
  const ss = ctx.ops.getSegment(Seg.SS);
  const width = stackWidth(ss, ctx.mode === 'prot64');
  return { ss, sp: ctx.ops.readGpr(RSP) & maskOf(width), width, system: false, errorCode };
};

const linearOf = (ctx: EventContext, t: StackTarget, offset: bigint, size: number): bigint => {
  if (t.width === 8) {
    const linear = untagged(ctx.ops, offset);
    const inside = isCanonical(ctx.ops, linear) && isCanonical(ctx.ops, BigInt.asUintN(64, linear + BigInt(size - 1)));
    if (!inside) ctx.raise(Vector.SS, t.errorCode);
    return linear;
  }
  // A null SS comes along from 64-bit mode; in real mode there is none.
  const usable = (t.ss.attrib & Attrib.unusable) === 0 || ctx.mode === 'real' || ctx.mode === 'vm86';
  if (!usable || !withinLimit(t.ss, Number(offset), size, !endsAt4G(ctx))) ctx.raise(Vector.SS, t.errorCode);
  return (t.ss.base + offset) & 0xffff_ffffn;
};

/** A frame in the making: `push` only collects, `check` raises what pushing would, `write` stores. */
export class StackFrame {
  private readonly slots: { linear: bigint; value: bigint; size: number }[] = [];
  sp: bigint;

  constructor(
    private readonly ctx: EventContext,
    private readonly target: StackTarget,
  ) {
    this.sp = target.sp;
  }

  /** Pushes `size` bytes; #SS if they do not fit. */
  push(value: bigint, size: number): this {
    this.sp = (this.sp - BigInt(size)) & maskOf(this.target.width);
    this.slots.push({ linear: linearOf(this.ctx, this.target, this.sp, size), value: value & maskOf(size), size });
    return this;
  }

  /** Probes the pages. Frames on another level's stack are written in push order instead: a fault there leaves only dead bytes behind. */
  check(): this {
    if (!this.target.system) for (const s of this.slots) this.ctx.ops.probeWrite(s.linear, s.size);
    return this;
  }

  write(): void {
    const { ops } = this.ctx;
    for (const s of this.slots) {
      if (this.target.system) ops.writeStd(s.linear, s.value, s.size, true);
      else ops.writeEmulated(s.linear, s.value, s.size);
    }
  }
}

/** Checks a store of `size` bytes at SS:`sp` of the current stack; the function returned stores. */
export const reserveStack = (ctx: EventContext, sp: bigint, size: number): ((value: bigint) => void) => {
  const linear = linearOf(ctx, currentStack(ctx), sp, size);
  ctx.ops.probeWrite(linear, size);
  return (value) => ctx.ops.writeEmulated(linear, value & maskOf(size), size);
};

/** Reads the current stack upwards without moving RSP. */
export class StackReader {
  readonly width: 2 | 4 | 8;
  sp: bigint;

  constructor(private readonly ctx: EventContext) {
    this.width = stackWidth(ctx.ops.getSegment(Seg.SS), ctx.mode === 'prot64');
    this.sp = ctx.ops.readGpr(RSP) & maskOf(this.width);
  }

  pop(size: number): bigint {
    const value = this.ctx.read(Seg.SS, this.sp, size);
    this.skip(size);
    return value;
  }

  /**
   * Pops `count` items. AMD's processors read the topmost first, which decides the address of a page fault; Intel's manual and KVM go upwards.
   */
  popAll(count: number, size: number): bigint[] {
    const downwards = this.ctx.vendor === 'amd' && this.ctx.subset === 'x86';
    const mask = maskOf(this.width);
    const values = new Array<bigint>(count).fill(0n);
    for (let n = 0; n < count; n++) {
      const i = downwards ? count - 1 - n : n;
      values[i] = this.ctx.read(Seg.SS, (this.sp + BigInt(i * size)) & mask, size);
    }
    this.skip(count * size);
    return values;
  }

  /** Reads `count` items from `distance` bytes further up on, topmost first, and leaves them there. */
  probe(distance: number, count: number, size: number): void {
    for (let n = count - 1; n >= 0; n--) {
      this.ctx.read(Seg.SS, (this.sp + BigInt(distance + n * size)) & maskOf(this.width), size);
    }
  }

  skip(bytes: number): void {
    this.sp = (this.sp + BigInt(bytes)) & maskOf(this.width);
  }
}
