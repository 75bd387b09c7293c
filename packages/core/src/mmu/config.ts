/** Masks and levels of the tables that KVM builds: chosen once by the vendor. KVM: arch/x86/kvm/mmu/spte.c (masks), kvm_configure_mmu. */
import { KvmError } from '../diagnostics.ts';
import type { Kvm } from '../kvm.ts';
import { Errno } from '../types.ts';

/** How a table entry says what. */
export interface MmuConfig {
  tdpEnabled: boolean;
  /** Levels of a nested root. */
  tdpRootLevel: number;
  /** Largest page: 1 4 KiB, 2 2 MiB. */
  hugePageLevel: number;
  /** `npt`: long-mode entries; `ept`: EPT entries. */
  format: 'npt' | 'ept';
  /** Bits of a present entry: readable, writable, executable, or no-execute. */
  present: bigint;
  writable: bigint;
  user: bigint;
  executable: bigint;
  noExecute: bigint;
  accessed: bigint;
  dirty: bigint;
  /** MMIO entries: `(spte & mmioMask) === mmioValue`. */
  mmioValue: bigint;
  mmioMask: bigint;
}

/** NPT entries are long-mode entries with U set (APM vol. 2 15.25.5). */
const NPT = {
  format: 'npt',
  present: 1n,
  writable: 2n,
  user: 4n,
  executable: 0n,
  noExecute: 1n << 63n,
  accessed: 0x20n,
  dirty: 0x40n,
} as const;

export const newMmuConfig = (): MmuConfig => ({
  tdpEnabled: false,
  tdpRootLevel: 4,
  hugePageLevel: 1,
  mmioValue: 0n,
  mmioMask: 0n,
  ...NPT,
});

/**
 * Nested paging on or off, levels, largest page. KVM: kvm_configure_mmu.
 * @param forcedRootLevel levels that the vendor's tables have (SVM: 4), 0: choose
 * @param hugePageLevel 1: 4 KiB only, 2: 2 MiB where frames allow
 */
export function kvmConfigureMmu(
  kvm: Kvm,
  tdpEnabled: boolean,
  forcedRootLevel: number,
  maxRootLevel: number,
  hugePageLevel: number,
): void {
  const { mmu } = kvm;
  kvm.caps.tdpEnabled = tdpEnabled;
  // Shadow pages have no protection keys. KVM: kvm_set_cpu_caps.
  if (!tdpEnabled) for (const name of ['pku', 'pks']) kvm.cpuCaps.delete(name);
  mmu.tdpEnabled = tdpEnabled;
  mmu.tdpRootLevel = forcedRootLevel || Math.min(maxRootLevel, 4);
  mmu.hugePageLevel = Math.min(hugePageLevel, 2);
  if (mmu.tdpRootLevel !== 4) {
    throw new KvmError('MMU_LEVELS', Errno.EINVAL, `nested tables have 4 levels here, not ${mmu.tdpRootLevel}`);
  }
  kvmMmuResetAllPteMasks(kvm);
}

/** Masks of NPT and of MMIO entries there: present with a reserved address bit. KVM: kvm_mmu_reset_all_pte_masks. */
function kvmMmuResetAllPteMasks(kvm: Kvm): void {
  Object.assign(kvm.mmu, NPT);
  // Below 52 physical bits, bit 51 of a present entry is reserved: such an entry always faults with RSVD.
  const reserved = kvm.model.maxphyaddr < 52 ? 1n << 51n : 0n;
  kvmMmuSetMmioSpteMask(kvm, reserved | 1n, reserved | 1n, 0n);
  if (reserved === 0n) kvmMmuSetMmioSpteMask(kvm, 0n, 0n, 0n);
}

/** MMIO entries: `(spte & mask) === value`; mask 0: none. KVM: kvm_mmu_set_mmio_spte_mask. */
export function kvmMmuSetMmioSpteMask(kvm: Kvm, value: bigint, mask: bigint, _access: bigint): void {
  kvm.mmu.mmioValue = value;
  kvm.mmu.mmioMask = mask;
}

/**
 * The tables are EPT's; MMIO entries are misconfigured: writable and executable but not readable (SDM vol. 3 28.2.3.1).
 * KVM: kvm_mmu_set_ept_masks. Call after kvmConfigureMmu.
 */
export function kvmMmuSetEptMasks(kvm: Kvm, hasAdBits: boolean, _hasExecOnly: boolean): void {
  Object.assign(kvm.mmu, {
    format: 'ept',
    present: 1n,
    writable: 2n,
    user: 0n,
    executable: 4n,
    noExecute: 0n,
    accessed: hasAdBits ? 1n << 8n : 0n,
    dirty: hasAdBits ? 1n << 9n : 0n,
  });
  kvmMmuSetMmioSpteMask(kvm, 6n, 7n, 0n);
}
