/**
 * x87 transcendental functions: correctly rounded but for pi, which argument reduction cuts to 66 bits as processors do.
 * Manual: APM vol. 5 (F2XM1, FCOS, FPATAN, FPTAN, FSIN, FSINCOS, FYL2X, FYL2XP1), APM vol. 1 section 6.4.5.
 */
import type { Row } from '../../decode/instruction.ts';
import type { FpuArea } from './area.ts';
import type { FpFunction } from './context.ts';
import {
  addExact,
  bitLength,
  compare,
  divideExact,
  F80,
  finite,
  infinity,
  PE,
  pack80,
  type Unpacked,
  unpack80,
  ZE,
  zero,
} from './float.ts';
import {
  atanFixed,
  atanhFixed,
  cosFixed,
  divideFixed,
  expm1Fixed,
  FIXED_ONE,
  ln2,
  multiplyFixed,
  pi,
  sinFixed,
  W,
} from './series.ts';
import { C1, C2, finish, INDEFINITE, isBlocked, onData, push, stackFault, x87 } from './x87.ts';

const ONE: Unpacked = finite(false, 1n, 0);
/** Below this exponent f(x) is its first term, but for the direction of rounding. */
const TINY = -130;

const lead = (x: Unpacked): number => x.exp + bitLength(x.sig) - 1;
/** A finite number, |x| < 2^20 or so, in fixed point. */
function toFixed(x: Unpacked): bigint {
  const shift = W + x.exp;
  const value = shift >= 0 ? x.sig << BigInt(shift) : x.sig >> BigInt(-shift);
  return x.sign ? -value : value;
}
const magnitude = (value: bigint): bigint => (value < 0n ? -value : value);

/** Rounds sig * 2^exp; the functions are irrational, so a sticky bit below keeps the result inexact. */
function inexact(sign: boolean, sig: bigint, exp: number): Unpacked {
  return x87.round(F80, sign, (sig << 2n) | 1n, exp - 2);
}
const fromFixed = (value: bigint): Unpacked => inexact(value < 0n, magnitude(value), -W);
/** A little less than x in magnitude. */
const justBelow = (x: Unpacked): Unpacked => x87.round(F80, x.sign, (x.sig << 140n) - 1n, x.exp - 140);

/** At and beyond the ends of a function's range processors report an inexact result; beyond, the operand stays. */
function outOfRange(x: Unpacked): Unpacked {
  x87.flags |= PE;
  return x;
}
function plusOne(x: Unpacked): Unpacked {
  const { value, exp } = addExact(x, ONE);
  return finite(false, value, exp);
}

// F2XM1

function f2xm1(x: Unpacked): Unpacked {
  const nan = x87.nan(x, x);
  if (nan !== undefined) return nan;
  if (x.kind === 'zero') return x;
  if (x.kind === 'infinity') return x.sign ? finite(true, 1n, 0) : x;
  x87.denormals(x, x);
  const e = lead(x);
  if (e < TINY) return inexact(x.sign, x.sig * ln2(), x.exp - W);
  if (e >= 0) {
    const isOne = e === 0 && (x.sig & (x.sig - 1n)) === 0n;
    return outOfRange(isOne ? finite(x.sign, 1n, x.sign ? -1 : 0) : x);
  }
  return fromFixed(expm1Fixed(multiplyFixed(toFixed(x), ln2())));
}

// Logarithms: ST(1) * log2

/** log2 of a positive finite number as a fixed-point value. */
function log2Fixed(x: Unpacked): bigint {
  let exponent = lead(x);
  let m = (x.sig << BigInt(W)) >> BigInt(bitLength(x.sig) - 1);
  if (m > (FIXED_ONE * 3n) / 2n) {
    m >>= 1n;
    exponent++;
  }
  const z = divideFixed(m - FIXED_ONE, m + FIXED_ONE);
  return divideFixed(2n * atanhFixed(z), ln2()) + BigInt(exponent) * FIXED_ONE;
}

/** y * log with the sign rules of a product. */
function scaled(y: Unpacked, log: { value: bigint; exp: number }): Unpacked {
  const sign = y.sign !== log.value < 0n;
  if (y.kind === 'zero') return zero(sign);
  if (y.kind === 'infinity') return infinity(sign);
  return inexact(sign, y.sig * magnitude(log.value), y.exp + log.exp);
}

function fyl2x(x: Unpacked, y: Unpacked): Unpacked {
  const nan = x87.nan(x, y);
  if (nan !== undefined) return nan;
  if (x.kind === 'zero') {
    if (y.kind === 'zero') return x87.invalid();
    if (y.kind === 'finite') x87.flags |= ZE;
    return infinity(!y.sign);
  }
  if (x.sign) return x87.invalid();
  if (x.kind === 'infinity') {
    if (y.kind === 'zero') return x87.invalid();
    x87.denormals(x, y);
    return infinity(y.sign);
  }
  if (compare(x, ONE) === 0) {
    if (y.kind === 'infinity') return x87.invalid();
    x87.denormals(x, y);
    return zero(y.sign);
  }
  x87.denormals(x, y);
  const e = lead(x);
  const exactLog = (x.sig & (x.sig - 1n)) === 0n;
  if (exactLog && y.kind === 'finite') {
    // Reported as inexact though it is not.
    x87.flags |= PE;
    return x87.round(F80, y.sign !== e < 0, y.sig * BigInt(Math.abs(e)), y.exp);
  }
  return scaled(y, { value: log2Fixed(x), exp: -W });
}

