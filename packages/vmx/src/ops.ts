/** The op table of VMX. KVM: vt_x86_ops (main.c) and vmx_x86_ops (vmx.c). */
import { type KvmX86Ops, kvmLapicDeliver, kvmVcpuDeliverSipiVector, type Vcpu } from '@tskvm/core';
import {
  vmxCancelInjection,
  vmxEnableIrqWindow,
  vmxEnableNmiWindow,
  vmxGetInterruptShadow,
  vmxGetNmiMask,
  vmxInjectException,
  vmxInjectIrq,
  vmxInjectNmi,
  vmxInterruptAllowed,
  vmxNmiAllowed,
  vmxSetInterruptShadow,
  vmxSetNmiMask,
  vmxSmiAllowed,
  vmxUpdateExceptionBitmap,
} from './events.ts';
import { vmxCheckEmulateInstruction, vmxHandleExit } from './exits.ts';
import { F } from './hardware/vmcs.ts';
import {
  vmxVcpuAfterSetCpuid,
  vmxVcpuCreate,
  vmxVcpuFree,
  vmxVcpuLoad,
  vmxVcpuReset,
  vmxVmDestroy,
  vmxVmInit,
} from './lifecycle.ts';
import {
  vmxFlushTlbAll,
  vmxFlushTlbCurrent,
  vmxFlushTlbGuest,
  vmxFlushTlbGva,
  vmxGetMtMask,
  vmxLoadMmuPgd,
} from './mmu.ts';
import {
  initMsrBitmap,
  vmxCompleteEmulatedMsr,
  vmxGetFeatureMsr,
  vmxGetMsr,
  vmxHasEmulatedMsr,
  vmxLoadGuestMsrs,
  vmxSaveGuestMsrs,
  vmxSetMsr,
} from './msrs.ts';
import {
  vmxCheckNestedEvents,
  vmxGetNestedState,
  vmxGetNestedStatePages,
  vmxIsExceptionVmexit,
  vmxLeaveNested,
  vmxNestedTripleFault,
  vmxSetNestedState,
  vmxTranslateNestedGpa,
} from './nested.ts';
import {
  vmxCacheReg,
  vmxGetIfFlag,
  vmxGetRflags,
  vmxIsValidCr0,
  vmxIsValidCr4,
  vmxSetCr0,
  vmxSetCr4,
  vmxSetDr7,
  vmxSetEfer,
  vmxSetRflags,
  vmxSyncDirtyDebugRegs,
} from './registers.ts';
import { vmxSetIdentityMapAddr, vmxSetTssAddr, vmxUnhandleableEmulationRequired } from './rmode.ts';
import { vmxGetEntryInfo, vmxGetExitInfo, vmxHandleExitIrqoff, vmxSkipEmulatedInstruction, vmxVcpuRun } from './run.ts';
import {
  vmxGetCpl,
  vmxGetCsDbLBits,
  vmxGetGdt,
  vmxGetIdt,
  vmxGetSegment,
  vmxGetSegmentBase,
  vmxSetGdt,
  vmxSetIdt,
  vmxSetSegment,
} from './segments.ts';
import {
  vmxCheckProcessorCompat,
  vmxDisableVirtualizationCpu,
  vmxEnableVirtualizationCpu,
  vmxHardwareUnsetup,
} from './setup.ts';
import { vmxEnableSmiWindow, vmxEnterSmm, vmxLeaveSmm } from './smm.ts';
import { vmcsOf } from './vcpu-vmx.ts';

/** VMCALL. KVM: vmx_patch_hypercall. */
function vmxPatchHypercall(_vcpu: Vcpu, into: Uint8Array): void {
  into.set([0x0f, 0x01, 0xc1]);
}
/** KVM: vmx_write_tsc_offset. */
function vmxWriteTscOffset(vcpu: Vcpu): void {
  vmcsOf(vcpu).write64(F.TSC_OFFSET, BigInt.asUintN(64, vcpu.arch.tscOffset));
}
/** Without posted interrupts the APIC's IRR is all there is: the vector stands there, the vCPU has to look. KVM: vmx_deliver_interrupt. */
function vmxDeliverInterrupt(vcpu: Vcpu, _deliveryMode: number, _trigMode: number, vector: number): void {
  kvmLapicDeliver(vcpu, vector);
}
function vmxPrepareSwitchToGuest(vcpu: Vcpu): void {
  vmxLoadGuestMsrs(vcpu);
}
function vmxRecalcIntercepts(vcpu: Vcpu): void {
  initMsrBitmap(vcpu);
}
const nothing = (): void => undefined;

