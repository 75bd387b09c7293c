/**
 * Machine-check MSRs: stored, checked, never raised. KVM: set_msr_mce, get_msr_mce (x86.c).
 * Manual: SDM vol. 3 section 16.3 (machine-check MSRs), APM vol. 2 section 9.3.
 */
import type { Kvm } from './kvm.ts';
import type { MsrData } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const MCG_STATUS = 0x17a;
const MCG_CTL = 0x17b;
const FIRST_BANK = 0x400;
const FIRST_CTL2 = 0x280;
const HWCR = 0xc0010015;
/** HWCR.McStatusWrEn: AMD lets software write what it wants into the banks' STATUS. */
const HWCR_MC_STATUS_WR_EN = 1n << 18n;
const MCG_CTL_P = 1n << 8n;
const MCG_CMCI_P = 1n << 10n;
const ALL = (1n << 64n) - 1n;
/** Bits of MCi_CTL2 that exist: the threshold and CMCI_EN. */
const CTL2_BITS = 0x7fffn | (1n << 30n);

const capability = (kvm: Kvm): bigint => kvm.caps.supportedMceCap;
const banks = (kvm: Kvm): number => Number(capability(kvm) & 0xffn);

type Kind = 'mcgStatus' | 'mcgCtl' | 'ctl' | 'status' | 'address' | 'ctl2';

/** What a machine-check MSR is; undefined: not one of this guest's. */
function kindOf(kvm: Kvm, index: number): Kind | undefined {
  if (index === MCG_STATUS) return 'mcgStatus';
  if (index === MCG_CTL) return 'mcgCtl';
  if (index >= FIRST_CTL2 && index < FIRST_CTL2 + banks(kvm)) return 'ctl2';
  if (index < FIRST_BANK || index >= FIRST_BANK + 4 * banks(kvm)) return undefined;
  return (['ctl', 'status', 'address', 'address'] as const)[index & 3];
}
/** Is the register announced by MCG_CAP. */
function isPresent(kvm: Kvm, kind: Kind): boolean {
  if (kind === 'mcgCtl') return (capability(kvm) & MCG_CTL_P) !== 0n;
  return kind !== 'ctl2' || (capability(kvm) & MCG_CMCI_P) !== 0n;
}

/** May the guest write this value. */
function isLegal(vcpu: Vcpu, kind: Kind, data: bigint): boolean {
  switch (kind) {
    case 'ctl':
      // All or nothing; Linux clears bit 10 on AMD and bit 0 on old Intel processors as workarounds.
      return data === 0n || (data | 0x401n) === ALL;
    case 'status': {
      const hwcr = vcpu.arch.msrs.get(HWCR) ?? 0n;
      return data === 0n || (hwcr & HWCR_MC_STATUS_WR_EN) !== 0n;
    }
    case 'mcgCtl':
      return data === 0n || data === ALL;
    case 'ctl2':
      return (data & ~CTL2_BITS) === 0n;
    default:
      return true;
  }
}

/** @returns the value; undefined: no machine-check MSR of this guest. KVM: get_msr_mce. */
export function getMsrMce(vcpu: Vcpu, msr: MsrData): bigint | undefined {
  const kind = kindOf(vcpu.kvm, msr.index);
  if (kind === undefined || (!isPresent(vcpu.kvm, kind) && !msr.hostInitiated)) return undefined;
  return vcpu.arch.msrs.get(msr.index) ?? 0n;
}
/** @returns 0, 1 for #GP; undefined: not a machine-check MSR of this guest. KVM: set_msr_mce. */
export function setMsrMce(vcpu: Vcpu, msr: MsrData): number | undefined {
  const kind = kindOf(vcpu.kvm, msr.index);
  if (kind === undefined) return undefined;
  if (!isPresent(vcpu.kvm, kind) && (msr.data !== 0n || !msr.hostInitiated)) return 1;
  if (!msr.hostInitiated && !isLegal(vcpu, kind, msr.data)) return 1;
  vcpu.arch.msrs.set(msr.index, msr.data);
  return 0;
}
