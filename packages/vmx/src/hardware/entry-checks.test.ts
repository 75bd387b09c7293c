import { describe, expect, it } from 'vitest';
import { CheckContext, failures } from './entry-checks.ts';
import { CONTROL_ROWS } from './entry-controls.ts';
import { GUEST_ROWS } from './entry-guest.ts';
import { HOST_ROWS } from './entry-host.ts';
import { realModeGuest, type SilVm } from './testing.ts';
import type { FieldName } from './vmcs.ts';

type Change = readonly [FieldName, bigint | number, 'or' | 'clear' | 'set'];
const set = (field: FieldName, value: bigint | number): Change => [field, value, 'set'];
const or = (field: FieldName, value: bigint | number): Change => [field, value, 'or'];
const clear = (field: FieldName, value: bigint | number): Change => [field, value, 'clear'];

function apply(vm: SilVm, [field, value, how]: Change): void {
  const bits = BigInt.asUintN(64, BigInt(value));
  const old = vm.get(field);
  vm.set(field, how === 'or' ? old | bits : how === 'clear' ? old & ~bits : bits);
}
const PRIMARY = 'CPU_BASED_VM_EXEC_CONTROL';
const SECONDARY = 'SECONDARY_VM_EXEC_CONTROL';
const EVENT = 'VM_ENTRY_INTR_INFO_FIELD';
// The model has LA57: bits go by its width, 57.
const NONCANONICAL = 1n << 56n;
const HIGH = 1n << 60n;

/** A flat protected-mode guest with paging off (unrestricted) or an IA-32e one. */
const PROTECTED: readonly Change[] = [
  set('GUEST_CR0', 0x31),
  ...(['ES', 'SS', 'DS', 'FS', 'GS'] as const).flatMap((s) => [
    set(`GUEST_${s}_SELECTOR`, 0x10),
    set(`GUEST_${s}_AR_BYTES`, 0xc093),
    set(`GUEST_${s}_LIMIT`, 0xffffffffn),
  ]),
  set('GUEST_CS_SELECTOR', 8),
  set('GUEST_CS_AR_BYTES', 0xc09b),
  set('GUEST_CS_LIMIT', 0xffffffffn),
];
const LONG: readonly Change[] = [
  ...PROTECTED,
  set('GUEST_CR0', 0x80000031n),
  set('GUEST_CR4', 0x2020),
  set('GUEST_IA32_EFER', 0x500),
  set('GUEST_CS_AR_BYTES', 0xa09b),
  or('VM_ENTRY_CONTROLS', 0x200),
];
const V86: readonly Change[] = [
  set('GUEST_CR0', 0x31),
  set('GUEST_RFLAGS', 0x20002),
  ...(['ES', 'CS', 'SS', 'DS', 'FS', 'GS'] as const).map((s) => set(`GUEST_${s}_AR_BYTES`, 0xf3)),
];

