/**
 * 80-bit numbers in 64-bit integer arithmetic: nearest rounding of normal numbers and zeros. Whatever is not one of these, or would not stay
 * one, is for semantics/fp.
 * Manual: APM vol. 1 sections 6.3 and 6.8. A number is (-1)^sign * mant * 2^(exp - 16446).
 */
import type { Cond, Value } from '../../builder/builder.ts';
import type { X87Builder } from '../../builder/x87.ts';

export interface X87Number {
  /** 0 or 1. */
  sign: Value;
  /** Biased, 0 for zero. */
  exp: Value;
  mant: Value;
}
/** A result before it is committed. */
export interface Rounded extends X87Number {
  inexact: Cond;
  /** The magnitude was rounded up: C1. */
  up: Cond;
  /** Overflow or underflow: not for here. */
  bad: Cond;
}

export const EXP_MASK = 0x7fff;
const BIAS = 16383;
const TOP_BIT = 1n << 63n;

export const isZero = (b: X87Builder, x: X87Number): Cond => b.isZero(b.or(x.exp, x.mant));

/** A normal number or a zero. */
export function isPlain(b: X87Builder, x: X87Number): Cond {
  const normal = b.andC(b.bit(x.mant, 63), b.ltU(b.sub(x.exp, b.const(1)), b.const(EXP_MASK - 1)));
  return b.orC(normal, isZero(b, x));
}

const outOfRange = (b: X87Builder, exp: Value): Cond => b.notC(b.ltU(b.sub(exp, b.const(1)), b.const(EXP_MASK - 1)));

/** Rounds the 128 bits hi:lo, hi with its top bit set, to hi. */
function roundWide(b: X87Builder, sign: Value, exp: Value, hi: Value, lo: Value): Rounded {
  const half = b.const(TOP_BIT);
  const up = b.orC(b.ltU(half, lo), b.andC(b.eq(lo, half), b.bit(hi, 0)));
  const sum = b.add(hi, b.fromCond(up));
  const carried = b.isZero(sum);
  const rounded = b.add(exp, b.fromCond(carried));
  return {
    sign,
    exp: rounded,
    mant: b.select(carried, half, sum),
    inexact: b.notC(b.isZero(lo)),
    up,
    bad: outOfRange(b, rounded),
  };
}

/** `zero` in place of a result. */
const orZero = (b: X87Builder, when: Cond, sign: Value, x: Rounded): Rounded => {
  const zero = b.const(0);
  const not = b.notC(when);
  return {
    sign: b.select(when, sign, x.sign),
    exp: b.select(when, zero, x.exp),
    mant: b.select(when, zero, x.mant),
    inexact: b.andC(not, x.inexact),
    up: b.andC(not, x.up),
    bad: b.andC(not, x.bad),
  };
};

/** m shifted right by `by` into 128 bits; what falls off sticks to the lowest bit. */
function shiftRightWide(b: X87Builder, m: Value, by: Value): { hi: Value; lo: Value } {
  const zero = b.const(0);
  const near = b.ltU(by, b.const(64));
  const some = b.notC(b.isZero(by));
  // Counts are taken modulo 64: by - 64 and -by come out right.
  const out = b.select(some, b.shl(m, b.neg(by)), zero);
  const far = b.ltU(by, b.const(128));
  const sticky = b.fromCond(b.ne(out, zero));
  const exact64 = b.eq(by, b.const(64));
  const low = b.select(exact64, m, b.or(b.shrU(m, by), sticky));
  const tiny = b.fromCond(b.ne(m, zero));
  return { hi: b.select(near, b.shrU(m, by), zero), lo: b.select(near, out, b.select(far, low, tiny)) };
}

/** Shifts hi:lo left until the top bit is set; how far. */
function normaliseWide(b: X87Builder, hi: Value, lo: Value): { hi: Value; lo: Value; by: Value } {
  const zero = b.const(0);
  const low = b.isZero(hi);
  const by = b.select(low, b.clz(lo), b.clz(hi));
  const carried = b.select(b.isZero(by), zero, b.shrU(lo, b.neg(by)));
  return {
    hi: b.select(low, b.shl(lo, by), b.or(b.shl(hi, by), carried)),
    lo: b.select(low, zero, b.shl(lo, by)),
    by: b.select(low, b.add(by, b.const(64)), by),
  };
}

