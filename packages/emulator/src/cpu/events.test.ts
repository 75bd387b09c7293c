import { beforeEach, describe, expect, it } from 'vitest';
import type { PlatformBus } from '../processor-api.ts';
import { TestLayout, TestMachine } from '../testing/index.ts';
import { combine } from './events.ts';

const ENGINES = ['evaluate', 'interpret', 'translate'] as const;
let engine: (typeof ENGINES)[number] = 'evaluate';

const HANDLER = 0x20000;
const HLT = 0xf4;
const STI = 0xfb;
const NOP = 0x90;

/** A bus that hands out one vector when asked, once or more often. */
const interrupting = (vector: number, times = 1): PlatformBus => {
  let left = times;
  return {
    pioIn: () => 0,
    pioOut: () => {},
    read: () => 0n,
    write: () => {},
    acknowledgeInterrupt: () => (left-- > 0 ? vector : -1),
  };
};

/** A protected-mode machine whose handlers of the given vectors halt. */
function machineWith(code: number[], vectors: number[], bus?: PlatformBus): TestMachine {
  const machine = new TestMachine(bus === undefined ? { engine } : { engine, bus });
  machine.load(code, 'prot32');
  for (const vector of vectors) {
    machine.memory.write8(HANDLER + vector * 16, HLT);
    machine.setHandler(vector, HANDLER + vector * 16, 'prot32');
  }
  return machine;
}
/** Vector whose handler the processor halted in, or -1. */
const haltedIn = (machine: TestMachine): number => {
  const rip = Number(machine.state.rip);
  return rip > HANDLER ? Math.floor((rip - 1 - HANDLER) / 16) : -1;
};
/** Return address on the 32-bit stack, behind an error code or not. */
const returnTo = (machine: TestMachine, errorCode = false): number =>
  machine.memory.read32(Number(machine.reg(4)) + (errorCode ? 4 : 0));
const pushedFlags = (machine: TestMachine, errorCode = false): number =>
  machine.memory.read32(Number(machine.reg(4)) + (errorCode ? 12 : 8));

describe('an injected INT', () => {
  const int = (vector: number) => ({ kind: 'softint', vector, errorCode: undefined, instructionLength: 2 }) as const;
  it('takes its tick, also right behind another delivery', () => {
    const machine = machineWith([NOP], [6, 0x21]);
    machine.cpu.injectEvent({ kind: 'exception', vector: 6, errorCode: undefined, instructionLength: 0 });
    expect(machine.cpu.injectEvent(int(0x21))).toBe(true);
    expect([machine.cpu.tick, Number(machine.state.rip)]).toEqual([1, HANDLER + 0x21 * 16]);
  });
  it('takes none where a fault is delivered in its place', () => {
    const machine = machineWith([NOP], [13]);
    expect(machine.cpu.injectEvent(int(0x21))).toBe(true);
    expect([machine.cpu.tick, Number(machine.state.rip)]).toEqual([0, HANDLER + 13 * 16]);
  });
});

describe('exceptions while exceptions are delivered', () => {
  const during = (vector: number) => ({ kind: 'exception', vector, errorCode: 0, instructionLength: 0 }) as const;
  const rows: [string, number, number, ReturnType<typeof combine>][] = [
    ['#UD then #GP', 6, 13, 'alone'],
    ['#GP then #GP', 13, 13, 'double'],
    ['#GP then #PF', 13, 14, 'alone'],
    ['#PF then #GP', 14, 13, 'double'],
    ['#PF then #PF', 14, 14, 'double'],
    ['#GP then #UD', 13, 6, 'alone'],
    ['#DE then #NP', 0, 11, 'double'],
    ['#DF then #GP', 8, 13, 'shutdown'],
    ['#DF then #PF', 8, 14, 'shutdown'],
    ['#AC then #GP', 17, 13, 'alone'],
  ];
  it.each(rows)('%s', (_name, first, second, expected) => {
    expect(combine(during(first), second)).toBe(expected);
  });
  it('an interrupt then #GP stands alone', () => {
    expect(combine({ kind: 'external', vector: 13, errorCode: undefined, instructionLength: 0 }, 13)).toBe('alone');
  });
});

