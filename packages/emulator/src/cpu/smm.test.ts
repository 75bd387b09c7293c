import { describe, expect, it } from 'vitest';
import type { ModeChange } from '../processor-api.ts';
import { CR0, CR4, S, Seg } from '../state-layout.ts';
import { TestMachine, type TestMode, testModel } from '../testing/index.ts';

const RSM = [0x0f, 0xaa];
const HANDLER = 0x38000;

function interrupted(mode: TestMode, handler: number[], longMode = true) {
  const model = testModel('amd', longMode ? {} : { drop: ['lm'] });
  const machine = new TestMachine({ model });
  machine.load([0x40, 0x90, 0xf4], mode);
  machine.memory.writeBytes(HANDLER, Uint8Array.from(handler));
  machine.state.rflags |= 0x800n;
  const changes: ModeChange[] = [];
  machine.cpu.onModeChange = (change) => changes.push(change);
  machine.cpu.smiPending = true;
  return { machine, changes };
}
const path = (changes: ModeChange[]): string[] =>
  changes.map((c) => `${c.cause}: ${c.from.name} > ${c.to.name}${c.to.smm ? ' (SMM)' : ''}`);

describe.each(['real', 'prot32', 'long'] as const)('SMI in %s mode', (mode) => {
  it('saves, runs the handler as 16-bit code at SMBASE + 8000h, and RSM brings all of it back', () => {
    // mov word [0100h], ax; rsm
    const { machine, changes } = interrupted(mode, [0xa3, 0, 1, ...RSM]);
    machine.state.gpr[0] = 0xabcdn;
    const before = machine.state.u8.slice();
    machine.cpu.deadline = 2;
    machine.cpu.run();
    expect(path(changes)).toEqual([
      `smi: ${mode === 'prot32' ? 'protected32' : mode} > unreal (SMM)`,
      `rsm: unreal > ${mode === 'prot32' ? 'protected32' : mode}`,
    ]);
    expect(machine.memory.read16(0x100)).toBe(0xabcd);
    const same = [S.gpr, S.rip, S.rflags, S.cr0, S.cr3, S.cr4, S.efer, S.dr7];
    const now = machine.state.u8;
    for (const at of same) expect([at, ...now.slice(at, at + 8)]).toEqual([at, ...before.slice(at, at + 8)]);
    expect(now.slice(S.segments, S.segments + 160)).toEqual(before.slice(S.segments, S.segments + 160));
    expect(machine.state.cpl).toBe(0);
    expect(machine.go()).toBe('halt');
  });
});

describe('SMM', () => {
  it('blocks NMI until RSM, and SMI inside SMM', () => {
    const { machine } = interrupted('prot32', [0x90, 0x90, ...RSM]);
    machine.go(1);
    expect(machine.state.smm).toBe(true);
    expect(machine.state.nmiBlocked).toBe(true);
    machine.cpu.smiPending = true;
    machine.go(1);
    expect(machine.state.rip).toBe(0x8002n);
    machine.cpu.smiPending = false;
    machine.go(1);
    expect([machine.state.smm, machine.state.nmiBlocked]).toEqual([false, false]);
  });
  it('relocates SMBASE for the next SMI', () => {
    // mov dword [cs:FF00h], 50000h through DS of base 0: DS:3FF00h with a 32-bit address
    const { machine } = interrupted('prot32', [0x66, 0x67, 0xc7, 0x05, 0, 0xff, 3, 0, 0, 0, 5, 0, ...RSM]);
    machine.go(2);
    expect(machine.state.get64(S.smbase)).toBe(0x50000n);
    machine.memory.writeBytes(0x58000, Uint8Array.from(RSM));
    machine.cpu.smiPending = true;
    machine.cpu.deadline = machine.cpu.tick;
    machine.cpu.run();
    expect(machine.state.segmentBase(Seg.CS)).toBe(0x50000n);
    expect(machine.state.getSegment(Seg.CS).selector).toBe(0x5000);
    expect(machine.state.rip).toBe(0x8000n);
  });
  it('a corrupt CR0 in the map shuts the processor down', () => {
    // CR0 at 3FF58h: PG without PE
    const { machine } = interrupted('long', [0x66, 0x67, 0xc7, 0x05, 0x58, 0xff, 3, 0, 0, 0, 0, 0x80, ...RSM]);
    expect(machine.go()).toBe('shutdown');
  });
  it('uses the 32-bit map on a model without long mode', () => {
    const { machine } = interrupted('prot32', RSM, false);
    machine.cpu.deadline = 0;
    machine.cpu.run();
    expect(machine.memory.read32(0x3fefc)).toBe(0x00020000);
    expect(machine.memory.read32(0x3fffc)).toBe(Number(CR0.PE | CR0.ET | CR0.NE));
    machine.go(1);
    expect(machine.cpu.mode().name).toBe('protected32');
  });
  it('comes back into paging with PCID', () => {
    const { machine } = interrupted('long', RSM);
    machine.state.cr4 |= CR4.PCIDE;
    machine.state.cr3 |= 5n;
    machine.cpu.stateReplaced('test');
    machine.go(1);
    expect(machine.state.cr3 & 0xfffn).toBe(5n);
    expect(machine.state.cr4 & CR4.PCIDE).toBe(CR4.PCIDE);
    expect(machine.go()).toBe('halt');
  });
});
