/**
 * MSRs that a real processor or a real machine's firmware has set before an image begins, and that KVM leaves to its user.
 * Manual: SDM vol. 4 table 2-2 (IA32_MISC_ENABLE), BKDG/PPR HWCR, SDM vol. 3 section 12.11 (MTRRs).
 */
import type { Vcpu } from '@tskvm/core';

const MISC_ENABLE = 0x1a0;
const HWCR = 0xc0010015;
const MTRR_PHYS_BASE = 0x200;
const MTRR_FIXED_64K = 0x250;
const MTRR_FIXED_16K = [0x258, 0x259] as const;
const MTRR_FIXED_4K = 0x268;
const MTRR_DEF_TYPE = 0x2ff;
/** Fast string operations: without it kernels take ERMS away and keep FSRM, which no real processor shows. */
const FAST_STRINGS = 1n;
/** The TSC counts with the P0 frequency. */
const TSC_FREQ_SEL = 1n << 24n;
const WRITE_BACK = 6n;
const ENABLED = 0xc00n;
const VALID = 0x800n;
const ALL_WRITE_BACK = 0x0606060606060606n;

/** What the processor itself powers on with. */
export function applyPowerOnMsrs(vcpu: Vcpu): void {
  if (vcpu.kvm.model.vendor === 'intel') vcpu.setMsr(MISC_ENABLE, (vcpu.getMsr(MISC_ENABLE) ?? 0n) | FAST_STRINGS);
  else vcpu.setMsr(HWCR, TSC_FREQ_SEL);
}

/** What firmware leaves behind for an image that starts without it: memory is write-back, the PCI hole from `hole` to 4 GiB is not cached. */
export function applyFirmwareMsrs(vcpu: Vcpu, hole: number): void {
  const mask = (1n << BigInt(vcpu.kvm.model.maxphyaddr)) - 1n;
  const length = BigInt(0x100000000 - hole);
  vcpu.setMsr(MTRR_PHYS_BASE, BigInt(hole));
  vcpu.setMsr(MTRR_PHYS_BASE + 1, (mask & ~(length - 1n)) | VALID);
  vcpu.setMsr(MTRR_FIXED_64K, ALL_WRITE_BACK);
  vcpu.setMsr(MTRR_FIXED_16K[0], ALL_WRITE_BACK);
  // A0000-BFFFF is video memory; from C0000 on stands firmware, write-protected.
  vcpu.setMsr(MTRR_FIXED_16K[1], 0n);
  for (let i = 0; i < 8; i++) vcpu.setMsr(MTRR_FIXED_4K + i, 0x0505050505050505n);
  vcpu.setMsr(MTRR_DEF_TYPE, ENABLED | WRITE_BACK);
}
