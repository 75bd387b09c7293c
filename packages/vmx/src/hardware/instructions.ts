/**
 * The VMX instructions as the processor executes them in root operation.
 * Manual: SDM vol. 3 ch. 30 (instructions, error numbers), 26 (VM entry), 27 (VM exit).
 *
 * This is all that a driver sees of VT-x, besides the capability MSRs. An instruction returns 0 (VMsucceed), the VM-instruction error
 * number (VMfailValid; it stands in the VMCS too) or -1 (VMfailInvalid). Exceptions of the manual's pseudo code (#UD, #GP) are returned
 * by `vmxon` only, as the others cannot meet them once VMX operation is on and CPL is 0.
 */
import type { CpuModel, PendingEvent, PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import { AssertionError, Attrib, Flag, Seg, S as stateLayout } from '@tskvm/emulator';
import {
  EntryCtl,
  EptCap,
  ExitCtl as exitControls,
  FAILED_VMENTRY,
  FeatureControl,
  INTR_ERROR_CODE,
  INTR_VALID,
  IntrType,
  Interruptibility as interruptibilityBits,
  Reason,
  Secondary,
  VMFAIL_INVALID,
  VmError,
  VmxMsr,
  VpidCap,
} from './bits.ts';
import { readCapabilities, type VmxCapabilities } from './capabilities.ts';
import { VmxGuest } from './controls.ts';
import { CheckContext, type FailedCheck, failures, firstQualification, RowSet } from './entry-checks.ts';
import { CONTROL_ROWS } from './entry-controls.ts';
import { GUEST_ROWS } from './entry-guest.ts';
import { HOST_ROWS } from './entry-host.ts';
import { clearRegion, Dirty, F, fieldExists, fieldReadOnly, regionRevision, Vmcs, Word as vmcsWords } from './vmcs.ts';
import { hostImage, WorldSwitch } from './world-switch.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const S = stateLayout;
const ExitCtl = exitControls;
const Interruptibility = interruptibilityBits;

const CR4_VMXE = 1n << 13n;
/** With these the page tables' entries come from the VMCS, and the TLB keeps the guest apart. */
/** CPL and NMI blocking of the status bytes. */
const STATUS_KEPT = 0xff_00ff;
/** Of SS's slot's first word. */
const SS_LEVEL = 16 + Attrib.dplShift;
const PLAIN_SECONDARY = Secondary.ept | Secondary.vpid;
const NO_FAILURES: readonly FailedCheck[] = [];
/** What a driver writes to change CR0. */
const CR0_GROUPS = Dirty.guestCr0 | Dirty.guestMode | Dirty.shadows;

/** Kinds of the events that entry injects, by interruption type (SDM table 24-13). */
const INJECTED: Readonly<Record<number, PendingEvent['kind']>> = {
  [IntrType.external]: 'external',
  [IntrType.nmi]: 'nmi',
  [IntrType.hardException]: 'exception',
  [IntrType.softInterrupt]: 'softint',
  [IntrType.privilegedSoftException]: 'icebp',
  [IntrType.softException]: 'softexception',
};

/**
 * Host code right behind the entry, which finds the guest's general registers where the guest left them, in the processor. Of the VMCS it
 * finds what an exit says about itself; the rest of the guest's state is saved by an exit that it has no answer to.
 */
export interface ExitStub {
  /**
   * Asked only about exits of plain instructions, without a trap flag or a pending trap.
   * @param gprs halves of the processor's general registers
   * @returns true: VMRESUME behind the instruction, out of its shadow. Nothing was written but general registers, and of the VMCS CR0 and its
   * read shadow, as a resuming entry takes them.
   */
  answer(reason: number, gprs: Uint32Array): boolean;
}

/** VT-x of one logical processor. */
export class VmxSilicon {
  readonly caps: VmxCapabilities;
  readonly vmcs: Vmcs;
  readonly guest: VmxGuest;
  /** The rules that the last VMLAUNCH or VMRESUME found broken. */
  failures: readonly FailedCheck[] = NO_FAILURES;

  /** The sixteen general registers: what a driver's assembly saves and loads around an entry. */
  readonly gprs: BigUint64Array;
  /** CR2, which no entry or exit moves, as an array's only element. */
  readonly cr2: BigUint64Array;
  readonly processor: ProcessorApi;
  readonly memory: PhysicalMemory;
  readonly #model: CpuModel;
  readonly #switch: WorldSwitch;
  readonly #checks: CheckContext;
  readonly #controlRows = new RowSet(CONTROL_ROWS);
  readonly #hostRows = new RowSet(HOST_ROWS);
  readonly #guestRows = new RowSet(GUEST_ROWS);
  readonly #controls = { secondary: 0, exit: 0, entry: 0 };
  /** Address of the VMXON region, -1 outside VMX operation. */
  #vmxon = -1;
  readonly #halves: Uint32Array;
  #stub: ExitStub | null = null;
  /** An exit has happened since the current VMCS became current: the host's registers follow its host fields. */
  #exited = false;

  constructor(processor: ProcessorApi, memory: PhysicalMemory, model: CpuModel) {
    this.processor = processor;
    this.memory = memory;
    this.#model = model;
    this.gprs = new BigUint64Array(memory.memory.buffer, processor.state.base + S.gpr, 16);
    this.#halves = new Uint32Array(memory.memory.buffer, processor.state.base + S.gpr, 32);
    this.cr2 = new BigUint64Array(memory.memory.buffer, processor.state.base + S.cr2, 1);
    this.caps = readCapabilities(model);
    this.vmcs = new Vmcs(memory, processor.state.base);
    this.guest = new VmxGuest(processor, memory, this.vmcs, this.caps);
    this.#switch = new WorldSwitch(processor, memory, this.vmcs);
    this.#checks = new CheckContext(this.vmcs, this.caps, memory);
  }

  /** For a snapshot between two entries; goes with the processor's own and the memory's. */
  save(): { version: 1; vmxon: number; exited: boolean; vmcs: ReturnType<Vmcs['save']> } {
    return { version: 1, vmxon: this.#vmxon, exited: this.#exited, vmcs: this.vmcs.save() };
  }
  load(saved: ReturnType<VmxSilicon['save']>): void {
    this.#vmxon = saved.vmxon;
    this.#exited = saved.exited;
    this.vmcs.load(saved.vmcs);
  }
  get inVmxOperation(): boolean {
    return this.#vmxon >= 0;
  }
  /** Capability MSR (480H to 491H) or IA32_FEATURE_CONTROL as RDMSR gives it. */
  rdmsr(index: number): bigint | undefined {
    return this.#model.msrs.get(index) ?? this.processor.rdmsr(index);
  }

  #validRegion(pa: number): boolean {
    return pa >= 0 && pa % 4096 === 0 && this.memory.contains(pa, 4096);
  }
  /** VMfail: with a current VMCS the number goes into it. */
  #fail(error: number): number {
    if (this.vmcs.pa < 0) return VMFAIL_INVALID;
    this.vmcs.write32(F.VM_INSTRUCTION_ERROR, error);
    return error;
  }

  /** VMXON. @returns 0, -1 (VMfailInvalid), or 'UD' / 'GP' for the exception that it raises. */
  vmxon(pa: number): number | 'UD' | 'GP' {
    const { state } = this.processor;
    if ((state.cr4 & CR4_VMXE) === 0n) return 'UD';
    if (this.inVmxOperation) return this.#fail(VmError.VMXON_IN_ROOT);
    const feature = this.rdmsr(VmxMsr.FEATURE_CONTROL) ?? 0n;
    const enabled = FeatureControl.lock | FeatureControl.vmxOutsideSmx;
    if ((feature & enabled) !== enabled || !this.#fixedBitsHold()) return 'GP';
    if (!this.#validRegion(pa) || regionRevision(this.memory, pa) !== this.caps.revision) return VMFAIL_INVALID;
    this.#vmxon = pa;
    return 0;
  }
  #fixedBitsHold(): boolean {
    const { cr0, cr4 } = this.processor.state;
    const { cr0Fixed0, cr0Fixed1, cr4Fixed0, cr4Fixed1 } = this.caps;
    const cr0Ok = (cr0 & cr0Fixed0) === cr0Fixed0 && (cr0 & ~cr0Fixed1) === 0n;
    return cr0Ok && (cr4 & cr4Fixed0) === cr4Fixed0 && (cr4 & ~cr4Fixed1) === 0n;
  }

  vmxoff(): number {
    if (!this.inVmxOperation) return VMFAIL_INVALID;
    this.#vmxon = -1;
    if (this.vmcs.pa >= 0) this.#bind(-1);
    return 0;
  }

  vmclear(pa: number): number {
    if (!this.#validRegion(pa)) return this.#fail(VmError.VMCLEAR_ADDRESS);
    if (pa === this.#vmxon) return this.#fail(VmError.VMCLEAR_VMXON_POINTER);
    if (this.vmcs.pa === pa) this.#bind(-1);
    clearRegion(this.memory, pa);
    return 0;
  }

  vmptrld(pa: number): number {
    if (!this.#validRegion(pa)) return this.#fail(VmError.VMPTRLD_ADDRESS);
    if (pa === this.#vmxon) return this.#fail(VmError.VMPTRLD_VMXON_POINTER);
    if (regionRevision(this.memory, pa) !== this.caps.revision) return this.#fail(VmError.VMPTRLD_REVISION);
    if (this.vmcs.pa !== pa) this.#bind(pa);
    return 0;
  }
  /** Another VMCS, or none, becomes current; without one the host's registers are back in the state block. */
  #bind(pa: number): void {
    const image = this.#exited && pa < 0 ? hostImage(this.vmcs) : undefined;
    this.vmcs.bind(pa);
    if (pa >= 0) return;
    this.#exited = false;
    if (image) for (const [at, value] of image) this.vmcs.u32[this.processor.state.base / 4 + at] = value;
    this.processor.stateReplaced('vmexit');
  }
  /** Address of the current VMCS, -1 if none (the instruction stores all ones). */
  vmptrst(): number {
    return this.vmcs.pa;
  }

  /** VMREAD with its checks; `value` counts if `error` is 0. */
  vmread(encoding: number): { error: number; value: bigint } {
    if (this.vmcs.pa < 0) return { error: VMFAIL_INVALID, value: 0n };
    const value = this.vmcs.read(encoding);
    if (value === undefined) return { error: this.#fail(VmError.UNSUPPORTED_COMPONENT), value: 0n };
    return { error: 0, value };
  }
  vmwrite(encoding: number, value: bigint): number {
    if (this.vmcs.pa < 0) return VMFAIL_INVALID;
    if (!fieldExists(encoding)) return this.#fail(VmError.UNSUPPORTED_COMPONENT);
    if (fieldReadOnly(encoding) && !this.caps.vmwriteAnyField) return this.#fail(VmError.READ_ONLY_COMPONENT);
    this.vmcs.write(encoding, value);
    return 0;
  }

  /** INVEPT: type 1 one EPTP, 2 all. */
  invept(type: number, eptp: number): number {
    const offered =
      type === 1 ? this.caps.ept & EptCap.inveptSingle : type === 2 ? this.caps.ept & EptCap.inveptGlobal : 0;
    if (!offered) return this.#fail(VmError.INVALIDATION_OPERAND);
    if (type === 2) this.processor.flushTlb({ kind: 'all' });
    else this.processor.flushTlb({ kind: 'nested', root: eptp - (eptp % 4096) });
    return 0;
  }
  /** INVVPID: type 0 one address, 1 one VPID, 2 all, 3 one VPID but global pages. */
  invvpid(type: number, vpid: number, linear: bigint): number {
    const bits = [VpidCap.individual, VpidCap.single, VpidCap.all, VpidCap.singleNonGlobal];
    if (!(this.caps.vpid & (bits[type] ?? 0)) || (type !== 2 && vpid === 0)) {
      return this.#fail(VmError.INVALIDATION_OPERAND);
    }
    if (type === 0) this.processor.flushTlb({ kind: 'page', asid: vpid, linear });
    else if (type === 2) this.processor.flushTlb({ kind: 'all' });
    else this.processor.flushTlb({ kind: 'asid', asid: vpid, keepGlobal: type === 3 });
    return 0;
  }

  /** @param stub looks at exits before they are complete, and may have the guest go on. Default: none */
  vmlaunch(stub: ExitStub | null = null): number {
    this.#stub = stub;
    return this.#enter(true);
  }
  /** @param stub as of VMLAUNCH */
  vmresume(stub: ExitStub | null = null): number {
    this.#stub = stub;
    return this.#enter(false);
  }

  /** VM entry, the guest's run and the VM exit. 0: an exit happened (its reason says whether entry succeeded). */
  #enter(launch: boolean): number {
    const v = this.vmcs;
    if (v.pa < 0) return VMFAIL_INVALID;
    if (((v.block[S.cpl >> 2] >> 8) & Interruptibility.movSs) !== 0) return this.#fail(VmError.ENTRY_MOV_SS);
    if (launch && v.launched) return this.#fail(VmError.VMLAUNCH_NOT_CLEAR);
    if (!launch && !v.launched) return this.#fail(VmError.VMRESUME_NOT_LAUNCHED);
    if ((v.dirty & ~CR0_GROUPS) === 0 && this.#isPlain() && (v.dirty === 0 || this.#cr0Holds())) {
      const cr0Written = v.dirty !== 0;
      v.dirty = 0;
      this.#resume(cr0Written);
      return 0;
    }
    const error = this.#checkControlsAndHost();
    if (error !== 0) return error;
    if (this.#check(this.#guestRows)) {
      const dirty = v.dirty;
      v.dirty = 0;
      this.#run(dirty, launch);
    } else {
      this.#failEntry(Reason.INVALID_STATE, firstQualification(GUEST_ROWS, this.#checks));
    }
    return 0;
  }

  #checkControlsAndHost(): number {
    const c = this.#checks;
    // The exit writes RFLAGS back without a mark; only rows that are asked because of other writes look at it.
    if ((this.vmcs.dirty & ~Dirty.guestRip) === 0) return 0;
    c.refresh();
    this.#controls.secondary = c.secondary;
    this.#controls.exit = c.exit;
    this.#controls.entry = c.entry;
    if (!this.#check(this.#controlRows)) return this.#fail(VmError.ENTRY_CONTROL);
    if (!this.#check(this.#hostRows)) return this.#fail(VmError.ENTRY_HOST);
    return 0;
  }
  /** Asks the rows of the written groups; collects what is broken only if something is. */
  #check(set: RowSet): boolean {
    if (set.allHold(this.#checks, this.vmcs.dirty)) return true;
    this.failures = failures(set.rows, this.#checks);
    // An unwritten field can't have broken its rule: whatever the walk missed is a bug of the groups.
    if (this.failures.length === 0) throw new AssertionError('an entry check failed that holds when walked');
    return false;
  }

  /** SDM 26.8: nothing is saved; host state is loaded. */
  #failEntry(reason: number, qualification: number): void {
    this.guest.record((reason | FAILED_VMENTRY) >>> 0, 0, qualification);
    this.#switch.loadHost(this.#controls);
    this.#exited = true;
    this.processor.guest = null;
    this.processor.stateReplaced('vmexit');
  }

  /** Nothing to inject, no MSRs to load, and no part of the guest's state that is not in the VMCS. */
  #isPlain(): boolean {
    const { words } = this.vmcs;
    return (
      words[Word.entryIntrInfo] >= 0 &&
      words[Word.pendingDebug] === 0 &&
      words[Word.entryMsrLoadCount] === 0 &&
      (this.#controls.secondary & PLAIN_SECONDARY) === PLAIN_SECONDARY &&
      this.guest.asid !== 0
    );
  }
  /** CR0 and its shadow are all that was written, and no rule that reads CR0 is broken. Shortcut for the rows of entry-guest.ts. */
  #cr0Holds(): boolean {
    const { guest, vmcs } = this;
    const { block, dirty } = vmcs;
    const cr0 = block[S.cr0 >> 2];
    if (block[(S.cr0 >> 2) + 1] !== 0 || !guest.cr0Holds(cr0)) return false;
    if ((dirty & Dirty.guestMode) !== 0 && !this.#unpagedHolds(cr0)) return false;
    if ((dirty & Dirty.shadows) !== 0) guest.reloadShadows();
    return true;
  }
  /** The same where a stub has written it: CR4 and its shadow are as they were. */
  #stubCr0Holds(): boolean {
    const { guest, vmcs } = this;
    const { block, dirty, words } = vmcs;
    const cr0 = block[S.cr0 >> 2];
    if (block[(S.cr0 >> 2) + 1] !== 0 || !guest.cr0Holds(cr0)) return false;
    if ((dirty & Dirty.guestMode) !== 0 && !this.#unpagedHolds(cr0)) return false;
    guest.cr0Halves[2] = words[Word.cr0ReadShadow];
    guest.cr0Halves[3] = words[Word.cr0ReadShadow + 1];
    return true;
  }
  /** Paging is off, and what PE decides is plain: no virtual-8086 mode, SS of level 0. */
  #unpagedHolds(cr0: number): boolean {
    const { block } = this.vmcs;
    const level = (block[(S.segments >> 2) + Seg.SS * 4] >> SS_LEVEL) & 3;
    return (
      cr0 >= 0 && (this.#controls.entry & EntryCtl.ia32e) === 0 && (block[S.rflags >> 2] & Flag.VM) === 0 && level === 0
    );
  }
  /** The guest that left last comes back, and no rule and no control has to be looked at again. */
  #resume(cr0Written: boolean): void {
    const { processor, guest } = this;
    guest.resume();
    this.#switch.loadGuest(this.#controls);
    processor.resumeGuest(guest, cr0Written);
    this.#execute();
    this.#exit();
  }

  #run(dirty: number, launch: boolean): void {
    const { processor, guest, vmcs } = this;
    guest.loadControls(dirty);
    this.#switch.loadGuest(this.#controls);
    const count = vmcs.u32[vmcs.region + Word.entryMsrLoadCount];
    const bad = count === 0 ? -1 : this.#loadMsrs(vmcs.readAddress(F.VM_ENTRY_MSR_LOAD_ADDR), count);
    if (bad >= 0) {
      this.#failEntry(Reason.MSR_LOAD_FAIL, bad + 1);
      return;
    }
    if (launch) vmcs.launched = true;
    if (guest.asid === 0) processor.flushTlb({ kind: 'asid', asid: 0, keepGlobal: false });
    processor.guest = guest;
    processor.eventInDelivery = undefined;
    processor.stateReplaced('vmentry');
    if (this.#inject()) this.#execute();
    this.#exit();
  }
  #execute(): void {
    const stub = this.#stub;
    for (;;) {
      const stop = this.processor.run();
      if (stop !== 'guest-exit') throw new AssertionError(`the processor left guest mode by '${stop}'`);
      if (stub === null || !this.#reenters(stub)) return;
    }
  }
  /** Exit and VMRESUME in one step, if the stub has an answer and nothing would be saved or loaded but what it is about. */
  #reenters(stub: ExitStub): boolean {
    const { guest, vmcs, processor } = this;
    const { block, words } = vmcs;
    const length = words[Word.exitInstructionLen];
    const rip = block[S.rip >> 2];
    const next = (rip + length) | 0;
    const plain = length !== 0 && (rip ^ next) >= 0 && (block[S.rflags >> 2] & Flag.TF) === 0;
    if (!plain || words[Word.idtVectoringInfo] < 0 || !guest.armsNothing || !this.#savesNothing()) return false;
    if (!processor.mayReenterGuest() || !stub.answer(words[Word.exitReason], this.#halves)) return false;
    block[S.rip >> 2] = next;
    block[S.cpl >> 2] &= STATUS_KEPT;
    if (vmcs.dirty !== 0) this.#takeCr0();
    else processor.reenterGuest(false);
    return true;
  }
  /** The exit leaves nothing in the VMCS that the next entry would look at. */
  #savesNothing(): boolean {
    const { dirty, words } = this.vmcs;
    return dirty === 0 && this.#isPlain() && (words[Word.exitMsrStoreCount] | words[Word.exitMsrLoadCount]) === 0;
  }
  #takeCr0(): void {
    const { vmcs, processor } = this;
    const { block } = vmcs;
    // As an exit saves it: the level of SS is CPL.
    const ss = (S.segments >> 2) + Seg.SS * 4;
    block[ss] = (block[ss] & ~(3 << SS_LEVEL)) | ((block[S.cpl >> 2] & 3) << SS_LEVEL);
    if ((vmcs.dirty & ~CR0_GROUPS) !== 0 || !this.#stubCr0Holds())
      throw new AssertionError('CR0 of a stub does not hold');
    vmcs.dirty = 0;
    processor.reenterGuest(true);
  }

  /** Injects the event of the entry (26.6) and pending debug exceptions (26.7.3). False: the delivery exited. */
  #inject(): boolean {
    const v = this.vmcs;
    const info = v.u32[v.region + Word.entryIntrInfo];
    if (info & INTR_VALID) return this.#injectEvent(info);
    if (v.u32[v.region + Word.pendingDebug] === 0) return true;
    return this.#pendingDebug();
  }
  #injectEvent(info: number): boolean {
    const kind = INJECTED[(info >> 8) & 7];
    if (kind === undefined) {
      // Type 7: a pending MTF exit (26.6.2).
      this.guest.record(Reason.MONITOR_TRAP_FLAG);
      return false;
    }
    const { processor, vmcs } = this;
    if (kind === 'nmi') processor.state.nmiBlocked = true;
    processor.state.activity = 0;
    const delivered = processor.injectEvent({
      kind,
      vector: info & 0xff,
      errorCode: info & INTR_ERROR_CODE ? vmcs.read32(F.VM_ENTRY_EXCEPTION_ERROR_CODE) : undefined,
      instructionLength: vmcs.read32(F.VM_ENTRY_INSTRUCTION_LEN),
    });
    // An MTF exit is pending right behind the delivery (25.5.2).
    if (delivered && this.guest.trapAfter >= 0) this.guest.trapAfter -= 1;
    return delivered;
  }
  #pendingDebug(): boolean {
    const { processor } = this;
    const bits = this.vmcs.read64(F.GUEST_PENDING_DBG_EXCEPTIONS);
    // MOV SS holds them back (26.7.3); DR6 bits other than BS count only with an enabled breakpoint.
    if ((bits & 0x5000n) === 0n) return true;
    const payload = bits & 0x400fn;
    if (processor.state.shadow & Interruptibility.movSs) {
      // The single step makes its own trap behind the next instruction.
      processor.pendingDebug = payload & 0xfn;
      return true;
    }
    if (this.guest.interceptException(1, undefined, payload, undefined)) return false;
    processor.state.set64(S.dr6, (processor.state.get64(S.dr6) & ~0xfn) | payload);
    return processor.injectEvent({ kind: 'exception', vector: 1, errorCode: undefined, instructionLength: 0 });
  }

  /** SDM 27: saves the guest, loads the host. */
  #exit(): void {
    const { processor, vmcs, guest } = this;
    const { words } = vmcs;
    const controls = this.#controls;
    words[Word.entryIntrInfo] &= 0x7fffffff;
    processor.leaveGuest();
    this.#switch.saveGuest(controls);
    if ((controls.exit & ExitCtl.savePreemptionTimer) !== 0) this.#saveTimer();
    const stores = words[Word.exitMsrStoreCount];
    if (stores !== 0) this.#storeMsrs(vmcs.readAddress(F.VM_EXIT_MSR_STORE_ADDR), stores >>> 0);
    this.#switch.loadHost(controls);
    this.#exited = true;
    const loads = words[Word.exitMsrLoadCount];
    if (loads !== 0 && this.#loadMsrs(vmcs.readAddress(F.VM_EXIT_MSR_LOAD_ADDR), loads >>> 0) >= 0) vmcs.abort = 4;
    if (guest.asid === 0) processor.flushTlb({ kind: 'asid', asid: 0, keepGlobal: false });
    if (processor.eventInDelivery !== undefined) processor.eventInDelivery = undefined;
  }
  #saveTimer(): void {
    const left = Math.max(0, this.guest.deadline - this.processor.tick) * this.processor.tscPerTick;
    this.vmcs.saveWord(F.VMX_PREEMPTION_TIMER_VALUE, Math.floor(left / 2 ** this.caps.preemptionRate));
  }

  /** MSR areas: 16-byte entries, index then value (SDM table 24-12). @returns number of the first bad entry, or -1 */
  #loadMsrs(pa: number, count: number): number {
    for (let i = 0; i < count; i++) {
      const at = pa + 16 * i;
      if (!this.memory.contains(at, 16) || this.memory.read32(at + 4) !== 0) return i;
      if (this.processor.wrmsr(this.memory.read32(at), this.memory.read64(at + 8)) !== 0) return i;
    }
    return -1;
  }
  #storeMsrs(pa: number, count: number): void {
    for (let i = 0; i < count; i++) {
      const at = pa + 16 * i;
      const value = this.memory.contains(at, 16) ? this.processor.rdmsr(this.memory.read32(at)) : undefined;
      if (value === undefined) {
        this.vmcs.abort = 1;
        return;
      }
      this.memory.write64(at + 8, value);
    }
  }
}
