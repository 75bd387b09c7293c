/**
 * An Intel Xeon Gold 6342 (Ice Lake SP: family 6, model 6Ah, stepping 6), as far as the emulator has it: the model on which VMX runs.
 * Manual: SDM vol. 2 CPUID; vol. 3 appendix A (VMX capability reporting).
 *
 * Gaps, dropped from the leaves below by gaps.ts: AVX-512; TSX; SGX; SMX; performance counters, debug store, processor trace;
 * hyper-threading; thermal and power control; cache allocation and monitoring (RDT); memory encryption; PCONFIG. Of VMX: APIC virtualisation, posted interrupts, VMFUNC, shadow VMCS, page-modification log,
 * EPT violations as #VE, mode-based execute control, sub-page permissions, TSC scaling, 5-level EPT.
 */
import { cr4Bits } from '../cr4-bits.ts';
import type { FeatureName } from '../features.ts';
import { type Leaf, modelOf, nameLeaves, vendorLeaf } from './leaves.ts';

const MAXPHYADDR = 46;

const LEAVES: Readonly<Record<string, Leaf>> = {
  '1': [0x000606a6, 0x00010800, 0x7ffefbff, 0xbfebfbff],
  '2': [0x00feff01, 0xf0, 0, 0],
  '5': [0x40, 0x40, 3, 0x1020],
  '7.0': [0, 0xf3bfbfff, 0x40417f4e, 0xbc040412],
  'd.1': [0xf, 0, 0, 0],
  '80000001': [0, 0, 0x121, 0x2c100800],
  '80000006': [0, 0, 0x01006040, 0],
  '80000008': [MAXPHYADDR | (57 << 8), 0x200, 0, 0],
};

const bits = (...numbers: number[]): number => numbers.reduce((word, bit) => (word | (1 << bit)) >>> 0, 0);
/** A control's capability MSR: bits that must be 1, bits that may be 1 (SDM vol. 3 appendix A.3). */
const control = (mustBe1: number, mayBe1: number): bigint =>
  BigInt(mustBe1 >>> 0) | (BigInt((mustBe1 | mayBe1) >>> 0) << 32n);

/** Default-1 bits (SDM vol. 3 appendix A.2), and those that the TRUE MSRs allow to be 0. */
const PIN_DEFAULT1 = 0x16;
const PROC_DEFAULT1 = 0x0401e172;
const PROC_TRUE = 0x04006172;
const EXIT_DEFAULT1 = 0x36dff;
const EXIT_TRUE = 0x36dfb;
const ENTRY_DEFAULT1 = 0x11ff;
const ENTRY_TRUE = 0x11fb;

/** External interrupts, NMI, virtual NMIs, preemption timer. */
const PIN = bits(0, 3, 5, 6) | PIN_DEFAULT1;
/** Windows, TSC offset, HLT, INVLPG, MWAIT, RDPMC, RDTSC, CR3, CR8, MOV DR, I/O, trap flag, MSR bitmaps, MONITOR, PAUSE, secondary. */
const PROC = bits(2, 3, 7, 9, 10, 11, 12, 15, 16, 19, 20, 22, 23, 24, 25, 27, 28, 29, 30, 31) | PROC_DEFAULT1;
/** EPT, descriptor tables, RDTSCP, VPID, WBINVD, unrestricted guest, INVPCID, XSAVES. */
const PROC2 = bits(1, 2, 3, 5, 6, 7, 12, 20);
/** Save debug, 64-bit host, acknowledge interrupt, PAT, EFER, save the preemption timer. */
const EXIT = bits(2, 9, 15, 18, 19, 20, 21, 22) | EXIT_DEFAULT1;
/** Load debug, IA-32e guest, PAT, EFER. */
const ENTRY = bits(2, 9, 14, 15) | ENTRY_DEFAULT1;

const REVISION = 0x11;
/** Region of 4096 bytes, write-back, INS/OUTS information, TRUE MSRs. */
const BASIC = BigInt(REVISION) | (0x1000n << 32n) | (6n << 50n) | (1n << 54n) | (1n << 55n);
/** Timer at TSC/32; EFER.LMA saved; HLT, shutdown, wait-for-SIPI; 4 CR3 targets; VMWRITE to any field; injection of length 0. */
const MISC = 5n | (1n << 5n) | (7n << 6n) | (4n << 16n) | (1n << 29n) | (1n << 30n);
/** Execute-only, 4 levels, UC, WB, 2 MB, 1 GB, accessed and dirty flags, INVEPT single and all; INVVPID of all four types. */
const EPT_VPID = BigInt(bits(0, 6, 8, 14, 16, 17, 20, 21, 25, 26)) | (BigInt(bits(0, 8, 9, 10, 11)) << 32n);

