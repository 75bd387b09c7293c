/**
 * CPUID as guests see it, and the features that KVM can give them. KVM: arch/x86/kvm/cpuid.c.
 * Manual: APM vol. 3 appendix E, SDM vol. 2 CPUID.
 */
import {
  type CpuidLookup,
  type CpuModel,
  CR4,
  FEATURES,
  type FeatureBit,
  type FeatureName,
  hasFeature,
  modelCpuid,
  xsaveSize,
} from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { Kvm } from './kvm.ts';
import { isGuestMode, kvmIsCr4BitSet } from './kvm-cache-regs.ts';
import { requireShape } from './shape.ts';
import { CPUID } from './state-shapes.ts';
import { Errno } from './types.ts';
import type { CpuidEntry, Vcpu } from './vcpu.ts';

const table: Readonly<Record<string, FeatureBit>> = FEATURES;
const REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;
/** KVM_CPUID_FLAG_SIGNIFCANT_INDEX. */
export const CPUID_SIGNIFICANT_INDEX = 1;
/** First leaf of KVM's own range: signature "KVMKVMKVM". */
export const KVM_CPUID_SIGNATURE = 0x40000000;
export const KVM_CPUID_FEATURES = 0x40000001;
/** KVM_FEATURE_CLOCKSOURCE 0, CLOCKSOURCE2 3, PV_SEND_IPI 11, CLOCKSOURCE_STABLE_BIT 24. */
const KVM_FEATURES = (1 << 0) | (1 << 3) | (1 << 11) | (1 << 24);

/** Leaves that have sub-leaves. */
const INDEXED = new Set([4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f, 0x8000001d, 0x80000026]);

/** Features that KVM never passes on by itself: virtualisation (the vendor adds it with nested) and what it doesn't virtualise. */
const WITHHELD = new Set([
  'vmx',
  'svm',
  'smx',
  'skinit',
  'monitor',
  'monitorx',
  'osxsave',
  'npt',
  'lbrVirtualization',
  'svmLock',
  'nripSave',
  'tscRateMsr',
  'vmcbClean',
  'flushByAsid',
  'decodeAssists',
  'pauseFilter',
  'pauseFilterThreshold',
  'avic',
  'virtualVmloadVmsave',
  'vgif',
  'gmet',
  'sev',
  'sevEs',
  'sgx',
]);

/** Intel's name and AMD's name of the same. */
const SPECULATION = [
  ['specCtrl', 'amdIbrs'],
  ['specCtrl', 'amdIbpb'],
  ['stibp', 'amdStibp'],
  ['ssbd', 'amdSsbd'],
] as const;

/** kvm_cpu_caps before the vendor's set-up: what the processor has and KVM passes on, and what it emulates on any. */
export function initialCpuCaps(kvm: Kvm): Set<string> {
  const cpuid = (leaf: number, subleaf: number) => kvm.processor.cpuid(leaf, subleaf);
  const caps = new Set<string>();
  for (const name of Object.keys(FEATURES) as (keyof typeof FEATURES)[]) {
    if (!WITHHELD.has(name) && hasFeature(cpuid, name)) caps.add(name);
  }
  // Either vendor's announcement of speculation control stands for both. KVM: kvm_set_cpu_caps.
  for (const [one, other] of SPECULATION) {
    if (caps.has(one)) caps.add(other);
    else if (caps.has(other)) caps.add(one);
  }
  for (const name of ['x2apic', 'tscDeadline', 'tscAdjust', 'hypervisor', 'apic']) caps.add(name);
  return caps;
}
/** KVM: kvm_cpu_cap_set, kvm_cpu_cap_clear, kvm_cpu_cap_has. */
export function kvmCpuCapSet(kvm: Kvm, feature: string): void {
  kvm.cpuCaps.add(feature);
}
export function kvmCpuCapClear(kvm: Kvm, feature: string): void {
  kvm.cpuCaps.delete(feature);
}
export const kvmCpuCapHas = (kvm: Kvm, feature: string): boolean => kvm.cpuCaps.has(feature);

/**
 * Where the entries of leaves that were asked for stand, by a hash of leaf and sub-leaf: an exit compares two words and walks no list.
 * Cleared when the CPUID is set.
 */
