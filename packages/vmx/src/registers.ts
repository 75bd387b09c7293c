/**
 * CR0, CR4, EFER, RFLAGS and the lazily read registers.
 * KVM: vmx_set_cr0, vmx_set_cr4, vmx_set_efer, vmx_cache_reg, vmx_get_rflags in vmx.c.
 */
import {
  CR4_PDPTR_BITS,
  CR4_TLBFLUSH_BITS,
  cr0Low,
  frame,
  inFrame,
  isGuestMode,
  isPaePaging,
  isPaging,
  kvmFastPostSetCr0,
  kvmMayFastSetCr0,
  kvmReadCr4,
  kvmRegisterMarkAvailable,
  kvmRegisterMarkDirty,
  kvmUpdateDr7,
  kvmUpdateDr0123,
  lowWord,
  ownFrame,
  POSSIBLE_CR4_GUEST_BITS,
  type RegName,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { CR0, CR4, EFER, Flag, RSP, S } from '@tskvm/emulator';
import { EntryCtl, Primary, Secondary } from './hardware/bits.ts';
import { F } from './hardware/vmcs.ts';
import { enterPmode, enterRmode, RMODE_HOST_RFLAGS } from './rmode.ts';
import { vmxEmulationRequired } from './segments.ts';
import { HOST } from './setup.ts';
import { controlsClearBit, controlsGet, controlsSetBit, isUnrestrictedGuest, toVmx, vmcsOf } from './vcpu-vmx.ts';

/** KVM_VM_CR0_ALWAYS_OFF, KVM_VM_CR0_ALWAYS_ON_UNRESTRICTED_GUEST, KVM_VM_CR0_ALWAYS_ON. */
export const CR0_ALWAYS_OFF = lowWord(CR0.NW | CR0.CD);
export const CR0_ALWAYS_ON_UNRESTRICTED = lowWord(CR0.NE);
const CR0_ALWAYS_ON = lowWord(CR0.NE | CR0.PG | CR0.PE);
const PE = lowWord(CR0.PE);
const WP = lowWord(CR0.WP);
const PG = lowWord(CR0.PG);
const LME = lowWord(EFER.LME);
/** KVM_VM_CR4_ALWAYS_ON_UNRESTRICTED_GUEST, KVM_PMODE_VM_CR4_ALWAYS_ON, KVM_RMODE_VM_CR4_ALWAYS_ON. */
const CR4_ALWAYS_ON_UNRESTRICTED = CR4.VMXE;
const CR4_ALWAYS_ON_PMODE = CR4.PAE | CR4.VMXE;
const CR4_ALWAYS_ON_RMODE = CR4.VME | CR4.PAE | CR4.VMXE;
const CR3_EXITING = Primary.cr3Load | Primary.cr3Store;
const ALL = 0xffffffffffffffffn;

/** VMXON and nested operation would constrain CR0; a guest without VMX may have any. KVM: vmx_is_valid_cr0. */
export const vmxIsValidCr0 = (_vcpu: Vcpu, _cr0: bigint): boolean => true;
/** VMXE needs nested VMX; CPUID keeps it reserved. KVM: vmx_is_valid_cr4. */
export const vmxIsValidCr4 = (_vcpu: Vcpu, cr4: bigint): boolean => (cr4 & CR4.VMXE) === 0n;

/** CR0 as the hardware gets it; leaves or enters virtual-8086 mode where real mode needs it. */
function hardwareCr0(vcpu: Vcpu, cr0: bigint): number {
  const plain = lowWord(cr0) & ~CR0_ALWAYS_OFF;
  if (isUnrestrictedGuest(vcpu)) return plain | CR0_ALWAYS_ON_UNRESTRICTED;
  const { rmode } = toVmx(vcpu);
  const protectedMode = (plain & PE) !== 0;
  if (rmode.vm86Active && protectedMode) enterPmode(vcpu);
  if (!rmode.vm86Active && !protectedMode) enterRmode(vcpu);
  // Shadow tables express write protection by W=0, which supervisor writes must heed.
  return toVmx(vcpu).module.params.ept ? plain | CR0_ALWAYS_ON : plain | CR0_ALWAYS_ON | WP;
}

/** Installs CR0 without checks. KVM: vmx_set_cr0. */
export function vmxSetCr0(vcpu: Vcpu, cr0: bigint): void {
  if (unframed(vcpu, vmxSetCr0)) {
    inFrame(vmxSetCr0, vcpu, cr0);
    return;
  }
  const { arch } = vcpu;
  const wasPaging = isPaging(vcpu);
  const paging = (lowWord(cr0) & PG) !== 0;
  const hw = hardwareCr0(vcpu, cr0);
  const v = vmcsOf(vcpu);
  v.write64(F.CR0_READ_SHADOW, cr0);
  v.writeNumber(F.GUEST_CR0, hw >>> 0);
  arch.cr0 = cr0;
  kvmRegisterMarkAvailable(vcpu, 'cr0');
  if (wasPaging !== paging && (lowWord(arch.efer) & LME) !== 0) {
    if (paging) enterLmode(vcpu);
    else exitLmode(vcpu);
  }
  const { ept, unrestrictedGuest } = toVmx(vcpu).module.params;
  if (ept && !unrestrictedGuest) updatePagingWithoutUrg(vcpu, wasPaging, paging);
  // SMEP, SMAP and PKE go and come with the guest's paging. KVM leaves them as they were, so that RSM drops them.
  if (!ept && wasPaging !== paging) vmxSetCr4(vcpu, kvmReadCr4(vcpu));
  vcpu.arch.emulationRequired = vmxEmulationRequired(vcpu);
}
ownFrame('vmxSetCr0', vmxSetCr0);

/**
 * A fastpath's part of handleCr, kvmSetCr0 and vmxSetCr0: a MOV to CR0 from which little follows, under ops that nobody has wrapped.
 * @param qual exit qualification of a control-register access
 * @param regs32 halves of the general registers, where the guest's are now
 * @returns false: it is more than that, and nothing has happened
 */
export function vmxFastSetCr0(vcpu: Vcpu, qual: number, regs32: Uint32Array): boolean {
  const { arch, kvm } = vcpu;
  const gpr = (qual >> 8) & 15;
  // Bits 3:0 number the register, 5:4 are 0 for a MOV to it; RSP is read late.
  if ((qual & 0x3f) !== 0 || gpr === RSP || !isUnrestrictedGuest(vcpu)) return false;
  const low = regs32[gpr * 2] | 0;
  const changed = low ^ cr0Low(vcpu, -1);
  if (regs32[gpr * 2 + 1] !== 0 || !kvmMayFastSetCr0(vcpu, changed, low)) return false;
  if (kvm.calls.setCr0 !== vmxSetCr0 || kvm.calls.isValidCr0 !== vmxIsValidCr0) return false;
  const v = vmcsOf(vcpu);
  v.writeNumber(F.CR0_READ_SHADOW, low >>> 0);
  v.writeNumber(F.GUEST_CR0, ((low & ~CR0_ALWAYS_OFF) | CR0_ALWAYS_ON_UNRESTRICTED) >>> 0);
  arch.cr0 = v.read64(F.CR0_READ_SHADOW);
  kvmFastPostSetCr0(vcpu, changed);
  return true;
}

/** EPT without unrestricted guest: while the guest's paging is off the hardware's CR3 is the identity map's. */
function updatePagingWithoutUrg(vcpu: Vcpu, wasPaging: boolean, paging: boolean): void {
  if (!vcpu.arch.regsAvail.has('cr3')) vmxCacheReg(vcpu, 'cr3');
  if (!paging) controlsSetBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, CR3_EXITING);
  else if (!isGuestMode(vcpu)) controlsClearBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, CR3_EXITING);
  if (wasPaging !== paging) vmxSetCr4(vcpu, kvmReadCr4(vcpu));
  if (!wasPaging && paging) kvmRegisterMarkDirty(vcpu, 'cr3');
}

