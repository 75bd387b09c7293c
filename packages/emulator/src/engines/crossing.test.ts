import { describe, expect, it } from 'vitest';
import type { EngineName } from '../cpu/create.ts';
import { Tag } from '../memory/tlb.ts';
import { Seg } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMode } from '../testing/index.ts';

const CODE = TestLayout.code;
const END = 0x1000;
const ENGINES: readonly EngineName[] = ['evaluate', 'interpret', 'translate'];
const le32 = (x: number): number[] => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];

/** Two pages of NOPs with pieces of code at offsets. */
function pages(...pieces: readonly (readonly [number, readonly number[]])[]): number[] {
  const bytes = new Array<number>(3 * END).fill(0x90);
  for (const [at, piece] of pieces) bytes.splice(at, piece.length, ...piece);
  return bytes;
}
/** mov ecx, turns; jmp to the loop that ends `back` bytes behind the page's end, whose first byte is at `start` */
const enter = (turns: number, start: number): [number, number[]] => [
  0,
  [0xb9, ...le32(turns), 0xe9, ...le32(start - 10)],
];

/** The loop L: add eax, 12345678h; dec ecx; jnz L; hlt, the first instruction with `inside` bytes in its first page. */
const crossingLoop = (turns: number, inside: number): number[] => {
  const start = END - inside;
  return pages(enter(turns, start), [start, [0x05, ...le32(0x12345678), 0xff, 0xc9, 0x0f, 0x85, ...le32(-13), 0xf4]]);
};

/** Runs on each engine; all end alike. Gives how many instructions evaluate was asked for. */
function everywhere(code: readonly number[], mode: TestMode, prepare?: (m: TestMachine) => void): number[] {
  const runs = ENGINES.map((engine) => {
    const m = new TestMachine({ engine }).load(code, mode);
    prepare?.(m);
    let stepped = 0;
    const { evaluator } = m.cpu;
    const execute = evaluator.execute.bind(evaluator);
    evaluator.execute = (insn) => {
      stepped++;
      return execute(insn);
    };
    const stop = m.go(200_000);
    const { gpr, rip, rflags } = m.state;
    return { stepped, seen: { stop, gpr: [...gpr], rip, rflags, tick: m.cpu.tick } };
  });
  for (const { seen } of runs) expect(seen).toEqual(runs[0].seen);
  expect(runs[0].seen.stop).toBe('halt');
  return runs.map((run) => run.stepped);
}

