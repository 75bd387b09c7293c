/**
 * The processor: state, memory, silicon operations, and the loop that runs instructions between events.
 * Manual: APM vol. 2 ch. 1, 8, 14; SDM vol. 3 ch. 2, 6, 9.
 *
 * Deterministic: time is instructions retired, nothing comes from a clock or a random source.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import type { Instruction } from '../decode/instruction.ts';
import { type CodeKey, type Engine, type EngineHost, Stale as staleParts } from '../engines/engine.ts';
import { Evaluator } from '../engines/evaluate/evaluator.ts';
import { GuestException, Unwind } from '../exceptions.ts';
import { type GuestMode, type PendingEvent, Verdict } from '../guest-mode.ts';
import { INTERCEPT_ID } from '../intercepts.ts';
import { AccessKind } from '../memory/paging.ts';
import { PAGE, type PhysicalMemory } from '../memory/physical.ts';
import { X86Emul } from '../ops.ts';
import type { ModeChange, PlatformBus, ProcessorApi, ProcessorMode, RunStop } from '../processor-api.ts';
import { CR0, CR4, EFER, Flag as flagBits, Seg, S as stateLayout, Vector } from '../state-layout.ts';
import { type AccessHost, linearOf, MemoryAccess } from './access.ts';
import { CodeKeys } from './code-key.ts';
import { ControlRegisters } from './control.ts';
import { type CpuidResult, cpuidNow, modelCpuid } from './cpuid.ts';
import { armedBreakpoints, type Breakpoint, codeHits, DebugCtl, Dr6, dataHits, ioHits } from './debug.ts';
import { DirectUnit, Direct as directOutcomes } from './direct.ts';
import { EventUnit } from './events.ts';
import { type CpuidLookup, type FeatureName, hasFeature } from './features.ts';
import { emulateModeOf, is64BitMode } from './mode.ts';
import { ModeWatch } from './mode-watch.ts';
import { installMsrHooks } from './msr-hooks.ts';
import { Msrs } from './msrs.ts';
import { SiliconOps } from './ops.ts';
import { resetState } from './reset.ts';
import { enterSmm, leaveSmm } from './smm.ts';
import { loadProcessor, saveProcessor } from './snapshot.ts';
import { StateBlock } from './state.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const S = stateLayout;
const Flag = flagBits;
const Direct = directOutcomes;
const Stale = staleParts;

/** What a processor is built from. */
export interface ProcessorOptions {
  memory: PhysicalMemory;
  model: CpuModel;
  /** Ports and memory outside RAM; null: ports float, such memory reads as ones. */
  bus?: PlatformBus | null;
  /** TSC increments per tick. Default 1. */
  tscPerTick?: number;
  /** Where the sequence of RDRAND and RDSEED starts at RESET: 64 bits. Default 0. */
  seed?: bigint;
}

/** At most this many ticks in one call of an engine. */
const SLICE = 1_000_000;
/** Flags that keep an engine away: each instruction must be looked at. RF matters to armed breakpoints only, which do so by themselves. */
const STEP_FLAGS = Flag.TF;
const RFLAGS = S.rflags >> 2;
const PE = Number(CR0.PE);
const SMAP = Number(CR4.SMAP);
const LMA = Number(EFER.LMA);
const TSD = Number(CR4.TSD);
const CET = Number(CR4.CET);
const { rdtsc: RDTSC, rdtscp: RDTSCP } = INTERCEPT_ID;
/** CPL, shadow, NMI blocking and activity: a byte each. */
const STATUS = S.cpl >> 2;
/** Not active. */
const INACTIVE = 0xff000000 | 0;
const ERROR_SUMMARY = 0x80;
const ALWAYS_BRANCHES = new Set('jmp call ret jmpfar callfar retfar iret syscall sysret sysenter sysexit'.split(' '));
/** Shadow left by MOV SS. */
const MOV_SS = 2;

