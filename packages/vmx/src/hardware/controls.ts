/**
 * What VT-x does while a guest runs: tests the controls, records VM exits, translates through EPT.
 * Manual: SDM vol. 3 ch. 25 (non-root operation), 27.1-27.2 (exits and their information), 28.3 (EPT).
 */
import {
  type GuestMode,
  type GuestPhysicalAccess,
  type InstructionInfo,
  type Intercept,
  type InterceptStage,
  type NestedShape,
  type NestedTranslation,
  type PendingEvent,
  type PhysicalMemory,
  type ProcessorApi,
  RCX,
  S,
  Vector,
} from '@tskvm/emulator';
import {
  INTR_ERROR_CODE,
  INTR_VALID,
  IntrType,
  Pin as pinControls,
  Primary as primaryControls,
  Reason,
  Secondary,
} from './bits.ts';
import { cr0FixedHolds, type VmxCapabilities } from './capabilities.ts';
import { VmxDirectExits } from './direct-exits.ts';
import { instructionInformation } from './instruction-info.ts';
import { EptWalker, plainEpt, Walk } from './nested-paging.ts';
import { Dirty, F, type Vmcs, Word as vmcsWords } from './vmcs.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const Primary = primaryControls;
const Pin = pinControls;
const PAUSES = S.pauses >> 2;

/** When an instruction leaves: always, or if a bit of a control word is set. */
interface Rule {
  reason: number;
  word: 'always' | 'primary' | 'secondary';
  bit: number;
  /** Secondary control without which the instruction is #UD in the guest (SDM 25.3). */
  enabledBy?: number;
  /** Fills the exit's qualification and instruction information. */
  detail?: (guest: VmxGuest, info: InstructionInfo) => void;
}
type Special = (guest: VmxGuest, info: InstructionInfo) => boolean;

const always = (reason: number, detail?: Rule['detail']): Rule => ({ reason, word: 'always', bit: 0, detail });
const primary = (reason: number, bit: number, detail?: Rule['detail']): Rule => ({
  reason,
  word: 'primary',
  bit,
  detail,
});
const secondary = (reason: number, bit: number, detail?: Rule['detail']): Rule => ({
  reason,
  word: 'secondary',
  bit,
  detail,
});
const withInfo: Rule['detail'] = (guest, info) => guest.setInstructionInfo(instructionInformation(info));
const withAddress: Rule['detail'] = (guest, info) => {
  guest.setQualification(info.intercept === 'invlpg' ? info.linear : (info.displacement ?? 0n));
  guest.setInstructionInfo(instructionInformation(info));
};

