/**
 * Made-up programs of all instruction families in all modes, with faults, page crossings, code that changes, interrupts and NMIs between any two
 * instructions: evaluate, interpret and translate agree. Long runs: `pnpm test:fuzz`.
 */
import { beforeAll, describe, expect, it } from 'vitest';
import { type FuzzMachine, fuzzMachine, runSeed } from './compare.ts';
import { MODES } from './layout.ts';

/** Programs of each mode on each vendor's processor. */
const PROGRAMS = 12;

describe.each(['amd', 'intel'] as const)('engines agree on made-up programs, %s', (vendor) => {
  let machines: FuzzMachine[];
  beforeAll(async () => {
    machines = [];
    for (const engine of ['evaluate', 'interpret', 'translate'] as const)
      machines.push(await fuzzMachine(engine, vendor));
  });

  it.each(MODES)('%s', (mode) => {
    let ticks = 0;
    for (let n = 0; n < PROGRAMS; n++) {
      const result = runSeed(machines, 7_000_000 + n, mode);
      expect(result.difference).toBeNull();
      ticks += result.ticks;
    }
    expect(ticks).toBeGreaterThan(PROGRAMS * 500);
  });
});
