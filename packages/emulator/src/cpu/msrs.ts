/**
 * The silicon's model-specific registers: a table of where each lives, which bits exist and what a write must satisfy.
 * Manual: APM vol. 2 appendix A, SDM vol. 4.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import { S, Seg } from '../state-layout.ts';
import type { FeatureName } from './features.ts';
import type { StateBlock } from './state.ts';

export const Msr = {
  TSC: 0x10,
  PLATFORM_ID: 0x17,
  APIC_BASE: 0x1b,
  FEATURE_CONTROL: 0x3a,
  TSC_ADJUST: 0x3b,
  SPEC_CTRL: 0x48,
  PRED_CMD: 0x49,
  ARCH_CAPABILITIES: 0x10a,
  FLUSH_CMD: 0x10b,
  PKRS: 0x6e1,
  BIOS_UPDT_TRIG: 0x79,
  BIOS_SIGN_ID: 0x8b,
  SMBASE: 0x9e,
  MTRRCAP: 0xfe,
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MCG_CAP: 0x179,
  MCG_STATUS: 0x17a,
  MISC_ENABLE: 0x1a0,
  DEBUGCTL: 0x1d9,
  PAT: 0x277,
  XSS: 0xda0,
  EFER: 0xc0000080,
  STAR: 0xc0000081,
  LSTAR: 0xc0000082,
  CSTAR: 0xc0000083,
  SFMASK: 0xc0000084,
  FS_BASE: 0xc0000100,
  GS_BASE: 0xc0000101,
  KERNEL_GS_BASE: 0xc0000102,
  TSC_AUX: 0xc0000103,
  SYSCFG: 0xc0010010,
  HWCR: 0xc0010015,
  SMI_CTL: 0xc0010111,
  VM_CR: 0xc0010114,
  VM_HSAVE_PA: 0xc0010117,
} as const;

/** What a write must satisfy beside the mask. */
type Rule = 'none' | 'canonical' | 'pat' | 'mtrrType' | 'aligned';

interface MsrRow {
  /** Offset in the state block, or undefined: kept in a map. */
  at?: number;
  /** Bits that exist; a write of others is #GP. 'readonly': any write is #GP. */
  mask: bigint | 'readonly';
  /** Bits of a write that are kept; the others are dropped without a fault. Absent: all. */
  kept?: bigint;
  rule?: Rule;
  reset?: bigint;
  vendor?: 'amd' | 'intel';
  feature?: FeatureName;
  /** RDMSR is #GP. */
  writeOnly?: true;
}

const ALL = (1n << 64n) - 1n;
const LOW = 0xffffffffn;
const segmentBase = (seg: number): number => S.segments + seg * 16 + 8;
const PAT_RESET = 0x0007040600070406n;