/** Every required op and the optional ones that VMX has. */
export const vmxX86Ops: KvmX86Ops = {
  checkProcessorCompatibility: vmxCheckProcessorCompat,
  enableVirtualizationCpu: vmxEnableVirtualizationCpu,
  disableVirtualizationCpu: vmxDisableVirtualizationCpu,
  hardwareUnsetup: vmxHardwareUnsetup,
  hasEmulatedMsr: vmxHasEmulatedMsr,
  vmInit: vmxVmInit,
  vmDestroy: vmxVmDestroy,
  vcpuCreate: vmxVcpuCreate,
  vcpuFree: vmxVcpuFree,
  vcpuReset: vmxVcpuReset,
  vcpuAfterSetCpuid: vmxVcpuAfterSetCpuid,
  prepareSwitchToGuest: vmxPrepareSwitchToGuest,
  vcpuLoad: vmxVcpuLoad,
  vcpuPut: vmxSaveGuestMsrs,

  isValidCr0: vmxIsValidCr0,
  setCr0: vmxSetCr0,
  isValidCr4: vmxIsValidCr4,
  setCr4: vmxSetCr4,
  setEfer: vmxSetEfer,
  getIdt: vmxGetIdt,
  setIdt: vmxSetIdt,
  getGdt: vmxGetGdt,
  setGdt: vmxSetGdt,
  syncDirtyDebugRegs: vmxSyncDirtyDebugRegs,
  setDr7: vmxSetDr7,
  cacheReg: vmxCacheReg,
  getRflags: vmxGetRflags,
  setRflags: vmxSetRflags,
  getIfFlag: vmxGetIfFlag,
  getCpl: vmxGetCpl,
  getCplNoCache: vmxGetCpl,
  getSegmentBase: vmxGetSegmentBase,
  getSegment: vmxGetSegment,
  setSegment: vmxSetSegment,
  getCsDbLBits: vmxGetCsDbLBits,

  getMsr: vmxGetMsr,
  setMsr: vmxSetMsr,
  getFeatureMsr: vmxGetFeatureMsr,
  completeEmulatedMsr: vmxCompleteEmulatedMsr,
  recalcIntercepts: vmxRecalcIntercepts,
  updateExceptionBitmap: vmxUpdateExceptionBitmap,

  vcpuRun: vmxVcpuRun,
  handleExit: vmxHandleExit,
  handleExitIrqoff: vmxHandleExitIrqoff,
  skipEmulatedInstruction: vmxSkipEmulatedInstruction,
  unhandleableEmulationRequired: vmxUnhandleableEmulationRequired,
  checkEmulateInstruction: vmxCheckEmulateInstruction,
  // Only L1 of a nested guest could intercept what KVM emulates.
  checkIntercept: () => 0,
  getExitInfo: vmxGetExitInfo,
  getEntryInfo: vmxGetEntryInfo,
  patchHypercall: vmxPatchHypercall,
  hasWbinvdExit: () => true,
  setupMce: nothing,

  injectIrq: vmxInjectIrq,
  injectNmi: vmxInjectNmi,
  injectException: vmxInjectException,
  cancelInjection: vmxCancelInjection,
  interruptAllowed: vmxInterruptAllowed,
  nmiAllowed: vmxNmiAllowed,
  getNmiMask: vmxGetNmiMask,
  setNmiMask: vmxSetNmiMask,
  enableNmiWindow: vmxEnableNmiWindow,
  enableIrqWindow: vmxEnableIrqWindow,
  setInterruptShadow: vmxSetInterruptShadow,
  getInterruptShadow: vmxGetInterruptShadow,

  flushTlbAll: vmxFlushTlbAll,
  flushTlbCurrent: vmxFlushTlbCurrent,
  flushTlbGva: vmxFlushTlbGva,
  flushTlbGuest: vmxFlushTlbGuest,
  loadMmuPgd: vmxLoadMmuPgd,
  getMtMask: vmxGetMtMask,
  setTssAddr: vmxSetTssAddr,
  setIdentityMapAddr: vmxSetIdentityMapAddr,

  refreshApicvExecCtrl: nothing,
  deliverInterrupt: vmxDeliverInterrupt,
  apicInitSignalBlocked: () => false,
  vcpuDeliverSipiVector: kvmVcpuDeliverSipiVector,
  piUpdateIrte: () => 0,
  getL2TscOffset: () => 0n,
  getL2TscMultiplier: () => 1n << 48n,
  writeTscOffset: vmxWriteTscOffset,
  writeTscMultiplier: nothing,

  smiAllowed: vmxSmiAllowed,
  enterSmm: vmxEnterSmm,
  leaveSmm: vmxLeaveSmm,
  enableSmiWindow: vmxEnableSmiWindow,

  leaveNested: vmxLeaveNested,
  isExceptionVmexit: vmxIsExceptionVmexit,
  checkNestedEvents: vmxCheckNestedEvents,
  nestedTripleFault: vmxNestedTripleFault,
  getNestedState: vmxGetNestedState,
  setNestedState: vmxSetNestedState,
  getNestedStatePages: vmxGetNestedStatePages,
  translateNestedGpa: vmxTranslateNestedGpa,
};
