/**
 * What the floors above see of the processor: the silicon's wings (svm/hardware, vmx/hardware) and, through them, KVM.
 */
import type { GuestException } from './exceptions.ts';
import type { GuestMode, PendingEvent } from './guest-mode.ts';
import type { X86EmulateOps } from './ops.ts';
import type { DescriptorTable, Segment, SegmentIndex } from './state-layout.ts';

/** The processor's mode as one word (facts of CR0, EFER, CS, RFLAGS.VM, SMM). */
export type ModeName =
  | 'real'
  | 'unreal'
  | 'protected16'
  | 'protected32'
  | 'virtual8086'
  | 'compatibility16'
  | 'compatibility32'
  | 'long';

export interface ProcessorMode {
  name: ModeName;
  paging: 'off' | '32-bit' | 'PAE' | '4-level' | '5-level';
  smm: boolean;
  /** Running under a GuestMode. */
  guest: boolean;
  /** Nested guest (set by the driver). */
  nested: boolean;
}

/** A change of mode as it happened on the processor, native or by a world switch. */
export interface ModeChange {
  /** Instructions retired when it happened. */
  tick: number;
  from: ProcessorMode;
  to: ProcessorMode;
  /** What changed it: an instruction's mnemonic, or 'vmentry' (the new state came with a VM entry), 'vmexit', 'reset', 'init', 'smi'. */
  cause: string;
  /** Linear address and bytes of the instruction, if one did it. */
  rip: bigint | undefined;
  bytes: Uint8Array | undefined;
  cr0: { before: bigint; after: bigint };
  cr4: { before: bigint; after: bigint };
  efer: { before: bigint; after: bigint };
}

/** Why `run` came back. */
export type RunStop =
  /** The vendor recorded an exit. */
  | 'guest-exit'
  /** `deadline` ticks reached outside guest mode. */
  | 'deadline'
  /** HLT (or MWAIT) outside guest mode, nothing pending. */
  | 'halt'
  /** Shutdown outside guest mode. */
  | 'shutdown';

/** Outside world of a processor that runs without KVM: ports, memory that is not RAM, interrupts. */
export interface PlatformBus {
  pioIn(port: number, size: number): number;
  pioOut(port: number, size: number, value: number): void;
  /** Physical memory outside RAM. */
  read(pa: number, size: number): bigint;
  write(pa: number, size: number, value: bigint): void;
  /** Vector of a pending external interrupt (acknowledges it), or -1. */
  acknowledgeInterrupt(): number;
  /**
   * FERR# rises (an unmasked x87 exception waits and CR0.NE is clear) or falls; a PC makes IRQ 13 of it. Answers IGNNE#: true lets the
   * instruction go on, false freezes the processor in front of it until an interrupt comes. Absent: IGNNE# is always asserted.
   */
  ferr?(asserted: boolean): boolean;
}

/** Accessors over the state block. Setters keep derived state (mode, TLB context, segment caches) right by themselves. */
export interface ProcessorState {
  /** Byte offset of the block in the memory, for copy routines. */
  readonly base: number;
  /** The whole linear memory: a field stands at `base + S.field`. */
  readonly view: DataView;
  /** The block alone: a field stands at `S.field`. */
  readonly u8: Uint8Array;
  /** The 16 general registers and RIP as a view. */
  readonly gpr: BigUint64Array;
  rip: bigint;
  rflags: bigint;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
  /** Rights of user pages' protection keys. */
  pkru: number;
  /** IA32_PKRS. */
  pkrs: number;
  cpl: number;
  /** Interrupt shadow: bit 0 STI, bit 1 MOV SS. */
  shadow: number;
  nmiBlocked: boolean;
  /** 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI, 4 frozen by FERR#. */
  activity: number;
  smm: boolean;
  getSegment(seg: SegmentIndex): Segment;
  setSegment(seg: SegmentIndex, value: Segment): void;
  getTable(which: 'gdtr' | 'idtr'): DescriptorTable;
  setTable(which: 'gdtr' | 'idtr', value: DescriptorTable): void;
  /** 64-bit field by its offset in `S`. */
  get64(offset: number): bigint;
  set64(offset: number, value: bigint): void;
}

