/**
 * The whole processor in the vectors' environment: page tables, TLB, IDT delivery, with evaluate or interpret inside.
 * Every case ends in a handler: its own exception's, or that of the INT3 behind it. The handlers halt.
 */
import { createProcessor, type EngineName, installInterpreter, installTranslator } from '../../src/cpu/create.ts';
import { EPYC } from '../../src/cpu/models/index.ts';
import type { Processor } from '../../src/cpu/processor.ts';
import type { CpuModel } from '../../src/cpu-model-types.ts';
import { TranslateEngine } from '../../src/engines/translate/translate.ts';
import { hasErrorCode } from '../../src/exceptions.ts';
import { PhysicalMemory } from '../../src/memory/physical.ts';
import { CR0, CR4, RSP, S, Seg, type SegmentIndex, Vector } from '../../src/state-layout.ts';
import * as env from './environment.ts';
import type { Header } from './format.ts';
import type { IntegerState, RaisedException, VectorEngine, VectorMachine } from './run-case.ts';

/** Physical layout: page tables below 64 KiB, then the regions. */
const PML4 = 0x1000;
const DATA_PA = 0x10000;
const CODE_PA = 0x14000;
const SYSTEM_PA = 0x18000;
const HANDLERS_PA = 0x1e000;
const MEMORY_SIZE = 0x20000;

const P = 1n;
const W = 2n;
const U = 4n;
const A_D = 0x60n;
const NX = 1n << 63n;

/** More than any REP of the vectors needs. */
const BUDGET = 200_000;

const BACKGROUND = env.background();

type Patches = readonly (readonly [number, Uint8Array])[];
interface Input {
  readonly state: IntegerState;
  readonly patches: Patches;
}

/** Fills 4-level page tables for the environment's few pages. */
class PageTables {
  private next = PML4 + 0x1000;
  constructor(private readonly memory: PhysicalMemory) {}

  private table(entry: number): number {
    const known = this.memory.read64(entry);
    if (known !== 0n) return Number(known & 0xffffff000n);
    const made = this.next;
    this.next += 0x1000;
    this.memory.write64(entry, BigInt(made) | P | W | U | A_D);
    return made;
  }

  map(linear: number, pa: number, size: number, flags: (linear: number) => bigint): void {
    for (let offset = 0; offset < size; offset += 0x1000) {
      const address = linear + offset;
      const pdpt = this.table(PML4);
      const pd = this.table(pdpt + Math.floor(address / 0x4000_0000) * 8);
      const pt = this.table(pd + ((address >>> 21) & 511) * 8);
      this.memory.write64(pt + ((address >>> 12) & 511) * 8, BigInt(pa + offset) | P | A_D | flags(address));
    }
  }
}

class ProcessorMachine implements VectorMachine {
  private readonly memory: PhysicalMemory;
  private final: IntegerState = { ip: 0n, rflags: 0n, gpr: [] };
  private finalSelectors: number[] = [];
  private input: Input = { state: this.final, patches: [] };
  /** Cases that ran as a region of their own, and those that regions can't contain. */
  readonly coverage = { translated: 0, interpreted: 0 };

  constructor(
    private readonly header: Header,
    private readonly cpu: Processor,
  ) {
    this.memory = cpu.memory;
    const tables = new PageTables(this.memory);
    tables.map(env.DATA, DATA_PA, env.DATA_SIZE, (at) => U | NX | (at < env.READ_ONLY ? W : 0n));
    tables.map(env.CODE, CODE_PA, env.CODE_SIZE, () => U);
    tables.map(env.GDT, SYSTEM_PA, env.SYSTEM_SIZE, () => W | NX);
    tables.map(env.HANDLERS, HANDLERS_PA, 0x1000, () => 0n);
    this.memory.fill(HANDLERS_PA, 0x1000, 0xf4);
    this.setControls();
  }

  private setControls(): void {
    const { state } = this.cpu;
    state.cr0 = CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.AM | CR0.PG;
    state.cr3 = BigInt(PML4);
    state.cr4 = CR4.PAE | CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE | CR4.FSGSBASE | CR4.UMIP;
    state.efer = 0xd01n;
    state.set64(S.xcr0, 7n);
    state.setTable('gdtr', { base: BigInt(env.GDT), limit: env.GDT_LIMIT });
    state.setTable('idtr', { base: BigInt(env.IDT), limit: 0xfff });
    const ldt = { selector: 0x50, attrib: 0x82, limit: this.header.ldt.length * 8 - 1, base: BigInt(env.LDT) };
    state.setSegment(Seg.LDTR, ldt);
    state.setSegment(Seg.TR, { selector: 0x40, attrib: 0x8b, limit: 0x67, base: BigInt(env.TSS) });
  }

  load(state: IntegerState, patches: Patches): void {
    this.input = { state, patches };
    this.memory.fill(CODE_PA, env.CODE_SIZE, 0xcc);
    this.place(() => true);
  }

