/**
 * The run loop: KVM_RUN, vcpu_run, vcpu_enter_guest with its requests, blocking. KVM: arch/x86/kvm/x86.c.
 * The rest of x86.c stands in the files that are exported here.
 */
import { DEBUGREG_WONT_EXIT } from './debugregs.ts';
import { KvmError } from './diagnostics.ts';
import { kvmCheckAndInjectEvents, kvmCpuAcceptDmPicIntr, kvmIsDmIntrWindowOpen, kvmVcpuHasEvents } from './events.ts';
import { kvmDeliverExceptionPayload, kvmProcessNmi } from './exceptions.ts';
import { loadDebugRegisters, loadGuestFpu, putGuestFpu } from './fpu.ts';
import type { Kvm } from './kvm.ts';
import { isGuestMode, isSmm, kvmRipRead } from './kvm-cache-regs.ts';
import { kvmApicAcceptEvents, kvmLapicFindHighestIrr, kvmLapicInKernel, lapicGetTpr } from './lapic.ts';
import { kvmMmuLoadPgd, kvmMmuReload, kvmMmuSyncRoots, kvmServiceTlbFlush } from './mmu/mmu.ts';
import { noteInstruction } from './mode-switch.ts';
import { kvmGuestTimeUpdate } from './pvclock.ts';
import { kvmSetCr8 } from './regs.ts';
import { kvmVcpuReset } from './reset.ts';
import { attributeRunError } from './static-calls.ts';
import { frame, inFrame, ownFrame, trace, unframed } from './trace.ts';
import { Errno, FastPath, type KvmExit, MpState, Req, RunFlag } from './types.ts';
import { completeUserspaceIo } from './userspace-io.ts';
import type { RunOptions, Vcpu } from './vcpu.ts';
import { resolvedVendor } from './vendor.ts';

export * from './debugregs.ts';
export * from './events.ts';
export * from './exceptions.ts';
export * from './fastpath.ts';
export * from './kvm-cache-regs.ts';
export * from './kvm-emulate.ts';
export * from './msrs.ts';
export * from './regs.ts';
export * from './requests.ts';
export * from './reset.ts';

/** Is the local APIC in the kernel. KVM: lapic_in_kernel. */
export const lapicInKernel = (vcpu: Vcpu): boolean => kvmLapicInKernel(vcpu);
/** KVM: irqchip_in_kernel. */
export const irqchipInKernel = (vcpu: Vcpu): boolean => vcpu.vm.irqchipInKernel;

/** Entries in a row without a single retired instruction that are free; each further one takes a tick, so that time and budget go on. */
const FREE_FRUITLESS_ENTRIES = 1000;
/** So many give a caller without a budget a chance to look. */
const MAX_FRUITLESS_ENTRIES = 20000;

/** Ticks that a delivery and a shadow's instruction may take once the budget is used up; only a delivery that fails for ever takes more. */
const GRACE = 16;

/** KVM_RUN. KVM: kvm_arch_vcpu_ioctl_run. Throws KvmError for what the caller did wrong (EINVAL, EIO). */
export const kvmArchVcpuIoctlRun = frame('kvmArchVcpuIoctlRun', (vcpu: Vcpu, options: RunOptions): KvmExit => {
  const { kvm } = vcpu;
  vcpu.runDeadline = kvm.now() + (options.budget ?? Number.POSITIVE_INFINITY);
  vcpu.graceEnds = Number.POSITIVE_INFINITY;
  try {
    vcpuLoad(vcpu);
    runIoctl(vcpu);
    postKvmRunSave(vcpu);
    trace(vcpu, 'kvm_userspace_exit', () => ({ vcpuId: vcpu.vcpuId, reason: vcpu.exit.reason }));
  } catch (error) {
    const vendor = resolvedVendor(kvm);
    throw vendor ? attributeRunError(vendor.name, vendor.ops, error) : error;
  }
  return vcpu.exit;
});

