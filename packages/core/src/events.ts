/**
 * Which event is injected next, and what wakes a vCPU. KVM: kvm_check_and_inject_events, kvm_vcpu_has_events (x86.c), irq.c.
 * Manual: APM vol. 2 8.5 (priorities).
 */
import { Flag, Vector } from '@tskvm/emulator';
import { kvmUpdateDr7 } from './debugregs.ts';
import {
  exceptionType,
  kvmDeliverExceptionPayload,
  kvmEventNeedsReinjection,
  kvmInjectException,
  kvmIsExceptionPending,
  kvmQueueInterrupt,
} from './exceptions.ts';
import { isGuestMode } from './kvm-cache-regs.ts';
import { kvmApicAcceptPicIntr, kvmApicHasInterrupt, kvmGetApicInterrupt, lapicHasInitOrSipi } from './lapic.ts';
import { kvmMakeRequest } from './requests.ts';
import { enterSmm } from './smm.ts';
import { inFrame, ownFrame, trace, unframed } from './trace.ts';
import { Errno, MpState, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** KVM_GUESTDBG_BLOCKIRQ. */
const GUESTDBG_BLOCKIRQ = 0x100000;
const RF = BigInt(Flag.RF);
const DR7_GD = 1n << 13n;

/** ExtINT is waiting: PIC output through the local APIC, or a vector of user space. KVM: kvm_cpu_has_extint. */
export function kvmCpuHasExtint(vcpu: Vcpu): boolean {
  const { arch, vm } = vcpu;
  if (!arch.apic || !vm.irqchip) return arch.pendingExternalVector >= 0 || arch.interrupt.injected;
  return kvmApicAcceptPicIntr(vcpu) && vm.irqchip.pic.output;
}
/** KVM: kvm_cpu_has_injectable_intr. */
export function kvmCpuHasInjectableIntr(vcpu: Vcpu): boolean {
  if (!vcpu.arch.apic) return vcpu.arch.pendingExternalVector >= 0;
  return kvmCpuHasExtint(vcpu) || kvmApicHasInterrupt(vcpu) >= 0;
}
/** KVM: kvm_cpu_has_interrupt. */
export const kvmCpuHasInterrupt = kvmCpuHasInjectableIntr;

/** Takes the vector of the pending interrupt (PIC first), -1: none. KVM: kvm_cpu_get_interrupt. */
export function kvmCpuGetInterrupt(vcpu: Vcpu): number {
  const { arch, vm } = vcpu;
  if (!arch.apic) {
    const vector = arch.pendingExternalVector;
    arch.pendingExternalVector = -1;
    return vector;
  }
  if (kvmCpuHasExtint(vcpu) && vm.irqchip) return vm.irqchip.pic.readIrq();
  return kvmGetApicInterrupt(vcpu);
}

/** User space may inject through KVM_INTERRUPT. KVM: kvm_cpu_accept_dm_intr. */
export const kvmCpuAcceptDmPicIntr = (vcpu: Vcpu): boolean => !vcpu.vm.irqchipInKernel;
/** KVM: kvm_vcpu_ready_for_interrupt_injection. */
export const kvmIsDmIntrWindowOpen = (vcpu: Vcpu): boolean =>
  !vcpu.vm.irqchipInKernel &&
  vcpu.kvm.calls.interruptAllowed(vcpu, false) > 0 &&
  !kvmCpuHasInjectableIntr(vcpu) &&
  !kvmEventNeedsReinjection(vcpu) &&
  !kvmIsExceptionPending(vcpu);

/** What was on its way when an exit came is injected again. False: nothing was. */
function reinject(vcpu: Vcpu): void {
  const { arch, kvm } = vcpu;
  if (arch.exception.injected) kvmInjectException(vcpu);
  else if (arch.exception.pending) return;
  else if (arch.nmiInjected) kvm.calls.injectNmi(vcpu);
  else if (arch.interrupt.injected) {
    traceVirq(vcpu, true);
    kvm.calls.injectIrq(vcpu, true);
  }
}
function traceVirq(vcpu: Vcpu, reinjected: boolean): void {
  trace(vcpu, 'kvm_inj_virq', () => ({
    vcpuId: vcpu.vcpuId,
    vector: vcpu.arch.interrupt.nr,
    soft: vcpu.arch.interrupt.soft,
    reinjected,
  }));
}

function injectPendingException(vcpu: Vcpu): void {
  const { arch, kvm } = vcpu;
  const ex = arch.exception;
  // A fault's image has RF set, so that its restart does not hit the same code breakpoint (SDM vol. 3 17.3.1.1).
  if (exceptionType(ex.vector) === 'fault') kvm.calls.setRflags(vcpu, kvm.calls.getRflags(vcpu) | RF);
  if (ex.vector === Vector.DB) {
    kvmDeliverExceptionPayload(vcpu, ex);
    if ((arch.dr7 & DR7_GD) !== 0n) {
      arch.dr7 &= ~DR7_GD;
      kvmUpdateDr7(vcpu);
    }
  } else kvmDeliverExceptionPayload(vcpu, ex);
  kvmInjectException(vcpu);
  ex.pending = false;
  ex.injected = true;
}

/** A vendor's *_allowed answer: 1 go, 0 open a window, negative: enter and exit first (-EBUSY) or fail. */
type Step = { done: true; r: number } | { done: false; injected: boolean };
const step = (injected: boolean): Step => ({ done: false, injected });

function trySmi(vcpu: Vcpu, canInject: boolean): Step {
  const { arch, kvm } = vcpu;
  const r = canInject ? kvm.calls.smiAllowed(vcpu, true) : -Errno.EBUSY;
  if (r < 0) return { done: true, r };
  if (r === 0) {
    kvm.calls.enableSmiWindow(vcpu);
    return step(false);
  }
  arch.smiPending = false;
  arch.smiCount++;
  enterSmm(vcpu);
  return step(true);
}

function tryNmi(vcpu: Vcpu, canInject: boolean): Step {
  const { arch, kvm } = vcpu;
  const r = canInject ? kvm.calls.nmiAllowed(vcpu, true) : -Errno.EBUSY;
  if (r < 0) return { done: true, r };
  let injected = false;
  if (r > 0) {
    arch.nmiPending--;
    arch.nmiInjected = true;
    kvm.calls.injectNmi(vcpu);
    injected = true;
  }
  if (arch.nmiPending > 0) kvm.calls.enableNmiWindow(vcpu);
  return step(injected);
}

function tryIrq(vcpu: Vcpu, canInject: boolean): Step {
  const { kvm } = vcpu;
  const r = canInject ? kvm.calls.interruptAllowed(vcpu, true) : -Errno.EBUSY;
  if (r < 0) return { done: true, r };
  if (r > 0) {
    const vector = kvmCpuGetInterrupt(vcpu);
    if (vector >= 0) {
      kvmQueueInterrupt(vcpu, vector, false);
      traceVirq(vcpu, false);
      kvm.calls.injectIrq(vcpu, false);
    }
  }
  if (kvmCpuHasInjectableIntr(vcpu)) kvm.calls.enableIrqWindow(vcpu);
  return step(r > 0);
}

/** -EBUSY: enter the guest and come straight back; other errors go up. */
function busy(vcpu: Vcpu, r: number): number {
  if (r !== -Errno.EBUSY) return r;
  vcpu.arch.reqImmediateExit = true;
  return 0;
}

/**
 * Chooses and programs the event of the next entry: what was interrupted, exception, SMI, NMI, interrupt; opens windows for the rest.
 * @returns 0, or a negative errno. KVM: kvm_check_and_inject_events
 */
export function kvmCheckAndInjectEvents(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmCheckAndInjectEvents)) return inFrame(kvmCheckAndInjectEvents, vcpu);
  const { arch, kvm } = vcpu;
  const nested = isGuestMode(vcpu) ? kvm.calls.checkNestedEvents(vcpu) : 0;
  reinject(vcpu);
  if (nested < 0) return busy(vcpu, nested);
  let canInject = !kvmEventNeedsReinjection(vcpu);
  if (arch.exception.pending) {
    injectPendingException(vcpu);
    canInject = false;
  }
  if ((vcpu.guestDebug & GUESTDBG_BLOCKIRQ) !== 0) return 0;
  const steps: [boolean, (vcpu: Vcpu, canInject: boolean) => Step][] = [
    [arch.smiPending, trySmi],
    [arch.nmiPending > 0, tryNmi],
    [kvmCpuHasInjectableIntr(vcpu), tryIrq],
  ];
  for (const [wanted, attempt] of steps) {
    if (!wanted) continue;
    const result = attempt(vcpu, canInject);
    if (result.done) return busy(vcpu, result.r);
    if (result.injected) canInject = false;
  }
  if (isGuestMode(vcpu) && kvm.calls.hasNestedEvents(vcpu, true)) arch.reqImmediateExit = true;
  return 0;
}
ownFrame('kvmCheckAndInjectEvents', kvmCheckAndInjectEvents);

