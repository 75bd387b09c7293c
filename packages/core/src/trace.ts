/**
 * Tracepoints and the call path: typed, optional listeners that cost one test when nobody listens.
 * KVM: arch/x86/kvm/trace.h and include/trace/events/kvm.h; `mode_switch` is ours.
 */
import type { ModeChange } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { Kvm } from './kvm.ts';
import { TRACE_FIELDS } from './trace-fields.ts';
import { Errno } from './types.ts';

/** Fields of every event, by KVM's event name. Numbers stay numbers; text is made where it is printed. */
export interface TraceEvents {
  /** Just before the hardware entry (not when emulation stands in for it). */
  kvm_entry: { vcpuId: number; rip: bigint; immediateExit: boolean; intrInfo: number; errorCode: number };
  /** Right after a hardware exit, before the queues are rebuilt. */
  kvm_exit: {
    vcpuId: number;
    reason: number;
    name: string;
    rip: bigint;
    isa: 1 | 2;
    info1: bigint;
    info2: bigint;
    intrInfo: number;
    errorCode: number;
    requests: bigint;
  };
  kvm_nested_vmexit: TraceEvents['kvm_exit'];
  kvm_hypercall: { vcpuId: number; nr: bigint; a0: bigint; a1: bigint; a2: bigint; a3: bigint };
  kvm_pio: { vcpuId: number; rw: 'read' | 'write'; port: number; size: number; count: number; val: number };
  kvm_mmio: { type: 'read' | 'write' | 'unsatisfied-read'; len: number; gpa: number; val: bigint };
  kvm_cpuid: {
    function: number;
    index: number;
    rax: number;
    rbx: number;
    rcx: number;
    rdx: number;
    found: boolean;
  };
  kvm_apic: { rw: 'read' | 'write'; reg: number; val: number };
  kvm_inj_virq: { vcpuId: number; vector: number; soft: boolean; reinjected: boolean };
  kvm_inj_exception: {
    vcpuId: number;
    exception: number;
    hasError: boolean;
    errorCode: number;
    reinjected: boolean;
  };
  kvm_page_fault: { vcpuId: number; rip: bigint; address: number; errorCode: bigint };
  kvm_msr: { vcpuId: number; write: boolean; ecx: number; data: bigint; exception: boolean };
  /** In the exit handlers before the setter; the emulator and write traps do not fire it. */
  kvm_cr: { vcpuId: number; rw: 'read' | 'write'; cr: number; val: bigint };
  kvm_pic_set_irq: { chip: number; pin: number; elcr: number; imr: number; coalesced: boolean };
  kvm_apic_ipi: { icrLow: number; dest: number };
  kvm_apic_accept_irq: { apicid: number; dm: number; tm: number; vec: number };
  kvm_eoi: { apicid: number; vector: number };
  kvm_emulate_insn: {
    vcpuId: number;
    csBase: bigint;
    rip: bigint;
    insn: Uint8Array;
    mode: string;
    failed: boolean;
  };
  vcpu_match_mmio: { gva: bigint; gpa: number; write: boolean; gpaMatch: boolean };
  kvm_write_tsc_offset: { vcpuId: number; previous: bigint; next: bigint };
  kvm_smm_transition: { vcpuId: number; smbase: bigint; entering: boolean };
  kvm_nested_vmenter: {
    rip: bigint;
    vmcb: number;
    nestedRip: bigint;
    intCtl: number;
    eventInj: number;
    tdpEnabled: boolean;
    guestPgd: bigint;
    isa: 1 | 2;
  };
  kvm_nested_intercepts: { crRead: number; crWrite: number; exceptions: number; words: number[] };
  kvm_nested_vmexit_inject: {
    reason: number;
    name: string;
    info1: bigint;
    info2: bigint;
    intrInfo: number;
    errorCode: number;
    isa: 1 | 2;
  };
  kvm_nested_intr_vmexit: { rip: bigint };
  kvm_nested_vmenter_failed: { message: string; error: number };
  kvm_vmgexit_enter: { vcpuId: number; exitReason: number; info1: bigint; info2: bigint };
  kvm_vmgexit_exit: TraceEvents['kvm_vmgexit_enter'];
  kvm_vmgexit_msr_protocol_enter: { vcpuId: number; ghcbGpa: bigint };
  kvm_vmgexit_msr_protocol_exit: { vcpuId: number; ghcbGpa: bigint; result: number };
  kvm_hv_timer_state: { vcpuId: number; inUse: boolean };
  kvm_userspace_exit: { vcpuId: number; reason: string };
  kvm_vcpu_wakeup: { vcpuId: number; ticks: number };
  kvm_set_irq: { gsi: number; level: number; source: number };
  kvm_ioapic_set_irq: { entry: bigint; pin: number; coalesced: boolean };
  kvm_msi_set_irq: { address: bigint; data: number };
  kvm_ack_irq: { irqchip: number; pin: number };
  mark_mmio_spte: { sptep: number; gfn: number; access: number; generation: number };
  handle_mmio_page_fault: { addr: number; gfn: number; access: number };
  kvm_mmu_set_spte: { level: number; gfn: number; spte: bigint };
  kvm_mmu_get_page: { gfn: number; level: number; role: number; created: boolean };
  kvm_mmu_zap_all_fast: { generation: number };
  kvm_mmu_walker_error: { vcpuId: number; errorCode: number };
  /** The processor's mode changed. */
  mode_switch: ModeSwitch;
}
export type TraceName = keyof TraceEvents;
export type TraceListener<N extends TraceName> = (event: TraceEvents[N], name: N) => void;

