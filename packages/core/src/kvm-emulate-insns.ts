/** Instructions that exit handlers execute without the emulator. KVM: kvm_emulate_* (x86.c, cpuid.c). */
import { RSI, RAX as rax, RBX as rbx, RCX as rcx, RDX as rdx } from '@tskvm/emulator';
import { kvmFindCpuidEntry, kvmOutOfRangeCpuidEntry } from './cpuid.ts';
import { kvmVcpuHasEvents } from './events.ts';
import { kvmInjectGp } from './exceptions.ts';
import { is64BitHypercall, kvmRaxWrite, kvmRcxRead, kvmReadEdxEax, kvmRegisterReadRaw } from './kvm-cache-regs.ts';
import { kvmCompleteInsnGp, kvmHandleInvalidOp, kvmSkipEmulatedInstruction } from './kvm-emulate.ts';
import { kvmPvSendIpi } from './lapic.ts';
import { kvmGetMsr, kvmSetMsr, kvmSetXcr } from './msrs.ts';
import { requireShape, u64 } from './shape.ts';
import { frame, inFrame, ownFrame, trace, unframed } from './trace.ts';
import { Errno, MpState } from './types.ts';
import type { CpuidEntry, Vcpu } from './vcpu.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const RAX = rax;
const RBX = rbx;
const RCX = rcx;
const RDX = rdx;

/** What a guest reads of a leaf that it has not. */
const NO_LEAF: CpuidEntry = { function: 0, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
function traceCpuid(vcpu: Vcpu, fn: number, index: number, entry: CpuidEntry, found: boolean): void {
  const { eax, ebx, ecx, edx } = entry;
  trace(vcpu, 'kvm_cpuid', () => ({ function: fn, index, rax: eax, rbx: ebx, rcx: ecx, rdx: edx, found }));
}
/** KVM: kvm_emulate_cpuid. */
export function kvmEmulateCpuid(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmEmulateCpuid)) return inFrame(kvmEmulateCpuid, vcpu);
  const { regs32 } = vcpu.arch;
  const fn = regs32[RAX * 2];
  const index = regs32[RCX * 2];
  const own = kvmFindCpuidEntry(vcpu, fn, index);
  const entry = own ?? kvmOutOfRangeCpuidEntry(vcpu, fn, index) ?? NO_LEAF;
  if (vcpu.kvm.tracer !== null) traceCpuid(vcpu, fn, index, entry, own !== undefined);
  answerCpuid(regs32, entry);
  return kvmSkipEmulatedInstruction(vcpu);
}
ownFrame('kvmEmulateCpuid', kvmEmulateCpuid);
/** None of the four is RSP or RIP: nothing to mark dirty. */
function answerCpuid(regs32: Uint32Array, entry: CpuidEntry): void {
  regs32[RAX * 2] = entry.eax;
  regs32[RBX * 2] = entry.ebx;
  regs32[RCX * 2] = entry.ecx;
  regs32[RDX * 2] = entry.edx;
  regs32[RAX * 2 + 1] = regs32[RBX * 2 + 1] = regs32[RCX * 2 + 1] = regs32[RDX * 2 + 1] = 0;
}
/**
 * A fastpath's part of {@link kvmEmulateCpuid}: the registers, while nobody traces; the skip is the vendor's.
 * @param regs32 halves of the general registers, where the guest's are now
 * @returns false: the guest's CPUID has no such entry, and nothing has happened
 */
export function kvmFastCpuid(vcpu: Vcpu, regs32: Uint32Array): boolean {
  const entry = kvmFindCpuidEntry(vcpu, regs32[RAX * 2], regs32[RCX * 2]);
  if (entry === undefined) return false;
  answerCpuid(regs32, entry);
  return true;
}

/** KVM: __kvm_emulate_halt. */
function halt(vcpu: Vcpu, state: MpState): number {
  if (!vcpu.arch.apic) {
    vcpu.exit = state === MpState.HALTED ? { reason: 'hlt' } : { reason: 'ap_reset_hold' };
    return 0;
  }
  vcpu.arch.mpState = kvmVcpuHasEvents(vcpu) ? MpState.RUNNABLE : state;
  return 1;
}
/** HLT whose RIP is past it already. KVM: kvm_emulate_halt_noskip. */
export const kvmEmulateHaltNoskip = (vcpu: Vcpu): number => halt(vcpu, MpState.HALTED);
/** KVM: kvm_emulate_halt. */
export function kvmEmulateHalt(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmEmulateHalt)) return inFrame(kvmEmulateHalt, vcpu);
  const r = kvmSkipEmulatedInstruction(vcpu);
  return kvmEmulateHaltNoskip(vcpu) && r;
}
ownFrame('kvmEmulateHalt', kvmEmulateHalt);
/** KVM: kvm_emulate_ap_reset_hold. */
export const kvmEmulateApResetHold = (vcpu: Vcpu): number => {
  const r = kvmSkipEmulatedInstruction(vcpu);
  return halt(vcpu, MpState.AP_RESET_HOLD) && r;
};

