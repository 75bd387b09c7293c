/** Samples of where guest time goes: they tell engines apart, weigh what they say, and no guest notices them. */
import { describe, expect, it } from 'vitest';
import type { EngineName } from '../cpu/create.ts';
import { TestLayout, TestMachine } from '../testing/index.ts';
import { type Sample, startSampling } from './sampling.ts';

/** mov ecx, 100000 / l: add eax, ecx / xor edx, eax / dec ecx / jnz l / mov ecx, 1000 / m: cpuid, loop over EBX's copy / hlt */
const HOT = [0xb9, 0xa0, 0x86, 0x01, 0x00, 0x01, 0xc8, 0x31, 0xc2, 0xff, 0xc9, 0x75, 0xf8];
const HANDED_BACK = [0xbe, 0xe8, 0x03, 0x00, 0x00, 0x31, 0xc0, 0x0f, 0xa2, 0xff, 0xce, 0x75, 0xf8, 0xf4];
const TICKS = 1 + 4 * 100_000 + 1 + 4 * 1000 + 1;

function profiled(engine: EngineName, idle?: () => number) {
  const machine = new TestMachine({ engine });
  machine.load([...HOT, ...HANDED_BACK], 'long');
  const samples: Sample[] = [];
  const sampling = startSampling(machine.cpu, { onSample: (sample) => samples.push(sample), idle });
  expect(machine.go(10_000_000)).toBe('halt');
  sampling.stop();
  return { machine, samples, counts: sampling.counts };
}
const sum = (samples: readonly Sample[]): number => samples.reduce((total, { ticks }) => total + ticks, 0);

describe('samples', () => {
  it.each(['translate', 'interpret', 'evaluate'] as const)('%s: weights add up to all ticks', (engine) => {
    const { samples, counts, machine } = profiled(engine);
    expect(machine.cpu.tick).toBe(TICKS);
    expect(sum(samples)).toBe(TICKS);
    expect(counts.ticks).toBe(TICKS);
    expect(counts.samples).toBe(samples.length);
    expect(samples.every(({ mode, cpl }) => mode === 'long' && cpl === 0)).toBe(true);
  });

  it('a region is told from records and from what the processor executes', () => {
    const { samples, counts } = profiled('translate');
    const hot = samples.filter(({ place }) => place.region !== null);
    expect(sum(hot) / TICKS).toBeGreaterThan(0.9);
    const [{ place, linear }] = hot;
    expect(place.why).toBeNull();
    expect(linear - BigInt(place.at)).toBe(BigInt(TestLayout.code));
    expect([...place.region!.instructions]).toContainEqual([place.at, place.region!.instructions.get(place.at)]);
    expect(place.region!.entered()).toBeGreaterThan(0);
    expect(counts.translate!.regions).toBeGreaterThan(0);
    expect(counts.handedBack.get('cpuid')).toBe(1000);
    const cpuid = samples.filter(({ linear: at }) => at === BigInt(TestLayout.code + HOT.length + 7));
    for (const sample of cpuid) expect(sample.place.why).toBe('handed-back');
  });

  it('interpret has no regions, evaluate no generated code', () => {
    expect(profiled('interpret').samples.every(({ place }) => place.why === 'engine')).toBe(true);
    const { samples, counts } = profiled('evaluate');
    expect(samples.every(({ place }) => place.why === 'handed-back')).toBe(true);
    expect(counts.generated).toBe(0);
  });

  it('are the same in each run, and the guest ends as it does without', () => {
    const strip = ({ samples }: { samples: readonly Sample[] }) => samples.map(({ ticks, linear }) => [ticks, linear]);
    expect(strip(profiled('translate'))).toEqual(strip(profiled('translate')));
    const plain = new TestMachine({ engine: 'translate' });
    plain.load([...HOT, ...HANDED_BACK], 'long');
    plain.go(10_000_000);
    const { machine } = profiled('translate');
    expect([...machine.state.gpr]).toEqual([...plain.state.gpr]);
    expect(machine.cpu.tick).toBe(plain.cpu.tick);
    expect(machine.state.rflags).toBe(plain.state.rflags);
  });

  it('idle time has no weight', () => {
    let idle = 0;
    const { samples } = profiled('translate', () => (idle += 5));
    expect(sum(samples)).toBe(TICKS - (idle - 5)); // 5 had passed before
  });

  it('the processor has its own engine back afterwards, and regions count no more', () => {
    const machine = new TestMachine({ engine: 'translate' });
    const { engine } = machine.cpu;
    const sampling = startSampling(machine.cpu, { onSample: () => {} });
    expect(machine.cpu.engine).not.toBe(engine);
    sampling.stop();
    expect(machine.cpu.engine).toBe(engine);
  });

  it('host times come from the clock that is given', () => {
    const machine = new TestMachine({ engine: 'translate' });
    machine.load([...HOT, 0xf4], 'long');
    let now = 0;
    const sampling = startSampling(machine.cpu, { onSample: () => {}, clock: () => now++ });
    machine.go(10_000_000);
    sampling.stop();
    expect(sampling.counts.engineMilliseconds).toBeGreaterThan(0);
    const { milliseconds, handlers, regions } = sampling.counts.translate!;
    expect(milliseconds).toBeGreaterThanOrEqual(regions);
    expect(handlers).toBeGreaterThan(0);
    expect(milliseconds).toBeLessThan(sampling.counts.engineMilliseconds);
  });
});