/** SDM 25.1.2 (instructions that cause exits unconditionally) and 25.1.3 (conditionally). */
const INSTRUCTIONS: { readonly [I in Intercept]?: Rule | Special } = {
  cpuid: always(Reason.CPUID),
  getsec: always(Reason.GETSEC),
  invd: always(Reason.INVD),
  xsetbv: always(Reason.XSETBV),
  vmcall: always(Reason.VMCALL),
  vmclear: always(Reason.VMCLEAR, withAddress),
  vmlaunch: always(Reason.VMLAUNCH),
  vmptrld: always(Reason.VMPTRLD, withAddress),
  vmptrst: always(Reason.VMPTRST, withAddress),
  vmread: always(Reason.VMREAD, withAddress),
  vmresume: always(Reason.VMRESUME),
  vmwrite: always(Reason.VMWRITE, withAddress),
  vmxoff: always(Reason.VMOFF),
  vmxon: always(Reason.VMON, withAddress),
  invept: always(Reason.INVEPT, withAddress),
  invvpid: always(Reason.INVVPID, withAddress),
  hlt: primary(Reason.HLT, Primary.hlt),
  invlpg: primary(Reason.INVLPG, Primary.invlpg, withAddress),
  mwait: primary(Reason.MWAIT_INSTRUCTION, Primary.mwait),
  monitor: primary(Reason.MONITOR_INSTRUCTION, Primary.monitor),
  pause: primary(Reason.PAUSE_INSTRUCTION, Primary.pause),
  rdpmc: primary(Reason.RDPMC, Primary.rdpmc),
  rdtsc: primary(Reason.RDTSC, Primary.rdtsc),
  rdtscp: { ...primary(Reason.RDTSCP, Primary.rdtsc), enabledBy: Secondary.rdtscp },
  rdpid: { ...primary(Reason.RDTSCP, 0), enabledBy: Secondary.rdtscp },
  invpcid: { ...primary(Reason.INVPCID, Primary.invlpg, withAddress), enabledBy: Secondary.invpcid },
  wbinvd: secondary(Reason.WBINVD, Secondary.wbinvd),
  rdrand: secondary(Reason.RDRAND, Secondary.rdrand, withInfo),
  rdseed: secondary(Reason.RDSEED, Secondary.rdseed, withInfo),
  xsaves: { ...secondary(Reason.XSAVES, 0), enabledBy: Secondary.xsaves },
  xrstors: { ...secondary(Reason.XRSTORS, 0), enabledBy: Secondary.xsaves },
  vmfunc: { ...secondary(Reason.VMFUNC, 0), enabledBy: Secondary.vmfunc },
  lgdt: secondary(Reason.GDTR_IDTR, Secondary.descriptorTable, withAddress),
  sgdt: secondary(Reason.GDTR_IDTR, Secondary.descriptorTable, withAddress),
  lidt: secondary(Reason.GDTR_IDTR, Secondary.descriptorTable, withAddress),
  sidt: secondary(Reason.GDTR_IDTR, Secondary.descriptorTable, withAddress),
  lldt: secondary(Reason.LDTR_TR, Secondary.descriptorTable, withAddress),
  sldt: secondary(Reason.LDTR_TR, Secondary.descriptorTable, withAddress),
  ltr: secondary(Reason.LDTR_TR, Secondary.descriptorTable, withAddress),
  str: secondary(Reason.LDTR_TR, Secondary.descriptorTable, withAddress),
  crRead: (guest, info) => guest.crRead(info),
  crWrite: (guest, info) => guest.crWrite(info),
  clts: (guest, info) => guest.clts(info),
  lmsw: (guest, info) => guest.lmsw(info),
  drRead: (guest, info) => guest.dr(info, 1),
  drWrite: (guest, info) => guest.dr(info, 0),
  rdmsr: (guest, info) => guest.msr(info, false),
  wrmsr: (guest, info) => guest.msr(info, true),
};

const CR0_PE = 1n;
const CR0_TS = 8n;
/** MP, EM, TS: what LMSW compares besides PE (SDM 25.1.3). */
const LMSW_BITS = 0xen;
/** Vector by which an acknowledged physical interrupt presents itself (the host's timer or kick). */
export const HOST_INTERRUPT_VECTOR = 0xec;

const TASK_SOURCE = { call: 0, iret: 1, jmp: 2, gate: 3 } as const;
/** Interruption types of events on their way (SDM table 24-15). */
export const EVENT_TYPE: { readonly [K in PendingEvent['kind']]: number } = {
  external: IntrType.external,
  nmi: IntrType.nmi,
  exception: IntrType.hardException,
  softint: IntrType.softInterrupt,
  softexception: IntrType.softException,
  icebp: IntrType.privilegedSoftException,
};
const isSoft = (event: PendingEvent): boolean =>
  event.kind === 'softint' || event.kind === 'softexception' || event.kind === 'icebp';

/** A mask or a shadow as halves: see `VmxGuest.cr0Halves`. */
function readHalf(into: Int32Array, at: number, v: Vmcs, field: number): void {
  into[at] = v.readLow(field);
  into[at + 1] = v.readHigh(field);
}
const mergeLow = (real: number, halves: Int32Array): number => (real & ~halves[0]) | (halves[2] & halves[0]);
const wide = (halves: Int32Array, at: number): bigint =>
  (BigInt(halves[at + 1] >>> 0) << 32n) | BigInt(halves[at] >>> 0);

/** The guest's side of one processor with VT-x. One object; VM entry loads it anew from the current VMCS. */
export class VmxGuest implements GuestMode {
  asid = 0;
  nestedRoot = 0;
  tscOffset = 0n;
  interruptsExit = true;
  boundaryWork = false;
  boundaryNeedsIf = false;
  boundaryNeedsNmis = false;
  /** VT-x has no such control. */
  readonly interceptsFlagImages = false;
  deadline = Number.POSITIVE_INFINITY;

