/**
 * One lane of SSE floating point: operations on unpacked numbers under MXCSR. Flags are collected, not raised.
 * Manual: APM vol. 1 sections 4.6 and 4.10 (NaN results, exceptions), APM vol. 4 section 1.2.
 */
import {
  addExact,
  bitLength,
  compare,
  DE,
  divideExact,
  F32,
  F64,
  type Format,
  finite,
  fromInteger,
  IE,
  indefinite,
  infinity,
  isNan,
  PE,
  pack32,
  pack64,
  quiet,
  type RoundControl,
  type Rounded,
  type Rounding,
  round,
  squareRootExact,
  toInteger,
  type Unpacked,
  unpack32,
  unpack64,
  ZE,
  zero,
} from '../fp/float.ts';
import type { Lanes } from './lanes.ts';

const DAZ = 0x40;
const FTZ = 0x8000;

/** How lanes of a width are read and written. */
export interface LaneType {
  format: Format;
  bytes: 4 | 8;
  read(v: Lanes, i: number): Unpacked;
  write(v: Lanes, i: number, x: Unpacked): void;
}
export const SINGLE: LaneType = {
  format: F32,
  bytes: 4,
  read: (v, i) => unpack32(v.u32[i]!),
  write: (v, i, x) => {
    v.u32[i] = pack32(x);
  },
};
export const DOUBLE: LaneType = {
  format: F64,
  bytes: 8,
  read: (v, i) => unpack64(v.u64[i]!),
  write: (v, i, x) => {
    v.u64[i] = pack64(x);
  },
};

/** MXCSR during one instruction. */
export class SseEnvironment {
  control: RoundControl = { rounding: 0, masks: 0x3f, flushToZero: false, wrap: 0 };
  daz = false;
  flags = 0;
  /** Flags of an operation's steps, one after the other: an unmasked one ends it there. */
  readonly steps = [0, 0, 0];
  /** Everything masked, nearest, no DAZ or FTZ: the host computes the same, but for flags. */
  plain = false;
  /** As `plain`, and PE is set already. */
  fast = false;

  begin(mxcsr: number): void {
    this.flags = 0;
    this.steps.fill(0);
    this.daz = (mxcsr & DAZ) !== 0;
    const { control } = this;
    control.rounding = ((mxcsr >> 13) & 3) as Rounding;
    control.masks = (mxcsr >> 7) & 0x3f;
    control.flushToZero = (mxcsr & FTZ) !== 0;
    this.plain = (mxcsr & 0xffc0) === 0x1f80;
    this.fast = this.plain && (mxcsr & PE) !== 0;
  }

  /** The flags so far are those of a step. */
  endStep(step: number): void {
    this.steps[step]! |= this.flags;
    this.flags = 0;
  }

  /** A source: denormals are zeros under DAZ. */
  source(x: Unpacked): Unpacked {
    return this.daz && x.denormal ? zero(x.sign) : x;
  }
  take(result: Rounded): Unpacked {
    this.flags |= result.flags;
    return result;
  }
  invalid(): Unpacked {
    this.flags |= IE;
    return indefinite();
  }
  denormals(x: Unpacked, y: Unpacked): void {
    if (x.denormal || y.denormal) this.flags |= DE;
  }
  /** The result if a source is a NaN: the first one that is, quiet. */
  nan(x: Unpacked, y: Unpacked): Unpacked | undefined {
    if (!isNan(x) && !isNan(y)) return undefined;
    if (x.kind === 'snan' || y.kind === 'snan') this.flags |= IE;
    return quiet(isNan(x) ? x : y);
  }
  round(format: Format, sign: boolean, sig: bigint, exp: number): Unpacked {
    return this.take(round(format, sign, sig, exp, this.control));
  }
}

/** A binary operation on one lane; sources have passed DAZ. */
export type LaneOperation = (env: SseEnvironment, format: Format, x: Unpacked, y: Unpacked) => Unpacked;

export const add: LaneOperation = (env, format, x, y) => {
  const nan = env.nan(x, y);
  if (nan !== undefined) return nan;
  if (x.kind === 'infinity')
    return y.kind === 'infinity' && x.sign !== y.sign ? env.invalid() : withDenormals(env, x, y, x);
  env.denormals(x, y);
  if (y.kind === 'infinity') return y;
  const { value, exp } = addExact(x, y);
  if (value !== 0n) return env.round(format, value < 0n, value < 0n ? -value : value, exp);
  // Equal signs of zeros stay; an exact difference of zero is negative only when rounding down.
  const sign = x.sign === y.sign ? x.sign : env.control.rounding === 1;
  return zero(sign);
};
function withDenormals(env: SseEnvironment, x: Unpacked, y: Unpacked, result: Unpacked): Unpacked {
  env.denormals(x, y);
  return result;
}
export const subtract: LaneOperation = (env, format, x, y) =>
  add(env, format, x, isNan(y) ? y : { ...y, sign: !y.sign });

