/**
 * What AMD-V does while a guest runs: tests intercepts, records #VMEXITs with EXITINFO, translates through NPT.
 * Manual: APM vol. 2 sections 15.7-15.14 (intercepts), 15.20 (EXITINTINFO), 15.21 (virtual interrupts), 15.25 (nested paging).
 */
import {
  Attrib,
  CR0,
  EFER,
  Flag,
  GuestException,
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
  S,
  Seg,
  Unwind,
  Vector,
} from '@tskvm/emulator';
import { SvmDirectExits } from './direct-exits.ts';
import { NpfErrorHigh, SvmExit } from './exit-codes.ts';
import { type HostPaging, NestedWalker, PLAIN_NPT } from './nested-paging.ts';
import { AUTOMATIC_EXITS, cr0Illegal, MSR_SEV_ES_GHCB, msrpmBit } from './rules.ts';
import { Clean, IntCtl as intCtlBits, MiscCtl, V, type Vmcb, W as vmcbWords } from './vmcb.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const IntCtl = intCtlBits;

/** What of AMD-V the processor has (CPUID Fn8000_000A_EDX), as far as a guest's exits depend on it. */
export interface SvmFeatures {
  nestedPaging: boolean;
  nextRip: boolean;
  decodeAssists: boolean;
  flushByAsid: boolean;
  pauseFilter: boolean;
  sevEs: boolean;
}

type Special = (guest: SvmGuest, info: InstructionInfo) => boolean;

/** Exit (and bit number) of each interceptable instruction, or the function that knows. */
const INSTRUCTIONS: { readonly [I in Intercept]?: number | Special } = {
  crRead: (g, info) => g.exitIf(SvmExit.READ_CR0 + info.reg, info, g.movCrInfo(info)),
  crWrite: (g, info) => g.crWrite(info),
  clts: (g, info) => g.exitIf(SvmExit.WRITE_CR0, info),
  lmsw: (g, info) => g.exitIf(SvmExit.WRITE_CR0, info) || g.exitIf(SvmExit.CR0_SEL_WRITE, info),
  smsw: (g, info) => g.exitIf(SvmExit.READ_CR0, info),
  drRead: (g, info) => g.exitIf(SvmExit.READ_DR0 + info.reg, info, g.assist(info.rm)),
  drWrite: (g, info) => g.exitIf(SvmExit.WRITE_DR0 + info.reg, info, g.assist(info.rm)),
  sidt: SvmExit.IDTR_READ,
  sgdt: SvmExit.GDTR_READ,
  sldt: SvmExit.LDTR_READ,
  str: SvmExit.TR_READ,
  lidt: SvmExit.IDTR_WRITE,
  lgdt: SvmExit.GDTR_WRITE,
  lldt: SvmExit.LDTR_WRITE,
  ltr: SvmExit.TR_WRITE,
  rdtsc: SvmExit.RDTSC,
  rdpmc: SvmExit.RDPMC,
  pushf: SvmExit.PUSHF,
  popf: SvmExit.POPF,
  cpuid: SvmExit.CPUID,
  rsm: SvmExit.RSM,
  iret: SvmExit.IRET,
  intn: (g, info) => g.exitIf(SvmExit.SWINT, info, g.assist(Number(info.imm & 0xffn))),
  icebp: SvmExit.ICEBP,
  invd: SvmExit.INVD,
  pause: (g, info) => g.pause(info),
  hlt: (g, info) => g.exitIf(SvmExit.HLT, info),
  invlpg: (g, info) => g.exitLinear(SvmExit.INVLPG, info),
  invlpga: SvmExit.INVLPGA,
  invpcid: (g, info) => g.exitLinear(SvmExit.INVPCID, info),
  vmrun: SvmExit.VMRUN,
  vmload: SvmExit.VMLOAD,
  vmsave: SvmExit.VMSAVE,
  vmmcall: SvmExit.VMMCALL,
  stgi: SvmExit.STGI,
  clgi: SvmExit.CLGI,
  skinit: SvmExit.SKINIT,
  rdtscp: SvmExit.RDTSCP,
  wbinvd: SvmExit.WBINVD,
  monitor: SvmExit.MONITOR,
  mwait: SvmExit.MWAIT,
  xsetbv: SvmExit.XSETBV,
  rdpru: SvmExit.RDPRU,
  rdmsr: (g, info) => g.msr(Number(g.gpr32(1)), false, info.nextRip),
  wrmsr: (g, info) => g.msr(Number(g.gpr32(1)), true, info.nextRip),
  vmgexit: (g, info) => g.vmgexit(info),
};

