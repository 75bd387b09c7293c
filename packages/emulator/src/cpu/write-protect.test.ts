/** MOV to CR0 that changes CR0.WP alone: generated code goes to the other address space by itself, and what WP forbids is forbidden at once. */
import { describe, expect, it } from 'vitest';
import { Layout, TlbEntry } from '../memory/layout.ts';
import { CR4, S } from '../state-layout.ts';
import { TestLayout, TestMachine } from '../testing/index.ts';

const MOV_RAX_CR0 = [0x0f, 0x20, 0xc0];
const MOV_CR0_RAX = [0x0f, 0x22, 0xc0];
const CLEAR = [0x0f, 0xba, 0xf0, 16, ...MOV_CR0_RAX];
const SET = [0x0f, 0xba, 0xe8, 16, ...MOV_CR0_RAX];
const TOGGLE = [0x0f, 0xba, 0xf8, 16, ...MOV_CR0_RAX];
const TOGGLE_WITH_TS = [0x35, 8, 0, 1, 0, ...MOV_CR0_RAX];
/** inc dword [200000h], of a page for reading */
const WRITE = [0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00];
/** inc dword [1ffffeh], into it from the page before */
const WRITE_ACROSS = [0xff, 0x04, 0x25, 0xfe, 0xff, 0x1f, 0x00];
/** xor byte [PDE of 200000h], 20h: its accessed bit */
const FLIP_ACCESSED = [0x80, 0x34, 0x25, 0x08, 0x50, 0x00, 0x00, 0x20];
const BODIES: Readonly<Record<string, readonly number[]>> = {
  'clear, write, set': [...CLEAR, ...WRITE, ...SET],
  'clear, write, set, write': [...CLEAR, ...WRITE, ...SET, ...WRITE],
  'toggle, write': [...TOGGLE, ...WRITE],
  'toggle, write across': [...TOGGLE, ...WRITE_ACROSS],
  'toggle with TS, write': [...TOGGLE_WITH_TS, ...WRITE],
  'toggle three times': [...TOGGLE, ...TOGGLE, ...TOGGLE],
  'clear, write, set, flip the accessed bit, write': [...CLEAR, ...WRITE, ...SET, ...FLIP_ACCESSED, ...WRITE],
};
const TURNS = 300;

function run(engine: 'evaluate' | 'interpret' | 'translate', body: readonly number[], cr4 = 0n, budget = 100_000) {
  const machine = new TestMachine({ engine });
  const { state, cpu, memory } = machine;
  // #PF counts in EDI and steps over the write.
  machine.setHandler(14, 0x2_0000, 'long');
  memory.writeBytes(0x2_0000, Uint8Array.of(0xff, 0xc7, 0x48, 0x83, 0xc4, 8, 0x48, 0x83, 0x04, 0x24, 7, 0x48, 0xcf));
  const turn = [...body, 0xff, 0xcb];
  machine.load([...MOV_RAX_CR0, ...turn, 0x75, -(turn.length + 2) & 0xff, 0xf4], 'long');
  memory.write64(TestLayout.pageTables + 0x2008, 0x20_0085n);
  state.cr4 |= cr4;
  cpu.stateReplaced('test');
  state.gpr[3] = BigInt(TURNS);
  let stop = machine.go(budget);
  while (stop === 'deadline') stop = machine.go(budget);
  const tlb = Buffer.from(memory.u8.buffer, Layout.tlb, Layout.tlbEntries * TlbEntry.size).toString('base64');
  const written = [memory.read32(0x1f_fffe), memory.read32(0x20_0000)];
  return { stop, tick: cpu.tick, rip: state.rip, gprs: [...state.gpr], cr0: state.get64(S.cr0), written, tlb };
}

describe.each(Object.entries(BODIES))('%s', (_name, body) => {
  it('is the same in all engines, what the TLB holds included', () => {
    const expected = run('evaluate', body);
    expect(expected.stop).toBe('halt');
    for (const engine of ['interpret', 'translate'] as const) expect(run(engine, body)).toEqual(expected);
    expect(run('translate', body, 0n, 7)).toEqual(expected);
  });
});
it('half of the writes fault where every second one finds WP set', () => {
  const { written, gprs } = run('translate', BODIES['toggle, write']);
  expect([written[1], gprs[7]]).toEqual([TURNS / 2, BigInt(TURNS / 2)]);
});
it('refuses to clear WP while CR4.CET is set', () => {
  const expected = run('evaluate', BODIES['toggle three times'], CR4.CET);
  expect(run('interpret', BODIES['toggle three times'], CR4.CET)).toEqual(expected);
});
