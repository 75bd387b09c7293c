/**
 * VMRUN's consistency checks as rows of data, and one fused predicate for the way that is always taken.
 * Manual: APM vol. 2 section 15.5.1 (canonicalization and consistency checks).
 */
import { EventInfo, SAVE_AREA, V, type VmcbField } from './vmcb.ts';

/** What the checks depend on besides the VMCB. */
export interface EntryLimits {
  maxphyaddr: number;
  /** Bits of CR4 and EFER that do not exist on this processor. */
  cr4Reserved: bigint;
  eferReserved: bigint;
  longMode: boolean;
  nestedPaging: boolean;
  sevEs: boolean;
}

/** Where the checks look: the control area, and the save area (in the VMCB, or a VMSA). */
export interface EntryView {
  control: DataView;
  at: number;
  save: DataView;
  /** Offset in `save` at which the save area starts. */
  saveAt: number;
  limits: EntryLimits;
}

/** A check that failed, for fail_entry. */
export interface EntryFailure {
  code: string;
  field: string;
  value: bigint;
  rule: string;
  section: string;
}

interface EntryRow {
  readonly code: string;
  readonly field: VmcbField;
  readonly rule: string;
  readonly section: string;
  readonly broken: (view: EntryView) => boolean;
}

const CR0_PE = 1n;
const CR0_NW = 1n << 29n;
const CR0_CD = 1n << 30n;
const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const EFER_LME = 1n << 8n;
const EFER_LMA = 1n << 10n;
const EFER_SVME = 1n << 12n;
const CS_L = 0x200;
const CS_D = 0x400;

const c32 = (v: EntryView, offset: number): number => v.control.getUint32(v.at + offset, true);
const c64 = (v: EntryView, offset: number): bigint => v.control.getBigUint64(v.at + offset, true);
const s64 = (v: EntryView, offset: number): bigint => v.save.getBigUint64(v.saveAt + offset - SAVE_AREA, true);
const csAttrib = (v: EntryView): number => v.save.getUint16(v.saveAt + V.cs - SAVE_AREA + 2, true);
const longModePaging = (v: EntryView): boolean => (s64(v, V.efer) & EFER_LME) !== 0n && (s64(v, V.cr0) & CR0_PG) !== 0n;
const np = (v: EntryView): boolean => (c32(v, V.miscCtl) & 1) !== 0;
const validPat = (pat: bigint): boolean => {
  for (let n = 0n; n < 64n; n += 8n) {
    const type = Number((pat >> n) & 0xffn);
    if (type > 7 || type === 2 || type === 3) return false;
  }
  return true;
};
const eventBroken = (v: EntryView): boolean => {
  const info = c32(v, V.eventInj);
  if ((info & EventInfo.VALID) === 0) return false;
  const type = (info & EventInfo.TYPE_MASK) >>> EventInfo.TYPE_SHIFT;
  const vector = info & EventInfo.VECTOR;
  if (type === 3) return vector > 31 || vector === 2;
  return type !== 0 && type !== 2 && type !== 4;
};
/** Physical addresses: the map's last byte must exist (12 KiB and 8 KiB). */
const beyond = (address: bigint, size: bigint, maxphyaddr: number): boolean =>
  (address & ~0xfffn) + size > 1n << BigInt(maxphyaddr);

const SECTION = 'APM vol. 2 15.5.1';

