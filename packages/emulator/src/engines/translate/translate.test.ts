import { describe, expect, it } from 'vitest';
import { CR4 } from '../../state-layout.ts';
import type { TestMode } from '../../testing/index.ts';
import { TestLayout, TestMachine } from '../../testing/index.ts';
import { InterpretEngine } from '../interpret/interpret.ts';
import { TranslateEngine } from './translate.ts';

const CODE = 0x10000;
const le32 = (x: number): number[] => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];

interface Run {
  machine: TestMachine;
  engine: TranslateEngine;
}

/** A machine on translate that looks at what runs as often as it can. */
function machine(code: readonly number[], mode: TestMode, options = {}): Run {
  const m = new TestMachine({ size: 0x400000 });
  m.load(code, mode, CODE);
  const engine = new TranslateEngine(m.cpu, { vendor: 'amd', translate: { sample: 100, hot: 1, ...options } });
  m.cpu.engine = engine;
  return { machine: m, engine };
}
const interpreted = (code: readonly number[], mode: TestMode): TestMachine => {
  const m = new TestMachine({ size: 0x400000 });
  m.load(code, mode, CODE);
  m.cpu.engine = new InterpretEngine(m.cpu, { vendor: 'amd' });
  return m;
};

function expectSame(a: TestMachine, b: TestMachine): void {
  for (let n = 0; n < 16; n++) expect([n, a.state.gpr[n]]).toEqual([n, b.state.gpr[n]]);
  expect(a.state.rip).toBe(b.state.rip);
  expect(a.state.rflags).toBe(b.state.rflags);
  expect(a.cpu.tick).toBe(b.cpu.tick);
  expect(Buffer.compare(a.memory.readBytes(0, a.memory.size), b.memory.readBytes(0, b.memory.size))).toBe(0);
}

/** Runs both to the end and compares. */
function compare(code: readonly number[], mode: TestMode, ticks = 1_000_000, options = {}): TranslateEngine {
  const { machine: m, engine } = machine(code, mode, options);
  const reference = interpreted(code, mode);
  expect(m.go(ticks)).toBe(reference.go(ticks));
  expectSame(m, reference);
  return engine;
}

// mov ecx, 1000; L: add eax, ecx; dec ecx; jnz L; hlt
const SUM = [0xb9, ...le32(1000), 0x01, 0xc8, 0x49, 0x75, 0xfb, 0xf4];

