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
  readGeneral,
  readVector,
  vectorOperand,
  writeMemory,
  writeVector,
} from './operands.ts';

const a = new Lanes();
const b = new Lanes();
const r = new Lanes();
const mask = new Lanes();

export const immediateByte = (ctx: FpContext): number => Number(ctx.insn.imm & 0xffn);

/** dst = kernel(dst, src, imm). */
export function packed(row: Row, kernel: Kernel): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  const bytes = isMmx(dst) ? 8 : 16;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, b);
    readVector(ctx, fpu, dst, a);
    kernel(r, a, b, immediateByte(ctx), bytes);
    writeVector(ctx, fpu, dst, r);
    return done();
  });
}

/** Shifts: the count is an immediate, or the low 64 bits of the second operand. */
function shifts(row: Row, kernel: ShiftKernel): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  const bytes = isMmx(dst) ? 8 : 16;
  const byImmediate = row.operands[1] === 'Ib';
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    if (!byImmediate) readVector(ctx, fpu, src, b);
    readVector(ctx, fpu, dst, a);
    const count = byImmediate ? immediateByte(ctx) : b.u32[1] !== 0 ? 255 : Math.min(b.u32[0]!, 255);
    kernel(r, a, count, bytes);
    writeVector(ctx, fpu, dst, r);
    return done();
  });
}

/** PBLENDVB, BLENDVPS, BLENDVPD: by the top bits of XMM0's lanes. */
const variableBlend =
  (view: 'i8' | 'i32' | 'i64') =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, b);
      fpu.readXmm(ctx.insn.reg, a);
      fpu.readXmm(0, mask);
      const to = r[view] as { [i: number]: number | bigint };
      for (let i = 0; i < r[view].length; i++) to[i] = mask[view][i]! < 0 ? b[view][i]! : a[view][i]!;
      fpu.writeXmm(ctx.insn.reg, r);
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

/** Destination Gd from a register. */
const toGeneral =
  (f: (v: Lanes, imm: number, bytes: number) => number) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    const bytes = isMmx(src) ? 8 : 16;
    return forRow(row, (ctx) => {
      readVector(ctx, fpuOf(ctx), src, b);
      ctx.setReg(ctx.insn.reg, 4, BigInt(f(b, immediateByte(ctx), bytes) >>> 0));
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
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  const bytes = isMmx(dst) ? 8 : 16;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    const size = src.size === 0 ? ctx.insn.opSize : src.size;
    const value = readGeneral(ctx, src);
    readVector(ctx, fpu, dst, a);
    const lane = immediateByte(ctx) & (bytes / size - 1);
    for (let i = 0; i < size; i++) a.u8[lane * size + i] = Number((value >> BigInt(8 * i)) & 0xffn);
    writeVector(ctx, fpu, dst, a);
    return done();
  });
}

/** From memory one element is read, whatever the selector says. */
function insertps(row: Row): FpFunction {
  const src = vectorOperand(row, 1);
  const kernel = KERNELS['insertps']!;
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, b);
    fpu.readXmm(ctx.insn.reg, a);
    kernel(r, a, b, immediateByte(ctx) & (inMemory(ctx, src) ? 0x3f : 0xff), 16);
    fpu.writeXmm(ctx.insn.reg, r);
    return done();
  };
}

const ARITHMETIC_FLAGS = BigInt(Flag.arith);

export function setArithmeticFlags(ctx: FpContext, flags: number): void {
  ctx.rflags = (ctx.rflags & ~ARITHMETIC_FLAGS) | BigInt(flags);
}

function ptest(row: Row): FpFunction {
  const src = vectorOperand(row, 1);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, b);
    fpu.readXmm(ctx.insn.reg, a);
    let and = 0;
    let andNot = 0;
    for (let i = 0; i < 4; i++) {
      and |= a.i32[i]! & b.i32[i]!;
      andNot |= ~a.i32[i]! & b.i32[i]!;
    }
    setArithmeticFlags(ctx, (and === 0 ? Flag.ZF : 0) | (andNot === 0 ? Flag.CF : 0));
    return done();
  };
}

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
  pmovmskb: toGeneral(topBits('i8')),
  movmskps: toGeneral(topBits('i32')),
  movmskpd: toGeneral(topBits('i64')),
  pextrb: extract,
  pextrd: extract,
  extractps: extract,
  pinsrb: insert,
  pinsrw: insert,
  pinsrd: insert,
  insertps,
  sha256rnds2: sha256Rounds,
  ptest,
  pblendvb: variableBlend('i8'),
  blendvps: variableBlend('i32'),
  blendvpd: variableBlend('i64'),
};

/** The function of a row that is a kernel of packed integers, or undefined. */
export function packedFunction(row: Row): FpFunction | undefined {
  const { mnemonic, operands } = row;
  if (mnemonic === 'pextrw') {
    // 0F C5 has its source in modrm.rm, 0F3A 15 its destination.
    return operands[0] === 'Gd' ? toGeneral((v, imm, bytes) => v.u16[imm & (bytes / 2 - 1)]!)(row) : extract(row);
  }
  if (mnemonic in OTHERS) return OTHERS[mnemonic]!(row);
  if (mnemonic in SHIFTS) return shifts(row, SHIFTS[mnemonic]!);
  const kernel = KERNELS[mnemonic] ?? CRYPTO_KERNELS[mnemonic];
  return kernel === undefined ? undefined : packed(row, kernel);
}