/** x + y; for a difference the caller has changed y's sign. */
export function add(b: X87Builder, x: X87Number, y: X87Number): Rounded {
  const swap = b.orC(b.ltU(x.exp, y.exp), b.andC(b.eq(x.exp, y.exp), b.ltU(x.mant, y.mant)));
  const pick = (p: Value, q: Value): Value => b.select(swap, p, q);
  const [exp, big] = [pick(y.exp, x.exp), pick(y.mant, x.mant)];
  const sign = pick(y.sign, x.sign);
  const small = shiftRightWide(b, pick(x.mant, y.mant), b.sub(exp, pick(x.exp, y.exp)));
  const subtracts = b.ne(x.sign, y.sign);
  // Sum: a carry shifts right by one.
  const total = b.add(big, small.hi);
  const carry = b.ltU(total, big);
  const one = b.const(1);
  const sumHi = b.select(carry, b.or(b.shrU(total, one), b.const(TOP_BIT)), total);
  const shifted = b.or(b.or(b.shrU(small.lo, one), b.and(small.lo, one)), b.shl(total, b.const(63)));
  const sumLo = b.select(carry, shifted, small.lo);
  // Difference: normalised.
  const borrow = b.fromCond(b.notC(b.isZero(small.lo)));
  const rest = normaliseWide(b, b.sub(b.sub(big, small.hi), borrow), b.neg(small.lo));
  const hi = b.select(subtracts, rest.hi, sumHi);
  const lo = b.select(subtracts, rest.lo, sumLo);
  const change = b.select(subtracts, b.neg(rest.by), b.fromCond(carry));
  const none = b.isZero(hi);
  const result = roundWide(b, sign, b.add(exp, change), hi, lo);
  return orZero(b, none, b.and(x.sign, y.sign), result);
}

export function multiply(b: X87Builder, x: X87Number, y: X87Number): Rounded {
  const sign = b.xor(x.sign, y.sign);
  const high = b.mulHighU(x.mant, y.mant);
  const low = b.mul(x.mant, y.mant);
  const full = b.bit(high, 63);
  const one = b.const(1);
  const hi = b.select(full, high, b.or(b.shl(high, one), b.shrU(low, b.const(63))));
  const lo = b.select(full, low, b.shl(low, one));
  const exp = b.add(b.sub(b.add(x.exp, y.exp), b.const(BIAS)), b.fromCond(full));
  return orZero(b, b.orC(isZero(b, x), isZero(b, y)), sign, roundWide(b, sign, exp, hi, lo));
}

/** x / y; y is not zero. */
export function divide(b: X87Builder, x: X87Number, y: X87Number): Rounded {
  const sign = b.xor(x.sign, y.sign);
  const below = b.ltU(x.mant, y.mant);
  const hi = b.select(below, x.mant, b.shrU(x.mant, b.const(1)));
  const lo = b.select(below, b.const(0), b.shl(x.mant, b.const(63)));
  const { quotient, remainder } = b.div128U(hi, lo, y.mant);
  const opposite = b.sub(y.mant, remainder);
  const up = b.orC(b.ltU(opposite, remainder), b.andC(b.eq(opposite, remainder), b.bit(quotient, 0)));
  const sum = b.add(quotient, b.fromCond(up));
  const carried = b.isZero(sum);
  const exp = b.add(b.sub(b.sub(x.exp, y.exp), b.fromCond(below)), b.add(b.const(BIAS), b.fromCond(carried)));
  const result: Rounded = {
    sign,
    exp,
    mant: b.select(carried, b.const(TOP_BIT), sum),
    inexact: b.notC(b.isZero(remainder)),
    up,
    bad: outOfRange(b, exp),
  };
  return orZero(b, isZero(b, x), sign, result);
}

/** A signed integer, exactly. */
export function fromInteger(b: X87Builder, value: Value): X87Number {
  const sign = b.shrU(value, b.const(63));
  const magnitude = b.select(b.bit(value, 63), b.neg(value), value);
  const by = b.clz(magnitude);
  const none = b.isZero(magnitude);
  return {
    sign,
    exp: b.select(none, b.const(0), b.sub(b.const(BIAS + 63), by)),
    mant: b.select(none, magnitude, b.shl(magnitude, by)),
  };
}

interface Narrow {
  fraction: number;
  bias: number;
  largest: number;
}
export const DOUBLE: Narrow = { fraction: 52, bias: 1023, largest: 2046 };
export const SINGLE: Narrow = { fraction: 23, bias: 127, largest: 254 };

