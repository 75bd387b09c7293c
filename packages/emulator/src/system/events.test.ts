import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { CR4, Flag, Seg, Vector } from '../state-layout.ts';
import { CODE, descriptor, gate, IDT, INNER_STACK, Sel, STACK, TestMachine, TSS, TSS2 } from './testing.ts';

const RSP = 4;
const HANDLER = 0x2_0000;

describe('real mode', () => {
  const machine = (): TestMachine => {
    const m = new TestMachine('real');
    m.put(0x21 * 4, 0x1000_0200n, 4);
    return m;
  };
  it('int 21h pushes FLAGS, CS, IP and clears IF, TF, AC', () => {
    const m = machine();
    m.rflags = BigInt(Flag.IF | Flag.AC | Flag.CF) | 2n;
    m.run(0xcd, 0x21);
    expect([m.top(2), m.top(2, 1), m.top(2, 2)]).toEqual([2, CODE >> 4, Flag.IF | Flag.CF | 2]);
    expect(m.rflags).toBe(BigInt(Flag.CF) | 2n);
    expect(m.segments[Seg.CS]?.base).toBe(0x10000n);
    expect(m.rip).toBe(0x200n);
  });
  it('a vector beyond the IVT is #GP', () => {
    const m = machine();
    m.idt = { base: 0n, limit: 0x21 * 4 + 2 };
    expect(m.run(0xcd, 0x21).exception?.vector).toBe(Vector.GP);
    expect(m.gpr[RSP]).toBe(BigInt(STACK));
  });
  it('the stack wraps at 64 KiB', () => {
    const m = machine();
    m.segments[Seg.SS]!.base = 0x20000n;
    m.gpr[RSP] = 2n;
    m.run(0xcd, 0x21);
    expect(m.gpr[RSP]).toBe(0xfffcn);
  });
});

describe('protected mode', () => {
  const machine = (cpl: 0 | 3, access = 0x8e, selector: number = Sel.code0): TestMachine => {
    const m = new TestMachine('prot32').setLevel(cpl);
    m.setGate(14, gate(selector, HANDLER, access));
    m.rflags = BigInt(Flag.IF | Flag.NT) | 2n;
    return m;
  };
  it('a page fault at the same level pushes flags, CS, EIP and the error code', () => {
    const m = machine(0);
    m.deliver('exception', 14, 5);
    expect([0, 1, 2, 3].map((i) => m.top(4, i))).toEqual([5, CODE, Sel.code0, Flag.IF | Flag.NT | 2]);
    expect(m.gpr[RSP]).toBe(BigInt(STACK - 16));
    expect(m.rflags).toBe(2n);
  });
  it('a trap gate leaves IF set', () => {
    const m = machine(0, 0x8f);
    m.deliver('exception', 14, 0);
    expect(m.rflags).toBe(BigInt(Flag.IF) | 2n);
  });
  it('from CPL 3 it changes to the stack of the TSS', () => {
    const m = machine(3);
    m.deliver('external', 14);
    expect(m.cpl()).toBe(0);
    expect(m.gpr[RSP]).toBe(BigInt(INNER_STACK - 20));
    expect([3, 4].map((i) => m.top(4, i))).toEqual([STACK, Sel.data3 | 3]);
  });
  it('a 16-bit gate pushes words', () => {
    const m = machine(0, 0x86);
    m.deliver('exception', 14, 5);
    expect([0, 1].map((i) => m.top(2, i))).toEqual([5, CODE & 0xffff]);
    expect(m.gpr[RSP]).toBe(BigInt(STACK - 8));
  });
  it.each([
    ['a gate DPL below CPL for int n', 'softint', 3, 0x8e, Sel.code0, Vector.GP, 14 * 8 + 2],
    ['no gate', 'external', 0, 0x80, Sel.code0, Vector.GP, 14 * 8 + 3],
    ['a gate that is not present', 'external', 0, 0x0e, Sel.code0, Vector.NP, 14 * 8 + 3],
    ['a null handler', 'exception', 0, 0x8e, 0, Vector.GP, 1],
    ['a handler that is data', 'exception', 0, 0x8e, Sel.data0, Vector.GP, Sel.data0 | 1],
    ['an outer handler', 'exception', 0, 0x8e, Sel.code3, Vector.GP, Sel.code3 | 1],
    ['a handler that is not present', 'softint', 0, 0x8e, Sel.absent, Vector.NP, Sel.absent],
  ] as const)('%s (%s) is a fault with the right error code', (_, kind, cpl, access, selector, vector, errorCode) => {
    const m = machine(cpl, access, selector);
    expect(m.deliver(kind, 14).exception).toMatchObject({ vector, errorCode });
    expect(m.gpr[RSP]).toBe(BigInt(STACK));
  });
  it('icebp does not look at the gate DPL', () => {
    const m = machine(3);
    m.setGate(1, gate(Sel.code0, HANDLER, 0x8e));
    expect(m.run(0xf1).code).toBe(X86Emul.CONTINUE);
    expect(m.top(4)).toBe(CODE + 1);
  });
  it('an inner stack without room is #SS with its selector and EXT', () => {
    const m = machine(3);
    m.setDescriptor(Sel.data0, descriptor(0, 0x10, 0x93, 4));
    expect(m.deliver('external', 14).exception).toMatchObject({ vector: Vector.SS, errorCode: Sel.data0 | 1 });
    expect(m.cpl()).toBe(3);
  });
  it('a task gate switches tasks and pushes the error code there', () => {
    const m = machine(0, 0x85, Sel.tss2);
    m.put(TSS2 + 0x20, BigInt(HANDLER), 4);
    m.put(TSS2 + 0x38, 0xa000n, 4);
    m.put(TSS2 + 0x4c, BigInt(Sel.code0), 2);
    m.put(TSS2 + 0x50, BigInt(Sel.data0), 2);
    m.deliver('exception', 14, 5);
    expect(m.segments[Seg.TR]?.selector).toBe(Sel.tss2);
    expect(m.gpr[RSP]).toBe(0x9ffcn);
    expect(m.top(4)).toBe(5);
    expect(m.get(TSS2, 2)).toBe(BigInt(Sel.tss));
    expect(m.rflags & BigInt(Flag.NT)).toBe(BigInt(Flag.NT));
  });
});