/** Brings a vCPU onto the processor, putting away the one that was there. KVM: kvm_arch_vcpu_load. */
export function vcpuLoad(vcpu: Vcpu): void {
  const { kvm } = vcpu;
  if (kvm.runningVcpu === vcpu) return;
  vcpuPut(kvm);
  kvm.calls.vcpuLoad(vcpu, 0);
  kvm.runningVcpu = vcpu;
  loadGuestFpu(vcpu);
}
/** The vCPU on the processor leaves it. KVM: vcpu_put. */
export function vcpuPut(kvm: Kvm): void {
  const vcpu = kvm.runningVcpu;
  if (!vcpu) return;
  putGuestFpu(vcpu);
  kvm.calls.vcpuPut(vcpu);
  kvm.runningVcpu = null;
}

function runIoctl(vcpu: Vcpu): void {
  const { arch, runIo } = vcpu;
  if (arch.mpState === MpState.UNINITIALIZED) {
    kvmApicAcceptEvents(vcpu);
    if (!vcpuRunning(vcpu)) {
      vcpu.exit = { reason: 'idle', idleUntil: vcpu.vm.nextTimer() };
      return;
    }
  }
  if (!arch.apic && (typeof runIo.cr8 !== 'bigint' || kvmSetCr8(vcpu, runIo.cr8) !== 0)) {
    throw new KvmError('RUN_CR8', Errno.EINVAL, `runIo.cr8 is ${String(runIo.cr8)}; give a bigint from 0 to 15`);
  }
  morphPendingExceptionForL2(vcpu);
  if (arch.completeUserspaceIo) {
    const { kind, data } = arch.completeUserspaceIo;
    arch.completeUserspaceIo = null;
    const r = completeUserspaceIo(vcpu, kind, data);
    if (r <= 0) return;
  }
  // Behind the completion: immediate_exit is how user space finishes I/O without running on.
  if (runIo.immediateExit) {
    vcpu.exit = { reason: 'intr' };
    return;
  }
  checkRunnable(vcpu);
  if (kvmVcpuPreRunExit(vcpu)) return;
  const r = vcpuRun(vcpu);
  if (r < 0 && vcpu.exit.reason !== 'intr') {
    throw new KvmError('RUN_FAILED', -r, `KVM_RUN failed with errno ${-r}${vcpu.vm.bugged ? '; the VM is dead' : ''}`);
  }
}

/** An exception set by user space while in L2 becomes L1's exit if L1 intercepts it. */
function morphPendingExceptionForL2(vcpu: Vcpu): void {
  const { exception, exceptionVmexit } = vcpu.arch;
  if (!isGuestMode(vcpu) || !exception.pending) return;
  if (!vcpu.kvm.calls.isExceptionVmexit(vcpu, exception.vector, exception.errorCode)) return;
  Object.assign(exceptionVmexit, exception, { pending: true, injected: false });
  exception.pending = false;
}

function checkRunnable(vcpu: Vcpu): void {
  const { arch } = vcpu;
  const refuse = (code: string, message: string): never => {
    throw new KvmError(code, Errno.EINVAL, message);
  };
  if (arch.mpState === MpState.SIPI_RECEIVED) refuse('RUN_SIPI_RECEIVED', 'mp_state SIPI_RECEIVED can not run');
  if (arch.mpState === MpState.INIT_RECEIVED && vcpu.kvm.calls.apicInitSignalBlocked(vcpu)) {
    refuse('RUN_INIT_BLOCKED', 'mp_state INIT_RECEIVED while INIT and SIPI are blocked');
  }
  if (vcpu.kvm.calls.vcpuNeedsInitialization(vcpu)) {
    refuse('RUN_UNINITIALIZED', 'the vCPU must be initialised by the vendor first (encrypted state not finalised)');
  }
}
function kvmVcpuPreRunExit(vcpu: Vcpu): boolean {
  if (!vcpu.kvm.calls.unhandleableEmulationRequired(vcpu)) return false;
  vcpu.exit = {
    reason: 'internal_error',
    suberror: 1,
    data: [],
    detail: 'invalid guest state that can not be emulated',
  };
  return true;
}