describe('what is translated', () => {
  it('a loop, once', () => {
    const engine = compare(SUM, 'prot32');
    expect(engine.statistics.regions).toBe(1);
  });

  it('a loop in 64-bit code with a call and a return in it', () => {
    // mov ecx, 1000; L: call F; dec ecx; jnz L; hlt; F: add rax, rcx; ret
    const code = [0xb9, ...le32(1000), 0xe8, 5, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf7, 0xf4, 0x48, 0x01, 0xc8, 0xc3];
    const engine = compare(code, 'long');
    expect(engine.statistics.regions).toBe(1);
  });

  it('a block that two branches of one block reach is written once, however deep they nest', () => {
    // mov ecx, 1000; L: 12 times: test cl, m; jnz N; test cl, m'; jnz N; jmp E; N: ...; E: dec ecx; jnz L; hlt
    const levels = 12;
    const length = 15;
    const body = Array.from({ length: levels }, (_, k) => [
      ...[0xf6, 0xc1, 1 << (k & 7), 0x75, 10, 0xf6, 0xc1, 0xff ^ (1 << (k & 7)), 0x75, 5],
      ...[0xe9, ...le32((levels - k - 1) * length)],
    ]).flat();
    const code = [0xb9, ...le32(1000), ...body, 0x49, 0x0f, 0x85, ...le32(-(levels * length + 7)), 0xf4];
    const { regions, bytes } = compare(code, 'prot32').statistics;
    expect(regions).toBeGreaterThan(0);
    expect(bytes / regions).toBeLessThan(12_000);
  });

  it('a loop in the page behind the one that the look-out started in', () => {
    // mov ebp, 200; jmp to the page's end: O: cpuid, 20 times; next page: mov ecx, 3; L: xor esi, ecx; dec ecx; jnz L; dec ebp; jnz O; hlt
    const bytes = new Array<number>(0x1000).fill(0x90);
    const outer = 0x1000 - 40;
    bytes.splice(0, 10, 0xbd, ...le32(200), 0xe9, ...le32(outer - 10));
    for (let at = outer; at < 0x1000; at += 2) bytes.splice(at, 2, 0x0f, 0xa2);
    const loop = [0x31, 0xce, 0xff, 0xc9, 0x75, 0xfa, 0xff, 0xcd];
    bytes.push(0xb9, ...le32(3), ...loop, 0x0f, 0x85, ...le32(-(5 + loop.length + 6 + 40)), 0xf4);
    for (let sample = 80; sample < 100; sample++) {
      expect(compare(bytes, 'prot32', 1_000_000, { sample }).statistics.regions).toBeGreaterThan(0);
    }
  });

  it('LOOP to a page that is not in the region counts once', () => {
    // mov ecx, 2000; jmp to the page's end: O: in al, 80h; next page: inc ebx, ten times; loop O; hlt
    const bytes = new Array<number>(0x1000).fill(0x90);
    bytes.splice(0, 10, 0xb9, ...le32(2000), 0xe9, ...le32(0x1000 - 2 - 10));
    bytes.splice(0x1000 - 2, 2, 0xe4, 0x80);
    for (let i = 0; i < 10; i++) bytes.push(0xff, 0xc3);
    bytes.push(0xe2, -(20 + 2 + 2) & 255, 0xf4);
    for (const mode of ['prot32', 'long'] as const) {
      const { machine: m, engine } = machine(bytes, mode);
      const reference = interpreted(bytes, mode);
      for (const x of [m, reference]) {
        x.go(100);
        x.state.rip = BigInt(CODE + 0x1000);
      }
      expect(engine.translateHere()).toBe(true);
      expect(m.go()).toBe(reference.go());
      expectSame(m, reference);
    }
  });

  it('every deadline is exact', () => {
    for (let ticks = 2000; ticks < 2200; ticks += 7) {
      const { machine: m } = machine(SUM, 'prot32');
      expect(m.go(ticks)).toBe('deadline');
      expect(m.cpu.tick).toBe(ticks);
      const reference = interpreted(SUM, 'prot32');
      reference.go(ticks);
      expectSame(m, reference);
    }
  });
});

describe('accesses around one address', () => {
  const TABLE = 0x80000;
  const PAGES = 128;
  /** Linear 200000h and up: frames from 100000h on, the last one first. `odd`: an entry of its own. */
  const scatter = (m: TestMachine, odd: { page: number; flags: number }): void => {
    for (let page = 0; page < PAGES; page++) {
      const flags = page === odd.page ? odd.flags : 3;
      m.memory.write64(TABLE + page * 8, BigInt(0x100000 + (PAGES - 1 - page) * 0x1000 + flags));
    }
    m.memory.write64(TestLayout.pageTables + 0x2008, BigInt(TABLE + 3));
    for (let at = 0; at < PAGES * 0x1000; at += 4) m.memory.write32(0x100000 + at, (at * 2654435761) >>> 0);
  };
  // mov esi, 200010h; mov ecx, 3000; L: mov eax, [rsi+8]; add [rsi], eax; mov edx, [rsi-10h]; mov [rsi+20h], edx; mov rdi, [rsi+3ch];
  // mov [rsi-4], edi; cmp edi, edx; cmovc eax, [rsi+24h]; movups xmm0, [rsi]; movups [rsi+10h], xmm0; add esi, 35h; dec ecx; jnz L; hlt
  const body = [0x8b, 0x46, 0x08, 0x01, 0x06, 0x8b, 0x56, 0xf0, 0x89, 0x56, 0x20, 0x48, 0x8b, 0x7e, 0x3c];
  body.push(0x89, 0x7e, 0xfc, 0x39, 0xd7, 0x0f, 0x42, 0x46, 0x24, 0x0f, 0x10, 0x06, 0x0f, 0x11, 0x46, 0x10);
  body.push(0x83, 0xc6, 0x35, 0xff, 0xc9);
  const code = [0xbe, ...le32(0x200010), 0xb9, ...le32(3000), ...body, 0x75, -(body.length + 2) & 255, 0xf4];

  it.each([
    ['all pages are there', -1, 3],
    ['a page is not there', 20, 0],
    ['a page is read-only', 20, 1],
  ])('some of them in the next page, which lies elsewhere: %s', (_, page, flags) => {
    const { machine: m, engine } = machine(code, 'long');
    const reference = interpreted(code, 'long');
    for (const x of [m, reference]) {
      x.state.cr4 |= CR4.OSFXSR;
      scatter(x, { page, flags });
    }
    expect(m.go(1_000_000)).toBe(reference.go(1_000_000));
    expectSame(m, reference);
    expect(engine.statistics.regions).toBeGreaterThan(0);
    expect(m.state.gpr[6]).toBeGreaterThan(0x200010n);
  });
});