/** A mode switch with what led to it. */
export interface ModeSwitch extends ModeChange {
  vcpuId: number;
  /**
   * The last exit of this vCPU before it, if the switch came through KVM (for an SMI: the exit after which KVM delivered it). Where KVM
   * emulates because VM entry would refuse the guest's state, there is none: the name says so, the reason is the one that KVM makes up.
   * null: native, the guest did it without an exit; or an event that reached a vCPU that had not been running.
   */
  exit: { reason: number; name: string } | null;
  /** Frames that ran down to the deciding setter (set_cr0, set_cr4, set_efer), outermost first; empty for a native switch. */
  path: readonly string[];
  /** Why no exit happened, for a native switch. */
  why: string | null;
}

/** An exit, and whose. */
export interface LastExit {
  reason: number;
  name: string;
  vcpuId: number;
}

/** The last call of a setter that can change the mode. */
export interface Setter {
  path: string[];
  exit: LastExit | null;
  instruction: { rip: bigint; bytes: Uint8Array } | null;
}

/** One edge of the call graph as it ran. */
export interface CallerEdge {
  caller: string;
  callee: string;
  count: number;
}

/** Listeners, the shadow stack and the call edges of one kernel. Exists only while something listens. */
const thrownByListeners = new WeakSet<object>();
/** Is an error that comes out of a call a trace listener's own, and no op's? */
export const isListeners = (error: object): boolean => thrownByListeners.has(error);

export class Tracer {
  readonly #listeners = new Map<TraceName, Set<TraceListener<TraceName>>>();
  readonly #any = new Set<TraceListener<TraceName>>();
  readonly #edges = new Map<string, Map<string, number>>();
  /** Setters that wrappers call on their base, by function name, with the static call that they end. */
  readonly baseSetters = new Map<string, string>();
  /** Frames in progress, outermost first. */
  readonly stack: string[] = [];
  /** Path of the last call of a setter that can change the mode, and the exit it belongs to. */
  lastSetter: Setter | null = null;
  /** The instruction that exited last, or that KVM emulates now; null where KVM can't see it (protected state). */
  instruction: { rip: bigint; bytes: Uint8Array } | null = null;
  #lastExit: LastExit | null = null;
  /** The last hardware exit. A new one ends what the setters before it explain. */
  get lastExit(): LastExit | null {
    return this.#lastExit;
  }
  set lastExit(exit: LastExit | null) {
    this.#lastExit = exit;
    this.lastSetter = null;
  }
  /** KVM emulates instead of entering: what led to that stays explained by the setter before. */
  set emulated(exit: LastExit) {
    this.#lastExit = exit;
  }
  /** A switch of a protected guest whose write trap is still to be handled. */
  held: ModeSwitch | null = null;

