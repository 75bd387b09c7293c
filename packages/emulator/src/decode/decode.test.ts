/** Behaviour of the decoder, one rule each, where iced-x86 has no say: fields, faults, vendors, features. */
import { describe, expect, it } from 'vitest';
import { createInstruction, decode } from './decode.ts';
import type { DecodeMode, DecodeResult, Instruction } from './instruction.ts';

const bytesOf = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'));
const modes = {
  16: { codeSize: 2, intel: false },
  32: { codeSize: 4, intel: false },
  64: { codeSize: 8, intel: false },
} as const satisfies Record<number, DecodeMode>;

function run(hex: string, mode: DecodeMode): { result: DecodeResult; insn: Instruction } {
  const insn = createInstruction();
  const bytes = bytesOf(hex);
  return { result: decode(bytes, bytes.length, mode, insn), insn };
}
const ok = (hex: string, mode: DecodeMode): Instruction => {
  const { result, insn } = run(hex, mode);
  expect(result).toBe('ok');
  return insn;
};
const without = (mode: DecodeMode, ...names: string[]): DecodeMode => ({ ...mode, features: new Set(names) });

describe('operand size', () => {
  it('push rbp is 8 bytes in 64-bit code, 2 with 66', () => {
    expect(ok('55', modes[64]).opSize).toBe(8);
    expect(ok('66 55', modes[64]).opSize).toBe(2);
  });
  it('jmp rel32 with 66 in 64-bit code: Intel ignores it, AMD takes a 16-bit displacement', () => {
    expect(ok('66 e9 10 00 00 00', { codeSize: 8, intel: true })).toMatchObject({ length: 6, opSize: 8 });
    expect(ok('66 e9 10 00 00 00', modes[64])).toMatchObject({ length: 4, opSize: 2 });
  });
  it('jmp m16:64 exists on Intel only: AMD reads m16:32', () => {
    expect(ok('48 ff 28', { codeSize: 8, intel: true }).opSize).toBe(8);
    expect(ok('48 ff 28', modes[64]).opSize).toBe(4);
  });
  it('mov cr0, rax takes 8 bytes in 64-bit code whatever the prefixes, 4 elsewhere', () => {
    expect(ok('66 0f 22 c0', modes[64]).opSize).toBe(8);
    expect(ok('66 0f 22 c0', modes[16]).opSize).toBe(4);
  });
  it('in eax, dx ignores REX.W', () => {
    expect(ok('48 ed', modes[64]).opSize).toBe(4);
  });
  it('movzx eax, bl is no byte operation', () => {
    expect(ok('0f b6 c3', modes[32])).toMatchObject({ opSize: 4, row: { byteOp: false } });
  });
});

describe('addresses', () => {
  it('mov rax, [rip + 0x12345678]', () => {
    expect(ok('48 8b 05 78 56 34 12', modes[64])).toMatchObject({ ripRelative: true, base: -1, disp: 0x12345678n });
  });
  it('mov ax, [bp + si - 2] in 16-bit code goes through SS', () => {
    expect(ok('8b 42 fe', modes[16])).toMatchObject({ base: 5, index: 6, disp: -2n, seg: 2 });
  });
  it('mov eax, [r12 + r9 * 8] does not go through SS', () => {
    expect(ok('43 8b 04 cc', modes[64])).toMatchObject({ base: 12, index: 9, scale: 3, seg: 3 });
  });
  it('ES, CS, SS and DS overrides do not undo an FS override in 64-bit code', () => {
    expect(ok('64 2e 8b 00', modes[64])).toMatchObject({ segOverride: 4, seg: 4 });
    expect(ok('64 2e 8b 00', modes[32])).toMatchObject({ segOverride: 1, seg: 1 });
  });
  it('mov al, moffs takes an address of the address size', () => {
    expect(ok('a0 88 77 66 55 44 33 22 f1', modes[64])).toMatchObject({ length: 9, imm: 0xf122334455667788n });
    expect(ok('67 a0 11 22', modes[32])).toMatchObject({ length: 4, imm: 0x2211n });
  });
  it('mov cr0, [..] ignores modrm.mod: always a register', () => {
    expect(ok('0f 22 00', modes[32])).toMatchObject({ length: 3, mod: 3, reg: 0, rm: 0 });
  });
});

