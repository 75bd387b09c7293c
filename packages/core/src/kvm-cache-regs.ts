/**
 * Lazily cached guest registers and the CR0/CR4/EFER predicates.
 * KVM: arch/x86/kvm/kvm_cache_regs.h, and the predicates of x86.h.
 */
import { CR0, CR4, EFER, RAX, RBX, RCX, RDX, RSP } from '@tskvm/emulator';
import { highWord, lowWord } from './low-word.ts';
import { RegBit, type RegName } from './reg-set.ts';
import type { Vcpu } from './vcpu.ts';

/** Bits as numbers for JavaScript's bit operators: a bigint costs an allocation at every question. */
const Cr0 = { PE: lowWord(CR0.PE), PG: lowWord(CR0.PG) } as const;
const Cr4 = { PAE: lowWord(CR4.PAE), PSE: lowWord(CR4.PSE), LA57: lowWord(CR4.LA57) } as const;
const LMA = lowWord(EFER.LMA);

/** Index of RIP in `arch.regs`. */
export const VCPU_REGS_RIP = 16;
/** HF_GUEST_MASK: the vCPU runs L2. */
export const HF_GUEST_MASK = 1;
export const HF_SMM_MASK = 2;
export const HF_SMM_INSIDE_NMI_MASK = 4;

export const kvmRegisterIsAvailable = (vcpu: Vcpu, reg: RegName): boolean => vcpu.arch.regsAvail.has(reg);
export const kvmRegisterIsDirty = (vcpu: Vcpu, reg: RegName): boolean => vcpu.arch.regsDirty.has(reg);
export function kvmRegisterMarkAvailable(vcpu: Vcpu, reg: RegName): void {
  vcpu.arch.regsAvail.add(reg);
}
export function kvmRegisterMarkDirty(vcpu: Vcpu, reg: RegName): void {
  markDirty(vcpu, RegBit[reg]);
}
function markDirty(vcpu: Vcpu, bit: number): void {
  vcpu.arch.regsAvail.addBit(bit);
  vcpu.arch.regsDirty.addBit(bit);
}
const cache = (vcpu: Vcpu, reg: RegName, bit: number): void => {
  if (!vcpu.arch.regsAvail.hasBit(bit)) vcpu.kvm.calls.cacheReg(vcpu, reg);
};

/** All 64 bits of a general register (or RIP, index 16). KVM: kvm_register_read_raw. */
export function kvmRegisterReadRaw(vcpu: Vcpu, reg: number): bigint {
  if (reg === RSP) cache(vcpu, 'rsp', RegBit.rsp);
  else if (reg === VCPU_REGS_RIP) cache(vcpu, 'rip', RegBit.rip);
  return vcpu.arch.regs[reg];
}
/** KVM: kvm_register_write_raw. */
export function kvmRegisterWriteRaw(vcpu: Vcpu, reg: number, value: bigint): void {
  vcpu.arch.regs[reg] = value;
  if (reg === RSP) markDirty(vcpu, RegBit.rsp);
  else if (reg === VCPU_REGS_RIP) markDirty(vcpu, RegBit.rip);
}
/** As an instruction sees it: 32 bits outside 64-bit mode. KVM: kvm_register_read. */
export function kvmRegisterRead(vcpu: Vcpu, reg: number): bigint {
  const value = kvmRegisterReadRaw(vcpu, reg);
  return highWord(value) === 0 || is64BitMode(vcpu) ? value : value & 0xffffffffn;
}
export function kvmRegisterWrite(vcpu: Vcpu, reg: number, value: bigint): void {
  kvmRegisterWriteRaw(vcpu, reg, is64BitMode(vcpu) ? value : value & 0xffffffffn);
}

export const kvmRipRead = (vcpu: Vcpu): bigint => kvmRegisterReadRaw(vcpu, VCPU_REGS_RIP);
export const kvmRipWrite = (vcpu: Vcpu, value: bigint): void => kvmRegisterWriteRaw(vcpu, VCPU_REGS_RIP, value);
export const kvmRspRead = (vcpu: Vcpu): bigint => kvmRegisterReadRaw(vcpu, RSP);
export const kvmRspWrite = (vcpu: Vcpu, value: bigint): void => kvmRegisterWriteRaw(vcpu, RSP, value);
export const kvmRaxRead = (vcpu: Vcpu): bigint => vcpu.arch.regs[RAX];
export const kvmRbxRead = (vcpu: Vcpu): bigint => vcpu.arch.regs[RBX];
export const kvmRcxRead = (vcpu: Vcpu): bigint => vcpu.arch.regs[RCX];
export const kvmRdxRead = (vcpu: Vcpu): bigint => vcpu.arch.regs[RDX];
export const kvmRaxWrite = (vcpu: Vcpu, value: bigint): void => void (vcpu.arch.regs[RAX] = value);
export const kvmRbxWrite = (vcpu: Vcpu, value: bigint): void => void (vcpu.arch.regs[RBX] = value);
export const kvmRcxWrite = (vcpu: Vcpu, value: bigint): void => void (vcpu.arch.regs[RCX] = value);
export const kvmRdxWrite = (vcpu: Vcpu, value: bigint): void => void (vcpu.arch.regs[RDX] = value);
/** EDX:EAX. KVM: kvm_read_edx_eax. */
export const kvmReadEdxEax = (vcpu: Vcpu): bigint =>
  (vcpu.arch.regs[RAX] & 0xffffffffn) | ((vcpu.arch.regs[RDX] & 0xffffffffn) << 32n);