  /** Everything but the background of code. @param chosen which patches, by address */
  private place(chosen: (address: number) => boolean): void {
    const { memory, cpu } = this;
    const { state } = cpu;
    const { state: input, patches } = this.input;
    memory.writeBytes(DATA_PA, BACKGROUND);
    memory.writeBytes(SYSTEM_PA, env.systemMemory(this.header));
    for (const [address, bytes] of patches) if (chosen(address)) this.patch(address, bytes);
    for (let i = 0; i < 6; i++) state.setSegment(i as SegmentIndex, env.segmentOf(this.header, i));
    state.rip = input.ip;
    state.rflags = input.rflags;
    input.gpr.forEach((value, i) => {
      state.gpr[i] = value;
    });
    state.cpl = 3;
    state.activity = 0;
    state.shadow = 0;
    state.cr2 = 0n;
    cpu.stateReplaced('test');
  }

  private patch(address: number, bytes: Uint8Array): void {
    bytes.forEach((byte, i) => {
      const at = address + i;
      if (at >= env.DATA && at < env.DATA + env.DATA_SIZE) this.memory.write8(at - env.DATA + DATA_PA, byte);
      else if (at >= env.CODE && at < env.CODE + env.CODE_SIZE) this.memory.write8(at - env.CODE + CODE_PA, byte);
    });
  }

  run(raisesBp: boolean): RaisedException | undefined {
    const { engine } = this.cpu;
    if (!(engine instanceof TranslateEngine)) return this.runOnce(raisesBp);
    // Once by the interpreter, which decodes; then from the same state as a region, made of this instruction alone.
    const fpu = this.fpu();
    const area = new Uint8Array(fpu.buffer, fpu.byteOffset, fpu.byteLength);
    const before = area.slice();
    this.runOnce(raisesBp);
    this.place((address) => address < env.CODE || address >= env.CODE + env.CODE_SIZE);
    area.set(before);
    if (engine.translateHere()) this.coverage.translated++;
    else this.coverage.interpreted++;
    return this.runOnce(raisesBp);
  }

  private runOnce(raisesBp: boolean): RaisedException | undefined {
    const { cpu } = this;
    cpu.deadline = cpu.tick + BUDGET;
    const stop = cpu.run();
    if (stop !== 'halt') return { vector: -1, errorCode: 0, address: 0n };
    const vector = (Number(cpu.state.rip) - env.HANDLERS) >> 4;
    const errorCode = this.readFrame(vector);
    if (vector === Vector.BP && !raisesBp) {
      this.final.ip -= 1n;
      return undefined;
    }
    return { vector, errorCode, address: vector === Vector.PF ? cpu.state.cr2 : 0n };
  }

  /** Takes the saved state off the kernel stack; returns the error code. */
  private readFrame(vector: number): number {
    const { state } = this.cpu;
    const top = Number(state.gpr[RSP]!) - env.GDT + SYSTEM_PA;
    const slot = (i: number): bigint => this.memory.read64(top + i * 8);
    const first = hasErrorCode(vector) ? 1 : 0;
    const gpr = Array.from(state.gpr.subarray(0, 16));
    gpr[RSP] = slot(first + 3);
    this.final = { ip: slot(first), rflags: slot(first + 2), gpr };
    this.finalSelectors = ([0, 1, 2, 3, 4, 5] as const).map((i) => state.getSegment(i).selector);
    this.finalSelectors[Seg.CS] = Number(slot(first + 1));
    this.finalSelectors[Seg.SS] = Number(slot(first + 4));
    return first === 1 ? Number(slot(0)) : 0;
  }

  state(): IntegerState {
    return this.final;
  }
  selectors(): number[] {
    return this.finalSelectors;
  }
  bases(): [bigint, bigint] {
    return [this.cpu.state.getSegment(Seg.FS).base, this.cpu.state.getSegment(Seg.GS).base];
  }
  fpu(): DataView {
    return this.cpu.ops.fpuArea();
  }
  data(): Uint8Array {
    return this.memory.readBytes(DATA_PA, env.DATA_SIZE);
  }
}

/** The EPYC model with what the vectors' processor has besides: SSE4.2 (CRC32) and XSAVE (XSETBV). */
function capturedModel(): CpuModel {
  const [eax, ebx, ecx, edx] = EPYC.cpuid['1']!;
  return { ...EPYC, cpuid: { ...EPYC.cpuid, '1': [eax, ebx, (ecx | (1 << 20) | (1 << 26)) >>> 0, edx] } };
}

export const processorEngine = (name: string, engine: EngineName): VectorEngine => ({
  name,
  create: async (header) => {
    const memory = new PhysicalMemory(MEMORY_SIZE);
    const cpu = await createProcessor(memory, capturedModel(), { engine: 'evaluate' });
    // With handlers at once: a vector runs once.
    if (engine === 'interpret') installInterpreter(cpu);
    if (engine === 'translate') installTranslator(cpu);
    return new ProcessorMachine(header, cpu);
  },
});
