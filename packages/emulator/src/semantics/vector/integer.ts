/**
 * Packed integers, recorded.
 * Manual: APM vol. 4 (the instructions by name).
 */
import type { V128, VectorBuilder } from '../../builder/vector.ts';
import type { SimdBinary, SimdShift, SimdTest, SimdUnary } from '../../engines/wasm/simd.ts';
import { type Operands, sizeOf } from './operands.ts';
import { bytesFrom, type Rule } from './rule.ts';

/** One result half from the same half of both sources. */
type Halves = (b: VectorBuilder, first: V128, src: V128, half: number, imm: number) => V128;

export const perHalf =
  (f: Halves): Rule =>
  (o) => {
    const src = o.read(o.src);
    const first = o.read(o.first);
    o.write(
      o.dst,
      first.map((x, half) => f(o.b, x, src[half]!, half, o.form.imm)),
    );
  };
/** Only the second source counts. */
export const ofSource = (f: (b: VectorBuilder, src: V128, half: number, imm: number) => V128): Rule => {
  return (o) => {
    const src = o.read(o.src);
    o.write(
      o.dst,
      src.map((x, half) => f(o.b, x, half, o.form.imm)),
    );
  };
};
export const binary = (op: SimdBinary): Rule => perHalf((b, x, y) => b.v2(op, x, y));
const unary = (op: SimdUnary): Rule => ofSource((b, y) => b.v1(op, y));
export const shuffled = (lanes: (half: number, imm: number) => number[]): Rule =>
  perHalf((b, x, y, half, imm) => b.shuffle(x, y, lanes(half, imm)));
export const shuffledSource = (lanes: (half: number, imm: number) => number[]): Rule =>
  ofSource((b, y, half, imm) => b.shuffle(y, y, lanes(half, imm)));

/** ~first & src: WebAssembly complements its second operand. */
const andNot = perHalf((b, x, y) => b.v2('v128AndNot', y, x));

/** Bytes of lanes of `width` bytes: lane i of the result is lane `from(i)`; lanes of the second source follow those of the first. */
export const lanesOf = (width: number, from: (i: number) => number): number[] =>
  bytesFrom((i) => from(Math.floor(i / width)) * width + (i % width));

const interleave = (width: number, high: boolean): Rule => {
  const count = 16 / width;
  const base = high ? count / 2 : 0;
  return shuffled(() => lanesOf(width, (i) => base + (i >> 1) + (i & 1) * count));
};

/** Two bits of the immediate for each of four lanes. */
const pick = (imm: number, i: number): number => (imm >> (2 * i)) & 3;

/** Index bytes with the top bit set, or only their low four bits: what WebAssembly's swizzle makes the same of. */
const SHUFFLE_INDEX = BigInt(`0x${'8f'.repeat(16)}`);
const pshufb = perHalf((b, x, y) => b.v2('i8x16Swizzle', x, b.v2('v128And', y, b.vconst(SHUFFLE_INDEX))));

/** Bytes `imm` and up of first:src; beyond both there are zeros. */
const palignr = perHalf((b, x, y, _half, imm) => {
  if (imm >= 32) return b.vconst(0n);
  const zero = b.vconst(0n);
  const [low, high] = imm < 16 ? [y, x] : [x, zero];
  return b.shuffle(
    low,
    high,
    bytesFrom((i) => i + (imm & 15)),
  );
});