describe('leaving in the middle', () => {
  it('a page fault in a loop shows the flags and registers of the instruction in front', () => {
    // mov esi, 3FF000h; mov ecx, 10000; L: add eax, ecx; mov edx, [rsi]; inc rsi; dec ecx; jnz L; hlt
    // Beyond 4 MB nothing is RAM: the slow path reads ones.
    const loop = [0x01, 0xc8, 0x8b, 0x16, 0x48, 0xff, 0xc6, 0xff, 0xc9, 0x75, 0xf5];
    const code = [0xbe, ...le32(0x3ff000), 0xb9, ...le32(10_000), ...loop, 0xf4];
    compare(code, 'long');
  });

  it('a segment limit in 16-bit code', () => {
    // mov si, FF00h; L: add ax, [si]; inc si; jnz L; then [FFFFh] faults: word beyond the limit
    const code = [0xbe, 0x00, 0xff, 0x03, 0x04, 0x46, 0x75, 0xfb, 0xf4];
    const { machine: m } = machine(code, 'real');
    const reference = interpreted(code, 'real');
    for (const x of [m, reference]) x.memory.writeBytes(13 * 4, Uint8Array.of(8, 0, 0, 0x10));
    expect(m.go(50_000)).toBe(reference.go(50_000));
    expectSame(m, reference);
  });

  it('an interrupt shadow, CLI and STI in a loop', () => {
    // mov ecx, 1000; L: cli; add eax, ecx; sti; dec ecx; jnz L; hlt
    compare([0xb9, ...le32(1000), 0xfa, 0x01, 0xc8, 0xfb, 0x49, 0x75, 0xf9, 0xf4], 'prot32');
  });

  it('STI with an instruction behind it that stays, and one that does not', () => {
    // mov ecx, 1000; L: cli; sti; nop; add eax, ecx; cli; sti; cpuid; dec ecx (CPUID: again from the stack); jnz L; hlt
    const loop = [0xfa, 0xfb, 0x90, 0x01, 0xce, 0xfa, 0xfb, 0x51, 0x31, 0xc0, 0x0f, 0xa2, 0x59, 0x49];
    compare([0xb9, ...le32(1000), ...loop, 0x75, -(loop.length + 2) & 0xff, 0xf4], 'prot32');
    // Each deadline, also those between STI and what follows.
    for (let ticks = 1; ticks < 60; ticks++) {
      const [m, reference] = [machine([0xfa, 0xfb, 0x90, 0x40, 0xeb, 0xfa], 'prot32').machine, new TestMachine()];
      reference.load([0xfa, 0xfb, 0x90, 0x40, 0xeb, 0xfa], 'prot32', CODE);
      for (const x of [m, reference]) x.go(ticks);
      expect([m.state.gpr[0], m.state.rip, m.state.rflags, m.state.shadow]).toEqual([
        reference.state.gpr[0],
        reference.state.rip,
        reference.state.rflags,
        reference.state.shadow,
      ]);
    }
  });

  it('a division that overflows in the thousandth turn', () => {
    // mov ebx, 1000; L: xor edx, edx; mov eax, 12345; div ebx; add esi, edx; dec ebx; jmp L
    const code = [0xbb, ...le32(1000), 0x31, 0xd2, 0xb8, ...le32(12345), 0xf7, 0xf3, 0x01, 0xd6, 0x4b, 0xeb, 0xf2];
    compare(code, 'prot32', 20_000);
  });
});

