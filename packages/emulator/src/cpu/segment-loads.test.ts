/** MOV to segment registers of level 0 and far jumps: generated code does the plain ones, and everything behind them goes by what was loaded. */
import { describe, expect, it } from 'vitest';
import type { PlatformBus } from '../processor-api.ts';
import { S, Seg } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMode } from '../testing/index.ts';

const HANDLER = 0x2_0000;
/** Of what a descriptor can be: with a base and a limit, byte-granular; not accessed; read-only; expand-down. */
const GDT: readonly (readonly [selector: number, descriptor: bigint])[] = [
  [0x20, 0x1240_9301_2345_3fffn],
  [0x18, 0x00cf_9200_0000_ffffn],
  [0x50, 0x00cf_9100_0000_ffffn],
  [0x58, 0x00cf_9700_0000_0fffn],
];

/** mov ax, selector; mov seg, ax. Registers: 0 ES, 2 SS, 3 DS, 4 FS, 5 GS. */
const load = (seg: number, selector: number, long = true): number[] => [
  ...(long ? [0x66] : []),
  ...[0xb8, selector & 0xff, selector >> 8],
  ...[0x8e, 0xc0 | (seg << 3)],
];
const READ_LOW = [0x8b, 0x1d, 0x08, 0x90, 0, 0];
const READ_HIGH = [0x8b, 0x1d, 0x00, 0x10, 0x02, 0];
const STOSB = [0xbf, 0x00, 0xa0, 0, 0, 0xaa];
const PUSH_POP = [0x50, 0x5a];
const PROTECTED: Readonly<Record<string, readonly number[]>> = {
  'ds of 64 KiB and back': [...load(3, 0x28), ...READ_LOW, ...load(3, 0x10), ...READ_HIGH],
  'ds of 64 KiB, and beyond it': [...load(3, 0x28), ...READ_HIGH, ...load(3, 0x10)],
  'ss of 16 bits and back': [...load(2, 0x28), ...PUSH_POP, ...load(2, 0x10), ...PUSH_POP],
  'stacks of both sizes': [
    ...[0xbc, 0x00, 0x90, 0x01, 0, ...load(2, 0x28), 0x50, ...load(2, 0x10), ...PUSH_POP, ...load(2, 0x28), 0x5a],
    ...[...load(2, 0x10), 0xbc, 0x00, 0x90, 0, 0],
  ],
  'es with a base': [...load(0, 0x20), ...STOSB, ...load(0, 0x10), ...STOSB],
  'fs and gs': [...load(4, 0x20), 0x64, ...READ_LOW, ...load(5, 0x28), 0x65, ...READ_LOW],
  'a descriptor that was not accessed': [...load(3, 0x18), ...READ_LOW, ...load(3, 0x10)],
  'a read-only one in ds': [...load(3, 0x50), ...READ_LOW, ...load(3, 0x10)],
  'a read-only one in ss': [...load(2, 0x50), ...PUSH_POP],
  'one that expands down': [...load(3, 0x58), ...READ_LOW, ...load(3, 0x10)],
  'code in ds': [...load(3, 0x08), ...READ_LOW, ...load(3, 0x10)],
  'of level 3': [...load(3, 0x3b), ...READ_LOW, ...load(3, 0x10)],
  'rpl 3 in ss': [...load(2, 0x13)],
  'null in ds': [...load(3, 0), ...load(3, 0x10)],
  'beyond the table': [...load(3, 0x60)],
  'a selector of the ldt': [...load(3, 0x14)],
  'ss twice, and a jump': [...load(2, 0x28), ...load(2, 0x10), 0xeb, 0x00, ...PUSH_POP],
};
const REAL: Readonly<Record<string, readonly number[]>> = {
  'ds, es and ss': [
    ...[...load(3, 0x1230, false), 0xa1, 0x10, 0x00, ...load(0, 0x2000, false), 0xbf, 0x10, 0x00, 0xab],
    ...[...load(2, 0x0100, false), 0x50, 0x5a, ...load(2, 0, false), ...load(3, 0, false)],
  ],
};

/** Bytes of the block that an engine keeps for itself. */
const PRIVATE: readonly (readonly [number, number])[] = [
  [S.lazyResult, S.segments],
  [S.derived, S.ymm],
];
const bus: PlatformBus = {
  pioIn: () => 0,
  pioOut: () => {},
  read: () => 0n,
  write: () => {},
  acknowledgeInterrupt: () => 0x30,
};

