/**
 * x87 arithmetic and comparison, exact under rounding and precision control.
 * Manual: APM vol. 5 (FADD to FDIVR, FCOM to FUCOMPP, FCOMI, FTST, FXAM, FSQRT, FRNDINT, FSCALE, FXTRACT, FPREM, FCHS, FABS).
 */
import type { Row } from '../../decode/instruction.ts';
import { Flag } from '../../state-layout.ts';
import { add, divide, type LaneOperation, multiply, squareRoot, subtract } from '../simd/arithmetic.ts';
import type { FpuArea } from './area.ts';
import type { FpContext, FpFunction } from './context.ts';
import {
  bitLength,
  compare,
  F80,
  finite,
  IE,
  infinity,
  isNan,
  PE,
  pack80,
  type Rounding,
  TRUNCATE,
  toInteger,
  type Unpacked,
  unpack80,
  ZE,
  zero,
} from './float.ts';
import {
  C0,
  C1,
  C2,
  C3,
  finish,
  INDEFINITE,
  indexOf,
  isBlocked,
  type MemoryFormat,
  onData,
  push,
  readOperand,
  signal,
  stackFault,
  x87,
} from './x87.ts';

const CONDITIONS = C0 | C1 | C2 | C3;

const reverse =
  (f: LaneOperation): LaneOperation =>
  (env, format, x, y) =>
    f(env, format, y, x);

/** The x87 operand order of NaNs is symmetric, so the sign of a subtracted NaN must not change: `subtract` keeps it. */
const OPERATIONS: Readonly<Record<string, LaneOperation>> = {
  add,
  mul: multiply,
  sub: subtract,
  subr: reverse(subtract),
  div: divide,
  divr: reverse(divide),
};

/** Computes into ST(target); the result is dropped if a source's exception is unmasked. Returns whether it was written. */
function compute(fpu: FpuArea, target: number, f: LaneOperation, x: Unpacked, y: Unpacked): boolean {
  x87.start(fpu.cw);
  const result = f(x87, x87.format, x, y);
  const blocked = isBlocked(fpu);
  if (!blocked) fpu.setSt(target, pack80(result));
  finish(fpu);
  return !blocked;
}

/** ST(0) with memory. */
const withMemory = (f: LaneOperation, format: MemoryFormat): FpFunction =>
  onData((ctx, fpu) => {
    const y = readOperand(ctx, format);
    if (fpu.isEmpty(0)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
    } else compute(fpu, 0, f, unpack80(fpu.st(0)), y);
  });

/** ST(0) with ST(i), into either. */
const withRegister = (f: LaneOperation, toTop: boolean, pop: boolean): FpFunction =>
  onData((ctx, fpu) => {
    const i = indexOf(ctx);
    const target = toTop ? 0 : i;
    let written: boolean;
    if (fpu.isEmpty(0) || fpu.isEmpty(i)) {
      written = stackFault(fpu, false);
      if (written) fpu.setSt(target, INDEFINITE);
    } else {
      const [x, y] = toTop ? [0, i] : [i, 0];
      written = compute(fpu, target, f, unpack80(fpu.st(x)), unpack80(fpu.st(y)));
    }
    if (written && pop) fpu.pop();
  });

// Comparisons

const setConditions = (fpu: FpuArea, bits: number): void => {
  fpu.sw = (fpu.sw & ~CONDITIONS) | bits;
};
const RELATION: Readonly<Record<number, number>> = { [-1]: C0, 0: C3, 1: 0, 2: C0 | C2 | C3 };

function relate(x: Unpacked, y: Unpacked, quietNans: boolean): -1 | 0 | 1 | 2 {
  if (x.kind === 'unsupported' || y.kind === 'unsupported') {
    x87.flags |= IE;
    return 2;
  }
  if (isNan(x) || isNan(y)) {
    if (!quietNans || x.kind === 'snan' || y.kind === 'snan') x87.flags |= IE;
    return 2;
  }
  x87.denormals(x, y);
  return compare(x, y);
}

