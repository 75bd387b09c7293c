/**
 * A bare processor with flat RAM: loads code in a chosen mode and runs it to HLT. For tests of everything that stands on the processor.
 */
import { type EngineName, installInterpreter, installTranslator } from '../cpu/create.ts';
import { Processor } from '../cpu/processor.ts';
import type { CpuModel } from '../cpu-model-types.ts';
import type { FormOptions } from '../engines/interpret/cold-forms.ts';
import { PhysicalMemory } from '../memory/physical.ts';
import type { PlatformBus, RunStop } from '../processor-api.ts';
import { Attrib, CR0, CR4, EFER, S, Seg, type Segment, type SegmentIndex } from '../state-layout.ts';
import { testModel } from './model.ts';

export type TestMode = 'real' | 'prot32' | 'long';

/** Where the machine puts its own structures. All below 64 KiB, clear of the code at 0x10000 and above. */
export const TestLayout = {
  /** IVT in real mode, IDT (8- or 16-byte gates) in the others. */
  idt: 0x0000,
  gdt: 0x1000,
  tss: 0x2000,
  /** PML4, PDPT and one PD of 2 MiB pages (long mode: identity over the first GiB). */
  pageTables: 0x3000,
  /** Top of the stack. */
  stack: 0x9000,
  /** Default load address. */
  code: 0x10000,
} as const;

/** Selectors of the machine's GDT. */
export const TestSelector = {
  code32: 0x08,
  data: 0x10,
  code64: 0x18,
  code16: 0x20,
  data16: 0x28,
  userCode32: 0x33,
  userData: 0x3b,
  userCode64: 0x43,
  tss: 0x48,
} as const;

/** Descriptors by GDT slot: code32, data, code64, code16, data16, userCode32, userData, userCode64. */
const DESCRIPTORS: readonly bigint[] = [
  0n,
  0x00cf9b000000ffffn,
  0x00cf93000000ffffn,
  0x00af9b000000ffffn,
  0x00009b000000ffffn,
  0x000093000000ffffn,
  0x00cffb000000ffffn,
  0x00cff3000000ffffn,
  0x00affb000000ffffn,
];

export interface TestMachineOptions {
  /** Bytes of RAM, default 4 MiB. */
  size?: number;
  vendor?: 'amd' | 'intel';
  model?: CpuModel;
  bus?: PlatformBus;
  /** Default evaluate. */
  engine?: EngineName;
  /** When forms of instructions get handlers. Default: at once, so that evaluate does nothing that the engine can do. */
  forms?: FormOptions;
}

export class TestMachine {
  readonly memory: PhysicalMemory;
  readonly cpu: Processor;

  constructor(options: TestMachineOptions = {}) {
    this.memory = new PhysicalMemory(options.size ?? 0x400000);
    const model = options.model ?? testModel(options.vendor ?? 'amd');
    this.cpu = new Processor({ memory: this.memory, model, bus: options.bus ?? null });
    const { forms } = options;
    if (options.engine === 'interpret') installInterpreter(this.cpu, forms);
    // Samples as dense as they can be: what runs for a moment is translated.
    if (options.engine === 'translate') installTranslator(this.cpu, { sample: 80, hot: 1 }, forms);
  }

  get state() {
    return this.cpu.state;
  }

  /** Loads code, enters the mode and puts RIP on it. */
  load(code: ArrayLike<number>, mode: TestMode, at: number = TestLayout.code): this {
    this.memory.writeBytes(at, Uint8Array.from(code));
    this.enter(mode);
    if (mode === 'real') this.setSegment(Seg.CS, at >>> 4, 0x9b, 0xffff, BigInt(at));
    this.state.rip = mode === 'real' ? 0n : BigInt(at);
    return this;
  }

  /** Loads and runs to HLT. @param ticks give up after so many; the answer is then 'deadline' */
  run(code: ArrayLike<number>, mode: TestMode, ticks = 100_000): RunStop {
    return this.load(code, mode).go(ticks);
  }

  /** Goes on for at most `ticks` instructions. */
  go(ticks = 100_000): RunStop {
    this.cpu.deadline = this.cpu.tick + ticks;
    return this.cpu.run();
  }

