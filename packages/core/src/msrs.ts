/** MSRs that need no vendor. KVM: arch/x86/kvm/msrs.c (kvm_set_msr_common, kvm_get_msr_common). */
import type { MsrData } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** Fills msr.data. @returns 0, or 1 for #GP */
export function kvmGetMsrCommon(_vcpu: Vcpu, _msr: MsrData): number {
  return later();
}
/** @returns 0, or 1 for #GP */
export function kvmSetMsrCommon(_vcpu: Vcpu, _msr: MsrData): number {
  return later();
}
/** Guest access with all checks. KVM: kvm_emulate_msr_read. */
export function kvmGetMsr(_vcpu: Vcpu, _index: number): { err: number; data: bigint } {
  return later();
}
/** KVM: kvm_emulate_msr_write. */
export function kvmSetMsr(_vcpu: Vcpu, _index: number, _data: bigint): number {
  return later();
}
/** EFER by WRMSR. KVM: set_efer. */
export function setEfer(_vcpu: Vcpu, _msr: MsrData): number {
  return later();
}
/** May the guest (its CPUID) set these EFER bits. KVM: kvm_valid_efer. */
export function kvmValidEfer(_vcpu: Vcpu, _efer: bigint): boolean {
  return later();
}
/** KVM: kvm_enable_efer_bits. */
export function kvmEnableEferBits(_vcpu: Vcpu, _mask: bigint): void {
  later();
}
export function kvmReadL1Tsc(_vcpu: Vcpu, _hostTsc: bigint): bigint {
  return later();
}