/** Shifts by an immediate; the form with VEX reads modrm.rm. */
const shiftImmediate = (op: SimdShift, bits: number, arithmetic: boolean): Rule => {
  return (o) => {
    const { b } = o;
    const source = o.form.vex ? o.form.operands[1]! : o.dst;
    const count = Math.min(o.form.imm, bits);
    const result = o.read(source).map((x) => {
      if (count < bits) return b.vshift(op, x, b.const(count));
      return arithmetic ? b.vshift(op, x, b.const(bits - 1)) : b.vconst(0n);
    });
    o.write(o.dst, result);
  };
};
/** Shifts by the low 64 bits of a register or of memory. */
const shiftVariable = (op: SimdShift, bits: number, arithmetic: boolean): Rule => {
  return (o) => {
    const { b } = o;
    const count = b.extract('i64x2ExtractLane', readWhole(o), 0);
    const over = b.leU(b.const(bits), count);
    const limited = arithmetic ? b.select(over, b.const(bits - 1), count) : count;
    const mask = b.select(over, b.const(0), b.const(-1n));
    const keep = b.replace('i64x2ReplaceLane', b.replace('i64x2ReplaceLane', b.vconst(0n), 0, mask), 1, mask);
    const result = o.read(o.first).map((x) => {
      const shifted = b.vshift(op, x, limited);
      return arithmetic ? shifted : b.v2('v128And', shifted, keep);
    });
    o.write(o.dst, result);
  };
};
/** The count's operand has 16 bytes whatever VEX.L says. */
const readWhole = (o: Operands): V128 => o.read(o.src.startsWith('W') ? o.src : o.dst)[0]!;
const shift =
  (op: SimdShift, bits: number, arithmetic = false): Rule =>
  (o) => {
    const rule = o.form.operands.at(-1) === 'Ib' ? shiftImmediate : shiftVariable;
    rule(op, bits, arithmetic)(o);
  };

/** PSLLDQ, PSRLDQ: whole halves by bytes. */
const shiftBytes =
  (left: boolean): Rule =>
  (o) => {
    const { b } = o;
    const source = o.form.vex ? o.form.operands[1]! : o.dst;
    const count = Math.min(o.form.imm, 16);
    const lanes = bytesFrom((i) => (left ? (i < count ? 16 + i : i - count) : i + count));
    const result = o.read(source).map((x) => b.shuffle(x, b.vconst(0n), lanes));
    o.write(o.dst, result);
  };

/** Products of the even lanes. */
const evenProducts = (op: 'i64x2ExtmulLowI32x4S' | 'i64x2ExtmulLowI32x4U'): Rule =>
  perHalf((b, x, y) => {
    const even = (value: V128): V128 =>
      b.shuffle(
        value,
        value,
        lanesOf(4, (i) => (i & 1) * 2),
      );
    return b.v2(op, even(x), even(y));
  });
/** Upper halves of 16-bit products. */
const highProducts = (sign: 'S' | 'U'): Rule =>
  perHalf((b, x, y) =>
    b.shuffle(
      b.v2(`i32x4ExtmulLowI16x8${sign}`, x, y),
      b.v2(`i32x4ExtmulHighI16x8${sign}`, x, y),
      lanesOf(2, (i) => i * 2 + 1),
    ),
  );

/** PMOVSX, PMOVZX; `op` widens the low half by two, again and again. */
export const extend = (...ops: readonly SimdUnary[]): Rule => {
  return (o) => {
    const { b } = o;
    const size = sizeOf(o.src, o.form.opSize);
    const low = o.isMemory(o.src) && size < 16 ? o.scalar(o.src, size) : readWhole(o);
    const widen = (x: V128): V128 => ops.reduce((value, op) => b.v1(op, value), x);
    const result = [widen(low)];
    const per = 16 >> ops.length;
    if (o.halves === 2) {
      const upper = bytesFrom((i) => (i + per) & 15);
      result.push(widen(b.shuffle(low, low, upper)));
    }
    o.write(o.dst, result);
  };
};

/** Top bits of all lanes into a general register. */
const mask =
  (op: SimdTest, bits: number): Rule =>
  (o) => {
    const { b } = o;
    const parts = o.read(o.src).map((x, half) => b.shl(b.bitmask(op, x), b.const(half * bits)));
    b.setReg(
      { field: 'reg' },
      4,
      parts.reduce((sum, part) => b.or(sum, part)),
    );
  };