/** Every check, in the manual's order. */
export const ENTRY_CHECKS: readonly EntryRow[] = [
  {
    code: 'svm.efer.svme-clear',
    field: 'efer',
    rule: 'EFER.SVME must be 1',
    section: SECTION,
    broken: (v) => (s64(v, V.efer) & EFER_SVME) === 0n,
  },
  {
    code: 'svm.cr0.nw-without-cd',
    field: 'cr0',
    rule: 'CR0.CD=0 with CR0.NW=1 is illegal',
    section: SECTION,
    broken: (v) => (s64(v, V.cr0) & (CR0_NW | CR0_CD)) === CR0_NW,
  },
  {
    code: 'svm.cr0.upper',
    field: 'cr0',
    rule: 'CR0[63:32] must be zero',
    section: SECTION,
    broken: (v) => s64(v, V.cr0) >> 32n !== 0n,
  },
  {
    code: 'svm.cr3.reserved',
    field: 'cr3',
    rule: 'CR3 bits above the physical address width must be zero in long mode',
    section: SECTION,
    broken: (v) => longModePaging(v) && s64(v, V.cr3) >> BigInt(v.limits.maxphyaddr) !== 0n,
  },
  {
    code: 'svm.cr4.reserved',
    field: 'cr4',
    rule: 'reserved CR4 bits must be zero',
    section: SECTION,
    broken: (v) => (s64(v, V.cr4) & v.limits.cr4Reserved) !== 0n,
  },
  {
    code: 'svm.dr6.upper',
    field: 'dr6',
    rule: 'DR6[63:32] must be zero',
    section: SECTION,
    broken: (v) => s64(v, V.dr6) >> 32n !== 0n,
  },
  {
    code: 'svm.dr7.upper',
    field: 'dr7',
    rule: 'DR7[63:32] must be zero',
    section: SECTION,
    broken: (v) => s64(v, V.dr7) >> 32n !== 0n,
  },
  {
    code: 'svm.efer.reserved',
    field: 'efer',
    rule: 'reserved EFER bits must be zero',
    section: SECTION,
    broken: (v) => (s64(v, V.efer) & v.limits.eferReserved) !== 0n,
  },
  {
    code: 'svm.efer.long-mode-unsupported',
    field: 'efer',
    rule: 'EFER.LME and EFER.LMA must be zero on a processor without long mode',
    section: SECTION,
    broken: (v) => !v.limits.longMode && (s64(v, V.efer) & (EFER_LME | EFER_LMA)) !== 0n,
  },
  {
    code: 'svm.cr4.long-mode-without-pae',
    field: 'cr4',
    rule: 'EFER.LME and CR0.PG both set require CR4.PAE',
    section: SECTION,
    broken: (v) => longModePaging(v) && (s64(v, V.cr4) & CR4_PAE) === 0n,
  },
  {
    code: 'svm.cr0.long-mode-without-pe',
    field: 'cr0',
    rule: 'EFER.LME and CR0.PG both set require CR0.PE',
    section: SECTION,
    broken: (v) => longModePaging(v) && (s64(v, V.cr0) & CR0_PE) === 0n,
  },
  {
    code: 'svm.cs.l-and-d',
    field: 'cs',
    rule: 'EFER.LME, CR0.PG and CR4.PAE set forbid CS.L and CS.D both set',
    section: SECTION,
    broken: (v) =>
      longModePaging(v) && (s64(v, V.cr4) & CR4_PAE) !== 0n && (csAttrib(v) & (CS_L | CS_D)) === (CS_L | CS_D),
  },
  {
    code: 'svm.intercept.vmrun-clear',
    field: 'intercept4',
    rule: 'the VMRUN intercept must be set',
    section: SECTION,
    broken: (v) => (c32(v, V.intercept4) & 1) === 0,
  },
  {
    code: 'svm.iopm.beyond-memory',
    field: 'iopmBasePa',
    rule: 'the I/O permission map must lie below the physical address limit',
    section: 'APM vol. 2 15.10.1',
    broken: (v) => beyond(c64(v, V.iopmBasePa), 0x3000n, v.limits.maxphyaddr),
  },
  {
    code: 'svm.msrpm.beyond-memory',
    field: 'msrpmBasePa',
    rule: 'the MSR permission map must lie below the physical address limit',
    section: 'APM vol. 2 15.11',
    broken: (v) => beyond(c64(v, V.msrpmBasePa), 0x2000n, v.limits.maxphyaddr),
  },
  {
    code: 'svm.eventinj.illegal',
    field: 'eventInj',
    rule: 'an injected event must have a defined type, and an exception a vector that is one',
    section: 'APM vol. 2 15.20',
    broken: eventBroken,
  },
  {
    code: 'svm.asid.zero',
    field: 'asid',
    rule: 'ASID 0 is the host',
    section: SECTION,
    broken: (v) => c32(v, V.asid) === 0,
  },
  {
    code: 'svm.np.unsupported',
    field: 'miscCtl',
    rule: 'NP_ENABLE needs the nested paging feature',
    section: 'APM vol. 2 15.25.3',
    broken: (v) => np(v) && !v.limits.nestedPaging,
  },
  {
    code: 'svm.ncr3.reserved',
    field: 'nestedCr3',
    rule: 'nCR3 bits above the physical address width must be zero',
    section: 'APM vol. 2 15.25.4',
    broken: (v) => np(v) && c64(v, V.nestedCr3) >> BigInt(v.limits.maxphyaddr) !== 0n,
  },
  {
    code: 'svm.gpat.type',
    field: 'gPat',
    rule: 'G_PAT must hold defined memory types under nested paging',
    section: 'APM vol. 2 15.25.4',
    broken: (v) => np(v) && !validPat(s64(v, V.gPat)),
  },
  {
    code: 'svm.sev-es.unsupported',
    field: 'miscCtl',
    rule: 'SEV-ES needs the feature, and SEV and nested paging enabled with it',
    section: 'APM vol. 2 15.35.2',
    broken: (v) => (c32(v, V.miscCtl) & 4) !== 0 && (!v.limits.sevEs || (c32(v, V.miscCtl) & 3) !== 3),
  },
];

/** Rows that are broken, with the values found. */
export function failedEntryChecks(view: EntryView): EntryFailure[] {
  return ENTRY_CHECKS.filter((row) => row.broken(view)).map(({ code, field, rule, section }) => ({
    code,
    field,
    value: fieldValue(view, field),
    rule,
    section,
  }));
}

