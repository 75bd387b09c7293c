/** struct kvm_vcpu and struct kvm_vcpu_arch: one virtual processor. */
import type { Kvm } from './kvm.ts';
import type { Lapic } from './lapic.ts';
import type { KvmExit, KvmSegment } from './types.ts';
import { MpState } from './types.ts';
import type { Vm } from './vm.ts';
import { kvmArchVcpuIoctlRun } from './x86.ts';

/** struct kvm_queued_exception. */
export interface QueuedException {
  pending: boolean;
  injected: boolean;
  hasErrorCode: boolean;
  vector: number;
  errorCode: number;
  payload: bigint;
  hasPayload: boolean;
}

/** struct kvm_mmu: one walk context and root. */
export interface MmuRoot {
  /** Host physical address of the root table, or -1. */
  hpa: number;
  level: number;
  /** KVM's role bits (facts: kvm_mmu_page_role), the key of the root. */
  role: number;
}

/** Work that waits for user space's answer: data, never a closure. KVM: the callback complete_userspace_io. */
export interface UserspaceCompletion {
  /** `fastPioIn`, `fastPioOut`, `emulatedPio`, `emulatedMmio`, `rdmsr`, `wrmsr`, `hypercall`, or a vendor's own. */
  kind: string;
  data: unknown;
}

/** struct kvm_vcpu_arch. Guest register values as KVM sees them; with a protected guest they are scrubbed. */
export interface VcpuArch {
  /** RAX..R15 and RIP (index 16). Filled by the vendor's exit path; never aliases the processor's block. */
  regs: BigUint64Array;
  /** Names of registers that are cached / dirty (KVM: regs_avail, regs_dirty): 'rip','rsp','rflags','cr0','cr3','cr4','pdptr','segments','exitInfo1','exitInfo2'. */
  regsAvail: Set<string>;
  regsDirty: Set<string>;
  cr0: bigint;
  cr0GuestOwnedBits: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr4GuestOwnedBits: bigint;
  cr4GuestRsvdBits: bigint;
  cr8: bigint;
  efer: bigint;
  xcr0: bigint;
  guestSupportedXcr0: bigint;
  pat: bigint;
  smbase: bigint;
  tscOffset: bigint;
  tscAux: bigint;
  pdptrs: [bigint, bigint, bigint, bigint];
  pdptrsFromUserspace: boolean;
  db: [bigint, bigint, bigint, bigint];
  effDb: [bigint, bigint, bigint, bigint];
  dr6: bigint;
  dr7: bigint;
  guestDebugDr7: bigint;
  /** KVM_DEBUGREG_*: bit 0 BP enabled, bit 1 won't exit. */
  switchDbRegs: number;
  /** HF_SMM_MASK 2, HF_SMM_INSIDE_NMI_MASK 4, HF_GUEST_MASK 1 (is_guest_mode). */
  hflags: number;
  exception: QueuedException;
  exceptionVmexit: QueuedException;
  interrupt: { injected: boolean; soft: boolean; nr: number };
  nmiInjected: boolean;
  nmiPending: number;
  nmiQueued: number;
  smiPending: boolean;
  smiCount: number;
  mpState: MpState;
  sipiVector: number;
  /** INIT/SIPI latched by the local APIC: bit 0 INIT, bit 1 SIPI. */
  pendingApicEvents: number;
  apic: Lapic | null;
  apicBase: bigint;
  /** Vector that user space queued by KVM_INTERRUPT without an in-kernel PIC (KVM: pending_external_vector), -1: none. */
  pendingExternalVector: number;
  guestStateProtected: boolean;
  emulationRequired: boolean;
  haltRequest: boolean;
  /** Outstanding port I/O (KVM: arch.pio). */
  pio: { port: number; in: boolean; size: number; count: number };
  /** Pending completion after user space answered: data, never a closure. */
  completeUserspaceIo: UserspaceCompletion | null;
  maxphyaddr: number;
  reservedGpaBits: bigint;
  /** Root of the tables in use. */
  mmu: MmuRoot;
  /** L2 runs with nested tables of its own: its physical addresses go through `translateNestedGpa`. */
  nestedTdp: boolean;
  /** CPU role (paging mode bits), recomputed by kvmInitMmu. */
  cpuRole: number;
  exitQualification: bigint;
  atInstructionBoundary: boolean;
  singlestepRip: bigint;
  msrs: Map<number, bigint>;
  miscEnable: bigint;
  xss: bigint;
  reqImmediateExit: boolean;
  /** CPUID.1:EAX etc. were set at least once. */
  cpuidSet: boolean;
  /** x87 and SSE state of a vCPU that is not on the processor: the state block's bytes from `S.ymm` to `S.mxcsr` + 4 (null: fresh). */
  guestFpu: Uint8Array;
  lastVmentryCpu: number;
}