/** 16-bit code that stands above 64 KiB. */
const SMALL: Readonly<Record<string, readonly number[]>> = {
  'ss, ds and es': [
    ...[...load(2, 0x28, false), 0x50, 0x5a, ...load(3, 0x10, false), 0x66, 0x67, 0x8b, 0x1d, 0, 0x10, 0x02, 0],
    ...[...load(2, 0x10, false), 0x50, 0x5a, ...load(0, 0x28, false), ...load(4, 0x20, false)],
  ],
};

type Engine = 'evaluate' | 'interpret' | 'translate';
interface Told {
  mode: TestMode;
  /** CS.D is 0. */
  small?: boolean;
  /** Ticks after which an interrupt comes in. */
  interrupted?: number;
  listens?: boolean;
  /** Instead of GDT. */
  table?: typeof GDT;
}

function run(engine: Engine, body: readonly number[], { mode, small, interrupted, listens, table = GDT }: Told) {
  const machine = new TestMachine({ engine, bus });
  const { state, cpu, memory } = machine;
  const turn = [...body, 0x4d];
  // body; dec ebp; jnz body; hlt
  machine.load([...turn, 0x75, -(turn.length + 2) & 0xff, 0xf4], mode);
  if (small) machine.setSegment(Seg.CS, 0x20, 0x89b, 0xffffffff);
  if (mode !== 'real' || table !== GDT) {
    state.setTable('gdtr', { base: BigInt(TestLayout.gdt), limit: 0x5f });
    for (const [selector, value] of table) memory.write64(TestLayout.gdt + selector, value);
  }
  // Exceptions stop; the interrupt goes back: iretd, or iret of 16 bits.
  for (let vector = 0; vector < 32; vector++) machine.setHandler(vector, HANDLER + vector * 16, mode);
  memory.writeBytes(HANDLER, new Uint8Array(512).fill(0xf4));
  machine.setHandler(0x30, HANDLER + 0x300, mode);
  memory.writeBytes(HANDLER + 0x300, Uint8Array.of(0x46, 0xcf));
  const modes: string[] = [];
  if (listens) cpu.onModeChange = ({ tick, to }) => void modes.push(`${tick} ${to.name}`);
  state.rflags = 0x202n;
  state.gpr[5] = 60n;
  state.gpr[6] = 0n;
  if (interrupted !== undefined) {
    machine.go(interrupted);
    cpu.interruptPending = true;
    machine.go(1);
    cpu.interruptPending = false;
  }
  const stop = machine.go(20_000);
  const bytes = state.u8.slice();
  for (const [from, to] of PRIVATE) bytes.fill(0, from, to);
  const descriptors = memory.readBytes(TestLayout.gdt, 0x60).slice();
  return { stop, tick: cpu.tick, bytes, descriptors, stack: memory.readBytes(0x8f00, 0x200).slice(), modes };
}

describe.each([
  ['32-bit protected mode', 'prot32', false, PROTECTED],
  ['16-bit protected mode', 'prot32', true, SMALL],
  ['real mode', 'real', false, REAL],
] as const)('loads in %s', (_what, mode, small, bodies) => {
  it.each(Object.entries(bodies))('%s', (_name, body) => {
    const expected = run('evaluate', body, { mode, small });
    expect(expected.stop).toBe('halt');
    for (const engine of ['interpret', 'translate'] as const)
      expect(run(engine, body, { mode, small })).toEqual(expected);
  });
});

it.each(['prot32', 'real'] as const)('an interrupt finds the same instruction behind MOV SS: %s', (mode) => {
  const body = mode === 'real' ? REAL['ds, es and ss'] : PROTECTED['ss of 16 bits and back'];
  for (let interrupted = 1; interrupted < 24; interrupted++) {
    const expected = run('evaluate', body, { mode, interrupted });
    expect(expected.bytes[S.gpr + 48]).toBe(1);
    expect(run('interpret', body, { mode, interrupted }), `after ${interrupted}`).toEqual(expected);
  }
});

it('somebody who listens to the mode hears the same', () => {
  const told = { mode: 'prot32', listens: true } as const;
  const body = PROTECTED['ds of 64 KiB and back'];
  expect(run('interpret', body, told)).toEqual(run('evaluate', body, told));
});