const ROWS: readonly (readonly [number, MsrRow])[] = [
  [Msr.PLATFORM_ID, { mask: 'readonly', vendor: 'intel' }],
  [Msr.APIC_BASE, { at: S.apicBase, mask: ALL, feature: 'apic' }],
  [Msr.FEATURE_CONTROL, { mask: 0x1f_ffffn, vendor: 'intel' }],
  [Msr.SPEC_CTRL, { mask: 7n, feature: 'specCtrl' }],
  [Msr.SPEC_CTRL, { mask: 7n, feature: 'amdIbrs' }],
  [Msr.PRED_CMD, { mask: 1n, feature: 'specCtrl', writeOnly: true }],
  [Msr.PRED_CMD, { mask: 1n, feature: 'amdIbpb', writeOnly: true }],
  [Msr.PRED_CMD, { mask: 0x81n, feature: 'sbpb', writeOnly: true }],
  [Msr.FLUSH_CMD, { mask: 1n, feature: 'flushL1d', writeOnly: true }],
  [Msr.ARCH_CAPABILITIES, { mask: 'readonly', feature: 'archCapabilities' }],
  [Msr.BIOS_UPDT_TRIG, { mask: ALL, vendor: 'intel' }],
  [Msr.BIOS_SIGN_ID, { mask: ALL }],
  [Msr.MTRRCAP, { mask: 'readonly', reset: 0x508n, feature: 'mtrr' }],
  [Msr.SYSENTER_CS, { at: S.sysenterCs, mask: ALL, feature: 'sep' }],
  [Msr.SYSENTER_ESP, { at: S.sysenterEsp, mask: ALL, rule: 'canonical', vendor: 'intel', feature: 'sep' }],
  [Msr.SYSENTER_EIP, { at: S.sysenterEip, mask: ALL, rule: 'canonical', vendor: 'intel', feature: 'sep' }],
  // AMD has no SYSENTER of 64 bits, and the upper halves are not there (KVM: svm_set_msr).
  [Msr.SYSENTER_ESP, { at: S.sysenterEsp, mask: ALL, kept: LOW, vendor: 'amd', feature: 'sep' }],
  [Msr.SYSENTER_EIP, { at: S.sysenterEip, mask: ALL, kept: LOW, vendor: 'amd', feature: 'sep' }],
  [Msr.MCG_CAP, { mask: 'readonly', feature: 'mca' }],
  [Msr.MCG_STATUS, { mask: 7n, feature: 'mca' }],
  [Msr.MISC_ENABLE, { mask: ALL, reset: 0x1801n, vendor: 'intel' }],
  [Msr.DEBUGCTL, { at: S.debugctl, mask: 0xffffn }],
  [Msr.PAT, { at: S.pat, mask: ALL, rule: 'pat', feature: 'pat' }],
  // No supervisor state component exists.
  [Msr.XSS, { mask: 0n, feature: 'xsaves' }],
  [Msr.STAR, { at: S.star, mask: ALL, feature: 'syscall' }],
  [Msr.LSTAR, { at: S.lstar, mask: ALL, rule: 'canonical', feature: 'lm' }],
  [Msr.CSTAR, { at: S.cstar, mask: ALL, rule: 'canonical', feature: 'lm' }],
  [Msr.SFMASK, { at: S.sfmask, mask: LOW, feature: 'lm' }],
  [Msr.FS_BASE, { at: segmentBase(Seg.FS), mask: ALL, rule: 'canonical', feature: 'lm' }],
  [Msr.GS_BASE, { at: segmentBase(Seg.GS), mask: ALL, rule: 'canonical', feature: 'lm' }],
  [Msr.KERNEL_GS_BASE, { at: S.kernelGsBase, mask: ALL, rule: 'canonical', feature: 'lm' }],
  [Msr.TSC_AUX, { at: S.tscAux, mask: LOW, feature: 'rdtscp' }],
  [Msr.SYSCFG, { mask: ALL, vendor: 'amd' }],
  [Msr.HWCR, { mask: ALL, vendor: 'amd' }],
  [0xc0010111, { at: S.smbase, mask: LOW, vendor: 'amd' }],
  [0xc0010112, { mask: ALL, rule: 'aligned', vendor: 'amd' }],
  [0xc0010113, { mask: ALL, vendor: 'amd' }],
  [Msr.VM_CR, { mask: 0x1fn, feature: 'svm' }],
  [Msr.VM_HSAVE_PA, { mask: ALL, rule: 'aligned', feature: 'svm' }],
  ...mtrrs(),
];

/** Eight variable ranges, the fixed ranges and the default type (SDM vol. 3 section 11.11). */
function mtrrs(): [number, MsrRow][] {
  const rows: [number, MsrRow][] = [];
  for (let n = 0; n < 16; n++) rows.push([0x200 + n, { mask: ALL, feature: 'mtrr' }]);
  for (const fixed of [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f]) {
    rows.push([fixed, { mask: ALL, rule: 'mtrrType', feature: 'mtrr' }]);
  }
  rows.push([0x2ff, { mask: 0xcffn, feature: 'mtrr' }]);
  return rows;
}

