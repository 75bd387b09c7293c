/**
 * Which processor a guest sees, and which one stands under the kernel: `MODEL,+feature,-feature`.
 *
 * The two differ. The processor under the kernel must have the backend's virtualisation; the guest's CPUID is what the machine sets by
 * KVM_SET_CPUID2 and may name another vendor. A model of the backend's vendor with virtualisation is both: what is taken from it is gone
 * from the silicon, too. Otherwise the backend's own model stays below, with the features that are asked for by name.
 */
import {
  type Backend,
  type CpuidEntry,
  cpuidEntriesHave,
  cpuidOfModel,
  getSupportedCpuid,
  type Kvm,
  nearest,
  resolveBackend,
} from '@tskvm/core';
import {
  CPU_MODELS,
  type CpuChange,
  type CpuModel,
  changeFeatures,
  checkFeatures,
  FEATURE_NAMES,
  FEATURES,
  type FeatureName,
  type FeatureProblem,
  featureSpellings,
  findFeature,
  modelHas,
  NOT_IMPLEMENTED,
  VENDOR_ONLY,
} from '@tskvm/emulator';
import { UsageError } from './errors.ts';

/** Names that stand for no model of their own: the backend's processor, and that with everything that can be had. */
export const SPECIAL_CPUS: Readonly<Record<string, string>> = {
  host: "the backend's processor, and all that KVM can pass on of it (default)",
  max: "the backend's processor with every feature that can be had",
};

/** What `--cpu` says. */
export interface CpuWish extends CpuChange {
  /** A name of CPU_MODELS or of SPECIAL_CPUS. */
  name: string;
}

const suggest = (wrong: string, names: readonly string[]): string => {
  const near = nearest(wrong, names);
  return near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '';
};

/** Parses `MODEL,+feature,-feature`. Throws UsageError UNKNOWN_CPU, UNKNOWN_FEATURE, BAD_CPU. */
export function parseCpu(text: string): CpuWish {
  const [name, ...changes] = text.split(',').map((part) => part.trim());
  const models = [...Object.keys(CPU_MODELS), ...Object.keys(SPECIAL_CPUS)];
  const known = models.find((model) => model === name.toLowerCase());
  if (known === undefined) {
    const hint = suggest(name, models) || '.';
    throw new UsageError(
      'UNKNOWN_CPU',
      `unknown CPU model ${name || '(none)'}${hint} Known: ${models.join(', ')} (tskvm cpus)`,
    );
  }
  const add: FeatureName[] = [];
  const remove: FeatureName[] = [];
  for (const change of changes) (change.startsWith('-') ? remove : add).push(parseChange(change));
  return { name: known, add, remove };
}

/** One spelling for all that mean the same. */
export function cpuName(text: string): string {
  const { name, add, remove } = parseCpu(text);
  return [name, ...[...add].sort().map((feature) => `+${feature}`), ...[...remove].sort().map((f) => `-${f}`)].join();
}

function parseChange(change: string): FeatureName {
  const spelling = change.slice(1);
  if (!/^[+-]./.test(change)) {
    throw new UsageError('BAD_CPU', `--cpu: "${change}" is no change; write +feature or -feature`);
  }
  const feature = findFeature(spelling);
  if (feature !== undefined) return feature;
  const hint = suggest(spelling, featureSpellings()) || '; tskvm cpus lists all';
  throw new UsageError('UNKNOWN_FEATURE', `unknown CPU feature ${spelling}${hint}`);
}

/** The two processors of a machine. */
export interface Processors {
  /** The model under the kernel. */
  host: CpuModel;
  /** The guest's CPUID, to be set on each vCPU. */
  guestCpuid(kvm: Kvm): CpuidEntry[];
}

/**
 * What a wish means under a backend.
 * Throws UsageError CPU_FEATURE for features that contradict each other, the model's vendor or the backend.
 */
export function chooseProcessors(wish: CpuWish | string, backend: Backend): Processors {
  const { name, add, remove } = typeof wish === 'string' ? parseCpu(wish) : wish;
  const below = resolveBackend(backend).model;
  if (below === undefined) {
    throw new UsageError('CPU_BACKEND', `backend ${backend.name} brings no CPU model: --cpu can't be used with it`);
  }
  const isSpecial = name in SPECIAL_CPUS;
  const base = isSpecial ? below : CPU_MODELS[name];
  const change = { add: name === 'max' ? [...everything(base, remove), ...add] : add, remove };
  refuse(checkFeatures(base, change), base);
  const model = changeFeatures(base, change);
  const isHost = isSpecial || (base.vendor === below.vendor && canHost(base, below));
  const host = isHost ? model : withNamed(below, add, backend);
  return {
    host,
    guestCpuid: (kvm) => {
      const entries = isSpecial ? getSupportedCpuid(kvm) : cpuidOfModel(kvm, model);
      return finish(entries, { add, remove }, kvm);
    },
  };
}

