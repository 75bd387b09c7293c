/**
 * Injection, its completion after an exit, blocking and windows, the exception bitmap.
 * KVM: vmx_inject_*, vmx_complete_interrupts, vmx_*_blocked, vmx_enable_*_window, vmx_update_exception_bitmap in vmx.c.
 */
import {
  frame,
  isSmm,
  kvmInjectRealmodeInterrupt,
  kvmMakeRequest,
  kvmQueueInterrupt,
  kvmRequeueException,
  Req,
  trace,
  type Vcpu,
} from '@tskvm/core';
import { Vector } from '@tskvm/emulator';
import {
  INTR_ERROR_CODE,
  INTR_VALID,
  IntrType,
  Interruptibility as interruptibilityBits,
  PendingDebug,
  Primary,
} from './hardware/bits.ts';
import { F, Word as vmcsWords } from './hardware/vmcs.ts';
import { vmxGetIfFlag } from './registers.ts';
import { controlsClearBit, controlsSetBit, toVmx, vmcsOf } from './vcpu-vmx.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const Interruptibility = interruptibilityBits;

const isSoftException = (vector: number): boolean => vector === Vector.BP || vector === Vector.OF;
const writeIntrInfo = (vcpu: Vcpu, type: number, vector: number, flags = 0): void => {
  vmcsOf(vcpu).write32(F.VM_ENTRY_INTR_INFO_FIELD, (INTR_VALID | flags | (type << 8) | vector) >>> 0);
};
const writeInstructionLength = (vcpu: Vcpu): void => {
  vmcsOf(vcpu).write32(F.VM_ENTRY_INSTRUCTION_LEN, toVmx(vcpu).eventExitInstLen);
};

/**
 * The emulator stands in for the delivery; like one it ends the shadow (with IF clear, entry would refuse blocking by STI), and the
 * single step's trap that waited with it is gone (with TF clear, it would come once more, in the handler).
 */
function injectRealmode(vcpu: Vcpu, vector: number, instructionLength: number): void {
  kvmInjectRealmodeInterrupt(vcpu, vector, instructionLength);
  vmxSetInterruptShadow(vcpu, 0);
  if (vector === Vector.DB) {
    const v = vmcsOf(vcpu);
    v.write64(F.GUEST_PENDING_DBG_EXCEPTIONS, v.read64(F.GUEST_PENDING_DBG_EXCEPTIONS) & ~PendingDebug.bs);
  }
}

/** KVM: vmx_inject_irq. */
export function vmxInjectIrq(vcpu: Vcpu, reinjected: boolean): void {
  const { interrupt } = vcpu.arch;
  trace(vcpu, 'kvm_inj_virq', () => ({
    vcpuId: vcpu.vcpuId,
    vector: interrupt.nr,
    soft: interrupt.soft,
    reinjected,
  }));
  if (toVmx(vcpu).rmode.vm86Active) {
    injectRealmode(vcpu, interrupt.nr, interrupt.soft ? toVmx(vcpu).eventExitInstLen : 0);
    return;
  }
  if (interrupt.soft) writeInstructionLength(vcpu);
  writeIntrInfo(vcpu, interrupt.soft ? IntrType.softInterrupt : IntrType.external, interrupt.nr);
}

/** KVM: vmx_inject_nmi. */
export function vmxInjectNmi(vcpu: Vcpu): void {
  const vmx = toVmx(vcpu);
  if (!vmx.module.params.vnmi) vmx.softVnmiBlocked = true;
  if (vmx.rmode.vm86Active) {
    injectRealmode(vcpu, Vector.NMI, 0);
    return;
  }
  writeIntrInfo(vcpu, IntrType.nmi, Vector.NMI);
}

