/** struct kvm_vcpu and struct kvm_vcpu_arch: one virtual processor. */
import type { Kvm } from './kvm.ts';
import type { Lapic } from './lapic.ts';
import type { KvmExit, KvmSegment, MpState } from './types.ts';
import type { Vm } from './vm.ts';

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
  guestStateProtected: boolean;
  emulationRequired: boolean;
  haltRequest: boolean;
  /** Outstanding port I/O (KVM: arch.pio). */
  pio: { port: number; in: boolean; size: number; count: number };
  /** Pending completion after user space answered: data, never a closure. */
  completeUserspaceIo: { kind: string; data: unknown } | null;
  maxphyaddr: number;
  reservedGpaBits: bigint;
  /** Root of the tables in use. */
  mmu: MmuRoot;
  /** CPU role (paging mode bits), recomputed by kvmInitMmu. */
  cpuRole: number;
  exitQualification: bigint;
  atInstructionBoundary: boolean;
  singlestepRip: bigint;
  msrs: Map<number, bigint>;
  miscEnable: bigint;
  /** Frame names of the call in progress, when traced (see trace.ts). */
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

export interface Vcpu {
  readonly kvm: Kvm;
  readonly vm: Vm;
  readonly vcpuId: number;
  readonly arch: VcpuArch;
  readonly runIo: KvmRunIo;
  /** Exit prepared by whoever answered 0. */
  exit: KvmExit;
  /** Bit set of Req.* (bigint-free: two words behind makeRequest/checkRequest). */
  readonly requests: Set<number>;
  guestDebug: number;
  /** The vendor's part: VcpuSvm or VcpuVmx. */
  vendor: unknown;
  /** CPUID as the guest sees it. */
  cpuid: CpuidEntry[];
  /** KVM_RUN. */
  run(): KvmExit;
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
