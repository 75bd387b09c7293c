/**
 * What this processor has of AMD-V and which CR4 and EFER bits exist, read from CPUID alone.
 * Manual: APM vol. 3 appendix E (CPUID functions), vol. 2 section 3.1.
 */
import { CR4, EFER, type ProcessorApi } from '@tskvm/emulator';
import type { EntryLimits } from './entry-checks.ts';
import type { SvmFeatures } from './intercepts.ts';

/** CPUID Fn8000_000A_EDX. */
export const SvmCpuid = {
  NP: 1 << 0,
  LBR_VIRT: 1 << 1,
  NRIPS: 1 << 3,
  VMCB_CLEAN: 1 << 5,
  FLUSH_BY_ASID: 1 << 6,
  DECODE_ASSISTS: 1 << 7,
  PAUSE_FILTER: 1 << 10,
} as const;

/** A feature that a machine may be built without, though its CPU model has it. */
export type OptionalFeature = 'nextRip' | 'decodeAssists' | 'nestedPaging' | 'flushByAsid' | 'vmcbClean' | 'sevEs';

export interface SvmSiliconFeatures extends SvmFeatures {
  vmcbClean: boolean;
  /** Number of ASIDs (CPUID Fn8000_000A_EBX). */
  asids: number;
}

type Register = 0 | 1 | 2 | 3;
type Bit = readonly [leaf: number, subleaf: number, register: Register, bit: number];
const [EAX, EBX, ECX, EDX] = [0, 1, 2, 3] as const;

/** The CPUID bit behind each CR4 bit; `null`: every processor with long mode has it. */
const CR4_BITS: readonly (readonly [bigint, Bit | null])[] = [
  [CR4.VME | CR4.PVI, [1, 0, EDX, 1]],
  [CR4.DE, [1, 0, EDX, 2]],
  [CR4.PSE, [1, 0, EDX, 3]],
  [CR4.TSD, [1, 0, EDX, 4]],
  [CR4.PAE, [1, 0, EDX, 6]],
  [CR4.MCE, [1, 0, EDX, 7]],
  [CR4.PGE, [1, 0, EDX, 13]],
  [CR4.PCE, null],
  [CR4.OSFXSR, [1, 0, EDX, 24]],
  [CR4.OSXMMEXCPT, [1, 0, EDX, 25]],
  [CR4.UMIP, [7, 0, ECX, 2]],
  [CR4.LA57, [7, 0, ECX, 16]],
  [CR4.FSGSBASE, [7, 0, EBX, 0]],
  [CR4.PCIDE, [1, 0, ECX, 17]],
  [CR4.OSXSAVE, [1, 0, ECX, 26]],
  [CR4.SMEP, [7, 0, EBX, 7]],
  [CR4.SMAP, [7, 0, EBX, 20]],
  [CR4.PKE, [7, 0, ECX, 3]],
  [CR4.CET, [7, 0, ECX, 7]],
];
const EFER_BITS: readonly (readonly [bigint, Bit])[] = [
  [EFER.SCE, [0x8000_0001, 0, EDX, 11]],
  [EFER.LME | EFER.LMA, [0x8000_0001, 0, EDX, 29]],
  [EFER.NXE, [0x8000_0001, 0, EDX, 20]],
  [EFER.SVME, [0x8000_0001, 0, ECX, 2]],
  [EFER.FFXSR, [0x8000_0001, 0, EDX, 25]],
  [EFER.TCE, [0x8000_0001, 0, ECX, 17]],
  [EFER.AUTOIBRS, [0x8000_0021, 0, EAX, 8]],
];

const has = (processor: ProcessorApi, [leaf, subleaf, register, bit]: Bit): boolean =>
  (processor.cpuid(leaf, subleaf)[register] & (1 << bit)) !== 0;

const reserved = (processor: ProcessorApi, rows: readonly (readonly [bigint, Bit | null])[]): bigint => {
  let defined = 0n;
  for (const [mask, bit] of rows) if (bit === null || has(processor, bit)) defined |= mask;
  return ~defined & 0xffff_ffff_ffff_ffffn;
};

/** Features of the model, less those that this machine is built without. */
export function siliconFeatures(processor: ProcessorApi, without: ReadonlySet<OptionalFeature>): SvmSiliconFeatures {
  const [, asids, , edx] = processor.cpuid(0x8000_000a, 0);
  const feature = (name: OptionalFeature, bit: number): boolean => (edx & bit) !== 0 && !without.has(name);
  return {
    nestedPaging: feature('nestedPaging', SvmCpuid.NP),
    nextRip: feature('nextRip', SvmCpuid.NRIPS),
    decodeAssists: feature('decodeAssists', SvmCpuid.DECODE_ASSISTS),
    flushByAsid: feature('flushByAsid', SvmCpuid.FLUSH_BY_ASID),
    vmcbClean: feature('vmcbClean', SvmCpuid.VMCB_CLEAN),
    pauseFilter: (edx & SvmCpuid.PAUSE_FILTER) !== 0,
    sevEs: has(processor, [0x8000_001f, 0, EAX, 3]) && !without.has('sevEs'),
    asids: asids >>> 0,
  };
}

/** Limits of VMRUN's consistency checks. */
export function entryLimits(processor: ProcessorApi, maxphyaddr: number, features: SvmSiliconFeatures): EntryLimits {
  return {
    maxphyaddr,
    cr4Reserved: reserved(processor, CR4_BITS),
    eferReserved: reserved(processor, EFER_BITS),
    longMode: has(processor, [0x8000_0001, 0, EDX, 29]),
    nestedPaging: features.nestedPaging,
    sevEs: features.sevEs,
  };
}
