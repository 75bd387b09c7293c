/** HPET: the counter, one-shot and periodic comparators, edge and level lines. */
import { describe, expect, it } from 'vitest';
import type { DeviceHost } from '../bus.ts';
import { Hpet } from './hpet.ts';

const CONFIGURATION = 0x10n;
const COUNTER = 0xf0;
const TIMER0 = 0x100;
const TIMER1 = 0x120;
const COMPARATOR = 8;
const LEVEL = 2n;
const ENABLED = 4n;
const PERIODIC = 8n;
const SETS_VALUE = 0x40n;
const LINE_20 = 20n << 9n;

function makeHpet() {
  let now = 0;
  let due: { time: number; callback: () => void } | undefined;
  const edges: [number, boolean, number][] = [];
  const host: DeviceHost = {
    setIrq: (line, level) => void edges.push([line, level, now]),
    now: () => now,
    callAt: (_key, time, callback) => {
      due = { time, callback };
    },
    readMemory: (_gpa, length) => new Uint8Array(length),
    writeMemory: () => {},
    requestReset: () => {},
    requestSmi: () => {},
  };
  const pass = (ns: number): void => {
    const end = now + ns;
    while (due && due.time <= end) {
      const { time, callback } = due;
      due = undefined;
      now = time;
      callback();
    }
    now = end;
  };
  const raised = (): number[] => edges.filter(([, level]) => level).map(([, , at]) => at);
  return { hpet: new Hpet(host), host, pass, edges, raised };
}
type Made = ReturnType<typeof makeHpet>;

const start = ({ hpet }: Made): void => hpet.write(Number(CONFIGURATION), 8, 1n);

describe('the main counter', () => {
  it('counts 10 ns each while enabled, stands while not, and may be read by halves', () => {
    const made = makeHpet();
    const { hpet, pass } = made;
    pass(100);
    expect(hpet.read(COUNTER, 8)).toBe(0n);
    start(made);
    pass(1230);
    expect(hpet.read(COUNTER, 8)).toBe(123n);
    hpet.write(Number(CONFIGURATION), 4, 0n);
    pass(1000);
    expect(hpet.read(COUNTER, 8)).toBe(123n);
    hpet.write(COUNTER, 8, 0x1_0000_0002n);
    expect(hpet.read(COUNTER, 4)).toBe(2n);
    expect(hpet.read(COUNTER + 4, 4)).toBe(1n);
  });
  it('says 10,000,000 fs, 64 bits and three timers', () => {
    const value = makeHpet().hpet.read(0, 8);
    expect(value >> 32n).toBe(10_000_000n);
    expect((value >> 13n) & 1n).toBe(1n);
    expect((value >> 8n) & 31n).toBe(2n);
  });
});

describe('timers', () => {
  it('one-shot: one edge when the counter meets the comparator', () => {
    const made = makeHpet();
    const { hpet, pass, edges } = made;
    hpet.write(TIMER0, 8, ENABLED | LINE_20);
    hpet.write(TIMER0 + COMPARATOR, 8, 500n);
    start(made);
    pass(4990);
    expect(edges).toEqual([]);
    pass(100_000);
    expect(edges).toEqual([
      [20, true, 5000],
      [20, false, 5000],
    ]);
  });
  it('periodic: Tn_VAL_SET_CNF sets the first, the next write the period', () => {
    const made = makeHpet();
    const { hpet, pass, raised } = made;
    hpet.write(TIMER1, 8, ENABLED | PERIODIC | SETS_VALUE | LINE_20);
    hpet.write(TIMER1 + COMPARATOR, 8, 30n);
    hpet.write(TIMER1 + COMPARATOR, 8, 100n);
    start(made);
    pass(3000);
    expect(raised()).toEqual([300, 1300, 2300]);
  });
  it('level: the line stays up until the status bit is written with 1', () => {
    const made = makeHpet();
    const { hpet, pass, edges } = made;
    hpet.write(TIMER0, 8, ENABLED | LEVEL | LINE_20);
    hpet.write(TIMER0 + COMPARATOR, 8, 10n);
    start(made);
    pass(1000);
    expect(edges).toEqual([[20, true, 100]]);
    expect(hpet.read(0x20, 8)).toBe(1n);
    hpet.write(0x20, 8, 1n);
    expect(edges[1]).toEqual([20, false, 1000]);
    expect(hpet.read(0x20, 8)).toBe(0n);
  });
  it('32-bit mode compares the low half alone', () => {
    const made = makeHpet();
    const { hpet, pass, raised } = made;
    hpet.write(COUNTER, 8, 0x1_0000_0000n);
    hpet.write(TIMER0, 8, ENABLED | (1n << 8n) | LINE_20);
    hpet.write(TIMER0 + COMPARATOR, 4, 50n);
    start(made);
    pass(1000);
    expect(raised()).toEqual([500]);
  });
  it('a timer that was switched off does not fire, and lines that do not exist are not raised', () => {
    const made = makeHpet();
    const { hpet, pass, edges } = made;
    hpet.write(TIMER0, 8, ENABLED | LINE_20);
    hpet.write(TIMER0 + COMPARATOR, 8, 50n);
    hpet.write(TIMER1, 8, ENABLED | (3n << 9n));
    hpet.write(TIMER1 + COMPARATOR, 8, 60n);
    start(made);
    hpet.write(TIMER0, 8, LINE_20);
    pass(10_000);
    expect(edges).toEqual([]);
  });
  it('goes on in a machine that loads its state', () => {
    const made = makeHpet();
    const { hpet, host, pass, raised } = made;
    hpet.write(TIMER0, 8, ENABLED | PERIODIC | SETS_VALUE | LINE_20);
    hpet.write(TIMER0 + COMPARATOR, 8, 40n);
    start(made);
    pass(200);
    const other = new Hpet(host);
    other.load(hpet.save());
    expect(other.save()).toEqual(hpet.save());
    pass(700);
    expect(raised()).toEqual([400, 800]);
    expect(other.read(COUNTER, 8)).toBe(90n);
  });
});