/** Something can make the vCPU go on. KVM: kvm_vcpu_has_events. */
export function kvmVcpuHasEvents(vcpu: Vcpu): boolean {
  const { arch, kvm, requests } = vcpu;
  if (lapicHasInitOrSipi(vcpu)) return true;
  if (arch.mpState === MpState.INIT_RECEIVED || arch.mpState === MpState.UNINITIALIZED) return false;
  if (kvmIsExceptionPending(vcpu)) return true;
  if (requests.has(Req.NMI) || (arch.nmiPending > 0 && kvm.calls.nmiAllowed(vcpu, false) > 0)) return true;
  if (requests.has(Req.SMI) || (arch.smiPending && kvm.calls.smiAllowed(vcpu, false) > 0)) return true;
  if (requests.has(Req.UPDATE_PROTECTED_GUEST_STATE) || requests.has(Req.UNBLOCK)) return true;
  if (kvmCpuHasInterrupt(vcpu) && kvm.calls.interruptAllowed(vcpu, false) > 0) return true;
  return isGuestMode(vcpu) && kvm.calls.hasNestedEvents(vcpu, false) !== 0;
}
/** Wakes a halted vCPU at its next look. KVM: kvm_vcpu_kick. */
export function kvmVcpuKick(vcpu: Vcpu): void {
  kvmMakeRequest(Req.EVENT, vcpu);
  if (vcpu.kvm.runningVcpu === vcpu) vcpu.kvm.processor.interruptPending = true;
}
