/**
 * The recording Builder's first half: nodes with sharing and constant folding, conditions, structured control.
 * Manual: none; the contract is builder/builder.ts.
 */
import type { Cond, Size, Value, Var } from '../../builder/builder.ts';
import { foldBinary, foldUnary } from './fold.ts';
import type { Form } from './form.ts';
import {
  type EffectBody,
  type Facts,
  type MemoryAccess,
  MUTABLE,
  Node,
  type NodeOp,
  type NodeType,
  type Recording,
  Region,
  type Variable,
} from './ir.ts';

// The Builder's values are our nodes; the brands exist for authors of semantics only.
export const v = (n: Node): Value => n as unknown as Value;
export const c = (n: Node): Cond => n as unknown as Cond;
export const n = (x: Value | Cond): Node => x as unknown as Node;

export const MASK: Readonly<Record<Size, bigint>> = { 1: 0xffn, 2: 0xffffn, 4: 0xffffffffn, 8: (1n << 64n) - 1n };

/** Flags that the recording has just set by a subtraction or a logical operation: conditions on them compare operands. */
export interface Known {
  version: number;
  a: Node;
  b: Node;
  result: Node;
  size: Size;
  kind: 'sub' | 'logic' | 'other';
}

/** Values, conditions and structure. */
export abstract class ValueRecorder {
  readonly codeSize: 2 | 4 | 8;
  readonly stackSize: 2 | 4 | 8;
  protected readonly root = new Region(null, 0);
  protected region = this.root;
  protected form: Form;
  protected regVersion = 0;
  protected flagVersion = 0;
  protected rflagsVersion = 0;
  #advances = 0;
  #variables = 0;
  protected known: Known | null = null;
  protected readonly checked = new Set<Node>();
  protected readonly facts: Facts = {
    readsFlags: false,
    setsAllFlags: false,
    setsFlags: false,
    readsOwnFlags: false,
    usesVendor: false,
    mayHandBack: false,
    mayLeave: false,
  };

  constructor(form: Form) {
    this.form = form;
    this.codeSize = form.codeSize;
    this.stackSize = form.stackSize;
  }
  get vendor(): 'amd' | 'intel' {
    this.facts.usesVendor = true;
    return this.form.vendor;
  }

  recording(): Recording {
    return { body: this.root, facts: this.facts };
  }

  /** What follows is the next record's instruction. */
  advance(form: Form, leaves = false): void {
    this.effect({ kind: 'advance', leaves });
    this.#advances++;
    this.form = form;
  }

  // ---- nodes

