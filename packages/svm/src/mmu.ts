/** TLB maintenance and the MMU's root. KVM: svm.c (svm_flush_tlb_*, svm_load_mmu_pgd, new_asid); manual: APM vol. 2 15.16. */
import { kvmReadCr3, type Vcpu } from '@tskvm/core';
import { Clean, TlbCtl, V } from './hardware/index.ts';
import { SEEN, sevEsGuest, svmModule, toSvm } from './vcpu-svm.ts';

/** The next VMRUN flushes this ASID; without the feature the vCPU gets a new one. KVM: svm_flush_tlb_asid. */
export function svmFlushTlbAsid(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  if (svmModule(vcpu).hw.features.flushByAsid) svm.vmcb.set8(V.tlbCtl, TlbCtl.ASID);
  else svm.asidGeneration -= 1;
}
/** KVM: svm_flush_tlb_all. */
export const svmFlushTlbAll = (vcpu: Vcpu): void => svmFlushTlbAsid(vcpu);
/** KVM: svm_flush_tlb_current. */
export const svmFlushTlbCurrent = (vcpu: Vcpu): void => svmFlushTlbAsid(vcpu);
/** KVM: svm_flush_tlb_guest. */
export const svmFlushTlbGuest = (vcpu: Vcpu): void => svmFlushTlbAsid(vcpu);
/** KVM: svm_flush_tlb_gva. */
export function svmFlushTlbGva(vcpu: Vcpu, gva: bigint): void {
  svmModule(vcpu).hw.invlpga(gva, toSvm(vcpu).asid);
}

/** nCR3, or the shadow root in CR3. KVM: svm_load_mmu_pgd. */
export function svmLoadMmuPgd(vcpu: Vcpu, rootHpa: number, _rootLevel: number): void {
  const { vmcb, seen } = toSvm(vcpu);
  let cr3 = BigInt(rootHpa);
  if (svmModule(vcpu).params.npt) {
    vmcb.set64(V.nestedCr3, cr3);
    vmcb.markDirty(Clean.NPT);
    cr3 = kvmReadCr3(vcpu);
  }
  vmcb.set64(V.cr3, cr3);
  // As with CR0: the guest may bring back what was seen last.
  vmcb.copyOut(V.cr3, seen, SEEN.CR3);
  vmcb.markDirty(Clean.CR);
}

/** ASIDs are per processor; when they run out a new generation starts with a full flush. KVM: new_asid, pre_svm_run. */
export function assignAsid(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  const module = svmModule(vcpu);
  if (sevEsGuest(vcpu) || svm.asidGeneration === module.asidGeneration) return;
  if (module.nextAsid > module.maxAsid) {
    module.asidGeneration += 1;
    module.nextAsid = module.minAsid;
    svm.vmcb.set8(V.tlbCtl, TlbCtl.ALL);
  }
  svm.asidGeneration = module.asidGeneration;
  svm.asid = module.nextAsid;
  module.nextAsid += 1;
  svm.vmcb.set32(V.asid, svm.asid);
  svm.vmcb.markDirty(Clean.ASID);
}
