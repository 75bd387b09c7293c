/**
 * The checks that VM entry makes before it loads anything: one row per rule.
 * Manual: SDM vol. 3 sections 26.2 (controls and host state: VMfail 7 and 8) and 26.3.1 (guest state: exit 33).
 *
 * A row belongs to groups of fields (`Dirty` in vmcs.ts). Entry asks only the rows whose group was written since they last held, and builds
 * the list of failures only after one of them has not.
 */
import type { PhysicalMemory } from '@tskvm/emulator';
import {
  Activity,
  EntryCtl,
  EptCap,
  ExitCtl,
  INTR_ERROR_CODE,
  INTR_VALID,
  Interruptibility,
  IntrType,
  Pin,
  Primary,
  Secondary,
} from './bits.ts';
import { type Allowed, cr0FixedHolds, type VmxCapabilities } from './capabilities.ts';
import { Dirty, F, type FieldName, regionRevision, type Vmcs } from './vmcs.ts';

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
const CR0_PE = 1;
const CR0_PG = 0x80000000 | 0;
const CR4_PAE = 1 << 5;
const CR4_PCIDE = 1 << 17;

const row = (
  code: string,
  field: FieldName,
  groups: number,
  rule: string,
  section: string,
  ok: (c: CheckContext) => boolean,
  qualification?: number,
): CheckRow => ({ code, field, groups, rule, section: `SDM vol. 3 ${section}`, ok, qualification });

// ---- helpers ----

const within = (value: number, allowed: Allowed): boolean =>
  (value & allowed.zero) === allowed.zero && (value & ~allowed.one) === 0;
/** Sign-extended from the width of the processor's linear addresses, whatever the paging mode (SDM vol. 3 26.2.2). */
const canonical = (c: CheckContext, field: number): boolean => {
  const address = c.vmcs.read64(field);
  return BigInt.asUintN(64, BigInt.asIntN(c.caps.linearBits, address)) === address;
};
/** A physical address: below the width, low bits clear. */
const physical = (c: CheckContext, field: number, lowMask: number): boolean =>
  (c.vmcs.readLow(field) & lowMask) === 0 && belowWidth(c, field);
const belowWidth = (c: CheckContext, field: number): boolean =>
  c.vmcs.readHigh(field) < 2 ** Math.max(0, c.caps.maxphyaddr - 32);
/** CR3: as a physical address; LAM's two bits may stand above it. */
const legalCr3 = (c: CheckContext, field: number): boolean => {
  const high = c.caps.lam ? c.vmcs.readHigh(field) & ~0x60000000 : c.vmcs.readHigh(field);
  return high >>> 0 < 2 ** Math.max(0, c.caps.maxphyaddr - 32);
};
const upperZero = (c: CheckContext, field: number): boolean => c.vmcs.readHigh(field) === 0;
const validPat = (c: CheckContext, field: number): boolean => {
  for (const word of [c.vmcs.readLow(field), c.vmcs.readHigh(field)]) {
    for (let shift = 0; shift < 32; shift += 8) {
      const type = (word >>> shift) & 0xff;
      if (type > 7 || type === 2 || type === 3) return false;
    }
  }
  return true;
};
const fixed = (value: bigint, zero: bigint, one: bigint): boolean => (value & zero) === zero && (value & ~one) === 0n;
const msrArea = (c: CheckContext, count: number, address: number): boolean =>
  c.vmcs.read32(count) === 0 || physical(c, address, 0xf);
const EFER_RESERVED = ~0xd01n;

// ---- controls: 26.2.1 ----

const control = (code: string, field: FieldName, rule: string, section: string, ok: (c: CheckContext) => boolean) =>
  row(`vmx.control.${code}`, field, Dirty.controls, rule, section, ok);
const injection = (code: string, field: FieldName, rule: string, ok: (c: CheckContext) => boolean) =>
  row(
    `vmx.control.event.${code}`,
    field,
    Dirty.guestNonRegister | Dirty.controls,
    rule,
    '26.2.1.3',
    (c) => c.event === 0 || ok(c),
  );