/** Does a model have the virtualisation that the backend's processor has. */
const canHost = (model: CpuModel, below: CpuModel): boolean =>
  (['svm', 'vmx'] as const).every((name) => modelHas(model, name) || !modelHas(below, name));

/** Every feature that the vendor's processors can have. */
const everything = (base: CpuModel, without: readonly FeatureName[]): FeatureName[] =>
  FEATURE_NAMES.filter(
    (name) =>
      NOT_IMPLEMENTED[name] === undefined &&
      name !== 'hypervisor' &&
      (VENDOR_ONLY[name] ?? base.vendor) === base.vendor &&
      !without.includes(name),
  );

/** The backend's model with the features that a guest of another model asks for by name. */
function withNamed(below: CpuModel, add: readonly FeatureName[], backend: Backend): CpuModel {
  for (const name of ['svm', 'vmx'] as const) {
    if (!add.includes(name) || VENDOR_ONLY[name] === below.vendor) continue;
    throw new UsageError(
      'CPU_FEATURE',
      `--cpu: ${name} can't be given to a guest of backend ${backend.name}, whose processor is ${below.name} (${below.vendor})`,
    );
  }
  const wanted = add.filter((name) => !modelHas(below, name) && (VENDOR_ONLY[name] ?? below.vendor) === below.vendor);
  return changeFeatures(below, { add: wanted.filter((name) => name !== 'hypervisor') });
}

const EXPLANATIONS: Readonly<Record<FeatureProblem['code'], (problem: FeatureProblem, model: CpuModel) => string>> = {
  twice: ({ feature }) => `${feature} is both added and taken away`,
  'not-implemented': ({ feature, reason }) => `${feature} is not implemented: ${reason}`,
  vendor: ({ feature, reason }, model) =>
    `${feature} exists on ${reason === 'amd' ? 'AMD' : 'Intel'} processors only, ${model.name} is ${model.vendor === 'amd' ? "AMD's" : "Intel's"}`,
  needs: ({ feature, others = [] }) =>
    `${feature} needs ${others.join(' and ')}: add ${others.map((name) => `+${name}`).join(',')}`,
  vital: ({ feature, others = [] }) =>
    others.length > 0
      ? `${others.join(', ')} ${others.length > 1 ? 'need' : 'needs'} ${feature}: add ${others.map((name) => `-${name}`).join(',')}`
      : `${feature} can't be taken away: KVM needs it`,
};

function refuse(problems: readonly FeatureProblem[], model: CpuModel): void {
  if (problems.length === 0) return;
  const [first] = problems;
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : '';
  throw new UsageError('CPU_FEATURE', `--cpu: ${EXPLANATIONS[first.code](first, model)}${more}`);
}

const REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;

/** Takes the removed features away, and refuses added ones that KVM did not pass on. */
function finish(entries: CpuidEntry[], change: CpuChange, kvm: Kvm): CpuidEntry[] {
  for (const name of change.remove) {
    const at = FEATURES[name];
    const found = entries.find((e) => e.function === at.leaf && e.index === at.subleaf);
    if (found) found[REGISTERS[at.reg]] = (found[REGISTERS[at.reg]] & ~(1 << at.bit)) >>> 0;
  }
  setLinearWidth(entries);
  const missing = change.add.filter((name) => !isHostsOwn(name) && !cpuidEntriesHave(entries, name));
  if (missing.length > 0) {
    throw new UsageError(
      'CPU_FEATURE',
      `--cpu: KVM can't give ${missing.join(', ')} to a guest of backend ${kvm.backend?.name} on ${kvm.model.name}`,
    );
  }
  return entries;
}
/** Leaf 80000008h EAX 15:8 follows LA57, and software believes it: Linux takes addresses beyond for wild ones. */
function setLinearWidth(entries: CpuidEntry[]): void {
  const sizes = entries.find((e) => e.function === 0x80000008);
  const bits = cpuidEntriesHave(entries, 'la57') ? 57 : 48;
  if (sizes) sizes.eax = ((sizes.eax & ~0xff00) | (bits << 8)) >>> 0;
}
/** Features of the processor below that KVM uses itself and shows to guests only with nested virtualisation. */
const isHostsOwn = (name: FeatureName): boolean =>
  FEATURES[name].leaf === 0x8000000a || FEATURES[name].leaf === 0x8000001f || name === 'svm' || name === 'vmx';
