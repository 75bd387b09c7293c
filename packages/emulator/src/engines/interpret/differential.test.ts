import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NotImplementedError } from '../../exceptions.ts';
import type { RunStop } from '../../processor-api.ts';
import { TestMachine, type TestMode } from '../../testing/index.ts';
import { TranslateEngine } from '../translate/translate.ts';
import { InterpretEngine } from './interpret.ts';

const CODE = 0x10000;
const DATA = 0x20000;

type Wide = boolean;
/** An instruction as bytes, for code with or without REX prefixes. */
type Bytes = readonly number[];

/** Registers that programs may change; RBX points to data, RSP to the stack. */
const REGISTERS = [0, 1, 2, 6, 7] as const;
const register = fc.constantFrom(...REGISTERS);
const byte = fc.integer({ min: 0, max: 255 });
const dword = fc.oneof(
  fc.constantFrom(0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0xffffffff),
  fc.integer({ min: 0, max: 0xffffffff }),
);
const le32 = (x: number): Bytes => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];

/** Prefixes of the operand size: none, 66, REX.W (64-bit code), and with REX.R / REX.B for the upper registers. */
const prefix = (wide: Wide): fc.Arbitrary<Bytes> =>
  wide
    ? fc.constantFrom<Bytes>([], [], [0x48], [0x48], [0x66], [0x45], [0x4d], [0x49])
    : fc.constantFrom<Bytes>([], [], [], [0x66]);

/** modrm for a register, or for [rbx+disp8], [rbx+rsi*2+disp8] with RSI kept small elsewhere. No REX.B on memory: RBX must be the base. */
const modrm = (reg: number, memory: boolean, rm: number, disp: number): Bytes =>
  memory ? [0x43 | (reg << 3), disp & 0x7f] : [0xc0 | (reg << 3) | rm];

const operands = fc.record({ reg: register, rm: register, memory: fc.boolean(), disp: byte });
const noB = (p: Bytes, memory: boolean): Bytes => (memory ? p.map((b) => ((b & 0xf0) === 0x40 ? b & ~3 : b)) : p);

const withModrm = (
  wide: Wide,
  opcodes: readonly Bytes[],
  tail: fc.Arbitrary<Bytes> = fc.constant([]),
): fc.Arbitrary<Bytes> =>
  fc
    .tuple(prefix(wide), fc.constantFrom(...opcodes), operands, tail)
    .map(([p, opcode, o, t]) => [...noB(p, o.memory), ...opcode, ...modrm(o.reg, o.memory, o.rm, o.disp), ...t]);

/** Opcode with an extension in modrm.reg. */
const grouped = (
  wide: Wide,
  opcode: number,
  extensions: readonly number[],
  tail: fc.Arbitrary<Bytes>,
): fc.Arbitrary<Bytes> =>
  fc
    .tuple(prefix(wide), fc.constantFrom(...extensions), operands, tail)
    .map(([p, ext, o, t]) => [...noB(p, o.memory), opcode, ...modrm(ext, o.memory, o.rm, o.disp), ...t]);

const none = fc.constant<Bytes>([]);
const imm8 = byte.map((b): Bytes => [b]);
const ALU = [0, 8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38];
const alu = ALU.flatMap((base) => [0, 1, 2, 3].map((form): Bytes => [base + form]));
const cc = Array.from({ length: 16 }, (_, i) => i);

