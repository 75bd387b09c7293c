/**
 * Floating point, recorded: where the host's result and no new flag is all that can come out. Otherwise the instruction is handed back, and
 * semantics/simd computes it exactly.
 * Manual: APM vol. 4 (the instructions by name), APM vol. 1 section 4.10.
 *
 * Nothing new can come out if every source is neither a NaN nor a denormal, the result is a normal number (or an exact zero), all exceptions
 * are masked, rounding is to nearest, FTZ and DAZ are clear, and inexactness is sticky already.
 */
import type { Cond, Value } from '../../builder/builder.ts';
import type { V128, VectorBuilder } from '../../builder/vector.ts';
import type { SimdBinary } from '../../engines/wasm/simd.ts';
import { mergeLow } from './move.ts';
import { type Operands, sizeOf } from './operands.ts';
import { bytesFrom, type Rule } from './rule.ts';

/** A lane type and its bounds as vectors. */
interface Type {
  name: 'f64' | 'f32';
  bytes: 8 | 4;
  /** Smallest and largest normal numbers, in every lane. */
  smallest: bigint;
  largest: bigint;
}
const twice = (bits: bigint): bigint => (bits << 64n) | bits;
const fourTimes = (bits: bigint): bigint => twice((bits << 32n) | bits);
const DOUBLE: Type = {
  name: 'f64',
  bytes: 8,
  smallest: twice(0x0010000000000000n),
  largest: twice(0x7fefffffffffffffn),
};
const SINGLE: Type = { name: 'f32', bytes: 4, smallest: fourTimes(0x00800000n), largest: fourTimes(0x7f7fffffn) };

/** WebAssembly's name of an operation on a type. */
const op = <N extends string>(type: Type, name: N): `f64x2${N}` | `f32x4${N}` =>
  type.name === 'f64' ? `f64x2${name}` : `f32x4${name}`;

const absolute = (b: VectorBuilder, type: Type, x: V128): V128 => b.v1(op(type, 'Abs'), x);
const isZero = (b: VectorBuilder, type: Type, x: V128): V128 => b.v2(op(type, 'Eq'), x, b.vconst(0n));

/** Lanes that are normal numbers, zeros or infinities. */
function plainLanes(b: VectorBuilder, type: Type, x: V128): V128 {
  const large = b.v2(op(type, 'Ge'), absolute(b, type, x), b.vconst(type.smallest));
  return b.v2('v128Or', large, isZero(b, type, x));
}
/** Lanes that are finite and safely normal: a result that was rounded up to the smallest normal number counts as tiny. */
function normalLanes(b: VectorBuilder, type: Type, x: V128): V128 {
  const magnitude = absolute(b, type, x);
  const above = b.v2(op(type, 'Gt'), magnitude, b.vconst(type.smallest));
  return b.v2('v128And', above, b.v2(op(type, 'Le'), magnitude, b.vconst(type.largest)));
}

const and = (b: VectorBuilder, ...masks: readonly V128[]): V128 => masks.reduce((x, y) => b.v2('v128And', x, y));

/** All lanes of a mask, or the lowest. */
function holds(b: VectorBuilder, type: Type, mask: V128, scalar: boolean): Cond {
  if (!scalar) return b.test(type.name === 'f64' ? 'i64x2AllTrue' : 'i32x4AllTrue', mask);
  const lane = b.extract(type.name === 'f64' ? 'i64x2ExtractLane' : 'i32x4ExtractLane', mask, 0);
  return b.ne(lane, b.const(0));
}

/** MXCSR: exceptions masked, nearest, no FTZ, no DAZ, PE set. */
const RELEVANT = 0xffe0;
const FAST = 0x1fa0;
const isFast = (b: VectorBuilder): Cond => b.eq(b.and(b.mxcsr(), b.const(RELEVANT)), b.const(FAST));
const ROUNDING = 0x6000;
const isNearest = (b: VectorBuilder): Cond => b.isZero(b.and(b.mxcsr(), b.const(ROUNDING)));
/** The precision exception is masked and has happened. */
const PRECISION = 0x1020;
const isInexactSticky = (b: VectorBuilder): Cond => b.eq(b.and(b.mxcsr(), b.const(PRECISION)), b.const(PRECISION));

