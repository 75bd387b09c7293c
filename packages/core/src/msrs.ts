/** MSRs that need no vendor, EFER and XCR0. KVM: arch/x86/kvm/msrs.c (kvm_set_msr_common, kvm_get_msr_common, set_efer). */
import { CR4, EFER } from '@tskvm/emulator';
import { guestCpuidHas, kvmCpuCapHas, kvmUpdateCpuidRuntime } from './cpuid.ts';
import { kvmReadPkrs, kvmWritePkrs, kvmWriteXcr0 } from './fpu.ts';
import type { Kvm } from './kvm.ts';
import { isPaging, kvmIsCr4BitSet } from './kvm-cache-regs.ts';
import { kvmSetApicBase } from './lapic.ts';
import { kvmX2apicMsrRead, kvmX2apicMsrWrite } from './lapic-regs.ts';
import { getMsrMce, setMsrMce } from './mce.ts';
import { kvmMmuResetContext } from './mmu/mmu.ts';
import { kvmWriteSystemTime, kvmWriteWallClock } from './pvclock.ts';
import { requireShape, u8, u64 } from './shape.ts';
import { frame } from './trace.ts';
import { Errno, type MsrData } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** MSR numbers that core serves. */
export const CoreMsr = {
  TSC: 0x10,
  APIC_BASE: 0x1b,
  SPEC_CTRL: 0x48,
  PRED_CMD: 0x49,
  FLUSH_CMD: 0x10b,
  PKRS: 0x6e1,
  FEATURE_CONTROL: 0x3a,
  TSC_ADJUST: 0x3b,
  BIOS_SIGN_ID: 0x8b,
  MTRR_CAP: 0xfe,
  ARCH_CAPABILITIES: 0x10a,
  SYSENTER_CS: 0x174,
  MCG_CAP: 0x179,
  MCG_STATUS: 0x17a,
  MISC_ENABLE: 0x1a0,
  DEBUGCTL: 0x1d9,
  PAT: 0x277,
  MTRR_DEF_TYPE: 0x2ff,
  TSC_DEADLINE: 0x6e0,
  XSS: 0xda0,
  EFER: 0xc0000080,
  HWCR: 0xc0010015,
  TSC_AUX: 0xc0000103,
  SMBASE: 0x9e,
  KVM_WALL_CLOCK: 0x11,
  KVM_SYSTEM_TIME: 0x12,
  KVM_WALL_CLOCK_NEW: 0x4b564d00,
  KVM_SYSTEM_TIME_NEW: 0x4b564d01,
} as const;
const MTRR_DEF_TYPE_DEFAULT = 0n;
/** 8 variable ranges, fixed ranges, write-combining. */
const MTRR_CAP_VALUE = 0x508n;
const MASK64 = 0xffffffffffffffffn;

/** Does a PAT hold only legal types. KVM: kvm_pat_valid. */
export function kvmPatValid(data: bigint): boolean {
  for (let i = 0n; i < 64n; i += 8n) {
    const type = (data >> i) & 0xffn;
    if (type > 7n || type === 2n || type === 3n) return false;
  }
  return true;
}

/** Storage without further effect: MTRRs and what guests probe. */
const isPlain = (index: number): boolean =>
  (index >= 0x200 && index <= 0x20f) ||
  [0x250, 0x258, 0x259].includes(index) ||
  (index >= 0x268 && index <= 0x26f) ||
  index === CoreMsr.MTRR_DEF_TYPE ||
  index === CoreMsr.BIOS_SIGN_ID ||
  index === 0x140;
/** P6's and K7's performance counters and selectors: there without CPUID bits, so they are swallowed where no PMU is given. */
const isLegacyPmu = (index: number): boolean =>
  index === 0xc1 ||
  index === 0xc2 ||
  index === 0x186 ||
  index === 0x187 ||
  (index >= 0xc0010000 && index <= 0xc0010007);
