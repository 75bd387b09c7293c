/** The MMU's entry points: roles, roots, faults, flushes. KVM: arch/x86/kvm/mmu/mmu.c. */
import { CR4, PAGE } from '@tskvm/emulator';
import { isSmm, kvmIsCr4BitSet, kvmReadCr3 } from '../kvm-cache-regs.ts';
import { x86EmulateInstruction } from '../kvm-emulate.ts';
import type { Memslot } from '../memslots.ts';
import { kvmMakeAllCpusRequest, kvmMakeRequest } from '../requests.ts';
import { frame, inFrame, ownFrame, trace, unframed } from '../trace.ts';
import { EmulType, Req } from '../types.ts';
import type { Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import { kvmNestedTranslate, nestedMmuOf, nestedRoot } from './nested.ts';
import { kvmCalcCpuRole, kvmCalcTdpMmuRootPageRole, kvmCpuRoleOfWp, Role, vcpuToRoleRegs } from './role.ts';
import { shadowClear, shadowInvalidate, shadowPageFault, shadowRole, shadowRoot } from './shadow.ts';
import {
  isMmioSpte,
  mmioSpteGeneration,
  type RetPf,
  type TdpRoot,
  tdpFreeRoot,
  tdpLookup,
  tdpMap,
  tdpRoot,
  tdpWriteProtectSlot,
} from './tdp.ts';
import { Pferr } from './walker.ts';

export { kvmConfigureMmu, kvmMmuSetEptMasks, kvmMmuSetMmioSpteMask } from './config.ts';
export * from './nested.ts';
export { ExtRole, kvmCalcCpuRole, Role } from './role.ts';
export { type MmuVm, newMmuVm, type TdpRoot } from './tdp.ts';
export { cplAccess, IMPLICIT_ACCESS, kvmMmuGvaToGpa, kvmMmuGvaToGpaSystem, noFault, Pferr } from './walker.ts';

/** PFERR_* bits of a nested fault's error code that lie above the first word, and RSVD. */
export const PFERR_GUEST_FINAL = 1n << 32n;
export const PFERR_GUEST_PAGE = 1n << 33n;
const PFERR_WRITE = 2n;
const PFERR_RSVD = 8n;

/** The role of the guest's own paging. All of `kvmInitMmu` where with nested paging no root follows what has changed. */
export function kvmUpdateCpuRole(vcpu: Vcpu): void {
  vcpu.arch.cpuRole = kvmCalcCpuRole(vcpu, vcpuToRoleRegs(vcpu));
}

/** The same where CR0.WP alone has changed and the guest pages. */
export function kvmUpdateCpuRoleWp(vcpu: Vcpu, wp: boolean): void {
  vcpu.arch.cpuRole = kvmCpuRoleOfWp(vcpu, vcpu.arch.cpuRole, wp);
}

/** Recomputes roles. KVM: kvm_init_mmu. */
export function kvmInitMmu(vcpu: Vcpu): void {
  if (unframed(vcpu, kvmInitMmu)) {
    inFrame(kvmInitMmu, vcpu);
    return;
  }
  const { arch } = vcpu;
  kvmUpdateCpuRole(vcpu);
  if (arch.nestedTdp) return;
  if (!vcpu.kvm.caps.tdpEnabled) {
    const role = shadowRole(vcpu);
    if (role !== arch.mmu.role) Object.assign(arch.mmu, { role, level: role & Role.levelMask, hpa: -1 });
    return;
  }
  const role = kvmCalcTdpMmuRootPageRole(vcpu);
  if (role !== arch.mmu.role) {
    arch.mmu.role = role;
    arch.mmu.level = vcpu.kvm.mmu.tdpRootLevel;
    arch.mmu.hpa = -1;
  }
}
ownFrame('kvmInitMmu', kvmInitMmu);

/** Unloads the roots and recomputes. KVM: kvm_mmu_reset_context. */
export const kvmMmuResetContext = frame('kvmMmuResetContext', (vcpu: Vcpu): void => {
  kvmMmuUnload(vcpu);
  kvmInitMmu(vcpu);
});

/** The root is looked up anew at the next entry. KVM: kvm_mmu_unload. */
export function kvmMmuUnload(vcpu: Vcpu): void {
  vcpu.arch.mmu.hpa = -1;
  if (!vcpu.kvm.caps.tdpEnabled) shadowClear(vcpu);
}

/** A new CR3: with nested paging the root stays, the registers are loaded; a shadow of the old tables goes. KVM: kvm_mmu_new_pgd. */
export function kvmMmuNewPgd(vcpu: Vcpu, _cr3: bigint): void {
  kvmMakeRequest(Req.LOAD_MMU_PGD, vcpu);
  if (vcpu.kvm.caps.tdpEnabled) return;
  kvmMakeRequest(Req.MMU_SYNC, vcpu);
  kvmMakeRequest(Req.TLB_FLUSH_CURRENT, vcpu);
}
/** The guest's tables may have changed: the shadow is dropped. KVM: kvm_mmu_sync_roots. */
export function kvmMmuSyncRoots(vcpu: Vcpu): void {
  if (!vcpu.kvm.caps.tdpEnabled) shadowClear(vcpu);
}

/** Drops what was cached for one PCID; the current one only concerns the processor's TLB. KVM: kvm_invalidate_pcid. */
export function kvmInvalidatePcid(vcpu: Vcpu, pcid: number): void {
  if (vcpu.kvm.caps.tdpEnabled) {
    kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
    return;
  }
  const current = kvmIsCr4BitSet(vcpu, CR4.PCIDE) ? Number(kvmReadCr3(vcpu) & 0xfffn) : 0;
  if (current === pcid) {
    kvmMakeRequest(Req.MMU_SYNC, vcpu);
    kvmMakeRequest(Req.TLB_FLUSH_CURRENT, vcpu);
  }
}

/** INVPCID. KVM: kvm_handle_invpcid. @returns 0, or 1 for #GP(0) */
export function kvmHandleInvpcid(vcpu: Vcpu, type: number, gva: bigint): number {
  if (type > 3) return 1;
  if (type === 0) kvmMmuInvlpg(vcpu, gva);
  else kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
  return 0;
}

/** INVLPG. KVM: kvm_mmu_invlpg. */
export function kvmMmuInvlpg(vcpu: Vcpu, gva: bigint): void {
  if (!vcpu.kvm.caps.tdpEnabled) shadowInvalidate(vcpu, gva);
  vcpu.kvm.calls.flushTlbGva(vcpu, gva);
}

/** Makes sure that a root exists and is loaded. 0, or a negative errno. KVM: kvm_mmu_reload. */
export function kvmMmuReload(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmMmuReload)) return inFrame(kvmMmuReload, vcpu);
  return vcpu.arch.mmu.hpa >= 0 ? 0 : kvmMmuLoad(vcpu);
}
ownFrame('kvmMmuReload', kvmMmuReload);

