/**
 * AMD-V's instructions and MSRs as the host uses them: VMRUN, VMLOAD, VMSAVE, STGI, CLGI, INVLPGA, and SEV-ES's sealing of a VMSA.
 * Manual: APM vol. 2 chapter 15, vol. 3 (the instructions' pages), section 15.35 (SEV-ES).
 *
 * The host is KVM in JavaScript, which has no registers on this processor: the guest's state may stay in the state block after a
 * #VMEXIT until the next VMRUN replaces it, and the host's own goes to the HSAVE page once.
 */
import {
  AssertionError,
  type CpuModel,
  EFER,
  Flag as flagBits,
  NotImplementedError,
  type PendingEvent,
  type PhysicalMemory,
  type ProcessorApi,
  S as stateLayout,
} from '@tskvm/emulator';
import {
  type EntryFailure,
  type EntryLimits,
  type EntryView,
  entryAllowed,
  type FusedLimits,
  failedEntryChecks,
  fuseLimits,
} from './entry-checks.ts';
import { SvmExit } from './exit-codes.ts';
import { entryLimits, type OptionalFeature, type SvmSiliconFeatures, siliconFeatures } from './features.ts';
import { SvmGuest } from './intercepts.ts';
import { reservedHighMask } from './nested-paging.ts';
import { EVENT_TYPE } from './rules.ts';
import {
  Clean,
  EventInfo,
  IntCtl as intCtlBits,
  IntState as intStateBits,
  SAVE_AREA,
  type SaveArea,
  saveArea,
  TlbCtl as tlbControls,
  V,
  VMSA,
  Vmcb,
  W as vmcbWords,
} from './vmcb.ts';
import { WorldSwitch } from './world-switch.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const IntCtl = intCtlBits;
const IntState = intStateBits;
const TlbCtl = tlbControls;
const S = stateLayout;
const Flag = flagBits;

export const MSR_EFER = 0xc000_0080;
export const MSR_VM_CR = 0xc001_0114;
export const MSR_VM_HSAVE_PA = 0xc001_0117;
/** VM_CR.SVMDIS: EFER.SVME cannot be set. */
const VM_CR_SVMDIS = 1n << 4n;

/** Groups that the consistency checks look at. */
const CR_GROUP = 1 << Clean.CR;
const CHECKED_GROUPS =
  (1 << Clean.INTERCEPTS) |
  (1 << Clean.PERM_MAP) |
  (1 << Clean.ASID) |
  (1 << Clean.NPT) |
  CR_GROUP |
  (1 << Clean.DR) |
  (1 << Clean.SEG);

/** With all these clean, an entry has nothing to look at but what it loads always. */
const RESUMED_GROUPS =
  (CHECKED_GROUPS | (1 << Clean.INTERCEPTS) | (1 << Clean.DT) | (1 << Clean.SEG) | (1 << Clean.DR)) & ~CR_GROUP;
/** RFLAGS bits from which mode and rights follow. */
const MODE_FLAGS = Flag.VM | Flag.AC;

const INTEGRITY_SECTION = 'APM vol. 2 15.35.2';

/**
 * Host code right behind VMRUN, which finds the guest's general registers where the guest left them, in the processor. Of the VMCB it finds
 * CR0 and what an exit says about itself; all else is saved by an exit that it has no answer to.
 */
export interface ExitStub {
  /**
   * Asked only about exits of plain instructions whose next RIP is known, without a trap flag, with DR6 and V_TPR as the VMCB has them.
   * @param gprs halves of the processor's general registers
   * @returns true: VMRUN again, behind the instruction and out of its shadow. Nothing was written but general registers, and of the VMCB bits
   * of CR0 that no rule of VMRUN reads and neither paging nor caching follows.
   */
  answer(code: number, gprs: Uint32Array): boolean;
}