const PAUSES = S.pauses >> 2;

/** Clean-bit groups that `loadControl` takes over. */
const CONTROL_GROUPS = (1 << Clean.INTERCEPTS) | (1 << Clean.PERM_MAP) | (1 << Clean.ASID) | (1 << Clean.NPT);

/** The guest's side of one processor with AMD-V. One object; VMRUN loads it anew from the VMCB. */
export class SvmGuest implements GuestMode {
  asid = 0;
  nestedRoot = 0;
  tscOffset = 0n;
  readonly interruptsExit = true;
  boundaryWork = false;
  /** A virtual interrupt waits for IF, and nothing else is asked at boundaries. */
  readonly boundaryNeedsIf = true;
  interceptsFlagImages = false;
  readonly deadline = Number.POSITIVE_INFINITY;

  /** Physical interrupts are masked by the host's RFLAGS.IF (V_INTR_MASKING), else by the guest's. */
  intCtl = 0;
  host: HostPaging = { levels: 4, nxe: true, reservedHigh: 0, gigabytePages: true };
  sevEs = false;
  /** The GHCB MSR of the running SEV-ES guest. */
  ghcb = 0n;
  /** Set by `record`; VMRUN clears it. */
  exited = false;
  /** Exit code of the recorded exit. */
  exitCode = 0;
  /** RIP to save for a trap-like exit whose instruction the processor did not commit. */
  advanceTo: bigint | undefined = undefined;
  /** The exit wants the instruction's bytes. */
  bytesDue = false;
  /** EXITINTINFO of the recorded exit. */
  exitEvent: PendingEvent | undefined = undefined;

  readonly features: SvmFeatures;
  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  readonly #view: DataView;
  readonly #state: Int32Array;
  readonly #walker: NestedWalker;
  readonly #direct: SvmDirectExits;
  readonly #access = { write: false, fetch: false, pageWalk: false };
  /** The six intercept words. */
  readonly #words = new Int32Array(6);
  #vmcb!: Vmcb;
  #iopm = 0;
  #msrpm = 0;
  /** The intercept of PAUSE as masks of the filter's count: what counts of it, and what stands for no intercept at all. */
  #pauseMask = 0;
  #pausesFree = -1;
  /** The code of a faulting instruction is read: a nested fault now is not an exit of its own. */
  #fetchingBytes = false;
  readonly #bytes = new Uint8Array(16);

  constructor(processor: ProcessorApi, memory: PhysicalMemory, features: SvmFeatures) {
    this.features = features;
    this.#processor = processor;
    this.#memory = memory;
    this.#view = memory.view;
    this.#state = new Int32Array(memory.view.buffer, processor.state.base, S.size >> 2);
    this.#walker = new NestedWalker(memory);
    this.#direct = new SvmDirectExits(this, processor, INSTRUCTIONS);
  }

  get nestedShape(): NestedShape | null {
    return this.host.nxe && this.host.levels === 4 ? PLAIN_NPT : null;
  }

  /** Not for SEV-ES: write traps, #VC and the GHCB MSR are the long way's. */
  get direct(): SvmDirectExits | null {
    return this.sevEs ? null : this.#direct;
  }

  /**
   * Takes the control area over.
   * @param clean groups that are as this object has them already
   */
  loadControl(vmcb: Vmcb, clean: number): void {
    this.#vmcb = vmcb;
    if ((clean & CONTROL_GROUPS) !== CONTROL_GROUPS) this.#loadGroups(vmcb);
    this.resume();
  }
  /** What no clean bit keeps from being loaded. */
  resume(): void {
    const intCtl = this.#vmcb.words[W.intCtl];
    this.intCtl = intCtl;
    this.boundaryWork = (intCtl & IntCtl.V_IRQ) !== 0;
    this.bytesDue = false;
    this.reenter();
    if (this.advanceTo !== undefined) this.advanceTo = undefined;
    if (this.exitEvent !== undefined) this.exitEvent = undefined;
  }
  /** The same where int_ctl is as the guest left it, and its exit was that of an instruction and nothing more. */
  reenter(): void {
    this.#state[PAUSES] = ((this.#vmcb.words[W.pauseFilter] >>> 16) & this.#pauseMask) | this.#pausesFree;
    this.exited = false;
  }
  get isPlainExit(): boolean {
    return this.exitEvent === undefined && this.advanceTo === undefined && !this.bytesDue;
  }