function instruction(wide: Wide): fc.Arbitrary<Bytes> {
  // An immediate of operand size: 66 would make it two bytes, so that forms with imm32 take no prefix but REX.W.
  const rexOnly = fc.constantFrom<Bytes>(...(wide ? [[], [0x48]] : [[]]));
  const immediate = fc
    .tuple(rexOnly, fc.constantFrom(0, 1, 2, 3, 4, 5, 6, 7), register, dword)
    .map(([p, ext, rm, x]): Bytes => [...p, 0x81, 0xc0 | (ext << 3) | rm, ...le32(x)]);
  const load = fc.tuple(register, dword).map(([r, x]): Bytes => [0xb8 + r, ...le32(x)]);
  const stack = register.chain((r) => fc.constantFrom<Bytes>([0x50 + r], [0x58 + r]));
  const strings = fc
    .tuple(
      fc.constantFrom(0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xa6, 0xa7, 0xae, 0xaf),
      fc.constantFrom(0, 0xf2, 0xf3),
      byte,
    )
    .map(
      ([op, rep, count]): Bytes => [
        ...[0xb9, ...le32(count >> 2)],
        ...[0xbe, ...le32(DATA + 0x400)],
        ...[0xbf, ...le32(DATA + 0x800)],
        ...(rep ? [rep] : []),
        op,
      ],
    );
  const flags = fc.constantFrom<Bytes>(
    [0xf5],
    [0xf8],
    [0xf9],
    [0xfc],
    [0xfd],
    [0x9e],
    [0x9f],
    [0x98],
    [0x99],
    [0x9c, 0x9d],
    [0x9c],
    [0x9d],
    [0xfa],
    [0xfb],
    [0x8c, 0xd8],
    [0x8e, 0xd8],
    [0x8c, 0xc8, 0x8e, 0xc0],
    [0x0f, 0xa0, 0x0f, 0xa1],
    [0x06, 0x1f],
  );
  // mov byte [CODE + x], imm: code that changes itself, also right ahead of where it runs.
  const store = fc
    .tuple(fc.integer({ min: 0, max: 400 }), byte)
    .map(([at, x]): Bytes => (wide ? [0xc6, 0x04, 0x25, ...le32(CODE + at), x] : [0xc6, 0x05, ...le32(CODE + at), x]));
  return fc.oneof(
    { weight: 6, arbitrary: withModrm(wide, alu) },
    { weight: 3, arbitrary: withModrm(wide, [[0x84], [0x85], [0x88], [0x89], [0x8a], [0x8b], [0x86], [0x87]]) },
    { weight: 3, arbitrary: immediate },
    { weight: 2, arbitrary: grouped(wide, 0x83, [0, 1, 2, 3, 4, 5, 6, 7], imm8) },
    { weight: 1, arbitrary: grouped(wide, 0x80, [0, 1, 2, 3, 4, 5, 6, 7], imm8) },
    { weight: 3, arbitrary: grouped(wide, 0xc1, [0, 1, 2, 3, 4, 5, 7], imm8) },
    { weight: 1, arbitrary: grouped(wide, 0xd1, [0, 1, 2, 3, 4, 5, 7], none) },
    { weight: 1, arbitrary: grouped(wide, 0xd3, [0, 1, 2, 3, 4, 5, 7], none) },
    { weight: 1, arbitrary: grouped(wide, 0xc0, [0, 1, 2, 3, 4, 5, 7], imm8) },
    { weight: 2, arbitrary: grouped(wide, 0xf7, [2, 3, 4, 5], none) },
    { weight: 1, arbitrary: grouped(wide, 0xf6, [2, 3, 4, 5], none) },
    { weight: 2, arbitrary: grouped(wide, 0xff, [0, 1], none) },
    { weight: 1, arbitrary: grouped(wide, 0xfe, [0, 1], none) },
    {
      weight: 2,
      arbitrary: withModrm(
        wide,
        cc.map((c): Bytes => [0x0f, 0x40 + c]),
      ),
    },
    {
      weight: 1,
      arbitrary: withModrm(
        wide,
        cc.map((c): Bytes => [0x0f, 0x90 + c]),
      ),
    },
    {
      weight: 3,
      arbitrary: withModrm(wide, [
        ...[0xb6, 0xb7, 0xbe, 0xbf, 0xaf, 0xa3, 0xab, 0xb3, 0xbb, 0xbc, 0xbd, 0xa5, 0xad, 0xb0, 0xb1, 0xc0, 0xc1].map(
          (x): Bytes => [0x0f, x],
        ),
      ]),
    },
    {
      weight: 1,
      arbitrary: withModrm(
        wide,
        [
          [0x0f, 0xa4],
          [0x0f, 0xac],
        ],
        imm8,
      ),
    },
    { weight: 2, arbitrary: load },
    { weight: 2, arbitrary: stack },
    { weight: 1, arbitrary: strings },
    { weight: 1, arbitrary: flags },
    { weight: 1, arbitrary: store },
  );
}

