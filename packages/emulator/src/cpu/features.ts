/**
 * Processor features by name and the CPUID bit that announces each.
 * Manual: APM vol. 3 appendix D and E, SDM vol. 2 CPUID.
 */

/** Register of a CPUID result: index into [eax, ebx, ecx, edx]. */
const EAX = 0;
const EBX = 1;
const ECX = 2;
const EDX = 3;

/** Where a feature is announced. */
export interface FeatureBit {
  leaf: number;
  subleaf: number;
  reg: 0 | 1 | 2 | 3;
  bit: number;
}

const at =
  (leaf: number, reg: 0 | 1 | 2 | 3, subleaf = 0) =>
  (bit: number): FeatureBit => ({ leaf, subleaf, reg, bit });
const std3 = at(1, ECX);
const std4 = at(1, EDX);
const ext2 = at(7, EBX);
const ext3 = at(7, ECX);
const ext4 = at(7, EDX);
const ext5 = at(7, EAX, 1);
const amd21 = at(0x80000021, EAX);
const amd21c = at(0x80000021, ECX);
const amd3 = at(0x80000001, ECX);
const amd4 = at(0x80000001, EDX);
const amd8 = at(0x80000008, EBX);
const svmBit = at(0x8000000a, EDX);
const xsaveBit = at(0xd, EAX, 1);

/** Feature name → CPUID bit. */
export const FEATURES = {
  fpu: std4(0),
  vme: std4(1),
  de: std4(2),
  pse: std4(3),
  tsc: std4(4),
  msr: std4(5),
  pae: std4(6),
  mce: std4(7),
  cx8: std4(8),
  apic: std4(9),
  sep: std4(11),
  mtrr: std4(12),
  pge: std4(13),
  mca: std4(14),
  cmov: std4(15),
  pat: std4(16),
  pse36: std4(17),
  clflush: std4(19),
  mmx: std4(23),
  fxsr: std4(24),
  sse: std4(25),
  sse2: std4(26),
  htt: std4(28),

  sse3: std3(0),
  pclmulqdq: std3(1),
  monitor: std3(3),
  vmx: std3(5),
  smx: std3(6),
  ssse3: std3(9),
  fma: std3(12),
  cx16: std3(13),
  pdcm: std3(15),
  pcid: std3(17),
  sse41: std3(19),
  sse42: std3(20),
  x2apic: std3(21),
  movbe: std3(22),
  popcnt: std3(23),
  tscDeadline: std3(24),
  aes: std3(25),
  xsave: std3(26),
  osxsave: std3(27),
  avx: std3(28),
  f16c: std3(29),
  rdrand: std3(30),
  hypervisor: std3(31),

  fsgsbase: ext2(0),
  tscAdjust: ext2(1),
  sgx: ext2(2),
  bmi1: ext2(3),
  hle: ext2(4),
  avx2: ext2(5),
  smep: ext2(7),
  bmi2: ext2(8),
  erms: ext2(9),
  invpcid: ext2(10),
  rtm: ext2(11),
  avx512f: ext2(16),
  rdseed: ext2(18),
  adx: ext2(19),
  smap: ext2(20),
  clflushopt: ext2(23),
  clwb: ext2(24),
  sha: ext2(29),

  umip: ext3(2),
  pku: ext3(3),
  waitpkg: ext3(5),
  cetShadowStack: ext3(7),
  gfni: ext3(8),
  vaes: ext3(9),
  vpclmulqdq: ext3(10),
  la57: ext3(16),
  rdpid: ext3(22),
  busLockDetect: ext3(24),
  /** Protection keys for supervisor pages. */
  pks: ext3(31),

  fsrm: ext4(4),
  cetBranchTracking: ext4(20),
  /** IA32_SPEC_CTRL with IBRS, and IA32_PRED_CMD with IBPB. */
  specCtrl: ext4(26),
  stibp: ext4(27),
  flushL1d: ext4(28),
  archCapabilities: ext4(29),
  ssbd: ext4(31),
  fzrm: ext5(10),
  fsrs: ext5(11),
  fsrc: ext5(12),
  lam: ext5(26),

  lahf64: amd3(0),
  cmpLegacy: amd3(1),
  svm: amd3(2),
  extapic: amd3(3),
  /** LOCK MOV CR0 is MOV CR8. */
  cr8legacy: amd3(4),
  lzcnt: amd3(5),
  sse4a: amd3(6),
  misalignsse: amd3(7),
  prefetchw: amd3(8),
  skinit: amd3(12),
  monitorx: amd3(29),
  syscall: amd4(11),
  nx: amd4(20),
  mmxext: amd4(22),
  ffxsr: amd4(25),
  pdpe1gb: amd4(26),
  rdtscp: amd4(27),
  lm: amd4(29),
  clzero: amd8(0),
  rdpru: amd8(4),
  wbnoinvd: amd8(9),
  amdIbpb: amd8(12),
  amdIbrs: amd8(14),
  amdStibp: amd8(15),
  amdSsbd: amd8(24),

  npt: svmBit(0),
  lbrVirtualization: svmBit(1),
  svmLock: svmBit(2),
  nripSave: svmBit(3),
  tscRateMsr: svmBit(4),
  vmcbClean: svmBit(5),
  flushByAsid: svmBit(6),
  decodeAssists: svmBit(7),
  pauseFilter: svmBit(10),
  pauseFilterThreshold: svmBit(12),
  avic: svmBit(13),
  virtualVmloadVmsave: svmBit(15),
  vgif: svmBit(16),
  gmet: svmBit(17),

  /** VMGEXIT exists (SEV-ES). */
  sevEs: at(0x8000001f, EAX)(3),
  sev: at(0x8000001f, EAX)(1),

  /** LFENCE is always dispatch serializing. */
  lfenceSerializing: amd21(2),
  /** VERW overwrites what a transient scheduler attack could read. */
  verwClear: amd21(5),
  /** Loading a null selector clears the segment's base and limit. */
  nullSelectorClearsBase: amd21(6),
  /** PRED_CMD bit 7. */
  sbpb: amd21(27),
  /** IBPB flushes the predictions of branch types, too. */
  ibpbBrtype: amd21(28),
  srsoNo: amd21(29),
  tsaSqNo: amd21c(1),
  tsaL1No: amd21c(2),

  xsaveopt: xsaveBit(0),
  xsavec: xsaveBit(1),
  xgetbvEcx1: xsaveBit(2),
  xsaves: xsaveBit(3),
} as const satisfies Record<string, FeatureBit>;

