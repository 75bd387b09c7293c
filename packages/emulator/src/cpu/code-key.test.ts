import { describe, expect, it } from 'vitest';
import { Seg } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

const machineIn = (mode: 'real' | 'prot32' | 'long'): TestMachine => {
  const machine = new TestMachine();
  machine.load([0xf4], mode);
  return machine;
};
const keyOf = (machine: TestMachine) => machine.cpu.codeKey();

describe('the code key', () => {
  it('is flat in 32-bit code with flat segments, and in 64-bit code whatever they are', () => {
    const flat = { stackSize: 4, flat: true, flatCode: true, alignmentCheck: false };
    expect(keyOf(machineIn('prot32'))).toEqual({ ...flat, codeSize: 4 });
    const long = machineIn('long');
    long.setSegment(Seg.DS, 0, 0x8000, 0);
    expect(keyOf(long)).toEqual({ ...flat, codeSize: 8, stackSize: 8 });
  });
  it('takes the size of code and stack from CS.D and SS.B', () => {
    const machine = machineIn('prot32');
    machine.setSegment(Seg.CS, 8, 0x09b, 0xffff);
    expect(keyOf(machine)).toMatchObject({ codeSize: 2, stackSize: 4, flat: false, flatCode: false });
    machine.setSegment(Seg.SS, 16, 0x093, 0xffff);
    expect(keyOf(machine)).toMatchObject({ codeSize: 2, stackSize: 2 });
  });
  it('has 16-bit code in real and virtual-8086 mode', () => {
    expect(keyOf(machineIn('real'))).toMatchObject({ codeSize: 2, stackSize: 2, flat: false, flatCode: false });
    const machine = machineIn('prot32');
    machine.state.rflags |= 0x20000n;
    expect(keyOf(machine).codeSize).toBe(2);
  });
  it.each([
    ['a limit', 0xc93, 0xfffffffe],
    ['no right to write', 0xc91, 0xffffffff],
    ['expand-down', 0xc97, 0xffffffff],
    ['code', 0xc9b, 0xffffffff],
    ['a null selector', 0x8c93, 0xffffffff],
    ['P clear', 0xc13, 0xffffffff],
  ])('is not flat with %s in a data segment', (_what, attrib, limit) => {
    for (const seg of [Seg.ES, Seg.SS, Seg.DS]) {
      const machine = machineIn('prot32');
      machine.setSegment(seg, 16, attrib, limit);
      expect(keyOf(machine)).toMatchObject({ flat: false, flatCode: true });
    }
    const machine = machineIn('prot32');
    machine.setSegment(Seg.FS, 16, attrib, limit);
    expect(keyOf(machine).flat).toBe(true);
  });
  it('is not flat with a base', () => {
    const machine = machineIn('prot32');
    machine.state.setSegment(Seg.DS, { ...machine.state.getSegment(Seg.DS), base: 0x10n });
    expect(keyOf(machine)).toMatchObject({ flat: false, flatCode: true });
    machine.state.setSegment(Seg.DS, { ...machine.state.getSegment(Seg.DS), base: 0n });
    machine.state.setSegment(Seg.CS, { ...machine.state.getSegment(Seg.CS), base: 1n << 31n });
    expect(keyOf(machine)).toMatchObject({ flat: false, flatCode: true });
  });
  it('says that alignment is checked at level 3 with CR0.AM and RFLAGS.AC alone', () => {
    const machine = machineIn('prot32');
    machine.state.cr0 |= 1n << 18n;
    machine.state.rflags |= 1n << 18n;
    expect(keyOf(machine).alignmentCheck).toBe(false);
    machine.state.cpl = 3;
    expect(keyOf(machine).alignmentCheck).toBe(true);
  });
  it('is one object as long as it is the same', () => {
    const machine = machineIn('prot32');
    const key = keyOf(machine);
    machine.setSegment(Seg.DS, 8, 0xc93, 0xffffffff);
    expect(keyOf(machine)).toBe(key);
  });
});
