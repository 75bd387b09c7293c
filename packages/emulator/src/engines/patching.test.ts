import { describe, expect, it } from 'vitest';
import type { EngineName } from '../cpu/create.ts';
import { TestMachine, type TestMode } from '../testing/index.ts';
import type { FormOptions } from './interpret/cold-forms.ts';
import type { TranslateEngine } from './translate/translate.ts';

const CODE = 0x10000;
const RAM = 0x80000;
const ENGINES: readonly (EngineName | undefined)[] = [undefined, 'interpret', 'interpret', 'translate'];
/** By the places of {@link ENGINES}: one gives forms handlers only after some runs. */
const FORMS: readonly (FormOptions | undefined)[] = [
  ...[undefined, undefined],
  { usual: false, runs: 5, gather: 2, ticksEach: 1, burst: 20 },
];

const le = (x: number, bytes = 4): number[] => Array.from({ length: bytes }, (_, i) => (x >>> (8 * i)) & 255);

interface Options {
  mode?: TestMode;
  at?: number;
  slices?: readonly number[];
  prepare?: (m: TestMachine) => void;
}

/** The same slices on all engines; what can be seen must be equal after each. Returns the machine on translate. */
function compare(code: readonly number[], options: Options = {}): TestMachine {
  const { mode = 'prot32', at = CODE, slices = [200_000], prepare } = options;
  const all = ENGINES.map((engine, i) => {
    const m = new TestMachine({ ...(engine === undefined ? {} : { engine }), forms: FORMS[i], size: RAM });
    m.load(code, mode, at);
    prepare?.(m);
    return m;
  });
  for (const ticks of slices) {
    const stops = all.map((m) => m.go(ticks));
    for (const [i, m] of all.entries()) {
      const seen = (x: TestMachine) => [x.cpu.tick, x.state.rip, x.state.rflags, ...x.state.gpr].map(String);
      expect([ENGINES[i], stops[i], ...seen(m)]).toEqual([ENGINES[i], stops[0], ...seen(all[0]!)]);
    }
    if (stops[0] !== 'deadline') break;
  }
  const [reference, ...others] = all.map((m) => Buffer.from(m.memory.readBytes(0, RAM)));
  for (const memory of others) expect(memory.equals(reference!)).toBe(true);
  return all.at(-1)!;
}

/** mov ecx, turns; L: body; dec ecx; jnz L; hlt. `body` gets the address of its first byte. */
function loop(turns: number, body: (at: number) => number[], at = CODE): number[] {
  const bytes = body(at + 5);
  return [0xb9, ...le(turns), ...bytes, 0x49, 0x0f, 0x85, ...le(-(bytes.length + 7)), 0xf4];
}
/** mov [address], ecx (cx, cl). */
const store = (address: number, size: 1 | 2 | 4 = 4): number[] => [
  ...(size === 2 ? [0x66] : []),
  size === 1 ? 0x88 : 0x89,
  0x0d,
  ...le(address),
];