/** What breaks each row (others may break with it). */
const BREAK: Record<string, readonly Change[]> = {
  'vmx.control.pin-reserved': [clear('PIN_BASED_VM_EXEC_CONTROL', 2)],
  'vmx.control.primary-reserved': [clear(PRIMARY, 2)],
  'vmx.control.secondary-reserved': [or(SECONDARY, 1n << 27n)],
  'vmx.control.cr3-target-count': [set('CR3_TARGET_COUNT', 5)],
  'vmx.control.io-bitmap-a': [or(PRIMARY, 1 << 25), set('IO_BITMAP_A', 1)],
  'vmx.control.io-bitmap-b': [or(PRIMARY, 1 << 25), set('IO_BITMAP_B', 1)],
  'vmx.control.msr-bitmap': [or(PRIMARY, 1 << 28), set('MSR_BITMAP', HIGH)],
  'vmx.control.virtual-apic-page': [or(PRIMARY, 1 << 21), set('VIRTUAL_APIC_PAGE_ADDR', 1)],
  'vmx.control.apic-without-tpr-shadow': [or(SECONDARY, 1 << 8)],
  'vmx.control.tpr-threshold': [or(PRIMARY, 1 << 21), set('TPR_THRESHOLD', 16)],
  'vmx.control.virtual-nmis-without-nmi': [set('PIN_BASED_VM_EXEC_CONTROL', 0x37)],
  'vmx.control.nmi-window-without-virtual-nmis': [or(PRIMARY, 1 << 22)],
  'vmx.control.apic-access-page': [or(SECONDARY, 1), set('APIC_ACCESS_ADDR', 1)],
  'vmx.control.x2apic-and-apic-access': [or(SECONDARY, 0x11)],
  'vmx.control.virtual-interrupts': [or(SECONDARY, 1 << 9), set('PIN_BASED_VM_EXEC_CONTROL', 0x1e)],
  'vmx.control.vpid-zero': [set('VIRTUAL_PROCESSOR_ID', 0)],
  'vmx.control.urg-without-ept': [clear(SECONDARY, 2)],
  'vmx.control.mbec-without-ept': [clear(SECONDARY, 2), or(SECONDARY, 1 << 22)],
  'vmx.control.pml': [or(SECONDARY, 1 << 17), set('PML_ADDRESS', 8)],
  'vmx.control.eptp.memory-type': [or('EPT_POINTER', 1)],
  'vmx.control.eptp.walk-length': [or('EPT_POINTER', 0x20)],
  'vmx.control.eptp.reserved': [or('EPT_POINTER', 0x80)],
  'vmx.control.exit-reserved': [clear('VM_EXIT_CONTROLS', 1)],
  'vmx.control.save-timer-without-timer': [or('VM_EXIT_CONTROLS', 1 << 22)],
  'vmx.control.exit-msr-store': [set('VM_EXIT_MSR_STORE_COUNT', 1), set('VM_EXIT_MSR_STORE_ADDR', 8)],
  'vmx.control.exit-msr-load': [set('VM_EXIT_MSR_LOAD_COUNT', 1), set('VM_EXIT_MSR_LOAD_ADDR', 8)],
  'vmx.control.entry-reserved': [clear('VM_ENTRY_CONTROLS', 1)],
  'vmx.control.entry-smm': [or('VM_ENTRY_CONTROLS', 0x400)],
  'vmx.control.entry-msr-load': [set('VM_ENTRY_MSR_LOAD_COUNT', 1), set('VM_ENTRY_MSR_LOAD_ADDR', HIGH)],
  'vmx.control.event.type': [set(EVENT, 0x80000100n)],
  'vmx.control.event.vector': [set(EVENT, 0x80000203n)],
  'vmx.control.event.error-code': [set(EVENT, 0x80000b0dn)],
  'vmx.control.event.reserved': [set(EVENT, 0x80001306n)],
  'vmx.control.event.error-code-bits': [
    ...PROTECTED,
    set(EVENT, 0x80000b0dn),
    set('VM_ENTRY_EXCEPTION_ERROR_CODE', 0x10000),
  ],
  'vmx.control.event.length': [set(EVENT, 0x80000480n), set('VM_ENTRY_INSTRUCTION_LEN', 16)],
  'vmx.host.cr0.fixed': [clear('HOST_CR0', 1)],
  'vmx.host.cr4.fixed': [clear('HOST_CR4', 0x2000)],
  'vmx.host.cr3.width': [set('HOST_CR3', HIGH)],
  'vmx.host.sysenter-esp.canonical': [set('HOST_IA32_SYSENTER_ESP', NONCANONICAL)],
  'vmx.host.sysenter-eip.canonical': [set('HOST_IA32_SYSENTER_EIP', NONCANONICAL)],
  'vmx.host.pat': [or('VM_EXIT_CONTROLS', 1 << 19), set('HOST_IA32_PAT', 2)],
  'vmx.host.efer.reserved': [or('HOST_IA32_EFER', 2)],
  'vmx.host.efer.size': [clear('HOST_IA32_EFER', 0x400)],
  'vmx.host.cs.null': [set('HOST_CS_SELECTOR', 0)],
  'vmx.host.tr.null': [set('HOST_TR_SELECTOR', 0)],
  'vmx.host.ss.null': [clear('VM_EXIT_CONTROLS', 0x200), set('HOST_SS_SELECTOR', 0)],
  'vmx.host.size.ia32e-guest': [...LONG, clear('VM_EXIT_CONTROLS', 0x200)],
  'vmx.host.cr4.pae': [clear('HOST_CR4', 0x20)],
  'vmx.host.cr4.pcide': [clear('VM_EXIT_CONTROLS', 0x200), or('HOST_CR4', 0x20000)],
  'vmx.host.rip': [set('HOST_RIP', NONCANONICAL)],
  ...Object.fromEntries(
    (['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'TR'] as const).map((s) => [
      `vmx.host.${s.toLowerCase()}.selector`,
      [or(`HOST_${s}_SELECTOR`, 1)],
    ]),
  ),
  ...Object.fromEntries(
    (['FS', 'GS', 'GDTR', 'IDTR', 'TR'] as const).map((s) => [
      `vmx.host.${s.toLowerCase()}.canonical`,
      [set(`HOST_${s}_BASE`, NONCANONICAL)],
    ]),
  ),
  'vmx.guest.cr0.fixed': [clear('GUEST_CR0', 0x20)],
  'vmx.guest.cr0.pg-without-pe': [or('GUEST_CR0', 0x80000000n)],
  'vmx.guest.cr4.fixed': [clear('GUEST_CR4', 0x2000)],
  'vmx.guest.debugctl': [or('VM_ENTRY_CONTROLS', 4), set('GUEST_IA32_DEBUGCTL', 1 << 20)],
  'vmx.guest.cr0.ia32e-without-pg': [...LONG, set('GUEST_CR0', 0x31)],
  'vmx.guest.cr4.ia32e-without-pae': [...LONG, set('GUEST_CR4', 0x2000)],
  'vmx.guest.cr4.pcide': [or('GUEST_CR4', 0x20000)],
  'vmx.guest.cr3.width': [set('GUEST_CR3', HIGH)],
  'vmx.guest.dr7': [or('VM_ENTRY_CONTROLS', 4), set('GUEST_DR7', 1n << 32n)],
  'vmx.guest.sysenter-esp': [set('GUEST_SYSENTER_ESP', NONCANONICAL)],
  'vmx.guest.sysenter-eip': [set('GUEST_SYSENTER_EIP', NONCANONICAL)],
  'vmx.guest.pat': [or('VM_ENTRY_CONTROLS', 1 << 14), set('GUEST_IA32_PAT', 0x0300)],
  'vmx.guest.efer.reserved': [or('GUEST_IA32_EFER', 0x1000)],
  'vmx.guest.efer.lma': [or('GUEST_IA32_EFER', 0x500)],
  'vmx.guest.efer.lme': [...LONG, set('GUEST_IA32_EFER', 0x400)],
  'vmx.guest.tr.ti': [or('GUEST_TR_SELECTOR', 4)],
  'vmx.guest.ldtr.ti': [or('GUEST_LDTR_SELECTOR', 4)],
  'vmx.guest.ss.rpl': [clear(SECONDARY, 0x80), set('GUEST_SS_SELECTOR', 3)],
  'vmx.guest.cs.dpl': [...PROTECTED, set('GUEST_CS_AR_BYTES', 0xc0fb)],
  'vmx.guest.ss.dpl': [or('GUEST_SS_AR_BYTES', 0x60)],
  'vmx.guest.cs.d-with-l': [...LONG, or('GUEST_CS_AR_BYTES', 0x4000)],
  'vmx.guest.tr.unusable': [or('GUEST_TR_AR_BYTES', 0x10000)],
  'vmx.guest.ldtr.base': [set('GUEST_LDTR_BASE', NONCANONICAL)],
  'vmx.guest.rip': [set('GUEST_RIP', 1n << 32n)],
  'vmx.guest.rflags.reserved': [set('GUEST_RFLAGS', 0)],
  'vmx.guest.rflags.vm': [set('GUEST_RFLAGS', 0x20002)],
  'vmx.guest.rflags.if': [set(EVENT, 0x80000020n)],
  'vmx.guest.activity': [set('GUEST_ACTIVITY_STATE', 4)],
  'vmx.guest.activity.hlt-dpl': [set('GUEST_ACTIVITY_STATE', 1), or('GUEST_SS_AR_BYTES', 0x20)],
  'vmx.guest.activity.blocking': [set('GUEST_ACTIVITY_STATE', 1), set('GUEST_INTERRUPTIBILITY_INFO', 2)],
  'vmx.guest.activity.event': [set('GUEST_ACTIVITY_STATE', 3), set(EVENT, 0x80000202n)],
  'vmx.guest.interruptibility.reserved': [set('GUEST_INTERRUPTIBILITY_INFO', 32)],
  'vmx.guest.interruptibility.both': [set('GUEST_INTERRUPTIBILITY_INFO', 3)],
  'vmx.guest.interruptibility.sti': [set('GUEST_INTERRUPTIBILITY_INFO', 1)],
  'vmx.guest.interruptibility.event': [set('GUEST_INTERRUPTIBILITY_INFO', 2), set(EVENT, 0x80000020n)],
  'vmx.guest.interruptibility.nmi': [set('GUEST_INTERRUPTIBILITY_INFO', 2), set(EVENT, 0x80000202n)],
  'vmx.guest.interruptibility.smi': [set('GUEST_INTERRUPTIBILITY_INFO', 4)],
  'vmx.guest.pending-debug.reserved': [set('GUEST_PENDING_DBG_EXCEPTIONS', 0x10)],
  'vmx.guest.pending-debug.bs': [set('GUEST_RFLAGS', 0x102), set('GUEST_INTERRUPTIBILITY_INFO', 2)],
  'vmx.guest.link-pointer': [set('VMCS_LINK_POINTER', 0x201001)],
  'vmx.guest.pdpte': [
    ...PROTECTED,
    set('GUEST_CR0', 0x80000031n),
    set('GUEST_CR4', 0x2020),
    set('GUEST_PDPTR2', 0x3007),
  ],
  ...Object.fromEntries(
    (['GDTR', 'IDTR'] as const).flatMap((s) => [
      [`vmx.guest.${s.toLowerCase()}.base`, [set(`GUEST_${s}_BASE`, NONCANONICAL)]],
      [`vmx.guest.${s.toLowerCase()}.limit`, [set(`GUEST_${s}_LIMIT`, 0x10000)]],
    ]),
  ),
  ...Object.fromEntries(
    (['ES', 'CS', 'SS', 'DS', 'FS', 'GS'] as const).flatMap((s) => [
      [`vmx.guest.${s.toLowerCase()}.v86-base`, [...V86, set(`GUEST_${s}_BASE`, 0x12345)]],
      [`vmx.guest.${s.toLowerCase()}.v86-limit`, [...V86, set(`GUEST_${s}_LIMIT`, 0xfffff)]],
      [`vmx.guest.${s.toLowerCase()}.v86-rights`, [...V86, set(`GUEST_${s}_AR_BYTES`, 0x93)]],
      [`vmx.guest.${s.toLowerCase()}.base`, [set(`GUEST_${s}_BASE`, NONCANONICAL)]],
    ]),
  ),
  'vmx.guest.tr.base': [set('GUEST_TR_BASE', NONCANONICAL)],
  ...Object.fromEntries(
    (['ES', 'DS', 'FS', 'GS'] as const).map((s) => [
      `vmx.guest.${s.toLowerCase()}.dpl`,
      [clear(SECONDARY, 0x80), ...PROTECTED, set(`GUEST_${s}_SELECTOR`, 3)],
    ]),
  ),
  ...Object.fromEntries(
    (['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDTR', 'TR'] as const).flatMap((s) => [
      [`vmx.guest.${s.toLowerCase()}.type`, [clear(`GUEST_${s}_AR_BYTES`, 15)]],
      [
        `vmx.guest.${s.toLowerCase()}.s`,
        [s === 'LDTR' || s === 'TR' ? or(`GUEST_${s}_AR_BYTES`, 0x10) : clear(`GUEST_${s}_AR_BYTES`, 0x10)],
      ],
      [`vmx.guest.${s.toLowerCase()}.present`, [clear(`GUEST_${s}_AR_BYTES`, 0x80)]],
      [`vmx.guest.${s.toLowerCase()}.reserved`, [or(`GUEST_${s}_AR_BYTES`, 0x100)]],
      [`vmx.guest.${s.toLowerCase()}.granularity`, [set(`GUEST_${s}_LIMIT`, 0x1fffff)]],
    ]),
  ),
};
/** Rows that this CPU model can't break. */
const UNREACHABLE = new Set(['vmx.control.eptp.accessed-dirty']);

