/** The short way of deliveries does what evaluate does, and leaves alone what it is not for. */
import { describe, expect, it } from 'vitest';
import { createInstruction } from '../decode/decode.ts';
import type { PendingEvent } from '../guest-mode.ts';
import { AccessKind } from '../memory/paging.ts';
import { Flag, RSP, Seg } from '../state-layout.ts';
import { TestLayout, TestMachine, TestSelector } from '../testing/index.ts';
import { DirectUnit } from './direct.ts';
import { deliverDirectly, int } from './direct-delivery.ts';
import { iretd } from './direct-legacy.ts';

const HANDLER = 0x20000;
const FLAT_LIMIT = 0xffffffff;
const VECTOR = 14;
const IST1 = 0x38ff8;
const GATE = TestLayout.idt + VECTOR * 16;

interface Case {
  user: 'kernel' | 'code64' | 'code32';
  ist: 0 | 1;
  trap: boolean;
  errorCode: number | undefined;
  kind: 'exception' | 'external' | 'nmi';
  resume: boolean;
  rsp: bigint;
  rflags: number;
}
const event = ({ kind, errorCode }: Case): PendingEvent => ({ kind, vector: VECTOR, errorCode, instructionLength: 0 });

/** A long-mode machine in front of an instruction, with everything that the delivery needs in its TLB. */
function machineFor(c: Case): TestMachine {
  const machine = new TestMachine();
  machine.load([0x90], 'long');
  machine.setHandler(VECTOR, HANDLER, 'long');
  const { memory, state } = machine;
  memory.write8(GATE + 4, c.ist);
  if (c.trap) memory.write8(GATE + 5, 0x8f);
  memory.write64(TestLayout.tss + 4, BigInt(TestLayout.stack));
  memory.write64(TestLayout.tss + 0x24, BigInt(IST1));
  if (c.user !== 'kernel') {
    const code = c.user === 'code64' ? TestSelector.userCode64 : TestSelector.userCode32;
    machine.setSegment(Seg.CS, code, c.user === 'code64' ? 0xafb : 0xcfb, FLAT_LIMIT);
    machine.setSegment(Seg.SS, TestSelector.userData, 0xcf3, FLAT_LIMIT);
    state.cpl = 3;
  }
  state.gpr[RSP] = c.rsp;
  state.rflags = BigInt(c.rflags | 2);
  machine.cpu.stateReplaced('test');
  const { access } = machine.cpu;
  for (const low of [TestLayout.idt, TestLayout.gdt, TestLayout.tss, TestLayout.stack - 8, IST1, 0x7000]) {
    for (const kind of [AccessKind.read, AccessKind.write]) access.translate(low, 0, kind | AccessKind.system);
    if (c.user === 'kernel') access.translate(low, 0, AccessKind.write);
  }
  return machine;
}
const everything = ({ state, memory }: TestMachine) => ({
  gpr: Array.from({ length: 16 }, (_, n) => state.gpr[n]),
  rip: state.rip,
  rflags: state.rflags,
  cpl: state.cpl,
  segments: [Seg.CS, Seg.SS, Seg.DS, Seg.TR].map((seg) => state.getSegment(seg)),
  memory: Buffer.from(memory.readBytes(0, 0x40000)).toString('base64'),
});
const short = (machine: TestMachine, c: Case): boolean =>
  deliverDirectly({ cpu: machine.cpu, words: machine.state.words }, event(c), c.resume);