const EXECUTION_ROWS: CheckRow[] = [
  control('pin-reserved', 'PIN_BASED_VM_EXEC_CONTROL', 'reserved bits as the capability MSR says', '26.2.1.1', (c) =>
    within(c.pin, c.caps.pin),
  ),
  control(
    'primary-reserved',
    'CPU_BASED_VM_EXEC_CONTROL',
    'reserved bits as the capability MSR says',
    '26.2.1.1',
    (c) => within(c.primary, c.caps.primary),
  ),
  control(
    'secondary-reserved',
    'SECONDARY_VM_EXEC_CONTROL',
    'reserved bits as the capability MSR says',
    '26.2.1.1',
    (c) => !(c.primary & Primary.secondary) || within(c.secondary, c.caps.secondary),
  ),
  control('cr3-target-count', 'CR3_TARGET_COUNT', 'at most as many as IA32_VMX_MISC says', '26.2.1.1', (c) => {
    return c.vmcs.read32(F.CR3_TARGET_COUNT) <= c.caps.cr3Targets;
  }),
  control('io-bitmap-a', 'IO_BITMAP_A', 'bits 11:0 clear, below the physical width', '26.2.1.1', (c) => {
    return !(c.primary & Primary.ioBitmaps) || physical(c, F.IO_BITMAP_A, 0xfff);
  }),
  control('io-bitmap-b', 'IO_BITMAP_B', 'bits 11:0 clear, below the physical width', '26.2.1.1', (c) => {
    return !(c.primary & Primary.ioBitmaps) || physical(c, F.IO_BITMAP_B, 0xfff);
  }),
  control('msr-bitmap', 'MSR_BITMAP', 'bits 11:0 clear, below the physical width', '26.2.1.1', (c) => {
    return !(c.primary & Primary.msrBitmaps) || physical(c, F.MSR_BITMAP, 0xfff);
  }),
  control('virtual-apic-page', 'VIRTUAL_APIC_PAGE_ADDR', 'bits 11:0 clear if TPR shadow', '26.2.1.1', (c) => {
    return !(c.primary & Primary.tprShadow) || physical(c, F.VIRTUAL_APIC_PAGE_ADDR, 0xfff);
  }),
  control(
    'apic-without-tpr-shadow',
    'SECONDARY_VM_EXEC_CONTROL',
    'APIC virtualisation needs TPR shadow',
    '26.2.1.1',
    (c) => {
      const apic = Secondary.x2apic | Secondary.apicRegister | Secondary.virtualInterrupt;
      return (c.primary & Primary.tprShadow) !== 0 || (c.secondary & apic) === 0;
    },
  ),
  control('tpr-threshold', 'TPR_THRESHOLD', 'bits 31:4 clear if TPR shadow', '26.2.1.1', (c) => {
    return !(c.primary & Primary.tprShadow) || c.vmcs.read32(F.TPR_THRESHOLD) <= 15;
  }),
  control('virtual-nmis-without-nmi', 'PIN_BASED_VM_EXEC_CONTROL', 'virtual NMIs need NMI exiting', '26.2.1.1', (c) => {
    return (c.pin & Pin.nmi) !== 0 || !(c.pin & Pin.virtualNmis);
  }),
  control(
    'nmi-window-without-virtual-nmis',
    'CPU_BASED_VM_EXEC_CONTROL',
    'NMI window needs virtual NMIs',
    '26.2.1.1',
    (c) => {
      return (c.pin & Pin.virtualNmis) !== 0 || !(c.primary & Primary.nmiWindow);
    },
  ),
  control('apic-access-page', 'APIC_ACCESS_ADDR', 'bits 11:0 clear, below the physical width', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.apicAccess) || physical(c, F.APIC_ACCESS_ADDR, 0xfff);
  }),
  control('x2apic-and-apic-access', 'SECONDARY_VM_EXEC_CONTROL', 'not both APIC access and x2APIC', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.x2apic) || !(c.secondary & Secondary.apicAccess);
  }),
  control(
    'virtual-interrupts',
    'SECONDARY_VM_EXEC_CONTROL',
    'interrupt delivery needs external-interrupt exiting',
    '26.2.1.1',
    (c) => {
      return !(c.secondary & Secondary.virtualInterrupt) || (c.pin & Pin.externalInterrupt) !== 0;
    },
  ),
  control('vpid-zero', 'VIRTUAL_PROCESSOR_ID', 'not 0 if VPIDs are enabled', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.vpid) || c.vmcs.read16(F.VIRTUAL_PROCESSOR_ID) !== 0;
  }),
  control('urg-without-ept', 'SECONDARY_VM_EXEC_CONTROL', 'unrestricted guest needs EPT', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.unrestrictedGuest) || (c.secondary & Secondary.ept) !== 0;
  }),
  control('mbec-without-ept', 'SECONDARY_VM_EXEC_CONTROL', 'mode-based execute control needs EPT', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.modeBasedExecute) || (c.secondary & Secondary.ept) !== 0;
  }),
  control('pml', 'PML_ADDRESS', 'needs EPT; bits 11:0 clear', '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.pml) || ((c.secondary & Secondary.ept) !== 0 && physical(c, F.PML_ADDRESS, 0xfff));
  }),
];

/** SDM 24.6.11 and 26.2.1.1. */
const withEpt = (code: string, rule: string, ok: (eptp: number, c: CheckContext) => boolean): CheckRow =>
  control(`eptp.${code}`, 'EPT_POINTER', rule, '26.2.1.1', (c) => {
    return !(c.secondary & Secondary.ept) || ok(c.vmcs.readLow(F.EPT_POINTER), c);
  });
const EPTP_ROWS: CheckRow[] = [
  withEpt('memory-type', 'a memory type that IA32_VMX_EPT_VPID_CAP offers', (eptp, c) => {
    const type = eptp & 7;
    return (
      (type === 0 && (c.caps.ept & EptCap.uncacheable) !== 0) || (type === 6 && (c.caps.ept & EptCap.writeBack) !== 0)
    );
  }),
  withEpt('walk-length', '3 (4 levels), or 4 if 5 levels are offered', (eptp, c) => {
    const walk = (eptp >> 3) & 7;
    return (walk === 3 && (c.caps.ept & EptCap.walk4) !== 0) || (walk === 4 && (c.caps.ept & EptCap.walk5) !== 0);
  }),
  withEpt(
    'accessed-dirty',
    'bit 6 only if offered',
    (eptp, c) => !(eptp & 0x40) || (c.caps.ept & EptCap.accessedDirty) !== 0,
  ),
  withEpt('reserved', 'bits 11:7 and those beyond the physical width clear', (eptp, c) => {
    return (eptp & 0xf80) === 0 && belowWidth(c, F.EPT_POINTER);
  }),
];