  #loadGroups(vmcb: Vmcb): void {
    const { words } = vmcb;
    let changed = 0;
    for (let word = 0; word < 6; word += 1) {
      const bits = words[word];
      // The window for virtual interrupts opens and closes often, and no instruction asks for it.
      changed |= (bits ^ this.#words[word]) & (word === 3 ? ~(1 << (SvmExit.VINTR & 31)) : -1);
      this.#words[word] = bits;
    }
    if (changed !== 0) this.#direct.update();
    this.#iopm = vmcb.address(V.iopmBasePa);
    this.#msrpm = vmcb.address(V.msrpmBasePa);
    this.asid = vmcb.get32(V.asid);
    const control = vmcb.get32(V.miscCtl);
    this.nestedRoot = control & MiscCtl.NP ? vmcb.address(V.nestedCr3) : 0;
    this.sevEs = (control & MiscCtl.SEV_ES) !== 0;
    this.tscOffset = vmcb.get64(V.tscOffset);
    this.interceptsFlagImages = this.has(SvmExit.PUSHF) || this.has(SvmExit.POPF);
    this.#pauseMask = this.features.pauseFilter ? 0xffff : 0;
    this.#pausesFree = this.has(SvmExit.PAUSE) ? 0 : -1;
  }

  has(bit: number): boolean {
    return (this.#words[bit >>> 5] & (1 << (bit & 31))) !== 0;
  }

  // Recording

  /** Records a #VMEXIT; EXITINFO as 32-bit halves. Always true. */
  record(code: number, nextRip: bigint, low1 = 0, high1 = 0): true {
    this.recordWords(code, 0, 0, low1, high1);
    if (code < 0) this.#vmcb.words[W.exitCode + 1] = -1;
    if (nextRip !== 0n && this.features.nextRip) this.#vmcb.set64(V.nextRip, nextRip);
    return true;
  }

  /** As `record`, from 32-bit halves. */
  recordWords(code: number, nextLow: number, nextHigh: number, low1: number, high1: number): void {
    const { words } = this.#vmcb;
    const { nextRip } = this.features;
    words[W.exitCode] = code;
    words[W.exitCode + 1] = 0;
    words[W.exitInfo1] = low1;
    words[W.exitInfo1 + 1] = high1;
    words[W.exitInfo2] = 0;
    words[W.exitInfo2 + 1] = 0;
    words[W.nextRip] = nextRip ? nextLow : 0;
    words[W.nextRip + 1] = nextRip ? nextHigh : 0;
    words[W.insnLen] &= ~0xff;
    this.exited = true;
    this.exitCode = code;
    const { eventInDelivery } = this.#processor;
    if (this.exitEvent !== eventInDelivery) this.exitEvent = eventInDelivery;
  }
  recordInfo2(low: number, high: number): void {
    const { words } = this.#vmcb;
    words[W.exitInfo2] = low;
    words[W.exitInfo2 + 1] = high;
  }

  #info1(value: bigint): void {
    this.#vmcb.set64(V.exitInfo1, value);
  }
  #info2(value: bigint): void {
    this.#vmcb.set64(V.exitInfo2, value);
  }

  /** An intercept fired: leaves, or in a SEV-ES guest raises #VC unless the exit is an automatic one. */
  #leave(code: number, nextRip: bigint, low1 = 0, high1 = 0): true {
    if (this.sevEs) this.#protectedExit(code, nextRip);
    return this.record(code, nextRip, low1, high1);
  }

  #protectedExit(code: number, nextRip: bigint): void {
    if (!AUTOMATIC_EXITS.has(code)) this.#raise(Vector.VC, code);
    // Automatic exits of instructions are trap-like: the host cannot move RIP for the guest.
    if (code === SvmExit.HLT || code === SvmExit.PAUSE || code === SvmExit.VMGEXIT) this.advanceTo = nextRip;
  }

  #raise(vector: number, errorCode: number): never {
    const { exception } = this.#processor;
    throw exception.set(vector, errorCode);
  }

  /** Leaves if the intercept with the exit's number is set. `info1`: low half; `high1`: high half. */
  exitIf(code: number, info: InstructionInfo, info1 = 0): boolean {
    if (!this.has(code)) return false;
    // A complement stands for bit 63 (a decoded MOV CR) beside the register number.
    return info1 < 0 ? this.#leave(code, info.nextRip, ~info1, -0x8000_0000) : this.#leave(code, info.nextRip, info1);
  }

  exitLinear(code: number, info: InstructionInfo): boolean {
    if (!this.has(code)) return false;
    this.#leave(code, info.nextRip);
    if (this.features.decodeAssists || code === SvmExit.INVPCID) this.#info1(info.linear);
    if (code === SvmExit.INVPCID) this.#info2(info.srcVal);
    return true;
  }

  // Instructions

  intercept(info: InstructionInfo, _stage: InterceptStage): boolean {
    const rule = INSTRUCTIONS[info.intercept];
    if (rule === undefined) return false;
    if (typeof rule !== 'number') return rule(this, info);
    return this.has(rule) && this.#leave(rule, info.nextRip);
  }

  /** EXITINFO1 that decode assists give. */
  assist(value: number): number {
    return this.features.decodeAssists ? value : 0;
  }
  /** EXITINFO1 of MOV CR: bit 63 and the register (APM 15.8.1), as `exitIf` takes it. */
  movCrInfo(info: InstructionInfo): number {
    return this.features.decodeAssists ? ~info.rm : 0;
  }
  gpr32(reg: number): number {
    return this.#view.getUint32(this.#processor.state.base + S.gpr + reg * 8, true);
  }

  /**
   * MOV to CR (APM table 15-7 and 15.9): the silicon's own check for illegal CR0 values comes before the intercept, so that the
   * processor raises #GP without a #VMEXIT; the unconditional intercept wins over the selective one, which ignores TS and MP.
   */
  crWrite(info: InstructionInfo): boolean {
    const [low, high] = [Number(info.srcVal & 0xffffffffn) | 0, Number(info.srcVal >> 32n)];
    if (info.reg === 0 && cr0Illegal(this.#processor, low, high)) return false;
    if (this.exitIf(SvmExit.WRITE_CR0 + info.reg, info, this.movCrInfo(info))) return true;
    if (info.reg !== 0 || !this.has(SvmExit.CR0_SEL_WRITE)) return false;
    const changed = (info.srcVal ^ this.#processor.state.cr0) & ~(CR0.TS | CR0.MP);
    return changed !== 0n && this.exitIf(SvmExit.CR0_SEL_WRITE, info, this.movCrInfo(info));
  }

  /** PAUSE leaves when the filter's count is used up (APM 15.14.4; without the feature at once). */
  pause(info: InstructionInfo): boolean {
    const left = this.#state[PAUSES];
    if (left > 0) this.#state[PAUSES] = left - 1;
    return left === 0 && this.#leave(SvmExit.PAUSE, info.nextRip);
  }

  /** Outside SEV-ES the opcode is VMMCALL (APM 15.35.6). */
  vmgexit(info: InstructionInfo): boolean {
    if (!this.sevEs) return this.has(SvmExit.VMMCALL) && this.#leave(SvmExit.VMMCALL, info.nextRip);
    return this.#leave(SvmExit.VMGEXIT, info.nextRip);
  }

  /** MSR permission map. Indices outside the three ranges always leave. */
  msr(index: number, write: boolean, nextRip: bigint): boolean {
    if (this.sevEs && index === MSR_SEV_ES_GHCB) return false;
    return this.msrIntercepted(index, write) && this.#leave(SvmExit.MSR, nextRip, write ? 1 : 0);
  }
  msrIntercepted(index: number, write: boolean): boolean {
    if (!this.has(SvmExit.MSR)) return false;
    const bit = msrpmBit(index);
    return bit < 0 || this.#mapBit(this.#msrpm, bit + (write ? 1 : 0));
  }

  #mapBit(base: number, bit: number): boolean {
    const pa = base + (bit >>> 3);
    if (!this.#memory.contains(pa, 1)) return true;
    return (this.#memory.read8(pa) & (1 << (bit & 7))) !== 0;
  }

  interceptMsr(index: number, write: boolean): boolean {
    // RDMSR and WRMSR are two bytes unless prefixed; `intercept` has the exact length and is asked first.
    return this.msr(index, write, this.#processor.state.rip + 2n);
  }

  portIntercepted(port: number, size: number): boolean {
    if (!this.has(SvmExit.IOIO)) return false;
    for (let n = 0; n < size; n += 1) if (this.#mapBit(this.#iopm, port + n)) return true;
    return false;
  }
  interceptIo(io: Parameters<GuestMode['interceptIo']>[0]): boolean {
    if (!this.portIntercepted(io.port, io.size)) return false;
    const info =
      (io.port << 16) |
      ((this.features.decodeAssists && io.string ? io.seg : 0) << 10) |
      (io.addrSize << 6) |
      (io.size << 4) |
      (io.rep ? 8 : 0) |
      (io.string ? 4 : 0) |
      (io.in ? 1 : 0);
    this.#leave(SvmExit.IOIO, io.nextRip, info);
    this.#info2(io.nextRip);
    return true;
  }

  // MSRs that belong to the guest itself

  /** Reads an MSR that the silicon keeps for the running guest; undefined: not one of those. */
  readMsr(index: number): bigint | undefined {
    return this.sevEs && index === MSR_SEV_ES_GHCB ? this.ghcb : undefined;
  }
  /** True: the silicon took the write. */
  writeMsr(index: number, value: bigint): boolean {
    if (!this.sevEs || index !== MSR_SEV_ES_GHCB) return false;
    this.ghcb = value;
    return true;
  }
  /** EFER write trap (SEV-ES): called after the write was committed; true: exit recorded. */
  msrWritten(index: number, value: bigint): boolean {
    if (index !== 0xc000_0080 || !this.has(SvmExit.EFER_WRITE_TRAP)) return false;
    this.record(SvmExit.EFER_WRITE_TRAP, 0n);
    this.#info1(value);
    return true;
  }

  // Exceptions and events

  interceptException(
    vector: number,
    errorCode: number | undefined,
    payload: bigint,
    during: PendingEvent | undefined,
    self?: PendingEvent,
  ): boolean {
    // INT1 goes through vector 1, but only its own intercept stops it (APM 15.9, ICEBP).
    if (self?.kind === 'icebp') return false;
    const code = SvmExit.EXCP_BASE + vector;
    if (vector > 31 || !this.has(code)) return false;
    if (this.sevEs && !AUTOMATIC_EXITS.has(code)) return false;
    // DR6 is written before the intercept is taken (APM 15.12.2); CR2 is not (15.12.15).
    if (vector === Vector.DB) {
      const { state } = this.#processor;
      state.set64(S.dr6, (state.get64(S.dr6) & ~0xfn) | payload);
    }
    this.record(code, 0n, errorCode ?? 0);
    if (vector === Vector.PF) this.#info2(payload);
    this.exitEvent = during ?? this.exitEvent;
    return true;
  }

  interceptTaskSwitch(
    selector: number,
    source: 'call' | 'jmp' | 'iret' | 'gate',
    errorCode: number | undefined,
    during: PendingEvent | undefined,
  ): boolean {
    if (!this.has(SvmExit.TASK_SWITCH)) return false;
    this.#leave(SvmExit.TASK_SWITCH, 0n, selector);
    const high =
      (source === 'iret' ? 1 << 4 : 0) |
      (source === 'jmp' ? 1 << 6 : 0) |
      (errorCode !== undefined ? 1 << 12 : 0) |
      (this.#processor.state.rflags & BigInt(Flag.RF) ? 1 << 16 : 0);
    this.#info2((BigInt(high) << 32n) | BigInt(errorCode ?? 0));
    this.exitEvent = during ?? this.exitEvent;
    return true;
  }

  interceptShutdown(): boolean {
    return this.has(SvmExit.SHUTDOWN) && this.record(SvmExit.SHUTDOWN, 0n);
  }
  interceptFerrFreeze(): boolean {
    return this.has(SvmExit.FERR_FREEZE) && this.record(SvmExit.FERR_FREEZE, 0n);
  }
  interceptInterrupt(): boolean {
    if (!this.has(SvmExit.INTR)) return false;
    const masked = (this.intCtl & IntCtl.V_INTR_MASKING) === 0 && !this.#guestIf();
    return !masked && this.record(SvmExit.INTR, 0n);
  }
  interceptNmi(): boolean {
    return this.has(SvmExit.NMI) && this.record(SvmExit.NMI, 0n);
  }
  interceptSmi(): boolean {
    return this.has(SvmExit.SMI) && this.record(SvmExit.SMI, 0n);
  }
  interceptInit(): boolean {
    return this.has(SvmExit.INIT) && this.record(SvmExit.INIT, 0n);
  }
  /** A SIPI is ignored by a processor that does not wait for one. */
  interceptSipi(_vector: number): boolean {
    return false;
  }

  #guestIf(): boolean {
    return (this.#view.getUint32(this.#processor.state.base + S.rflags, true) & Flag.IF) !== 0;
  }

  /** A virtual interrupt is taken when its priority beats V_TPR and the guest's IF and shadow let it (APM 15.21.4). */
  boundary(): 'exit' | 'none' | number {
    if ((this.intCtl & IntCtl.V_IRQ) === 0 || !this.#guestIf()) return 'none';
    const base = this.#processor.state.base;
    if (this.#view.getUint8(base + S.shadow) !== 0) return 'none';
    const priority = (this.intCtl & IntCtl.V_INTR_PRIO_MASK) >>> IntCtl.V_INTR_PRIO_SHIFT;
    const tpr = this.#view.getUint8(base + S.cr8) & 0xf;
    if ((this.intCtl & IntCtl.V_IGN_TPR) === 0 && priority <= tpr) return 'none';
    if (this.has(SvmExit.VINTR)) {
      this.record(SvmExit.VINTR, 0n);
      return 'exit';
    }
    this.intCtl &= ~IntCtl.V_IRQ;
    this.boundaryWork = false;
    return this.#vmcb.get8(V.intVector);
  }

  // Memory

  translate(gpa: number, access: GuestPhysicalAccess): NestedTranslation | undefined {
    this.#access.write = access.write;
    this.#access.fetch = access.fetch;
    this.#access.pageWalk = access.pageWalk;
    const error = this.#walker.walk(this.nestedRoot, gpa, this.#access, this.host);
    if (error === 0) return this.#walker.translation;
    if (this.#fetchingBytes) return undefined;
    // A reserved bit is how KVM marks MMIO: a SEV-ES guest handles it itself (APM 15.35.5).
    if (this.sevEs && error & 8) this.#raise(Vector.VC, SvmExit.NPF);
    this.record(SvmExit.NPF, 0n, error, access.pageWalk ? NpfErrorHigh.TABLE_WALK : NpfErrorHigh.FINAL);
    this.#info2(BigInt(gpa));
    this.bytesDue = this.features.decodeAssists && !access.fetch && !this.sevEs;
    return undefined;
  }

  /** Bytes at CS:RIP, as many as can be had without a fault (APM 15.8.4). Called at #VMEXIT, when RIP is exact. */
  saveInstructionBytes(): void {
    this.bytesDue = false;
    const { state, ops } = this.#processor;
    const code64 = (state.efer & EFER.LMA) !== 0n && (ops.getSegment(Seg.CS).attrib & Attrib.L) !== 0;
    const linear = code64 ? state.rip : (ops.getCachedSegmentBase(Seg.CS) + state.rip) & 0xffff_ffffn;
    this.#fetchingBytes = true;
    try {
      const length = ops.fetch(linear, this.#bytes, 15);
      for (let n = 0; n < length; n += 1) this.#vmcb.set8(V.insnBytes + n, this.#bytes[n]);
      this.#vmcb.set8(V.insnLen, length);
    } catch (error) {
      if (!(error instanceof Unwind) && !(error instanceof GuestException)) throw error;
    } finally {
      this.#fetchingBytes = false;
    }
  }

  // Control registers

  /** CR8 is V_TPR: VMRUN loads it into the processor's CR8 and #VMEXIT writes it back. */
  readCr(_cr: number): bigint | undefined {
    return undefined;
  }
  writeCr(_cr: number, _value: bigint): bigint | undefined {
    return undefined;
  }
  crIllegal(_cr: number, _value: bigint): boolean {
    return false;
  }
  crWritten(cr: number, value: bigint): boolean {
    const code = SvmExit.CR0_WRITE_TRAP + cr;
    if (!this.has(code)) return false;
    this.record(code, 0n);
    this.#info1(value);
    return true;
  }
}
