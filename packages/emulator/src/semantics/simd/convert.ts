/**
 * SSE conversions between integers and floating point, and between the two formats.
 * Manual: APM vol. 4 (CVTxx2yy).
 */
import type { Row } from '../../decode/instruction.ts';
import { checkPending, done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { type Rounding, TRUNCATE } from '../fp/float.ts';
import { convertFormat, DOUBLE, fromSigned, type LaneType, SINGLE, toSigned } from './arithmetic.ts';
import { env, settleFlags } from './float.ts';
import { Lanes } from './lanes.ts';
import {
  inMemory,
  isMmx,
  isWide,
  operationName,
  readGeneral,
  readVector,
  registerOf,
  vectorOperand,
  vectorOperands,
  writeVector,
} from './operands.ts';

const a = new Lanes();
const b = new Lanes();
const r = new Lanes();
/** Bits 255:128. */
const upper = { b: new Lanes(), r: new Lanes() };

/** Fills `r` from `b` lane by lane. */
type Conversion = (r: Lanes, b: Lanes, rounding: Rounding) => void;

const lanesOf = (type: LaneType): number => 16 / type.bytes;

const integersToFloat =
  (type: LaneType, count: number): Conversion =>
  (r, b) => {
    for (let i = 0; i < count; i++) type.write(r, i, fromSigned(env, type.format, BigInt(b.i32[i]!)));
  };
const floatToIntegers =
  (type: LaneType, count: number): Conversion =>
  (r, b, rounding) => {
    for (let i = 0; i < count; i++) r.i32[i] = Number(toSigned(env, env.source(type.read(b, i)), 32, rounding));
  };
const floatToFloat =
  (from: LaneType, to: LaneType, count: number): Conversion =>
  (r, b) => {
    for (let i = 0; i < count; i++) to.write(r, i, convertFormat(env, to.format, env.source(from.read(b, i))));
  };

/** What of the destination's old value stays. */
type Keep = 'nothing' | 'upper-half' | 'rest-of-lane';

interface Shape {
  convert: Conversion;
  truncate?: boolean;
  keep?: Keep;
}

const SHAPES: Readonly<Record<string, Shape>> = {
  cvtpi2ps: { convert: integersToFloat(SINGLE, 2), keep: 'upper-half' },
  cvtpi2pd: { convert: integersToFloat(DOUBLE, 2) },
  cvtdq2ps: { convert: integersToFloat(SINGLE, 4) },
  cvtdq2pd: { convert: integersToFloat(DOUBLE, 2) },
  cvtps2pi: { convert: floatToIntegers(SINGLE, 2) },
  cvttps2pi: { convert: floatToIntegers(SINGLE, 2), truncate: true },
  cvtpd2pi: { convert: floatToIntegers(DOUBLE, 2) },
  cvttpd2pi: { convert: floatToIntegers(DOUBLE, 2), truncate: true },
  cvtps2dq: { convert: floatToIntegers(SINGLE, lanesOf(SINGLE)) },
  cvttps2dq: { convert: floatToIntegers(SINGLE, lanesOf(SINGLE)), truncate: true },
  cvtpd2dq: { convert: floatToIntegers(DOUBLE, 2) },
  cvttpd2dq: { convert: floatToIntegers(DOUBLE, 2), truncate: true },
  cvtps2pd: { convert: floatToFloat(SINGLE, DOUBLE, 2) },
  cvtpd2ps: { convert: floatToFloat(DOUBLE, SINGLE, 2) },
  cvtss2sd: { convert: floatToFloat(SINGLE, DOUBLE, 1), keep: 'rest-of-lane' },
  cvtsd2ss: { convert: floatToFloat(DOUBLE, SINGLE, 1), keep: 'rest-of-lane' },
};

const roundingOf = (truncate: boolean | undefined): Rounding => (truncate === true ? TRUNCATE : env.control.rounding);

/** 256 bits: the lanes of the upper half stand in the source's upper half, or in the upper half of a 16-byte source. */
function convertUpper(shape: Shape, sourceBytes: number, rounding: Rounding): void {
  if (sourceBytes === 16) upper.b.load(b.u64[1]!, 8);
  upper.r.u64.fill(0n);
  shape.convert(upper.r, upper.b, rounding);
}

function vectorConversion(row: Row, shape: Shape): FpFunction {
  const { dst, first, src, byLength } = vectorOperands(row);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = byLength && isWide(ctx);
    // MMX mode is entered with an MMX register, even if the conversion then raises #XM.
    const mmx = isMmx(dst) || (isMmx(src) && !inMemory(ctx, src));
    if (mmx) checkPending(ctx, fpu);
    readVector(ctx, fpu, src, b, wide ? upper.b : undefined);
    readVector(ctx, fpu, first, a);
    if (mmx) fpu.enterMmx();
    env.begin(fpu.mxcsr);
    if (shape.keep === undefined) r.u64.fill(0n);
    else r.copy(a);
    shape.convert(r, b, roundingOf(shape.truncate));
    if (wide) convertUpper(shape, src.byLength ? 32 : 16, roundingOf(shape.truncate));
    settleFlags(ctx, fpu);
    // Into 16 bytes from 32: both halves have given eight bytes.
    if (wide && !dst.byLength) r.u64[1] = upper.r.u64[0]!;
    writeVector(ctx, fpu, dst, r, wide && dst.byLength ? upper.r : undefined);
    return done();
  };
}

/** CVTSI2SS, CVTSI2SD. */
const fromGeneral =
  (type: LaneType) =>
  (row: Row): FpFunction => {
    const { dst, first, src } = vectorOperands(row);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      const value = BigInt.asIntN(ctx.insn.opSize * 8, readGeneral(ctx, src));
      env.begin(fpu.mxcsr);
      fpu.readXmm(registerOf(ctx, first), r);
      type.write(r, 0, fromSigned(env, type.format, value));
      settleFlags(ctx, fpu);
      writeVector(ctx, fpu, dst, r);
      return done();
    };
  };

/** CVT(T)SS2SI, CVT(T)SD2SI. */
const toGeneral =
  (type: LaneType, truncate: boolean) =>
  (row: Row): FpFunction => {
    const src = vectorOperand(row, 1);
    return (ctx: FpContext) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, b);
      env.begin(fpu.mxcsr);
      const size = ctx.insn.opSize === 8 ? 8 : 4;
      const value = toSigned(env, env.source(type.read(b, 0)), size * 8, roundingOf(truncate));
      settleFlags(ctx, fpu);
      ctx.setReg(ctx.insn.reg, size, BigInt.asUintN(size * 8, value));
      return done();
    };
  };

const GENERAL: Readonly<Record<string, (row: Row) => FpFunction>> = {
  cvtsi2ss: fromGeneral(SINGLE),
  cvtsi2sd: fromGeneral(DOUBLE),
  cvtss2si: toGeneral(SINGLE, false),
  cvtsd2si: toGeneral(DOUBLE, false),
  cvttss2si: toGeneral(SINGLE, true),
  cvttsd2si: toGeneral(DOUBLE, true),
};

/** The function of a converting row, or undefined. */
export function convertFunction(row: Row): FpFunction | undefined {
  const name = operationName(row);
  const shape = SHAPES[name];
  return shape === undefined ? GENERAL[name]?.(row) : vectorConversion(row, shape);
}