export class CpuidPlaces {
  readonly #functions = new Uint32Array(256);
  readonly #indices = new Uint32Array(256);
  /** 0: not known yet; else one more than the place, or -1 for "there is none". */
  readonly #places = new Int16Array(256);

  find(entries: readonly CpuidEntry[], fn: number, index: number): CpuidEntry | undefined {
    const slot = (fn ^ (fn >>> 24) ^ Math.imul(index, 37)) & 255;
    if (this.#places[slot] === 0 || this.#functions[slot] !== fn || this.#indices[slot] !== index) {
      return this.#search(entries, fn, index, slot);
    }
    const place = this.#places[slot];
    return place < 0 ? undefined : entries[place - 1];
  }
  #search(entries: readonly CpuidEntry[], fn: number, index: number, slot: number): CpuidEntry | undefined {
    const at = entries.findIndex(
      (e) => e.function === fn && ((e.flags & CPUID_SIGNIFICANT_INDEX) === 0 || e.index === index),
    );
    this.#functions[slot] = fn;
    this.#indices[slot] = index;
    this.#places[slot] = at < 0 ? -1 : at + 1;
    return entries[at];
  }
  clear(): void {
    this.#places.fill(0);
  }
}

/** The entry of a leaf, undefined if the guest has none. Numbers unsigned. KVM: kvm_find_cpuid_entry_index. */
export const kvmFindCpuidEntry = (vcpu: Vcpu, fn: number, index = 0): CpuidEntry | undefined =>
  vcpu.cpuidPlaces.find(vcpu.cpuid, fn, index);

/** Does the guest's CPUID announce a feature (names: FEATURES of the emulator). KVM: guest_cpu_cap_has. */
export function guestCpuidHas(vcpu: Vcpu, feature: string): boolean {
  const at = table[feature];
  if (!at) return false;
  const entry = kvmFindCpuidEntry(vcpu, at.leaf, at.subleaf);
  return entry !== undefined && ((entry[REGISTERS[at.reg]] >>> at.bit) & 1) === 1;
}
/** Vendor string of leaf 0, or the host's before SET_CPUID2. */
function vendorOf(vcpu: Vcpu): string {
  const entry = kvmFindCpuidEntry(vcpu, 0);
  if (!entry) return vcpu.kvm.model.vendor === 'amd' ? 'AuthenticAMD' : 'GenuineIntel';
  const bytes = new Uint8Array(new Uint32Array([entry.ebx, entry.edx, entry.ecx]).buffer);
  return String.fromCharCode(...bytes);
}
const vendorCache = new WeakMap<CpuidEntry[], boolean>();
/** KVM: guest_cpuid_is_amd_compatible. */
export function guestCpuidIsAmdCompatible(vcpu: Vcpu): boolean {
  let amd = vendorCache.get(vcpu.cpuid);
  if (amd === undefined) {
    const vendor = vendorOf(vcpu);
    amd = vendor === 'AuthenticAMD' || vendor === 'HygonGenuine';
    vendorCache.set(vcpu.cpuid, amd);
  }
  return amd;
}
/** KVM: guest_cpuid_is_intel_compatible. */
export const guestCpuidIsIntelCompatible = (vcpu: Vcpu): boolean => !guestCpuidIsAmdCompatible(vcpu);

/** Largest leaf of the range that a leaf belongs to. */
function rangeLimit(vcpu: Vcpu, fn: number): number | undefined {
  const base = fn >= 0x80000000 ? 0x80000000 : fn >= 0x40000000 && fn < 0x40010000 ? 0x40000000 : 0;
  return kvmFindCpuidEntry(vcpu, base)?.eax;
}

/** Beyond the last leaf an Intel guest gets the last basic leaf. KVM: get_out_of_range_cpuid_entry. */
export function kvmOutOfRangeCpuidEntry(vcpu: Vcpu, fn: number, index: number): CpuidEntry | undefined {
  if (!guestCpuidIsIntelCompatible(vcpu)) return undefined;
  const limit = rangeLimit(vcpu, fn);
  const outside = limit === undefined || fn >>> 0 > limit >>> 0;
  const basic = kvmFindCpuidEntry(vcpu, 0)?.eax;
  return outside && basic !== undefined ? kvmFindCpuidEntry(vcpu, basic, index) : undefined;
}

/**
 * CPUID for a guest; without an entry zeroes. KVM: kvm_cpuid.
 * @returns the four registers (unsigned) and whether an entry was found
 */
