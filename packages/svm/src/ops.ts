/** The op table of the SVM driver. KVM: svm.c (struct kvm_x86_ops svm_x86_ops, svm_nested_ops). */
import {
  EmulType,
  type KvmX86Ops,
  kvmLapicSetIrr,
  kvmMakeRequest,
  kvmVcpuDeliverSipiVector,
  Req,
  type Vcpu,
} from '@tskvm/core';
import { type InstructionInfo, X86Emul } from '@tskvm/emulator';
import {
  svmCancelInjection,
  svmEnableIrqWindow,
  svmEnableNmiWindow,
  svmGetInterruptShadow,
  svmGetNmiMask,
  svmInjectException,
  svmInjectIrq,
  svmInjectNmi,
  svmInterruptAllowed,
  svmNmiAllowed,
  svmSetInterruptShadow,
  svmSetNmiMask,
  svmSkipEmulatedInstruction,
} from './events.ts';
import { svmHandleExit } from './exits.ts';
import { Clean, EventInfo, SvmExit, V } from './hardware/index.ts';
import { svmUpdateExceptionBitmap } from './intercepts.ts';
import { svmFlushTlbAll, svmFlushTlbCurrent, svmFlushTlbGuest, svmFlushTlbGva, svmLoadMmuPgd } from './mmu.ts';
import { svmGetFeatureMsr, svmGetMsr, svmHasEmulatedMsr, svmSetMsr } from './msrs.ts';
import {
  nestedSvmIsExceptionVmexit,
  nestedSvmTripleFault,
  svmCheckNestedEvents,
  svmGetNestedState,
  svmGetNestedStatePages,
  svmLeaveNested,
  svmSetNestedState,
  svmTranslateNestedGpa,
} from './nested.ts';
import {
  svmCacheReg,
  svmGetCpl,
  svmGetCsDbLBits,
  svmGetGdt,
  svmGetIdt,
  svmGetIfFlag,
  svmGetRflags,
  svmGetSegment,
  svmGetSegmentBase,
  svmIsValidCr0,
  svmIsValidCr4,
  svmPostSetCr3,
  svmSetCr0,
  svmSetCr4,
  svmSetDr7,
  svmSetEfer,
  svmSetGdt,
  svmSetIdt,
  svmSetRflags,
  svmSetSegment,
  svmSyncDirtyDebugRegs,
} from './registers.ts';
import { svmGetEntryInfo, svmGetExitInfo, svmHandleExitIrqoff, svmPrepareSwitchToGuest, svmVcpuRun } from './run.ts';
import {
  svmCheckProcessorCompatibility,
  svmDisableVirtualizationCpu,
  svmEnableVirtualizationCpu,
  svmHardwareUnsetup,
  svmRecalcIntercepts,
  svmVcpuAfterSetCpuid,
  svmVcpuCreate,
  svmVcpuFree,
  svmVcpuLoad,
  svmVcpuPut,
  svmVcpuReset,
  svmVmDestroy,
  svmVmInit,
} from './setup.ts';
import { sevDeliverSipiVector, svmCompleteEmulatedMsr } from './sev.ts';
import { svmEnableSmiWindow, svmEnterSmm, svmLeaveSmm, svmSmiAllowed } from './smm.ts';
import { sevEsGuest, toSvm } from './vcpu-svm.ts';

/** VMMCALL. KVM: svm_patch_hypercall. */
function svmPatchHypercall(_vcpu: Vcpu, into: Uint8Array): void {
  into.set([0x0f, 0x01, 0xd9]);
}
/**
 * A page fault while an exception or NMI was being delivered can't be emulated: the instruction at RIP has not caused it. As in KVM, an
 * external interrupt (type 0) does not count. A guest whose state is encrypted is never emulated: its instruction runs again.
 * KVM: svm_check_emulate_instruction.
 */
function svmCheckEmulateInstruction(vcpu: Vcpu, emulType: number): X86Emul {
  const delivered = toSvm(vcpu).vmcb.get32(V.exitIntInfo) & EventInfo.TYPE_MASK;
  if (delivered !== 0 && (emulType & EmulType.PF) !== 0) return X86Emul.UNHANDLEABLE_VECTORING;
  return sevEsGuest(vcpu) ? X86Emul.RETRY_INSTR : X86Emul.CONTINUE;
}
/** Only L1 could intercept what KVM emulates for L2. KVM: svm_check_intercept. */
const svmCheckIntercept = (_vcpu: Vcpu, _info: InstructionInfo): X86Emul => X86Emul.CONTINUE;

/** With the TPR above every pending interrupt a CR8 write must exit, else it need not. KVM: svm_update_cr8_intercept. */
function svmUpdateCr8Intercept(vcpu: Vcpu, tpr: number, irr: number): void {
  // Write traps, not intercepts, follow the CR8 of a protected guest.
  if (sevEsGuest(vcpu)) return;
  toSvm(vcpu).vmcb.setIntercept(SvmExit.WRITE_CR8, irr !== -1 && tpr >= irr);
}