const cases = [
  ...CONTROL_ROWS.map((row) => [row.code, 'VMfail 7'] as const),
  ...HOST_ROWS.map((row) => [row.code, 'VMfail 8'] as const),
  ...GUEST_ROWS.map((row) => [row.code, 'INVALID_STATE failed'] as const),
].filter(([code]) => !UNREACHABLE.has(code));

describe('VM entry checks', () => {
  it('the untouched guest, a protected, a virtual-8086 and an IA-32e one pass', async () => {
    for (const changes of [[], PROTECTED, V86]) {
      const vm = (await realModeGuest()).load([0xf4]);
      for (const change of changes) apply(vm, change);
      expect(vm.enter()).not.toMatch(/fail/);
      expect(vm.vt.failures).toEqual([]);
    }
    const vm = await realModeGuest();
    for (const change of LONG) apply(vm, change);
    expect(vm.enter()).not.toMatch(/fail/);
  });

  it.each(cases)('%s', async (code, outcome) => {
    const vm = (await realModeGuest()).load([0xf4]);
    const changes = BREAK[code];
    expect(changes, 'the test knows how to break every row').toBeDefined();
    for (const change of changes) apply(vm, change);
    const context = new CheckContext(vm.vt.vmcs, vm.vt.caps, vm.memory);
    context.refresh();
    const all = [...CONTROL_ROWS, ...HOST_ROWS, ...GUEST_ROWS];
    expect(failures(all, context).map((failure) => failure.code)).toContain(code);
    // A broken control is found before the host and guest rows are asked, a broken host row before the guest's.
    expect([outcome, 'VMfail 7', 'VMfail 8']).toContain(vm.enter());
    expect(vm.vt.failures.every((failure) => failure.section.startsWith('SDM vol. 3 26.'))).toBe(true);
  });

  it('an entry repairs itself: a rule is asked again after the field was written', async () => {
    const vm = (await realModeGuest()).load([0xf4]).set('GUEST_CR4', 0n);
    expect(vm.enter()).toBe('INVALID_STATE failed');
    expect(vm.set('GUEST_CR4', 0x2000n).enter()).toBe('HLT');
  });

  it('a bad link pointer has qualification 4, a bad PDPTE 2', async () => {
    const vm = (await realModeGuest()).load([0xf4]);
    for (const change of BREAK['vmx.guest.link-pointer']) apply(vm, change);
    vm.enter();
    expect(vm.get('EXIT_QUALIFICATION')).toBe(4n);
    vm.set('VMCS_LINK_POINTER', 0xffffffffffffffffn);
    for (const change of BREAK['vmx.guest.pdpte']) apply(vm, change);
    vm.enter();
    expect(vm.get('EXIT_QUALIFICATION')).toBe(2n);
  });
});
