/** The MMU's entry points. KVM: arch/x86/kvm/mmu/mmu.c. */
import type { Kvm } from '../kvm.ts';
import type { Vcpu } from '../vcpu.ts';

const later = (): never => {
  throw new Error('body follows');
};
/** Called by the vendor's hardwareSetup: nested paging on or off, forced level (SVM: 4; 0: choose), largest page level (1: 4K, 2: 2M). KVM: kvm_configure_mmu. */
export function kvmConfigureMmu(
  _kvm: Kvm,
  _tdpEnabled: boolean,
  _forcedRootLevel: number,
  _maxRootLevel: number,
  _hugePageLevel: number,
): void {
  later();
}
/** Tables are EPT's: bits and MMIO misconfiguration. KVM: kvm_mmu_set_ept_masks. */
export function kvmMmuSetEptMasks(_kvm: Kvm, _hasAdBits: boolean, _hasExecOnly: boolean): void {
  later();
}
/** MMIO SPTEs: `mask` bits compared with `value`. KVM: kvm_mmu_set_mmio_spte_mask. */
export function kvmMmuSetMmioSpteMask(_kvm: Kvm, _value: bigint, _mask: bigint, _access: bigint): void {
  later();
}
/** Recomputes roles and walkers. KVM: kvm_init_mmu. */
export function kvmInitMmu(_vcpu: Vcpu): void {
  later();
}
/** Unloads the roots and recomputes. KVM: kvm_mmu_reset_context. */
export function kvmMmuResetContext(_vcpu: Vcpu): void {
  later();
}
export function kvmMmuUnload(_vcpu: Vcpu): void {
  later();
}
/** A new CR3. KVM: kvm_mmu_new_pgd. */
export function kvmMmuNewPgd(_vcpu: Vcpu, _cr3: bigint): void {
  later();
}
/** KVM: kvm_invalidate_pcid. */
export function kvmInvalidatePcid(_vcpu: Vcpu, _pcid: number): void {
  later();
}
/** KVM: kvm_handle_invpcid. */
export function kvmHandleInvpcid(_vcpu: Vcpu, _type: number, _gva: bigint): number {
  return later();
}
/** INVLPG. KVM: kvm_mmu_invlpg. */
export function kvmMmuInvlpg(_vcpu: Vcpu, _gva: bigint): void {
  later();
}
/**
 * A fault of nested tables (NPF, EPT violation; errorCode: PFERR_* with bits 32 and 33) or a shadow page fault.
 * @returns as an exit handler: > 0 go on, 0 to user space, < 0 errno. KVM: kvm_mmu_page_fault
 */
export function kvmMmuPageFault(
  _vcpu: Vcpu,
  _cr2OrGpa: number,
  _errorCode: bigint,
  _insn: Uint8Array | null,
  _insnLen: number,
): number {
  return later();
}
/** Makes sure that a root exists. 0, or a negative errno. KVM: kvm_mmu_reload. */
export function kvmMmuReload(_vcpu: Vcpu): number {
  return later();
}
