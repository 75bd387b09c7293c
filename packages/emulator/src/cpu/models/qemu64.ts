/**
 * A plain 64-bit processor without virtualisation, with little beyond what long mode needs (the kind of QEMU's qemu64): for the bare machine
 * and as the CPUID of modest guests.
 * Manual: APM vol. 3 appendix E.
 */
import type { CpuModel } from '../../cpu-model-types.ts';
import { BASE_FEATURES, featureLeaf, nameLeaves, vendorLeaf } from './topology.ts';

/** Family 0Fh, model 6Bh, stepping 1. */
const SIGNATURE = 0x00060fb1;
const REPEATED = 0x0183f3ff;
const MAXPHYADDR = 40;
const standard = featureLeaf(1, 0, BASE_FEATURES, { 0: SIGNATURE, 1: 0x00010800 });

export const QEMU64: CpuModel = {
  name: 'qemu64',
  vendor: 'amd',
  cpuid: {
    '0': vendorLeaf(0xd, 'AuthenticAMD'),
    '1': standard,
    '80000000': vendorLeaf(0x80000008, 'AuthenticAMD'),
    '80000001': featureLeaf(0x80000001, 0, BASE_FEATURES, { 0: SIGNATURE, 3: standard[3] & REPEATED }),
    ...nameLeaves('tskvm virtual CPU'),
    '80000005': [0x01ff01ff, 0x01ff01ff, 0x40020140, 0x40020140],
    '80000006': [0, 0x42004200, 0x02008140, 0],
    '80000008': [MAXPHYADDR | (48 << 8), 0, 0, 0],
  },
  msrs: new Map([[0x179, 0n]]),
  maxphyaddr: MAXPHYADDR,
};