describe('software interrupts', () => {
  it('int3 returns behind itself, into only with OF', () => {
    const m = new TestMachine('prot32');
    m.setGate(3, gate(Sel.code0, HANDLER, 0x8e));
    m.setGate(4, gate(Sel.code0, HANDLER, 0x8e));
    m.run(0xce);
    expect(m.rip).toBe(BigInt(CODE + 1));
    m.rflags |= BigInt(Flag.OF);
    m.run(0xce);
    expect(m.rip).toBe(BigInt(HANDLER));
    expect(m.top(4)).toBe(CODE + 2);
    m.run(0xcc);
    expect(m.top(4)).toBe(HANDLER + 1);
  });
  it('bound outside is #BR, inside it goes on', () => {
    const m = new TestMachine('prot32');
    m.put(0x5000, 0x0000_0005_ffff_fffen, 8);
    for (const [value, raises] of [
      [-2, false],
      [5, false],
      [6, true],
      [-3, true],
    ] as const) {
      m.gpr[0] = BigInt.asUintN(32, BigInt(value));
      expect(m.run(0x62, 0x05, 0x00, 0x50, 0x00, 0x00).exception?.vector).toBe(raises ? Vector.BR : undefined);
    }
  });
});

describe('virtual-8086 mode', () => {
  it('int n with IOPL below 3 and no VME is #GP(0)', () => {
    expect(new TestMachine('vm86').run(0xcd, 0x21).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('a handler outside level 0 is #GP(selector)', () => {
    const m = new TestMachine('vm86');
    m.rflags |= BigInt(Flag.IOPL);
    m.setGate(0x21, gate(Sel.code3, HANDLER, 0xee));
    expect(m.run(0xcd, 0x21).exception).toMatchObject({ vector: Vector.GP, errorCode: Sel.code3 });
  });
  const redirected = (iopl: boolean): TestMachine => {
    const m = new TestMachine('vm86');
    m.cr[4]! |= CR4.VME;
    m.rflags |= BigInt(Flag.VIF | (iopl ? Flag.IOPL | Flag.IF : 0));
    m.put(0x21 * 4, 0x1000_0200n, 4);
    return m;
  };
  it('VME with a clear redirection bit goes through the IVT; VIF stands for IF', () => {
    const m = redirected(false);
    expect(m.run(0xcd, 0x21).code).toBe(X86Emul.CONTINUE);
    expect(m.rip).toBe(0x200n);
    expect(m.rflags & BigInt(Flag.VIF | Flag.VM)).toBe(BigInt(Flag.VM));
    expect(m.top(2, 2) & (Flag.IF | Flag.IOPL)).toBe(Flag.IF | Flag.IOPL);
  });
  it('with IOPL 3 it clears IF', () => {
    const m = redirected(true);
    m.run(0xcd, 0x21);
    expect(m.rflags & BigInt(Flag.IF | Flag.VIF)).toBe(BigInt(Flag.VIF));
  });
  it('a set redirection bit leads to the IDT, or #GP(0) with IOPL below 3', () => {
    const m = redirected(false);
    m.put(TSS + 0x88 - 32 + (0x21 >> 3), 2n, 1);
    expect(m.run(0xcd, 0x21).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});

describe('long mode', () => {
  const machine = (cpl: 0 | 3, ist = 0): TestMachine => {
    const m = new TestMachine('prot64').setLevel(cpl);
    m.setGate(14, gate(Sel.long0, HANDLER, 0x8e, ist));
    return m;
  };
  it('always pushes SS:RSP and aligns the stack to 16 bytes', () => {
    const m = machine(0);
    m.gpr[RSP] = BigInt(STACK - 8 + 3);
    m.deliver('exception', 14, 5);
    expect(m.gpr[RSP]).toBe(BigInt(STACK - 16 - 48));
    expect([0, 1, 2, 3, 4, 5].map((i) => m.top(8, i))).toEqual([5, CODE, Sel.long0, 2, STACK - 5, Sel.data0]);
    expect(m.segments[Seg.SS]?.selector).toBe(Sel.data0);
  });
  it('from CPL 3 it takes RSP0 and a null SS', () => {
    const m = machine(3);
    m.deliver('external', 14);
    expect(m.segments[Seg.SS]?.selector).toBe(0);
    expect(m.cpl()).toBe(0);
    expect(m.gpr[RSP]).toBe(BigInt(INNER_STACK - 40));
  });
  it('IST applies without a change of level, and keeps SS', () => {
    const m = machine(0, 2);
    m.put(TSS + 0x2c, 0xb008n, 8);
    m.deliver('nmi', 14);
    expect(m.gpr[RSP]).toBe(BigInt(0xb000 - 40));
    expect(m.segments[Seg.SS]?.selector).toBe(Sel.data0);
  });
  it('a non-canonical IST is #SS(EXT)', () => {
    const m = machine(0, 1);
    m.put(TSS + 0x24, 1n << 50n, 8);
    expect(m.deliver('external', 14).exception).toMatchObject({ vector: Vector.SS, errorCode: 1 });
  });
  it('a handler that is not 64-bit code is #GP(selector)', () => {
    const m = machine(0);
    m.setGate(14, gate(Sel.code0, HANDLER, 0x8e));
    expect(m.deliver('exception', 14, 0).exception).toMatchObject({ vector: Vector.GP, errorCode: Sel.code0 | 1 });
  });
  it.each([0x85, 0x86, 0x87])('gate type %x does not exist', (access) => {
    const m = machine(0);
    m.setGate(14, gate(Sel.long0, HANDLER, access));
    expect(m.deliver('exception', 14, 0).exception).toMatchObject({ vector: Vector.GP, errorCode: 14 * 8 + 3 });
  });
  it('a non-canonical handler is #GP(EXT)', () => {
    const m = machine(0);
    m.put(IDT + 14 * 16 + 8, 0x8000n, 8);
    expect(m.deliver('exception', 14, 0).exception).toMatchObject({ vector: Vector.GP, errorCode: 1 });
  });
});

it("KVM's emulator has int n in real mode only", () => {
  const m = new TestMachine('prot32', 'amd', 'kvm');
  expect(m.run(0xcd, 0x21).code).toBe(X86Emul.UNHANDLEABLE);
});
