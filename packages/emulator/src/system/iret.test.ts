import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Attrib, CR4, Flag, Seg, Vector } from '../state-layout.ts';
import { INNER_STACK, Sel, STACK, TestMachine, TSS, TSS2 } from './testing.ts';

const RSP = 4;
const IRET = 0xcf;

describe('iret in real mode', () => {
  it('pops IP, CS and flags and unmasks NMI', () => {
    const m = new TestMachine('real').stack(2, 0x3246, 0x1000, 0x0200);
    m.nmiMasked = true;
    expect(m.run(IRET).code).toBe(X86Emul.CONTINUE);
    expect(m.rip).toBe(0x200n);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: 0x1000, base: 0x10000n });
    expect(m.rflags).toBe(0x3246n);
    expect(m.nmiMasked).toBe(false);
    expect(m.gpr[RSP]).toBe(BigInt(STACK));
  });
  it('iretd loads AC and ID, never VM, VIF or VIP', () => {
    const m = new TestMachine('real').stack(4, 0x3f_7fd7, 0x1000, 0x0200);
    m.run(0x66, IRET);
    expect(m.rflags & 0x3f_0000n).toBe(BigInt(Flag.AC | Flag.ID | Flag.RF));
  });
});

describe('iret in virtual-8086 mode', () => {
  it('with IOPL 3 changes IF but not IOPL', () => {
    const m = new TestMachine('vm86');
    m.rflags |= BigInt(Flag.IOPL | Flag.IF);
    m.stack(2, 0x0002, 0x1000, 0x0200).run(IRET);
    expect(m.rflags).toBe(BigInt(Flag.VM | Flag.IOPL) | 2n);
  });
  it('with IOPL below 3 and no VME is #GP(0)', () => {
    const m = new TestMachine('vm86').stack(2, 0x202, 0x1000, 0x200);
    expect(m.run(IRET).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('with VME puts IF into VIF', () => {
    const m = new TestMachine('vm86').stack(2, 0x0202, 0x1000, 0x0200);
    m.cr[4]! |= CR4.VME;
    m.run(IRET);
    expect(m.rflags).toBe(BigInt(Flag.VM | Flag.VIF) | 2n);
  });
  it('with VME, VIP set and IF in the image is #GP(0)', () => {
    const m = new TestMachine('vm86').stack(2, 0x0202, 0x1000, 0x0200);
    m.cr[4]! |= CR4.VME;
    m.rflags |= BigInt(Flag.VIP);
    expect(m.run(IRET).exception?.vector).toBe(Vector.GP);
  });
});

describe('iretd in protected mode', () => {
  it('to the same level leaves SS and moves ESP by three slots', () => {
    const m = new TestMachine('prot32').stack(4, 0x3202, Sel.code0, 0x2_0000);
    m.run(IRET);
    expect(m.gpr[RSP]).toBe(BigInt(STACK));
    expect(m.rflags).toBe(0x3202n);
  });
  it('to an outer level loads SS:ESP and drops inner data segments', () => {
    const m = new TestMachine('prot32').stack(4, Sel.data3 | 3, 0x7000, 0x202, Sel.code3 | 3, 0x2_0000);
    m.run(IRET);
    expect(m.cpl()).toBe(3);
    expect(m.gpr[RSP]).toBe(0x7000n);
    expect(m.segments[Seg.ES]?.attrib).toBe(Attrib.unusable);
  });
  it('at CPL 3 with IOPL 0 neither IF nor IOPL change', () => {
    const m = new TestMachine('prot32').setLevel(3).stack(4, 0x3202, Sel.code3 | 3, 0x2_0000);
    m.run(IRET);
    expect(m.rflags).toBe(2n);
  });
  it('to virtual-8086 mode takes nine slots', () => {
    const m = new TestMachine('prot32');
    m.stack(4, 0x6000, 0x5000, 0x4000, 0x3000, 0x2000, 0x7ffe, Flag.VM | 0x3202, 0x1000, 0x0123);
    expect(m.run(IRET).code).toBe(X86Emul.CONTINUE);
    expect(m.rflags).toBe(BigInt(Flag.VM) | 0x3202n);
    const selectors = [Seg.CS, Seg.SS, Seg.ES, Seg.DS, Seg.FS, Seg.GS].map((seg) => m.segments[seg]?.selector);
    expect(selectors).toEqual([0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]);
    expect(m.segments[Seg.SS]).toEqual({ selector: 0x2000, attrib: 0xf3, limit: 0xffff, base: 0x20000n });
    expect(m.cpl()).toBe(3);
    expect(m.gpr[RSP]).toBe(0x7ffen);
  });
  it('VM in the image counts at CPL 0 only', () => {
    const m = new TestMachine('prot32').setLevel(3).stack(4, Flag.VM | 0x202, Sel.code3 | 3, 0x2_0000);
    m.run(IRET);
    expect(m.rflags & BigInt(Flag.VM)).toBe(0n);
  });
  it('with NT returns to the task in the back link', () => {
    const m = new TestMachine('prot32');
    m.rflags |= BigInt(Flag.NT);
    m.put(TSS, BigInt(Sel.tss2), 2);
    m.setDescriptor(Sel.tss2, (m.get(0x1000 + Sel.tss2, 8) & ~(0xfn << 40n)) | (0xbn << 40n));
    m.put(TSS2 + 0x20, 0x2_0000n, 4);
    m.put(TSS2 + 0x4c, BigInt(Sel.code0), 2);
    m.put(TSS2 + 0x50, BigInt(Sel.data0), 2);
    expect(m.run(IRET).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.TR]?.selector).toBe(Sel.tss2);
    expect(m.get(TSS + 0x24, 4) & BigInt(Flag.NT)).toBe(0n);
  });
  it('with NT and a back link that is not busy is #TS', () => {
    const m = new TestMachine('prot32');
    m.rflags |= BigInt(Flag.NT);
    m.put(TSS, BigInt(Sel.tss2), 2);
    expect(m.run(IRET).exception).toMatchObject({ vector: Vector.TS, errorCode: Sel.tss2 });
  });
});

describe('iretq', () => {
  const frame = (ss: number, cs: number): TestMachine =>
    new TestMachine('prot64').stack(8, ss, 0x7000, 0x202, cs, 0x2_0000);
  it('pops SS:RSP also to the same level', () => {
    const m = frame(Sel.data0, Sel.long0);
    expect(m.run(0x48, IRET).code).toBe(X86Emul.CONTINUE);
    expect(m.gpr[RSP]).toBe(0x7000n);
    expect(m.segments[Seg.SS]?.selector).toBe(Sel.data0);
  });
  it('takes a null SS for 64-bit code at level 0', () => {
    const m = frame(0, Sel.long0);
    m.run(0x48, IRET);
    expect(m.segments[Seg.SS]?.selector).toBe(0);
    expect(m.cpl()).toBe(0);
  });
  it('refuses a null SS for level 3', () => {
    expect(frame(3, Sel.long3 | 3).run(0x48, IRET).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('goes to compatibility mode', () => {
    const m = frame(Sel.data3 | 3, Sel.code3 | 3);
    m.run(0x48, IRET);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: Sel.code3 | 3, attrib: 0xcfb });
    expect(m.gpr[RSP]).toBe(0x7000n);
  });
  it('a non-canonical RIP is #GP(0) before anything moves', () => {
    const m = new TestMachine('prot64').stack(8, Sel.data0, 0x7000, 0x202, Sel.long0, 1n << 47n);
    const rsp = m.gpr[RSP];
    expect(m.run(0x48, IRET).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.gpr[RSP]).toBe(rsp);
  });
  it('with NT is #GP(0)', () => {
    const m = frame(Sel.data0, Sel.long0);
    m.rflags |= BigInt(Flag.NT);
    expect(m.run(0x48, IRET).exception?.vector).toBe(Vector.GP);
  });
});

it("KVM's emulator has iret in real mode only", () => {
  expect(new TestMachine('real', 'amd', 'kvm').stack(2, 2, 0x1000, 0).run(IRET).code).toBe(X86Emul.CONTINUE);
  expect(new TestMachine('prot32', 'amd', 'kvm').stack(4, 2, Sel.code0, 0).run(IRET).code).toBe(X86Emul.UNHANDLEABLE);
});

it('int 21h from virtual-8086 mode and iretd round-trip', () => {
  const m = new TestMachine('vm86');
  m.rflags |= BigInt(Flag.IOPL | Flag.IF);
  m.segments[Seg.DS]!.selector = 0x1234;
  m.put(0x2000 + 0x21 * 8, 0x0002_ee00_0008_0000n, 8);
  m.run(0xcd, 0x21);
  expect(m.gpr[RSP]).toBe(BigInt(INNER_STACK - 36));
  expect(m.segments[Seg.DS]?.attrib).toBe(Attrib.unusable);
  expect(m.rflags & BigInt(Flag.VM)).toBe(0n);
  m.run(IRET);
  expect(m.rip).toBe(2n);
  expect(m.segments[Seg.DS]?.selector).toBe(0x1234);
  expect(m.gpr[RSP]).toBe(BigInt(STACK));
});
