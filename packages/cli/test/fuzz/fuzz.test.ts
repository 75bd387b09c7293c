/**
 * Made-up programs inside guests under each backend, with PIC, PIT and local APIC, interrupts, NMIs and SMIs at any exit, and small budgets:
 * evaluate, interpret and translate agree on exits, ticks, registers and memory, and nothing that a host looks at or writes back as it was
 * changes any of it. Long runs: `pnpm test:fuzz`.
 */
import { describe, expect, it } from 'vitest';
import { MODES } from '../../../emulator/test/fuzz/layout.ts';
import { runGuestSeed } from './compare-guests.ts';
import { BACKEND_NAMES } from './guest.ts';
import { TABLE_MODES } from './table-pieces.ts';

/** Each backend meets every second mode. */
describe.each(BACKEND_NAMES.map((name, n) => ({ name, n })))('engines agree inside guests, $name', ({ name, n }) => {
  const modes = MODES.filter((_, at) => at % 2 === n % 2);
  it.each(modes)('%s', async (mode) => {
    const { difference, ticks, reasons } = await runGuestSeed(9_000_000 + n, mode, name);
    expect(difference).toBeNull();
    expect(ticks).toBeGreaterThan(50);
    expect(reasons.length).toBeGreaterThan(1);
  });
});

/** What the manuals leave open, how long a TLB keeps what a table no longer says, is the same everywhere, and wherever a run is interrupted. */
describe.each(BACKEND_NAMES.map((name, n) => ({ name, n })))('stale entries are the same, $name', ({ name, n }) => {
  it.each(TABLE_MODES)('%s', async (mode) => {
    const { difference, ticks } = await runGuestSeed(9_000_010 + n, mode, name, true);
    expect(difference).toBeNull();
    expect(ticks).toBeGreaterThan(50);
  });
});