  /** Enters a mode as a boot loader would have left it: flat segments, GDT, TSS, identity paging in long mode. */
  enter(mode: TestMode): void {
    const { state } = this;
    this.#writeTables();
    state.setTable('idtr', { base: BigInt(TestLayout.idt), limit: mode === 'real' ? 0x3ff : 0xfff });
    state.gpr[4] = BigInt(TestLayout.stack);
    if (mode === 'real') this.#enterReal();
    else if (mode === 'prot32') this.#enterProtected();
    else this.#enterLong();
    state.cpl = 0;
    this.cpu.stateReplaced('test');
  }

  #enterReal(): void {
    for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const) this.setSegment(seg, 0, 0x93, 0xffff);
    this.setSegment(Seg.CS, 0, 0x9b, 0xffff);
  }

  #enterProtected(): void {
    this.state.cr0 = CR0.PE | CR0.ET | CR0.NE;
    this.#flatSegments(TestSelector.code32, 0xc9b);
  }

  #enterLong(): void {
    const { state } = this;
    state.cr4 = CR4.PAE;
    state.cr3 = BigInt(TestLayout.pageTables);
    state.efer = EFER.LME | EFER.LMA | EFER.NXE | EFER.SCE;
    state.cr0 = CR0.PE | CR0.PG | CR0.ET | CR0.NE | CR0.WP;
    this.#flatSegments(TestSelector.code64, 0xa9b);
  }

  #flatSegments(code: number, attrib: number): void {
    this.setSegment(Seg.CS, code, attrib, 0xffffffff);
    for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const) {
      this.setSegment(seg, TestSelector.data, 0xc93, 0xffffffff);
    }
    this.setSegment(Seg.TR, TestSelector.tss, 0x8b, 0x67, BigInt(TestLayout.tss));
    this.setSegment(Seg.LDTR, 0, Attrib.unusable, 0);
    this.state.setTable('gdtr', { base: BigInt(TestLayout.gdt), limit: 0x5f });
  }

  setSegment(seg: SegmentIndex, selector: number, attrib: number, limit: number, base = 0n): void {
    const value: Segment = { selector, attrib, limit, base };
    this.state.setSegment(seg, value);
  }

  #writeTables(): void {
    const { memory } = this;
    DESCRIPTORS.forEach((descriptor, n) => {
      memory.write64(TestLayout.gdt + n * 8, descriptor);
    });
    memory.write64(TestLayout.gdt + TestSelector.tss, 0x00008b0000000067n | (BigInt(TestLayout.tss) << 16n));
    memory.write64(TestLayout.gdt + TestSelector.tss + 8, 0n);
    // Stacks of CPL 0: SS0:ESP0 of the 32-bit TSS, RSP0 of the 64-bit one.
    memory.write32(TestLayout.tss + 4, TestLayout.stack);
    memory.write32(TestLayout.tss + 8, TestSelector.data);
    const tables = TestLayout.pageTables;
    memory.write64(tables, BigInt(tables + 0x1000) | 7n);
    memory.write64(tables + 0x1000, BigInt(tables + 0x2000) | 7n);
    for (let n = 0; n < 512; n++) memory.write64(tables + 0x2000 + n * 8, (BigInt(n) << 21n) | 0x87n);
  }

  /** Points an IDT gate (or IVT entry) at a handler. 32-bit or 64-bit interrupt gate by mode. */
  setHandler(vector: number, offset: number, mode: TestMode, dpl = 0): void {
    if (mode === 'real') {
      this.memory.write32(TestLayout.idt + vector * 4, ((offset >>> 4) << 16) | (offset & 0xf));
      return;
    }
    const selector = mode === 'long' ? TestSelector.code64 : TestSelector.code32;
    const type = 0x8e | (dpl << 5);
    const low = BigInt(offset & 0xffff) | (BigInt(selector) << 16n) | (BigInt(type) << 40n);
    const gate = low | (BigInt(offset >>> 16) << 48n);
    const at = TestLayout.idt + vector * (mode === 'long' ? 16 : 8);
    this.memory.write64(at, gate);
    if (mode === 'long') this.memory.write64(at + 8, 0n);
  }

  /** General register by number. */
  reg(n: number): bigint {
    return this.state.gpr[n];
  }
  dr6(): bigint {
    return this.state.get64(S.dr6);
  }
}
