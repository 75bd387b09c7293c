import { describe, expect, it } from 'vitest';
import type { EvaluateContext } from '../engines/evaluate/context.ts';
import { GuestException } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { CR0, Flag, Seg, Vector } from '../state-layout.ts';
import { emulatorTaskSwitch, type TaskSwitchReason } from './task-switch.ts';
import { CODE, descriptor, GDT, gate, LDT, Sel, STACK, TestMachine, TSS, TSS2 } from './testing.ts';

const TYPE = 5;

/** A machine whose second TSS is filled in. */
const machine = (subset: 'x86' | 'kvm' = 'x86'): TestMachine => {
  const m = new TestMachine('prot32', 'amd', subset);
  m.put(TSS2 + 0x20, 0x2_0000n, 4);
  m.put(TSS2 + 0x24, 0x46n, 4);
  for (let i = 0; i < 8; i++) m.put(TSS2 + 0x28 + 4 * i, BigInt(0x100 + i), 4);
  m.put(TSS2 + 0x38, 0xa000n, 4);
  [Sel.data0, Sel.code0, Sel.data0, Sel.data3, 0, 0].forEach((selector, i) => {
    m.put(TSS2 + 0x48 + 4 * i, BigInt(selector), 2);
  });
  m.put(TSS2 + 0x60, BigInt(Sel.ldt), 2);
  m.dr[7] = 0x7ffn;
  return m;
};

/** The context of a machine's last switch. */
const contexts = new Map<TestMachine, EvaluateContext>();

/** Switches as core does after a task switch exit. */
const run = (m: TestMachine, reason: TaskSwitchReason, errorCode?: number, idtIndex = -1): GuestException | X86Emul => {
  const context = m.eventContext();
  contexts.set(m, context);
  try {
    const code = emulatorTaskSwitch(context, Sel.tss2, idtIndex, reason, errorCode !== undefined, errorCode ?? 0);
    context.commit();
    return code;
  } catch (error) {
    if (error instanceof GuestException) return error;
    throw error;
  }
};
const descriptorType = (m: TestMachine, selector: number): number => Number(m.get(GDT + selector + TYPE, 1)) & 15;

describe('the new task', () => {
  it('gets registers, segments, EIP, EFLAGS and CR0.TS; local breakpoints go', () => {
    const m = machine();
    expect(run(m, 'jmp')).toBe(X86Emul.CONTINUE);
    expect(m.gpr.slice(0, 8)).toEqual([0x100n, 0x101n, 0x102n, 0x103n, 0xa000n, 0x105n, 0x106n, 0x107n]);
    expect(m.rip).toBe(0x2_0000n);
    expect(m.rflags).toBe(0x46n);
    expect(m.segments[Seg.DS]).toMatchObject({ selector: Sel.data3, limit: 0xffff_ffff });
    expect(m.segments[Seg.LDTR]).toMatchObject({ selector: Sel.ldt, base: BigInt(LDT) });
    expect(m.cr[0]! & CR0.TS).toBe(CR0.TS);
    expect(m.dr[7]).toBe(0x7ffn & ~0x155n);
  });
  it('loads CR3 only with paging on', () => {
    const m = machine();
    m.put(TSS2 + 0x1c, 0x5000n, 4);
    run(m, 'jmp');
    expect(m.cr[3]).toBe(0n);
    const paged = machine();
    paged.put(TSS2 + 0x1c, 0x5000n, 4);
    paged.cr[0]! |= CR0.PG;
    run(paged, 'jmp');
    expect(paged.cr[3]).toBe(0x5000n);
  });
  it('may be a virtual-8086 task', () => {
    const m = machine();
    m.put(TSS2 + 0x24, BigInt(Flag.VM) | 2n, 4);
    run(m, 'jmp');
    expect(m.segments[Seg.DS]).toEqual({ selector: Sel.data3, attrib: 0xf3, limit: 0xffff, base: 0x200n });
    expect(m.cpl()).toBe(3);
  });
  it('may have a 16-bit TSS', () => {
    const m = machine();
    m.setDescriptor(Sel.tss2, descriptor(TSS2, 0x2b, 0x81, 0));
    m.put(TSS2 + 0x0e, 0x4000n, 2);
    m.put(TSS2 + 0x10, 0x202n, 2);
    [0x1111, 0x2222, 0x3333, 0x4444, 0x9000, 0, 0, 0].forEach((value, i) => {
      m.put(TSS2 + 0x12 + 2 * i, BigInt(value), 2);
    });
    [Sel.data0, Sel.code0, Sel.data0, Sel.data3].forEach((selector, i) => {
      m.put(TSS2 + 0x22 + 2 * i, BigInt(selector), 2);
    });
    m.put(TSS2 + 0x2a, 0n, 2);
    expect(run(m, 'jmp')).toBe(X86Emul.CONTINUE);
    expect(m.gpr[3]).toBe(0x4444n);
    expect(m.rip).toBe(0x4000n);
    expect(m.rflags).toBe(0x202n);
  });
  it('gets the error code of an exception on its stack', () => {
    const m = machine();
    run(m, 'gate', 0x1234);
    expect(m.gpr[4]).toBe(0x9ffcn);
    expect(m.top(4)).toBe(0x1234);
  });
  it('with the T bit asks for #DB with BT', () => {
    const m = machine();
    m.put(TSS2 + 0x64, 1n, 2);
    run(m, 'jmp');
    expect(contexts.get(m)?.debugTrap).toBe(0x8000n);
  });
});

