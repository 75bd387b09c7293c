/**
 * CPUID, CR4, XCR0 and CR0 decide what exists: every row of the decode tables that names a feature is #UD on a processor that has all but this
 * one, and something else on one that has it; every row of a unit answers to the bits that switch the unit off.
 * Manual: APM vol. 3 appendix D, APM vol. 2 sections 3.1.1, 3.1.3 and 11.3, SDM vol. 1 section 13.3.
 */
import { describe, expect, it } from 'vitest';
import { type EngineName, installInterpreter } from '../../src/cpu/create.ts';
import type { FeatureName } from '../../src/cpu/features.ts';
import {
  changeFeatures,
  EPYC,
  FEATURE_NAMES,
  modelHas,
  NOT_IMPLEMENTED,
  REQUIRES,
  VENDOR_ONLY,
  XEON,
} from '../../src/cpu/models/index.ts';
import type { Processor } from '../../src/cpu/processor.ts';
import type { CpuModel } from '../../src/cpu-model-types.ts';
import type { TableRow } from '../../src/decode/rows.ts';
import { ALL_ROWS } from '../../src/decode/tables/index.ts';
import { NotImplementedError } from '../../src/exceptions.ts';
import { CR0, CR4, EFER, S, Seg, Vector } from '../../src/state-layout.ts';
import { TestMachine } from '../../src/testing/index.ts';
import { encodeRow } from './encode.ts';

const CODE = 0x10000;
const DATA = 0x20000;

/** A model with everything that its vendor's processors can have. */
const full = (base: CpuModel): CpuModel =>
  changeFeatures(base, {
    add: FEATURE_NAMES.filter(
      (name) => NOT_IMPLEMENTED[name] === undefined && (VENDOR_ONLY[name] ?? base.vendor) === base.vendor,
    ),
  });
const FULL = { amd: full(EPYC), intel: full(XEON) } as const;

/** A feature and all that need it, directly or not. */
function withDependents(name: FeatureName): FeatureName[] {
  const gone = new Set([name]);
  for (let before = 0; before !== gone.size; ) {
    before = gone.size;
    for (const [other, needs] of Object.entries(REQUIRES)) {
      if (needs.some((need) => gone.has(need))) gone.add(other as FeatureName);
    }
  }
  return [...gone];
}

/** Controls in which everything is switched on. */
interface Controls {
  cr0: bigint;
  cr4: bigint;
  xcr0: bigint;
}
const ON: Controls = {
  cr0: CR0.PE | CR0.ET | CR0.NE | CR0.MP,
  cr4: CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE | CR4.FSGSBASE,
  xcr0: 7n,
};

/** A processor in 64-bit mode (32-bit for rows that 64-bit code lacks), reused for many instructions. */
class Bench {
  readonly machine: TestMachine;
  readonly cpu: Processor;
  raised: number | 'none' | 'not implemented' = 'none';

  private constructor(machine: TestMachine, cpu: Processor) {
    this.machine = machine;
    this.cpu = cpu;
    const raise = cpu.events.raise.bind(cpu.events);
    cpu.events.raise = (vector, ...rest) => {
      this.raised = vector;
      return raise(vector, ...rest);
    };
  }
  static make(model: CpuModel, engine: EngineName): Bench {
    const machine = new TestMachine({ size: 0x100000, model });
    const { cpu } = machine;
    if (engine === 'interpret') installInterpreter(cpu);
    return new Bench(machine, cpu);
  }