/** A piece of program: straight code, a forward jump over code, a counted loop (with a loop or a way out inside), or a call of a function behind the program. */
type Piece =
  | { kind: 'code'; bytes: Bytes }
  | { kind: 'skip'; condition: number; over: Bytes }
  | { kind: 'loop'; count: number; body: Bytes }
  | { kind: 'nest'; count: number; inner: number; body: Bytes; condition: number }
  | { kind: 'call'; body: Bytes; count: number };

function piece(wide: Wide): fc.Arbitrary<Piece> {
  const some = fc.array(instruction(wide), { minLength: 1, maxLength: 4 }).map((list) => list.flat());
  return fc.oneof(
    { weight: 6, arbitrary: instruction(wide).map((bytes): Piece => ({ kind: 'code', bytes })) },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constant('skip' as const),
        condition: fc.integer({ min: 0, max: 15 }),
        over: some,
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('loop' as const), count: fc.integer({ min: 1, max: 60 }), body: some }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('nest' as const),
        count: fc.integer({ min: 1, max: 12 }),
        inner: fc.integer({ min: 1, max: 12 }),
        body: some,
        condition: fc.integer({ min: 0, max: 15 }),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('call' as const), body: some, count: fc.integer({ min: 1, max: 30 }) }),
    },
  );
}

/** mov dword [rbx+at], count; body; dec dword [rbx+at]; jnz body. */
const counted = (at: number, count: number, body: readonly number[]): number[] => [
  ...[0xc7, 0x43, at, ...le32(count)],
  ...body,
  ...[0xff, 0x4b, at, 0x0f, 0x85, ...le32(-(body.length + 9))],
];

/** Loop counters stand in memory, where little else is written. */
function assemble(pieces: readonly Piece[]): number[] {
  const out: number[] = [0xbb, ...le32(DATA)];
  const calls: { at: number; body: Bytes }[] = [];
  for (const p of pieces) {
    if (p.kind === 'nest') {
      const skip = [0x70 + p.condition, 9 + 7];
      out.push(...counted(0xf8, p.count, [...p.body, ...skip, ...counted(0xf4, p.inner, [])]));
      continue;
    }
    if (p.kind === 'call') {
      out.push(...counted(0xf0, p.count, [0xe8, 0, 0, 0, 0]));
      calls.push({ at: out.length - 9, body: p.body });
      continue;
    }
    if (p.kind === 'code') out.push(...p.bytes);
    else if (p.kind === 'skip') out.push(0x70 + p.condition, p.over.length & 0x7f, ...p.over.slice(0, 0x7f));
    else {
      const body = p.body.slice(0, 100);
      out.push(0xc7, 0x43, 0xfc, ...le32(p.count), ...body, 0xff, 0x4b, 0xfc, 0x75, 256 - (body.length + 5));
    }
  }
  out.push(0xf4);
  for (const { at, body } of calls) {
    out.splice(at - 4, 4, ...le32(out.length - at));
    out.push(...body, 0xc3);
  }
  return out;
}

interface Outcome {
  stop: RunStop | 'not implemented';
  tick: number;
  state: string[];
}

type EngineUnderTest = 'evaluate' | 'interpret' | 'translate';

function install(m: TestMachine, engine: EngineUnderTest): void {
  if (engine === 'interpret') m.cpu.engine = new InterpretEngine(m.cpu, { vendor: 'amd' });
  // Samples as dense as they can be: what runs for a moment is translated.
  if (engine === 'translate') {
    m.cpu.engine = new TranslateEngine(m.cpu, { vendor: 'amd', translate: { sample: 80, hot: 1 } });
  }
}

function machine(code: readonly number[], mode: TestMode, seed: number, engine: EngineUnderTest): TestMachine {
  const m = new TestMachine({ size: 0x100000 });
  for (let i = 0; i < 0x1000; i += 4) m.memory.write32(DATA + i, Math.imul(i + seed, 0x9e3779b1) >>> 0);
  m.load(code, mode, CODE);
  for (const r of REGISTERS) m.state.gpr[r] = BigInt(Math.imul(r + 1, seed) >>> 0);
  install(m, engine);
  return m;
}

