import { describe, expect, it } from 'vitest';
import type { EngineName } from '../cpu/create.ts';
import { Flag } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMode } from '../testing/index.ts';

const CODE = 0x10000;
const RAM = 0x100000;
const ENGINES: readonly (EngineName | undefined)[] = [undefined, 'interpret', 'translate'];
const [RCX, RSI, RDI] = [1, 6, 7];

const le = (x: number, bytes: number): number[] => Array.from({ length: bytes }, (_, i) => (x >>> (8 * i)) & 255);

function stream(seed: number): () => number {
  let x = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

interface Move {
  mode: TestMode;
  /** Prefixes and opcode of the repeated instruction. */
  bytes: readonly number[];
  from: number;
  to: number;
  count: number;
  /** Turns of the loop around it. */
  turns: number;
}

/** mov bp, turns; L: mov eax, …; mov esi, from; mov edi, to; mov ecx, count; the instruction; add bx, cx; dec bp; jnz L; hlt */
function program({ mode, bytes, from, to, count, turns }: Move): number[] {
  const word = mode === 'real' ? 2 : 4;
  const body = [0xb8, ...le(0x9c01f3a5, word), 0xbe, ...le(from, word), 0xbf, ...le(to, word)];
  body.push(0xb9, ...le(count, word), ...bytes, 0x01, 0xcb, 0xff, 0xcd);
  const back = -(body.length + 2);
  return [0xbd, ...le(turns, word), ...body, 0x75, back & 255, 0xf4];
}

interface Bus {
  written: string[];
}
function machine(engine: EngineName | undefined, move: Move, prepare: (m: TestMachine) => void): [TestMachine, Bus] {
  const log: Bus = { written: [] };
  const bus = {
    pioIn: () => 0,
    pioOut: () => {},
    read: (at: number) => BigInt(at) * 3n,
    write: (at: number, size: number, value: bigint) => void log.written.push(`${at} ${size} ${value}`),
    acknowledgeInterrupt: () => -1,
  };
  const m = new TestMachine({ ...(engine === undefined ? {} : { engine }), size: RAM, bus });
  const next = stream(7);
  for (let at = 0x20000; at < 0x60000; at++) m.memory.write8(at, next() & 255);
  m.load(program(move), move.mode, CODE);
  prepare(m);
  m.cpu.stateReplaced('test');
  return [m, log];
}

/** The same slices on all engines; what can be seen must be equal after each. */
function compare(move: Move, slices: readonly number[], prepare: (m: TestMachine) => void = () => {}): TestMachine {
  const all = ENGINES.map((engine) => machine(engine, move, prepare));
  const [reference, log] = all[0]!;
  for (const ticks of slices) {
    const stops = all.map(([m]) => m.go(ticks));
    for (const [i, [m]] of all.entries()) {
      const state = (x: TestMachine) => [x.cpu.tick, x.state.rip, x.state.rflags, ...x.state.gpr].map(String);
      expect([stops[i], ...state(m)]).toEqual([stops[0], ...state(reference)]);
    }
    if (stops[0] !== 'deadline') break;
  }
  for (const [m, { written }] of all) {
    expect(Buffer.compare(m.memory.readBytes(0, RAM), reference.memory.readBytes(0, RAM))).toBe(0);
    expect(written).toEqual(log.written);
  }
  return reference;
}

const MOVSB = [0xf3, 0xa4];
const MOVSD = [0xf3, 0xa5];
const MOVSQ = [0xf3, 0x48, 0xa5];
const STOSD = [0xf3, 0xab];
const base: Move = { mode: 'long', bytes: MOVSQ, from: 0x20010, to: 0x30008, count: 0x300, turns: 6 };

describe('REP MOVS and REP STOS by the block, on all engines', () => {
  it.each([
    ['movsb', MOVSB, 0x1200],
    ['movsw', [0x66, 0xf3, 0xa5], 0x900],
    ['movsd', MOVSD, 0x700],
    ['movsq', MOVSQ, 0x280],
    ['repne movsd', [0xf2, 0xa5], 0x700],
    ['movsd with 32-bit addresses', [0x67, 0xf3, 0xa5], 0x700],
    ['stosb', [0xf3, 0xaa], 0x1101],
    ['stosw', [0x66, 0xf3, 0xab], 0x903],
    ['stosd', STOSD, 0x905],
    ['stosq', [0xf3, 0x48, 0xab], 0x303],
  ])('%s over pages, not aligned', (_, bytes, count) => {
    compare({ ...base, bytes: [...bytes], count }, [1e6]);
  });

  it.each([1, 3, 4, 8, 12, 100, 4096])('to %i bytes behind the source: repeated', (distance) => {
    for (const bytes of [MOVSB, MOVSQ]) {
      for (const sign of [1, -1]) compare({ ...base, bytes, to: base.from + sign * distance }, [1e6]);
    }
  });

  it('descending', () => {
    for (const bytes of [MOVSB, MOVSQ, STOSD]) {
      const move = { ...base, bytes: [0xfd, ...bytes, 0xfc], from: 0x2fff1, to: 0x3f003 };
      compare(move, [1e6]);
    }
  });

  it('every deadline in it is exact, with RF set between iterations', () => {
    for (let ticks = 300; ticks < 1200; ticks += 97) {
      const m = compare({ ...base, count: 997 }, [ticks]);
      const at = m.state.gpr[RCX]!;
      if (at > 0n && at < 997n) expect(m.state.rflags & BigInt(Flag.RF)).not.toBe(0n);
    }
    compare({ ...base, count: 997, turns: 10 }, [...Array<number>(40).fill(263), 1e6]);
  });

  it.each([0, 1, 3, 4, 5, 65])('%i elements', (count) => {
    compare({ ...base, count, turns: 100 }, [...Array<number>(8).fill(37), 1e6]);
  });

  it('into devices and out of them', () => {
    compare({ ...base, bytes: MOVSD, to: RAM - 0x800, count: 0x210, turns: 2 }, [1e6]);
    compare({ ...base, bytes: MOVSD, from: RAM - 0x800, count: 0x210, turns: 2 }, [1e6]);
    compare({ ...base, bytes: STOSD, to: RAM - 0x800, count: 0x210, turns: 2 }, [1e6]);
  });

  it('over code: what runs next is what was moved', () => {
    // The block ends inside the program: 256 bytes of zeros beside the code, and over the hlt.
    compare({ ...base, bytes: MOVSD, to: CODE - 0x400, count: 0xff, turns: 50 }, [1e6]);
    compare({ ...base, bytes: STOSD, to: CODE + 0x40, count: 0x80, turns: 50 }, [1e6]);
    compare({ ...base, bytes: MOVSB, to: CODE + 20, count: 60, turns: 50 }, [3000]);
  });

  it('in real mode: limits, offsets that wrap', () => {
    const real = { ...base, mode: 'real' as const, turns: 4 };
    const segments = (m: TestMachine): void => {
      m.setSegment(3, 0x2000, 0x93, 0xffff, 0x20000n);
      m.setSegment(0, 0x3000, 0x93, 0xffff, 0x30000n);
    };
    compare({ ...real, bytes: MOVSB, from: 0x10, to: 0x20, count: 0x3000 }, [1e6], segments);
    compare({ ...real, bytes: MOVSD, from: 0xf000, to: 0x20, count: 0x900 }, [1e6], segments);
    compare({ ...real, bytes: [0x2e, ...MOVSD], from: 0x0, to: 0x20, count: 0x900 }, [1e6], segments);
    compare({ ...real, bytes: [0x66, 0xf3, 0xab], from: 0x0, to: 0xff02, count: 0x100 }, [20_000], segments);
  });

  it('in protected mode: FS, and a limit in the middle', () => {
    const narrow = (m: TestMachine): void => m.setSegment(4, 0x10, 0x493, 0x1fff, 0x20003n);
    const move = { ...base, mode: 'prot32' as const, bytes: [0x64, ...MOVSD], from: 0x100 };
    compare({ ...move, count: 0x600 }, [1e6], narrow);
    const faulted = compare({ ...move, count: 0x900 }, [1e6], narrow);
    expect(faulted.state.gpr[RSI]).toBe(0x2000n);
  });

  it('a page that is absent, or may not be written, in the middle', () => {
    const pages = (m: TestMachine): void => {
      const table = 0x6000;
      for (let page = 0; page < 512; page++) m.memory.write64(table + page * 8, BigInt(page << 12) | 3n);
      m.memory.write64(table + 0x23 * 8, 0n);
      m.memory.write64(table + 0x33 * 8, 0x33001n);
      m.memory.write64(TestLayout.pageTables + 0x2000, BigInt(table) | 7n);
    };
    const unread = compare({ ...base, bytes: MOVSD, from: 0x20400, count: 0x2000 }, [1e6], pages);
    expect([unread.state.gpr[RSI], unread.state.cr2]).toEqual([0x23000n, 0x23000n]);
    const unwritten = compare({ ...base, bytes: STOSD, to: 0x30402, count: 0x2000 }, [1e6], pages);
    // The element that crosses into the page faults.
    expect([unwritten.state.gpr[RDI], unwritten.state.cr2]).toEqual([0x32ffen, 0x33000n]);
  });

  it('pages that lie anywhere, the same one twice', () => {
    const pages = (m: TestMachine): void => {
      const table = 0x6000;
      for (let page = 0; page < 512; page++) m.memory.write64(table + page * 8, BigInt(page << 12) | 3n);
      const next = stream(99);
      for (let page = 0x20; page < 0x40; page++) {
        m.memory.write64(table + page * 8, BigInt((0x20 + (next() & 15)) << 12) | 3n);
      }
      m.memory.write64(TestLayout.pageTables + 0x2000, BigInt(table) | 7n);
    };
    for (const bytes of [MOVSB, MOVSD, MOVSQ, STOSD]) compare({ ...base, bytes, count: 0x800, turns: 2 }, [1e6], pages);
  });

  it('is what translated loops do without leaving', () => {
    const [m] = machine('translate', { ...base, turns: 300 }, () => {});
    expect(m.go(1e6)).toBe('halt');
    const { statistics } = m.cpu.engine as unknown as { statistics: { regions: number } };
    expect(statistics.regions).toBe(1);
  });
});
