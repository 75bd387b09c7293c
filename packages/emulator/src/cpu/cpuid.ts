/**
 * CPUID: the model's leaves plus the bits that follow the processor's state.
 * Manual: APM vol. 3 appendix E, SDM vol. 2 CPUID.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import { CR4 } from '../state-layout.ts';
import { type CpuidLookup, hasFeature } from './features.ts';

export type CpuidResult = readonly [number, number, number, number];
const ZERO: CpuidResult = [0, 0, 0, 0];

/** What CPUID looks at besides the model. */
export interface CpuidState {
  cr4: bigint;
  /** APIC_BASE MSR. */
  apicBase: bigint;
  xcr0: bigint;
}

const OSXSAVE = 1 << 27;
const APIC = 1 << 9;
const OSPKE = 1 << 4;

/** XSAVE area: legacy region and header, then AVX's upper halves, in both formats (SDM vol. 1 section 13.4). */
const XSAVE_BASE = 0x240;
const AVX_SIZE = 0x100;
const X87_SSE = 3;
const AVX = 4;
const PKRU = 0x200;
const PKRU_COMPONENT = 9;
const PKRU_SIZE = 8;
const XSAVE_LEAF = 0xd;
/** Bytes of an XSAVE area for these components. In the standard format PKRU lies behind AVX's place, in the compacted one behind what is there. */
export function xsaveSize(components: bigint, compacted: boolean): number {
  const avx = (components & BigInt(AVX)) !== 0n;
  if ((components & BigInt(PKRU)) === 0n) return avx ? XSAVE_BASE + AVX_SIZE : XSAVE_BASE;
  return XSAVE_BASE + (avx || !compacted ? AVX_SIZE : 0) + PKRU_SIZE;
}
/** Sub-leaf 1, EAX: XSAVEC, XSAVES. */
const COMPACTION = 2 | 8;

/** Leaf Dh of a processor with XSAVE: what XCR0 may hold, sizes, and component 2. The instructions of sub-leaf 1 are the model's. */
function xsaveLeaf(lookup: CpuidLookup, subleaf: number, own: CpuidResult | undefined): CpuidResult {
  if (!hasFeature(lookup, 'xsave')) return ZERO;
  const avx = hasFeature(lookup, 'avx');
  const pku = hasFeature(lookup, 'pku');
  const all = X87_SSE | (avx ? AVX : 0) | (pku ? PKRU : 0);
  if (subleaf === 0) return [all, XSAVE_BASE, xsaveSize(BigInt(all), false), 0];
  if (subleaf === 1) return [own?.[0] ?? 0, 0, 0, 0];
  if (subleaf === PKRU_COMPONENT && pku) return [PKRU_SIZE, XSAVE_BASE + AVX_SIZE, 0, 0];
  return subleaf === 2 && avx ? [AVX_SIZE, XSAVE_BASE, 0, 0] : ZERO;
}

/** The model's static leaves as a function. Leaves beyond the maximum: zeros on AMD, the highest basic leaf on Intel. */
export function modelCpuid(model: CpuModel): CpuidLookup {
  const find = (leaf: number, subleaf: number): CpuidResult | undefined =>
    model.cpuid[`${leaf.toString(16)}.${subleaf.toString(16)}`] ?? model.cpuid[leaf.toString(16)];
  const maximum = (range: number): number => (model.cpuid[range.toString(16)]?.[0] ?? range) >>> 0;
  const lookup: CpuidLookup = (leaf, subleaf) => {
    const range = leaf >= 0x80000000 ? 0x80000000 : 0;
    const top = maximum(range);
    if (leaf === XSAVE_LEAF && leaf <= top) return xsaveLeaf(lookup, subleaf, model.cpuid[`d.${subleaf.toString(16)}`]);
    if (leaf <= top) return find(leaf, subleaf) ?? ZERO;
    return model.vendor === 'intel' ? (find(maximum(0), subleaf) ?? ZERO) : ZERO;
  };
  return lookup;
}

const setBit = (word: number, bit: number, on: boolean): number => (on ? word | bit : word & ~bit) >>> 0;

/** A leaf with its dynamic bits: OSXSAVE, APIC, OSPKE, the size of the XSAVE area. */
export function cpuidNow(lookup: CpuidLookup, state: CpuidState, leaf: number, subleaf: number): CpuidResult {
  const [eax, ebx, ecx, edx] = lookup(leaf >>> 0, subleaf >>> 0);
  if (leaf === 1) {
    const apic = (edx & APIC) !== 0 && (state.apicBase & 0x800n) !== 0n;
    return [eax, ebx, setBit(ecx, OSXSAVE, (state.cr4 & CR4.OSXSAVE) !== 0n), setBit(edx, APIC, apic)];
  }
  if (leaf === 7 && subleaf === 0) return [eax, ebx, setBit(ecx, OSPKE, (state.cr4 & CR4.PKE) !== 0n), edx];
  if (leaf === XSAVE_LEAF && (subleaf === 0 ? eax !== 0 : subleaf === 1 && (eax & COMPACTION) !== 0)) {
    return [eax, xsaveSize(state.xcr0, subleaf === 1), ecx, edx];
  }
  if (leaf >>> 0 === 0x80000001 && (edx & APIC) !== 0) {
    return [eax, ebx, ecx, setBit(edx, APIC, (state.apicBase & 0x800n) !== 0n)];
  }
  return [eax, ebx, ecx, edx];
}
