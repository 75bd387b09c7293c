/**
 * Instructions that are a kernel between operands: two sources and perhaps an immediate, into the first one; and those that give a number.
 * Manual: APM vol. 4 section 1.2, APM vol. 5 section 1.1.
 */
import type { Row } from '../../decode/instruction.ts';
import { Flag } from '../../state-layout.ts';
import { done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { CRYPTO_KERNELS, sha256rnds2 } from './crypto.ts';
import { KERNELS, SHIFTS, type ShiftKernel } from './integer.ts';
import { type Kernel, Lanes } from './lanes.ts';
import {
  forRow,
  inMemory,
  isMmx,
  isWide,
  operationName,
  readGeneral,
  readVector,
  vectorOperand,
  vectorOperands,
  writeMemory,
  writeVector,
} from './operands.ts';

const a = new Lanes();
const b = new Lanes();
const r = new Lanes();
const mask = new Lanes();
/** Bits 255:128 of the same. */
const upper = { a: new Lanes(), b: new Lanes(), r: new Lanes(), mask: new Lanes() };

export const immediateByte = (ctx: FpContext): number => Number(ctx.insn.imm & 0xffn);

/** How far the upper half's part of the immediate stands above the lower half's; elsewhere both use the same bits. */
const UPPER_IMMEDIATE: Readonly<Record<string, number>> = {
  blendps: 4,
  blendpd: 2,
  pblendd: 4,
  shufpd: 2,
  permilpd: 2,
  mpsadbw: 3,
};

/** What is done before and after a kernel: MXCSR for floating point. */
export interface Around {
  begin(ctx: FpContext): void;
  end(ctx: FpContext): void;
}

/** dst = kernel(first, src, imm); VEX.256: in both halves. */
export function packed(row: Row, kernel: Kernel, around?: Around): FpFunction {
  const { dst, first, src, byLength } = vectorOperands(row);
  const bytes = isMmx(dst) ? 8 : 16;
  const shift = UPPER_IMMEDIATE[operationName(row)] ?? 0;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = byLength && isWide(ctx);
    const imm = immediateByte(ctx);
    readVector(ctx, fpu, src, b, wide ? upper.b : undefined);
    readVector(ctx, fpu, first, a, wide ? upper.a : undefined);
    around?.begin(ctx);
    kernel(r, a, b, imm, bytes);
    if (wide) kernel(upper.r, upper.a, upper.b, imm >> shift, bytes);
    around?.end(ctx);
    writeVector(ctx, fpu, dst, r, wide ? upper.r : undefined);
    return done();
  });
}

/** PMOVSX, PMOVZX: the upper half of the result comes from the upper half of the source, which may be short. */
function extension(row: Row, kernel: Kernel): FpFunction {
  const { dst, src } = vectorOperands(row);
  const perHalf = src.size / 2;
  return (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = dst.byLength && isWide(ctx);
    readVector(ctx, fpu, src, b);
    kernel(r, b, b, 0, 16);
    if (wide) {
      b.load(b.toBigInt(16) >> BigInt(perHalf * 8), 16);
      kernel(upper.r, b, b, 0, 16);
    }
    writeVector(ctx, fpu, dst, r, wide ? upper.r : undefined);
    return done();
  };
}

/** Shifts: the count is an immediate, or the low 64 bits of the last operand. */
function shifts(row: Row, kernel: ShiftKernel): FpFunction {
  const byImmediate = row.operands.at(-1) === 'Ib';
  const dst = vectorOperand(row, 0);
  // With VEX the form by immediate writes the register of vvvv and reads that of modrm.rm.
  const first = byImmediate && dst.vex ? vectorOperand(row, 1) : vectorOperands(row).first;
  const { src } = vectorOperands(row);
  const bytes = isMmx(dst) ? 8 : 16;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = dst.byLength && isWide(ctx);
    if (!byImmediate) readVector(ctx, fpu, src, b);
    readVector(ctx, fpu, first, a, wide ? upper.a : undefined);
    const count = byImmediate ? immediateByte(ctx) : b.u32[1] !== 0 ? 255 : Math.min(b.u32[0]!, 255);
    kernel(r, a, count, bytes);
    if (wide) kernel(upper.r, upper.a, count, bytes);
    writeVector(ctx, fpu, dst, r, wide ? upper.r : undefined);
    return done();
  });
}

