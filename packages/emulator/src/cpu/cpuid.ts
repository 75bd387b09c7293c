/**
 * CPUID: the model's leaves plus the bits that follow the processor's state.
 * Manual: APM vol. 3 appendix E, SDM vol. 2 CPUID.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import { CR4 } from '../state-layout.ts';
import type { CpuidLookup } from './features.ts';

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

/** Bytes of the standard-format XSAVE area for XCR0 as it is: the legacy region, header, and AVX's upper halves. */
const xsaveSize = (xcr0: bigint): number => ((xcr0 & 4n) !== 0n ? 0x340 : 0x240);

/** The model's static leaves as a function. Leaves beyond the maximum: zeros on AMD, the highest basic leaf on Intel. */
export function modelCpuid(model: CpuModel): CpuidLookup {
  const find = (leaf: number, subleaf: number): CpuidResult | undefined =>
    model.cpuid[`${leaf.toString(16)}.${subleaf.toString(16)}`] ?? model.cpuid[leaf.toString(16)];
  const maximum = (range: number): number => (model.cpuid[range.toString(16)]?.[0] ?? range) >>> 0;
  return (leaf, subleaf) => {
    const range = leaf >= 0x80000000 ? 0x80000000 : 0;
    const top = maximum(range);
    if (leaf <= top) return find(leaf, subleaf) ?? ZERO;
    return model.vendor === 'intel' ? (find(maximum(0), subleaf) ?? ZERO) : ZERO;
  };
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
  if (leaf === 0xd && subleaf === 0 && ebx !== 0) return [eax, xsaveSize(state.xcr0), ecx, edx];
  if (leaf >>> 0 === 0x80000001 && (edx & APIC) !== 0) {
    return [eax, ebx, ecx, setBit(edx, APIC, (state.apicBase & 0x800n) !== 0n)];
  }
  return [eax, ebx, ecx, edx];
}
