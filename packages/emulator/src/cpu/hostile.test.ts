import { describe, expect, it } from 'vitest';
import { NotImplementedError } from '../exceptions.ts';
import { CR0, CR4, EFER } from '../state-layout.ts';
import { TestMachine, type TestMode } from '../testing/index.ts';

/** A reproducible stream of 32-bit numbers (xorshift). */
function stream(seed: number): () => number {
  let x = seed * 2654435761 + 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

/** Fills low memory, tables included, and the registers with noise, then runs. The answer is a reason, never a throw. */
function runNoise(mode: TestMode, seed: number, keepTables: boolean): string {
  const next = stream(seed);
  const machine = new TestMachine({
    size: 0x100000,
    vendor: seed & 1 ? 'intel' : 'amd',
    engine: seed & 32 ? 'interpret' : 'evaluate',
  });
  machine.load([0xf4], mode);
  const from = keepTables ? 0x10000 : 0;
  for (let at = from; at < 0x30000; at += 4) machine.memory.write32(at, next());
  for (let n = 0; n < 16; n++)
    machine.state.gpr[n] = (BigInt(next()) << 32n) | BigInt(next() & (seed & 2 ? 0x3ffff : -1));
  if (mode === 'prot32' && seed & 4) {
    machine.state.cr3 = BigInt(next() & 0xfffff);
    machine.state.cr4 = seed & 8 ? CR4.PAE : CR4.PSE;
    machine.state.cr0 |= CR0.PG;
    machine.state.efer = seed & 16 ? EFER.NXE : 0n;
    machine.cpu.stateReplaced('test');
  }
  try {
    return machine.go(300);
  } catch (error) {
    if (error instanceof NotImplementedError) return 'not-implemented';
    throw error;
  }
}

describe('no guest makes the processor throw, hang or write outside memory', () => {
  const stops = ['halt', 'deadline', 'shutdown', 'not-implemented'];
  it.each(['real', 'prot32', 'long'] as const)('random code in %s mode', (mode) => {
    for (let seed = 1; seed <= 40; seed++) expect(stops, `seed ${seed}`).toContain(runNoise(mode, seed, true));
  });
  it.each(['real', 'prot32', 'long'] as const)('random code and random tables in %s mode', (mode) => {
    for (let seed = 1; seed <= 40; seed++) expect(stops, `seed ${seed}`).toContain(runNoise(mode, seed, false));
  });
});