export class Processor implements ProcessorApi, EngineHost, AccessHost {
  readonly memory: PhysicalMemory;
  readonly model: CpuModel;
  readonly bus: PlatformBus | null;
  readonly state: StateBlock;
  readonly access: MemoryAccess;
  readonly control: ControlRegisters;
  readonly msrs: Msrs;
  readonly ops: SiliconOps;
  readonly events: EventUnit;
  readonly evaluator: Evaluator;
  readonly exception: GuestException;
  readonly seed: bigint;
  readonly pagingModel: { maxphyaddr: number; gbPages: boolean; amd: boolean };
  engine: Engine | null = null;
  tick = 0;
  deadline = Number.POSITIVE_INFINITY;
  interruptPending = false;
  nmiPending = false;
  smiPending = false;
  initPending = false;
  eventInDelivery: PendingEvent | undefined = undefined;
  shutdownCause: ProcessorApi['shutdownCause'] = undefined;
  #tscAdjust = 0n;
  /** The SMI came while NMIs were blocked: they stay so after RSM. */
  smmInsideNmi = false;
  /** FERR# is asserted: it falls with FSW.ES. */
  ferr = false;
  /** Set by the driver while a nested guest runs; part of {@link ProcessorMode}. */
  nested = false;
  readonly #cpuid: CpuidLookup;
  readonly #features = new Map<FeatureName, boolean>();
  readonly tscPerTick: number;
  readonly #tscPerTick: bigint;
  /** The guest that runs, or that an exit has taken off. */
  #owner: GuestMode | null = null;
  #inGuest = false;
  /** Everything derived from the guest's state was up to date when an exit took it off. */
  #left = false;
  readonly #watch: ModeWatch;
  readonly #codeKeys: CodeKeys;
  readonly #direct: DirectUnit;
  #armed: readonly Breakpoint[] = [];
  /** DR6 bits that the running instruction's accesses hit. */
  #hits = 0n;
  /** CS base before the running instruction; outside 64-bit mode it has 32 bits. */
  #codeBase = 0;
  /** What an engine's slow path met. */
  #recorded: GuestException | 'exit' | null = null;
  #codeHit = false;

  constructor({ memory, model, bus, tscPerTick, seed }: ProcessorOptions) {
    this.seed = BigInt.asUintN(64, seed ?? 0n);
    this.memory = memory;
    this.model = model;
    this.bus = bus ?? null;
    this.tscPerTick = tscPerTick ?? 1;
    this.#tscPerTick = BigInt(this.tscPerTick);
    this.#cpuid = modelCpuid(model);
    this.state = new StateBlock(memory);
    this.exception = new GuestException();
    this.pagingModel = {
      maxphyaddr: model.maxphyaddr,
      gbPages: this.has('pdpe1gb'),
      amd: model.vendor === 'amd',
    };
    this.access = new MemoryAccess(this);
    this.control = new ControlRegisters(this);
    this.msrs = new Msrs(model, this.state, (feature) => this.has(feature));
    installMsrHooks(this);
    this.ops = new SiliconOps(this);
    this.events = new EventUnit(this);
    this.evaluator = new Evaluator(this.ops, {
      subset: 'x86',
      vendor: model.vendor,
      mode: () => emulateModeOf(this.state),
    });
    this.#watch = new ModeWatch(this);
    this.#codeKeys = new CodeKeys(this.state);
    this.#direct = new DirectUnit(this, this.tscPerTick);
    this.reset(false);
  }

  get guest(): GuestMode | null {
    return this.#inGuest ? this.#owner : null;
  }
  set guest(guest: GuestMode | null) {
    this.#inGuest = guest !== null;
    this.#owner = guest;
    this.state.touch();
  }