/** MSRs that read as zero and swallow writes of zero (performance, power, microcode, AMD's configuration). */
const ZERO = new Set([
  0x17, 0x2a, 0x33, 0x34, 0x79, 0xcd, 0xce, 0x198, 0x199, 0x19a, 0x19b, 0x19c, 0x1ac, 0x606, 0x611, 0x639, 0x641, 0x619,
  0xc0010010, 0xc001001f, 0xc0010112, 0xc0010113, 0xc0010058, 0xc001102a, 0xc0011022, 0xc0011023, 0xc0010055,
  0xc0010111, 0xc0010062, 0xc0010063, 0xc0010064, 0x3a, 0xc0000103,
]);

const SPEC_CTRL_FEATURES = ['specCtrl', 'stibp', 'ssbd', 'amdIbrs', 'amdStibp', 'amdSsbd'];
/** KVM: guest_has_spec_ctrl_msr. */
const guestHasSpecCtrl = (vcpu: Vcpu): boolean => SPEC_CTRL_FEATURES.some((name) => guestCpuidHas(vcpu, name));
/** KVM: guest_has_pred_cmd_msr. */
const guestHasPredCmd = (vcpu: Vcpu): boolean =>
  ['specCtrl', 'amdIbpb', 'sbpb'].some((name) => guestCpuidHas(vcpu, name));
/** IBPB, and SBPB where it is announced. */
const predCmdBits = (vcpu: Vcpu): bigint => (guestCpuidHas(vcpu, 'sbpb') ? 0x81n : 1n);
/** IBRS, STIBP, SSBD. */
const SPEC_CTRL_BITS = 7n;

type Reader = (vcpu: Vcpu, msr: MsrData) => bigint | undefined;
type Writer = (vcpu: Vcpu, msr: MsrData) => number;

const READERS = new Map<number, Reader>([
  [CoreMsr.TSC, (vcpu) => kvmReadL1Tsc(vcpu, vcpu.kvm.hostTsc())],
  [CoreMsr.APIC_BASE, (vcpu) => vcpu.arch.apicBase],
  [CoreMsr.TSC_ADJUST, (vcpu) => vcpu.arch.msrs.get(CoreMsr.TSC_ADJUST) ?? 0n],
  [CoreMsr.HWCR, (vcpu) => vcpu.arch.msrs.get(CoreMsr.HWCR) ?? 0n],
  [CoreMsr.MTRR_CAP, () => MTRR_CAP_VALUE],
  [CoreMsr.MTRR_DEF_TYPE, (vcpu) => vcpu.arch.msrs.get(CoreMsr.MTRR_DEF_TYPE) ?? MTRR_DEF_TYPE_DEFAULT],
  [CoreMsr.BIOS_SIGN_ID, (vcpu) => vcpu.arch.msrs.get(CoreMsr.BIOS_SIGN_ID) ?? 0x100000000n],
  [
    CoreMsr.ARCH_CAPABILITIES,
    (vcpu) =>
      guestCpuidHas(vcpu, 'archCapabilities') ? (vcpu.kvm.processor.rdmsr(CoreMsr.ARCH_CAPABILITIES) ?? 0n) : undefined,
  ],
  [
    CoreMsr.SPEC_CTRL,
    (vcpu, msr) =>
      guestHasSpecCtrl(vcpu) || msr.hostInitiated ? (vcpu.arch.msrs.get(CoreMsr.SPEC_CTRL) ?? 0n) : undefined,
  ],
  [CoreMsr.PKRS, (vcpu) => (guestCpuidHas(vcpu, 'pks') ? BigInt(kvmReadPkrs(vcpu)) : undefined)],
  [CoreMsr.MCG_CAP, (vcpu) => vcpu.kvm.caps.supportedMceCap],
  [CoreMsr.MISC_ENABLE, (vcpu) => vcpu.arch.miscEnable],
  [CoreMsr.PAT, (vcpu) => vcpu.arch.pat],
  [CoreMsr.TSC_DEADLINE, (vcpu) => vcpu.arch.apic?.timer.tscDeadline ?? 0n],
  [CoreMsr.XSS, (vcpu) => (guestCpuidHas(vcpu, 'xsaves') ? vcpu.arch.xss : undefined)],
  [CoreMsr.EFER, (vcpu) => vcpu.arch.efer],
  [CoreMsr.SMBASE, (vcpu, msr) => (msr.hostInitiated ? vcpu.arch.smbase : undefined)],
  ...[CoreMsr.KVM_WALL_CLOCK, CoreMsr.KVM_SYSTEM_TIME, CoreMsr.KVM_WALL_CLOCK_NEW, CoreMsr.KVM_SYSTEM_TIME_NEW].map(
    (index): [number, Reader] => [index, (vcpu) => vcpu.arch.msrs.get(index) ?? 0n],
  ),
]);

