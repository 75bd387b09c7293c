/**
 * How a CPU model is made: from the CPUID leaves of a real processor, less what the emulator does not have, and with the leaves that the
 * machine decides itself (topology, clocks, thermal) replaced.
 * Manual: APM vol. 3 appendix E, SDM vol. 2 CPUID.
 */
import type { CpuModel } from '../../cpu-model-types.ts';
import { FEATURES, type FeatureName, hasFeature } from '../features.ts';
import { FEATURE_NAMES, isImplemented, NOT_IMPLEMENTED } from './gaps.ts';

export type Leaf = readonly [number, number, number, number];
type Leaves = Readonly<Record<string, Leaf>>;

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

/** A processor as it was read, and what the machine decides itself. */
export interface RealProcessor {
  name: string;
  /** One line: which processor. */
  description: string;
  vendor: 'amd' | 'intel';
  maxphyaddr: number;
  /** Leaves as a real processor gave them; keys as in {@link CpuModel.cpuid}. */
  leaves: Leaves;
  /** Leaves that this machine decides: they stand as they are. */
  own: Leaves;
  /** Capability MSRs for the features that the processor has in the end. */
  capabilities(has: (feature: FeatureName) => boolean): ReadonlyMap<number, bigint>;
}

const REGISTERS = [0, 1, 2, 3] as const;
/** Bits of leaf 1 EDX that leaf 80000001h EDX repeats on AMD (APM vol. 3 appendix E.4.2). */
const REPEATED = 0x0183f3ff;
const LEAF_1 = '1';
const LEAF_AMD = '80000001';

const keyOf = (leaf: number, subleaf: number): string => `${leaf.toString(16)}.${subleaf.toString(16)}`;
/** Key under which a table holds a leaf: with its sub-leaf, or without. */
const heldKey = (leaves: Leaves, leaf: number, subleaf: number): string | undefined =>
  [keyOf(leaf, subleaf), leaf.toString(16)].find((key) => leaves[key] !== undefined);

/** Registers that announce features, as `key:register` → the implemented bits. */
function implementedMasks(): Map<string, number> {
  const masks = new Map<string, number>();
  for (const name of FEATURE_NAMES) {
    const { leaf, subleaf, reg, bit } = FEATURES[name];
    const own = isImplemented(name) ? 1 << bit : 0;
    for (const key of subleaf === 0 ? [keyOf(leaf, 0), leaf.toString(16)] : [keyOf(leaf, subleaf)]) {
      masks.set(`${key}:${reg}`, (masks.get(`${key}:${reg}`) ?? 0) | own);
    }
  }
  return masks;
}

/** The real leaves without the feature bits that the emulator lacks. */
function withoutGaps(real: RealProcessor): Record<string, Leaf> {
  const masks = implementedMasks();
  const out: Record<string, Leaf> = {};
  for (const [key, leaf] of Object.entries(real.leaves)) {
    const [eax, ebx, ecx, edx] = REGISTERS.map((reg) => (leaf[reg] & (masks.get(`${key}:${reg}`) ?? -1)) >>> 0);
    out[key] = [eax, ebx, ecx, edx];
  }
  return repeatBits(real.vendor, out);
}

/** AMD's copy of leaf 1 EDX. */
function repeatBits(vendor: CpuModel['vendor'], leaves: Record<string, Leaf>): Record<string, Leaf> {
  const extended = leaves[LEAF_AMD];
  const standard = leaves[LEAF_1];
  if (vendor !== 'amd' || extended === undefined || standard === undefined) return leaves;
  const [eax, ebx, ecx, edx] = extended;
  return { ...leaves, [LEAF_AMD]: [eax, ebx, ecx, ((edx & ~REPEATED) | (standard[3] & REPEATED)) >>> 0] };
}