/** Compares ST(0) with `other` and pops; an unmasked exception pops nothing. */
function compareTop(fpu: FpuArea, other: Unpacked | undefined, quietNans: boolean, pops: number): void {
  if (fpu.isEmpty(0) || other === undefined) {
    setConditions(fpu, RELATION[2]!);
    if (stackFault(fpu, false)) popTimes(fpu, pops);
    return;
  }
  x87.start(fpu.cw);
  const bits = RELATION[relate(unpack80(fpu.st(0)), other, quietNans)]!;
  setConditions(fpu, bits);
  const blocked = isBlocked(fpu);
  finish(fpu);
  if (!blocked) popTimes(fpu, pops);
}
function popTimes(fpu: FpuArea, pops: number): void {
  for (let n = 0; n < pops; n++) fpu.pop();
}

const compareMemory = (format: MemoryFormat, pops: number): FpFunction =>
  onData((ctx, fpu) => compareTop(fpu, readOperand(ctx, format), false, pops));

const registerValue = (fpu: FpuArea, i: number): Unpacked | undefined =>
  fpu.isEmpty(i) ? undefined : unpack80(fpu.st(i));

const compareRegister = (quietNans: boolean, pops: number, fixed?: number): FpFunction =>
  onData((ctx, fpu) => compareTop(fpu, registerValue(fpu, fixed ?? indexOf(ctx)), quietNans, pops));

const RFLAGS_RELATION: Readonly<Record<number, number>> = {
  [-1]: Flag.CF,
  0: Flag.ZF,
  1: 0,
  2: Flag.CF | Flag.ZF | Flag.PF,
};

/** FCOMI and its kin: into RFLAGS; C1 stays but for stack faults. */
const compareFlags = (quietNans: boolean, pop: boolean): FpFunction =>
  onData((ctx, fpu) => {
    const other = registerValue(fpu, indexOf(ctx));
    let relation = 2 as number;
    let masked: boolean;
    if (fpu.isEmpty(0) || other === undefined) masked = stackFault(fpu, false);
    else {
      x87.start(fpu.cw);
      relation = relate(unpack80(fpu.st(0)), other, quietNans);
      masked = !isBlocked(fpu);
      signal(fpu, x87.flags);
    }
    setFlags(ctx, RFLAGS_RELATION[relation]!);
    if (masked && pop) fpu.pop();
  });
function setFlags(ctx: FpContext, bits: number): void {
  ctx.rflags = (ctx.rflags & ~BigInt(Flag.arith)) | BigInt(bits);
}

const CLASS: Readonly<Record<Unpacked['kind'], number>> = {
  unsupported: 0,
  qnan: C0,
  snan: C0,
  finite: C2,
  infinity: C2 | C0,
  zero: C3,
};
const fxam = onData((_ctx, fpu) => {
  const value = fpu.st(0);
  const x = unpack80(value);
  const sign = value >> 79n !== 0n ? C1 : 0;
  if (fpu.isEmpty(0)) setConditions(fpu, C3 | C0 | sign);
  else setConditions(fpu, (x.denormal ? C3 | C2 : CLASS[x.kind]) | sign);
});

// One operand

/** ST(0) := f(ST(0)). */
const unary = (f: (x: Unpacked) => Unpacked): FpFunction =>
  onData((_ctx, fpu) => {
    if (fpu.isEmpty(0)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
    } else compute(fpu, 0, (_env, _format, x) => f(x), unpack80(fpu.st(0)), zero(false));
  });

const signChange = (f: (value: bigint) => bigint): FpFunction =>
  onData((_ctx, fpu) => {
    fpu.sw &= ~C1;
    if (!fpu.isEmpty(0)) fpu.setSt(0, f(fpu.st(0)));
    else if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
  });
const SIGN = 1n << 79n;

const frndint = unary((x) => {
  const nan = x87.nan(x, x);
  if (nan !== undefined) return nan;
  if (x.kind !== 'finite') return x;
  x87.denormals(x, x);
  if (x.exp >= 0) return x;
  const { value, inexact, up } = toInteger(x, x87.control.rounding as Rounding);
  if (inexact) x87.flags |= PE;
  x87.up = up;
  return value === 0n ? zero(x.sign) : finite(x.sign, value < 0n ? -value : value, 0);
});

// Two operands of the stack

/** ST(0) := f(ST(0), ST(1)). */
const withSecond = (f: (x: Unpacked, y: Unpacked, fpu: FpuArea) => Unpacked): FpFunction =>
  onData((_ctx, fpu) => {
    if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
    } else compute(fpu, 0, (_env, _format, x, y) => f(x, y, fpu), unpack80(fpu.st(0)), unpack80(fpu.st(1)));
  });

