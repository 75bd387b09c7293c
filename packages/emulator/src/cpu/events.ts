/**
 * Events at instruction boundaries: their order, exceptions while exceptions are delivered, interrupts, NMI, SMI, INIT, debug traps.
 * Manual: APM vol. 2 sections 8.5 (table 8-8, priorities) and 8.2.9 (#DF), SDM vol. 3 tables 6-2 and 6-5.
 */
import { EvaluateContext } from '../engines/evaluate/context.ts';
import { GuestException, Unwind } from '../exceptions.ts';
import type { PendingEvent } from '../guest-mode.ts';
import type { RunStop } from '../processor-api.ts';
import { Flag, S, Vector } from '../state-layout.ts';
import { deliverEvent } from '../system/events.ts';
import { DebugCtl, DR7_GD, mergeDr6 } from './debug.ts';
import { deliverDirectly } from './direct-delivery.ts';
import type { PlainUnit } from './direct-transfer.ts';
import { emulateModeOf } from './mode.ts';
import type { Processor } from './processor.ts';

type Class = 'benign' | 'contributory' | 'page';
const CONTRIBUTORY: ReadonlySet<number> = new Set([
  Vector.DE,
  Vector.TS,
  Vector.NP,
  Vector.SS,
  Vector.GP,
  Vector.CP,
  Vector.VC,
]);
const classOf = (vector: number): Class =>
  vector === Vector.PF ? 'page' : CONTRIBUTORY.has(vector) ? 'contributory' : 'benign';

/** What an exception becomes that was raised while `during` was being delivered (APM vol. 2 table 8-3, SDM vol. 3 table 6-5). */
export function combine(during: PendingEvent | undefined, vector: number): 'alone' | 'double' | 'shutdown' {
  if (during === undefined || during.kind !== 'exception') return 'alone';
  const second = classOf(vector);
  if (second === 'benign') return 'alone';
  if (during.vector === Vector.DF) return 'shutdown';
  const first = classOf(during.vector);
  if (first === 'benign') return 'alone';
  return first === 'page' || second === 'contributory' ? 'double' : 'alone';
}

const SOFT: ReadonlySet<PendingEvent['kind']> = new Set(['softint', 'softexception', 'icebp']);
const RF = BigInt(Flag.RF);
const BTF = BigInt(DebugCtl.BTF);
const MOV_SS = 2;

export class EventUnit {
  /** DR6 bits of debug traps that wait for the next boundary. */
  waiting = 0;
  /** Tick of the last delivery. */
  deliveredAt = -1;
  readonly #cpu: Processor;

