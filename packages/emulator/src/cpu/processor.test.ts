import { describe, expect, it } from 'vitest';
import { TestMachine } from '../testing/index.ts';

describe('the bare processor runs to HLT', () => {
  it('mov ax, 1234h; inc ax; hlt in real mode', () => {
    const machine = new TestMachine();
    expect(machine.run([0xb8, 0x34, 0x12, 0x40, 0xf4], 'real')).toBe('halt');
    expect(machine.reg(0)).toBe(0x1235n);
    expect(machine.cpu.tick).toBe(3);
  });
  it('mov eax, 12345678h; mov [20000h], eax; hlt in protected mode', () => {
    const machine = new TestMachine();
    const code = [0xb8, 0x78, 0x56, 0x34, 0x12, 0xa3, 0x00, 0x00, 0x02, 0x00, 0xf4];
    expect(machine.run(code, 'prot32')).toBe('halt');
    expect(machine.memory.read32(0x20000)).toBe(0x12345678);
  });
  it('mov rax, imm64; push rax; pop rbx; hlt in long mode', () => {
    const machine = new TestMachine();
    const code = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x5b, 0xf4];
    expect(machine.run(code, 'long')).toBe('halt');
    expect(machine.reg(3)).toBe(0x0807060504030201n);
  });
});
