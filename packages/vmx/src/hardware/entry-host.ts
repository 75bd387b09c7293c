/**
 * Rules of VM entry for the host-state area.
 * Manual: SDM vol. 3 sections 26.2.2 to 26.2.4 (VMfail 8).
 */
import { ExitCtl } from './bits.ts';
import {
  type CheckContext,
  type CheckRow,
  CR4_PAE,
  CR4_PCIDE,
  canonical,
  EFER_RESERVED,
  fixed,
  legalCr3,
  row,
  upperZero,
  validPat,
} from './entry-checks.ts';
import { Dirty, F, type FieldName } from './vmcs.ts';

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
