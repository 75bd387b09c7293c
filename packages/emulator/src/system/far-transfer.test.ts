import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Attrib, Seg, Vector } from '../state-layout.ts';
import { CODE, descriptor, GDT, gate, INNER_STACK, Sel, STACK, TestMachine, TSS, TSS2 } from './testing.ts';

const RSP = 4;
const ptr32 = (opcode: number, selector: number, offset: number): number[] => [
  opcode,
  offset & 0xff,
  (offset >> 8) & 0xff,
  (offset >> 16) & 0xff,
  (offset >>> 24) & 0xff,
  selector & 0xff,
  selector >> 8,
];
const jmp = (selector: number, offset = 0x2_0000): number[] => ptr32(0xea, selector, offset);
const call = (selector: number, offset = 0x2_0000): number[] => ptr32(0x9a, selector, offset);

describe('real mode', () => {
  it('jmp 1000:0200 keeps limit and rights of CS', () => {
    const m = new TestMachine('real');
    m.segments[Seg.CS]!.limit = 0xffff_ffff;
    m.run(0xea, 0x00, 0x02, 0x00, 0x10);
    expect(m.segments[Seg.CS]).toEqual({ selector: 0x1000, attrib: 0x9b, limit: 0xffff_ffff, base: 0x10000n });
    expect(m.rip).toBe(0x200n);
  });
  it('jmp beyond the limit is #GP(0)', () => {
    const m = new TestMachine('real');
    expect(m.run(0x66, 0xea, 0, 0, 1, 0, 0, 0x10).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.segments[Seg.CS]?.selector).toBe(CODE >> 4);
  });
  it('call 1000:0200 and retf come back', () => {
    const m = new TestMachine('real');
    m.run(0x9a, 0x00, 0x02, 0x00, 0x10);
    expect([m.top(2), m.top(2, 1)]).toEqual([5, CODE >> 4]);
    m.run(0xca, 0x04, 0x00);
    expect(m.rip).toBe(5n);
    expect(m.segments[Seg.CS]?.selector).toBe(CODE >> 4);
    expect(m.gpr[RSP]).toBe(BigInt(STACK + 4));
  });
});

describe('jmp far to a code segment', () => {
  it.each([
    ['DPL 0, nonconforming', Sel.code0, 0],
    ['conforming DPL 0 from CPL 3', Sel.conforming0, 3],
    ['DPL 3 from CPL 3', Sel.code3 | 3, 3],
  ] as const)('%s', (_, selector, cpl) => {
    const m = new TestMachine('prot32').setLevel(cpl);
    expect(m.run(...jmp(selector)).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.CS]?.selector).toBe((selector & ~3) | cpl);
    expect(m.rip).toBe(0x2_0000n);
    expect(m.cpl()).toBe(cpl);
  });
  it.each([
    ['a null selector', 0, 0, Vector.GP, 0],
    ['a data segment', Sel.data0, 0, Vector.GP, Sel.data0],
    ['DPL 0 from CPL 3', Sel.code0 | 3, 3, Vector.GP, Sel.code0],
    ['DPL 3 from CPL 0', Sel.code3, 0, Vector.GP, Sel.code3],
    ['RPL above CPL', Sel.code0 | 3, 0, Vector.GP, Sel.code0],
    ['a segment that is not present', Sel.absent, 0, Vector.NP, Sel.absent],
    ['beyond the table', 0xf00, 0, Vector.GP, 0xf00],
  ] as const)('%s is a fault', (_, selector, cpl, vector, errorCode) => {
    const m = new TestMachine('prot32').setLevel(cpl);
    expect(m.run(...jmp(selector)).exception).toMatchObject({ vector, errorCode });
    expect(m.rip).toBe(BigInt(CODE));
  });
  it('an offset beyond the limit is #GP(0), CS stays', () => {
    const m = new TestMachine('prot32');
    m.setDescriptor(Sel.code16, descriptor(0, 0xff, 0x9b, 0));
    expect(m.run(...jmp(Sel.code16)).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.segments[Seg.CS]?.selector).toBe(Sel.code0);
  });
  it('from 64-bit code to compatibility mode: jmp [mem]', () => {
    const m = new TestMachine('prot64');
    m.put(0x5000, 0x2_0000n | (BigInt(Sel.code0) << 32n), 6);
    m.run(0xff, 0x2c, 0x25, 0x00, 0x50, 0x00, 0x00);
    expect((m.segments[Seg.CS]?.attrib ?? 0) & (Attrib.L | Attrib.DB)).toBe(Attrib.DB);
  });
  it('to a segment with L and D is #GP(selector) in long mode', () => {
    const m = new TestMachine('prot64');
    m.setDescriptor(Sel.code0, descriptor(0, 0xfffff, 0x9b, 0xe));
    m.put(0x5000, 0x2_0000n | (BigInt(Sel.code0) << 32n), 6);
    expect(m.run(0xff, 0x2c, 0x25, 0x00, 0x50, 0x00, 0x00).exception).toMatchObject({
      vector: Vector.GP,
      errorCode: Sel.code0,
    });
  });
});

