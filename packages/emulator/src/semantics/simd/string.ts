/**
 * PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.
 * Manual: APM vol. 4 section 1.5 (string compare instructions).
 */
import type { Row } from '../../decode/instruction.ts';
import { Flag, RAX, RCX, RDX } from '../../state-layout.ts';
import { done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { Lanes } from './lanes.ts';
import { readVector, vectorOperand } from './operands.ts';
import { immediateByte, setArithmeticFlags } from './packed.ts';

const a = new Lanes();
const b = new Lanes();
const r = new Lanes();

type View = 'u8' | 'u16' | 'i8' | 'i16';
const VIEWS: readonly View[] = ['u8', 'u16', 'i8', 'i16'];

/** Explicit length: the magnitude of a signed register, saturated. */
function explicitLength(ctx: FpContext, register: number, count: number): number {
  const size = ctx.insn.opSize === 8 ? 8 : 4;
  const value = BigInt.asIntN(size * 8, ctx.getReg(register, size));
  const length = value < 0n ? -value : value;
  return length > BigInt(count) ? count : Number(length);
}
function implicitLength(v: Lanes, view: View, count: number): number {
  for (let i = 0; i < count; i++) if (v[view][i] === 0) return i;
  return count;
}

interface Strings {
  view: View;
  count: number;
  /** Valid elements of the first and second operand. */
  lengthA: number;
  lengthB: number;
}

/** Bit j: an element of the second operand is in the set of the first. */
function equalAny({ view, lengthA, lengthB }: Strings): number {
  let bits = 0;
  for (let j = 0; j < lengthB; j++) {
    for (let i = 0; i < lengthA; i++) if (a[view][i] === b[view][j]) bits |= 1 << j;
  }
  return bits;
}
/** In one of the ranges that pairs of the first operand bound. */
function ranges({ view, lengthA, lengthB }: Strings): number {
  let bits = 0;
  for (let j = 0; j < lengthB; j++) {
    for (let i = 0; i + 1 < lengthA; i += 2) {
      if (a[view][i]! <= b[view][j]! && b[view][j]! <= a[view][i + 1]!) bits |= 1 << j;
    }
  }
  return bits;
}
/** Equal at the same place; elements behind both ends are equal. */
function equalEach({ view, count, lengthA, lengthB }: Strings): number {
  let bits = 0;
  for (let j = 0; j < count; j++) {
    const [inA, inB] = [j < lengthA, j < lengthB];
    if (inA && inB ? a[view][j] === b[view][j] : inA === inB) bits |= 1 << j;
  }
  return bits;
}
/** The first operand occurs at j, as far as the register reaches. */
function equalOrdered({ view, count, lengthA, lengthB }: Strings): number {
  let bits = 0;
  for (let j = 0; j < count; j++) {
    let matches = true;
    for (let i = 0; i < lengthA && i + j < count; i++) {
      if (i + j >= lengthB || a[view][i] !== b[view][i + j]) matches = false;
    }
    if (matches) bits |= 1 << j;
  }
  return bits;
}
const AGGREGATIONS = [equalAny, ranges, equalEach, equalOrdered];

/** Polarity: 1 negates all, 3 negates the valid elements only. */
function polarity(bits: number, mode: number, { count, lengthB }: Strings): number {
  const all = (1 << count) - 1;
  if (mode === 1) return ~bits & all;
  return mode === 3 ? bits ^ ((1 << lengthB) - 1) : bits;
}

function writeMask(bits: number, expand: boolean, { view, count }: Strings): void {
  r.u64.fill(0n);
  if (!expand) r.u32[0] = bits;
  else for (let i = 0; i < count; i++) r[view][i] = ((bits >> i) & 1) !== 0 ? -1 : 0;
}

function index(bits: number, highest: boolean, count: number): number {
  if (bits === 0) return count;
  return 31 - Math.clz32(highest ? bits : bits & -bits);
}

const compare =
  (explicit: boolean, toMask: boolean) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, b);
      fpu.readXmm(ctx.insn.reg, a);
      const imm = immediateByte(ctx);
      const view = VIEWS[imm & 3]!;
      const count = (imm & 1) !== 0 ? 8 : 16;
      const lengthA = explicit ? explicitLength(ctx, RAX, count) : implicitLength(a, view, count);
      const lengthB = explicit ? explicitLength(ctx, RDX, count) : implicitLength(b, view, count);
      const strings = { view, count, lengthA, lengthB };
      const bits = polarity(AGGREGATIONS[(imm >> 2) & 3]!(strings), (imm >> 4) & 3, strings);
      if (toMask) {
        writeMask(bits, (imm & 0x40) !== 0, strings);
        fpu.writeXmm(0, r);
        if (src.vex) fpu.clearHigh(0);
      } else ctx.setReg(RCX, 4, BigInt(index(bits, (imm & 0x40) !== 0, count)));
      const ends = (lengthB < count ? Flag.ZF : 0) | (lengthA < count ? Flag.SF : 0);
      setArithmeticFlags(ctx, (bits !== 0 ? Flag.CF : 0) | ends | ((bits & 1) !== 0 ? Flag.OF : 0));
      return done();
    };
  };

export const STRING_FUNCTIONS: Readonly<Record<string, (row: Row) => FpFunction>> = {
  pcmpestrm: compare(true, true),
  pcmpestri: compare(true, false),
  pcmpistrm: compare(false, true),
  pcmpistri: compare(false, false),
};
