/**
 * What KVM does for each VM exit: kvm_vmx_exit_handlers and vmx_handle_exit.
 * KVM: handle_* in vmx.c.
 */
import {
  EmulType,
  FastPath,
  frame,
  handleUd,
  inFrame,
  isGuestMode,
  kvmCompleteInsnGp,
  kvmEmulateCpuid,
  kvmEmulateHalt,
  kvmEmulateHypercall,
  kvmEmulateInstruction,
  kvmEmulateInvd,
  kvmEmulateMonitor,
  kvmEmulateMwait,
  kvmEmulateRdmsr,
  kvmEmulateRdpmc,
  kvmEmulateWbinvd,
  kvmEmulateWrmsr,
  kvmEmulateXsetbv,
  kvmFastPio,
  kvmGetCr8,
  kvmGetDr,
  kvmGetLinearRip,
  kvmHandleInvalidOp,
  kvmHandleInvpcid,
  kvmHandlePageFault,
  kvmLmsw,
  kvmMmuInvlpg,
  kvmMmuPageFault,
  kvmPrepareEventVectoringExit,
  kvmPrepareUnexpectedReasonExit,
  kvmQueueException,
  kvmQueueExceptionE,
  kvmQueueExceptionP,
  kvmReadCr0,
  kvmReadCr3,
  kvmRegisterRead,
  kvmRegisterWrite,
  kvmRequireDr,
  kvmRipRead,
  kvmSetCr0,
  kvmSetCr3,
  kvmSetCr4,
  kvmSetCr8,
  kvmSetDr,
  kvmSkipEmulatedInstruction,
  kvmTaskSwitch,
  lapicInKernel,
  ownFrame,
  trace,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { AssertionError, NotImplementedError, Vector } from '@tskvm/emulator';
import { handleInterruptWindow, handleNmiWindow, vmxGetInterruptShadow, vmxSetNmiMask } from './events.ts';
import {
  FAILED_VMENTRY,
  INTR_ERROR_CODE,
  INTR_VALID,
  IntrType,
  PendingDebug,
  Primary,
  Reason,
} from './hardware/bits.ts';
import { F } from './hardware/vmcs.ts';
import { handleInvalidGuestState, handleRmodeException, rmodeException } from './rmode.ts';
import { vmxSkipEmulatedInstruction } from './run.ts';
import { vmxGetCpl } from './segments.ts';
import { controlsClearBit, toVmx, vmcsOf } from './vcpu-vmx.ts';

type Handler = (vcpu: Vcpu) => number;

const qualification = (vcpu: Vcpu): number => vmcsOf(vcpu).readLow(F.EXIT_QUALIFICATION);
const wideQualification = (vcpu: Vcpu): bigint => vmcsOf(vcpu).read64(F.EXIT_QUALIFICATION);

// Control registers

/** KVM: handle_set_cr0. L2's merge waits for nested VMX. */
export function handleSetCr0(vcpu: Vcpu, value: bigint): number {
  if (unframed(vcpu, handleSetCr0)) return inFrame(handleSetCr0, vcpu, value);
  return kvmSetCr0(vcpu, value);
}
ownFrame('handleSetCr0', handleSetCr0);
/** KVM: handle_set_cr4. */
export const handleSetCr4 = frame('handleSetCr4', (vcpu: Vcpu, value: bigint): number => kvmSetCr4(vcpu, value));

const traceCr = (vcpu: Vcpu, rw: 'read' | 'write', cr: number, val: bigint): void =>
  trace(vcpu, 'kvm_cr', () => ({ vcpuId: vcpu.vcpuId, rw, cr, val }));

function movToCr(vcpu: Vcpu, cr: number, reg: number): number {
  const value = kvmRegisterRead(vcpu, reg);
  traceCr(vcpu, 'write', cr, value);
  switch (cr) {
    case 0:
      return kvmCompleteInsnGp(vcpu, handleSetCr0(vcpu, value));
    case 3:
      return kvmCompleteInsnGp(vcpu, kvmSetCr3(vcpu, value));
    case 4:
      return kvmCompleteInsnGp(vcpu, handleSetCr4(vcpu, value));
    case 8:
      return movToCr8(vcpu, value);
    default:
      throw new AssertionError(`exit for MOV to CR${cr}`);
  }
}
function movToCr8(vcpu: Vcpu, value: bigint): number {
  const old = kvmGetCr8(vcpu);
  const result = kvmCompleteInsnGp(vcpu, kvmSetCr8(vcpu, value));
  if (lapicInKernel(vcpu) || old <= value) return result;
  // User space's APIC has to learn that the priority dropped.
  vcpu.exit = { reason: 'set_tpr' };
  return 0;
}
function movFromCr(vcpu: Vcpu, cr: number, reg: number): number {
  const value = cr === 3 ? kvmReadCr3(vcpu) : kvmGetCr8(vcpu);
  kvmRegisterWrite(vcpu, reg, value);
  traceCr(vcpu, 'read', cr, value);
  return kvmSkipEmulatedInstruction(vcpu);
}
function lmswExit(vcpu: Vcpu, source: number): number {
  const msw = BigInt(source);
  traceCr(vcpu, 'write', 0, (kvmReadCr0(vcpu) & ~0xfn) | msw);
  kvmLmsw(vcpu, msw);
  return kvmSkipEmulatedInstruction(vcpu);
}
/** Exit 28. KVM: handle_cr. */
export function handleCr(vcpu: Vcpu): number {
  if (unframed(vcpu, handleCr)) return inFrame(handleCr, vcpu);
  const qual = qualification(vcpu);
  const cr = qual & 15;
  const reg = (qual >> 8) & 15;
  switch ((qual >> 4) & 3) {
    case 0:
      return movToCr(vcpu, cr, reg);
    case 1:
      return movFromCr(vcpu, cr, reg);
    case 3:
      return lmswExit(vcpu, (qual >>> 16) & 15);
    default:
      // TS is always the guest's, so that CLTS has nothing to exit for.
      throw new AssertionError('CLTS exited though CR0.TS is the guest’s');
  }
}
ownFrame('handleCr', handleCr);

// Exceptions

const DR6_BD = 0x2000n;
const DR6_ACTIVE_LOW = 0xffff0ff0n;
const GUESTDBG_STEP_OR_HW = 0x2 | 0x20000;

/** #DB: the guest's, or user space's debugger's. */
function debugException(vcpu: Vcpu, info: number): number {
  const dr6 = wideQualification(vcpu);
  const v = vmcsOf(vcpu);
  if ((vcpu.guestDebug & GUESTDBG_STEP_OR_HW) === 0) {
    if (((info >> 8) & 7) === IntrType.privilegedSoftException) vmxSkipEmulatedInstruction(vcpu);
    // Entry wants BS pending while TF is set under a shadow (SDM vol. 3 26.3.1.5).
    else if (v.readLow(F.GUEST_RFLAGS) & 0x100 && vmxGetInterruptShadow(vcpu) !== 0) {
      v.write64(F.GUEST_PENDING_DBG_EXCEPTIONS, v.read64(F.GUEST_PENDING_DBG_EXCEPTIONS) | PendingDebug.bs);
    }
    kvmQueueExceptionP(vcpu, Vector.DB, dr6);
    return 1;
  }
  debugExit(vcpu, Vector.DB, dr6 | DR6_ACTIVE_LOW, v.read64(F.GUEST_DR7));
  return 0;
}
function debugExit(vcpu: Vcpu, exception: number, dr6: bigint, dr7: bigint): void {
  toVmx(vcpu).eventExitInstLen = vmcsOf(vcpu).read32(F.VM_EXIT_INSTRUCTION_LEN);
  vcpu.exit = { reason: 'debug', exception, pc: kvmGetLinearRip(vcpu), dr6, dr7 };
}
function simultaneousException(vcpu: Vcpu, info: number, errorCode: number): number {
  vcpu.exit = {
    reason: 'internal_error',
    suberror: 2,
    data: [BigInt(toVmx(vcpu).idtVectoringInfo), BigInt(info), BigInt(errorCode), 0n],
  };
  return 0;
}

/** Exit 0. KVM: handle_exception_nmi. */
export const handleExceptionNmi = frame('handleExceptionNmi', (vcpu: Vcpu): number => {
  const vmx = toVmx(vcpu);
  const info = vmx.exitIntrInfo;
  const vector = info & 0xff;
  // NMI and #MC were handled with interrupts off.
  if (((info >> 8) & 7) === IntrType.nmi || vector === Vector.MC) return 1;
  if (vector === Vector.UD) return handleUd(vcpu);
  const errorCode = info & INTR_ERROR_CODE ? vmcsOf(vcpu).read32(F.VM_EXIT_INTR_ERROR_CODE) : 0;
  if (vmx.idtVectoringInfo & INTR_VALID && vector !== Vector.PF && !vmx.rmode.vm86Active) {
    if (vector !== Vector.DB && vector !== Vector.AC && vector !== Vector.BP) {
      return simultaneousException(vcpu, info, errorCode);
    }
  }
  // Only shadow paging has #PF exit.
  if (vector === Vector.PF) return kvmHandlePageFault(vcpu, BigInt(errorCode), wideQualification(vcpu), null, 0);
  if (vmx.rmode.vm86Active && rmodeException(vcpu, vector)) return handleRmodeException(vcpu, vector, errorCode);
  return guestException(vcpu, vector, info, errorCode);
});
function guestException(vcpu: Vcpu, vector: number, info: number, errorCode: number): number {
  switch (vector) {
    case Vector.DB:
      return debugException(vcpu, info);
    case Vector.BP:
      debugExit(vcpu, vector, 0n, 0n);
      return 0;
    case Vector.AC:
      kvmQueueExceptionE(vcpu, Vector.AC, errorCode);
      return 1;
    default:
      vcpu.exit = { reason: 'exception', exception: vector, errorCode };
      return 0;
  }
}

// Debug registers

/** Exit 29. KVM: handle_dr. */
export const handleDr = frame('handleDr', (vcpu: Vcpu): number => {
  const qual = qualification(vcpu);
  const dr = qual & 7;
  if (!kvmRequireDr(vcpu, dr)) return 1;
  if (vmxGetCpl(vcpu) > 0) return kvmCompleteInsnGp(vcpu, 1);
  const dr7 = vmcsOf(vcpu).read64(F.GUEST_DR7);
  if (dr7 & DR6_BD) return generalDetect(vcpu, dr7);
  if (vcpu.guestDebug === 0) {
    // From here on the guest has the registers to itself until the next exit.
    controlsClearBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.movDr);
    vcpu.arch.switchDbRegs |= 2;
    return 1;
  }
  const reg = (qual >> 8) & 15;
  if (!(qual & 16)) return kvmCompleteInsnGp(vcpu, kvmSetDr(vcpu, dr, kvmRegisterRead(vcpu, reg)));
  kvmRegisterWrite(vcpu, reg, kvmGetDr(vcpu, dr));
  return kvmCompleteInsnGp(vcpu, 0);
});
/** DR7.GD (bit 13, the number of DR6.BD). */
function generalDetect(vcpu: Vcpu, dr7: bigint): number {
  if (vcpu.guestDebug & 0x20000) {
    debugExit(vcpu, Vector.DB, DR6_BD | DR6_ACTIVE_LOW, dr7);
    return 0;
  }
  kvmQueueExceptionP(vcpu, Vector.DB, DR6_BD);
  return 1;
}