/** What user space reads after every run. KVM: post_kvm_run_save. */
function postKvmRunSave(vcpu: Vcpu): void {
  const { runIo, arch } = vcpu;
  runIo.ifFlag = arch.guestStateProtected ? true : vcpu.kvm.calls.getIfFlag(vcpu);
  runIo.cr8 = arch.apic ? lapicGetTpr(arch.apic) : arch.cr8;
  runIo.apicBase = arch.apicBase;
  runIo.smm = isSmm(vcpu);
  runIo.readyForInterruptInjection = vcpu.vm.irqchipInKernel || kvmIsDmIntrWindowOpen(vcpu);
}

/** KVM: kvm_vcpu_running. */
const vcpuRunning = (vcpu: Vcpu): boolean => vcpu.arch.mpState === MpState.RUNNABLE;

/** Has the caller's budget run out, or has the guest made no progress for long. */
function budgetUsed(vcpu: Vcpu): boolean {
  const { kvm, progress } = vcpu;
  if (kvm.now() !== progress.tick) progress.fruitless = 0;
  // An exit that repeats for ever (an interrupt table in MMIO behind page tables in MMIO) must not stop the clock.
  else if (++progress.fruitless > FREE_FRUITLESS_ENTRIES) kvm.processor.tick++;
  progress.tick = kvm.now();
  const stuck = progress.fruitless > 0 && progress.fruitless % MAX_FRUITLESS_ENTRIES === 0;
  if (progress.tick < vcpu.runDeadline) return stuck;
  if (stuck || progress.fruitless > FREE_FRUITLESS_ENTRIES || isBetweenInstructions(vcpu)) return true;
  if (vcpu.graceEnds === Number.POSITIVE_INFINITY) vcpu.graceEnds = progress.tick + GRACE;
  return progress.tick >= vcpu.graceEnds;
}

/**
 * Neither in a delivery nor under a shadow: where the processor itself would stop for the host's timer. An exit in between is the host's
 * own (a page that it had not mapped yet), and whether it comes must not be seen.
 */
const isBetweenInstructions = (vcpu: Vcpu): boolean => {
  const { exception, interrupt, nmiInjected } = vcpu.arch;
  if (exception.injected || interrupt.injected || nmiInjected) return false;
  return vcpu.kvm.calls.getInterruptShadow(vcpu) === 0;
};

/** Runs until user space is needed. > 0 never; 0 exit prepared; < 0 errno. KVM: vcpu_run. */
function vcpuRun(vcpu: Vcpu): number {
  if (unframed(vcpu, vcpuRun)) return inFrame(vcpuRun, vcpu);
  vcpu.exit = { reason: 'unknown', hardwareExitReason: 0 };
  for (;;) {
    vcpu.arch.atInstructionBoundary = false;
    const r = vcpuRunning(vcpu) ? vcpuEnterGuest(vcpu) : vcpuBlock(vcpu);
    if (r <= 0) return r;
    vcpu.requests.delete(Req.UNBLOCK);
    vcpu.vm.runTimers();
    if (vcpu.runIo.requestInterruptWindow && kvmCpuAcceptDmPicIntr(vcpu) && kvmIsDmIntrWindowOpen(vcpu)) {
      vcpu.exit = { reason: 'irq_window_open' };
      return 0;
    }
    if (budgetUsed(vcpu)) {
      vcpu.exit = { reason: 'intr' };
      return -Errno.EINTR;
    }
  }
}
ownFrame('vcpuRun', vcpuRun);