const EXIT_ENTRY_ROWS: CheckRow[] = [
  control('exit-reserved', 'VM_EXIT_CONTROLS', 'reserved bits as the capability MSR says', '26.2.1.2', (c) =>
    within(c.exit, c.caps.exit),
  ),
  control(
    'save-timer-without-timer',
    'VM_EXIT_CONTROLS',
    'saving the preemption timer needs the timer',
    '26.2.1.2',
    (c) => {
      return (c.pin & Pin.preemptionTimer) !== 0 || !(c.exit & ExitCtl.savePreemptionTimer);
    },
  ),
  control('exit-msr-store', 'VM_EXIT_MSR_STORE_ADDR', 'bits 3:0 clear, below the physical width', '26.2.1.2', (c) =>
    msrArea(c, F.VM_EXIT_MSR_STORE_COUNT, F.VM_EXIT_MSR_STORE_ADDR),
  ),
  control('exit-msr-load', 'VM_EXIT_MSR_LOAD_ADDR', 'bits 3:0 clear, below the physical width', '26.2.1.2', (c) =>
    msrArea(c, F.VM_EXIT_MSR_LOAD_COUNT, F.VM_EXIT_MSR_LOAD_ADDR),
  ),
  control('entry-reserved', 'VM_ENTRY_CONTROLS', 'reserved bits as the capability MSR says', '26.2.1.3', (c) =>
    within(c.entry, c.caps.entry),
  ),
  control('entry-smm', 'VM_ENTRY_CONTROLS', 'entry to SMM only from SMM', '26.2.1.3', (c) => {
    return (c.entry & (EntryCtl.smm | EntryCtl.deactivateDualMonitor)) === 0;
  }),
  control('entry-msr-load', 'VM_ENTRY_MSR_LOAD_ADDR', 'bits 3:0 clear, below the physical width', '26.2.1.3', (c) =>
    msrArea(c, F.VM_ENTRY_MSR_LOAD_COUNT, F.VM_ENTRY_MSR_LOAD_ADDR),
  ),
];

/** Vectors that push an error code (SDM 26.2.1.3). */
const pushesErrorCode = (vector: number): boolean => vector === 8 || (vector >= 10 && vector <= 14) || vector === 17;
const isSoft = (type: number): boolean => type >= IntrType.softInterrupt && type <= IntrType.softException;
const EVENT_ROWS: CheckRow[] = [
  injection('type', 'VM_ENTRY_INTR_INFO_FIELD', 'type 1 is reserved', (c) => c.eventType !== 1),
  injection('vector', 'VM_ENTRY_INTR_INFO_FIELD', 'NMI: 2, hardware exception: at most 31, other: 0', (c) => {
    const vector = c.event & 0xff;
    if (c.eventType === IntrType.nmi) return vector === 2;
    if (c.eventType === IntrType.hardException) return vector <= 31;
    return c.eventType !== IntrType.other || vector === 0;
  }),
  injection('error-code', 'VM_ENTRY_INTR_INFO_FIELD', 'bit 11 exactly for exceptions that push one, with PE=1', (c) => {
    const wanted =
      c.eventType === IntrType.hardException && pushesErrorCode(c.event & 0xff) && (!c.urg || (c.cr0 & CR0_PE) !== 0);
    return wanted === ((c.event & INTR_ERROR_CODE) !== 0);
  }),
  injection('reserved', 'VM_ENTRY_INTR_INFO_FIELD', 'bits 30:12 clear', (c) => (c.event & 0x7ffff000) === 0),
  injection('error-code-bits', 'VM_ENTRY_EXCEPTION_ERROR_CODE', 'bits 31:16 clear', (c) => {
    return !(c.event & INTR_ERROR_CODE) || c.vmcs.read32(F.VM_ENTRY_EXCEPTION_ERROR_CODE) <= 0xffff;
  }),
  injection('length', 'VM_ENTRY_INSTRUCTION_LEN', '1 to 15 for soft events (0 if IA32_VMX_MISC allows)', (c) => {
    const length = c.vmcs.read32(F.VM_ENTRY_INSTRUCTION_LEN);
    return !isSoft(c.eventType) || (length <= 15 && (length > 0 || c.caps.zeroLengthInjection));
  }),
];

export const CONTROL_ROWS: readonly CheckRow[] = [...EXECUTION_ROWS, ...EPTP_ROWS, ...EXIT_ENTRY_ROWS, ...EVENT_ROWS];

// ---- host: 26.2.2 to 26.2.4 ----

const host = (code: string, field: FieldName, rule: string, section: string, ok: (c: CheckContext) => boolean) =>
  row(`vmx.host.${code}`, field, Dirty.host | Dirty.controls, rule, section, ok);
const host64 = (c: CheckContext): boolean => (c.exit & ExitCtl.host64) !== 0;
const hostSelector = (name: FieldName, code: string): CheckRow =>
  host(`${code}.selector`, name, 'RPL and TI clear', '26.2.3', (c) => (c.vmcs.read16(F[name]) & 7) === 0);
const hostCanonical = (name: FieldName, code: string, section: string): CheckRow =>
  host(`${code}.canonical`, name, 'canonical', section, (c) => canonical(c, F[name]));

