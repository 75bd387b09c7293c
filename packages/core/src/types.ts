/** Types that core and the vendors share. KVM's structure names stand in the doc comments. */
import type { FailedCheck } from './diagnostics.ts';

/** 0 or a negative errno (`-EIO`). */
export type CallerErrno = number;
/** KVM's negative errno values. */
export const Errno = {
  EINTR: 4,
  EIO: 5,
  E2BIG: 7,
  EAGAIN: 11,
  ENOMEM: 12,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  EOPNOTSUPP: 95,
} as const;

/** struct kvm_segment. */
export interface KvmSegment {
  base: bigint;
  /** Bytes. */
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

/** struct desc_ptr. */
export interface DtPtr {
  base: bigint;
  limit: number;
}

/** struct msr_data. */
export interface MsrData {
  index: number;
  data: bigint;
  hostInitiated: boolean;
}
export interface GetMsr {
  err: number;
  data: bigint;
}

/** enum exit_fastpath_completion. */
export const FastPath = { NONE: 0, REENTER_GUEST: 1, EXIT_HANDLED: 2, EXIT_USERSPACE: 3 } as const;
export type FastPath = (typeof FastPath)[keyof typeof FastPath];

/** > 0 go on, 0 exit to user space, < 0 errno. */
export type ExitOutcome = number;

/** vcpuRun's flags: KVM_RUN_FORCE_IMMEDIATE_EXIT … */
export const RunFlag = { FORCE_IMMEDIATE_EXIT: 1, LOAD_GUEST_DR6: 2, LOAD_DEBUGCTL: 4 } as const;

/** What kvm_exit shows. */
export interface ExitInfo {
  reason: number;
  /** KVM's symbol for it (`write_cr0`, `CR_ACCESS`). */
  name: string;
  /** 1 VMX, 2 SVM. */
  isa: 1 | 2;
  info1: bigint;
  info2: bigint;
  intrInfo: number;
  errorCode: number;
}
export interface EntryInfo {
  intrInfo: number;
  errorCode: number;
}

/** struct x86_exception. */
export interface X86ExceptionInfo {
  vector: number;
  errorCodeValid: boolean;
  errorCode: number;
  nestedPageFault: boolean;
  /** cr2 or nested fault address. */
  address: bigint;
}

/** The 512-byte SMM state save map (union kvm_smram), as bytes; 64-bit format if the guest CPUID has long mode. */
export interface SmramState {
  bytes: Uint8Array;
  view: DataView;
  is64: boolean;
}

/** KVM_REQ_* as bit numbers of `vcpu.requests`. */
export const Req = {
  VM_DEAD: 1,
  UNBLOCK: 2,
  DIRTY_RING_SOFT_FULL: 3,
  TLB_FLUSH: 0,
  MIGRATE_TIMER: 8,
  REPORT_TPR_ACCESS: 9,
  TRIPLE_FAULT: 10,
  MMU_SYNC: 11,
  CLOCK_UPDATE: 12,
  LOAD_MMU_PGD: 13,
  EVENT: 14,
  APF_HALT: 15,
  STEAL_UPDATE: 16,
  NMI: 17,
  PMU: 18,
  PMI: 19,
  SMI: 20,
  MASTERCLOCK_UPDATE: 21,
  MCLOCK_INPROGRESS: 22,
  SCAN_IOAPIC: 23,
  GLOBAL_CLOCK_UPDATE: 24,
  APIC_PAGE_RELOAD: 25,
  HV_CRASH: 26,
  IOAPIC_EOI_EXIT: 27,
  HV_RESET: 28,
  HV_EXIT: 29,
  HV_STIMER: 30,
  LOAD_EOI_EXITMAP: 31,
  GET_NESTED_STATE_PAGES: 32,
  APICV_UPDATE: 33,
  TLB_FLUSH_CURRENT: 34,
  TLB_FLUSH_GUEST: 35,
  APF_READY: 36,
  RECALC_INTERCEPTS: 37,
  UPDATE_CPU_DIRTY_LOGGING: 38,
  MMU_FREE_OBSOLETE_ROOTS: 39,
  HV_TLB_FLUSH: 40,
  VMSA_PAGE_RELOAD: 41,
  UPDATE_PROTECTED_GUEST_STATE: 42,
} as const;
export type Req = (typeof Req)[keyof typeof Req];

/** EMULTYPE_*. */
export const EmulType = {
  NO_DECODE: 1 << 0,
  TRAP_UD: 1 << 1,
  SKIP: 1 << 2,
  ALLOW_RETRY_PF: 1 << 3,
  TRAP_UD_FORCED: 1 << 4,
  VMWARE_GP: 1 << 5,
  PF: 1 << 6,
  COMPLETE_USER_EXIT: 1 << 7,
  WRITE_PF_TO_SP: 1 << 8,
  SKIP_SOFT_INT: 1 << 9,
} as const;

/** KVM_MP_STATE_*. */
export const MpState = {
  RUNNABLE: 0,
  UNINITIALIZED: 1,
  INIT_RECEIVED: 2,
  HALTED: 3,
  SIPI_RECEIVED: 4,
  AP_RESET_HOLD: 9,
} as const;
export type MpState = (typeof MpState)[keyof typeof MpState];

/** Where and why a guest shut down (shutdown-place.ts). */
export interface ShutdownPlace {
  cs: number;
  rip: bigint;
  cr0: bigint;
  /** The exception whose delivery failed, if the processor delivered it. */
  exception?: { vector: number; errorCode: number | undefined };
  /** The rules that refused the write at RIP, if its #GP is what could not be delivered. */
  failures: FailedCheck[];
}

/** Why KVM_RUN came back: KVM's exit reasons in lower case with KVM's fields. `data` views live until the next `run()`. */
export type KvmExit =
  | { reason: 'unknown'; hardwareExitReason: number }
  | {
      reason: 'io';
      direction: 'in' | 'out';
      size: number;
      port: number;
      count: number /** size * count bytes: read it (out) or fill it (in). */;
      data: Uint8Array;
    }
  | { reason: 'mmio'; physAddr: number; len: number; isWrite: boolean /** 8 bytes, `len` valid. */; data: Uint8Array }
  | { reason: 'hlt' }
  /** An exception that the vendor intercepts but can't handle. */
  | { reason: 'exception'; exception: number; errorCode: number }
  /** In-kernel irqchip: every vCPU is halted; nothing happens before `idleUntil` (ticks; Infinity: only an outside event can wake it). */
  | { reason: 'idle'; idleUntil: number }
  /** `at`: where the guest stood, if the vendor has reset the vCPU since (SVM). Not in KVM's struct. */
  | { reason: 'shutdown'; at?: ShutdownPlace }
  | { reason: 'fail_entry'; hardwareEntryFailureReason: bigint; cpu: number; failures: FailedCheck[] }
  | { reason: 'internal_error'; suberror: number; data: bigint[]; insnBytes?: Uint8Array; detail?: string }
  | { reason: 'irq_window_open' }
  | { reason: 'set_tpr' }
  | { reason: 'debug'; exception: number; pc: bigint; dr6: bigint; dr7: bigint }
  | { reason: 'rdmsr' | 'wrmsr'; index: number; data: bigint; error: number; msrReason: number }
  | { reason: 'hypercall'; nr: bigint; args: bigint[]; ret: bigint; longmode: boolean }
  | { reason: 'system_event'; type: number; data: bigint[] }
  | { reason: 'ioapic_eoi'; vector: number }
  | { reason: 'ap_reset_hold' }
  | { reason: 'intr' };