  readonly #unit: PlainUnit;

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    this.#unit = { cpu, words: cpu.state.words };
  }

  /** `waiting` as the register's type. */
  get pendingDebug(): bigint {
    return BigInt(this.waiting);
  }
  set pendingDebug(bits: bigint) {
    this.waiting = Number(bits);
  }

  /** Nothing is to be done before the next instruction: `boundary` in one look, for the usual case. */
  isCalm(): boolean {
    const cpu = this.#cpu;
    const { guest } = cpu;
    if (cpu.interruptPending || cpu.nmiPending || cpu.smiPending || cpu.initPending || this.waiting !== 0) return false;
    if (cpu.tick >= cpu.deadline) return false;
    return guest === null || (!guest.boundaryWork && cpu.tick < guest.deadline);
  }

  /**
   * Raises an exception at the instruction at hand. False: it left the guest, or the processor shut down.
   * @param trap RIP already stands behind the instruction
   */
  raise(vector: number, errorCode: number | undefined, payload: bigint, trap: boolean): boolean {
    const event = this.#resolve(vector, errorCode, payload, this.#cpu.eventInDelivery);
    return event !== undefined && this.deliver(event, !trap);
  }

  /** Intercepts, then #DF and shutdown; CR2 and DR6 follow what is really delivered. */
  #resolve(
    vector: number,
    errorCode: number | undefined,
    payload: bigint,
    during: PendingEvent | undefined,
  ): PendingEvent | undefined {
    const { guest, state } = this.#cpu;
    if (guest?.interceptException(vector, errorCode, payload, during)) return undefined;
    const verdict = combine(during, vector);
    if (vector === Vector.PF) state.cr2 = payload;
    if (verdict === 'shutdown') {
      this.#cpu.shutdown();
      return undefined;
    }
    if (verdict === 'double') {
      if (guest?.interceptException(Vector.DF, 0, 0n, during)) return undefined;
      return { kind: 'exception', vector: Vector.DF, errorCode: 0, instructionLength: 0 };
    }
    if (vector === Vector.DB) this.#reportDebug(payload);
    return { kind: 'exception', vector, errorCode, instructionLength: 0 };
  }

  /** DR6 gets the cause; DR7.GD is cleared so that the handler may use the debug registers (SDM vol. 3 section 17.2.4). */
  #reportDebug(payload: bigint): void {
    const { state } = this.#cpu;
    state.set64(S.dr6, mergeDr6(state.get64(S.dr6), payload));
    state.set64(S.dr7, state.get64(S.dr7) & ~DR7_GD);
    // Stepping on branches ends with each #DB (SDM vol. 3 section 17.4.3).
    const debugctl = state.get64(S.debugctl);
    if ((debugctl & BTF) !== 0n) state.set64(S.debugctl, debugctl & ~BTF);
  }

  /** INT1 takes along the breakpoints that MOV SS has held back: one #DB for both (SDM vol. 3 section 6.8.3, 17.3.1). */
  joinInt1(): void {
    if (this.waiting === 0) return;
    this.#reportDebug(this.pendingDebug);
    this.waiting = 0;
  }

  /**
   * Delivers an event through the IVT or IDT; faults on the way become the next event. False: it left the guest, or shutdown.
   * @param resume RF is set in the pushed image (faults, SDM vol. 3 section 17.3.1.1)
   */
  deliver(first: PendingEvent, resume: boolean): boolean {
    const cpu = this.#cpu;
    let event = first;
    // A fault on the way restarts the same instruction, whatever was being delivered.
    let restarts = resume;
    for (;;) {
      cpu.eventInDelivery = event;
      const fault = this.#tryDeliver(event, restarts);
      if (fault === 'exit') return this.#interrupted(restarts);
      if (fault === undefined) break;
      const next = this.#resolve(fault.vector, fault.errorCode, fault.payload, event);
      if (next === undefined) {
        if (cpu.state.activity === 2) cpu.shutdownCause = { event: first, tick: cpu.tick };
        return this.#interrupted(restarts);
      }
      event = next;
      restarts = true;
    }
    this.#count(event);
    cpu.eventInDelivery = undefined;
    cpu.state.activity = 0;
    cpu.state.shadow = 0;
    cpu.noticeMode(CAUSES[event.kind]);
    return true;
  }

  /** An exit saves the flags that the image would have had (SDM vol. 3 section 28.3.3): whoever injects the event again pushes the same. */
  #interrupted(restarts: boolean): false {
    if (restarts) this.#cpu.state.rflags |= RF;
    return false;
  }

  /**
   * A handler whose first instruction faults again and again would never retire anything: from the second delivery without an
   * instruction between, a delivery takes a tick, so that every deadline comes. An INT whose delivery an exit had interrupted retires here;
   * it took no tick then, and takes none if a fault came instead.
   */
  #count({ kind }: PendingEvent): void {
    const cpu = this.#cpu;
    if (SOFT.has(kind)) {
      cpu.tick++;
      return;
    }
    if (this.deliveredAt === cpu.tick) cpu.tick++;
    this.deliveredAt = cpu.tick;
  }

  #tryDeliver(event: PendingEvent, resume: boolean): GuestException | 'exit' | undefined {
    const cpu = this.#cpu;
    if (deliverDirectly(this.#unit, event, resume)) return undefined;
    const context = new EvaluateContext(cpu.ops, 'x86', cpu.model.vendor);
    context.mode = emulateModeOf(cpu.state);
    context.rip = cpu.state.rip;
    context.eip = context.truncateRip(context.rip + BigInt(SOFT.has(event.kind) ? event.instructionLength : 0));
    context.rflags = resume ? cpu.state.rflags | RF : cpu.state.rflags;
    try {
      deliverEvent(context, event);
    } catch (error) {
      if (error instanceof GuestException) return error;
      if (error instanceof Unwind) return 'exit';
      throw error;
    }
    context.commit();
    if (context.debugTrap !== undefined) this.pendingDebug |= context.debugTrap;
    return undefined;
  }

  /** Debug traps of an instruction that has just retired. `shadow`: the shadow that it leaves. */
  afterInstruction(hits: bigint, singleStep: bigint, shadow: number): void {
    // MOV SS holds breakpoints back for one instruction and drops the single step (SDM vol. 3 section 6.8.3).
    this.pendingDebug |= (shadow & MOV_SS) !== 0 ? hits : hits | singleStep;
  }

  /** What happens before the next instruction, by falling priority. undefined: nothing that stops. */
  boundary(): RunStop | undefined {
    const cpu = this.#cpu;
    if (cpu.smiPending && !cpu.state.smm && !this.#smi()) return 'guest-exit';
    if (cpu.initPending && !cpu.state.smm && !this.#init()) return 'guest-exit';
    if (this.waiting !== 0 && (cpu.state.shadow & MOV_SS) === 0 && !this.#debugTrap()) return this.#left();
    if (cpu.nmiPending && !this.#nmi()) return this.#left();
    return this.#interrupts();
  }

  /** The processor left the guest, or it shut down: which of the two the loop finds out. */
  #left(): RunStop | undefined {
    return this.#cpu.state.activity === 2 ? undefined : 'guest-exit';
  }

  #smi(): boolean {
    const cpu = this.#cpu;
    if (cpu.guest?.interceptSmi()) {
      cpu.smiPending = false;
      return false;
    }
    cpu.smiPending = false;
    cpu.enterSmm();
    return true;
  }

  #init(): boolean {
    const cpu = this.#cpu;
    if (cpu.guest?.interceptInit()) {
      cpu.initPending = false;
      return false;
    }
    cpu.initPending = false;
    cpu.reset(true);
    return true;
  }

  #debugTrap(): boolean {
    const payload = this.pendingDebug;
    this.pendingDebug = 0n;
    return this.raise(Vector.DB, undefined, payload, true);
  }

  #nmi(): boolean {
    const cpu = this.#cpu;
    if (cpu.guest?.interceptNmi()) {
      cpu.nmiPending = false;
      return false;
    }
    if (cpu.state.nmiBlocked || (cpu.state.shadow & MOV_SS) !== 0) return true;
    cpu.nmiPending = false;
    return this.injectNmi();
  }

  injectNmi(): boolean {
    this.#cpu.state.nmiBlocked = true;
    return this.deliver({ kind: 'nmi', vector: Vector.NMI, errorCode: undefined, instructionLength: 0 }, false);
  }

  #interrupts(): RunStop | undefined {
    const cpu = this.#cpu;
    const { guest } = cpu;
    if (guest === null) return this.#externals() ? (cpu.tick >= cpu.deadline ? 'deadline' : undefined) : this.#left();
    if ((cpu.interruptPending || cpu.tick >= cpu.deadline) && this.#open()) {
      if (guest.interceptInterrupt()) return 'guest-exit';
      if (!this.#externals()) return this.#left();
    }
    if (!guest.boundaryWork && cpu.tick < guest.deadline) return undefined;
    const wish = guest.boundary();
    if (wish === 'exit') return 'guest-exit';
    return wish === 'none' || this.#deliverExternal(wish) ? undefined : this.#left();
  }

  /** No shadow holds interrupts back. */
  #open(): boolean {
    const { state } = this.#cpu;
    return state.shadow === 0 || state.activity !== 0;
  }

  /**
   * Interrupts that wait while RFLAGS.IF is 1: a trap gate or a task leaves it so, and the next one comes in front of the handler's first
   * instruction. False: one left the guest, or the processor shut down.
   */
  #externals(): boolean {
    const cpu = this.#cpu;
    do {
      if (!cpu.interruptPending || (cpu.state.rflagsLow & Flag.IF) === 0 || !this.#open()) return true;
      if (!this.#external()) return false;
    } while (cpu.tick < cpu.deadline);
    return true;
  }

  /** Acknowledges and delivers a physical interrupt. */
  #external(): boolean {
    const cpu = this.#cpu;
    const vector = cpu.bus?.acknowledgeInterrupt() ?? -1;
    if (vector < 0) {
      cpu.interruptPending = false;
      return true;
    }
    return this.#deliverExternal(vector);
  }

  #deliverExternal(vector: number): boolean {
    return this.deliver({ kind: 'external', vector, errorCode: undefined, instructionLength: 0 }, false);
  }
}

/** Causes of mode changes by the kind of event. */
const CAUSES: Readonly<Record<PendingEvent['kind'], string>> = {
  external: 'interrupt',
  nmi: 'nmi',
  exception: 'exception',
  softint: 'int',
  softexception: 'int3',
  icebp: 'int1',
};
