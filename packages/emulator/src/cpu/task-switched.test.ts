/** CLTS and MOV to CR0 that change CR0.TS alone: generated code does them, and what TS forbids is forbidden at once. */
import { describe, expect, it } from 'vitest';
import { CR0, CR4, S } from '../state-layout.ts';
import { TestMachine, type TestMode } from '../testing/index.ts';

const MOV_EAX_CR0 = [0x0f, 0x20, 0xc0];
const MOV_CR0_EAX = [0x0f, 0x22, 0xc0];
const CLTS = [0x0f, 0x06];
const OR_AL_TS = [0x0c, 0x08];
const MOVAPS = [0x0f, 0x28, 0xc1];
const FLD1 = [0xd9, 0xe8];
const BODIES: Readonly<Record<string, readonly number[]>> = {
  'mov cr0, eax with TS; clts; movaps': [...MOV_EAX_CR0, ...OR_AL_TS, ...MOV_CR0_EAX, ...CLTS, ...MOVAPS],
  'mov cr0, eax with TS; movaps': [...CLTS, ...MOV_EAX_CR0, ...OR_AL_TS, ...MOV_CR0_EAX, ...MOVAPS],
  'mov cr0, eax with TS; fld1': [...CLTS, ...MOV_EAX_CR0, ...OR_AL_TS, ...MOV_CR0_EAX, ...FLD1],
  'clts; movaps; mov cr0, eax with TS': [...CLTS, ...MOVAPS, ...MOV_EAX_CR0, ...OR_AL_TS, ...MOV_CR0_EAX],
  'mov cr0, eax without ET': [...MOV_EAX_CR0, 0x24, 0xef, ...MOV_CR0_EAX],
  'mov cr0, eax that toggles WP': [...MOV_EAX_CR0, 0x35, 0x00, 0x00, 0x01, 0x00, ...MOV_CR0_EAX],
};

function run(engine: 'evaluate' | 'interpret' | 'translate', mode: TestMode, body: readonly number[], cpl = 0) {
  const machine = new TestMachine({ engine });
  const { state, cpu } = machine;
  // #NM counts in EDI and clears TS; #GP ends the run.
  machine.setHandler(7, 0x2_0000, mode);
  machine.setHandler(13, 0x2_0100, mode);
  machine.memory.writeBytes(0x2_0000, Uint8Array.of(0x0f, 0x06, 0xff, 0xc7, ...(mode === 'long' ? [0x48] : []), 0xcf));
  machine.memory.writeBytes(0x2_0100, Uint8Array.of(0xf4));
  const turn = [...body, 0xff, 0xcb];
  machine.load([...turn, 0x75, -(turn.length + 2) & 0xff, 0xf4], mode);
  state.cr4 |= CR4.OSFXSR | CR4.OSXMMEXCPT;
  state.cr0 &= ~CR0.EM;
  state.cpl = cpl;
  cpu.stateReplaced('test');
  state.gpr[3] = 300n;
  state.gpr[7] = 0n;
  const stop = machine.go(100_000);
  return { stop, tick: cpu.tick, rip: state.rip, rax: machine.reg(0), edi: state.gpr[7], cr0: state.get64(S.cr0) };
}

describe.each(['prot32', 'long'] as const)('%s', (mode) => {
  it.each(Object.entries(BODIES))('%s', (_name, body) => {
    const expected = run('evaluate', mode, body);
    expect(expected.stop).toBe('halt');
    for (const engine of ['interpret', 'translate'] as const) expect(run(engine, mode, body)).toEqual(expected);
  });
  it('counts an #NM a turn', () => {
    expect(run('translate', mode, BODIES['mov cr0, eax with TS; movaps']).edi).toBe(300n);
  });
  it('is privileged', () => {
    const expected = run('evaluate', mode, CLTS, 3);
    expect(run('interpret', mode, CLTS, 3)).toEqual(expected);
  });
});

it('somebody who listens to the mode sees every write', () => {
  const machine = new TestMachine({ engine: 'interpret' });
  machine.load([...CLTS, ...MOV_EAX_CR0, ...OR_AL_TS, ...MOV_CR0_EAX, 0x0f, 0x20, 0xc3, 0xf4], 'prot32');
  machine.cpu.onModeChange = () => {};
  machine.go();
  expect(machine.reg(3) & 8n).toBe(8n);
});