export function kvmCpuid(
  vcpu: Vcpu,
  fn: number,
  index: number,
): { eax: number; ebx: number; ecx: number; edx: number; found: boolean } {
  const own = kvmFindCpuidEntry(vcpu, fn, index);
  const entry = own ?? kvmOutOfRangeCpuidEntry(vcpu, fn, index);
  const found = own !== undefined;
  if (!entry) return { eax: 0, ebx: 0, ecx: 0, edx: 0, found };
  return { eax: entry.eax >>> 0, ebx: entry.ebx >>> 0, ecx: entry.ecx >>> 0, edx: entry.edx >>> 0, found };
}

type Registers = [number, number, number, number];

/** Leaves that KVM answers itself, whatever the processor says: it gives no topology, clock, thermal or performance leaves. */
const OWN_LEAVES: ReadonlyMap<number, Readonly<Registers>> = new Map([
  [3, [0, 0, 0, 0]],
  [5, [0, 0, 0, 0]],
  // ARAT alone.
  [6, [4, 0, 0, 0]],
  [9, [0, 0, 0, 0]],
  [0xa, [0, 0, 0, 0]],
  [0xb, [0, 0, 0, 0]],
  [0xf, [0, 0, 0, 0]],
  [0x10, [0, 0, 0, 0]],
  [0x12, [0, 0, 0, 0]],
  [0x14, [0, 0, 0, 0]],
  [0x15, [0, 0, 0, 0]],
  [0x16, [0, 0, 0, 0]],
  [0x1f, [0, 0, 0, 0]],
  [0x8000001e, [0, 0, 0, 0]],
  [0x80000020, [0, 0, 0, 0]],
]);
/** Leaves that mean nothing without a feature. */
const LEAF_NEEDS: ReadonlyMap<number, string> = new Map([
  [0xd, 'xsave'],
  [0x8000000a, 'svm'],
  [0x8000001f, 'sev'],
]);

/**
 * One leaf as a guest may have it: `source` says what the processor it is to be has, `allowed` which features it gets.
 * KVM: __do_cpuid_func.
 */
function guestLeaf(
  kvm: Kvm,
  source: CpuidLookup,
  allowed: (name: string, announced: boolean) => boolean,
  leaf: number,
  subleaf: number,
): Registers {
  const own = OWN_LEAVES.get(leaf);
  if (own) return [...own];
  const need = LEAF_NEEDS.get(leaf);
  if (need !== undefined && !allowed(need, hasFeature(source, need as FeatureName))) return [0, 0, 0, 0];
  // Sizes and components of the XSAVE area are the processor's.
  const from = leaf === 0xd ? hostLookup(kvm) : source;
  const out = from(leaf, subleaf).map((v) => v >>> 0) as Registers;
  for (const [name, at] of FEATURE_TABLE) {
    if (at.leaf !== leaf || at.subleaf !== subleaf) continue;
    const mask = 1 << at.bit;
    const on = allowed(name, (source(leaf, subleaf)[at.reg] & mask) !== 0);
    out[at.reg] = (on ? out[at.reg] | mask : out[at.reg] & ~mask) >>> 0;
  }
  if (leaf === 0xd && subleaf === 0) out[0] = Number(kvm.caps.supportedXcr0 & 0xffffffffn);
  return out;
}
const FEATURE_TABLE = Object.entries(table);
const hostLookup =
  (kvm: Kvm): CpuidLookup =>
  (leaf, subleaf) =>
    kvm.processor.cpuid(leaf, subleaf);

const entry = (fn: number, index: number, regs: readonly number[]): CpuidEntry => ({
  function: fn,
  index,
  flags: INDEXED.has(fn) ? CPUID_SIGNIFICANT_INDEX : 0,
  eax: regs[0] >>> 0,
  ebx: regs[1] >>> 0,
  ecx: regs[2] >>> 0,
  edx: regs[3] >>> 0,
});
/** How many sub-leaves of an indexed leaf are listed. */
const subleaves = (source: CpuidLookup, leaf: number): number => {
  if (!INDEXED.has(leaf)) return 1;
  if (leaf === 7) return (source(7, 0)[0] >>> 0) + 1;
  return leaf === 0xd ? XSAVE_SUBLEAVES : 4;
};
/** Components up to PKRU, number 9. */
const XSAVE_SUBLEAVES = 10;

