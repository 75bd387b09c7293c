/**
 * The op table: every operation that core asks of a vendor, once (KVM: kvm-x86-ops.h).
 * The type {@link KvmX86Ops}, the static calls, the load check and the docs derive from it.
 */

import type { InstructionInfo, InterceptStage, SegmentIndex, X86Emul } from '@tskvm/emulator';
import type { Kvm } from './kvm.ts';
import type { RegName } from './reg-set.ts';
import type {
  CallerErrno,
  DtPtr,
  EntryInfo,
  ExitInfo,
  ExitOutcome,
  FastPath,
  GetMsr,
  KvmSegment,
  MsrData,
  SmramState,
  X86ExceptionInfo,
} from './types.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

/** required: loading fails without it. optional: a missing op is a no-op. optional-ret0: a missing op returns 0. */
export type OpKind = 'required' | 'optional' | 'optional-ret0';

export interface OpDef<F> {
  readonly kind: OpKind;
  /** One sentence. */
  readonly does: string;
  /** Phantom: the signature. */
  readonly signature?: F;
}
// biome-ignore lint/suspicious/noExplicitAny: any signature is allowed here
type AnyFn = (...args: any[]) => any;
const required = <F extends AnyFn>(does: string): OpDef<F> & { kind: 'required' } => ({ kind: 'required', does });
const optional = <F extends AnyFn>(does: string): OpDef<F> & { kind: 'optional' } => ({ kind: 'optional', does });
const optionalRet0 = <F extends AnyFn>(does: string): OpDef<F> & { kind: 'optional-ret0' } => ({
  kind: 'optional-ret0',
  does,
});