/** A vCPU that isn't RUNNABLE: wakes it if something can, else an `idle` exit. KVM: vcpu_block. */
function vcpuBlock(vcpu: Vcpu): number {
  if (unframed(vcpu, vcpuBlock)) return inFrame(vcpuBlock, vcpu);
  const { arch, kvm } = vcpu;
  vcpu.vm.runTimers();
  if (!kvmVcpuHasEvents(vcpu)) {
    vcpu.exit = { reason: 'idle', idleUntil: vcpu.vm.nextTimer() };
    return 0;
  }
  if (isGuestMode(vcpu)) {
    const r = kvm.calls.checkNestedEvents(vcpu);
    if (r < 0 && r !== -Errno.EBUSY) return r;
  }
  kvmApicAcceptEvents(vcpu);
  if (arch.mpState === MpState.HALTED || arch.mpState === MpState.AP_RESET_HOLD) {
    arch.mpState = MpState.RUNNABLE;
    trace(vcpu, 'kvm_vcpu_wakeup', () => ({ vcpuId: vcpu.vcpuId, ticks: kvm.now() }));
  }
  // INIT_RECEIVED goes on waiting for its SIPI.
  if (arch.mpState !== MpState.RUNNABLE) {
    vcpu.exit = { reason: 'idle', idleUntil: vcpu.vm.nextTimer() };
    return 0;
  }
  return 1;
}
ownFrame('vcpuBlock', vcpuBlock);

/** A request's action. A number ends the entry with that result. */
type RequestAction = (vcpu: Vcpu) => number | undefined;

const tripleFault: RequestAction = (vcpu) => {
  if (isGuestMode(vcpu)) {
    vcpu.kvm.calls.nestedTripleFault(vcpu);
    // L1 took it: the request is gone, go on with L1.
    if (!vcpu.requests.has(Req.TRIPLE_FAULT)) return undefined;
  }
  vcpu.requests.delete(Req.TRIPLE_FAULT);
  vcpu.exit = { reason: 'shutdown' };
  return 0;
};

const nothing: RequestAction = () => undefined;

/** Requests in the order in which an entry serves them (facts: vcpu_enter_guest). */
const REQUEST_ACTIONS: readonly (readonly [Req, RequestAction])[] = [
  [
    Req.VM_DEAD,
    (vcpu) => {
      vcpu.vm.bugged = true;
      return -Errno.EIO;
    },
  ],
  [
    Req.GET_NESTED_STATE_PAGES,
    (vcpu) => {
      if (vcpu.kvm.calls.getNestedStatePages(vcpu)) return undefined;
      vcpu.exit = { reason: 'internal_error', suberror: 1, data: [], detail: 'nested state pages are not mapped' };
      return 0;
    },
  ],
  [Req.MMU_FREE_OBSOLETE_ROOTS, nothing],
  [Req.MIGRATE_TIMER, (vcpu) => void vcpu.kvm.calls.migrateTimers(vcpu)],
  [Req.MASTERCLOCK_UPDATE, nothing],
  [Req.GLOBAL_CLOCK_UPDATE, nothing],
  [Req.CLOCK_UPDATE, (vcpu) => kvmGuestTimeUpdate(vcpu) as undefined],
  [Req.MMU_SYNC, (vcpu) => kvmMmuSyncRoots(vcpu) as undefined],
  [Req.LOAD_MMU_PGD, (vcpu) => kvmMmuLoadPgd(vcpu) as undefined],
  [Req.TLB_FLUSH, (vcpu) => kvmServiceTlbFlush(vcpu) as undefined],
  [Req.TLB_FLUSH_CURRENT, (vcpu) => kvmServiceTlbFlush(vcpu) as undefined],
  [Req.TLB_FLUSH_GUEST, (vcpu) => kvmServiceTlbFlush(vcpu) as undefined],
  [Req.TRIPLE_FAULT, tripleFault],
  [Req.STEAL_UPDATE, nothing],
  [Req.PMU, nothing],
  [Req.PMI, nothing],
  [
    Req.SMI,
    (vcpu) => {
      vcpu.arch.smiPending = true;
      vcpu.requests.add(Req.EVENT);
      return undefined;
    },
  ],
  [Req.NMI, (vcpu) => kvmProcessNmi(vcpu) as undefined],
  [Req.SCAN_IOAPIC, nothing],
  [Req.LOAD_EOI_EXITMAP, nothing],
  [Req.APIC_PAGE_RELOAD, (vcpu) => void vcpu.kvm.calls.setApicAccessPageAddr(vcpu)],
  [Req.APICV_UPDATE, (vcpu) => void vcpu.kvm.calls.refreshApicvExecCtrl(vcpu)],
  [Req.APF_READY, nothing],
  [Req.RECALC_INTERCEPTS, (vcpu) => void vcpu.kvm.calls.recalcIntercepts(vcpu)],
  [Req.UPDATE_CPU_DIRTY_LOGGING, (vcpu) => void vcpu.kvm.calls.updateCpuDirtyLogging(vcpu)],
  [
    Req.UPDATE_PROTECTED_GUEST_STATE,
    (vcpu) => {
      kvmVcpuReset(vcpu, true);
      return vcpu.arch.mpState === MpState.RUNNABLE ? undefined : 1;
    },
  ],
  [Req.VMSA_PAGE_RELOAD, (vcpu) => void vcpu.kvm.calls.reloadVmsa(vcpu)],
];