/** PTEST: ZF for no common bit, CF for none in the source alone. */
const ptest: Rule = (o) => {
  const { b } = o;
  const src = o.read(o.src);
  const dst = o.read(o.dst);
  const any = (op: 'v128And' | 'v128AndNot') =>
    src.map((y, half) => b.test('v128AnyTrue', b.v2(op, y, dst[half]!))).reduce((x, y) => b.orC(x, y));
  const [zf, cf] = [b.notC(any('v128And')), b.notC(any('v128AndNot'))];
  b.setFlags({ zf, cf, pf: b.false(), af: b.false(), sf: b.false(), of: b.false() });
};

/** Lanes of the source where the immediate has a bit. */
const blend = (width: number): Rule =>
  shuffled((half, imm) => {
    const count = 16 / width;
    const bits = width === 2 ? imm : imm >> (half * count);
    return lanesOf(width, (i) => (((bits >> i) & 1) !== 0 ? count + i : i));
  });

const names = <T>(entries: readonly (readonly [string, T])[], make: (value: T) => Rule): Record<string, Rule> =>
  Object.fromEntries(entries.map(([name, value]) => [name, make(value)]));

const BINARY = names<SimdBinary>(
  [
    ...(['pand', 'andps', 'andpd'] as const).map((name) => [name, 'v128And'] as const),
    ...(['por', 'orps', 'orpd'] as const).map((name) => [name, 'v128Or'] as const),
    ...(['pxor', 'xorps', 'xorpd'] as const).map((name) => [name, 'v128Xor'] as const),
    ['paddb', 'i8x16Add'],
    ['paddw', 'i16x8Add'],
    ['paddd', 'i32x4Add'],
    ['paddq', 'i64x2Add'],
    ['psubb', 'i8x16Sub'],
    ['psubw', 'i16x8Sub'],
    ['psubd', 'i32x4Sub'],
    ['psubq', 'i64x2Sub'],
    ['paddsb', 'i8x16AddSatS'],
    ['paddsw', 'i16x8AddSatS'],
    ['paddusb', 'i8x16AddSatU'],
    ['paddusw', 'i16x8AddSatU'],
    ['psubsb', 'i8x16SubSatS'],
    ['psubsw', 'i16x8SubSatS'],
    ['psubusb', 'i8x16SubSatU'],
    ['psubusw', 'i16x8SubSatU'],
    ['pcmpeqb', 'i8x16Eq'],
    ['pcmpeqw', 'i16x8Eq'],
    ['pcmpeqd', 'i32x4Eq'],
    ['pcmpeqq', 'i64x2Eq'],
    ['pcmpgtb', 'i8x16GtS'],
    ['pcmpgtw', 'i16x8GtS'],
    ['pcmpgtd', 'i32x4GtS'],
    ['pcmpgtq', 'i64x2GtS'],
    ['pminsb', 'i8x16MinS'],
    ['pminub', 'i8x16MinU'],
    ['pminsw', 'i16x8MinS'],
    ['pminuw', 'i16x8MinU'],
    ['pminsd', 'i32x4MinS'],
    ['pminud', 'i32x4MinU'],
    ['pmaxsb', 'i8x16MaxS'],
    ['pmaxub', 'i8x16MaxU'],
    ['pmaxsw', 'i16x8MaxS'],
    ['pmaxuw', 'i16x8MaxU'],
    ['pmaxsd', 'i32x4MaxS'],
    ['pmaxud', 'i32x4MaxU'],
    ['pavgb', 'i8x16AvgrU'],
    ['pavgw', 'i16x8AvgrU'],
    ['pmullw', 'i16x8Mul'],
    ['pmulld', 'i32x4Mul'],
    ['pmaddwd', 'i32x4DotI16x8S'],
    ['packsswb', 'i8x16NarrowI16x8S'],
    ['packuswb', 'i8x16NarrowI16x8U'],
    ['packssdw', 'i16x8NarrowI32x4S'],
    ['packusdw', 'i16x8NarrowI32x4U'],
  ],
  binary,
);

