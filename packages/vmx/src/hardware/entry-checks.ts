/**
 * The checks that VM entry makes before it loads anything: one row per rule. The frame; the rows stand in entry-controls.ts, entry-host.ts, entry-segments.ts
 * and entry-guest.ts.
 * Manual: SDM vol. 3 sections 26.2 (controls and host state: VMfail 7 and 8) and 26.3.1 (guest state: exit 33).
 *
 * A row belongs to groups of fields (`Dirty` in vmcs.ts). Entry asks only the rows whose group was written since they last held, and builds
 * the list of failures only after one of them has not.
 */
import type { PhysicalMemory } from '@tskvm/emulator';
import { EntryCtl, INTR_VALID, Primary, Secondary } from './bits.ts';
import type { Allowed, VmxCapabilities } from './capabilities.ts';
import { Dirty, F, type FieldName, type Vmcs } from './vmcs.ts';

/** A rule that did not hold. */
export interface FailedCheck {
  code: string;
  field: string;
  value: bigint;
  rule: string;
  section: string;
}

/** What rows may look at. */
export class CheckContext {
  pin = 0;
  primary = 0;
  /** 0 unless activated by the primary controls. */
  secondary = 0;
  exit = 0;
  entry = 0;
  /** Low words of the guest's CR0, CR4 and RFLAGS. */
  cr0 = 0;
  cr4 = 0;
  rflags = 0;
  ia32e = false;
  urg = false;
  v86 = false;
  /** Entry interruption information: 0 if not valid. */
  event = 0;
  eventType = -1;
  constructor(
    readonly vmcs: Vmcs,
    readonly caps: VmxCapabilities,
    readonly memory: PhysicalMemory,
  ) {}

  /** Reads what most rows need. */
  refresh(): void {
    const v = this.vmcs;
    this.pin = v.read32(F.PIN_BASED_VM_EXEC_CONTROL) | 0;
    this.primary = v.read32(F.CPU_BASED_VM_EXEC_CONTROL) | 0;
    this.secondary = this.primary & Primary.secondary ? v.read32(F.SECONDARY_VM_EXEC_CONTROL) | 0 : 0;
    this.exit = v.read32(F.VM_EXIT_CONTROLS) | 0;
    this.entry = v.read32(F.VM_ENTRY_CONTROLS) | 0;
    this.cr0 = v.readLow(F.GUEST_CR0) | 0;
    this.cr4 = v.readLow(F.GUEST_CR4) | 0;
    this.rflags = v.readLow(F.GUEST_RFLAGS) | 0;
    this.ia32e = (this.entry & EntryCtl.ia32e) !== 0;
    this.urg = (this.secondary & Secondary.unrestrictedGuest) !== 0;
    this.v86 = (this.rflags & RFLAGS_VM) !== 0;
    const event = v.read32(F.VM_ENTRY_INTR_INFO_FIELD);
    this.event = event & INTR_VALID ? event : 0;
    this.eventType = this.event ? (event >> 8) & 7 : -1;
  }
}

export interface CheckRow {
  code: string;
  field: FieldName;
  groups: number;
  rule: string;
  section: string;
  ok(c: CheckContext): boolean;
  /** Exit qualification of a failed entry (SDM 26.8). */
  qualification?: number;
}

const RFLAGS_VM = 1 << 17;
export const CR0_PE = 1;
export const CR0_PG = 0x80000000 | 0;
export const CR4_PAE = 1 << 5;
export const CR4_PCIDE = 1 << 17;

export const row = (
  code: string,
  field: FieldName,
  groups: number,
  rule: string,
  section: string,
  ok: (c: CheckContext) => boolean,
  qualification?: number,
): CheckRow => ({ code, field, groups, rule, section: `SDM vol. 3 ${section}`, ok, qualification });

/** A rule that reads CR0.PE or PG, beside other fields. */
export const byMode = (check: CheckRow): CheckRow => ({ ...check, groups: check.groups | Dirty.guestMode });

export const within = (value: number, allowed: Allowed): boolean =>
  (value & allowed.zero) === allowed.zero && (value & ~allowed.one) === 0;
/** Sign-extended from the width of the processor's linear addresses, whatever the paging mode (SDM vol. 3 26.2.2). */
export const canonical = (c: CheckContext, field: number): boolean => {
  const address = c.vmcs.read64(field);
  return BigInt.asUintN(64, BigInt.asIntN(c.caps.linearBits, address)) === address;
};
/** A physical address: below the width, low bits clear. */
export const physical = (c: CheckContext, field: number, lowMask: number): boolean =>
  (c.vmcs.readLow(field) & lowMask) === 0 && belowWidth(c, field);
export const belowWidth = (c: CheckContext, field: number): boolean =>
  c.vmcs.readHigh(field) < 2 ** Math.max(0, c.caps.maxphyaddr - 32);
/** CR3: as a physical address; LAM's two bits may stand above it. */
export const legalCr3 = (c: CheckContext, field: number): boolean => {
  const high = c.caps.lam ? c.vmcs.readHigh(field) & ~0x60000000 : c.vmcs.readHigh(field);
  return high >>> 0 < 2 ** Math.max(0, c.caps.maxphyaddr - 32);
};
export const upperZero = (c: CheckContext, field: number): boolean => c.vmcs.readHigh(field) === 0;
export const validPat = (c: CheckContext, field: number): boolean => {
  for (const word of [c.vmcs.readLow(field), c.vmcs.readHigh(field)]) {
    for (let shift = 0; shift < 32; shift += 8) {
      const type = (word >>> shift) & 0xff;
      if (type > 7 || type === 2 || type === 3) return false;
    }
  }
  return true;
};
export const fixed = (value: bigint, zero: bigint, one: bigint): boolean =>
  (value & zero) === zero && (value & ~one) === 0n;
export const msrArea = (c: CheckContext, count: number, address: number): boolean =>
  c.vmcs.read32(count) === 0 || physical(c, address, 0xf);
export const EFER_RESERVED = ~0xd01n;

/** Rows of one stage by the groups that were written: what is asked is looked up, not searched. */
export class RowSet {
  readonly rows: readonly CheckRow[];
  readonly #byGroups: (readonly CheckRow[] | undefined)[] = [];
  constructor(rows: readonly CheckRow[]) {
    this.rows = rows;
  }
  /** Do all rows of the written groups hold? Allocates nothing from the second time on. */
  allHold(c: CheckContext, dirty: number): boolean {
    const rows = this.#byGroups[dirty] ?? this.#select(dirty);
    for (let i = 0; i < rows.length; i++) if (!rows[i].ok(c)) return false;
    return true;
  }
  #select(dirty: number): readonly CheckRow[] {
    const rows = this.rows.filter((r) => (r.groups & dirty) !== 0);
    this.#byGroups[dirty] = rows;
    return rows;
  }
}

/** Every row that does not hold, in the manual's order. */
export function failures(rows: readonly CheckRow[], c: CheckContext): FailedCheck[] {
  return rows.filter((r) => !r.ok(c)).map((r) => failed(r, c));
}
const failed = (r: CheckRow, c: CheckContext): FailedCheck => ({
  code: r.code,
  field: r.field,
  value: c.vmcs.read(F[r.field])!,
  rule: r.rule,
  section: r.section,
});
/** Qualification of the first row that does not hold. */
export const firstQualification = (rows: readonly CheckRow[], c: CheckContext): number =>
  rows.find((r) => !r.ok(c))?.qualification ?? 0;
