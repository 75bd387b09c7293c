/**
 * What a wish for a processor means: `MODEL,+feature,-feature` as data, names however they are spelt, and what contradicts.
 * Names: CPUID's in the manuals, Linux's in /proc/cpuinfo and QEMU's are understood.
 */
import type { CpuModel } from '../../cpu-model-types.ts';
import type { FeatureName } from '../features.ts';
import { FEATURE_NAMES, NOT_IMPLEMENTED, REQUIRES, VENDOR_ONLY } from './gaps.ts';
import { changeFeatures, modelHas } from './leaves.ts';

/** Other names of features, lower-case, without separators. */
const ALIASES: Readonly<Record<string, FeatureName>> = {
  pni: 'sse3',
  pclmul: 'pclmulqdq',
  clmul: 'pclmulqdq',
  cmpxchg8b: 'cx8',
  cmpxchg16b: 'cx16',
  shani: 'sha',
  lahflm: 'lahf64',
  abm: 'lzcnt',
  '3dnowprefetch': 'prefetchw',
  fxsropt: 'ffxsr',
  clfsh: 'clflush',
  clflushopt: 'clflushopt',
  svmnpt: 'npt',
  lbrv: 'lbrVirtualization',
  nrips: 'nripSave',
  tscscale: 'tscRateMsr',
  pfthreshold: 'pauseFilterThreshold',
  vvmsavevmload: 'virtualVmloadVmsave',
  spec: 'specCtrl',
  ibpb: 'amdIbpb',
  ibrs: 'amdIbrs',
  xgetbv1: 'xgetbvEcx1',
  shstk: 'cetShadowStack',
  ibt: 'cetBranchTracking',
  i64: 'lm',
  longmode: 'lm',
  xd: 'nx',
  arch: 'archCapabilities',
  cr8: 'cr8legacy',
  tscdeadlinetimer: 'tscDeadline',
  seves: 'sevEs',
  ospke: 'pku',
};
const plain = (name: string): string => name.toLowerCase().replace(/[-_.\s]/g, '');
const BY_PLAIN: ReadonlyMap<string, FeatureName> = new Map([
  ...Object.entries(ALIASES),
  ...FEATURE_NAMES.map((name): [string, FeatureName] => [plain(name), name]),
]);

/** The feature that a spelling means, or undefined. */
export const findFeature = (spelling: string): FeatureName | undefined => BY_PLAIN.get(plain(spelling));
/** Every spelling, for "did you mean". */
export const featureSpellings = (): string[] => [...FEATURE_NAMES];

/** A processor as somebody asks for it. */
export interface CpuChange {
  add: readonly FeatureName[];
  remove: readonly FeatureName[];
}

/** Why a set of features can't be. Codes: `twice`, `not-implemented`, `vendor`, `needs`, `vital`. */
export interface FeatureProblem {
  code: 'twice' | 'not-implemented' | 'vendor' | 'needs' | 'vital';
  feature: FeatureName;
  /** The features that are missing (`needs`), or that need this one (`needs` after a removal). */
  others?: readonly FeatureName[];
  reason?: string;
}

/** Without these no software of ours runs: KVM refuses a processor that lacks them. */
const VITAL: readonly FeatureName[] = ['fpu', 'fxsr', 'msr', 'tsc', 'cx8'];

const needsOf = (name: FeatureName): readonly FeatureName[] => REQUIRES[name] ?? [];

/** What a change to a model contradicts; empty: nothing. */
export function checkFeatures(model: CpuModel, change: CpuChange): FeatureProblem[] {
  const problems: FeatureProblem[] = [];
  for (const feature of change.add) {
    const reason = NOT_IMPLEMENTED[feature];
    const vendor = VENDOR_ONLY[feature];
    if (change.remove.includes(feature)) problems.push({ code: 'twice', feature });
    else if (reason !== undefined) problems.push({ code: 'not-implemented', feature, reason });
    else if (vendor !== undefined && vendor !== model.vendor)
      problems.push({ code: 'vendor', feature, reason: vendor });
  }
  for (const feature of change.remove) if (VITAL.includes(feature)) problems.push({ code: 'vital', feature });
  return problems.length > 0 ? problems : unmetNeeds(changeFeatures(model, change), change);
}

function unmetNeeds(changed: CpuModel, change: CpuChange): FeatureProblem[] {
  const lonely = FEATURE_NAMES.filter((name) => modelHas(changed, name)).flatMap((feature) => {
    const others = needsOf(feature).filter((need) => !modelHas(changed, need));
    return others.length === 0 ? [] : [{ code: 'needs' as const, feature, others }];
  });
  // A removal that pulls the ground from many is told once, with all that stand on it, however high.
  const pulled = change.remove.flatMap((feature) => {
    const others = standingOn(feature, changed);
    return others.length === 0 ? [] : [{ code: 'vital' as const, feature, others }];
  });
  return [...pulled, ...lonely.filter(({ others }) => !others.some((name) => change.remove.includes(name)))];
}

/** Features of a model that need this one, or one that does. */
function standingOn(feature: FeatureName, model: CpuModel): FeatureName[] {
  const gone = new Set([feature]);
  for (let before = 0; before < gone.size; ) {
    before = gone.size;
    for (const name of FEATURE_NAMES)
      if (modelHas(model, name) && needsOf(name).some((need) => gone.has(need))) gone.add(name);
  }
  return [...gone].filter((name) => name !== feature);
}
