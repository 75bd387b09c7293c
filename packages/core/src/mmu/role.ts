/** Roles: what a root's tables and a walk depend on. KVM: union kvm_mmu_page_role and kvm_calc_cpu_role (mmu.c). */
import { CR0, CR4, EFER } from '@tskvm/emulator';
import { cr0Low, cr4Low, isGuestMode, isSmm } from '../kvm-cache-regs.ts';
import { lowWord } from '../low-word.ts';
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

/** The control registers that a role is computed from: their low halves. KVM: struct kvm_mmu_role_regs. */
export interface RoleRegs {
  cr0: number;
  cr4: number;
  efer: number;
}
/** KVM: vcpu_to_role_regs. @returns one object, filled anew by each call */
export function vcpuToRoleRegs(vcpu: Vcpu): RoleRegs {
  REGS.cr0 = cr0Low(vcpu, -1);
  REGS.cr4 = cr4Low(vcpu, -1);
  REGS.efer = lowWord(vcpu.arch.efer);
  return REGS;
}
const REGS: RoleRegs = { cr0: 0, cr4: 0, efer: 0 };

const Cr0 = { WP: lowWord(CR0.WP), PG: lowWord(CR0.PG) } as const;
const Cr4 = {
  PSE: lowWord(CR4.PSE),
  PAE: lowWord(CR4.PAE),
  LA57: lowWord(CR4.LA57),
  SMEP: lowWord(CR4.SMEP),
  SMAP: lowWord(CR4.SMAP),
  PKE: lowWord(CR4.PKE),
} as const;
const Efer = { LMA: lowWord(EFER.LMA), NXE: lowWord(EFER.NXE) } as const;

const bit = (condition: boolean, value: number): number => (condition ? value : 0);

/** Levels of the guest's own tables. */
function guestLevel({ cr4, efer }: RoleRegs): number {
  if ((efer & Efer.LMA) !== 0) return (cr4 & Cr4.LA57) !== 0 ? 5 : 4;
  return (cr4 & Cr4.PAE) !== 0 ? 3 : 2;
}

/** CPU role: base in the low 32 bits, extended above. KVM: kvm_calc_cpu_role. */
export function kvmCalcCpuRole(vcpu: Vcpu, regs: RoleRegs): number {
  const { cr0, cr4, efer } = regs;
  const nx = (efer & Efer.NXE) !== 0;
  const lma = (efer & Efer.LMA) !== 0;
  const wp = (cr0 & Cr0.WP) !== 0;
  const common = Role.accessAll | bit(isGuestMode(vcpu), Role.guestMode) | ((isSmm(vcpu) ? 1 : 0) << Role.smmShift);
  if ((cr0 & Cr0.PG) === 0) return (common | Role.direct) + ExtRole.valid * 2 ** 32;
  const base =
    common |
    bit(nx, Role.eferNx) |
    bit(wp, Role.cr0Wp) |
    bit((cr4 & Cr4.SMEP) !== 0, Role.cr4Smep) |
    bit((cr4 & Cr4.SMAP) !== 0 && !wp, Role.smapAndnotWp) |
    bit((cr4 & Cr4.PAE) === 0, Role.has4ByteGpte) |
    guestLevel(regs);
  const ext =
    ExtRole.valid |
    bit((cr4 & Cr4.SMAP) !== 0, ExtRole.cr4Smap) |
    bit((cr4 & Cr4.PSE) !== 0, ExtRole.cr4Pse) |
    bit((cr4 & Cr4.PKE) !== 0 && lma, ExtRole.cr4Pke) |
    bit((cr4 & Cr4.LA57) !== 0 && lma, ExtRole.cr4La57) |
    bit(lma, ExtRole.eferLma) |
    bit(nx || (cr4 & Cr4.SMEP) !== 0, ExtRole.hasPferrFetch);
  return base + ext * 2 ** 32;
}

/**
 * The CPU role once CR0.WP alone has changed, of a guest that pages.
 * @param role as it was
 * @param wp as it is now
 */
export function kvmCpuRoleOfWp(vcpu: Vcpu, role: number, wp: boolean): number {
  // Where the guest owns the bit, the role may be behind.
  if (((role & Role.cr0Wp) !== 0) === wp) return kvmCalcCpuRole(vcpu, vcpuToRoleRegs(vcpu));
  const bits = Role.cr0Wp - (cr4Low(vcpu, Cr4.SMAP) !== 0 ? Role.smapAndnotWp : 0);
  return wp ? role + bits : role - bits;
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