/** KVM: vmx_inject_exception. */
export function vmxInjectException(vcpu: Vcpu): void {
  const ex = vcpu.arch.exception;
  const soft = isSoftException(ex.vector);
  if (toVmx(vcpu).rmode.vm86Active) {
    injectRealmode(vcpu, ex.vector, soft ? toVmx(vcpu).eventExitInstLen : 0);
    return;
  }
  // The field has 32 bits, the guest's stack frame only 16 that mean something.
  if (ex.hasErrorCode) vmcsOf(vcpu).write32(F.VM_ENTRY_EXCEPTION_ERROR_CODE, ex.errorCode & 0xffff);
  if (soft) writeInstructionLength(vcpu);
  writeIntrInfo(
    vcpu,
    soft ? IntrType.softException : IntrType.hardException,
    ex.vector,
    ex.hasErrorCode ? INTR_ERROR_CODE : 0,
  );
}

/** Takes the event whose delivery was interrupted back into KVM's queues. KVM: __vmx_complete_interrupts. */
function completeInterrupts(vcpu: Vcpu, info: number, lengthField: number, errorField: number): void {
  const { arch } = vcpu;
  arch.nmiInjected = false;
  arch.exception.pending = false;
  arch.exception.injected = false;
  arch.exceptionVmexit.pending = false;
  arch.interrupt.injected = false;
  if (!(info & INTR_VALID)) return;
  kvmMakeRequest(Req.EVENT, vcpu);
  const v = vmcsOf(vcpu);
  const vector = info & 0xff;
  const type = (info >> 8) & 7;
  const soft = type === IntrType.softInterrupt;
  if (soft || type === IntrType.softException) toVmx(vcpu).eventExitInstLen = v.read32(lengthField);
  switch (type) {
    case IntrType.nmi:
      arch.nmiInjected = true;
      // Delivered again at the next entry: until then NMIs are not blocked (SDM vol. 3 27.7.1.2).
      vmxSetNmiMask(vcpu, false);
      break;
    case IntrType.softException:
    case IntrType.hardException: {
      const hasError = (info & INTR_ERROR_CODE) !== 0;
      kvmRequeueException(vcpu, vector, hasError, hasError ? v.read32(errorField) : 0);
      break;
    }
    case IntrType.softInterrupt:
    case IntrType.external:
      kvmQueueInterrupt(vcpu, vector, soft);
      break;
    default:
      break;
  }
}
/** After an exit. KVM: vmx_complete_interrupts. */
export function vmxCompleteInterrupts(vcpu: Vcpu): void {
  completeInterrupts(vcpu, toVmx(vcpu).idtVectoringInfo, F.VM_EXIT_INSTRUCTION_LEN, F.IDT_VECTORING_ERROR_CODE);
}
/** What the emulator has delivered is delivered, although no exit says so; KVM leaves it marked as injected until the next one. */
export function vmxCompleteRealmodeEvents({ arch }: Vcpu): void {
  arch.nmiInjected = false;
  arch.exception.injected = false;
  arch.interrupt.injected = false;
}
/** The entry was called off. KVM: vmx_cancel_injection. */
export function vmxCancelInjection(vcpu: Vcpu): void {
  const v = vmcsOf(vcpu);
  const info = v.read32(F.VM_ENTRY_INTR_INFO_FIELD);
  completeInterrupts(vcpu, info, F.VM_ENTRY_INSTRUCTION_LEN, F.VM_ENTRY_EXCEPTION_ERROR_CODE);
  v.write32(F.VM_ENTRY_INTR_INFO_FIELD, 0);
}

// Blocking

const interruptibility = (vcpu: Vcpu): number => {
  const v = vmcsOf(vcpu);
  return v.words[Word.interruptibility];
};
const SHADOW = Interruptibility.sti | Interruptibility.movSs;

/** KVM: vmx_interrupt_blocked. */
export const vmxInterruptBlocked = (vcpu: Vcpu): boolean =>
  !vmxGetIfFlag(vcpu) || (interruptibility(vcpu) & SHADOW) !== 0;
/** KVM: vmx_nmi_blocked. */
const nmiBlocked = (vcpu: Vcpu): boolean => {
  const vmx = toVmx(vcpu);
  if (!vmx.module.params.vnmi && vmx.softVnmiBlocked) return true;
  return (interruptibility(vcpu) & (SHADOW | Interruptibility.nmi)) !== 0;
};
/** @returns 1 or 0 */
export const vmxInterruptAllowed = (vcpu: Vcpu, _forInjection: boolean): number => (vmxInterruptBlocked(vcpu) ? 0 : 1);
export const vmxNmiAllowed = (vcpu: Vcpu, _forInjection: boolean): number => (nmiBlocked(vcpu) ? 0 : 1);
export const vmxSmiAllowed = (vcpu: Vcpu, _forInjection: boolean): number => (isSmm(vcpu) ? 0 : 1);