/** ST(0) * 2^trunc(ST(1)); precision control does not apply. */
const fscale = withSecond((x, y) => {
  const nan = x87.nan(x, y);
  if (nan !== undefined) return nan;
  if (y.kind === 'infinity') {
    if (y.sign ? x.kind === 'infinity' : x.kind === 'zero') return x87.invalid();
    x87.denormals(x, y);
    if (y.sign) return zero(x.sign);
    return infinity(x.sign);
  }
  x87.denormals(x, y);
  if (x.kind !== 'finite') return x;
  const { value } = toInteger(y, TRUNCATE);
  const by = value > 65536n ? 65536 : value < -65536n ? -65536 : Number(value);
  return withinRange(x87.round(F80, x.sign, x.sig, x.exp + by));
});

/** What is out of range even with the exponent of an unmasked exception is infinity or zero, and inexact. */
function withinRange(x: Unpacked): Unpacked {
  const lead = x.exp + bitLength(x.sig) - 1;
  if (x.kind !== 'finite' || (lead <= F80.emax && (lead >= F80.emin || x.denormal))) return x;
  x87.flags |= PE;
  x87.up = lead > 0;
  return lead > 0 ? infinity(x.sign) : zero(x.sign);
}

/** The exponent goes to ST(0), the significand is pushed. */
const fxtract = onData((_ctx, fpu) => {
  fpu.sw &= ~C1;
  if (fpu.isEmpty(0)) {
    if (!stackFault(fpu, false)) return;
    fpu.setSt(0, INDEFINITE);
    fpu.top = fpu.top - 1;
    fpu.setSt(0, INDEFINITE);
    return;
  }
  if (!fpu.isEmpty(7)) {
    if (!stackFault(fpu, true)) return;
    fpu.setSt(0, INDEFINITE);
    fpu.top = fpu.top - 1;
    fpu.setSt(0, INDEFINITE);
    return;
  }
  x87.start(fpu.cw);
  const [exponent, significand] = extract(unpack80(fpu.st(0)));
  if (!isBlocked(fpu)) {
    fpu.setSt(0, pack80(exponent));
    push(fpu, pack80(significand));
  }
  finish(fpu);
});
function extract(x: Unpacked): [Unpacked, Unpacked] {
  const nan = x87.nan(x, x);
  if (nan !== undefined) return [nan, nan];
  if (x.kind === 'infinity') return [infinity(false), x];
  if (x.kind === 'zero') {
    x87.flags |= ZE;
    return [infinity(true), x];
  }
  x87.denormals(x, x);
  const bits = bitLength(x.sig);
  const exponent = x.exp + bits - 1;
  const value = exponent === 0 ? zero(false) : finite(exponent < 0, BigInt(Math.abs(exponent)), 0);
  return [value, finite(x.sign, x.sig, 1 - bits)];
}

/** FPREM (truncating) and FPREM1 (to nearest): at most 63 bits of quotient at a time. */
const remainder = (nearest: boolean): FpFunction =>
  onData((_ctx, fpu) => {
    // Without a result C0 and C3 stay.
    fpu.sw &= ~(C1 | C2);
    if (fpu.isEmpty(0) || fpu.isEmpty(1)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
      return;
    }
    x87.start(fpu.cw);
    const state: { conditions: number | undefined } = { conditions: undefined };
    const result = reduce(unpack80(fpu.st(0)), unpack80(fpu.st(1)), nearest, state);
    if (!isBlocked(fpu)) fpu.setSt(0, pack80(result));
    finish(fpu);
    if (!isBlocked(fpu) && state.conditions !== undefined) setConditions(fpu, state.conditions);
  });

