/**
 * The recorder of translated code: it knows the record, so that registers, immediates and displacements are constants, and it carries
 * flags from one instruction to the next as values.
 * Manual: none; the contract is builder/builder.ts.
 */
import type { Cond, FlagName, FlagUpdate, Size, Value } from '../../builder/builder.ts';
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import type { Lazy } from '../interpret/flags.ts';
import * as lazy from '../interpret/flags.ts';
import type { Form } from '../interpret/form.ts';
import type { EffectBody, MemoryAccess, Node, NodeOp, NodeType, Region, Variable } from '../interpret/ir.ts';
import { c, type Known, n, v } from '../interpret/recorder-values.ts';
import { R } from '../interpret/records.ts';
import { VectorRecorder } from '../interpret/vector-recorder.ts';

/** The flags as values, as far as they are known in the block. */
interface FlagValues {
  result: Node | null;
  aux: Node | null;
}
const UNKNOWN: FlagValues = { result: null, aux: null };

/** How to compute CF while the flags have a version. */
interface Carry {
  version: number;
  region: Region;
  make: () => Cond;
}

export class BoundRecorder extends VectorRecorder {
  readonly #view: DataView;
  #record = 0;
  /** Distance of the instruction's page from the region's first page. */
  #page = 0;
  #flags = UNKNOWN;
  #carry: Carry | null = null;

  constructor(view: DataView, form: Form) {
    super(form);
    this.#view = view;
  }

  /** What is recorded next is the instruction of this record. */
  bind(record: number, page: number, form: Form): void {
    this.advance(form);
    this.#record = record;
    this.#page = page;
    Object.assign(this, { codeSize: form.codeSize, stackSize: form.stackSize });
  }

  #half(at: number): bigint {
    return BigInt(this.#view.getUint16(this.#record + at, true));
  }
  #i32(value: bigint): Node {
    return this.shared('const', 'i32', [], value, 4, 32);
  }
  protected override record(op: NodeOp, _type: NodeType = 'i64', k = 0n): Node {
    const view = this.#view;
    const at = this.#record;
    switch (op) {
      case 'imm':
        return this.n64(view.getBigInt64(at + R.imm, true));
      case 'imm2':
        return this.n64(this.#half(R.vvvv));
      case 'disp':
        return this.n64(BigInt(view.getInt32(at + R.disp, true)));
      case 'scale':
        return this.n64(BigInt(view.getUint8(at + R.scale)));
      case 'segment':
        return this.#i32(BigInt(view.getUint8(at + R.seg)));
      case 'regAddress':
        return this.#i32(this.#half(Number(k)));
      default:
        return this.shared(op, 'i64', [], BigInt(this.#page) + this.#half(op === 'rip' ? R.offset : R.next), 8, 64);
    }
  }

  #access(access: MemoryAccess): MemoryAccess {
    return access.seg === 'operand' ? { ...access, seg: this.#view.getUint8(this.#record + R.seg) } : access;
  }
  protected override push(
    op: NodeOp,
    type: NodeType,
    args: readonly Node[],
    k: bigint,
    size: Size,
    bits: number,
    extra?: { variable?: Variable; access?: MemoryAccess },
  ): Node {
    const bound = extra?.access === undefined ? extra : { ...extra, access: this.#access(extra.access) };
    return super.push(op, type, args, k, size, bits, bound);
  }

  // ---- vectors

  readonly #handedBack = new Set<Node>();
  /** Nothing in a region changes MXCSR: one read serves a block. */
  override mxcsr(): Value {
    return v(this.shared('reg', 'i64', [], BigInt(Layout.state + S.mxcsr), 4, 32));
  }
  /** What was asked before in this block has the same answer. */
  override handBackWhen(condition: Cond): void {
    const node = n(condition);
    if (this.region === this.root) {
      if (this.#handedBack.has(node)) return;
      this.#handedBack.add(node);
    }
    super.handBackWhen(condition);
  }

  // ---- flags

  protected override lazyFlags(): Lazy {
    const read = super.lazyFlags();
    return { result: this.#flags.result ?? read.result, aux: this.#flags.aux ?? read.aux };
  }
  protected override setLazyFlags(result: Node | null, aux: Node | null, known?: Omit<Known, 'version'>): void {
    if (this.region !== this.root) {
      super.setLazyFlags(result, aux, known);
      this.#flags = UNKNOWN;
      return;
    }
    const both = { result: result ?? this.#flags.result, aux: aux ?? this.#flags.aux };
    super.setLazyFlags(both.result, both.aux, known);
    this.#flags = both;
  }

  #setCarry(make: () => Cond): void {
    this.#carry = { version: this.flagVersion, region: this.region, make };
  }
  #knownCarry(): Cond | null {
    const carry = this.#carry;
    return carry !== null && carry.version === this.flagVersion && carry.region.contains(this.region)
      ? carry.make()
      : null;
  }
  override flag(name: FlagName): Cond {
    return (name === 'cf' ? this.#knownCarry() : null) ?? super.flag(name);
  }
  override setFlags(update: FlagUpdate): void {
    const { cf } = update;
    super.setFlags(update);
    if (cf !== undefined) this.#setCarry(() => cf);
  }
  override flagsAdd(a: Value, b: Value, result: Value, size: Size): void {
    super.flagsAdd(a, b, result, size);
    this.#setCarry(() => this.ltU(this.zext(result, size), this.zext(a, size)));
  }
  override flagsSub(a: Value, b: Value, result: Value, size: Size): void {
    super.flagsSub(a, b, result, size);
    this.#setCarry(() => this.ltU(this.zext(a, size), this.zext(b, size)));
  }
  override flagsAdc(a: Value, b: Value, result: Value, size: Size): void {
    super.flagsAdc(a, b, result, size);
    if (size !== 8) this.#setCarry(() => this.bit(result, size * 8));
  }
  override flagsSbb(a: Value, b: Value, result: Value, size: Size): void {
    super.flagsSbb(a, b, result, size);
    if (size !== 8) this.#setCarry(() => this.bit(result, size * 8));
  }
  override flagsLogic(result: Value, size: Size): void {
    super.flagsLogic(result, size);
    this.#setCarry(() => this.false());
  }
  override flagsInc(result: Value, size: Size): void {
    this.#step(result, size, true);
  }
  override flagsDec(result: Value, size: Size): void {
    this.#step(result, size, false);
  }
  #step(value: Value, size: Size, up: boolean): void {
    const carry = this.#knownCarry();
    const old = carry === null ? this.lazyFlags().aux : n(this.shl(this.fromCond(carry), this.const(63)));
    const signed = this.sextNode(n(value), size);
    const aux = lazy.auxStep(this.arithmetic, old, n(value), size, up);
    this.setLazyFlags(signed, aux, { kind: 'other', a: signed, b: signed, result: signed, size });
    if (carry !== null) this.#setCarry(() => carry);
  }
}

export type { Cond, EffectBody, Value };
export { c, n, v };