const store: Writer = (vcpu, msr) => {
  vcpu.arch.msrs.set(msr.index, msr.data);
  return 0;
};

/** A guest's write of the TSC moves the offset. KVM: kvm_synchronize_tsc. */
function writeTsc(vcpu: Vcpu, value: bigint): void {
  vcpu.arch.tscOffset = (value - vcpu.kvm.hostTsc()) & MASK64;
  vcpu.kvm.calls.writeTscOffset(vcpu);
}

const WRITERS = new Map<number, Writer>([
  [
    CoreMsr.TSC,
    (vcpu, msr) => {
      writeTsc(vcpu, msr.data);
      return 0;
    },
  ],
  [
    CoreMsr.TSC_ADJUST,
    (vcpu, msr) => {
      const old = vcpu.arch.msrs.get(CoreMsr.TSC_ADJUST) ?? 0n;
      if (!msr.hostInitiated) writeTsc(vcpu, (kvmReadL1Tsc(vcpu, vcpu.kvm.hostTsc()) + msr.data - old) & MASK64);
      return store(vcpu, msr);
    },
  ],
  [CoreMsr.APIC_BASE, (vcpu, msr) => kvmSetApicBase(vcpu, msr.data, msr.hostInitiated)],
  [
    CoreMsr.MISC_ENABLE,
    (vcpu, msr) => {
      vcpu.arch.miscEnable = (msr.data & ~0x1800n) | (vcpu.arch.miscEnable & 0x1800n);
      return 0;
    },
  ],
  [
    CoreMsr.PAT,
    (vcpu, msr) => {
      if (!kvmPatValid(msr.data)) return 1;
      vcpu.arch.pat = msr.data;
      return 0;
    },
  ],
  [
    CoreMsr.TSC_DEADLINE,
    (vcpu, msr) => {
      vcpu.arch.apic?.timer.setTscDeadline(msr.data);
      return 0;
    },
  ],
  [
    CoreMsr.XSS,
    (vcpu, msr) => {
      if (!guestCpuidHas(vcpu, 'xsaves') || (msr.data & ~vcpu.kvm.caps.supportedXss) !== 0n) return 1;
      vcpu.arch.xss = msr.data;
      return 0;
    },
  ],
  [CoreMsr.EFER, (vcpu, msr) => setEfer(vcpu, msr)],
  [
    CoreMsr.SMBASE,
    (vcpu, msr) => {
      if (!msr.hostInitiated) return 1;
      vcpu.arch.smbase = msr.data;
      return 0;
    },
  ],
  [
    CoreMsr.HWCR,
    (vcpu, msr) => {
      // FFDIS, IGNNE and TLBCACHEDIS are dropped; McStatusWrEn and TscFreqSel are kept.
      const data = msr.data & ~0x148n;
      if ((data & ~((1n << 18n) | (1n << 24n))) !== 0n) return 1;
      return store(vcpu, { ...msr, data });
    },
  ],
  [
    CoreMsr.SPEC_CTRL,
    (vcpu, msr) => {
      if (!msr.hostInitiated && !guestHasSpecCtrl(vcpu)) return 1;
      return (msr.data & ~SPEC_CTRL_BITS) !== 0n ? 1 : store(vcpu, msr);
    },
  ],
  // Commands: there is no prediction and no cache to act on.
  [
    CoreMsr.PRED_CMD,
    (vcpu, msr) => ((!msr.hostInitiated && !guestHasPredCmd(vcpu)) || (msr.data & ~predCmdBits(vcpu)) !== 0n ? 1 : 0),
  ],
  [
    CoreMsr.FLUSH_CMD,
    (vcpu, msr) => ((!msr.hostInitiated && !guestCpuidHas(vcpu, 'flushL1d')) || (msr.data & ~1n) !== 0n ? 1 : 0),
  ],
  [
    CoreMsr.PKRS,
    (vcpu, msr) => {
      if (!guestCpuidHas(vcpu, 'pks') || msr.data >> 32n !== 0n) return 1;
      kvmWritePkrs(vcpu, Number(msr.data));
      return 0;
    },
  ],
  [CoreMsr.MTRR_CAP, () => 1],
  [CoreMsr.MCG_CAP, (_vcpu, msr) => (msr.hostInitiated ? 0 : 1)],
  [CoreMsr.ARCH_CAPABILITIES, (_vcpu, msr) => (msr.hostInitiated ? 0 : 1)],
  [CoreMsr.KVM_WALL_CLOCK, kvmWriteWallClock],
  [CoreMsr.KVM_WALL_CLOCK_NEW, kvmWriteWallClock],
  [CoreMsr.KVM_SYSTEM_TIME, kvmWriteSystemTime],
  [CoreMsr.KVM_SYSTEM_TIME_NEW, kvmWriteSystemTime],
]);