// I/O, memory

/** Exit 30. KVM: handle_io. */
export function handleIo(vcpu: Vcpu): number {
  if (unframed(vcpu, handleIo)) return inFrame(handleIo, vcpu);
  const qual = qualification(vcpu);
  if (qual & 16) return kvmEmulateInstruction(vcpu, 0);
  return kvmFastPio(vcpu, (qual & 7) + 1, qual >>> 16, (qual & 8) !== 0);
}
ownFrame('handleIo', handleIo);

const PFERR_PRESENT = 1n;
const PFERR_WRITE = 2n;
const PFERR_USER = 4n;
const PFERR_RSVD = 8n;
const PFERR_FETCH = 16n;
const PFERR_GUEST_FINAL = 1n << 32n;
const PFERR_GUEST_PAGE = 1n << 33n;
/** EPT violation's qualification as a page-fault error code. KVM: __vmx_handle_ept_violation. */
export function eptErrorCode(qual: number): bigint {
  let code = qual & 1 ? PFERR_USER : 0n;
  if (qual & 2) code |= PFERR_WRITE;
  if (qual & 4) code |= PFERR_FETCH;
  if (qual & 0x38) code |= PFERR_PRESENT;
  if (qual & 0x80) code |= qual & 0x100 ? PFERR_GUEST_FINAL : PFERR_GUEST_PAGE;
  return code;
}
/** Exit 48. KVM: handle_ept_violation. */
export const handleEptViolation = frame('handleEptViolation', (vcpu: Vcpu): number => {
  const v = vmcsOf(vcpu);
  const qual = v.readLow(F.EXIT_QUALIFICATION);
  const vmx = toVmx(vcpu);
  // IRET had unblocked NMIs before it faulted: they stay blocked until it is done.
  if (!(vmx.idtVectoringInfo & INTR_VALID) && vmx.module.params.vnmi && qual & 0x1000) vmxSetNmiMask(vcpu, true);
  const address = v.readAddress(F.GUEST_PHYSICAL_ADDRESS);
  const errorCode = eptErrorCode(qual);
  trace(vcpu, 'kvm_page_fault', () => ({ vcpuId: vcpu.vcpuId, rip: kvmRipRead(vcpu), address, errorCode }));
  return kvmMmuPageFault(vcpu, address, errorCode, null, 0);
});
/** Exit 49: KVM's mark of MMIO. KVM: handle_ept_misconfig. */
export const handleEptMisconfig = frame('handleEptMisconfig', (vcpu: Vcpu): number =>
  kvmMmuPageFault(vcpu, vmcsOf(vcpu).readAddress(F.GUEST_PHYSICAL_ADDRESS), PFERR_RSVD, null, 0),
);

