/**
 * Injection, re-injection and windows for interrupts, NMIs and exceptions.
 * KVM: svm.c (svm_inject_irq, svm_complete_interrupts, svm_enable_nmi_window, …); manual: APM vol. 2 sections 15.20, 15.21.
 */
import {
  EmulType,
  Errno,
  frame,
  GUESTDBG_SINGLESTEP,
  inFrame,
  isGuestMode,
  kvmClearExceptionQueue,
  kvmClearInterruptQueue,
  kvmEmulateInstruction,
  kvmIsLinearRip,
  kvmMakeRequest,
  kvmQueueInterrupt,
  kvmRequeueException,
  kvmRipRead,
  kvmRipWrite,
  ownFrame,
  Req,
  VCPU_REGS_RIP as rip,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { Flag, Vector } from '@tskvm/emulator';
import {
  Clean,
  EventInfo,
  IntCtl,
  IntState as intStateBits,
  SvmExit,
  V,
  Q as vmcbQuads,
  W as vmcbWords,
} from './hardware/index.ts';
import { svmGetIfFlag, svmGetRflags } from './registers.ts';
import { sevEsGuest, svmModule, toSvm } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const Q = vmcbQuads;
const IntState = intStateBits;
const VCPU_REGS_RIP = rip;

const softException = (vector: number): boolean => vector === Vector.BP || vector === Vector.OF;

// RIP past an instruction

/**
 * Advances RIP: by the next-RIP field, else by what the handler knew, else by decoding. A protected guest's RIP is out of reach and
 * its exits are trap-like already. 0: exit to user space. KVM: __svm_skip_emulated_instruction.
 */
function skipInstruction(vcpu: Vcpu, emulType: number, commit: boolean): number {
  const svm = toSvm(vcpu);
  if (!sevEsGuest(vcpu)) {
    const { words } = svm.vmcb;
    if (svmModule(vcpu).params.nrips && (words[W.nextRip] | words[W.nextRip + 1]) !== 0) {
      svm.regWords[VCPU_REGS_RIP * 2] = words[W.nextRip];
      svm.regWords[VCPU_REGS_RIP * 2 + 1] = words[W.nextRip + 1];
    } else if (svm.nextRip !== 0n) kvmRipWrite(vcpu, svm.nextRip);
    else if (!decodeToSkip(vcpu, emulType, commit)) return 0;
  }
  if (commit) svmSetInterruptShadow(vcpu, 0);
  return 1;
}

function decodeToSkip(vcpu: Vcpu, emulType: number, commit: boolean): boolean {
  const { vmcb } = toSvm(vcpu);
  const rflags = vmcb.get64(V.rflags);
  if (!kvmEmulateInstruction(vcpu, EmulType.SKIP | emulType)) return false;
  if (!commit) vmcb.set64(V.rflags, rflags);
  return true;
}

/** For a fastpath: does the next-RIP field say where the instruction ends, and is there no trap to be made of TF. */
export function svmMaySkip(vcpu: Vcpu): boolean {
  const svm = toSvm(vcpu);
  const { words } = svm.vmcb;
  const known = (words[W.nextRip] | words[W.nextRip + 1]) !== 0 && svmModule(vcpu).params.nrips;
  return known && (words[W.rflags] & Flag.TF) === 0 && svm.sev === null;
}
/** What kvm_skip_emulated_instruction comes to then. */
export function svmSkip(vcpu: Vcpu): void {
  const { words, quads } = toSvm(vcpu).vmcb;
  vcpu.arch.regs[VCPU_REGS_RIP] = quads[Q.nextRip];
  words[W.intState] &= ~IntState.SHADOW;
  vcpu.kvm.processor.tick++;
}

/** KVM: svm_skip_emulated_instruction. */
export function svmSkipEmulatedInstruction(vcpu: Vcpu): number {
  if (unframed(vcpu, svmSkipEmulatedInstruction)) return inFrame(svmSkipEmulatedInstruction, vcpu);
  return skipInstruction(vcpu, 0, true);
}
ownFrame('svmSkipEmulatedInstruction', svmSkipEmulatedInstruction);

/** A soft event returns behind its instruction: by the next-RIP field, or by RIP itself. KVM: svm_update_soft_interrupt_rip. */
function updateSoftInterruptRip(vcpu: Vcpu): boolean {
  const svm = toSvm(vcpu);
  const { nrips } = svmModule(vcpu).params;
  const oldRip = kvmRipRead(vcpu);
  if (!skipInstruction(vcpu, EmulType.SKIP_SOFT_INT, !nrips)) return false;
  const nextRip = kvmRipRead(vcpu);
  svm.softInt = { injected: true, csBase: svm.vmcb.get64(V.cs + 8), oldRip, nextRip };
  if (nrips) {
    kvmRipWrite(vcpu, oldRip);
    svm.vmcb.set64(V.nextRip, nextRip);
  }
  return true;
}

// Injection

/** KVM: svm_inject_irq. */
export const svmInjectIrq = frame('svmInjectIrq', (vcpu: Vcpu, _reinjected: boolean): void => {
  const { interrupt } = vcpu.arch;
  const { vmcb } = toSvm(vcpu);
  if (interrupt.soft && !updateSoftInterruptRip(vcpu)) return;
  const type = interrupt.soft ? EventInfo.TYPE_SOFT : EventInfo.TYPE_INTR;
  vmcb.set32(V.eventInj, interrupt.nr | EventInfo.VALID | type);
});

/** KVM: svm_inject_nmi. */
export const svmInjectNmi = frame('svmInjectNmi', (vcpu: Vcpu): void => {
  const svm = toSvm(vcpu);
  svm.vmcb.set32(V.eventInj, EventInfo.VALID | EventInfo.TYPE_NMI | Vector.NMI);
  svm.nmiMasked = true;
  setIretIntercept(vcpu, true);
});

/** KVM: svm_inject_exception. */
export const svmInjectException = frame('svmInjectException', (vcpu: Vcpu): void => {
  const ex = vcpu.arch.exception;
  const { vmcb } = toSvm(vcpu);
  if (softException(ex.vector) && !updateSoftInterruptRip(vcpu)) return;
  const error = ex.hasErrorCode ? EventInfo.ERROR_VALID : 0;
  vmcb.set32(V.eventInj, ex.vector | EventInfo.VALID | error | EventInfo.TYPE_EXCEPTION);
  vmcb.set32(V.eventInjErr, ex.errorCode);
});

/** Puts the event whose delivery the exit cut off back into the queues. KVM: svm_complete_interrupts. */
export function svmCompleteInterrupts(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  const { arch } = vcpu;
  const soft = svm.softInt.injected;
  svm.softInt.injected = false;
  // The IRET that ends an NMI has run once RIP has left it.
  if (svm.awaitingIret && (sevEsGuest(vcpu) || kvmRipRead(vcpu) !== svm.nmiIretRip)) {
    svm.awaitingIret = false;
    svm.nmiMasked = false;
    kvmMakeRequest(Req.EVENT, vcpu);
  }
  arch.nmiInjected = false;
  const { exception } = arch;
  if (exception.injected || exception.pending || arch.exceptionVmexit.pending) kvmClearExceptionQueue(vcpu);
  kvmClearInterruptQueue(vcpu);
  const info = svm.vmcb.words[W.exitIntInfo];
  if (info >= 0) return;
  kvmMakeRequest(Req.EVENT, vcpu);
  if (soft) completeSoftInterrupt(vcpu, info);
  requeue(vcpu, info);
}

function requeue(vcpu: Vcpu, info: number): void {
  const vector = info & EventInfo.VECTOR;
  switch (info & EventInfo.TYPE_MASK) {
    case EventInfo.TYPE_NMI:
      vcpu.arch.nmiInjected = true;
      break;
    case EventInfo.TYPE_EXCEPTION:
      // #VC is for the guest of an encrypted VM alone; it is raised again when the instruction runs again.
      if (vector === Vector.VC) break;
      kvmRequeueException(vcpu, vector, (info & EventInfo.ERROR_VALID) !== 0, toSvm(vcpu).vmcb.get32(V.exitIntInfoErr));
      break;
    case EventInfo.TYPE_INTR:
      kvmQueueInterrupt(vcpu, vector, false);
      break;
    case EventInfo.TYPE_SOFT:
      kvmQueueInterrupt(vcpu, vector, true);
      break;
  }
}

/** KVM: svm_complete_soft_interrupt. */
function completeSoftInterrupt(vcpu: Vcpu, info: number): void {
  const svm = toSvm(vcpu);
  const type = info & EventInfo.TYPE_MASK;
  const isSoft = type === EventInfo.TYPE_SOFT;
  const isException = type === EventInfo.TYPE_EXCEPTION;
  const { csBase, oldRip, nextRip } = svm.softInt;
  if (svmModule(vcpu).params.nrips) {
    const again = isSoft || (isException && softException(info & EventInfo.VECTOR));
    if (again && kvmIsLinearRip(vcpu, oldRip + csBase)) svm.vmcb.set64(V.nextRip, nextRip);
  } else if ((isSoft || isException) && kvmIsLinearRip(vcpu, nextRip + csBase)) {
    kvmRipWrite(vcpu, oldRip);
  }
}

/** The entry was called off: what was to be injected goes back. KVM: svm_cancel_injection. */
export function svmCancelInjection(vcpu: Vcpu): void {
  const { vmcb } = toSvm(vcpu);
  vmcb.set32(V.exitIntInfo, vmcb.get32(V.eventInj));
  vmcb.set32(V.exitIntInfoErr, vmcb.get32(V.eventInjErr));
  vmcb.set32(V.eventInj, 0);
  svmCompleteInterrupts(vcpu);
}

// May it be injected

const shadowed = (vcpu: Vcpu): boolean => (toSvm(vcpu).vmcb.get32(V.intState) & IntState.SHADOW) !== 0;

/** KVM: svm_interrupt_blocked. */
export const svmInterruptBlocked = (vcpu: Vcpu): boolean =>
  !toSvm(vcpu).guestGif || !svmGetIfFlag(vcpu) || shadowed(vcpu);
/** KVM: svm_interrupt_allowed. */
export const svmInterruptAllowed = (vcpu: Vcpu, _forInjection: boolean): number => (svmInterruptBlocked(vcpu) ? 0 : 1);
/** KVM: svm_nmi_allowed. */
export function svmNmiAllowed(vcpu: Vcpu, forInjection: boolean): number {
  const svm = toSvm(vcpu);
  if (!svm.guestGif || svm.nmiMasked || shadowed(vcpu)) return 0;
  return forInjection && isGuestMode(vcpu) ? -Errno.EBUSY : 1;
}
export const svmGetNmiMask = (vcpu: Vcpu): boolean => toSvm(vcpu).nmiMasked;
/** KVM: svm_set_nmi_mask. */
export function svmSetNmiMask(vcpu: Vcpu, masked: boolean): void {
  toSvm(vcpu).nmiMasked = masked;
  setIretIntercept(vcpu, masked);
}
function setIretIntercept(vcpu: Vcpu, on: boolean): void {
  if (!sevEsGuest(vcpu)) toSvm(vcpu).vmcb.setIntercept(SvmExit.IRET, on);
}

// Windows

/**
 * A dummy virtual interrupt of the highest priority exits as soon as the guest could take one. KVM: svm_enable_irq_window,
 * svm_set_vintr.
 */
export function svmEnableIrqWindow(vcpu: Vcpu): void {
  const { vmcb, guestGif } = toSvm(vcpu);
  if (!guestGif) return;
  vmcb.setIntercept(SvmExit.VINTR, true);
  vmcb.set32(V.intVector, 0);
  vmcb.or32(V.intCtl, IntCtl.V_IRQ | IntCtl.V_INTR_PRIO_MASK);
  vmcb.markDirty(Clean.INTR);
}
/** KVM: svm_clear_vintr. */
export function svmClearVintr(vcpu: Vcpu): void {
  const { vmcb } = toSvm(vcpu);
  vmcb.setIntercept(SvmExit.VINTR, false);
  vmcb.andNot32(V.intCtl, IntCtl.V_IRQ | IntCtl.V_INTR_PRIO_MASK | IntCtl.V_IGN_TPR);
  vmcb.set32(V.intVector, 0);
  vmcb.markDirty(Clean.INTR);
}

/** While an NMI is handled its IRET exits; behind that, or in a shadow, one instruction is stepped. KVM: svm_enable_nmi_window. */
export function svmEnableNmiWindow(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  if (svm.nmiMasked && !svm.awaitingIret) return;
  if (sevEsGuest(vcpu) || !svm.guestGif || svm.nmiSinglestep) return;
  svm.nmiSinglestepRflags = svmGetRflags(vcpu);
  svm.nmiSinglestep = true;
  svm.vmcb.set64(V.rflags, svm.vmcb.get64(V.rflags) | BigInt(Flag.TF | Flag.RF));
}
/** KVM: disable_nmi_singlestep. */
export function disableNmiSinglestep(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  svm.nmiSinglestep = false;
  if ((vcpu.guestDebug & GUESTDBG_SINGLESTEP) !== 0) return;
  const ours = BigInt(Flag.TF | Flag.RF);
  svm.vmcb.set64(V.rflags, svm.vmcb.get64(V.rflags) & ~(ours & ~svm.nmiSinglestepRflags));
}

/** KVM: svm_set_interrupt_shadow: the VMCB does not tell STI from MOV SS. */
export function svmSetInterruptShadow(vcpu: Vcpu, mask: number): void {
  const { vmcb } = toSvm(vcpu);
  if (mask === 0) vmcb.words[W.intState] &= ~IntState.SHADOW;
  else vmcb.words[W.intState] |= IntState.SHADOW;
}
/** 3 (STI and MOV SS) or 0. KVM: svm_get_interrupt_shadow. */
export const svmGetInterruptShadow = (vcpu: Vcpu): number => (shadowed(vcpu) ? 3 : 0);