function kvmMmuLoad(vcpu: Vcpu): number {
  const { mmu } = vcpu.arch;
  const root = currentRoot(vcpu);
  mmu.hpa = root.hpa;
  kvmMmuLoadPgd(vcpu);
  vcpu.kvm.calls.flushTlbCurrent(vcpu);
  return 0;
}

/** The root that the vCPU runs on now. */
function currentRoot(vcpu: Vcpu): TdpRoot {
  const { mmu, nestedTdp } = vcpu.arch;
  if (!vcpu.kvm.caps.tdpEnabled) return shadowRoot(vcpu);
  return nestedTdp ? nestedRoot(vcpu) : tdpRoot(vcpu.vm, mmu.role, mmu.level);
}

/** Hands the root to the hardware. KVM: kvm_mmu_load_pgd. */
export function kvmMmuLoadPgd(vcpu: Vcpu): void {
  const { mmu } = vcpu.arch;
  if (mmu.hpa >= 0) vcpu.kvm.calls.loadMmuPgd(vcpu, mmu.hpa, mmu.level);
}

/** Frees every root of a VM: all vCPUs take new ones at their next entry. KVM: kvm_mmu_zap_all_fast. */
export function kvmMmuZapAll(vm: Vm): void {
  for (const root of [...vm.mmu.roots.values()]) tdpFreeRoot(vm, root);
  for (const vcpu of vm.vcpus) vcpu.arch.mmu.hpa = -1;
  kvmMakeAllCpusRequest(vm, Req.MMU_FREE_OBSOLETE_ROOTS);
  kvmMakeAllCpusRequest(vm, Req.TLB_FLUSH);
  trace(vm, 'kvm_mmu_zap_all_fast', () => ({ generation: vm.generation }));
}

/** A slot goes or moves. KVM: kvm_arch_flush_shadow_memslot. */
export function kvmArchFlushShadowMemslot(vm: Vm, _slot: Memslot): void {
  kvmMmuZapAll(vm);
}

/** Dirty logging starts, or a log was read: every page must fault once more for its first write. */
export function kvmMmuSlotWriteProtect(vm: Vm, slot: Memslot): void {
  if (!vm.kvm.caps.tdpEnabled) {
    kvmMmuZapAll(vm);
    return;
  }
  tdpWriteProtectSlot(vm, slot);
  kvmMakeAllCpusRequest(vm, Req.TLB_FLUSH);
}