/** Exit 14. KVM: handle_invlpg. */
export const handleInvlpg = frame('handleInvlpg', (vcpu: Vcpu): number => {
  kvmMmuInvlpg(vcpu, wideQualification(vcpu));
  return kvmSkipEmulatedInstruction(vcpu);
});
/** Exit 58. KVM: handle_invpcid. */
export const handleInvpcid = frame('handleInvpcid', (vcpu: Vcpu): number => {
  const v = vmcsOf(vcpu);
  const reg = (v.read32(F.VMX_INSTRUCTION_INFO) >> 28) & 15;
  return kvmCompleteInsnGp(
    vcpu,
    kvmHandleInvpcid(vcpu, Number(kvmRegisterRead(vcpu, reg)), v.read64(F.GUEST_LINEAR_ADDRESS)),
  );
});

// Task switch

/** Takes the event that a task gate was to deliver out of the queues. @returns its error code, if any */
function consumeVectoredEvent(vcpu: Vcpu, type: number): { has: boolean; code: number } {
  const none = { has: false, code: 0 };
  switch (type) {
    case IntrType.nmi:
      vcpu.arch.nmiInjected = false;
      vmxSetNmiMask(vcpu, true);
      return none;
    case IntrType.external:
    case IntrType.softInterrupt:
      vcpu.arch.interrupt.injected = false;
      return none;
    case IntrType.hardException:
    case IntrType.softException: {
      vcpu.arch.exception.pending = vcpu.arch.exception.injected = false;
      const has = type === IntrType.hardException && (toVmx(vcpu).idtVectoringInfo & INTR_ERROR_CODE) !== 0;
      return has ? { has, code: vmcsOf(vcpu).read32(F.IDT_VECTORING_ERROR_CODE) } : none;
    }
    default:
      return none;
  }
}
const GATE = 3;
/** Exit 9. KVM: handle_task_switch. */
export const handleTaskSwitch = frame('handleTaskSwitch', (vcpu: Vcpu): number => {
  const vmx = toVmx(vcpu);
  const vectored = (vmx.idtVectoringInfo & INTR_VALID) !== 0;
  const type = (vmx.idtVectoringInfo >> 8) & 7;
  const qual = qualification(vcpu);
  const reason = qual >>> 30;
  const error = reason === GATE && vectored ? consumeVectoredEvent(vcpu, type) : { has: false, code: 0 };
  const restarts = type === IntrType.hardException || type === IntrType.external || type === IntrType.nmi;
  const rip = kvmRipRead(vcpu);
  if (!vectored || !restarts) vmxSkipEmulatedInstruction(vcpu);
  const index = vectored && type === IntrType.softInterrupt ? vmx.idtVectoringInfo & 0xff : -1;
  return kvmTaskSwitch(vcpu, qual & 0xffff, index, reason, error.has, error.code, rip);
});