export const HOST_ROWS: readonly CheckRow[] = [
  host('cr0.fixed', 'HOST_CR0', 'fixed bits as IA32_VMX_CR0_FIXED0/1 say', '26.2.2', (c) =>
    fixed(c.vmcs.read64(F.HOST_CR0), c.caps.cr0Fixed0, c.caps.cr0Fixed1),
  ),
  host('cr4.fixed', 'HOST_CR4', 'fixed bits as IA32_VMX_CR4_FIXED0/1 say', '26.2.2', (c) =>
    fixed(c.vmcs.read64(F.HOST_CR4), c.caps.cr4Fixed0, c.caps.cr4Fixed1),
  ),
  host('cr3.width', 'HOST_CR3', 'no bit beyond the physical width', '26.2.2', (c) => legalCr3(c, F.HOST_CR3)),
  hostCanonical('HOST_IA32_SYSENTER_ESP', 'sysenter-esp', '26.2.2'),
  hostCanonical('HOST_IA32_SYSENTER_EIP', 'sysenter-eip', '26.2.2'),
  host('pat', 'HOST_IA32_PAT', 'eight memory types of 0, 1, 4 to 7', '26.2.2', (c) => {
    return !(c.exit & ExitCtl.loadPat) || validPat(c, F.HOST_IA32_PAT);
  }),
  host('efer.reserved', 'HOST_IA32_EFER', 'reserved bits clear', '26.2.2', (c) => {
    return !(c.exit & ExitCtl.loadEfer) || (c.vmcs.read64(F.HOST_IA32_EFER) & EFER_RESERVED) === 0n;
  }),
  host('efer.size', 'HOST_IA32_EFER', 'LMA and LME equal "host address-space size"', '26.2.2', (c) => {
    const long = c.vmcs.readLow(F.HOST_IA32_EFER) & 0x500;
    return !(c.exit & ExitCtl.loadEfer) || long === (host64(c) ? 0x500 : 0);
  }),
  hostSelector('HOST_ES_SELECTOR', 'es'),
  hostSelector('HOST_CS_SELECTOR', 'cs'),
  hostSelector('HOST_SS_SELECTOR', 'ss'),
  hostSelector('HOST_DS_SELECTOR', 'ds'),
  hostSelector('HOST_FS_SELECTOR', 'fs'),
  hostSelector('HOST_GS_SELECTOR', 'gs'),
  hostSelector('HOST_TR_SELECTOR', 'tr'),
  host('cs.null', 'HOST_CS_SELECTOR', 'not 0', '26.2.3', (c) => c.vmcs.read16(F.HOST_CS_SELECTOR) !== 0),
  host('tr.null', 'HOST_TR_SELECTOR', 'not 0', '26.2.3', (c) => c.vmcs.read16(F.HOST_TR_SELECTOR) !== 0),
  host('ss.null', 'HOST_SS_SELECTOR', 'not 0 for a 32-bit host', '26.2.3', (c) => {
    return host64(c) || c.vmcs.read16(F.HOST_SS_SELECTOR) !== 0;
  }),
  hostCanonical('HOST_FS_BASE', 'fs', '26.2.3'),
  hostCanonical('HOST_GS_BASE', 'gs', '26.2.3'),
  hostCanonical('HOST_GDTR_BASE', 'gdtr', '26.2.3'),
  hostCanonical('HOST_IDTR_BASE', 'idtr', '26.2.3'),
  hostCanonical('HOST_TR_BASE', 'tr', '26.2.3'),
  host(
    'size.ia32e-guest',
    'VM_EXIT_CONTROLS',
    'an IA-32e guest needs a 64-bit host',
    '26.2.4',
    (c) => host64(c) || !c.ia32e,
  ),
  host('cr4.pae', 'HOST_CR4', 'PAE set for a 64-bit host', '26.2.4', (c) => {
    return !host64(c) || (c.vmcs.readLow(F.HOST_CR4) & CR4_PAE) !== 0;
  }),
  host('cr4.pcide', 'HOST_CR4', 'PCIDE clear for a 32-bit host', '26.2.4', (c) => {
    return host64(c) || !(c.vmcs.readLow(F.HOST_CR4) & CR4_PCIDE);
  }),
  host('rip', 'HOST_RIP', 'canonical, and below 4G for a 32-bit host', '26.2.4', (c) => {
    return host64(c) ? canonical(c, F.HOST_RIP) : upperZero(c, F.HOST_RIP);
  }),
];

// ---- guest: 26.3.1 ----

const REGISTERS = Dirty.guestRegisters | Dirty.controls;
const guest = (code: string, field: FieldName, rule: string, ok: (c: CheckContext) => boolean): CheckRow =>
  row(`vmx.guest.${code}`, field, REGISTERS, rule, '26.3.1.1', ok);
/** A rule that reads CR0.PE or PG, beside other fields. */
const byMode = (check: CheckRow): CheckRow => ({ ...check, groups: check.groups | Dirty.guestMode });

