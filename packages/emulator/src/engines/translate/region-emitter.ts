/**
 * One wasm function for a region: registers in locals, loads and stores through the TLB inline, a stub for every place where it is left.
 * Left in front of an instruction (TLB miss, device, fault): that record's handler does it all again, with the state as it was before.
 * Structure: Ramsey, "Beyond Relooper"; TLB: memory/layout.ts.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { PAGE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import { type Effect, type Region as IrRegion, isNode, type Node } from '../interpret/ir.ts';
import { REGION } from '../interpret/main-module.ts';
import { recordInto } from '../interpret/operation.ts';
import { P } from '../interpret/records.ts';
import { vectorMem } from '../interpret/vector-emit.ts';
import { Code, type FuncBody, I32, I64, type Label, MEM, OP, V128 } from '../wasm/emitter.ts';
import { V128_LOAD, V128_STORE } from '../wasm/simd.ts';
import { BoundRecorder } from './bound-recorder.ts';
import { crossesPage, type RegionInstruction } from './explore.ts';
import { type FlagPlan, operandsOf, planFlags, type Ways } from './flag-sites.ts';
import { analyse, type Flow } from './flow.ts';
import type { Liveness } from './liveness.ts';
import { Placement } from './placement.ts';
import type { Block, Region } from './region.ts';
import { PARAM, RegionFrame, type RegionMode } from './region-frame.ts';
import { RegionMemory, STORE } from './region-memory.ts';
import { addressOf, gprAt, Values } from './values.ts';

/**
 * In larger regions registers are stored in one place for all stubs: the code is less by half, but V8 allocates registers worse (measured:
 * loads and stores take twice the time).
 */
const MAX_UNSHARED = 64;

/** A block with what was recorded of it. */
interface Recorded {
  block: Block;
  body: IrRegion;
  live: Liveness;
  placement: Placement;
}

export class RegionEmitter {
  readonly #frame: RegionFrame;
  readonly #region: Region;
  readonly #mode: RegionMode;
  readonly #flow: Flow;
  readonly #recorded: Recorded[];
  readonly #plan: FlagPlan;
  /** Local: the source of the flags, where it is not the same on all ways. */
  #tag = -1;
  readonly #body = new Code();
  readonly #values: Values;
  readonly #memory: RegionMemory;
  readonly #stubs: Code[] = [];
  readonly #loopLabels = new Map<number, Label>();
  readonly #mergeLabels = new Map<number, Label>();
  #dispatcher: Label | null = null;
  // The block and instruction at hand.
  #current!: Recorded;
  #index = -1;
  #exit: Label | null = null;
  /** Flags of this block that nobody has computed yet; null: those that the block began with. */
  #pending: (Effect & { kind: 'flags' }) | 'locals' | null = null;

