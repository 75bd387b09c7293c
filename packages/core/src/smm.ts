/** System management mode. KVM: arch/x86/kvm/smm.c; manual: APM vol. 2 ch. 10. */
import type { Vcpu } from './vcpu.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** KVM: kvm_smm_changed. */
export function kvmSmmChanged(_vcpu: Vcpu, _inSmm: boolean): void {
  later();
}
/** KVM: enter_smm. */
export function enterSmm(_vcpu: Vcpu): void {
  later();
}
/** RSM; non-zero: triple fault. KVM: emulator_leave_smm. */
export function emulatorLeaveSmm(_vcpu: Vcpu): number {
  return later();
}