export const multiply: LaneOperation = (env, format, x, y) => {
  const nan = env.nan(x, y);
  if (nan !== undefined) return nan;
  const sign = x.sign !== y.sign;
  if (x.kind === 'infinity' || y.kind === 'infinity') {
    if (x.kind === 'zero' || y.kind === 'zero') return env.invalid();
    return withDenormals(env, x, y, infinity(sign));
  }
  env.denormals(x, y);
  if (x.kind === 'zero' || y.kind === 'zero') return zero(sign);
  return env.round(format, sign, x.sig * y.sig, x.exp + y.exp);
};

export const divide: LaneOperation = (env, format, x, y) => {
  const nan = env.nan(x, y);
  if (nan !== undefined) return nan;
  const sign = x.sign !== y.sign;
  if (x.kind === y.kind && (x.kind === 'infinity' || x.kind === 'zero')) return env.invalid();
  if (x.kind === 'finite' && y.kind === 'zero') {
    // A denormal dividend is not reported with it.
    env.flags |= ZE;
    return infinity(sign);
  }
  env.denormals(x, y);
  if (x.kind === 'infinity' || y.kind === 'zero') return infinity(sign);
  if (x.kind === 'zero' || y.kind === 'infinity') return zero(sign);
  const { sig, exp } = divideExact(x, y, format.p + 2);
  return env.round(format, sign, sig, exp);
};

export const squareRoot: LaneOperation = (env, format, _x, y) => {
  const nan = env.nan(y, y);
  if (nan !== undefined) return nan;
  if (y.kind === 'zero') return y;
  if (y.sign) return env.invalid();
  env.denormals(y, y);
  if (y.kind === 'infinity') return y;
  const { sig, exp } = squareRootExact(y, format.p + 2);
  return env.round(format, false, sig, exp);
};

/** MIN, MAX: the second source if either is a NaN or both are zero. */
const choose =
  (order: -1 | 1): LaneOperation =>
  (env, _format, x, y) => {
    if (isNan(x) || isNan(y)) {
      env.flags |= IE;
      return y;
    }
    env.denormals(x, y);
    return compare(x, y) === order ? x : y;
  };
export const minimum = choose(-1);
export const maximum = choose(1);

/** ROUNDPS and its kin: `mode` is the immediate. */
export const roundToInteger =
  (mode: number): LaneOperation =>
  (env, format, _x, y) => {
    const nan = env.nan(y, y);
    if (nan !== undefined) return nan;
    if (y.kind !== 'finite') return y;
    const rounding = (mode & 4) !== 0 ? env.control.rounding : ((mode & 3) as Rounding);
    const { value, inexact } = toIntegerOf(y, rounding, format);
    if (inexact && (mode & 8) === 0) env.flags |= PE;
    return value;
  };
/** Values with no fraction bits are integers already. */
function toIntegerOf(y: Unpacked, rounding: Rounding, format: Format): { value: Unpacked; inexact: boolean } {
  if (y.exp >= 0) return { value: y, inexact: false };
  const { value, inexact } = toInteger(y, rounding);
  if (value === 0n) return { value: zero(y.sign), inexact };
  const sig = value < 0n ? -value : value;
  const spare = format.p - bitLength(sig);
  return { value: finite(y.sign, sig << BigInt(spare), -spare), inexact };
}

/** Ordering for CMPxx, COMISx, UCOMISx; `signalling`: a quiet NaN is invalid too. */
export function order(env: SseEnvironment, x: Unpacked, y: Unpacked, signalling: boolean): -1 | 0 | 1 | 2 {
  if (isNan(x) || isNan(y)) {
    if (signalling || x.kind === 'snan' || y.kind === 'snan') env.flags |= IE;
    return 2;
  }
  env.denormals(x, y);
  return compare(x, y);
}

// Conversions

/** Between formats. */
export function convertFormat(env: SseEnvironment, format: Format, y: Unpacked): Unpacked {
  const nan = env.nan(y, y);
  if (nan !== undefined) return nan;
  if (y.kind !== 'finite') return y;
  env.denormals(y, y);
  return env.round(format, y.sign, y.sig, y.exp);
}

export function fromSigned(env: SseEnvironment, format: Format, value: bigint): Unpacked {
  const x = fromInteger(value);
  return x.kind === 'zero' ? x : env.round(format, x.sign, x.sig, 0);
}

/** To a signed integer of `bits`; the integer indefinite for what does not fit. */
export function toSigned(env: SseEnvironment, y: Unpacked, bits: number, rounding: Rounding): bigint {
  const limit = 1n << BigInt(bits - 1);
  if (y.kind === 'zero') return 0n;
  if (y.kind === 'finite') {
    const { value, inexact } = toInteger(y, rounding);
    if (value < limit && value >= -limit) {
      if (inexact) env.flags |= PE;
      return value;
    }
  }
  env.flags |= IE;
  return -limit;
}
