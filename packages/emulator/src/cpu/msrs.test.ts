import { describe, expect, it } from 'vitest';
import { S } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';
import { testModel } from '../testing/model.ts';
import { Msr } from './msrs.ts';

const NONCANONICAL = 0x8000_1234_5678n;
const KERNEL = 0xffff_8000_1234_5678n;
const ADDRESSES = [
  [Msr.SYSENTER_ESP, S.sysenterEsp],
  [Msr.SYSENTER_EIP, S.sysenterEip],
] as const;
/** mov ecx, index; mov eax, 12345678h; mov edx, high; wrmsr */
const wrmsr = (index: number, high: number): number[] => [
  ...[0xb9, index & 0xff, index >> 8, 0, 0, 0xb8, 0x78, 0x56, 0x34, 0x12, 0xba],
  ...[high & 0xff, (high >> 8) & 0xff, (high >> 16) & 0xff, high >>> 24, 0x0f, 0x30, 0xf4],
];

describe('SYSENTER_ESP and SYSENTER_EIP', () => {
  it.each(ADDRESSES)('%i: AMD keeps 32 bits of whatever is written', (index, at) => {
    const { cpu, state } = new TestMachine({ model: testModel('amd') });
    for (const value of [KERNEL, NONCANONICAL]) {
      expect(cpu.wrmsr(index, value)).toBe(0);
      expect(state.get64(at)).toBe(0x1234_5678n);
      expect(cpu.rdmsr(index)).toBe(0x1234_5678n);
    }
  });
  it.each(ADDRESSES)('%i: Intel keeps 64 bits, and they must be canonical', (index, at) => {
    const { cpu, state } = new TestMachine({ model: testModel('intel') });
    expect(cpu.wrmsr(index, KERNEL)).toBe(0);
    expect(cpu.wrmsr(index, NONCANONICAL)).not.toBe(0);
    expect(state.get64(at)).toBe(KERNEL);
  });
  it.each(['evaluate', 'interpret', 'translate'] as const)('WRMSR on %s', (engine) => {
    for (const vendor of ['amd', 'intel'] as const) {
      const m = new TestMachine({ engine, model: testModel(vendor) });
      m.load(wrmsr(Msr.SYSENTER_EIP, 0xffff8000), 'long');
      expect(m.go(100)).toBe('halt');
      expect(m.state.get64(S.sysenterEip)).toBe(vendor === 'amd' ? 0x1234_5678n : KERNEL);
    }
  });
});
