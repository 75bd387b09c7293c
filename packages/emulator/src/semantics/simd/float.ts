/**
 * SSE floating point: lanes, flags and #XM around the operations of arithmetic.ts.
 * Manual: APM vol. 4 (the instructions by name), APM vol. 1 section 4.10 (exceptions), APM vol. 2 section 8.2.20 (#XM).
 */
import type { Row } from '../../decode/instruction.ts';
import { Flag } from '../../state-layout.ts';
import type { FpuArea } from '../fp/area.ts';
import { done, type FpContext, type FpFunction, fpuOf, raiseSimdException } from '../fp/context.ts';
import { quiet, zero } from '../fp/float.ts';
import {
  add,
  DOUBLE,
  divide,
  type LaneOperation,
  type LaneType,
  maximum,
  minimum,
  multiply,
  order,
  roundToInteger,
  SINGLE,
  SseEnvironment,
  squareRoot,
  subtract,
} from './arithmetic.ts';
import { type Kernel, Lanes } from './lanes.ts';
import { operationName, readVector, vectorOperand } from './operands.ts';
import { type Around, packed, setArithmeticFlags } from './packed.ts';

const x = new Lanes();
const y = new Lanes();
export const env = new SseEnvironment();

const PRE_COMPUTATION = 7;

/** Adds the collected flags to MXCSR; an unmasked one ends the instruction. Exceptions of the sources hide those of results. */
export function settleFlags(ctx: FpContext, fpu: FpuArea): void {
  const { masks } = env.control;
  if ((env.flags & ~masks & PRE_COMPUTATION) !== 0) env.flags &= PRE_COMPUTATION;
  if (env.flags === 0) return;
  fpu.mxcsr |= env.flags;
  if ((env.flags & ~masks) !== 0) raiseSimdException(ctx);
}

/** Around a kernel of floating point. */
export const UNDER_MXCSR: Around = {
  begin: (ctx) => env.begin(fpuOf(ctx).mxcsr),
  end: (ctx) => settleFlags(ctx, fpuOf(ctx)),
};

/** As `UNDER_MXCSR`, step by step. */
const BY_STEPS: Around = {
  begin: UNDER_MXCSR.begin,
  end: (ctx) => {
    for (const flags of env.steps) {
      env.flags = flags;
      settleFlags(ctx, fpuOf(ctx));
    }
  },
};

/** What the host computes for a lane, where that is the same. */
type HostOperation = (x: number, y: number) => number;

const isNormal = (x: number, smallest: number): boolean => x >= smallest || x <= -smallest || x === 0;

/** The host's result if it is exact or inexactness is known already, and nothing else can have happened; else undefined. */
function onHost(host: HostOperation, type: LaneType, r: Lanes, a: Lanes, b: Lanes, i: number): boolean {
  const single = type === SINGLE;
  const view = single ? 'f32' : 'f64';
  const x = a[view][i]!;
  const y = b[view][i]!;
  const smallest = single ? 1.1754943508222875e-38 : 2.2250738585072014e-308;
  if (!isNormal(x, smallest) || !isNormal(y, smallest)) return false;
  const full = host(x, y);
  const result = single ? Math.fround(full) : full;
  const magnitude = Math.abs(result);
  if (!(magnitude >= smallest * 2 && magnitude < (single ? 3e38 : 1e308))) return false;
  if (!env.fast && !(single && result === full && isExactHost(host, x, y, full))) return false;
  r[view][i] = result;
  return true;
}
/** In double precision products of singles are exact; sums are if the parts come back. */
const isExactHost = (host: HostOperation, x: number, y: number, result: number): boolean =>
  host === HOST.mul ||
  ((host === HOST.add || host === HOST.sub) &&
    result - x === (host === HOST.add ? y : -y) &&
    x === (host === HOST.add ? result - y : result + y));

const HOST = {
  add: (x: number, y: number) => x + y,
  sub: (x: number, y: number) => x - y,
  mul: (x: number, y: number) => x * y,
  div: (x: number, y: number) => x / y,
  sqrt: (_x: number, y: number) => Math.sqrt(y),
};

