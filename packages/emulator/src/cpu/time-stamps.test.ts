/** RDTSC, RDTSCP and PAUSE in generated code: each engine reads the same time at each instruction, whoever owns the guest. */
import { describe, expect, it } from 'vitest';
import type { DirectExits, GuestMode } from '../guest-mode.ts';
import { INTERCEPT_ID, INTERCEPTS, type Intercept } from '../intercepts.ts';
import { CR4, S, Seg } from '../state-layout.ts';
import { TestMachine, type TestMode, TestSelector } from '../testing/index.ts';

const RDTSC = [0x0f, 0x31];
const RDTSCP = [0x0f, 0x01, 0xf9];
const PAUSE = [0xf3, 0x90];
const WRMSR = [0x0f, 0x30];
/** xor edi, eax; rol edi, 1; xor edi, edx: a sum of all that was read. */
const ADD_UP = [0x31, 0xc7, 0xd1, 0xc7, 0x31, 0xd7];
const ENGINES = ['evaluate', 'interpret', 'translate'] as const;

/** Owns a guest of which nothing leaves but what is wanted; PAUSE never does. */
function owner(wanted: readonly Intercept[], tscOffset: bigint, exits: string[]): GuestMode {
  const verdicts = new Uint8Array(INTERCEPTS.length);
  for (const name of wanted) verdicts[INTERCEPT_ID[name]] = 1;
  const leave = (id: number): void => void exits.push(INTERCEPTS[id]);
  const no = (): boolean => false;
  return {
    direct: { verdicts, leave, movCr: no, msr: no, port: no } satisfies DirectExits,
    ...{ asid: 1, nestedRoot: 0, tscOffset, interruptsExit: true, boundaryWork: false, deadline: Infinity },
    intercept: ({ intercept }) => wanted.includes(intercept) && exits.push(intercept) > 0,
    ...{ interceptIo: no, interceptMsr: no, interceptException: no, interceptTaskSwitch: no, interceptSipi: no },
    interceptShutdown: () => exits.push('shutdown') > 0,
    ...{ interceptInterrupt: no, interceptNmi: no, interceptSmi: no, interceptInit: no },
    boundary: () => 'none' as const,
    translate: (gpa) => ({ hpa: gpa - (gpa % 4096), writable: true, executable: true, shift: 12 }),
    ...{ readCr: () => undefined, writeCr: () => undefined, crWritten: no, crIllegal: no },
  };
}

interface Case {
  body: readonly number[];
  tsd?: boolean;
  guest?: readonly Intercept[];
}
function run(engine: (typeof ENGINES)[number], mode: TestMode, { body, tsd, guest }: Case, budget: number) {
  const machine = new TestMachine({ engine });
  const { state, cpu } = machine;
  const turn = [...body, ...ADD_UP, 0xff, 0xcb];
  machine.load([...turn, 0x75, -(turn.length + 2) & 0xff, 0xf4], mode);
  if (tsd) state.cr4 |= CR4.TSD;
  cpu.tscAdjust = 0x0123_4567_89ab_cdefn;
  state.block.setUint32(S.tscAux, 77, true);
  state.block.setInt32(S.pauses, -1, true);
  const exits: string[] = [];
  if (guest) cpu.guest = owner([...guest, 'hlt'], 0xfff0_0000_0000_0001n, exits);
  cpu.stateReplaced('test');
  state.gpr[3] = 200n;
  state.gpr[7] = 0n;
  let stop = machine.go(budget);
  while (stop === 'deadline') stop = machine.go(budget);
  const { rip, gpr } = state;
  return { stop, exits, tick: cpu.tick, rip, gpr: [...gpr] };
}

const CASES: Readonly<Record<string, Case>> = {
  rdtsc: { body: RDTSC },
  'rdtscp and pause': { body: [...PAUSE, ...RDTSCP, ...PAUSE] },
  'rdtsc with CR4.TSD': { body: RDTSC, tsd: true },
  'rdtsc behind a WRMSR of the TSC': { body: [...RDTSC, 0xb9, 0x10, 0, 0, 0, 0xc1, 0xe0, 0x03, ...WRMSR, ...RDTSC] },
  'rdtsc and rdtscp in a guest': { body: [...RDTSC, ...ADD_UP, ...RDTSCP], guest: [] },
  'rdtsc in a guest whose RDTSCP leaves': { body: RDTSC, guest: ['rdtscp'] },
  'rdtscp in a guest whose RDTSCP leaves': { body: RDTSCP, guest: ['rdtscp'] },
};

describe.each(['real', 'prot32', 'long'] as const)('%s', (mode) => {
  it.each(Object.entries(CASES))('%s', (_name, what) => {
    const expected = run('evaluate', mode, what, 100_000);
    expect(expected.stop).toBe(what.guest === undefined ? 'halt' : 'guest-exit');
    expect(expected.exits).toEqual(what.guest === undefined ? [] : [what.body === RDTSCP ? 'rdtscp' : 'hlt']);
    for (const engine of ENGINES) {
      for (const budget of [100_000, 997, 61, 3]) expect(run(engine, mode, what, budget), engine).toEqual(expected);
    }
  });
});

/** User code that reads the time 200 times and then halts, which user code may not: [instruction at fault, turns left, EAX]. */
function readInUserMode(machine: TestMachine, tsd: boolean): [number, bigint, bigint] {
  const { state, memory, cpu } = machine;
  machine.load([...RDTSC, 0x4b, 0x75, 0xfb, 0xf4], 'prot32');
  machine.setSegment(Seg.CS, TestSelector.userCode32, 0xcfb, 0xffffffff);
  machine.setSegment(Seg.SS, TestSelector.userData, 0xcf3, 0xffffffff);
  if (tsd) state.cr4 |= CR4.TSD;
  else state.cr4 &= ~CR4.TSD;
  state.cpl = 3;
  state.activity = 0;
  state.gpr[0] = 0xffff_1234n;
  state.gpr[3] = 200n;
  cpu.stateReplaced('test');
  expect(machine.go()).toBe('halt');
  expect(state.rip).toBe(0x2_0101n);
  return [memory.read32(Number(state.gpr[4]) + 4), state.gpr[3], state.gpr[0]];
}

it.each(ENGINES)('%s: CR4.TSD keeps the time from user code', (engine) => {
  const machine = new TestMachine({ engine });
  machine.setHandler(13, 0x2_0100, 'prot32');
  machine.memory.writeBytes(0x2_0100, Uint8Array.of(0xf4));
  expect(readInUserMode(machine, true)).toEqual([0x1_0000, 200n, 0xffff_1234n]);
  const [at, left, low] = readInUserMode(machine, false);
  expect([at, left]).toEqual([0x1_0005, 0n]);
  expect(low).not.toBe(0xffff_1234n);
  // What was generated meanwhile looks again.
  expect(readInUserMode(machine, true)).toEqual([0x1_0000, 200n, 0xffff_1234n]);
});
