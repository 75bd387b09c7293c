/**
 * A plain 64-bit processor without virtualisation, with little beyond what long mode needs (the kind of QEMU's qemu64): for the bare machine
 * and as the CPUID of modest guests. It calls itself a K8 (family 0Fh, model 6Bh, stepping 1).
 * Manual: APM vol. 3 appendix E. Gaps: none; every bit of these leaves is there.
 */
import { modelOf, nameLeaves, vendorLeaf } from './leaves.ts';

const MAXPHYADDR = 40;
const AMD = 'AuthenticAMD';

export const QEMU64 = modelOf({
  name: 'qemu64',
  description: 'a plain 64-bit processor: SSE3, no virtualisation',
  vendor: 'amd',
  maxphyaddr: MAXPHYADDR,
  leaves: {
    // SSE3 CX16 x2APIC POPCNT; FPU to FXSR, SSE, SSE2 without PSN and HTT.
    '1': [0x00060fb1, 0x00010800, 0x00a02001, 0x078bfbff],
    // LAHF in 64-bit mode; SYSCALL, NX, long mode.
    '80000001': [0x00060fb1, 0, 1, 0x20100800],
    '80000005': [0x01ff01ff, 0x01ff01ff, 0x40020140, 0x40020140],
    '80000006': [0, 0x42004200, 0x02008140, 0],
    '80000008': [MAXPHYADDR | (48 << 8), 0, 0, 0],
  },
  own: {
    '0': vendorLeaf(0xd, AMD),
    '80000000': vendorLeaf(0x80000008, AMD),
    ...nameLeaves('tskvm virtual CPU'),
  },
  capabilities: () => new Map([[0x179, 0n]]),
});