describe('immediates', () => {
  it.each([
    ['add r/m32, imm8 sign-extends', '83 c0 ff', -1n],
    ['int imm8 zero-extends', 'cd ff', 0xffn],
    ['ret imm16 zero-extends', 'c2 ff ff', 0xffffn],
    ['push imm32 sign-extends', '68 00 00 00 80', -0x80000000n],
  ])('%s', (_, hex, imm) => {
    expect(ok(hex, modes[32]).imm).toBe(imm);
  });
  it('enter 0x1234, 5 has two', () => {
    expect(ok('c8 34 12 05', modes[32])).toMatchObject({ imm: 0x1234n, imm2: 5 });
  });
  it('jmp 0x10:0x12345678 has offset and selector', () => {
    expect(ok('ea 78 56 34 12 10 00', modes[32])).toMatchObject({ imm: 0x12345678n, imm2: 0x10 });
  });
  it('mov rax, imm64', () => {
    expect(ok('48 b8 88 77 66 55 44 33 22 11', modes[64])).toMatchObject({ length: 10, imm: 0x1122334455667788n });
  });
});

describe('prefixes', () => {
  it('REX counts only directly before the opcode', () => {
    expect(ok('48 66 89 c0', modes[64])).toMatchObject({ rex: 0, opSize: 2 });
  });
  it('the last of F2 and F3 counts', () => {
    expect(ok('f2 f3 0f b8 c0', modes[64]).row.mnemonic).toBe('popcnt');
  });
  it('66 f2 0f 38 f1 is crc32 with a 16-bit source', () => {
    expect(ok('66 f2 0f 38 f1 c1', modes[32])).toMatchObject({ opSize: 2, row: { mnemonic: 'crc32' } });
  });
  it('90 is NOP, f3 90 PAUSE, 41 90 XCHG', () => {
    expect(ok('90', modes[64]).row.mnemonic).toBe('nop');
    expect(ok('f3 90', modes[64]).row.mnemonic).toBe('pause');
    expect(ok('41 90', modes[64])).toMatchObject({ opReg: 8, row: { mnemonic: 'xchg' } });
  });
  it('f3 0f 1e fa (ENDBR64) is a NOP without CET', () => {
    expect(ok('f3 0f 1e fa', modes[64]).row.mnemonic).toBe('nop');
  });
  it('REX.W 0f c7 /1 is CMPXCHG16B', () => {
    expect(ok('48 0f c7 0e', modes[64]).row.mnemonic).toBe('cmpxchg16b');
  });
  it('f3 0f 01 d9 is VMGEXIT, 0f 01 d9 VMMCALL', () => {
    expect(ok('f3 0f 01 d9', modes[64]).row.mnemonic).toBe('vmgexit');
    expect(ok('0f 01 d9', modes[64]).row.mnemonic).toBe('vmmcall');
  });
});

describe('LOCK', () => {
  it.each(['f0 01 00', 'f0 0f b1 08', 'f0 0f c7 08', 'f0 86 00', 'f0 0f ba 28 01'])('%s is legal', (hex) => {
    expect(ok(hex, modes[32]).lock).toBe(true);
  });
  it.each([
    ['on a register destination', 'f0 01 c0'],
    ['on a memory source', 'f0 03 00'],
    ['on CMP', 'f0 39 00'],
    ['on MOV', 'f0 89 00'],
    ['on BT', 'f0 0f a3 00'],
  ])('%s is undefined', (_, hex) => {
    expect(run(hex, modes[32]).result).toBe('undefined-opcode');
  });
  it('before MOV CR0 it means CR8 on AMD and is undefined on Intel', () => {
    expect(ok('f0 0f 22 c0', modes[32])).toMatchObject({ reg: 8, lock: false, row: { mnemonic: 'movcr' } });
    expect(run('f0 0f 22 c0', { codeSize: 4, intel: true }).result).toBe('undefined-opcode');
    expect(run('f0 0f 22 c0', without(modes[32])).result).toBe('undefined-opcode');
  });
  it('before VERW of memory is nothing on AMD, as captured, and undefined on Intel', () => {
    expect(ok('f0 0f 00 28', modes[32])).toMatchObject({ lock: true, row: { mnemonic: 'verw' } });
    expect(run('f0 0f 00 28', { codeSize: 4, intel: true }).result).toBe('undefined-opcode');
    for (const hex of ['f0 0f 00 20', 'f0 0f 00 e8']) expect(run(hex, modes[32]).result).toBe('undefined-opcode');
  });
});