describe('call gates', () => {
  const withGate = (cpl: 0 | 3, target: number, access = 0xec, parameters = 0): TestMachine => {
    const m = new TestMachine('prot32').setLevel(cpl);
    m.setDescriptor(Sel.callGate, gate(target, 0x2_0000, access, parameters));
    return m;
  };
  it('a call to DPL 0 from CPL 3 changes the stack and copies parameters', () => {
    const m = withGate(3, Sel.code0, 0xec, 2).stack(4, 0x11111111, 0x22222222);
    const esp = Number(m.gpr[RSP]);
    expect(m.run(...call(Sel.callGate | 3, 0)).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.CS]?.selector).toBe(Sel.code0);
    expect(m.segments[Seg.SS]?.selector).toBe(Sel.data0);
    expect(m.cpl()).toBe(0);
    expect(m.gpr[RSP]).toBe(BigInt(INNER_STACK - 24));
    const frame = [0, 1, 2, 3, 4, 5].map((i) => m.top(4, i));
    expect(frame).toEqual([CODE + 7, Sel.code3 | 3, 0x22222222, 0x11111111, esp, Sel.data3 | 3]);
  });
  it('a 16-bit gate pushes words', () => {
    const m = withGate(3, Sel.code16, 0xe4);
    m.run(...call(Sel.callGate | 3, 0));
    expect(m.gpr[RSP]).toBe(BigInt(INNER_STACK - 8));
    expect(m.rip).toBe(0n);
  });
  it('a call to the same level keeps the stack', () => {
    const m = withGate(0, Sel.code0);
    m.run(...call(Sel.callGate, 0));
    expect(m.gpr[RSP]).toBe(BigInt(STACK - 8));
    expect(m.rip).toBe(0x2_0000n);
  });
  it('jmp through a gate to an inner level is #GP(target)', () => {
    expect(withGate(3, Sel.code0).run(...jmp(Sel.callGate | 3)).exception).toMatchObject({
      vector: Vector.GP,
      errorCode: Sel.code0,
    });
  });
  it.each([
    ['gate DPL below CPL', 3, Sel.code0, 0x8c, Vector.GP, Sel.callGate],
    ['a gate that is not present', 3, Sel.code0, 0x6c, Vector.NP, Sel.callGate],
    ['a null target', 0, 0, 0xec, Vector.GP, 0],
    ['a target that is data', 0, Sel.data0, 0xec, Vector.GP, Sel.data0],
    ['a target that is not present', 0, Sel.absent, 0xec, Vector.NP, Sel.absent],
  ] as const)('%s is a fault', (_, cpl, target, access, vector, errorCode) => {
    const m = withGate(cpl, target, access);
    expect(m.run(...call(Sel.callGate | cpl, 0)).exception).toMatchObject({ vector, errorCode });
  });
  it.each([
    ['a null inner SS', 0, Vector.TS, 0],
    ['an inner SS with a wrong RPL', Sel.data0 | 3, Vector.TS, Sel.data0],
    ['an inner SS that is not present', Sel.absentData, Vector.SS, Sel.absentData],
  ] as const)('%s is a fault with the stack selector', (_, ss, vector, errorCode) => {
    const m = withGate(3, Sel.code0);
    m.put(TSS + 8, BigInt(ss), 2);
    expect(m.run(...call(Sel.callGate | 3, 0)).exception).toMatchObject({ vector, errorCode });
    expect(m.cpl()).toBe(3);
  });
  it('a TSS that is too short is #TS with its selector', () => {
    const m = withGate(3, Sel.code0);
    m.segments[Seg.TR]!.limit = 8;
    expect(m.run(...call(Sel.callGate | 3, 0)).exception).toMatchObject({ vector: Vector.TS, errorCode: Sel.tss });
  });
  it('a 64-bit gate takes RSP0 and a null SS', () => {
    const m = new TestMachine('prot64').setLevel(3);
    m.setDescriptor(Sel.callGate, gate(Sel.long0, 0x2_0000, 0xec), 0x7fffn);
    m.put(0x5000, BigInt(Sel.callGate | 3) << 32n, 6);
    expect(m.run(0xff, 0x1c, 0x25, 0x00, 0x50, 0x00, 0x00).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.SS]?.selector).toBe(0);
    expect(m.cpl()).toBe(0);
    expect(m.rip).toBe(0x7fff_0002_0000n);
    expect([0, 1, 2, 3].map((i) => m.top(8, i))).toEqual([CODE + 7, Sel.long3 | 3, STACK, Sel.data3 | 3]);
  });
});