/** All leaves of both ranges, and KVM's own. */
function allLeaves(
  kvm: Kvm,
  source: CpuidLookup,
  allowed: (name: string, announced: boolean) => boolean,
): CpuidEntry[] {
  const out: CpuidEntry[] = [];
  for (const base of [0, 0x80000000]) {
    const limit = Math.min(source(base, 0)[0] >>> 0, base + 0x24);
    for (let leaf = base; leaf <= limit; leaf++) {
      for (let index = 0; index < subleaves(source, leaf); index++)
        out.push(entry(leaf, index, guestLeaf(kvm, source, allowed, leaf, index)));
    }
  }
  // "KVMKVMKVM\0\0\0" in EBX, ECX, EDX.
  out.push(entry(KVM_CPUID_SIGNATURE, 0, [KVM_CPUID_FEATURES, 0x4b4d564b, 0x564b4d56, 0x4d]));
  out.push(entry(KVM_CPUID_FEATURES, 0, [KVM_FEATURES, 0, 0, 0]));
  return out;
}

/** The CPUID that a guest may be given: all that the processor has and KVM passes on or emulates. KVM: KVM_GET_SUPPORTED_CPUID. */
export const getSupportedCpuid = (kvm: Kvm): CpuidEntry[] =>
  allLeaves(kvm, hostLookup(kvm), (name) => kvm.cpuCaps.has(name));

/** Features that user space may announce although KVM does not propose them: it does what they say. */
const PERMITTED = new Set(['monitor']);

/**
 * The CPUID of a CPU model for a guest of this kernel: the model's leaves less what KVM can't give on this processor, as a machine monitor
 * makes them for KVM_SET_CPUID2. The vendor may be another than the processor's. The physical address width is the processor's, because it
 * decides which bits of the guest's tables are reserved.
 */
export function cpuidOfModel(kvm: Kvm, model: CpuModel): CpuidEntry[] {
  const entries = allLeaves(
    kvm,
    modelCpuid(model),
    (name, announced) => name === 'hypervisor' || (announced && (kvm.cpuCaps.has(name) || PERMITTED.has(name))),
  );
  const sizes = entries.find((e) => e.function === 0x80000008);
  if (sizes) {
    const linear = cpuidEntriesHave(entries, 'la57') ? 57 : 48;
    sizes.eax = ((sizes.eax & ~0xffff) | kvm.model.maxphyaddr | (linear << 8)) >>> 0;
  }
  return entries;
}
/** Do these entries announce a feature. */
export function cpuidEntriesHave(entries: readonly CpuidEntry[], feature: FeatureName): boolean {
  const at = FEATURES[feature];
  const found = entries.find((e) => e.function === at.leaf && e.index === at.subleaf);
  return found !== undefined && ((found[REGISTERS[at.reg]] >>> at.bit) & 1) === 1;
}

/** Leaf Dh sub-leaf 1 EAX: XSAVEC and XSAVES. */
const COMPACTED_FORMS = 2 | 8;

/** Leaf Dh tells how large an area XCR0 makes. KVM: xstate_required_size. */
function updateXsaveLeaves(vcpu: Vcpu): void {
  const standard = kvmFindCpuidEntry(vcpu, 0xd, 0);
  if (!standard || standard.eax === 0) return;
  standard.ebx = xsaveSize(vcpu.arch.xcr0, false);
  const extended = kvmFindCpuidEntry(vcpu, 0xd, 1);
  if (extended && (extended.eax & COMPACTED_FORMS) !== 0) extended.ebx = xsaveSize(vcpu.arch.xcr0, true);
}

/** Leaves whose bits follow CR4, XCR0 and the APIC base. KVM: kvm_update_cpuid_runtime. */
export function kvmUpdateCpuidRuntime(vcpu: Vcpu): void {
  const one = kvmFindCpuidEntry(vcpu, 1);
  if (!one) return;
  const set = (reg: 'ecx' | 'edx' | 'ebx', bit: number, on: boolean): void => {
    one[reg] = (on ? one[reg] | (1 << bit) : one[reg] & ~(1 << bit)) >>> 0;
  };
  set('ecx', 27, ((one.ecx >>> 26) & 1) === 1 && kvmIsCr4BitSet(vcpu, CR4.OSXSAVE));
  set('edx', 9, (vcpu.arch.apicBase & (1n << 11n)) !== 0n);
  one.ebx = ((one.ebx & 0x00ffffff) | (vcpu.vcpuId << 24)) >>> 0;
  const seven = kvmFindCpuidEntry(vcpu, 7, 0);
  if (seven && ((seven.ecx >>> 3) & 1) === 1) {
    seven.ecx = (kvmIsCr4BitSet(vcpu, CR4.PKE) ? seven.ecx | 16 : seven.ecx & ~16) >>> 0;
  }
  updateXsaveLeaves(vcpu);
}

