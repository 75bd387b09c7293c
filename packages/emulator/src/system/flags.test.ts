import { describe, expect, it } from 'vitest';
import { CR4, Flag, Vector } from '../state-layout.ts';
import { STACK, TestMachine } from './testing.ts';

const [CLI, STI, PUSHF, POPF] = [0xfa, 0xfb, 0x9c, 0x9d] as const;
const IF = BigInt(Flag.IF);
const VIF = BigInt(Flag.VIF);

describe('cli, sti', () => {
  it('sti holds interrupts back for one instruction if IF was clear', () => {
    const m = new TestMachine('real');
    m.run(STI);
    expect([m.rflags & IF, m.shadow]).toEqual([IF, 1]);
    m.shadow = 0;
    m.run(STI);
    expect(m.shadow).toBe(0);
  });
  it.each([
    ['prot32', 3, 0, 0n, 'gp'],
    ['prot32', 3, Flag.IOPL, 0n, 'if'],
    ['prot32', 3, 0, CR4.PVI, 'vif'],
    ['prot32', 0, 0, 0n, 'if'],
    ['vm86', 3, 0, 0n, 'gp'],
    ['vm86', 3, 0, CR4.VME, 'vif'],
    ['vm86', 3, Flag.IOPL, CR4.VME, 'if'],
  ] as const)('sti in %s at CPL %i with flags %i, CR4 %s works on %s', (mode, cpl, flags, cr4, effect) => {
    const m = new TestMachine(mode);
    if (mode !== 'vm86') m.setLevel(cpl);
    m.rflags |= BigInt(flags);
    m.cr[4]! |= cr4;
    const { exception } = m.run(STI);
    expect(exception?.vector).toBe(effect === 'gp' ? Vector.GP : undefined);
    expect(m.rflags & (IF | VIF)).toBe(effect === 'if' ? IF : effect === 'vif' ? VIF : 0n);
  });
  it('sti with PVI and VIP pending is #GP(0), cli is not', () => {
    const m = new TestMachine('prot32').setLevel(3);
    m.cr[4]! |= CR4.PVI;
    m.rflags |= BigInt(Flag.VIP) | VIF;
    expect(m.run(STI).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    m.run(CLI);
    expect(m.rflags & VIF).toBe(0n);
  });
});

describe('pushf, popf', () => {
  it('pushfd shows no VM and no RF', () => {
    const m = new TestMachine('prot32');
    m.rflags |= BigInt(Flag.RF | Flag.AC);
    m.run(PUSHF);
    expect(m.top(4)).toBe(Flag.AC | 2);
    expect(m.gpr[4]).toBe(BigInt(STACK - 4));
  });
  it.each([
    [0, 0, Flag.IF | Flag.IOPL],
    [3, 0, 0],
    [3, Flag.IOPL, Flag.IF | Flag.IOPL],
  ] as const)('popfd at CPL %i with IOPL bits %i gives %i', (cpl, flags, expected) => {
    const m = new TestMachine('prot32').setLevel(cpl);
    m.rflags |= BigInt(flags);
    m.stack(4, 0x3202).run(POPF);
    expect(Number(m.rflags) & (Flag.IF | Flag.IOPL)).toBe(expected);
  });
  it('popfd changes ID and AC, not VM, VIF, VIP; clears RF', () => {
    const m = new TestMachine('prot32').stack(4, 0x3f_0002);
    m.run(POPF);
    expect(m.rflags).toBe(BigInt(Flag.ID | Flag.AC) | 2n);
  });
  it('popf of 16 bits leaves the upper half', () => {
    const m = new TestMachine('prot32');
    m.rflags |= BigInt(Flag.AC);
    m.stack(2, 0x0003).run(0x66, POPF);
    expect(m.rflags).toBe(BigInt(Flag.AC) | 3n);
  });
  it('both are #GP(0) in virtual-8086 mode with IOPL below 3', () => {
    expect(new TestMachine('vm86').run(PUSHF).exception?.vector).toBe(Vector.GP);
    expect(new TestMachine('vm86').run(POPF).exception?.vector).toBe(Vector.GP);
  });
  it('VME shows VIF as IF and IOPL 3, and takes IF into VIF', () => {
    const m = new TestMachine('vm86');
    m.cr[4]! |= CR4.VME;
    m.rflags |= VIF;
    m.run(PUSHF);
    expect(m.top(2)).toBe(Flag.IF | Flag.IOPL | 2);
    m.put(STACK - 2, 2n, 2);
    m.run(POPF);
    expect(m.rflags & (VIF | IF)).toBe(0n);
  });
  it('VME: popf with TF in the image is #GP(0)', () => {
    const m = new TestMachine('vm86').stack(2, Flag.TF | 2);
    m.cr[4]! |= CR4.VME;
    expect(m.run(POPF).exception?.vector).toBe(Vector.GP);
  });
  it("KVM's emulator refuses cli in virtual-8086 mode even with IOPL 3", () => {
    const m = new TestMachine('vm86', 'amd', 'kvm');
    m.rflags |= BigInt(Flag.IOPL);
    expect(m.run(CLI).exception?.vector).toBe(Vector.GP);
  });
  it("KVM's emulator knows no VME", () => {
    const m = new TestMachine('vm86', 'amd', 'kvm');
    m.cr[4]! |= CR4.VME;
    expect(m.run(POPF).exception?.vector).toBe(Vector.GP);
  });
});

describe('clac, stac', () => {
  it('change AC at CPL 0, are #UD elsewhere or without SMAP', () => {
    const m = new TestMachine('prot32');
    m.run(0x0f, 0x01, 0xcb);
    expect(m.rflags & BigInt(Flag.AC)).toBe(BigInt(Flag.AC));
    m.run(0x0f, 0x01, 0xca);
    expect(m.rflags & BigInt(Flag.AC)).toBe(0n);
    expect(new TestMachine('prot32').setLevel(3).run(0x0f, 0x01, 0xcb).exception?.vector).toBe(Vector.UD);
    m.features.delete('smap');
    expect(m.run(0x0f, 0x01, 0xcb).exception?.vector).toBe(Vector.UD);
  });
});