const REGISTER_ROWS: CheckRow[] = [
  row(
    'vmx.guest.cr0.fixed',
    'GUEST_CR0',
    REGISTERS | Dirty.guestCr0,
    'fixed bits as IA32_VMX_CR0_FIXED0/1 say (PE, PG free if unrestricted)',
    '26.3.1.1',
    (c) => upperZero(c, F.GUEST_CR0) && cr0FixedHolds(c.caps, c.cr0, c.urg),
  ),
  byMode(guest('cr0.pg-without-pe', 'GUEST_CR0', 'PG needs PE', (c) => !(c.cr0 & CR0_PG) || (c.cr0 & CR0_PE) !== 0)),
  guest('cr4.fixed', 'GUEST_CR4', 'fixed bits as IA32_VMX_CR4_FIXED0/1 say', (c) =>
    fixed(c.vmcs.read64(F.GUEST_CR4), c.caps.cr4Fixed0, c.caps.cr4Fixed1),
  ),
  guest('debugctl', 'GUEST_IA32_DEBUGCTL', 'reserved bits clear', (c) => {
    return !(c.entry & EntryCtl.loadDebug) || (c.vmcs.read64(F.GUEST_IA32_DEBUGCTL) & ~0xdfc3n) === 0n;
  }),
  byMode(
    guest('cr0.ia32e-without-pg', 'GUEST_CR0', 'an IA-32e guest has PG set', (c) => !c.ia32e || (c.cr0 & CR0_PG) !== 0),
  ),
  guest(
    'cr4.ia32e-without-pae',
    'GUEST_CR4',
    'an IA-32e guest has PAE set',
    (c) => !c.ia32e || (c.cr4 & CR4_PAE) !== 0,
  ),
  guest('cr4.pcide', 'GUEST_CR4', 'PCIDE only in an IA-32e guest', (c) => c.ia32e || !(c.cr4 & CR4_PCIDE)),
  guest('cr3.width', 'GUEST_CR3', 'no bit beyond the physical width', (c) => legalCr3(c, F.GUEST_CR3)),
  guest('dr7', 'GUEST_DR7', 'bits 63:32 clear', (c) => !(c.entry & EntryCtl.loadDebug) || upperZero(c, F.GUEST_DR7)),
  guest('sysenter-esp', 'GUEST_SYSENTER_ESP', 'canonical', (c) => canonical(c, F.GUEST_SYSENTER_ESP)),
  guest('sysenter-eip', 'GUEST_SYSENTER_EIP', 'canonical', (c) => canonical(c, F.GUEST_SYSENTER_EIP)),
  guest('pat', 'GUEST_IA32_PAT', 'eight memory types of 0, 1, 4 to 7', (c) => {
    return !(c.entry & EntryCtl.loadPat) || validPat(c, F.GUEST_IA32_PAT);
  }),
  guest('efer.reserved', 'GUEST_IA32_EFER', 'reserved bits clear', (c) => {
    return !(c.entry & EntryCtl.loadEfer) || (c.vmcs.read64(F.GUEST_IA32_EFER) & EFER_RESERVED) === 0n;
  }),
  guest('efer.lma', 'GUEST_IA32_EFER', 'LMA equals "IA-32e mode guest"', (c) => {
    return !(c.entry & EntryCtl.loadEfer) || ((c.vmcs.readLow(F.GUEST_IA32_EFER) & 0x400) !== 0) === c.ia32e;
  }),
  byMode(
    guest('efer.lme', 'GUEST_IA32_EFER', 'LMA equals LME while PG is set', (c) => {
      const long = c.vmcs.readLow(F.GUEST_IA32_EFER) & 0x500;
      return !(c.entry & EntryCtl.loadEfer) || !(c.cr0 & CR0_PG) || long === 0 || long === 0x500;
    }),
  ),
];

// Segments: 26.3.1.2.

const SEGMENTS = Dirty.guestSegments | Dirty.guestRegisters | Dirty.controls;
const NAMES = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDTR', 'TR'] as const;
type SegmentName = (typeof NAMES)[number];
const CS = 1;
const SS = 2;
const LDTR = 6;
const TR = 7;
const selector = (c: CheckContext, i: number): number => c.vmcs.read16(F.GUEST_ES_SELECTOR + 2 * i);
const limit = (c: CheckContext, i: number): number => c.vmcs.read32(F.GUEST_ES_LIMIT + 2 * i);
const rights = (c: CheckContext, i: number): number => c.vmcs.read32(F.GUEST_ES_AR_BYTES + 2 * i);
const baseField = (i: number): number => F.GUEST_ES_BASE + 2 * i;
const usable = (ar: number): boolean => (ar & 0x10000) === 0;
const dpl = (ar: number): number => (ar >> 5) & 3;
const typeOf = (ar: number): number => ar & 15;
/** Does the segment have to obey the rules for AR: CS and TR always, others if usable. */
const inForce = (i: number, ar: number): boolean => i === CS || i === TR || usable(ar);

const field = (name: SegmentName, part: 'SELECTOR' | 'BASE' | 'LIMIT' | 'AR_BYTES'): FieldName =>
  `GUEST_${name}_${part}` as FieldName;
const segment = (code: string, name: FieldName, rule: string, ok: (c: CheckContext) => boolean): CheckRow =>
  row(`vmx.guest.${code}`, name, SEGMENTS, rule, '26.3.1.2', ok);

/** Types that each register may have (SDM 26.3.1.2, access rights, type). */
const typeAllowed = (c: CheckContext, i: number, ar: number): boolean => {
  const type = typeOf(ar);
  if (i === CS) return (type >= 9 && (type & 1) === 1) || (type === 3 && c.urg);
  if (i === SS) return type === 3 || type === 7;
  if (i === TR) return type === 11 || (type === 3 && !c.ia32e);
  if (i === LDTR) return type === 2;
  return (type & 1) === 1 && ((type & 8) === 0 || (type & 2) !== 0);
};
const TYPE_RULES: Record<SegmentName, string> = {
  ES: 'accessed, and readable if code',
  CS: 'accessed code (or accessed read/write data if unrestricted)',
  SS: 'accessed read/write data',
  DS: 'accessed, and readable if code',
  FS: 'accessed, and readable if code',
  GS: 'accessed, and readable if code',
  LDTR: 'LDT (2)',
  TR: 'busy TSS: 11, or 3 outside IA-32e mode',
};
/** G follows the limit: some low bit clear needs G=0, some high bit set needs G=1. */
const granularity = (size: number, ar: number): boolean =>
  ((size & 0xfff) === 0xfff || !(ar & 0x8000)) && (size >>> 20 === 0 || (ar & 0x8000) !== 0);

