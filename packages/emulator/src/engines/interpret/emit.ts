/**
 * From a recording to wasm: one emitter for handlers inside the dispatch function and for out-of-line functions; they differ in where the
 * machine's registers live (its `Frame`).
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { Flag, S, Vector } from '../../state-layout.ts';
import { type Code, I32, I64, MEM, OP, V128, type ValType } from '../wasm/emitter.ts';
import type { Frame, Helper } from './frame.ts';
import { type Effect, isNode, type MemoryAccess, type Node, Plan, type Recording, type Region } from './ir.ts';
import { P, R } from './records.ts';
import { emitVectorStore, setVector, VECTOR_NODES, type VectorEmitter } from './vector-emit.ts';

const LOAD: Record<number, number> = { 1: MEM.i64Load8U, 2: MEM.i64Load16U, 4: MEM.i64Load32U, 8: MEM.i64Load };
const STORE: Record<number, number> = { 1: MEM.i64Store8, 2: MEM.i64Store16, 4: MEM.i64Store32, 8: MEM.i64Store };
const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;
const SCRATCH = Layout.state + S.scratch;

const valType = (node: Node): ValType => (node.type === 'i64' ? I64 : node.type === 'i32' ? I32 : V128);

export class HandlerEmitter implements VectorEmitter {
  readonly #frame: Frame;
  readonly #code: Code;
  #plan!: Plan;
  readonly #locals = new Map<Node, number>();
  readonly #left = new Map<Node, number>();
  readonly #variables = new Map<number, number>();
  readonly #hosts = new Map<Node, number>();
  /** Locals to release when a loop ends, by depth. */
  readonly #held: { local: number; type: ValType }[][] = [];

  constructor(frame: Frame) {
    this.#frame = frame;
    this.#code = frame.code;
  }

  emit(recording: Recording, dropFlags: boolean): void {
    this.#plan = new Plan(recording.body, dropFlags);
    this.#region(recording.body);
    for (const local of this.#variables.values()) this.#frame.release(local, I64);
    for (const local of this.#hosts.values()) this.#frame.release(local, I32);
  }

  #region(region: Region): void {
    for (const item of region.items) {
      if (!this.#plan.emits(item)) continue;
      if (!isNode(item)) this.#effect(item);
      else if (!this.#plan.inlined.has(item)) this.#materialise(item);
    }
  }

  #materialise(node: Node): void {
    this.#compute(node);
    if (node.uses === 0) {
      this.#code.op(OP.drop);
      return;
    }
    const local = this.#frame.acquire(valType(node));
    this.#code.set(local);
    this.#locals.set(node, local);
    this.#left.set(node, node.uses);
  }

  /** Pushes a node's value. */
  #value(node: Node): void {
    if (this.#plan.inlined.has(node)) {
      this.#compute(node);
      return;
    }
    const local = this.#locals.get(node)!;
    this.#code.get(local);
    const left = this.#left.get(node)! - 1;
    this.#left.set(node, left);
    if (left === 0) this.#free(local, valType(node), node.region.loops);
  }

  #free(local: number, type: ValType, loops: number): void {
    // Inside a loop that began after the definition, the value is wanted again.
    const outermost = this.#held[loops];
    if (outermost) outermost.push({ local, type });
    else this.#frame.release(local, type);
  }

  #compute(node: Node): void {
    const special = COMPUTE[node.op] ?? VECTOR_NODES[node.op];
    if (special) {
      special(this, node);
      return;
    }
    for (const arg of node.args) this.#value(arg);
    this.#code.op(OP[node.op as keyof typeof OP]);
  }

  // ---- used by the table of special nodes

  get code(): Code {
    return this.#code;
  }
  get frame(): Frame {
    return this.#frame;
  }
  value(node: Node): void {
    this.#value(node);
  }
  field(opcode: number, offset: number): void {
    this.#code.get(this.#frame.pc).mem(opcode, offset);
  }
  variable(id: number): number {
    let local = this.#variables.get(id);
    if (local === undefined) this.#variables.set(id, (local = this.#frame.acquire(I64)));
    return local;
  }

  /** size | segment << 8 | (span - size) << 16, for the helpers. */
  sizeAndSegment(access: MemoryAccess, size: number = access.size, span = access.span ?? size): void {
    const flags = size | ((span - size) << 16);
    if (access.seg !== 'operand') {
      this.#code.i32(flags | (access.seg << 8));
      return;
    }
    this.field(MEM.i32Load8U, R.seg);
    this.#code.i32(8).op(OP.i32Shl).i32(flags).op(OP.i32Or);
  }

  /** Leaves on the stack whether the TLB has the linear address; `entry` gets the entry's offset. */
  probeTlb(linear: number, entry: number, size: number, tag: number): void {
    const code = this.#code;
    code.get(linear).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
    this.#frame.contextHash();
    code
      .op(OP.i32Xor)
      .i32(TLB_MASK)
      .op(OP.i32And)
      .tee(entry)
      .mem(MEM.i64Load, Layout.tlb + tag);
    code.get(linear);
    if (size > 1) code.i64(BigInt(size - 1)).op(OP.i64Add);
    code.i64(-4096n).op(OP.i64And);
    this.#frame.context();
    code.op(OP.i64Or).op(OP.i64Eq);
  }

  /** Host offset of a TLB hit. */
  hostAddress(linear: number, entry: number): void {
    this.#code
      .get(linear)
      .op(OP.i32WrapI64)
      .get(entry)
      .mem(MEM.i32Load, Layout.tlb + TlbEntry.addend)
      .op(OP.i32Add);
  }

  /** Evaluates a linear address into a local of its own. */
  linear(node: Node): number {
    const local = this.#frame.acquire(I64);
    this.#value(node);
    this.#code.set(local);
    return local;
  }

  load(node: Node): void {
    const code = this.#code;
    const access = node.access!;
    const linear = this.linear(node.args[0]);
    const entry = this.#frame.acquire(I32);
    const tag = access.forWrite ? TlbEntry.tagWrite : TlbEntry.tagRead;
    const host = access.forWrite ? this.#frame.acquire(I32) : -1;
    this.probeTlb(linear, entry, access.size, tag);
    code.if(I64);
    this.hostAddress(linear, entry);
    if (host >= 0) code.tee(host);
    code.mem(LOAD[access.size], 0);
    code.else();
    code.get(linear);
    this.sizeAndSegment(access);
    code.call(this.#frame.helper(access.forWrite ? 'missReadForWrite' : 'missRead')).brIf(this.#frame.fault);
    if (host >= 0) code.i32(0).set(host);
    code.i32(0).mem(LOAD[access.size], SCRATCH);
    code.end();
    this.#frame.release(linear, I64);
    this.#frame.release(entry, I32);
    if (host >= 0) this.#hosts.set(node, host);
  }

  #store(effect: Effect & { kind: 'store' }): void {
    const code = this.#code;
    const { access } = effect;
    const linear = this.linear(effect.linear);
    const value = this.#frame.acquire(I64);
    this.#value(effect.value);
    code.set(value);
    const known = effect.reuse === null ? undefined : this.#hosts.get(effect.reuse);
    let entry = -1;
    if (known !== undefined) {
      code.get(known).if();
      code.get(known);
    } else {
      entry = this.#frame.acquire(I32);
      this.probeTlb(linear, entry, access.size, TlbEntry.tagWrite);
      code.if();
      this.hostAddress(linear, entry);
    }
    code.get(value).mem(STORE[access.size], 0);
    code.else();
    // Says where, should the host want execution to stop behind this instruction.
    code.i32(0).get(this.#frame.pc).mem(MEM.i32Store, P.pc);
    code.get(linear).get(value);
    this.sizeAndSegment(access);
    code.call(this.#frame.helper('missWrite')).brIf(this.#frame.fault);
    code.end();
    if (entry >= 0) this.#frame.release(entry, I32);
    this.#frame.release(linear, I64);
    this.#frame.release(value, I64);
  }

  #probe(effect: Effect & { kind: 'probe' }): void {
    const code = this.#code;
    const linear = this.linear(effect.linear);
    const entry = this.#frame.acquire(I32);
    this.probeTlb(linear, entry, effect.access.size, TlbEntry.tagWrite);
    code.op(OP.i32Eqz).if();
    code.get(linear);
    this.sizeAndSegment(effect.access);
    code.call(this.#frame.helper('missProbe')).brIf(this.#frame.fault);
    code.end();
    this.#frame.release(entry, I32);
    this.#frame.release(linear, I64);
  }

  checkedLinear(node: Node): void {
    const code = this.#code;
    const access = node.access!;
    if (access.seg === 'operand') this.field(MEM.i32Load8U, R.seg);
    else code.i32(access.seg);
    this.#value(node.args[0]);
    code.i32(access.size | (access.forWrite ? 16 : 0)).call(this.#frame.helper('checkedLinear'));
    const local = this.#frame.acquire(I64);
    code.tee(local).i64(0n).op(OP.i64LtS).brIf(this.#frame.fault).get(local);
    this.#frame.release(local, I64);
  }

  // ---- effects

  #effect(effect: Effect): void {
    switch (effect.kind) {
      case 'setReg':
        this.#setReg(effect);
        return;
      case 'store':
        this.#store(effect);
        return;
      case 'probe':
        this.#probe(effect);
        return;
      case 'setVector':
        setVector(this, effect.address, effect.k, effect.value);
        return;
      case 'store128':
        emitVectorStore(this, effect.linear, effect.value, effect.access);
        return;
      case 'flags':
        if (effect.result) this.#value(effect.result);
        if (effect.aux) this.#value(effect.aux);
        if (effect.aux) this.#frame.setFlag('aux');
        if (effect.result) this.#frame.setFlag('result');
        return;
      case 'setRflags':
        this.#storeAbsolute(effect.value, Layout.state + S.rflags, MEM.i64Store);
        return;
      case 'setVar':
        this.#value(effect.value);
        this.#code.set(this.variable(effect.variable.id));
        return;
      case 'when':
        this.#when(effect);
        return;
      case 'loop':
        this.#loop(effect.body);
        return;
      case 'loopEnd':
        return;
      case 'advance':
        this.#code.get(this.#frame.pc).i32(R.size).op(OP.i32Add).set(this.#frame.pc);
        return;
      default:
        this.#ending(effect);
    }
  }

  #setReg(effect: Effect & { kind: 'setReg' }): void {
    if (effect.address === null) {
      this.#storeAbsolute(effect.value, Number(effect.k), effect.size === 4 ? MEM.i64Store : STORE[effect.size]);
      return;
    }
    this.#value(effect.address);
    this.#value(effect.value);
    this.#code.mem(effect.size === 4 ? MEM.i64Store : STORE[effect.size], Number(effect.k));
  }
  #storeAbsolute(value: Node, address: number, opcode: number): void {
    this.#code.i32(0);
    this.#value(value);
    this.#code.mem(opcode, address);
  }

  #when(effect: Effect & { kind: 'when' }): void {
    this.#value(effect.condition);
    this.#code.if();
    this.#region(effect.yes);
    if (effect.otherwise) {
      this.#code.else();
      this.#region(effect.otherwise);
    }
    this.#code.end();
  }

  #loop(body: Region): void {
    this.#held.push([]);
    const top = this.#code.loop();
    this.#region(body);
    const end = body.items[body.items.length - 1];
    if (!isNode(end) && end.kind === 'loopEnd') {
      this.#value(end.condition);
      this.#code.brIf(top);
    }
    this.#code.end();
    for (const { local, type } of this.#held.pop()!) this.#frame.release(local, type);
  }

  #ending(effect: Effect): void {
    switch (effect.kind) {
      case 'raiseWhen': {
        if (effect.condition) {
          this.#value(effect.condition);
          this.#code.if();
        }
        this.#raise(effect.vector, effect.hasErrorCode, effect.errorCode);
        if (effect.condition) this.#code.end();
        return;
      }
      case 'checkTarget':
        this.#checkTarget(effect.target, effect.direct);
        return;
      case 'jump': {
        if (effect.condition) {
          this.#value(effect.condition);
          this.#code.if();
        }
        const check = effect.check ? (target: number) => this.#raiseIfBad(() => this.#code.get(target)) : null;
        this.#frame.jump(() => this.#value(effect.target), effect.direct, check);
        if (effect.condition) this.#code.end();
        return;
      }
      case 'handBack':
        this.#value(effect.condition);
        this.#code.if();
        this.#frame.handBack();
        this.#code.end();
        return;
      case 'block':
        this.#block(effect);
        return;
      case 'shadowed':
        this.#frame.shadowed(() => this.#value(effect.next));
        return;
      case 'recontext':
        this.#frame.recontext(() => this.#value(effect.next));
        return;
      case 'repeat':
        this.#value(effect.condition);
        this.#code.if();
        this.#resume(true);
        this.#frame.repeat();
        this.#code.end();
        this.#resume(false);
    }
  }
  #block({ how, seg }: Effect & { kind: 'block' }): void {
    const code = this.#code;
    if (seg === 'operand') {
      this.field(MEM.i32Load8U, R.seg);
      code.i32(8).op(OP.i32Shl).i32(how).op(OP.i32Or);
    } else code.i32(how | (seg << 8));
    this.#frame.ticksLeft();
    const done = this.#frame.acquire(I32);
    code.call(this.#frame.helper('repeatBlock')).tee(done).if();
    this.#frame.repeatAfter(done);
    code.end();
    this.#frame.release(done, I32);
  }
  /** RFLAGS.RF is set between the iterations of a repeated instruction (APM vol. 2 section 13.1.3.2). */
  #resume(set: boolean): void {
    const code = this.#code
      .i32(0)
      .i32(0)
      .mem(MEM.i32Load, Layout.state + S.rflags);
    if (set) code.i32(Flag.RF).op(OP.i32Or);
    else code.i32(~Flag.RF).op(OP.i32And);
    code.mem(MEM.i32Store, Layout.state + S.rflags);
  }

  #raise(vector: number, hasErrorCode: boolean, errorCode: Node | null): void {
    const code = this.#code;
    code.i32(vector).i32(hasErrorCode ? 1 : 0);
    if (errorCode) {
      this.#value(errorCode);
      code.op(OP.i32WrapI64);
    } else code.i32(0);
    code.call(this.#frame.helper('recordException')).br(this.#frame.fault);
  }

  #checkTarget(target: Node, direct: boolean): void {
    const code = this.#code;
    // A linked target lies in this page, where RIP may be.
    const label = direct ? code.block() : null;
    if (label) {
      this.field(MEM.i32Load, R.link);
      code.brIf(label);
    }
    const local = this.linear(target);
    this.#raiseIfBad(() => code.get(local));
    this.#frame.release(local, I64);
    if (label) code.end();
  }
  /** `target` pushes the target, as often as it is called. */
  #raiseIfBad(target: () => void): void {
    const code = this.#code;
    if (this.#frame.long) {
      // Nearly always canonical in 48 bits; the helper knows about 57.
      target();
      code.i64(16n).op(OP.i64Shl).i64(16n).op(OP.i64ShrS);
      target();
      code.op(OP.i64Ne).if();
    }
    target();
    code.call(this.#frame.helper('badTarget')).if();
    this.#raise(Vector.GP, true, null);
    code.end();
    if (this.#frame.long) code.end();
  }
}

