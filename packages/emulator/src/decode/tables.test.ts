/** The row tables hold together: with the list of mnemonics, with KVM's subset, with the semantics, with the CPU models. */
import { describe, expect, it } from 'vitest';
import { modelCpuid } from '../cpu/cpuid.ts';
import { FEATURES, featureSet } from '../cpu/features.ts';
import { CPU_MODELS } from '../cpu/models/index.ts';
import { INTERCEPTS } from '../intercepts.ts';
import { fpFunction } from '../semantics/fp/index.ts';
import { SEMANTICS } from '../semantics/index.ts';
import { SYSTEM } from '../system/index.ts';
import { MNEMONICS } from './mnemonics.ts';
import { ALL_ROWS } from './tables/index.ts';
import { NOP_ROW } from './tables/one-byte.ts';

const everyRow = [...ALL_ROWS, NOP_ROW, ...ALL_ROWS.flatMap((row) => row.wide ?? [])];
const integerRows = everyRow.filter((row) => row.unit === 'integer');
const byMnemonic = (mnemonic: string) => everyRow.filter((row) => row.mnemonic === mnemonic);

it('the list of mnemonics has exactly the forms of the integer tables', () => {
  const forms = new Map<string, Set<string>>();
  for (const row of integerRows) {
    forms.set(row.mnemonic, (forms.get(row.mnemonic) ?? new Set()).add(row.operands.join(' ')));
  }
  const sorted = (entries: Iterable<readonly [string, Iterable<string>]>) =>
    [...entries].map(([name, list]) => `${name}: ${[...list].sort().join(', ')}`).sort();
  expect(sorted(forms)).toEqual(sorted(Object.entries(MNEMONICS)));
});

it('every row names features and intercepts that exist', () => {
  for (const row of everyRow) {
    if (row.feature !== undefined) expect(FEATURES).toHaveProperty(row.feature);
    expect(INTERCEPTS).toContain(row.intercept);
  }
});

it('conditional families have all sixteen conditions', () => {
  for (const [mnemonic, forms] of [
    ['jcc', 2],
    ['setcc', 1],
    ['cmovcc', 1],
  ] as const) {
    const conditions = byMnemonic(mnemonic).map((row) => row.condition);
    expect(conditions.sort((a, b) => a! - b!)).toEqual(
      Array.from({ length: 16 * forms }, (_, i) => Math.floor(i / forms)),
    );
  }
});

describe('what KVM knows of an instruction', () => {
  it.each([
    'popcnt',
    'lar',
    'lsl',
    'verr',
    'verw',
    'bound',
    'arpl',
    'aaa',
    'daa',
    'wait',
    'xgetbv',
    'sysret',
    'swapgs',
    'addps',
    'fadd',
  ])('%s is not in its emulator', (mnemonic) => {
    expect(byMnemonic(mnemonic).some((row) => row.kvm)).toBe(false);
  });
  it.each([
    'mov',
    'das',
    'enter',
    'iret',
    'movcr',
    'fxsave',
    'movaps',
    'movdqu',
    'movntps',
    'fnstcw',
    'fninit',
    'rsm',
    'movbe',
  ])('%s is', (mnemonic) => {
    expect(byMnemonic(mnemonic).some((row) => row.kvm)).toBe(true);
  });
  it('only calls, returns of system calls, CPUID, RSM, MOVBE and RDPID are emulated on #UD', () => {
    const names = new Set(everyRow.filter((row) => row.emulateOnUD).map((row) => row.mnemonic));
    expect([...names].sort()).toEqual([
      'cpuid',
      'movbe',
      'rdpid',
      'rsm',
      'syscall',
      'sysenter',
      'sysexit',
      'vmcall',
      'vmmcall',
    ]);
  });
});

it('intercept stages are those of KVM for what it checks', () => {
  const stages = new Map(everyRow.map((row) => [row.intercept, row.interceptStage]));
  for (const early of ['cpuid', 'rsm', 'pause', 'pushf', 'popf', 'intn', 'iret', 'icebp', 'xsetbv'] as const) {
    expect(stages.get(early)).toBe('preExcept');
  }
  for (const late of ['crRead', 'crWrite', 'hlt', 'in', 'outs', 'rdmsr', 'invlpg', 'vmrun', 'lgdt'] as const) {
    expect(stages.get(late)).toBe('postExcept');
  }
  expect(stages.get('monitor')).toBe('postMemAccess');
});

describe.each(Object.values(CPU_MODELS).map((model) => [model.name, model] as const))(
  'the CPU model %s',
  (_, model) => {
    const features = featureSet(modelCpuid(model));
    it('announces no feature whose instructions are not written', () => {
      const missing = everyRow
        .filter((row) => row.feature !== undefined && features.has(row.feature as never))
        .filter((row) => !(row.mnemonic in SEMANTICS) && !(row.mnemonic in SYSTEM) && fpFunction(row) === undefined)
        .map((row) => row.mnemonic);
      expect([...new Set(missing)]).toEqual([]);
    });
    it('has what long mode needs and none of what is to come', () => {
      for (const name of ['fpu', 'pae', 'cx8', 'msr', 'fxsr', 'sse2', 'lm', 'nx', 'syscall'] as const)
        expect(features.has(name)).toBe(true);
      for (const name of ['avx512f', 'rtm', 'sgx', 'waitpkg', 'cetShadowStack'] as const) {
        expect(features.has(name)).toBe(false);
      }
    });
  },
);

describe('VMX capability MSRs of the Xeon model', () => {
  const msr = (index: number): bigint => CPU_MODELS.xeon.msrs.get(index)!;
  const zero = (index: number): number => Number(msr(index) & 0xffffffffn);
  const one = (index: number): number => Number(msr(index) >> 32n);
  it('report the default-1 settings where no TRUE MSR is asked', () => {
    expect([0x481, 0x482, 0x483, 0x484].map(zero)).toEqual([0x16, 0x401e172, 0x36dff, 0x11ff]);
  });
  it('allow every bit that they demand', () => {
    for (const index of [0x481, 0x482, 0x483, 0x484, 0x48b, 0x48d, 0x48e, 0x48f, 0x490]) {
      expect(zero(index) & ~one(index)).toBe(0);
    }
  });
  it('TRUE MSRs demand no more and allow the same', () => {
    for (const [plain, exact] of [
      [0x481, 0x48d],
      [0x482, 0x48e],
      [0x483, 0x48f],
      [0x484, 0x490],
    ]) {
      expect(zero(exact) & ~zero(plain)).toBe(0);
      expect(one(exact)).toBe(one(plain));
    }
  });
  it('offer EPT, VPID and unrestricted guest', () => {
    expect(one(0x48b) & 0xa2).toBe(0xa2);
  });
});

describe('SVM features of the EPYC model', () => {
  const features = featureSet(modelCpuid(CPU_MODELS.epyc));
  it.each(['svm', 'npt', 'nripSave', 'vmcbClean', 'flushByAsid', 'decodeAssists', 'pauseFilter', 'sevEs'] as const)(
    'has %s',
    (name) => {
      expect(features.has(name)).toBe(true);
    },
  );
  it('has ASIDs', () => {
    expect(CPU_MODELS.epyc.cpuid['8000000a'][1]).toBeGreaterThan(1);
  });
});