const PLAIN: Case = {
  user: 'kernel',
  ist: 0,
  trap: false,
  errorCode: 6,
  kind: 'exception',
  resume: true,
  rsp: 0x7f3dn,
  rflags: Flag.IF | Flag.CF,
};
const CASES: [string, Partial<Case>][] = [
  ['a fault of the kernel', {}],
  ['an interrupt of the kernel', { kind: 'external', errorCode: undefined, resume: false }],
  ['a trap gate keeps IF', { trap: true }],
  ['the flags that handlers lose', { rflags: Flag.IF | Flag.TF | Flag.NT | Flag.RF | Flag.AC | Flag.DF | Flag.IOPL }],
  ['IST from the kernel', { ist: 1, kind: 'nmi', errorCode: undefined, resume: false }],
  ['a fault of a 64-bit program', { user: 'code64', rsp: 0x1234_5678_9abcn }],
  ['a fault of a 32-bit program', { user: 'code32', rsp: 0xffff_fff3n }],
  ['IST from a program', { user: 'code64', ist: 1 }],
];

describe('deliverDirectly', () => {
  it.each(CASES)('%s', (_name, part) => {
    const c = { ...PLAIN, ...part };
    const [ours, theirs] = [machineFor(c), machineFor(c)];
    theirs.cpu.onModeChange = () => {};
    expect(short(theirs, c)).toBe(false);
    expect(theirs.cpu.events.deliver(event(c), c.resume)).toBe(true);
    expect(short(ours, c)).toBe(true);
    expect(everything(ours)).toEqual(everything(theirs));
  });
  it.each<[string, (machine: TestMachine) => void]>([
    ['a gate of another type', ({ memory }) => memory.write8(GATE + 5, 0x8c)],
    ['a gate that is not present', ({ memory }) => memory.write8(GATE + 5, 0x0e)],
    ['a handler that is not canonical', ({ memory }) => memory.write32(GATE + 8, 0x8000)],
    ['32-bit code', ({ memory }) => memory.write16(GATE + 2, TestSelector.code32)],
    ['a selector behind the limit', ({ memory }) => memory.write16(GATE + 2, 0x100)],
    ['a stack that is not in the TLB', ({ state }) => (state.gpr[RSP] = 0x3_0000_0000n)],
    ['a frame across two pages', ({ state }) => (state.gpr[RSP] = 0x7010n)],
    ['an IDT that ends before', ({ state }) => state.setTable('idtr', { base: 0n, limit: VECTOR * 16 + 14 })],
  ])('not: %s', (_name, spoil) => {
    const machine = machineFor(PLAIN);
    spoil(machine);
    const before = everything(machine);
    expect(short(machine, PLAIN)).toBe(false);
    expect(everything(machine)).toEqual(before);
  });
  it('not: software interrupts, whose gates have a DPL', () => {
    const machine = machineFor(PLAIN);
    const unit = { cpu: machine.cpu, words: machine.state.words };
    for (const kind of ['softint', 'softexception', 'icebp'] as const) {
      const soft = { kind, vector: VECTOR, errorCode: undefined, instructionLength: 1 };
      expect(deliverDirectly(unit, soft, false)).toBe(false);
    }
  });
});

/** The same in 32-bit protected mode. */
function legacyMachineFor(c: Case): TestMachine {
  const machine = new TestMachine();
  machine.load([0x90], 'prot32');
  machine.setHandler(VECTOR, HANDLER, 'prot32', 3);
  const { memory, state } = machine;
  if (c.trap) memory.write8(LEGACY_GATE + 5, 0xef);
  memory.write32(TestLayout.tss + 4, TestLayout.stack);
  memory.write32(TestLayout.tss + 8, TestSelector.data);
  if (c.user !== 'kernel') {
    machine.setSegment(Seg.CS, TestSelector.userCode32, 0xcfb, FLAT_LIMIT);
    machine.setSegment(Seg.SS, TestSelector.userData, 0xcf3, FLAT_LIMIT);
    state.cpl = 3;
  }
  state.gpr[RSP] = c.rsp;
  state.rflags = BigInt(c.rflags | 2);
  machine.cpu.stateReplaced('test');
  const { access } = machine.cpu;
  for (const low of [TestLayout.idt, TestLayout.gdt, TestLayout.tss, TestLayout.stack - 8, 0x7000]) {
    for (const kind of [AccessKind.read, AccessKind.write]) access.translate(low, 0, kind | AccessKind.system);
    if (c.user === 'kernel') access.translate(low, 0, AccessKind.write);
  }
  return machine;
}
const LEGACY_GATE = TestLayout.idt + VECTOR * 8;