  leaveGuest(): boolean {
    const { state } = this;
    // Generated code loads segments in real mode without a word.
    const same = !state.moved && (state.words[S.cr0 >> 2] & PE) !== 0;
    this.#left = state.isSettled;
    this.#inGuest = false;
    state.touch();
    state.touched = false;
    state.moved = false;
    return same;
  }
  resumeGuest(guest: GuestMode, cr0Written = false): void {
    const { state } = this;
    // Whoever listens to modes wants to know CR0 as it was before the next switch.
    const unseen = !cr0Written || this.#watch.listener === null;
    const known = this.#left && this.#owner === guest && !state.touched && unseen;
    if (this.#owner !== guest) this.#owner = guest;
    this.#inGuest = true;
    if (known) {
      state.settle();
      if (cr0Written) state.touchRights();
      // DR0-DR3 are the host's to load.
      if (this.#armed.length !== 0) this.armBreakpoints();
      return;
    }
    state.touch();
    this.armBreakpoints();
    this.noticeMode('vmentry');
  }
  mayReenterGuest(): boolean {
    const { state } = this;
    // Generated code loads segments in real mode without a word: the next exit has to know.
    if ((state.words[S.cr0 >> 2] & PE) === 0) state.moved = true;
    return state.isSettled && this.#armed.length === 0 && this.events.waiting === 0 && this.#watch.listener === null;
  }
  reenterGuest(cr0Written: boolean): void {
    if (cr0Written) this.state.touchRights();
  }

  /** Does the model have a feature? Static: dynamic CPUID bits don't count. */
  has(feature: FeatureName): boolean {
    let known = this.#features.get(feature);
    if (known === undefined) this.#features.set(feature, (known = hasFeature(this.#cpuid, feature)));
    return known;
  }

  cpuid(leaf: number, subleaf: number): CpuidResult {
    const { cr4 } = this.state;
    const now = { cr4, apicBase: this.state.get64(S.apicBase), xcr0: this.state.get64(S.xcr0) };
    return cpuidNow(this.#cpuid, now, leaf, subleaf);
  }
  rdmsr(index: number): bigint | undefined {
    return this.msrs.read(index);
  }
  wrmsr(index: number, value: bigint): number {
    return this.msrs.write(index, value);
  }
  /** Added to the TSC by WRMSR. */
  get tscAdjust(): bigint {
    return this.#tscAdjust;
  }
  set tscAdjust(value: bigint) {
    this.#tscAdjust = value;
    this.state.touchRun();
  }
  /** The TSC without a guest's offset. */
  tsc(): bigint {
    return BigInt(this.tick) * this.#tscPerTick + this.tscAdjust;
  }

  // Running

  run(): RunStop {
    if (this.eventInDelivery !== undefined) this.eventInDelivery = undefined;
    for (;;) {
      let stop: RunStop | undefined;
      if (this.events.isCalm()) {
        stop = this.#isPlain() ? this.#runEngine(this.engine!) : this.#next();
      } else stop = this.events.boundary() ?? this.#next();
      if (stop !== undefined) return stop;
    }
  }
  #next(): RunStop | undefined {
    return this.state.activity === 0 ? this.#advance() : this.#idle();
  }
  /** With calm events: nothing keeps the engine away. */
  #isPlain(): boolean {
    const { words } = this.state;
    return (
      (words[STATUS] & INACTIVE) === 0 &&
      (words[RFLAGS] & STEP_FLAGS) === 0 &&
      this.#armed.length === 0 &&
      this.engine !== null
    );
  }

  /** Not active: halted, shut down or waiting for SIPI. */
  #idle(): RunStop | undefined {
    const { state } = this;
    if (state.activity === 2) return this.#inShutdown();
    const guest = this.guest;
    if (guest === null) return 'halt';
    const next = Math.min(this.deadline, guest.deadline);
    // Nothing can be asked of the guest before the next timer: time jumps there.
    if (next > this.tick && Number.isFinite(next)) {
      this.tick = next;
      return undefined;
    }
    return 'halt';
  }

