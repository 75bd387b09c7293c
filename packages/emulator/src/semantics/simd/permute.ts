/**
 * What AVX and AVX2 add to the packed operations: broadcasts, permutations, 128-bit halves, variable shifts, VZEROALL and VZEROUPPER.
 * Manual: APM vol. 4 (the instructions by name).
 */
import type { Row } from '../../decode/instruction.ts';
import { done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { type Kernel, Lanes } from './lanes.ts';
import {
  inMemory,
  isWide,
  operationName,
  readVector,
  registerOf,
  vectorOperand,
  vectorOperands,
  writeMemory,
  writeVector,
} from './operands.ts';
import { immediateByte, packed } from './packed.ts';

/** 256 bits as two halves. */
class Wide {
  readonly low = new Lanes();
  readonly high = new Lanes();
  half(n: number): Lanes {
    return (n & 1) !== 0 ? this.high : this.low;
  }
  dword(i: number): number {
    return this.half(i >> 2).u32[i & 3]!;
  }
  qword(i: number): bigint {
    return this.half(i >> 1).u64[i & 1]!;
  }
}
const x = new Wide();
const y = new Wide();
const r = new Wide();

const store = (ctx: FpContext, row: Row): void => writeVector(ctx, fpuOf(ctx), vectorOperand(row, 0), r.low, r.high);

/** VZEROUPPER, VZEROALL: in 64-bit mode all sixteen registers, elsewhere eight. */
const clear =
  (all: boolean): FpFunction =>
  (ctx) => {
    const fpu = fpuOf(ctx);
    const count = ctx.mode === 'prot64' ? 16 : 8;
    for (let n = 0; n < count; n++) {
      if (all) fpu.setXmm(n, 0n);
      fpu.clearHigh(n);
    }
    return done();
  };

/** One element in all places. */
const broadcast =
  (bytes: 1 | 2 | 4 | 8 | 16) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, x.low);
      for (let i = 0; i < 16; i++) r.low.u8[i] = x.low.u8[i & (bytes - 1)]!;
      r.high.copy(r.low);
      if (isWide(ctx)) store(ctx, row);
      else writeVector(ctx, fpu, vectorOperand(row, 0), r.low);
      return done();
    };
  };

/** A function of both sources' 256 bits. */
const wide =
  (compute: (imm: number) => void) =>
  (row: Row): FpFunction => {
    const { first, src } = vectorOperands(row);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, y.low, y.high);
      readVector(ctx, fpu, first, x.low, x.high);
      compute(immediateByte(ctx));
      store(ctx, row);
      return done();
    };
  };

/** VPERM2F128, VPERM2I128: per half four bits choose one of four halves, or zero. */
function halves(imm: number): void {
  for (let n = 0; n < 2; n++) {
    const control = imm >> (4 * n);
    if ((control & 8) !== 0) r.half(n).u64.fill(0n);
    else r.half(n).copy(((control & 2) !== 0 ? y : x).half(control));
  }
}
/** VPERMD, VPERMPS: the first source holds the numbers of dwords. */
function dwords(): void {
  for (let i = 0; i < 8; i++) r.half(i >> 2).u32[i & 3] = y.dword(x.dword(i) & 7);
}
function qwords(imm: number): void {
  for (let i = 0; i < 4; i++) r.half(i >> 1).u64[i & 1] = y.qword((imm >> (2 * i)) & 3);
}
function insertHalf(imm: number): void {
  r.low.copy((imm & 1) !== 0 ? x.low : y.low);
  r.high.copy((imm & 1) !== 0 ? y.low : x.high);
}

function extractHalf(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    fpu.readXmm(registerOf(ctx, src), x.low);
    fpu.readHigh(registerOf(ctx, src), x.high);
    const half = x.half(immediateByte(ctx));
    if (inMemory(ctx, dst)) writeMemory(ctx, half.toBigInt(16), 16, false);
    else writeVector(ctx, fpu, dst, half);
    return done();
  };
}

// Kernels that work in each half

const permuteSingles: Kernel = (to, a, b) => {
  for (let i = 0; i < 4; i++) to.u32[i] = a.u32[b.u32[i]! & 3]!;
};
const permuteDoubles: Kernel = (to, a, b) => {
  for (let i = 0; i < 2; i++) to.u64[i] = a.u64[(b.u32[2 * i]! >> 1) & 1]!;
};
const singlesByImmediate: Kernel = (to, _a, b, imm) => {
  for (let i = 0; i < 4; i++) to.u32[i] = b.u32[(imm >> (2 * i)) & 3]!;
};
const doublesByImmediate: Kernel = (to, _a, b, imm) => {
  for (let i = 0; i < 2; i++) to.u64[i] = b.u64[(imm >> i) & 1]!;
};
const blendDwords: Kernel = (to, a, b, imm) => {
  for (let i = 0; i < 4; i++) to.u32[i] = ((imm >> i) & 1) !== 0 ? b.u32[i]! : a.u32[i]!;
};
/** Each lane by its own count; 32 and more give zero, or the sign. */
const shiftDwords =
  (f: (value: number, count: number) => number, arithmetic = false): Kernel =>
  (to, a, b) => {
    for (let i = 0; i < 4; i++) {
      const count = b.u32[i]!;
      to.u32[i] = count < 32 ? f(a.u32[i]!, count) : arithmetic ? a.i32[i]! >> 31 : 0;
    }
  };
const shiftQwords =
  (f: (value: bigint, count: bigint) => bigint): Kernel =>
  (to, a, b) => {
    for (let i = 0; i < 2; i++) to.u64[i] = b.u64[i]! < 64n ? f(a.u64[i]!, b.u64[i]!) : 0n;
  };

const KERNELS: Readonly<Record<string, Kernel>> = {
  permilps: permuteSingles,
  permilpd: permuteDoubles,
  permilpsIb: singlesByImmediate,
  permilpdIb: doublesByImmediate,
  pblendd: blendDwords,
  psllvd: shiftDwords((value, count) => value << count),
  psrlvd: shiftDwords((value, count) => value >>> count),
  psravd: shiftDwords((value, count) => value >> count, true),
  psllvq: shiftQwords((value, count) => BigInt.asUintN(64, value << count)),
  psrlvq: shiftQwords((value, count) => value >> count),
};

const OTHERS: Readonly<Record<string, (row: Row) => FpFunction>> = {
  zeroupper: () => clear(false),
  zeroall: () => clear(true),
  broadcastss: broadcast(4),
  broadcastsd: broadcast(8),
  broadcastf128: broadcast(16),
  broadcasti128: broadcast(16),
  pbroadcastb: broadcast(1),
  pbroadcastw: broadcast(2),
  pbroadcastd: broadcast(4),
  pbroadcastq: broadcast(8),
  perm2f128: wide(halves),
  perm2i128: wide(halves),
  permd: wide(dwords),
  permps: wide(dwords),
  permq: wide(qwords),
  permpd: wide(qwords),
  insertf128: wide(insertHalf),
  inserti128: wide(insertHalf),
  extractf128: extractHalf,
  extracti128: extractHalf,
};

/** The function of a VEX row of this family, or undefined. */
export function permuteFunction(row: Row): FpFunction | undefined {
  const name = operationName(row);
  const byImmediate = name.startsWith('permil') && row.operands.at(-1) === 'Ib';
  const kernel = KERNELS[byImmediate ? `${name}Ib` : name];
  return kernel === undefined ? OTHERS[name]?.(row) : packed(row, kernel);
}
