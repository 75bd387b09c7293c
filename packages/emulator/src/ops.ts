/**
 * X86EmulateOps: all that an instruction may ask of the machine it runs on (KVM: struct x86_emulate_ops).
 * The silicon implements it for the bare processor and for guests in guest mode; core implements it for KVM's emulator.
 *
 * Linear addresses, registers and values are `bigint`; sizes (bytes), selectors, ports and vectors are `number`.
 * Memory accessors return the value or throw: the processor's {@link GuestException}, or an {@link Unwind}.
 */
import type { PendingEvent } from './guest-mode.ts';
import type { Intercept } from './intercepts.ts';
import type { DescriptorTable, Segment, SegmentIndex } from './state-layout.ts';

/** X86EMUL_* result codes, KVM's numbers. */
export const X86Emul = {
  CONTINUE: 0,
  UNHANDLEABLE: 1,
  PROPAGATE_FAULT: 2,
  RETRY_INSTR: 3,
  CMPXCHG_FAILED: 4,
  IO_NEEDED: 5,
  INTERCEPTED: 6,
  UNHANDLEABLE_VECTORING: 7,
} as const;
export type X86Emul = (typeof X86Emul)[keyof typeof X86Emul];

/** Where an instruction stands when an intercept is asked for (KVM: enum x86_intercept_stage). */
export type InterceptStage = 'preExcept' | 'postExcept' | 'postMemAccess';

/** What an intercept check may look at (KVM: struct x86_instruction_info). */
export interface InstructionInfo {
  intercept: Intercept;
  /** 0, 0xF2 or 0xF3. */
  rep: number;
  mod: number;
  /** With REX.R / REX.B. */
  reg: number;
  rm: number;
  srcVal: bigint;
  dstVal: bigint;
  srcBytes: number;
  dstBytes: number;
  /** Address size in bytes. */
  adBytes: number;
  /** Effective segment of the memory operand or string source. */
  seg: number;
  /** Linear address of the memory operand (0 if none). */
  linear: bigint;
  rip: bigint;
  nextRip: bigint;
  /** Opcode bytes 1.. as one number, e.g. 0x0f01. */
  opcode: number;
  /** Decoded immediate (INT n's vector, IN/OUT's port). */
  imm: bigint;
  /** How the memory operand was named (VMX instruction information); absent or -1: no such part. Registers with REX.X / REX.B. */
  scale?: number;
  index?: number;
  base?: number;
  /** Sign-extended. */
  displacement?: bigint;
}

export interface X86EmulateOps {
  /** General register by number, all 64 bits. */
  readGpr(reg: number): bigint;
  writeGpr(reg: number, value: bigint): void;
  getRip(): bigint;
  setRip(value: bigint): void;
  getRflags(): bigint;
  setRflags(value: bigint): void;

  /** Reads `size` (1..8) bytes at a linear address. `system`: implicit supervisor access (descriptor tables, TSS). No MMIO. */
  readStd(linear: bigint, size: number, system: boolean): bigint;
  writeStd(linear: bigint, value: bigint, size: number, system: boolean): void;
  /** Fetches up to `length` code bytes into `into`; returns how many are there before a fault would occur; throws if none. */
  fetch(linear: bigint, into: Uint8Array, length: number): number;
  /** Data access that may become MMIO. `size` 1..8, 16 or 32 (little-endian in one bigint). */
  readEmulated(linear: bigint, size: number): bigint;
  writeEmulated(linear: bigint, value: bigint, size: number): void;
  /** As `readEmulated`, but faults as a write would (read-modify-write). */
  readForWrite(linear: bigint, size: number): bigint;
  /** Throws as a write of `size` bytes would; changes nothing but A/D bits. */
  probeWrite(linear: bigint, size: number): void;
  /** Atomic compare-exchange; true if it stored. */
  cmpxchgEmulated(linear: bigint, old: bigint, replacement: bigint, size: number): boolean;
  invlpg(linear: bigint): void;
  /** Port I/O of one element of 1, 2 or 4 bytes. */
  pioIn(size: number, port: number): number;
  pioOut(size: number, port: number, value: number): void;