function segmentRows(name: SegmentName, i: number): CheckRow[] {
  const low = name.toLowerCase();
  const plain = i < LDTR;
  /** The rule holds in virtual-8086 mode for the six segments by its own rows. */
  const check = (ok: (ar: number, c: CheckContext) => boolean) => (c: CheckContext) => {
    const ar = rights(c, i);
    return (plain && c.v86) || !inForce(i, ar) || ok(ar, c);
  };
  return [
    segment(
      `${low}.type`,
      field(name, 'AR_BYTES'),
      TYPE_RULES[name],
      check((ar, c) => typeAllowed(c, i, ar)),
    ),
    segment(
      `${low}.s`,
      field(name, 'AR_BYTES'),
      plain ? 'S set' : 'S clear',
      check((ar) => ((ar & 0x10) !== 0) === plain),
    ),
    segment(
      `${low}.present`,
      field(name, 'AR_BYTES'),
      'P set',
      check((ar) => (ar & 0x80) !== 0),
    ),
    segment(
      `${low}.reserved`,
      field(name, 'AR_BYTES'),
      'bits 11:8 and 31:17 clear',
      check((ar) => (ar & 0xfffe0f00) === 0),
    ),
    segment(
      `${low}.granularity`,
      field(name, 'AR_BYTES'),
      'G agrees with the limit',
      check((ar, c) => granularity(limit(c, i), ar)),
    ),
  ];
}

function v86Rows(name: SegmentName, i: number): CheckRow[] {
  const low = name.toLowerCase();
  return [
    segment(`${low}.v86-base`, field(name, 'BASE'), 'virtual-8086: base is selector * 16', (c) => {
      return !c.v86 || (upperZero(c, baseField(i)) && c.vmcs.readLow(baseField(i)) === selector(c, i) << 4);
    }),
    segment(`${low}.v86-limit`, field(name, 'LIMIT'), 'virtual-8086: 0xffff', (c) => !c.v86 || limit(c, i) === 0xffff),
    segment(`${low}.v86-rights`, field(name, 'AR_BYTES'), 'virtual-8086: 0xf3', (c) => !c.v86 || rights(c, i) === 0xf3),
  ];
}

function dataDplRow(name: SegmentName, i: number): CheckRow {
  return segment(
    `${name.toLowerCase()}.dpl`,
    field(name, 'AR_BYTES'),
    'data or non-conforming code: DPL at least RPL',
    (c) => {
      const ar = rights(c, i);
      if (c.v86 || c.urg || !usable(ar) || typeOf(ar) > 11) return true;
      return dpl(ar) >= (selector(c, i) & 3);
    },
  );
}

const csDpl = (c: CheckContext): boolean => {
  const ar = rights(c, CS);
  const ss = dpl(rights(c, SS));
  if (c.v86) return true;
  if (typeOf(ar) === 3) return dpl(ar) === 0;
  return typeOf(ar) < 12 ? dpl(ar) === ss : dpl(ar) <= ss;
};
const ssDpl = (c: CheckContext): boolean => {
  const ar = rights(c, SS);
  if (c.v86) return true;
  if (!c.urg && dpl(ar) !== (selector(c, SS) & 3)) return false;
  return dpl(ar) === 0 || (typeOf(rights(c, CS)) !== 3 && (c.cr0 & CR0_PE) !== 0);
};