function reduce(x: Unpacked, y: Unpacked, nearest: boolean, state: { conditions: number | undefined }): Unpacked {
  const nan = x87.nan(x, y);
  if (nan !== undefined) return nan;
  if (x.kind === 'infinity' || y.kind === 'zero') return x87.invalid();
  x87.denormals(x, y);
  state.conditions = 0;
  if (x.kind === 'zero') return x;
  if (y.kind === 'infinity') return x87.round(F80, x.sign, x.sig, x.exp);
  const apart = x.exp + bitLength(x.sig) - (y.exp + bitLength(y.sig));
  if (apart >= 64) return reducePartly(x, y, apart, state);
  if (apart < -1) return x87.round(F80, x.sign, x.sig, x.exp);
  const unit = Math.min(x.exp, y.exp);
  const a = x.sig << BigInt(x.exp - unit);
  const b = y.sig << BigInt(y.exp - unit);
  let quotient = a / b;
  let rest = a - quotient * b;
  let { sign } = x;
  if (nearest && (2n * rest > b || (2n * rest === b && (quotient & 1n) === 1n))) {
    quotient++;
    rest = b - rest;
    sign = !sign;
  }
  const q = Number(quotient & 7n);
  state.conditions = ((q & 4) !== 0 ? C0 : 0) | ((q & 2) !== 0 ? C3 : 0) | ((q & 1) !== 0 ? C1 : 0);
  return rest === 0n ? zero(x.sign) : x87.round(F80, sign, rest, unit);
}

/** C2: the exponents are still apart. */
function reducePartly(x: Unpacked, y: Unpacked, apart: number, state: { conditions: number | undefined }): Unpacked {
  state.conditions = C2;
  const bits = 32 + (apart % 32);
  const shift = apart - bits;
  // quotient = trunc(x / y / 2^shift), rest = x - y * quotient * 2^shift
  const unit = Math.min(x.exp, y.exp + shift);
  const a = x.sig << BigInt(x.exp - unit);
  const b = y.sig << BigInt(y.exp + shift - unit);
  const rest = a % b;
  return rest === 0n ? zero(x.sign) : x87.round(F80, x.sign, rest, unit);
}

const FIXED: Readonly<Record<string, FpFunction>> = {
  fcompp: compareRegister(false, 2, 1),
  fucompp: compareRegister(true, 2, 1),
  fucom: compareRegister(true, 0),
  fucomp: compareRegister(true, 1),
  fcomi: compareFlags(false, false),
  fcomip: compareFlags(false, true),
  fucomi: compareFlags(true, false),
  fucomip: compareFlags(true, true),
  ftst: onData((_ctx, fpu) => compareTop(fpu, zero(false), false, 0)),
  fxam,
  fsqrt: unary((x) => {
    if (x.kind === 'unsupported') return x87.invalid();
    return squareRoot(x87, x87.format, x, x);
  }),
  frndint,
  fscale,
  fxtract,
  fprem: remainder(false),
  fprem1: remainder(true),
  fchs: signChange((value) => value ^ SIGN),
  fabs: signChange((value) => value & ~SIGN),
};

const FORMATS: Readonly<Record<string, MemoryFormat>> = { Md: 'single', Mq: 'double' };
const INTEGER_FORMATS: Readonly<Record<string, MemoryFormat>> = { Mw: 'i16', Md: 'i32' };

/** fadd, fiadd, faddp and so on, by operand. */
function arithmetic(mnemonic: string, operands: readonly string[]): FpFunction | undefined {
  const match = /^f(i?)(add|mul|subr|sub|divr|div)(p?)$/.exec(mnemonic);
  if (match === null) return undefined;
  const f = OPERATIONS[match[2]!]!;
  const format = (match[1] === 'i' ? INTEGER_FORMATS : FORMATS)[operands[0]!];
  return format === undefined ? withRegister(f, operands[0] === 'ST0', match[3] === 'p') : withMemory(f, format);
}

function comparison(mnemonic: string, operands: readonly string[]): FpFunction | undefined {
  const match = /^f(i?)com(p?)$/.exec(mnemonic);
  if (match === null) return undefined;
  const pops = match[2] === 'p' ? 1 : 0;
  const format = (match[1] === 'i' ? INTEGER_FORMATS : FORMATS)[operands[0]!];
  return format === undefined ? compareRegister(false, pops) : compareMemory(format, pops);
}

/** The function of an x87 row that computes or compares, or undefined. */
export const x87ArithmeticFunction = ({ mnemonic, operands }: Row): FpFunction | undefined =>
  FIXED[mnemonic] ?? arithmetic(mnemonic, operands) ?? comparison(mnemonic, operands);
