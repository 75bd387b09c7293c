/**
 * GuestMode: what the silicon of a vendor (svm/hardware, vmx/hardware) hangs into the processor while a guest runs.
 * The processor asks; the vendor answers from its control block and records the exit. Manual: APM vol. 2 ch. 15, SDM vol. 3 ch. 25-29.
 *
 * Every method that can leave the guest returns true after it has recorded the exit: the processor then stops at once, with RIP, RFLAGS
 * and segments exact, and `run()` returns 'guest-exit'.
 */
import type { InstructionInfo, InterceptStage } from './ops.ts';

/** An event on its way through the IDT: what EXITINTINFO / IDT-vectoring information reports. */
export interface PendingEvent {
  kind: 'external' | 'nmi' | 'exception' | 'softint' | 'softexception' | 'icebp';
  vector: number;
  errorCode: number | undefined;
  /** Bytes of the instruction that raised it (soft events). */
  instructionLength: number;
}

/** A nested page fault (#VMEXIT NPF, EPT violation or misconfiguration). */
export interface NestedFault {
  /** Guest physical address. */
  gpa: number;
  write: boolean;
  fetch: boolean;
  user: boolean;
  /** The access was part of a walk of the guest's own tables. */
  pageWalk: boolean;
  /** Guest linear address, if there is one. */
  linear: bigint | undefined;
}

/** What a translation of a guest physical address is for. */
export interface GuestPhysicalAccess {
  write: boolean;
  fetch: boolean;
  user: boolean;
  /** An entry of the guest's own tables. */
  pageWalk: boolean;
  /** The linear address behind it, if one is; for whoever reports a fault. */
  readonly linear: bigint | undefined;
}
/** Result of a nested translation: host physical page and rights. */
export interface NestedTranslation {
  hpa: number;
  writable: boolean;
  executable: boolean;
  /** Page size as shift: 12, 21 or 30. */
  shift: number;
}

/**
 * What entries of the nested tables look like where nothing about them is unusual and a walk would change none of them, for walks by
 * generated code: four levels of 512 entries of 8 bytes, frames in bits 31:12, bit 7 of an entry of level 2 makes a page of 2 MiB. Whatever
 * does not match goes to `translate`.
 */
export interface NestedShape {
  /** Bits of an entry that points to a table: set, and clear. */
  readonly tableSet: bigint;
  readonly tableClear: bigint;
  /** Likewise of a leaf; `largeClear`: in one of level 2 as well. */
  readonly leafSet: bigint;
  readonly leafClear: bigint;
  readonly largeClear: bigint;
  /** What bits 5:3 of a leaf may be, a bit for each value. */
  readonly types: number;
  /** All of them set in a leaf: its page may be written without a change of the entry. */
  readonly writable: bigint;
  /** The page may be executed where the leaf's bit differs from that of `executeFlip`. */
  readonly execute: bigint;
  readonly executeFlip: bigint;
  /** A walk of the guest's own tables is a write. */
  readonly tableWalksWrite: boolean;
}

/** How `intercept` answers for an instruction, as far as that is known before its operands are. */
export const Verdict = {
  /** No. */
  pass: 0,
  /** Yes, and the exit says nothing but the instruction's length: `leave` records it. */
  leave: 1,
  /** It depends on operands or bitmaps, or the exit describes them. */
  ask: 2,
} as const;

/**
 * The short way to the exits of frequent instructions: numbers only, nothing is built for a question. Answers and records are those of
 * `intercept`, `interceptMsr` and `interceptIo`. RIP stands at the instruction; `length` is its length in bytes.
 */
export interface DirectExits {
  /** One {@link Verdict} for each of INTERCEPTS (by INTERCEPT_ID); the owner keeps them in step with its controls. */
  readonly verdicts: Uint8Array;
  /** Records the exit of an instruction whose verdict is `leave`. */
  leave(id: number, length: number): void;
  /** MOV CR with verdict `ask`: `gpr` is the other operand's number. True: exit recorded. */
  movCr(cr: number, write: boolean, gpr: number, length: number): boolean;
  /**
   * Low half of the bits of CR0 that MOV to CR0 must leave as the guest sees them for CR0.TS to change without an exit, by it or by CLTS;
   * -1: there may be one whatever is written. Absent: -1.
   */
  cr0Owned?(): number;
  /** May MOV to CR0 change CR0.WP without an exit, and is that the register's own bit? Absent: no. */
  yieldsWp?(): boolean;
  /**
   * Low half of what MOV to CR0 really writes if its value has this low half and no upper one, as `writeCr`; undefined: `crIllegal`. For
   * owners with `viewCr`.
   */
  mergeCr0?(low: number): number | undefined;
  /** RDMSR and WRMSR with verdict `ask`. True: exit recorded. */
  msr(index: number, write: boolean, length: number): boolean;
  /** IN and OUT (not the string forms) with verdict `ask`. True: exit recorded. */
  port(port: number, size: number, input: boolean, immediate: boolean, length: number, addrSize: number): boolean;
}

