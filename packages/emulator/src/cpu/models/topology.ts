/**
 * What the CPU models share: how leaves are written, and the leaves that hold text.
 * Manual: APM vol. 3 appendix E, SDM vol. 2 CPUID.
 */
import { FEATURES, type FeatureName, featureWord } from '../features.ts';

export type Leaf = readonly [number, number, number, number];

const word = (text: string, at: number): number =>
  [0, 1, 2, 3].reduce((value, i) => (value | ((text.charCodeAt(at + i) || 0) << (8 * i))) >>> 0, 0);

/** Leaf 0 or 80000000h: largest leaf and the vendor's name in EBX, EDX, ECX. */
export const vendorLeaf = (maximum: number, vendor: string): Leaf => [
  maximum,
  word(vendor, 0),
  word(vendor, 8),
  word(vendor, 4),
];

/** Leaves 80000002h to 80000004h: the processor's name, 48 bytes. */
export function nameLeaves(name: string): Record<string, Leaf> {
  const leaf = (at: number): Leaf => [word(name, at), word(name, at + 4), word(name, at + 8), word(name, at + 12)];
  return { '80000002': leaf(0), '80000003': leaf(16), '80000004': leaf(32) };
}

/** A leaf whose registers hold feature bits, from names in any order; `fixed` gives the registers that hold something else. */
export function featureLeaf(
  leaf: number,
  subleaf: number,
  names: readonly FeatureName[],
  fixed: Partial<Record<0 | 1 | 2 | 3, number>> = {},
): Leaf {
  const here = names.filter((name) => FEATURES[name].leaf === leaf && FEATURES[name].subleaf === subleaf);
  const register = (reg: 0 | 1 | 2 | 3): number =>
    ((fixed[reg] ?? 0) |
      featureWord(
        leaf,
        subleaf,
        reg,
        here.filter((name) => FEATURES[name].reg === reg),
      )) >>>
    0;
  return [register(0), register(1), register(2), register(3)];
}

/** What every x86-64 processor with these models' age has. SSE and SSE2 belong to long mode. */
export const BASE_FEATURES: readonly FeatureName[] = [
  'fpu',
  'vme',
  'de',
  'pse',
  'tsc',
  'msr',
  'pae',
  'mce',
  'cx8',
  'apic',
  'sep',
  'mtrr',
  'pge',
  'mca',
  'cmov',
  'pat',
  'pse36',
  'clflush',
  'mmx',
  'fxsr',
  'sse',
  'sse2',
  'cx16',
  'popcnt',
  'x2apic',
  'lahf64',
  'syscall',
  'nx',
  'lm',
];

/** Vector extensions that the server models have besides. */
export const SSE_EXTENSIONS: readonly FeatureName[] = ['sse3', 'pclmulqdq', 'ssse3', 'sse41', 'sse42', 'aes', 'sha'];
