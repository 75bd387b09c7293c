import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Attrib, Seg, Vector } from '../state-layout.ts';
import { GDT, LDT, Sel, TestMachine } from './testing.ts';

const MOV_DS_AX = [0x8e, 0xd8] as const;
const MOV_SS_AX = [0x8e, 0xd0] as const;
const load = (m: TestMachine, selector: number, code: readonly number[] = MOV_DS_AX) => {
  m.gpr[0] = BigInt(selector);
  return m.run(...code);
};

describe('mov sreg in real mode', () => {
  it('sets the base and keeps limit and rights (unreal mode)', () => {
    const m = new TestMachine('real');
    m.segments[Seg.DS] = { selector: 0, attrib: 0xc93, limit: 0xffff_ffff, base: 0n };
    load(m, 0x1234);
    expect(m.segments[Seg.DS]).toEqual({ selector: 0x1234, attrib: 0xc93, limit: 0xffff_ffff, base: 0x12340n });
  });
  it('makes a segment usable again that protected mode left null', () => {
    const m = new TestMachine('real');
    m.segments[Seg.DS] = { selector: 0, attrib: Attrib.unusable, limit: 0xffff, base: 0n };
    load(m, 0x10);
    expect(m.segments[Seg.DS]?.attrib).toBe(0x93);
  });
});

it('mov ds, ax in virtual-8086 mode gives 64 KiB with DPL 3', () => {
  const m = new TestMachine('vm86');
  load(m, 0x1234);
  expect(m.segments[Seg.DS]).toEqual({ selector: 0x1234, attrib: 0xf3, limit: 0xffff, base: 0x12340n });
});

describe('mov ds, ax in protected mode', () => {
  it('loads the hidden part and sets the accessed bit', () => {
    const m = new TestMachine('prot32');
    m.put(GDT + Sel.data3 + 5, 0xf2n, 1);
    expect(load(m, Sel.data3).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.DS]).toEqual({ selector: Sel.data3, attrib: 0xcf3, limit: 0xffff_ffff, base: 0n });
    expect(m.get(GDT + Sel.data3 + 5, 1)).toBe(0xf3n);
  });
  it('reads the LDT for selectors with TI', () => {
    const m = new TestMachine('prot32');
    load(m, 0xf);
    expect(m.segments[Seg.DS]).toMatchObject({ selector: 0xf, limit: 0xffff_ffff });
  });
  it('an LDT selector without an LDT is #GP(selector)', () => {
    const m = new TestMachine('prot32');
    m.segments[Seg.LDTR]!.attrib = Attrib.unusable;
    expect(load(m, 0xf).exception).toMatchObject({ vector: Vector.GP, errorCode: 0xc });
  });
  it.each([
    ['beyond the table limit', 0x100, 0, Vector.GP],
    ['beyond the LDT limit', 0x24, 0, Vector.GP],
    ['an execute-only segment', Sel.executeOnly, 0, Vector.GP],
    ['a system segment', Sel.tss2, 0, Vector.GP],
    ['a segment that is not present', Sel.absentData, 0, Vector.NP],
    ['DPL 0 from CPL 3', Sel.data0, 3, Vector.GP],
    ['DPL 0 with RPL 3', Sel.data0 | 3, 0, Vector.GP],
  ] as const)('%s is a fault with the selector', (_, selector, cpl, vector) => {
    const m = new TestMachine('prot32').setLevel(cpl);
    const before = m.segments[Seg.DS];
    expect(load(m, selector).exception).toMatchObject({ vector, errorCode: selector & 0xfffc });
    expect(m.segments[Seg.DS]).toEqual(before);
  });
  it('a conforming code segment may be loaded at any level', () => {
    expect(load(new TestMachine('prot32').setLevel(3), Sel.conforming0 | 3).code).toBe(X86Emul.CONTINUE);
  });
  it('a page fault on the descriptor leaves the register', () => {
    const m = new TestMachine('prot32');
    m.absentPages.add(GDT >> 12);
    expect(load(m, Sel.data3).exception?.vector).toBe(Vector.PF);
    expect(m.segments[Seg.DS]?.selector).toBe(Sel.data0);
  });
});