type Has = (feature: FeatureName) => boolean;
/** Secondary controls whose instruction may be absent. */
const SECONDARY_FEATURES: readonly (readonly [number, FeatureName])[] = [
  [3, 'rdtscp'],
  [12, 'invpcid'],
  [20, 'xsaves'],
];
const secondary = (has: Has): number =>
  SECONDARY_FEATURES.reduce((allowed, [bit, feature]) => (has(feature) ? allowed : allowed & ~(1 << bit)), PROC2);

/** The VMX capability MSRs; without VMX there are none. */
const vmxCapabilities = (has: Has): (readonly [number, bigint])[] => [
  // IA32_FEATURE_CONTROL: locked, VMX outside SMX.
  [0x3a, 5n],
  [0x480, BASIC],
  [0x481, control(PIN_DEFAULT1, PIN)],
  [0x482, control(PROC_DEFAULT1, PROC)],
  [0x483, control(EXIT_DEFAULT1, EXIT)],
  [0x484, control(ENTRY_DEFAULT1, ENTRY)],
  [0x485, MISC],
  [0x486, 0x80000021n],
  [0x487, 0xffffffffn],
  [0x488, 0x2000n],
  [0x489, cr4Bits(has)],
  // Highest field index 17h.
  [0x48a, 0x2en],
  [0x48b, control(0, secondary(has))],
  [0x48c, EPT_VPID],
  [0x48d, control(PIN_DEFAULT1, PIN)],
  [0x48e, control(PROC_TRUE, PROC)],
  [0x48f, control(EXIT_TRUE, EXIT)],
  [0x490, control(ENTRY_TRUE, ENTRY)],
];

/**
 * IA32_ARCH_CAPABILITIES. Nothing speculates here, so it says "not affected" wherever that can be said (SDM vol. 4 table 2-2): RDCL, IBRS_ALL,
 * SKIP_L1DFL_VMENTRY, SSB, MDS, PSCHANGE_MC, TAA, SBDR_SSDP, FBSDP, PSDP, BHI, PBRSB, GDS, RFDS, ITS.
 */
const ARCH_CAPABILITIES = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62].reduce(
  (value, bit) => value | (1n << BigInt(bit)),
  0n,
);

export const XEON = modelOf({
  name: 'xeon',
  description: 'Intel Xeon Scalable of the third generation (Ice Lake)',
  vendor: 'intel',
  maxphyaddr: MAXPHYADDR,
  leaves: LEAVES,
  own: {
    '0': vendorLeaf(0x16, 'GenuineIntel'),
    // L1 data, L1 instruction, L2, L3, each for one core.
    '4.0': [0x00000121, 0x02c0003f, 63, 0],
    '4.1': [0x00000122, 0x01c0003f, 63, 0],
    '4.2': [0x00000143, 0x04c0003f, 1023, 0],
    '4.3': [0x00000163, 0x02c0003f, 0xbfff, 4],
    // ARAT: the APIC timer never stops.
    '6': [4, 0, 0, 0],
    // One thread, one core.
    'b.0': [0, 1, 0x100, 0],
    'b.1': [0, 1, 0x201, 0],
    // TSC = 1 GHz: 25 MHz crystal times 40 / 1.
    '15': [1, 40, 25_000_000, 0],
    '16': [1000, 1000, 100, 0],
    '80000000': vendorLeaf(0x80000008, '\0\0\0\0\0\0\0\0\0\0\0\0'),
    ...nameLeaves('Intel(R) Xeon(R) Ice Lake (tskvm)'),
    // Invariant TSC.
    '80000007': [0, 0, 0, 0x100],
  },
  // MCG_CAP: no banks.
  capabilities: (has) =>
    new Map([
      [0x179, 0n],
      ...(has('archCapabilities') ? ([[0x10a, ARCH_CAPABILITIES]] as const) : []),
      ...(has('vmx') ? vmxCapabilities(has) : []),
    ]),
});
