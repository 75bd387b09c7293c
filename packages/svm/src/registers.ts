/**
 * Control registers, EFER, segments, descriptor tables, flags and debug registers in the VMCB.
 * KVM: svm.c (svm_set_cr0, svm_set_cr4, svm_set_efer, svm_get_segment, …); manual: APM vol. 2 appendix B.
 */
import {
  type DtPtr,
  frame,
  highWord,
  inFrame,
  type KvmSegment,
  kvmFastPostSetCr0,
  kvmMayFastSetCr0,
  kvmPdptrWrite,
  kvmReadCr3,
  lowWord,
  ownFrame,
  type RegName,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { CR0, CR4, EFER, Flag, S, Seg, type SegmentIndex } from '@tskvm/emulator';
import { Clean, IntState, SvmExit, segmentOffset, V, W as vmcbWords } from './hardware/index.ts';
import { recalcIntercepts, setDrIntercepts } from './intercepts.ts';
import { SEEN as seenWords, sevEsGuest, svmModule, toSvm, type VcpuSvm, vmloading, vmsaved } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const SEEN = seenWords;

/** The host's CR4.MCE; the only bit of the host that a guest's hardware CR4 takes over. */
const HOST_CR4_MCE = CR4.MCE;
const DR6_ACTIVE_LOW = 0xffff0ff0n;

/** KVM: svm_is_valid_cr0: AMD-V refuses nothing that kvm_set_cr0 has not. */
export function svmIsValidCr0(_vcpu: Vcpu, _cr0: bigint): boolean {
  return true;
}
export function svmIsValidCr4(_vcpu: Vcpu, _cr4: bigint): boolean {
  return true;
}

const PG = lowWord(CR0.PG);
const WP = lowWord(CR0.WP);
const LME = lowWord(EFER.LME);
const CR_GROUP = 1 << Clean.CR;
/** KVM_X86_QUIRK_CD_NW_CLEARED, on by default: firmware that leaves the caches off would run uncached. */
export const CD_NW = lowWord(CR0.CD | CR0.NW);

/** EFER.LMA follows CR0.PG while LME is set; a protected guest's processor does that itself. */
function updateLongMode(vcpu: Vcpu, wasPaging: boolean, paging: boolean): void {
  const { arch } = vcpu;
  if (wasPaging === paging || (lowWord(arch.efer) & LME) === 0) return;
  const { vmcb } = toSvm(vcpu);
  if (paging) {
    arch.efer |= EFER.LMA;
    if (!arch.guestStateProtected) vmcb.set64(V.efer, vmcb.get64(V.efer) | EFER.LMA | EFER.LME);
  } else {
    arch.efer &= ~EFER.LMA;
    if (!arch.guestStateProtected) vmcb.set64(V.efer, vmcb.get64(V.efer) & ~(EFER.LMA | EFER.LME));
  }
}

/**
 * Installs CR0 without any check: guest view in arch.cr0, hardware view in the VMCB, intercepts by whether the two agree.
 * KVM: svm_set_cr0.
 */
export function svmSetCr0(vcpu: Vcpu, cr0: bigint): void {
  if (unframed(vcpu, svmSetCr0)) {
    inFrame(svmSetCr0, vcpu, cr0);
    return;
  }
  const { vmcb, seen } = toSvm(vcpu);
  const { npt } = svmModule(vcpu).params;
  const low = lowWord(cr0);
  const wasPaging = (lowWord(vcpu.arch.cr0) & PG) !== 0;
  const paging = (low & PG) !== 0;
  updateLongMode(vcpu, wasPaging, paging);
  vcpu.arch.cr0 = cr0;
  let hardware = low & ~CD_NW;
  if (!npt) {
    hardware |= PG | WP;
    if (wasPaging !== paging) svmSetCr4(vcpu, vcpu.arch.cr4);
  }
  const { words } = vmcb;
  words[W.cr0] = hardware;
  words[W.cr0 + 1] = highWord(cr0);
  // What the guest makes of it is picked up by comparison with this, also if it is what was seen last.
  vmcb.copyOut(V.cr0, seen, SEEN.CR0);
  vmcb.markDirty(Clean.CR);
  if (sevEsGuest(vcpu)) return;
  const exact = hardware === low;
  vmcb.setIntercept(SvmExit.READ_CR0, !exact);
  vmcb.setIntercept(SvmExit.WRITE_CR0, !exact);
}
ownFrame('svmSetCr0', svmSetCr0);

/**
 * A fastpath's part of crInterception, kvmSetCr0 and svmSetCr0: a MOV from which little follows, under ops that nobody has wrapped.
 * @returns false: it is more than that, and nothing has happened
 */
export function svmFastSetCr0(vcpu: Vcpu, svm: VcpuSvm): boolean {
  const { vmcb, regWords, seen } = svm;
  const { words } = vmcb;
  const { calls } = vcpu.kvm;
  const gpr = (words[W.exitInfo1] & 15) * 2;
  const low = regWords[gpr];
  const changed = low ^ lowWord(vcpu.arch.cr0);
  // EXITINFO1 bit 63: a decoded MOV.
  if (words[W.exitInfo1 + 1] >= 0 || regWords[gpr + 1] !== 0 || !kvmMayFastSetCr0(vcpu, changed, low)) return false;
  if (calls.setCr0 !== svmSetCr0 || calls.isValidCr0 !== svmIsValidCr0 || !svmModule(vcpu).params.npt) return false;
  // The hardware's CR0 lacks CD and NW, which stay.
  const hardware = words[W.cr0] ^ changed;
  words[W.cr0] = hardware;
  const { cr0 } = vcpu.arch;
  vcpu.arch.cr0 = lowWord(svm.cr0Before) === low ? svm.cr0Before : BigInt(low >>> 0);
  svm.cr0Before = cr0;
  seen[SEEN.CR0] = hardware;
  words[W.clean] &= ~CR_GROUP;
  kvmFastPostSetCr0(vcpu, changed);
  return true;
}

/** Installs CR4 without any check. KVM: svm_set_cr4. */
export const svmSetCr4 = frame('svmSetCr4', (vcpu: Vcpu, cr4: bigint): void => {
  const { vmcb } = toSvm(vcpu);
  vcpu.arch.cr4 = cr4;
  let hardware = cr4;
  if (!svmModule(vcpu).params.npt) {
    hardware |= CR4.PAE;
    if ((vcpu.arch.cr0 & CR0.PG) === 0n) hardware &= ~(CR4.SMEP | CR4.SMAP | CR4.PKE);
  }
  vmcb.set64(V.cr4, hardware | HOST_CR4_MCE);
  vmcb.markDirty(Clean.CR);
});

/** Installs EFER. The VMCB's always has SVME, which VMRUN demands. KVM: svm_set_efer. */
export const svmSetEfer = frame('svmSetEfer', (vcpu: Vcpu, efer: bigint): number => {
  const { vmcb } = toSvm(vcpu);
  const changed = vcpu.arch.efer ^ efer;
  vcpu.arch.efer = efer;
  let hardware = efer;
  if (!svmModule(vcpu).params.npt) {
    hardware |= EFER.NXE;
    if ((efer & EFER.LMA) === 0n) hardware &= ~EFER.LME;
  }
  if ((changed & EFER.SVME) !== 0n) recalcIntercepts(vcpu);
  vmcb.set64(V.efer, hardware | EFER.SVME);
  vmcb.markDirty(Clean.CR);
  return 0;
});

/** SEV-ES before the state is sealed: the VMSA is made from the VMCB. KVM: sev_post_set_cr3. */
export function svmPostSetCr3(vcpu: Vcpu, cr3: bigint): void {
  if (!sevEsGuest(vcpu)) return;
  toSvm(vcpu).vmcb.set64(V.cr3, cr3);
  toSvm(vcpu).vmcb.markDirty(Clean.CR);
}

// Segments

/** KVM: svm_get_segment_base. */
export const svmGetSegmentBase = (vcpu: Vcpu, seg: SegmentIndex): bigint =>
  (seg > Seg.DS ? vmsaved(vcpu) : toSvm(vcpu).vmcb).get64(segmentOffset(seg) + 8);

/** KVM: svm_get_segment: G from the limit, "unusable" from P, and VMX's conventions for TR, data segments and SS. */
export function svmGetSegment(vcpu: Vcpu, seg: SegmentIndex): KvmSegment {
  const vmcb = seg > Seg.DS ? vmsaved(vcpu) : toSvm(vcpu).vmcb;
  const at = segmentOffset(seg);
  const attrib = vmcb.get16(at + 2);
  const limit = vmcb.get32(at + 4);
  const segment: KvmSegment = {
    base: vmcb.get64(at + 8),
    limit,
    selector: vmcb.get16(at),
    type: attrib & 15,
    s: (attrib >> 4) & 1,
    dpl: (attrib >> 5) & 3,
    present: (attrib >> 7) & 1,
    avl: (attrib >> 8) & 1,
    l: (attrib >> 9) & 1,
    db: (attrib >> 10) & 1,
    // AMD keeps no reliable G in the hidden part.
    g: limit > 0xf_ffff ? 1 : 0,
    unusable: (attrib & 0x80) === 0 ? 1 : 0,
  };
  fixSegment(segment, seg, vmcb.get8(V.cpl));
  return segment;
}

function fixSegment(segment: KvmSegment, seg: SegmentIndex, cpl: number): void {
  if (seg === Seg.TR) segment.type |= 2;
  else if (seg === Seg.SS) {
    if (segment.unusable) segment.db = 0;
    segment.dpl = cpl;
  } else if (seg !== Seg.CS && seg !== Seg.LDTR && !segment.unusable) segment.type |= 1;
}

/** KVM: svm_set_segment. SS sets CPL. */
export const svmSetSegment = (vcpu: Vcpu, segment: KvmSegment, seg: SegmentIndex): void => {
  const vmcb = seg > Seg.DS ? vmloading(vcpu) : toSvm(vcpu).vmcb;
  const at = segmentOffset(seg);
  const present = segment.present && !segment.unusable ? 1 : 0;
  vmcb.set16(at, segment.selector);
  vmcb.set16(
    at + 2,
    (segment.type & 15) |
      ((segment.s & 1) << 4) |
      ((segment.dpl & 3) << 5) |
      (present << 7) |
      ((segment.avl & 1) << 8) |
      ((segment.l & 1) << 9) |
      ((segment.db & 1) << 10) |
      ((segment.g & 1) << 11),
  );
  vmcb.set32(at + 4, segment.limit >>> 0);
  vmcb.set64(at + 8, segment.base);
  if (seg === Seg.SS) vmcb.set8(V.cpl, segment.dpl & 3);
  vmcb.markDirty(Clean.SEG);
};

/** KVM: svm_get_cs_db_l_bits. */
export function svmGetCsDbLBits(vcpu: Vcpu): { db: number; l: number } {
  const attrib = toSvm(vcpu).vmcb.get16(V.cs + 2);
  return { db: (attrib >> 10) & 1, l: (attrib >> 9) & 1 };
}
export const svmGetCpl = (vcpu: Vcpu): number => toSvm(vcpu).vmcb.get8(V.cpl);

const readTable = (vcpu: Vcpu, at: number): DtPtr => ({
  base: toSvm(vcpu).vmcb.get64(at + 8),
  limit: toSvm(vcpu).vmcb.get32(at + 4) & 0xffff,
});
function writeTable(vcpu: Vcpu, at: number, dt: DtPtr): void {
  const { vmcb } = toSvm(vcpu);
  vmcb.set32(at + 4, dt.limit);
  vmcb.set64(at + 8, dt.base);
  vmcb.markDirty(Clean.DT);
}
export const svmGetIdt = (vcpu: Vcpu): DtPtr => readTable(vcpu, V.idtr);
export const svmSetIdt = (vcpu: Vcpu, dt: DtPtr): void => writeTable(vcpu, V.idtr, dt);
export const svmGetGdt = (vcpu: Vcpu): DtPtr => readTable(vcpu, V.gdtr);
export const svmSetGdt = (vcpu: Vcpu, dt: DtPtr): void => writeTable(vcpu, V.gdtr, dt);

// Flags

function readRflags({ vmcb, rflags }: VcpuSvm): bigint {
  const { words } = vmcb;
  const low = words[W.rflags];
  if (low === rflags.low && words[W.rflags + 1] === 0) return rflags.value;
  const value = vmcb.get64(V.rflags);
  if (words[W.rflags + 1] === 0) {
    rflags.low = low;
    rflags.value = value;
  }
  return value;
}
/** Without the TF and RF that stepping over an IRET added. KVM: svm_get_rflags. */
export function svmGetRflags(vcpu: Vcpu): bigint {
  const svm = toSvm(vcpu);
  const rflags = readRflags(svm);
  if (!svm.nmiSinglestep) return rflags;
  const ours = BigInt(Flag.TF | Flag.RF);
  return (rflags & ~ours) | (rflags & svm.nmiSinglestepRflags & ours);
}
/** KVM: svm_set_rflags. */
export function svmSetRflags(vcpu: Vcpu, rflags: bigint): void {
  const svm = toSvm(vcpu);
  svm.vmcb.set64(V.rflags, svm.nmiSinglestep ? rflags | BigInt(Flag.TF | Flag.RF) : rflags);
}
/** A SEV-ES guest's IF is visible only through the interrupt state. KVM: svm_get_if_flag. */
export function svmGetIfFlag(vcpu: Vcpu): boolean {
  const { vmcb } = toSvm(vcpu);
  if (sevEsGuest(vcpu)) return (vmcb.get32(V.intState) & IntState.GUEST_IF) !== 0;
  return (vmcb.get32(V.rflags) & Flag.IF) !== 0;
}

/** PDPTRs are the only registers that AMD-V's driver fetches late: the VMCB has no field for them. KVM: svm_cache_reg. */
export function svmCacheReg(vcpu: Vcpu, reg: RegName): void {
  vcpu.arch.regsAvail.add(reg);
  if (reg !== 'pdptr' || !svmModule(vcpu).params.npt) return;
  const table = Number(kvmReadCr3(vcpu) & 0xffff_ffe0n);
  if (!vcpu.vm.hasMemory(table, 32)) return;
  const bytes = vcpu.vm.readGuest(table, 32);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  for (let n = 0; n < 4; n += 1) kvmPdptrWrite(vcpu, n, view.getBigUint64(n * 8, true));
}

// Debug registers

/** KVM: svm_set_dr7. */
export function svmSetDr7(vcpu: Vcpu, value: bigint): void {
  if (vcpu.arch.guestStateProtected) return;
  toSvm(vcpu).vmcb.set64(V.dr7, value);
  toSvm(vcpu).vmcb.markDirty(Clean.DR);
}
/** KVM: svm_set_dr6. */
export function svmSetDr6(vcpu: Vcpu, value: bigint): void {
  const { vmcb } = toSvm(vcpu);
  if (vmcb.get64(V.dr6) === value) return;
  vmcb.set64(V.dr6, value);
  vmcb.markDirty(Clean.DR);
}
export { DR6_ACTIVE_LOW };

/** The guest had the debug registers to itself: read them back and intercept them again. KVM: svm_sync_dirty_debug_regs. */
export function svmSyncDirtyDebugRegs(vcpu: Vcpu): void {
  const { arch, kvm } = vcpu;
  if (sevEsGuest(vcpu)) return;
  const { state } = kvm.processor;
  for (let n = 0; n < 4; n += 1) arch.db[n] = arch.effDb[n] = state.get64(S.dr0 + n * 8);
  arch.dr6 = toSvm(vcpu).vmcb.get64(V.dr6);
  arch.dr7 = toSvm(vcpu).vmcb.get64(V.dr7);
  arch.switchDbRegs &= ~2;
  setDrIntercepts(vcpu);
}
