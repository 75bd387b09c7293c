import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { CR0, CR4, Vector } from '../state-layout.ts';
import { TestMachine } from './testing.ts';

const RAX = 0;

describe('mov cr', () => {
  it('mov cr0, eax writes 32 bits and moves on', () => {
    const m = new TestMachine('real');
    m.gpr[RAX] = 0xffff_ffff_6000_0011n;
    expect(m.run(0x0f, 0x22, 0xc0).code).toBe(X86Emul.CONTINUE);
    expect(m.cr[0]).toBe(0x6000_0011n);
    expect(m.rip).toBe(3n);
  });
  it('mov cr0, eax that the processor refuses is #GP(0)', () => {
    const m = new TestMachine('prot32');
    m.refusedCrs.add(0);
    expect(m.run(0x0f, 0x22, 0xc0).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('mov rax, cr3 reads all 64 bits in 64-bit mode', () => {
    const m = new TestMachine('prot64');
    m.cr[3] = 0x12_3456_7000n;
    m.run(0x0f, 0x20, 0xd8);
    expect(m.gpr[RAX]).toBe(0x12_3456_7000n);
  });
  it.each([1, 5, 6, 7])('mov cr%i, eax is #UD', (cr) => {
    expect(new TestMachine('prot32').run(0x0f, 0x22, 0xc0 | (cr << 3)).exception?.vector).toBe(Vector.UD);
  });
  it('mov cr3, eax at CPL 3 is #GP(0)', () => {
    expect(new TestMachine('prot32').setLevel(3).run(0x0f, 0x22, 0xd8).exception?.vector).toBe(Vector.GP);
  });
});

describe('lock mov cr0', () => {
  it('is CR8 on AMD, #UD on Intel and for other registers', () => {
    const m = new TestMachine('prot32', 'amd');
    m.gpr[RAX] = 5n;
    expect(new TestMachine('prot32', 'intel').run(0xf0, 0x0f, 0x22, 0xc0).exception?.vector).toBe(Vector.UD);
    m.run(0xf0, 0x0f, 0x22, 0xc0);
    expect(m.cr[8]).toBe(5n);
    expect(m.run(0xf0, 0x0f, 0x22, 0xd8).exception?.vector).toBe(Vector.UD);
  });
});

describe('lmsw, smsw, clts', () => {
  it('lmsw sets PE but does not clear it', () => {
    const m = new TestMachine('prot32');
    m.cr[0] = CR0.PE | CR0.ET | CR0.TS;
    m.gpr[RAX] = 0xfff0n;
    m.run(0x0f, 0x01, 0xf0);
    expect(m.cr[0]).toBe(CR0.PE | CR0.ET);
  });
  it('lmsw leaves bits above 3 alone', () => {
    const m = new TestMachine('real');
    m.cr[0] = 0x6000_0010n;
    m.gpr[RAX] = 0xffffn;
    m.run(0x0f, 0x01, 0xf0);
    expect(m.cr[0]).toBe(0x6000_001fn);
  });
  it('smsw eax gives the low 32 bits, smsw [mem] two bytes', () => {
    const m = new TestMachine('prot32');
    m.cr[0] = 0x8005_0033n;
    m.run(0x0f, 0x01, 0xe0);
    expect(m.gpr[RAX]).toBe(0x8005_0033n);
    m.put(0x5000, 0xffff_ffffn, 4);
    m.run(0x0f, 0x01, 0x25, 0x00, 0x50, 0x00, 0x00);
    expect(m.get(0x5000, 4)).toBe(0xffff_0033n);
  });
  it('smsw at CPL 3 with CR4.UMIP is #GP(0)', () => {
    const m = new TestMachine('prot32').setLevel(3);
    expect(m.run(0x0f, 0x01, 0xe0).code).toBe(X86Emul.CONTINUE);
    m.cr[4]! |= CR4.UMIP;
    expect(m.run(0x0f, 0x01, 0xe0).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('clts clears TS only', () => {
    const m = new TestMachine('prot32');
    m.cr[0]! |= CR0.TS | CR0.MP;
    m.run(0x0f, 0x06);
    expect(m.cr[0]).toBe(CR0.PE | CR0.ET | CR0.MP);
  });
});

describe('mov dr', () => {
  it('mov dr4, eax is DR6 while CR4.DE is clear, #UD when set', () => {
    const m = new TestMachine('prot32');
    m.gpr[RAX] = 0xffff_0ff1n;
    m.run(0x0f, 0x23, 0xe0);
    expect(m.dr[6]).toBe(0xffff_0ff1n);
    m.cr[4]! |= CR4.DE;
    expect(m.run(0x0f, 0x23, 0xe0).exception?.vector).toBe(Vector.UD);
  });
  it('with DR7.GD set an access is #DB with BD', () => {
    const m = new TestMachine('prot32');
    m.dr[7] = 0x2400n;
    expect(m.run(0x0f, 0x21, 0xc0).exception).toMatchObject({ vector: Vector.DB, payload: 0x2000n });
  });
  it('mov dr7, rax with bits above 31 is #GP(0)', () => {
    const m = new TestMachine('prot64');
    m.gpr[RAX] = 1n << 32n;
    expect(m.run(0x0f, 0x23, 0xf8).exception?.vector).toBe(Vector.GP);
  });
});

describe('xgetbv, xsetbv', () => {
  it('are #UD while CR4.OSXSAVE is clear', () => {
    const m = new TestMachine('prot64');
    m.features.add('xsave');
    expect(m.run(0x0f, 0x01, 0xd0).exception?.vector).toBe(Vector.UD);
    expect(m.run(0x0f, 0x01, 0xd1).exception?.vector).toBe(Vector.UD);
  });
  it('xsetbv outside CPL 0 is #GP(0), but #UD while CR4.OSXSAVE is clear', () => {
    const m = new TestMachine('prot64').setLevel(3);
    m.features.add('xsave');
    expect(m.run(0x0f, 0x01, 0xd1).exception?.vector).toBe(Vector.UD);
    m.cr[4]! |= CR4.OSXSAVE;
    expect(m.run(0x0f, 0x01, 0xd1).exception?.vector).toBe(Vector.GP);
  });
  it('xsetbv writes XCR0, and a refused value is #GP(0)', () => {
    const m = new TestMachine('prot64');
    m.features.add('xsave');
    m.cr[4]! |= CR4.OSXSAVE;
    m.gpr[RAX] = 7n;
    expect(m.run(0x0f, 0x01, 0xd1).code).toBe(X86Emul.CONTINUE);
    expect(m.xcr0).toBe(7n);
    m.gpr[RAX] = 6n;
    expect(m.run(0x0f, 0x01, 0xd1).exception?.vector).toBe(Vector.GP);
  });
});