/** CR4 bits that need a feature. */
const CR4_FEATURES: readonly (readonly [bigint, string])[] = [
  [CR4.OSXSAVE, 'xsave'],
  [CR4.SMEP, 'smep'],
  [CR4.SMAP, 'smap'],
  [CR4.FSGSBASE, 'fsgsbase'],
  [CR4.PKE, 'pku'],
  [CR4.LA57, 'la57'],
  [CR4.UMIP, 'umip'],
  [CR4.VMXE, 'vmx'],
  [CR4.PCIDE, 'pcid'],
  [CR4.CET, 'cetShadowStack'],
  [CR4.PKS, 'pks'],
  [CR4.LAM_SUP, 'lam'],
];
const CR4_ALWAYS =
  CR4.VME | CR4.PVI | CR4.TSD | CR4.DE | CR4.PSE | CR4.PAE | CR4.MCE | CR4.PGE | CR4.PCE | CR4.OSFXSR | CR4.OSXMMEXCPT;

/** Reserved CR4 bits of this guest. KVM: __cr4_reserved_bits. */
export function cr4GuestReservedBits(vcpu: Vcpu): bigint {
  let allowed = CR4_ALWAYS;
  for (const [bit, feature] of CR4_FEATURES) {
    if (guestCpuidHas(vcpu, feature) && kvmCpuCapHas(vcpu.kvm, feature)) allowed |= bit;
  }
  return ~allowed & 0xffffffffffffffffn;
}

/** What follows a change of the guest's CPUID. KVM: kvm_vcpu_after_set_cpuid. */
export function kvmVcpuAfterSetCpuid(vcpu: Vcpu): void {
  const { arch } = vcpu;
  const sizes = kvmFindCpuidEntry(vcpu, 0x80000008);
  arch.maxphyaddr = sizes ? sizes.eax & 0xff : 36;
  arch.reservedGpaBits = ~((1n << BigInt(arch.maxphyaddr)) - 1n) & 0xffffffffffffffffn;
  arch.guestSupportedXcr0 = BigInt(kvmFindCpuidEntry(vcpu, 0xd, 0)?.eax ?? 0) & vcpu.kvm.caps.supportedXcr0;
  arch.cr4GuestRsvdBits = cr4GuestReservedBits(vcpu);
  kvmUpdateCpuidRuntime(vcpu);
  vcpu.kvm.calls.vcpuAfterSetCpuid(vcpu);
}

/** KVM_SET_CPUID2. Throws KvmError CPUID_* (EINVAL, E2BIG). */
export function setCpuid2(vcpu: Vcpu, entries: readonly CpuidEntry[]): void {
  requireShape('CPUID_FIELD', Errno.EINVAL, 'KVM_SET_CPUID2: ', entries, 'entries', CPUID);
  if (entries.length > 256) throw new KvmError('CPUID_TOO_MANY', Errno.E2BIG, 'at most 256 CPUID entries');
  const address = entries.find((e) => e.function === 0x80000008);
  const virtual = address ? (address.eax >>> 8) & 0xff : 0;
  if (virtual !== 0 && virtual !== 48 && virtual !== 57) {
    throw new KvmError(
      'CPUID_VIRTUAL_WIDTH',
      Errno.EINVAL,
      `leaf 0x80000008: ${virtual} linear address bits, must be 48, 57 or 0`,
    );
  }
  if (isGuestMode(vcpu)) throw new KvmError('CPUID_IN_L2', Errno.EINVAL, 'CPUID can not change while the vCPU runs L2');
  vcpu.cpuid = entries.map((e) => ({ ...e }));
  vcpu.cpuidPlaces.clear();
  vcpu.arch.cpuidSet = true;
  kvmVcpuAfterSetCpuid(vcpu);
}