describe('retf', () => {
  it('to an outer level takes SS:ESP, drops parameters on both stacks and nulls inner segments', () => {
    const m = new TestMachine('prot32').stack(4, Sel.data3 | 3, 0x7000, 0xaaaa, Sel.code3 | 3, 0x2_0000);
    expect(m.run(0xca, 0x04, 0x00).code).toBe(X86Emul.CONTINUE);
    expect(m.cpl()).toBe(3);
    expect(m.segments[Seg.SS]?.selector).toBe(Sel.data3 | 3);
    expect(m.gpr[RSP]).toBe(0x7004n);
    expect(m.segments[Seg.DS]).toMatchObject({ selector: 0, attrib: Attrib.unusable });
  });
  it.each([
    ['to an inner level', 3, [Sel.code0, 0x2_0000], Vector.GP, Sel.code0],
    ['with a null CS', 0, [0, 0x2_0000], Vector.GP, 0],
    ['to data', 0, [Sel.data0, 0x2_0000], Vector.GP, Sel.data0],
    ['to a segment that is not present', 0, [Sel.absent, 0x2_0000], Vector.NP, Sel.absent],
    ['with a null outer SS', 0, [0, 0x7000, Sel.code3 | 3, 0x2_0000], Vector.GP, 0],
    ['with an outer SS of the wrong DPL', 0, [Sel.data0 | 3, 0x7000, Sel.code3 | 3, 0], Vector.GP, Sel.data0],
  ] as const)('%s is a fault that moves nothing', (_, cpl, frame, vector, errorCode) => {
    const m = new TestMachine('prot32').setLevel(cpl).stack(4, ...frame);
    const esp = m.gpr[RSP];
    expect(m.run(0xcb).exception).toMatchObject({ vector, errorCode });
    expect(m.gpr[RSP]).toBe(esp);
  });
});

it.each([
  ['amd', Vector.SS, 0],
  ['intel', Vector.GP, Sel.code0],
] as const)('retf to an inner level with nothing above the frame, %s', (vendor, vector, errorCode) => {
  const m = new TestMachine('prot32', vendor).setLevel(3).stack(4, Sel.code0, 0x2_0000);
  m.segments[Seg.SS] = { ...m.segments[Seg.SS]!, limit: Number(m.gpr[RSP]) + 7 };
  expect(m.run(0xcb).exception).toMatchObject({ vector, errorCode });
});

describe('tasks', () => {
  it('jmp to a TSS switches tasks', () => {
    const m = new TestMachine('prot32');
    m.put(TSS2 + 0x20, 0x2_0000n, 4);
    m.put(TSS2 + 0x4c, BigInt(Sel.code0), 2);
    m.put(TSS2 + 0x50, BigInt(Sel.data0), 2);
    expect(m.run(...jmp(Sel.tss2, 0)).code).toBe(X86Emul.CONTINUE);
    expect(m.segments[Seg.TR]?.selector).toBe(Sel.tss2);
    expect(m.rip).toBe(0x2_0000n);
  });
  it('a busy TSS is #GP(selector)', () => {
    const m = new TestMachine('prot32');
    expect(m.run(...jmp(Sel.tss, 0)).exception).toMatchObject({ vector: Vector.GP, errorCode: Sel.tss });
  });
  it('long mode has no tasks', () => {
    const m = new TestMachine('prot64');
    m.put(0x5000, BigInt(Sel.tss2) << 32n, 6);
    expect(m.run(0xff, 0x2c, 0x25, 0x00, 0x50, 0x00, 0x00).exception).toMatchObject({
      vector: Vector.GP,
      errorCode: Sel.tss2,
    });
  });
});

describe("KVM's subset", () => {
  it('gates, tasks and returns to outer levels are unhandleable', () => {
    const m = new TestMachine('prot32', 'amd', 'kvm');
    expect(m.run(...jmp(Sel.tss2, 0)).code).toBe(X86Emul.UNHANDLEABLE);
    m.stack(4, Sel.data3 | 3, 0x7000, Sel.code3 | 3, 0x2_0000);
    expect(m.run(0xcb).code).toBe(X86Emul.UNHANDLEABLE);
    expect(m.segments[Seg.CS]?.selector).toBe(Sel.code0);
  });
  it('jmp and call to code segments work', () => {
    const m = new TestMachine('prot32', 'amd', 'kvm');
    expect(m.run(...jmp(Sel.code0)).code).toBe(X86Emul.CONTINUE);
    expect(m.rip).toBe(0x2_0000n);
  });
});

it('call far marks the code segment accessed', () => {
  const m = new TestMachine('prot32');
  m.put(GDT + Sel.code0 + 5, 0x9an, 1);
  m.run(...call(Sel.code0));
  expect(m.get(GDT + Sel.code0 + 5, 1)).toBe(0x9bn);
});