  /** What an instruction raises: a vector, or 'none'. */
  run(row: TableRow, controls: Controls = ON, wide = false): number | 'none' | 'not implemented' {
    const { machine, cpu } = this;
    const { state } = machine;
    // AMD's SYSENTER is #UD in long mode whatever CPUID says.
    const mode = row.no64 || row.feature === 'sep' ? 'prot32' : 'long';
    const code = encodeRow(row, wide && mode === 'long');
    cpu.reset(false);
    machine.load([...code, 0xf4], mode, CODE);
    for (let vector = 0; vector < 32; vector++) machine.setHandler(vector, CODE + 0x800, mode);
    machine.memory.writeBytes(CODE + 0x800, Uint8Array.of(0xf4));
    state.cr0 = (state.cr0 & CR0.PG) | controls.cr0;
    state.cr4 = (state.cr4 & CR4.PAE) | controls.cr4;
    state.set64(S.xcr0, controls.xcr0);
    if (mode === 'long') state.efer = EFER.LME | EFER.LMA | EFER.NXE | EFER.SCE;
    state.gpr.fill(0n, 0, 4);
    state.gpr[3] = BigInt(DATA);
    state.gpr[6] = state.gpr[7] = BigInt(DATA);
    machine.memory.fill(DATA, 0x1000, 0);
    machine.setSegment(Seg.GS, 0x10, 0xc93, 0xffffffff);
    cpu.stateReplaced('test');
    this.raised = 'none';
    try {
      machine.go(4);
    } catch (error) {
      if (!(error instanceof NotImplementedError)) throw error;
      this.raised = 'not implemented';
    }
    return this.raised;
  }
}

const nameOf = (row: TableRow): string =>
  `${row.mnemonic} ${row.operands.join(',')} (${Buffer.from(encodeRow(row)).toString('hex')})`;
const forVendor = (row: TableRow, vendor: 'amd' | 'intel'): boolean => row.vendor === '' || row.vendor === vendor;

/** What stands at the encoding of a row without its feature is another instruction (BSF for TZCNT), a no-operation (PREFETCHW). */
const OTHERWISE = /^(tzcnt|lzcnt|prefetch|prefetchw|pause|endbr|rdpid|wbnoinvd)/;
/** #UD although the feature is there: outside VMX operation, without EFER.SVME, GETSEC, CR4.PKE …; those are looked at below or by their own tests. */
const ELSEWHERE = /^(vm|inv(ept|vpid|lpga)|stgi|clgi|skinit|rdpkru|wrpkru|rsm|monitor|mwait|clzero|getsec)/;

describe.each(['amd', 'intel'] as const)('a feature decides whether its instructions exist, %s', (vendor) => {
  const features = FEATURE_NAMES.filter((name) => modelHas(FULL[vendor], name)).filter((name) =>
    ALL_ROWS.some((row) => row.feature === name && forVendor(row, vendor)),
  );
  it('there is something to look at', () => {
    expect(features.length).toBeGreaterThan(30);
  });

  it.each(features)('%s', (name) => {
    const rows = ALL_ROWS.filter(
      (row) => row.feature === name && forVendor(row, vendor) && !OTHERWISE.test(row.mnemonic),
    );
    const remove = withDependents(name).filter((other) => modelHas(FULL[vendor], other));
    // Without SSE2 and what stands on it there is no 64-bit mode to speak of, but the machine is put there all the same.
    const without = changeFeatures(FULL[vendor], { remove: remove.filter((other) => other !== 'lm') });
    for (const engine of ['evaluate', 'interpret'] as const) {
      const bench = Bench.make(without, engine);
      const wrong = rows.filter((row) => bench.run(row) !== Vector.UD).map(nameOf);
      expect(wrong).toEqual([]);
    }
    const bench = Bench.make(FULL[vendor], 'evaluate');
    const missing = rows.filter((row) => !ELSEWHERE.test(row.mnemonic) && bench.run(row) === Vector.UD).map(nameOf);
    expect(missing).toEqual([]);
  });
});