describe('an instruction that is patched in every turn', () => {
  it.each<[string, number[], number, 1 | 2 | 4]>([
    ['mov edx, imm32', [0xba, 0, 0, 0, 0, 0x01, 0xd0], 1, 4],
    ['a part of that immediate', [0xba, 0, 0, 0, 0, 0x01, 0xd0], 3, 1],
    ['add eax, imm8', [0x83, 0xc0, 0], 2, 1],
    ['adc dx, imm16', [0x66, 0x81, 0xd2, 0, 0], 3, 2],
    ['and byte [5000h], imm8', [0x80, 0x25, ...le(0x5000), 0], 6, 1],
    ['imul eax, edx, imm32', [0x69, 0xd0, 0, 0, 0, 0, 0x40], 2, 4],
    ['push imm32; pop', [0x68, 0, 0, 0, 0, 0x58], 1, 4],
    ['shl eax, imm8: zero does nothing', [0xff, 0xc0, 0xc1, 0xe0, 0, 0x14, 0], 4, 1],
    ['the displacement of a load', [0x03, 0x05, ...le(0x5000), 0x8b, 0xd0], 2, 1],
    ['a comparison that goes with its jump', [0x81, 0xf9, 0, 0, 0, 0, 0x72, 1, 0x40], 2, 1],
    ['cmp and store of its own immediate', [0x3d, 0, 0, 0, 0, 0x15, 0, 0, 0, 0], 6, 4],
  ])('%s', (_, victim, offset, size) => {
    const body = (at: number): number[] => [...store(at + 6 + (size === 2 ? 1 : 0) + offset, size), ...victim];
    compare(loop(300, body));
    compare(loop(300, body), { slices: [...Array<number>(30).fill(41), 200_000] });
  });

  it('mov rax, imm64 in 64-bit code', () => {
    // mov ecx, 300; L: mov [rip + 4], rcx (into the immediate); mov rax, imm64; add rbx, rax; dec ecx; jnz L; hlt
    const body = [0x48, 0x89, 0x0d, ...le(2), 0x48, 0xb8, ...le(0), ...le(0), 0x48, 0x01, 0xc3, 0xff, 0xc9];
    compare([0xb9, ...le(300), ...body, 0x75, 256 - (body.length + 2), 0xf4], { mode: 'long' });
  });

  it('its opcode: another instruction of the same length', () => {
    // mov al, [table + ecx & 7]; mov [victim], al; victim: op eax, imm32
    const table = [0x05, 0x0d, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d];
    const prepare = (m: TestMachine): void => m.memory.writeBytes(0x5000, Uint8Array.from(table));
    const body = (at: number): number[] => [
      ...[0x89, 0xca, 0x83, 0xe2, 7, 0x8a, 0x92, ...le(0x5000)],
      ...[0x88, 0x15, ...le(at + 17)],
      ...[0x05, ...le(0x12345677)],
      ...[0x15, 0, 0, 0, 0],
    ];
    compare(loop(400, body), { prepare });
  });

  it('its opcode: other lengths, other ends', () => {
    // nop nop; jmp +0; inc eax; ror eax; xor edx, edx; jb +0; push eax, cwde; inc eax, dec eax: two bytes by turn
    const table = [0x9090, 0x00eb, 0xc0ff, 0xc8d1, 0xd231, 0x0072, 0x9850, 0x4840];
    const prepare = (m: TestMachine): void => {
      m.memory.writeBytes(0x5000, Uint8Array.from(table.flatMap((word) => [word & 255, word >> 8])));
    };
    const body = (at: number): number[] => [
      ...[0x89, 0xce, 0x83, 0xe6, 7, 0x66, 0x8b, 0x34, 0x75, ...le(0x5000)],
      ...[0x66, 0x89, 0x35, ...le(at + 20)],
      ...[0x90, 0x90, 0x90],
      ...[0x15, 1, 0, 0, 0],
    ];
    compare(loop(400, body), { prepare });
  });

  it('a jump that is turned to another target, and one that waits to be linked', () => {
    // mov edx, ecx; and edx, 3; mov [target of jmp], dl; jmp +dl; inc eax; inc eax; inc eax; inc ebx
    const body = (at: number): number[] => [
      ...[0x89, 0xca, 0x83, 0xe2, 3, 0x88, 0x15, ...le(at + 12)],
      ...[0xeb, 0, 0x40, 0x40, 0x40, 0x43],
    ];
    compare(loop(300, body));
  });

  it('instructions that share bytes: one jumps into the immediate of another', () => {
    // mov [imm], ecx; test ecx, 1; jnz into the immediate (mov eax, imm32 with nops and inc ebx behind)
    const body = (at: number): number[] => [
      ...[0x88, 0x0d, ...le(at + 15)],
      ...[0xf6, 0xc1, 1, 0x75, 1],
      ...[0x0d, 0x04, 0x43, 0x43, 0x04, 0x00, 0x90],
    ];
    compare(loop(300, body));
  });

  it('an immediate that is patched often, with an instruction in its other bytes that is patched seldom', () => {
    // mov [imm], cl; test cl, 1; jnz into or eax, imm32 (inc ebx; inc ebx); each 16th turn the former becomes inc edx, or what it was
    const body = (at: number): number[] => [
      ...[0x88, 0x0d, ...le(at + 12)],
      ...[0xf6, 0xc1, 1, 0x75, 3],
      ...[0x0d, 0, 0, 0x43, 0x43],
      ...[0xf6, 0xc1, 15, 0x75, 7, 0x80, 0x35, ...le(at + 14), 1],
    ];
    compare(loop(300, body));
  });

  it('in front of itself, in the turn that runs: what follows a store is new', () => {
    // inc byte [victim + 1]; victim: add al, imm8; dec byte [second + 1]; second: sub bl, imm8
    const body = (at: number): number[] => [
      ...[0xfe, 0x05, ...le(at + 7), 0x04, 0],
      ...[0xfe, 0x0d, ...le(at + 16), 0x80, 0xeb, 0],
    ];
    compare(loop(500, body), { slices: [...Array<number>(60).fill(23), 200_000] });
  });

  it('across pages, on both sides of the end', () => {
    for (let back = 1; back <= 10; back++) {
      // The victim's last bytes lie in the next page.
      const at = CODE + 0x1000 - 11 - back;
      const body = (from: number): number[] => [...store(from + 7), 0xba, 0, 0, 0, 0, 0x01, 0xd0];
      compare(loop(100, body, at), { at, slices: [60, 200_000] });
    }
  });

  it('by another instruction far away, while a region runs over it', () => {
    // call F; F: mov eax, imm; add ebx, eax; ret; each 64th turn the immediate changes.
    const body = (at: number): number[] => [
      ...[0xf6, 0xc1, 63, 0x75, 6, 0x88, 0x0d, ...le(at + 19)],
      ...[0xeb, 0, 0x90, 0x90, 0x90, 0x90, 0x90],
      ...[0xb8, 0, 0, 0, 0, 0x01, 0xc3],
    ];
    compare(loop(3000, body));
  });
});