/** Code that changes itself may come to instructions that do not exist yet: that stops both engines. */
function go(m: TestMachine, ticks: number): Outcome['stop'] {
  try {
    return m.go(ticks);
  } catch (error) {
    if (error instanceof NotImplementedError) return 'not implemented';
    throw error;
  }
}

function step(m: TestMachine, ticks: number): Outcome {
  const stop = go(m, ticks);
  const { state } = m;
  const registers = Array.from(state.gpr, (value, i) => `${i}: ${value.toString(16)}`);
  let hash = 0;
  const { u8 } = m.memory;
  const from = m.memory.offset(DATA - 0x1000, 0x3000);
  for (let i = from; i < from + 0x3000; i++) hash = (Math.imul(hash, 31) + u8[i]) | 0;
  return {
    stop,
    tick: m.cpu.tick,
    state: [...registers, `flags ${state.rflags.toString(16)}`, `cr2 ${state.cr2.toString(16)}`, `memory ${hash}`],
  };
}

/** Runs evaluate and another engine with the same deadlines; every stop must look the same. */
function compare(
  code: readonly number[],
  mode: TestMode,
  seed: number,
  slices: readonly number[],
  engine: EngineUnderTest,
): void {
  const a = machine(code, mode, seed, 'evaluate');
  const b = machine(code, mode, seed, engine);
  for (const ticks of slices) {
    const expected = step(a, ticks);
    expect(step(b, ticks)).toEqual(expected);
    if (expected.stop !== 'deadline') return;
  }
}

const slices = fc.array(fc.oneof(fc.integer({ min: 1, max: 70 }), fc.integer({ min: 65, max: 400 })), {
  minLength: 3,
  maxLength: 8,
});
const runs = Number(globalThis.process?.env.TSKVM_RUNS ?? 25);

// In real mode the same bytes mean something else, which is as good.
describe.each(
  (['interpret', 'translate'] as const).flatMap((engine) =>
    (['long', 'prot32', 'real'] as const).map((mode) => [engine, mode] as const),
  ),
)('%s does what evaluate does on random programs, %s', (engine, mode) => {
  it('at every deadline', () => {
    const wide = mode === 'long';
    fc.assert(
      fc.property(
        fc.array(piece(wide), { minLength: 5, maxLength: 40 }),
        fc.integer(),
        slices,
        (pieces, seed, ticks) => {
          compare(assemble(pieces), mode, seed, [...ticks, 20_000], engine);
        },
      ),
      { numRuns: runs, seed: 1 },
    );
  });
});

it.each(['interpret', 'translate'] as const)('rep stosb over itself, then what stands there now, on %s', (engine) => {
  // mov edi, CODE + 16; mov ecx, 40; mov al, 90h; nop, nop; 10h: rep stosb writes NOPs over itself; hlt behind
  const head = [0xbf, ...le32(CODE + 16), 0xb9, ...le32(40), 0xb0, 0x90, 0x90, 0x90, 0x90, 0x90];
  const code = [...head, 0xf3, 0xaa, ...new Array<number>(40).fill(0x40), 0xf4];
  for (const slices of [[9], [12, 1000], [8, 1, 1, 1000]]) compare(code, 'prot32', 1, slices, engine);
});

it.each(['interpret', 'translate'] as const)(
  'rep stosd that becomes an instruction never seen before, on %s',
  (engine) => {
    // mov edi, CODE + 8; mov ecx, 40; mov eax, 90900AD5h (aad; nop; nop) and NOPs up to rep stosd at CODE + 20h
    const head = [0xbf, ...le32(CODE + 8), 0xb9, ...le32(40), 0xb8, ...le32(0x90900ad5)];
    const code = [
      ...head,
      ...new Array<number>(0x20 - head.length).fill(0x90),
      0xf3,
      0xab,
      ...new Array<number>(160).fill(0x90),
    ];
    compare([...code, 0xf4], 'prot32', 1, [30, 20, 1000], engine);
  },
);