  pin = 0;
  primary = 0;
  /** 0 unless the primary controls activate it. */
  secondary = 0;
  /** Acknowledge interrupt on exit. */
  acknowledges = false;
  /** Guest/host masks and read shadows of CR0 and CR4: mask low, mask high, shadow low, shadow high. */
  readonly cr0Halves = new Int32Array(4);
  readonly cr4Halves = new Int32Array(4);
  exceptionBitmap = 0;
  /** Tick after which the monitor trap flag fires, or -1. */
  trapAfter = -1;

  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  readonly #vmcs: Vmcs;
  readonly #state: Int32Array;
  readonly #caps: VmxCapabilities;
  readonly #walker: EptWalker;
  readonly direct: VmxDirectExits;
  #eptLevels = 4;
  #eptAd = false;
  /** Without and with accessed and dirty flags. */
  readonly #shapes: readonly [NestedShape, NestedShape];

  constructor(processor: ProcessorApi, memory: PhysicalMemory, vmcs: Vmcs, caps: VmxCapabilities) {
    this.#processor = processor;
    this.#memory = memory;
    this.#state = new Int32Array(memory.view.buffer, processor.state.base, S.size >> 2);
    this.#vmcs = vmcs;
    this.#caps = caps;
    this.#walker = new EptWalker(memory, caps.ept, caps.maxphyaddr);
    this.#shapes = [plainEpt(false, caps.ept), plainEpt(true, caps.ept)];
    this.direct = new VmxDirectExits(this, processor, INSTRUCTIONS);
  }

  get nestedShape(): NestedShape | null {
    return this.#eptLevels === 4 ? this.#shapes[this.#eptAd ? 1 : 0] : null;
  }

  get cr0Mask(): bigint {
    return wide(this.cr0Halves, 0);
  }
  get cr0Shadow(): bigint {
    return wide(this.cr0Halves, 2);
  }
  get cr4Mask(): bigint {
    return wide(this.cr4Halves, 0);
  }
  get cr4Shadow(): bigint {
    return wide(this.cr4Halves, 2);
  }

