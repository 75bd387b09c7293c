/** struct kvm_lapic: the local APIC in the kernel. KVM: arch/x86/kvm/lapic.c; manual: SDM vol. 3 ch. 10, APM vol. 2 ch. 16. */
export class Lapic {
  constructor(readonly id: number) {}
}
/** TPR from CR8's four bits. KVM: kvm_lapic_set_tpr. */
export function lapicSetTpr(_apic: Lapic, _cr8: bigint): void {
  throw new Error('body follows');
}
/** CR8 from the TPR. KVM: kvm_lapic_get_cr8. */
export function lapicGetTpr(_apic: Lapic): bigint {
  throw new Error('body follows');
}