/** Fills msr.data. KVM: kvm_get_msr_common. @returns 0, or 1 for #GP */
export function kvmGetMsrCommon(vcpu: Vcpu, msr: MsrData): number {
  const { index } = msr;
  let data: bigint | undefined;
  const reader = READERS.get(index);
  if (reader) data = reader(vcpu, msr);
  else if (index >= 0x800 && index <= 0x8ff)
    data = vcpu.arch.apic ? kvmX2apicMsrRead(vcpu.arch.apic, index) : undefined;
  else if (isPlain(index)) data = vcpu.arch.msrs.get(index) ?? 0n;
  else data = getMsrMce(vcpu, msr) ?? (ZERO.has(index) || isLegacyPmu(index) ? 0n : undefined);
  if (data === undefined) return 1;
  msr.data = data;
  return 0;
}

/** KVM: kvm_set_msr_common. @returns 0, or 1 for #GP */
export function kvmSetMsrCommon(vcpu: Vcpu, msr: MsrData): number {
  const { index } = msr;
  const writer = WRITERS.get(index);
  if (writer) return writer(vcpu, msr);
  if (index >= 0x800 && index <= 0x8ff) return vcpu.arch.apic ? kvmX2apicMsrWrite(vcpu.arch.apic, index, msr.data) : 1;
  if (isPlain(index)) return store(vcpu, msr);
  return setMsrMce(vcpu, msr) ?? (ZERO.has(index) || isLegacyPmu(index) ? 0 : 1);
}

/** Guest RDMSR with all checks. KVM: kvm_emulate_msr_read. */
export function kvmGetMsr(vcpu: Vcpu, index: number, hostInitiated = false): { err: number; data: bigint } {
  const msr: MsrData = { index, data: 0n, hostInitiated };
  const err = vcpu.kvm.calls.getMsr(vcpu, msr);
  return { err, data: msr.data };
}

const CANONICAL = new Set([0xc0000100, 0xc0000101, 0xc0000102, 0xc0000082, 0xc0000083]);
const SYSENTER_ADDRESSES = new Set([0x175, 0x176]);
/** By the width that the processor has, whatever the guest's paging mode. KVM: max_host_virt_addr_bits. */
const linearBits = (vcpu: Vcpu): number => (kvmCpuCapHas(vcpu.kvm, 'la57') ? 57 : 48);
const signExtended = (vcpu: Vcpu, address: bigint): bigint =>
  BigInt.asUintN(64, BigInt.asIntN(linearBits(vcpu), address));

/** Guest WRMSR with all checks. KVM: __kvm_set_msr. @returns 0, or non-zero for #GP */
export const kvmSetMsr = frame(
  'kvmSetMsr',
  (vcpu: Vcpu, index: number, value: bigint, hostInitiated?: boolean): number => {
    let data = value;
    if (CANONICAL.has(index) && data !== signExtended(vcpu, data)) return 1;
    // Intel faults on them, AMD truncates: KVM makes them canonical for both.
    if (SYSENTER_ADDRESSES.has(index)) data = signExtended(vcpu, data);
    if (index === CoreMsr.TSC_AUX) {
      if (!hostInitiated && !guestCpuidHas(vcpu, 'rdtscp') && !guestCpuidHas(vcpu, 'rdpid')) return 1;
      if (data >> 32n !== 0n) return 1;
    }
    return vcpu.kvm.calls.setMsr(vcpu, { index, data, hostInitiated: hostInitiated ?? false });
  },
);

