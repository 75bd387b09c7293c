/**
 * Exact binary floating point: unpacking, rounding, packing, and the operations that x87 and SSE share.
 * Manual: APM vol. 1 sections 4.4.7 to 4.9 and 6.4 (IEEE 754 as the processor has it).
 *
 * A finite number is sign * sig * 2^exp with sig a bigint of any length. Tininess is detected after rounding.
 */

/** Exception flags, as in FSW and MXCSR. */
export const IE = 1;
export const DE = 2;
export const ZE = 4;
export const OE = 8;
export const UE = 16;
export const PE = 32;

/** Rounding control, as in FCW and MXCSR. */
export const NEAREST = 0;
export const DOWN = 1;
export const UP = 2;
export const TRUNCATE = 3;
export type Rounding = 0 | 1 | 2 | 3;

export interface Format {
  /** Bits of the significand, the integer bit included. */
  p: number;
  /** Exponents of the leading bit of normal numbers. */
  emin: number;
  emax: number;
}
export const F32: Format = { p: 24, emin: -126, emax: 127 };
export const F64: Format = { p: 53, emin: -1022, emax: 1023 };
export const F80: Format = { p: 64, emin: -16382, emax: 16383 };

export type NumberClass = 'zero' | 'finite' | 'infinity' | 'qnan' | 'snan' | 'unsupported';

export interface Unpacked {
  kind: NumberClass;
  sign: boolean;
  /** Finite: exponent of sig's unit. */
  exp: number;
  /** Finite: the significand; NaN: the 64-bit significand as in the 80-bit format. */
  sig: bigint;
  denormal: boolean;
}

const INTEGER_BIT = 1n << 63n;
export const QUIET_BIT = 1n << 62n;
const LOW64 = (1n << 64n) - 1n;

const make = (kind: NumberClass, sign: boolean, exp = 0, sig = 0n, denormal = false): Unpacked => ({
  kind,
  sign,
  exp,
  sig,
  denormal,
});
export const zero = (sign: boolean): Unpacked => make('zero', sign);
export const infinity = (sign: boolean): Unpacked => make('infinity', sign);
export const finite = (sign: boolean, sig: bigint, exp: number): Unpacked => make('finite', sign, exp, sig);
/** The default NaN ("real indefinite"). */
export const indefinite = (): Unpacked => make('qnan', true, 0, INTEGER_BIT | QUIET_BIT);

/** Number of significant bits; 0 for 0. */
export function bitLength(value: bigint): number {
  if (value <= 0xffffffffn) return 32 - Math.clz32(Number(value));
  const text = value.toString(16);
  return text.length * 4 - (Math.clz32(Number.parseInt(text[0]!, 16)) - 28);
}

export function unpack32(bits: number): Unpacked {
  const sign = bits >>> 31 !== 0;
  const e = (bits >>> 23) & 0xff;
  const fraction = bits & 0x7fffff;
  if (e === 0xff) return unpackSpecial(sign, BigInt(fraction) << 40n);
  if (e !== 0) return make('finite', sign, e - 150, BigInt(fraction | 0x800000));
  return fraction === 0 ? zero(sign) : make('finite', sign, -149, BigInt(fraction), true);
}

export function unpack64(bits: bigint): Unpacked {
  const sign = bits >> 63n !== 0n;
  const e = Number((bits >> 52n) & 0x7ffn);
  const fraction = bits & 0xfffffffffffffn;
  if (e === 0x7ff) return unpackSpecial(sign, fraction << 11n);
  if (e !== 0) return make('finite', sign, e - 1075, fraction | 0x10000000000000n);
  return fraction === 0n ? zero(sign) : make('finite', sign, -1074, fraction, true);
}

/** Infinity or NaN by the fraction, left-justified below the integer bit. */
export function unpackSpecial(sign: boolean, fraction: bigint): Unpacked {
  if (fraction === 0n) return infinity(sign);
  return make((fraction & QUIET_BIT) !== 0n ? 'qnan' : 'snan', sign, 0, fraction | INTEGER_BIT);
}

/** 80 bits. Unnormals, pseudo-NaNs and pseudo-infinities are `unsupported` (APM vol. 1 section 6.3.3); pseudo-denormals count as denormals. */
export function unpack80(bits: bigint): Unpacked {
  const sign = bits >> 79n !== 0n;
  const e = Number(bits >> 64n) & 0x7fff;
  const sig = bits & LOW64;
  if (e === 0) return sig === 0n ? zero(sign) : make('finite', sign, -16445, sig, true);
  if ((sig & INTEGER_BIT) === 0n) return make('unsupported', sign);
  if (e === 0x7fff) return unpackSpecial(sign, sig & (INTEGER_BIT - 1n));
  return make('finite', sign, e - 16446, sig);
}