const SEGMENT_ROWS: CheckRow[] = [
  segment('tr.ti', 'GUEST_TR_SELECTOR', 'TI clear', (c) => (selector(c, TR) & 4) === 0),
  segment(
    'ldtr.ti',
    'GUEST_LDTR_SELECTOR',
    'TI clear',
    (c) => !usable(rights(c, LDTR)) || (selector(c, LDTR) & 4) === 0,
  ),
  segment('ss.rpl', 'GUEST_SS_SELECTOR', 'RPL equals that of CS', (c) => {
    return c.v86 || c.urg || (selector(c, SS) & 3) === (selector(c, CS) & 3);
  }),
  ...NAMES.slice(0, 6).flatMap((name, i) => v86Rows(name, i)),
  ...NAMES.flatMap((name, i) => segmentRows(name, i)),
  segment('cs.dpl', 'GUEST_CS_AR_BYTES', 'DPL agrees with that of SS (0 for a data segment)', csDpl),
  byMode(segment('ss.dpl', 'GUEST_SS_AR_BYTES', 'DPL equals RPL; 0 in real mode', ssDpl)),
  ...(['ES', 'DS', 'FS', 'GS'] as const).map((name) => dataDplRow(name, NAMES.indexOf(name))),
  segment('cs.d-with-l', 'GUEST_CS_AR_BYTES', 'IA-32e: D clear if L set', (c) => {
    return !c.ia32e || c.v86 || (rights(c, CS) & 0x6000) !== 0x6000;
  }),
  segment('tr.unusable', 'GUEST_TR_AR_BYTES', 'usable', (c) => usable(rights(c, TR))),
  ...(['FS', 'GS', 'TR'] as const).map((name) =>
    segment(`${name.toLowerCase()}.base`, field(name, 'BASE'), 'canonical', (c) =>
      canonical(c, baseField(NAMES.indexOf(name))),
    ),
  ),
  segment(
    'ldtr.base',
    'GUEST_LDTR_BASE',
    'canonical',
    (c) => !usable(rights(c, LDTR)) || canonical(c, F.GUEST_LDTR_BASE),
  ),
  segment('cs.base', 'GUEST_CS_BASE', 'bits 63:32 clear', (c) => upperZero(c, F.GUEST_CS_BASE)),
  ...(['SS', 'DS', 'ES'] as const).map((name) => {
    const i = NAMES.indexOf(name);
    return segment(`${name.toLowerCase()}.base`, field(name, 'BASE'), 'bits 63:32 clear', (c) => {
      return !usable(rights(c, i)) || upperZero(c, baseField(i));
    });
  }),
  ...(['GDTR', 'IDTR'] as const).flatMap((name) => [
    row(`vmx.guest.${name.toLowerCase()}.base`, `GUEST_${name}_BASE`, SEGMENTS, 'canonical', '26.3.1.3', (c) =>
      canonical(c, F[`GUEST_${name}_BASE`]),
    ),
    row(
      `vmx.guest.${name.toLowerCase()}.limit`,
      `GUEST_${name}_LIMIT`,
      SEGMENTS,
      'bits 31:16 clear',
      '26.3.1.3',
      (c) => c.vmcs.read32(F[`GUEST_${name}_LIMIT`]) <= 0xffff,
    ),
  ]),
];

// RIP and RFLAGS: 26.3.1.4.

const RIP = Dirty.guestRip | Dirty.guestSegments | Dirty.controls;
const FLAGS = Dirty.guestRflags | Dirty.controls;
const RFLAGS_RESERVED = 0xffc08028 | 0;
const RIP_ROWS: CheckRow[] = [
  row(
    'vmx.guest.rip',
    'GUEST_RIP',
    RIP,
    'bits above the linear width alike in 64-bit mode, else below 4G',
    '26.3.1.4',
    (c) => {
      if (upperZero(c, F.GUEST_RIP)) return true;
      if (!c.ia32e || (rights(c, CS) & 0x2000) === 0) return false;
      // Not canonical: the top bit of the width may differ, as RIP stands behind an instruction at the very end; the fetch then faults.
      const upper = BigInt.asIntN(64, c.vmcs.read64(F.GUEST_RIP)) >> BigInt(c.caps.linearBits);
      return upper === 0n || upper === -1n;
    },
  ),
  row('vmx.guest.rflags.reserved', 'GUEST_RFLAGS', FLAGS, 'reserved bits clear, bit 1 set', '26.3.1.4', (c) => {
    return (c.rflags & RFLAGS_RESERVED) === 0 && (c.rflags & 2) !== 0 && upperZero(c, F.GUEST_RFLAGS);
  }),
  row(
    'vmx.guest.rflags.vm',
    'GUEST_RFLAGS',
    FLAGS | Dirty.guestMode,
    'VM clear in IA-32e mode and with PE=0',
    '26.3.1.4',
    (c) => {
      return !c.v86 || (!c.ia32e && (c.cr0 & CR0_PE) !== 0);
    },
  ),
  row(
    'vmx.guest.rflags.if',
    'GUEST_RFLAGS',
    FLAGS | Dirty.guestNonRegister,
    'IF set to inject an external interrupt',
    '26.3.1.4',
    (c) => {
      return c.eventType !== IntrType.external || (c.rflags & 0x200) !== 0;
    },
  ),
];

// Non-register state: 26.3.1.5.

const NON_REGISTER = Dirty.guestNonRegister | Dirty.guestRflags | Dirty.guestSegments | Dirty.controls;
const state = (code: string, name: FieldName, rule: string, ok: (c: CheckContext) => boolean, qualification?: number) =>
  row(`vmx.guest.${code}`, name, NON_REGISTER, rule, '26.3.1.5', ok, qualification);
const interruptibility = (c: CheckContext): number => c.vmcs.read32(F.GUEST_INTERRUPTIBILITY_INFO);
const activity = (c: CheckContext): number => c.vmcs.read32(F.GUEST_ACTIVITY_STATE);
const BLOCKED = Interruptibility.sti | Interruptibility.movSs;

/** Which events may be injected into which activity state. */
const activityAccepts = (c: CheckContext): boolean => {
  const vector = c.event & 0xff;
  const kind = c.eventType;
  if (kind < 0) return true;
  switch (activity(c)) {
    case Activity.hlt:
      if (kind === IntrType.hardException) return vector === 1 || vector === 18;
      return kind === IntrType.external || kind === IntrType.nmi || kind === IntrType.other;
    case Activity.shutdown:
      return kind === IntrType.nmi || (kind === IntrType.hardException && vector === 18);
    case Activity.waitSipi:
      return false;
    default:
      return true;
  }
};
const pendingBs = (c: CheckContext): boolean => {
  if (!(interruptibility(c) & BLOCKED) && activity(c) !== Activity.hlt) return true;
  const single = (c.rflags & 0x100) !== 0 && !(c.vmcs.readLow(F.GUEST_IA32_DEBUGCTL) & 2);
  return ((c.vmcs.readLow(F.GUEST_PENDING_DBG_EXCEPTIONS) & 0x4000) !== 0) === single;
};
const linkValid = (c: CheckContext): boolean => {
  if (c.vmcs.readLow(F.VMCS_LINK_POINTER) === 0xffffffff && c.vmcs.readHigh(F.VMCS_LINK_POINTER) === 0xffffffff)
    return true;
  if (!physical(c, F.VMCS_LINK_POINTER, 0xfff)) return false;
  const pa = c.vmcs.readAddress(F.VMCS_LINK_POINTER);
  return c.memory.contains(pa, 4096) && (regionRevision(c.memory, pa) & 0x7fffffff) === c.caps.revision;
};

