/**
 * The interpreter's module: `run`, one loop around one `br_table` with the hot handlers in it, and the helpers.
 * Method: facts measured for V8; one dispatch point, few locals, everything rare out of line.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { PRIVATE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import {
  Code,
  encodeModule,
  type FuncBody,
  type FuncType,
  I32,
  I64,
  type Label,
  MEM,
  OP,
  type ValType,
} from '../wasm/emitter.ts';
import { HandlerEmitter } from './emit.ts';
import type { Form } from './form.ts';
import type { Frame, Helper } from './frame.ts';
import { FILL, helperFunctions, helperIndex, hostImports } from './helpers.ts';
import type { Recording } from './ir.ts';
import { Jump, PAGE_SHIFT, SET_SHIFT } from './jump-cache.ts';
import { FreshKind } from './patching.ts';
import { Recorder } from './recorder.ts';
import { MAX_RUN, Outcome, P, R, RECORD_SHIFT, Special, Status } from './records.ts';

/** A handler inside `run`. */
export interface HotHandler {
  record: () => Recording;
  dropFlags: boolean;
}

/** Out-of-line handlers: (record, RIP at page offset 0) → Outcome. */
export const OUT_OF_LINE: FuncType = { params: [I32, I64], results: [I32] };
export const TABLE_SIZE = 16384;
/** Translated regions: (record, RIP at page offset 0, ticks left, entry) → ticks left. No tick used: the record is not for the region now. */
export const REGION: FuncType = { params: [I32, I64, I32, I32], results: [I32] };
/** Entries of regions stand behind the out-of-line functions in the table. */
export const REGION_ENTRIES = 16384;

const RUN: FuncType = { params: [I32, I32], results: [I32] };
/** Locals of `run`; the first two are its parameters (ticks becomes `budget`). */
const L = {
  pc: 0,
  /**
   * Ticks left, as bytes of records: where a straight run of all of them would end, (record where this run began) + ticks * R.size.
   * On the way from one run to another (`transfer`, `lookup`) it is ticks * R.size alone.
   */
  budget: 1,
  status: 2,
  hash: 3,
  /** Host physical address of the page. */
  page: 4,
  result: 5,
  aux: 6,
  pageBase: 7,
  target: 8,
  context: 9,
  /** The record that went to `target` if it always goes to that place of its page; else 0. */
  from: 10,
} as const;
const FIXED: ValType[] = [I32, I32, I32, I64, I64, I64, I64, I64, I32];
const POOL = 12;
const FIRST_I64 = 2 + FIXED.length;
const FIRST_I32 = FIRST_I64 + POOL;

const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;

interface Labels {
  dispatch: Label;
  lookup: Label;
  transfer: Label;
  fault: Label;
  leaveHere: Label;
  leaveAtTarget: Label;
}

class Pool {
  readonly #free: number[];
  constructor(
    first: number,
    count: number,
    readonly what: string,
  ) {
    this.#free = Array.from({ length: count }, (_, i) => first + count - 1 - i);
  }
  acquire(): number {
    const local = this.#free.pop();
    if (local === undefined) throw new RangeError(`a handler needs too many ${this.what} locals`);
    return local;
  }
  release(local: number): void {
    this.#free.push(local);
  }
}

/** Writes the body of `run`. */
class RunEmitter implements Frame {
  readonly code = new Code();
  readonly pc = L.pc;
  readonly pageBase = L.pageBase;
  readonly #i64 = new Pool(FIRST_I64, POOL, 'i64');
  readonly #i32 = new Pool(FIRST_I32, POOL, 'i32');
  #labels!: Labels;

  constructor(readonly long: boolean) {}