const TR_TYPE_BUSY_64 = 11;
/** KVM: enter_lmode. */
export const enterLmode = frame('enterLmode', (vcpu: Vcpu): void => {
  const v = vmcsOf(vcpu);
  const ar = v.read32(F.GUEST_TR_AR_BYTES);
  if ((ar & 15) !== TR_TYPE_BUSY_64) v.write32(F.GUEST_TR_AR_BYTES, (ar & ~15) | TR_TYPE_BUSY_64);
  vmxSetEfer(vcpu, vcpu.arch.efer | EFER.LMA);
});
/** KVM: exit_lmode. */
export const exitLmode = frame('exitLmode', (vcpu: Vcpu): void => {
  vmxSetEfer(vcpu, vcpu.arch.efer & ~EFER.LMA);
});

/** Installs EFER. KVM: vmx_set_efer, update_transition_efer. */
export const vmxSetEfer = frame('vmxSetEfer', (vcpu: Vcpu, efer: bigint): number => {
  vcpu.arch.efer = efer;
  const long = (efer & EFER.LMA) !== 0n;
  if (long) controlsSetBit(vcpu, F.VM_ENTRY_CONTROLS, EntryCtl.ia32e);
  else controlsClearBit(vcpu, F.VM_ENTRY_CONTROLS, EntryCtl.ia32e);
  // LME without LMA would break the entry check while the hardware's PG is set for KVM's own reasons.
  const hw = long ? efer : efer & ~EFER.LME;
  // Shadow tables need NX to keep a supervisor from executing what only it may write.
  vmcsOf(vcpu).write64(F.GUEST_IA32_EFER, toVmx(vcpu).module.params.ept ? hw : hw | EFER.NXE);
  return 0;
});

