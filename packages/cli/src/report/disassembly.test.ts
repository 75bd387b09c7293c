import { describe, expect, it } from 'vitest';
import { disassemble } from './disassembly.ts';

const KERNEL = 0xffff_8000_0000_0000n;

describe('disassemble', () => {
  it.each<[string, number[]]>([
    ['mov rcx,800000000000h', [0x48, 0xb9, 0, 0, 0, 0, 0, 0x80, 0, 0]],
    ['mov rcx,800000000001h', [0x48, 0xb9, 1, 0, 0, 0, 0, 0x80, 0, 0]],
    ['mov rax,[qword 800000000000h]', [0x48, 0xa1, 0, 0, 0, 0, 0, 0x80, 0, 0]],
    ['call 0FFFF800000000000h', [0xe8, 0xfb, 0xff, 0xff, 0xff]],
    ['mov rax,[rel 0FFFF800000000009h]', [0x48, 0x8b, 0x05, 2, 0, 0, 0]],
    ['mov rax,5', [0x48, 0xb8, 5, 0, 0, 0, 0, 0, 0, 0]],
    ['mov rax,0FFFFFFFFFFFFFFFEh', [0x48, 0xc7, 0xc0, 0xfe, 0xff, 0xff, 0xff]],
  ])('%s: a wide number keeps its upper half', (text, bytes) => {
    expect(disassemble(Uint8Array.from(bytes), KERNEL, 'long')).toBe(text);
  });
});
