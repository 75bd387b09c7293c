/**
 * A small CPU model for tests of the bare processor: a handful of leaves with the features that its tests switch on.
 */
import { FEATURES, type FeatureName } from '../cpu/features.ts';
import type { CpuModel } from '../cpu-model-types.ts';

const BASE: readonly FeatureName[] = [
  ...(['fpu', 'vme', 'de', 'pse', 'tsc', 'msr', 'pae', 'mce', 'cx8', 'apic', 'sep', 'mtrr', 'pge', 'mca'] as const),
  ...(['cmov', 'pat', 'pse36', 'clflush', 'mmx', 'fxsr', 'sse', 'sse2', 'sse3', 'cx16', 'pcid', 'movbe'] as const),
  ...(['popcnt', 'xsave', 'fsgsbase', 'bmi1', 'bmi2', 'smep', 'smap', 'invpcid', 'umip', 'adx', 'rdpid'] as const),
  ...(['syscall', 'nx', 'pdpe1gb', 'rdtscp', 'lm', 'lahf64', 'lzcnt', 'monitor'] as const),
];

/** A model of either vendor with the features of a modern 64-bit processor, plus and minus some. */
export function testModel(
  vendor: 'amd' | 'intel',
  change: { add?: readonly FeatureName[]; drop?: readonly FeatureName[]; maxphyaddr?: number } = {},
): CpuModel {
  const cpuid: Record<string, [number, number, number, number]> = {
    '0': [0xd, ...vendorWords(vendor)],
    '1': [vendor === 'amd' ? 0x00830f10 : 0x000906ea, 0, 0, 0],
    '7.0': [0, 0, 0, 0],
    'd.0': [7, 0x240, 0x340, 0],
    '80000000': [0x80000008, ...vendorWords(vendor)],
    '80000001': [0, 0, 0, 0],
    '80000008': [0x3000 | (change.maxphyaddr ?? 46), 0, 0, 0],
  };
  const own: readonly FeatureName[] = vendor === 'amd' ? ['svm'] : ['vmx'];
  for (const name of [...BASE, ...own, ...(change.add ?? [])]) {
    if (change.drop?.includes(name)) continue;
    const { leaf, subleaf, reg, bit } = FEATURES[name];
    const row = cpuid[`${leaf.toString(16)}.${subleaf}`] ?? cpuid[leaf.toString(16)];
    if (row !== undefined) row[reg] = (row[reg] | (1 << bit)) >>> 0;
  }
  return { name: `test-${vendor}`, vendor, cpuid, msrs: new Map(), maxphyaddr: change.maxphyaddr ?? 46 };
}

const vendorWords = (vendor: 'amd' | 'intel'): [number, number, number] =>
  vendor === 'amd' ? [0x68747541, 0x444d4163, 0x69746e65] : [0x756e6547, 0x6c65746e, 0x49656e69];