describe('deliverDirectly in 32-bit protected mode', () => {
  it.each<[string, Partial<Case>]>([
    ['a fault of the kernel', {}],
    ['an interrupt of the kernel', { kind: 'external', errorCode: undefined, resume: false }],
    ['a trap gate keeps IF', { trap: true }],
    ['the flags that handlers lose', { rflags: Flag.IF | Flag.TF | Flag.NT | Flag.RF | Flag.AC | Flag.DF | Flag.IOPL }],
    ['a fault of a program', { user: 'code32', rsp: 0xffff_fff3n }],
    ['an NMI of a program', { user: 'code32', kind: 'nmi', errorCode: undefined, resume: false }],
    ['the upper half of RSP goes', { rsp: 0x1_0000_7f3cn }],
  ])('%s', (_name, part) => {
    const c = { ...PLAIN, ...part };
    const [ours, theirs] = [legacyMachineFor(c), legacyMachineFor(c)];
    theirs.cpu.onModeChange = () => {};
    expect(short(theirs, c)).toBe(false);
    expect(theirs.cpu.events.deliver(event(c), c.resume)).toBe(true);
    expect(short(ours, c)).toBe(true);
    expect(everything(ours)).toEqual(everything(theirs));
  });
  const PROGRAM: Case = { ...PLAIN, user: 'code32' };
  it.each<[string, Case, (machine: TestMachine) => void]>([
    ['a 16-bit gate', PLAIN, ({ memory }) => memory.write8(LEGACY_GATE + 5, 0x86)],
    ['a task gate', PLAIN, ({ memory }) => memory.write8(LEGACY_GATE + 5, 0x85)],
    ['a stack of 16 bits', PLAIN, (m) => m.setSegment(Seg.SS, TestSelector.data16, 0x93, 0xffff)],
    ['a stack that grows down', PLAIN, (m) => m.setSegment(Seg.SS, TestSelector.data, 0xc97, FLAT_LIMIT)],
    ['a frame across two pages', PLAIN, ({ state }) => (state.gpr[RSP] = 0x7004n)],
    ['an IDT that ends before', PLAIN, ({ state }) => state.setTable('idtr', { base: 0n, limit: VECTOR * 8 + 6 })],
    ['a 16-bit TSS', PROGRAM, (m) => m.setSegment(Seg.TR, TestSelector.tss, 0x83, 0x67)],
    ['a TSS without SS0', PROGRAM, ({ memory }) => memory.write32(TestLayout.tss + 8, 0)],
    ['virtual-8086 mode', PROGRAM, ({ state }) => (state.rflags |= BigInt(Flag.VM))],
  ])('not: %s', (_name, c, spoil) => {
    const machine = legacyMachineFor(c);
    spoil(machine);
    const before = everything(machine);
    expect(short(machine, c)).toBe(false);
    expect(everything(machine)).toEqual(before);
  });
});

