/**
 * Packed integers that take several WebAssembly instructions each: sums of neighbours, signs, absolute differences, scaled products. Recorded.
 * Manual: APM vol. 4 (PHADDW to PSIGNW, PSADBW, PMADDUBSW, PMULHRSW, PMOVSXBQ, PMOVZXBQ).
 */
import type { SimdBinary } from '../../engines/wasm/simd.ts';
import { extend, lanesOf, perHalf } from './integer.ts';
import type { Rule } from './rule.ts';

const twice = (bits: bigint): bigint => (bits << 64n) | bits;
const eightTimes = (bits: bigint): bigint => bits * 0x00010001000100010001000100010001n;

/** Even lanes of both sources with the odd ones. */
const neighbours = (op: SimdBinary, width: 2 | 4): Rule =>
  perHalf((b, x, y) => {
    const lanes = (odd: number): number[] => lanesOf(width, (i) => i * 2 + odd);
    return b.v2(op, b.shuffle(x, y, lanes(0)), b.shuffle(x, y, lanes(1)));
  });

/** The first source, negated where the second is negative, zero where it is zero. */
const sign = (lane: 'i8x16' | 'i16x8' | 'i32x4'): Rule =>
  perHalf((b, x, y) => {
    const zero = b.vconst(0n);
    const negated = b.v2(`${lane}Sub`, zero, x);
    const signed = b.bitselect(negated, x, b.v2(`${lane}GtS`, zero, y));
    return b.v2('v128AndNot', signed, b.v2(`${lane}Eq`, y, zero));
  });

/** Sums of eight absolute differences each. */
const psadbw = perHalf((b, x, y) => {
  const difference = b.v2('v128Or', b.v2('i8x16SubSatU', x, y), b.v2('i8x16SubSatU', y, x));
  const dwords = b.v1('i32x4ExtaddPairwiseI16x8U', b.v1('i16x8ExtaddPairwiseI8x16U', difference));
  const sum = b.v2('i64x2Add', dwords, b.vshift('i64x2ShrU', dwords, b.const(32)));
  return b.v2('v128And', sum, b.vconst(twice(0xffffffffn)));
});

/** Unsigned bytes of the first source times signed ones of the second, neighbours added with saturation. */
const pmaddubsw = perHalf((b, x, y) => {
  const even = b.v2(
    'i16x8Mul',
    b.v2('v128And', x, b.vconst(eightTimes(0xffn))),
    b.vshift('i16x8ShrS', b.vshift('i16x8Shl', y, b.const(8)), b.const(8)),
  );
  const odd = b.v2('i16x8Mul', b.vshift('i16x8ShrU', x, b.const(8)), b.vshift('i16x8ShrS', y, b.const(8)));
  return b.v2('i16x8AddSatS', even, odd);
});

/** WebAssembly saturates the square of -1, which wraps here. */
const pmulhrsw = perHalf((b, x, y) => {
  const lowest = b.vconst(eightTimes(0x8000n));
  const both = b.v2('v128And', b.v2('i16x8Eq', x, lowest), b.v2('i16x8Eq', y, lowest));
  return b.v2('v128Xor', b.v2('i16x8Q15mulrSatS', x, y), both);
});

export const PACKED: Readonly<Record<string, Rule>> = {
  phaddw: neighbours('i16x8Add', 2),
  phaddd: neighbours('i32x4Add', 4),
  phaddsw: neighbours('i16x8AddSatS', 2),
  phsubw: neighbours('i16x8Sub', 2),
  phsubd: neighbours('i32x4Sub', 4),
  phsubsw: neighbours('i16x8SubSatS', 2),
  psignb: sign('i8x16'),
  psignw: sign('i16x8'),
  psignd: sign('i32x4'),
  psadbw,
  pmaddubsw,
  pmulhrsw,
  pmovsxbq: extend('i16x8ExtendLowI8x16S', 'i32x4ExtendLowI16x8S', 'i64x2ExtendLowI32x4S'),
  pmovzxbq: extend('i16x8ExtendLowI8x16U', 'i32x4ExtendLowI16x8U', 'i64x2ExtendLowI32x4U'),
};