  protected push(
    op: NodeOp,
    type: NodeType,
    args: readonly Node[],
    k: bigint,
    size: Size,
    bits: number,
    extra?: { variable?: Variable; access?: MemoryAccess },
  ): Node {
    const node = new Node(op, type, args, k, size, this.region, bits, extra?.variable, extra?.access);
    this.region.items.push(node);
    return node;
  }
  readonly #ids = new Map<Node, number>();
  protected id(node: Node): number {
    let id = this.#ids.get(node);
    if (id === undefined) this.#ids.set(node, (id = this.#ids.size));
    return id;
  }
  /** A node that equal ones share, as far as their region reaches. `version` separates mutable reads. */
  protected shared(
    op: NodeOp,
    type: NodeType,
    args: readonly Node[],
    k: bigint,
    size: Size,
    bits: number,
    version = '',
  ): Node {
    const key = `${op} ${args.map((a) => this.id(a)).join()} ${k} ${size} ${version}`;
    const local = version !== '' || MUTABLE.has(op);
    for (let r: Region | null = this.region; r; r = local ? null : r.parent) {
      const found = r.shared.get(key);
      if (found) return found;
    }
    const node = this.push(op, type, args, k, size, bits);
    this.region.shared.set(key, node);
    return node;
  }
  #wasm(op: NodeOp, args: readonly Node[], bits = 64): Node {
    return this.shared(op, 'i64', args, 0n, 8, bits);
  }
  #cond(op: NodeOp, args: readonly Node[]): Node {
    return this.shared(op, 'i32', args, 0n, 4, 1);
  }
  protected n64(value: bigint): Node {
    const k = BigInt.asIntN(64, value);
    return this.shared('const', 'i64', [], k, 8, k < 0n ? 64 : k.toString(2).length * (k === 0n ? 0 : 1));
  }
  #n32(value: number): Node {
    return this.shared('const', 'i32', [], BigInt(value), 4, 32);
  }
  protected effect(effect: EffectBody): void {
    this.region.items.push({ ...effect, region: this.region });
  }
  #nested(body: () => void, loops: number): Region {
    const outer = this.region;
    const inner = new Region(outer, outer.loops + loops);
    this.region = inner;
    body();
    this.region = outer;
    // Nothing known inside holds outside.
    this.known = null;
    return inner;
  }
  protected record(op: NodeOp, type: NodeType = 'i64', k = 0n, bits = 64): Node {
    return this.shared(op, type, [], k, 8, bits, `record${this.#advances}`);
  }

  // ---- values

  const(value: bigint | number): Value {
    return v(this.n64(BigInt(value)));
  }
  imm(): Value {
    return v(this.record('imm'));
  }
  imm2(): Value {
    return v(this.record('imm2', 'i64', 0n, 16));
  }
  nextRip(): Value {
    return v(this.#truncatedRip(this.record('nextRip')));
  }
  rip(): Value {
    return v(this.#truncatedRip(this.record('rip')));
  }
  #truncatedRip(node: Node): Node {
    return this.codeSize === 8 ? node : this.zextNode(node, this.codeSize);
  }

  protected binary(op: NodeOp, a: Node, b: Node, bits = 64): Node {
    const folded = foldBinary(op, a, b);
    if (folded === undefined) return this.#wasm(op, [a, b], Math.min(bits, 64));
    return typeof folded === 'bigint' ? this.n64(folded) : folded;
  }
  #unary(op: NodeOp, a: Node, bits = 64): Node {
    const folded = foldUnary(op, a);
    return folded === undefined ? this.#wasm(op, [a], bits) : this.n64(folded);
  }
  add(a: Value, b: Value): Value {
    return v(this.binary('i64Add', n(a), n(b), Math.max(n(a).bits, n(b).bits) + 1));
  }
  sub(a: Value, b: Value): Value {
    return v(this.binary('i64Sub', n(a), n(b)));
  }
  mul(a: Value, b: Value): Value {
    return v(this.binary('i64Mul', n(a), n(b), n(a).bits + n(b).bits));
  }
  mulHighU(a: Value, b: Value): Value {
    return v(this.#wasm('mulHighU', [n(a), n(b)]));
  }
  mulHighS(a: Value, b: Value): Value {
    return v(this.#wasm('mulHighS', [n(a), n(b)]));
  }
  divU(a: Value, b: Value): Value {
    return v(this.#wasm('i64DivU', [n(a), n(b)], n(a).bits));
  }
  remU(a: Value, b: Value): Value {
    return v(this.#wasm('i64RemU', [n(a), n(b)], n(b).bits));
  }
  divS(a: Value, b: Value): Value {
    return v(this.#wasm('i64DivS', [n(a), n(b)]));
  }
  remS(a: Value, b: Value): Value {
    return v(this.#wasm('i64RemS', [n(a), n(b)]));
  }
  div128U(hi: Value, lo: Value, d: Value): { quotient: Value; remainder: Value } {
    const quotient = v(this.#wasm('div128', [n(hi), n(lo), n(d)]));
    return { quotient, remainder: this.sub(lo, this.mul(quotient, d)) };
  }
  and(a: Value, b: Value): Value {
    return v(this.andNode(n(a), n(b)));
  }
  protected andNode(a: Node, b: Node): Node {
    if (b.op === 'const' && b.k === 0xffffffffn) return this.zextNode(a, 4);
    // A mask that covers every bit that may be set.
    if (b.op === 'const' && b.k > 0n && b.k === (1n << BigInt(b.bits)) - 1n && a.bits <= b.bits) return a;
    return this.binary('i64And', a, b, Math.min(a.bits, b.bits));
  }
  or(a: Value, b: Value): Value {
    return v(this.binary('i64Or', n(a), n(b), Math.max(n(a).bits, n(b).bits)));
  }
  xor(a: Value, b: Value): Value {
    return v(this.binary('i64Xor', n(a), n(b), Math.max(n(a).bits, n(b).bits)));
  }
  not(a: Value): Value {
    return v(this.binary('i64Xor', n(a), this.n64(-1n)));
  }
  neg(a: Value): Value {
    return v(this.binary('i64Sub', this.n64(0n), n(a)));
  }
  shl(a: Value, count: Value): Value {
    const k = n(count);
    return v(this.binary('i64Shl', n(a), k, k.op === 'const' ? n(a).bits + Number(k.k & 63n) : 64));
  }
  shrU(a: Value, count: Value): Value {
    const k = n(count);
    const bits = k.op === 'const' ? Math.max(0, n(a).bits - Number(k.k & 63n)) : n(a).bits;
    return v(this.binary('i64ShrU', n(a), k, bits));
  }
  shrS(a: Value, count: Value): Value {
    return v(this.binary('i64ShrS', n(a), n(count)));
  }
  rotl(a: Value, count: Value): Value {
    return v(this.binary('i64Rotl', n(a), n(count)));
  }
  rotr(a: Value, count: Value): Value {
    return v(this.binary('i64Rotr', n(a), n(count)));
  }
  clz(a: Value): Value {
    return v(this.#wasm('i64Clz', [n(a)], 7));
  }
  ctz(a: Value): Value {
    return v(this.#wasm('i64Ctz', [n(a)], 7));
  }
  popcnt(a: Value): Value {
    return v(this.#wasm('i64Popcnt', [n(a)], 7));
  }
  zext(a: Value, size: Size): Value {
    return v(this.zextNode(n(a), size));
  }
  protected zextNode(a: Node, size: Size): Node {
    if (a.bits <= size * 8) return a;
    if (a.op === 'const') return this.n64(a.k & MASK[size]);
    if (size === 4) return this.#wasm('zext32', [a], 32);
    return this.binary('i64And', a, this.n64(MASK[size]), size * 8);
  }
  sext(a: Value, size: Size): Value {
    return v(this.sextNode(n(a), size));
  }
  protected sextNode(a: Node, size: Size): Node {
    if (size === 8 || a.bits < size * 8) return a;
    const inner = a.op === 'zext32' && size <= 4 ? a.args[0] : a;
    if (inner.op === 'i64Extend32S' && size === 4) return inner;
    const op = size === 4 ? 'i64Extend32S' : size === 2 ? 'i64Extend16S' : 'i64Extend8S';
    return this.#unary(op, inner);
  }
  bswap(a: Value, size: 4 | 8): Value {
    // Swap bytes in pairs, pairs in words, words.
    const pairs = this.#swapGroups(n(a), 8n, 0x00ff00ff00ff00ffn);
    const words = this.#swapGroups(pairs, 16n, 0x0000ffff0000ffffn);
    const all = this.rotl(v(words), this.const(32));
    return size === 8 ? all : this.shrU(all, this.const(32));
  }
  #swapGroups(a: Node, by: bigint, low: bigint): Node {
    const mask = this.n64(low);
    const shift = this.n64(by);
    const up = this.binary('i64Shl', this.andNode(a, mask), shift);
    const down = this.andNode(this.binary('i64ShrU', a, shift), mask);
    return this.binary('i64Or', up, down);
  }

  // ---- conditions

  #compare(op: NodeOp, a: Node, b: Node): Node {
    const folded = foldBinary(op, a, b);
    return typeof folded === 'bigint' ? this.#n32(Number(folded)) : this.#cond(op, [a, b]);
  }
  eq(a: Value, b: Value): Cond {
    const y = n(b);
    return y.op === 'const' && y.k === 0n ? this.isZero(a) : c(this.#compare('i64Eq', n(a), y));
  }
  ne(a: Value, b: Value): Cond {
    if (this.#neverZero(n(a)) && n(b).op === 'const' && n(b).k === 0n) return this.true();
    return c(this.#compare('i64Ne', n(a), n(b)));
  }
  /** A shift count that the form says is not zero. */
  #neverZero(a: Node): boolean {
    return this.form.countNotZero && a.op === 'i64And' && a.args[0].op === 'imm';
  }
  ltU(a: Value, b: Value): Cond {
    return c(this.#compare('i64LtU', n(a), n(b)));
  }
  ltS(a: Value, b: Value): Cond {
    return c(this.#compare('i64LtS', n(a), n(b)));
  }
  leU(a: Value, b: Value): Cond {
    return c(this.#compare('i64LeU', n(a), n(b)));
  }
  leS(a: Value, b: Value): Cond {
    return c(this.#compare('i64LeS', n(a), n(b)));
  }
  isZero(a: Value): Cond {
    if (n(a).op === 'const') return n(a).k === 0n ? this.true() : this.false();
    return c(this.#cond('i64Eqz', [n(a)]));
  }
  true(): Cond {
    return c(this.#n32(1));
  }
  false(): Cond {
    return c(this.#n32(0));
  }
  protected is(a: Cond, value: bigint): boolean {
    return n(a).op === 'const' && n(a).k === value;
  }
  notC(a: Cond): Cond {
    if (n(a).op === 'const') return n(a).k === 0n ? this.true() : this.false();
    if (n(a).op === 'i32Eqz') return c(n(a).args[0]);
    return c(this.#cond('i32Eqz', [n(a)]));
  }
  andC(a: Cond, b: Cond): Cond {
    if (this.is(a, 0n) || this.is(b, 1n)) return a;
    if (this.is(b, 0n) || this.is(a, 1n)) return b;
    return c(this.#cond('i32And', [n(a), n(b)]));
  }
  orC(a: Cond, b: Cond): Cond {
    if (this.is(a, 1n) || this.is(b, 0n)) return a;
    if (this.is(b, 1n) || this.is(a, 0n)) return b;
    return c(this.#cond('i32Or', [n(a), n(b)]));
  }
  xorC(a: Cond, b: Cond): Cond {
    if (this.is(a, 0n)) return b;
    if (this.is(b, 0n)) return a;
    if (this.is(a, 1n)) return this.notC(b);
    if (this.is(b, 1n)) return this.notC(a);
    return c(this.#cond('i32Xor', [n(a), n(b)]));
  }
  bit(a: Value, bit: number): Cond {
    if (n(a).op === 'const') return (n(a).k >> BigInt(bit)) & 1n ? this.true() : this.false();
    if (bit >= n(a).bits) return this.false();
    if (bit === 63) return c(this.#compare('i64LtS', n(a), this.n64(0n)));
    const shifted = this.#cond('i32WrapI64', [n(bit === 0 ? a : this.shrU(a, this.const(bit)))]);
    return c(n(a).bits === bit + 1 ? shifted : this.#cond('i32And', [shifted, this.#n32(1)]));
  }
  fromCond(a: Cond): Value {
    if (n(a).op === 'const') return v(this.n64(n(a).k));
    return v(this.#wasm('i64ExtendI32U', [n(a)], 1));
  }
  select(a: Cond, yes: Value, no: Value): Value {
    if (n(a).op === 'const') return n(a).k === 0n ? no : yes;
    return v(this.#wasm('select64', [n(a), n(yes), n(no)], Math.max(n(yes).bits, n(no).bits)));
  }
  selectC(a: Cond, yes: Cond, no: Cond): Cond {
    if (n(a).op === 'const') return n(a).k === 0n ? no : yes;
    return c(this.#cond('select32', [n(a), n(yes), n(no)]));
  }

  // ---- control

  variable(initial: Value): Var {
    const variable: Variable = { id: this.#variables++, version: 0 };
    const set = (value: Value): void => {
      variable.version++;
      this.effect({ kind: 'setVar', variable, value: n(value) });
    };
    set(initial);
    const get = (): Value => {
      const key = `var${variable.id}.${variable.version}`;
      const found = this.region.shared.get(key);
      if (found) return v(found);
      const node = this.push('var', 'i64', [], BigInt(variable.id), 8, 64, { variable });
      this.region.shared.set(key, node);
      return v(node);
    };
    return { get, set };
  }
  when(a: Cond, then: () => void, otherwise?: () => void): void {
    if (n(a).op === 'const') {
      if (n(a).k !== 0n) then();
      else otherwise?.();
      return;
    }
    const all = this.facts.setsAllFlags;
    const first = this.#nested(then, 0);
    const afterThen = this.facts.setsAllFlags;
    this.facts.setsAllFlags = all;
    const second = otherwise ? this.#nested(otherwise, 0) : null;
    const afterElse = this.facts.setsAllFlags;
    this.facts.setsAllFlags = all || (afterThen && afterElse);
    this.effect({ kind: 'when', condition: n(a), yes: first, otherwise: second });
  }
  loop(body: () => Cond): void {
    // What the body writes later must not be shared with what it reads at its top.
    const inner = this.#nested(() => {
      const again = body();
      this.effect({ kind: 'loopEnd', condition: n(again) });
    }, 1);
    this.effect({ kind: 'loop', body: inner });
  }
}
