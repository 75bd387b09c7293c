/**
 * Rules of VM entry for the control fields: execution, EPT pointer, exits, entries, the event to inject.
 * Manual: SDM vol. 3 section 26.2.1 (VMfail 7).
 */
import { EntryCtl, EptCap, ExitCtl, INTR_ERROR_CODE, IntrType, Pin, Primary, Secondary } from './bits.ts';
import {
  belowWidth,
  type CheckContext,
  type CheckRow,
  CR0_PE,
  msrArea,
  physical,
  row,
  within,
} from './entry-checks.ts';
import { Dirty, F, type FieldName } from './vmcs.ts';

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