export type FeatureName = keyof typeof FEATURES;

/** CPUID as a function: leaf, subleaf → [eax, ebx, ecx, edx]. */
export type CpuidLookup = (leaf: number, subleaf: number) => readonly [number, number, number, number];

/**
 * Is feature `name` announced by this CPUID?
 * A leaf beyond the maximum of its range (as on Intel, where such a leaf repeats another) counts as absent.
 */
export function hasFeature(cpuid: CpuidLookup, name: FeatureName): boolean {
  const { leaf, subleaf, reg, bit } = FEATURES[name];
  const maximum = cpuid((leaf & 0xffff0000) >>> 0, 0)[0] >>> 0;
  return leaf <= maximum && ((cpuid(leaf, subleaf)[reg] >>> bit) & 1) === 1;
}

/** All features that this CPUID announces: what `DecodeMode.features` wants. */
export function featureSet(cpuid: CpuidLookup): ReadonlySet<FeatureName> {
  return new Set((Object.keys(FEATURES) as FeatureName[]).filter((name) => hasFeature(cpuid, name)));
}

/** Builds one CPUID register from feature names; throws on a name that does not live in that register. */
export function featureWord(leaf: number, subleaf: number, reg: 0 | 1 | 2 | 3, names: readonly FeatureName[]): number {
  let word = 0;
  for (const name of names) {
    const at = FEATURES[name];
    if (at.leaf !== leaf || at.subleaf !== subleaf || at.reg !== reg) {
      throw new Error(`${name} is not announced by CPUID ${leaf.toString(16)}.${subleaf} register ${reg}`);
    }
    word |= 1 << at.bit;
  }
  return word >>> 0;
}