  #inShutdown(): RunStop {
    if (this.guest === null || !this.guest.interceptShutdown()) return 'shutdown';
    this.state.activity = 0;
    return 'guest-exit';
  }

  /** One engine slice or one evaluated instruction. */
  #advance(): RunStop | undefined {
    if (this.engine === null || this.#mustStep()) return this.step();
    return this.state.shadow === 0 ? this.#runEngine(this.engine) : this.#runShadowed(this.engine);
  }

  /** One instruction under a shadow, behind which something may be due. */
  #runShadowed(engine: Engine): RunStop | undefined {
    const { state } = this;
    const alignment = state.words[RFLAGS] & Flag.AC;
    const reason = engine.run(1);
    this.tick += engine.retired;
    if ((state.words[RFLAGS] & Flag.AC) !== alignment) state.touchRights();
    if (engine.retired !== 0) return undefined;
    return reason === 'instruction' ? this.#handedBack(engine.instruction) : this.#fault();
  }

  #runEngine(engine: Engine): RunStop | undefined {
    const { state, guest, tick } = this;
    const guestDeadline = guest === null ? Number.POSITIVE_INFINITY : guest.deadline;
    const budget = Math.min(SLICE, this.deadline - tick, guestDeadline - tick);
    if (budget <= 0) return this.step();
    const alignment = state.words[RFLAGS] & Flag.AC;
    const reason = engine.run(budget);
    this.tick += engine.retired;
    // Generated code writes RFLAGS past the accessors; AC belongs to the TLB context.
    if ((state.words[RFLAGS] & Flag.AC) !== alignment) state.touchRights();
    if (reason === 'budget') return undefined;
    return reason === 'instruction' ? this.#handedBack(engine.instruction) : this.#fault();
  }

  #handedBack(insn: Instruction | null): RunStop | undefined {
    // Events may have come in through the engine's MMIO: the boundary goes first, once.
    if (this.engine!.retired !== 0 && this.#isEventPending()) return undefined;
    if (insn === null) return this.#execute(null);
    const outcome = this.#direct.execute(insn);
    if (outcome === Direct.refused) return this.#execute(insn);
    if (outcome === Direct.left) return 'guest-exit';
    this.tick++;
    return undefined;
  }

  #isEventPending(): boolean {
    return this.interruptPending || this.nmiPending || this.smiPending || this.initPending;
  }

  #fault(): RunStop | undefined {
    const recorded = this.#recorded;
    this.#recorded = null;
    if (recorded === 'exit') return 'guest-exit';
    if (recorded !== null) return this.#raised(recorded, false);
    return this.engine!.retired !== 0 && this.#isEventPending() ? undefined : this.step();
  }

  #mustStep(): boolean {
    const { state } = this;
    return (
      (state.words[RFLAGS] & STEP_FLAGS) !== 0 ||
      this.#armed.length !== 0 ||
      this.events.waiting !== 0 ||
      (this.guest?.boundaryWork === true && !this.#boundaryWaits())
    );
  }

  /** The guest's owner waits for RFLAGS.IF alone, or for the IRET behind which NMIs come again: engines come back when that happens. */
  #boundaryWaits(): boolean {
    const { guest, state } = this;
    if (guest?.boundaryNeedsIf === true) return (state.rflagsLow & Flag.IF) === 0;
    return guest?.boundaryNeedsNmis === true && state.nmiBlocked;
  }

  /** Decodes and executes one instruction (one iteration, with REP) by evaluate. undefined: go on. */
  step(): RunStop | undefined {
    const breakpoints = this.#codeBreakpoints();
    if (breakpoints !== 0n) {
      return this.events.raise(Vector.DB, undefined, breakpoints, false) ? undefined : this.#afterEvent();
    }
    return this.#execute(null);
  }

  #codeBreakpoints(): bigint {
    if (this.#armed.length === 0 || (this.state.rflagsLow & Flag.RF) !== 0) return 0n;
    // Intel holds instruction breakpoints back behind MOV SS too, and they are lost (SDM vol. 3 section 6.8.3).
    if ((this.state.shadow & MOV_SS) !== 0 && this.model.vendor === 'intel') return 0n;
    return codeHits(this.#armed, this.linearRip());
  }

  /** Linear address of the instruction at CS:RIP. */
  linearRip(): bigint {
    const { state } = this;
    return is64BitMode(state) ? state.rip : (state.segmentBase(Seg.CS) + state.rip) & 0xffffffffn;
  }

  #execute(decoded: Instruction | null): RunStop | undefined {
    const { evaluator, ops } = this;
    this.#codeBase = this.state.block.getUint32(S.segments + Seg.CS * 16 + 8, true);
    ops.begin();
    this.#hits = 0n;
    let code = decoded === null ? evaluator.decode() : X86Emul.CONTINUE;
    const insn = decoded ?? evaluator.instruction;
    if (code === X86Emul.CONTINUE) code = evaluator.execute(insn);
    if (code === X86Emul.CONTINUE) return this.#retire(insn);
    if (code === X86Emul.PROPAGATE_FAULT) return this.#raised(evaluator.exception, evaluator.exception.trap);
    if (code === X86Emul.INTERCEPTED) return 'guest-exit';
    // What the x86 subset can't do at all is an undefined opcode.
    return code === X86Emul.UNHANDLEABLE ? this.#raised(this.exception.set(Vector.UD), false) : undefined;
  }

  #retire(insn: Instruction): RunStop | undefined {
    const { ops, state, evaluator } = this;
    this.tick++;
    // INT n and its kin clear TF on their way into the handler: no single step there.
    const steps = evaluator.context.singleStep && this.eventInDelivery === undefined;
    const step = steps && this.#stepsOver(insn) ? Dr6.BS : 0n;
    this.eventInDelivery = undefined;
    const trap = evaluator.context.debugTrap ?? 0n;
    if ((this.#hits | step | trap) !== 0n) this.events.afterInstruction(this.#hits | trap, step, ops.newShadow);
    state.shadow = ops.newShadow;
    if (this.ferr && (state.block.getUint16(S.fsw, true) & ERROR_SUMMARY) === 0) this.#dropFerr();
    if (state.modeStale) this.noticeMode(insn.row.mnemonic, insn);
    return ops.writtenCr >= 0 || ops.writtenEfer ? this.#writeTraps() : undefined;
  }

  /** TF traps behind an instruction; with DEBUGCTL.BTF behind taken branches only (SDM vol. 3 section 17.4.3, APM vol. 2 section 13.1.1). */
  #stepsOver({ row, length }: Instruction): boolean {
    const { state, evaluator } = this;
    if ((state.block.getUint32(S.debugctl, true) & DebugCtl.BTF) === 0 || ALWAYS_BRANCHES.has(row.mnemonic))
      return true;
    const next = evaluator.context.truncateRip(evaluator.context.rip + BigInt(length));
    return !row.string && state.rip !== next;
  }

  #dropFerr(): void {
    this.ferr = false;
    this.bus?.ferr?.(false);
  }

  /** Linear address of the instruction that evaluate has just executed, whatever it did to CS. */
  executedAt(): bigint {
    const { mode, rip } = this.evaluator.context;
    return mode === 'prot64' ? rip : (BigInt(this.#codeBase) + rip) & 0xffffffffn;
  }

  /** Write traps: the write is done, RIP stands behind the instruction (APM 15.35.5). */
  #writeTraps(): RunStop | undefined {
    const { ops } = this;
    const guest = this.guest;
    if (guest === null) return undefined;
    if (ops.writtenCr >= 0 && guest.crWritten(ops.writtenCr, ops.writtenCrValue)) return 'guest-exit';
    return ops.writtenEfer && guest.msrWritten?.(0xc0000080, this.state.efer) ? 'guest-exit' : undefined;
  }

  #raised(exception: GuestException, trap: boolean): RunStop | undefined {
    const { vector, errorCode, payload } = exception;
    return this.events.raise(vector, errorCode, payload, trap) ? undefined : this.#afterEvent();
  }

  #afterEvent(): RunStop | undefined {
    return this.state.activity === 2 ? undefined : 'guest-exit';
  }

  injectEvent(event: PendingEvent): boolean {
    if (event.kind === 'nmi') this.state.nmiBlocked = true;
    if (this.events.deliver(event, false)) return true;
    if (this.state.activity === 2) this.#inShutdown();
    return false;
  }

  /** Shutdown (triple fault): the loop asks the guest's owner, then stops. */
  shutdown(): void {
    this.eventInDelivery = undefined;
    this.state.activity = 2;
  }

  // Mode

  stateReplaced(cause: string): void {
    this.state.touch();
    this.armBreakpoints();
    this.noticeMode(cause);
  }

  mode(): ProcessorMode {
    return this.#watch.mode();
  }
  /** Fires for each change of mode. While nobody listens the mode is not even looked at. */
  get onModeChange(): ((change: ModeChange) => void) | null {
    return this.#watch.listener;
  }
  set onModeChange(listener: ((change: ModeChange) => void) | null) {
    if (this.#watch.listener === null) this.#watch.remember();
    this.#watch.listener = listener;
    this.state.touch();
  }
  /** Called wherever an instruction, an event or a world switch has ended. */
  noticeMode(cause: string, insn?: Instruction): void {
    if (this.state.modeStale && cause !== 'vmexit') this.#watch.notice(cause, insn);
  }

  /** After a load: the mode is what the block says, and no switch has happened. */
  modeLoaded(): void {
    this.state.touch();
    this.state.modeStale = false;
    this.armBreakpoints();
    this.#watch.remember();
  }

  reset(init: boolean): void {
    resetState(this, init);
    this.eventInDelivery = undefined;
    this.events.waiting = 0;
    this.#recorded = null;
    if (this.ferr && !init) this.#dropFerr();
    this.stateReplaced(init ? 'init' : 'reset');
    if (!init) this.engine?.invalidateAll();
  }

  enterSmm(): void {
    enterSmm(this);
  }
  leaveSmm(): number {
    return leaveSmm(this);
  }

  flushTlb(what: Parameters<ProcessorApi['flushTlb']>[0]): void {
    const { tlb } = this.access;
    if (what.kind === 'all') tlb.flushAll();
    else if (what.kind === 'asid') tlb.flushAsid(what.asid, what.keepGlobal);
    else if (what.kind === 'page') tlb.flushPage(what.asid, what.linear);
    else tlb.flushNested(what.root);
  }

  // Debug registers

  get deliveredAt(): number {
    return this.events.deliveredAt;
  }
  set deliveredAt(tick: number) {
    this.events.deliveredAt = tick;
  }
  get pendingDebug(): bigint {
    return this.events.pendingDebug;
  }
  set pendingDebug(bits: bigint) {
    this.events.pendingDebug = bits;
  }

  /** Follows DR0-DR3 and DR7. */
  armBreakpoints(): void {
    this.#armed = armedBreakpoints(this.state);
    this.access.watching = this.#armed.length !== 0;
  }
  noteDataBreakpoint(low: number, high: number, size: number, write: boolean): void {
    this.#hits |= dataHits(this.#armed, linearOf(low, high), size, write);
  }
  noteIoBreakpoint(port: number, size: number): void {
    if (this.#armed.length !== 0) this.#hits |= ioHits(this.state, this.#armed, port, size);
  }

  // EngineHost

  takeStale(): number {
    const { state } = this;
    const segments = state.segmentsStale ? Stale.segments : 0;
    if (!state.runStale && !state.rightsStale) {
      state.segmentsStale = false;
      return segments;
    }
    // The key and the context are made now, if need be, and that makes nothing stale again.
    if (state.derivedStale) this.access.refresh();
    const what = state.runStale ? Stale.all : Stale.rights | segments;
    state.runPrepared();
    return what;
  }
  tlbContext(): number {
    return this.access.context();
  }
  codeKey(): CodeKey {
    return this.#codeKeys.now();
  }
  awaitsInterrupts(): boolean {
    return this.interruptPending || this.guest?.boundaryWork === true;
  }
  plainFlagImages(): boolean {
    return this.guest === null || this.guest.interceptsFlagImages === false;
  }
  cr0Owned(): number {
    if (this.onModeChange !== null) return -1;
    const { guest } = this;
    return guest === null ? 0 : (guest.direct?.cr0Owned?.() ?? -1);
  }
  otherContext(): number {
    if (this.onModeChange !== null || (this.state.words[S.cr4 >> 2] & CET) !== 0) return 0;
    const { guest } = this;
    return guest === null || guest.direct?.yieldsWp?.() === true ? this.access.otherContext() : 0;
  }
  contextExchanged(): void {
    this.state.touchRights();
  }
  tscOffset(): bigint {
    const guest = this.guest;
    return guest === null ? this.#tscAdjust : this.#tscOf(guest);
  }
  /** The sum is made when one of its parts is another. */
  #guestTsc = { offset: 0n, adjust: 0n, sum: 0n };
  #tscOf({ tscOffset }: GuestMode): bigint {
    const known = this.#guestTsc;
    if (known.offset === tscOffset && known.adjust === this.#tscAdjust) return known.sum;
    this.#guestTsc = { offset: tscOffset, adjust: this.#tscAdjust, sum: tscOffset + this.#tscAdjust };
    return this.#guestTsc.sum;
  }
  tscReaders(): number {
    if ((this.state.words[S.cr4 >> 2] & TSD) !== 0) return 0;
    const { guest } = this;
    if (guest === null) return 3;
    const verdicts = guest.direct?.verdicts;
    if (verdicts === undefined) return 0;
    return (verdicts[RDTSC] === Verdict.pass ? 1 : 0) | (verdicts[RDTSCP] === Verdict.pass ? 2 : 0);
  }
  /** Implicit reads of the GDT are like any other at level 0, where SMAP does not tell them apart. */
  loadsSegments(): number {
    const { words } = this.state;
    if (this.onModeChange !== null || (words[S.efer >> 2] & LMA) !== 0) return 0;
    if ((words[S.cr0 >> 2] & PE) === 0) return 2;
    if ((words[S.cr4 >> 2] & SMAP) !== 0 || (words[RFLAGS] & Flag.VM) !== 0) return 0;
    return (words[STATUS] & 0xff) === 0 ? 1 : 0;
  }
  segmentsLoaded(): void {
    // The engine has followed already.
    this.state.touched = true;
    this.state.moved = true;
  }
  cr0Seen(): number {
    const real = this.state.words[S.cr0 >> 2];
    return this.guest?.viewCr?.(0, real) ?? real;
  }
  codeWritten(pa: number, length: number): void {
    const hostPage = Math.floor(pa / PAGE);
    if (this.engine !== null && !this.engine.holdsCode(pa, length)) {
      // Beside the code, or the engine has forgotten the page altogether.
      if (!this.engine.holdsCode(hostPage * PAGE, PAGE)) this.access.codePages[hostPage] = 0;
      return;
    }
    if (this.engine?.patch(pa, length) === true) return;
    this.access.codePages[hostPage] = 0;
    this.#codeHit = true;
    this.engine?.invalidatePage(hostPage);
  }
  protectCodePage(hostPage: number): void {
    this.access.protectCodePage(hostPage);
  }

  /** Runs a slow path; what it throws is kept for the loop. */
  #guarded(work: () => number): number {
    try {
      return work();
    } catch (error) {
      if (error instanceof GuestException) this.#recorded = error;
      else if (error instanceof Unwind) this.#recorded = 'exit';
      else throw error;
      return 1;
    }
  }
  slowRead(low: number, high: number, size: number): number {
    return this.#slowLoad(low, high, size, AccessKind.read);
  }
  slowReadForWrite(low: number, high: number, size: number): number {
    return this.#slowLoad(low, high, size, AccessKind.write);
  }
  #slowLoad(low: number, high: number, size: number, kind: number): number {
    return this.#guarded(() => {
      // Evaluate reads devices: an engine may hand an instruction back behind its load, and a device must not be read twice.
      if (this.bus !== null && this.access.reachesBus(low, high, size, kind)) return 1;
      this.state.block.setBigUint64(S.scratch, this.access.read(low, high, size, kind), true);
      return 0;
    });
  }
  slowWrite(low: number, high: number, size: number): number {
    return this.#guarded(() => {
      const value = BigInt.asUintN(size * 8, this.state.block.getBigUint64(S.scratch, true));
      this.#codeHit = false;
      this.access.write(low, high, value, size, AccessKind.write);
      // A device may have raised an interrupt: the engine leaves, too.
      return this.#codeHit || this.interruptPending || this.nmiPending || this.smiPending ? 2 : 0;
    });
  }
  slowProbe(low: number, high: number, size: number): number {
    return this.#guarded(() => {
      // Generated code would store a vector by halves: a device sees what evaluate makes of it.
      if (size > 8 && this.bus !== null && this.access.reachesBus(low, high, size, AccessKind.write)) return 1;
      this.access.probe(low, high, size, AccessKind.write);
      return 0;
    });
  }
  translateFetch(linear: bigint): number {
    let hpa = -1;
    this.#guarded(() => {
      hpa = this.access.translate(Number(linear & 0xffffffffn) | 0, Number(linear >> 32n), AccessKind.fetch);
      return 0;
    });
    return hpa;
  }
  slowLinear(seg: number, low: number, high: number, size: number, write: number): number {
    return this.#guarded(() => {
      const { context } = this.evaluator;
      context.mode = emulateModeOf(this.state);
      const linear = context.linearize(seg, linearOf(low, high), size, write !== 0);
      this.state.block.setBigUint64(S.scratch, linear, true);
      return 0;
    });
  }
  recordException(vector: number, hasErrorCode: number, errorCode: number): void {
    this.#recorded = this.exception.set(vector, hasErrorCode !== 0 ? errorCode : undefined);
  }

  save(): unknown {
    return saveProcessor(this);
  }
  load(state: unknown): void {
    loadProcessor(this, state);
  }
}