/** KVM: svm_deliver_interrupt, without AVIC. */
function svmDeliverInterrupt(vcpu: Vcpu, _deliveryMode: number, _trigMode: number, vector: number): void {
  if (vcpu.arch.apic) kvmLapicSetIrr(vector, vcpu.arch.apic);
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** KVM: svm_write_tsc_offset. */
function svmWriteTscOffset(vcpu: Vcpu): void {
  const { vmcb } = toSvm(vcpu);
  vmcb.set64(V.tscOffset, BigInt.asUintN(64, vcpu.arch.tscOffset));
  vmcb.markDirty(Clean.INTERCEPTS);
}
/** KVM: svm_vcpu_deliver_sipi_vector. */
function svmVcpuDeliverSipiVector(vcpu: Vcpu, vector: number): void {
  if (sevEsGuest(vcpu)) sevDeliverSipiVector(vcpu);
  else kvmVcpuDeliverSipiVector(vcpu, vector);
}

/** KVM's svm_x86_ops and svm_nested_ops. */
export const SVM_X86_OPS: KvmX86Ops = {
  checkProcessorCompatibility: svmCheckProcessorCompatibility,
  enableVirtualizationCpu: svmEnableVirtualizationCpu,
  disableVirtualizationCpu: svmDisableVirtualizationCpu,
  hardwareUnsetup: svmHardwareUnsetup,
  hasEmulatedMsr: svmHasEmulatedMsr,
  vmInit: svmVmInit,
  vmDestroy: svmVmDestroy,
  vcpuCreate: svmVcpuCreate,
  vcpuFree: svmVcpuFree,
  vcpuReset: svmVcpuReset,
  vcpuAfterSetCpuid: svmVcpuAfterSetCpuid,
  prepareSwitchToGuest: svmPrepareSwitchToGuest,
  vcpuLoad: svmVcpuLoad,
  vcpuPut: svmVcpuPut,

  isValidCr0: svmIsValidCr0,
  setCr0: svmSetCr0,
  postSetCr3: svmPostSetCr3,
  isValidCr4: svmIsValidCr4,
  setCr4: svmSetCr4,
  setEfer: svmSetEfer,
  getIdt: svmGetIdt,
  setIdt: svmSetIdt,
  getGdt: svmGetGdt,
  setGdt: svmSetGdt,
  syncDirtyDebugRegs: svmSyncDirtyDebugRegs,
  setDr7: svmSetDr7,
  cacheReg: svmCacheReg,
  getRflags: svmGetRflags,
  setRflags: svmSetRflags,
  getIfFlag: svmGetIfFlag,
  getCpl: svmGetCpl,
  getCplNoCache: svmGetCpl,
  getSegmentBase: svmGetSegmentBase,
  getSegment: svmGetSegment,
  setSegment: svmSetSegment,
  getCsDbLBits: svmGetCsDbLBits,

  getMsr: svmGetMsr,
  setMsr: svmSetMsr,
  getFeatureMsr: svmGetFeatureMsr,
  completeEmulatedMsr: svmCompleteEmulatedMsr,
  recalcIntercepts: svmRecalcIntercepts,
  updateExceptionBitmap: svmUpdateExceptionBitmap,

  vcpuRun: svmVcpuRun,
  handleExit: svmHandleExit,
  handleExitIrqoff: svmHandleExitIrqoff,
  skipEmulatedInstruction: svmSkipEmulatedInstruction,
  checkEmulateInstruction: svmCheckEmulateInstruction,
  checkIntercept: svmCheckIntercept,
  getExitInfo: svmGetExitInfo,
  getEntryInfo: svmGetEntryInfo,
  patchHypercall: svmPatchHypercall,
  hasWbinvdExit: () => true,
  setupMce: () => {},

  injectIrq: svmInjectIrq,
  injectNmi: svmInjectNmi,
  injectException: svmInjectException,
  cancelInjection: svmCancelInjection,
  interruptAllowed: svmInterruptAllowed,
  nmiAllowed: svmNmiAllowed,
  getNmiMask: svmGetNmiMask,
  setNmiMask: svmSetNmiMask,
  enableNmiWindow: svmEnableNmiWindow,
  enableIrqWindow: svmEnableIrqWindow,
  setInterruptShadow: svmSetInterruptShadow,
  getInterruptShadow: svmGetInterruptShadow,
  updateCr8Intercept: svmUpdateCr8Intercept,

  flushTlbAll: svmFlushTlbAll,
  flushTlbCurrent: svmFlushTlbCurrent,
  flushTlbGva: svmFlushTlbGva,
  flushTlbGuest: svmFlushTlbGuest,
  loadMmuPgd: svmLoadMmuPgd,

  refreshApicvExecCtrl: () => {},
  deliverInterrupt: svmDeliverInterrupt,
  apicInitSignalBlocked: (vcpu) => !toSvm(vcpu).guestGif,
  vcpuDeliverSipiVector: svmVcpuDeliverSipiVector,
  piUpdateIrte: () => 0,
  getL2TscOffset: () => 0n,
  getL2TscMultiplier: () => 1n << 32n,
  writeTscOffset: svmWriteTscOffset,
  writeTscMultiplier: () => {},

  smiAllowed: svmSmiAllowed,
  enterSmm: svmEnterSmm,
  leaveSmm: svmLeaveSmm,
  enableSmiWindow: svmEnableSmiWindow,

  leaveNested: svmLeaveNested,
  isExceptionVmexit: nestedSvmIsExceptionVmexit,
  checkNestedEvents: svmCheckNestedEvents,
  nestedTripleFault: nestedSvmTripleFault,
  getNestedState: svmGetNestedState,
  setNestedState: svmSetNestedState,
  getNestedStatePages: svmGetNestedStatePages,
  translateNestedGpa: svmTranslateNestedGpa,
};