/** Switches of a unit, and what its instructions raise. */
const SWITCHES: readonly (readonly [string, TableRow['unit'], Partial<Controls>, number])[] = [
  ['x87 with CR0.EM', 'x87', { cr0: ON.cr0 | CR0.EM }, Vector.NM],
  ['x87 with CR0.TS', 'x87', { cr0: ON.cr0 | CR0.TS }, Vector.NM],
  ['MMX with CR0.EM', 'mmx', { cr0: ON.cr0 | CR0.EM }, Vector.UD],
  ['MMX with CR0.TS', 'mmx', { cr0: ON.cr0 | CR0.TS }, Vector.NM],
  ['SSE with CR0.EM', 'sse', { cr0: ON.cr0 | CR0.EM }, Vector.UD],
  ['SSE with CR0.TS', 'sse', { cr0: ON.cr0 | CR0.TS }, Vector.NM],
  ['SSE without CR4.OSFXSR', 'sse', { cr4: ON.cr4 & ~CR4.OSFXSR }, Vector.UD],
  ['AVX with CR0.TS', 'avx', { cr0: ON.cr0 | CR0.TS }, Vector.NM],
  ['AVX without CR4.OSXSAVE', 'avx', { cr4: ON.cr4 & ~CR4.OSXSAVE }, Vector.UD],
  ['AVX without XCR0.AVX', 'avx', { xcr0: 3n }, Vector.UD],
  ['AVX without XCR0.SSE', 'avx', { xcr0: 1n }, Vector.UD],
];

describe.each(['evaluate', 'interpret'] as const)('control registers decide whether a unit exists, %s', (engine) => {
  it.each(SWITCHES)('%s', (_name, unit, change, vector) => {
    const bench = Bench.make(FULL.intel, engine);
    const rows = ALL_ROWS.filter(
      (row) =>
        row.unit === unit && forVendor(row, 'intel') && NOT_IMPLEMENTED[row.feature as FeatureName] === undefined,
    );
    const wrong = rows.filter((row) => bench.run(row, { ...ON, ...change }) !== vector);
    expect(wrong.map((row) => `${nameOf(row)}: ${bench.run(row, { ...ON, ...change })}`)).toEqual([]);
    expect(rows.length).toBeGreaterThan(50);
  });

  it.each([
    ['rdfsbase', CR4.FSGSBASE],
    ['wrgsbase', CR4.FSGSBASE],
    ['xgetbv', CR4.OSXSAVE],
    ['xsetbv', CR4.OSXSAVE],
    ['xsave', CR4.OSXSAVE],
    ['xrstor', CR4.OSXSAVE],
    ['xsaves', CR4.OSXSAVE],
    ['rdpkru', CR4.PKE],
  ])('%s without its bit in CR4 is #UD, with it it is not', (mnemonic, bit) => {
    const bench = Bench.make(FULL.intel, engine);
    const row = ALL_ROWS.find((r) => r.mnemonic === mnemonic)!;
    expect(bench.run(row, { ...ON, cr4: ON.cr4 & ~bit })).toBe(Vector.UD);
    expect(bench.run(row, { ...ON, cr4: ON.cr4 | bit })).not.toBe(Vector.UD);
  });
});

/** Bits of CR4 and the feature that each stands for. */
const CR4_FEATURES: readonly (readonly [keyof typeof CR4, FeatureName])[] = [
  ['VME', 'vme'],
  ['DE', 'de'],
  ['PSE', 'pse'],
  ['MCE', 'mce'],
  ['PGE', 'pge'],
  ['UMIP', 'umip'],
  ['FSGSBASE', 'fsgsbase'],
  ['PCIDE', 'pcid'],
  ['OSXSAVE', 'xsave'],
  ['SMEP', 'smep'],
  ['SMAP', 'smap'],
  ['PKE', 'pku'],
  ['PKS', 'pks'],
  ['LAM_SUP', 'lam'],
  ['VMXE', 'vmx'],
];

describe('MOV CR4 sets a bit only if its feature is there', () => {
  const MOV_CR4 = [0x0f, 0x22, 0xe0];
  const attempt = (model: CpuModel, bit: bigint): boolean => {
    const machine = new TestMachine({ size: 0x100000, model });
    machine.load([...MOV_CR4, 0xf4], 'long', CODE);
    machine.state.gpr[0] = machine.state.cr4 | bit;
    machine.go(1);
    return (machine.state.cr4 & bit) !== 0n;
  };
  it.each(CR4_FEATURES)('CR4.%s: %s', (bit, name) => {
    const model = FULL.intel;
    expect(attempt(model, CR4[bit])).toBe(true);
    const remove = withDependents(name).filter((other) => modelHas(model, other) && other !== 'lm' && other !== 'msr');
    expect(attempt(changeFeatures(model, { remove }), CR4[bit])).toBe(false);
  });
});
