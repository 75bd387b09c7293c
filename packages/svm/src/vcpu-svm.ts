/** What the driver keeps per vCPU, per VM and per kernel. KVM: svm.h (struct vcpu_svm, struct kvm_svm, struct svm_cpu_data). */
import type { Kvm, Vcpu, Vm } from '@tskvm/core';
import type { SvmExitStub } from './exit-stub.ts';
import type { OptionalFeature, SvmHardware, Vmcb } from './hardware/index.ts';
import type { GhcbState } from './sev.ts';

/** KVM's module parameters of kvm_amd, in camel case. */
export interface SvmParams {
  /** Nested paging (default: true). Without it KVM needs shadow paging. */
  npt: boolean;
  /** Use the next-RIP field (default: true). */
  nrips: boolean;
  /** Let guests use SVM themselves (default: false, because nested operation is not there yet). */
  nested: boolean;
  /** Virtual GIF for nested guests (default: false). */
  vgif: boolean;
  /** Intercept physical SMIs (default: true). */
  interceptSmi: boolean;
  /** Allow VMs with encrypted register state (default: false). */
  sevEs: boolean;
  /** PAUSEs before an exit (default: 3000). */
  pauseFilterCount: number;
}

/** Module state: `kvm.vendor`. */
export interface SvmModule {
  readonly hw: SvmHardware;
  /** Parameters after the hardware's features were taken into account. */
  readonly params: SvmParams;
  /** Host physical address of the I/O permission map. */
  iopm: number;
  hsave: number;
  /** ASIDs of this processor (KVM: struct svm_cpu_data). */
  asidGeneration: number;
  nextAsid: number;
  readonly minAsid: number;
  readonly maxAsid: number;
  /** ASIDs below `minAsid` in use by SEV-ES VMs. */
  readonly sevAsids: Set<number>;
}

/** Part of a VM: `vm.vendor`. */
export interface KvmSvm {
  /** ASID that all vCPUs of a SEV-ES VM share, 0: not one. */
  sevAsid: number;
}

/** Part of a vCPU: `vcpu.vendor`. */
export interface VcpuSvm {
  vmcb: Vmcb;
  /** arch.regs as 32-bit words. */
  readonly regWords: Int32Array;
  /** CR0 and CR3 of the VMCB as last taken over, two words each: what has not changed costs no bigint. */
  readonly seen: Int32Array;
  /** CR0 as it was before the guest's last write: it goes back and forth between two values, and each is made once. */
  cr0Before: bigint;
  /** RFLAGS as `svmGetRflags` last gave them, by their low half: what is asked at every exit is made once. */
  readonly rflags: { low: number; value: bigint };
  /** TSC_AUX as it was last put into the processor, with its halves. KVM: user-return MSRs are written when they differ. */
  readonly tscAux: { value: bigint; low: number; high: number };
  /** FS, GS, LDTR, TR and the system-call MSRs are the processor's since the last run: VMSAVE before reading them. */
  vmsaveDue: boolean;
  /** They were written in the VMCB, or another vCPU ran: VMLOAD before the next run. */
  vmloadDue: boolean;
  msrpm: number;
  asid: number;
  asidGeneration: number;
  /** RIP behind the instruction, if the handler knows it from elsewhere than the next-RIP field. */
  nextRip: bigint;
  /** GIF as the guest sees it. */
  guestGif: boolean;
  nmiMasked: boolean;
  nmiSinglestep: boolean;
  nmiSinglestepRflags: bigint;
  awaitingIret: boolean;
  nmiIretRip: bigint;
  /** A soft event is in EVENTINJ, and where RIP stood. */
  softInt: { injected: boolean; csBase: bigint; oldRip: bigint; nextRip: bigint };
  /** MSRs that only this driver knows. */
  msrs: Map<number, bigint>;
  sev: GhcbState | null;
  readonly stub: SvmExitStub;
}

/** Words in `VcpuSvm.seen`. */
export const SEEN = { CR0: 0, CR3: 2 } as const;

export const svmModule = (owner: { readonly kvm: Kvm }): SvmModule => owner.kvm.vendor as SvmModule;
export const toSvm = (vcpu: Vcpu): VcpuSvm => vcpu.vendor as VcpuSvm;
export const toKvmSvm = (vm: Vm): KvmSvm => vm.vendor as KvmSvm;
/**
 * The VMCB with the fields of VMLOAD and VMSAVE up to date. KVM saves them at every exit; here they stay in the processor until
 * somebody asks.
 */
export function vmsaved(vcpu: Vcpu): Vmcb {
  const svm = toSvm(vcpu);
  if (svm.vmsaveDue) {
    svm.vmsaveDue = false;
    svmModule(vcpu).hw.vmsave(svm.vmcb.pa);
  }
  return svm.vmcb;
}
/** The same, to be written: the next run loads them. */
export function vmloading(vcpu: Vcpu): Vmcb {
  toSvm(vcpu).vmloadDue = true;
  return vmsaved(vcpu);
}
/** KVM: sev_es_guest. */
export const sevEsGuest = (vcpu: Vcpu): boolean => toSvm(vcpu).sev !== null;

export type { OptionalFeature };
