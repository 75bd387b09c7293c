/** Debug registers and guest debugging. KVM: kvm_set_dr, kvm_update_dr7 in x86.c; manual: APM vol. 2 ch. 13. */
import type { Vcpu } from './vcpu.ts';

/** DR6 bits that read as one (RTM and bus-lock detection are active low and not supported). */
export const DR6_FIXED_1 = 0xfffe0ff0n;
export const DR6_INIT = 0xffff0ff0n;
export const DR7_FIXED_1 = 0x400n;
const DR6_VOLATILE = 0x1e00fn;
const DR7_VOLATILE = 0xffff2bffn;
/** KVM_GUESTDBG_USE_HW_BP. */
const GUESTDBG_USE_HW_BP = 0x20000;
/** KVM_DEBUGREG_BP_ENABLED, _WONT_EXIT. */
export const DEBUGREG_BP_ENABLED = 1;
export const DEBUGREG_WONT_EXIT = 2;

/** Programs DR7 and notes whether a breakpoint is armed. KVM: kvm_update_dr7. */
export function kvmUpdateDr7(vcpu: Vcpu): void {
  const { arch } = vcpu;
  const dr7 = (vcpu.guestDebug & GUESTDBG_USE_HW_BP) !== 0 ? arch.guestDebugDr7 : arch.dr7;
  vcpu.kvm.calls.setDr7(vcpu, dr7);
  arch.switchDbRegs &= ~DEBUGREG_BP_ENABLED;
  if ((dr7 & 0xffn) !== 0n) arch.switchDbRegs |= DEBUGREG_BP_ENABLED;
}
/** Selects the DR0-3 in effect. KVM: kvm_update_dr0123. */
export function kvmUpdateDr0123(vcpu: Vcpu): void {
  if ((vcpu.guestDebug & GUESTDBG_USE_HW_BP) !== 0) return;
  for (let i = 0; i < 4; i++) vcpu.arch.effDb[i] = vcpu.arch.db[i];
}

/** KVM: kvm_set_dr. @returns 0, or 1 for #GP(0) */
export function kvmSetDr(vcpu: Vcpu, dr: number, value: bigint): number {
  const { arch } = vcpu;
  if (dr < 4) {
    arch.db[dr] = value;
    if ((vcpu.guestDebug & GUESTDBG_USE_HW_BP) === 0) arch.effDb[dr] = value;
    return 0;
  }
  if (value >> 32n !== 0n) return 1;
  if (dr === 4 || dr === 6) {
    arch.dr6 = (value & DR6_VOLATILE) | dr6Fixed();
    return 0;
  }
  arch.dr7 = (value & DR7_VOLATILE) | DR7_FIXED_1;
  kvmUpdateDr7(vcpu);
  return 0;
}
/** Without RTM and bus-lock detection both active-low bits are fixed ones. */
const dr6Fixed = (): bigint => DR6_INIT;

/** KVM: kvm_get_dr. */
export function kvmGetDr(vcpu: Vcpu, dr: number): bigint {
  if (dr < 4) return vcpu.arch.db[dr];
  return dr === 4 || dr === 6 ? vcpu.arch.dr6 : vcpu.arch.dr7;
}
