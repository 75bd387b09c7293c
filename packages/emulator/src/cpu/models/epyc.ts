/**
 * An AMD EPYC of the third generation, as far as tskvm implements it: the model on which SVM runs.
 * Manual: APM vol. 3 appendix E; vol. 2 section 15.1 (SVM features).
 *
 * What is not implemented is not announced: AVX and its kin, XSAVE, SSE4A, RDRAND, AVIC, LBR virtualisation, virtual GIF.
 */
import type { CpuModel } from '../../cpu-model-types.ts';
import type { FeatureName } from '../features.ts';
import { BASE_FEATURES, featureLeaf, nameLeaves, SSE_EXTENSIONS, vendorLeaf } from './topology.ts';

const FEATURES: readonly FeatureName[] = [
  ...BASE_FEATURES,
  ...SSE_EXTENSIONS,
  'monitor',
  'movbe',
  'pcid',
  'fsgsbase',
  'bmi1',
  'bmi2',
  'smep',
  'smap',
  'erms',
  'fsrm',
  'invpcid',
  'adx',
  'clflushopt',
  'clwb',
  'umip',
  'rdpid',
  'svm',
  'extapic',
  'cr8legacy',
  'lzcnt',
  'prefetchw',
  'pdpe1gb',
  'rdtscp',
  'clzero',
  'wbnoinvd',
  'npt',
  'nripSave',
  'vmcbClean',
  'flushByAsid',
  'decodeAssists',
  'pauseFilter',
  'pauseFilterThreshold',
  'sev',
  'sevEs',
];

/** Family 19h, model 01h, stepping 1. */
const SIGNATURE = 0x00a00f11;
/** Leaf 1 EDX bits that leaf 80000001h EDX repeats on AMD. */
const REPEATED = 0x0183f3ff;
const MAXPHYADDR = 48;

const standard = featureLeaf(1, 0, FEATURES, { 0: SIGNATURE, 1: 0x00010800 });
const extended = featureLeaf(0x80000001, 0, FEATURES, { 0: SIGNATURE, 1: 0x40000000, 3: standard[3] & REPEATED });

export const EPYC: CpuModel = {
  name: 'epyc',
  vendor: 'amd',
  cpuid: {
    '0': vendorLeaf(0x10, 'AuthenticAMD'),
    '1': standard,
    // MONITOR line size 64, with interrupt break-event.
    '5': [0x40, 0x40, 3, 0x11],
    '6': [4, 0, 1, 0],
    '7.0': featureLeaf(7, 0, FEATURES),
    // One thread, one core.
    'b.0': [0, 1, 0x100, 0],
    'b.1': [0, 1, 0x201, 0],
    '80000000': vendorLeaf(0x8000001f, 'AuthenticAMD'),
    '80000001': extended,
    ...nameLeaves('AMD EPYC 7003 (tskvm)'),
    '80000005': [0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140],
    '80000006': [0x5c002200, 0x6c004200, 0x02006140, 0x00808140],
    // Invariant TSC.
    '80000007': [0, 0, 0, 0x100],
    '80000008': featureLeaf(0x80000008, 0, FEATURES, { 0: MAXPHYADDR | (48 << 8) }),
    // Revision 1; 32768 ASIDs.
    '8000000a': featureLeaf(0x8000000a, 0, FEATURES, { 0: 1, 1: 0x8000 }),
    '80000019': [0xf040f040, 0xf0400000, 0, 0],
    // L1 data, L1 instruction, L2, L3.
    '8000001d.0': [0x121, 0x01c0003f, 63, 0],
    '8000001d.1': [0x122, 0x01c0003f, 63, 0],
    '8000001d.2': [0x143, 0x01c0003f, 1023, 2],
    '8000001d.3': [0x163, 0x03c0003f, 32767, 1],
    '8000001e': [0, 0x100, 0, 0],
    // C-bit 51, no loss of physical address bits; 509 encrypted guests, ASIDs 1..509 without SEV-ES from 1.
    '8000001f': featureLeaf(0x8000001f, 0, FEATURES, { 1: 51, 2: 509, 3: 100 }),
  },
  msrs: new Map([
    // PATCH_LEVEL.
    [0x8b, 0x0a0011d1n],
    // MCG_CAP: no banks.
    [0x179, 0n],
  ]),
  maxphyaddr: MAXPHYADDR,
};
