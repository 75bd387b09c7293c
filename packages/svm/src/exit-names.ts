/** KVM's symbols for SVM exit codes, as the tracepoints print them. KVM: uapi/asm/svm.h (SVM_EXIT_REASONS). */
import { SvmExit } from './hardware/index.ts';

const EXCEPTIONS = [
  'DE',
  'DB',
  '',
  'BP',
  'OF',
  'BR',
  'UD',
  'NM',
  'DF',
  '',
  'TS',
  'NP',
  'SS',
  'GP',
  'PF',
  '',
  'MF',
  'AC',
  'MC',
  'XM',
];

/** From INTR (0x60) on. */
const FROM_INTR = [
  'interrupt',
  'nmi',
  'smi',
  'init',
  'vintr',
  'cr0_sel_write',
  'read_idtr',
  'read_gdtr',
  'read_ldtr',
  'read_rt',
  'write_idtr',
  'write_gdtr',
  'write_ldtr',
  'write_rt',
  'rdtsc',
  'rdpmc',
  'pushf',
  'popf',
  'cpuid',
  'rsm',
  'iret',
  'swint',
  'invd',
  'pause',
  'hlt',
  'invlpg',
  'invlpga',
  'io',
  'msr',
  'task_switch',
  'ferr_freeze',
  'shutdown',
  'vmrun',
  'hypercall',
  'vmload',
  'vmsave',
  'stgi',
  'clgi',
  'skinit',
  'rdtscp',
  'icebp',
  'wbinvd',
  'monitor',
  'mwait',
  'mwait_cond',
  'xsetbv',
  'rdpru',
  'write_efer_trap',
];

const OTHERS: Readonly<Record<number, string>> = {
  [SvmExit.CR0_WRITE_TRAP]: 'write_cr0_trap',
  [SvmExit.CR4_WRITE_TRAP]: 'write_cr4_trap',
  [SvmExit.CR8_WRITE_TRAP]: 'write_cr8_trap',
  [SvmExit.INVPCID]: 'invpcid',
  [SvmExit.BUS_LOCK]: 'buslock',
  [SvmExit.IDLE_HLT]: 'idle-halt',
  [SvmExit.NPF]: 'npf',
  [SvmExit.AVIC_INCOMPLETE_IPI]: 'avic_incomplete_ipi',
  [SvmExit.AVIC_UNACCELERATED]: 'avic_unaccelerated_access',
  [SvmExit.VMGEXIT]: 'vmgexit',
  [SvmExit.INVALID]: 'invalid_guest_state',
};

/** `write_cr0`, `npf`, `PF excp`, … or the number in hexadecimal. */
export function svmExitName(code: number): string {
  if (code >= 0 && code < 0x40) {
    const register = `${code < 0x20 ? 'cr' : 'dr'}${code & 15}`;
    return `${(code & 0x10) === 0 ? 'read' : 'write'}_${register}`;
  }
  if (code >= 0x40 && code < 0x60 && EXCEPTIONS[code - 0x40]) return `${EXCEPTIONS[code - 0x40]} excp`;
  return FROM_INTR[code - 0x60] ?? OTHERS[code] ?? `0x${(code >>> 0).toString(16)}`;
}