/** Of what code can be: flat; of 16 bits where the test stands, with a limit; conforming; not accessed; short. Data: flat; of 16 bits. */
const CODE_TABLE: typeof GDT = [
  [0x08, 0x00cf_9b00_0000_ffffn],
  [0x10, 0x00cf_9300_0000_ffffn],
  [0x18, 0x00cf_9f00_0000_ffffn],
  [0x20, 0x0000_9b01_0000_ffffn],
  [0x28, 0x0000_9300_0000_ffffn],
  [0x50, 0x00cf_9a00_0000_ffffn],
  [0x58, 0x0040_9b00_0000_0fffn],
];
const CODE = TestLayout.code;
const bytesOf = (value: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => (value >>> (i * 8)) & 0xff);
/** JMP to what stands behind it, which has this base: with an offset of 16 bits or 32, in code of 16 bits or 32. */
const jump =
  (selector: number, base: number, offset: 2 | 4, code: 2 | 4) =>
  (at: number): number[] => {
    const prefix = offset === code ? [] : [0x66];
    const length = prefix.length + 3 + offset;
    return [...prefix, 0xea, ...bytesOf(CODE + at + length - base, offset), ...bytesOf(selector, 2)];
  };
type Part = readonly number[] | ((at: number) => number[]);
const assemble = (...parts: readonly Part[]): number[] => {
  const all: number[] = [];
  for (const part of parts) all.push(...(typeof part === 'function' ? part(all.length) : part));
  return all;
};
const FLAT = jump(0x08, 0, 4, 4);
/** mov ebx, cr0; xor bl, 1; mov cr0, ebx */
const SWITCH = [0x0f, 0x20, 0xc3, 0x80, 0xf3, 0x01, 0x0f, 0x22, 0xc3];

const FAR_PROTECTED: Readonly<Record<string, number[]>> = {
  'to the same segment': assemble(FLAT, PUSH_POP),
  'to code of 16 bits and back': assemble(jump(0x20, CODE, 4, 4), [0xb8, 0x34, 0x12], jump(0x08, 0, 4, 2), PUSH_POP),
  'with other stacks': assemble(
    ...[load(2, 0x28), jump(0x20, CODE, 2, 4), load(2, 0x10, false), PUSH_POP, load(3, 0x28, false)],
    ...[jump(0x08, 0, 4, 2), load(3, 0x10), READ_HIGH],
  ),
  'to data': assemble(jump(0x10, 0, 4, 4)),
  'to nothing': assemble(jump(0, 0, 4, 4)),
  'to a table that is not there': assemble(jump(0x0c, 0, 4, 4)),
  'with a requested level of 3': assemble(jump(0x0b, 0, 4, 4)),
  'to code that conforms': assemble(jump(0x18, 0, 4, 4), PUSH_POP, FLAT),
  'to code that was not accessed': assemble(jump(0x50, 0, 4, 4), PUSH_POP, FLAT),
  'beyond the limit': assemble(jump(0x58, 0, 4, 4)),
  'beyond the table': assemble(jump(0x60, 0, 4, 4)),
};
const FAR_REAL: Readonly<Record<string, number[]>> = {
  'to another name of the place': assemble(jump(0x1001, CODE + 16, 4, 2), [0x40], jump(0x1000, CODE, 2, 2), [0x43]),
  'beyond 64 KiB': assemble((at) => [0x66, 0xea, ...bytesOf(0x1_0000 + at, 4), 0, 0x10]),
  'to protected mode and back': assemble(
    ...[SWITCH, jump(0x08, 0, 4, 2), load(3, 0x10), load(2, 0x10), PUSH_POP, READ_HIGH, jump(0x20, CODE, 4, 4)],
    ...[load(3, 0x28, false), load(2, 0x28, false), SWITCH, jump(0x1000, CODE, 2, 2)],
    ...[load(3, 0, false), load(2, 0, false), PUSH_POP],
  ),
};

describe.each([
  ['protected', 'prot32', FAR_PROTECTED],
  ['real', 'real', FAR_REAL],
] as const)('far jumps in %s mode', (_what, mode, bodies) => {
  it.each(Object.entries(bodies))('%s', (_name, body) => {
    const told = { mode, table: CODE_TABLE };
    const expected = run('evaluate', body, told);
    expect(expected.stop).toBe('halt');
    for (const engine of ['interpret', 'translate'] as const) expect(run(engine, body, told)).toEqual(expected);
    for (let interrupted = 1; interrupted < 20; interrupted += 3) {
      const late = { ...told, interrupted };
      expect(run('interpret', body, late), `after ${interrupted}`).toEqual(run('evaluate', body, late));
    }
  });
  it('somebody who listens to the mode hears the same', () => {
    for (const body of Object.values(bodies)) {
      const told = { mode, table: CODE_TABLE, listens: true };
      expect(run('interpret', body, told)).toEqual(run('evaluate', body, told));
    }
  });
});