describe.each(ENGINES)('by %s', (name) => {
  beforeEach(() => {
    engine = name;
  });

  describe('faults', () => {
    it('ud2 pushes its own address and RF', () => {
      const machine = machineWith([NOP, 0x0f, 0x0b], [6]);
      expect(machine.go()).toBe('halt');
      expect(haltedIn(machine)).toBe(6);
      expect(returnTo(machine)).toBe(0x10001);
      expect(pushedFlags(machine) & 0x10000).toBe(0x10000);
      expect(machine.state.rflags & 0x10000n).toBe(0n);
    });
    it('a missing gate for #UD becomes #GP with the IDT bit, then #DF only if that fails too', () => {
      const machine = machineWith([0x0f, 0x0b], [13]);
      machine.go();
      expect(haltedIn(machine)).toBe(13);
      // The gate is empty: not a gate at all, #GP(vector * 8 + IDT + EXT).
      expect(machine.memory.read32(Number(machine.reg(4)))).toBe(6 * 8 + 3);
    });
    it('a missing #GP handler gives #DF with error code 0', () => {
      const machine = machineWith([0xcd, 0x50], [8]);
      machine.go();
      expect(haltedIn(machine)).toBe(8);
      expect(machine.memory.read32(Number(machine.reg(4)))).toBe(0);
      expect(returnTo(machine, true)).toBe(0x10000);
    });
    it('no handlers at all: shutdown', () => {
      const machine = machineWith([0x0f, 0x0b], []);
      expect(machine.go()).toBe('shutdown');
    });
    it('int 80h pushes the address behind it, no RF', () => {
      const machine = machineWith([0xcd, 0x80], [0x80]);
      expect(machine.go()).toBe('halt');
      expect(haltedIn(machine)).toBe(0x80);
      expect(returnTo(machine)).toBe(0x10002);
      expect(pushedFlags(machine) & 0x10000).toBe(0);
    });
  });

  describe('a handler that faults at once', () => {
    it('#UD whose handler is ud2: the deadline comes all the same', () => {
      const machine = new TestMachine({ engine });
      machine.load([0x0f, 0x0b], 'real');
      machine.setHandler(6, 0x10000, 'real');
      expect(machine.go(50)).toBe('deadline');
    });
  });

  describe('interrupts at boundaries', () => {
    it('IF=0 holds an interrupt back', () => {
      const machine = machineWith([NOP, HLT], [0x30], interrupting(0x30));
      machine.cpu.interruptPending = true;
      expect(machine.go()).toBe('halt');
      expect(haltedIn(machine)).toBe(-1);
    });
    it('sti; nop; nop: the interrupt comes behind the instruction after STI', () => {
      const machine = machineWith([STI, NOP, NOP, HLT], [0x30], interrupting(0x30));
      machine.cpu.interruptPending = true;
      machine.go();
      expect(haltedIn(machine)).toBe(0x30);
      expect(returnTo(machine)).toBe(0x10002);
      expect(machine.state.rflags & 0x200n).toBe(0n);
    });
    it('sti; hlt wakes behind HLT', () => {
      const machine = machineWith([STI, HLT, NOP], [0x30], interrupting(0x30));
      machine.cpu.interruptPending = true;
      machine.go();
      expect(haltedIn(machine)).toBe(0x30);
      expect(returnTo(machine)).toBe(0x10002);
    });
    it('mov ss holds interrupts for one instruction', () => {
      const machine = machineWith([STI, NOP, 0x8e, 0xd0, NOP, NOP, HLT], [0x30], interrupting(0x30));
      machine.state.gpr[0] = 0x10n;
      machine.go(3);
      machine.cpu.interruptPending = true;
      machine.go();
      expect(haltedIn(machine)).toBe(0x30);
      expect(returnTo(machine)).toBe(0x10005);
    });
    it('behind a trap gate the next interrupt comes in front of the handler', () => {
      const machine = machineWith([STI, NOP, NOP, HLT], [0x30], interrupting(0x30, 2));
      machine.memory.write8(HANDLER + 0x30 * 16, NOP);
      machine.memory.write8(HANDLER + 0x30 * 16 + 1, HLT);
      machine.memory.write8(TestLayout.idt + 0x30 * 8 + 5, 0x8f);
      machine.cpu.interruptPending = true;
      machine.go();
      expect(returnTo(machine)).toBe(HANDLER + 0x30 * 16);
      expect(machine.memory.read32(Number(machine.reg(4)) + 12)).toBe(0x10002);
    });
    it('an interrupt without a gate becomes #GP, a fault: RF is in its image', () => {
      const machine = machineWith([STI, NOP, NOP, HLT], [13], interrupting(0x30));
      machine.cpu.interruptPending = true;
      machine.go();
      expect(haltedIn(machine)).toBe(13);
      expect(pushedFlags(machine, true) & 0x10000).toBe(0x10000);
    });
    it('NMI goes before an interrupt', () => {
      const machine = machineWith([STI, NOP, NOP, HLT], [2, 0x30], interrupting(0x30));
      machine.go(2);
      machine.cpu.interruptPending = true;
      machine.cpu.nmiPending = true;
      machine.go();
      expect(haltedIn(machine)).toBe(2);
      expect(returnTo(machine)).toBe(0x10002);
    });
    it('a second NMI waits for IRET', () => {
      const machine = machineWith([NOP, NOP, NOP, HLT], []);
      // inc eax; iretd
      machine.memory.writeBytes(HANDLER, Uint8Array.from([0x40, 0xcf]));
      machine.setHandler(2, HANDLER, 'prot32');
      machine.cpu.nmiPending = true;
      machine.go(1);
      expect(machine.state.nmiBlocked).toBe(true);
      machine.cpu.nmiPending = true;
      expect(machine.reg(0)).toBe(1n);
      expect(machine.go()).toBe('halt');
      expect(machine.reg(0)).toBe(2n);
      expect(machine.state.nmiBlocked).toBe(false);
    });
  });

  describe('debug traps', () => {
    const TF = 0x100n;
    it('TF traps behind the next instruction with DR6.BS', () => {
      const machine = machineWith([NOP, NOP, HLT], [1]);
      machine.state.rflags |= TF;
      machine.go();
      expect(haltedIn(machine)).toBe(1);
      expect(returnTo(machine)).toBe(0x10001);
      expect(machine.dr6() & 0x4000n).toBe(0x4000n);
      expect(pushedFlags(machine) & 0x10100).toBe(0x100);
    });
    it('popf that sets TF traps behind the instruction after it', () => {
      // push 102h; popf; nop; nop
      const machine = machineWith([0x68, 2, 1, 0, 0, 0x9d, NOP, NOP, HLT], [1]);
      machine.go();
      expect(returnTo(machine)).toBe(0x10007);
    });
    it('mov ss with TF: the trap comes behind the next instruction', () => {
      const machine = machineWith([0x8e, 0xd0, NOP, NOP, HLT], [1]);
      machine.state.gpr[0] = 0x10n;
      machine.state.rflags |= TF;
      machine.go();
      expect(returnTo(machine)).toBe(0x10003);
    });
    it('mov ss, [mem] on a watchpoint, then int1: one #DB with both causes, behind int1', () => {
      // mov ss, [ebx]; int1; the handler counts in ecx and goes back
      const machine = machineWith([0x8e, 0x13, 0xf1, NOP, HLT], []);
      machine.memory.writeBytes(HANDLER, Uint8Array.from([0x41, 0xcf]));
      machine.setHandler(1, HANDLER, 'prot32');
      machine.memory.writeBytes(0x5000, Uint8Array.of(0x10, 0));
      machine.state.gpr[3] = 0x5000n;
      machine.state.gpr[1] = 0n;
      machine.cpu.ops.setDr(0, 0x5000n);
      machine.cpu.ops.setDr(7, 0x70401n);
      expect(machine.go()).toBe('halt');
      expect(machine.reg(1)).toBe(1n);
      expect(machine.dr6() & 0xfn).toBe(1n);
      expect(machine.state.rip).toBe(0x10005n);
    });
    it('int n with TF does not trap in the handler', () => {
      const machine = machineWith([0xcd, 0x80], [1, 0x80]);
      machine.state.rflags |= TF;
      machine.go();
      expect(haltedIn(machine)).toBe(0x80);
    });
    it('an instruction breakpoint faults before the instruction, RF lets it pass', () => {
      const machine = machineWith([NOP, NOP, HLT], [1]);
      machine.cpu.ops.setDr(0, 0x10001n);
      machine.cpu.ops.setDr(7, 0x401n);
      machine.go();
      expect(haltedIn(machine)).toBe(1);
      expect(returnTo(machine)).toBe(0x10001);
      expect(machine.dr6() & 0xfn).toBe(1n);
      const passing = machineWith([NOP, NOP, HLT], [1]);
      passing.state.rip = 0x10001n;
      passing.cpu.ops.setDr(0, 0x10001n);
      passing.cpu.ops.setDr(7, 0x401n);
      passing.state.rflags |= 0x10000n;
      passing.go();
      expect(haltedIn(passing)).toBe(-1);
    });
    it('a data breakpoint traps behind the write', () => {
      // mov [30002h], al; nop
      const machine = machineWith([0xa2, 2, 0, 3, 0, NOP, HLT], [1]);
      machine.cpu.ops.setDr(1, 0x30000n);
      // L1, write, 4 bytes
      machine.cpu.ops.setDr(7, 0x400n | 4n | (0xdn << 20n));
      machine.go();
      expect(haltedIn(machine)).toBe(1);
      expect(returnTo(machine)).toBe(0x10005);
      expect(machine.dr6() & 0xfn).toBe(2n);
    });
    it('mov dr with DR7.GD faults with BD and clears GD', () => {
      // mov eax, dr0
      const machine = machineWith([0x0f, 0x21, 0xc0, HLT], [1]);
      machine.cpu.ops.setDr(7, 0x2400n);
      machine.go();
      expect(haltedIn(machine)).toBe(1);
      expect(machine.dr6() & 0x2000n).toBe(0x2000n);
      expect(machine.cpu.ops.getDr(7)).toBe(0x400n);
    });
  });

  describe('SMI and INIT', () => {
    it('SMI enters SMM at SMBASE + 8000h, RSM goes back', () => {
      const machine = new TestMachine({ engine });
      machine.load([NOP, NOP, HLT], 'long');
      machine.memory.writeBytes(0x38000, Uint8Array.from([0x0f, 0xaa]));
      machine.cpu.smiPending = true;
      machine.go(1);
      expect(machine.cpu.mode().name).toBe('long');
      expect(machine.state.rip).toBe(0x10000n);
      expect(machine.go()).toBe('halt');
      expect(machine.state.rip).toBe(0x10003n);
    });
    it('INIT gives the reset vector and keeps CD and NW', () => {
      const machine = machineWith([NOP, HLT], []);
      machine.state.cr0 |= 0x40000000n;
      machine.cpu.initPending = true;
      machine.cpu.deadline = machine.cpu.tick;
      machine.cpu.run();
      expect(machine.state.rip).toBe(0xfff0n);
      expect(machine.state.segmentBase(1)).toBe(0xffff0000n);
      expect(machine.state.cr0).toBe(0x40000010n);
    });
  });
});