type SignView = 'i8' | 'i32' | 'i64';

function blendBySigns(view: SignView, to: Lanes, x: Lanes, y: Lanes, signs: Lanes): void {
  const result = to[view] as { [i: number]: number | bigint };
  for (let i = 0; i < to[view].length; i++) result[i] = signs[view][i]! < 0 ? y[view][i]! : x[view][i]!;
}

/** PBLENDVB, BLENDVPS, BLENDVPD: by the top bits of the lanes of XMM0, or of the register that imm[7:4] names. */
const variableBlend =
  (view: SignView) =>
  (row: Row): FpFunction => {
    const { dst, first, src, byLength } = vectorOperands(row);
    const signs = row.unit === 'avx' ? vectorOperand(row, 3) : undefined;
    return (ctx) => {
      const fpu = fpuOf(ctx);
      const wide = byLength && isWide(ctx);
      readVector(ctx, fpu, src, b, wide ? upper.b : undefined);
      readVector(ctx, fpu, first, a, wide ? upper.a : undefined);
      if (signs === undefined) fpu.readXmm(0, mask);
      else readVector(ctx, fpu, signs, mask, upper.mask);
      blendBySigns(view, r, a, b, mask);
      if (wide) blendBySigns(view, upper.r, upper.a, upper.b, upper.mask);
      writeVector(ctx, fpu, dst, r, wide ? upper.r : undefined);
      return done();
    };
  };

// Numbers out of vectors

const topBits =
  (view: 'i8' | 'i32' | 'i64') =>
  (v: Lanes, _imm: number, bytes: number): number => {
    const count = (v[view].length * bytes) / 16;
    let bits = 0;
    for (let i = 0; i < count; i++) if (v[view][i]! < 0) bits |= 1 << i;
    return bits;
  };

/** Destination Gd from a register. Of 32 bytes the upper half's bits stand above the lower half's. */
const toGeneral =
  (f: (v: Lanes, imm: number, bytes: number) => number, bitsPerHalf = 0) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    const bytes = isMmx(src) ? 8 : 16;
    return forRow(row, (ctx) => {
      const wide = src.byLength && isWide(ctx);
      readVector(ctx, fpuOf(ctx), src, b, wide ? upper.b : undefined);
      let value = f(b, immediateByte(ctx), bytes);
      if (wide) value |= f(upper.b, 0, bytes) << bitsPerHalf;
      ctx.setReg(ctx.insn.reg, 4, BigInt(value >>> 0));
      return done();
    });
  };

/** PEXTRB/W/D/Q, EXTRACTPS into a register or memory. */
function extract(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  return (ctx) => {
    const size = dst.size === 0 ? ctx.insn.opSize : dst.size;
    fpuOf(ctx).readXmm(ctx.insn.reg, b);
    const lane = immediateByte(ctx) & (16 / size - 1);
    const value = BigInt.asUintN(size * 8, b.toBigInt(16) >> BigInt(lane * size * 8));
    if (inMemory(ctx, dst)) writeMemory(ctx, value, size, false);
    else ctx.setReg(ctx.insn.rm, size === 8 ? 8 : 4, value);
    return done();
  };
}

/** PINSRB/W/D/Q from a register or memory. */
function insert(row: Row): FpFunction {
  const { dst, first, src } = vectorOperands(row);
  const bytes = isMmx(dst) ? 8 : 16;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    const size = src.size === 0 ? ctx.insn.opSize : src.size;
    const value = readGeneral(ctx, src);
    readVector(ctx, fpu, first, a);
    const lane = immediateByte(ctx) & (bytes / size - 1);
    for (let i = 0; i < size; i++) a.u8[lane * size + i] = Number((value >> BigInt(8 * i)) & 0xffn);
    writeVector(ctx, fpu, dst, a);
    return done();
  });
}

