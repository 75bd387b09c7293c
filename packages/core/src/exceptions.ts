/**
 * Queues of exceptions, interrupts, NMIs and SMIs that wait for the next entry.
 * KVM: kvm_multiple_exception and its neighbours in x86.c; manual: APM vol. 2 8.2.9 (double faults).
 */
import { CR4, hasErrorCode, Vector } from '@tskvm/emulator';
import { isGuestMode, isProtmode, kvmIsCr4BitSet } from './kvm-cache-regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { frame } from './trace.ts';
import { Req, type X86ExceptionInfo } from './types.ts';
import type { QueuedException, Vcpu } from './vcpu.ts';

const CONTRIBUTORY = new Set<number>([Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP]);
type ExceptionClass = 'benign' | 'contributory' | 'pageFault';
const exceptionClass = (vector: number): ExceptionClass =>
  vector === Vector.PF ? 'pageFault' : CONTRIBUTORY.has(vector) ? 'contributory' : 'benign';

/** Fault, trap, abort, or #DB, which can be either. KVM: exception_type. */
export function exceptionType(vector: number): 'fault' | 'trap' | 'abort' | 'db' {
  if (vector === Vector.DB) return 'db';
  if (vector === Vector.BP || vector === Vector.OF) return 'trap';
  if (vector === Vector.DF || vector === Vector.MC) return 'abort';
  return 'fault';
}
/** KVM: x86_exception_has_error_code. */
export const exceptionHasErrorCode = hasErrorCode;

interface NewException {
  vector: number;
  errorCode: number | undefined;
  payload: bigint | undefined;
}

function fill(slot: QueuedException, from: NewException, injected: boolean): void {
  slot.pending = !injected;
  slot.injected = injected;
  slot.vector = from.vector;
  slot.hasErrorCode = from.errorCode !== undefined;
  slot.errorCode = from.errorCode ?? 0;
  slot.hasPayload = from.payload !== undefined;
  slot.payload = from.payload ?? 0n;
}

/** Does the new exception on top of the queued one make a double fault. */
function makesDoubleFault(previous: number, vector: number): boolean {
  const first = exceptionClass(previous);
  const second = exceptionClass(vector);
  return (first === 'contributory' && second === 'contributory') || (first === 'pageFault' && second !== 'benign');
}

/** KVM: kvm_multiple_exception. */
function multipleException(vcpu: Vcpu, from: NewException): void {
  const { arch } = vcpu;
  kvmMakeRequest(Req.EVENT, vcpu);
  // L1's intercept wins over delivery, unless an earlier exception is on its way already.
  if (isGuestMode(vcpu) && vcpu.kvm.calls.isExceptionVmexit(vcpu, from.vector, from.errorCode ?? 0)) {
    fill(arch.exceptionVmexit, from, false);
    return;
  }
  const slot = arch.exception;
  if (!slot.pending && !slot.injected) {
    fill(slot, from, false);
    if (!isGuestMode(vcpu)) kvmDeliverExceptionPayload(vcpu, slot);
    return;
  }
  if (slot.vector === Vector.DF) {
    slot.pending = slot.injected = false;
    kvmMakeRequest(Req.TRIPLE_FAULT, vcpu);
    return;
  }
  if (makesDoubleFault(slot.vector, from.vector)) {
    slot.pending = slot.injected = false;
    kvmQueueExceptionE(vcpu, Vector.DF, 0);
    return;
  }
  fill(slot, from, false);
  if (!isGuestMode(vcpu)) kvmDeliverExceptionPayload(vcpu, slot);
}

/** Puts a payload where the guest sees it: CR2 of #PF, DR6 of #DB. KVM: kvm_deliver_exception_payload. */
export function kvmDeliverExceptionPayload(vcpu: Vcpu, ex: QueuedException): void {
  if (!ex.hasPayload) return;
  if (ex.vector === Vector.DB) {
    // DR6.RTM (bit 16) and BLD (bit 11) are active low (SDM vol. 3 17.2.3).
    vcpu.arch.dr6 &= ~0xfn;
    vcpu.arch.dr6 |= DR6_ACTIVE_LOW | ex.payload;
    vcpu.arch.dr6 ^= ex.payload & DR6_ACTIVE_LOW;
    vcpu.arch.dr6 &= ~(1n << 12n);
  } else if (ex.vector === Vector.PF) {
    vcpu.arch.cr2[0] = ex.payload;
  }
  ex.hasPayload = false;
  ex.payload = 0n;
}
const DR6_ACTIVE_LOW = 0xffff0ff0n;

/** KVM: kvm_queue_exception. */
export const kvmQueueException = frame('kvmQueueException', (vcpu: Vcpu, vector: number): void =>
  multipleException(vcpu, { vector, errorCode: undefined, payload: undefined }),
);
/** KVM: kvm_queue_exception_e. */
export const kvmQueueExceptionE = frame('kvmQueueExceptionE', (vcpu: Vcpu, vector: number, errorCode: number): void =>
  multipleException(vcpu, { vector, errorCode, payload: undefined }),
);
/** With a payload: DR6 bits of #DB, CR2 of #PF. KVM: kvm_queue_exception_p. */
export const kvmQueueExceptionP = frame('kvmQueueExceptionP', (vcpu: Vcpu, vector: number, payload: bigint): void =>
  multipleException(vcpu, { vector, errorCode: undefined, payload }),
);
/** With error code and payload. KVM: kvm_queue_exception_e_p. */
export function kvmQueueExceptionEP(vcpu: Vcpu, vector: number, errorCode: number, payload: bigint): void {
  multipleException(vcpu, { vector, errorCode, payload });
}
/** Puts back an exception whose delivery an exit interrupted: no combining. KVM: kvm_requeue_exception. */
export function kvmRequeueException(vcpu: Vcpu, vector: number, hasError: boolean, errorCode: number): void {
  kvmMakeRequest(Req.EVENT, vcpu);
  fill(vcpu.arch.exception, { vector, errorCode: hasError ? errorCode : undefined, payload: undefined }, true);
}
/** #GP with an error code. KVM: kvm_inject_gp. */
export const kvmInjectGp = (vcpu: Vcpu, errorCode: number): void => kvmQueueExceptionE(vcpu, Vector.GP, errorCode);

