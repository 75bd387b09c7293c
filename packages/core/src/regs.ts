/**
 * Control registers, EFER's neighbours and RFLAGS: the setters with KVM's checks in KVM's order.
 * KVM: arch/x86/kvm/regs.c (formerly x86.c); manual: APM vol. 2 ch. 3, SDM vol. 3 ch. 2.
 */
import { CR0, CR3, CR4, EFER, Flag } from '@tskvm/emulator';
import { guestCpuidHas, kvmUpdateCpuidRuntime } from './cpuid.ts';
import {
  cr0Low,
  cr4Low,
  is64BitMode,
  isLongMode,
  isPae,
  isPaePaging,
  isPaging,
  isSmm,
  kvmIsCr4BitSet,
  kvmReadCr0,
  kvmReadCr0Bits,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterMarkDirty,
} from './kvm-cache-regs.ts';
import { kvmGetLinearRip } from './kvm-emulate.ts';
import { lapicGetTpr, lapicSetTpr } from './lapic.ts';
import { highWord, lowWord } from './low-word.ts';
import { kvmInitMmu, kvmInvalidatePcid, kvmMmuNewPgd, kvmMmuResetContext, kvmMmuUnload } from './mmu/mmu.ts';
import { kvmMakeRequest } from './requests.ts';
import { frame, inFrame, ownFrame, unframed } from './trace.ts';
import { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const { PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG } = CR0;
/** The bits of CR0 that rules look at, as numbers for JavaScript's bit operators. */
const Low = {
  PE: lowWord(PE),
  WP: lowWord(WP),
  NW: lowWord(NW),
  CD: lowWord(CD),
  PG: lowWord(PG),
  PDPTR: lowWord(CD | NW | PG),
  ET: lowWord(ET),
  LME: lowWord(EFER.LME),
  PCIDE: lowWord(CR4.PCIDE),
  CET: lowWord(CR4.CET),
  DEFINED: lowWord(PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG),
} as const;
/** Every CR0 bit that exists; the others are dropped silently. */
export const CR0_DEFINED = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
export const CR0_PDPTR_BITS = CD | NW | PG;
export const CR4_PDPTR_BITS = CR4.PGE | CR4.PSE | CR4.PAE | CR4.SMEP;
export const CR4_TLBFLUSH_BITS = CR4.PGE | CR4.PCIDE | CR4.PAE | CR4.SMEP;
/** KVM_MMU_CR0_ROLE_BITS and friends. */
export const MMU_CR0_ROLE_BITS = PG | WP;
export const MMU_CR4_ROLE_BITS = CR4.PSE | CR4.PAE | CR4.LA57 | CR4.SMEP | CR4.SMAP | CR4.PKE;
export const MMU_EFER_ROLE_BITS = EFER.LME | EFER.NXE;
/** X86_CR3_PCID_NOFLUSH. */
export const CR3_PCID_NOFLUSH = CR3.NOFLUSH;
/** CR4 bits that a VMX guest may own. */
export const POSSIBLE_CR4_GUEST_BITS =
  CR4.PVI | CR4.DE | CR4.PCE | CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.PGE | CR4.TSD | CR4.FSGSBASE | CR4.CET;
export const POSSIBLE_CR0_GUEST_BITS = TS | WP;

/** Rules 1-3 and the vendor's veto, without those that need the old state. KVM: kvm_is_valid_cr0. */
export function kvmIsValidCr0(vcpu: Vcpu, cr0: bigint): boolean {
  const low = lowWord(cr0);
  // All bits that exist stand in the low half: one number to test instead of a bigint for each rule.
  if (highWord(cr0) !== 0) return false;
  if ((low & Low.NW) !== 0 && (low & Low.CD) === 0) return false;
  if ((low & Low.PG) !== 0 && (low & Low.PE) === 0) return false;
  return vcpu.kvm.calls.isValidCr0(vcpu, cr0);
}

/** May PG go from 0 to 1 with EFER.LME: PAE is needed and CS.L forbidden (APM vol. 2 14.6.1). */
const mayEnterLongMode = (vcpu: Vcpu): boolean => isPae(vcpu) && vcpu.kvm.calls.getCsDbLBits(vcpu).l === 0;

/** The rules that compare new with old. */
function cr0TransitionAllowed(vcpu: Vcpu, old: bigint, cr0: bigint): boolean {
  const low = lowWord(cr0);
  const changed = low ^ lowWord(old);
  const paging = (low & Low.PG) !== 0;
  if (paging && (changed & Low.PDPTR) !== 0 && !pagingTransitionAllowed(vcpu, (changed & Low.PG) !== 0)) return false;
  if (!paging && (is64BitMode(vcpu) || cr4Low(vcpu, Low.PCIDE) !== 0)) return false;
  return (low & Low.WP) !== 0 || cr4Low(vcpu, Low.CET) === 0;
}
/** Paging is on after the write, and PG, CD or NW change. */
function pagingTransitionAllowed(vcpu: Vcpu, enables: boolean): boolean {
  if ((lowWord(vcpu.arch.efer) & Low.LME) !== 0) return !enables || mayEnterLongMode(vcpu);
  return !isPae(vcpu) || loadPdptrs(vcpu, kvmReadCr3(vcpu));
}

/**
 * Writes CR0 for the guest with all checks. KVM: kvm_set_cr0.
 * @returns 0, or 1: the caller raises #GP(0) and nothing has changed
 */
export function kvmSetCr0(vcpu: Vcpu, value: bigint): number {
  if (unframed(vcpu, kvmSetCr0)) return inFrame(kvmSetCr0, vcpu, value);
  const old = kvmReadCr0(vcpu);
  if (!kvmIsValidCr0(vcpu, value)) return 1;
  const low = lowWord(value);
  const asIs = (low & Low.ET) !== 0 && (low & ~Low.DEFINED) === 0;
  const cr0 = asIs ? value : (value | ET) & CR0_DEFINED;
  if (!cr0TransitionAllowed(vcpu, old, cr0)) return 1;
  vcpu.kvm.calls.setCr0(vcpu, cr0);
  kvmPostSetCr0(vcpu, old, cr0);
  return 0;
}
ownFrame('kvmSetCr0', kvmSetCr0);

/** What follows a CR0 change, however it came about. KVM: kvm_post_set_cr0. */
export function kvmPostSetCr0(vcpu: Vcpu, old: bigint, cr0: bigint): void {
  if (unframed(vcpu, kvmPostSetCr0)) {
    inFrame(kvmPostSetCr0, vcpu, old, cr0);
    return;
  }
  const changed = lowWord(old) ^ lowWord(cr0);
  const paging = (lowWord(cr0) & Low.PG) !== 0;
  if (changed === Low.WP) {
    if (!paging) return;
    if (vcpu.kvm.caps.tdpEnabled) {
      kvmInitMmu(vcpu);
      return;
    }
  }
  if ((changed & Low.PG) !== 0 && !paging) kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
  if ((changed & (Low.PG | Low.WP)) !== 0) kvmMmuResetContext(vcpu);
}
ownFrame('kvmPostSetCr0', kvmPostSetCr0);

/** LMSW: replaces MP, EM, TS; sets PE but never clears it; a refusal is ignored. KVM: kvm_lmsw. */
export const kvmLmsw = frame('kvmLmsw', (vcpu: Vcpu, msw: bigint): void => {
  kvmSetCr0(vcpu, kvmReadCr0Bits(vcpu, ~0xen) | (msw & 0xfn));
});

/** Is this a legal CR3 for the guest's physical width; a guest with LAM may set bits 61 and 62. KVM: kvm_vcpu_is_legal_cr3. */
export function kvmVcpuIsLegalCr3(vcpu: Vcpu, cr3: bigint): boolean {
  const illegal = cr3 & vcpu.arch.reservedGpaBits;
  if (illegal === 0n) return true;
  return (illegal & ~(CR3.LAM_U48 | CR3.LAM_U57)) === 0n && guestCpuidHas(vcpu, 'lam');
}

/** Writes CR3. KVM: kvm_set_cr3. @returns 0, or 1 for #GP(0) */
export const kvmSetCr3 = frame('kvmSetCr3', (vcpu: Vcpu, value: bigint): number => {
  const pcidEnabled = kvmIsCr4BitSet(vcpu, CR4.PCIDE);
  const skipFlush = pcidEnabled && (value & CR3_PCID_NOFLUSH) !== 0n;
  const cr3 = pcidEnabled ? value & ~CR3_PCID_NOFLUSH : value;
  const pcid = pcidEnabled ? Number(cr3 & 0xfffn) : 0;
  if (cr3 !== kvmReadCr3(vcpu) || isPaePaging(vcpu)) {
    if (!kvmVcpuIsLegalCr3(vcpu, cr3)) return 1;
    if (isPaePaging(vcpu) && !loadPdptrs(vcpu, cr3)) return 1;
    if (cr3 !== kvmReadCr3(vcpu)) kvmMmuNewPgd(vcpu, cr3);
    vcpu.arch.cr3 = cr3;
    kvmRegisterMarkDirty(vcpu, 'cr3');
    vcpu.kvm.calls.postSetCr3(vcpu, cr3);
  }
  if (!skipFlush) kvmInvalidatePcid(vcpu, pcid);
  return 0;
});

/** Reserved bits and the vendor's veto. KVM: kvm_is_valid_cr4. */
export const kvmIsValidCr4 = (vcpu: Vcpu, cr4: bigint): boolean =>
  (cr4 & vcpu.arch.cr4GuestRsvdBits) === 0n && vcpu.kvm.calls.isValidCr4(vcpu, cr4);

function cr4TransitionAllowed(vcpu: Vcpu, old: bigint, cr4: bigint): boolean {
  const changed = old ^ cr4;
  if (isLongMode(vcpu)) {
    if ((cr4 & CR4.PAE) === 0n || (changed & CR4.LA57) !== 0n) return false;
  } else if (isPaging(vcpu) && (cr4 & CR4.PAE) !== 0n && (changed & CR4_PDPTR_BITS) !== 0n) {
    if (!loadPdptrs(vcpu, kvmReadCr3(vcpu))) return false;
  }
  if ((changed & cr4 & CR4.PCIDE) !== 0n) {
    if ((kvmReadCr3(vcpu) & 0xfffn) !== 0n || !isLongMode(vcpu)) return false;
  }
  return (cr4 & CR4.CET) === 0n || cr0Low(vcpu, Low.WP) !== 0;
}

/** Writes CR4. KVM: kvm_set_cr4. @returns 0, or 1 for #GP(0) */
export const kvmSetCr4 = frame('kvmSetCr4', (vcpu: Vcpu, cr4: bigint): number => {
  const old = kvmReadCr4(vcpu);
  if (!kvmIsValidCr4(vcpu, cr4) || !cr4TransitionAllowed(vcpu, old, cr4)) return 1;
  vcpu.kvm.calls.setCr4(vcpu, cr4);
  kvmPostSetCr4(vcpu, old, cr4);
  return 0;
});

/** KVM: kvm_post_set_cr4. */
export const kvmPostSetCr4 = frame('kvmPostSetCr4', (vcpu: Vcpu, old: bigint, cr4: bigint): void => {
  const changed = old ^ cr4;
  if ((changed & MMU_CR4_ROLE_BITS) !== 0n) kvmMmuResetContext(vcpu);
  if (!vcpu.kvm.caps.tdpEnabled && (changed & cr4 & CR4.PCIDE) !== 0n) kvmMmuUnload(vcpu);
  if ((changed & CR4.PGE) !== 0n || (changed & old & CR4.PCIDE) !== 0n) kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
  else if ((changed & CR4.PAE) !== 0n || (changed & cr4 & CR4.SMEP) !== 0n) kvmMakeRequest(Req.TLB_FLUSH_CURRENT, vcpu);
  if ((changed & (CR4.OSXSAVE | CR4.PKE)) !== 0n) kvmUpdateCpuidRuntime(vcpu);
});

/** Writes CR8: the TPR of the in-kernel APIC, else arch.cr8. KVM: kvm_set_cr8. @returns 0, or 1 for #GP(0) */
export const kvmSetCr8 = frame('kvmSetCr8', (vcpu: Vcpu, cr8: bigint): number => {
  if ((cr8 & ~0xfn) !== 0n) return 1;
  if (vcpu.arch.apic) lapicSetTpr(vcpu.arch.apic, cr8);
  else vcpu.arch.cr8 = cr8;
  return 0;
});
export const kvmGetCr8 = (vcpu: Vcpu): bigint => (vcpu.arch.apic ? lapicGetTpr(vcpu.arch.apic) : vcpu.arch.cr8);

/**
 * Loads the four PDPTEs of PAE paging. KVM: load_pdptrs.
 * @returns false if a present entry has a reserved bit or memory can't be read
 */
export const loadPdptrs = frame('loadPdptrs', (vcpu: Vcpu, cr3: bigint): boolean => {
  // Bits 11:5 of CR3 select the table inside its page (APM vol. 2 5.2.3).
  const pa = Number(cr3 & 0xffffffe0n);
  const gpa = vcpu.arch.nestedTdp ? nestedPdptrPage(vcpu, pa) : pa;
  if (gpa < 0 || !vcpu.vm.hasMemory(gpa, 32, isSmm(vcpu))) return false;
  const bytes = vcpu.vm.readGuest(gpa, 32, isSmm(vcpu));
  const view = new DataView(bytes.buffer, bytes.byteOffset, 32);
  const entries = [0, 8, 16, 24].map((at) => view.getBigUint64(at, true)) as [bigint, bigint, bigint, bigint];
  const reserved = 0x1e6n | vcpu.arch.reservedGpaBits;
  if (entries.some((entry) => (entry & 1n) !== 0n && (entry & reserved) !== 0n)) return false;
  vcpu.arch.pdptrs = entries;
  kvmRegisterMarkDirty(vcpu, 'pdptr');
  kvmMakeRequest(Req.LOAD_MMU_PGD, vcpu);
  vcpu.arch.pdptrsFromUserspace = false;
  return true;
});
/** L2 GPA of the PDPT page to L1, as a page-table access with user and write rights (PFERR_USER | PFERR_WRITE). */
function nestedPdptrPage(vcpu: Vcpu, pa: number): number {
  const page = vcpu.kvm.calls.translateNestedGpa(vcpu, pa - (pa % 4096), 6);
  return page < 0 ? -1 : page + (pa % 4096);
}

/** RFLAGS as the guest sees it, without the TF that single-stepping adds. KVM: kvm_get_rflags. */
export function kvmGetRflags(vcpu: Vcpu): bigint {
  const rflags = vcpu.kvm.calls.getRflags(vcpu);
  return (vcpu.guestDebug & GUESTDBG_SINGLESTEP) !== 0 ? rflags & ~BigInt(Flag.TF) : rflags;
}
/** KVM: __kvm_set_rflags: keeps TF while user space single-steps. */
export function kvmSetRflagsRaw(vcpu: Vcpu, rflags: bigint): void {
  const stepping = (vcpu.guestDebug & GUESTDBG_SINGLESTEP) !== 0 && kvmGetLinearRip(vcpu) === vcpu.arch.singlestepRip;
  vcpu.kvm.calls.setRflags(vcpu, stepping ? rflags | BigInt(Flag.TF) : rflags);
}
/** KVM: kvm_set_rflags. */
export function kvmSetRflags(vcpu: Vcpu, rflags: bigint): void {
  kvmSetRflagsRaw(vcpu, rflags);
  kvmMakeRequest(Req.EVENT, vcpu);
}
/** KVM_GUESTDBG_SINGLESTEP. */
export const GUESTDBG_SINGLESTEP = 2;