/** Installs CR4 without checks. KVM: vmx_set_cr4. */
export const vmxSetCr4 = frame('vmxSetCr4', (vcpu: Vcpu, cr4: bigint): void => {
  const { arch } = vcpu;
  const urg = isUnrestrictedGuest(vcpu);
  let hw = (HOST.cr4 & CR4.MCE) | (cr4 & ~CR4.MCE);
  if (urg) hw |= CR4_ALWAYS_ON_UNRESTRICTED;
  else hw |= toVmx(vcpu).rmode.vm86Active ? CR4_ALWAYS_ON_RMODE : CR4_ALWAYS_ON_PMODE;
  hw = emulateUmip(vcpu, cr4, hw);
  arch.cr4 = cr4;
  kvmRegisterMarkAvailable(vcpu, 'cr4');
  if (!urg) hw = stepDownCr4(vcpu, cr4, hw);
  const v = vmcsOf(vcpu);
  v.write64(F.CR4_READ_SHADOW, cr4);
  v.write64(F.GUEST_CR4, hw);
});
/** Without unrestricted guest the hardware pages even when the guest does not. */
function stepDownCr4(vcpu: Vcpu, cr4: bigint, hw: bigint): bigint {
  const { ept } = toVmx(vcpu).module.params;
  if (isPaging(vcpu)) return ept && (cr4 & CR4.PAE) === 0n ? hw & ~CR4.PAE : hw;
  // The identity map is made of 4 MiB pages, the shadow of a guest without paging of PAE's.
  const paged = ept ? (hw & ~CR4.PAE) | CR4.PSE : hw;
  return paged & ~(CR4.SMEP | CR4.SMAP | CR4.PKE);
}
/** A processor without UMIP: descriptor-table exiting stands in. */
function emulateUmip(vcpu: Vcpu, cr4: bigint, hw: bigint): bigint {
  const { silicon, module } = toVmx(vcpu);
  const native = (silicon.caps.cr4Fixed1 & CR4.UMIP) !== 0n;
  if (native || !(module.config.secondary & Secondary.descriptorTable)) return hw;
  if ((cr4 & CR4.UMIP) === 0n) {
    controlsClearBit(vcpu, F.SECONDARY_VM_EXEC_CONTROL, Secondary.descriptorTable);
    return hw;
  }
  controlsSetBit(vcpu, F.SECONDARY_VM_EXEC_CONTROL, Secondary.descriptorTable);
  return hw & ~CR4.UMIP;
}

/** CR4 bits that the guest changes without an exit. KVM: set_cr4_guest_host_mask. */
export function setCr4GuestHostMask(vcpu: Vcpu): void {
  const { arch } = vcpu;
  arch.cr4GuestOwnedBits = POSSIBLE_CR4_GUEST_BITS & ~arch.cr4GuestRsvdBits;
  // The shadow has to follow these.
  if (!toVmx(vcpu).module.params.ept) arch.cr4GuestOwnedBits &= ~(CR4_TLBFLUSH_BITS | CR4_PDPTR_BITS);
  vmcsOf(vcpu).write64(F.CR4_GUEST_HOST_MASK, ~arch.cr4GuestOwnedBits & ALL);
}

/** Reads one register out of the VMCS. KVM: vmx_cache_reg. */
export function vmxCacheReg(vcpu: Vcpu, reg: RegName): void {
  const { arch } = vcpu;
  const v = vmcsOf(vcpu);
  arch.regsAvail.add(reg);
  switch (reg) {
    case 'rsp':
      v.copyOut(F.GUEST_RSP, arch.regs, RSP);
      break;
    case 'rip':
      v.readRip(arch.regs, 16);
      break;
    case 'cr0': {
      // What exists of CR0 stands in the low half.
      const owned = lowWord(arch.cr0GuestOwnedBits);
      const known = lowWord(arch.cr0);
      const low = (known & ~owned) | (v.block[CR0_WORD] & owned);
      if (low !== known) arch.cr0 = BigInt(low >>> 0);
      break;
    }
    case 'cr3':
      // While CR3 loads exit, the field holds KVM's CR3, not the guest's.
      if (!(controlsGet(vcpu, F.CPU_BASED_VM_EXEC_CONTROL) & Primary.cr3Load)) arch.cr3 = v.read64(F.GUEST_CR3);
      break;
    case 'cr4': {
      const owned = arch.cr4GuestOwnedBits;
      arch.cr4 = (arch.cr4 & ~owned) | (v.read64(F.GUEST_CR4) & owned);
      break;
    }
    case 'pdptr':
      eptSavePdptrs(vcpu);
      break;
    default:
      break;
  }
}

