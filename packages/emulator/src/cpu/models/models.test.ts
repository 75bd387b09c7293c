/** The CPU models: what they announce, what they leave out, and what contradicts. */
import { describe, expect, test } from 'vitest';
import { modelCpuid } from '../cpuid.ts';
import { FEATURES, hasFeature } from '../features.ts';
import { NOT_IMPLEMENTED } from './gaps.ts';
import {
  CPU_MODELS,
  changeFeatures,
  checkFeatures,
  EPYC,
  FEATURE_NAMES,
  findFeature,
  modelFeatures,
  modelHas,
  QEMU64,
  REQUIRES,
  XEON,
} from './index.ts';

const CR4_FIXED1 = 0x489;
const none = { add: [], remove: [] };

describe.each(Object.values(CPU_MODELS))('$name', (model) => {
  test('announces nothing that the emulator lacks', () => {
    expect(modelFeatures(model).filter((name) => NOT_IMPLEMENTED[name] !== undefined)).toEqual([]);
  });
  test('its linear addresses have 57 bits with LA57, else 48', () => {
    for (const change of [{}, { add: ['la57'] }, { remove: ['la57'] }] as const) {
      const changed = changeFeatures(model, change);
      expect((changed.cpuid['80000008'][0] >>> 8) & 0xff).toBe(modelHas(changed, 'la57') ? 57 : 48);
    }
    expect((model.cpuid['80000008'][0] >>> 8) & 0xff).toBe(modelHas(model, 'la57') ? 57 : 48);
  });
  test('contradicts nothing', () => {
    expect(checkFeatures(model, none)).toEqual([]);
  });
  test('its registers of features hold no bit without a name', () => {
    const named = new Map<string, number>();
    for (const name of FEATURE_NAMES) {
      const { leaf, subleaf, reg, bit } = FEATURES[name];
      const key = `${leaf.toString(16)}.${subleaf}:${reg}`;
      named.set(key, (named.get(key) ?? 0) | (1 << bit));
    }
    const lookup = modelCpuid(model);
    for (const [key, mask] of named) {
      const [, leaf, subleaf, reg] = /^(\w+)\.(\d):(\d)$/.exec(key) as RegExpExecArray;
      const number = Number.parseInt(leaf, 16);
      if (number > (lookup(number >= 0x80000000 ? 0x80000000 : 0, 0)[0] ?? 0)) continue;
      const value = lookup(number, Number(subleaf))[Number(reg) as 0];
      const repeated = key === '80000001.0:3' && model.vendor === 'amd' ? 0x0183f3ff : 0;
      expect((value & ~mask & ~repeated) >>> 0, key).toBe(0);
    }
  });
});

describe('what the real processors have and tskvm lacks', () => {
  test('a Milan has shadow stacks and virtual GIF', () => {
    for (const name of ['cetShadowStack', 'vgif'] as const) expect(EPYC.lacks).toContain(name);
  });
  test('an Ice Lake has AVX-512 and SGX', () => {
    for (const name of ['avx512f', 'sgx'] as const) expect(XEON.lacks).toContain(name);
  });
  test('the plain one lacks nothing', () => {
    expect(QEMU64.lacks).toEqual([]);
  });
});

describe('changing a model', () => {
  test('AMD repeats the bits of leaf 1 EDX in leaf 80000001h', () => {
    const less = changeFeatures(EPYC, { remove: ['mtrr'] });
    expect((less.cpuid['80000001'][3] >>> 12) & 1).toBe(0);
    expect((EPYC.cpuid['80000001'][3] >>> 12) & 1).toBe(1);
  });
  test('a feature of a higher leaf raises the largest leaf', () => {
    const more = changeFeatures(QEMU64, { add: ['nullSelectorClearsBase'] });
    expect(more.cpuid['80000000'][0]).toBe(0x80000021);
    expect(hasFeature(modelCpuid(more), 'nullSelectorClearsBase')).toBe(true);
  });
  test('IA32_VMX_CR4_FIXED1 follows the features', () => {
    const less = changeFeatures(XEON, { remove: ['umip'] });
    expect(XEON.msrs.get(CR4_FIXED1)).toBe(less.msrs.get(CR4_FIXED1)! | (1n << 11n));
  });
  test('without VMX there are no VMX capability MSRs', () => {
    expect(changeFeatures(XEON, { remove: ['vmx'] }).msrs.has(0x480)).toBe(false);
  });
  test('the model itself stays as it is', () => {
    changeFeatures(EPYC, { remove: ['sha'] });
    expect(modelHas(EPYC, 'sha')).toBe(true);
  });
});

describe('contradictions', () => {
  test('a feature without what it needs', () => {
    expect(checkFeatures(QEMU64, { add: ['sse42'], remove: [] })).toContainEqual({
      code: 'needs',
      feature: 'sse42',
      others: ['sse41'],
    });
  });
  test('a feature taken from under others', () => {
    const [problem] = checkFeatures(EPYC, { add: [], remove: ['npt'] });
    expect(problem).toEqual({ code: 'vital', feature: 'npt', others: ['sev', 'sevEs'] });
  });
  test('added and taken away', () => {
    expect(checkFeatures(EPYC, { add: ['umip'], remove: ['umip'] })[0].code).toBe('twice');
  });
  test("the other vendor's", () => {
    expect(checkFeatures(EPYC, { add: ['vmx'], remove: [] })[0]).toMatchObject({ code: 'vendor', reason: 'intel' });
  });
  test('without an FPU KVM refuses to load', () => {
    expect(checkFeatures(EPYC, { add: [], remove: ['fpu'] })[0].code).toBe('vital');
  });
});

describe('names', () => {
  test.each([
    ['SSE4.2', 'sse42'],
    ['sse4_1', 'sse41'],
    ['pni', 'sse3'],
    ['cmpxchg16b', 'cx16'],
    ['tsc-deadline', 'tscDeadline'],
    ['lahf_lm', 'lahf64'],
    ['nrip-save', 'nripSave'],
    ['3dnowprefetch', 'prefetchw'],
  ])('%s is %s', (spelling, name) => {
    expect(findFeature(spelling)).toBe(name);
  });
  test('needs name features that exist', () => {
    for (const needs of Object.values(REQUIRES)) for (const name of needs) expect(FEATURES[name]).toBeDefined();
  });
});