const formOf = (name: string): { type: Type; scalar: boolean } => ({
  type: name.endsWith('s') ? SINGLE : DOUBLE,
  scalar: name.at(-2) === 's',
});

/** Sources of an operation: halves of both operands; a scalar source in memory has its own size. */
function sources(o: Operands, type: Type, scalar: boolean): { src: V128[]; first: V128[] } {
  const src = scalar ? [o.scalar(o.src, type.bytes)] : o.read(o.src);
  const first = scalar ? [o.b.getVector(o.field(o.first), 0)] : o.read(o.first);
  return { src, first };
}

const writeLanes = (o: Operands, type: Type, scalar: boolean, result: V128[], first: V128[]): void =>
  o.write(o.dst, scalar ? [mergeLow(o, result[0]!, first[0]!, type.bytes)] : result);

type Arithmetic = 'Add' | 'Sub' | 'Mul' | 'Div';

/** Lanes whose result may be zero: of sums always (they are exact), of products and quotients by a source that is zero. */
function zeroLanes(b: VectorBuilder, type: Type, name: Arithmetic, x: V128, y: V128): V128 | undefined {
  if (name === 'Div') return isZero(b, type, x);
  return name === 'Mul' ? b.v2('v128Or', isZero(b, type, x), isZero(b, type, y)) : undefined;
}

const arithmetic =
  (name: Arithmetic, type: Type, scalar: boolean): Rule =>
  (o) => {
    const { b } = o;
    b.handBackWhen(b.notC(isFast(b)));
    const { src, first } = sources(o, type, scalar);
    const masks: V128[] = [];
    const result = first.map((x, half) => {
      const y = src[half]!;
      const r = b.v2(op(type, name), x, y);
      const zeros = zeroLanes(b, type, name, x, y);
      const exact = zeros === undefined ? isZero(b, type, r) : and(b, isZero(b, type, r), zeros);
      const fine = b.v2('v128Or', normalLanes(b, type, r), exact);
      masks.push(and(b, fine, plainLanes(b, type, x), plainLanes(b, type, y)));
      return r;
    });
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), scalar)));
    writeLanes(o, type, scalar, result, first);
  };

const squareRoot =
  (type: Type, scalar: boolean): Rule =>
  (o) => {
    const { b } = o;
    b.handBackWhen(b.notC(isFast(b)));
    const { src, first } = sources(o, type, scalar);
    const result = src.map((y) => b.v1(op(type, 'Sqrt'), y));
    const masks = src.map((y, half) =>
      and(
        b,
        plainLanes(b, type, y),
        b.v2('v128Or', normalLanes(b, type, result[half]!), isZero(b, type, result[half]!)),
      ),
    );
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), scalar)));
    writeLanes(o, type, scalar, result, first);
  };

/** MIN, MAX: without NaNs and denormals there are no flags. Of equal zeros the second source comes out. */
const choose =
  (name: 'Pmin' | 'Pmax', type: Type, scalar: boolean): Rule =>
  (o) => {
    const { b } = o;
    const { src, first } = sources(o, type, scalar);
    const masks = first.map((x, half) => and(b, plainLanes(b, type, x), plainLanes(b, type, src[half]!)));
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), scalar)));
    const result = first.map((x, half) => b.v2(op(type, name), src[half]!, x));
    writeLanes(o, type, scalar, result, first);
  };

/** Predicates 0 to 15 of sources that are ordered: relation, and whether it is negated; a constant for (un)ordered, false and true. */
const PREDICATES = ['Eq', 'Lt', 'Le', 0, 'Ne', 'Ge', 'Gt', 1, 'Eq', 'Lt', 'Le', 0, 'Ne', 'Ge', 'Gt', 1] as const;
const ALL_ONES = (1n << 128n) - 1n;

