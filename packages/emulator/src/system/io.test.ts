import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Flag, Seg, Vector } from '../state-layout.ts';
import { TestMachine, TSS } from './testing.ts';

const [RAX, RCX, RDX, RSI, RDI] = [0, 1, 2, 6, 7] as const;

describe('in, out', () => {
  it('in al, 60h keeps the rest of RAX; in eax, dx clears the upper half', () => {
    const m = new TestMachine('prot64');
    m.gpr[RAX] = 0xffff_ffff_ffff_ffffn;
    m.run(0xe4, 0x60);
    expect(m.gpr[RAX]).toBe(0xffff_ffff_ffff_ff78n);
    m.gpr[RDX] = 0x1_03f8n;
    m.run(0xed);
    expect(m.gpr[RAX]).toBe(0x12345678n);
    expect(m.ports.map((p) => p.port)).toEqual([0x60, 0x3f8]);
  });
  it('out 80h, ax writes two bytes', () => {
    const m = new TestMachine('real');
    m.gpr[RAX] = 0xabcd_1234n;
    m.run(0xe7, 0x80);
    expect(m.ports).toEqual([{ size: 2, port: 0x80, value: 0x1234 }]);
  });
});

describe('rights', () => {
  const IOPL3 = BigInt(Flag.IOPL);
  it('real mode asks nobody, CPL within IOPL neither', () => {
    expect(new TestMachine('real').run(0xec).code).toBe(X86Emul.CONTINUE);
    const m = new TestMachine('prot32').setLevel(3);
    m.rflags |= IOPL3;
    m.put(TSS + 0x88, 0xffffn, 2);
    expect(m.run(0xe4, 0x00).code).toBe(X86Emul.CONTINUE);
  });
  const bitmap = (bits: bigint, code: readonly number[], dx = 0): X86Emul | number => {
    const m = new TestMachine('prot32').setLevel(3);
    m.put(TSS + 0x88, bits, 4);
    m.gpr[RDX] = BigInt(dx);
    const { exception, code: result } = m.run(...code);
    return exception?.vector ?? result;
  };
  it.each([
    ['in al, 0', 0n, [0xe4, 0], 0, X86Emul.CONTINUE],
    ['in al, 3 denied', 8n, [0xe4, 3], 0, Vector.GP],
    ['in eax, 0 with one of four denied', 8n, [0xe5, 0], 0, Vector.GP],
    ['in ax, 7 across a byte', 0x100n, [0x66, 0xe5, 7], 0, Vector.GP],
    ['in al, 7 beside a denied one', 0x100n, [0xe4, 7], 0, X86Emul.CONTINUE],
    ['beyond the TSS', 0n, [0xec], 0xfff8, Vector.GP],
  ] as const)('%s', (_, bits, code, dx, expected) => {
    expect(bitmap(bits, code, dx)).toBe(expected);
  });
  it('both bytes that are read must lie in the TSS', () => {
    const m = new TestMachine('prot32').setLevel(3);
    m.segments[Seg.TR]!.limit = 0x88;
    expect(m.run(0xe4, 0).exception?.vector).toBe(Vector.GP);
    m.segments[Seg.TR]!.limit = 0x89;
    expect(m.run(0xe4, 0).code).toBe(X86Emul.CONTINUE);
  });
  it('virtual-8086 mode goes by the bitmap even with IOPL 3', () => {
    const m = new TestMachine('vm86');
    m.rflags |= IOPL3;
    m.put(TSS + 0x88, 1n, 1);
    expect(m.run(0xe4, 0).exception?.vector).toBe(Vector.GP);
  });
  it('a 16-bit TSS grants nothing', () => {
    const m = new TestMachine('prot32').setLevel(3);
    m.segments[Seg.TR]!.attrib = 0x83;
    expect(m.run(0xe4, 0).exception?.vector).toBe(Vector.GP);
  });
});

describe('ins, outs', () => {
  it('insb stores at ES:EDI and moves EDI by DF', () => {
    const m = new TestMachine('prot32');
    m.gpr[RDI] = 0x5000n;
    m.run(0x6c);
    expect(m.get(0x5000, 1)).toBe(0x78n);
    expect(m.gpr[RDI]).toBe(0x5001n);
    m.rflags |= BigInt(Flag.DF);
    m.run(0x6d);
    expect(m.gpr[RDI]).toBe(0x4ffdn);
  });
  it('rep outsb does one iteration at a time', () => {
    const m = new TestMachine('prot32');
    m.put(0x5000, 0x030201n, 3);
    m.gpr[RSI] = 0x5000n;
    m.gpr[RCX] = 2n;
    m.run(0xf3, 0x6e);
    expect([m.gpr[RCX], m.rip]).toEqual([1n, 0x10000n]);
    m.run(0xf3, 0x6e);
    expect([m.gpr[RCX], m.rip]).toEqual([0n, 0x10002n]);
    expect(m.ports.map((p) => p.value)).toEqual([1, 2]);
  });
  it('rep insb with ECX 0 does nothing', () => {
    const m = new TestMachine('prot32');
    m.run(0xf3, 0x6c);
    expect(m.ports).toEqual([]);
    expect(m.rip).toBe(0x10002n);
  });
  it('ins to a page that is read-only does not read the port', () => {
    const m = new TestMachine('prot32');
    m.gpr[RDI] = 0x5000n;
    m.readOnlyPages.add(5);
    expect(m.run(0x6c).exception?.vector).toBe(Vector.PF);
    expect(m.ports).toEqual([]);
  });
});