/** From single or double; `bad`: a denormal, an infinity or a NaN. */
export function widen(b: X87Builder, bits: Value, type: Narrow): X87Number & { bad: Cond } {
  const { fraction, bias, largest } = type;
  const sign = b.and(b.shrU(bits, b.const(fraction === 52 ? 63 : 31)), b.const(1));
  const exp = b.and(b.shrU(bits, b.const(fraction)), b.const(largest + 1));
  const low = b.shl(b.and(bits, b.const((1n << BigInt(fraction)) - 1n)), b.const(63 - fraction));
  const zero = b.isZero(b.or(exp, low));
  const normal = b.ltU(b.sub(exp, b.const(1)), b.const(largest));
  return {
    sign,
    exp: b.select(zero, exp, b.add(exp, b.const(BIAS - bias))),
    mant: b.select(zero, low, b.or(low, b.const(TOP_BIT))),
    bad: b.notC(b.orC(zero, normal)),
  };
}

/** To single or double: the bits. */
export function narrow(b: X87Builder, x: X87Number, type: Narrow): { bits: Value; inexact: Cond; up: Cond; bad: Cond } {
  const { fraction, bias, largest } = type;
  const drop = 63 - fraction;
  const half = b.const(1n << BigInt(drop - 1));
  const rest = b.and(x.mant, b.const((1n << BigInt(drop)) - 1n));
  const kept = b.shrU(x.mant, b.const(drop));
  const up = b.orC(b.ltU(half, rest), b.andC(b.eq(rest, half), b.bit(kept, 0)));
  const exp = b.sub(x.exp, b.const(BIAS - bias));
  // The integer bit adds one to the exponent field, and so does a carry.
  const field = b.add(b.shl(b.sub(exp, b.const(1)), b.const(fraction)), b.add(kept, b.fromCond(up)));
  const zero = isZero(b, x);
  const inRange = b.ltU(b.sub(exp, b.const(1)), b.const(largest));
  const fits = b.andC(inRange, b.leU(b.shrU(field, b.const(fraction)), b.const(largest)));
  const signed = b.shl(x.sign, b.const(fraction === 52 ? 63 : 31));
  return {
    bits: b.or(signed, b.select(zero, b.const(0), field)),
    inexact: b.notC(b.isZero(rest)),
    up,
    bad: b.notC(b.orC(zero, fits)),
  };
}

/** To a signed integer of `bits`; the largest magnitude is for semantics/fp. */
export function toInteger(
  b: X87Builder,
  x: X87Number,
  bits: 16 | 32 | 64,
  truncate: boolean,
): { value: Value; inexact: Cond; up: Cond; bad: Cond } {
  const zero = b.const(0);
  const scale = b.sub(x.exp, b.const(BIAS));
  const belowOne = b.ltS(scale, zero);
  const belowHalf = b.ltS(scale, b.const(-1));
  const whole = b.select(belowOne, zero, b.shrU(x.mant, b.sub(b.const(63), scale)));
  const tiny = b.fromCond(b.notC(isZero(b, x)));
  const rest = b.select(belowHalf, tiny, b.shl(x.mant, b.add(scale, b.const(1))));
  const half = b.const(TOP_BIT);
  const nearest = b.orC(b.ltU(half, rest), b.andC(b.eq(rest, half), b.bit(whole, 0)));
  const up = truncate ? b.false() : nearest;
  const magnitude = b.add(whole, b.fromCond(up));
  const limit = b.const((1n << BigInt(bits - 1)) - 1n);
  const fits = b.andC(b.ltS(scale, b.const(63)), b.leU(magnitude, limit));
  return {
    value: b.select(b.isZero(x.sign), magnitude, b.neg(magnitude)),
    inexact: b.notC(b.isZero(rest)),
    up,
    bad: b.notC(fits),
  };
}

/** x < y and x = y of plain numbers; zeros are equal. */
export function relation(b: X87Builder, x: X87Number, y: X87Number): { less: Cond; equal: Cond } {
  const zeros = b.andC(isZero(b, x), isZero(b, y));
  const sameExp = b.eq(x.exp, y.exp);
  const smaller = b.orC(b.ltU(x.exp, y.exp), b.andC(sameExp, b.ltU(x.mant, y.mant)));
  const sameMagnitude = b.andC(sameExp, b.eq(x.mant, y.mant));
  const sameSign = b.eq(x.sign, y.sign);
  const negative = b.notC(b.isZero(x.sign));
  const larger = b.andC(b.notC(smaller), b.notC(sameMagnitude));
  const less = b.selectC(sameSign, b.selectC(negative, larger, smaller), negative);
  return { less: b.andC(less, b.notC(zeros)), equal: b.orC(zeros, b.andC(sameSign, sameMagnitude)) };
}
