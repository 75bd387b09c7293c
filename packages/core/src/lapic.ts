/** struct kvm_lapic (local APIC in the kernel). */
export interface Lapic {
  readonly id: number;
}