function fieldValue(view: EntryView, field: VmcbField): bigint {
  if (field === 'cs') return BigInt(csAttrib(view));
  const offset = V[field];
  if (offset >= SAVE_AREA) return s64(view, offset);
  const wide = field === 'iopmBasePa' || field === 'msrpmBasePa' || field === 'nestedCr3' || field === 'miscCtl';
  return wide ? c64(view, offset) : BigInt(c32(view, offset));
}

/** The same limits as 32-bit halves, for the predicate. */
export interface FusedLimits {
  cr4ReservedLow: number;
  cr4ReservedHigh: number;
  eferReservedLow: number;
  eferReservedHigh: number;
  addressReservedHigh: number;
  longMode: boolean;
  nestedPaging: boolean;
  sevEs: boolean;
}

export function fuseLimits(limits: EntryLimits): FusedLimits {
  const low = (value: bigint): number => Number(value & 0xffff_ffffn);
  const high = (value: bigint): number => Number((value >> 32n) & 0xffff_ffffn);
  return {
    cr4ReservedLow: low(limits.cr4Reserved),
    cr4ReservedHigh: high(limits.cr4Reserved),
    eferReservedLow: low(limits.eferReserved),
    eferReservedHigh: high(limits.eferReserved),
    addressReservedHigh: limits.maxphyaddr >= 64 ? 0 : (-1 << (limits.maxphyaddr - 32)) >>> 0,
    longMode: limits.longMode,
    nestedPaging: limits.nestedPaging,
    sevEs: limits.sevEs,
  };
}

/**
 * The rows fused into one predicate over 32-bit halves (a test holds it against the rows). False also for the rare shapes that only
 * the rows can judge (a permission map at the very end of the address space); the caller walks the rows then.
 */
export function entryAllowed(view: EntryView, limits: FusedLimits): boolean {
  const { control, at } = view;
  if ((control.getInt32(at + V.intercept4, true) & 1) === 0 || control.getInt32(at + V.asid, true) === 0) return false;
  const addressHigh = control.getInt32(at + V.iopmBasePa + 4, true) | control.getInt32(at + V.msrpmBasePa + 4, true);
  if ((addressHigh & limits.addressReservedHigh) !== 0) return false;
  // A map whose end reaches over a multiple of 4 GiB.
  if (control.getUint32(at + V.iopmBasePa, true) >= 0xffff_e000) return false;
  if (control.getUint32(at + V.msrpmBasePa, true) >= 0xffff_f000) return false;
  if (control.getInt32(at + V.eventInj, true) < 0 && eventBroken(view)) return false;
  const misc = control.getInt32(at + V.miscCtl, true);
  if ((misc & 5) !== 0 && !modesAllowed(view, limits, misc)) return false;
  return saveAllowed(view, limits);
}

function modesAllowed(view: EntryView, limits: FusedLimits, misc: number): boolean {
  if ((misc & 4) !== 0 && (!limits.sevEs || (misc & 3) !== 3)) return false;
  if ((misc & 1) === 0) return true;
  if (!limits.nestedPaging) return false;
  if ((view.control.getInt32(view.at + V.nestedCr3 + 4, true) & limits.addressReservedHigh) !== 0) return false;
  const at = view.saveAt + V.gPat - SAVE_AREA;
  return patHalfAllowed(view.save.getInt32(at, true)) && patHalfAllowed(view.save.getInt32(at + 4, true));
}

/** No byte above 7, none of 2 and 3 (bit 1 without bit 2). */
const patHalfAllowed = (half: number): boolean =>
  (half & 0xf8f8_f8f8) === 0 && (half & ~(half >>> 1) & 0x0202_0202) === 0;

function saveAllowed(view: EntryView, limits: FusedLimits): boolean {
  const { save } = view;
  const at = view.saveAt - SAVE_AREA;
  const efer = save.getInt32(at + V.efer, true);
  const cr0 = save.getInt32(at + V.cr0, true);
  const cr4 = save.getInt32(at + V.cr4, true);
  if ((efer & 0x1000) === 0 || (efer & limits.eferReservedLow) !== 0 || (cr4 & limits.cr4ReservedLow) !== 0)
    return false;
  if ((cr0 & 0x6000_0000) === 0x2000_0000) return false;
  const upper =
    save.getInt32(at + V.cr0 + 4, true) |
    save.getInt32(at + V.dr6 + 4, true) |
    save.getInt32(at + V.dr7 + 4, true) |
    (save.getInt32(at + V.cr4 + 4, true) & limits.cr4ReservedHigh) |
    (save.getInt32(at + V.efer + 4, true) & limits.eferReservedHigh);
  if (upper !== 0) return false;
  if ((efer & 0x500) !== 0 && !limits.longMode) return false;
  if ((efer & 0x100) === 0 || cr0 >= 0) return true;
  if ((cr4 & 0x20) === 0 || (cr0 & 1) === 0) return false;
  if ((save.getInt32(at + V.cr3 + 4, true) & limits.addressReservedHigh) !== 0) return false;
  return (save.getUint16(at + V.cs + 2, true) & (CS_L | CS_D)) !== (CS_L | CS_D);
}
