/**
 * The Builder's V128: what vector instructions are written in. One operation is one WebAssembly vector instruction, so that a recording
 * becomes code without further thought; evaluate has exact functions of its own (semantics/simd) and is what these are compared with.
 * Spec: WebAssembly 2.0, section 4.3.6 (vector operations).
 *
 * Floating point here is the host's: round to nearest, no flags, NaNs of its own. Whoever uses it must show that nothing else could have
 * happened, and otherwise hand the instruction back before anything is committed.
 */
import type { SimdBinary, SimdExtract, SimdReplace, SimdShift, SimdTest, SimdUnary } from '../engines/wasm/simd.ts';
import type { Builder, Cond, Value } from './builder.ts';

declare const vectorBrand: unique symbol;
/** 128 bits of the running guest. */
export type V128 = { readonly [vectorBrand]: true };

/** A record field that names a vector register. */
export type VectorField = 'reg' | 'rm' | 'vvvv';

export interface VectorBuilder extends Builder {
  v1(op: SimdUnary, a: V128): V128;
  v2(op: SimdBinary, a: V128, b: V128): V128;
  /** Bits of `a` where `mask` is 1, of `b` where it is 0. */
  bitselect(a: V128, b: V128, mask: V128): V128;
  /** The count is taken modulo the lane's width. */
  vshift(op: SimdShift, a: V128, count: Value): V128;
  /** Lanes 0..15 are bytes of `a`, 16..31 of `b`. */
  shuffle(a: V128, b: V128, lanes: readonly number[]): V128;
  vconst(bits: bigint): V128;
  /** Zero-extended. */
  extract(op: SimdExtract, a: V128, lane: number): Value;
  replace(op: SimdReplace, a: V128, lane: number, value: Value): V128;
  /** A bit mask, zero-extended. */
  bitmask(op: SimdTest, a: V128): Value;
  test(op: SimdTest, a: V128): Cond;
  /** A signed 64-bit integer as double or single, rounded to nearest, in every lane. */
  fromInt64(type: 'f64' | 'f32', a: Value): V128;
  /** Lane 0, truncated to a signed 64-bit integer; saturated, NaN gives 0. */
  toInt64(type: 'f64' | 'f32', a: V128): Value;

  /** A register's bits 127:0 (`half` 0) or 255:128 (1). */
  getVector(field: VectorField, half: 0 | 1): V128;
  setVector(field: VectorField, half: 0 | 1, value: V128): void;
  /** A register by its number. */
  getRegister(number: number, half: 0 | 1): V128;
  setRegister(number: number, half: 0 | 1, value: V128): void;
  /** #GP(0) if the linear address of the memory operand is not a multiple of `align`. */
  checkAligned(align: 16 | 32): void;
  /** 16 bytes at the effective address plus `at`; `span` bytes from there to the end of the operand are checked at once (default: 16). */
  loadVector(at: number, span?: number): V128;
  storeVector(at: number, value: V128): void;
  /** Faults as a store of 16 bytes there would. */
  probeVector(at: number, span?: number): void;

  /** MXCSR. */
  mxcsr(): Value;
  /** Its low 16 bits. */
  setMxcsr(value: Value): void;
  /** JavaScript executes the instruction after all; nothing may have been committed. */
  handBackWhen(c: Cond): void;
}

/** The static form in which a vector instruction is instantiated. */
export interface VectorForm {
  readonly operands: readonly string[];
  /** modrm.rm is memory. */
  readonly memory: boolean;
  /** VEX prefix; VEX.L. */
  readonly vex: boolean;
  readonly wide: boolean;
  /** The immediate byte, if the instruction has one. */
  readonly imm: number;
  readonly opSize: 1 | 2 | 4 | 8;
}

export type VectorSemantics = (b: VectorBuilder, form: VectorForm) => void;
