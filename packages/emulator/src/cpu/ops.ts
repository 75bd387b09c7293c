/**
 * The silicon's X86EmulateOps: what an instruction finds when it runs on the processor itself, bare or in guest mode.
 * Manual: APM vol. 2 ch. 3 and 15.7-15.11, SDM vol. 3 ch. 25. KVM's counterpart is emulate_ops.
 */
import { RETRY, VMEXIT } from '../exceptions.ts';
import type { PendingEvent } from '../guest-mode.ts';
import type { Intercept } from '../intercepts.ts';
import { AccessKind } from '../memory/paging.ts';
import { type InstructionInfo, type InterceptStage, X86Emul, type X86EmulateOps } from '../ops.ts';
import { Attrib, CR4, type DescriptorTable, RCX, S, Seg, type Segment, type SegmentIndex } from '../state-layout.ts';
import { nextRandomState, randomOf } from '../system/random.ts';
import { highOf, lowOf } from './access.ts';
import { readDr, writeDr } from './debug.ts';
import { FEATURES, type FeatureName } from './features.ts';
import { Msr } from './msrs.ts';
import type { Processor } from './processor.ts';

const { read: READ, write: WRITE, system: SYSTEM } = AccessKind;
/** Intercepts of port instructions, with their direction and form. */
const PORT_INTERCEPTS: Partial<Record<Intercept, { in: boolean; string: boolean }>> = {
  in: { in: true, string: false },
  ins: { in: true, string: true },
  out: { in: false, string: false },
  outs: { in: false, string: true },
};
/** `S.activity` in front of an x87 instruction that FERR# holds back. */
const FROZEN = 4;
const XCR0_AVX = 4n;
const XCR0_SSE = 2n;