const memorySlot = (e: HandlerEmitter, opcode: number, address: number): void =>
  void e.code.i32(0).mem(opcode, address);

/** Nodes that are not plain wasm operations. */
const COMPUTE: Partial<Record<Node['op'], (e: HandlerEmitter, node: Node) => void>> = {
  const: (e, node) => void (node.type === 'i64' ? e.code.i64(node.k) : e.code.i32(Number(node.k))),
  zext32: (e, node) => {
    e.value(node.args[0]);
    e.code.op(OP.i32WrapI64).op(OP.i64ExtendI32U);
  },
  select64: (e, node) => selectOf(e, node),
  select32: (e, node) => selectOf(e, node),
  imm: (e) => e.field(MEM.i64Load, R.imm),
  imm2: (e) => e.field(MEM.i64Load16U, R.vvvv),
  disp: (e) => e.field(MEM.i64Load32S, R.disp),
  scale: (e) => e.field(MEM.i64Load8U, R.scale),
  segment: (e) => e.field(MEM.i32Load8U, R.seg),
  regAddress: (e, node) => e.field(MEM.i32Load16U, Number(node.k)),
  nextRip: (e) => {
    e.field(MEM.i64Load16U, R.next);
    e.code.get(e.frame.pageBase).op(OP.i64Add);
  },
  rip: (e) => {
    e.field(MEM.i64Load16U, R.offset);
    e.code.get(e.frame.pageBase).op(OP.i64Add);
  },
  reg: (e, node) => {
    if (node.args.length > 0) e.value(node.args[0]);
    else e.code.i32(0);
    e.code.mem(LOAD[node.size], Number(node.k));
  },
  var: (e, node) => void e.code.get(e.variable(Number(node.k))),
  flagResult: (e) => e.frame.getFlag('result'),
  flagAux: (e) => e.frame.getFlag('aux'),
  rflags: (e) => memorySlot(e, MEM.i64Load, Layout.state + S.rflags),
  segmentBase: (e, node) => memorySlot(e, MEM.i64Load, Layout.state + S.segments + Number(node.k) * 16 + 8),
  div128: (e, node) => callOf(e, node, 'div128'),
  mulHighU: (e, node) => callOf(e, node, 'mulHighU'),
  mulHighS: (e, node) => callOf(e, node, 'mulHighS'),
  load: (e, node) => e.load(node),
  linear: (e, node) => e.checkedLinear(node),
};

function selectOf(e: HandlerEmitter, node: Node): void {
  e.value(node.args[1]);
  e.value(node.args[2]);
  e.value(node.args[0]);
  e.code.op(OP.select);
}

function callOf(e: HandlerEmitter, node: Node, helper: Helper): void {
  for (const arg of node.args) e.value(arg);
  e.code.call(e.frame.helper(helper));
}
