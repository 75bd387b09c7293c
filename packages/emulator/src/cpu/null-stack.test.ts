/** A null SS that 64-bit mode allows comes along into compatibility mode, where whatever uses the stack is #SS(0), on all engines. */
import { describe, expect, it } from 'vitest';
import { Attrib, Seg } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

const HANDLER = 0x2_0000;
const HLT = 0xf4;
const USES: Readonly<Record<string, readonly number[]>> = {
  push: [0x50],
  pushf: [0x9c],
  popf: [0x9d],
  'call far': [0x9a, 0, 0, 1, 0, 8, 0],
  retf: [0xcb],
  iret: [0xcf],
  pusha: [0x60],
  enter: [0xc8, 8, 0, 0],
  'push ds': [0x1e],
};

describe.each(['evaluate', 'interpret', 'translate'] as const)('%s', (engine) => {
  it.each(Object.entries(USES))('%s', (_, code) => {
    const machine = new TestMachine({ engine });
    const { state, memory } = machine;
    machine.load([...code, HLT], 'long');
    machine.setHandler(12, HANDLER, 'long');
    memory.write8(HANDLER, HLT);
    const cs = state.getSegment(Seg.CS);
    state.setSegment(Seg.CS, { ...cs, attrib: (cs.attrib & ~Attrib.L) | Attrib.DB });
    state.setSegment(Seg.SS, { ...state.getSegment(Seg.SS), selector: 0, attrib: Attrib.unusable });
    machine.cpu.stateReplaced('test');
    expect(machine.go(100)).toBe('halt');
    expect([state.rip, memory.read32(Number(state.gpr[4]))]).toEqual([BigInt(HANDLER + 1), 0]);
  });
});