  /**
   * Attaches a listener to one event, or to all (`*`). Returns the function that takes it off.
   * Throws KvmError UNKNOWN_EVENT (EINVAL).
   */
  on<N extends TraceName>(name: N | '*', listener: TraceListener<N>): () => void {
    if (name !== '*' && !Object.hasOwn(TRACE_FIELDS, name)) {
      const known = Object.keys(TRACE_FIELDS).join(', ');
      throw new KvmError('UNKNOWN_EVENT', Errno.EINVAL, `there is no event ${String(name)}; there are *, ${known}`);
    }
    const wide = listener as unknown as TraceListener<TraceName>;
    if (name === '*') {
      this.#any.add(wide);
      return () => this.#any.delete(wide);
    }
    let set = this.#listeners.get(name);
    if (!set) this.#listeners.set(name, (set = new Set()));
    set.add(wide);
    return () => set.delete(wide);
  }

  get listening(): boolean {
    if (this.#any.size > 0) return true;
    for (const set of this.#listeners.values()) if (set.size > 0) return true;
    return false;
  }

  emit<N extends TraceName>(name: N, event: TraceEvents[N]): void {
    try {
      for (const listener of this.#listeners.get(name) ?? []) listener(event, name);
      for (const listener of this.#any) listener(event, name);
    } catch (error) {
      if (typeof error === 'object' && error !== null) thrownByListeners.add(error);
      throw error;
    }
  }

  enter(name: string): void {
    const caller = this.stack.length > 0 ? this.stack[this.stack.length - 1] : 'user space';
    let callees = this.#edges.get(caller);
    if (!callees) this.#edges.set(caller, (callees = new Map()));
    callees.set(name, (callees.get(name) ?? 0) + 1);
    this.stack.push(name);
    // The path goes down to the vendor's function below the static call.
    const setter = MODE_SETTERS.has(name) ? name : MODE_SETTERS.has(caller) ? caller : undefined;
    // CR0 decides most; EFER and CR4 explain a switch only where CR0 was not written.
    if (setter && (setter === 'staticCall.setCr0' || !this.lastSetter?.path.includes('staticCall.setCr0'))) {
      this.lastSetter = { path: this.stack.slice(), exit: this.lastExit, instruction: this.instruction };
    } else if (this.baseSetters.size > 0) this.#throughWrapper(name);
  }
  /** The path goes on from a wrapper's function to that of its base. */
  #throughWrapper(name: string): void {
    const op = this.baseSetters.get(name);
    const path = this.lastSetter?.path;
    if (op !== undefined && path?.length === this.stack.length - 1 && path.includes(op)) path.push(name);
  }
  leave(): void {
    this.stack.pop();
  }
  /** The function that `inFrame` is about to call: its own test lets it through. */
  #entering: Framed | null = null;
  /** A function with a frame of its own asks: has it been entered through `inFrame`? */
  lacksFrame(fn: Framed): boolean {
    if (this.#entering !== fn) return true;
    this.#entering = null;
    return false;
  }
  /** Calls a function with a frame of its own, in its frame. */
  inFrame<A extends unknown[], R>(fn: (...args: A) => R, args: A): R {
    this.enter(fn.name);
    this.#entering = fn as unknown as Framed;
    try {
      return fn(...args);
    } finally {
      this.leave();
    }
  }

  /** All edges that ran since the tracer was attached (or `reset`), in order of first use. */
  edges(): CallerEdge[] {
    const out: CallerEdge[] = [];
    for (const [caller, callees] of this.#edges) {
      for (const [callee, count] of callees) out.push({ caller, callee, count });
    }
    return out;
  }
  reset(): void {
    this.#edges.clear();
    this.stack.length = 0;
    this.lastSetter = null;
    this.lastExit = null;
  }
}

/** Ops that can change the mode: the path down to the last call of one explains a switch. */
export const MODE_SETTER_OPS = ['setCr0', 'setCr4', 'setEfer'] as const;
const MODE_SETTERS = new Set(MODE_SETTER_OPS.map((op) => `staticCall.${op}`));

// biome-ignore lint/suspicious/noExplicitAny: any signature whose first parameter knows its kernel
type Framed = (owner: any, ...rest: any[]) => any;

/**
 * Gives a function a frame in the call path: `export const kvmSetCr0 = frame('kvmSetCr0', (vcpu: Vcpu, cr0: bigint) => …)`.
 * The first parameter is a Vcpu, a Vm or a Kvm. Without a tracer a call costs some nanoseconds; see {@link ownFrame}.
 */
export function frame<F extends Framed>(name: string, fn: F): F {
  // An op that is called directly as well has its frame already.
  if (FRAMED.has(fn)) return fn;
  const framed = (
    owner: { readonly kvm: Kvm },
    b: unknown,
    c: unknown,
    d: unknown,
    e: unknown,
    f: unknown,
    g: unknown,
  ) => {
    const tracer = owner.kvm.tracer;
    if (tracer === null) return fn(owner, b, c, d, e, f, g);
    tracer.enter(name);
    try {
      return fn(owner, b, c, d, e, f, g);
    } finally {
      tracer.leave();
    }
  };
  Object.defineProperty(framed, 'name', { value: name });
  // Stack traces show the inner function.
  if (fn.name === '') Object.defineProperty(fn, 'name', { value: name });
  FRAMED.add(framed);
  return framed as unknown as F;
}
const FRAMED = new WeakSet<object>();

/**
 * The frame of a function that runs at every exit. `frame` puts a call through one closure that all functions share, and that no engine
 * compiles into its caller; a function on the hot way asks by itself instead, in its first line:
 * `if (unframed(vcpu, kvmSetCr0)) return inFrame(kvmSetCr0, vcpu, cr0);`, and says so below its body: `ownFrame('kvmSetCr0', kvmSetCr0)`.
 */
export const unframed = (owner: { readonly kvm: Kvm }, fn: Framed): boolean =>
  owner.kvm.tracer?.lacksFrame(fn) === true;
export function inFrame<O extends { readonly kvm: Kvm }, A extends unknown[], R>(
  fn: (owner: O, ...rest: A) => R,
  owner: O,
  ...rest: A
): R {
  const { tracer } = owner.kvm;
  return tracer === null ? fn(owner, ...rest) : tracer.inFrame(fn, [owner, ...rest]);
}
/** Names a function that asks for its frame itself. */
export function ownFrame(name: string, fn: Framed): void {
  Object.defineProperty(fn, 'name', { value: name });
  FRAMED.add(fn);
}
/** A frame with the function's own name, unless it has one already or a minifier has taken the name away. */
export const named = <F extends Framed>(fn: F): F => (FRAMED.has(fn) || fn.name.length < 3 ? fn : frame(fn.name, fn));

/** Fires an event if somebody traces: `trace(vcpu, 'kvm_cr', () => ({…}))`; the fields are made only then. */
export function trace<N extends TraceName>(owner: { readonly kvm: Kvm }, name: N, make: () => TraceEvents[N]): void {
  const tracer = owner.kvm.tracer;
  if (tracer !== null) tracer.emit(name, make());
}
