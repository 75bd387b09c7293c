/**
 * Nested SVM: not there yet. What core asks of every vendor answers harmlessly while no L2 exists; the rest says so by name.
 * KVM: svm/nested.c; manual: APM vol. 2 chapter 15.
 */
import { isGuestMode, type Vcpu } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';

const SECTION = 'APM vol. 2 15.5';

/** A guest's SVM instruction that passed KVM's permission checks. */
export function nestedInstruction(instruction: string): never {
  throw new NotImplementedError(`nested SVM: ${instruction} in a guest`, SECTION);
}
const refuse = (what: string): never => {
  throw new NotImplementedError(`nested SVM: ${what}`, SECTION);
};

/** KVM: svm_leave_nested. */
export function svmLeaveNested(vcpu: Vcpu): void {
  if (isGuestMode(vcpu)) refuse('leaving L2');
}
/** KVM: nested_svm_is_exception_vmexit. */
export function nestedSvmIsExceptionVmexit(_vcpu: Vcpu, _vector: number, _errorCode: number): boolean {
  return false;
}
/** KVM: svm_check_nested_events. */
export function svmCheckNestedEvents(_vcpu: Vcpu): number {
  return 0;
}
/** KVM: nested_svm_triple_fault. */
export const nestedSvmTripleFault = (_vcpu: Vcpu): void => refuse('a triple fault in L2');
/** Without L2 there is none: null. KVM: svm_get_nested_state. */
export const svmGetNestedState = (_vcpu: Vcpu): unknown => null;
/** KVM: svm_set_nested_state. */
export const svmSetNestedState = (_vcpu: Vcpu, state: unknown): number =>
  state === null || state === undefined ? 0 : refuse('KVM_SET_NESTED_STATE');
/** KVM: svm_get_nested_state_pages. */
export const svmGetNestedStatePages = (_vcpu: Vcpu): boolean => true;
/** Without L2 every guest physical address is L1's. */
export const svmTranslateNestedGpa = (_vcpu: Vcpu, gpa: number, _access: number): number => gpa;
