/** System management mode outside nested operation. KVM: vmx_enter_smm, vmx_leave_smm, vmx_enable_smi_window in vmx.c. */
import { isGuestMode, type SmramState, type Vcpu } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';

const notNested = (vcpu: Vcpu): void => {
  if (isGuestMode(vcpu)) throw new NotImplementedError('SMM while L2 runs (nested VMX)', 'SDM vol. 3 31.14');
};
/** KVM: vmx_enter_smm. @returns 0 */
export function vmxEnterSmm(vcpu: Vcpu, _smram: SmramState): number {
  notNested(vcpu);
  return 0;
}
/** KVM: vmx_leave_smm. @returns 0 */
export function vmxLeaveSmm(_vcpu: Vcpu, _smram: SmramState): number {
  return 0;
}
/** RSM exits anyway (as #UD): nothing to arm. KVM: vmx_enable_smi_window. */
export function vmxEnableSmiWindow(_vcpu: Vcpu): void {}