function relation(b: VectorBuilder, type: Type, imm: number, x: V128, y: V128): V128 {
  const predicate = PREDICATES[imm & 15]!;
  if (predicate === 0) return b.vconst(0n);
  return predicate === 1 ? b.vconst(ALL_ONES) : b.v2(op(type, predicate) as SimdBinary, x, y);
}

const compareLanes =
  (type: Type, scalar: boolean): Rule =>
  (o) => {
    const { b } = o;
    const { src, first } = sources(o, type, scalar);
    const masks = first.map((x, half) => and(b, plainLanes(b, type, x), plainLanes(b, type, src[half]!)));
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), scalar)));
    const imm = o.form.vex ? o.form.imm : o.form.imm & 7;
    const result = first.map((x, half) => relation(b, type, imm, x, src[half]!));
    writeLanes(o, type, scalar, result, first);
  };

/** COMISx, UCOMISx of ordered sources. */
const compareFlags =
  (type: Type): Rule =>
  (o) => {
    const { b } = o;
    const { src, first } = sources(o, type, true);
    const [x, y] = [first[0]!, src[0]!];
    const plain = and(b, plainLanes(b, type, x), plainLanes(b, type, y));
    b.handBackWhen(b.notC(holds(b, type, plain, true)));
    const zf = holds(b, type, b.v2(op(type, 'Eq'), x, y), true);
    const cf = holds(b, type, b.v2(op(type, 'Lt'), x, y), true);
    b.setFlags({ zf, cf, pf: b.false(), af: b.false(), sf: b.false(), of: b.false() });
  };

// Conversions

/** Integers up to this magnitude are doubles (singles) exactly. */
const EXACT = { f64: 1n << 53n, f32: 1n << 24n };

const fromGeneral =
  (type: Type): Rule =>
  (o) => {
    const { b } = o;
    const size = o.form.opSize === 8 ? 8 : 4;
    const value = b.sext(o.general(o.src, size), size);
    if (size === 8 || type === SINGLE) {
      const limit = EXACT[type.name];
      const small = b.leU(b.add(value, b.const(limit)), b.const(2n * limit));
      b.handBackWhen(b.notC(b.orC(small, isFast(b))));
    }
    const first = b.getVector(o.field(o.first), 0);
    o.write(o.dst, [mergeLow(o, b.fromInt64(type.name, value), first, type.bytes)]);
  };

/** To a general register, truncated or rounded to nearest: out of range, NaN, or newly inexact is handed back. */
const toGeneral =
  (type: Type, truncate: boolean): Rule =>
  (o) => {
    const { b } = o;
    if (!truncate) b.handBackWhen(b.notC(isNearest(b)));
    const source = o.scalar(o.src, type.bytes);
    const rounded = truncate ? source : b.v1(op(type, 'Nearest'), source);
    const value = b.toInt64(type.name, rounded);
    const same = b.v2(op(type, 'Eq'), b.fromInt64(type.name, value), source);
    const ordered = b.v2(op(type, 'Eq'), source, source);
    const fine = b.andC(
      inRange(o, value),
      b.orC(holds(b, type, same, true), b.andC(isInexactSticky(b), holds(b, type, ordered, true))),
    );
    b.handBackWhen(b.notC(fine));
    const size = o.form.opSize === 8 ? 8 : 4;
    b.setReg({ field: 'reg' }, size, b.zext(value, size));
  };
/** Fits, and is not what saturation makes. */
function inRange(o: Operands, value: Value): Cond {
  const { b } = o;
  if (o.form.opSize !== 8) return b.eq(b.sext(value, 4), value);
  return b.ltU(b.add(value, b.const((1n << 62n) - 1n)), b.const((1n << 63n) - 1n));
}

/** CVTSS2SD, CVTSD2SS. */
const convertScalar =
  (from: Type, to: Type): Rule =>
  (o) => {
    const { b } = o;
    const narrows = to === SINGLE;
    if (narrows) b.handBackWhen(b.notC(isFast(b)));
    const source = o.scalar(o.src, from.bytes);
    const result = b.v1(narrows ? 'f32x4DemoteF64x2Zero' : 'f64x2PromoteLowF32x4', source);
    let fine = holds(b, from, plainLanes(b, from, source), true);
    if (narrows) {
      const exact = b.andC(holds(b, from, isZero(b, from, source), true), b.true());
      fine = b.andC(fine, b.orC(holds(b, to, normalLanes(b, to, result), true), exact));
    }
    b.handBackWhen(b.notC(fine));
    o.write(o.dst, [mergeLow(o, result, b.getVector(o.field(o.first), 0), to.bytes)]);
  };

