/** struct kvm_vcpu and struct kvm_vcpu_arch: one virtual processor. */

import { CpuidPlaces, setCpuid2 } from './cpuid.ts';
import { KvmError } from './diagnostics.ts';
import { kvmInjectNmi, kvmInjectSmi } from './exceptions.ts';
import { FRESH_FPU } from './fpu.ts';
import type { Kvm } from './kvm.ts';
import type { Lapic } from './lapic.ts';
import { kvmMmuGvaToGpaSystem } from './mmu/walker.ts';
import { kvmSetXcr } from './msrs.ts';
import { RegSet } from './reg-set.ts';
import { kvmMakeRequest, RequestSet } from './requests.ts';
import { requireShape, u64, words } from './shape.ts';
import { loadVcpu, saveVcpu, type VcpuSave } from './snapshot.ts';
import { XCRS } from './state-shapes.ts';
import { attributeRunError } from './static-calls.ts';
import type { KvmExit, KvmSegment } from './types.ts';
import { Errno, MpState, Req } from './types.ts';
import type { KvmDebugregs, KvmRegs, KvmSregs, KvmSregs2, KvmVcpuEvents } from './vcpu-state.ts';
import * as state from './vcpu-state.ts';
import { resolvedVendor } from './vendor.ts';
import type { Vm } from './vm.ts';
import { kvmArchVcpuIoctlRun, vcpuLoad } from './x86.ts';
import { getKvmFpu, getXsave, setKvmFpu, setXsave } from './xsave.ts';

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
  /** The same as 32-bit halves, low half first: what fits 32 bits needs no bigint. */
  readonly regs32: Uint32Array;
  /** Names of registers that are cached / dirty (KVM: regs_avail, regs_dirty): 'rip','rsp','rflags','cr0','cr3','cr4','pdptr','segments','exitInfo1','exitInfo2'. */
  regsAvail: RegSet;
  regsDirty: RegSet;
  cr0: bigint;
  cr0GuestOwnedBits: bigint;
  /** CR2, the only element: from typed array to typed array no bigint is made on the way. */
  readonly cr2: BigUint64Array;
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
  /** While the vCPU is not on the processor. */
  pkru: number;
  /** IA32_PKRS, likewise. */
  pkrs: number;
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
  /** x87, SSE and AVX state while the vCPU is not on the processor: the state block's bytes from `S.ymm` to MXCSR. */
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
  const regs = new BigUint64Array(17);
  return {
    regs,
    regs32: new Uint32Array(regs.buffer),
    regsAvail: new RegSet(),
    regsDirty: new RegSet(),
    cr0: 0n,
    cr0GuestOwnedBits: 0n,
    cr2: new BigUint64Array(1),
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
    pkru: 0,
    pkrs: 0,
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
    guestFpu: FRESH_FPU.slice(),
    lastVmentryCpu: -1,
  };
}

/** Throws KvmError RUN_BUDGET (EINVAL): a budget is a number of at least 0, or Infinity. */
export function checkRunOptions(options: RunOptions): void {
  if (typeof options === 'object' && options !== null) {
    const { budget } = options;
    if (budget === undefined || (typeof budget === 'number' && budget >= 0)) return;
  }
  throw new KvmError(
    'RUN_BUDGET',
    Errno.EINVAL,
    'KVM_RUN: budget is not a number of at least 0; leave it out for no limit',
  );
}