describe('undefined opcodes', () => {
  it.each([
    ['mov cs, ax', '8e c8', modes[32]],
    ['mov seg 6, ax', '8e f0', modes[32]],
    ['mov cr1, eax', '0f 22 c8', modes[32]],
    ['mov cr9, rax', '44 0f 22 c8', modes[64]],
    ['mov dr8, rax', '44 0f 23 c0', modes[64]],
    ['lea with a register', '8d c0', modes[32]],
    ['push es in 64-bit code', '06', modes[64]],
    ['82 in 64-bit code', '82 c0 00', modes[64]],
    ['ff /7', 'ff f8', modes[32]],
    ['8f /1 (XOP)', '8f e8 78 c0', modes[64]],
    ['EVEX', '62 f1 7c 48 58 c1', modes[64]],
    ['3DNow!', '0f 0f c1 9e', modes[32]],
    ['REX before VEX', '48 c5 f8 58 c1', modes[64]],
    ['66 before VEX', '66 c5 f8 58 c1', modes[64]],
    ['VEX.vvvv set where unused', 'c5 f0 28 c1', modes[64]],
    ['VEX.L on BMI', 'c4 e2 74 f2 c2', modes[64]],
  ])('%s', (_, hex, mode) => {
    expect(run(hex, mode).result).toBe('undefined-opcode');
  });
});

describe('length', () => {
  it('15 bytes are an instruction, 16 are not', () => {
    expect(ok(`${'66'.repeat(14)} 90`, modes[32]).length).toBe(15);
    expect(run(`${'66'.repeat(15)} 90`, modes[32]).result).toBe('too-long');
  });
  it('fewer bytes than the instruction has ask for more', () => {
    const bytes = bytesOf('48 b8 88 77 66 55 44 33 22 11');
    for (let available = 0; available < 10; available++) {
      expect(decode(bytes, available, modes[64], createInstruction())).toBe('need-more');
    }
  });
  it('an undefined opcode is known without the bytes behind it', () => {
    expect(run('0f 04', modes[32]).result).toBe('undefined-opcode');
  });
});

describe('features', () => {
  it('an absent feature is an undefined opcode', () => {
    expect(run('0f a2', without(modes[32])).result).toBe('ok');
    expect(run('f3 0f b8 c0', without(modes[32])).result).toBe('undefined-opcode');
    expect(run('f3 0f b8 c0', without(modes[32], 'popcnt')).result).toBe('ok');
  });
  it('TZCNT, LZCNT and WBNOINVD fall back to what they are without F3', () => {
    expect(ok('f3 0f bc c0', without(modes[32])).row.mnemonic).toBe('bsf');
    expect(ok('f3 0f bd c0', without(modes[32])).row.mnemonic).toBe('bsr');
    expect(ok('f3 0f 09', without(modes[32])).row.mnemonic).toBe('wbinvd');
    expect(ok('f3 0f bc c0', without(modes[32], 'bmi1')).row.mnemonic).toBe('tzcnt');
  });
});

it('random bytes never throw and never claim more than 15 bytes', () => {
  const insn = createInstruction();
  let state = 99;
  for (let i = 0; i < 50_000; i++) {
    const bytes = Uint8Array.from({ length: 15 }, () => (state = (state * 1103515245 + 12345) & 0x7fffffff) >> 16);
    const available = i % 16;
    const result = decode(bytes, available, i % 3 === 0 ? modes[16] : i % 3 === 1 ? modes[32] : modes[64], insn);
    if (result === 'ok') expect(insn.length).toBeLessThanOrEqual(available);
  }
});
