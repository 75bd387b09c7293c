/**
 * A small machine for tests of system instructions: flat memory without paging, real decoder and evaluate engine on top.
 * It implements X86EmulateOps as the manual has it where tests look (CR0.PG and EFER.LMA, CPL by SS.DPL); everything else is a field.
 */
import { EvaluateContext } from '../engines/evaluate/context.ts';
import { Evaluator } from '../engines/evaluate/evaluator.ts';
import { GuestException } from '../exceptions.ts';
import type { PendingEvent } from '../guest-mode.ts';
import { type InstructionInfo, type InterceptStage, X86Emul, type X86EmulateOps } from '../ops.ts';
import {
  Attrib,
  CR0,
  CR4,
  type DescriptorTable,
  EFER,
  Flag,
  S,
  Seg,
  type Segment,
  type SegmentIndex,
  Vector,
} from '../state-layout.ts';
import type { EmulateMode } from './context.ts';
import { deliverEvent } from './events.ts';
import { nextRandomState, randomOf } from './random.ts';

export const GDT = 0x1000;
export const LDT = 0x1800;
export const IDT = 0x2000;
export const TSS = 0x3000;
export const TSS2 = 0x3400;
export const STACK = 0x8000;
export const INNER_STACK = 0x9000;
export const CODE = 0x10000;

const EFER_MSR = 0xc0000080;

/** Selectors of the GDT that {@link TestMachine} builds. */
export const Sel = {
  code0: 0x08,
  data0: 0x10,
  code3: 0x18,
  data3: 0x20,
  /** 64-bit code, DPL 0 and 3. */
  long0: 0x28,
  long3: 0x30,
  conforming0: 0x38,
  absent: 0x40,
  absentData: 0x48,
  ldt: 0x50,
  tss: 0x60,
  tss2: 0x70,
  callGate: 0x80,
  taskGate: 0x90,
  code16: 0x98,
  data16: 0xa0,
  readOnly: 0xa8,
  executeOnly: 0xb0,
} as const;

/** `type` as in the manual with S, DPL and P: e.g. 0x9b; flags G=8 D=4 L=2 in the upper nibble of the limit byte. */
export const descriptor = (base: number, limit: number, access: number, flags: number): bigint => {
  const low = BigInt(((limit & 0xffff) | ((base & 0xffff) << 16)) >>> 0);
  const high = ((base >>> 16) & 0xff) | (access << 8) | (limit & 0xf0000) | (flags << 20) | (base & 0xff000000);
  return low | (BigInt(high >>> 0) << 32n);
};

/** A gate: offset, selector, type with DPL and P, parameter count or IST. */
export const gate = (selector: number, offset: number, access: number, extra = 0): bigint => {
  const low = BigInt(((offset & 0xffff) | (selector << 16)) >>> 0);
  return low | (BigInt(((offset & 0xffff0000) | (access << 8) | extra) >>> 0) << 32n);
};

const attribOf = (access: number, flags: number): number => access | (flags << 8);

export interface Outcome {
  code: X86Emul;
  exception: { vector: number; errorCode: number | undefined; payload: bigint } | undefined;
}

export class TestMachine implements X86EmulateOps {
  readonly memory = new DataView(new ArrayBuffer(0x40000));
  readonly gpr: bigint[] = new Array<bigint>(16).fill(0n);
  readonly segments: Segment[] = [];
  readonly cr: Record<number, bigint> = { 0: CR0.ET, 2: 0n, 3: 0n, 4: 0n, 8: 0n };
  readonly dr: bigint[] = [0n, 0n, 0n, 0n, 0n, 0n, 0xffff0ff0n, 0x400n];
  readonly msrs = new Map<number, bigint>([[EFER_MSR, 0n]]);
  readonly features = new Set<string>([
    'smap',
    'rdpid',
    'invpcid',
    'fsgsbase',
    'syscall',
    'sep',
    'lm',
    'rdtscp',
    'msr',
    'tsc',
  ]);
  readonly ports: { size: number; port: number; value: number | undefined }[] = [];
  /** Pages (address >> 12) that fault on any access / on writes. */
  readonly absentPages = new Set<number>();
  readonly readOnlyPages = new Set<number>();
  /** CRs whose writes are refused. */
  readonly refusedCrs = new Set<number>();
  readonly invalidated: bigint[] = [];
  rip = 0n;
  rflags = 2n;
  privilege = 0;
  shadow = 0;
  halted = false;
  nmiMasked = false;
  smm = false;
  xcr0 = 1n;
  tripleFaulted = false;
  gdt: DescriptorTable = { base: 0n, limit: 0xffff };
  idt: DescriptorTable = { base: 0n, limit: 0xffff };
  readonly fpu = new DataView(new ArrayBuffer(S.mxcsr + 4 - S.ymm));
  /** FERR# was asserted. */
  ferr = false;
  readonly evaluator: Evaluator;