describe('code that changes', () => {
  it('a loop that rewrites the immediate of its next instruction', () => {
    // mov ecx, 500; L: mov [imm], cl; add eax, imm8 (sign-extended); dec ecx; jnz L; hlt
    const at = CODE + 5 + 6;
    const code = [0xb9, ...le32(500), 0x88, 0x0d, ...le32(at + 2), 0x83, 0xc0, 0, 0x49, 0x75, 0xf4, 0xf4];
    const engine = compare(code, 'prot32');
    // It is left to the interpreter before long.
    expect(engine.statistics.regions).toBeLessThan(10);
  });

  it('data beside code in one page leaves translations alone', () => {
    // mov ecx, 2000; L: inc dword [CODE + 800h]; dec ecx; jnz L; hlt
    const code = [0xb9, ...le32(2000), 0xff, 0x05, ...le32(CODE + 0x800), 0x49, 0x75, 0xf7, 0xf4];
    const engine = compare(code, 'prot32');
    expect(engine.statistics.invalidated).toBe(0);
  });

  it('an outsider writes into a translated loop', () => {
    const { machine: m, engine } = machine(SUM, 'prot32');
    m.go(1500);
    expect(engine.statistics.live).toBe(1);
    // sub eax, ecx from now on
    m.memory.write8(CODE + 5, 0x29);
    expect(engine.statistics.live).toBe(0);
    const reference = interpreted(SUM, 'prot32');
    reference.go(1500);
    reference.memory.write8(CODE + 5, 0x29);
    expect(m.go()).toBe(reference.go());
    expectSame(m, reference);
  });

  it('a loop over two pages, one of which changes its place', () => {
    // At the end of a page: L: add eax, ecx; jmp next page: dec ecx; jnz L; hlt
    const start = 0x1000 - 12;
    const bytes = new Array<number>(0x2000).fill(0x90);
    const put = (at: number, list: readonly number[]): void => void bytes.splice(at, list.length, ...list);
    put(0, [0xb9, ...le32(3000), 0xe9, ...le32(start - 10)]);
    put(start, [0x01, 0xc8, 0xe9, ...le32(0x1000 - (start + 7))]);
    put(0x1000, [0xff, 0xc9, 0x0f, 0x85, ...le32(start - 0x1008), 0xf4]);
    const engine = compare(bytes, 'long');
    expect(engine.statistics.regions).toBeGreaterThan(0);
    const { machine: m } = machine(bytes, 'long');
    const reference = interpreted(bytes, 'long');
    for (const x of [m, reference]) {
      x.go(4000);
      // The second page holds another loop's end now: sub ecx, 2.
      x.memory.writeBytes(CODE + 0x1000, Uint8Array.of(0x83, 0xe9, 2, 0x0f, 0x8f, ...le32(start - 0x1009), 0xf4));
    }
    expect(m.go()).toBe(reference.go());
    expectSame(m, reference);
  });
});

