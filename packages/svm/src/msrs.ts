/** MSRs that the vendor serves, and the MSR permission map. KVM: svm.c (svm_get_msr, svm_set_msr, svm_recalc_msr_intercepts). */
import {
  type GetMsr,
  guestCpuidHas,
  guestCpuidIsIntelCompatible,
  type Kvm,
  kvmGetMsrCommon,
  kvmSetMsrCommon,
  type MsrData,
  type Vcpu,
  type Vm,
} from '@tskvm/core';
import { Clean, msrpmBit, V } from './hardware/index.ts';
import { toSvm, vmloading, vmsaved } from './vcpu-svm.ts';

const Msr = {
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  DEBUGCTL: 0x1d9,
  PAT: 0x277,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  SFMASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
  VM_CR: 0xc001_0114,
  VM_HSAVE_PA: 0xc001_0117,
  DE_CFG: 0xc001_1029,
} as const;

/** MSRs that are a field of the VMCB. */
const VMCB_MSRS: { readonly [index: number]: number } = {
  [Msr.STAR]: V.star,
  [Msr.LSTAR]: V.lstar,
  [Msr.CSTAR]: V.cstar,
  [Msr.SFMASK]: V.sfmask,
  [Msr.KERNEL_GS_BASE]: V.kernelGsBase,
  [Msr.FS_BASE]: V.fs + 8,
  [Msr.GS_BASE]: V.gs + 8,
  [Msr.SYSENTER_CS]: V.sysenterCs,
  [Msr.SYSENTER_ESP]: V.sysenterEsp,
  [Msr.SYSENTER_EIP]: V.sysenterEip,
};
/** Values that only this driver keeps. DE_CFG bit 1: LFENCE serialises. */
const KEPT: ReadonlySet<number> = new Set([Msr.VM_CR, Msr.VM_HSAVE_PA, Msr.DE_CFG]);
/** Never intercepted: VMLOAD and VMSAVE move them with the guest. */
const PASSTHROUGH: readonly number[] = [
  Msr.STAR,
  Msr.LSTAR,
  Msr.CSTAR,
  Msr.SFMASK,
  Msr.KERNEL_GS_BASE,
  Msr.FS_BASE,
  Msr.GS_BASE,
  Msr.SYSENTER_CS,
];

/** 64 bits for Intel-compatible guests, whose SYSENTER KVM emulates; AMD's processors keep 32. */
const SYSENTER_ADDRESSES: ReadonlySet<number> = new Set([Msr.SYSENTER_ESP, Msr.SYSENTER_EIP]);

/** Sets or clears the two permission bits of an MSR. KVM: svm_set_intercept_for_msr. */
export function setMsrIntercept(vcpu: Vcpu, index: number, read: boolean, write: boolean): void {
  const svm = toSvm(vcpu);
  const bit = msrpmBit(index);
  if (bit < 0) return;
  const { memory } = vcpu.kvm;
  const pa = svm.msrpm + (bit >>> 3);
  const mask = 3 << (bit & 7);
  const value = ((read ? 1 : 0) | (write ? 2 : 0)) << (bit & 7);
  memory.write8(pa, (memory.read8(pa) & ~mask) | value);
  svm.vmcb.markDirty(Clean.PERM_MAP);
}

/** KVM: svm_recalc_msr_intercepts. */
export function recalcMsrIntercepts(vcpu: Vcpu): void {
  for (const index of PASSTHROUGH) setMsrIntercept(vcpu, index, false, false);
  const intel = guestCpuidIsIntelCompatible(vcpu);
  for (const index of SYSENTER_ADDRESSES) setMsrIntercept(vcpu, index, intel, intel);
}

/** Fills msr.data; 0, or 1 for #GP. KVM: svm_get_msr. */
export function svmGetMsr(vcpu: Vcpu, msr: MsrData): number {
  const svm = toSvm(vcpu);
  const field = VMCB_MSRS[msr.index];
  if (field !== undefined) {
    msr.data = vmsaved(vcpu).get64(field);
    return 0;
  }
  if (msr.index === Msr.TSC_AUX) {
    msr.data = vcpu.arch.tscAux;
    return 0;
  }
  if (msr.index === Msr.DEBUGCTL) {
    msr.data = svm.vmcb.get64(V.dbgCtl);
    return 0;
  }
  if (!KEPT.has(msr.index)) return kvmGetMsrCommon(vcpu, msr);
  msr.data = svm.msrs.get(msr.index) ?? 0n;
  return 0;
}

/** 0, or 1 for #GP. KVM: svm_set_msr. */
export function svmSetMsr(vcpu: Vcpu, msr: MsrData): number {
  const svm = toSvm(vcpu);
  const field = VMCB_MSRS[msr.index];
  if (field !== undefined) {
    const half = SYSENTER_ADDRESSES.has(msr.index) && !guestCpuidIsIntelCompatible(vcpu);
    vmloading(vcpu).set64(field, half ? msr.data & 0xffff_ffffn : msr.data);
    if (msr.index === Msr.FS_BASE || msr.index === Msr.GS_BASE) svm.vmcb.markDirty(Clean.SEG);
    return 0;
  }
  switch (msr.index) {
    case Msr.PAT: {
      const err = kvmSetMsrCommon(vcpu, msr);
      if (err !== 0) return err;
      svm.vmcb.set64(V.gPat, msr.data);
      svm.vmcb.markDirty(Clean.NPT);
      return 0;
    }
    case Msr.TSC_AUX:
      if (!msr.hostInitiated && !guestCpuidHas(vcpu, 'rdtscp')) return 1;
      vcpu.arch.tscAux = msr.data & 0xffff_ffffn;
      return 0;
    case Msr.DEBUGCTL:
      // Without LBR virtualisation only BTF-free values may be written.
      if ((msr.data & ~0x3fn) !== 0n) return 1;
      svm.vmcb.set64(V.dbgCtl, msr.data);
      svm.vmcb.markDirty(Clean.LBR);
      return 0;
    default:
      return setKept(vcpu, msr);
  }
}

/** KVM: svm_set_vm_cr, svm_is_valid... for HSAVE_PA; DE_CFG takes only what the host offers. */
function setKept(vcpu: Vcpu, msr: MsrData): number {
  const svm = toSvm(vcpu);
  if (!KEPT.has(msr.index)) return kvmSetMsrCommon(vcpu, msr);
  if (msr.index === Msr.DE_CFG && (msr.data & ~2n) !== 0n) return 1;
  if (msr.index === Msr.VM_HSAVE_PA && !msr.hostInitiated && (msr.data & 0xfffn) !== 0n) return 1;
  if (msr.index === Msr.VM_CR && !msr.hostInitiated && (msr.data & ~0x1fn) !== 0n) return 1;
  svm.msrs.set(msr.index, msr.data);
  return 0;
}

/** KVM: svm_get_feature_msr. */
export function svmGetFeatureMsr(_kvm: Kvm, index: number): GetMsr {
  return index === Msr.DE_CFG ? { err: 0, data: 2n } : { err: 1, data: 0n };
}
/** KVM: svm_has_emulated_msr: VMX's capabilities and Intel's corrected machine checks are not there. */
export function svmHasEmulatedMsr(_vm: Vm | null, index: number): boolean {
  return !(index >= 0x480 && index <= 0x491) && !(index >= 0x280 && index < 0x2a0);
}