/** Low halves of both, one after the other. */
const joinLow = (b: VectorBuilder, x: V128, y: V128): V128 =>
  b.shuffle(
    x,
    y,
    bytesFrom((i) => (i < 8 ? i : 8 + i)),
  );
const upperHalf = (b: VectorBuilder, x: V128): V128 =>
  b.shuffle(
    x,
    x,
    bytesFrom((i) => (i & 7) + 8),
  );
/** A source of half the destination's width: 8 bytes, or 16 for two halves. */
const narrowSource = (o: Operands): V128[] => {
  const size = sizeOf(o.src, o.form.opSize);
  const low = size < 16 ? o.scalar(o.src, size) : o.read(o.src)[0]!;
  return o.halves === 2 ? [low, upperHalf(o.b, low)] : [low];
};

/** CVTDQ2PD: exact. */
const cvtdq2pd: Rule = (o) =>
  o.write(
    o.dst,
    narrowSource(o).map((x) => o.b.v1('f64x2ConvertLowI32x4S', x)),
  );
const cvtdq2ps: Rule = (o) => {
  const { b } = o;
  b.handBackWhen(b.notC(isFast(b)));
  o.write(
    o.dst,
    o.read(o.src).map((x) => b.v1('f32x4ConvertI32x4S', x)),
  );
};
const LOW_LANES = (1n << 64n) - 1n;
const cvtps2pd: Rule = (o) => {
  const { b } = o;
  const src = narrowSource(o);
  // Of each source the two low lanes count.
  const unused = b.vconst(ALL_ONES ^ LOW_LANES);
  const masks = src.map((x) => b.v2('v128Or', plainLanes(b, SINGLE, x), unused));
  b.handBackWhen(b.notC(holds(b, SINGLE, and(b, ...masks), false)));
  o.write(
    o.dst,
    src.map((x) => b.v1('f64x2PromoteLowF32x4', x)),
  );
};
const cvtpd2ps: Rule = (o) => {
  const { b } = o;
  b.handBackWhen(b.notC(isFast(b)));
  const src = o.read(o.src);
  const parts = src.map((x) => b.v1('f32x4DemoteF64x2Zero', x));
  const result = parts.length === 2 ? joinLow(b, parts[0]!, parts[1]!) : parts[0]!;
  const unused = b.vconst(parts.length === 2 ? 0n : ALL_ONES ^ LOW_LANES);
  const fine = b.v2('v128Or', normalLanes(b, SINGLE, result), unused);
  const sourcesFine = and(b, ...src.map((x) => plainLanes(b, DOUBLE, x)));
  b.handBackWhen(b.notC(b.andC(holds(b, SINGLE, fine, false), holds(b, DOUBLE, sourcesFine, false))));
  o.write(o.dst, [result]);
};
/** To packed integers by truncation: lanes must lie within 2^31; inexactness must be sticky. */
const BOUND = { f64: twice(0x41dfffffffc00000n), f32: fourTimes(0x4effffffn) };
const truncated =
  (type: Type): Rule =>
  (o) => {
    const { b } = o;
    b.handBackWhen(b.notC(isInexactSticky(b)));
    const src = o.read(o.src);
    const masks = src.map((x) => b.v2(op(type, 'Le'), absolute(b, type, x), b.vconst(BOUND[type.name])));
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), false)));
    const parts = src.map((x) => b.v1(type === DOUBLE ? 'i32x4TruncSatF64x2SZero' : 'i32x4TruncSatF32x4S', x));
    if (type === SINGLE) o.write(o.dst, parts);
    else o.write(o.dst, [parts.length === 2 ? joinLow(b, parts[0]!, parts[1]!) : parts[0]!]);
  };