const lookupOf =
  (leaves: Leaves) =>
  (leaf: number, subleaf: number): Leaf => {
    const key = heldKey(leaves, leaf, subleaf);
    return key === undefined ? [0, 0, 0, 0] : leaves[key];
  };
const hasIn =
  (leaves: Leaves) =>
  (name: FeatureName): boolean =>
    hasFeature(lookupOf(leaves), name);

/** Makes the model of a real processor. */
export function modelOf(real: RealProcessor): CpuModel {
  const cpuid = { ...withoutGaps(real), ...real.own };
  setLinearWidth(cpuid, hasIn(cpuid)('la57') ? 57 : 48);
  const announced = hasIn({ ...real.own, ...real.leaves });
  return {
    name: real.name,
    description: real.description,
    vendor: real.vendor,
    cpuid,
    msrs: real.capabilities(hasIn(cpuid)),
    maxphyaddr: real.maxphyaddr,
    capabilities: real.capabilities,
    lacks: (Object.keys(NOT_IMPLEMENTED) as FeatureName[]).filter((name) => name !== 'osxsave' && announced(name)),
  };
}

/** Is a feature announced by a model. */
export const modelHas = (model: CpuModel, name: FeatureName): boolean => hasIn(model.cpuid)(name);
/** All features of a model, in the order of FEATURES. */
export const modelFeatures = (model: CpuModel): FeatureName[] => FEATURE_NAMES.filter(hasIn(model.cpuid));

/** Sets or clears one feature's bit; leaves that are too short grow. */
function setFeature(leaves: Record<string, Leaf>, name: FeatureName, on: boolean): void {
  const { leaf, subleaf, reg, bit } = FEATURES[name];
  const key = heldKey(leaves, leaf, subleaf) ?? (subleaf === 0 ? leaf.toString(16) : keyOf(leaf, subleaf));
  const registers = [...(leaves[key] ?? [0, 0, 0, 0])] as [number, number, number, number];
  registers[reg] = (on ? registers[reg] | (1 << bit) : registers[reg] & ~(1 << bit)) >>> 0;
  leaves[key] = registers;
  if (on) reach(leaves, leaf, subleaf);
}

/** Raises the largest leaf of a range, and leaf 7's largest sub-leaf. */
function reach(leaves: Record<string, Leaf>, leaf: number, subleaf: number): void {
  const base = leaf >= 0x80000000 ? '80000000' : '0';
  const [maximum, ebx, ecx, edx] = leaves[base];
  if (leaf > maximum) leaves[base] = [leaf, ebx, ecx, edx];
  if (leaf !== 7 || subleaf === 0) return;
  const key = heldKey(leaves, 7, 0) ?? '7.0';
  const [eax, b, c, d] = leaves[key] ?? [0, 0, 0, 0];
  leaves[key] = [Math.max(eax, subleaf), b, c, d];
}

/** Linear address bits follow LA57 (leaf 80000008h, EAX 15:8). */
function setLinearWidth(leaves: Record<string, Leaf>, bits: number): void {
  const sizes = leaves['80000008'];
  if (sizes !== undefined)
    leaves['80000008'] = [((sizes[0] & ~0xff00) | (bits << 8)) >>> 0, sizes[1], sizes[2], sizes[3]];
}

/** The model with features added and removed; its capability MSRs follow. Nothing is checked here: see `checkFeatures`. */
export function changeFeatures(
  model: CpuModel,
  change: { add?: readonly FeatureName[]; remove?: readonly FeatureName[] },
): CpuModel {
  const leaves: Record<string, Leaf> = { ...model.cpuid };
  for (const name of change.add ?? []) setFeature(leaves, name, true);
  for (const name of change.remove ?? []) setFeature(leaves, name, false);
  const cpuid = repeatBits(model.vendor, leaves);
  setLinearWidth(cpuid, hasIn(cpuid)('la57') ? 57 : 48);
  return { ...model, cpuid, msrs: model.capabilities?.(hasIn(cpuid)) ?? model.msrs };
}