function fyl2xp1(x: Unpacked, y: Unpacked): Unpacked {
  const nan = x87.nan(x, y);
  if (nan !== undefined) return nan;
  if (x.kind === 'zero') {
    if (y.kind === 'infinity') return x87.invalid();
    x87.denormals(x, y);
    return zero(x.sign !== y.sign);
  }
  if (x.kind === 'infinity') {
    if (x.sign || y.kind === 'zero') return x87.invalid();
    return infinity(y.sign);
  }
  x87.denormals(x, y);
  if (lead(x) < TINY) {
    const { sig, exp } = divideExact(x, finite(false, ln2(), -W), 200);
    return scaled(y, { value: x.sign ? -sig : sig, exp });
  }
  // Undefined at -1 and below: the operand is the result, but for factors of 0 and infinity. Away from 0 there is no cancellation, and near -1
  // no convergence.
  if (lead(x) >= 0 && x.sign) {
    if (y.kind === 'finite') return outOfRange(x);
    return y.kind === 'zero' ? zero(!y.sign) : infinity(!y.sign);
  }
  if (lead(x) >= -2) return scaled(y, { value: log2Fixed(plusOne(x)), exp: -W });
  const v = toFixed(x);
  const z = divideFixed(v, 2n * FIXED_ONE + v);
  return scaled(y, { value: divideFixed(2n * atanhFixed(z), ln2()), exp: -W });
}

// FPATAN

const half = (value: bigint): bigint => value >> 1n;

/** The angle of the point (x, y): y is ST(1), x is ST(0). */
function fpatan(x: Unpacked, y: Unpacked): Unpacked {
  const nan = x87.nan(x, y);
  if (nan !== undefined) return nan;
  x87.denormals(x, y);
  if (y.kind === 'zero' || (x.kind === 'infinity' && y.kind !== 'infinity'))
    return x.sign ? angle(y.sign, pi()) : zero(y.sign);
  if (y.kind === 'infinity') {
    if (x.kind !== 'infinity') return angle(y.sign, half(pi()));
    return angle(y.sign, x.sign ? (3n * pi()) >> 2n : pi() >> 2n);
  }
  if (x.kind === 'zero') return angle(y.sign, half(pi()));
  const apart = lead(y) - lead(x);
  if (apart < TINY) return x.sign ? angle(y.sign, pi()) : quotient(y, x);
  if (apart > -TINY) return angle(y.sign, half(pi()));
  return angle(y.sign, quadrant(x, y));
}
const angle = (sign: boolean, value: bigint): Unpacked => fromFixed(sign ? -value : value);
/** atan of a tiny ratio. */
function quotient(y: Unpacked, x: Unpacked): Unpacked {
  const { sig, exp } = divideExact(y, x, 120);
  return justBelow(finite(y.sign, sig, exp));
}
function quadrant(x: Unpacked, y: Unpacked): bigint {
  const steep = compare({ ...y, sign: false }, { ...x, sign: false }) > 0;
  const [low, high] = steep ? [x, y] : [y, x];
  const ratio = divideExact(low, high, W);
  const angleToAxis = atanFixed(toFixed(finite(false, ratio.sig, ratio.exp)));
  const first = steep ? half(pi()) - angleToAxis : angleToAxis;
  return x.sign ? pi() - first : first;
}

// Sine, cosine, tangent

/** pi with 66 significant bits, in units of 2^-64. */
const PI_66 = 0x3243f6a8885a308d3n;

interface Reduced {
  /** Remainder, |r| <= pi/4. */
  r: Unpacked;
  quadrant: number;
}

/** x minus the nearest multiple of pi/2. */
function reduceAngle(x: Unpacked): Reduced {
  const unit = Math.min(x.exp, -65);
  const a = x.sig << BigInt(x.exp - unit);
  const b = PI_66 << BigInt(-65 - unit);
  const n = (2n * a + b) / (2n * b);
  const rest = a - n * b;
  const sign = x.sign !== rest < 0n;
  const r = rest === 0n ? zero(x.sign) : finite(sign, magnitude(rest), unit);
  const quarters = Number(n & 3n);
  return { r, quadrant: x.sign ? (4 - quarters) & 3 : quarters };
}

interface Pair {
  sin: Ratio;
  cos: Ratio;
}
/** sig * 2^exp with its sign: more bits than a result has. */
type Ratio = Unpacked;