// The rest

const handleExternalInterrupt = frame('handleExternalInterrupt', (_vcpu: Vcpu): number => 1);
const handleTripleFault = frame('handleTripleFault', (vcpu: Vcpu): number => {
  vcpu.exit = { reason: 'shutdown' };
  return 0;
});
const handleDesc = frame('handleDesc', (vcpu: Vcpu): number => kvmEmulateInstruction(vcpu, 0));
const handlePause = frame('handlePause', (vcpu: Vcpu): number => kvmSkipEmulatedInstruction(vcpu));
const handlePreemptionTimer = frame('handlePreemptionTimer', (_vcpu: Vcpu): number => 1);
const handleMonitorTrap = frame('handleMonitorTrap', (_vcpu: Vcpu): number => 1);
/** Without nested VMX these instructions do not exist for the guest. KVM: handle_vmx_instruction. */
const handleVmxInstruction = frame('handleVmxInstruction', (vcpu: Vcpu): number => {
  if ((vcpu.arch.cr4 & 0x2000n) !== 0n)
    throw new NotImplementedError('VMX instructions in a guest (nested VMX)', 'SDM vol. 3 ch. 30');
  kvmQueueException(vcpu, Vector.UD);
  return 1;
});

/** KVM: kvm_vmx_exit_handlers. */
export const kvmVmxExitHandlers: { readonly [reason: number]: Handler } = {
  [Reason.EXCEPTION_NMI]: handleExceptionNmi,
  [Reason.EXTERNAL_INTERRUPT]: handleExternalInterrupt,
  [Reason.TRIPLE_FAULT]: handleTripleFault,
  [Reason.NMI_WINDOW]: handleNmiWindow,
  [Reason.INTERRUPT_WINDOW]: handleInterruptWindow,
  [Reason.IO_INSTRUCTION]: handleIo,
  [Reason.CR_ACCESS]: handleCr,
  [Reason.DR_ACCESS]: handleDr,
  [Reason.CPUID]: kvmEmulateCpuid,
  [Reason.MSR_READ]: kvmEmulateRdmsr,
  [Reason.MSR_WRITE]: kvmEmulateWrmsr,
  [Reason.HLT]: kvmEmulateHalt,
  [Reason.INVD]: kvmEmulateInvd,
  [Reason.INVLPG]: handleInvlpg,
  [Reason.RDPMC]: kvmEmulateRdpmc,
  [Reason.VMCALL]: kvmEmulateHypercall,
  [Reason.VMCLEAR]: handleVmxInstruction,
  [Reason.VMLAUNCH]: handleVmxInstruction,
  [Reason.VMPTRLD]: handleVmxInstruction,
  [Reason.VMPTRST]: handleVmxInstruction,
  [Reason.VMREAD]: handleVmxInstruction,
  [Reason.VMRESUME]: handleVmxInstruction,
  [Reason.VMWRITE]: handleVmxInstruction,
  [Reason.VMOFF]: handleVmxInstruction,
  [Reason.VMON]: handleVmxInstruction,
  [Reason.INVEPT]: handleVmxInstruction,
  [Reason.INVVPID]: handleVmxInstruction,
  [Reason.VMFUNC]: kvmHandleInvalidOp,
  [Reason.GETSEC]: kvmHandleInvalidOp,
  [Reason.WBINVD]: kvmEmulateWbinvd,
  [Reason.XSETBV]: kvmEmulateXsetbv,
  [Reason.TASK_SWITCH]: handleTaskSwitch,
  [Reason.GDTR_IDTR]: handleDesc,
  [Reason.LDTR_TR]: handleDesc,
  [Reason.EPT_VIOLATION]: handleEptViolation,
  [Reason.EPT_MISCONFIG]: handleEptMisconfig,
  [Reason.PAUSE_INSTRUCTION]: handlePause,
  [Reason.MWAIT_INSTRUCTION]: kvmEmulateMwait,
  [Reason.MONITOR_TRAP_FLAG]: handleMonitorTrap,
  [Reason.MONITOR_INSTRUCTION]: kvmEmulateMonitor,
  [Reason.INVPCID]: handleInvpcid,
  [Reason.RDRAND]: kvmHandleInvalidOp,
  [Reason.RDSEED]: kvmHandleInvalidOp,
  [Reason.PREEMPTION_TIMER]: handlePreemptionTimer,
};

