import { describe, expect, it } from 'vitest';
import { TestMachine } from '../testing/index.ts';

/** L: inc eax; mov [20000h], eax; rdtsc; xor ebx, eax; test al, 7; jnz L; jmp L */
const CODE = [0xff, 0xc0, 0x89, 0x04, 0x25, 0, 0, 2, 0, 0x0f, 0x31, 0x31, 0xc3, 0xeb, 0xf1];

describe('save and load', () => {
  it('a processor that is loaded elsewhere goes on as the one that went on', () => {
    const first = new TestMachine();
    first.load(CODE, 'long');
    first.go(777);
    const saved = structuredClone(first.cpu.save());
    const memory = first.memory.readBytes(0, first.memory.size);
    const second = new TestMachine();
    second.memory.writeBytes(0, memory);
    second.cpu.load(saved);
    first.go(1000);
    second.go(1000);
    expect(second.cpu.tick).toBe(first.cpu.tick);
    expect(second.state.u8).toEqual(first.state.u8);
    expect(second.memory.readBytes(0, 0x30000)).toEqual(first.memory.readBytes(0, 0x30000));
    expect(second.cpu.save()).toEqual(first.cpu.save());
  });
  it('keeps a stale translation', () => {
    const first = new TestMachine();
    first.load(CODE, 'long');
    first.cpu.access.read(0x1000, 0, 1, 0);
    first.memory.write64(0x5000, 0n);
    const second = new TestMachine();
    second.memory.writeBytes(0, first.memory.readBytes(0, first.memory.size));
    second.cpu.load(structuredClone(first.cpu.save()));
    expect(second.cpu.access.read(0x1000, 0, 1, 0)).toBe(0n);
    second.cpu.flushTlb({ kind: 'all' });
    expect(() => second.cpu.access.read(0x1000, 0, 1, 0)).toThrow();
  });
  it('refuses another version and another model', () => {
    const amd = new TestMachine();
    const intel = new TestMachine({ vendor: 'intel' });
    expect(() => intel.cpu.load(amd.cpu.save())).toThrow(/test-amd/);
    expect(() => amd.cpu.load({ version: 2 })).toThrow(/version 2/);
  });
});