export class SiliconOps implements X86EmulateOps {
  /** What the running instruction asked `intercept` about: MOV CR and SMSW see read shadows, others the register itself. */
  current: Intercept = 'none';
  /** A control register that the running instruction wrote (write traps come after commit): -1 none. */
  writtenCr = -1;
  writtenCrValue = 0n;
  /** EFER was written by the running instruction. */
  writtenEfer = false;
  /** Shadow that the running instruction leaves. */
  newShadow = 0;
  readonly #cpu: Processor;
  readonly #fpu: DataView;

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    const { block } = cpu.state;
    this.#fpu = new DataView(block.buffer, block.byteOffset + S.ymm, S.mxcsr + 4 - S.ymm);
  }

  /** Forgets the last instruction. */
  begin(): void {
    this.current = 'none';
    this.writtenCr = -1;
    this.writtenEfer = false;
    this.newShadow = 0;
  }

  readGpr(reg: number): bigint {
    return this.#cpu.state.gpr[reg];
  }
  writeGpr(reg: number, value: bigint): void {
    this.#cpu.state.gpr[reg] = value;
  }
  getRip(): bigint {
    return this.#cpu.state.rip;
  }
  setRip(value: bigint): void {
    this.#cpu.state.rip = value;
  }
  getRflags(): bigint {
    return this.#cpu.state.rflags;
  }
  setRflags(value: bigint): void {
    this.#cpu.state.rflags = value;
  }

  readStd(linear: bigint, size: number, system: boolean): bigint {
    return this.#cpu.access.read(lowOf(linear), highOf(linear), size, system ? SYSTEM : READ);
  }
  writeStd(linear: bigint, value: bigint, size: number, system: boolean): void {
    this.#cpu.access.write(lowOf(linear), highOf(linear), value, size, system ? SYSTEM : READ);
  }
  fetch(linear: bigint, into: Uint8Array, length: number): number {
    return this.#cpu.access.fetch(lowOf(linear), highOf(linear), into, length);
  }
  readEmulated(linear: bigint, size: number): bigint {
    return this.#cpu.access.read(lowOf(linear), highOf(linear), size, READ);
  }
  writeEmulated(linear: bigint, value: bigint, size: number): void {
    this.#cpu.access.write(lowOf(linear), highOf(linear), value, size, WRITE);
  }
  readForWrite(linear: bigint, size: number): bigint {
    return this.#cpu.access.read(lowOf(linear), highOf(linear), size, WRITE);
  }
  probeWrite(linear: bigint, size: number): void {
    this.#cpu.access.probe(lowOf(linear), highOf(linear), size, WRITE);
  }
  cmpxchgEmulated(linear: bigint, old: bigint, replacement: bigint, size: number): boolean {
    const same = this.readForWrite(linear, size) === old;
    if (same) this.writeEmulated(linear, replacement, size);
    return same;
  }

  invlpg(linear: bigint): void {
    this.#cpu.access.tlb.flushPage(this.#cpu.guest?.asid ?? 0, linear);
  }
  /** INVPCID: 0 address, 1 context, 2 all with globals, 3 all without. */
  invpcid(type: number, pcid: number, linear: bigint): void {
    const { tlb } = this.#cpu.access;
    const asid = this.#cpu.guest?.asid ?? 0;
    if (type === 0) tlb.flushPage(asid, linear);
    else if (type === 1) tlb.flushAsid(asid, true, pcid);
    else tlb.flushAsid(asid, type === 3);
  }

  pioIn(size: number, port: number): number {
    this.#cpu.noteIoBreakpoint(port, size);
    const { bus } = this.#cpu;
    const all = size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff;
    return bus === null ? all : (bus.pioIn(port, size) & all) >>> 0;
  }
  pioOut(size: number, port: number, value: number): void {
    this.#cpu.noteIoBreakpoint(port, size);
    this.#cpu.bus?.pioOut(port, size, value);
  }

  getSegment(seg: SegmentIndex): Segment {
    return this.#cpu.state.getSegment(seg);
  }
  setSegment(seg: SegmentIndex, value: Segment): void {
    const { state } = this.#cpu;
    state.setSegment(seg, value);
    if (seg === Seg.SS) state.cpl = (value.attrib >> Attrib.dplShift) & 3;
  }
  getCachedSegmentBase(seg: SegmentIndex): bigint {
    return this.#cpu.state.segmentBase(seg);
  }
  getGdt(): DescriptorTable {
    return this.#cpu.state.getTable('gdtr');
  }
  getIdt(): DescriptorTable {
    return this.#cpu.state.getTable('idtr');
  }
  setGdt(value: DescriptorTable): void {
    this.#cpu.state.setTable('gdtr', value);
  }
  setIdt(value: DescriptorTable): void {
    this.#cpu.state.setTable('idtr', value);
  }

  getCr(cr: number): bigint {
    const { guest } = this.#cpu;
    if (guest !== null && (this.current === 'crRead' || this.current === 'smsw')) {
      const shadow = guest.readCr(cr);
      if (shadow !== undefined) return shadow;
    }
    return this.#readCr(cr);
  }
  #readCr(cr: number): bigint {
    const { state } = this.#cpu;
    if (cr === 0) return state.cr0;
    if (cr === 2) return state.cr2;
    if (cr === 3) return state.cr3;
    return cr === 4 ? state.cr4 : state.cr8;
  }

  setCr(cr: number, value: bigint): number {
    const { guest } = this.#cpu;
    const byInstruction = this.current === 'crWrite' || this.current === 'lmsw' || this.current === 'clts';
    const wanted = guest !== null && byInstruction ? (guest.writeCr(cr, value) ?? value) : value;
    if (this.#writeCr(cr, wanted)) return 1;
    if (guest !== null && byInstruction) {
      this.writtenCr = cr;
      this.writtenCrValue = value;
    }
    return 0;
  }
  #writeCr(cr: number, value: bigint): boolean {
    const { control, state } = this.#cpu;
    if (cr === 0) return control.setCr0(value);
    if (cr === 3) return control.setCr3(value);
    if (cr === 4) return control.setCr4(value);
    if (cr === 8) return control.setCr8(value);
    state.cr2 = value;
    return false;
  }

  cpl(): number {
    return this.#cpu.state.cpl;
  }
  getDr(dr: number): bigint {
    return readDr(this.#cpu.state, dr);
  }
  setDr(dr: number, value: bigint): number {
    if (writeDr(this.#cpu.state, dr, value)) return 1;
    this.#cpu.armBreakpoints();
    return 0;
  }

  getMsr(index: number): bigint | undefined {
    return this.#cpu.msrs.read(index);
  }
  setMsr(index: number, value: bigint): number {
    return this.#cpu.msrs.write(index, value);
  }
  getMsrWithFilter(index: number): bigint | undefined {
    return this.#cpu.guest?.readMsr?.(index) ?? this.#cpu.msrs.read(index);
  }
  setMsrWithFilter(index: number, value: bigint): number {
    if (this.#cpu.guest?.writeMsr?.(index, value)) return 0;
    const refused = this.#cpu.msrs.write(index, value);
    if (refused === 0 && index === Msr.EFER) this.writtenEfer = true;
    return refused;
  }
  readPmc(index: number): bigint | undefined {
    // Counters exist and stand still.
    return index < 4 ? 0n : undefined;
  }
  rdtsc(): bigint {
    return BigInt.asUintN(64, this.#cpu.tsc() + (this.#cpu.guest?.tscOffset ?? 0n));
  }

  halt(): void {
    this.#cpu.state.activity = 1;
  }
  /**
   * With CR0.NE clear a waiting x87 instruction behind an unmasked exception stops the processor until an interrupt comes, unless IGNNE# is
   * asserted (SDM vol. 1 section 8.7.2, APM vol. 2 section 15.12). A guest's FERR# goes nowhere: its platform is the owner's affair.
   */
  assertFerr(): void {
    const cpu = this.#cpu;
    if (cpu.guest === null) {
      if (cpu.bus?.ferr === undefined) return;
      cpu.ferr = true;
      if (cpu.bus.ferr(true)) return;
    } else if (cpu.guest.interceptFerrFreeze?.()) throw VMEXIT;
    cpu.state.activity = FROZEN;
    cpu.state.shadow = 0;
    throw RETRY;
  }
  wbinvd(): void {
    // Caches are transparent.
  }
  fixHypercall(): X86Emul {
    return X86Emul.UNHANDLEABLE;
  }

  intercept(info: InstructionInfo, stage: InterceptStage): X86Emul {
    this.current = info.intercept;
    const { guest } = this.#cpu;
    if (guest === null) return X86Emul.CONTINUE;
    const ports = PORT_INTERCEPTS[info.intercept];
    if (ports !== undefined) return this.#leaveIf(this.#interceptPort(info, ports));
    if (guest.intercept(info, stage)) return X86Emul.INTERCEPTED;
    if (info.intercept !== 'rdmsr' && info.intercept !== 'wrmsr') return X86Emul.CONTINUE;
    const index = Number(this.readGpr(RCX) & 0xffffffffn);
    return this.#leaveIf(guest.interceptMsr(index, info.intercept === 'wrmsr'));
  }
  #leaveIf(exited: boolean): X86Emul {
    return exited ? X86Emul.INTERCEPTED : X86Emul.CONTINUE;
  }

  #interceptPort(info: InstructionInfo, form: { in: boolean; string: boolean }): boolean {
    // E4-E7 carry the port; EC-EF and 6C-6F take it from DX. Even opcodes move a byte.
    const immediate = info.opcode >= 0xe4 && info.opcode <= 0xe7;
    const port = immediate ? Number(info.imm & 0xffn) : Number(this.readGpr(2) & 0xffffn);
    const bytes = form.in ? info.dstBytes : info.srcBytes;
    return this.#cpu.guest!.interceptIo({
      port,
      size: (info.opcode & 1) === 0 ? 1 : bytes >= 4 ? 4 : 2,
      in: form.in,
      string: form.string,
      rep: form.string && info.rep !== 0,
      addrSize: info.adBytes,
      seg: form.in ? Seg.ES : info.seg,
      linear: info.linear,
      imm: immediate,
      nextRip: info.nextRip,
    });
  }

  beginEvent(event: PendingEvent): void {
    const cpu = this.#cpu;
    if (cpu.guest !== null && (event.kind === 'softexception' || event.kind === 'icebp')) {
      const payload = 0n;
      if (cpu.guest.interceptException(event.vector, event.errorCode, payload, undefined, event)) throw VMEXIT;
    }
    if (event.kind === 'icebp') cpu.events.joinInt1();
    cpu.eventInDelivery = event;
  }
  beginTaskSwitch(selector: number, source: 'call' | 'jmp' | 'iret' | 'gate', errorCode: number | undefined): void {
    const { guest, eventInDelivery, evaluator } = this.#cpu;
    const length = eventInDelivery === undefined ? evaluator.context.insn.length : eventInDelivery.instructionLength;
    if (guest?.interceptTaskSwitch(selector, source, errorCode, eventInDelivery, length)) throw VMEXIT;
  }

  getCpuid(leaf: number, subleaf: number): readonly [number, number, number, number] {
    return this.#cpu.cpuid(leaf, subleaf);
  }
  guestHas(feature: string): boolean {
    return feature in FEATURES && this.#cpu.has(feature as FeatureName);
  }
  isIntelCompatible(): boolean {
    return this.#cpu.model.vendor === 'intel';
  }
  setNmiMask(masked: boolean): void {
    this.#cpu.state.nmiBlocked = masked;
  }
  isSmm(): boolean {
    return this.#cpu.state.smm;
  }
  leaveSmm(): number {
    return this.#cpu.leaveSmm();
  }
  tripleFault(): void {
    this.#cpu.shutdown();
  }

  getPkru(): number {
    return this.#cpu.state.pkru;
  }
  setPkru(value: number): void {
    this.#cpu.state.pkru = value;
  }
  getXcr(index: number): bigint {
    return index === 0 ? this.#cpu.state.get64(S.xcr0) : 0n;
  }
  setXcr(index: number, value: bigint): number {
    if (index !== 0 || (this.#cpu.state.cr4 & CR4.OSXSAVE) === 0n) return 1;
    const [low, , , high] = this.#cpu.cpuid(0xd, 0);
    const supported = (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
    const avxWithoutSse = (value & XCR0_AVX) !== 0n && (value & XCR0_SSE) === 0n;
    if ((value & 1n) === 0n || (value & ~supported) !== 0n || avxWithoutSse) return 1;
    this.#cpu.state.set64(S.xcr0, value);
    return 0;
  }
  fpuArea(): DataView {
    return this.#fpu;
  }
  random(): bigint {
    const { state } = this.#cpu;
    const next = nextRandomState(state.get64(S.random));
    state.set64(S.random, next);
    return randomOf(next);
  }
  setInterruptShadow(kind: 1 | 2): void {
    this.newShadow = kind;
  }
}