/** KVM: ept_save_pdptrs. */
function eptSavePdptrs(vcpu: Vcpu): void {
  if (!toVmx(vcpu).module.params.ept || !isPaePaging(vcpu)) return;
  const v = vmcsOf(vcpu);
  for (let i = 0; i < 4; i++) vcpu.arch.pdptrs[i] = v.read64(F.GUEST_PDPTR0 + 2 * i);
}
/** KVM: vmx_ept_load_pdptrs. */
export function vmxEptLoadPdptrs(vcpu: Vcpu): void {
  if (!toVmx(vcpu).module.params.ept || !vcpu.arch.regsDirty.has('pdptr') || !isPaePaging(vcpu)) return;
  const v = vmcsOf(vcpu);
  for (let i = 0; i < 4; i++) v.write64(F.GUEST_PDPTR0 + 2 * i, vcpu.arch.pdptrs[i]);
}

/** GUEST_RFLAGS is one of the fields that live in the processor's state block. */
const RFLAGS_WORD = S.rflags >> 2;
const CR0_WORD = S.cr0 >> 2;
/** What is asked at every exit is made once. */
function readRflags(vcpu: Vcpu): bigint {
  const v = vmcsOf(vcpu);
  const { rflags } = toVmx(vcpu);
  const low = v.block[RFLAGS_WORD];
  if (low === rflags.low && v.block[RFLAGS_WORD + 1] === 0) return rflags.value;
  const value = v.read64(F.GUEST_RFLAGS);
  if (v.block[RFLAGS_WORD + 1] === 0) {
    rflags.low = low;
    rflags.value = value;
  }
  return value;
}
/** RFLAGS as the guest sees it. KVM: vmx_get_rflags. */
export function vmxGetRflags(vcpu: Vcpu): bigint {
  const rflags = readRflags(vcpu);
  const { rmode } = toVmx(vcpu);
  if (!rmode.vm86Active) return rflags;
  return (rflags & ~RMODE_HOST_RFLAGS) | (rmode.saveRflags & RMODE_HOST_RFLAGS);
}
/** KVM: vmx_set_rflags. */
export function vmxSetRflags(vcpu: Vcpu, rflags: bigint): void {
  const v = vmcsOf(vcpu);
  if (isUnrestrictedGuest(vcpu)) {
    v.write64(F.GUEST_RFLAGS, rflags);
    return;
  }
  const { rmode } = toVmx(vcpu);
  const old = vmxGetRflags(vcpu);
  if (rmode.vm86Active) rmode.saveRflags = rflags;
  v.write64(F.GUEST_RFLAGS, rmode.vm86Active ? rflags | RMODE_HOST_RFLAGS : rflags);
  if (((old ^ rflags) & BigInt(Flag.VM)) !== 0n) vcpu.arch.emulationRequired = vmxEmulationRequired(vcpu);
}
export const vmxGetIfFlag = (vcpu: Vcpu): boolean => (vmcsOf(vcpu).readLow(F.GUEST_RFLAGS) & Flag.IF) !== 0;

// Debug registers

/** KVM: vmx_set_dr7. */
export function vmxSetDr7(vcpu: Vcpu, value: bigint): void {
  vmcsOf(vcpu).write64(F.GUEST_DR7, value);
}
/** The guest ran with MOV DR native: reads its registers back and arms the exit again. KVM: vmx_sync_dirty_debug_regs. */
export function vmxSyncDirtyDebugRegs(vcpu: Vcpu): void {
  const { arch } = vcpu;
  const { state } = vcpu.kvm.processor;
  for (let i = 0; i < 4; i++) arch.db[i] = state.get64(S.dr0 + 8 * i);
  arch.dr6 = state.get64(S.dr6);
  arch.dr7 = vmcsOf(vcpu).read64(F.GUEST_DR7);
  arch.switchDbRegs &= ~2;
  // KVM's caller does this (vcpu_enter_guest): what is in effect, and whether a breakpoint is armed, follows.
  kvmUpdateDr0123(vcpu);
  kvmUpdateDr7(vcpu);
  controlsSetBit(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, Primary.movDr);
}
