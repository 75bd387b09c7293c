/** The nested ops. KVM: arch/x86/kvm/vmx/nested.c. Nested VMX is not implemented; while no L2 runs the ops have nothing to do. */
import { isGuestMode, Req, type Vcpu } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';

const nested = (feature: string): never => {
  throw new NotImplementedError(`${feature} (nested VMX)`, 'SDM vol. 3 ch. 23-30, KVM vmx/nested.c');
};
const refuseInL2 = (vcpu: Vcpu, feature: string): void => {
  if (isGuestMode(vcpu)) nested(feature);
};

/** KVM: vmx_leave_nested. */
export function vmxLeaveNested(vcpu: Vcpu): void {
  refuseInL2(vcpu, 'leaving L2');
}
/** KVM: nested_vmx_is_exception_vmexit. */
export function vmxIsExceptionVmexit(vcpu: Vcpu, _vector: number, _errorCode: number): boolean {
  refuseInL2(vcpu, 'L1 intercepts');
  return false;
}
/** KVM: vmx_check_nested_events. */
export function vmxCheckNestedEvents(vcpu: Vcpu): number {
  refuseInL2(vcpu, 'events of L2');
  return 0;
}
/** KVM: nested_vmx_triple_fault. */
export function vmxNestedTripleFault(vcpu: Vcpu): void {
  refuseInL2(vcpu, 'a triple fault of L2');
  vcpu.requests.add(Req.TRIPLE_FAULT);
}
/** KVM_GET_NESTED_STATE: null while the guest has no VMX. */
export function vmxGetNestedState(vcpu: Vcpu): unknown {
  refuseInL2(vcpu, 'KVM_GET_NESTED_STATE');
  return null;
}
/** KVM_SET_NESTED_STATE. @returns 0 */
export function vmxSetNestedState(_vcpu: Vcpu, state: unknown): number {
  return state === null || state === undefined ? 0 : nested('KVM_SET_NESTED_STATE');
}
/** KVM: vmx_get_nested_state_pages. */
export function vmxGetNestedStatePages(vcpu: Vcpu): boolean {
  refuseInL2(vcpu, 'nested state pages');
  return true;
}
/** L1's physical addresses are KVM's own. */
export function vmxTranslateNestedGpa(vcpu: Vcpu, gpa: number, _access: number): number {
  refuseInL2(vcpu, 'translation of L2 addresses');
  return gpa;
}