/** One processor's AMD-V. */
export class SvmHardware {
  readonly features: SvmSiliconFeatures;
  readonly limits: EntryLimits;
  readonly guest: SvmGuest;
  /** Checks that the last VMRUN failed (EXITCODE -1); empty after one that succeeded. */
  failures: EntryFailure[] = [];
  /** Global interrupt flag. */
  gif = true;

  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  /** The state block. */
  readonly #words: Int32Array;
  readonly #gprs: Uint32Array;
  #stub: ExitStub | null = null;
  readonly #switch: WorldSwitch;
  readonly #fused: FusedLimits;
  readonly #view: EntryView;
  readonly #maxphyaddr: number;
  #efer = 0n;
  #svme = false;
  #vmCr = 0n;
  #hsavePa = 0;
  #hostSaved = false;
  /** VMCB whose guest state the block holds since its last #VMEXIT, -1: none. */
  #cachedPa = -1;
  /** Sealed VMSAs: out of reach of everything but this class. */
  readonly #vmsas = new Map<number, SaveArea>();
  readonly #tampered = new Set<number>();

  constructor(
    processor: ProcessorApi,
    memory: PhysicalMemory,
    model: CpuModel,
    without: ReadonlySet<OptionalFeature> = new Set(),
  ) {
    this.#processor = processor;
    this.#memory = memory;
    this.#maxphyaddr = model.maxphyaddr;
    this.#words = new Int32Array(memory.memory.buffer, processor.state.base, S.size / 4);
    this.#gprs = new Uint32Array(memory.memory.buffer, processor.state.base + S.gpr, 32);
    this.features = siliconFeatures(processor, without);
    this.limits = entryLimits(processor, model.maxphyaddr, this.features);
    this.#fused = fuseLimits(this.limits);
    this.guest = new SvmGuest(processor, memory, this.features);
    this.#switch = new WorldSwitch(processor.state);
    this.#view = { control: memory.view, at: 0, save: memory.view, saveAt: 0, limits: this.limits };
    memory.onWrite((pa, length) => this.#noticeWrite(pa, length));
  }

  /**
   * For a snapshot between two entries; goes with the processor's own and the memory's. Throws NotImplementedError while a VMSA is
   * sealed: what nobody may read nobody can save.
   */
  save(): { version: 1; efer: bigint; vmCr: bigint; hsavePa: number; hostSaved: boolean; gif: boolean } {
    if (this.#vmsas.size > 0) throw new NotImplementedError('a snapshot of a SEV-ES guest', INTEGRITY_SECTION);
    const { gif } = this;
    return { version: 1, efer: this.#efer, vmCr: this.#vmCr, hsavePa: this.#hsavePa, hostSaved: this.#hostSaved, gif };
  }
  load(saved: ReturnType<SvmHardware['save']>): void {
    this.#vmCr = saved.vmCr;
    this.#writeEfer(saved.efer);
    this.#hsavePa = saved.hsavePa;
    this.#hostSaved = saved.hostSaved;
    this.gif = saved.gif;
    this.#segmentsChanged = true;
    this.forget();
  }

  // MSRs

  /** CPUID with the features that this machine lacks taken out. */
  cpuid(leaf: number, subleaf: number): readonly [number, number, number, number] {
    return this.#processor.cpuid(leaf, subleaf);
  }

  /** Host RDMSR; undefined: #GP. */
  rdmsr(index: number): bigint | undefined {
    if (index === MSR_EFER) return this.#efer;
    if (index === MSR_VM_CR) return this.#vmCr;
    if (index === MSR_VM_HSAVE_PA) return BigInt(this.#hsavePa);
    return this.#processor.rdmsr(index);
  }

  /** Host WRMSR; non-zero: #GP. */
  wrmsr(index: number, value: bigint): number {
    switch (index) {
      case MSR_EFER:
        return this.#writeEfer(value);
      case MSR_VM_CR:
        this.#vmCr = value & 0x1fn;
        return 0;
      case MSR_VM_HSAVE_PA:
        if ((value & 0xfffn) !== 0n || value >> BigInt(this.#maxphyaddr) !== 0n) return 1;
        this.#hsavePa = Number(value);
        this.#hostSaved = false;
        return 0;
      default:
        return this.#processor.wrmsr(index, value);
    }
  }

  #writeEfer(value: bigint): number {
    if ((value & this.limits.eferReserved) !== 0n) return 1;
    if ((value & EFER.SVME) !== 0n && (this.#vmCr & VM_CR_SVMDIS) !== 0n) return 1;
    this.#efer = value;
    this.#svme = (value & EFER.SVME) !== 0n;
    this.guest.host = {
      levels: 4,
      nxe: (value & EFER.NXE) !== 0n,
      reservedHigh: reservedHighMask(this.#maxphyaddr),
      gigabytePages: (this.#processor.cpuid(0x8000_0001, 0)[3] & (1 << 26)) !== 0,
    };
    return 0;
  }

  #needSvme(instruction: string): void {
    if (!this.#svme) throw new AssertionError(`${instruction} with EFER.SVME=0 is #UD in the host`);
  }

  // GIF

  /** STGI. */
  stgi(): void {
    this.gif = true;
  }
  /** CLGI. */
  clgi(): void {
    this.gif = false;
  }

  // World switches

  /** VMLOAD: FS, GS, LDTR, TR and the system-call MSRs from a VMCB. @param pa host physical address of the VMCB */
  vmload(pa: number): void {
    this.#needSvme('VMLOAD');
    if (this.#switch.vmload(this.#vmcbAt(pa).save)) this.#segmentsChanged = true;
  }
  /** VMSAVE. */
  vmsave(pa: number): void {
    this.#needSvme('VMSAVE');
    this.#switch.vmsave(this.#vmcbAt(pa).save);
  }
  #segmentsChanged = true;

  /** INVLPGA. */
  invlpga(linear: bigint, asid: number): void {
    this.#needSvme('INVLPGA');
    this.#processor.flushTlb({ kind: 'page', asid, linear });
  }

  /** Forget that the block holds a guest's state (somebody else wrote to it). */
  forget(): void {
    this.#cachedPa = -1;
  }

  /**
   * VMRUN to #VMEXIT. The exit stands in the VMCB; a refused entry has EXITCODE -1 and the broken rules in `failures`.
   * @param pa host physical address of the VMCB
   * @param gprs RAX..R15 and RIP. At entry RAX, RSP and RIP are the VMCB's; at the exit all of them are given back. A SEV-ES guest's stand in its VMSA and this array is left alone.
   * @param stub looks at exits before they are complete, and may have the guest go on. Default: none
   */
  vmrun(pa: number, gprs: BigUint64Array, stub: ExitStub | null = null): void {
    this.#needSvme('VMRUN');
    this.#stub = stub;
    const vmcb = this.#vmcbAt(pa);
    const { words } = vmcb;
    const { guest } = this;
    const known = this.#cachedPa === pa && this.features.vmcbClean;
    const clean = known ? words[W.clean] : 0;
    const plain = words[W.eventInj] >= 0 && (words[W.tlbCtl] & 0xff) === TlbCtl.NONE && !guest.sevEs;
    this.gif = true;
    const resumes = plain && !this.#segmentsChanged && (clean & RESUMED_GROUPS) === RESUMED_GROUPS;
    const controls = resumes && (clean & CR_GROUP) === 0;
    if (resumes && (!controls || this.#switch.loadPlainCr0(vmcb.save))) this.#resume(vmcb, gprs, controls);
    else this.#enter(vmcb, gprs, clean);
    this.gif = false;
  }
  #vmcb: Vmcb | null = null;
  readonly #vmcbs = new Map<number, Vmcb>();
  #vmcbAt(pa: number): Vmcb {
    if (this.#vmcb !== null && this.#vmcb.pa === pa) return this.#vmcb;
    let vmcb = this.#vmcbs.get(pa);
    if (vmcb === undefined) this.#vmcbs.set(pa, (vmcb = new Vmcb(this.#memory, pa)));
    this.#vmcb = vmcb;
    return vmcb;
  }

  /**
   * The guest that left last comes back, and its VMCB says that nothing of what is loaded and checked has changed but what is loaded here,
   * and bits of CR0 that are loaded already.
   */
  #resume(vmcb: Vmcb, gprs: BigUint64Array, cr0Written: boolean): void {
    const { guest } = this;
    const processor = this.#processor;
    const block = this.#words;
    const { save } = vmcb;
    guest.resume();
    const flags = block[S.rflags >> 2];
    this.#switch.loadGprs(gprs);
    this.#switch.loadAlways(save);
    if ((guest.intCtl & IntCtl.V_INTR_MASKING) !== 0) this.#loadTpr();
    // Shadow, NMI blocking and activity stand behind CPL.
    block[S.cpl >> 2] = (block[S.cpl >> 2] & 0xff) | ((vmcb.words[W.intState] & IntState.SHADOW) << 8);
    processor.eventInDelivery = undefined;
    if (((flags ^ block[S.rflags >> 2]) & MODE_FLAGS) === 0) processor.resumeGuest(guest, cr0Written);
    else {
      processor.guest = guest;
      processor.stateReplaced('vmentry');
    }
    this.#run();
    this.#leave(vmcb, save, false);
    this.#switch.saveGprs(gprs);
  }
  #loadTpr(): void {
    const block = this.#words;
    block[S.cr8 >> 2] = this.guest.intCtl & IntCtl.V_TPR_MASK;
  }

  #enter(vmcb: Vmcb, gprs: BigUint64Array, known: number): void {
    const { guest } = this;
    guest.loadControl(vmcb, known);
    this.#saveHost();
    const vmsa = guest.sevEs ? this.#openVmsa(vmcb) : undefined;
    if (!this.#entryAllowed(vmcb, vmsa, known)) {
      guest.record(SvmExit.INVALID, 0n);
      this.#cachedPa = -1;
      return;
    }
    const save = vmsa ?? vmcb.save;
    const isSealed = vmsa !== undefined;
    if (!isSealed) this.#switch.loadGprs(gprs);
    this.#load(vmcb, save, isSealed, known);
    this.#execute(vmcb);
    this.#leave(vmcb, save, isSealed);
    if (!isSealed) this.#switch.saveGprs(gprs);
  }

  #entryAllowed(vmcb: Vmcb, vmsa: SaveArea | undefined, clean: number): boolean {
    // What passed the last time and is clean passes again: no guest can make its own save area illegal.
    if ((clean & CHECKED_GROUPS) === CHECKED_GROUPS && vmcb.words[W.eventInj] >= 0) return true;
    const view = this.#view;
    const at = this.#memory.offset(vmcb.pa, 4096);
    view.at = at;
    if (this.guest.sevEs && vmsa === undefined) {
      this.failures = [this.#vmsaFailure(vmcb)];
      return false;
    }
    view.save = vmsa === undefined ? this.#memory.view : new DataView(vmsa.words.buffer);
    view.saveAt = vmsa === undefined ? at + SAVE_AREA : 0;
    if (entryAllowed(view, this.#fused)) {
      if (this.failures.length > 0) this.failures = [];
      return true;
    }
    this.failures = failedEntryChecks(view);
    return this.failures.length === 0;
  }

  #load(vmcb: Vmcb, save: SaveArea, isSealed: boolean, known: number): void {
    const { guest } = this;
    const { u8 } = this.#processor.state;
    // A VMSA is always loaded whole.
    this.#switch.loadGuest(save, isSealed ? 0 : known);
    if (isSealed) {
      this.#switch.vmload(save);
      this.#switch.loadProtected(save);
      guest.ghcb = vmcb.get64(V.ghcbGpa);
    }
    if (guest.nestedRoot !== 0) this.#switch.loadPat(save);
    if ((guest.intCtl & IntCtl.V_INTR_MASKING) !== 0) this.#loadTpr();
    u8[S.shadow] = vmcb.get8(V.intState) & IntState.SHADOW;
    u8[S.nmiBlocked] = 0;
    u8[S.activity] = 0;
    this.#segmentsChanged = false;
    this.#cachedPa = vmcb.pa;
    this.#tlbControl(vmcb);
    this.#processor.eventInDelivery = undefined;
    this.#processor.guest = guest;
    this.#processor.stateReplaced('vmentry');
  }

  /** EVENTINJ first, then instructions, until an exit was recorded. */
  #execute(vmcb: Vmcb): void {
    const info = vmcb.words[W.eventInj];
    if (info < 0) {
      vmcb.words[W.eventInj] = info & 0x7fff_ffff;
      if (!this.#processor.injectEvent(this.#injectedEvent(vmcb, info)) && this.guest.exited) return;
    }
    this.#run();
  }
  #run(): void {
    const { guest } = this;
    const stub = this.#stub;
    for (;;) {
      const stop = this.#processor.run();
      // Without the matching intercept a host would stop too: give the processor back to it.
      if (!guest.exited) guest.record(stop === 'shutdown' ? SvmExit.SHUTDOWN : SvmExit.INTR, 0n);
      if (stub === null || !this.#reenters(stub)) return;
    }
  }
  /** #VMEXIT and VMRUN in one step, if the stub has an answer and nothing would be saved or loaded but what it is about. */
  #reenters(stub: ExitStub): boolean {
    const { guest } = this;
    const block = this.#words;
    const { words } = this.#vmcb!;
    const nextRip = words[W.nextRip];
    const nextHigh = words[W.nextRip + 1];
    const same =
      block[S.dr6 >> 2] === words[W.dr6] && ((block[S.cr8 >> 2] ^ words[W.intCtl]) & IntCtl.V_TPR_MASK) === 0;
    const plain = same && (nextRip | nextHigh) !== 0 && (block[S.rflags >> 2] & Flag.TF) === 0 && guest.isPlainExit;
    if (!plain || !this.#processor.mayReenterGuest()) return false;
    const cr0 = block[S.cr0 >> 2];
    words[W.cr0] = cr0;
    if (!stub.answer(words[W.exitCode], this.#gprs)) return false;
    block[S.cr0 >> 2] = words[W.cr0];
    block[S.rip >> 2] = nextRip;
    block[(S.rip >> 2) + 1] = nextHigh;
    block[S.cpl >> 2] &= 0xff;
    guest.reenter();
    this.#processor.reenterGuest(words[W.cr0] !== cr0);
    return true;
  }

  #injectedEvent(vmcb: Vmcb, info: number): PendingEvent {
    const vector = info & EventInfo.VECTOR;
    const type = (info & EventInfo.TYPE_MASK) >>> EventInfo.TYPE_SHIFT;
    const soft = type === 4 || (type === 3 && (vector === 3 || vector === 4));
    const nextRip = vmcb.get64(V.nextRip);
    const length = soft && this.features.nextRip ? Number(BigInt.asIntN(32, nextRip - this.#processor.state.rip)) : 0;
    const kind =
      type === 0 ? 'external' : type === 2 ? 'nmi' : type === 4 ? 'softint' : soft ? 'softexception' : 'exception';
    const errorCode = (info & EventInfo.ERROR_VALID) !== 0 ? vmcb.get32(V.eventInjErr) : undefined;
    return { kind, vector, errorCode, instructionLength: length > 0 && length <= 15 ? length : 0 };
  }

  #leave(vmcb: Vmcb, save: SaveArea, isSealed: boolean): void {
    const { guest } = this;
    const { words } = vmcb;
    const block = this.#words;
    if (guest.bytesDue) guest.saveInstructionBytes();
    const same = this.#processor.leaveGuest();
    if (guest.advanceTo !== undefined) this.#processor.state.rip = guest.advanceTo;
    if (guest.exitEvent?.kind === 'icebp') this.#retireInt1(guest.exitEvent);
    this.#switch.saveAlways(save);
    if (!same) this.#switch.saveRest(save);
    if (isSealed) {
      this.#switch.vmsave(save);
      this.#switch.saveProtected(save);
      vmcb.set64(V.ghcbGpa, guest.ghcb);
    }
    if (guest.nestedRoot !== 0) this.#switch.savePat(save);
    let { intCtl } = guest;
    if ((intCtl & IntCtl.V_INTR_MASKING) !== 0) {
      intCtl = (intCtl & ~0xff) | (block[S.cr8 >> 2] & IntCtl.V_TPR_MASK);
    }
    words[W.intCtl] = intCtl;
    const guestIf = isSealed && (block[S.rflags >> 2] & Flag.IF) !== 0 ? IntState.GUEST_IF : 0;
    words[W.intState] = ((block[S.cpl >> 2] & 0xff00) !== 0 ? IntState.SHADOW : 0) | guestIf;
    if (guest.exitEvent === undefined) words[W.exitIntInfo] = 0;
    else this.#saveEvent(words, guest.exitEvent);
  }

  /** INT1's #DB is an exception like any other to EVENTINJ: injected again, it must find RIP behind the instruction, as a trap does. */
  #retireInt1({ instructionLength }: PendingEvent): void {
    this.#processor.state.rip += BigInt(instructionLength);
    this.#processor.tick++;
  }

  #saveEvent(words: Int32Array, event: PendingEvent): void {
    const error = event.errorCode !== undefined ? EventInfo.ERROR_VALID : 0;
    words[W.exitIntInfo] = event.vector | EVENT_TYPE[event.kind] | error | EventInfo.VALID;
    words[W.exitIntInfoErr] = event.errorCode ?? 0;
    this.#processor.eventInDelivery = undefined;
  }

  #tlbControl(vmcb: Vmcb): void {
    const what = vmcb.get8(V.tlbCtl);
    if (what === TlbCtl.NONE) return;
    const { asid } = this.guest;
    if (what === TlbCtl.ALL || !this.features.flushByAsid) this.#processor.flushTlb({ kind: 'all' });
    else this.#processor.flushTlb({ kind: 'asid', asid, keepGlobal: what === TlbCtl.ASID_LOCAL });
  }

  /** The host's state at its first VMRUN goes to the HSAVE page, in the VMCB's layout (APM 15.30.4). */
  #saveHost(): void {
    if (this.#hostSaved) return;
    this.#hostSaved = true;
    if (this.#hsavePa === 0) throw new AssertionError('VMRUN with VM_HSAVE_PA=0');
    this.#switch.saveGuest(this.#vmcbAt(this.#hsavePa).save);
  }

  // SEV-ES

  /**
   * LAUNCH_UPDATE_VMSA: seals the state that stands in clear at `pa`. From then on only VMRUN of its guest reads or writes it; the
   * page in host memory holds what ciphertext would look like to the host, and a host write to it makes the next VMRUN fail.
   * @param pa host physical address of the VMSA page
   */
  launchUpdateVmsa(pa: number): void {
    const plain = this.#memory.readBytes(pa, 4096);
    this.#vmsas.set(pa, saveArea(plain.slice().buffer, 0));
    this.#memory.writeBytes(pa, ciphertext(pa));
    this.#tampered.delete(pa);
  }
  /** The VMSA's guest is gone. */
  decommissionVmsa(pa: number): void {
    this.#vmsas.delete(pa);
    this.#tampered.delete(pa);
  }

  #openVmsa(vmcb: Vmcb): SaveArea | undefined {
    const pa = vmcb.address(V.vmsaPa);
    return this.#tampered.has(pa) ? undefined : this.#vmsas.get(pa);
  }
  #vmsaFailure(vmcb: Vmcb): EntryFailure {
    const value = vmcb.get64(V.vmsaPa);
    const rule = 'the VMSA must be the sealed one that the last #VMEXIT left';
    return { code: 'svm.sev-es.vmsa-integrity', field: 'vmsaPa', value, rule, section: INTEGRITY_SECTION };
  }
  #noticeWrite(pa: number, length: number): void {
    if (this.#vmsas.size === 0) return;
    for (const vmsa of this.#vmsas.keys()) if (pa < vmsa + VMSA.size && pa + length > vmsa) this.#tampered.add(vmsa);
  }
}

/** Bytes without meaning, the same for the same page. */
function ciphertext(pa: number): Uint8Array {
  const bytes = new Uint8Array(4096);
  let word = (pa ^ 0x9e37_79b9) >>> 0;
  for (let n = 0; n < bytes.length; n += 1) {
    word = (Math.imul(word, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[n] = word >>> 24;
  }
  return bytes;
}