export const KVM_X86_OPS = {
  // Lifecycle
  checkProcessorCompatibility: required<(kvm: Kvm) => CallerErrno>(
    'Can this processor run the loaded configuration: 0 or -EIO.',
  ),
  enableVirtualizationCpu: required<(kvm: Kvm) => CallerErrno>(
    'Turn SVM/VMX on; its presence is the "a vendor is loaded" mark.',
  ),
  disableVirtualizationCpu: required<(kvm: Kvm) => void>('Turn SVM/VMX off.'),
  hardwareUnsetup: required<(kvm: Kvm) => void>('Undo hardwareSetup.'),
  hasEmulatedMsr: required<(vm: Vm | null, index: number) => boolean>('Does the vendor emulate this MSR.'),
  vmInit: required<(vm: Vm) => CallerErrno>('Vendor part of VM creation.'),
  vmDestroy: optional<(vm: Vm) => void>('Vendor part of VM teardown.'),
  vmPreDestroy: optional<(vm: Vm) => void>('Early teardown while vCPUs still exist.'),
  vcpuPrecreate: optionalRet0<(vm: Vm) => CallerErrno>('Idempotent preparation before a vCPU is made.'),
  vcpuCreate: required<(vcpu: Vcpu) => CallerErrno>('Allocate the VMCB or VMCS.'),
  vcpuFree: required<(vcpu: Vcpu) => void>('Free it.'),
  vcpuReset: required<(vcpu: Vcpu, initEvent: boolean) => void>('Vendor part of RESET (false) or INIT (true).'),
  vcpuAfterSetCpuid: required<(vcpu: Vcpu) => void>('Recompute what depends on the guest CPUID.'),
  vcpuNeedsInitialization: optionalRet0<(vcpu: Vcpu) => number>('The vCPU must not run yet (KVM_RUN gives -EINVAL).'),
  prepareSwitchToGuest: required<(vcpu: Vcpu) => void>('Load guest-only host state before the run loop.'),
  vcpuLoad: required<(vcpu: Vcpu, cpu: number) => void>('The vCPU was scheduled onto a processor.'),
  vcpuPut: required<(vcpu: Vcpu) => void>('The vCPU leaves the processor.'),
  vcpuBlocking: optional<(vcpu: Vcpu) => void>('Before sleeping in HLT.'),
  vcpuUnblocking: optional<(vcpu: Vcpu) => void>('After sleeping in HLT.'),

  // Registers
  isValidCr0: required<(vcpu: Vcpu, cr0: bigint) => boolean>('Vendor veto on a CR0 value.'),
  setCr0: required<(vcpu: Vcpu, cr0: bigint) => void>('Install CR0 with no checks.'),
  postSetCr3: optional<(vcpu: Vcpu, cr3: bigint) => void>(
    'Push CR3 into the VMCB of an SEV-ES guest before its state is sealed.',
  ),
  isValidCr4: required<(vcpu: Vcpu, cr4: bigint) => boolean>('Vendor veto on a CR4 value.'),
  setCr4: required<(vcpu: Vcpu, cr4: bigint) => void>('Install CR4 with no checks.'),
  setEfer: required<(vcpu: Vcpu, efer: bigint) => number>('Install EFER; non-zero is failure.'),
  getIdt: required<(vcpu: Vcpu) => DtPtr>('Read IDTR.'),
  setIdt: required<(vcpu: Vcpu, dt: DtPtr) => void>('Write IDTR.'),
  getGdt: required<(vcpu: Vcpu) => DtPtr>('Read GDTR.'),
  setGdt: required<(vcpu: Vcpu, dt: DtPtr) => void>('Write GDTR.'),
  syncDirtyDebugRegs: required<(vcpu: Vcpu) => void>(
    'Read DR0-3, DR6, DR7 back after the guest ran with DR exits off.',
  ),
  setDr7: required<(vcpu: Vcpu, value: bigint) => void>('Write DR7 into the VMCB or VMCS.'),
  cacheReg: required<(vcpu: Vcpu, reg: RegName) => void>('Pull one lazily cached register from the VMCB or VMCS.'),
  getRflags: required<(vcpu: Vcpu) => bigint>('RFLAGS as the guest sees it.'),
  setRflags: required<(vcpu: Vcpu, rflags: bigint) => void>('Write RFLAGS as the guest sees it.'),
  getIfFlag: required<(vcpu: Vcpu) => boolean>('RFLAGS.IF as the guest sees it.'),
  getCpl: required<(vcpu: Vcpu) => number>('Current privilege level.'),
  getCplNoCache: required<(vcpu: Vcpu) => number>('Current privilege level without touching the register cache.'),
  getSegmentBase: required<(vcpu: Vcpu, seg: SegmentIndex) => bigint>('Base of a segment.'),
  getSegment: required<(vcpu: Vcpu, seg: SegmentIndex) => KvmSegment>('A whole segment register.'),
  setSegment: required<(vcpu: Vcpu, segment: KvmSegment, seg: SegmentIndex) => void>('Write a whole segment register.'),
  getCsDbLBits: required<(vcpu: Vcpu) => { db: number; l: number }>('CS.D and CS.L.'),

  // MSRs and intercepts
  getMsr: required<(vcpu: Vcpu, msr: MsrData) => number>('Read one MSR into msr.data; 0 ok, 1 #GP.'),
  setMsr: required<(vcpu: Vcpu, msr: MsrData) => number>('Write one MSR; 0 ok, 1 #GP.'),
  getFeatureMsr: required<(kvm: Kvm, index: number) => GetMsr>('System-scope feature MSR.'),
  completeEmulatedMsr: required<(vcpu: Vcpu, err: number) => number>('Finish an MSR access: #GP or skip.'),
  recalcIntercepts: required<(vcpu: Vcpu) => void>('Rebuild instruction and MSR intercepts.'),
  updateExceptionBitmap: required<(vcpu: Vcpu) => void>('Rebuild the intercepted exceptions.'),

  // Run, exit, emulation
  vcpuRun: required<(vcpu: Vcpu, runFlags: number) => FastPath>('One VM entry and exit.'),
  handleExit: required<(vcpu: Vcpu, fastpath: FastPath) => ExitOutcome>(
    'Dispatch the exit: > 0 go on, 0 to user space, < 0 error.',
  ),
  handleExitIrqoff: required<(vcpu: Vcpu) => void>('The part of exit handling that precedes enabling interrupts.'),
  skipEmulatedInstruction: required<(vcpu: Vcpu) => number>(
    'Advance RIP past the exiting instruction; 0: exit to user space.',
  ),
  updateEmulatedInstruction: optional<(vcpu: Vcpu) => void>('After full emulation (VMX: nested MTF).'),
  unhandleableEmulationRequired: optionalRet0<(vcpu: Vcpu) => number>('Invalid guest state that KVM cannot emulate.'),
  checkEmulateInstruction:
    required<(vcpu: Vcpu, emulType: number, insn: Uint8Array | null) => X86Emul>('May KVM emulate now.'),
  checkIntercept: required<
    (vcpu: Vcpu, info: InstructionInfo, stage: InterceptStage, exception: X86ExceptionInfo) => X86Emul
  >('Does L1 intercept the instruction being emulated.'),
  getExitInfo: required<(vcpu: Vcpu) => ExitInfo>('Exit reason and information, for tracing.'),
  getEntryInfo: required<(vcpu: Vcpu) => EntryInfo>('Injected event, for tracing.'),
  patchHypercall: required<(vcpu: Vcpu, into: Uint8Array) => void>('The native hypercall opcode, 3 bytes.'),
  hasWbinvdExit: required<(kvm: Kvm) => boolean>('Can the vendor intercept WBINVD.'),
  setHvTimer: optional<(vcpu: Vcpu, guestDeadlineTsc: bigint) => { err: number; expired: boolean }>(
    'Arm the VMX preemption timer.',
  ),
  cancelHvTimer: optional<(vcpu: Vcpu) => void>('Disarm it.'),
  setupMce: required<(vcpu: Vcpu) => void>('Limit MCG_CAP.'),

  // Events
  injectIrq: required<(vcpu: Vcpu, reinjected: boolean) => void>('Put arch.interrupt into the entry-event field.'),
  injectNmi: required<(vcpu: Vcpu) => void>('Put an NMI there.'),
  injectException: required<(vcpu: Vcpu) => void>('Put arch.exception there.'),
  cancelInjection: required<(vcpu: Vcpu) => void>('Entry aborted: take the event back.'),
  interruptAllowed: required<(vcpu: Vcpu, forInjection: boolean) => number>(
    '1 yes, 0 blocked, -EBUSY: first enter and exit.',
  ),
  nmiAllowed: required<(vcpu: Vcpu, forInjection: boolean) => number>('Same for NMI.'),
  getNmiMask: required<(vcpu: Vcpu) => boolean>('Are NMIs masked.'),
  setNmiMask: required<(vcpu: Vcpu, masked: boolean) => void>('Mask or unmask NMIs.'),
  isVnmiPending: optionalRet0<(vcpu: Vcpu) => number>('SVM virtual NMI pending.'),
  setVnmiPending: optionalRet0<(vcpu: Vcpu) => number>('Make a virtual NMI pending.'),
  enableNmiWindow: required<(vcpu: Vcpu) => void>('Ask for an exit once an NMI can be taken.'),
  enableIrqWindow: required<(vcpu: Vcpu) => void>('Ask for an exit once an interrupt can be taken.'),
  setInterruptShadow: required<(vcpu: Vcpu, mask: number) => void>('Set the interrupt shadow: 1 MOV SS, 2 STI.'),
  getInterruptShadow: required<(vcpu: Vcpu) => number>('Read it.'),
  updateCr8Intercept: optional<(vcpu: Vcpu, tpr: number, irr: number) => void>(
    'Arm the TPR threshold or CR8 intercept.',
  ),

  // MMU and TLB
  flushTlbAll: required<(vcpu: Vcpu) => void>('Flush everything of this vCPU.'),
  flushTlbCurrent: required<(vcpu: Vcpu) => void>('Flush the current context.'),
  flushTlbGva: required<(vcpu: Vcpu, gva: bigint) => void>('Flush one guest linear address.'),
  flushTlbGuest: required<(vcpu: Vcpu) => void>('Flush all that the guest could have cached.'),
  flushRemoteTlbs: optional<(vm: Vm) => number>('Paravirtual flush under Hyper-V.'),
  flushRemoteTlbsRange: optional<(vm: Vm, gfn: number, pages: number) => number>('The same for a range.'),
  loadMmuPgd: required<(vcpu: Vcpu, rootHpa: number, rootLevel: number) => void>(
    'Install the MMU root and fix the hardware CR3.',
  ),
  getMtMask: optionalRet0<(vcpu: Vcpu, gfn: number, mmio: boolean) => number>('Memory type bits of an EPT leaf.'),
  tdpHasSmep: optionalRet0<(vm: Vm) => number>('TDP itself tells kernel from user execution.'),
  setExternalSpte:
    optionalRet0<(vm: Vm, gfn: number, oldSpte: bigint, newSpte: bigint, level: number) => number>(
      'Mirror page tables (TDX).',
    ),
  freeExternalSpt: optional<(vm: Vm, gfn: number, page: number) => void>('Mirror page tables (TDX).'),
  setTssAddr: optionalRet0<(vm: Vm, addr: number) => CallerErrno>('VMX: place of the real-mode TSS.'),
  setIdentityMapAddr: optionalRet0<(vm: Vm, addr: number) => CallerErrno>('VMX: place of the EPT identity page.'),
  updateCpuDirtyLogging: optional<(vcpu: Vcpu) => void>('Toggle the page-modification log.'),
  getUntaggedAddr: optional<(vcpu: Vcpu, gva: bigint, flags: number) => bigint>('Remove LAM tags.'),
  gmemMakePrivate: optionalRet0<(vm: Vm, pfn: number, gfn: number) => number>('guest_memfd conversion.'),
  gmemMakeShared: optional<(vm: Vm, pfn: number, gfn: number) => void>('guest_memfd conversion.'),
  gmemInvalidateRange: optional<(vm: Vm, start: number, end: number) => void>('guest_memfd invalidation.'),
  gmemMaxMappingLevel: optionalRet0<(vm: Vm, pfn: number) => number>('guest_memfd page size limit.'),

  // Local APIC, TSC
  refreshApicvExecCtrl: required<(vcpu: Vcpu) => void>('Re-evaluate APIC virtualisation.'),
  hwapicIsrUpdate: optional<(vcpu: Vcpu, isr: number) => void>('SVI update.'),
  loadEoiExitmap: optional<(vcpu: Vcpu, bitmap: BigUint64Array) => void>('Which vectors exit on EOI.'),
  setVirtualApicMode: optional<(vcpu: Vcpu) => void>('xAPIC or x2APIC virtualisation.'),
  setApicAccessPageAddr: optional<(vcpu: Vcpu) => void>('Refresh the APIC access page.'),
  deliverInterrupt: required<(vcpu: Vcpu, deliveryMode: number, trigMode: number, vector: number) => void>(
    'Accept an interrupt into the IRR and kick.',
  ),
  syncPirToIrr: optional<(vcpu: Vcpu) => number>('Drain posted interrupts.'),
  apicvPreStateRestore: optional<(vcpu: Vcpu) => void>('Before KVM_SET_LAPIC.'),
  apicvPostStateRestore: optional<(vcpu: Vcpu) => void>('After KVM_SET_LAPIC.'),
  dyApicvHasPendingInterrupt: optionalRet0<(vcpu: Vcpu) => number>('Directed-yield hint.'),
  protectedApicHasInterrupt: optional<(vcpu: Vcpu) => boolean>('TDX.'),
  vcpuGetApicvInhibitReasons: optionalRet0<(vcpu: Vcpu) => number>('Per-vCPU inhibits.'),
  apicInitSignalBlocked: required<(vcpu: Vcpu) => boolean>('INIT blocked (GIF=0, VMX root operation).'),
  vcpuDeliverSipiVector: required<(vcpu: Vcpu, vector: number) => void>('Apply a SIPI.'),
  allocApicBackingPage: optional<(vcpu: Vcpu) => number>('SNP-safe APIC page.'),
  piUpdateIrte: required<(vm: Vm, hostIrq: number, guestIrq: number, set: boolean) => number>('IRQ bypass.'),
  piStartBypass: optional<(vm: Vm) => void>('First bypass producer.'),
  migrateTimers: optional<(vcpu: Vcpu) => void>('Move timers with the vCPU.'),
  getL2TscOffset: required<(vcpu: Vcpu) => bigint>('Nested TSC offset.'),
  getL2TscMultiplier: required<(vcpu: Vcpu) => bigint>('Nested TSC multiplier.'),
  writeTscOffset: required<(vcpu: Vcpu) => void>('Program the TSC offset.'),
  writeTscMultiplier: required<(vcpu: Vcpu) => void>('Program the TSC multiplier.'),

  // SMM
  smiAllowed: required<(vcpu: Vcpu, forInjection: boolean) => number>('As nmiAllowed for SMI.'),
  enterSmm: required<(vcpu: Vcpu, smram: SmramState) => number>(
    'Leave L2 after its state was captured; may write vendor fields.',
  ),
  leaveSmm: required<(vcpu: Vcpu, smram: SmramState) => number>('Re-enter L2 on RSM.'),
  enableSmiWindow: required<(vcpu: Vcpu) => void>('Ask for an exit when an SMI can be taken.'),

  // Confidential computing
  devGetAttr: optional<(kvm: Kvm, group: number, attr: number) => bigint>('/dev/kvm attributes.'),
  memEncIoctl: optional<(vm: Vm, command: unknown) => number>('KVM_MEMORY_ENCRYPT_OP on a VM.'),
  vcpuMemEncIoctl: optional<(vcpu: Vcpu, command: unknown) => number>('The same on a vCPU.'),
  vcpuMemEncUnlockedIoctl: optional<(vcpu: Vcpu, command: unknown) => number>('The same without the lock.'),
  memEncRegisterRegion: optional<(vm: Vm, region: unknown) => number>('Pin a guest range.'),
  memEncUnregisterRegion: optional<(vm: Vm, region: unknown) => number>('Unpin it.'),
  vmCopyEncContextFrom: optional<(vm: Vm, source: Vm) => number>('Mirror VM.'),
  vmMoveEncContextFrom: optional<(vm: Vm, source: Vm) => number>('Intra-host migration.'),
  guestMemoryReclaimed: optional<(vm: Vm) => void>('Cache flush after reclaim.'),
  reloadVmsa: optional<(vcpu: Vcpu) => void>('The SNP VMSA page changed.'),
  enableL2TlbFlush: optional<(vcpu: Vcpu) => number>('Hyper-V enlightenment.'),

  // Nested (kvm_x86_nested_ops)
  leaveNested: required<(vcpu: Vcpu) => void>('Force back to L1 without a VM exit.'),
  isExceptionVmexit: required<(vcpu: Vcpu, vector: number, errorCode: number) => boolean>(
    'L1 intercepts this exception.',
  ),
  checkNestedEvents: required<(vcpu: Vcpu) => number>('Turn pending events into a nested VM exit.'),
  hasNestedEvents: optionalRet0<(vcpu: Vcpu, forInjection: boolean) => number>('Nested-only wake events.'),
  nestedTripleFault: required<(vcpu: Vcpu) => void>('Shutdown in L2.'),
  getNestedState: required<(vcpu: Vcpu) => unknown>('KVM_GET_NESTED_STATE.'),
  setNestedState: required<(vcpu: Vcpu, state: unknown) => CallerErrno>('KVM_SET_NESTED_STATE.'),
  getNestedStatePages: required<(vcpu: Vcpu) => boolean>('Map deferred guest pages.'),
  nestedWriteLogDirty: optionalRet0<(vcpu: Vcpu, gpa: number) => number>('Nested PML.'),
  translateNestedGpa: required<(vcpu: Vcpu, gpa: number, access: number) => number>('L2 GPA to L1 GPA, -1: fault.'),
} as const;

type Table = typeof KVM_X86_OPS;
export type OpName = keyof Table;
type Signature<D> = D extends OpDef<infer F> ? F : never;
type OpsOfKind<K extends OpKind> = { [N in OpName as Table[N]['kind'] extends K ? N : never]: Signature<Table[N]> };

/** What a vendor provides (KVM: struct kvm_x86_ops with its nested table). */
export type KvmX86Ops = OpsOfKind<'required'> & Partial<OpsOfKind<'optional' | 'optional-ret0'>>;

/** What core calls: `kvm.calls.setCr0(vcpu, cr0)`; every entry is callable (KVM: the static calls, kvm_x86_call(op)). */
export type KvmX86Calls = { [N in OpName]: Signature<Table[N]> };
