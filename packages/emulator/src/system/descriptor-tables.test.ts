import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Attrib, CR4, Flag, Seg, Vector } from '../state-layout.ts';
import { descriptor, GDT, gate, LDT, Sel, TestMachine, TSS2 } from './testing.ts';

/** modrm for [disp32] / [disp16] with a register field. */
const at = (m: TestMachine, reg: number): number[] =>
  m.mode === 'prot64'
    ? [0x04 | (reg << 3), 0x25, 0x00, 0x50, 0x00, 0x00]
    : m.mode === 'real'
      ? [0x06 | (reg << 3), 0x00, 0x50]
      : [0x05 | (reg << 3), 0x00, 0x50, 0x00, 0x00];
const rm = (reg: number, register = 0): number => 0xc0 | (reg << 3) | register;

describe('lgdt, lidt', () => {
  it.each([
    ['real', [], 0x33_4455n],
    ['real', [0x66], 0x2233_4455n],
    ['prot32', [], 0x2233_4455n],
    ['prot32', [0x66], 0x33_4455n],
  ] as const)('lgdt in %s with prefixes %s', (mode, prefix, base) => {
    const m = new TestMachine(mode);
    m.put(0x5000, 0x2233_4455_1234n, 6);
    m.run(...prefix, 0x0f, 0x01, ...at(m, 2));
    expect(m.gdt).toEqual({ limit: 0x1234, base });
  });
  it('lidt takes 64 bits of base in 64-bit mode, which must be canonical', () => {
    const m = new TestMachine('prot64');
    m.put(0x5000, 0xfffn | (0x1122_3344_5566n << 16n), 10);
    m.run(0x0f, 0x01, ...at(m, 3));
    expect(m.idt).toEqual({ limit: 0xfff, base: 0x1122_3344_5566n });
    m.put(0x5002, 1n << 47n, 8);
    expect(m.run(0x0f, 0x01, ...at(m, 3)).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('lgdt at CPL 3 is #GP(0)', () => {
    const m = new TestMachine('prot32').setLevel(3);
    expect(m.run(0x0f, 0x01, ...at(m, 2)).exception?.vector).toBe(Vector.GP);
  });
});

describe('sgdt, sidt', () => {
  it('store limit and base', () => {
    const m = new TestMachine('prot32');
    m.run(0x0f, 0x01, ...at(m, 0));
    expect([m.get(0x5000, 2), m.get(0x5002, 4)]).toEqual([0xffn, BigInt(GDT)]);
    const long = new TestMachine('prot64');
    long.idt = { base: 0xffff_8000_0000_0000n, limit: 0xfff };
    long.run(0x0f, 0x01, ...at(long, 1));
    expect(long.get(0x5002, 8)).toBe(0xffff_8000_0000_0000n);
  });
  it('store nothing if the second half faults', () => {
    const m = new TestMachine('prot32');
    m.readOnlyPages.add(6);
    expect(m.run(0x0f, 0x01, 0x05, 0xfe, 0x5f, 0x00, 0x00).exception?.vector).toBe(Vector.PF);
    expect(m.get(0x5ffe, 2)).toBe(0n);
  });
  it.each([
    ['sgdt', [0x0f, 0x01, 0x05, 0, 0x50, 0, 0]],
    ['sidt', [0x0f, 0x01, 0x0d, 0, 0x50, 0, 0]],
    ['sldt', [0x0f, 0x00, 0xc0]],
    ['str', [0x0f, 0x00, 0xc8]],
  ] as const)('%s with UMIP at CPL 3 is #GP(0)', (_, code) => {
    const m = new TestMachine('prot32').setLevel(3);
    expect(m.run(...code).code).toBe(X86Emul.CONTINUE);
    m.cr[4]! |= CR4.UMIP;
    expect(m.run(...code).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});

describe('lldt, ltr', () => {
  const lldt = (m: TestMachine, selector: number) => {
    m.gpr[0] = BigInt(selector);
    return m.run(0x0f, 0x00, rm(2));
  };
  const ltr = (m: TestMachine, selector: number) => {
    m.gpr[0] = BigInt(selector);
    return m.run(0x0f, 0x00, rm(3));
  };
  it('lldt loads the descriptor, null makes the LDT unusable', () => {
    const m = new TestMachine('prot32');
    lldt(m, Sel.ldt);
    expect(m.segments[Seg.LDTR]).toMatchObject({ selector: Sel.ldt, base: BigInt(LDT), limit: 0x1f });
    lldt(m, 0);
    expect(m.segments[Seg.LDTR]?.attrib).toBe(Attrib.unusable);
  });
  it('ltr marks the TSS busy, in memory too', () => {
    const m = new TestMachine('prot32');
    ltr(m, Sel.tss2);
    expect(m.segments[Seg.TR]).toMatchObject({ selector: Sel.tss2, attrib: 0x8b, base: BigInt(TSS2) });
    expect(m.get(GDT + Sel.tss2 + 5, 1)).toBe(0x8bn);
  });
  it('ltr in long mode takes a 16-byte descriptor', () => {
    const m = new TestMachine('prot64');
    m.setDescriptor(Sel.tss2, descriptor(0x1000, 0x67, 0x89, 0), 0x7fffn);
    ltr(m, Sel.tss2);
    expect(m.segments[Seg.TR]?.base).toBe(0x7fff_0000_1000n);
  });
  it.each([
    ['prot32', 'a null selector', ltr, 0, Vector.GP, 0],
    ['prot32', 'a busy TSS', ltr, Sel.tss, Vector.GP, Sel.tss],
    ['prot32', 'an LDT selector', ltr, 0xc, Vector.GP, 0xc],
    ['prot32', 'a code segment', lldt, Sel.code0, Vector.GP, Sel.code0],
    ['prot32', 'an LDT selector', lldt, 0xc, Vector.GP, 0xc],
    ['real', 'real mode', lldt, Sel.ldt, Vector.UD, undefined],
  ] as const)('%s: %s is a fault', (mode, _, load, selector, vector, errorCode) => {
    expect(load(new TestMachine(mode), selector).exception).toMatchObject({ vector, errorCode });
  });
  it('a TSS that is not present is #NP', () => {
    const m = new TestMachine('prot32');
    m.setDescriptor(Sel.tss2, descriptor(TSS2, 0x67, 0x09, 0));
    expect(ltr(m, Sel.tss2).exception).toMatchObject({ vector: Vector.NP, errorCode: Sel.tss2 });
  });
  it('a base that is not canonical is #GP(selector) in long mode', () => {
    const m = new TestMachine('prot64');
    m.setDescriptor(Sel.tss2, descriptor(0, 0x67, 0x89, 0), 0x8000n);
    expect(ltr(m, Sel.tss2).exception).toMatchObject({ vector: Vector.GP, errorCode: Sel.tss2 });
  });
});

describe('lar, lsl, verr, verw', () => {
  const ask = (m: TestMachine, selector: number, ...code: readonly number[]): boolean => {
    m.gpr[0] = BigInt(selector);
    m.gpr[3] = 0n;
    m.run(0x0f, ...code);
    return (m.rflags & BigInt(Flag.ZF)) !== 0n;
  };
  const LAR = [0x02, rm(3)] as const;
  const LSL = [0x03, rm(3)] as const;
  const VERR = [0x00, rm(4)] as const;
  const VERW = [0x00, rm(5)] as const;
  it('lar gives the rights, lsl the limit in bytes', () => {
    const m = new TestMachine('prot32');
    expect(ask(m, Sel.data3, ...LAR)).toBe(true);
    expect(m.gpr[3]).toBe(0x00cf_f300n);
    expect(ask(m, Sel.data3, ...LSL)).toBe(true);
    expect(m.gpr[3]).toBe(0xffff_ffffn);
    expect(ask(m, Sel.data16, ...LSL)).toBe(true);
    expect(m.gpr[3]).toBe(0xffffn);
  });
  it.each([
    ['lar', LAR, 0, 0, false],
    ['lar', LAR, 0xf00, 0, false],
    ['lar', LAR, Sel.data0, 3, false],
    ['lar', LAR, Sel.data0 | 3, 0, false],
    ['lar', LAR, Sel.conforming0, 3, true],
    ['lar', LAR, Sel.callGate, 0, true],
    ['lsl', LSL, Sel.callGate, 0, false],
    ['lsl', LSL, Sel.ldt, 0, true],
    ['verr', VERR, Sel.executeOnly, 0, false],
    ['verr', VERR, Sel.readOnly, 0, true],
    ['verw', VERW, Sel.readOnly, 0, false],
    ['verw', VERW, Sel.data3, 3, true],
    ['verw', VERW, Sel.code0, 0, false],
    ['verr', VERR, Sel.ldt, 0, false],
  ] as const)('%s %s of selector %i at CPL %i: ZF %s', (_, code, selector, cpl, zf) => {
    const m = new TestMachine('prot32').setLevel(cpl);
    m.setDescriptor(Sel.callGate, gate(Sel.code0, 0, 0x8c));
    expect(ask(m, selector, ...code)).toBe(zf);
  });
  it('lar of a 16-bit TSS fails in long mode', () => {
    const m = new TestMachine('prot64');
    m.setDescriptor(Sel.tss2, descriptor(0, 0x2b, 0x81, 0));
    expect(ask(m, Sel.tss2, ...LAR)).toBe(false);
  });
});

describe('arpl', () => {
  it('raises the RPL and sets ZF, or leaves it', () => {
    const m = new TestMachine('prot32');
    m.gpr[0] = 0x10n;
    m.gpr[1] = 0x13n;
    m.run(0x63, 0xc8);
    expect(m.gpr[0]).toBe(0x13n);
    expect(m.rflags & BigInt(Flag.ZF)).toBe(BigInt(Flag.ZF));
    m.run(0x63, 0xc8);
    expect(m.rflags & BigInt(Flag.ZF)).toBe(0n);
  });
});