/** #PF or a nested fault, from a walk's result. KVM: kvm_inject_page_fault. */
export function kvmInjectPageFault(vcpu: Vcpu, fault: X86ExceptionInfo): void {
  const injectedIntoL1 = isGuestMode(vcpu) && vcpu.kvm.calls.isExceptionVmexit(vcpu, Vector.PF, fault.errorCode);
  if (injectedIntoL1) {
    vcpu.arch.exceptionVmexit.pending = false;
    multipleException(vcpu, { vector: Vector.PF, errorCode: fault.errorCode, payload: fault.address });
    return;
  }
  kvmQueueExceptionEP(vcpu, Vector.PF, fault.errorCode, fault.address);
}
/** Any exception of an emulated instruction. KVM: inject_emulated_exception. */
export function kvmInjectEmulatedException(vcpu: Vcpu, ex: X86ExceptionInfo): void {
  if (ex.vector === Vector.PF) kvmInjectPageFault(vcpu, ex);
  else if (ex.vector === Vector.DB) kvmQueueExceptionP(vcpu, Vector.DB, ex.address);
  else if (ex.errorCodeValid) kvmQueueExceptionE(vcpu, ex.vector, ex.errorCode);
  else kvmQueueException(vcpu, ex.vector);
}

/** CPL at or below the required one, else #GP(0). KVM: kvm_require_cpl. */
export function kvmRequireCpl(vcpu: Vcpu, required: number): boolean {
  if (vcpu.kvm.calls.getCpl(vcpu) <= required) return true;
  kvmQueueExceptionE(vcpu, Vector.GP, 0);
  return false;
}
/** DR access with CR4.DE set and DR4/5 is #UD. KVM: kvm_require_dr. */
export function kvmRequireDr(vcpu: Vcpu, dr: number): boolean {
  if ((dr !== 4 && dr !== 5) || !kvmIsCr4BitSet(vcpu, CR4.DE)) return true;
  kvmQueueException(vcpu, Vector.UD);
  return false;
}

/** KVM: kvm_queue_interrupt. */
export function kvmQueueInterrupt(vcpu: Vcpu, vector: number, soft: boolean): void {
  vcpu.arch.interrupt = { injected: true, soft, nr: vector };
}
export function kvmClearInterruptQueue(vcpu: Vcpu): void {
  vcpu.arch.interrupt.injected = false;
}
export function kvmClearExceptionQueue(vcpu: Vcpu): void {
  for (const slot of [vcpu.arch.exception, vcpu.arch.exceptionVmexit]) slot.pending = slot.injected = false;
}
/** KVM: kvm_inject_nmi. */
export function kvmInjectNmi(vcpu: Vcpu): void {
  vcpu.arch.nmiQueued++;
  kvmMakeRequest(Req.NMI, vcpu);
}
/** KVM: process_nmi: at most two NMIs wait, one if one is being handled. */
export function kvmProcessNmi(vcpu: Vcpu): void {
  const { arch, kvm } = vcpu;
  let limit = kvm.calls.getNmiMask(vcpu) || arch.nmiInjected ? 1 : 2;
  if (kvm.calls.isVnmiPending(vcpu)) limit--;
  arch.nmiPending = Math.min(arch.nmiPending + arch.nmiQueued, limit);
  arch.nmiQueued = 0;
  if (arch.nmiPending > 0 && kvm.calls.setVnmiPending(vcpu)) arch.nmiPending--;
  if (arch.nmiPending > 0) kvmMakeRequest(Req.EVENT, vcpu);
}
/** KVM: kvm_inject_smi. */
export function kvmInjectSmi(vcpu: Vcpu): number {
  kvmMakeRequest(Req.SMI, vcpu);
  return 0;
}
/** Is an exception, interrupt or NMI waiting for re-injection. KVM: kvm_event_needs_reinjection. */
export const kvmEventNeedsReinjection = (vcpu: Vcpu): boolean =>
  vcpu.arch.exception.injected || vcpu.arch.interrupt.injected || vcpu.arch.nmiInjected;
export const kvmIsExceptionPending = (vcpu: Vcpu): boolean =>
  vcpu.arch.exception.pending || vcpu.arch.exceptionVmexit.pending || vcpu.requests.has(Req.TRIPLE_FAULT);

/** Hands an exception to the vendor's event field. In real mode the error code is dropped. KVM: kvm_inject_exception. */
export const kvmInjectException = frame('kvmInjectException', (vcpu: Vcpu): void => {
  const ex = vcpu.arch.exception;
  if (ex.hasErrorCode && !isProtmode(vcpu)) ex.hasErrorCode = false;
  const tracer = vcpu.kvm.tracer;
  if (tracer) {
    tracer.emit('kvm_inj_exception', {
      vcpuId: vcpu.vcpuId,
      exception: ex.vector,
      hasError: ex.hasErrorCode,
      errorCode: ex.errorCode,
      reinjected: ex.injected,
    });
  }
  vcpu.kvm.calls.injectException(vcpu);
});