export const INTEGERS: Readonly<Record<string, Rule>> = {
  ...BINARY,
  pandn: andNot,
  andnps: andNot,
  andnpd: andNot,
  pabsb: unary('i8x16Abs'),
  pabsw: unary('i16x8Abs'),
  pabsd: unary('i32x4Abs'),
  punpcklbw: interleave(1, false),
  punpcklwd: interleave(2, false),
  punpckldq: interleave(4, false),
  punpcklqdq: interleave(8, false),
  punpckhbw: interleave(1, true),
  punpckhwd: interleave(2, true),
  punpckhdq: interleave(4, true),
  punpckhqdq: interleave(8, true),
  unpcklps: interleave(4, false),
  unpcklpd: interleave(8, false),
  unpckhps: interleave(4, true),
  unpckhpd: interleave(8, true),
  pshufd: shuffledSource((_half, imm) => lanesOf(4, (i) => pick(imm, i))),
  pshuflw: shuffledSource((_half, imm) => lanesOf(2, (i) => (i < 4 ? pick(imm, i) : i))),
  pshufhw: shuffledSource((_half, imm) => lanesOf(2, (i) => (i < 4 ? i : 4 + pick(imm, i - 4)))),
  shufps: shuffled((_half, imm) => lanesOf(4, (i) => pick(imm, i) + (i < 2 ? 0 : 4))),
  shufpd: shuffled((half, imm) => lanesOf(8, (i) => ((imm >> (2 * half + i)) & 1) + 2 * i)),
  movsldup: shuffledSource(() => lanesOf(4, (i) => i & 2)),
  movshdup: shuffledSource(() => lanesOf(4, (i) => i | 1)),
  movddup: (o) => {
    const { b } = o;
    const low = o.isMemory(o.src) && o.halves === 1 ? [o.scalar(o.src, 8)] : o.read(o.src);
    const result = low.map((x) =>
      b.shuffle(
        x,
        x,
        lanesOf(8, () => 0),
      ),
    );
    o.write(o.dst, result);
  },
  pshufb,
  palignr,
  psllw: shift('i16x8Shl', 16),
  pslld: shift('i32x4Shl', 32),
  psllq: shift('i64x2Shl', 64),
  psrlw: shift('i16x8ShrU', 16),
  psrld: shift('i32x4ShrU', 32),
  psrlq: shift('i64x2ShrU', 64),
  psraw: shift('i16x8ShrS', 16, true),
  psrad: shift('i32x4ShrS', 32, true),
  pslldq: shiftBytes(true),
  psrldq: shiftBytes(false),
  pmuludq: evenProducts('i64x2ExtmulLowI32x4U'),
  pmuldq: evenProducts('i64x2ExtmulLowI32x4S'),
  pmulhw: highProducts('S'),
  pmulhuw: highProducts('U'),
  pmovsxbw: extend('i16x8ExtendLowI8x16S'),
  pmovsxbd: extend('i16x8ExtendLowI8x16S', 'i32x4ExtendLowI16x8S'),
  pmovsxwd: extend('i32x4ExtendLowI16x8S'),
  pmovsxwq: extend('i32x4ExtendLowI16x8S', 'i64x2ExtendLowI32x4S'),
  pmovsxdq: extend('i64x2ExtendLowI32x4S'),
  pmovzxbw: extend('i16x8ExtendLowI8x16U'),
  pmovzxbd: extend('i16x8ExtendLowI8x16U', 'i32x4ExtendLowI16x8U'),
  pmovzxwd: extend('i32x4ExtendLowI16x8U'),
  pmovzxwq: extend('i32x4ExtendLowI16x8U', 'i64x2ExtendLowI32x4U'),
  pmovzxdq: extend('i64x2ExtendLowI32x4U'),
  pmovmskb: mask('i8x16Bitmask', 16),
  movmskps: mask('i32x4Bitmask', 4),
  movmskpd: mask('i64x2Bitmask', 2),
  ptest,
  pblendw: blend(2),
  blendps: blend(4),
  blendpd: blend(8),
  pblendd: blend(4),
};