describe('an instruction that crosses into the next page', () => {
  it.each([1, 2, 3, 4])('is predecoded, with %i bytes in front', (inside) => {
    for (const mode of ['prot32', 'long'] as const) {
      const [all, ...others] = everywhere(crossingLoop(3000, inside), mode);
      expect(all).toBeGreaterThan(9000);
      for (const stepped of others) expect(stepped).toBeLessThan(20);
    }
  });

  it('ends where each deadline says', () => {
    for (let ticks = 40; ticks < 160; ticks += 9) {
      const [first, ...others] = ENGINES.map((engine) => {
        const m = new TestMachine({ engine }).load(crossingLoop(3000, 3), 'long');
        m.go(ticks);
        return [m.cpu.tick, m.state.rip, m.state.gpr[0], m.state.rflags];
      });
      for (const other of others) expect(other).toEqual(first);
    }
  });

  it('is decoded again when its second page is written', () => {
    // L: add eax, imm32; inc byte [the immediate's last byte]; dec ecx; jnz L; hlt
    const start = END - 2;
    const imm = CODE + start + 4;
    const loop = [
      0x05,
      ...le32(0x01000000),
      0xfe,
      0x04,
      0x25,
      ...le32(imm),
      0xff,
      0xc9,
      0x0f,
      0x85,
      ...le32(-20),
      0xf4,
    ];
    everywhere(pages(enter(300, start), [start, loop]), 'long');
  });

  it('branches, calls and conditional jumps too', () => {
    // L: jnz over the page's end; call F; dec ecx; jnz L; hlt; F: inc eax; ret
    const start = END - 3;
    const loop = [0x0f, 0x85, ...le32(0), 0xe8, ...le32(9), 0xff, 0xc9, 0x0f, 0x85, ...le32(-19), 0xf4];
    everywhere(pages(enter(500, start), [start, [...loop, 0xff, 0xc0, 0xc3]]), 'long');
  });

  it('when the pages behind it take turns', () => {
    const start = END - 2;
    const table = 0x20000;
    const pte = table + (CODE / END + 1) * 8;
    // mov edi, 60; O: xor qword [pte], 3000h; invlpg [CODE + 1000h]; mov ecx, 40; jmp L
    const outer = [0xbf, ...le32(60), 0x48, 0x81, 0x34, 0x25, ...le32(pte), ...le32(0x3000)];
    outer.push(0x0f, 0x01, 0x3c, 0x25, ...le32(CODE + END), 0xb9, ...le32(40));
    outer.push(0xe9, ...le32(start - outer.length - 5));
    // L: add eax, imm32 (two bytes on either side); dec ecx; jnz L; dec edi; jnz O; hlt
    const tail = (high: number): number[] => {
      const code = [0, high, 0x7f, 0xff, 0xc9, 0x0f, 0x85, ...le32(-13), 0xff, 0xcf];
      return [...code, 0x0f, 0x85, ...le32(-(start + 2 + code.length + 6 - 5)), 0xf4];
    };
    const code = pages([0, outer], [start, [0x05, 1]], [END, tail(3)], [2 * END, tail(5)]);
    everywhere(code, 'long', ({ memory }) => {
      for (let page = 0; page < 512; page++) memory.write64(table + page * 8, BigInt(page * END + 3));
      memory.write64(TestLayout.pageTables + 0x2000, BigInt(table + 3));
    });
  });

  it('faults when there is no page behind it', () => {
    const start = END - 2;
    const table = 0x20000;
    const code = pages([0, [0xe9, ...le32(start - 5)]], [start, [0x05, 1, 2, 3, 4]], [0x800, [0xf4]]);
    everywhere(code, 'long', ({ memory }) => {
      for (let page = 0; page < 512; page++) memory.write64(table + page * 8, BigInt(page * END + 3));
      memory.write64(table + (CODE / END + 1) * 8, 0n);
      memory.write64(TestLayout.pageTables + 0x2000, BigInt(table + 3));
      // The handler of #PF is the HLT.
      const handler = CODE + 0x800;
      memory.writeBytes(
        TestLayout.idt + 14 * 16,
        Uint8Array.from([
          handler & 255,
          (handler >> 8) & 255,
          0x18,
          0,
          0,
          0x8e,
          handler >> 16,
          0,
          0,
          0,
          0,
          0,
          0,
          0,
          0,
          0,
        ]),
      );
    });
  });
});

describe('a page that was only looked at for what crosses into it', () => {
  it.each(ENGINES)('is followed once it holds code: %s', (engine) => {
    // HLT with a prefix at the end is for JavaScript. Then FSIN in its place; behind it, in the next page: inc eax, or a NOP; hlt
    const m = new TestMachine({ engine }).load(pages([0, [0xe9, ...le32(END - 1 - 5)]]), 'prot32');
    const next = CODE + END;
    const turn = (...code: readonly number[]): bigint => {
      m.memory.writeBytes(next - 1, Uint8Array.of(0x3e, ...code));
      m.state.rip = BigInt(CODE);
      m.state.activity = 0;
      m.state.gpr[0] = 0n;
      m.cpu.stateReplaced('test');
      expect(m.go()).toBe('halt');
      return m.state.gpr[0]!;
    };
    // The second time the TLB knows the next page.
    for (let n = 0; n < 2; n++) expect(turn(0xf4)).toBe(0n);
    expect(turn(0xd9, 0xfe, 0x40, 0xf4)).toBe(1n);
    expect(turn(0xd9, 0xfe, 0x90, 0xf4)).toBe(0n);
  });
});

describe('a page behind the limit of the code segment', () => {
  it.each(ENGINES)('is not fetched from: %s', (engine) => {
    // Real mode, CS:IP = 1000h:FFF0h, NOPs up to the limit and behind it: #GP, whose handler is HLT.
    const m = new TestMachine({ engine }).load(new Array<number>(0x11000).fill(0x90), 'real');
    m.memory.write8(0x8000, 0xf4);
    m.setHandler(13, 0x8000, 'real');
    m.setSegment(Seg.CS, CODE >> 4, 0x9b, 0xffff, BigInt(CODE));
    m.state.rip = 0xfff0n;
    m.cpu.stateReplaced('test');
    expect(m.go()).toBe('halt');
    expect(m.state.rip).toBe(1n);
    const { access } = m.cpu;
    const known = (linear: number): number => access.tlb.known(linear, 0, access.context(), Tag.exec);
    expect(known(CODE + 0xfff0)).toBe(CODE + 0xfff0);
    expect(known(CODE + 0x10000)).toBe(-1);
  });
});
