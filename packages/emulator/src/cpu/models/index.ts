/** The CPU models by name. */
import type { CpuModel } from '../../cpu-model-types.ts';
import { EPYC } from './epyc.ts';
import { QEMU64 } from './qemu64.ts';
import { XEON } from './xeon.ts';

export * from './customize.ts';
export { FEATURE_NAMES, NOT_IMPLEMENTED, REQUIRES, VENDOR_ONLY } from './gaps.ts';
export { changeFeatures, modelFeatures, modelHas } from './leaves.ts';
export { EPYC, QEMU64, XEON };
export const CPU_MODELS: Readonly<Record<string, CpuModel>> = { epyc: EPYC, xeon: XEON, qemu64: QEMU64 };
