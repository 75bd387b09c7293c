/**
 * The system instructions: functions by mnemonic (decode/mnemonics.ts), and the checks that precede intercepts.
 * Manual: APM vol. 2 and 3, SDM vol. 2 and 3; KVM: arch/x86/kvm/emulate.c's em_* and check_*.
 */
import type { EmulateContext, SystemFunction } from './context.ts';
import { CONTROL_CHECKS, CONTROL_INSTRUCTIONS } from './control-registers.ts';
import { TABLE_INSTRUCTIONS } from './descriptor-tables.ts';
import { EVENT_INSTRUCTIONS } from './events.ts';
import { FAR_INSTRUCTIONS } from './far-transfer.ts';
import { FLAG_INSTRUCTIONS } from './flags.ts';
import { IO_CHECKS, IO_INSTRUCTIONS } from './io.ts';
import { IRET_INSTRUCTIONS } from './iret.ts';
import { MISC_INSTRUCTIONS } from './misc.ts';
import { MSR_CHECKS, MSR_INSTRUCTIONS } from './msr.ts';
import { KEY_INSTRUCTIONS } from './protection-keys.ts';
import { RANDOM_INSTRUCTIONS } from './random.ts';
import { SEGMENT_INSTRUCTIONS } from './segments.ts';
import { SVM_CHECKS, SVM_INSTRUCTIONS } from './svm.ts';
import { SYSCALL_INSTRUCTIONS } from './syscall.ts';
import { VMX_INSTRUCTIONS } from './vmx.ts';

/** System instructions by mnemonic. Each makes all its checks itself, CPL included. */
export const SYSTEM: Readonly<Record<string, SystemFunction>> = {
  ...CONTROL_INSTRUCTIONS,
  ...TABLE_INSTRUCTIONS,
  ...SEGMENT_INSTRUCTIONS,
  ...FAR_INSTRUCTIONS,
  ...IRET_INSTRUCTIONS,
  ...EVENT_INSTRUCTIONS,
  ...MSR_INSTRUCTIONS,
  ...FLAG_INSTRUCTIONS,
  ...SYSCALL_INSTRUCTIONS,
  ...IO_INSTRUCTIONS,
  ...MISC_INSTRUCTIONS,
  ...KEY_INSTRUCTIONS,
  ...RANDOM_INSTRUCTIONS,
  ...SVM_INSTRUCTIONS,
  ...VMX_INSTRUCTIONS,
};

/**
 * Checks to make between the row's privilege and the POST_EXCEPT intercept (KVM: check_perm). They change nothing, and the functions above
 * repeat them.
 */
export const CHECKS: Readonly<Record<string, (ctx: EmulateContext) => void>> = {
  ...CONTROL_CHECKS,
  ...MSR_CHECKS,
  ...IO_CHECKS,
  ...SVM_CHECKS,
};

export type { EmulateContext, EmulateMode, SystemFunction } from './context.ts';
export { deliverEvent } from './events.ts';
export * from './smm.ts';
export { emulatorTaskSwitch, type TaskSwitchReason } from './task-switch.ts';