/** Form letters at the end of a mnemonic. */
export function formOf(mnemonic: string): { type: LaneType; scalar: boolean } {
  return { type: mnemonic.endsWith('s') ? SINGLE : DOUBLE, scalar: mnemonic.at(-2) === 's' };
}

/** A kernel for a type; `count` lanes of it are computed, the others are the first source's. */
type KernelMaker = (type: LaneType, count: number) => Kernel;

/** A lane operation over all lanes, or the lowest. `operation` may depend on the immediate. */
const lanewise =
  (operation: (imm: number) => LaneOperation, host?: HostOperation): KernelMaker =>
  (type, count) =>
  (r, a, b, imm) => {
    r.copy(a);
    const f = operation(imm);
    for (let i = 0; i < count; i++) {
      if (host !== undefined && env.plain && onHost(host, type, r, a, b, i)) continue;
      type.write(r, i, f(env, type.format, env.source(type.read(a, i)), env.source(type.read(b, i))));
    }
  };

// Comparisons

/** Relations that satisfy each predicate: 1 less, 2 equal, 4 greater, 8 unordered. Bit 4 of a predicate changes signalling only. */
const PREDICATES = [2, 1, 3, 8, 13, 14, 12, 7, 10, 9, 11, 0, 5, 6, 4, 15];
/** Predicates 0 to 15 that signal on quiet NaNs; those of 16 to 31 are the others. */
const SIGNALLING = 0b0110_0110_0110_0110;

/** CMPxx; the legacy form has eight predicates. */
const cmp =
  (predicates: 8 | 32): KernelMaker =>
  (type, count) =>
  (r, a, b, imm) => {
    r.copy(a);
    const predicate = imm & (predicates - 1);
    const holding = PREDICATES[predicate & 15]!;
    const signalling = ((SIGNALLING >> (predicate & 15)) & 1) !== predicate >> 4;
    for (let i = 0; i < count; i++) {
      const o = order(env, env.source(type.read(a, i)), env.source(type.read(b, i)), signalling);
      const holds = (holding & (1 << (o + 1))) !== 0;
      if (type === SINGLE) r.i32[i] = holds ? -1 : 0;
      else r.i64[i] = holds ? -1n : 0n;
    }
  };

const RELATION: Readonly<Record<number, number>> = { [-1]: Flag.CF, 0: Flag.ZF, 1: 0, 2: Flag.ZF | Flag.PF | Flag.CF };

const comi =
  (signalling: boolean) =>
  (row: Row): FpFunction => {
    const { type } = formOf(row.mnemonic);
    const src = vectorOperand(row, 1);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      readVector(ctx, fpu, src, y);
      fpu.readXmm(ctx.insn.reg, x);
      env.begin(fpu.mxcsr);
      const o = order(env, env.source(type.read(x, 0)), env.source(type.read(y, 0)), signalling);
      settleFlags(ctx, fpu);
      setArithmeticFlags(ctx, RELATION[o]!);
      return done();
    };
  };
const COMPARISONS: Readonly<Record<string, (row: Row) => FpFunction>> = { comi: comi(true), ucomi: comi(false) };

// Horizontal operations

/** Result lane i from a pair of lanes: of the first source in the lower half, of the second in the upper. */
const horizontal =
  (operation: LaneOperation): KernelMaker =>
  (type) =>
  (r, a, b) => {
    const half = 8 / type.bytes;
    for (let i = 0; i < 2 * half; i++) {
      const from = i < half ? a : b;
      const j = 2 * (i % half);
      type.write(r, i, operation(env, type.format, env.source(type.read(from, j)), env.source(type.read(from, j + 1))));
    }
  };

/** Subtracts in even lanes, adds in odd ones. */
const addsub: KernelMaker = (type, count) => (r, a, b) => {
  for (let i = 0; i < count; i++) {
    const f = (i & 1) === 0 ? subtract : add;
    type.write(r, i, f(env, type.format, env.source(type.read(a, i)), env.source(type.read(b, i))));
  }
};

