/**
 * struct vcpu_vmx, struct kvm_vmx and the module's state: what KVM's VMX driver keeps per vCPU, per VM and per kernel.
 * KVM: arch/x86/kvm/vmx/vmx.h.
 */
import type { Kvm, KvmSegment, Vcpu, Vm } from '@tskvm/core';
import type { VmxExitStub } from './exit-stub.ts';
import type { FailedCheck } from './hardware/entry-checks.ts';
import type { VmxSilicon } from './hardware/instructions.ts';
import type { Vmcs } from './hardware/vmcs.ts';

/** Module parameters, KVM's names in camel case. */
export interface VmxParams {
  /** Nested paging; false: shadow paging, and no unrestricted guest. */
  ept?: boolean;
  /** Real mode and paging off run natively. */
  unrestrictedGuest?: boolean;
  /** Emulate a guest state that VM entry would refuse. */
  emulateInvalidGuestState?: boolean;
  vpid?: boolean;
  vnmi?: boolean;
  eptad?: boolean;
  preemptionTimer?: boolean;
  /** Dump the VMCS into the error when an entry fails. */
  dumpInvalidVmcs?: boolean;
  /** Accepted for KVM's sake; only false is implemented. */
  nested?: boolean;
  enableApicv?: boolean;
  flexpriority?: boolean;
  pml?: boolean;
}

/** struct vmcs_config: the controls that KVM uses on this processor. */
export interface VmcsConfig {
  pin: number;
  primary: number;
  secondary: number;
  exit: number;
  entry: number;
}

/** State of the loaded module (`kvm.vendor`). */
export interface VmxModule {
  params: Readonly<Required<VmxParams>>;
  config: VmcsConfig;
  silicon: VmxSilicon;
  vmxonRegion: number;
  /** VPIDs in use; index 0 is the host's. */
  vpids: boolean[];
  /** vCPU whose guest-only MSRs the processor holds. */
  current: Vcpu | null;
}

/** The vendor's part of a VM. */
export interface KvmVmx {
  /** Place of the real-mode TSS, undefined before KVM_SET_TSS_ADDR. */
  tssAddr: number | undefined;
  identityMapAddr: number;
  identityMapDone: boolean;
}

/** MSRs that are the guest's only while it runs. KVM: vmx_uret_msrs_list and MSR_KERNEL_GS_BASE. */
export interface GuestMsrs {
  star: bigint;
  lstar: bigint;
  cstar: bigint;
  sfmask: bigint;
  kernelGsBase: bigint;
  tscAux: bigint;
}

export class VcpuVmx {
  /** Host physical addresses. */
  vmcsPa = -1;
  msrBitmap = -1;
  launched = false;
  vpid = 0;
  /** The exit reason with its flag bits; `fail`: the instruction itself failed. */
  exitReason = 0;
  fail = 0;
  exitIntrInfo = 0;
  idtVectoringInfo = 0;
  /** Length of the instruction whose soft event was interrupted or is to be injected. */
  eventExitInstLen = 0;
  /** Without virtual NMIs: NMIs count as blocked. */
  softVnmiBlocked = false;
  ia32FeatureControl = 0n;
  rmode: { vm86Active: boolean; saveRflags: bigint; segs: KvmSegment[] } = {
    vm86Active: false,
    saveRflags: 0n,
    segs: [],
  };
  msrs: GuestMsrs = { star: 0n, lstar: 0n, cstar: 0n, sfmask: 0n, kernelGsBase: 0n, tscAux: 0n };
  /** What the last failed entry broke. */
  failures: readonly FailedCheck[] = [];
  /** RFLAGS as last read, by their low half. */
  readonly rflags = { low: 0, value: 0n };
  /** `arch.regs` as words, for the copies around an entry. */
  readonly regs32: Int32Array;
  readonly silicon: VmxSilicon;
  readonly module: VmxModule;
  readonly stub: VmxExitStub;

  constructor(vcpu: Vcpu, module: VmxModule, stub: VmxExitStub) {
    this.stub = stub;
    this.module = module;
    this.silicon = module.silicon;
    const { regs } = vcpu.arch;
    this.regs32 = new Int32Array(regs.buffer, regs.byteOffset, regs.length * 2);
  }
}

/** The loaded module of a kernel. */
export const vmxModule = (kvm: Kvm): VmxModule => kvm.vendor as VmxModule;
/** KVM: to_vmx. */
export const toVmx = (vcpu: Vcpu): VcpuVmx => vcpu.vendor as VcpuVmx;
/** KVM: to_kvm_vmx. */
export const toKvmVmx = (vm: Vm): KvmVmx => vm.vendor as KvmVmx;

/** The vCPU's VMCS, made current if another one is. KVM's callers hold the vCPU loaded; ours need not. */
export function vmcsOf(vcpu: Vcpu): Vmcs {
  const vmx = vcpu.vendor as VcpuVmx;
  const { silicon } = vmx;
  if (silicon.vmcs.pa !== vmx.vmcsPa) silicon.vmptrld(vmx.vmcsPa);
  return silicon.vmcs;
}

/** Does this vCPU run with "unrestricted guest". KVM: is_unrestricted_guest. */
export const isUnrestrictedGuest = (vcpu: Vcpu): boolean => toVmx(vcpu).module.params.unrestrictedGuest;

/** Sets and clears bits of a control field. KVM: exec_controls_setbit and its family. */
export function controlsSetBit(vcpu: Vcpu, field: number, bits: number): void {
  const v = vmcsOf(vcpu);
  const old = v.read32(field);
  if ((old & bits) >>> 0 !== bits >>> 0) v.write32(field, (old | bits) >>> 0);
}
export function controlsClearBit(vcpu: Vcpu, field: number, bits: number): void {
  const v = vmcsOf(vcpu);
  const old = v.read32(field);
  if ((old & bits) !== 0) v.write32(field, (old & ~bits) >>> 0);
}
export const controlsGet = (vcpu: Vcpu, field: number): number => vmcsOf(vcpu).read32(field) | 0;
