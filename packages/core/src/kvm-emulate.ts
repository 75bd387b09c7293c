/** Emulation on behalf of exits. KVM: x86_emulate_instruction and the kvm_emulate_* family in x86.c. */
import type { Vcpu } from './vcpu.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** CS base + RIP outside 64-bit mode. KVM: kvm_get_linear_rip. */
export function kvmGetLinearRip(_vcpu: Vcpu): bigint {
  return later();
}
export function kvmIsLinearRip(vcpu: Vcpu, rip: bigint): boolean {
  return kvmGetLinearRip(vcpu) === rip;
}
/**
 * Emulates the instruction at RIP (or in `insn`). All kvmEmulate* return as exit handlers do: > 0 go on, 0 to user space.
 * KVM: x86_emulate_instruction.
 */
export function x86EmulateInstruction(
  _vcpu: Vcpu,
  _cr2OrGpa: number,
  _emulType: number,
  _insn: Uint8Array | null,
  _insnLen: number,
): number {
  return later();
}
export const kvmEmulateInstruction = (vcpu: Vcpu, emulType: number): number =>
  x86EmulateInstruction(vcpu, 0, emulType, null, 0);
export const kvmEmulateInstructionFromBuffer = (vcpu: Vcpu, insn: Uint8Array, insnLen: number): number =>
  x86EmulateInstruction(vcpu, 0, 0, insn, insnLen);
/** RIP past the instruction, shadow cleared, TF → #DB. KVM: kvm_skip_emulated_instruction. */
export function kvmSkipEmulatedInstruction(_vcpu: Vcpu): number {
  return later();
}
/** err: #GP(0), RIP stays; 0: skip. KVM: kvm_complete_insn_gp. */
export function kvmCompleteInsnGp(_vcpu: Vcpu, _err: number): number {
  return later();
}
/** `error`: X86EMUL result of a vendor's skip. Prepares KVM_EXIT_INTERNAL_ERROR. KVM: kvm_prepare_emulation_failure_exit. */
export function kvmPrepareEmulationFailureExit(_vcpu: Vcpu): void {
  later();
}
export function kvmPrepareEventVectoringExit(_vcpu: Vcpu, _gpa: number): void {
  later();
}
export function kvmPrepareUnexpectedReasonExit(_vcpu: Vcpu, _reason: number): void {
  later();
}
export function kvmEmulateCpuid(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateHalt(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateHaltNoskip(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateApResetHold(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateRdmsr(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateWrmsr(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateHypercall(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateWbinvd(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateInvd(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateMonitor(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateMwait(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateXsetbv(_vcpu: Vcpu): number {
  return later();
}
export function kvmEmulateRdpmc(_vcpu: Vcpu): number {
  return later();
}
/** Intercepted #UD: the forced-emulation prefix, or an instruction that KVM emulates on #UD. KVM: handle_ud. */
export function handleUd(_vcpu: Vcpu): number {
  return later();
}
export function kvmHandleInvalidOp(_vcpu: Vcpu): number {
  return later();
}
/** Non-string IN/OUT without the emulator. KVM: kvm_fast_pio. */
export function kvmFastPio(_vcpu: Vcpu, _size: number, _port: number, _isIn: boolean): number {
  return later();
}
/** Task switch. reason: 0 CALL, 1 IRET, 2 JMP, 3 gate. KVM: kvm_task_switch. */
export function kvmTaskSwitch(
  _vcpu: Vcpu,
  _tssSelector: number,
  _idtIndex: number,
  _reason: number,
  _hasErrorCode: boolean,
  _errorCode: number,
): number {
  return later();
}
/** Delivers INT through the real-mode IVT by the emulator. KVM: kvm_inject_realmode_interrupt. */
export function kvmInjectRealmodeInterrupt(_vcpu: Vcpu, _irq: number, _incEip: number): void {
  later();
}
