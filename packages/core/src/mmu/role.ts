/** Roles: what a root's tables and a walk depend on. KVM: union kvm_mmu_page_role and kvm_calc_cpu_role (mmu.c). */
import { CR0, CR4, EFER } from '@tskvm/emulator';
import { isGuestMode, isSmm, kvmReadCr0Bits, kvmReadCr4Bits } from '../kvm-cache-regs.ts';
import type { Vcpu } from '../vcpu.ts';

/** Bits of the base role, KVM's layout from the low end. */
export const Role = {
  levelMask: 0xf,
  has4ByteGpte: 1 << 4,
  direct: 1 << 7,
  accessAll: 0xf << 8,
  eferNx: 1 << 13,
  cr0Wp: 1 << 14,
  smapAndnotWp: 1 << 15,
  adDisabled: 1 << 16,
  guestMode: 1 << 17,
  cr4Smep: 1 << 20,
  smmShift: 24,
} as const;
/** Bits of the extended role; they stand above the base role in `arch.cpuRole` (times 2^32). */
export const ExtRole = {
  valid: 1,
  cr4Pse: 4,
  cr4Pke: 8,
  cr4Smap: 16,
  cr4La57: 32,
  eferLma: 64,
  hasPferrFetch: 128,
} as const;

/** The control registers that a role is computed from. KVM: struct kvm_mmu_role_regs. */
export interface RoleRegs {
  cr0: bigint;
  cr4: bigint;
  efer: bigint;
}
/** KVM: vcpu_to_role_regs. */
export const vcpuToRoleRegs = (vcpu: Vcpu): RoleRegs => ({
  cr0: kvmReadCr0Bits(vcpu, CR0.PG | CR0.WP),
  cr4: kvmReadCr4Bits(vcpu, CR4.PSE | CR4.PAE | CR4.LA57 | CR4.SMEP | CR4.SMAP | CR4.PKE),
  efer: vcpu.arch.efer,
});

const bit = (condition: boolean, value: number): number => (condition ? value : 0);

/** Levels of the guest's own tables. */
function guestLevel(regs: RoleRegs): number {
  if ((regs.efer & EFER.LMA) !== 0n) return (regs.cr4 & CR4.LA57) !== 0n ? 5 : 4;
  return (regs.cr4 & CR4.PAE) !== 0n ? 3 : 2;
}

/** CPU role: base in the low 32 bits, extended above. KVM: kvm_calc_cpu_role. */
export function kvmCalcCpuRole(vcpu: Vcpu, regs: RoleRegs): number {
  const has4 = (mask: bigint): boolean => (regs.cr4 & mask) !== 0n;
  const nx = (regs.efer & EFER.NXE) !== 0n;
  const lma = (regs.efer & EFER.LMA) !== 0n;
  const wp = (regs.cr0 & CR0.WP) !== 0n;
  const common = Role.accessAll | bit(isGuestMode(vcpu), Role.guestMode) | ((isSmm(vcpu) ? 1 : 0) << Role.smmShift);
  if ((regs.cr0 & CR0.PG) === 0n) return (common | Role.direct) + ExtRole.valid * 2 ** 32;
  const base =
    common |
    bit(nx, Role.eferNx) |
    bit(wp, Role.cr0Wp) |
    bit(has4(CR4.SMEP), Role.cr4Smep) |
    bit(has4(CR4.SMAP) && !wp, Role.smapAndnotWp) |
    bit(!has4(CR4.PAE), Role.has4ByteGpte) |
    guestLevel(regs);
  const ext =
    ExtRole.valid |
    bit(has4(CR4.SMAP), ExtRole.cr4Smap) |
    bit(has4(CR4.PSE), ExtRole.cr4Pse) |
    bit(has4(CR4.PKE) && lma, ExtRole.cr4Pke) |
    bit(has4(CR4.LA57) && lma, ExtRole.cr4La57) |
    bit(lma, ExtRole.eferLma) |
    bit(nx || has4(CR4.SMEP), ExtRole.hasPferrFetch);
  return base + ext * 2 ** 32;
}

/** Role of a nested-paging root. KVM: kvm_calc_tdp_mmu_root_page_role. */
export function kvmCalcTdpMmuRootPageRole(vcpu: Vcpu): number {
  const { mmu } = vcpu.kvm;
  return (
    (Role.accessAll |
      Role.cr0Wp |
      Role.eferNx |
      Role.direct |
      bit(vcpu.kvm.calls.tdpHasSmep(vcpu.vm) !== 0, Role.cr4Smep) |
      bit(mmu.accessed === 0n, Role.adDisabled) |
      bit(isGuestMode(vcpu), Role.guestMode) |
      mmu.tdpRootLevel |
      ((isSmm(vcpu) ? 1 : 0) << Role.smmShift)) >>>
    0
  );
}

/** Is a role's address space SMM's. */
export const roleIsSmm = (role: number): boolean => ((role >>> Role.smmShift) & 1) === 1;
