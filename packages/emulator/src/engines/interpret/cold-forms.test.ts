import { describe, expect, it } from 'vitest';
import { TestMachine, type TestMode } from '../../testing/index.ts';
import { Stopwatch } from '../stopwatch.ts';
import { ColdForms, type FormOptions, IN_TURN } from './cold-forms.ts';
import type { Form } from './form.ts';
import type { FormInfo, HandlerSet } from './handlers.ts';
import { PLAIN } from './main-module.ts';

const form = (n: number): Form => ({ ...PLAIN, mnemonic: 'pshufd', vector: { vex: false, wide: false, imm: n } });

/** Handlers that take note of what is made, up to so many. */
class Made {
  readonly modules: number[] = [];
  room: number;
  constructor(room = Number.POSITIVE_INFINITY) {
    this.room = room;
  }
  isHot = (): boolean => false;
  isUsual = (): boolean => false;
  hasUsual = true;
  make(forms: readonly Form[]): (FormInfo | null)[] {
    this.modules.push(forms.length);
    return forms.map((one) => (this.room-- > 0 ? ({ form: one } as FormInfo) : null));
  }
  get forms(): number {
    return this.modules.reduce((sum, count) => sum + count, 0);
  }
}

function setUp(options: Partial<FormOptions> = {}, made = new Made()) {
  let ticks = 0;
  const forms = new ColdForms({ ...IN_TURN, ...options }, new Stopwatch(), (more) => void (ticks += more));
  const handlers = made as unknown as HandlerSet;
  const index = (n: number): number => forms.of(handlers, form(n))!.index;
  return { forms, made, handlers, index, ticks: () => ticks };
}

describe('forms without a handler', () => {
  it('have none before they have run often, and enough has run meanwhile to be worth a module', () => {
    const { forms, made, index } = setUp({ runs: 4, gather: 6 });
    const [first, second, rare] = [index(1), index(2), index(3)];
    expect([first, index(1)]).toEqual([1, 1]);
    expect(forms.ran(rare)).toBe(false);
    for (let n = 0; n < 4; n++) expect([forms.ran(first), forms.ran(second)]).toEqual([false, false]);
    // Two runs of six have counted.
    expect([forms.ran(first), forms.ran(second), forms.ran(first)]).toEqual([false, false, false]);
    expect(made.modules).toEqual([]);
    expect(forms.ran(first)).toBe(true);
    expect(made.modules).toEqual([2]);
    expect([forms.ran(second), forms.ran(rare)]).toEqual([true, false]);
  });

  it.each([
    ['new ones without an end', 0],
    ['some generated code between them', 100],
    ['as few as there is always room for', 10_000],
  ])('whatever a guest runs, two million ticks see no more handlers made than they pay for: %s', (_what, between) => {
    const { forms, made, index, ticks } = setUp();
    const TURN = 2_000_000;
    const all = Array.from({ length: 12_000 }, (_, n) => index(n));
    const perTurn = [];
    let next = 0;
    for (let turn = 0; turn < 3; turn++) {
      const before = ticks();
      for (let passed = 0; passed < TURN; passed += 16 + between) {
        const one = all[next++ % all.length]!;
        for (let n = 0; n < 16; n++) forms.ran(one);
        forms.elapsed(between);
      }
      perTurn.push((ticks() - before) / IN_TURN.ticksEach);
    }
    const most = TURN / IN_TURN.ticksEach;
    for (const handlers of perTurn) expect(handlers).toBeLessThanOrEqual(most + IN_TURN.burst);
    const sum = perTurn.reduce((a, b) => a + b);
    expect(sum).toBeLessThanOrEqual(3 * most + IN_TURN.burst);
    // A module costs as much as four.
    expect(made.forms + 4 * made.modules.length).toBe(sum);
    if (between < 10_000) expect(sum).toBeGreaterThan(3 * most);
  });

  it('stay with evaluate where the table is full', () => {
    const { forms, made, index } = setUp({ runs: 1, gather: 3 }, new Made(2));
    const [first, second, third] = [index(1), index(2), index(3)];
    expect([forms.ran(first), forms.ran(second), forms.ran(third)]).toEqual([false, false, false]);
    expect([forms.ran(first), forms.ran(second)]).toEqual([true, true]);
    for (let n = 0; n < 100; n++) expect(forms.ran(third)).toBe(false);
    expect(made.modules).toEqual([3]);
  });

  it('are cold again after a reset, with the same ticks to spend: the same run makes the same', () => {
    const { forms, made, index } = setUp({ runs: 3, gather: 1 });
    const run = (): boolean[] => Array.from({ length: 200 }, (_, n) => forms.ran(index(n % 20)));
    const first = run();
    const modules = [...made.modules];
    forms.clear();
    expect(run()).toEqual(first);
    expect(made.modules).toEqual([...modules, ...modules]);
  });

  it('at once means that there are none', () => {
    const { forms, handlers } = setUp({ runs: 0 });
    expect(forms.of(handlers, form(1))).toBeNull();
  });
});

