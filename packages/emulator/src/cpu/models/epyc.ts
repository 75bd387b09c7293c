/**
 * An AMD EPYC 7763 (Milan, Zen 3: family 19h, model 01h, stepping 1), as far as the emulator has it: the model on which SVM runs.
 * Manual: APM vol. 3 appendix E; vol. 2 section 15.1 (SVM features).
 *
 * Gaps, dropped from the leaves below by gaps.ts: SSE4A, misaligned SSE; shadow stacks; MONITORX; RDPRU; performance counters, IBS and LWP;
 * cache allocation and monitoring (RDT); topology extensions; core performance boost; SKINIT; of SVM: LBR virtualisation, TSC scaling, AVIC, virtual VMLOAD/VMSAVE, virtual GIF, GMET, SSS, VTE, IBS
 * virtualisation, SPEC_CTRL virtualisation; of SEV: SEV-SNP and what goes with it. Memory encryption takes no physical address bits away here.
 */
import { type Leaf, modelOf, nameLeaves, vendorLeaf } from './leaves.ts';

const MAXPHYADDR = 48;
const AMD = 'AuthenticAMD';

const LEAVES: Readonly<Record<string, Leaf>> = {
  '1': [0x00a00f11, 0x00010800, 0x7efa320b, 0x178bfbff],
  '5': [0x40, 0x40, 3, 0x11],
  '7.0': [0, 0x219c97a9, 0x0040068c, 0x00000010],
  'd.1': [0xf, 0, 0, 0],
  '80000001': [0x00a00f11, 0x40000000, 0x75c237ff, 0x2fd3fbff],
  '80000005': [0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140],
  '80000006': [0x48002200, 0x68004200, 0x02006140, 0x08009140],
  '80000008': [MAXPHYADDR | (48 << 8), 0x91bef75f, 0, 0],
  '8000000a': [1, 0x8000, 0, 0x119b9cff],
  '80000019': [0xf040f040, 0xf0400000, 0, 0],
  '8000001a': [6, 0, 0, 0],
  // The firmware decides from which ASID on guests need no SEV-ES: 100.
  '8000001f': [0x0001fc3f, 0x00000033, 0x1fd, 100],
  // As read; what later microcode adds: VERW_CLEAR, SBPB, IBPB_BRTYPE; and "not affected" wherever that can be said, as nothing speculates
  // here: SRSO_NO; TSA_SQ_NO and TSA_L1_NO.
  '80000021': [0x0000204d | (1 << 5) | (1 << 27) | (1 << 28) | (1 << 29), 0, 6, 0],
};

export const EPYC = modelOf({
  name: 'epyc',
  description: 'AMD EPYC 7003 (Milan, Zen 3)',
  vendor: 'amd',
  maxphyaddr: MAXPHYADDR,
  leaves: LEAVES,
  own: {
    '0': vendorLeaf(0x10, AMD),
    // ARAT: the APIC timer never stops.
    '6': [4, 0, 0, 0],
    // One thread, one core.
    'b.0': [0, 1, 0x100, 0],
    'b.1': [0, 1, 0x201, 0],
    '80000000': vendorLeaf(0x80000021, AMD),
    ...nameLeaves('AMD EPYC 7003 (tskvm)'),
    // Invariant TSC.
    '80000007': [0, 0, 0, 0x100],
    // L1 data, L1 instruction, L2, L3, each for one core.
    '8000001d.0': [0x121, 0x01c0003f, 63, 0],
    '8000001d.1': [0x122, 0x01c0003f, 63, 0],
    '8000001d.2': [0x143, 0x01c0003f, 1023, 2],
    '8000001d.3': [0x163, 0x03c0003f, 32767, 1],
    '8000001e': [0, 0, 0, 0],
  },
  capabilities: () =>
    new Map([
      // PATCH_LEVEL.
      [0x8b, 0x0a0011d1n],
      // MCG_CAP: no banks.
      [0x179, 0n],
    ]),
});
