/** One VM entry and exit. KVM: svm.c (svm_vcpu_run, svm_vcpu_enter_exit, pre_svm_run). */
import {
  Apic as apicRegisters,
  type EntryInfo,
  type ExitInfo,
  FastPath,
  inFrame,
  kvmFastCpuid,
  kvmFastpathOutcome,
  kvmMayUseFastpath,
  kvmMayUseStub,
  kvmSetCr8,
  ownFrame,
  RegBit as regBits,
  VCPU_REGS_RIP as rip,
  RunFlag as runFlags,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { RAX as rax, RSP as rsp, S } from '@tskvm/emulator';
import { svmCompleteInterrupts, svmMaySkip, svmSkip, svmSkipEmulatedInstruction } from './events.ts';
import { svmExitName } from './exit-names.ts';
import { svmHandleExit, svmInvokeExitHandler, svmReadGuestOwnedCr } from './exits.ts';
import { EventInfo, IntCtl as intCtlBits, SvmExit, V, Q as vmcbQuads, W as vmcbWords } from './hardware/index.ts';
import { assignAsid } from './mmu.ts';
import { DR6_ACTIVE_LOW, svmFastSetCr0, svmSetDr6 } from './registers.ts';
import { sevEsUnmapGhcb, sevLaunchUpdateVmsa } from './sev.ts';
import { svmModule, toSvm, type VcpuSvm } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const Q = vmcbQuads;
const IntCtl = intCtlBits;
const RunFlag = runFlags;
const RegBit = regBits;
const Apic = apicRegisters;
const RAX = rax;
const RSP = rsp;
const VCPU_REGS_RIP = rip;

/** Guest-only host state: TSC_AUX, XCR0 and DR0-3 are not VMRUN's. KVM: svm_prepare_switch_to_guest. */
export function svmPrepareSwitchToGuest(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  if (svm.sev !== null) {
    sevEsUnmapGhcb(vcpu);
    return;
  }
  loadTscAux(vcpu, svm);
}
/** Compared in words, so that nothing is allocated while it stays the same. */
function loadTscAux(vcpu: Vcpu, { tscAux }: VcpuSvm): void {
  const { state } = vcpu.kvm.processor;
  const { view, base } = state;
  const value = vcpu.arch.tscAux;
  if (value !== tscAux.value) {
    tscAux.value = value;
    tscAux.low = Number(value & 0xffff_ffffn);
    tscAux.high = Number((value >> 32n) & 0xffff_ffffn);
  }
  const at = base + S.tscAux;
  if (view.getUint32(at, true) === tscAux.low && view.getUint32(at + 4, true) === tscAux.high) return;
  state.set64(S.tscAux, value);
}

/** CR8 as KVM has it. */
const guestTpr = (vcpu: Vcpu): number =>
  vcpu.arch.apic ? (vcpu.arch.apic.get(Apic.TPR) >>> 4) & 0xf : Number(vcpu.arch.cr8 & 0xfn);

/** V_TPR back to the local APIC. KVM: sync_cr8_to_lapic. */
function syncCr8ToLapic(vcpu: Vcpu, { vmcb }: VcpuSvm): void {
  if (vmcb.hasIntercept(SvmExit.WRITE_CR8)) return;
  kvmSetCr8(vcpu, BigInt(vmcb.words[W.intCtl] & IntCtl.V_TPR_MASK));
}

/** VMLOAD, VMRUN; VMSAVE comes when it is needed. A protected guest's registers stay in its VMSA. KVM: svm_vcpu_enter_exit. */
function enterExit(vcpu: Vcpu, svm: VcpuSvm): void {
  const { hw, params } = svmModule(vcpu);
  const { vmcb } = svm;
  const { quads, pa } = vmcb;
  const { regs, cr2 } = vcpu.arch;
  if (svm.sev !== null) {
    hw.vmrun(pa, regs);
    return;
  }
  quads[Q.rax] = regs[RAX];
  quads[Q.rsp] = regs[RSP];
  quads[Q.rip] = regs[VCPU_REGS_RIP];
  quads[Q.cr2] = cr2[0];
  if (svm.vmloadDue) hw.vmload(pa);
  svm.vmloadDue = false;
  // An event that goes with this entry is completed by the exit behind it.
  const may = params.nrips && !svm.awaitingIret && vmcb.words[W.eventInj] >= 0 && kvmMayUseStub(vcpu, OPS);
  if (may) svm.stub.arm();
  hw.vmrun(pa, regs, may ? svm.stub : null);
  if (may) svm.stub.settle();
  // RAX, RSP and RIP come back in the array as they stand in the VMCB.
  svm.vmsaveDue = true;
  cr2[0] = quads[Q.cr2];
}
function traceExit(vcpu: Vcpu): void {
  const { tracer } = vcpu.kvm;
  if (tracer === null) return;
  const { reason, name, isa, info1, info2, intrInfo, errorCode } = svmGetExitInfo(vcpu);
  tracer.lastExit = { reason, name, vcpuId: vcpu.vcpuId };
  let requests = 0n;
  for (const request of vcpu.requests) requests |= 1n << BigInt(request);
  const rip = vcpu.arch.regs[VCPU_REGS_RIP];
  tracer.emit('kvm_exit', {
    vcpuId: vcpu.vcpuId,
    reason,
    name,
    rip,
    isa,
    info1,
    info2,
    intrInfo,
    errorCode,
    requests,
  });
}

/** KVM: svm_vcpu_run. */
export function svmVcpuRun(vcpu: Vcpu, runFlags: number): FastPath {
  if (unframed(vcpu, svmVcpuRun)) return inFrame(svmVcpuRun, vcpu, runFlags);
  const svm = toSvm(vcpu);
  const { words } = svm.vmcb;
  const { hw } = svmModule(vcpu);
  // A self-IPI that arrives as soon as the guest has been entered (KVM: smp_send_reschedule).
  if ((runFlags & RunFlag.FORCE_IMMEDIATE_EXIT) !== 0) vcpu.kvm.processor.interruptPending = true;
  if (svm.sev !== null) sevLaunchUpdateVmsa(vcpu);
  assignAsid(vcpu);
  // KVM: sync_lapic_to_cr8.
  const tpr = guestTpr(vcpu);
  words[W.intCtl] = (words[W.intCtl] & ~0xff) | tpr;
  if ((runFlags & RunFlag.LOAD_GUEST_DR6) !== 0) svmSetDr6(vcpu, vcpu.arch.dr6);
  else if (words[W.dr6] !== DR6_INACTIVE) svmSetDr6(vcpu, DR6_ACTIVE_LOW);
  hw.clgi();
  enterExit(vcpu, svm);
  hw.stgi();
  if ((words[W.intCtl] & IntCtl.V_TPR_MASK) !== tpr && svm.sev === null) syncCr8ToLapic(vcpu, svm);
  if (svm.nextRip !== 0n) svm.nextRip = 0n;
  // TLB_CONTROL_DO_NOTHING.
  words[W.tlbCtl] &= ~0xff;
  words[W.clean] = ALWAYS_CLEAN;
  vcpu.arch.regsAvail.deleteBit(RegBit.pdptr);
  if (vcpu.kvm.tracer !== null) traceExit(vcpu);
  svmCompleteInterrupts(vcpu);
  return svmExitHandlersFastpath(vcpu, svm);
}
ownFrame('svmVcpuRun', svmVcpuRun);
const OPS = {
  vcpuRun: svmVcpuRun,
  handleExit: svmHandleExit,
  skipEmulatedInstruction: svmSkipEmulatedInstruction,
};
/** KVM: svm_exit_handlers_fastpath. */
function svmExitHandlersFastpath(vcpu: Vcpu, svm: VcpuSvm): FastPath {
  const { words } = svm.vmcb;
  const code = words[W.exitCode];
  if (!isFast(code, words[W.exitInfo1]) || svm.sev !== null) return FastPath.NONE;
  if (!kvmMayUseFastpath(vcpu, svmHandleExit, svmSkipEmulatedInstruction)) return FastPath.NONE;
  svmReadGuestOwnedCr(vcpu, svm);
  if (!svmMaySkip(vcpu)) return FastPath.NONE;
  if (code === SvmExit.CPUID && kvmFastCpuid(vcpu, vcpu.arch.regs32)) {
    svmSkip(vcpu);
    return FastPath.REENTER_GUEST;
  }
  if ((code === CR0_SEL_WRITE || code === WRITE_CR0) && svmFastSetCr0(vcpu, svm)) {
    svmSkip(vcpu);
    return FastPath.REENTER_GUEST;
  }
  return kvmFastpathOutcome(vcpu, svmInvokeExitHandler(vcpu, code));
}
/** CPUID, RDMSR, accesses to control registers, IN and OUT that are no string instructions. */
function isFast(code: number, info: number): boolean {
  if (code === CPUID || code <= LAST_CR || code === CR0_SEL_WRITE) return code >= 0;
  return code === MSR ? info === 0 : code === IOIO && (info & IO_STRING) === 0;
}
const { CPUID, CR0_SEL_WRITE, IOIO, MSR, WRITE_CR0, WRITE_CR8: LAST_CR } = SvmExit;
const IO_STRING = 4;
const DR6_INACTIVE = Number(DR6_ACTIVE_LOW) | 0;
/** All groups but the two that KVM always treats as dirty: int_ctl (3) and CR2 (9). */
const ALWAYS_CLEAN = 0xffff_ffff & ~((1 << 3) | (1 << 9));

/** The host takes the interrupt that made the guest exit. KVM: svm_handle_exit_irqoff. */
export function svmHandleExitIrqoff(vcpu: Vcpu): void {
  if (toSvm(vcpu).vmcb.get32(V.exitCode) === SvmExit.INTR) vcpu.arch.atInstructionBoundary = true;
}

/** KVM: svm_get_exit_info. */
export function svmGetExitInfo(vcpu: Vcpu): ExitInfo {
  const { vmcb } = toSvm(vcpu);
  const reason = vmcb.get32(V.exitCode) | 0;
  const intrInfo = vmcb.get32(V.exitIntInfo);
  const valid = EventInfo.VALID | EventInfo.ERROR_VALID;
  return {
    reason,
    name: svmExitName(reason),
    isa: 2,
    info1: vmcb.get64(V.exitInfo1),
    info2: vmcb.get64(V.exitInfo2),
    intrInfo,
    errorCode: (intrInfo & valid) >>> 0 === valid >>> 0 ? vmcb.get32(V.exitIntInfoErr) : 0,
  };
}
/** KVM: svm_get_entry_info. */
export function svmGetEntryInfo(vcpu: Vcpu): EntryInfo {
  const { vmcb } = toSvm(vcpu);
  const intrInfo = vmcb.get32(V.eventInj);
  const error = (intrInfo & EventInfo.VALID) !== 0 && (intrInfo & EventInfo.ERROR_VALID) !== 0;
  return { intrInfo, errorCode: error ? vmcb.get32(V.eventInjErr) : 0 };
}