/** From memory one element is read, whatever the selector says. */
function insertps(row: Row): FpFunction {
  const { dst, first, src } = vectorOperands(row);
  const kernel = KERNELS['insertps']!;
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, b);
    readVector(ctx, fpu, first, a);
    kernel(r, a, b, immediateByte(ctx) & (inMemory(ctx, src) ? 0x3f : 0xff), 16);
    writeVector(ctx, fpu, dst, r);
    return done();
  };
}

const ARITHMETIC_FLAGS = BigInt(Flag.arith);

export function setArithmeticFlags(ctx: FpContext, flags: number): void {
  ctx.rflags = (ctx.rflags & ~ARITHMETIC_FLAGS) | BigInt(flags);
}

/** PTEST, VTESTPS, VTESTPD: ZF for no common bit, CF for none in the source alone, of the bits that count. */
const test =
  (lanes: readonly number[]) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    const dst = vectorOperand(row, 0);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      const wide = src.byLength && isWide(ctx);
      readVector(ctx, fpu, src, b, upper.b);
      readVector(ctx, fpu, dst, a, upper.a);
      let and = 0;
      let andNot = 0;
      for (let i = 0; i < 4; i++) {
        and |= a.i32[i]! & b.i32[i]! & lanes[i]!;
        andNot |= ~a.i32[i]! & b.i32[i]! & lanes[i]!;
        if (!wide) continue;
        and |= upper.a.i32[i]! & upper.b.i32[i]! & lanes[i]!;
        andNot |= ~upper.a.i32[i]! & upper.b.i32[i]! & lanes[i]!;
      }
      setArithmeticFlags(ctx, (and === 0 ? Flag.ZF : 0) | (andNot === 0 ? Flag.CF : 0));
      return done();
    };
  };
const SIGN = 0x80000000 | 0;

/** XMM0 holds the words. */
function sha256Rounds(row: Row): FpFunction {
  const src = vectorOperand(row, 1);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, b);
    fpu.readXmm(ctx.insn.reg, a);
    fpu.readXmm(0, mask);
    sha256rnds2(r, a, b, mask);
    fpu.writeXmm(ctx.insn.reg, r);
    return done();
  };
}

const OTHERS: Readonly<Record<string, (row: Row) => FpFunction>> = {
  pmovmskb: toGeneral(topBits('i8'), 16),
  movmskps: toGeneral(topBits('i32'), 4),
  movmskpd: toGeneral(topBits('i64'), 2),
  pextrb: extract,
  pextrd: extract,
  extractps: extract,
  pinsrb: insert,
  pinsrw: insert,
  pinsrd: insert,
  insertps,
  sha256rnds2: sha256Rounds,
  ptest: test([-1, -1, -1, -1]),
  testps: test([SIGN, SIGN, SIGN, SIGN]),
  testpd: test([0, SIGN, 0, SIGN]),
  pblendvb: variableBlend('i8'),
  blendvps: variableBlend('i32'),
  blendvpd: variableBlend('i64'),
};

/** The function of a row that is a kernel of packed integers, or undefined. */
export function packedFunction(row: Row): FpFunction | undefined {
  const { operands } = row;
  const mnemonic = operationName(row);
  if (mnemonic === 'pextrw') {
    // 0F C5 has its source in modrm.rm, 0F3A 15 its destination.
    return operands[0] === 'Gd' ? toGeneral((v, imm, bytes) => v.u16[imm & (bytes / 2 - 1)]!)(row) : extract(row);
  }
  if (mnemonic in OTHERS) return OTHERS[mnemonic]!(row);
  if (mnemonic in SHIFTS) return shifts(row, SHIFTS[mnemonic]!);
  const kernel = KERNELS[mnemonic] ?? CRYPTO_KERNELS[mnemonic];
  if (kernel !== undefined && /^pmov[sz]x/.test(mnemonic)) return extension(row, kernel);
  return kernel === undefined ? undefined : packed(row, kernel);
}
