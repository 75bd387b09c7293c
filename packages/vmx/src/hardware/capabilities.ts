/**
 * The capability MSRs of a CPU model, taken apart: which control bits may and must be set, which features exist.
 * Manual: SDM vol. 3 appendix A.
 */
import { type CpuModel, modelHas } from '@tskvm/emulator';
import { VmxMsr } from './bits.ts';

/** Allowed settings of a 32-bit control word. */
export interface Allowed {
  /** Bits that must be 1. */
  zero: number;
  /** Bits that may be 1. */
  one: number;
}

export interface VmxCapabilities {
  revision: number;
  regionSize: number;
  pin: Allowed;
  primary: Allowed;
  secondary: Allowed;
  exit: Allowed;
  entry: Allowed;
  cr0Fixed0: bigint;
  cr0Fixed1: bigint;
  /** Both as low halves: CR0 has nothing above. */
  cr0Fixed: Allowed;
  cr4Fixed0: bigint;
  cr4Fixed1: bigint;
  /** IA32_VMX_EPT_VPID_CAP in words. */
  ept: number;
  vpid: number;
  /** Bits 8:6 of IA32_VMX_MISC: HLT, shutdown, wait-for-SIPI. */
  activityStates: number;
  cr3Targets: number;
  /** The preemption timer counts down once per 2^rate TSC cycles. */
  preemptionRate: number;
  /** IA32_VMX_MISC bit 29. */
  vmwriteAnyField: boolean;
  /** IA32_VMX_MISC bit 30. */
  zeroLengthInjection: boolean;
  maxphyaddr: number;
  /** Width of linear addresses: 48, or 57 with LA57. */
  linearBits: number;
  /** CR3 may hold LAM's bits 61 and 62. */
  lam: boolean;
}

const low = (value: bigint): number => Number(value & 0xffffffffn) | 0;
const high = (value: bigint): number => Number(value >> 32n) | 0;
/** PE and PG. */
const FREE = 0x8000_0001 | 0;
/** Does the low half of CR0 have the bits that are fixed in VMX operation; a guest may clear PE and PG if it is unrestricted (SDM 23.8). */
export const cr0FixedHolds = (
  { cr0Fixed: { zero, one } }: VmxCapabilities,
  cr0: number,
  unrestricted: boolean,
): boolean => {
  const wanted = unrestricted ? zero & ~FREE : zero;
  return (cr0 & wanted) === wanted && (cr0 & ~one) === 0;
};
const allowed = (value: bigint): Allowed => ({ zero: low(value), one: high(value) });

/**
 * Reads the capability MSRs. The TRUE variants are used if IA32_VMX_BASIC says that they exist (SDM A.3.1).
 * @throws Error if the model has no IA32_VMX_BASIC
 */
export function readCapabilities(model: CpuModel): VmxCapabilities {
  const msr = (index: number): bigint => model.msrs.get(index) ?? 0n;
  const basic = msr(VmxMsr.BASIC);
  if (basic === 0n) throw new Error(`CPU model ${model.name} has no VMX capability MSRs`);
  const trueControls = (basic >> 55n) & 1n;
  const control = (plain: number, exact: number): Allowed => allowed(msr(trueControls ? exact : plain));
  const misc = msr(VmxMsr.MISC);
  const eptVpid = msr(VmxMsr.EPT_VPID);
  return {
    revision: low(basic) & 0x7fffffff,
    regionSize: high(basic) & 0x1fff,
    pin: control(VmxMsr.PIN, VmxMsr.TRUE_PIN),
    primary: control(VmxMsr.PROC, VmxMsr.TRUE_PROC),
    secondary: allowed(msr(VmxMsr.PROC2)),
    exit: control(VmxMsr.EXIT, VmxMsr.TRUE_EXIT),
    entry: control(VmxMsr.ENTRY, VmxMsr.TRUE_ENTRY),
    cr0Fixed0: msr(VmxMsr.CR0_FIXED0),
    cr0Fixed1: msr(VmxMsr.CR0_FIXED1),
    cr0Fixed: { zero: low(msr(VmxMsr.CR0_FIXED0)), one: low(msr(VmxMsr.CR0_FIXED1)) },
    cr4Fixed0: msr(VmxMsr.CR4_FIXED0),
    cr4Fixed1: msr(VmxMsr.CR4_FIXED1),
    ept: low(eptVpid),
    vpid: high(eptVpid),
    activityStates: Number((misc >> 6n) & 7n),
    cr3Targets: Number((misc >> 16n) & 0x1ffn),
    preemptionRate: Number(misc & 0x1fn),
    vmwriteAnyField: ((misc >> 29n) & 1n) === 1n,
    zeroLengthInjection: ((misc >> 30n) & 1n) === 1n,
    maxphyaddr: model.maxphyaddr,
    linearBits: modelHas(model, 'la57') ? 57 : 48,
    lam: modelHas(model, 'lam'),
  };
}
