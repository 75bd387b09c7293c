/**
 * Both engines on the whole processor: random code with tables, faults, handlers, interrupts and slices of random length must end in
 * the same state, memory and tick.
 */
import { describe, expect, it } from 'vitest';
import { AT_ONCE, type FormOptions } from '../engines/interpret/cold-forms.ts';
import { NotImplementedError } from '../exceptions.ts';
import { S } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMode } from '../testing/index.ts';
import type { EngineName } from './create.ts';

const CODE = 0x10000;
const CODE_BYTES = 0x800;

function stream(seed: number): () => number {
  let x = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

/** One-byte opcodes that random code is made of mostly: arithmetic, moves, stack, branches, strings, flags. */
const COMMON = [
  ...[0x01, 0x03, 0x09, 0x0b, 0x11, 0x19, 0x21, 0x29, 0x2b, 0x31, 0x33, 0x39, 0x3b, 0x85, 0x87, 0x88, 0x89, 0x8a, 0x8b],
  ...[0x50, 0x51, 0x53, 0x56, 0x58, 0x5b, 0x5f, 0x72, 0x74, 0x75, 0x7c, 0x80, 0x83, 0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xc0],
  ...[0xc1, 0xd1, 0xd3, 0xf7, 0xff, 0xeb, 0x8d, 0xb8, 0xfa, 0xfb, 0xfc, 0xfd, 0x9c, 0x9d, 0xcd, 0xf3, 0x66, 0x0f, 0x48],
];

function prepare(engine: EngineName, mode: TestMode, seed: number, forms?: FormOptions): TestMachine {
  const next = stream(seed);
  let left = 6;
  const bus = {
    pioIn: () => 0x5a,
    pioOut: () => {},
    read: () => 0x1122334455667788n,
    write: () => {},
    acknowledgeInterrupt: () => (left-- > 0 ? 0x40 : -1),
  };
  const machine = new TestMachine({ engine, forms, size: 0x100000, vendor: seed & 1 ? 'intel' : 'amd', bus });
  machine.load([0xf4], mode);
  for (let at = CODE; at < CODE + CODE_BYTES; at++) {
    machine.memory.write8(at, next() & 3 ? COMMON[next() % COMMON.length] : next() & 0xff);
  }
  // Every handler sits behind the code: it steps over two bytes of what it interrupted, so that faults do not repeat.
  for (let vector = 0; vector < 0x60; vector++) machine.setHandler(vector, handlerOf(vector), mode);
  writeHandlers(machine, mode);
  for (let n = 0; n < 16; n++) machine.state.gpr[n] = BigInt(next() & 1 ? CODE + (next() & 0xfff) : next() & 0xff);
  if (mode === 'long' && seed & 2) randomPages(machine, next);
  machine.state.gpr[4] = BigInt(mode === 'real' ? 0x8000 : TestLayout.stack + 0x40000);
  return machine;
}

/** 4 KiB pages over the first 2 MiB; those of a data window are absent, read-only, no-execute or already used at random. */
function randomPages(machine: TestMachine, next: () => number): void {
  const table = 0x6000;
  for (let page = 0; page < 512; page++) {
    const inWindow = page >= 0x30 && page < 0x40;
    const rights = inWindow ? (next() & 0x63) | (next() & 1) : 3;
    const nx = inWindow && next() & 1 ? 1n << 63n : 0n;
    machine.memory.write64(table + page * 8, BigInt(page << 12) | BigInt(rights) | nx);
  }
  machine.memory.write64(TestLayout.pageTables + 0x2000, BigInt(table) | 7n);
  for (let n = 0; n < 16; n++) machine.state.gpr[n] = BigInt(0x30000 + (next() & 0xffff));
}

const ERROR_CODES = new Set([8, 10, 11, 12, 13, 14, 17]);
const PLAIN = 0x20000;
const WITH_CODE = 0x20100;
const handlerOf = (vector: number): number => (ERROR_CODES.has(vector) ? WITH_CODE : PLAIN);

function writeHandlers(machine: TestMachine, mode: TestMode): void {
  const put = (at: number, bytes: number[]): void => machine.memory.writeBytes(at, Uint8Array.from(bytes));
  if (mode === 'real') {
    // push bp; mov bp, sp; add word [bp+2], 2; pop bp; iret
    for (const at of [PLAIN, WITH_CODE]) put(at, [0x55, 0x89, 0xe5, 0x83, 0x46, 2, 2, 0x5d, 0xcf]);
  } else if (mode === 'prot32') {
    // add dword [esp], 2; iret, after dropping the error code
    put(PLAIN, [0x83, 0x04, 0x24, 2, 0xcf]);
    put(WITH_CODE, [0x83, 0xc4, 4, 0x83, 0x04, 0x24, 2, 0xcf]);
  } else {
    put(PLAIN, [0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf]);
    put(WITH_CODE, [0x48, 0x83, 0xc4, 8, 0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf]);
  }
}

/** Runs in slices, kicks interrupts between them; says how it ended. */
function runSliced(machine: TestMachine, seed: number): string {
  const next = stream(seed + 1000);
  let stop = 'deadline';
  try {
    for (let slice = 0; slice < 12 && stop === 'deadline'; slice++) {
      if ((next() & 3) === 0) machine.cpu.interruptPending = true;
      if ((next() & 15) === 0) machine.cpu.nmiPending = true;
      stop = machine.go(1 + (next() % 60));
    }
  } catch (error) {
    if (!(error instanceof NotImplementedError)) throw error;
    stop = 'not-implemented';
  }
  return stop;
}

/** State that instructions can see: without what engines keep for themselves. */
function visible(machine: TestMachine): Record<string, string> {
  const { u8 } = machine.state;
  const hex = (from: number, to: number): string => Buffer.from(u8.slice(from, to)).toString('hex');
  const shown: Record<string, string> = {};
  for (let n = 0; n < 16; n++) shown[`r${n}`] = machine.reg(n).toString(16);
  shown.rip = machine.state.rip.toString(16);
  shown.rflags = machine.state.rflags.toString(16);
  shown.segments = hex(S.segments, S.segments + 160);
  shown.system = hex(S.efer, S.derived);
  shown.tick = String(machine.cpu.tick);
  return shown;
}

/** Handlers for all that is decoded, or after a few runs by evaluate, some at a time. */
const FORMS: Record<string, FormOptions> = {
  'at once': AT_ONCE,
  'by and by': { usual: false, runs: 2, gather: 3, ticksEach: 5, burst: 20 },
};
const ENGINES = (['interpret', 'translate'] as const).flatMap((engine) =>
  Object.keys(FORMS).map((forms) => [engine, forms] as const),
);

describe.each(['real', 'prot32', 'long'] as const)('the engines agree in %s mode', (mode) => {
  it.each(ENGINES)('%s, handlers %s, on random code with handlers, interrupts and random slices', (engine, forms) => {
    for (let seed = 1; seed <= 25; seed++) {
      const reference = prepare('evaluate', mode, seed);
      const tested = prepare(engine, mode, seed, FORMS[forms]);
      const expected = runSliced(reference, seed);
      expect([seed, runSliced(tested, seed)]).toEqual([seed, expected]);
      expect({ seed, ...visible(tested) }).toEqual({ seed, ...visible(reference) });
      const same = Buffer.compare(
        reference.memory.readBytes(0, reference.memory.size),
        tested.memory.readBytes(0, tested.memory.size),
      );
      expect([seed, same]).toEqual([seed, 0]);
    }
  });
});

/** CS.D outlives CR0.PE until CS is loaded: a 32-bit far jump behind the MOV that clears PE (APM vol. 2 4.7.2). */
it.each(['evaluate', 'interpret', 'translate'] as const)(
  'mov cr0 (PE off) in 32-bit code, then jmp 0:12000h as 32-bit code, on %s',
  (engine) => {
    const machine = prepare(engine, 'prot32', 1);
    // mov eax, 10h; mov cr0, eax; jmp far 0000:00012000h
    const code = [0xb8, 0x10, 0, 0, 0, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x20, 0x01, 0x00, 0x00, 0x00];
    machine.memory.writeBytes(0x12000, Uint8Array.of(0xf4));
    machine.load(code, 'prot32', CODE);
    expect(machine.go(100)).toBe('halt');
    expect(machine.state.rip).toBe(0x12001n);
  },
);