describe('data beside code', () => {
  it('is stored without a drop', () => {
    const data = CODE + 0x800;
    const body = (): number[] => [
      ...store(data),
      ...store(data + 4, 1),
      ...[0x03, 0x05, ...le(data), 0xff, 0x05, ...le(data + 8), 0x66, 0x01, 0x0d, ...le(data + 12)],
    ];
    const { statistics } = compare(loop(2000, body)).cpu.engine as TranslateEngine;
    expect(statistics.invalidated).toBe(0);
    expect(statistics.regions).toBeGreaterThan(0);
  });

  it('right up to the first and behind the last byte of the code', () => {
    const at = CODE + 0x20;
    const body = (): number[] => [...store(at - 4), ...store(at + 40), 0x03, 0x05, ...le(at - 4)];
    compare(loop(300, body, at), { at });
  });

  it('an old instruction that nobody runs any more is data in the end', () => {
    // The loop first runs a piece of code (mov eax, imm; ret) a few times, then keeps a counter in it.
    const piece = CODE + 0x400;
    const body = (): number[] => [...[0x81, 0xf9, ...le(250), 0x76, 7, 0xe8, ...le(0), 0xeb, 6], ...store(piece)];
    const code = loop(300, body);
    // The call goes to the piece.
    const call = code.indexOf(0xe8);
    code.splice(call + 1, 4, ...le(piece - (CODE + call + 5)));
    compare(code, { prepare: (m) => m.memory.writeBytes(piece, Uint8Array.of(0xb8, 1, 2, 3, 4, 0xc3)) });
  });
});

/** A 32-bit xorshift. */
function stream(seed: number): () => number {
  let x = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

/** ALU instructions on EAX, EBX, EDX with immediates, comparisons with jumps over an INC; where their immediates stand. */
function piece(next: () => number): { bytes: number[]; immediate: number } {
  const imm = next();
  switch (next() % 6) {
    case 0:
      return { bytes: [0x81, 0xc0 | ((next() & 7) << 3) | (next() & 1 ? 3 : 2), ...le(imm)], immediate: 2 };
    case 1:
      return { bytes: [0x83, 0xc0 | ((next() & 7) << 3) | (next() & 1 ? 3 : 0), imm & 255], immediate: 2 };
    case 2:
      return { bytes: [0x05 | ((next() & 7) << 3), ...le(imm)], immediate: 1 };
    case 3:
      return { bytes: [0x3d, ...le(imm), 0x70 | (next() & 15), 1, 0x43], immediate: 1 };
    case 4:
      return { bytes: [0xba, ...le(imm), 0x11, 0xd0], immediate: 1 };
    default:
      return { bytes: [0xc1, 0xc0 | ((next() % 6) << 3) | 2, imm & 31], immediate: 2 };
  }
}

describe('random code that patches itself', () => {
  it.each(Array.from({ length: 24 }, (_, i) => i + 1))('seed %i', (seed) => {
    const next = stream(seed);
    const pieces = Array.from({ length: 10 }, () => piece(next));
    const stores = Array.from({ length: 3 }, () => next() % pieces.length);
    const body = (at: number): number[] => {
      const starts: number[] = [];
      let start = at + stores.length * 8;
      for (const { bytes } of pieces) {
        starts.push(start);
        start += bytes.length;
      }
      const out: number[] = [];
      for (const victim of stores) {
        // Mostly the immediate; sometimes it runs into what follows, as a byte only. EAX, ECX or EDX.
        const register = next() % 3;
        const target = starts[victim]! + pieces[victim]!.immediate;
        const wide = pieces[victim]!.bytes.length - pieces[victim]!.immediate >= 4;
        out.push(...(wide ? [0x90, 0x90, 0x89] : [0x90, 0x90, 0x88]), 0x05 | (register << 3), ...le(target));
      }
      return [...out, ...pieces.flatMap(({ bytes }) => bytes)];
    };
    compare(loop(150, body), { slices: [...Array.from({ length: 20 }, () => 1 + (next() % 90)), 200_000] });
  });
});

describe('code written over with itself', () => {
  it.each([1, 4] as const)('is not decoded again: %i bytes', (size) => {
    const patches: number[] = [];
    const target = CODE + 0x100;
    // mov dword [target], C3C3C3C3h (mov byte [target], C3h); call target
    const body = (at: number): number[] => {
      const write = size === 4 ? [0xc7, 0x05, ...le(target), ...le(0xc3c3c3c3)] : [0xc6, 0x05, ...le(target), 0xc3];
      return [...write, 0xe8, ...le(target - (at + write.length + 5))];
    };
    const m = compare(loop(400, body), {
      slices: [50, 70, 200_000],
      prepare: ({ cpu }) => {
        const { engine } = cpu;
        if (engine === null) return;
        const patch = engine.patch.bind(engine);
        engine.patch = (pa, length) => {
          patches.push(pa);
          return patch(pa, length);
        };
      },
    });
    expect(m.reg(1)).toBe(0n);
    expect(patches).toEqual([]);
  });
});