/** What a backend's op throws in an ioctl is told with the op's name, as in a run. */
function attributed<T>({ kvm }: Vcpu, ioctl: () => T): T {
  try {
    return ioctl();
  } catch (error) {
    const vendor = resolvedVendor(kvm);
    throw vendor ? attributeRunError(vendor.name, vendor.ops, error) : error;
  }
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
  readonly requests = new RequestSet();
  /** KVM_GUESTDBG_* bits. */
  guestDebug = 0;
  /** The vendor's part: VcpuSvm or VcpuVmx. */
  vendor: unknown = null;
  /** CPUID as the guest sees it. */
  cpuid: CpuidEntry[] = [];
  readonly cpuidPlaces = new CpuidPlaces();
  /** Tick at the last look, and entries since then that retired nothing. */
  readonly progress = { tick: -1, fruitless: 0 };
  /** Tick at which the budget of the KVM_RUN in progress is used up. */
  runDeadline = Number.POSITIVE_INFINITY;
  /** Tick at which a run whose budget was used up in a delivery ends all the same. */
  graceEnds = Number.POSITIVE_INFINITY;

  /** Use {@link Vm.createVcpu}. */
  constructor(
    readonly vm: Vm,
    readonly vcpuId: number,
  ) {
    this.kvm = vm.kvm;
  }

  /**
   * KVM_RUN: runs until something needs the caller. Never blocks; never throws for anything that the guest does.
   * Throws KvmError RUN_BUDGET, RUN_CR8, RUN_ANSWER (EINVAL) and, once the VM is dead, RUN_FAILED (EIO).
   */
  run(options: RunOptions = {}): KvmExit {
    checkRunOptions(options);
    return kvmArchVcpuIoctlRun(this, options);
  }

  getRegs(): KvmRegs {
    return attributed(this, () => state.getRegs(this));
  }
  setRegs(regs: KvmRegs): void {
    attributed(this, () => state.setRegs(this, regs));
  }
  getSregs(): KvmSregs {
    return attributed(this, () => state.getSregs(this));
  }
  /** Throws KvmError SREGS_* (EINVAL) with the rule that is broken. */
  setSregs(sregs: KvmSregs): void {
    attributed(this, () => state.setSregs(this, sregs));
  }
  getSregs2(): KvmSregs2 {
    return attributed(this, () => state.getSregs2(this));
  }
  setSregs2(sregs: KvmSregs2): void {
    attributed(this, () => state.setSregs2(this, sregs));
  }
  getVcpuEvents(): KvmVcpuEvents {
    return attributed(this, () => state.getVcpuEvents(this));
  }
  setVcpuEvents(events: KvmVcpuEvents): void {
    attributed(this, () => state.setVcpuEvents(this, events));
  }
  getDebugregs(): KvmDebugregs {
    return attributed(this, () => state.getDebugregs(this));
  }
  setDebugregs(regs: KvmDebugregs): void {
    attributed(this, () => state.setDebugregs(this, regs));
  }
  getMpState(): MpState {
    return this.arch.mpState === MpState.SIPI_RECEIVED ? MpState.INIT_RECEIVED : this.arch.mpState;
  }
  setMpState(mpState: MpState): void {
    attributed(this, () => state.setMpState(this, mpState));
  }
  /** One MSR as the host sees it; undefined: it does not exist. */
  getMsr(index: number): bigint | undefined {
    return attributed(this, () => state.getMsr(this, index));
  }
  /** False: refused. */
  setMsr(index: number, data: bigint): boolean {
    return attributed(this, () => state.setMsr(this, index, data));
  }
  getXcrs(): { xcr0: bigint } {
    return { xcr0: this.arch.xcr0 };
  }
  /** Throws KvmError XCRS_FIELD, XCR0 (EINVAL). */
  setXcrs(xcrs: { xcr0: bigint }): void {
    requireShape('XCRS_FIELD', Errno.EINVAL, 'KVM_SET_XCRS: ', xcrs, 'xcrs', XCRS);
    if (kvmSetXcr(this, 0, xcrs.xcr0) !== 0) {
      throw new KvmError('XCR0', Errno.EINVAL, `XCR0 0x${xcrs.xcr0.toString(16)} is not legal for this guest`);
    }
  }
  /** KVM_GET_FPU: struct kvm_fpu, 416 bytes. KVM leaves its `mxcsr` out. */
  getFpu(): Uint8Array {
    return getKvmFpu(this);
  }
  /** KVM_SET_FPU. Throws KvmError FPU_IMAGE (EINVAL). */
  setFpu(image: Uint8Array): void {
    setKvmFpu(this, image);
  }
  /** KVM_GET_XSAVE: the XSAVE area in the standard format, 4096 bytes. */
  getXsave(): Uint8Array {
    return getXsave(this);
  }
  /** KVM_SET_XSAVE. Throws KvmError XSAVE_AREA (EINVAL) before anything has changed. */
  setXsave(area: Uint8Array): void {
    setXsave(this, area);
  }
  /** KVM_SET_CPUID2. Throws KvmError CPUID_*. */
  setCpuid(entries: readonly CpuidEntry[]): void {
    attributed(this, () => {
      vcpuLoad(this);
      setCpuid2(this, entries);
    });
  }
  getCpuid(): CpuidEntry[] {
    return this.cpuid.map((entry) => ({ ...entry }));
  }
  /** KVM_SET_GUEST_DEBUG; control: GuestDebug bits. */
  setGuestDebug(control: number, debugreg?: { db: bigint[]; dr7: bigint }): void {
    attributed(this, () => state.setGuestDebug(this, control, debugreg));
  }
  /** KVM_TRANSLATE: guest physical address of a linear one, undefined: not mapped. Throws KvmError TRANSLATE_ADDRESS. */
  translate(linear: bigint): number | undefined {
    requireShape('TRANSLATE_ADDRESS', Errno.EINVAL, 'KVM_TRANSLATE: ', linear, 'linear', u64);
    return attributed(this, () => {
      vcpuLoad(this);
      return kvmMmuGvaToGpaSystem(this, linear);
    });
  }
  /** KVM_NMI. */
  nmi(): void {
    kvmInjectNmi(this);
  }
  /** KVM_SMI. */
  smi(): void {
    kvmInjectSmi(this);
  }
  /** KVM_INTERRUPT, without an in-kernel PIC. Throws KvmError INTERRUPT_* (EINVAL, EEXIST). */
  interrupt(vector: number): void {
    if (!Number.isInteger(vector) || vector < 0 || vector > 255) {
      throw new KvmError('INTERRUPT_VECTOR', Errno.EINVAL, `vector ${String(vector)}: give 0 to 255`);
    }
    if (this.vm.irqchipInKernel) {
      throw new KvmError('INTERRUPT_IN_KERNEL', Errno.EINVAL, 'the irqchip is in the kernel; use vm.setIrqLine');
    }
    if (this.arch.pendingExternalVector >= 0) {
      throw new KvmError('INTERRUPT_PENDING', Errno.EEXIST, 'an interrupt is waiting already');
    }
    this.arch.pendingExternalVector = vector;
    kvmMakeRequest(Req.EVENT, this);
  }
  /** KVM_GET_LAPIC: the registers, one 32-bit word per 16 bytes. */
  getLapic(): Uint32Array {
    if (!this.arch.apic) throw new KvmError('LAPIC', Errno.EINVAL, 'the VM has no in-kernel irqchip');
    return this.arch.apic.regs.slice();
  }
  /** Throws KvmError LAPIC, LAPIC_REGS (EINVAL). */
  setLapic(regs: Uint32Array): void {
    if (!this.arch.apic) throw new KvmError('LAPIC', Errno.EINVAL, 'the VM has no in-kernel irqchip');
    requireShape('LAPIC_REGS', Errno.EINVAL, 'KVM_SET_LAPIC: ', regs, 'regs', words(64, 64));
    this.arch.apic.regs.set(regs);
    this.arch.apic.timer.start();
    kvmMakeRequest(Req.EVENT, this);
  }
  /** State as a plain, versioned object. */
  save(): VcpuSave {
    return attributed(this, () => saveVcpu(this));
  }
  load(saved: VcpuSave): void {
    attributed(this, () => loadVcpu(this, saved));
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
