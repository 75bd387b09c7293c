/**
 * FMA3: fused multiply-add, rounded once. F16C: conversions between half and single precision.
 * Manual: APM vol. 4 (VFMADDPD ..., VCVTPH2PS, VCVTPS2PH), APM vol. 1 section 4.10.
 */
import type { Row } from '../../decode/instruction.ts';
import { done, type FpFunction, fpuOf } from '../fp/context.ts';
import {
  addExact,
  DE,
  F32,
  type Format,
  finite,
  IE,
  infinity,
  isNan,
  quiet,
  type RoundControl,
  type Rounding,
  round,
  type Unpacked,
  unpackSpecial,
  zero,
} from '../fp/float.ts';
import { type LaneType, SINGLE, type SseEnvironment } from './arithmetic.ts';
import { env, formOf, settleFlags } from './float.ts';
import { Lanes } from './lanes.ts';
import {
  inMemory,
  isWide,
  operationName,
  readVector,
  type VectorOperand,
  vectorOperand,
  writeMemory,
  writeVector,
} from './operands.ts';
import { immediateByte } from './packed.ts';

const negated = (value: Unpacked): Unpacked => (isNan(value) ? value : { ...value, sign: !value.sign });

/** The first NaN of three, quiet: the factors come before the addend. */
function firstNan(
  e: SseEnvironment,
  sources: readonly Unpacked[],
  order: readonly [number, number, number],
): Unpacked | undefined {
  const first = order.find((n) => isNan(sources[n]!));
  if (first === undefined) return undefined;
  const nan = sources[first]!;
  if (sources.some((source) => source.kind === 'snan')) e.flags |= IE;
  return quiet(nan);
}

/** x * y as an exact number; undefined: zero times infinity. */
function product(x: Unpacked, y: Unpacked): Unpacked | undefined {
  const sign = x.sign !== y.sign;
  const infinite = x.kind === 'infinity' || y.kind === 'infinity';
  const none = x.kind === 'zero' || y.kind === 'zero';
  if (infinite) return none ? undefined : infinity(sign);
  return none ? zero(sign) : finite(sign, x.sig * y.sig, x.exp + y.exp);
}

/** x * y + z; none is a NaN. */
function fused(e: SseEnvironment, format: Format, x: Unpacked, y: Unpacked, z: Unpacked): Unpacked {
  const p = product(x, y);
  if (p === undefined) return e.invalid();
  const opposite = p.sign !== z.sign;
  if (p.kind === 'infinity' && z.kind === 'infinity' && opposite) return e.invalid();
  if (x.denormal || y.denormal || z.denormal) e.flags |= DE;
  if (p.kind === 'infinity') return p;
  if (z.kind === 'infinity') return z;
  const { value, exp } = addExact(p, z);
  if (value !== 0n) return e.round(format, value < 0n, value < 0n ? -value : value, exp);
  return zero(opposite ? e.control.rounding === 1 : p.sign);
}

/** Which of the operands (0 destination, 1 vvvv, 2 r/m) are multiplied, and which is added. */
const ORDERS: Readonly<Record<string, readonly [number, number, number]>> = {
  '132': [0, 2, 1],
  '213': [1, 0, 2],
  '231': [1, 2, 0],
};
/** Sign of the product; and of the addend in even and odd lanes. */
const SIGNS: Readonly<Record<string, readonly [boolean, boolean, boolean]>> = {
  fmadd: [false, false, false],
  fmsub: [false, true, true],
  fnmadd: [true, false, false],
  fnmsub: [true, true, true],
  fmaddsub: [false, true, false],
  fmsubadd: [false, false, true],
};

const sources = [new Lanes(), new Lanes(), new Lanes()] as const;
const uppers = [new Lanes(), new Lanes(), new Lanes()] as const;
const r = new Lanes();
const upper = new Lanes();

interface FmaForm {
  type: LaneType;
  order: readonly [number, number, number];
  signs: readonly [boolean, boolean, boolean];
}

function fmaLane({ type, order, signs }: FmaForm, from: readonly Lanes[], i: number): Unpacked {
  const values = from.map((lanes) => env.source(type.read(lanes, i)));
  const nan = firstNan(env, values, order);
  if (nan !== undefined) return nan;
  const x = values[order[0]]!;
  const z = values[order[2]]!;
  const minus = signs[1 + (i & 1)]!;
  return fused(env, type.format, signs[0] ? negated(x) : x, values[order[1]]!, minus ? negated(z) : z);
}