  helper(name: Helper): number {
    return helperIndex(name);
  }
  getFlag(which: 'result' | 'aux'): void {
    this.code.get(L[which]);
  }
  setFlag(which: 'result' | 'aux'): void {
    this.code.set(L[which]);
  }
  context(): void {
    this.code.get(L.context);
  }
  contextHash(): void {
    this.code.get(L.hash);
  }
  acquire(type: ValType): number {
    return type === I64 ? this.#i64.acquire() : this.#i32.acquire();
  }
  release(local: number, type: ValType): void {
    (type === I64 ? this.#i64 : this.#i32).release(local);
  }
  get fault(): Label {
    return this.#labels.fault;
  }

  /** Pushes the ticks that are left before this instruction, times R.size. */
  #left(): Code {
    return this.code.get(L.budget).get(L.pc).op(OP.i32Sub);
  }
  /** The same after it. */
  #leftAfter(): Code {
    return this.#left().i32(R.size).op(OP.i32Sub);
  }

  jump(target: () => void, direct: boolean, check: ((local: number) => void) | null): void {
    const { code } = this;
    if (!direct) {
      target();
      code.set(L.target);
      check?.(L.target);
      this.#leftAfter().set(L.budget);
      code.i32(0).set(L.from).br(this.#labels.transfer);
      return;
    }
    const link = this.acquire(I32);
    const left = this.acquire(I32);
    code.get(L.pc).mem(MEM.i32Load, R.link).tee(link).op(OP.i32Eqz);
    this.#leftAfter()
      .tee(left)
      .i32(MAX_RUN * R.size)
      .op(OP.i32LtS)
      .op(OP.i32Or)
      .if();
    target();
    code.set(L.target);
    check?.(L.target);
    code.get(left).set(L.budget).get(L.pc).set(L.from).br(this.#labels.transfer).end();
    code.get(left).get(link).tee(L.pc).op(OP.i32Add).set(L.budget).br(this.#labels.dispatch);
    this.release(link, I32);
    this.release(left, I32);
  }

  repeat(): void {
    this.code.get(L.budget).i32(R.size).op(OP.i32Sub).set(L.budget);
    this.#again();
  }
  repeatAfter(ticks: number): void {
    this.code.get(L.budget).get(ticks).i32(RECORD_SHIFT).op(OP.i32Shl).op(OP.i32Sub).set(L.budget);
    this.#again();
  }
  ticksLeft(): void {
    this.#left().i32(RECORD_SHIFT).op(OP.i32ShrS);
  }
  #again(): void {
    const { code } = this;
    this.#left()
      .i32(MAX_RUN * R.size)
      .op(OP.i32LtS)
      .if();
    this.#leaveHere(Status.budget);
    code.end().br(this.#labels.dispatch);
  }

  handBack(): void {
    this.#leaveHere(Status.instruction);
  }
  shadowed(next: () => void): void {
    next();
    this.code.set(L.target);
    this.#leftAfter().set(L.budget);
    this.#leaveAtTarget(Status.shadowed);
  }
  recontext(next: () => void): void {
    const { code } = this;
    next();
    code.set(L.target);
    this.#leftAfter().set(L.budget);
    this.#loadContext();
    this.#leavePage();
    code.i32(0).set(L.from).br(this.#labels.transfer);
  }
  #loadContext(): void {
    this.code.i32(0).mem(MEM.i64Load, P.context).set(L.context);
    this.code.i32(0).mem(MEM.i32Load, P.contextHash).set(L.hash);
  }
  /** No page is current: RIP, in `target`, lies in none. */
  #leavePage(): void {
    this.code.get(L.target).i64(1n).op(OP.i64Add).set(L.pageBase);
  }

  #leaveHere(status: number): void {
    this.code.i32(status).set(L.status).br(this.#labels.leaveHere);
  }
  #leaveAtTarget(status: number): void {
    this.code.i32(status).set(L.status).br(this.#labels.leaveAtTarget);
  }
  #advance(): void {
    this.code.get(L.pc).i32(R.size).op(OP.i32Add).set(L.pc).br(this.#labels.dispatch);
  }

  /** A piece of bookkeeping written in the Builder's terms. */
  #emit(record: (r: Recorder) => void): void {
    const recorder = new Recorder(PLAIN);
    record(recorder);
    new HandlerEmitter(this).emit(recorder.recording(), false);
  }

  build(handlers: readonly HotHandler[]): FuncBody {
    const { code } = this;
    code.get(L.budget).i32(RECORD_SHIFT).op(OP.i32Shl).get(L.pc).op(OP.i32Add).set(L.budget);
    code.i32(0).mem(MEM.i32Load, P.page).set(L.page);
    this.#loadContext();
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.rip)
      .get(L.pc)
      .mem(MEM.i64Load16U, R.offset)
      .op(OP.i64Sub)
      .set(L.pageBase);
    this.#emit((r) => r.loadFlags());
    const leaveAtTarget = code.block();
    const leaveHere = code.block();
    const fault = code.block();
    const dispatch = code.loop();
    const lookup = code.block();
    const transfer = code.block();
    this.#labels = { dispatch, lookup, transfer, fault, leaveHere, leaveAtTarget };
    this.#dispatch(handlers);
    code.end();
    code
      .get(L.budget)
      .i32(MAX_RUN * R.size)
      .op(OP.i32LtS)
      .if();
    this.#leaveAtTarget(Status.budget);
    code.end().end();
    this.#lookup();
    code.end().op(OP.unreachable).end();
    code.i32(Status.fault).set(L.status).end();
    this.#left().set(L.budget);
    code.get(L.pc).mem(MEM.i64Load16U, R.offset).get(L.pageBase).op(OP.i64Add).set(L.target).end();
    this.#epilogue();
    const locals: ValType[] = [...FIXED, ...Array<ValType>(POOL).fill(I64), ...Array<ValType>(POOL).fill(I32)];
    return { type: RUN, locals, code, export: 'run' };
  }

  #epilogue(): void {
    const { code } = this;
    code
      .i32(0)
      .get(L.target)
      .mem(MEM.i64Store, Layout.state + S.rip);
    code.i32(0).get(L.budget).i32(RECORD_SHIFT).op(OP.i32ShrS).mem(MEM.i32Store, P.remaining);
    code.i32(0).get(L.pc).mem(MEM.i32Store, P.pc);
    this.#emit((r) => r.spillFlags());
    code.get(L.status);
  }

  #dispatch(handlers: readonly HotHandler[]): void {
    const { code } = this;
    const outOfLine = code.block();
    const labels: Label[] = [];
    for (let i = Special.count + handlers.length - 1; i >= 0; i--) labels[i] = code.block();
    code.get(L.pc).mem(MEM.i32Load16U, R.handler).brTable(labels, outOfLine);
    code.end();
    this.#leaveHere(Status.miss);
    code.end();
    this.#leaveHere(Status.stop);
    code.end();
    this.#leaveHere(Status.instruction);
    code.end();
    this.#link();
    code.end();
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.rip)
      .set(L.target);
    this.#leavePage();
    this.#left().set(L.budget);
    code.i32(0).set(L.from).br(this.#labels.lookup);
    code.end();
    this.#guard();
    code.end();
    this.#fresh();
    for (const handler of handlers) {
      code.end();
      new HandlerEmitter(this).emit(handler.record(), handler.dropFlags);
      this.#advance();
    }
    code.end();
    this.#outOfLine(Special.count + handlers.length);
  }

  /** Not an instruction: goes on elsewhere. */
  #link(): void {
    const { code } = this;
    const link = this.acquire(I32);
    this.#left().set(L.budget);
    code.get(L.pc).mem(MEM.i32Load, R.link).tee(link).op(OP.i32Eqz);
    code
      .get(L.budget)
      .i32(MAX_RUN * R.size)
      .op(OP.i32LtS)
      .op(OP.i32Or)
      .if();
    code
      .get(L.pc)
      .mem(MEM.i64Load16U, R.offset)
      .get(L.pageBase)
      .op(OP.i64Add)
      .set(L.target)
      .get(L.pc)
      .set(L.from)
      .br(this.#labels.transfer)
      .end();
    code.get(link).tee(L.pc).get(L.budget).op(OP.i32Add).set(L.budget).br(this.#labels.dispatch);
    this.release(link, I32);
  }

  /** Reads the next record's immediate from the code. */
  #fresh(): void {
    const { code } = this;
    const at = this.acquire(I32);
    const kind = this.acquire(I32);
    code.get(L.page).get(L.pc).mem(MEM.i32Load16U, R.reg).op(OP.i32Add).set(at);
    code.get(L.pc).mem(MEM.i32Load8U, R.scale).set(kind);
    const loads: readonly [number, number][] = [
      [FreshKind.signed32, MEM.i64Load32S],
      [FreshKind.signed8, MEM.i64Load8S],
      [FreshKind.unsigned8, MEM.i64Load8U],
      [FreshKind.signed16, MEM.i64Load16S],
      [FreshKind.unsigned16, MEM.i64Load16U],
    ];
    code.get(L.pc);
    for (const [which, load] of loads) {
      code.get(kind).i32(which).op(OP.i32Eq).if(I64);
      code.get(at).mem(load, PRIVATE).else();
    }
    code.get(at).mem(MEM.i64Load, PRIVATE);
    for (const _ of loads) code.end();
    code.mem(MEM.i64Store, R.size + R.imm);
    code.get(L.budget).i32(R.size).op(OP.i32Add).set(L.budget);
    this.#advance();
    this.release(at, I32);
    this.release(kind, I32);
  }

  /** Not an instruction either: is the page behind this one still where the next record was decoded from? */
  #guard(): void {
    const { code } = this;
    const linear = this.acquire(I64);
    const next = this.acquire(I64);
    const entry = this.acquire(I32);
    const missed = code.block();
    code.get(L.pageBase).i64(4096n).op(OP.i64Add).set(next);
    this.#requireLimit(next, missed);
    this.#linearOf(next, linear);
    this.#findEntry(linear, entry, missed);
    code
      .get(entry)
      .mem(MEM.i32Load, Layout.tlb + TlbEntry.infoExec)
      .i32(-4096)
      .op(OP.i32And);
    code.get(L.pc).mem(MEM.i32Load, R.link).op(OP.i32Ne).brIf(missed);
    code.get(L.budget).i32(R.size).op(OP.i32Add).set(L.budget);
    this.#advance();
    code.end();
    this.#leaveHere(Status.instruction);
    this.release(linear, I64);
    this.release(next, I64);
    this.release(entry, I32);
  }

  #outOfLine(first: number): void {
    const { code } = this;
    const status = this.acquire(I32);
    const slot = this.acquire(I32);
    this.#storeFlags();
    code.get(L.pc).mem(MEM.i32Load16U, R.handler).i32(first).op(OP.i32Sub).tee(slot);
    code.i32(TABLE_SIZE).op(OP.i32GeU).if();
    this.#region(slot, status);
    code.get(L.pc).mem(MEM.i32Load16U, R.plain).i32(first).op(OP.i32Sub).tee(slot);
    // A guard's region that is not for it now.
    code.i32(0).op(OP.i32LtS).if();
    this.#leaveHere(Status.instruction);
    code.end().end();
    code.i32(0);
    this.ticksLeft();
    code.mem(MEM.i32Store, P.left);
    code.get(L.pc).get(L.pageBase).get(slot).callIndirect(0, 0).set(status);
    this.release(slot, I32);
    this.#loadFlags();
    code.get(status).op(OP.i32Eqz).if();
    this.#advance();
    code.end();
    code.get(status).i32(Outcome.fault).op(OP.i32Eq).brIf(this.#labels.fault);
    code.get(status).i32(Outcome.jumped).op(OP.i32Eq).if();
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.rip)
      .set(L.target);
    this.#leftAfter().set(L.budget);
    code.i32(0).set(L.from).br(this.#labels.transfer).end();
    code.get(status).i32(Outcome.handBack).op(OP.i32Eq).if();
    this.handBack();
    code.end();
    code.get(status).i32(Outcome.shadowed).op(OP.i32Eq).if();
    this.shadowed(() => code.i32(0).mem(MEM.i64Load, Layout.state + S.rip));
    code.end();
    code.get(status).i32(Outcome.recontext).op(OP.i32Eq).if();
    this.recontext(() => code.i32(0).mem(MEM.i64Load, Layout.state + S.rip));
    code.end();
    code.get(status).i32(RECORD_SHIFT).op(OP.i32ShrU).set(status);
    this.repeatAfter(status);
    this.release(status, I32);
  }

  /** Runs a region; goes on where it left, unless it used no tick. */
  #region(slot: number, left: number): void {
    const { code } = this;
    this.#left().i32(RECORD_SHIFT).op(OP.i32ShrU).set(left);
    const after = this.acquire(I32);
    code.get(L.pc).get(L.pageBase).get(left).get(slot).get(slot).callIndirect(1, 0);
    code.tee(after).get(left).op(OP.i32Ne).if();
    this.#loadFlags();
    code.i32(0).i32(0).mem(MEM.i32Load, P.translated).get(left).op(OP.i32Add).get(after).op(OP.i32Sub);
    code.mem(MEM.i32Store, P.translated);
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.rip)
      .set(L.target);
    code.get(after).i32(RECORD_SHIFT).op(OP.i32Shl).set(L.budget);
    code.i32(0).set(L.from).br(this.#labels.transfer).end();
    this.release(after, I32);
  }
  #storeFlags(): void {
    const { code } = this;
    code
      .i32(0)
      .get(L.result)
      .mem(MEM.i64Store, Layout.state + S.lazyResult);
    code
      .i32(0)
      .get(L.aux)
      .mem(MEM.i64Store, Layout.state + S.lazyAux);
  }
  #loadFlags(): void {
    const { code } = this;
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.lazyResult)
      .set(L.result);
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.lazyAux)
      .set(L.aux);
  }

  /** Finds `target`'s record: in this page by its offset, elsewhere through the TLB; then what `from` knows, or the jump cache. */
  #lookup(): void {
    const { code } = this;
    const linear = this.acquire(I64);
    const [entry, pa] = [this.acquire(I32), this.acquire(I32)];
    const missed = code.block();
    code.get(L.target).get(L.pageBase).op(OP.i64Sub).tee(linear).i64(4096n).op(OP.i64LtU).if();
    code.get(linear).op(OP.i32WrapI64).get(L.page).op(OP.i32Or).set(pa);
    code.else();
    this.#translate(linear, entry, missed);
    code.get(linear).op(OP.i32WrapI64).i32(0xfff).op(OP.i32And).get(L.page).op(OP.i32Or).set(pa);
    code.end();
    const known = code.block();
    this.#followFar(entry, known);
    this.#findRecord(linear, pa, entry, missed);
    this.#rememberFar();
    code.end();
    code.get(L.pc).get(L.budget).op(OP.i32Add).set(L.budget);
    code.br(this.#labels.dispatch).end();
    this.#leaveAtTarget(Status.miss);
    this.release(linear, I64);
    this.release(entry, I32);
    this.release(pa, I32);
  }

  /** Goes to `known` with `pc` set if `from` knows the record of its target, in this page, and that is not stale. */
  #followFar(far: number, known: Label): void {
    const { code } = this;
    code.get(L.from).if();
    code.get(L.from).mem(MEM.i32Load, R.farPage).get(L.page).op(OP.i32Eq).if();
    code.get(L.from).mem(MEM.i32Load, R.far).tee(far).mem(MEM.i32Load16U, R.handler).if();
    code.get(far).set(L.pc).br(known).end().end().end();
  }
  #rememberFar(): void {
    const { code } = this;
    code.get(L.from).if();
    code.get(L.from).get(L.pc).mem(MEM.i32Store, R.far);
    code.get(L.from).get(L.page).mem(MEM.i32Store, R.farPage).end();
  }
  /** Sets `pc` to the record that the jump cache has for a physical address, or branches to `missed`. */
  #findRecord(found: number, pa: number, set: number, missed: Label): void {
    const { code } = this;
    const wanted = this.acquire(I64);
    code.get(pa).op(OP.i64ExtendI32U).i64(BigInt(Jump.addressShift)).op(OP.i64Shl);
    code.i32(0).mem(MEM.i64Load, P.key).op(OP.i64Or).set(wanted);
    code.get(pa).i32(SET_SHIFT).op(OP.i32ShrU).get(pa).i32(PAGE_SHIFT).op(OP.i32ShrU).op(OP.i32Xor);
    code
      .i32(Jump.sets - 1)
      .op(OP.i32And)
      .i32(4)
      .op(OP.i32Shl)
      .set(set);
    const differs = (place: number): void => {
      code
        .get(set)
        .mem(MEM.i64Load, Jump.base + place)
        .get(wanted)
        .op(OP.i64Xor)
        .tee(found);
      code.i64(1n << BigInt(Jump.idShift)).op(OP.i64GeU);
    };
    differs(0);
    code.if();
    differs(8);
    code.brIf(missed).end();
    code.get(found).op(OP.i32WrapI64).i32(RECORD_SHIFT).op(OP.i32Shl).set(L.pc);
    this.release(wanted, I64);
  }

  /** Sets `linear`, `page` and `pageBase` for `target`; branches to `missed` if the TLB or the code segment's limit does not allow it. */
  #translate(linear: number, entry: number, missed: Label): void {
    const { code } = this;
    this.#linearOf(L.target, linear);
    code.get(L.target).get(linear).i64(0xfffn).op(OP.i64And).op(OP.i64Sub).set(L.pageBase);
    // First: what lies behind the limit is not fetched.
    this.#requireLimit(L.pageBase, missed);
    this.#findEntry(linear, entry, missed);
    code
      .get(entry)
      .mem(MEM.i32Load, Layout.tlb + TlbEntry.infoExec)
      .i32(-4096)
      .op(OP.i32And)
      .set(L.page);
  }
  /** Branches to `missed` if the code segment's limit does not allow all of the page that begins at RIP `base`. */
  #requireLimit(base: number, missed: Label): void {
    const { code } = this;
    code.get(base).i64(0xfffn).op(OP.i64Add).i32(0).mem(MEM.i64Load, P.codeLimit).op(OP.i64GtU).brIf(missed);
  }
  /** Sets `linear` to the address of a RIP. */
  #linearOf(rip: number, linear: number): void {
    const { code } = this;
    code.get(rip).i32(0).mem(MEM.i64Load, P.codeBase).op(OP.i64Add);
    code.i32(0).mem(MEM.i64Load, P.linearMask).op(OP.i64And).set(linear);
  }
  /** Sets the TLB `entry` that maps a linear address for fetches, or branches to `missed`. */
  #findEntry(linear: number, entry: number, missed: Label): void {
    const { code } = this;
    code.get(linear).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64).get(L.hash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And);
    code.tee(entry).mem(MEM.i64Load, Layout.tlb + TlbEntry.tagExec);
    code.get(linear).i64(-4096n).op(OP.i64And).get(L.context).op(OP.i64Or).op(OP.i64Ne).if();
    code.get(linear).i32(TlbEntry.tagExec).call(FILL).op(OP.i32Eqz).brIf(missed).end();
  }
}

/** A form for bookkeeping: nothing about it matters. */
export const PLAIN: Form = {
  mnemonic: '',
  operands: [],
  opSize: 8,
  addrSize: 8,
  codeSize: 8,
  stackSize: 8,
  segments: 'long',
  special: -1,
  memory: 'none',
  lock: false,
  rep: 0,
  condition: -1,
  countNotZero: false,
  vendor: 'amd',
};

/** Bytes of the module. Handler numbers: {@link Special}, then `handlers`, then the table of out-of-line functions. */
export function mainModule(handlers: readonly HotHandler[], long: boolean): Uint8Array<ArrayBuffer> {
  return encodeModule({
    types: [OUT_OF_LINE, REGION],
    imports: hostImports(),
    functions: [...helperFunctions(), new RunEmitter(long).build(handlers)],
    table: TABLE_SIZE + REGION_ENTRIES,
  });
}
