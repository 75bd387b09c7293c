/**
 * The Builder that records: it folds constants, shares equal values and writes down effects in order.
 * Manual: none; the contract is builder/builder.ts.
 */
import type { Access, Builder, Cond, FlagName, FlagUpdate, RegRef, Size, Value, Var } from '../../builder/builder.ts';
import { AssertionError } from '../../exceptions.ts';
import { Layout } from '../../memory/layout.ts';
import { Flag, S, Vector } from '../../state-layout.ts';
import type { FlagArithmetic, FlagUpdateNodes } from './flags.ts';
import * as lazy from './flags.ts';
import { foldBinary, foldUnary } from './fold.ts';
import type { Form } from './form.ts';
import {
  EFFECTFUL,
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
import { R } from './records.ts';

// The Builder's values are our nodes; the brands exist for authors of semantics only.
const v = (n: Node): Value => n as unknown as Value;
const c = (n: Node): Cond => n as unknown as Cond;
const n = (x: Value | Cond): Node => x as unknown as Node;

const FIELD = { reg: R.reg, rm: R.rm, opReg: R.rm, vvvv: R.vvvv } as const;
const MASK: Readonly<Record<Size, bigint>> = { 1: 0xffn, 2: 0xffffn, 4: 0xffffffffn, 8: (1n << 64n) - 1n };

/** Flags that the recording has just set by a subtraction or a logical operation: conditions on them compare operands. */
interface Known {
  version: number;
  a: Node;
  b: Node;
  result: Node;
  size: Size;
  kind: 'sub' | 'logic' | 'other';
}

export class Recorder implements Builder {
  readonly codeSize: 2 | 4 | 8;
  readonly stackSize: 2 | 4 | 8;
  readonly #root = new Region(null, 0);
  #region = this.#root;
  #form: Form;
  #regVersion = 0;
  #flagVersion = 0;
  #rflagsVersion = 0;
  #advances = 0;
  #variables = 0;
  #known: Known | null = null;
  readonly #checked = new Set<Node>();
  readonly #facts: Facts = {
    readsFlags: false,
    setsAllFlags: false,
    setsFlags: false,
    readsOwnFlags: false,
    usesVendor: false,
    mayHandBack: false,
    mayLeave: false,
  };

  constructor(form: Form) {
    this.#form = form;
    this.codeSize = form.codeSize;
    this.stackSize = form.stackSize;
  }
  get vendor(): 'amd' | 'intel' {
    this.#facts.usesVendor = true;
    return this.#form.vendor;
  }

  recording(): Recording {
    return { body: this.#root, facts: this.#facts };
  }

  /** What follows is the next record's instruction. */
  advance(form: Form): void {
    this.#effect({ kind: 'advance' });
    this.#advances++;
    this.#form = form;
  }

  // ---- nodes

  #push(
    op: NodeOp,
    type: NodeType,
    args: readonly Node[],
    k: bigint,
    size: Size,
    bits: number,
    extra?: { variable?: Variable; access?: MemoryAccess },
  ): Node {
    const node = new Node(op, type, args, k, size, this.#region, bits, extra?.variable, extra?.access);
    this.#region.items.push(node);
    return node;
  }
  readonly #ids = new Map<Node, number>();
  #id(node: Node): number {
    let id = this.#ids.get(node);
    if (id === undefined) this.#ids.set(node, (id = this.#ids.size));
    return id;
  }
  /** A node that equal ones share, as far as their region reaches. `version` separates mutable reads. */
  #shared(op: NodeOp, type: NodeType, args: readonly Node[], k: bigint, size: Size, bits: number, version = ''): Node {
    const key = `${op} ${args.map((a) => this.#id(a)).join()} ${k} ${size} ${version}`;
    const local = version !== '' || MUTABLE.has(op);
    for (let r: Region | null = this.#region; r; r = local ? null : r.parent) {
      const found = r.shared.get(key);
      if (found) return found;
    }
    const node = this.#push(op, type, args, k, size, bits);
    this.#region.shared.set(key, node);
    return node;
  }
  #wasm(op: NodeOp, args: readonly Node[], bits = 64): Node {
    return this.#shared(op, 'i64', args, 0n, 8, bits);
  }
  #cond(op: NodeOp, args: readonly Node[]): Node {
    return this.#shared(op, 'i32', args, 0n, 4, 1);
  }
  #n64(value: bigint): Node {
    const k = BigInt.asIntN(64, value);
    return this.#shared('const', 'i64', [], k, 8, k < 0n ? 64 : k.toString(2).length * (k === 0n ? 0 : 1));
  }
  #n32(value: number): Node {
    return this.#shared('const', 'i32', [], BigInt(value), 4, 32);
  }
  #effect(effect: EffectBody): void {
    this.#region.items.push({ ...effect, region: this.#region });
  }
  #nested(body: () => void, loops: number): Region {
    const outer = this.#region;
    const inner = new Region(outer, outer.loops + loops);
    this.#region = inner;
    body();
    this.#region = outer;
    // Nothing known inside holds outside.
    this.#known = null;
    return inner;
  }
  #record(op: NodeOp, type: NodeType = 'i64', k = 0n, bits = 64): Node {
    return this.#shared(op, type, [], k, 8, bits, `record${this.#advances}`);
  }

  // ---- values

  const(value: bigint | number): Value {
    return v(this.#n64(BigInt(value)));
  }
  imm(): Value {
    return v(this.#record('imm'));
  }
  imm2(): Value {
    return v(this.#record('imm2', 'i64', 0n, 16));
  }
  nextRip(): Value {
    return v(this.#truncatedRip(this.#record('nextRip')));
  }
  rip(): Value {
    return v(this.#truncatedRip(this.#record('rip')));
  }
  #truncatedRip(node: Node): Node {
    return this.codeSize === 8 ? node : this.#zext(node, this.codeSize);
  }

  #binary(op: NodeOp, a: Node, b: Node, bits = 64): Node {
    const folded = foldBinary(op, a, b);
    if (folded === undefined) return this.#wasm(op, [a, b], Math.min(bits, 64));
    return typeof folded === 'bigint' ? this.#n64(folded) : folded;
  }
  #unary(op: NodeOp, a: Node, bits = 64): Node {
    const folded = foldUnary(op, a);
    return folded === undefined ? this.#wasm(op, [a], bits) : this.#n64(folded);
  }
  add(a: Value, b: Value): Value {
    return v(this.#binary('i64Add', n(a), n(b), Math.max(n(a).bits, n(b).bits) + 1));
  }
  sub(a: Value, b: Value): Value {
    return v(this.#binary('i64Sub', n(a), n(b)));
  }
  mul(a: Value, b: Value): Value {
    return v(this.#binary('i64Mul', n(a), n(b), n(a).bits + n(b).bits));
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
    return v(this.#and(n(a), n(b)));
  }
  #and(a: Node, b: Node): Node {
    if (b.op === 'const' && b.k === 0xffffffffn) return this.#zext(a, 4);
    // A mask that covers every bit that may be set.
    if (b.op === 'const' && b.k > 0n && b.k === (1n << BigInt(b.bits)) - 1n && a.bits <= b.bits) return a;
    return this.#binary('i64And', a, b, Math.min(a.bits, b.bits));
  }
  or(a: Value, b: Value): Value {
    return v(this.#binary('i64Or', n(a), n(b), Math.max(n(a).bits, n(b).bits)));
  }
  xor(a: Value, b: Value): Value {
    return v(this.#binary('i64Xor', n(a), n(b), Math.max(n(a).bits, n(b).bits)));
  }
  not(a: Value): Value {
    return v(this.#binary('i64Xor', n(a), this.#n64(-1n)));
  }
  neg(a: Value): Value {
    return v(this.#binary('i64Sub', this.#n64(0n), n(a)));
  }
  shl(a: Value, count: Value): Value {
    const k = n(count);
    return v(this.#binary('i64Shl', n(a), k, k.op === 'const' ? n(a).bits + Number(k.k & 63n) : 64));
  }
  shrU(a: Value, count: Value): Value {
    const k = n(count);
    const bits = k.op === 'const' ? Math.max(0, n(a).bits - Number(k.k & 63n)) : n(a).bits;
    return v(this.#binary('i64ShrU', n(a), k, bits));
  }
  shrS(a: Value, count: Value): Value {
    return v(this.#binary('i64ShrS', n(a), n(count)));
  }
  rotl(a: Value, count: Value): Value {
    return v(this.#binary('i64Rotl', n(a), n(count)));
  }
  rotr(a: Value, count: Value): Value {
    return v(this.#binary('i64Rotr', n(a), n(count)));
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
    return v(this.#zext(n(a), size));
  }
  #zext(a: Node, size: Size): Node {
    if (a.bits <= size * 8) return a;
    if (a.op === 'const') return this.#n64(a.k & MASK[size]);
    if (size === 4) return this.#wasm('zext32', [a], 32);
    return this.#binary('i64And', a, this.#n64(MASK[size]), size * 8);
  }
  sext(a: Value, size: Size): Value {
    return v(this.#sext(n(a), size));
  }
  #sext(a: Node, size: Size): Node {
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
    const mask = this.#n64(low);
    const shift = this.#n64(by);
    const up = this.#binary('i64Shl', this.#and(a, mask), shift);
    const down = this.#and(this.#binary('i64ShrU', a, shift), mask);
    return this.#binary('i64Or', up, down);
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
    return this.#form.countNotZero && a.op === 'i64And' && a.args[0].op === 'imm';
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
  #is(a: Cond, value: bigint): boolean {
    return n(a).op === 'const' && n(a).k === value;
  }
  notC(a: Cond): Cond {
    if (n(a).op === 'const') return n(a).k === 0n ? this.true() : this.false();
    if (n(a).op === 'i32Eqz') return c(n(a).args[0]);
    return c(this.#cond('i32Eqz', [n(a)]));
  }
  andC(a: Cond, b: Cond): Cond {
    if (this.#is(a, 0n) || this.#is(b, 1n)) return a;
    if (this.#is(b, 0n) || this.#is(a, 1n)) return b;
    return c(this.#cond('i32And', [n(a), n(b)]));
  }
  orC(a: Cond, b: Cond): Cond {
    if (this.#is(a, 1n) || this.#is(b, 0n)) return a;
    if (this.#is(b, 1n) || this.#is(a, 0n)) return b;
    return c(this.#cond('i32Or', [n(a), n(b)]));
  }
  xorC(a: Cond, b: Cond): Cond {
    if (this.#is(a, 0n)) return b;
    if (this.#is(b, 0n)) return a;
    if (this.#is(a, 1n)) return this.notC(b);
    if (this.#is(b, 1n)) return this.notC(a);
    return c(this.#cond('i32Xor', [n(a), n(b)]));
  }
  bit(a: Value, bit: number): Cond {
    if (n(a).op === 'const') return (n(a).k >> BigInt(bit)) & 1n ? this.true() : this.false();
    if (bit >= n(a).bits) return this.false();
    if (bit === 63) return c(this.#compare('i64LtS', n(a), this.#n64(0n)));
    const shifted = this.#cond('i32WrapI64', [n(bit === 0 ? a : this.shrU(a, this.const(bit)))]);
    return c(n(a).bits === bit + 1 ? shifted : this.#cond('i32And', [shifted, this.#n32(1)]));
  }
  fromCond(a: Cond): Value {
    if (n(a).op === 'const') return v(this.#n64(n(a).k));
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
      this.#effect({ kind: 'setVar', variable, value: n(value) });
    };
    set(initial);
    const get = (): Value => {
      const key = `var${variable.id}.${variable.version}`;
      const found = this.#region.shared.get(key);
      if (found) return v(found);
      const node = this.#push('var', 'i64', [], BigInt(variable.id), 8, 64, { variable });
      this.#region.shared.set(key, node);
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
    const all = this.#facts.setsAllFlags;
    const first = this.#nested(then, 0);
    const afterThen = this.#facts.setsAllFlags;
    this.#facts.setsAllFlags = all;
    const second = otherwise ? this.#nested(otherwise, 0) : null;
    const afterElse = this.#facts.setsAllFlags;
    this.#facts.setsAllFlags = all || (afterThen && afterElse);
    this.#effect({ kind: 'when', condition: n(a), yes: first, otherwise: second });
  }
  loop(body: () => Cond): void {
    // What the body writes later must not be shared with what it reads at its top.
    const inner = this.#nested(() => {
      const again = body();
      this.#effect({ kind: 'loopEnd', condition: n(again) });
    }, 1);
    this.#effect({ kind: 'loop', body: inner });
  }

  // ---- registers

  getReg(ref: RegRef, size: Size): Value {
    const { args, k } = this.#register(ref);
    return v(this.#shared('reg', 'i64', args, k, size, size * 8, `r${this.#regVersion}`));
  }
  #register(ref: RegRef): { args: Node[]; k: bigint } {
    if ('fixed' in ref) return { args: [], k: BigInt(Layout.state + S.gpr + ref.fixed * 8) };
    return { args: [this.#record('regAddress', 'i32', BigInt(FIELD[ref.field]), 32)], k: BigInt(Layout.state) };
  }
  setReg(ref: RegRef, size: Size, value: Value): void {
    const { args, k } = this.#register(ref);
    this.#regVersion++;
    const stored = size === 4 ? this.#zext(n(value), 4) : this.#narrow(n(value), size);
    this.#effect({ kind: 'setReg', address: args[0] ?? null, k, size, value: stored });
  }
  /** A store of one or two bytes needs no mask. */
  #narrow(value: Node, size: Size): Node {
    const masked = value.op === 'i64And' && size < 4 && value.args[1].op === 'const' && value.args[1].k === MASK[size];
    return masked ? value.args[0] : value;
  }

  // ---- memory

  ea(): Value {
    const form = this.#form;
    const base = this.#record('regAddress', 'i32', BigInt(R.base), 32);
    const disp = this.#record('disp');
    let sum: Node;
    if (form.memory === 'rip') sum = this.#binary('i64Add', this.#record('nextRip'), disp);
    else {
      sum = this.#binary('i64Add', this.#fullReg(base), disp);
      if (form.memory === 'index') {
        const index = this.#fullReg(this.#record('regAddress', 'i32', BigInt(R.index), 32));
        sum = this.#binary('i64Add', sum, this.#binary('i64Shl', index, this.#record('scale', 'i64', 0n, 2)));
      }
    }
    return v(this.#zext(sum, form.addrSize));
  }
  #fullReg(address: Node): Node {
    return this.#shared('reg', 'i64', [address], BigInt(Layout.state), 8, 64, `r${this.#regVersion}`);
  }
  /** A linear address: a plain sum where nothing is checked, else a node that may fault. */
  #linear(offset: Node, access: Access): Node {
    const form = this.#form;
    const seg = access.seg === 'operand' && form.special >= 0 ? form.special : access.seg;
    const special = seg === 4 || seg === 5;
    if (form.segments === 'long') {
      if (!special) return offset;
      const base = this.#shared('segmentBase', 'i64', [], BigInt(seg as number), 8, 64);
      return this.#binary('i64Add', base, offset);
    }
    if (form.segments === 'flat' && !special && seg !== 1) return this.#zext(offset, 4);
    this.#facts.mayLeave = true;
    const forWrite = access.forWrite === true;
    const key = `linear ${this.#id(offset)} ${seg} ${access.size} ${forWrite}`;
    for (let r: Region | null = this.#region; r; r = r.parent) {
      const found = r.shared.get(key);
      if (found) return found;
    }
    const node = this.#push('linear', 'i64', [offset], 0n, access.size, 32, {
      access: { size: access.size, seg, forWrite },
    });
    this.#region.shared.set(key, node);
    return node;
  }
  #access(access: Access, forWrite: boolean): MemoryAccess {
    return { size: access.size, seg: access.seg, forWrite };
  }
  #align(linear: Node, access: Access): void {
    if (access.align === undefined) return;
    const low = this.#and(linear, this.#n64(BigInt(access.align - 1)));
    this.raiseWhen(this.ne(v(low), this.const(0)), Vector.GP, 0);
  }
  readonly #loaded = new Map<string, Node>();
  load(offset: Value, access: Access): Value {
    const linear = this.#linear(n(offset), access);
    this.#align(linear, access);
    this.#facts.mayLeave = true;
    const node = this.#push('load', 'i64', [linear], 0n, access.size, access.size * 8, {
      access: this.#access(access, access.forWrite === true),
    });
    if (access.forWrite) this.#loaded.set(`${this.#id(linear)} ${access.size}`, node);
    return v(node);
  }
  store(offset: Value, value: Value, access: Access): void {
    const linear = this.#linear(n(offset), { ...access, forWrite: true });
    this.#facts.mayLeave = true;
    const loaded = this.#loaded.get(`${this.#id(linear)} ${access.size}`);
    const reuse = loaded?.region.contains(this.#region) ? loaded : null;
    this.#effect({ kind: 'store', linear, value: n(value), access: this.#access(access, true), reuse });
  }
  probe(offset: Value, access: Access): void {
    const linear = this.#linear(n(offset), { ...access, forWrite: true });
    this.#facts.mayLeave = true;
    this.#effect({ kind: 'probe', linear, access: this.#access(access, true) });
  }

  // ---- flags

  /** The flag algebra on this recorder's own operations. */
  readonly #m: FlagArithmetic = {
    n64: (k) => this.#n64(k),
    and: (a, b) => this.#and(a, b),
    or: (a, b) => n(this.or(v(a), v(b))),
    xor: (a, b) => n(this.xor(v(a), v(b))),
    not: (a) => n(this.not(v(a))),
    add: (a, b) => n(this.add(v(a), v(b))),
    sub: (a, b) => n(this.sub(v(a), v(b))),
    shl: (a, k) => n(this.shl(v(a), v(k))),
    shrU: (a, k) => n(this.shrU(v(a), v(k))),
    popcnt: (a) => n(this.popcnt(v(a))),
    zext: (a, size) => this.#zext(a, size),
    sext: (a, size) => this.#sext(a, size),
    eq: (a, b) => n(this.eq(v(a), v(b))),
    ltS: (a, b) => n(this.ltS(v(a), v(b))),
    isZero: (a) => n(this.isZero(v(a))),
    bit: (a, k) => n(this.bit(v(a), k)),
    notC: (a) => n(this.notC(c(a))),
    orC: (a, b) => n(this.orC(c(a), c(b))),
    xorC: (a, b) => n(this.xorC(c(a), c(b))),
    fromCond: (a) => n(this.fromCond(c(a))),
  };
  #lazy(): lazy.Lazy {
    this.#facts.readsFlags = true;
    if (this.#facts.setsFlags) this.#facts.readsOwnFlags = true;
    const version = `f${this.#flagVersion}`;
    return {
      result: this.#shared('flagResult', 'i64', [], 0n, 8, 64, version),
      aux: this.#shared('flagAux', 'i64', [], 0n, 8, 64, version),
    };
  }
  #setLazy(result: Node | null, aux: Node | null, known?: Omit<Known, 'version'>): void {
    this.#flagVersion++;
    this.#facts.setsFlags = true;
    if (result !== null && aux !== null) this.#facts.setsAllFlags = true;
    this.#effect({ kind: 'flags', result, aux });
    this.#known = known ? { ...known, version: this.#flagVersion } : null;
  }
  flag(name: FlagName): Cond {
    return c(lazy.readFlag(this.#m, name, this.#lazy()));
  }
  setFlags(update: FlagUpdate): void {
    const f = update as unknown as FlagUpdateNodes;
    if (f.zf === undefined && f.sf === undefined && f.pf === undefined) {
      if (f.cf === undefined && f.of === undefined && f.af === undefined) return;
      this.#setLazy(null, lazy.changeAux(this.#m, this.#lazy().aux, f));
      return;
    }
    const result = this.#resultBehind(f);
    if (result !== undefined && f.cf !== undefined && f.of !== undefined && f.af !== undefined) {
      this.#setLazy(result, lazy.auxOf(this.#m, f.cf, f.of, f.af));
      return;
    }
    const get = (name: FlagName): Node => f[name] ?? n(this.flag(name));
    const all = { cf: get('cf'), pf: get('pf'), af: get('af'), zf: get('zf'), sf: get('sf'), of: get('of') };
    const { result: explicit, aux } = lazy.explicit(this.#m, all);
    this.#setLazy(explicit, aux);
  }
  /** If ZF, SF and PF all follow one value, that value sign-extended. */
  #resultBehind(f: FlagUpdateNodes): Node | undefined {
    if (f.zf === undefined || f.sf === undefined || f.pf === undefined || f.zf.op !== 'i64Eqz') return undefined;
    const value = f.zf.args[0];
    if (lazy.parityOf(this.#m, value) !== f.pf) return undefined;
    const size = ([1, 2, 4, 8] as const).find((s) => value.bits <= s * 8 && this.#m.bit(value, s * 8 - 1) === f.sf);
    return size === undefined ? undefined : this.#sext(value, size);
  }
  flagsAdd(a: Value, b: Value, result: Value, size: Size): void {
    this.#setLazy(this.#sext(n(result), size), lazy.auxAdd(this.#m, n(a), n(b), n(result), size));
  }
  flagsSub(a: Value, b: Value, result: Value, size: Size): void {
    const signed = this.#sext(n(result), size);
    const aux = lazy.auxSub(this.#m, n(a), n(b), n(result), size);
    this.#setLazy(signed, aux, { kind: 'sub', a: n(a), b: n(b), result: signed, size });
  }
  flagsAdc(a: Value, b: Value, result: Value, size: Size): void {
    this.#setLazy(this.#sext(n(result), size), lazy.auxAdc(this.#m, n(a), n(b), n(result), size));
  }
  flagsSbb(a: Value, b: Value, result: Value, size: Size): void {
    this.#setLazy(this.#sext(n(result), size), lazy.auxSbb(this.#m, n(a), n(b), n(result), size));
  }
  flagsInc(result: Value, size: Size): void {
    this.#step(n(result), size, true);
  }
  flagsDec(result: Value, size: Size): void {
    this.#step(n(result), size, false);
  }
  #step(result: Node, size: Size, up: boolean): void {
    const signed = this.#sext(result, size);
    const aux = lazy.auxStep(this.#m, this.#lazy().aux, result, size, up);
    this.#setLazy(signed, aux, { kind: 'other', a: signed, b: signed, result: signed, size });
  }
  flagsLogic(result: Value, size: Size): void {
    const signed = this.#sext(n(result), size);
    this.#setLazy(signed, this.#n64(0n), { kind: 'logic', a: signed, b: signed, result: signed, size });
  }
  condition(cc: number): Cond {
    const base = this.#knownCondition(cc >> 1) ?? this.#lazyCondition(cc >> 1);
    return cc & 1 ? this.notC(base) : base;
  }
  #lazyCondition(half: number): Cond {
    switch (half) {
      case 0:
        return this.flag('of');
      case 1:
        return this.flag('cf');
      case 2:
        return this.flag('zf');
      case 3:
        return this.orC(this.flag('cf'), this.flag('zf'));
      case 4:
        return this.flag('sf');
      case 5:
        return this.flag('pf');
      case 6:
        return c(lazy.lessThan(this.#m, this.#lazy()));
      default:
        return this.orC(this.flag('zf'), c(lazy.lessThan(this.#m, this.#lazy())));
    }
  }
  /** The condition as a comparison of the operands that have just set the flags. */
  #knownCondition(half: number): Cond | undefined {
    const k = this.#known;
    if (k === null || k.version !== this.#flagVersion) return undefined;
    const zero = this.const(0);
    if (half === 2) return this.isZero(v(k.result));
    if (half === 4) return this.ltS(v(k.result), zero);
    if (k.kind === 'sub') {
      const [a, b] = [v(k.a), v(k.b)];
      if (half === 1) return this.ltU(this.zext(a, k.size), this.zext(b, k.size));
      if (half === 3) return this.leU(this.zext(a, k.size), this.zext(b, k.size));
      if (half === 6) return this.ltS(this.sext(a, k.size), this.sext(b, k.size));
      if (half === 7) return this.leS(this.sext(a, k.size), this.sext(b, k.size));
    }
    if (k.kind === 'logic') {
      if (half === 0 || half === 1) return this.false();
      if (half === 3) return this.isZero(v(k.result));
      if (half === 6) return this.ltS(v(k.result), zero);
      if (half === 7) return this.leS(v(k.result), zero);
    }
    return undefined;
  }
  stringStep(size: Size): Value {
    return this.select(this.bit(v(this.#rflags()), 10), this.const(-size), this.const(size));
  }
  #rflags(): Node {
    return this.#shared('rflags', 'i64', [], 0n, 8, 64, `rf${this.#rflagsVersion}`);
  }
  getRflags(): Value {
    let value = this.#and(this.#rflags(), this.#n64(~BigInt(Flag.arith)));
    const put = (name: FlagName, bit: number): void => {
      value = n(this.or(v(value), this.shl(this.fromCond(this.flag(name)), this.const(bit))));
    };
    put('cf', 0);
    put('pf', 2);
    put('af', 4);
    put('zf', 6);
    put('sf', 7);
    put('of', 11);
    return v(value);
  }
  /** Takes the lazy flags from RFLAGS. */
  loadFlags(): void {
    const flags = v(this.#rflags());
    const bit = (at: number): Cond => this.bit(flags, at);
    this.setFlags({ cf: bit(0), pf: bit(2), af: bit(4), zf: bit(6), sf: bit(7), of: bit(11) });
  }
  /** Makes RFLAGS exact. */
  spillFlags(): void {
    this.#effect({ kind: 'setRflags', value: n(this.getRflags()) });
  }
  setRflags(value: Value, mask: number): void {
    const rest = mask & ~Flag.arith;
    if (rest !== 0) {
      const kept = this.and(v(this.#rflags()), this.const(~BigInt(rest)));
      const put = this.and(value, this.const(BigInt(rest)));
      this.#effect({ kind: 'setRflags', value: n(this.or(kept, put)) });
      this.#rflagsVersion++;
    }
    const bits = [
      ['cf', 0],
      ['pf', 2],
      ['af', 4],
      ['zf', 6],
      ['sf', 7],
      ['of', 11],
    ] as const;
    const update: FlagUpdate = {};
    for (const [name, bit] of bits) if ((mask >> bit) & 1) update[name] = this.bit(value, bit);
    this.setFlags(update);
  }

  // ---- what only system paths use

  /** A field of the state block by its offset. */
  state(offset: number, size: Size): Value {
    return v(this.#shared('reg', 'i64', [], BigInt(Layout.state + offset), size, size * 8, `r${this.#regVersion}`));
  }
  setState(offset: number, size: Size, value: Value): void {
    this.#regVersion++;
    this.#effect({ kind: 'setReg', address: null, k: BigInt(Layout.state + offset), size, value: n(value) });
  }
  /** A field of the segment slot that the record's `reg` names. */
  slot(offset: number, size: Size): Value {
    const address = this.#record('regAddress', 'i32', BigInt(R.reg), 32);
    const k = BigInt(Layout.state + offset);
    return v(this.#shared('reg', 'i64', [address], k, size, size * 8, `r${this.#regVersion}`));
  }
  setSlot(offset: number, size: 2 | 8, value: Value): void {
    const address = this.#record('regAddress', 'i32', BigInt(R.reg), 32);
    this.#regVersion++;
    this.#effect({ kind: 'setReg', address, k: BigInt(Layout.state + offset), size, value: n(value) });
  }
  /** JavaScript executes the instruction after all; nothing may have been committed. */
  handBackWhen(a: Cond): void {
    this.#facts.mayLeave = true;
    this.#facts.mayHandBack = true;
    this.#effect({ kind: 'handBack', condition: n(a) });
  }
  /** The instruction ends here, with an interrupt shadow over the next. */
  leaveShadowed(): void {
    this.#facts.mayLeave = true;
    this.#effect({ kind: 'shadowed', next: n(this.nextRip()) });
  }

  // ---- endings

  raise(vector: number, errorCode?: Value): void {
    this.#facts.mayLeave = true;
    const code = errorCode === undefined ? null : n(errorCode);
    this.#effect({ kind: 'raiseWhen', condition: null, vector, hasErrorCode: code !== null, errorCode: code });
  }
  raiseWhen(a: Cond, vector: number, errorCode?: number): void {
    if (this.#is(a, 0n)) return;
    this.#facts.mayLeave = true;
    const code = errorCode === undefined ? null : this.#n64(BigInt(errorCode));
    this.#effect({ kind: 'raiseWhen', condition: n(a), vector, hasErrorCode: code !== null, errorCode: code });
  }
  /** next RIP + immediate, however truncated: a target that a record can link. */
  #isDirect(target: Node): boolean {
    if (target.op === 'zext32' || (target.op === 'i64And' && target.args[1].op === 'const')) {
      return this.#isDirect(target.args[0]);
    }
    if (target.op !== 'i64Add') return false;
    const strip = (x: Node): Node => (x.op === 'zext32' || x.op === 'i64And' ? x.args[0] : x);
    return strip(target.args[0]).op === 'nextRip' && target.args[1].op === 'imm';
  }
  probeJump(target: Value): void {
    this.#facts.mayLeave = true;
    this.#checked.add(n(target));
    this.#effect({ kind: 'checkTarget', target: n(target), direct: this.#isDirect(n(target)) });
  }
  jump(target: Value): void {
    this.#jump(null, n(target));
  }
  jumpWhen(a: Cond, target: Value): void {
    if (this.#is(a, 0n)) return;
    this.#jump(this.#is(a, 1n) ? null : n(a), n(target));
  }
  #jump(condition: Node | null, target: Node): void {
    if (this.#region !== this.#root) throw new AssertionError(`${this.#form.mnemonic}: a jump inside when or loop`);
    this.#facts.mayLeave = true;
    const check = !this.#checked.has(target);
    this.#effect({ kind: 'jump', condition, target, direct: this.#isDirect(target), check });
  }
  /** Handlers write through: what an access left behind stays. */
  checkpoint(): void {}
  repeat(a: Cond): void {
    this.#facts.mayLeave = true;
    this.#effect({ kind: 'repeat', condition: n(a) });
  }
}

/** Kinds of node that stand for effects, for readers of a recording. */
export const isEffectful = (node: Node): boolean => EFFECTFUL.has(node.op);
