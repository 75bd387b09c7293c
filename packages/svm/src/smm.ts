/** SMM, as far as the vendor has a part in it without a nested guest. KVM: svm.c (svm_enter_smm, svm_leave_smm, …). */
import { isSmm, type SmramState, type Vcpu } from '@tskvm/core';
import { toSvm } from './vcpu-svm.ts';

/** KVM: svm_smi_allowed. */
export const svmSmiAllowed = (vcpu: Vcpu, _forInjection: boolean): number =>
  toSvm(vcpu).guestGif && !isSmm(vcpu) ? 1 : 0;
/** KVM: svm_enter_smm. */
export const svmEnterSmm = (_vcpu: Vcpu, _smram: SmramState): number => 0;
/** KVM: svm_leave_smm. */
export const svmLeaveSmm = (_vcpu: Vcpu, _smram: SmramState): number => 0;
/** SMIs wait for GIF or for the end of SMM, and both exit. KVM: svm_enable_smi_window. */
export const svmEnableSmiWindow = (_vcpu: Vcpu): void => {};
