/** The run loop and a reader's index of x86.c. KVM: arch/x86/kvm/x86.c. */
import type { KvmExit } from './types.ts';
import type { RunOptions, Vcpu } from './vcpu.ts';

export * from './debugregs.ts';
export * from './exceptions.ts';
export * from './kvm-cache-regs.ts';
export * from './kvm-emulate.ts';
export * from './msrs.ts';
export * from './regs.ts';
export * from './requests.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** KVM_RUN. KVM: kvm_arch_vcpu_ioctl_run. */
export function kvmArchVcpuIoctlRun(_vcpu: Vcpu, _options: RunOptions): KvmExit {
  return later();
}
/** RESET (false) or INIT (true). KVM: kvm_vcpu_reset. */
export function kvmVcpuReset(_vcpu: Vcpu, _initEvent: boolean): void {
  later();
}
/** SIPI: CS:IP from the vector. KVM: kvm_vcpu_deliver_sipi_vector. */
export function kvmVcpuDeliverSipiVector(_vcpu: Vcpu, _vector: number): void {
  later();
}
/** Vendor code has an interrupt window: is one waiting. KVM: kvm_cpu_has_injectable_intr. */
export function kvmCpuHasInjectableIntr(_vcpu: Vcpu): boolean {
  return later();
}
export function kvmCpuHasInterrupt(_vcpu: Vcpu): boolean {
  return later();
}
/** Takes the vector of the pending interrupt (PIC first), -1: none. KVM: kvm_cpu_get_interrupt. */
export function kvmCpuGetInterrupt(_vcpu: Vcpu): number {
  return later();
}
/** Is the local APIC's irqchip in the kernel. KVM: lapic_in_kernel. */
export const lapicInKernel = (vcpu: Vcpu): boolean => vcpu.arch.apic !== null;
export const irqchipInKernel = (vcpu: Vcpu): boolean => vcpu.vm.irqchipInKernel;
/** KVM: kvm_vcpu_has_events. */
export function kvmVcpuHasEvents(_vcpu: Vcpu): boolean {
  return later();
}