  getSegment(seg: SegmentIndex): Segment;
  /** Loads the hidden part as given, no checks. CPL follows SS: loading SS makes CPL its DPL (also if null), as KVM's set_segment has it. */
  setSegment(seg: SegmentIndex, value: Segment): void;
  getCachedSegmentBase(seg: SegmentIndex): bigint;
  getGdt(): DescriptorTable;
  getIdt(): DescriptorTable;
  setGdt(value: DescriptorTable): void;
  setIdt(value: DescriptorTable): void;
  /** cr in {0, 2, 3, 4, 8}. */
  getCr(cr: number): bigint;
  /** Non-zero: the caller raises #GP(0). */
  setCr(cr: number, value: bigint): number;
  cpl(): number;
  getDr(dr: number): bigint;
  /** Non-zero: the caller raises #GP(0). */
  setDr(dr: number, value: bigint): number;
  /** MSR as RDMSR/WRMSR see it: a number is a code (non-zero: #GP(0)). */
  getMsr(index: number): bigint | undefined;
  setMsr(index: number, value: bigint): number;
  /** Counter `index`, or undefined: #GP(0). */
  readPmc(index: number): bigint | undefined;
  rdtsc(): bigint;
  halt(): void;
  wbinvd(): void;
  /** VMCALL/VMMCALL met by the emulator. */
  fixHypercall(): X86Emul;
  /** May the context around (L1, or the silicon's control block) take this instruction? */
  intercept(info: InstructionInfo, stage: InterceptStage): X86Emul;
  /** CPUID leaf as the guest sees it: eax, ebx, ecx, edx. */
  getCpuid(leaf: number, subleaf: number): readonly [number, number, number, number];
  /** Feature test by name (cpu/features.ts). */
  guestHas(feature: string): boolean;
  /** Intel-compatible behaviour where vendors differ (KVM: guest_cpuid_is_intel_compatible). */
  isIntelCompatible(): boolean;
  setNmiMask(masked: boolean): void;
  isSmm(): boolean;
  /** RSM; non-zero: triple fault. */
  leaveSmm(): number;
  tripleFault(): void;
  /** PKRU. Absent: RDPKRU and WRPKRU are not carried out here (KVM's emulator has neither). */
  getPkru?(): number;
  setPkru?(value: number): void;
  getXcr(index: number): bigint;
  /** Non-zero: #GP(0). */
  setXcr(index: number, value: bigint): number;
  /** RDMSR/WRMSR proper where they differ from the internal accessors (KVM: get/set_msr_with_filter; may throw IO_NEEDED). */
  getMsrWithFilter?(index: number): bigint | undefined;
  setMsrWithFilter?(index: number, value: bigint): number;
  /** INVPCID after its checks; types 0..3 as in the manual. Absent: done by INVLPG and CR4 writes. */
  invpcid?(type: number, pcid: number, linear: bigint): void;
  /**
   * Told before INT n, INT3, INTO or ICEBP goes through the IDT: the silicon asks for exception intercepts (throws VMEXIT) and notes the
   * event as the one in delivery.
   */
  beginEvent?(event: PendingEvent): void;
  /** Asked before a task switch, after its checks and before anything is changed; throws VMEXIT if the guest's owner wants it. */
  beginTaskSwitch?(selector: number, source: 'call' | 'jmp' | 'iret' | 'gate', errorCode: number | undefined): void;
  /**
   * x87, MMX and SSE registers: a live view of the state block's bytes `S.ymm` .. `S.mxcsr` + 4 (semantics/fp/area.ts). The same view object as
   * long as it is the same memory. Absent: a machine without them.
   */
  fpuArea?(): DataView;
  /** An unmasked x87 exception is pending while CR0.NE is clear: FERR#. Comes back if IGNNE# lets the instruction go on; else throws. */
  assertFerr?(): void;
  /** RDRAND's and RDSEED's next number, 64 bits; absent: there is no source. */
  random?(): bigint;
  /** Interrupt shadow to set after this instruction: 1 STI, 2 MOV SS. */
  setInterruptShadow(kind: 1 | 2): void;
}