function sinCos({ r, quadrant: q }: Reduced): Pair {
  let sin: Ratio = r;
  let cos: Ratio = ONE;
  if (r.kind === 'finite') {
    if (lead(r) < TINY) {
      sin = finite(r.sign, (r.sig << 140n) - 1n, r.exp - 140);
      cos = finite(false, (1n << 140n) - 1n, -140);
    } else {
      const fixed = toFixed(r);
      const s = sinFixed(fixed);
      sin = finite(s < 0n, magnitude(s), -W);
      cos = finite(false, cosFixed(fixed), -W);
    }
  }
  const [first, second] = (q & 1) === 0 ? [sin, cos] : [cos, sin];
  return { sin: negateIf(first, (q & 2) !== 0), cos: negateIf(second, q === 1 || q === 2) };
}
const negateIf = (x: Ratio, negate: boolean): Ratio => (negate ? { ...x, sign: !x.sign } : x);

const settle = (x: Ratio): Unpacked => (x.kind === 'finite' ? inexact(x.sign, x.sig, x.exp) : x);

function tangent({ sin, cos }: Pair): Unpacked {
  if (sin.kind === 'zero') return zero(sin.sign !== cos.sign);
  const { sig, exp } = divideExact(sin, cos, 140);
  return inexact(sin.sign !== cos.sign, sig, exp);
}

/** Special arguments of the circular functions: a result, or undefined for the general case. */
function special(x: Unpacked): Unpacked | undefined {
  const nan = x87.nan(x, x);
  if (nan !== undefined) return nan;
  if (x.kind === 'infinity') return x87.invalid();
  x87.denormals(x, x);
  return undefined;
}

/** |x| >= 2^63: C2 is set and nothing changes. */
const isTooLarge = (x: Unpacked): boolean => x.kind === 'finite' && lead(x) >= 63;

/** Results for ST(0) and, pushed, for the new top. */
type Circular = (x: Unpacked) => readonly Unpacked[];

const circular = (f: Circular, results: 1 | 2): FpFunction =>
  onData((_ctx, fpu) => {
    fpu.sw &= ~(C1 | C2);
    if (fpu.isEmpty(0) || (results === 2 && !fpu.isEmpty(7))) {
      circularFault(fpu, results);
      return;
    }
    x87.start(fpu.cw);
    const x = unpack80(fpu.st(0));
    if (isTooLarge(x)) {
      fpu.sw |= C2;
      return;
    }
    const values = f(x);
    if (!isBlocked(fpu)) {
      fpu.setSt(0, pack80(values[0]!));
      if (results === 2) push(fpu, pack80(values[1]!));
    }
    finish(fpu);
  });
function circularFault(fpu: FpuArea, results: 1 | 2): void {
  if (!stackFault(fpu, !fpu.isEmpty(0))) return;
  fpu.setSt(0, INDEFINITE);
  if (results === 1) return;
  fpu.top = fpu.top - 1;
  fpu.setSt(0, INDEFINITE);
}

const sine: Circular = (x) => {
  const known = special(x);
  if (known !== undefined) return [known];
  return [x.kind === 'zero' ? x : settle(sinCos(reduceAngle(x)).sin)];
};
const cosine: Circular = (x) => {
  const known = special(x);
  if (known !== undefined) return [known];
  return [x.kind === 'zero' ? ONE : settle(sinCos(reduceAngle(x)).cos)];
};
const both: Circular = (x) => {
  const known = special(x);
  if (known !== undefined) return [known, known];
  if (x.kind === 'zero') return [x, ONE];
  const { sin, cos } = sinCos(reduceAngle(x));
  return [settle(sin), settle(cos)];
};
const tan: Circular = (x) => {
  const known = special(x);
  if (known !== undefined) return [known, known];
  return x.kind === 'zero' ? [x, ONE] : [tangent(sinCos(reduceAngle(x))), ONE];
};

// Frames

const onTop = (f: (x: Unpacked) => Unpacked): FpFunction =>
  onData((_ctx, fpu) => {
    if (fpu.isEmpty(0)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
      return;
    }
    x87.start(fpu.cw);
    const result = f(unpack80(fpu.st(0)));
    if (!isBlocked(fpu)) fpu.setSt(0, pack80(result));
    finish(fpu);
  });

/** ST(1) := f(ST(0), ST(1)), and a pop. */
const intoSecond = (f: (x: Unpacked, y: Unpacked) => Unpacked): FpFunction =>
  onData((_ctx, fpu) => {
    if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
      if (!stackFault(fpu, false)) return;
      fpu.setSt(1, INDEFINITE);
      fpu.pop();
      return;
    }
    x87.start(fpu.cw);
    const result = f(unpack80(fpu.st(0)), unpack80(fpu.st(1)));
    const blocked = isBlocked(fpu);
    if (!blocked) fpu.setSt(1, pack80(result));
    finish(fpu);
    if (!blocked) fpu.pop();
  });

const FUNCTIONS: Readonly<Record<string, FpFunction>> = {
  f2xm1: onTop(f2xm1),
  fyl2x: intoSecond(fyl2x),
  fyl2xp1: intoSecond(fyl2xp1),
  fpatan: intoSecond(fpatan),
  fsin: circular(sine, 1),
  fcos: circular(cosine, 1),
  fsincos: circular(both, 2),
  fptan: circular(tan, 2),
};

/** The function of a transcendental x87 row, or undefined. */
export const x87TranscendentalFunction = (row: Row): FpFunction | undefined => FUNCTIONS[row.mnemonic];