const NON_REGISTER_ROWS: CheckRow[] = [
  state('activity', 'GUEST_ACTIVITY_STATE', 'a state that IA32_VMX_MISC offers', (c) => {
    const value = activity(c);
    return value === 0 || (value <= 3 && (c.caps.activityStates & (1 << (value - 1))) !== 0);
  }),
  state('activity.hlt-dpl', 'GUEST_ACTIVITY_STATE', 'HLT only at CPL 0', (c) => {
    return activity(c) !== Activity.hlt || dpl(rights(c, SS)) === 0;
  }),
  state('activity.blocking', 'GUEST_ACTIVITY_STATE', 'active while STI or MOV SS blocks', (c) => {
    return activity(c) === Activity.active || !(interruptibility(c) & BLOCKED);
  }),
  state('activity.event', 'GUEST_ACTIVITY_STATE', 'accepts the event to inject', activityAccepts),
  state('interruptibility.reserved', 'GUEST_INTERRUPTIBILITY_INFO', 'bits 31:5 clear', (c) => interruptibility(c) < 32),
  state('interruptibility.both', 'GUEST_INTERRUPTIBILITY_INFO', 'not both STI and MOV SS', (c) => {
    return (interruptibility(c) & BLOCKED) !== BLOCKED;
  }),
  state('interruptibility.sti', 'GUEST_INTERRUPTIBILITY_INFO', 'blocking by STI needs IF', (c) => {
    return !(interruptibility(c) & Interruptibility.sti) || (c.rflags & 0x200) !== 0;
  }),
  state(
    'interruptibility.event',
    'GUEST_INTERRUPTIBILITY_INFO',
    'no blocking when an external interrupt is injected',
    (c) => {
      return c.eventType !== IntrType.external || !(interruptibility(c) & BLOCKED);
    },
  ),
  state(
    'interruptibility.nmi',
    'GUEST_INTERRUPTIBILITY_INFO',
    'no blocking when an NMI is injected',
    (c) => {
      const blocking = Interruptibility.movSs | (c.pin & Pin.virtualNmis ? Interruptibility.nmi : 0);
      return c.eventType !== IntrType.nmi || !(interruptibility(c) & blocking);
    },
    3,
  ),
  state('interruptibility.smi', 'GUEST_INTERRUPTIBILITY_INFO', 'blocking by SMI only in SMM', (c) => {
    return !(interruptibility(c) & Interruptibility.smi);
  }),
  state('pending-debug.reserved', 'GUEST_PENDING_DBG_EXCEPTIONS', 'bits 11:4, 13, 15 and 63:17 clear', (c) => {
    return (c.vmcs.read64(F.GUEST_PENDING_DBG_EXCEPTIONS) & ~0x1500fn) === 0n;
  }),
  state('pending-debug.bs', 'GUEST_PENDING_DBG_EXCEPTIONS', 'BS agrees with TF while blocked or halted', pendingBs),
  state('link-pointer', 'VMCS_LINK_POINTER', 'all ones, or a VMCS', linkValid, 4),
];

// PDPTEs: 26.3.1.6.

const PDPTR = F.GUEST_PDPTR0;
const pdpteLegal = (c: CheckContext, low: number, high: number): boolean =>
  !(low & 1) || ((low & 0x1e6) === 0 && high < 2 ** Math.max(0, c.caps.maxphyaddr - 32));
const paePaging = (c: CheckContext): boolean => (c.cr0 & CR0_PG) !== 0 && (c.cr4 & CR4_PAE) !== 0 && !c.ia32e;
const pdptesLegal = (c: CheckContext): boolean => {
  if (!paePaging(c)) return true;
  const ept = (c.secondary & Secondary.ept) !== 0;
  const table = c.vmcs.readLow(F.GUEST_CR3) & 0xffffffe0;
  for (let i = 0; i < 4; i++) {
    const pa = (table >>> 0) + 8 * i;
    if (!ept && !c.memory.contains(pa, 8)) return false;
    const low = ept ? c.vmcs.readLow(PDPTR + 2 * i) : c.memory.read32(pa);
    const high = ept ? c.vmcs.readHigh(PDPTR + 2 * i) : c.memory.read32(pa + 4);
    if (!pdpteLegal(c, low, high)) return false;
  }
  return true;
};

export const GUEST_ROWS: readonly CheckRow[] = [
  ...REGISTER_ROWS,
  ...SEGMENT_ROWS,
  ...RIP_ROWS,
  ...NON_REGISTER_ROWS,
  row(
    'vmx.guest.pdpte',
    'GUEST_PDPTR0',
    REGISTERS | Dirty.guestMode,
    'reserved bits clear in present entries (PAE paging)',
    '26.3.1.6',
    pdptesLegal,
    2,
  ),
];

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