export interface GuestMode {
  /**
   * Absent, or null while it may not be used (write traps, MSRs that the silicon keeps): every question goes to the methods below.
   * With it, an owner that lacks `viewCr` shows CR0 and CR4 as they are and takes writes as they come.
   */
  readonly direct?: DirectExits | null;
  /** Distinguishes TLB contexts: ASID or VPID (0 is the host's). */
  readonly asid: number;
  /** Root of the nested tables (0: no nested paging), part of the TLB context. */
  readonly nestedRoot: number;
  /** Added to the TSC. */
  readonly tscOffset: bigint;
  /** True if physical interrupts leave the guest (both drivers always set it). */
  readonly interruptsExit: boolean;

  /** An instruction asks at its stage; true: exit recorded. */
  intercept(info: InstructionInfo, stage: InterceptStage): boolean;
  /** Before an exception is delivered; true: exit recorded. `event` in delivery when it was raised, if any. */
  interceptException(
    vector: number,
    errorCode: number | undefined,
    payload: bigint,
    during: PendingEvent | undefined,
    /** The exception as INT3, INTO or INT1 raises it: kind and instruction length (VMX reports both). */
    self?: PendingEvent,
  ): boolean;
  /** Software interrupt / ICEBP intercepts are instruction intercepts; task switches have one of their own. */
  interceptTaskSwitch(
    selector: number,
    source: 'call' | 'jmp' | 'iret' | 'gate',
    errorCode: number | undefined,
    during: PendingEvent | undefined,
    /** Bytes of the CALL, JMP or IRET that switches (VMX reports it). */
    instructionLength?: number,
  ): boolean;
  /** Port access; true: exit recorded. `linear`: effective linear address for string forms; `next`: next RIP. */
  interceptIo(io: {
    port: number;
    size: number;
    in: boolean;
    string: boolean;
    rep: boolean;
    addrSize: number;
    seg: number;
    linear: bigint;
    imm: boolean;
    nextRip: bigint;
  }): boolean;
  interceptMsr(index: number, write: boolean): boolean;
  /** RDMSR of an MSR that the silicon keeps for the guest itself (SEV-ES: the GHCB MSR); undefined: none of those. Asked after the intercept. */
  readMsr?(index: number): bigint | undefined;
  /** WRMSR of such an MSR; true: the silicon took it. Asked after the intercept. */
  writeMsr?(index: number, value: bigint): boolean;
  /** EFER write trap (SEV-ES): called after WRMSR committed and RIP advanced; true: exit recorded. */
  msrWritten?(index: number, value: bigint): boolean;
  /** The processor is about to freeze because of a pending x87 exception (CR0.NE clear); true: exit recorded. Absent: no such intercept. */
  interceptFerrFreeze?(): boolean;
  /** Shutdown (triple fault); true: exit recorded. */
  interceptShutdown(): boolean;
  /** Physical events, tested at instruction boundaries; true: exit recorded. */
  interceptInterrupt(): boolean;
  interceptNmi(): boolean;
  interceptSmi(): boolean;
  interceptInit(): boolean;
  interceptSipi(vector: number): boolean;
  /**
   * Called at each instruction boundary at which `boundaryWork` was set: window exits, virtual interrupts, MTF, preemption timer.
   * Returns 'exit' (recorded), a virtual interrupt vector to deliver, or 'none'.
   */
  boundary(): 'exit' | 'none' | number;
  /** True while `boundary` must be asked (a window is armed, a virtual interrupt is pending, MTF is on). */
  boundaryWork: boolean;
  /** `boundaryWork` is only about taking interrupts: `boundary` answers 'none' while RFLAGS.IF is 0. Absent: it may be more. */
  readonly boundaryNeedsIf?: boolean;
  /** Likewise about NMIs: it answers 'none' while they are blocked. */
  readonly boundaryNeedsNmis?: boolean;
  /** PUSHF or POPF is intercepted. Absent: it may be. */
  readonly interceptsFlagImages?: boolean;
  /** Tick at which the silicon itself wants to exit (preemption timer), or Infinity. */
  readonly deadline: number;

  /** Of the tables at `nestedRoot`. Absent or null: they are walked by `translate` only. */
  readonly nestedShape?: NestedShape | null;
  /** Translates through NPT/EPT; undefined after a fault was recorded as an exit. */
  translate(gpa: number, access: GuestPhysicalAccess): NestedTranslation | undefined;

  /** CR reads and writes as the guest's instruction sees them (VMX masks and shadows, SVM V_TPR); undefined: the plain register. */
  readCr(cr: number): bigint | undefined;
  /** Value to really write (masks applied), after intercepts were asked; undefined: as given. */
  writeCr(cr: number, value: bigint): bigint | undefined;
  /** A write trap (SEV-ES): called after the write was committed and RIP advanced; true: exit recorded. */
  crWritten(cr: number, value: bigint): boolean;
  /** Low half of CR0 or CR4 as the guest sees it (VMX read shadows), for reports of the guest's mode; absent: the register itself. */
  viewCr?(cr: 0 | 4, real: number): number;
  /** Extra CR0/CR4 bits that must hold in guest operation (VMX fixed bits), tested by MOV CR: true = illegal, #GP(0). */
  crIllegal(cr: number, value: bigint): boolean;
  /** RFLAGS.IF gate for physical/virtual interrupts etc. belongs to the vendor. */
}