/** Rounded to nearest instead. */
const roundedToInteger =
  (type: Type): Rule =>
  (o) => {
    const { b } = o;
    b.handBackWhen(b.notC(b.andC(isNearest(b), isInexactSticky(b))));
    const src = o.read(o.src).map((x) => b.v1(op(type, 'Nearest'), x));
    const masks = src.map((x) => b.v2(op(type, 'Le'), absolute(b, type, x), b.vconst(BOUND[type.name])));
    b.handBackWhen(b.notC(holds(b, type, and(b, ...masks), false)));
    const parts = src.map((x) => b.v1(type === DOUBLE ? 'i32x4TruncSatF64x2SZero' : 'i32x4TruncSatF32x4S', x));
    o.write(o.dst, type === DOUBLE && parts.length === 2 ? [joinLow(b, parts[0]!, parts[1]!)] : parts);
  };

const ROUNDINGS = ['Nearest', 'Floor', 'Ceil', 'Trunc'] as const;
/** ROUNDxx: immediate bit 2 asks MXCSR for the direction, bit 3 hides inexactness. */
const round = (type: Type, scalar: boolean): Rule => {
  return (o) => {
    const { b } = o;
    const { imm } = o.form;
    const byMxcsr = (imm & 4) !== 0;
    if (byMxcsr) b.handBackWhen(b.notC(isNearest(b)));
    const { src, first } = sources(o, type, scalar);
    const result = src.map((x) => b.v1(op(type, ROUNDINGS[byMxcsr ? 0 : imm & 3]!), x));
    const plain = and(b, ...src.map((x) => plainLanes(b, type, x)));
    const same = and(b, ...src.map((x, half) => b.v2(op(type, 'Eq'), x, result[half]!)));
    const silent = (imm & 8) !== 0 ? b.true() : b.orC(isInexactSticky(b), holds(b, type, same, scalar));
    b.handBackWhen(b.notC(b.andC(holds(b, type, plain, scalar), silent)));
    writeLanes(o, type, scalar, result, first);
  };
};

const CONVERSIONS: Readonly<Record<string, Rule>> = {
  cvtsi2sd: fromGeneral(DOUBLE),
  cvtsi2ss: fromGeneral(SINGLE),
  cvttsd2si: toGeneral(DOUBLE, true),
  cvttss2si: toGeneral(SINGLE, true),
  cvtsd2si: toGeneral(DOUBLE, false),
  cvtss2si: toGeneral(SINGLE, false),
  cvtss2sd: convertScalar(SINGLE, DOUBLE),
  cvtsd2ss: convertScalar(DOUBLE, SINGLE),
  cvtdq2pd,
  cvtdq2ps,
  cvtps2pd,
  cvtpd2ps,
  cvttpd2dq: truncated(DOUBLE),
  cvttps2dq: truncated(SINGLE),
  cvtpd2dq: roundedToInteger(DOUBLE),
  cvtps2dq: roundedToInteger(SINGLE),
};

const MAKERS: Readonly<Record<string, (type: Type, scalar: boolean) => Rule>> = {
  add: (type, scalar) => arithmetic('Add', type, scalar),
  sub: (type, scalar) => arithmetic('Sub', type, scalar),
  mul: (type, scalar) => arithmetic('Mul', type, scalar),
  div: (type, scalar) => arithmetic('Div', type, scalar),
  sqrt: squareRoot,
  round,
  min: (type, scalar) => choose('Pmin', type, scalar),
  max: (type, scalar) => choose('Pmax', type, scalar),
  cmp: compareLanes,
  comi: compareFlags,
  ucomi: compareFlags,
};

/** The rule of a floating-point operation by its name (without v), or undefined. */
export function floatRule(name: string): Rule | undefined {
  const conversion = CONVERSIONS[name];
  if (conversion !== undefined) return conversion;
  const match = /^(\w+)[ps][sd]$/.exec(name);
  const { type, scalar } = formOf(name);
  return match === null ? undefined : MAKERS[match[1]!]?.(type, scalar);
}