describe('the old task', () => {
  it('is saved: registers, selectors, EIP, EFLAGS', () => {
    const m = machine();
    m.gpr[3] = 0xdead_beefn;
    run(m, 'jmp');
    expect(m.get(TSS + 0x20, 4)).toBe(BigInt(CODE));
    expect(m.get(TSS + 0x34, 4)).toBe(0xdead_beefn);
    expect(m.get(TSS + 0x38, 4)).toBe(BigInt(STACK));
    expect(m.get(TSS + 0x4c, 2)).toBe(BigInt(Sel.code0));
  });
  it.each([
    ['jmp', 9, 11, 0n, 0n],
    ['call', 11, 11, BigInt(Sel.tss), BigInt(Flag.NT)],
    ['gate', 11, 11, BigInt(Sel.tss), BigInt(Flag.NT)],
    ['iret', 9, 9, 0n, 0n],
  ] as const)('%s leaves busy bits, back link and NT right', (reason, oldType, newType, link, nt) => {
    const m = machine();
    run(m, reason);
    expect(descriptorType(m, Sel.tss)).toBe(oldType);
    expect(descriptorType(m, Sel.tss2)).toBe(newType);
    expect(m.get(TSS2, 2)).toBe(link);
    expect(m.rflags & BigInt(Flag.NT)).toBe(nt);
  });
});

describe('faults', () => {
  it('a TSS that is too short is #TS before anything changes', () => {
    const m = machine();
    m.setDescriptor(Sel.tss2, descriptor(TSS2, 0x66, 0x89, 0));
    expect(run(m, 'jmp')).toMatchObject({ vector: Vector.TS, errorCode: Sel.tss2 });
    expect(m.segments[Seg.TR]?.selector).toBe(Sel.tss);
    expect(descriptorType(m, Sel.tss)).toBe(11);
  });
  it.each([
    ['LDT', 0x60, Sel.data0, Vector.TS, Sel.data0],
    ['CS of data', 0x4c, Sel.data0, Vector.TS, Sel.data0],
    ['CS not present', 0x4c, Sel.absent, Vector.NP, Sel.absent],
    ['SS of the wrong DPL', 0x50, Sel.data3, Vector.TS, Sel.data3],
    ['SS not present', 0x50, Sel.absentData, Vector.SS, Sel.absentData],
    ['DS not readable', 0x54, Sel.executeOnly, Vector.TS, Sel.executeOnly],
    ['a null CS', 0x4c, 0, Vector.TS, 0],
  ] as const)('%s is raised in the new task', (_, at, selector, vector, errorCode) => {
    const m = machine();
    m.put(TSS2 + at, BigInt(selector), 2);
    expect(run(m, 'jmp')).toMatchObject({ vector, errorCode });
    expect(m.segments[Seg.TR]?.selector).toBe(Sel.tss2);
    expect(m.rip).toBe(0x2_0000n);
    expect(contexts.get(m)?.modeChanged).toBe(true);
  });
  it('int n through a task gate with DPL below CPL is #GP(vector)', () => {
    const m = machine('kvm').setLevel(3);
    m.setGate(0x21, gate(Sel.tss2, 0, 0x85));
    expect(run(m, 'gate', undefined, 0x21)).toMatchObject({ vector: Vector.GP, errorCode: 0x21 * 8 + 2 });
  });
  it('a CR3 that is refused is #GP(0)', () => {
    const m = machine();
    m.cr[0]! |= CR0.PG;
    m.refusedCrs.add(3);
    expect(run(m, 'jmp')).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});