function traceMsr(vcpu: Vcpu, write: boolean, ecx: number, data: bigint, err: number): void {
  trace(vcpu, 'kvm_msr', () => ({ vcpuId: vcpu.vcpuId, write, ecx, data, exception: err !== 0 }));
}
/** KVM: kvm_emulate_rdmsr. */
export function kvmEmulateRdmsr(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmEmulateRdmsr)) return inFrame(kvmEmulateRdmsr, vcpu);
  const { regs, regs32 } = vcpu.arch;
  const ecx = regs32[RCX * 2];
  const { err, data } = kvmGetMsr(vcpu, ecx);
  if (vcpu.kvm.tracer !== null) traceMsr(vcpu, false, ecx, data, err);
  if (err === 0) {
    // EDX:EAX; as for CPUID nothing is marked dirty.
    regs[RAX] = data;
    regs32[RDX * 2] = regs32[RAX * 2 + 1];
    regs32[RAX * 2 + 1] = regs32[RDX * 2 + 1] = 0;
  }
  return vcpu.kvm.calls.completeEmulatedMsr(vcpu, err);
}
ownFrame('kvmEmulateRdmsr', kvmEmulateRdmsr);
/** KVM: kvm_emulate_wrmsr. */
export function kvmEmulateWrmsr(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmEmulateWrmsr)) return inFrame(kvmEmulateWrmsr, vcpu);
  const ecx = vcpu.arch.regs32[RCX * 2];
  const data = kvmReadEdxEax(vcpu);
  const err = kvmSetMsr(vcpu, ecx, data);
  if (vcpu.kvm.tracer !== null) traceMsr(vcpu, true, ecx, data, err);
  return vcpu.kvm.calls.completeEmulatedMsr(vcpu, err);
}
ownFrame('kvmEmulateWrmsr', kvmEmulateWrmsr);

/** -KVM_ENOSYS, -KVM_EPERM. */
const KVM_ENOSYS = 1000n;
const KVM_EPERM = 1n;
const KVM_HC_VAPIC_POLL_IRQ = 1n;
const KVM_HC_KICK_CPU = 5n;
const KVM_HC_SEND_IPI = 10n;

/** VMCALL/VMMCALL from the guest. KVM: kvm_emulate_hypercall. */
export const kvmEmulateHypercall = frame('kvmEmulateHypercall', (vcpu: Vcpu): number => {
  const wide = is64BitHypercall(vcpu);
  const read = (reg: number): bigint => {
    const value = kvmRegisterReadRaw(vcpu, reg);
    return wide ? value : value & 0xffffffffn;
  };
  const nr = read(RAX);
  const [a0, a1, a2, a3] = [RBX, RCX, RDX, RSI].map(read);
  trace(vcpu, 'kvm_hypercall', () => ({ vcpuId: vcpu.vcpuId, nr, a0, a1, a2, a3 }));
  const ret = hypercall(vcpu, nr, [a0, a1, a2, a3], wide);
  kvmRaxWrite(vcpu, wide ? BigInt.asUintN(64, ret) : BigInt.asUintN(32, ret));
  return kvmSkipEmulatedInstruction(vcpu);
});
function hypercall(vcpu: Vcpu, nr: bigint, [a0, a1, a2, a3]: bigint[], wide: boolean): bigint {
  if (vcpu.kvm.calls.getCpl(vcpu) !== 0) return -KVM_EPERM;
  if (nr === KVM_HC_VAPIC_POLL_IRQ) return 0n;
  if (nr === KVM_HC_KICK_CPU) {
    const target = vcpu.vm.vcpus.find((other) => other.arch.apic?.id === Number(a1));
    if (target) target.arch.mpState = target.arch.mpState === MpState.HALTED ? MpState.RUNNABLE : target.arch.mpState;
    return 0n;
  }
  if (nr === KVM_HC_SEND_IPI) {
    const bitmap = a0 | (a1 << (wide ? 64n : 32n));
    return BigInt(kvmPvSendIpi(vcpu.vm, bitmap, Number(a2), Number(a3 & 0xffffffffn)));
  }
  return -KVM_ENOSYS;
}
/** User space has answered a hypercall exit. */
export function completeHypercall(vcpu: Vcpu): number {
  if (vcpu.exit.reason === 'hypercall') {
    requireShape('RUN_ANSWER', Errno.EINVAL, 'KVM_RUN: ', vcpu.exit.ret, 'exit.ret', u64);
    kvmRaxWrite(vcpu, vcpu.exit.ret);
  }
  return kvmSkipEmulatedInstruction(vcpu);
}

/** No caches are modelled. KVM: kvm_emulate_wbinvd. */
export const kvmEmulateWbinvd = (vcpu: Vcpu): number => kvmSkipEmulatedInstruction(vcpu);
/** KVM: kvm_emulate_invd: a no-op, since dropping guest memory would be worse. */
export const kvmEmulateInvd = (vcpu: Vcpu): number => kvmSkipEmulatedInstruction(vcpu);
/** KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS, bit 6. */
const mwaitAllowed = (vcpu: Vcpu): boolean => (vcpu.vm.disabledQuirks & (1 << 6)) === 0;
/** A no-op unless the quirk is off. KVM: kvm_emulate_monitor. */
export const kvmEmulateMonitor = (vcpu: Vcpu): number =>
  mwaitAllowed(vcpu) ? kvmSkipEmulatedInstruction(vcpu) : kvmHandleInvalidOp(vcpu);
export const kvmEmulateMwait = kvmEmulateMonitor;

/** KVM: kvm_emulate_xsetbv. */
export function kvmEmulateXsetbv(vcpu: Vcpu): number {
  if (
    vcpu.kvm.calls.getCpl(vcpu) !== 0 ||
    kvmSetXcr(vcpu, Number(kvmRcxRead(vcpu) & 0xffffffffn), kvmReadEdxEax(vcpu)) !== 0
  ) {
    kvmInjectGp(vcpu, 0);
    return 1;
  }
  return kvmSkipEmulatedInstruction(vcpu);
}
/** No PMU is modelled: every counter index is illegal. KVM: kvm_emulate_rdpmc. */
export const kvmEmulateRdpmc = (vcpu: Vcpu): number => kvmCompleteInsnGp(vcpu, 1);