  constructor(
    readonly mode: EmulateMode,
    readonly vendor: 'amd' | 'intel' = 'amd',
    readonly subset: 'x86' | 'kvm' = 'x86',
  ) {
    this.evaluator = new Evaluator(this, { subset, vendor });
    for (let i = 0; i < 10; i++) this.segments.push({ selector: 0, attrib: 0x93, limit: 0xffff, base: 0n });
    this.gpr[4] = BigInt(STACK);
    if (mode === 'real') this.setUpReal();
    else this.setUpProtected(mode);
  }

  private setUpReal(): void {
    this.segments[Seg.CS] = { selector: CODE >> 4, attrib: 0x9b, limit: 0xffff, base: BigInt(CODE) };
    this.idt = { base: 0n, limit: 0x3ff };
  }

  private setUpProtected(mode: EmulateMode): void {
    this.cr[0]! |= CR0.PE;
    this.gdt = { base: BigInt(GDT), limit: 0xff };
    this.idt = { base: BigInt(IDT), limit: 0x7ff };
    const long = mode === 'prot64';
    this.buildGdt();
    this.loadTask(long);
    if (long) {
      this.cr[0]! |= CR0.PG;
      this.cr[4]! |= CR4.PAE;
      this.msrs.set(EFER_MSR, EFER.LME | EFER.LMA | EFER.SCE);
    }
    this.setLevel(0);
    if (mode === 'vm86') this.setUpVm86();
  }

  private buildGdt(): void {
    const rows: readonly (readonly [number, number, number, number])[] = [
      [Sel.code0, 0xfffff, 0x9b, 0xc],
      [Sel.data0, 0xfffff, 0x93, 0xc],
      [Sel.code3, 0xfffff, 0xfb, 0xc],
      [Sel.data3, 0xfffff, 0xf3, 0xc],
      [Sel.long0, 0xfffff, 0x9b, 0xa],
      [Sel.long3, 0xfffff, 0xfb, 0xa],
      [Sel.conforming0, 0xfffff, 0x9f, 0xc],
      [Sel.absent, 0xfffff, 0x1b, 0xc],
      [Sel.absentData, 0xfffff, 0x13, 0xc],
      [Sel.code16, 0xffff, 0x9b, 0],
      [Sel.data16, 0xffff, 0x93, 0],
      [Sel.readOnly, 0xfffff, 0xf1, 0xc],
      [Sel.executeOnly, 0xfffff, 0xf9, 0xc],
    ];
    for (const [selector, limit, access, flags] of rows)
      this.setDescriptor(selector, descriptor(0, limit, access, flags));
    this.setDescriptor(Sel.ldt, descriptor(LDT, 0x1f, 0x82, 0));
    this.setDescriptor(Sel.tss2, descriptor(TSS2, 0xff, 0x89, 0));
    this.put(LDT + 8, descriptor(0, 0xfffff, 0xf3, 0xc), 8);
  }

  private loadTask(long: boolean): void {
    this.setDescriptor(Sel.tss, descriptor(TSS, 0xff, 0x8b, 0));
    this.segments[Seg.TR] = { selector: Sel.tss, attrib: 0x8b, limit: 0xff, base: BigInt(TSS) };
    this.segments[Seg.LDTR] = { selector: Sel.ldt, attrib: 0x82, limit: 0x1f, base: BigInt(LDT) };
    this.put(TSS + 4, BigInt(INNER_STACK), long ? 8 : 4);
    if (!long) this.put(TSS + 8, BigInt(Sel.data0), 2);
    this.put(TSS + 102, 0x88n, 2);
  }

  /** Flat segments at a privilege level, in this machine's mode. */
  setLevel(cpl: 0 | 3): this {
    const at = (selector: number, access: number, flags: number): Segment => ({
      selector: selector | cpl,
      attrib: attribOf(access | (cpl << 5), flags),
      limit: flags & 8 ? 0xffff_ffff : 0xffff,
      base: 0n,
    });
    const long = this.mode === 'prot64';
    const wide = this.mode !== 'prot16';
    const code = long ? (cpl ? Sel.long3 : Sel.long0) : cpl ? Sel.code3 : wide ? Sel.code0 : Sel.code16;
    const data = cpl ? Sel.data3 : wide ? Sel.data0 : Sel.data16;
    this.setSegment(Seg.CS, at(code, 0x9b, long ? 0xa : wide ? 0xc : 0x8));
    for (const seg of [Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS] as const)
      this.setSegment(seg, at(data, 0x93, wide ? 0xc : 0x8));
    return this;
  }