  /** @param firstSlot slot of the region's first entry; the others follow */
  constructor(region: Region, mode: RegionMode, firstSlot: number, view: DataView) {
    this.#region = region;
    this.#mode = mode;
    const bodies = region.blocks.map((block) => recordBlock(block, view));
    this.#frame = new RegionFrame(region, mode, firstSlot, bodies);
    this.#values = new Values(this.#body, this.#frame);
    this.#memory = new RegionMemory(this.#body, this.#frame, this.#values, region, () => this.#sideExit());
    const entries = region.entries.map((at) => region.blockAt.get(at)!.index);
    const branches = region.blocks.map((b) => branchesOf(b, region).map((at) => region.blockAt.get(at)!.index));
    this.#flow = analyse(branches, entries);
    this.#plan = planFlags({
      bodies,
      count: (block) => region.blocks[block].instructions.length,
      entries: new Set(entries),
      jump: (block, at) => this.#waysOfJump(region.blocks[block], at),
      end: (block) => this.#waysAtEnd(region.blocks[block]),
    });
    this.#recorded = region.blocks.map((block, i) => {
      const live = this.#plan.liveness[i];
      return { block, body: bodies[i], live, placement: new Placement(bodies[i], live) };
    });
    if (this.#plan.tagged) this.#tag = this.#frame.local(I32);
    for (const { live } of this.#recorded) {
      for (const effect of live.deferred) {
        if (effect.kind !== 'flags' || !this.#plan.sites.has(effect)) continue;
        for (const node of operandsOf(effect, live))
          this.#values.reserve(node, this.#frame.local(this.#values.typeOf(node)));
      }
    }
  }

  #waysOfJump(block: Block, at: number): Ways {
    const { ending, target } = block.instructions[at];
    if (ending !== 'ret' && ending !== 'indirect') return this.#waysTo(block, [target], false);
    return this.#waysTo(block, at === block.instructions.length - 1 ? block.successors : [], true);
  }
  #waysAtEnd(block: Block): Ways {
    const { ending, next } = block.instructions[block.instructions.length - 1];
    return ending === 'next' || ending === 'jcc' ? this.#waysTo(block, [next], false) : { to: [], leaves: false };
  }
  #waysTo(block: Block, targets: readonly number[], leaves: boolean): Ways {
    const { blockAt } = this.#region;
    const to = targets.filter((at) => blockAt.has(at)).map((at) => blockAt.get(at)!.index);
    const mayLeave =
      leaves ||
      to.length < targets.length ||
      this.#frame.checked.size > 0 ||
      to.some((next) => this.#flow.isRouted(block.index, next) || this.#flow.isBack(block.index, next));
    return { to, leaves: mayLeave };
  }

  // ---- the function

  build(name: string): FuncBody {
    const { code, flow } = { code: this.#body, flow: this.#flow };
    if (flow.dispatched) {
      this.#dispatcher = code.loop();
      this.#within(flow.merges.length - 1, () => {
        const labels = flow.targets.map((block) => this.#mergeLabels.get(block)!);
        code.get(this.#frame.state).brTable(labels, labels[0]);
      });
      code.end();
    } else this.#tree(flow.targets[0]);
    code.op(OP.unreachable);
    return { type: REGION, locals: this.#frame.locals, code: this.#assemble(), export: name };
  }

  #assemble(): Code {
    const code = new Code();
    this.#frame.prologue(code);
    const leave = code.block();
    for (let i = 0; i < this.#stubs.length; i++) code.block();
    code.bytes(this.#body.done());
    const shared = this.#region.instructionCount > MAX_UNSHARED;
    for (const stub of this.#stubs) {
      code.end().bytes(stub.done());
      if (shared) code.br(leave);
      else {
        this.#frame.epilogue(code);
        code.op(OP.return);
      }
    }
    code.end();
    this.#frame.epilogue(code);
    return code;
  }

  // ---- structure

  #tree(block: number): void {
    const code = this.#body;
    if (!this.#flow.isHeader(block)) {
      this.#within(block, () => this.#block(block));
      return;
    }
    this.#loopLabels.set(block, code.loop());
    this.#within(block, () => this.#block(block));
    code.end();
  }
  /** `inner` with labels for the merge blocks that `parent` dominates at once; they follow it. */
  #within(parent: number, inner: () => void): void {
    const code = this.#body;
    const merges = this.#flow.merges[parent];
    for (const merge of merges) this.#mergeLabels.set(merge, code.block());
    inner();
    for (let i = merges.length - 1; i >= 0; i--) {
      code.end();
      this.#tree(merges[i]);
    }
  }

  /** Goes on at a block; ticks are already counted. */
  #branch(from: number, to: Block): void {
    const code = this.#body;
    const { index } = to;
    const routed = this.#flow.isRouted(from, index);
    if (routed || this.#flow.isBack(from, index)) {
      code.get(PARAM.left).i32(this.#region.instructionCount).op(OP.i32LtS);
      code.brIf(this.#leave(to.at));
      if (routed) code.i32(this.#flow.targets.indexOf(index)).set(this.#frame.state).br(this.#dispatcher!);
      else code.br(this.#loopLabels.get(index)!);
    } else if (this.#flow.isMerge(index)) code.br(this.#mergeLabels.get(index)!);
    else this.#nested(index);
  }
  /** The block has no other predecessor: it stands right here. What is known of the block at hand is wanted again afterwards. */
  #nested(index: number): void {
    const saved = { current: this.#current, at: this.#index, exit: this.#exit, pending: this.#pending };
    this.#tree(index);
    this.#current = saved.current;
    this.#index = saved.at;
    this.#exit = saved.exit;
    this.#pending = saved.pending;
  }
  /** To an offset inside or outside the region; RIP may be there. */
  #go(from: Block, at: number): void {
    const to = this.#region.blockAt.get(at);
    if (to === undefined) {
      this.#body.br(this.#leave(at));
      return;
    }
    this.#requirePage(from, to.instructions[0].page, () => this.#leave(at));
    this.#branch(from.index, to);
  }

  #requirePage(from: Block, page: number, otherwise: () => Label): void {
    if (page !== from.instructions[0].page) this.#memory.requirePage(page, otherwise);
  }

  // ---- leaving

  /**
   * A stub: it finds out RIP, the ticks left and the flags. The label is that of the block around the function's body that the stub stands
   * behind.
   */
  #stub(rip: (code: Code) => void, ticks: number): Label {
    const stub = new Code();
    const values = this.#values;
    const before = values.code;
    values.code = stub;
    rip(stub);
    stub.set(this.#frame.rip);
    this.#findFlags(stub);
    if (ticks > 0) stub.get(PARAM.left).i32(ticks).op(OP.i32Sub).set(PARAM.left);
    values.code = before;
    this.#stubs.push(stub);
    return { depth: 1 - this.#stubs.length };
  }
  /** Puts the flags into their locals. */
  #findFlags(stub: Code): void {
    const pending = this.#pending;
    if (pending !== null && pending !== 'locals') {
      this.#values.push(pending.result!, I64);
      this.#values.push(pending.aux!, I64);
      stub.set(this.#frame.aux).set(this.#frame.result);
      return;
    }
    const sources = pending === null ? [...this.#plan.sources[this.#current.block.index]] : [0];
    // The last one needs no question.
    for (const source of sources.slice(1)) {
      stub.get(this.#tag).i32(source).op(OP.i32Eq).if();
      this.#findSource(stub, source);
      stub.else();
    }
    this.#findSource(stub, sources[0] ?? 0);
    for (let i = 1; i < sources.length; i++) stub.end();
  }
  #findSource(stub: Code, source: number): void {
    const effect = this.#plan.effects.get(source);
    if (effect === undefined) return;
    this.#values.pushLater(effect.result!, I64);
    this.#values.pushLater(effect.aux!, I64);
    stub.set(this.#frame.aux).set(this.#frame.result);
  }
  #leave(at: number): Label {
    return this.#stub((code) => void code.get(this.#frame.base).i64(BigInt(at)).op(OP.i64Add), 0);
  }
  /** In front of the instruction at hand. */
  #sideExit(): Label {
    const { at } = this.#current.block.instructions[this.#index];
    this.#exit ??= this.#stub((code) => void code.get(this.#frame.base).i64(BigInt(at)).op(OP.i64Add), this.#index);
    return this.#exit;
  }

  // ---- blocks

  #block(index: number): void {
    const recorded = this.#recorded[index];
    this.#current = recorded;
    this.#index = -1;
    this.#exit = null;
    this.#pending = null;
    this.#frame.apart(() => {
      this.#memory.within(recorded.body, () => this.#items(recorded.body));
      const { instructions } = recorded.block;
      const last = instructions[instructions.length - 1];
      if (last.ending !== 'next' && last.ending !== 'jcc') return;
      this.#count();
      this.#go(recorded.block, last.next);
    });
  }
  #count(): void {
    this.#body
      .get(PARAM.left)
      .i32(this.#index + 1)
      .op(OP.i32Sub)
      .set(PARAM.left);
  }
  get #instruction(): RegionInstruction {
    return this.#current.block.instructions[this.#index];
  }

  #items(region: IrRegion): void {
    const { live, placement } = this.#current;
    for (const item of region.items) {
      if (!isNode(item)) {
        if (live.emits(item)) this.#effect(item);
      } else if (live.emits(item) && !placement.inlined.has(item)) this.#materialise(item);
    }
  }
  #materialise(node: Node): void {
    const type = this.#values.typeOf(node);
    if (node.op === 'load') this.#memory.load(node);
    else if (node.op === 'load128') {
      this.#memory.translate(node.args[0], 16, TlbEntry.tagRead);
      vectorMem(this.#body, V128_LOAD, 0);
    } else if (node.op === 'linear') this.#memory.checkedLinear(node);
    else this.#values.compute(node, type);
    const local = this.#frame.acquire(type);
    this.#body.set(local);
    this.#values.setLocal(node, local);
  }

  // ---- effects

  #effect(effect: Effect): void {
    const code = this.#body;
    const values = this.#values;
    switch (effect.kind) {
      case 'advance':
        this.#index++;
        this.#exit = null;
        if (effect.leaves)
          this.#requirePage(this.#current.block, this.#instruction.page + PAGE, () => this.#sideExit());
        return;
      case 'setReg':
        this.#setReg(effect);
        return;
      case 'store':
        this.#memory.store(effect);
        return;
      case 'setVector':
        values.push(effect.value, V128);
        code.set(this.#frame.vector(this.#frame.vectorOf(effect)));
        return;
      case 'store128':
        this.#memory.translate(effect.linear, 16, TlbEntry.tagWrite);
        values.push(effect.value, V128);
        vectorMem(code, V128_STORE, 0);
        return;
      case 'handBack':
        values.push(effect.condition, I32);
        code.brIf(this.#sideExit());
        return;
      case 'setField':
        values.push(effect.address, I32);
        values.push(effect.value, effect.size === 8 ? I64 : I32);
        code.mem(STORE[effect.size], Number(effect.k));
        return;
      case 'spend':
        code.get(PARAM.left);
        values.push(effect.ticks, I32);
        code.op(OP.i32Sub).set(PARAM.left);
        return;
      case 'probe':
        this.#memory.translate(effect.linear, effect.access.size, TlbEntry.tagWrite);
        code.op(OP.drop);
        return;
      case 'flags':
        this.#flags(effect);
        return;
      case 'setRflags':
        code.i32(0);
        values.push(effect.value, I64);
        code.mem(MEM.i64Store, Layout.state + S.rflags);
        return;
      case 'setVar':
        values.push(effect.value, I64);
        code.set(this.#frame.variable(effect.variable.id));
        this.#frame.writesWord(effect.variable.id);
        return;
      case 'when':
        this.#when(effect);
        return;
      case 'raiseWhen':
        if (effect.condition === null) code.br(this.#sideExit());
        else {
          values.push(effect.condition, I32);
          code.brIf(this.#sideExit());
        }
        return;
      case 'checkTarget':
        this.#checkTarget(effect.target);
        return;
      case 'jump':
        this.#jump(effect);
        return;
      default:
        throw new RangeError(`${effect.kind} in a region`);
    }
  }
  #when(effect: Effect & { kind: 'when' }): void {
    const code = this.#body;
    this.#values.push(effect.condition, I32);
    code.if();
    this.#memory.aside(() => this.#items(effect.yes));
    const { otherwise } = effect;
    if (otherwise) {
      code.else();
      this.#memory.aside(() => this.#items(otherwise));
    }
    code.end();
  }

  #flags(effect: Effect & { kind: 'flags' }): void {
    const { live } = this.#current;
    if (live.deferred.has(effect)) {
      this.#pending = effect;
      this.#keepOperands(effect, live);
      return;
    }
    if (effect.result) this.#values.push(effect.result, I64);
    if (effect.aux) this.#values.push(effect.aux, I64);
    if (effect.aux) this.#body.set(this.#frame.aux);
    if (effect.result) this.#body.set(this.#frame.result);
    this.#setTag(0);
    this.#pending = 'locals';
  }
  #keepOperands(effect: Effect & { kind: 'flags' }, live: Liveness): void {
    const site = this.#plan.sites.get(effect);
    if (site === undefined) return;
    for (const node of operandsOf(effect, live)) this.#values.keep(node);
    this.#setTag(site);
  }
  #setTag(source: number): void {
    if (this.#plan.tagged) this.#body.i32(source).set(this.#tag);
  }

  #setReg({ address, k, size, value }: Effect & { kind: 'setReg' }): void {
    const code = this.#body;
    const { number, byte } = gprAt(addressOf(address, k))!;
    const local = this.#frame.register(number);
    if (size >= 4) this.#values.push(value, this.#frame.word);
    else this.#insert(local, value, size === 2 ? 0xffff : 0xff << (byte * 8), byte * 8);
    code.set(local);
  }
  /** The register with some of its low 16 bits replaced. */
  #insert(local: number, value: Node, mask: number, shift: number): void {
    const code = this.#body;
    code.get(local);
    if (this.#frame.word === I64) code.i64(~BigInt(mask)).op(OP.i64And);
    else code.i32(~mask).op(OP.i32And);
    this.#values.push(value, I32);
    if (shift > 0) code.i32(shift).op(OP.i32Shl);
    code.i32(mask).op(OP.i32And);
    if (this.#frame.word === I64) code.op(OP.i64ExtendI32U).op(OP.i64Or);
    else code.op(OP.i32Or);
  }

  // ---- jumps

  #isDirect(): boolean {
    const { ending } = this.#instruction;
    return ending === 'jcc' || ending === 'jmp' || ending === 'call';
  }
  /** Direct targets in other pages have to be mapped; those in this page are allowed, and what is not known is left to the record. */
  #checkTarget(target: Node): void {
    const code = this.#body;
    if (this.#isDirect()) {
      // What commits before its jump (CALL, LOOP) can't be left there.
      if (this.#knowsTarget()) this.#requireTarget();
      else if (this.#instruction.ending === 'jcc') code.br(this.#sideExit());
      return;
    }
    if (this.#mode.long) {
      this.#values.push(target, I64);
      code.i64(16n).op(OP.i64Shl).i64(16n).op(OP.i64ShrS);
      this.#values.push(target, I64);
      code.op(OP.i64Ne).brIf(this.#sideExit());
    } else if (!this.#mode.flatCode) {
      this.#values.push(target, I32);
      code.i32(0).mem(MEM.i32Load, P.codeLimit).op(OP.i32GtU).brIf(this.#sideExit());
    }
  }
  #requireTarget(): void {
    const page = Math.floor(this.#instruction.target / PAGE) * PAGE;
    this.#requirePage(this.#current.block, page, () => this.#sideExit());
  }
  /** Is the direct target's page one that may be gone to? */
  #knowsTarget(): boolean {
    const { target, page } = this.#instruction;
    const there = Math.floor(target / PAGE) * PAGE;
    return there === page || this.#frame.checked.has(there);
  }

  #jump(effect: Effect & { kind: 'jump' }): void {
    const code = this.#body;
    const { block } = this.#current;
    const insn = this.#instruction;
    if (!this.#isDirect()) {
      this.#indirect(effect);
      return;
    }
    if (effect.condition === null) {
      if (insn.ending !== 'call') this.#requireTarget();
      this.#count();
      this.#go(block, insn.target);
      return;
    }
    this.#values.push(effect.condition, I32);
    if (this.#knowsTarget()) {
      code.if();
      this.#requireTarget();
      this.#count();
      this.#go(block, insn.target);
      code.end();
    } else code.brIf(this.#sideExit());
  }

  #indirect(effect: Effect & { kind: 'jump' }): void {
    const code = this.#body;
    if (effect.check) this.#checkTarget(effect.target);
    const type = this.#values.typeOf(effect.target);
    const target = this.#frame.acquire(type);
    this.#values.push(effect.target, type);
    code.set(target);
    this.#count();
    const { block } = this.#current;
    for (const at of block.successors) {
      code.get(target).get(this.#frame.base).i64(BigInt(at)).op(OP.i64Add);
      if (type === I32) code.op(OP.i32WrapI64).op(OP.i32Eq).if();
      else code.op(OP.i64Eq).if();
      this.#go(block, at);
      code.end();
    }
    code.br(
      this.#stub((stub) => {
        stub.get(target);
        if (type === I32) stub.op(OP.i64ExtendI32U);
      }, 0),
    );
  }
}

/**
 * Where a block's code branches to within the region, by offset and as often as it does: a block that is the target of two branches, even of one
 * block, has to stand where both reach it, or it would be written twice.
 */
function branchesOf({ instructions, successors }: Block, { blockAt }: Region): number[] {
  const found: number[] = [];
  for (const { ending, target } of instructions)
    if (ending !== 'next' && ending !== 'ret' && ending !== 'indirect') found.push(target);
  const last = instructions[instructions.length - 1];
  if (last.ending === 'next' || last.ending === 'jcc') found.push(last.next);
  else if (last.ending === 'ret' || last.ending === 'indirect') found.push(...successors);
  return found.filter((at) => blockAt.has(at));
}

function recordBlock(block: Block, view: DataView): IrRegion {
  const recorder = new BoundRecorder(view, block.instructions[0].info.form);
  for (const insn of block.instructions) {
    const { form } = insn.info;
    recorder.bind(insn.record, insn.page, form, crossesPage(insn));
    recordInto(recorder, form);
  }
  return recorder.recording().body;
}