/** A fault on an MMIO entry of the current generation. KVM: handle_mmio_page_fault. */
function handleMmioPageFault(vcpu: Vcpu, gpa: number): boolean {
  const gfn = Math.floor(gpa / PAGE);
  const found = tdpLookup(vcpu.vm, currentRoot(vcpu), gfn);
  if (!found || !isMmioSpte(vcpu.kvm, found.spte)) return false;
  if (mmioSpteGeneration(found.spte) !== (vcpu.vm.generation & 0x7ffff)) return false;
  trace(vcpu, 'handle_mmio_page_fault', () => ({ addr: gpa, gfn, access: 7 }));
  return true;
}

/**
 * A fault of nested tables (NPF, EPT violation; errorCode: PFERR_* with bits 32 and 33).
 * @returns as an exit handler: > 0 go on, 0 to user space, < 0 errno. KVM: kvm_mmu_page_fault
 */
export const kvmMmuPageFault = frame(
  'kvmMmuPageFault',
  (vcpu: Vcpu, cr2OrGpa: number, errorCode: bigint, insn: Uint8Array | null, insnLen: number): number => {
    const err = kvmMmuReload(vcpu);
    if (err < 0) return err;
    if (!vcpu.kvm.caps.tdpEnabled) return shadowPageFault(vcpu, BigInt(cr2OrGpa), errorCode, insn, insnLen);
    if ((errorCode & PFERR_RSVD) !== 0n && handleMmioPageFault(vcpu, cr2OrGpa)) {
      return x86EmulateInstruction(vcpu, cr2OrGpa, EmulType.PF, insn, insnLen);
    }
    const ret = vcpu.arch.nestedTdp
      ? nestedPageFault(vcpu, cr2OrGpa, errorCode)
      : tdpMap(vcpu, currentRoot(vcpu), Math.floor(cr2OrGpa / PAGE), (errorCode & PFERR_WRITE) !== 0n);
    if (ret !== 'emulate') {
      if (ret === 'spurious') vcpu.kvm.calls.flushTlbCurrent(vcpu);
      return 1;
    }
    return x86EmulateInstruction(vcpu, cr2OrGpa, EmulType.PF, insn, insnLen);
  },
);

/** L2 faulted in the shadow of L1's nested tables: L1's own fault is L1's exit, else the page is mapped with L1's rights. */
function nestedPageFault(vcpu: Vcpu, gpa: number, errorCode: bigint): RetPf {
  const access = Number(errorCode & 0x16n);
  const result = kvmNestedTranslate(vcpu, gpa, access);
  if (!result.ok) {
    nestedMmuOf(vcpu)?.inject(vcpu, result.fault);
    return 'fixed';
  }
  const { mapping } = result;
  const rights = { write: mapping.writable, exec: mapping.executable };
  const write = (access & Pferr.write) !== 0;
  return tdpMap(vcpu, currentRoot(vcpu), Math.floor(gpa / PAGE), write, Math.floor(mapping.gpa / PAGE), rights);
}

/** An intercepted #PF: its address has 64 bits. KVM: kvm_handle_page_fault. */
export const kvmHandlePageFault = frame(
  'kvmHandlePageFault',
  (vcpu: Vcpu, errorCode: bigint, faultAddress: bigint, insn: Uint8Array | null, insnLen: number): number => {
    const err = kvmMmuReload(vcpu);
    return err < 0 ? err : shadowPageFault(vcpu, faultAddress, errorCode, insn, insnLen);
  },
);

/** Is a guest physical address MMIO for this vCPU. KVM: vcpu_is_mmio_gpa. */
export const vcpuIsMmioGpa = (vcpu: Vcpu, gpa: number): boolean =>
  vcpu.vm.gfnToMemslot(Math.floor(gpa / PAGE), isSmm(vcpu)) === undefined;

/** The TLB must not keep what the guest could have cached. KVM: kvm_service_local_tlb_flush_requests. */
export function kvmServiceTlbFlush(vcpu: Vcpu): void {
  const { requests } = vcpu;
  if (requests.delete(Req.TLB_FLUSH)) {
    vcpu.kvm.calls.flushTlbAll(vcpu);
    requests.delete(Req.TLB_FLUSH_CURRENT);
  }
  if (requests.delete(Req.TLB_FLUSH_CURRENT)) vcpu.kvm.calls.flushTlbCurrent(vcpu);
  if (requests.delete(Req.TLB_FLUSH_GUEST)) {
    kvmMmuSyncRoots(vcpu);
    vcpu.kvm.calls.flushTlbGuest(vcpu);
  }
  requests.delete(Req.HV_TLB_FLUSH);
}