export const isNan = (x: Unpacked): boolean => x.kind === 'qnan' || x.kind === 'snan';
export const quiet = (x: Unpacked): Unpacked => make('qnan', x.sign, 0, x.sig | QUIET_BIT);

/** A value rounded to a format: `sig` fits its precision, `exp` is that of its unit. */
export interface Rounded extends Unpacked {
  flags: number;
  /** The magnitude was rounded up (x87: C1). */
  up: boolean;
}

export interface RoundControl {
  rounding: Rounding;
  /** Masked exceptions, as flag bits. */
  masks: number;
  /** SSE: flush tiny results to zero (counts only while underflow is masked). */
  flushToZero: boolean;
  /** x87 results in registers: unmasked overflow and underflow scale the exponent by this. */
  wrap: number;
}

/** sig without its low `drop` bits, rounded. A negative `drop` appends zeros. */
export function dropBits(
  sig: bigint,
  drop: number,
  sign: boolean,
  rounding: Rounding,
): { sig: bigint; inexact: boolean; up: boolean } {
  if (drop <= 0) return { sig: sig << BigInt(-drop), inexact: false, up: false };
  const shift = BigInt(drop);
  const kept = sig >> shift;
  const rest = sig & ((1n << shift) - 1n);
  if (rest === 0n) return { sig: kept, inexact: false, up: false };
  let up: boolean;
  if (rounding === NEAREST) {
    const half = 1n << (shift - 1n);
    up = rest > half || (rest === half && (kept & 1n) === 1n);
  } else up = rounding === TRUNCATE ? false : (rounding === DOWN) === sign;
  return { sig: up ? kept + 1n : kept, inexact: true, up };
}

const rounded = (x: Unpacked, flags: number, up: boolean): Rounded => ({ ...x, flags, up });
export const exact = (x: Unpacked): Rounded => rounded(x, 0, false);

/** Rounds sig * 2^exp (sig > 0) to a format. */
export function round(format: Format, sign: boolean, sig: bigint, exp: number, control: RoundControl): Rounded {
  const { p, emin, emax } = format;
  const { rounding, masks, wrap } = control;
  const drop = bitLength(sig) - p;
  const first = dropBits(sig, drop, sign, rounding);
  let q = first.sig;
  let unit = exp + drop;
  if (bitLength(q) > p) {
    q >>= 1n;
    unit++;
  }
  const lead = unit + p - 1;
  const inexact = first.inexact ? PE : 0;
  if (lead < emin) {
    if ((masks & UE) === 0) return rounded(finite(sign, q, unit + wrap), UE | inexact, first.up);
    return roundTiny(format, sign, sig, exp, control);
  }
  if (lead > emax) {
    if ((masks & OE) === 0) return rounded(finite(sign, q, unit - wrap), OE | inexact, first.up);
    const toInfinity = rounding === NEAREST || (rounding !== TRUNCATE && (rounding === DOWN) === sign);
    const result = toInfinity ? infinity(sign) : finite(sign, (1n << BigInt(p)) - 1n, emax - p + 1);
    return rounded(result, OE | PE, toInfinity);
  }
  return rounded(finite(sign, q, unit), inexact, first.up);
}

/** Masked underflow: a denormal, or zero under flush-to-zero. */
function roundTiny(format: Format, sign: boolean, sig: bigint, exp: number, control: RoundControl): Rounded {
  if (control.flushToZero) return rounded(zero(sign), UE | PE, false);
  const unit = format.emin - format.p + 1;
  const result = dropBits(sig, unit - exp, sign, control.rounding);
  const value = result.sig === 0n ? zero(sign) : make('finite', sign, unit, result.sig, true);
  return rounded(value, result.inexact ? UE | PE : 0, result.up);
}

export function pack32(x: Unpacked): number {
  const sign = x.sign ? 0x80000000 : 0;
  switch (x.kind) {
    case 'zero':
      return sign >>> 0;
    case 'infinity':
      return (sign | 0x7f800000) >>> 0;
    case 'finite': {
      const sig = Number(x.sig);
      const e = sig >= 0x800000 ? x.exp + 150 : 0;
      return (sign | (e << 23) | (sig & 0x7fffff)) >>> 0;
    }
    default:
      return (sign | 0x7f800000 | Number((x.sig >> 40n) & 0x7fffffn)) >>> 0;
  }
}

