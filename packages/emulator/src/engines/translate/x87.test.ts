import { describe, expect, it } from 'vitest';
import { featureSet } from '../../cpu/features.ts';
import { EPYC } from '../../cpu/models/index.ts';
import { S } from '../../state-layout.ts';
import { TestMachine, type TestMode } from '../../testing/index.ts';
import type { Engine } from '../engine.ts';
import { InterpretEngine } from '../interpret/interpret.ts';
import { TranslateEngine } from './translate.ts';

const CODE = 0x10000;
const DATA = 0x20000;

/** A 32-bit xorshift. */
function generator(seed: number): () => number {
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

interface Made {
  bytes: readonly number[];
  /** How the depth of the stack changes; how deep it has to be. */
  depth: number;
  needs: number;
}
/** [ebx + disp8]; the displacement is a multiple of 8. */
const memory = (opcode: number, extension: number, slot: number): number[] => [
  opcode,
  0x43 | (extension << 3),
  slot * 8,
];
const made = (bytes: readonly number[], depth = 0, needs = 1): Made => ({ bytes, depth, needs });

function push(next: () => number): Made {
  const slot = next() % 12;
  const ways = [
    memory(0xd9, 0, slot),
    memory(0xdd, 0, slot),
    memory(0xdb, 5, slot),
    memory(0xdb, 0, slot),
    memory(0xdf, 0, slot),
    memory(0xdf, 5, slot),
    [0xd9, 0xe8 + (next() % 7)],
  ];
  return made(ways[next() % ways.length]!, 1, 0);
}
function pop(next: () => number, i: number): Made {
  const slot = 14 + (next() % 2);
  const ways = [
    memory(0xd9, 3, slot),
    memory(0xdd, 3, slot),
    memory(0xdb, 7, slot - 1),
    memory(0xdb, 3, slot),
    memory(0xdf, 7, slot),
    memory(0xdf, 1, slot),
    [0xdd, 0xd8 + i],
    [0xde, [0xc0, 0xc8, 0xe0, 0xe8, 0xf0, 0xf8][next() % 6]! + i],
    [0xdf, 0xf0 + i],
    [0xdd, 0xe8 + i],
  ];
  return made(ways[next() % ways.length]!, -1);
}
function keep(next: () => number, i: number): Made {
  const operation = next() & 7;
  const ways = [
    [0xd8, 0xc0 + operation * 8 + i],
    [0xdc, [0xc0, 0xc8, 0xe0, 0xe8, 0xf0, 0xf8][next() % 6]! + i],
    memory(0xd8, operation === 3 ? 0 : operation, next() % 12),
    memory(0xdc, operation === 3 ? 4 : operation, next() % 12),
    memory(0xda, [0, 1, 2, 4, 5, 6][next() % 6]!, next() % 12),
    [0xd9, 0xc8 + i],
    [0xd9, next() & 1 ? 0xe0 : 0xe1],
    [0xdd, 0xd0 + i],
    [0xdb, 0xe8 + i, 0x0f, 0x92, 0xc2],
    [0xdb, 0xf0 + i, 0x11, 0xd6],
    [0xda + (next() & 1), 0xc0 + (next() & 3) * 8 + i],
    [0xdd, 0xe0 + i],
    [0xdf, 0xe0, 0x01, 0xc6],
    memory(0xd9, 2, 15),
    memory(0xdd, 2, 14),
    memory(0xdb, 2, 13),
    memory(0xd9, 7, 13),
    [0x9b],
    [0xd9, 0xfa],
  ];
  return made(ways[next() % ways.length]!);
}

function body(next: () => number): number[] {
  const out: number[] = [];
  let depth = 0;
  for (let n = 0; n < 14; n++) {
    const kind = next() % 5;
    const i = depth > 0 ? next() % depth : 0;
    const wanted = depth < 2 || (kind === 0 && depth < 7) ? push(next) : kind === 1 ? pop(next, i) : keep(next, i);
    // Now and then the stack runs over, or under.
    if (wanted.needs > depth && next() % 16 !== 0) continue;
    out.push(...wanted.bytes);
    depth = Math.max(0, depth + wanted.depth);
  }
  for (; depth > 0; depth--) out.push(0xdd, 0xd8);
  return out;
}

/** mov ecx, 600; L: body; add ebx, 8; and ebx, DATA + F8h; dec ecx; jnz L; hlt */
function program(next: () => number): number[] {
  const bytes = [...body(next), 0x83, 0xc3, 8, 0x81, 0xe3, 0xf8, 0, 2, 0, 0xff, 0xc9];
  const back = -(bytes.length + 6);
  return [0xb9, 0x58, 2, 0, 0, ...bytes, 0x0f, 0x85, back & 255, (back >> 8) & 255, 255, 255, 0xf4];
}

function machine(
  code: readonly number[],
  seed: number,
  mode: TestMode,
  engine: (m: TestMachine) => Engine | null,
): TestMachine {
  const m = new TestMachine({ size: 0x40000, model: EPYC });
  m.load(code, mode, CODE);
  const next = generator(seed + 1000);
  for (let at = 0; at < 0x300; at += 8) {
    // Doubles near one; every 16th is anything.
    const any = next() % 16 === 0;
    const high = any
      ? next()
      : (0x3ff00000 + (((next() % 40) - 20) << 20)) | (next() & 0xfffff) | (next() & 1 ? 1 << 31 : 0);
    m.memory.write64(DATA + at, (BigInt(high >>> 0) << 32n) | BigInt(next()));
  }
  m.state.gpr[3] = BigInt(DATA);
  m.state.block.setUint16(S.fcw, seed % 5 === 0 ? 0x027f : seed % 7 === 0 ? 0x0f7f : 0x037f, true);
  m.cpu.stateReplaced('test');
  m.cpu.engine = engine(m);
  return m;
}

const image = (m: TestMachine): string =>
  Buffer.from(m.state.u8.subarray(S.fpr, S.fdp + 8)).toString('hex') +
  Buffer.from(m.memory.readBytes(DATA, 0x400)).toString('hex');

describe('random x87 programs on evaluate, interpret and translate', () => {
  const seeds = Array.from({ length: 40 }, (_, i) => i + 1);
  it.each(seeds)('seed %i', (seed) => {
    const code = program(generator(seed));
    const options = (m: TestMachine) =>
      ({ vendor: 'amd', features: featureSet((leaf, subleaf) => m.cpu.cpuid(leaf, subleaf)) }) as const;
    const mode = seed & 1 ? 'prot32' : 'long';
    const machines = [
      machine(code, seed, mode, () => null),
      machine(code, seed, mode, (m) => new InterpretEngine(m.cpu, options(m))),
      machine(
        code,
        seed,
        mode,
        (m) => new TranslateEngine(m.cpu, { ...options(m), translate: { sample: 100, hot: 1 } }),
      ),
    ];
    for (const ticks of [3001, 50_000]) {
      const stops = machines.map((m) => m.go(ticks));
      expect(stops[1]).toBe(stops[0]);
      expect(stops[2]).toBe(stops[0]);
      for (const m of machines.slice(1)) {
        const registers = (x: TestMachine) => [x.state.rip, x.state.rflags, x.cpu.tick, ...x.state.gpr].map(String);
        expect(registers(m)).toEqual(registers(machines[0]!));
        expect(image(m)).toBe(image(machines[0]!));
      }
    }
    expect((machines[2]!.cpu.engine as TranslateEngine).statistics.regions).toBeGreaterThan(0);
  });
});
