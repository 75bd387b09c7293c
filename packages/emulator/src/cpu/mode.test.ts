import { describe, expect, it } from 'vitest';
import type { ModeChange } from '../processor-api.ts';
import { Seg } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

function record(machine: TestMachine): ModeChange[] {
  const changes: ModeChange[] = [];
  machine.cpu.onModeChange = (change) => changes.push(change);
  return changes;
}
const path = (changes: ModeChange[]): string[] => changes.map((c) => `${c.cause}: ${c.from.name} > ${c.to.name}`);

describe('mode changes', () => {
  it('real to protected by mov cr0, then jmp far to 32-bit code', () => {
    const machine = new TestMachine();
    // mov eax, cr0; or al, 1; mov cr0, eax; jmp dword 8:10010h (66 EA)
    const code = [0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x10, 0, 1, 0, 8, 0, 0xf4];
    machine.load(code, 'real');
    machine.state.setTable('gdtr', { base: 0x1000n, limit: 0x5f });
    const changes = record(machine);
    expect(machine.go()).toBe('halt');
    expect(path(changes)).toEqual(['movcr: real > protected16', 'jmpfar: protected16 > protected32']);
    expect(changes[0].rip).toBe(0x10005n);
    expect([...changes[0].bytes!]).toEqual([0x0f, 0x22, 0xc0]);
    expect(changes[0].cr0.after & 1n).toBe(1n);
    expect(changes[0].tick).toBe(3);
  });
  it('a limit of 4 GiB left in DS makes real mode unreal', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'real');
    machine.setSegment(Seg.DS, 0, 0x93, 0xffffffff);
    expect(machine.cpu.mode().name).toBe('unreal');
  });
  it('names long, compatibility and virtual-8086', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'long');
    expect(machine.cpu.mode()).toMatchObject({ name: 'long', paging: '4-level' });
    machine.setSegment(Seg.CS, 8, 0xc9b, 0xffffffff);
    expect(machine.cpu.mode().name).toBe('compatibility32');
    machine.setSegment(Seg.CS, 8, 0x09b, 0xffff);
    expect(machine.cpu.mode().name).toBe('compatibility16');
    machine.load([0xf4], 'prot32');
    machine.state.efer = 0n;
    machine.state.rflags |= 0x20000n;
    expect(machine.cpu.mode()).toMatchObject({ name: 'virtual8086', paging: 'off' });
  });
  it('setting paging on is a change of its own, without a change of name', () => {
    const machine = new TestMachine();
    // mov cr0, eax
    machine.load([0x0f, 0x22, 0xc0, 0xf4], 'prot32');
    machine.memory.write32(0x3000, 0x83);
    machine.state.cr4 = 0x10n;
    machine.state.cr3 = 0x3000n;
    machine.state.gpr[0] = 0x80000011n;
    machine.cpu.stateReplaced('test');
    const changes = record(machine);
    expect(machine.go()).toBe('halt');
    expect(changes).toHaveLength(1);
    expect([changes[0].from.paging, changes[0].to.paging]).toEqual(['off', '32-bit']);
  });
  it('the far jump into 64-bit code after LME and PG', () => {
    const machine = new TestMachine();
    // mov ecx, c0000080h; rdmsr; bts eax, 8; wrmsr; mov cr0, ebx; jmp 18h:10019h; hlt
    const code = [0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0xba, 0xe8, 8, 0x0f, 0x30, 0x0f, 0x22, 0xc3];
    machine.load([...code, 0xea, 0x17, 0, 1, 0, 0x18, 0, 0xf4], 'prot32');
    machine.state.cr4 = 0x20n;
    machine.state.cr3 = 0x3000n;
    machine.state.gpr[3] = 0x80000011n;
    machine.cpu.stateReplaced('test');
    const changes = record(machine);
    expect(machine.go()).toBe('halt');
    expect(path(changes)).toEqual(['movcr: protected32 > compatibility32', 'jmpfar: compatibility32 > long']);
    expect(machine.state.efer & 0x500n).toBe(0x500n);
  });
});
