/**
 * The recorder of vector and x87 instructions: V128 values as nodes, one for each WebAssembly vector instruction.
 * Manual: none; the contract is builder/vector.ts.
 */
import type { Cond, Size, Value } from '../../builder/builder.ts';
import type { V128, VectorBuilder, VectorField } from '../../builder/vector.ts';
import type { X87Builder, X87Known } from '../../builder/x87.ts';
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import type { SimdBinary, SimdExtract, SimdReplace, SimdShift, SimdTest, SimdUnary } from '../wasm/simd.ts';
import type { Node, NodeOp } from './ir.ts';
import { Recorder } from './recorder.ts';
import { c, n, v } from './recorder-values.ts';
import { P, R } from './records.ts';

const FIELD = { reg: R.reg, rm: R.rm, vvvv: R.vvvv } as const;
const asVector = (node: Node): V128 => node as unknown as V128;
const asNode = (value: V128): Node => value as unknown as Node;
const SSE_GATE = 0;
const AVX_GATE = 1;
const X87_GATE = 2;

export class VectorRecorder extends Recorder implements VectorBuilder, X87Builder {
  #vectorVersion = 0;

  #vector(op: NodeOp, args: readonly Node[], k = 0n): V128 {
    return asVector(this.shared(op, 'v128', args, k, 8, 128));
  }
  #i32(op: NodeOp, args: readonly Node[], bits: number, k = 0n): Node {
    return this.shared(op, 'i32', args, k, 4, bits);
  }
  #wrap(value: Value): Node {
    return this.#i32('i32WrapI64', [n(value)], 32);
  }

  v1(op: SimdUnary, a: V128): V128 {
    return this.#vector(op, [asNode(a)]);
  }
  v2(op: SimdBinary, a: V128, b: V128): V128 {
    return this.#vector(op, [asNode(a), asNode(b)]);
  }
  bitselect(a: V128, b: V128, mask: V128): V128 {
    return this.#vector('bitselect', [asNode(a), asNode(b), asNode(mask)]);
  }
  vshift(op: SimdShift, a: V128, count: Value): V128 {
    return this.#vector(op, [asNode(a), this.#wrap(count)]);
  }
  shuffle(a: V128, b: V128, lanes: readonly number[]): V128 {
    const k = lanes.reduceRight((bits, lane) => (bits << 8n) | BigInt(lane), 0n);
    return this.#vector('shuffle', [asNode(a), asNode(b)], k);
  }
  vconst(bits: bigint): V128 {
    return this.#vector('vconst', [], bits);
  }
  extract(op: SimdExtract, a: V128, lane: number): Value {
    if (op === 'i64x2ExtractLane') return v(this.shared(op, 'i64', [asNode(a)], BigInt(lane), 8, 64));
    const bits = op === 'i8x16ExtractLaneU' ? 8 : op === 'i16x8ExtractLaneU' ? 16 : 32;
    const extracted = this.#i32(op, [asNode(a)], bits, BigInt(lane));
    return v(this.shared('i64ExtendI32U', 'i64', [extracted], 0n, 8, bits));
  }
  replace(op: SimdReplace, a: V128, lane: number, value: Value): V128 {
    const scalar = op === 'i64x2ReplaceLane' ? n(value) : this.#wrap(value);
    return this.#vector(op, [asNode(a), scalar], BigInt(lane));
  }
  bitmask(op: SimdTest, a: V128): Value {
    return v(this.shared('i64ExtendI32U', 'i64', [this.#i32(op, [asNode(a)], 16)], 0n, 8, 16));
  }
  test(op: SimdTest, a: V128): Cond {
    return c(this.#i32(op, [asNode(a)], 1));
  }
  fromInt64(type: 'f64' | 'f32', a: Value): V128 {
    return this.#vector(type === 'f64' ? 'f64x2FromI64' : 'f32x4FromI64', [n(a)]);
  }
  toInt64(type: 'f64' | 'f32', a: V128): Value {
    return v(this.shared(type === 'f64' ? 'i64FromF64x2' : 'i64FromF32x4', 'i64', [asNode(a)], 0n, 8, 64));
  }

  #register(field: VectorField, half: 0 | 1): { address: Node; k: bigint } {
    const address = this.record('regAddress', 'i32', BigInt(FIELD[field]));
    return { address, k: BigInt(Layout.state + half * 16) };
  }
  getVector(field: VectorField, half: 0 | 1): V128 {
    const { address, k } = this.#register(field, half);
    return asVector(this.shared('vector', 'v128', [address], k, 8, 128, `v${this.#vectorVersion}`));
  }
  setVector(field: VectorField, half: 0 | 1, value: V128): void {
    const { address, k } = this.#register(field, half);
    this.#vectorVersion++;
    this.effect({ kind: 'setVector', address, k, value: asNode(value) });
  }

  getRegister(number: number, half: 0 | 1): V128 {
    const k = BigInt(Layout.state + S.ymm + number * 32 + half * 16);
    return asVector(this.shared('vector', 'v128', [], k, 8, 128, `v${this.#vectorVersion}`));
  }
  setRegister(number: number, half: 0 | 1, value: V128): void {
    this.#vectorVersion++;
    const k = BigInt(Layout.state + S.ymm + number * 32 + half * 16);
    this.effect({ kind: 'setVector', address: null, k, value: asNode(value) });
  }

  /** Linear address of the memory operand plus `at`; no segment is checked (shape.ts). */
  #operand(at: number, forWrite: boolean): Node {
    const linear = this.linear(n(this.ea()), { seg: 'operand', size: 8, forWrite });
    return at === 0 ? linear : n(this.add(v(linear), this.const(at)));
  }
  checkAligned(align: 16 | 32): void {
    this.facts.mayLeave = true;
    this.checkAlignment(this.#operand(0, false), align);
  }
  loadVector(at: number, span = 16): V128 {
    this.facts.mayLeave = true;
    const access = { size: 16, seg: 'operand', forWrite: false, span } as const;
    return asVector(this.push('load128', 'v128', [this.#operand(at, false)], 0n, 8, 128, { access }));
  }
  storeVector(at: number, value: V128): void {
    this.facts.mayLeave = true;
    const access = { size: 16, seg: 'operand', forWrite: true } as const;
    this.effect({ kind: 'store128', linear: this.#operand(at, true), value: asNode(value), access });
  }
  probeVector(at: number, span = 16): void {
    this.facts.mayLeave = true;
    const access = { size: 16, seg: 'operand', forWrite: true, span } as const;
    this.effect({ kind: 'probe', linear: this.#operand(at, true), access });
  }

  x87Known(): X87Known | null {
    return null;
  }
  constantOf(a: Value): number | null {
    return n(a).op === 'const' ? Number(n(a).k) : null;
  }
  stateAt(distance: Value, offset: number, size: Size): Value {
    const k = BigInt(Layout.state + offset);
    return v(this.shared('reg', 'i64', [this.#wrap(distance)], k, size, size * 8, `r${this.regVersion}`));
  }
  setStateAt(distance: Value, offset: number, size: 2 | 8, value: Value): void {
    const address = this.#wrap(distance);
    this.regVersion++;
    this.effect({ kind: 'setReg', address, k: BigInt(Layout.state + offset), size, value: n(value) });
  }
  isX87Gated(): Cond {
    return this.#gate(X87_GATE);
  }

  mxcsr(): Value {
    return this.state(S.mxcsr, 4);
  }
  setMxcsr(value: Value): void {
    this.setState(S.mxcsr, 2, value);
  }
  /** SSE (or AVX) instructions do not run as they are. */
  isGated(vex: boolean): Cond {
    return this.#gate(vex ? AVX_GATE : SSE_GATE);
  }
  #gate(bit: number): Cond {
    return this.bit(v(this.shared('reg', 'i64', [], BigInt(P.vectors), 4, 32)), bit);
  }
}