export interface ProcessorApi {
  readonly state: ProcessorState;
  /** The silicon's X86EmulateOps. */
  readonly ops: X86EmulateOps;
  /** Installed by VMRUN/VMLAUNCH, removed by the exit. */
  guest: GuestMode | null;
  /** Instructions retired (and REP iterations) since power-on. KVM moves it on for instructions that it emulates and for idle time. */
  tick: number;
  /** TSC cycles of one tick. */
  readonly tscPerTick: number;
  /** Tick at which the physical timer interrupt arrives (in guest mode: an INTR exit), or Infinity. */
  deadline: number;
  /** Kick: physical interrupt pending now (tested at the next instruction boundary). */
  interruptPending: boolean;
  nmiPending: boolean;
  smiPending: boolean;
  initPending: boolean;
  /** DR6 bits of debug traps that wait for the next boundary (MOV SS holds them back); a world switch takes them along. */
  pendingDebug: bigint;
  /** Tick of the last delivered event, -1: none. A second one at the same tick takes a tick of its own. */
  deliveredAt: number;
  /** The event whose delivery an exit interrupted. */
  eventInDelivery: PendingEvent | undefined;
  /** The event whose delivery ended in the last shutdown, and when: tells, changes nothing. */
  shutdownCause?: { event: PendingEvent; tick: number } | undefined;

  /** Executes until something stops it. Never throws for anything that a guest does. */
  run(): RunStop;
  /**
   * Call after state was replaced as a whole (world switch, reset, load): recomputes mode, segment caches and TLB context.
   * @param cause as in {@link ModeChange}
   */
  stateReplaced(cause: string): void;
  /**
   * An exit takes the guest off: as `guest = null`, but what is derived from the guest's state is kept for `resumeGuest`.
   * @returns true if segments, descriptor tables, CPL, CR3, CR4 and EFER are surely what they were when `resumeGuest` was called
   */
  leaveGuest(): boolean;
  /**
   * The entry of a guest whose control registers, segments, CPL, RFLAGS.VM and AC, and DR7 are in the state block as its last exit left
   * them, under the same controls: as `guest = …` and `stateReplaced('vmentry')`.
   * @param cr0Written but for MP, EM, TS, NE, WP or AM of CR0, or PE while PG is clear. Default false.
   */
  resumeGuest(guest: GuestMode, cr0Written?: boolean): void;
  /**
   * May an exit of the guest that runs and the entry right behind it be one step (`reenterGuest`)? False also while somebody listens to modes,
   * breakpoints are armed or a trap waits.
   */
  mayReenterGuest(): boolean;
  /**
   * What `leaveGuest` and `resumeGuest` come to where nobody has written in between but general registers, RIP, RFLAGS' plain bits, the
   * status bytes, and what `cr0Written` is about.
   */
  reenterGuest(cr0Written: boolean): void;
  /** Delivers an event through the IDT as VM entry injection does (APM 15.20); faults on the way become exceptions. False: it exited. */
  injectEvent(event: PendingEvent): boolean;
  /** RESET (false) or INIT (true) values (APM vol. 2 table 14-1). */
  reset(init: boolean): void;
  /** TLB maintenance. */
  flushTlb(
    what:
      | { kind: 'all' }
      | { kind: 'asid'; asid: number; keepGlobal: boolean }
      | { kind: 'page'; asid: number; linear: bigint }
      | { kind: 'nested'; root: number },
  ): void;
  mode(): ProcessorMode;
  onModeChange: ((change: ModeChange) => void) | null;
  /** The exception being handled, for diagnosis. */
  readonly exception: GuestException;
  rdmsr(index: number): bigint | undefined;
  /** 0 or non-zero (#GP). */
  wrmsr(index: number, value: bigint): number;
  cpuid(leaf: number, subleaf: number): readonly [number, number, number, number];
  save(): unknown;
  load(state: unknown): void;
}
