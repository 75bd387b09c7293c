/**
 * One entry and exit, and what every exit needs: registers in and out, skipping the instruction, exit information.
 * KVM: vmx_vcpu_run, vmx_skip_emulated_instruction, vmx_get_exit_info in vmx.c; vmenter.S.
 */
import {
  EmulType,
  type EntryInfo,
  type ExitInfo,
  FastPath,
  inFrame,
  is64BitMode,
  kvmEmulateInstruction,
  kvmFastCpuid,
  kvmFastpathOutcome,
  kvmMayUseFastpath,
  kvmMayUseStub,
  kvmRipRead,
  kvmRipWrite,
  ownFrame,
  RegBit as regBits,
  VCPU_REGS_RIP as rip,
  RunFlag as runFlags,
  trace,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { Flag as flagBits, RSP as rsp, S as stateLayout } from '@tskvm/emulator';
import {
  vmxCompleteInterrupts,
  vmxCompleteRealmodeEvents,
  vmxGetInterruptShadow,
  vmxSetInterruptShadow,
} from './events.ts';
import { kvmVmxExitHandlers, vmxHandleExit } from './exits.ts';
import { FAILED_VMENTRY, INTR_ERROR_CODE, INTR_VALID, PendingDebug, Reason as reasons } from './hardware/bits.ts';
import { F, Word as vmcsWords } from './hardware/vmcs.ts';
import { vmxLoadGuestMsrs } from './msrs.ts';
import { vmxEptLoadPdptrs, vmxFastSetCr0 } from './registers.ts';
import { toVmx, type VcpuVmx, vmcsOf } from './vcpu-vmx.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const RegBit = regBits;
const RSP = rsp;
const VCPU_REGS_RIP = rip;
const S = stateLayout;
const RunFlag = runFlags;
const Reason = reasons;
const Flag = flagBits;

const REASON_NAMES = new Map<number, string>(Object.entries(Reason).map(([name, reason]) => [reason, name]));
/** KVM's symbol of an exit reason, with its flags: `CR_ACCESS`, `INVALID_STATE FAILED_VMENTRY`. */
export function exitReasonName(reason: number): string {
  const name = REASON_NAMES.get(reason & 0xffff) ?? `0x${(reason & 0xffff).toString(16)}`;
  return reason >= FAILED_VMENTRY ? `${name} FAILED_VMENTRY` : name;
}

/** All general registers but RSP, which the VMCS holds. Quads go from typed array to typed array: no bigint is made on the way. */
function copyRegisters(to: BigUint64Array, from: BigUint64Array): void {
  to[0] = from[0];
  to[1] = from[1];
  to[2] = from[2];
  to[3] = from[3];
  to[5] = from[5];
  to[6] = from[6];
  to[7] = from[7];
  to[8] = from[8];
  to[9] = from[9];
  to[10] = from[10];
  to[11] = from[11];
  to[12] = from[12];
  to[13] = from[13];
  to[14] = from[14];
  to[15] = from[15];
}
/** Registers that were changed since the last exit, into the VMCS. */
function flushRegisters(vcpu: Vcpu): void {
  const { regs, regsDirty } = vcpu.arch;
  if (regsDirty.isEmpty) return;
  const v = vmcsOf(vcpu);
  if (regsDirty.hasBit(RegBit.rsp)) v.copyIn(F.GUEST_RSP, regs, RSP);
  if (regsDirty.hasBit(RegBit.rip)) v.writeRip(regs, VCPU_REGS_RIP);
  if (regsDirty.hasBit(RegBit.pdptr)) vmxEptLoadPdptrs(vcpu);
  regsDirty.clear();
}

/** DR0-3 and DR6 while the guest has breakpoints armed or the registers to itself. */
function loadDebugRegisters(vcpu: Vcpu, runFlags: number): void {
  const { state } = vcpu.kvm.processor;
  for (let i = 0; i < 4; i++) state.set64(S.dr0 + 8 * i, vcpu.arch.effDb[i]);
  if (runFlags & RunFlag.LOAD_GUEST_DR6) state.set64(S.dr6, vcpu.arch.dr6);
}

/** Entry wants BS pending exactly if TF is set under a shadow (SDM vol. 3 26.3.1.5), also when the emulator made the shadow. */
function matchPendingTrap(vcpu: Vcpu): void {
  const v = vmcsOf(vcpu);
  const stepping = (v.readLow(F.GUEST_RFLAGS) & 0x100) !== 0 && !(v.readLow(F.GUEST_IA32_DEBUGCTL) & 2);
  const pending = v.read64(F.GUEST_PENDING_DBG_EXCEPTIONS);
  const wanted = stepping ? pending | PendingDebug.bs : pending & ~PendingDebug.bs;
  if (wanted !== pending) v.write64(F.GUEST_PENDING_DBG_EXCEPTIONS, wanted);
}

const GUESTDBG_SINGLESTEP = 2;
/** One entry and one exit. KVM: vmx_vcpu_run. */
export function vmxVcpuRun(vcpu: Vcpu, runFlags: number): FastPath {
  if (unframed(vcpu, vmxVcpuRun)) return inFrame(vmxVcpuRun, vcpu, runFlags);
  const vmx = toVmx(vcpu);
  if (vcpu.arch.emulationRequired) {
    vmx.fail = 0;
    vmx.exitReason = (Reason.INVALID_STATE | FAILED_VMENTRY) >>> 0;
    vmx.exitIntrInfo = 0;
    vmx.idtVectoringInfo = 0;
    const { tracer } = vcpu.kvm;
    if (tracer !== null) {
      tracer.emulated = { reason: vmx.exitReason, name: 'emulated invalid guest state', vcpuId: vcpu.vcpuId };
    }
    if (vmx.rmode.vm86Active) vmxCompleteRealmodeEvents(vcpu);
    return FastPath.NONE;
  }
  flushRegisters(vcpu);
  if (vcpu.guestDebug & GUESTDBG_SINGLESTEP) vmxSetInterruptShadow(vcpu, 0);
  if (vmxGetInterruptShadow(vcpu) !== 0) matchPendingTrap(vcpu);
  if (vcpu.arch.switchDbRegs !== 0) loadDebugRegisters(vcpu, runFlags);
  // A self-IPI that arrives as soon as the guest has been entered (KVM without the preemption timer: smp_send_reschedule).
  if (runFlags & RunFlag.FORCE_IMMEDIATE_EXIT) vcpu.kvm.processor.interruptPending = true;
  enter(vcpu, vmx);
  return afterExit(vcpu, vmx);
}
ownFrame('vmxVcpuRun', vmxVcpuRun);

/** KVM: vmx_vcpu_enter_exit. */
function enter(vcpu: Vcpu, vmx: VcpuVmx): void {
  const { silicon } = vmx;
  const { regs, cr2 } = vcpu.arch;
  const { words } = vmcsOf(vcpu);
  vmxLoadGuestMsrs(vcpu);
  copyRegisters(silicon.gprs, regs);
  silicon.cr2[0] = cr2[0];
  // An event that goes with this entry is completed by the exit behind it.
  const may = !vmx.rmode.vm86Active && words[Word.entryIntrInfo] >= 0 && kvmMayUseStub(vcpu, OPS);
  const stub = may ? vmx.stub : null;
  if (may) vmx.stub.arm();
  vmx.fail = vmx.launched ? silicon.vmresume(stub) : silicon.vmlaunch(stub);
  if (vmx.fail !== 0) {
    vmx.failures = silicon.failures;
    vmx.exitReason = 0xdead;
    vmx.idtVectoringInfo = 0;
    vmx.exitIntrInfo = 0;
    return;
  }
  copyRegisters(regs, silicon.gprs);
  cr2[0] = silicon.cr2[0];
  vmx.exitReason = words[Word.exitReason] >>> 0;
  vmx.idtVectoringInfo = words[Word.idtVectoringInfo] >>> 0;
  vmx.exitIntrInfo = words[Word.exitIntrInfo] >>> 0;
}

function afterExit(vcpu: Vcpu, vmx: VcpuVmx): FastPath {
  const { arch } = vcpu;
  arch.regsAvail.clear();
  vmx.stub.settle();
  if (vmx.fail !== 0) return FastPath.NONE;
  if (vcpu.kvm.tracer !== null) traceExit(vcpu);
  if (vmx.exitReason >= FAILED_VMENTRY) {
    vmx.failures = vmx.silicon.failures;
    return FastPath.NONE;
  }
  vmx.launched = true;
  vmxCompleteInterrupts(vcpu);
  return vmxExitHandlersFastpath(vcpu, vmx);
}
const OPS = {
  vcpuRun: vmxVcpuRun,
  handleExit: vmxHandleExit,
  skipEmulatedInstruction: vmxSkipEmulatedInstruction,
};
/** KVM: vmx_exit_handlers_fastpath. */
function vmxExitHandlersFastpath(vcpu: Vcpu, vmx: VcpuVmx): FastPath {
  const { exitReason } = vmx;
  if (!isFast(exitReason) || !maySkip(vcpu, vmx)) return FastPath.NONE;
  if (!kvmMayUseFastpath(vcpu, vmxHandleExit, vmxSkipEmulatedInstruction)) return FastPath.NONE;
  if (exitReason === Reason.CPUID && kvmFastCpuid(vcpu, vcpu.arch.regs32)) {
    vmxSkipEmulatedInstruction(vcpu);
    vcpu.kvm.processor.tick++;
    return FastPath.REENTER_GUEST;
  }
  if (exitReason === CR_ACCESS && vmxFastSetCr0(vcpu, vmcsOf(vcpu).words[Word.exitQualification], vcpu.arch.regs32)) {
    vmxSkipEmulatedInstruction(vcpu);
    vcpu.kvm.processor.tick++;
    return FastPath.REENTER_GUEST;
  }
  return kvmFastpathOutcome(vcpu, kvmVmxExitHandlers[exitReason](vcpu));
}

const isFast = (reason: number): boolean =>
  reason === CPUID || reason === MSR_READ || reason === CR_ACCESS || reason === IO_INSTRUCTION;
const { CPUID, MSR_READ, CR_ACCESS, IO_INSTRUCTION } = Reason;

/** For a fastpath: RIP is as the exit left it, and there is no trap to be made of TF. */
const maySkip = (vcpu: Vcpu, vmx: VcpuVmx): boolean =>
  (vmcsOf(vcpu).block[S.rflags >> 2] & Flag.TF) === 0 &&
  !vmx.rmode.vm86Active &&
  !vcpu.arch.regsDirty.hasBit(RegBit.rip);

function traceExit(vcpu: Vcpu): void {
  trace(vcpu, 'kvm_exit', () => {
    const info = vmxGetExitInfo(vcpu);
    vcpu.kvm.tracer!.lastExit = { reason: info.reason, name: info.name, vcpuId: vcpu.vcpuId };
    let requests = 0n;
    for (const req of vcpu.requests) requests |= 1n << BigInt(req);
    return { vcpuId: vcpu.vcpuId, rip: kvmRipRead(vcpu), ...info, requests };
  });
}

/** KVM: vmx_get_exit_info. */
export function vmxGetExitInfo(vcpu: Vcpu): ExitInfo {
  const vmx = toVmx(vcpu);
  const failed = vmx.exitReason >= FAILED_VMENTRY;
  const withCode = (vmx.exitIntrInfo & (INTR_VALID | INTR_ERROR_CODE)) >>> 0 === (INTR_VALID | INTR_ERROR_CODE) >>> 0;
  const v = vmcsOf(vcpu);
  return {
    reason: vmx.exitReason,
    name: exitReasonName(vmx.exitReason),
    isa: 1,
    info1: failed ? 0n : v.read64(F.EXIT_QUALIFICATION),
    info2: failed ? 0n : BigInt(vmx.idtVectoringInfo >>> 0),
    intrInfo: failed ? 0 : vmx.exitIntrInfo >>> 0,
    errorCode: !failed && withCode ? v.read32(F.VM_EXIT_INTR_ERROR_CODE) : 0,
  };
}
/** KVM: vmx_get_entry_info. */
export function vmxGetEntryInfo(vcpu: Vcpu): EntryInfo {
  const v = vmcsOf(vcpu);
  const intrInfo = v.read32(F.VM_ENTRY_INTR_INFO_FIELD);
  const withCode = (intrInfo & INTR_VALID) !== 0 && (intrInfo & INTR_ERROR_CODE) !== 0;
  return { intrInfo, errorCode: withCode ? v.read32(F.VM_ENTRY_EXCEPTION_ERROR_CODE) : 0 };
}

const RIP_WORD = 32;
/** RIP += length, in words as long as bit 31 does not change; only a step over 2 or 4 GiB needs to know the mode. */
function advanceRip(vcpu: Vcpu, vmx: VcpuVmx, length: number): void {
  const { arch } = vcpu;
  if (!arch.regsAvail.hasBit(RegBit.rip)) {
    arch.regsAvail.addBit(RegBit.rip);
    vmcsOf(vcpu).readRip(arch.regs, VCPU_REGS_RIP);
  }
  const low = vmx.regs32[RIP_WORD];
  const next = (low + length) | 0;
  if ((low ^ next) >= 0) {
    vmx.regs32[RIP_WORD] = next;
    arch.regsDirty.addBit(RegBit.rip);
    return;
  }
  const rip = kvmRipRead(vcpu) + BigInt(length);
  kvmRipWrite(vcpu, is64BitMode(vcpu) ? rip : rip & 0xffffffffn);
}

/** RIP behind the exiting instruction; the shadow ends. KVM: vmx_skip_emulated_instruction. */
export function vmxSkipEmulatedInstruction(vcpu: Vcpu): number {
  const vmx = toVmx(vcpu);
  if (vmx.exitReason === Reason.EPT_MISCONFIG || vcpu.arch.regsDirty.hasBit(RegBit.rip)) {
    // Hardware gives no length there; and a RIP that was written since the exit (a snapshot was loaded) is not the one whose length it gave.
    if (!kvmEmulateInstruction(vcpu, EmulType.SKIP)) return 0;
  } else {
    advanceRip(vcpu, vmx, vmcsOf(vcpu).words[Word.exitInstructionLen]);
  }
  vmxSetInterruptShadow(vcpu, 0);
  return 1;
}

/** The interrupt was acknowledged by the exit; the host has taken it. KVM: vmx_handle_exit_irqoff. */
export function vmxHandleExitIrqoff(vcpu: Vcpu): void {
  if (toVmx(vcpu).exitReason === Reason.EXTERNAL_INTERRUPT) vcpu.arch.atInstructionBoundary = true;
}