/** Exits that may well happen while an event is on its way. */
const DELIVERY_EXITS: ReadonlySet<number> = new Set([
  Reason.EXCEPTION_NMI,
  Reason.EPT_VIOLATION,
  Reason.PML_FULL,
  Reason.APIC_ACCESS,
  Reason.TASK_SWITCH,
  Reason.NOTIFY,
  Reason.EPT_MISCONFIG,
]);

/** The entry failed: why, as data. */
function failEntry(vcpu: Vcpu, reason: number): number {
  const vmx = toVmx(vcpu);
  vcpu.exit = {
    reason: 'fail_entry',
    hardwareEntryFailureReason: BigInt(reason),
    cpu: 0,
    failures: [...vmx.failures],
  };
  return 0;
}
function vectoringExit(vcpu: Vcpu, reason: number): number {
  const mapped = reason === Reason.EPT_MISCONFIG || reason === Reason.EPT_VIOLATION;
  kvmPrepareEventVectoringExit(vcpu, mapped ? vmcsOf(vcpu).readAddress(F.GUEST_PHYSICAL_ADDRESS) : 0);
  return 0;
}

/** KVM: vmx_handle_exit. */
export function vmxHandleExit(vcpu: Vcpu, fastpath: FastPath): number {
  if (unframed(vcpu, vmxHandleExit)) return inFrame(vmxHandleExit, vcpu, fastpath);
  const vmx = toVmx(vcpu);
  if (fastpath === FastPath.EXIT_USERSPACE) return 0;
  if (isGuestMode(vcpu)) throw new NotImplementedError('exits of L2 (nested VMX)', 'SDM vol. 3 ch. 27');
  if (vcpu.arch.emulationRequired) return handleInvalidGuestState(vcpu);
  if (vmx.fail !== 0) return failEntry(vcpu, vmcsOf(vcpu).read32(F.VM_INSTRUCTION_ERROR));
  if (vmx.exitReason >= FAILED_VMENTRY) return failEntry(vcpu, vmx.exitReason);
  const reason = vmx.exitReason & 0xffff;
  if (vmx.idtVectoringInfo & INTR_VALID && !DELIVERY_EXITS.has(reason)) return vectoringExit(vcpu, reason);
  if (fastpath !== FastPath.NONE) return 1;
  const handler = kvmVmxExitHandlers[reason];
  if (handler === undefined) {
    kvmPrepareUnexpectedReasonExit(vcpu, vmx.exitReason);
    return 0;
  }
  return handler(vcpu);
}
ownFrame('vmxHandleExit', vmxHandleExit);

/** #PF emulation can't restart an interrupted delivery. KVM: vmx_check_emulate_instruction. */
export function vmxCheckEmulateInstruction(vcpu: Vcpu, emulType: number): 0 | 7 {
  const vectoring = (toVmx(vcpu).idtVectoringInfo & INTR_VALID) !== 0;
  return (emulType & EmulType.PF) !== 0 && vectoring ? 7 : 0;
}