/** Bits of CR0 as the guest sees them; pulls guest-owned ones out of the control block. KVM: kvm_read_cr0_bits. */
export function kvmReadCr0Bits(vcpu: Vcpu, mask: bigint): bigint {
  if ((mask & vcpu.arch.cr0GuestOwnedBits) !== 0n) cache(vcpu, 'cr0', RegBit.cr0);
  return vcpu.arch.cr0 & mask;
}
export function kvmReadCr0(vcpu: Vcpu): bigint {
  if (vcpu.arch.cr0GuestOwnedBits !== 0n) cache(vcpu, 'cr0', RegBit.cr0);
  return vcpu.arch.cr0;
}
/** Bits of CR0's low half as a number; all that exist stand there. */
export function cr0Low(vcpu: Vcpu, mask: number): number {
  const { arch } = vcpu;
  if ((mask & lowWord(arch.cr0GuestOwnedBits)) !== 0) cache(vcpu, 'cr0', RegBit.cr0);
  return lowWord(arch.cr0) & mask;
}
export const kvmIsCr0BitSet = (vcpu: Vcpu, bit: bigint): boolean => cr0Low(vcpu, lowWord(bit)) !== 0;
export function kvmReadCr3(vcpu: Vcpu): bigint {
  cache(vcpu, 'cr3', RegBit.cr3);
  return vcpu.arch.cr3;
}
export function kvmReadCr4Bits(vcpu: Vcpu, mask: bigint): bigint {
  if ((mask & vcpu.arch.cr4GuestOwnedBits) !== 0n) cache(vcpu, 'cr4', RegBit.cr4);
  return vcpu.arch.cr4 & mask;
}
export function kvmReadCr4(vcpu: Vcpu): bigint {
  if (vcpu.arch.cr4GuestOwnedBits !== 0n) cache(vcpu, 'cr4', RegBit.cr4);
  return vcpu.arch.cr4;
}
/** The same of CR4. */
export function cr4Low(vcpu: Vcpu, mask: number): number {
  const { arch } = vcpu;
  if ((mask & lowWord(arch.cr4GuestOwnedBits)) !== 0) cache(vcpu, 'cr4', RegBit.cr4);
  return lowWord(arch.cr4) & mask;
}
export const kvmIsCr4BitSet = (vcpu: Vcpu, bit: bigint): boolean => cr4Low(vcpu, lowWord(bit)) !== 0;
/** PDPTE 0..3 of PAE paging. KVM: kvm_pdptr_read. */
export function kvmPdptrRead(vcpu: Vcpu, index: number): bigint {
  cache(vcpu, 'pdptr', RegBit.pdptr);
  return vcpu.arch.pdptrs[index];
}
export function kvmPdptrWrite(vcpu: Vcpu, index: number, value: bigint): void {
  vcpu.arch.pdptrs[index] = value;
}

export const isProtmode = (vcpu: Vcpu): boolean => cr0Low(vcpu, Cr0.PE) !== 0;
export const isPaging = (vcpu: Vcpu): boolean => cr0Low(vcpu, Cr0.PG) !== 0;
export const isPae = (vcpu: Vcpu): boolean => cr4Low(vcpu, Cr4.PAE) !== 0;
export const isPse = (vcpu: Vcpu): boolean => cr4Low(vcpu, Cr4.PSE) !== 0;
export const isLongMode = (vcpu: Vcpu): boolean => (lowWord(vcpu.arch.efer) & LMA) !== 0;
export const isPaePaging = (vcpu: Vcpu): boolean => !isLongMode(vcpu) && isPae(vcpu) && isPaging(vcpu);
export const isLa57Mode = (vcpu: Vcpu): boolean => isLongMode(vcpu) && cr4Low(vcpu, Cr4.LA57) !== 0;
/** LMA and CS.L. Not to be asked of a protected guest, whose CS is encrypted. KVM: is_64_bit_mode. */
export function is64BitMode(vcpu: Vcpu): boolean {
  return isLongMode(vcpu) && vcpu.kvm.calls.getCsDbLBits(vcpu).l === 1;
}
/** KVM: is_64_bit_hypercall: a protected guest is taken to be in 64-bit mode. */
export const is64BitHypercall = (vcpu: Vcpu): boolean => vcpu.arch.guestStateProtected || is64BitMode(vcpu);

export const isGuestMode = (vcpu: Vcpu): boolean => (vcpu.arch.hflags & HF_GUEST_MASK) !== 0;
export const isSmm = (vcpu: Vcpu): boolean => (vcpu.arch.hflags & HF_SMM_MASK) !== 0;
/** KVM: enter_guest_mode. */
export function enterGuestMode(vcpu: Vcpu): void {
  vcpu.arch.hflags |= HF_GUEST_MASK;
}
/** KVM: leave_guest_mode; a pending LOAD_EOI_EXITMAP becomes due. */
export function leaveGuestMode(vcpu: Vcpu): void {
  vcpu.arch.hflags &= ~HF_GUEST_MASK;
}