  /** Takes the controls over from the current VMCS; `dirty` says which were written since the last time. */
  loadControls(dirty: number): void {
    if (dirty & Dirty.controls) this.#reload();
    else if (dirty & Dirty.masks) this.#reloadMasks();
    else if (dirty & Dirty.shadows) this.reloadShadows();
    this.resume();
  }
  /** The read shadows alone. */
  reloadShadows(): void {
    readHalf(this.cr0Halves, 2, this.#vmcs, F.CR0_READ_SHADOW);
    readHalf(this.cr4Halves, 2, this.#vmcs, F.CR4_READ_SHADOW);
  }
  /** What each entry arms anew. */
  resume(): void {
    this.#state[PAUSES] = this.primary & Primary.pause ? 0 : -1;
    const armed = this.primary & (Primary.interruptWindow | Primary.nmiWindow | Primary.monitorTrap);
    if (armed === 0 && (this.pin & Pin.preemptionTimer) === 0) {
      this.trapAfter = -1;
      this.deadline = Number.POSITIVE_INFINITY;
      this.boundaryWork = false;
      this.boundaryNeedsIf = false;
      this.boundaryNeedsNmis = false;
      return;
    }
    this.#arm(armed);
  }
  /** Neither a trap nor the preemption timer, which an exit would save. */
  get armsNothing(): boolean {
    return this.trapAfter < 0 && this.deadline === Number.POSITIVE_INFINITY;
  }
  #arm(armed: number): void {
    this.trapAfter = this.primary & Primary.monitorTrap ? this.#processor.tick : -1;
    this.deadline = Number.POSITIVE_INFINITY;
    if (this.pin & Pin.preemptionTimer) {
      const cycles = this.#vmcs.read32(F.VMX_PREEMPTION_TIMER_VALUE) * 2 ** this.#caps.preemptionRate;
      this.deadline = this.#processor.tick + Math.ceil(cycles / this.#processor.tscPerTick);
    }
    const due = this.deadline <= this.#processor.tick;
    this.boundaryWork = armed !== 0 || due;
    this.boundaryNeedsIf = armed === Primary.interruptWindow && !due;
    this.boundaryNeedsNmis = armed === Primary.nmiWindow && !due;
  }

  #reload(): void {
    const v = this.#vmcs;
    this.pin = v.read32(F.PIN_BASED_VM_EXEC_CONTROL) | 0;
    this.primary = v.read32(F.CPU_BASED_VM_EXEC_CONTROL) | 0;
    this.secondary = this.primary & Primary.secondary ? v.read32(F.SECONDARY_VM_EXEC_CONTROL) | 0 : 0;
    this.interruptsExit = (this.pin & Pin.externalInterrupt) !== 0;
    this.acknowledges = (v.read32(F.VM_EXIT_CONTROLS) & 0x8000) !== 0;
    this.asid = this.secondary & Secondary.vpid ? v.read16(F.VIRTUAL_PROCESSOR_ID) : 0;
    const eptp = v.readAddress(F.EPT_POINTER);
    this.nestedRoot = this.secondary & Secondary.ept ? eptp - (eptp % 4096) : 0;
    this.#eptLevels = ((eptp >>> 3) & 7) + 1;
    this.#eptAd = (eptp & 0x40) !== 0;
    this.#reloadMasks();
  }
  #reloadMasks(): void {
    const v = this.#vmcs;
    this.tscOffset = this.primary & Primary.tscOffset ? v.read64(F.TSC_OFFSET) : 0n;
    this.exceptionBitmap = v.read32(F.EXCEPTION_BITMAP) | 0;
    readHalf(this.cr0Halves, 0, v, F.CR0_GUEST_HOST_MASK);
    readHalf(this.cr4Halves, 0, v, F.CR4_GUEST_HOST_MASK);
    this.reloadShadows();
    this.direct.update();
  }

  // Recording

  /** Records a VM exit whose qualification is a number. Always true. */
  record(reason: number, length = 0, qualification = 0): true {
    const { words } = this.#vmcs;
    words[Word.exitReason] = reason;
    words[Word.exitQualification] = qualification;
    words[Word.exitQualification + 1] = qualification < 2 ** 32 ? 0 : qualification / 2 ** 32;
    words[Word.exitIntrInfo] = 0;
    words[Word.exitInstructionLen] = length;
    const { eventInDelivery } = this.#processor;
    if (eventInDelivery === undefined) words[Word.idtVectoringInfo] = 0;
    else this.recordVectoring(eventInDelivery);
    return true;
  }
  setQualification(value: bigint): void {
    this.#vmcs.write64(F.EXIT_QUALIFICATION, value);
  }
  setInstructionInfo(value: number): void {
    this.#vmcs.write32(F.VMX_INSTRUCTION_INFO, value);
  }
  #setLinear(value: bigint): void {
    this.#vmcs.write64(F.GUEST_LINEAR_ADDRESS, value);
  }

  /** IDT-vectoring information: the event whose delivery the exit interrupted (SDM 27.2.4). */
  recordVectoring(event: PendingEvent | undefined): void {
    const v = this.#vmcs;
    if (event === undefined) {
      v.u32[v.region + Word.idtVectoringInfo] = 0;
      return;
    }
    const withCode = event.errorCode !== undefined;
    v.write32(
      F.IDT_VECTORING_INFO_FIELD,
      (INTR_VALID | (withCode ? INTR_ERROR_CODE : 0) | (EVENT_TYPE[event.kind] << 8) | event.vector) >>> 0,
    );
    if (withCode) v.write32(F.IDT_VECTORING_ERROR_CODE, event.errorCode!);
    if (isSoft(event)) v.write32(F.VM_EXIT_INSTRUCTION_LEN, event.instructionLength);
  }

  #raise(vector: number): never {
    throw this.#processor.exception.set(vector);
  }
  #gpr(reg: number): bigint {
    return this.#processor.state.gpr[reg];
  }
  /** A general register as MOV CR and MOV DR read it: 64 bits in 64-bit mode, else 32. */
  #operand(reg: number): bigint {
    const { state } = this.#processor;
    const long =
      (state.view.getUint32(state.base + S.efer, true) & 0x400) !== 0 &&
      (state.view.getUint16(state.base + S.segments + 18, true) & 0x200) !== 0;
    return long ? this.#gpr(reg) : this.#gpr(reg) & 0xffffffffn;
  }

  // Instructions

  intercept(info: InstructionInfo, _stage: InterceptStage): boolean {
    const rule = INSTRUCTIONS[info.intercept];
    if (rule === undefined) return false;
    return typeof rule === 'function' ? rule(this, info) : this.#apply(rule, info);
  }

  #apply(rule: Rule, info: InstructionInfo): boolean {
    if (rule.enabledBy !== undefined && !(this.secondary & rule.enabledBy)) this.#raise(Vector.UD);
    if (rule.word === 'primary' && !(this.primary & rule.bit)) return false;
    if (rule.word === 'secondary' && !(this.secondary & rule.bit)) return false;
    this.record(rule.reason, lengthOf(info));
    rule.detail?.(this, info);
    return true;
  }

  crRead(info: InstructionInfo): boolean {
    if (info.reg === 3 ? !(this.primary & Primary.cr3Store) : info.reg !== 8 || !(this.primary & Primary.cr8Store)) {
      return false;
    }
    return this.record(Reason.CR_ACCESS, lengthOf(info), info.reg | (1 << 4) | (info.rm << 8));
  }

  /** MOV to CR (SDM 25.1.3). Exits come before the check of the value. */
  crWrite(info: InstructionInfo): boolean {
    if (!this.crWriteExits(info.reg, this.#operand(info.rm))) return false;
    return this.record(Reason.CR_ACCESS, lengthOf(info), info.reg | (info.rm << 8));
  }
  crWriteExits(cr: number, value: bigint): boolean {
    switch (cr) {
      case 0:
        return ((value ^ this.cr0Shadow) & this.cr0Mask) !== 0n;
      case 4:
        return ((value ^ this.cr4Shadow) & this.cr4Mask) !== 0n;
      case 3:
        return (this.primary & Primary.cr3Load) !== 0 && !this.#isCr3Target(value);
      default:
        return cr === 8 && (this.primary & Primary.cr8Load) !== 0;
    }
  }
  #isCr3Target(value: bigint): boolean {
    const count = this.#vmcs.read32(F.CR3_TARGET_COUNT);
    for (let i = 0; i < count && i < 4; i++) {
      if (this.#vmcs.read64(F.CR3_TARGET_VALUE0 + 2 * i) === value) return true;
    }
    return false;
  }

  clts(info: InstructionInfo): boolean {
    if (!(this.cr0Mask & this.cr0Shadow & CR0_TS)) return false;
    return this.record(Reason.CR_ACCESS, lengthOf(info), 2 << 4);
  }

  /** LMSW can set PE but not clear it. */
  lmsw(info: InstructionInfo): boolean {
    const memory = info.mod !== 3;
    const source = (memory ? this.#processor.ops.readEmulated(info.linear, 2) : this.#gpr(info.rm)) & 0xffffn;
    const setsPe = (this.cr0Mask & source & ~this.cr0Shadow & CR0_PE) !== 0n;
    if (!setsPe && ((source ^ this.cr0Shadow) & this.cr0Mask & LMSW_BITS) === 0n) return false;
    this.record(Reason.CR_ACCESS, lengthOf(info), 0);
    this.setQualification(BigInt((3 << 4) | (memory ? 1 << 6 : 0)) | (source << 16n));
    if (memory) this.#setLinear(info.linear);
    return true;
  }

  /** @param direction 1: MOV from DR */
  dr(info: InstructionInfo, direction: number): boolean {
    if (!(this.primary & Primary.movDr)) return false;
    return this.record(Reason.DR_ACCESS, lengthOf(info), info.reg | (direction << 4) | (info.rm << 8));
  }

  #msrLength = 2;
  /** The length is noted for `interceptMsr`, whichever of the two is asked first. */
  msr(info: InstructionInfo, write: boolean): boolean {
    this.#msrLength = lengthOf(info);
    return this.interceptMsr(Number(this.#gpr(RCX) & 0xffffffffn), write);
  }
  interceptMsr(index: number, write: boolean): boolean {
    if (!this.msrExits(index, write)) return false;
    return this.record(write ? Reason.MSR_WRITE : Reason.MSR_READ, this.#msrLength);
  }
  /** SDM 24.6.9: four bitmaps of 1 KiB; an MSR outside both ranges always exits. */
  msrExits(index: number, write: boolean): boolean {
    if (!(this.primary & Primary.msrBitmaps)) return true;
    const high = index >= 0xc0000000;
    const bit = high ? index - 0xc0000000 : index;
    if (bit >= 0x2000) return true;
    const page = this.#vmcs.readAddress(F.MSR_BITMAP);
    return this.#bitmapBit(page + (high ? 0x400 : 0) + (write ? 0x800 : 0), bit);
  }
  #bitmapBit(page: number, bit: number): boolean {
    const pa = page + (bit >>> 3);
    return !this.#memory.contains(pa, 1) || (this.#memory.read8(pa) & (1 << (bit & 7))) !== 0;
  }

  interceptIo(io: Parameters<GuestMode['interceptIo']>[0]): boolean {
    if (!this.portExits(io.port, io.size)) return false;
    const length = Number(BigInt.asUintN(32, io.nextRip - this.#processor.state.rip));
    const flags = (io.in ? 8 : 0) | (io.string ? 16 : 0) | (io.rep ? 32 : 0) | (io.imm ? 64 : 0);
    this.record(Reason.IO_INSTRUCTION, length, ((io.size - 1) | flags | (io.port << 16)) >>> 0);
    if (io.string) {
      this.#setLinear(io.linear);
      // SDM table 27-9: address size 0 (16), 1 (32), 2 (64) in bits 9:7; segment in 17:15.
      this.setInstructionInfo(((io.addrSize >> 2) << 7) | (io.in ? 0 : io.seg << 15));
    }
    return true;
  }
  /** SDM 24.6.4: one bit per port; an access that wraps around port FFFF always exits. */
  portExits(port: number, size: number): boolean {
    if (!(this.primary & Primary.ioBitmaps)) return (this.primary & Primary.unconditionalIo) !== 0;
    if (port + size > 0x10000) return true;
    for (let p = port; p < port + size; p++) {
      const page = this.#vmcs.readAddress(p < 0x8000 ? F.IO_BITMAP_A : F.IO_BITMAP_B);
      if (this.#bitmapBit(page, p & 0x7fff)) return true;
    }
    return false;
  }

  // Exceptions and events

  interceptException(
    vector: number,
    errorCode: number | undefined,
    payload: bigint,
    during: PendingEvent | undefined,
    self?: PendingEvent,
  ): boolean {
    if (!this.#exceptionExits(vector, errorCode)) return false;
    this.record(Reason.EXCEPTION_NMI, self?.instructionLength ?? 0);
    this.recordVectoring(during);
    const kind = self ? EVENT_TYPE[self.kind] : IntrType.hardException;
    const withCode = errorCode !== undefined;
    this.#vmcs.write32(
      F.VM_EXIT_INTR_INFO,
      (INTR_VALID | (withCode ? INTR_ERROR_CODE : 0) | (kind << 8) | vector) >>> 0,
    );
    if (withCode) this.#vmcs.write32(F.VM_EXIT_INTR_ERROR_CODE, errorCode);
    if (vector === Vector.PF || vector === Vector.DB) this.setQualification(payload);
    return true;
  }
  /** SDM 25.2: the bitmap; for #PF the error code decides whether the bit is taken as it is or inverted. */
  #exceptionExits(vector: number, errorCode: number | undefined): boolean {
    const bit = (this.exceptionBitmap & (1 << vector)) !== 0;
    if (vector !== Vector.PF) return bit;
    const mask = this.#vmcs.read32(F.PAGE_FAULT_ERROR_CODE_MASK);
    const match = this.#vmcs.read32(F.PAGE_FAULT_ERROR_CODE_MATCH);
    return (((errorCode ?? 0) & mask) >>> 0 === match) === bit;
  }

  interceptTaskSwitch(
    selector: number,
    source: 'call' | 'jmp' | 'iret' | 'gate',
    _errorCode: number | undefined,
    during: PendingEvent | undefined,
    instructionLength = 0,
  ): boolean {
    this.record(Reason.TASK_SWITCH, instructionLength, selector + TASK_SOURCE[source] * 2 ** 30);
    this.recordVectoring(during ?? this.#processor.eventInDelivery);
    return true;
  }

  interceptShutdown(): boolean {
    this.record(Reason.TRIPLE_FAULT);
    // A triple fault is not reported as having interrupted the delivery of what caused it (SDM 27.2.4).
    this.recordVectoring(undefined);
    return true;
  }
  interceptInterrupt(): boolean {
    if (!this.interruptsExit) return false;
    this.record(Reason.EXTERNAL_INTERRUPT);
    if (this.acknowledges) {
      this.#vmcs.write32(F.VM_EXIT_INTR_INFO, (INTR_VALID | HOST_INTERRUPT_VECTOR) >>> 0);
    }
    return true;
  }
  interceptNmi(): boolean {
    if (!(this.pin & Pin.nmi)) return false;
    this.record(Reason.EXCEPTION_NMI);
    this.#vmcs.write32(F.VM_EXIT_INTR_INFO, (INTR_VALID | (IntrType.nmi << 8) | Vector.NMI) >>> 0);
    return true;
  }
  /** Without dual-monitor treatment an SMI is delivered by the processor itself (SDM 31.14). */
  interceptSmi(): boolean {
    return false;
  }
  interceptInit(): boolean {
    return this.record(Reason.INIT_SIGNAL);
  }
  interceptSipi(vector: number): boolean {
    return this.record(Reason.SIPI_SIGNAL, 0, vector);
  }

  /** Order of SDM 25.5.1, 25.5.2, 25.2: monitor trap, preemption timer, NMI window, interrupt window. */
  boundary(): 'exit' | 'none' | number {
    const { state, tick } = this.#processor;
    if (this.trapAfter >= 0 && tick > this.trapAfter) return this.#exit(Reason.MONITOR_TRAP_FLAG);
    if (tick >= this.deadline) return this.#exit(Reason.PREEMPTION_TIMER);
    if (this.primary & Primary.nmiWindow && !state.nmiBlocked && !(state.shadow & 2)) {
      return this.#exit(Reason.NMI_WINDOW);
    }
    if (!(this.primary & Primary.interruptWindow) || state.shadow !== 0) return 'none';
    const interruptsOn = (state.view.getUint32(state.base + S.rflags, true) & 0x200) !== 0;
    return interruptsOn ? this.#exit(Reason.INTERRUPT_WINDOW) : 'none';
  }
  #exit(reason: number): 'exit' {
    this.record(reason);
    return 'exit';
  }

  // Memory

  translate(gpa: number, access: GuestPhysicalAccess): NestedTranslation | undefined {
    // With accessed and dirty flags the walk of the guest's own tables counts as writing (SDM 28.3.5).
    const write = access.write || (access.pageWalk && this.#eptAd);
    const result = this.#walker.walk(this.nestedRoot, this.#eptLevels, this.#eptAd, gpa, write, access.fetch);
    if (result === Walk.ok) return this.#walker.result;
    const { linear } = access;
    const reason = result === Walk.violation ? Reason.EPT_VIOLATION : Reason.EPT_MISCONFIG;
    const place = linear === undefined ? 0 : access.pageWalk ? 0x80 : 0x180;
    this.record(reason, 0, reason === Reason.EPT_VIOLATION ? this.#walker.qualification | place : 0);
    this.#vmcs.writeNumber(F.GUEST_PHYSICAL_ADDRESS, gpa);
    if (linear !== undefined) this.#setLinear(linear);
    return undefined;
  }

  // Control registers

  /** Bits of the mask come from the shadow (SDM 25.3). */
  readCr(cr: number): bigint | undefined {
    if (cr === 0) return merge(this.#processor.state.cr0, this.cr0Shadow, this.cr0Mask);
    if (cr === 4) return merge(this.#processor.state.cr4, this.cr4Shadow, this.cr4Mask);
    return undefined;
  }
  /** The same on low halves. */
  viewCr(cr: 0 | 4, real: number): number {
    return cr === 0 ? mergeLow(real, this.cr0Halves) : mergeLow(real, this.cr4Halves);
  }
  /** Bits of the mask keep their values. */
  writeCr(cr: number, value: bigint): bigint | undefined {
    if (cr === 0) return merge(value, this.#processor.state.cr0, this.cr0Mask);
    if (cr === 4) return merge(value, this.#processor.state.cr4, this.cr4Mask);
    return undefined;
  }
  crWritten(_cr: number, _value: bigint): boolean {
    return false;
  }
  /** Bits that are fixed in VMX operation (SDM 23.8, 25.3). */
  crIllegal(cr: number, value: bigint): boolean {
    const caps = this.#caps;
    if (cr === 0) {
      const real = merge(value, this.#processor.state.cr0, this.cr0Mask);
      return real >> 32n !== 0n || !this.cr0Holds(Number(real) | 0);
    }
    if (cr !== 4) return false;
    const real = merge(value, this.#processor.state.cr4, this.cr4Mask);
    return (real & caps.cr4Fixed0) !== caps.cr4Fixed0 || (real & ~caps.cr4Fixed1) !== 0n;
  }
  /** Has the low half of CR0 the bits that are fixed. */
  cr0Holds(low: number): boolean {
    return cr0FixedHolds(this.#caps, low, (this.secondary & Secondary.unrestrictedGuest) !== 0);
  }
}

/** `masked` under the mask, `plain` elsewhere. */
const merge = (plain: bigint, masked: bigint, mask: bigint): bigint => (plain & ~mask) | (masked & mask);
const lengthOf = (info: InstructionInfo): number => Number(info.nextRip - info.rip) & 15;
