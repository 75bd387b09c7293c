/**
 * Segment registers between KVM's form and the VMCS, and the test whether VM entry would take them.
 * KVM: vmx_get_segment, vmx_set_segment, vmx_guest_state_valid in vmx.c.
 */
import type { DtPtr, KvmSegment, Vcpu } from '@tskvm/core';
import { isProtmode } from '@tskvm/core';
import { Flag, Seg, type SegmentIndex } from '@tskvm/emulator';
import { F } from './hardware/vmcs.ts';
import { vmxGetRflags } from './registers.ts';
import { fixRmodeSeg, RMODE_SEGMENTS } from './rmode.ts';
import { isUnrestrictedGuest, toVmx, vmcsOf } from './vcpu-vmx.ts';

/** Position of a segment among the VMCS fields: ES CS SS DS FS GS LDTR TR. */
const vmcsIndex = (seg: SegmentIndex): number => (seg === Seg.LDTR ? 6 : seg === Seg.TR ? 7 : seg);
export const selectorField = (seg: SegmentIndex): number => F.GUEST_ES_SELECTOR + 2 * vmcsIndex(seg);
export const baseField = (seg: SegmentIndex): number => F.GUEST_ES_BASE + 2 * vmcsIndex(seg);
export const limitField = (seg: SegmentIndex): number => F.GUEST_ES_LIMIT + 2 * vmcsIndex(seg);
export const rightsField = (seg: SegmentIndex): number => F.GUEST_ES_AR_BYTES + 2 * vmcsIndex(seg);

/** KVM: vmx_segment_access_rights. */
export function segmentAccessRights(s: KvmSegment): number {
  const unusable = s.unusable || !s.present ? 0x10000 : 0;
  return (
    (s.type & 15) |
    ((s.s & 1) << 4) |
    ((s.dpl & 3) << 5) |
    ((s.present & 1) << 7) |
    ((s.avl & 1) << 12) |
    ((s.l & 1) << 13) |
    ((s.db & 1) << 14) |
    ((s.g & 1) << 15) |
    unusable
  );
}

/** Writes a segment into the VMCS as it is. */
export function writeSegment(vcpu: Vcpu, s: KvmSegment, seg: SegmentIndex): void {
  const v = vmcsOf(vcpu);
  v.write16(selectorField(seg), s.selector);
  v.write64(baseField(seg), s.base);
  v.write32(limitField(seg), s.limit >>> 0);
  v.write32(rightsField(seg), segmentAccessRights(s));
}

function readSegment(vcpu: Vcpu, seg: SegmentIndex): KvmSegment {
  const v = vmcsOf(vcpu);
  const ar = v.read32(rightsField(seg));
  const unusable = (ar >> 16) & 1;
  return {
    base: v.read64(baseField(seg)),
    limit: v.read32(limitField(seg)),
    selector: v.read16(selectorField(seg)),
    type: ar & 15,
    s: (ar >> 4) & 1,
    dpl: (ar >> 5) & 3,
    // A usable segment is present by VMX's rules; user space that loses "unusable" is amended so.
    present: unusable ^ 1,
    avl: (ar >> 12) & 1,
    l: (ar >> 13) & 1,
    db: (ar >> 14) & 1,
    g: (ar >> 15) & 1,
    unusable,
  };
}

/** KVM: vmx_get_segment. */
export function vmxGetSegment(vcpu: Vcpu, seg: SegmentIndex): KvmSegment {
  const { rmode } = toVmx(vcpu);
  if (!rmode.vm86Active || seg === Seg.LDTR) return readSegment(vcpu, seg);
  const cached = { ...rmode.segs[seg] };
  const v = vmcsOf(vcpu);
  const selector = v.read16(selectorField(seg));
  // The guest loaded it natively in virtual-8086 mode: selector and base are what it sees.
  if (seg !== Seg.TR && cached.selector !== selector) {
    cached.base = v.read64(baseField(seg));
    cached.selector = selector;
  }
  return cached;
}
export function vmxGetSegmentBase(vcpu: Vcpu, seg: SegmentIndex): bigint {
  if (toVmx(vcpu).rmode.vm86Active) return vmxGetSegment(vcpu, seg).base;
  return vmcsOf(vcpu).read64(baseField(seg));
}

/** KVM: __vmx_set_segment. */
export function setSegmentRaw(vcpu: Vcpu, s: KvmSegment, seg: SegmentIndex): void {
  const { rmode } = toVmx(vcpu);
  if (rmode.vm86Active && seg !== Seg.LDTR) {
    rmode.segs[seg] = { ...s };
    if (seg === Seg.TR) vmcsOf(vcpu).write16(F.GUEST_TR_SELECTOR, s.selector);
    else if (s.s) fixRmodeSeg(vcpu, seg, rmode.segs[seg]);
    return;
  }
  // Entry needs the accessed bit; guests and user space may leave it clear. KVM sets it in segments without rights, too; there it would
  // only make a state that was written back as it was read, or loaded elsewhere, another one (SMM's save map shows it).
  const accessed = isUnrestrictedGuest(vcpu) && seg !== Seg.LDTR && s.unusable === 0;
  writeSegment(vcpu, accessed ? { ...s, type: s.type | 1 } : s, seg);
}
/** KVM: vmx_set_segment. */
export function vmxSetSegment(vcpu: Vcpu, s: KvmSegment, seg: SegmentIndex): void {
  setSegmentRaw(vcpu, s, seg);
  vcpu.arch.emulationRequired = vmxEmulationRequired(vcpu);
}