/** Serves all requests but EVENT. A number ends the entry. */
function serveRequests(vcpu: Vcpu): number | undefined {
  for (const [req, action] of REQUEST_ACTIONS) {
    if (!vcpu.requests.has(req)) continue;
    // TRIPLE_FAULT and the flush group decide themselves when they are done.
    if (
      req !== Req.TRIPLE_FAULT &&
      !(req === Req.TLB_FLUSH || req === Req.TLB_FLUSH_CURRENT || req === Req.TLB_FLUSH_GUEST)
    ) {
      vcpu.requests.delete(req);
    }
    const r = action(vcpu);
    if (r !== undefined) return r;
  }
  return undefined;
}

/** Events before the entry. A number ends the entry. */
function prepareEvents(vcpu: Vcpu, reqIntWin: boolean): number | undefined {
  const { arch, kvm } = vcpu;
  kvmApicAcceptEvents(vcpu);
  if (arch.mpState === MpState.INIT_RECEIVED) return 1;
  const r = kvmCheckAndInjectEvents(vcpu);
  if (r < 0) return r;
  if (vcpu.requests.has(Req.TRIPLE_FAULT)) return 1;
  if (reqIntWin) kvm.calls.enableIrqWindow(vcpu);
  if (arch.apic) updateCr8Intercept(vcpu);
  return undefined;
}

/** KVM: update_cr8_intercept. */
export function updateCr8Intercept(vcpu: Vcpu): void {
  const { apic } = vcpu.arch;
  if (!apic) return;
  const irr = kvmLapicFindHighestIrr(apic);
  vcpu.kvm.calls.updateCr8Intercept(vcpu, Number(lapicGetTpr(apic)), irr < 0 ? -1 : irr >> 4);
}

/** Programs when the processor must come back: timers, budget, or at once. */
function armProcessor(vcpu: Vcpu): void {
  const { kvm } = vcpu;
  const deadline = Math.min(vcpu.runDeadline, vcpu.vm.nextTimer());
  kvm.processor.deadline = Math.ceil(deadline);
  kvm.processor.interruptPending = vcpu.arch.reqImmediateExit;
}

