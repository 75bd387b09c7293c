import type { FeatureName } from './cpu/features.ts';

/** A CPU model: the CPUID leaves and capability MSRs that are the only source of which bits and features exist. */
export interface CpuModel {
  name: string;
  /** One line: which processor it is. */
  description?: string;
  vendor: 'amd' | 'intel';
  /** CPUID leaves: `leaf` or `leaf.subleaf` in hexadecimal → [eax, ebx, ecx, edx]. */
  cpuid: Readonly<Record<string, readonly [number, number, number, number]>>;
  /** Read-only capability MSRs (VMX capability MSRs, …). */
  msrs: ReadonlyMap<number, bigint>;
  /** Physical address width in bits. */
  maxphyaddr: number;
  /** The capability MSRs for another choice of features; absent: `msrs` whatever the features. */
  capabilities?: (has: (feature: FeatureName) => boolean) => ReadonlyMap<number, bigint>;
  /** Features that the real processor has and the emulator lacks. */
  lacks?: readonly FeatureName[];
}
