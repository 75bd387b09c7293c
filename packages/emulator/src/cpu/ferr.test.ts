import { describe, expect, it } from 'vitest';
import type { PlatformBus } from '../processor-api.ts';
import { CR0, CR4, Flag } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';
import type { EngineName } from './create.ts';

const HANDLER = 0x11000;
const CONTROL = 0x20000;
const IRQ13 = 0x75;
const ENGINES = ['evaluate', 'interpret', 'translate'] as const;
const le32 = (x: number): number[] => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];

/** What a PC/AT has between FERR#, IRQ 13 and IGNNE#: a write to port F0h takes the interrupt back and asserts IGNNE# until FERR# falls. */
class PcAt implements PlatformBus {
  ferrAsserted = false;
  ignne = false;
  irq = false;
  cpu!: { interruptPending: boolean };
  ferr(asserted: boolean): boolean {
    if (asserted && !this.ferrAsserted) {
      this.irq = true;
      this.cpu.interruptPending = true;
    }
    this.ferrAsserted = asserted;
    if (!asserted) this.ignne = false;
    return this.ignne;
  }
  pioIn = (): number => 0xff;
  pioOut(port: number): void {
    if (port !== 0xf0) return;
    this.irq = false;
    this.ignne = this.ferrAsserted;
  }
  read = (): bigint => 0n;
  write(): void {}
  acknowledgeInterrupt(): number {
    if (!this.irq) return -1;
    this.irq = false;
    this.cpu.interruptPending = false;
    return IRQ13;
  }
}

/** fninit; fldcw [ZE unmasked]; fld1; fldz; fdivp; mov eax, 1: the exception waits from here on. */
const PENDING = [0xdb, 0xe3, 0xd9, 0x2d, ...le32(CONTROL), 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xb8, ...le32(1)];

function machine(engine: EngineName, code: readonly number[], handler: readonly number[], ne = 0n) {
  const bus = new PcAt();
  const m = new TestMachine({ engine, bus });
  bus.cpu = m.cpu;
  m.memory.write16(CONTROL, 0x37b);
  m.memory.writeBytes(HANDLER, Uint8Array.from(handler));
  m.load([...PENDING, ...code, 0xf4], 'prot32');
  for (const vector of [IRQ13, 16]) m.setHandler(vector, HANDLER, 'prot32');
  m.state.cr0 = CR0.PE | CR0.ET | CR0.MP | ne;
  m.state.cr4 |= CR4.OSFXSR;
  m.state.rflags = BigInt(2 | Flag.IF);
  m.cpu.stateReplaced('test');
  return { m, bus };
}

describe.each(ENGINES)('an unmasked x87 exception without CR0.NE, %s', (engine) => {
  // inc ecx; out F0h, al; fnclex; iretd
  const handler = [0x41, 0xe6, 0xf0, 0xdb, 0xe2, 0xcf];

  it('IRQ 13 comes in front of the next waiting instruction, which runs after the handler', () => {
    // fld1; mov edx, 5
    const { m, bus } = machine(engine, [0xd9, 0xe8, 0xba, ...le32(5)], handler);
    expect(m.go()).toBe('halt');
    expect([m.reg(0), m.reg(1), m.reg(2)]).toEqual([1n, 1n, 5n]);
    expect([bus.ferrAsserted, bus.ignne, m.cpu.ferr]).toEqual([false, false, false]);
  });

  it('waits for the interrupt, with its RIP on the instruction', () => {
    const { m } = machine(engine, [0x9b], handler);
    m.state.rflags = 2n;
    expect(m.go()).toBe('halt');
    expect(m.state.activity).toBe(4);
    expect(m.state.rip).toBe(BigInt(0x10000 + PENDING.length));
    m.state.rflags = BigInt(2 | Flag.IF);
    expect(m.go()).toBe('halt');
    expect([m.reg(1), m.state.activity]).toEqual([1n, 1]);
  });

  it('instructions that do not wait go on, and FNCLEX takes FERR# back', () => {
    // fnstsw ax; fnclex; fld1
    const { m, bus } = machine(engine, [0xdf, 0xe0, 0xdb, 0xe2, 0xd9, 0xe8], handler);
    expect(m.go()).toBe('halt');
    expect([m.reg(0) & 0x84n, m.reg(1), bus.ferrAsserted]).toEqual([0x84n, 0n, false]);
  });

  it('IGNNE# lets instructions go on until the exception is cleared; the next one is an interrupt again', () => {
    // fld1; fld1; fnclex; fldz; fdiv st1, st0 (0 / 0 is masked; so: fld1; fldz; fdivp); fld1
    const again = [0xd9, 0xe8, 0xd9, 0xe8, 0xdb, 0xe2, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0xe8];
    // inc ecx; out F0h, al; iretd: the exception stays
    const { m, bus } = machine(engine, again, [0x41, 0xe6, 0xf0, 0xcf]);
    expect(m.go()).toBe('halt');
    expect([m.reg(1), bus.ferrAsserted, bus.ignne]).toEqual([2n, true, true]);
  });

  it('with CR0.NE it is #MF, and no interrupt', () => {
    // inc ecx; fnclex; iretd
    const { m, bus } = machine(engine, [0xd9, 0xe8], [0x41, 0xdb, 0xe2, 0xcf], CR0.NE);
    expect(m.go()).toBe('halt');
    expect([m.reg(1), bus.irq, bus.ferrAsserted]).toEqual([1n, false, false]);
  });

  it('MMX and WAIT wait, too', () => {
    for (const code of [[0x9b], [0x0f, 0xfc, 0xc1]]) {
      const { m } = machine(engine, code, handler);
      expect(m.go()).toBe('halt');
      expect(m.reg(1)).toBe(1n);
    }
  });
});
