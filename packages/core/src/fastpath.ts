/**
 * May an exit be handled right behind the entry, without the run loop around it? KVM: exit fastpaths (svm_exit_handlers_fastpath,
 * vmx_exit_handlers_fastpath and EXIT_FASTPATH_REENTER_GUEST in vcpu_enter_guest); KVM has them for a few MSR writes, HLT and the
 * preemption timer.
 *
 * Here CPUID and RDMSR take it, accesses to control registers, and IN and OUT: the handlers that the table has for them run before the run
 * loop hears of the exit, if the loop would find nothing else to do. Afterwards it hears of it if they have left it anything. While anything
 * listens to the trace, every exit takes the full way. CPUID, and a MOV to CR0 from which little follows, have a way of their own that comes
 * to the same as the handler.
 */
import { CR0, CR4, type ProcessorApi } from '@tskvm/emulator';
import { cr0Low, cr4Low, isGuestMode, isLongMode } from './kvm-cache-regs.ts';
import { lowWord } from './low-word.ts';
import { kvmUpdateCpuRoleWp, Role } from './mmu/mmu.ts';
import type { KvmX86Ops } from './ops-table.ts';
import { isAbsentOp } from './static-calls.ts';
import { FastPath, MpState } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/**
 * @param handleExit the vendor's own op: if a wrapper stands in its place, it gets every exit to see
 * @param skip likewise its `skipEmulatedInstruction`
 * @returns true if the run loop and the next entry have nothing to do but to go on
 */
export function kvmMayUseFastpath(vcpu: Vcpu, handleExit: unknown, skip: unknown): boolean {
  const { kvm, arch, vm } = vcpu;
  // The instruction is going to retire.
  const tick = kvm.processor.tick + 1;
  return (
    vcpu.requests.isEmpty &&
    kvm.tracer === null &&
    tick < vcpu.runDeadline &&
    !vm.timersDueAt(tick) &&
    !arch.exception.pending &&
    !arch.reqImmediateExit &&
    arch.switchDbRegs === 0 &&
    vcpu.guestDebug === 0 &&
    !vcpu.runIo.requestInterruptWindow &&
    !isGuestMode(vcpu) &&
    kvm.calls.handleExit === handleExit &&
    kvm.calls.skipEmulatedInstruction === skip
  );
}

/**
 * May a vendor's stub answer exits inside its `vcpuRun` until the next one that it has no answer to? Asked right before the entry; but for
 * `kvmStubMayAnswer`, nothing of it changes while the guest runs.
 */
export function kvmMayUseStub(
  vcpu: Vcpu,
  ops: Pick<KvmX86Ops, 'vcpuRun' | 'handleExit' | 'skipEmulatedInstruction'>,
): boolean {
  const { calls, processor } = vcpu.kvm;
  return (
    kvmMayUseFastpath(vcpu, ops.handleExit, ops.skipEmulatedInstruction) &&
    calls.vcpuRun === ops.vcpuRun &&
    isAbsentOp(calls.syncPirToIrr) &&
    processor.onModeChange === null
  );
}
/** The instruction is going to retire before anything is due. */
export const kvmStubMayAnswer = ({ tick, deadline }: ProcessorApi): boolean => tick + 1 < deadline;

/** What becomes of an exit whose handler has run for a fastpath. @param outcome the handler's: > 0 go on, 0 to user space */
export function kvmFastpathOutcome(vcpu: Vcpu, outcome: number): FastPath {
  if (outcome <= 0) return FastPath.EXIT_USERSPACE;
  const { arch, requests } = vcpu;
  const calm =
    requests.isEmpty &&
    arch.mmu.hpa >= 0 &&
    arch.mpState === MpState.RUNNABLE &&
    !arch.exception.pending &&
    !arch.emulationRequired;
  return calm ? FastPath.REENTER_GUEST : FastPath.EXIT_HANDLED;
}

/** Bits of CR0 that neither the mode nor paging as such nor caching follow. While paging is off, of PE follows no more to KVM. */
const PLAIN_CR0 = lowWord(CR0.MP | CR0.EM | CR0.TS | CR0.NE | CR0.WP | CR0.AM);
const PE = lowWord(CR0.PE);
const PG = lowWord(CR0.PG);
const WP = lowWord(CR0.WP);
const CET = lowWord(CR4.CET);
const PCIDE = lowWord(CR4.PCIDE);

/**
 * Of kvm_set_cr0: may the guest change these bits of CR0, and does nothing follow from it but what `kvmFastPostSetCr0` does? The vendor's
 * veto is the caller's business.
 * @param low the value's low half; the upper one is 0
 */
export const kvmMayFastSetCr0 = (vcpu: Vcpu, changed: number, low: number): boolean =>
  kvmIsPlainCr0(changed, kvmPlainCr0Bits(vcpu, low < 0));
/** The bits that may change so, by whether the guest pages; they follow from CR4 and EFER. */
export function kvmPlainCr0Bits(vcpu: Vcpu, paging: boolean): number {
  if (!paging && (isLongMode(vcpu) || cr4Low(vcpu, PCIDE) !== 0)) return 0;
  const wp = vcpu.kvm.caps.tdpEnabled && cr4Low(vcpu, CET) === 0 ? WP : 0;
  return (PLAIN_CR0 & ~WP) | wp | (paging ? 0 : PE);
}
/** WP goes by itself. */
export const kvmIsPlainCr0 = (changed: number, bits: number): boolean =>
  (changed & ~bits) === 0 && ((changed & WP) === 0 || changed === WP);
/** Of kvm_post_set_cr0, then. */
export function kvmFastPostSetCr0(vcpu: Vcpu, changed: number): void {
  if ((changed & WP) === 0 || cr0Low(vcpu, PG) === 0) return;
  kvmUpdateCpuRoleWp(vcpu, cr0Low(vcpu, WP) !== 0);
}
/** Of kvm_post_set_cr0 for several such writes at once. */
export function kvmFollowPlainCr0(vcpu: Vcpu): void {
  if (cr0Low(vcpu, PG) === 0) return;
  const wp = cr0Low(vcpu, WP) !== 0;
  if (((vcpu.arch.cpuRole & Role.cr0Wp) !== 0) !== wp) kvmUpdateCpuRoleWp(vcpu, wp);
}