describe('hostile code', () => {
  it('a page that is rewritten and run again 20,000 times takes no memory of the host for each', () => {
    // mov ecx, 20000; L: mov [F + 1], cl; call F; dec ecx; jnz L; hlt; next page: F: add al, imm8; ret
    const at = CODE + 0x1000;
    const head = [0xb9, ...le32(20_000), 0x88, 0x0d, ...le32(at + 1), 0xe8, ...le32(0x1000 - 16)];
    const code = [...head, 0x49, 0x75, 0xf2, 0xf4];
    const bytes = [...code, ...new Array<number>(0x1000 - code.length).fill(0x90), 0x04, 0, 0xc3];
    const before = process.memoryUsage().arrayBuffers;
    compare(bytes, 'prot32', 200_000);
    // Two machines' memories are in there, too.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(200 * 2 ** 20);
  });

  it('a jump to each byte of a page', () => {
    // Page of nops and single-byte instructions, entered everywhere by a loop: mov ecx, 4000; L: lea eax, [ecx + CODE + 1000h]; call eax; dec ecx; jnz L
    const head = [0xb9, ...le32(4000), 0x8d, 0x81, ...le32(CODE + 0x1000), 0xff, 0xd0, 0x49, 0x75, 0xf5, 0xf4];
    const bytes = [...head, ...new Array<number>(0x1000 - head.length).fill(0x90)];
    for (let i = 0; i < 0xfff; i++) bytes.push(i % 7 === 6 ? 0xc3 : 0x40 + (i % 3));
    bytes.push(0xc3);
    compare(bytes, 'prot32');
  });

  // 100 loops in a row, three times
  const one = [0xb9, ...le32(150), 0x01, 0xc8, 0x49, 0x75, 0xfb];
  const loops = Array.from({ length: 100 }, () => one).flat();
  const many = [0xbb, ...le32(3), ...loops, 0x4b, 0x0f, 0x85, ...le32(-(loops.length + 7)), 0xf4];

  it('more loops than are kept: the oldest go', () => {
    const engine = compare(many, 'prot32', 1_000_000, { maxInstructions: 250, maxBytes: 8192 });
    expect(engine.statistics.evicted).toBeGreaterThan(10);
    expect(engine.statistics.bytes).toBeLessThanOrEqual(8192);
  });

  it('hundreds of tiny loops, each hot at once: what is kept stays within its bounds', () => {
    const crowd = Array.from({ length: 500 }, () => one).flat();
    const engine = compare([...crowd, 0xf4], 'prot32', 2_000_000, { maxBytes: 2 ** 15 });
    const { regions, live, bytes, evicted } = engine.statistics;
    expect(regions).toBeGreaterThan(20);
    expect(evicted).toBeGreaterThan(10);
    expect(bytes).toBeLessThanOrEqual(2 ** 15);
    expect(live + evicted).toBe(regions);
  });

  it('loops that get hot in a crowd come several to a module', () => {
    // mov ecx, 10; L: inc eax, 60 times; dec ecx; jnz L; an indirect jump keeps it apart: mov edx, behind; jmp edx
    const body = [...new Array<number>(60).fill(0x40), 0x49, 0x75, -63 & 255];
    const length = 5 + body.length + 7;
    const loop = (n: number) => [0xb9, ...le32(10), ...body, 0xba, ...le32(CODE + 5 + (n + 1) * length), 0xff, 0xe2];
    const crowd = Array.from({ length: 40 }, (_, n) => loop(n)).flat();
    const program = [0xbb, ...le32(30), ...crowd, 0x4b, 0x0f, 0x85, ...le32(-(crowd.length + 7)), 0xf4];
    const { regions, modules } = compare(program, 'prot32', 2_000_000, { hot: 2 }).statistics;
    expect(regions).toBeGreaterThan(10);
    expect(modules).toBeLessThan(regions / 2);
  });

  it('more entries than the table has: all start anew', () => {
    const engine = compare(many, 'prot32', 1_000_000, { maxInstructions: 250, maxEntries: 30 });
    expect(engine.statistics.evicted).toBeGreaterThan(9);
    expect(engine.statistics.live).toBeLessThanOrEqual(30);
  });
});