  private setUpVm86(): void {
    this.rflags |= BigInt(Flag.VM);
    for (const seg of [0, 1, 2, 3, 4, 5] as const)
      this.setSegment(seg, { selector: 0, attrib: 0xf3, limit: 0xffff, base: 0n });
    this.setSegment(Seg.CS, { selector: CODE >> 4, attrib: 0xf3, limit: 0xffff, base: BigInt(CODE) });
  }

  setDescriptor(selector: number, value: bigint, upper = 0n): void {
    this.put(GDT + (selector & 0xfff8), value, 8);
    if (upper) this.put(GDT + (selector & 0xfff8) + 8, upper, 8);
  }

  /** A gate of the IDT: 8 bytes, or 16 in long mode. */
  setGate(vector: number, value: bigint): void {
    const size = this.mode === 'prot64' ? 16 : 8;
    this.put(IDT + vector * size, value, 8);
  }

  get(address: number, size: number): bigint {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.memory.getUint8(address + i));
    return value;
  }
  put(address: number, value: bigint, size: number): void {
    for (let i = 0; i < size; i++) this.memory.setUint8(address + i, Number((value >> BigInt(8 * i)) & 0xffn));
  }
  /** Stacks `values` (topmost last) below the stack pointer and moves it. */
  stack(size: number, ...values: readonly (number | bigint)[]): this {
    for (const value of values) {
      this.gpr[4]! -= BigInt(size);
      this.put(Number(this.gpr[4]), BigInt.asUintN(size * 8, BigInt(value)), size);
    }
    return this;
  }
  /** What stands at the stack pointer. */
  top(size: number, index = 0): number {
    return Number(this.get(Number(this.segments[Seg.SS]!.base + this.gpr[4]!) + index * size, size));
  }

  /** Places code at CS:RIP and executes one instruction. */
  run(...code: readonly number[]): Outcome {
    const linear = this.codeAddress();
    code.forEach((byte, i) => {
      this.memory.setUint8(linear + i, byte);
    });
    const result = this.evaluator.emulate();
    const { vector, errorCode, payload } = this.evaluator.exception;
    const failed = result === X86Emul.PROPAGATE_FAULT;
    return { code: result, exception: failed ? { vector, errorCode, payload } : undefined };
  }

  private codeAddress(): number {
    if (this.rip === 0n && this.segments[Seg.CS]!.base === 0n) this.rip = BigInt(CODE);
    return Number(this.segments[Seg.CS]!.base + this.rip);
  }

  /** A context between instructions, as the processor makes one to deliver an event. */
  eventContext(): EvaluateContext {
    this.codeAddress();
    const context = new EvaluateContext(this, this.subset, this.vendor);
    context.mode = this.mode;
    context.rip = this.rip;
    context.eip = this.rip;
    context.rflags = this.rflags;
    return context;
  }

  /** Delivers an event as the processor does. */
  deliver(kind: PendingEvent['kind'], vector: number, errorCode?: number): Outcome {
    const context = this.eventContext();
    try {
      deliverEvent(context, { kind, vector, errorCode, instructionLength: 0 });
    } catch (error) {
      if (!(error instanceof GuestException)) throw error;
      const { payload } = error;
      return {
        code: X86Emul.PROPAGATE_FAULT,
        exception: { vector: error.vector, errorCode: error.errorCode, payload },
      };
    }
    context.commit();
    return { code: X86Emul.CONTINUE, exception: undefined };
  }

  // X86EmulateOps

  private check(linear: bigint, size: number, write: boolean): number {
    const first = Number(linear);
    for (const page of new Set([first >> 12, (first + size - 1) >> 12]))
      if (this.absentPages.has(page) || (write && this.readOnlyPages.has(page)))
        throw new GuestException().set(Vector.PF, write ? 2 : 0, linear);
    return first;
  }
  readStd(linear: bigint, size: number): bigint {
    return this.get(this.check(linear, size, false), size);
  }
  writeStd(linear: bigint, value: bigint, size: number): void {
    this.put(this.check(linear, size, true), value, size);
  }
  readEmulated(linear: bigint, size: number): bigint {
    return this.readStd(linear, size);
  }
  writeEmulated(linear: bigint, value: bigint, size: number): void {
    this.writeStd(linear, value, size);
  }
  readForWrite(linear: bigint, size: number): bigint {
    return this.get(this.check(linear, size, true), size);
  }
  probeWrite(linear: bigint, size: number): void {
    this.check(linear, size, true);
  }
  cmpxchgEmulated(linear: bigint, old: bigint, replacement: bigint, size: number): boolean {
    if (this.readForWrite(linear, size) !== old) return false;
    this.writeEmulated(linear, replacement, size);
    return true;
  }
  fetch(linear: bigint, into: Uint8Array, length: number): number {
    for (let i = 0; i < length; i++) into[i] = this.memory.getUint8(Number(linear) + i);
    return length;
  }
  readGpr = (reg: number): bigint => this.gpr[reg]!;
  writeGpr(reg: number, value: bigint): void {
    this.gpr[reg] = BigInt.asUintN(64, value);
  }
  getRip = (): bigint => this.rip;
  setRip(value: bigint): void {
    this.rip = value;
  }
  getRflags = (): bigint => this.rflags;
  setRflags(value: bigint): void {
    this.rflags = value;
  }
  invlpg(linear: bigint): void {
    this.invalidated.push(linear);
  }
  pioIn(size: number, port: number): number {
    this.ports.push({ size, port, value: undefined });
    return 0x12345678 & (2 ** (8 * size) - 1);
  }
  pioOut(size: number, port: number, value: number): void {
    this.ports.push({ size, port, value });
  }
  getSegment = (seg: SegmentIndex): Segment => ({ ...this.segments[seg]! });
  setSegment(seg: SegmentIndex, value: Segment): void {
    this.segments[seg] = { ...value };
    if (seg === Seg.SS) this.privilege = (value.attrib >> Attrib.dplShift) & 3;
  }
  getCachedSegmentBase = (seg: SegmentIndex): bigint => this.segments[seg]!.base;
  getGdt = (): DescriptorTable => this.gdt;
  getIdt = (): DescriptorTable => this.idt;
  setGdt(value: DescriptorTable): void {
    this.gdt = value;
  }
  setIdt(value: DescriptorTable): void {
    this.idt = value;
  }
  getCr = (cr: number): bigint => this.cr[cr]!;
  setCr(cr: number, value: bigint): number {
    if (this.refusedCrs.has(cr)) return 1;
    this.cr[cr] = value;
    const efer = this.msrs.get(EFER_MSR)!;
    const active = (this.cr[0]! & CR0.PG) !== 0n && (efer & EFER.LME) !== 0n;
    this.msrs.set(EFER_MSR, active ? efer | EFER.LMA : efer & ~EFER.LMA);
    return 0;
  }
  cpl = (): number => this.privilege;
  getDr = (dr: number): bigint => this.dr[dr]!;
  setDr(dr: number, value: bigint): number {
    this.dr[dr] = value;
    return 0;
  }
  getMsr = (index: number): bigint | undefined => this.msrs.get(index);
  setMsr(index: number, value: bigint): number {
    if (index > 0xc001_ffff) return 1;
    this.msrs.set(index, value);
    return 0;
  }
  readPmc = (index: number): bigint | undefined => (index < 4 ? 7n : undefined);
  rdtsc = (): bigint => 0x1_0000_0002n;
  halt(): void {
    this.halted = true;
  }
  wbinvd(): void {}
  fixHypercall = (): X86Emul => X86Emul.CONTINUE;
  intercept = (_info: InstructionInfo, _stage: InterceptStage): X86Emul => X86Emul.CONTINUE;
  getCpuid = (leaf: number, subleaf: number): readonly [number, number, number, number] => [leaf, subleaf, 3, 4];
  guestHas = (feature: string): boolean => this.features.has(feature);
  isIntelCompatible = (): boolean => this.vendor === 'intel';
  setNmiMask(masked: boolean): void {
    this.nmiMasked = masked;
  }
  isSmm = (): boolean => this.smm;
  leaveSmm(): number {
    this.smm = false;
    return 0;
  }
  tripleFault(): void {
    this.tripleFaulted = true;
  }
  getXcr = (): bigint => this.xcr0;
  setXcr(_index: number, value: bigint): number {
    if (!(value & 1n)) return 1;
    this.xcr0 = value;
    return 0;
  }
  fpuArea(): DataView {
    return this.fpu;
  }
  assertFerr(): void {
    this.ferr = true;
  }
  /** Sequence of RDRAND. */
  randomState = 0n;
  random(): bigint {
    this.randomState = nextRandomState(this.randomState);
    return randomOf(this.randomState);
  }
  setInterruptShadow(kind: 1 | 2): void {
    this.shadow = kind;
  }
}