export function pack64(x: Unpacked): bigint {
  const sign = x.sign ? 1n << 63n : 0n;
  switch (x.kind) {
    case 'zero':
      return sign;
    case 'infinity':
      return sign | 0x7ff0000000000000n;
    case 'finite': {
      const e = x.sig >= 0x10000000000000n ? x.exp + 1075 : 0;
      return sign | (BigInt(e) << 52n) | (x.sig & 0xfffffffffffffn);
    }
    default:
      return sign | 0x7ff0000000000000n | ((x.sig >> 11n) & 0xfffffffffffffn);
  }
}

/** Significands of any precision up to 64 bits are left-justified. */
export function pack80(x: Unpacked): bigint {
  const sign = x.sign ? 1n << 79n : 0n;
  switch (x.kind) {
    case 'zero':
      return sign;
    case 'infinity':
      return sign | (0x7fffn << 64n) | INTEGER_BIT;
    case 'finite': {
      const lead = x.exp + bitLength(x.sig) - 1;
      if (lead < -16382) return sign | (x.sig << BigInt(x.exp + 16445));
      return sign | (BigInt(lead + 16383) << 64n) | (x.sig << BigInt(64 - bitLength(x.sig)));
    }
    default:
      return sign | (0x7fffn << 64n) | x.sig;
  }
}

/** Operands further apart than this meet as value and sticky bit. */
const FAR = 260;

/** Exact (or with a sticky unit) sum of two finite or zero numbers as a signed integer and its unit. */
export function addExact(a: Unpacked, b: Unpacked): { value: bigint; exp: number } {
  if (a.kind === 'zero') return { value: signed(b), exp: b.exp };
  if (b.kind === 'zero') return { value: signed(a), exp: a.exp };
  const [high, low] = a.exp >= b.exp ? [a, b] : [b, a];
  const apart = high.exp - low.exp;
  if (apart > FAR) {
    const lead = BigInt(FAR - 100);
    return { value: (signed(high) << lead) + (low.sign ? -1n : 1n), exp: high.exp - (FAR - 100) };
  }
  return { value: (signed(high) << BigInt(apart)) + signed(low), exp: low.exp };
}
const signed = (x: Unpacked): bigint => (x.sign ? -x.sig : x.sig);

/** Quotient with a sticky bit: at least `bits` significant bits. */
export function divideExact(a: Unpacked, b: Unpacked, bits: number): { sig: bigint; exp: number } {
  const shift = Math.max(0, bits + bitLength(b.sig) - bitLength(a.sig) + 1);
  const dividend = a.sig << BigInt(shift);
  const sig = dividend / b.sig;
  const sticky = sig * b.sig === dividend ? 0n : 1n;
  return { sig: (sig << 1n) | sticky, exp: a.exp - b.exp - shift - 1 };
}

/** Square root with a sticky bit: at least `bits` significant bits. */
export function squareRootExact(a: Unpacked, bits: number): { sig: bigint; exp: number } {
  let shift = Math.max(0, 2 * bits - bitLength(a.sig) + 2);
  if (((a.exp - shift) & 1) !== 0) shift++;
  const radicand = a.sig << BigInt(shift);
  const root = integerRoot(radicand);
  const sticky = root * root === radicand ? 0n : 1n;
  return { sig: (root << 1n) | sticky, exp: (a.exp - shift) / 2 - 1 };
}

/** floor(sqrt(n)) by Newton's method from above. */
export function integerRoot(n: bigint): bigint {
  if (n < 2n) return n;
  let x = 1n << BigInt((bitLength(n) + 1) >> 1);
  for (;;) {
    const next = (x + n / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

/** -1, 0, 1 for two numbers that are not NaN. */
export function compare(a: Unpacked, b: Unpacked): -1 | 0 | 1 {
  const [x, y] = [order(a), order(b)];
  if (x !== y || x === 0 || Math.abs(x) === 2) return x < y ? -1 : x > y ? 1 : 0;
  const { value } = addExact(a, { ...b, sign: !b.sign });
  return value < 0n ? -1 : value > 0n ? 1 : 0;
}
const order = (x: Unpacked): number => (x.kind === 'zero' ? 0 : (x.kind === 'infinity' ? 2 : 1) * (x.sign ? -1 : 1));

/** Rounds to an integer: the signed value, and whether it is inexact or was rounded up in magnitude. */
export function toInteger(x: Unpacked, rounding: Rounding): { value: bigint; inexact: boolean; up: boolean } {
  if (x.kind === 'zero') return { value: 0n, inexact: false, up: false };
  // Anything beyond 2^80 is out of range for every destination.
  const exp = Math.min(x.exp, 100);
  const { sig, inexact, up } = dropBits(x.sig, Math.min(-exp, 200), x.sign, rounding);
  return { value: x.sign ? -sig : sig, inexact, up };
}

export const fromInteger = (value: bigint): Unpacked =>
  value === 0n ? zero(false) : finite(value < 0n, value < 0n ? -value : value, 0);
