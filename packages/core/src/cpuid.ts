/** CPUID as guests see it. KVM: arch/x86/kvm/cpuid.c. */
import type { Vcpu } from './vcpu.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** Feature test by name (`cmov`, `longmode`, `svm`, …). KVM: guest_cpu_cap_has. */
export function guestCpuidHas(_vcpu: Vcpu, _feature: string): boolean {
  return later();
}
/** KVM: kvm_cpuid. */
export function kvmCpuid(
  _vcpu: Vcpu,
  _fn: number,
  _index: number,
): { eax: number; ebx: number; ecx: number; edx: number } {
  return later();
}
/** KVM: guest_cpuid_is_intel_compatible. */
export function guestCpuidIsIntelCompatible(_vcpu: Vcpu): boolean {
  return later();
}
/** KVM: kvm_update_cpuid_runtime. */
export function kvmUpdateCpuidRuntime(_vcpu: Vcpu): void {
  later();
}