describe('null selectors', () => {
  it('mov ds, 0 makes the segment unusable', () => {
    const m = new TestMachine('prot32');
    load(m, 3);
    expect(m.segments[Seg.DS]).toMatchObject({ selector: 3, attrib: Attrib.unusable });
  });
  it.each([
    ['amd', false, 0x1234n],
    ['amd', true, 0n],
    ['intel', false, 0n],
  ] as const)('mov fs, 0 on %s (NullSelectorClearsBase %s) leaves base %s', (vendor, clears, base) => {
    const m = new TestMachine('prot64', vendor);
    if (clears) m.features.add('nullSelectorClearsBase');
    m.segments[Seg.FS]!.base = 0x1234n;
    load(m, 0, [0x8e, 0xe0]);
    expect(m.segments[Seg.FS]?.base).toBe(base);
  });
  it('mov ss, 0 is #GP(0) in 32-bit code', () => {
    expect(load(new TestMachine('prot32'), 0, MOV_SS_AX).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('mov ss, 0 is legal in 64-bit mode below CPL 3 with RPL = CPL', () => {
    const m = new TestMachine('prot64');
    expect(load(m, 0, MOV_SS_AX).code).toBe(X86Emul.CONTINUE);
    expect(m.cpl()).toBe(0);
    expect(load(m, 1, MOV_SS_AX).exception?.vector).toBe(Vector.GP);
    expect(load(new TestMachine('prot64').setLevel(3), 3, MOV_SS_AX).exception?.vector).toBe(Vector.GP);
  });
});

describe('mov ss, ax', () => {
  it('blocks events for one instruction', () => {
    const m = new TestMachine('prot32');
    load(m, Sel.data0, MOV_SS_AX);
    expect(m.shadow).toBe(2);
  });
  it.each([
    ['RPL other than CPL', Sel.data0 | 1, Vector.GP],
    ['DPL other than CPL', Sel.data3, Vector.GP],
    ['a read-only segment', Sel.readOnly, Vector.GP],
    ['a segment that is not present', Sel.absentData, Vector.SS],
  ] as const)('%s is a fault', (_, selector, vector) => {
    expect(load(new TestMachine('prot32'), selector, MOV_SS_AX).exception).toMatchObject({
      vector,
      errorCode: selector & 0xfffc,
    });
  });
});

describe('other ways to load and store', () => {
  it('mov cs, ax is #UD', () => {
    expect(load(new TestMachine('prot32'), Sel.code0, [0x8e, 0xc8]).exception?.vector).toBe(Vector.UD);
  });
  it('mov eax, ds zero-extends, mov [mem], ds stores two bytes', () => {
    const m = new TestMachine('prot32');
    m.gpr[0] = 0xffff_ffffn;
    m.run(0x8c, 0xd8);
    expect(m.gpr[0]).toBe(BigInt(Sel.data0));
    m.put(0x5000, 0xffff_ffffn, 4);
    m.run(0x8c, 0x1d, 0x00, 0x50, 0x00, 0x00);
    expect(m.get(0x5000, 4)).toBe(0xffff_0000n | BigInt(Sel.data0));
  });
  it('pop es moves the stack pointer by the operand size; a fault leaves it', () => {
    const m = new TestMachine('prot32').stack(4, 0xabcd_0000 + Sel.data3);
    const before = m.gpr[4]!;
    m.run(0x07);
    expect(m.segments[Seg.ES]?.selector).toBe(Sel.data3);
    expect(m.gpr[4]).toBe(before + 4n);
    m.stack(4, Sel.absentData);
    expect(m.run(0x07).exception?.vector).toBe(Vector.NP);
    expect(m.gpr[4]).toBe(before);
  });
  it.each([
    ['amd', 0x0010],
    ['intel', 0xffff_0010],
  ] as const)('push ds on %s leaves %s in the slot', (vendor, expected) => {
    const m = new TestMachine('prot32', vendor);
    m.put(0x7ffc, 0xffff_ffffn, 4);
    m.run(0x1e);
    expect(m.top(4)).toBe(expected);
  });
  it('les eax, [mem] loads selector and offset, and nothing if the selector is bad', () => {
    const m = new TestMachine('prot32');
    m.put(0x5000, 0x11223344n | (BigInt(Sel.data3) << 32n), 6);
    m.run(0xc4, 0x05, 0x00, 0x50, 0x00, 0x00);
    expect(m.gpr[0]).toBe(0x11223344n);
    expect(m.segments[Seg.ES]?.selector).toBe(Sel.data3);
    m.put(0x5000, 0x55667788n | (BigInt(Sel.absentData) << 32n), 6);
    expect(m.run(0xc4, 0x05, 0x00, 0x50, 0x00, 0x00).exception?.vector).toBe(Vector.NP);
    expect(m.gpr[0]).toBe(0x11223344n);
  });
  it('lgs rax, [mem] with REX.W takes 8 bytes of offset on Intel, 4 on AMD', () => {
    for (const vendor of ['intel', 'amd'] as const) {
      const m = new TestMachine('prot64', vendor);
      const size = vendor === 'intel' ? 8 : 4;
      m.put(0x5000, 0x1_0000_0002n, 8);
      m.put(0x5000 + size, BigInt(Sel.data3), 2);
      m.run(0x48, 0x0f, 0xb5, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00);
      expect(m.segments[Seg.GS]?.selector).toBe(Sel.data3);
      expect(m.gpr[0]).toBe(vendor === 'intel' ? 0x1_0000_0002n : 2n);
    }
  });
});

it('LDT descriptors get their accessed bit in the LDT', () => {
  const m = new TestMachine('prot32');
  m.put(LDT + 8 + 5, 0xf2n, 1);
  load(m, 0xf);
  expect(m.get(LDT + 8 + 5, 1)).toBe(0xf3n);
});