/** KVM: vmx_get_cs_db_l_bits. */
export function vmxGetCsDbLBits(vcpu: Vcpu): { db: number; l: number } {
  const ar = vmcsOf(vcpu).read32(F.GUEST_CS_AR_BYTES);
  return { db: (ar >> 14) & 1, l: (ar >> 13) & 1 };
}
/** KVM: vmx_get_cpl: DPL of SS; real mode is CPL 0 though it runs as virtual-8086. */
export function vmxGetCpl(vcpu: Vcpu): number {
  if (toVmx(vcpu).rmode.vm86Active) return 0;
  return (vmcsOf(vcpu).read32(F.GUEST_SS_AR_BYTES) >> 5) & 3;
}

const getTable = (vcpu: Vcpu, base: number, limit: number): DtPtr => {
  const v = vmcsOf(vcpu);
  return { base: v.read64(base), limit: v.read32(limit) };
};
const setTable = (vcpu: Vcpu, base: number, limit: number, dt: DtPtr): void => {
  const v = vmcsOf(vcpu);
  v.write64(base, dt.base);
  v.write32(limit, dt.limit);
};
export const vmxGetIdt = (vcpu: Vcpu): DtPtr => getTable(vcpu, F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT);
export const vmxGetGdt = (vcpu: Vcpu): DtPtr => getTable(vcpu, F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT);
export const vmxSetIdt = (vcpu: Vcpu, dt: DtPtr): void => setTable(vcpu, F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT, dt);
export const vmxSetGdt = (vcpu: Vcpu, dt: DtPtr): void => setTable(vcpu, F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT, dt);

// Would VM entry take the segments? KVM: vmx_guest_state_valid.

/** Real mode (run as virtual-8086): base, limit and rights are what virtual-8086 mode demands. KVM: rmode_segment_valid. */
function rmodeSegmentValid(vcpu: Vcpu, seg: SegmentIndex): boolean {
  const s = vmxGetSegment(vcpu, seg);
  s.dpl = 3;
  if (seg === Seg.CS) s.type = 3;
  return s.base === BigInt(s.selector) << 4n && s.limit === 0xffff && segmentAccessRights(s) === 0xf3;
}

const WRITABLE = 2;
const CODE = 8;
const rpl = (s: KvmSegment): number => s.selector & 3;

function codeSegmentValid(s: KvmSegment): boolean {
  if (s.unusable) return false;
  // Accessed code.
  if ((s.type & 9) !== 9 || !s.s || !s.present) return false;
  // KVM tests the readable bit where the manual has the conforming one (SDM vol. 3 26.3.1.2).
  return s.type & WRITABLE ? s.dpl <= rpl(s) : s.dpl === rpl(s);
}
function stackSegmentValid(s: KvmSegment): boolean {
  if (s.unusable) return true;
  return (s.type === 3 || s.type === 7) && s.s === 1 && s.dpl === rpl(s) && s.present === 1;
}
function dataSegmentValid(s: KvmSegment): boolean {
  if (s.unusable) return true;
  if (!s.s || !s.present) return false;
  return (s.type & (CODE | WRITABLE)) === (CODE | WRITABLE) || s.dpl >= rpl(s);
}
function trValid(s: KvmSegment): boolean {
  return !s.unusable && (s.selector & 4) === 0 && (s.type === 3 || s.type === 11) && s.present === 1;
}
function ldtrValid(s: KvmSegment): boolean {
  return s.unusable === 1 || ((s.selector & 4) === 0 && s.type === 2 && s.present === 1);
}

function protectedStateValid(vcpu: Vcpu): boolean {
  const cs = vmxGetSegment(vcpu, Seg.CS);
  const ss = vmxGetSegment(vcpu, Seg.SS);
  if (rpl(cs) !== rpl(ss) || !codeSegmentValid(cs) || !stackSegmentValid(ss)) return false;
  for (const seg of [Seg.DS, Seg.ES, Seg.FS, Seg.GS] as const) {
    if (!dataSegmentValid(vmxGetSegment(vcpu, seg))) return false;
  }
  return trValid(vmxGetSegment(vcpu, Seg.TR)) && ldtrValid(vmxGetSegment(vcpu, Seg.LDTR));
}

/** KVM: vmx_guest_state_valid. */
export function vmxGuestStateValid(vcpu: Vcpu): boolean {
  if (isUnrestrictedGuest(vcpu)) return true;
  const v86 = (vmxGetRflags(vcpu) & BigInt(Flag.VM)) !== 0n;
  if (!isProtmode(vcpu) || v86) return RMODE_SEGMENTS.every((seg) => rmodeSegmentValid(vcpu, seg));
  return protectedStateValid(vcpu);
}
/** KVM: vmx_emulation_required. */
export const vmxEmulationRequired = (vcpu: Vcpu): boolean =>
  toVmx(vcpu).module.params.emulateInvalidGuestState && !vmxGuestStateValid(vcpu);