/** What user space hands in and reads (struct kvm_run without the exit union). */
export interface KvmRunIo {
  requestInterruptWindow: boolean;
  immediateExit: boolean;
  readyForInterruptInjection: boolean;
  ifFlag: boolean;
  cr8: bigint;
  apicBase: bigint;
  smm: boolean;
}

/** Options of one KVM_RUN. */
export interface RunOptions {
  /** Most instructions to run before an `intr` exit; default: no limit. */
  budget?: number;
}

const noException = (): QueuedException => ({
  pending: false,
  injected: false,
  hasErrorCode: false,
  vector: 0,
  errorCode: 0,
  payload: 0n,
  hasPayload: false,
});

function newArch(): VcpuArch {
  return {
    regs: new BigUint64Array(17),
    regsAvail: new Set(),
    regsDirty: new Set(),
    cr0: 0n,
    cr0GuestOwnedBits: 0n,
    cr2: 0n,
    cr3: 0n,
    cr4: 0n,
    cr4GuestOwnedBits: 0n,
    cr4GuestRsvdBits: 0n,
    cr8: 0n,
    efer: 0n,
    xcr0: 1n,
    guestSupportedXcr0: 1n,
    pat: 0x0007040600070406n,
    smbase: 0x30000n,
    tscOffset: 0n,
    tscAux: 0n,
    pdptrs: [0n, 0n, 0n, 0n],
    pdptrsFromUserspace: false,
    db: [0n, 0n, 0n, 0n],
    effDb: [0n, 0n, 0n, 0n],
    dr6: 0xffff0ff0n,
    dr7: 0x400n,
    guestDebugDr7: 0n,
    switchDbRegs: 0,
    hflags: 0,
    exception: noException(),
    exceptionVmexit: noException(),
    interrupt: { injected: false, soft: false, nr: 0 },
    nmiInjected: false,
    nmiPending: 0,
    nmiQueued: 0,
    smiPending: false,
    smiCount: 0,
    mpState: MpState.RUNNABLE,
    sipiVector: 0,
    pendingApicEvents: 0,
    apic: null,
    apicBase: 0n,
    pendingExternalVector: -1,
    guestStateProtected: false,
    emulationRequired: false,
    haltRequest: false,
    pio: { port: 0, in: false, size: 0, count: 0 },
    completeUserspaceIo: null,
    maxphyaddr: 36,
    reservedGpaBits: ~((1n << 36n) - 1n) & 0xffffffffffffffffn,
    mmu: { hpa: -1, level: 0, role: 0 },
    nestedTdp: false,
    cpuRole: 0,
    exitQualification: 0n,
    atInstructionBoundary: false,
    singlestepRip: 0n,
    msrs: new Map(),
    miscEnable: 0x1800n,
    xss: 0n,
    reqImmediateExit: false,
    cpuidSet: false,
    guestFpu: new Uint8Array(0),
    lastVmentryCpu: -1,
  };
}

export class Vcpu {
  readonly kvm: Kvm;
  readonly arch: VcpuArch = newArch();
  readonly runIo: KvmRunIo = {
    requestInterruptWindow: false,
    immediateExit: false,
    readyForInterruptInjection: false,
    ifFlag: false,
    cr8: 0n,
    apicBase: 0n,
    smm: false,
  };
  /** Exit prepared by whoever answered 0. */
  exit: KvmExit = { reason: 'unknown', hardwareExitReason: 0 };
  /** KVM_REQ_*: see requests.ts. */
  readonly requests = new Set<number>();
  /** KVM_GUESTDBG_* bits. */
  guestDebug = 0;
  /** The vendor's part: VcpuSvm or VcpuVmx. */
  vendor: unknown = null;
  /** CPUID as the guest sees it. */
  cpuid: CpuidEntry[] = [];
  /** Tick at which the budget of the KVM_RUN in progress is used up. */
  runDeadline = Number.POSITIVE_INFINITY;

  /** Use {@link Vm.createVcpu}. */
  constructor(
    readonly vm: Vm,
    readonly vcpuId: number,
  ) {
    this.kvm = vm.kvm;
  }

  /** KVM_RUN: runs until something needs the caller. Never blocks; never throws for anything that the guest does. */
  run(options: RunOptions = {}): KvmExit {
    return kvmArchVcpuIoctlRun(this, options);
  }
}

/** struct kvm_cpuid_entry2. */
export interface CpuidEntry {
  function: number;
  index: number;
  /** 1: the index is significant. */
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

export type { KvmSegment };
