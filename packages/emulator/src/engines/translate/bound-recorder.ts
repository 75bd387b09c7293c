/**
 * The recorder of translated code: it knows the record, so that registers, immediates and displacements are constants, and it carries
 * flags from one instruction to the next as values.
 * Manual: none; the contract is builder/builder.ts.
 */
import type { Block, Cond, FlagName, FlagUpdate, Size, Value } from '../../builder/builder.ts';
import type { X87Known } from '../../builder/x87.ts';
import { Layout } from '../../memory/layout.ts';
import { RCX, RDI, RSI, S } from '../../state-layout.ts';
import type { Lazy } from '../interpret/flags.ts';
import * as lazy from '../interpret/flags.ts';
import type { Form } from '../interpret/form.ts';
import type { EffectBody, MemoryAccess, Node, NodeOp, NodeType, Region, Variable } from '../interpret/ir.ts';
import { c, type Known, n, v } from '../interpret/recorder-values.ts';
import { R } from '../interpret/records.ts';
import { VectorRecorder } from '../interpret/vector-recorder.ts';
import { CARRY } from './liveness.ts';
import { addressOf, gprAt } from './values.ts';
import { wordAt } from './words.ts';

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
  #carryVersion = 0;
  /** The caller says what CF is. */
  #carryFollows = false;

  constructor(view: DataView, form: Form) {
    super(form);
    this.#view = view;
  }

  /** What is recorded next is the instruction of this record. `leaves`: the region may be left in front of it. */
  bind(record: number, page: number, form: Form, leaves: boolean): void {
    this.advance(form, leaves);
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

  // ---- registers

  readonly #written = new Map<number, number>();
  /** Here the register is known: writes of others don't count. */
  protected override registerVersion(args: readonly Node[], k: bigint): string {
    const gpr = gprAt(addressOf(args[0] ?? null, k));
    return gpr === null ? super.registerVersion(args, k) : `g${this.#written.get(gpr.number) ?? 0}`;
  }
  protected override registerWritten(args: readonly Node[], k: bigint): void {
    const gpr = gprAt(addressOf(args[0] ?? null, k));
    if (gpr === null) super.registerWritten(args, k);
    else this.#written.set(gpr.number, (this.#written.get(gpr.number) ?? 0) + 1);
  }

  // ---- repeated instructions

  /** All of them; if something is in the way the region is left there, and the record goes on. */
  override repeatBlock(block: Block): boolean {
    const { size, addrSize, count, fill } = block;
    const seg = this.form.special >= 0 ? this.form.special : this.#view.getUint8(this.#record + R.seg);
    const how = this.blockHow(block) | (seg << 8);
    const done = this.push('block', 'i64', [n(block.from), n(block.to), n(count)], BigInt(how), 8, 32);
    this.effect({ kind: 'spend', ticks: done });
    const moved = this.mul(v(done), this.const(size));
    for (const register of fill ? [RDI] : [RSI, RDI]) {
      this.setReg({ fixed: register }, addrSize, this.add(this.getReg({ fixed: register }, addrSize), moved));
    }
    const left = this.sub(count, v(done));
    this.setReg({ fixed: RCX }, addrSize, left);
    this.handBackWhen(this.notC(this.isZero(left)));
    // The last one is the instruction's own tick.
    this.effect({ kind: 'spend', ticks: this.n64(-1n) });
    return true;
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

  // ---- x87

  readonly #x87: X87Known = {
    top: 0,
    first: null,
    checked: false,
    used: new Set(),
    empty: new Set(),
    plain: new Set(),
    mant: new Map(),
    signExponent: new Map(),
  };
  /** What this block has left in a word of the state block. */
  readonly #words = new Map<number, Value>();
  #fieldVersion = 0;

  override x87Known(): X87Known {
    return this.#x87;
  }
  override state(offset: number, size: Size): Value {
    const word = wordAt(offset);
    if (word === undefined) return super.state(offset, size);
    let value = this.#words.get(offset);
    if (value === undefined) {
      const { variable } = word;
      value = v(this.push('var', 'i64', [], BigInt(variable.id), 8, size * 8, { variable }));
      this.#words.set(offset, value);
    }
    return value;
  }
  override setState(offset: number, size: Size, value: Value): void {
    const word = wordAt(offset);
    if (word === undefined) {
      super.setState(offset, size, value);
      return;
    }
    this.effect({ kind: 'setVar', variable: word.variable, value: n(value) });
    this.#words.set(offset, value);
  }
  override stateAt(distance: Value, offset: number, size: Size): Value {
    const k = BigInt(Layout.state + offset);
    return v(this.shared('field', 'i64', [this.#distance(distance)], k, size, size * 8, `x${this.#fieldVersion}`));
  }
  override setStateAt(distance: Value, offset: number, size: 2 | 8, value: Value): void {
    this.#fieldVersion++;
    const k = BigInt(Layout.state + offset);
    this.effect({ kind: 'setField', address: this.#distance(distance), k, size, value: n(value) });
  }
  #distance(distance: Value): Node {
    return this.shared('i32WrapI64', 'i32', [n(distance)], 0n, 4, 32);
  }

  // ---- flags

  protected override lazyFlags(): Lazy {
    const read = super.lazyFlags();
    return { result: this.#flags.result ?? read.result, aux: this.#flags.aux ?? read.aux };
  }
  protected override setLazyFlags(result: Node | null, aux: Node | null, known?: Omit<Known, 'version'>): void {
    const top = this.region === this.root;
    const both = top ? { result: result ?? this.#flags.result, aux: aux ?? this.#flags.aux } : { result, aux };
    super.setLazyFlags(both.result, both.aux, known);
    this.#flags = top ? both : UNKNOWN;
    if (this.#carryFollows || aux === null) return;
    this.#setCarry(() => this.ltS(v(aux), this.const(0)));
  }
  /** Runs what sets flags, then says what CF is. */
  #withCarry(set: () => void, make: () => Cond): void {
    const outer = this.#carryFollows;
    this.#carryFollows = true;
    set();
    this.#carryFollows = outer;
    this.#setCarry(make);
  }

  #setCarry(make: () => Cond): void {
    this.#carry = { version: this.flagVersion, region: this.region, make };
    this.effect({ kind: 'setVar', variable: CARRY, value: n(this.fromCond(make())) });
    this.#carryVersion++;
  }
  /** CF as the last instruction that changed it left it behind. */
  #readCarry(): Node {
    const key = `carry ${this.#carryVersion}`;
    let node = this.region.shared.get(key);
    if (node === undefined) {
      node = this.push('var', 'i64', [], BigInt(CARRY.id), 8, 1, { variable: CARRY });
      this.region.shared.set(key, node);
    }
    return node;
  }
  #knownCarry(): Cond | null {
    const carry = this.#carry;
    return carry !== null && carry.version === this.flagVersion && carry.region.contains(this.region)
      ? carry.make()
      : null;
  }
  override flag(name: FlagName): Cond {
    if (name !== 'cf') return super.flag(name);
    // Either is what stands in the carry's own place.
    return this.#knownCarry() ?? this.bit(v(this.#readCarry()), 0);
  }
  override setFlags(update: FlagUpdate): void {
    const { cf } = update;
    if (cf !== undefined)
      this.#withCarry(
        () => super.setFlags(update),
        () => cf,
      );
    else this.#keepingCarry(() => super.setFlags(update));
  }
  #keepingCarry(set: () => void): void {
    const outer = this.#carryFollows;
    const carry = this.#knownCarry();
    this.#carryFollows = true;
    set();
    this.#carryFollows = outer;
    if (carry !== null) this.#carry = { version: this.flagVersion, region: this.region, make: () => carry };
  }
  override flagsAdd(a: Value, b: Value, result: Value, size: Size): void {
    this.#withCarry(
      () => super.flagsAdd(a, b, result, size),
      () => this.ltU(this.zext(result, size), this.zext(a, size)),
    );
  }
  override flagsSub(a: Value, b: Value, result: Value, size: Size): void {
    this.#withCarry(
      () => super.flagsSub(a, b, result, size),
      () => this.ltU(this.zext(a, size), this.zext(b, size)),
    );
  }
  override flagsAdc(a: Value, b: Value, result: Value, size: Size): void {
    if (size === 8) super.flagsAdc(a, b, result, size);
    else
      this.#withCarry(
        () => super.flagsAdc(a, b, result, size),
        () => this.bit(result, size * 8),
      );
  }
  override flagsSbb(a: Value, b: Value, result: Value, size: Size): void {
    if (size === 8) super.flagsSbb(a, b, result, size);
    else
      this.#withCarry(
        () => super.flagsSbb(a, b, result, size),
        () => this.bit(result, size * 8),
      );
  }
  override flagsLogic(result: Value, size: Size): void {
    this.#withCarry(
      () => super.flagsLogic(result, size),
      () => this.false(),
    );
  }
  override flagsInc(result: Value, size: Size): void {
    this.#step(result, size, true);
  }
  override flagsDec(result: Value, size: Size): void {
    this.#step(result, size, false);
  }
  #step(value: Value, size: Size, up: boolean): void {
    const carry = this.flag('cf');
    const signed = this.sextNode(n(value), size);
    const old = n(this.shl(this.fromCond(carry), this.const(63)));
    const aux = lazy.auxStep(this.arithmetic, old, n(value), size, up);
    this.#keepingCarry(() =>
      this.setLazyFlags(signed, aux, { kind: 'other', a: signed, b: signed, result: signed, size }),
    );
  }
}

export type { Cond, EffectBody, Value };
export { c, n, v };
