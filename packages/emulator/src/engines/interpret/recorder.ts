/**
 * The Builder that records: it folds constants, shares equal values and writes down effects in order. Registers, memory, flags, endings.
 * Manual: none; the contract is builder/builder.ts.
 */
import type { Access, Block, Builder, Cond, FlagName, FlagUpdate, RegRef, Size, Value } from '../../builder/builder.ts';
import { AssertionError } from '../../exceptions.ts';
import { Layout } from '../../memory/layout.ts';
import { Flag, S, Seg } from '../../state-layout.ts';
import { How } from './block-moves.ts';
import type { FlagArithmetic, FlagUpdateNodes } from './flags.ts';
import * as lazy from './flags.ts';
import type { MemoryAccess, Node, Region } from './ir.ts';
import { c, type Known, MASK, n, ValueRecorder, v } from './recorder-values.ts';
import { R } from './records.ts';

const FIELD = { reg: R.reg, rm: R.rm, opReg: R.rm, vvvv: R.vvvv } as const;

export class Recorder extends ValueRecorder implements Builder {
  // ---- registers

  getReg(ref: RegRef, size: Size): Value {
    const { args, k } = this.#register(ref);
    return v(this.shared('reg', 'i64', args, k, size, size * 8, this.registerVersion(args, k)));
  }
  /** Tells reads of a register apart between which it may have been written. */
  protected registerVersion(_args: readonly Node[], _k: bigint): string {
    return `r${this.regVersion}`;
  }
  protected registerWritten(_args: readonly Node[], _k: bigint): void {
    this.regVersion++;
  }
  #register(ref: RegRef): { args: Node[]; k: bigint } {
    if ('fixed' in ref) return { args: [], k: BigInt(Layout.state + S.gpr + ref.fixed * 8) };
    return { args: [this.record('regAddress', 'i32', BigInt(FIELD[ref.field]), 32)], k: BigInt(Layout.state) };
  }
  setReg(ref: RegRef, size: Size, value: Value): void {
    const { args, k } = this.#register(ref);
    this.registerWritten(args, k);
    const stored = size === 4 ? this.zextNode(n(value), 4) : this.#narrow(n(value), size);
    this.effect({ kind: 'setReg', address: args[0] ?? null, k, size, value: stored });
  }
  /** A store of one or two bytes needs no mask. */
  #narrow(value: Node, size: Size): Node {
    const masked = value.op === 'i64And' && size < 4 && value.args[1].op === 'const' && value.args[1].k === MASK[size];
    return masked ? value.args[0] : value;
  }

  // ---- memory

  ea(): Value {
    const form = this.form;
    const base = this.record('regAddress', 'i32', BigInt(R.base), 32);
    const disp = this.record('disp');
    let sum: Node;
    if (form.memory === 'rip') sum = this.binary('i64Add', this.record('nextRip'), disp);
    else {
      sum = this.#fullReg(base);
      if (form.memory === 'index') {
        const index = this.#fullReg(this.record('regAddress', 'i32', BigInt(R.index), 32));
        sum = this.binary('i64Add', sum, this.binary('i64Shl', index, this.record('scale', 'i64', 0n, 2)));
      }
      // Last: accesses around one address share the rest (translate).
      sum = this.binary('i64Add', sum, disp);
    }
    return v(this.zextNode(sum, form.addrSize));
  }
  #fullReg(address: Node): Node {
    const k = BigInt(Layout.state);
    return this.shared('reg', 'i64', [address], k, 8, 64, this.registerVersion([address], k));
  }
  /** A linear address: a plain sum where nothing is checked, else a node that may fault. */
  protected linear(offset: Node, access: Access): Node {
    const form = this.form;
    const seg = access.seg === 'operand' && form.special >= 0 ? form.special : access.seg;
    const special = seg === 4 || seg === 5;
    if (form.segments === 'long') {
      if (!special) return offset;
      const base = this.shared('segmentBase', 'i64', [], BigInt(seg as number), 8, 64);
      return this.binary('i64Add', base, offset);
    }
    if (form.segments === 'flat' && !special && seg !== 1) return this.zextNode(offset, 4);
    this.facts.mayLeave = true;
    const forWrite = access.forWrite === true;
    const key = `linear ${this.id(offset)} ${seg} ${access.size} ${forWrite}`;
    for (let r: Region | null = this.region; r; r = r.parent) {
      const found = r.shared.get(key);
      if (found) return found;
    }
    const node = this.push('linear', 'i64', [offset], 0n, access.size, 32, {
      access: { size: access.size, seg, forWrite },
    });
    this.region.shared.set(key, node);
    return node;
  }
  #access(access: Access, forWrite: boolean): MemoryAccess {
    return { size: access.size, seg: access.seg, forWrite };
  }
  protected checkAlignment(linear: Node, align: number): void {
    const low = this.andNode(linear, this.n64(BigInt(align - 1)));
    // JavaScript raises #GP, unless the address is not canonical: that comes first, and is #SS on the stack.
    this.handBackWhen(this.ne(v(low), this.const(0)));
  }
  readonly #loaded = new Map<string, Node>();
  load(offset: Value, access: Access): Value {
    const linear = this.linear(n(offset), access);
    if (access.align !== undefined) this.checkAlignment(linear, access.align);
    this.facts.mayLeave = true;
    const node = this.push('load', 'i64', [linear], 0n, access.size, access.size * 8, {
      access: this.#access(access, access.forWrite === true),
    });
    if (access.forWrite) this.#loaded.set(`${this.id(linear)} ${access.size}`, node);
    return v(node);
  }
  store(offset: Value, value: Value, access: Access): void {
    const linear = this.linear(n(offset), { ...access, forWrite: true });
    this.facts.mayLeave = true;
    const loaded = this.#loaded.get(`${this.id(linear)} ${access.size}`);
    const reuse = loaded?.region.contains(this.region) ? loaded : null;
    this.effect({ kind: 'store', linear, value: n(value), access: this.#access(access, true), reuse });
  }
  probe(offset: Value, access: Access): void {
    const linear = this.linear(n(offset), { ...access, forWrite: true });
    this.facts.mayLeave = true;
    this.effect({ kind: 'probe', linear, access: this.#access(access, true) });
  }

  // ---- flags

  /** The flag algebra on this recorder's own operations. */
  protected readonly arithmetic: FlagArithmetic = {
    n64: (k) => this.n64(k),
    and: (a, b) => this.andNode(a, b),
    or: (a, b) => n(this.or(v(a), v(b))),
    xor: (a, b) => n(this.xor(v(a), v(b))),
    not: (a) => n(this.not(v(a))),
    add: (a, b) => n(this.add(v(a), v(b))),
    sub: (a, b) => n(this.sub(v(a), v(b))),
    shl: (a, k) => n(this.shl(v(a), v(k))),
    shrU: (a, k) => n(this.shrU(v(a), v(k))),
    popcnt: (a) => n(this.popcnt(v(a))),
    zext: (a, size) => this.zextNode(a, size),
    sext: (a, size) => this.sextNode(a, size),
    eq: (a, b) => n(this.eq(v(a), v(b))),
    ltS: (a, b) => n(this.ltS(v(a), v(b))),
    isZero: (a) => n(this.isZero(v(a))),
    bit: (a, k) => n(this.bit(v(a), k)),
    notC: (a) => n(this.notC(c(a))),
    orC: (a, b) => n(this.orC(c(a), c(b))),
    xorC: (a, b) => n(this.xorC(c(a), c(b))),
    fromCond: (a) => n(this.fromCond(c(a))),
  };
  /** The flags as they are now. */
  protected lazyFlags(): lazy.Lazy {
    this.facts.readsFlags = true;
    if (this.facts.setsFlags) this.facts.readsOwnFlags = true;
    const version = `f${this.flagVersion}`;
    return {
      result: this.shared('flagResult', 'i64', [], 0n, 8, 64, version),
      aux: this.shared('flagAux', 'i64', [], 0n, 8, 64, version),
    };
  }
  protected setLazyFlags(result: Node | null, aux: Node | null, known?: Omit<Known, 'version'>): void {
    this.flagVersion++;
    this.facts.setsFlags = true;
    if (result !== null && aux !== null) this.facts.setsAllFlags = true;
    this.effect({ kind: 'flags', result, aux });
    this.known = known ? { ...known, version: this.flagVersion } : null;
  }
  flag(name: FlagName): Cond {
    return c(lazy.readFlag(this.arithmetic, name, this.lazyFlags()));
  }
  setFlags(update: FlagUpdate): void {
    const f = update as unknown as FlagUpdateNodes;
    if (f.zf === undefined && f.sf === undefined && f.pf === undefined) {
      if (f.cf === undefined && f.of === undefined && f.af === undefined) return;
      this.setLazyFlags(null, lazy.changeAux(this.arithmetic, this.lazyFlags().aux, f));
      return;
    }
    const result = this.#resultBehind(f);
    if (result !== undefined && f.cf !== undefined && f.of !== undefined && f.af !== undefined) {
      this.setLazyFlags(result, lazy.auxOf(this.arithmetic, f.cf, f.of, f.af));
      return;
    }
    const get = (name: FlagName): Node => f[name] ?? n(this.flag(name));
    const all = { cf: get('cf'), pf: get('pf'), af: get('af'), zf: get('zf'), sf: get('sf'), of: get('of') };
    const { result: explicit, aux } = lazy.explicit(this.arithmetic, all);
    this.setLazyFlags(explicit, aux);
  }
  /** If ZF, SF and PF all follow one value, that value sign-extended. */
  #resultBehind(f: FlagUpdateNodes): Node | undefined {
    if (f.zf === undefined || f.sf === undefined || f.pf === undefined || f.zf.op !== 'i64Eqz') return undefined;
    const value = f.zf.args[0];
    if (lazy.parityOf(this.arithmetic, value) !== f.pf) return undefined;
    const size = ([1, 2, 4, 8] as const).find(
      (s) => value.bits <= s * 8 && this.arithmetic.bit(value, s * 8 - 1) === f.sf,
    );
    return size === undefined ? undefined : this.sextNode(value, size);
  }
  flagsAdd(a: Value, b: Value, result: Value, size: Size): void {
    this.setLazyFlags(this.sextNode(n(result), size), lazy.auxAdd(this.arithmetic, n(a), n(b), n(result), size));
  }
  flagsSub(a: Value, b: Value, result: Value, size: Size): void {
    const signed = this.sextNode(n(result), size);
    const aux = lazy.auxSub(this.arithmetic, n(a), n(b), n(result), size);
    this.setLazyFlags(signed, aux, { kind: 'sub', a: n(a), b: n(b), result: signed, size });
  }
  flagsAdc(a: Value, b: Value, result: Value, size: Size): void {
    this.setLazyFlags(this.sextNode(n(result), size), lazy.auxAdc(this.arithmetic, n(a), n(b), n(result), size));
  }
  flagsSbb(a: Value, b: Value, result: Value, size: Size): void {
    this.setLazyFlags(this.sextNode(n(result), size), lazy.auxSbb(this.arithmetic, n(a), n(b), n(result), size));
  }
  flagsInc(result: Value, size: Size): void {
    this.#step(n(result), size, true);
  }
  flagsDec(result: Value, size: Size): void {
    this.#step(n(result), size, false);
  }
  #step(result: Node, size: Size, up: boolean): void {
    const signed = this.sextNode(result, size);
    const aux = lazy.auxStep(this.arithmetic, this.lazyFlags().aux, result, size, up);
    this.setLazyFlags(signed, aux, { kind: 'other', a: signed, b: signed, result: signed, size });
  }
  flagsLogic(result: Value, size: Size): void {
    const signed = this.sextNode(n(result), size);
    this.setLazyFlags(signed, this.n64(0n), { kind: 'logic', a: signed, b: signed, result: signed, size });
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
        return c(lazy.lessThan(this.arithmetic, this.lazyFlags()));
      default:
        return this.orC(this.flag('zf'), c(lazy.lessThan(this.arithmetic, this.lazyFlags())));
    }
  }
  /** The condition as a comparison of the operands that have just set the flags. */
  #knownCondition(half: number): Cond | undefined {
    const k = this.known;
    if (k === null || k.version !== this.flagVersion) return undefined;
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
    return this.shared('rflags', 'i64', [], 0n, 8, 64, `rf${this.rflagsVersion}`);
  }
  getRflags(): Value {
    let value = this.andNode(this.#rflags(), this.n64(~BigInt(Flag.arith)));
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
    this.effect({ kind: 'setRflags', value: n(this.getRflags()) });
  }
  setRflags(value: Value, mask: number): void {
    const rest = mask & ~Flag.arith;
    if (rest !== 0) {
      const kept = this.and(v(this.#rflags()), this.const(~BigInt(rest)));
      const put = this.and(value, this.const(BigInt(rest)));
      this.effect({ kind: 'setRflags', value: n(this.or(kept, put)) });
      this.rflagsVersion++;
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
    return v(this.shared('reg', 'i64', [], BigInt(Layout.state + offset), size, size * 8, `r${this.regVersion}`));
  }
  setState(offset: number, size: Size, value: Value): void {
    this.regVersion++;
    this.effect({ kind: 'setReg', address: null, k: BigInt(Layout.state + offset), size, value: n(value) });
  }
  /** Memory at a linear address that no segment is asked for, as the running code reads data. */
  loadLinear(linear: Value, size: Size): Value {
    this.facts.mayLeave = true;
    const access = { size, seg: Seg.DS, forWrite: false } as const;
    return v(this.push('load', 'i64', [n(linear)], 0n, size, size * 8, { access }));
  }
  /** A field of the segment slot that the record's `reg` names. */
  slot(offset: number, size: Size): Value {
    const address = this.record('regAddress', 'i32', BigInt(R.reg), 32);
    const k = BigInt(Layout.state + offset);
    return v(this.shared('reg', 'i64', [address], k, size, size * 8, `r${this.regVersion}`));
  }
  setSlot(offset: number, size: 2 | 8, value: Value): void {
    const address = this.record('regAddress', 'i32', BigInt(R.reg), 32);
    this.regVersion++;
    this.effect({ kind: 'setReg', address, k: BigInt(Layout.state + offset), size, value: n(value) });
  }
  /** JavaScript executes the instruction after all; nothing may have been committed. */
  handBackWhen(a: Cond): void {
    this.facts.mayLeave = true;
    this.facts.mayHandBack = true;
    this.effect({ kind: 'handBack', condition: n(a) });
  }
  /** The instruction ends here, and the run with it; often with an interrupt shadow over the next. */
  leaveShadowed(): void {
    this.facts.mayLeave = true;
    this.effect({ kind: 'shadowed', next: this.#next() });
  }
  /**
   * The instruction ends here, and what comes next, or stands at `target`, runs in the TLB context and by the code key that now stand in P.context
   * and P.key.
   */
  recontext(target?: Value): void {
    this.facts.mayLeave = true;
    this.effect({ kind: 'recontext', next: target === undefined ? this.#next() : n(target) });
  }
  /** Going on does not wrap at 64 KiB, whatever the size of the code. */
  #next(): Node {
    const next = this.record('nextRip');
    return this.codeSize === 8 ? next : this.zextNode(next, 4);
  }

  // ---- endings

  raise(vector: number, errorCode?: Value): void {
    this.facts.mayLeave = true;
    const code = errorCode === undefined ? null : n(errorCode);
    this.effect({ kind: 'raiseWhen', condition: null, vector, hasErrorCode: code !== null, errorCode: code });
  }
  raiseWhen(a: Cond, vector: number, errorCode?: number): void {
    if (this.is(a, 0n)) return;
    this.facts.mayLeave = true;
    const code = errorCode === undefined ? null : this.n64(BigInt(errorCode));
    this.effect({ kind: 'raiseWhen', condition: n(a), vector, hasErrorCode: code !== null, errorCode: code });
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
    this.facts.mayLeave = true;
    this.checked.add(n(target));
    this.effect({ kind: 'checkTarget', target: n(target), direct: this.#isDirect(n(target)) });
  }
  jump(target: Value): void {
    this.#jump(null, n(target));
  }
  jumpWhen(a: Cond, target: Value): void {
    if (this.is(a, 0n)) return;
    this.#jump(this.is(a, 1n) ? null : n(a), n(target));
  }
  #jump(condition: Node | null, target: Node): void {
    if (this.region !== this.root) throw new AssertionError(`${this.form.mnemonic}: a jump inside when or loop`);
    this.facts.mayLeave = true;
    const check = !this.checked.has(target);
    this.effect({ kind: 'jump', condition, target, direct: this.#isDirect(target), check });
  }
  /** Handlers write through: what an access left behind stays. */
  checkpoint(): void {}
  repeatBlock(block: Block): boolean {
    this.facts.mayLeave = true;
    const { special } = this.form;
    this.effect({ kind: 'block', how: this.blockHow(block), seg: special >= 0 ? special : 'operand' });
    return false;
  }
  /** All of a block that is static but its segment (block-moves.ts). */
  protected blockHow({ size, addrSize, fill }: Block): number {
    return size | (addrSize << 4) | (fill ? How.fill : 0) | (this.form.segments === 'long' ? How.long : 0);
  }
  repeat(a: Cond): void {
    this.facts.mayLeave = true;
    this.effect({ kind: 'repeat', condition: n(a) });
  }
}
