/**
 * The MMU root in the VMCS, TLB maintenance, memory types.
 * KVM: vmx_load_mmu_pgd, vmx_flush_tlb_*, construct_eptp, vmx_get_mt_mask in vmx.c.
 */
import { isPaging, kvmIsCr4BitSet, kvmReadCr3, type Vcpu } from '@tskvm/core';
import { CR4 } from '@tskvm/emulator';
import { F } from './hardware/vmcs.ts';
import { isUnrestrictedGuest, toKvmVmx, toVmx, vmcsOf } from './vcpu-vmx.ts';

const MEMORY_TYPE_WB = 6;
const EPT_IPAT = 1 << 6;
const EPTP_AD = 1 << 6;

/** KVM: construct_eptp. */
export function constructEptp(vcpu: Vcpu, rootHpa: number, rootLevel: number): number {
  const ad = toVmx(vcpu).module.params.eptad ? EPTP_AD : 0;
  return rootHpa + (MEMORY_TYPE_WB | ((rootLevel - 1) << 3) | ad);
}

/** KVM: kvm_get_active_pcid. */
const kvmGetActivePcid = (vcpu: Vcpu): bigint => (kvmIsCr4BitSet(vcpu, CR4.PCIDE) ? kvmReadCr3(vcpu) & 0xfffn : 0n);

/** KVM: vmx_load_mmu_pgd. */
export function vmxLoadMmuPgd(vcpu: Vcpu, rootHpa: number, rootLevel: number): void {
  const v = vmcsOf(vcpu);
  if (!toVmx(vcpu).module.params.ept) {
    v.write64(F.GUEST_CR3, BigInt(rootHpa) | kvmGetActivePcid(vcpu));
    return;
  }
  v.writeNumber(F.EPT_POINTER, constructEptp(vcpu, rootHpa, rootLevel));
  const { arch } = vcpu;
  if (!isUnrestrictedGuest(vcpu) && !isPaging(vcpu)) {
    v.writeNumber(F.GUEST_CR3, toKvmVmx(vcpu.vm).identityMapAddr);
  } else if (arch.regsDirty.has('cr3')) {
    v.write64(F.GUEST_CR3, kvmReadCr3(vcpu));
  }
}

/** Memory type of an EPT leaf: write-back, the guest's PAT ignored (there are no caches to disagree). KVM: vmx_get_mt_mask. */
export const vmxGetMtMask = (_vcpu: Vcpu, _gfn: number, _mmio: boolean): number => (MEMORY_TYPE_WB << 3) | EPT_IPAT;

const INVVPID_ADDRESS = 0;
const INVVPID_SINGLE = 1;
const INVVPID_ALL = 2;
const INVEPT_CONTEXT = 1;
const INVEPT_GLOBAL = 2;

/** KVM: vmx_flush_tlb_all. */
export function vmxFlushTlbAll(vcpu: Vcpu): void {
  const { silicon, module } = toVmx(vcpu);
  if (module.params.ept) silicon.invept(INVEPT_GLOBAL, 0);
  else if (module.params.vpid) silicon.invvpid(INVVPID_ALL, 0, 0n);
}
/** KVM: vmx_flush_tlb_current. */
export function vmxFlushTlbCurrent(vcpu: Vcpu): void {
  const { mmu } = vcpu.arch;
  if (mmu.hpa < 0) return;
  if (!toVmx(vcpu).module.params.ept) {
    vmxFlushTlbGuest(vcpu);
    return;
  }
  toVmx(vcpu).silicon.invept(INVEPT_CONTEXT, constructEptp(vcpu, mmu.hpa, mmu.level));
}
/** KVM: vmx_flush_tlb_gva. */
export function vmxFlushTlbGva(vcpu: Vcpu, gva: bigint): void {
  const vmx = toVmx(vcpu);
  // Without a VPID every entry and exit flushes by itself.
  if (vmx.vpid !== 0) vmx.silicon.invvpid(INVVPID_ADDRESS, vmx.vpid, gva);
}
/** KVM: vmx_flush_tlb_guest. */
export function vmxFlushTlbGuest(vcpu: Vcpu): void {
  const vmx = toVmx(vcpu);
  if (vmx.vpid !== 0) vmx.silicon.invvpid(INVVPID_SINGLE, vmx.vpid, 0n);
}