/** KVM: vmx_get_nmi_mask. */
export const vmxGetNmiMask = (vcpu: Vcpu): boolean => {
  const vmx = toVmx(vcpu);
  if (!vmx.module.params.vnmi) return vmx.softVnmiBlocked;
  return (interruptibility(vcpu) & Interruptibility.nmi) !== 0;
};
/** KVM: vmx_set_nmi_mask. */
export function vmxSetNmiMask(vcpu: Vcpu, masked: boolean): void {
  const vmx = toVmx(vcpu);
  if (!vmx.module.params.vnmi) {
    vmx.softVnmiBlocked = masked;
    return;
  }
  const old = interruptibility(vcpu);
  const value = masked ? old | Interruptibility.nmi : old & ~Interruptibility.nmi;
  if (value !== old) vmcsOf(vcpu).write32(F.GUEST_INTERRUPTIBILITY_INFO, value);
}

/** 1 MOV SS, 2 STI (KVM_X86_SHADOW_INT_*). KVM: vmx_get_interrupt_shadow. */
export function vmxGetInterruptShadow(vcpu: Vcpu): number {
  const value = interruptibility(vcpu);
  return (value & Interruptibility.sti ? 2 : 0) | (value & Interruptibility.movSs ? 1 : 0);
}
/** KVM: vmx_set_interrupt_shadow. */
export function vmxSetInterruptShadow(vcpu: Vcpu, mask: number): void {
  const old = interruptibility(vcpu);
  const blocking = mask & 1 ? Interruptibility.movSs : mask & 2 ? Interruptibility.sti : 0;
  const value = (old & ~SHADOW) | blocking;
  if (value !== old) vmcsOf(vcpu).write32(F.GUEST_INTERRUPTIBILITY_INFO, value);
}

// Windows

/** KVM: vmx_enable_irq_window. */
export function vmxEnableIrqWindow(vcpu: Vcpu): void {
  controlsSetBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.interruptWindow);
}
/** KVM: vmx_enable_nmi_window. */
export function vmxEnableNmiWindow(vcpu: Vcpu): void {
  if (!toVmx(vcpu).module.params.vnmi || interruptibility(vcpu) & Interruptibility.sti) {
    vmxEnableIrqWindow(vcpu);
    return;
  }
  controlsSetBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.nmiWindow);
}
/** Exit 7. KVM: handle_interrupt_window. */
export const handleInterruptWindow = frame('handleInterruptWindow', (vcpu: Vcpu): number => {
  controlsClearBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.interruptWindow);
  kvmMakeRequest(Req.EVENT, vcpu);
  return 1;
});
/** Exit 8. KVM: handle_nmi_window. */
export const handleNmiWindow = frame('handleNmiWindow', (vcpu: Vcpu): number => {
  controlsClearBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.nmiWindow);
  kvmMakeRequest(Req.EVENT, vcpu);
  return 1;
});

const GUESTDBG_ENABLE_SW_BP = 0x10001;
const bit = (vector: number): number => 1 << vector;
/** KVM: vmx_update_exception_bitmap. */
export function vmxUpdateExceptionBitmap(vcpu: Vcpu): void {
  let bitmap = bit(Vector.PF) | bit(Vector.UD) | bit(Vector.MC) | bit(Vector.DB) | bit(Vector.AC);
  if ((vcpu.guestDebug & GUESTDBG_ENABLE_SW_BP) === GUESTDBG_ENABLE_SW_BP) bitmap |= bit(Vector.BP);
  if (toVmx(vcpu).rmode.vm86Active) bitmap = -1;
  if (toVmx(vcpu).module.params.ept) bitmap &= ~bit(Vector.PF);
  vmcsOf(vcpu).write32(F.EXCEPTION_BITMAP, bitmap >>> 0);
}