/** EFER bits that need a feature of the guest's CPUID. */
const EFER_FEATURES: readonly (readonly [bigint, string])[] = [
  [EFER.SVME | EFER.LMSLE, 'svm'],
  [EFER.LME | EFER.LMA, 'lm'],
  [EFER.NXE, 'nx'],
  [EFER.FFXSR, 'ffxsr'],
];
/** May the guest (its CPUID) set these EFER bits. KVM: __kvm_valid_efer. */
export const kvmValidEferGuest = (vcpu: Vcpu, efer: bigint): boolean =>
  EFER_FEATURES.every(([bits, feature]) => (efer & bits) === 0n || guestCpuidHas(vcpu, feature));
/** And KVM itself. KVM: kvm_valid_efer. */
export const kvmValidEfer = (vcpu: Vcpu, efer: bigint): boolean =>
  (efer & ~vcpu.kvm.caps.efer) === 0n && kvmValidEferGuest(vcpu, efer);

/** KVM: kvm_enable_efer_bits. */
export function kvmEnableEferBits(kvm: Kvm, mask: bigint): void {
  kvm.caps.efer |= mask;
}

/** EFER by WRMSR: LMA in the value is ignored. KVM: set_efer. @returns 0, or 1 for #GP */
export const setEfer = frame('setEfer', (vcpu: Vcpu, msr: MsrData): number => {
  const old = vcpu.arch.efer;
  if ((msr.data & ~vcpu.kvm.caps.efer) !== 0n) return 1;
  if (!msr.hostInitiated) {
    if (!kvmValidEferGuest(vcpu, msr.data)) return 1;
    if (isPaging(vcpu) && (old & EFER.LME) !== (msr.data & EFER.LME)) return 1;
  }
  const efer = (msr.data & ~EFER.LMA) | (old & EFER.LMA);
  if (vcpu.kvm.calls.setEfer(vcpu, efer) !== 0) return 1;
  if (((efer ^ old) & (EFER.LME | EFER.NXE)) !== 0n) kvmMmuResetContext(vcpu);
  return 0;
});

/** Guest TSC at a host TSC. KVM: kvm_read_l1_tsc. */
export const kvmReadL1Tsc = (vcpu: Vcpu, hostTsc: bigint): bigint => (hostTsc + vcpu.arch.tscOffset) & MASK64;

/** XSETBV. KVM: __kvm_set_xcr. @returns 0, or 1 for #GP */
export function kvmSetXcr(vcpu: Vcpu, index: number, value: bigint): number {
  if (index !== 0 || (value & 1n) === 0n) return 1;
  if ((value & 4n) !== 0n && (value & 2n) === 0n) return 1;
  if ((value & ~(vcpu.arch.guestSupportedXcr0 | 1n)) !== 0n) return 1;
  if (!kvmIsCr4BitSet(vcpu, CR4.OSXSAVE) && value !== 1n && !guestCpuidHas(vcpu, 'xsave')) return 1;
  kvmWriteXcr0(vcpu, value);
  kvmUpdateCpuidRuntime(vcpu);
  return 0;
}

/** User space has answered an MSR exit. */
export function completeUserMsr(vcpu: Vcpu): number {
  const { exit } = vcpu;
  const err = exit.reason === 'rdmsr' || exit.reason === 'wrmsr' ? exit.error : 1;
  requireShape('RUN_ANSWER', Errno.EINVAL, 'KVM_RUN: ', err, 'exit.error', u8);
  if (exit.reason === 'rdmsr' && err === 0) {
    requireShape('RUN_ANSWER', Errno.EINVAL, 'KVM_RUN: ', exit.data, 'exit.data', u64);
    vcpu.arch.regs[0] = exit.data & 0xffffffffn;
    vcpu.arch.regs[2] = exit.data >> 32n;
  }
  return vcpu.kvm.calls.completeEmulatedMsr(vcpu, err);
}
