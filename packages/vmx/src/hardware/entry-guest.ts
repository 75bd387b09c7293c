/**
 * Rules of VM entry for the guest's state: control registers and MSRs, RIP and RFLAGS, what is no register, PDPTEs; segments stand in entry-segments.ts.
 * Manual: SDM vol. 3 section 26.3.1 (exit 33).
 */
import { Activity, EntryCtl, Interruptibility, IntrType, Pin, Secondary } from './bits.ts';
import { cr0FixedHolds } from './capabilities.ts';
import {
  byMode,
  type CheckContext,
  type CheckRow,
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  CR4_PCIDE,
  canonical,
  EFER_RESERVED,
  fixed,
  legalCr3,
  physical,
  row,
  upperZero,
  validPat,
} from './entry-checks.ts';
import { CS, dpl, rights, SEGMENT_ROWS, SS } from './entry-segments.ts';
import { Dirty, F, type FieldName, regionRevision } from './vmcs.ts';

// ---- control registers, debug registers, MSRs: 26.3.1.1 ----

const REGISTERS = Dirty.guestRegisters | Dirty.controls;
const guest = (code: string, field: FieldName, rule: string, ok: (c: CheckContext) => boolean): CheckRow =>
  row(`vmx.guest.${code}`, field, REGISTERS, rule, '26.3.1.1', ok);

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

// ---- RIP and RFLAGS: 26.3.1.4 ----

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

// ---- non-register state: 26.3.1.5 ----

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

// ---- PDPTEs: 26.3.1.6 ----

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
