import { describe, expect, it } from 'vitest';
import { Flag, Seg } from '../state-layout.ts';
import { TestLayout as at, TestSelector as sel, TestMachine } from '../testing/machine.ts';
import { MSR } from './common.ts';
import { descriptor, gate } from './testing.ts';

const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
const pushd = (value: number): number[] => [0x68, ...le32(value)];
const poke = (m: TestMachine, address: number, value: bigint): void => m.memory.write64(address, value);
const peek = (m: TestMachine, address: number): number => m.memory.read32(address);

describe('tasks on the processor', () => {
  const TSS2 = 0x2800;
  const TASK2 = 0x58;
  it('call to a TSS and iret come back with NT and busy bits as they were', () => {
    const m = new TestMachine();
    m.load([0xb8, ...le32(0x1111), 0x9a, ...le32(0), TASK2, 0, 0xf4], 'prot32');
    m.memory.writeBytes(0x20000, Uint8Array.from([0xb8, ...le32(0x2222), 0xcf]));
    poke(m, at.gdt + TASK2, descriptor(TSS2, 0x67, 0x89, 0));
    poke(m, TSS2 + 0x20, 0x20000n);
    poke(m, TSS2 + 0x38, 0xa000n);
    poke(m, TSS2 + 0x48, BigInt(sel.data) | (BigInt(sel.code32) << 32n));
    poke(m, TSS2 + 0x50, BigInt(sel.data) | (BigInt(sel.data) << 32n));
    expect(m.go()).toBe('halt');
    expect(m.state.gpr[0]).toBe(0x1111n);
    expect(peek(m, TSS2 + 0x28)).toBe(0x2222);
    expect(m.state.getSegment(Seg.TR).selector).toBe(sel.tss);
    expect(m.state.rflags & BigInt(Flag.NT)).toBe(0n);
    expect((peek(m, at.gdt + TASK2 + 4) >> 8) & 15).toBe(9);
  });
});

describe('virtual-8086 mode on the processor', () => {
  it('iretd enters it, int 21h leaves it for the handler at level 0', () => {
    const m = new TestMachine();
    const frame = [0x1111, 0x2222, 0x3333, 0x4444, 0x1800, 0x0ff0, Flag.VM | Flag.IOPL | 2, 0x2000, 0x0010];
    m.load([...frame.flatMap(pushd), 0xcf], 'prot32');
    m.memory.writeBytes(0x20010, Uint8Array.from([0xcd, 0x21]));
    m.memory.writeBytes(0x30000, Uint8Array.from([0xf4]));
    poke(m, at.idt + 0x21 * 8, gate(sel.code32, 0x30000, 0xee));
    poke(m, at.tss + 4, BigInt(at.stack) | (BigInt(sel.data) << 32n));
    expect(m.go()).toBe('halt');
    expect(m.state.rip).toBe(0x30001n);
    expect(m.state.cpl).toBe(0);
    const esp = Number(m.state.gpr[4]);
    const pushed = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((i) => peek(m, esp + 4 * i));
    expect(pushed).toEqual([0x12, 0x2000, Flag.VM | Flag.IOPL | 2, 0x0ff0, 0x1800, 0x4444, 0x3333, 0x2222, 0x1111]);
    expect(m.cpu.mode().name).toBe('protected32');
  });
});

describe.each(['amd', 'intel'] as const)('user and kernel in long mode (%s)', (vendor) => {
  const [USER, KERNEL] = [0x20000, 0x30000];
  const machine = (...user: readonly number[]): TestMachine => {
    const m = new TestMachine({ vendor });
    // mov ecx, USER; mov r11d, 202h; sysretq
    m.load([0xb9, ...le32(USER), 0x41, 0xbb, ...le32(0x202), 0x48, 0x0f, 0x07], 'long');
    m.memory.writeBytes(USER, Uint8Array.from(user));
    m.memory.writeBytes(KERNEL, Uint8Array.from([0xf4]));
    poke(m, at.tss + 4, BigInt(at.stack));
    m.cpu.wrmsr(MSR.STAR, (0x33n << 48n) | (0x18n << 32n));
    m.cpu.wrmsr(MSR.LSTAR, BigInt(KERNEL));
    m.cpu.wrmsr(MSR.SFMASK, BigInt(Flag.IF));
    return m;
  };
  it('sysretq and syscall', () => {
    const m = machine(0x0f, 0x05);
    expect(m.go()).toBe('halt');
    expect([m.state.rip, m.state.cpl]).toEqual([BigInt(KERNEL + 1), 0]);
    expect(m.state.gpr[1]).toBe(BigInt(USER + 2));
    expect(m.state.gpr[11]! & BigInt(Flag.IF)).toBe(BigInt(Flag.IF));
    expect(m.state.getSegment(Seg.CS).selector).toBe(sel.code64);
  });
  it('a fault in user code pushes its frame on RSP0', () => {
    const m = machine(0xf4);
    m.setHandler(13, KERNEL, 'long');
    expect(m.go()).toBe('halt');
    const rsp = Number(m.state.gpr[4]);
    expect(rsp).toBe(at.stack - 48);
    expect([0, 8, 16, 32, 40].map((offset) => peek(m, rsp + offset))).toEqual([
      0,
      USER,
      sel.userCode64,
      at.stack,
      sel.userData,
    ]);
    expect(m.state.getSegment(Seg.SS).selector).toBe(0);
  });
  it('int 80h through a gate with DPL 3 and iretq return behind it', () => {
    // int 80h; syscall
    const m = machine(0xcd, 0x80, 0x0f, 0x05);
    m.setHandler(0x80, 0x40000, 'long', 3);
    // mov ebx, 55h; iretq
    m.memory.writeBytes(0x40000, Uint8Array.from([0xbb, ...le32(0x55), 0x48, 0xcf]));
    expect(m.go()).toBe('halt');
    expect(m.state.gpr[3]).toBe(0x55n);
    expect(m.state.gpr[1]).toBe(BigInt(USER + 4));
  });
});