/** The entry itself; goes round while the vendor answers REENTER_GUEST. */
function enterAndExit(vcpu: Vcpu): FastPath {
  const { kvm, arch } = vcpu;
  const flags = arch.reqImmediateExit ? RunFlag.FORCE_IMMEDIATE_EXIT : 0;
  armProcessor(vcpu);
  for (;;) {
    if (kvm.tracer !== null) traceEntry(vcpu);
    const fastpath = kvm.calls.vcpuRun(vcpu, flags | dr6Flag(vcpu));
    if (fastpath !== FastPath.REENTER_GUEST) return fastpath;
    if (!vcpu.requests.isEmpty || kvm.processor.tick >= vcpu.runDeadline) return FastPath.EXIT_HANDLED;
    if (vcpu.vm.timersMoved) armProcessor(vcpu);
    else kvm.processor.interruptPending = arch.reqImmediateExit;
    kvm.calls.syncPirToIrr(vcpu);
  }
}
const dr6Flag = (vcpu: Vcpu): number =>
  (vcpu.arch.switchDbRegs & DEBUGREG_WONT_EXIT) !== 0 ? RunFlag.LOAD_GUEST_DR6 : 0;

function traceEntry(vcpu: Vcpu): void {
  if (vcpu.arch.emulationRequired) return;
  const { intrInfo, errorCode } = vcpu.kvm.calls.getEntryInfo(vcpu);
  vcpu.kvm.tracer?.emit('kvm_entry', {
    vcpuId: vcpu.vcpuId,
    rip: kvmRipRead(vcpu),
    immediateExit: vcpu.arch.reqImmediateExit,
    intrInfo,
    errorCode,
  });
}

/** One entry and exit with all that surrounds them. > 0 go on, 0 to user space, < 0 errno. KVM: vcpu_enter_guest. */
function vcpuEnterGuest(vcpu: Vcpu): number {
  if (unframed(vcpu, vcpuEnterGuest)) return inFrame(vcpuEnterGuest, vcpu);
  const { kvm, arch } = vcpu;
  const reqIntWin = vcpu.runIo.requestInterruptWindow && kvmCpuAcceptDmPicIntr(vcpu);
  arch.reqImmediateExit = false;
  if (!vcpu.requests.isEmpty) {
    const ended = serveRequests(vcpu);
    if (ended !== undefined) return ended;
  }
  if (vcpu.requests.delete(Req.EVENT) || reqIntWin) {
    const ended = prepareEvents(vcpu, reqIntWin);
    if (ended !== undefined) return ended;
  }
  const reload = kvmMmuReload(vcpu);
  if (reload < 0) {
    kvm.calls.cancelInjection(vcpu);
    return reload;
  }
  kvm.calls.prepareSwitchToGuest(vcpu);
  kvm.calls.syncPirToIrr(vcpu);
  // Work that came up since: back out, the event waits in the queue (KVM: kvm_vcpu_exit_request).
  if (!vcpu.requests.isEmpty && !arch.reqImmediateExit) {
    kvm.calls.cancelInjection(vcpu);
    return 1;
  }
  if (arch.switchDbRegs !== 0) loadDebugRegisters(vcpu);
  // Something could not go with this entry: it is looked at again right behind it (KVM: req_immediate_exit in vcpu_enter_guest).
  if (arch.reqImmediateExit) vcpu.requests.add(Req.EVENT);
  const fastpath = enterAndExit(vcpu);
  if (kvm.tracer) noteInstruction(vcpu, kvm.tracer);
  return afterExit(vcpu, fastpath);
}
ownFrame('vcpuEnterGuest', vcpuEnterGuest);

function afterExit(vcpu: Vcpu, fastpath: FastPath): number {
  const { kvm, arch } = vcpu;
  kvm.processor.interruptPending = false;
  arch.lastVmentryCpu = 0;
  if ((arch.switchDbRegs & DEBUGREG_WONT_EXIT) !== 0) kvm.calls.syncDirtyDebugRegs(vcpu);
  kvm.calls.handleExitIrqoff(vcpu);
  if (arch.exception.pending && arch.exception.hasPayload && !isGuestMode(vcpu)) {
    kvmDeliverExceptionPayload(vcpu, arch.exception);
  }
  vcpu.vm.runTimers();
  return kvm.calls.handleExit(vcpu, fastpath);
}