describe('iretd', () => {
  const IRETD = Object.assign(createInstruction(), { length: 1, codeSize: 4, opSize: 4, opcode: 0xcf });
  const { code32, data, userCode32, userData } = TestSelector;
  const machineWith = (frame: readonly number[], rflags: number): TestMachine => {
    const machine = legacyMachineFor({ ...PLAIN, rsp: 0x7f00n, rflags });
    machine.memory.writeBytes(Number(machine.state.rip), Uint8Array.of(0xcf));
    frame.forEach((value, n) => {
      machine.memory.write32(0x7f00 + n * 4, value);
    });
    for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const) machine.setSegment(seg, userData, 0xcf3, FLAT_LIMIT);
    machine.cpu.stateReplaced('test');
    machine.cpu.access.translate(0x7f00, 0, AccessKind.read);
    return machine;
  };
  const IMAGE = Flag.IF | Flag.CF | Flag.RF | Flag.AC | Flag.ID | Flag.IOPL | 2;
  it.each<[string, number[]]>([
    ['the kernel', [0x1_2345, code32, IMAGE]],
    ['a program', [0x1_2345, userCode32, IMAGE, 0xffff_1234, userData]],
  ])('to %s', (_name, frame) => {
    const [ours, theirs] = [machineWith(frame, Flag.RF | Flag.VIF), machineWith(frame, Flag.RF | Flag.VIF)];
    theirs.go(1);
    expect(iretd.run(new DirectUnit(ours.cpu, 1), IRETD)).toBe(true);
    expect(everything(ours)).toEqual(everything(theirs));
  });
  it.each<[string, number[]]>([
    ['virtual-8086 mode', [0x1234, 0x1000, Flag.VM | 2]],
    ['a step', [0x1_2345, code32, Flag.TF | 2]],
    ['level 1', [0x1_2345, code32 | 1, 2]],
    ['a stack of another level', [0x1_2345, userCode32, 2, 0x8000, data]],
    ['a null CS', [0x1_2345, 0, 2]],
  ])('not: to %s', (_name, frame) => {
    const machine = machineWith(frame, 0);
    const before = everything(machine);
    expect(iretd.run(new DirectUnit(machine.cpu, 1), IRETD)).toBe(false);
    expect(everything(machine)).toEqual(before);
  });
});

describe('int', () => {
  const INT = Object.assign(createInstruction(), { imm: BigInt(VECTOR), length: 2, codeSize: 8, opcode: 0xcd });
  const softint = (instructionLength: number): PendingEvent => ({
    kind: 'softint',
    vector: VECTOR,
    errorCode: undefined,
    instructionLength,
  });
  it.each<[string, Partial<Case>]>([
    ['the kernel', {}],
    ['a 64-bit program', { user: 'code64' }],
    ['a 32-bit program', { user: 'code32', rsp: 0xffff_fff3n }],
    ['through a trap gate and IST', { user: 'code64', trap: true, ist: 1 }],
  ])('of %s, with RF gone from the image', (_name, part) => {
    const c = { ...PLAIN, rflags: Flag.IF | Flag.RF | Flag.CF, ...part };
    const [ours, theirs] = [machineFor(c), machineFor(c)];
    for (const m of [ours, theirs]) m.memory.write8(GATE + 5, m.memory.read8(GATE + 5) | 0x60);
    theirs.state.rflags &= ~BigInt(Flag.RF);
    expect(theirs.cpu.events.deliver(softint(2), false)).toBe(true);
    const unit = new DirectUnit(ours.cpu, 1);
    expect(int.isPlain!(unit, INT)).toBe(true);
    expect(int.run(unit, INT)).toBe(true);
    expect(everything(ours)).toEqual(everything(theirs));
  });
  it('not: a program, through a gate of level 0', () => {
    const machine = machineFor({ ...PLAIN, user: 'code64' });
    const before = everything(machine);
    expect(int.run(new DirectUnit(machine.cpu, 1), INT)).toBe(false);
    expect(everything(machine)).toEqual(before);
  });
});

it.each(['evaluate', 'interpret', 'translate'] as const)(
  'an event at the same level leaves SS and CPL alone, whatever DPL a VMCB gave SS: %s',
  (engine) => {
    const m = new TestMachine({ engine });
    m.memory.writeBytes(0x11000, Uint8Array.of(0x90, 0xf4));
    m.load([0x90, 0x0f, 0x0b], 'long');
    m.setHandler(6, 0x11000, 'long');
    m.setSegment(Seg.SS, 0, 0xcf3, FLAT_LIMIT);
    m.cpu.stateReplaced('test');
    expect(m.go(100)).toBe('halt');
    expect(m.state.cpl).toBe(0);
    expect(m.state.getSegment(Seg.SS).attrib).toBe(0xcf3);
  },
);