const MEMORY_TYPES = new Set([0n, 1n, 4n, 5n, 6n]);
const bytesOf = (value: bigint): bigint[] => Array.from({ length: 8 }, (_, n) => (value >> BigInt(n * 8)) & 0xffn);
/** Canonical for a processor whose linear addresses are so wide: MSRs that hold addresses go by the width, not by CR4.LA57. */
const isCanonical57 = (value: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(57, value)) === value;
export const isCanonical48 = (value: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(48, value)) === value;

const RULES: Readonly<Record<Rule, (value: bigint) => boolean>> = {
  none: () => true,
  canonical: isCanonical48,
  // PAT adds UC- (7) to the types of the MTRRs.
  pat: (value) => bytesOf(value).every((type) => type === 7n || MEMORY_TYPES.has(type)),
  mtrrType: (value) => bytesOf(value).every((type) => MEMORY_TYPES.has(type)),
  aligned: (value) => (value & 0xfffn) === 0n,
};

/** What belongs to somebody else: TSC, EFER and what a vendor's silicon registers. */
export interface MsrHook {
  read(): bigint | undefined;
  /** 0, or non-zero for #GP(0). */
  write(value: bigint): number;
}

export class Msrs {
  readonly hooks = new Map<number, MsrHook>();
  readonly #rows = new Map<number, MsrRow>();
  #values = new Map<number, bigint>();
  readonly #model: CpuModel;
  readonly #state: StateBlock;
  readonly #rules: Readonly<Record<Rule, (value: bigint) => boolean>>;

  constructor(model: CpuModel, state: StateBlock, has: (feature: FeatureName) => boolean) {
    this.#model = model;
    this.#state = state;
    this.#rules = has('la57') ? { ...RULES, canonical: isCanonical57 } : RULES;
    for (const [index, row] of ROWS) {
      if (row.vendor !== undefined && row.vendor !== model.vendor) continue;
      if (row.feature === undefined || has(row.feature)) this.#rows.set(index, row);
    }
  }

  /** RESET values. */
  reset(): void {
    this.#values.clear();
    for (const [index, row] of this.#rows) {
      if (row.at === undefined && row.reset !== undefined) this.#values.set(index, row.reset);
    }
    this.#state.set64(S.pat, PAT_RESET);
  }

  /**
   * Offset in the state block of an MSR that is nothing but that field, or -1.
   * @param write only if every canonical value may be written
   */
  fieldOf(index: number, write: boolean): number {
    const row = this.#rows.get(index);
    if (row === undefined || row.at === undefined || this.hooks.has(index)) return -1;
    if (write && (row.mask !== ALL || row.kept !== undefined || (row.rule !== undefined && row.rule !== 'canonical')))
      return -1;
    return row.at;
  }

  /** undefined: no such MSR, #GP(0). */
  read(index: number): bigint | undefined {
    const hook = this.hooks.get(index);
    if (hook !== undefined) return hook.read();
    const row = this.#rows.get(index);
    if (row?.writeOnly) return undefined;
    if (row?.at !== undefined) return this.#state.get64(row.at);
    const value = this.#values.get(index) ?? this.#model.msrs.get(index);
    return value ?? (row === undefined ? undefined : 0n);
  }

  /** 0, or non-zero for #GP(0). */
  write(index: number, value: bigint): number {
    const hook = this.hooks.get(index);
    if (hook !== undefined) return hook.write(value);
    const row = this.#rows.get(index);
    if (row === undefined || row.mask === 'readonly') return 1;
    if ((value & ~row.mask) !== 0n || !this.#rules[row.rule ?? 'none'](value)) return 1;
    const kept = row.kept === undefined ? value : value & row.kept;
    if (row.at !== undefined) this.#state.set64(row.at, kept);
    else this.#values.set(index, kept);
    return 0;
  }

  /** Sets without a check what software cannot write (model, tests, firmware tables). */
  poke(index: number, value: bigint): void {
    const row = this.#rows.get(index);
    if (row?.at !== undefined) this.#state.set64(row.at, value);
    else this.#values.set(index, value);
  }

  save(): [number, bigint][] {
    return [...this.#values];
  }
  load(values: readonly [number, bigint][]): void {
    this.#values = new Map(values);
  }
}
