/**
 * Which intercepts KVM sets, and when they change.
 * KVM: svm.c (init_vmcb, svm_recalc_instruction_intercepts, svm_update_exception_bitmap, set_dr_intercepts).
 */
import { guestCpuidHas, type Vcpu } from '@tskvm/core';
import { Vector } from '@tskvm/emulator';
import { SvmExit } from './hardware/index.ts';
import { sevEsGuest, svmModule, toSvm } from './vcpu-svm.ts';

/** KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_SW_BP. */
const GUESTDBG_ENABLE = 1;
const GUESTDBG_USE_SW_BP = 0x1_0000;

/** Bit number of the intercept of an exception. */
export const exceptionIntercept = (vector: number): number => SvmExit.EXCP_BASE + vector;

/** What every VMCB starts with. KVM: init_vmcb. */
export const DEFAULT_INTERCEPTS: readonly number[] = [
  SvmExit.READ_CR0,
  SvmExit.READ_CR3,
  SvmExit.READ_CR4,
  SvmExit.WRITE_CR0,
  SvmExit.WRITE_CR3,
  SvmExit.WRITE_CR4,
  SvmExit.WRITE_CR8,
  ...[Vector.PF, Vector.UD, Vector.MC, Vector.AC, Vector.DB].map(exceptionIntercept),
  SvmExit.INTR,
  SvmExit.NMI,
  SvmExit.CR0_SEL_WRITE,
  SvmExit.RDPMC,
  SvmExit.CPUID,
  SvmExit.INVD,
  SvmExit.INVLPG,
  SvmExit.INVLPGA,
  SvmExit.IOIO,
  SvmExit.MSR,
  SvmExit.TASK_SWITCH,
  SvmExit.SHUTDOWN,
  SvmExit.VMRUN,
  SvmExit.VMMCALL,
  SvmExit.VMLOAD,
  SvmExit.VMSAVE,
  SvmExit.STGI,
  SvmExit.CLGI,
  SvmExit.SKINIT,
  SvmExit.WBINVD,
  SvmExit.XSETBV,
  SvmExit.RDPRU,
  SvmExit.RSM,
  SvmExit.MONITOR,
  SvmExit.MWAIT,
  SvmExit.HLT,
];

/** Nested paging makes these superfluous. */
export const NPT_DROPS: readonly number[] = [
  SvmExit.INVLPG,
  exceptionIntercept(Vector.PF),
  SvmExit.READ_CR3,
  SvmExit.WRITE_CR3,
];

/** DR0-DR7, reads and writes. KVM: set_dr_intercepts. */
export function setDrIntercepts(vcpu: Vcpu, on = true): void {
  const { vmcb } = toSvm(vcpu);
  if (!sevEsGuest(vcpu)) {
    for (let dr = 0; dr < 8; dr += 1) {
      vmcb.setIntercept(SvmExit.READ_DR0 + dr, on);
      vmcb.setIntercept(SvmExit.WRITE_DR0 + dr, on);
    }
    return;
  }
  // Without debug swap only DR7 can be followed for a protected guest.
  vmcb.setIntercept(SvmExit.READ_DR7, true);
  vmcb.setIntercept(SvmExit.WRITE_DR7, true);
}

/** Instructions that the guest's CPUID decides on. KVM: svm_recalc_instruction_intercepts. */
export function recalcIntercepts(vcpu: Vcpu): void {
  const { vmcb } = toSvm(vcpu);
  vmcb.setIntercept(SvmExit.INVPCID, !svmModule(vcpu).params.npt || !guestCpuidHas(vcpu, 'invpcid'));
  vmcb.setIntercept(SvmExit.RDTSCP, !guestCpuidHas(vcpu, 'rdtscp'));
}

/** #BP only for a debugger. KVM: svm_update_exception_bitmap. */
export function svmUpdateExceptionBitmap(vcpu: Vcpu): void {
  const wanted = GUESTDBG_ENABLE | GUESTDBG_USE_SW_BP;
  toSvm(vcpu).vmcb.setIntercept(exceptionIntercept(Vector.BP), (vcpu.guestDebug & wanted) === wanted);
}