const le = (x: number): number[] => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];
/** mov ecx, turns; L: body; dec ecx; jnz L; hlt */
const loop = (turns: number, body: readonly number[]): number[] => [
  ...[0xb9, ...le(turns), ...body],
  ...[0xff, 0xc9, 0x0f, 0x85, ...le(-(body.length + 8)), 0xf4],
];

/** Runs a loop on evaluate and on interpret; both end alike. Gives what interpret had evaluated, by mnemonic. */
function evaluated(code: readonly number[], mode: TestMode, at?: number): Record<string, number> {
  const seen: Record<string, number>[] = [];
  const ends = (['evaluate', 'interpret'] as const).map((engine) => {
    const m = new TestMachine({ engine, forms: { usual: false, runs: 10, gather: 1, ticksEach: 1, burst: 50 } }).load(
      code,
      mode,
      at,
    );
    const counts: Record<string, number> = {};
    const { evaluator } = m.cpu;
    const execute = evaluator.execute.bind(evaluator);
    evaluator.execute = (insn) => {
      counts[insn.row.mnemonic] = (counts[insn.row.mnemonic] ?? 0) + 1;
      return execute(insn);
    };
    const stop = m.go(200_000);
    seen.push(counts);
    return { stop, gpr: [...m.state.gpr], rip: m.state.rip, rflags: m.state.rflags, tick: m.cpu.tick };
  });
  expect(ends[1]).toEqual(ends[0]);
  expect(ends[0]!.stop).toBe('halt');
  return seen[1]!;
}

describe('an instruction without a handler', () => {
  it('is evaluated, and goes on in generated code once its form has one', () => {
    // bswap eax; adc eax, ecx; xadd eax, edx
    const counts = evaluated(loop(1000, [0x0f, 0xc8, 0x11, 0xc8, 0x0f, 0xc1, 0xd0]), 'long');
    expect(counts).toEqual({ bswap: 9, adc: 9, xadd: 9 });
  });

  it('may branch', () => {
    // loopne behind, over a nop: loopne +1; nop; inc ecx
    const counts = evaluated(loop(500, [0xe0, 0x01, 0x90, 0xff, 0xc1]), 'prot32');
    expect(counts.loopne).toBe(9);
  });

  it('may be repeated: each iteration is a run', () => {
    // push ecx; mov ecx, 7; mov edi, esi; repe cmpsb; pop ecx
    const counts = evaluated(loop(100, [0x51, 0xb9, ...le(7), 0x89, 0xf7, 0xf3, 0xa6, 0x59]), 'prot32');
    expect(counts.cmps).toBe(9);
  });

  it('may be STI, whose shadow the next one is in', () => {
    // cli; nop; sti; xchg eax, edx
    const counts = evaluated(loop(500, [0xfa, 0x90, 0xfb, 0x87, 0xd0]), 'long');
    expect(counts.xchg).toBe(9);
    expect(counts.sti).toBeLessThan(20);
  });

  it('may cross into the next page', () => {
    // The ADC that the loop begins with has its last two bytes there.
    const counts = evaluated(loop(500, [0x81, 0xd0, ...le(0x1234)]), 'long', 0x10fff - 5 - 3);
    expect(counts.adc).toBe(9);
  });
});