function fma(row: Row): FpFunction | undefined {
  const match = /^(fn?m(?:add|sub|addsub|subadd))(132|213|231)[ps][sd]$/.exec(operationName(row));
  if (match === null) return undefined;
  const { type, scalar } = formOf(row.mnemonic);
  const form: FmaForm = { type, order: ORDERS[match[2]!]!, signs: SIGNS[match[1]!]! };
  const operands = [0, 1, 2].map((n) => vectorOperand(row, n));
  const count = scalar ? 1 : 16 / type.bytes;
  return (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = !scalar && isWide(ctx);
    for (let n = 2; n >= 0; n--) readVector(ctx, fpu, operands[n]!, sources[n]!, wide ? uppers[n] : undefined);
    env.begin(fpu.mxcsr);
    r.copy(sources[0]);
    for (let i = 0; i < count; i++) type.write(r, i, fmaLane(form, sources, i));
    if (wide) for (let i = 0; i < count; i++) type.write(upper, i, fmaLane(form, uppers, i));
    settleFlags(ctx, fpu);
    writeVector(ctx, fpu, operands[0]!, r, wide ? upper : undefined);
    return done();
  };
}

// Half precision

const F16: Format = { p: 11, emin: -14, emax: 15 };

function unpack16(bits: number): Unpacked {
  const sign = bits >> 15 !== 0;
  const e = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (e === 0x1f) return unpackSpecial(sign, BigInt(fraction) << 53n);
  if (e !== 0) return finite(sign, BigInt(fraction | 0x400), e - 25);
  return fraction === 0 ? zero(sign) : finite(sign, BigInt(fraction), -24);
}

function pack16(x: Unpacked): number {
  const sign = x.sign ? 0x8000 : 0;
  switch (x.kind) {
    case 'zero':
      return sign;
    case 'infinity':
      return sign | 0x7c00;
    case 'finite': {
      const sig = Number(x.sig);
      return sign | ((sig >= 0x400 ? x.exp + 25 : 0) << 10) | (sig & 0x3ff);
    }
    default:
      return sign | 0x7c00 | Number((x.sig >> 53n) & 0x3ffn);
  }
}

/** Exact; a denormal half is a normal single, so that neither DE nor DAZ has a part in it. */
function widen(to: Lanes, from: Lanes, first: number): void {
  for (let i = 0; i < 4; i++) {
    const half = unpack16(from.u16[first + i]!);
    const nan = env.nan(half, half);
    SINGLE.write(to, i, nan ?? (half.kind === 'finite' ? env.round(F32, half.sign, half.sig, half.exp) : half));
  }
}

function cvtph2ps(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, sources[0]);
    env.begin(fpu.mxcsr);
    widen(r, sources[0], 0);
    if (isWide(ctx)) widen(upper, sources[0], 4);
    settleFlags(ctx, fpu);
    writeVector(ctx, fpu, dst, r, isWide(ctx) ? upper : undefined);
    return done();
  };
}

const halfControl: RoundControl = { rounding: 0, masks: 0, flushToZero: false, wrap: 0 };

/** Rounds four singles; FTZ has no part in it. */
function narrow(from: Lanes, first: number): void {
  for (let i = 0; i < 4; i++) {
    const single = env.source(SINGLE.read(from, i));
    const nan = env.nan(single, single);
    let half = nan ?? single;
    if (half.kind === 'finite') {
      env.denormals(single, single);
      half = env.take(round(F16, single.sign, single.sig, single.exp, halfControl));
    }
    r.u16[first + i] = pack16(half);
  }
}

function storeHalves(dst: VectorOperand, row: Row): FpFunction {
  const src = vectorOperand(row, 1);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    const imm = immediateByte(ctx);
    readVector(ctx, fpu, src, sources[0], uppers[0]);
    env.begin(fpu.mxcsr);
    halfControl.rounding = (imm & 4) !== 0 ? env.control.rounding : ((imm & 3) as Rounding);
    halfControl.masks = env.control.masks;
    r.u64.fill(0n);
    narrow(sources[0], 0);
    if (isWide(ctx)) narrow(uppers[0], 4);
    // A store that faults comes before #XM, and leaves MXCSR alone.
    const stores = inMemory(ctx, dst);
    if (stores) ctx.probeWrite(ctx.insn.seg, ctx.effectiveAddress(), dst.size);
    settleFlags(ctx, fpu);
    if (stores) writeMemory(ctx, r.toBigInt(dst.size), dst.size, false);
    else writeVector(ctx, fpu, dst, r);
    return done();
  };
}

/** The function of a VEX row of this family, or undefined. */
export function fmaFunction(row: Row): FpFunction | undefined {
  const name = operationName(row);
  if (name === 'cvtph2ps') return cvtph2ps(row);
  if (name === 'cvtps2ph') return storeHalves(vectorOperand(row, 0), row);
  return fma(row);
}