/**
 * Dot product: products chosen by imm[7:4], summed in pairs, stored to lanes of imm[3:0]. DAZ applies to intermediate results too, and each
 * step has its exceptions.
 */
const dotProduct: KernelMaker = (type, count) => (r, a, b, imm) => {
  let values = Array.from({ length: count }, (_, i) => {
    if (((imm >> (4 + i)) & 1) === 0) return zero(false);
    return multiply(env, type.format, env.source(type.read(a, i)), env.source(type.read(b, i)));
  });
  env.endStep(0);
  for (let step = 1; values.length > 1; step++) {
    values = Array.from({ length: values.length / 2 }, (_, i) =>
      add(env, type.format, env.source(values[2 * i]!), env.source(values[2 * i + 1]!)),
    );
    env.endStep(step);
  }
  const result = values[0]!;
  for (let i = 0; i < count; i++) type.write(r, i, ((imm >> i) & 1) !== 0 ? result : zero(false));
};

// Approximations

/** A normal single with 12 significant bits: within 2^-12 of the value. */
function approximate(value: number): number {
  const bits = new DataView(new ArrayBuffer(4));
  bits.setFloat32(0, value);
  bits.setUint32(0, (bits.getUint32(0) + 0x400) & ~0x7ff);
  return bits.getFloat32(0);
}

const SMALLEST = 2 ** -126;

/** RCPPS and RSQRTPS look at no part of MXCSR; denormals count as zero, tiny results too. */
const approximation =
  (f: (value: number) => number): KernelMaker =>
  (_type, count) =>
  (r, a, b) => {
    r.copy(a);
    for (let i = 0; i < count; i++) approximateLane(f, r, b, i);
  };
function approximateLane(f: (value: number) => number, r: Lanes, b: Lanes, i: number): void {
  const source = SINGLE.read(b, i);
  if (source.kind === 'qnan' || source.kind === 'snan') {
    SINGLE.write(r, i, quiet(source));
    return;
  }
  const value = f(source.denormal ? (source.sign ? -0 : 0) : b.f32[i]!);
  if (Number.isNaN(value)) r.u32[i] = 0xffc00000;
  else r.f32[i] = Math.abs(value) < SMALLEST ? (value < 0 || Object.is(value, -0) ? -0 : 0) : approximate(value);
}

const MAKERS: Readonly<Record<string, KernelMaker>> = {
  add: lanewise(() => add, HOST.add),
  sub: lanewise(() => subtract, HOST.sub),
  mul: lanewise(() => multiply, HOST.mul),
  div: lanewise(() => divide, HOST.div),
  sqrt: lanewise(() => squareRoot, HOST.sqrt),
  min: lanewise(() => minimum),
  max: lanewise(() => maximum),
  round: lanewise(roundToInteger),
  cmp: cmp(8),
  vcmp: cmp(32),
  hadd: horizontal(add),
  hsub: horizontal(subtract),
  addsub,
  dp: dotProduct,
  rcp: approximation((value) => 1 / value),
  rsqrt: approximation((value) => (value < 0 ? Number.NaN : Object.is(value, -0) ? -Infinity : 1 / Math.sqrt(value))),
};

/** The function of a floating-point row, or undefined. */
export function floatFunction(row: Row): FpFunction | undefined {
  const match = /^(\w+)[ps][sd]$/.exec(operationName(row));
  if (match === null) return undefined;
  const name = match[1]!;
  if (name in COMPARISONS) return COMPARISONS[name]!(row);
  const maker = row.mnemonic.startsWith('vcmp') ? MAKERS['vcmp'] : MAKERS[name];
  if (maker === undefined) return undefined;
  const { type, scalar } = formOf(row.mnemonic);
  return packed(row, maker(type, scalar ? 1 : 16 / type.bytes), maker === dotProduct ? BY_STEPS : UNDER_MXCSR);
}
