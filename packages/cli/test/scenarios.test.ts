/**
 * Writes of CR0 that are worth a name, under AMD-V, VT-x and VT-x without unrestricted guest: by a guest's own instructions, with the exits
 * on the way and the place where it went on, and through the API. Manuals: APM vol. 2 3.1.1, 15.9, 15.13, table 15-7; SDM vol. 3 2.5, 25.1.3.
 */
import { guestCpuidHas, KvmError, type KvmSregs, kvmLmsw, kvmSetCr0, MpState, type Vcpu, type Vm } from '@tskvm/core';
import {
  bytes,
  CR0_SCENARIOS,
  type Cr0Scenario,
  DONE_PORT,
  finish,
  type Guest,
  type GuestModeName,
  makeGuest,
  movCr0,
  Place,
} from '@tskvm/core/testing';
import { CR0, CR4, EFER } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { toVmx, vmx } from '@tskvm/vmx';
import { describe, expect, test } from 'vitest';
import { expandImage } from '../src/guests/image.ts';
import { GUEST_IMAGES } from '../src/guests/images.ts';
import { firmware } from '../src/machine/loaders/image.ts';
import { createMachine } from '../src/machine/machine.ts';
import { CONFIGURATION_NAMES, CONFIGURATIONS, type ConfigurationName, record, runGuest } from './harness.ts';

const { PE, ET, NW, CD, PG, MP, EM, TS, WP } = CR0;
const BASE = PE | ET;

/** Why one configuration leaves the guest where another does not. */
interface Reason {
  reason: string;
  section: string;
}
const REASONS = {
  amdChecksFirst: {
    reason: "AMD's silicon refuses an illegal value before the intercept; Intel's exits first and KVM refuses",
    section: 'APM vol. 2 table 15-7; SDM vol. 3 25.1.1',
  },
  sameRoad: { reason: 'both intercept', section: 'APM vol. 2 15.9; SDM vol. 3 25.1.3' },
  nobody: { reason: 'the bits belong to the guest on either vendor', section: 'APM vol. 2 15.9; SDM vol. 3 24.6.6' },
  realModeIsVm86: {
    reason:
      'without unrestricted guest real mode is a virtual-8086 task, where the instruction is #GP and KVM emulates it',
    section: 'SDM vol. 3 20.2; KVM: handle_rmode_exception',
  },
  cacheBitsHidden: {
    reason:
      "AMD's KVM hides CD and NW from the hardware and intercepts every access while they are set; Intel's has a mask per bit",
    section: 'KVM: svm_set_cr0; SDM vol. 3 24.6.6',
  },
  writeProtectOwned: {
    reason: 'with EPT the guest owns WP; AMD lets only TS and MP pass',
    section: 'SDM vol. 3 24.6.6; APM vol. 2 15.9',
  },
} as const satisfies Record<string, Reason>;

interface Row {
  /** Number in KVM's checklist of CR0 writes. */
  n: number;
  /** Id of the shared scenario: guest, outcome, CR0. */
  id: string;
  why: Reason;
  /** Exits before the one that reports the end. */
  svm: string[];
  vmx: string[];
  /** Default: as vmx. */
  noUrg?: string[];
  /** Where the refused instruction stands behind the first. */
  faultAt?: number;
  /** What the API is asked for: a value for kvmSetCr0, or the operand of kvmLmsw. */
  api?: { cr0: bigint } | { lmsw: bigint };
}
const SEL = ['cr0_sel_write'];
const CR = ['CR_ACCESS'];
const ROWS: readonly Row[] = [
  { n: 1, id: 'cr0.nw-without-cd', why: REASONS.amdChecksFirst, svm: [], vmx: CR, faultAt: 5, api: { cr0: BASE | NW } },
  { n: 2, id: 'cr0.pg-without-pe', why: REASONS.amdChecksFirst, svm: [], vmx: CR, faultAt: 5, api: { cr0: ET | PG } },
  { n: 3, id: 'cr0.undefined-bit', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: BASE | (1n << 17n) } },
  { n: 4, id: 'cr0.et', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: PE } },
  {
    n: 5,
    id: 'cr0.upper-half',
    why: REASONS.amdChecksFirst,
    svm: [],
    vmx: CR,
    faultAt: 10,
    api: { cr0: BASE | PG | (1n << 40n) },
  },
  {
    n: 6,
    id: 'cr0.lme-without-pae',
    why: REASONS.amdChecksFirst,
    svm: [],
    vmx: CR,
    faultAt: 5,
    api: { cr0: BASE | PG },
  },
  { n: 7, id: 'cr0.lme-with-cs-l', why: REASONS.sameRoad, svm: SEL, vmx: CR, faultAt: 7 + 6 },
  { n: 8, id: 'cr0.enter-long', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: BASE | PG } },
  { n: 9, id: 'cr0.pdpte-reserved', why: REASONS.sameRoad, svm: SEL, vmx: CR, faultAt: 5, api: { cr0: BASE | PG } },
  { n: 10, id: 'cr0.pdpte-not-present', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: BASE | PG } },
  {
    n: 11,
    id: 'cr0.pg-off-in-64-bit-code',
    why: REASONS.sameRoad,
    svm: SEL,
    vmx: CR,
    faultAt: 10,
    api: { cr0: BASE },
  },
  { n: 12, id: 'cr0.leave-long', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: BASE } },
  { n: 13, id: 'cr0.pg-off-with-pcide', why: REASONS.sameRoad, svm: SEL, vmx: CR, faultAt: 5, api: { cr0: BASE } },
  { n: 15, id: 'lmsw.keeps-pe', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { lmsw: 0n } },
  {
    n: 15,
    id: 'lmsw.sets-pe',
    why: REASONS.realModeIsVm86,
    svm: SEL,
    vmx: CR,
    noUrg: ['EXCEPTION_NMI'],
    api: { lmsw: 1n },
  },
  { n: 16, id: 'clts', why: REASONS.nobody, svm: [], vmx: [] },
  { n: 17, id: 'clts.with-cd', why: REASONS.cacheBitsHidden, svm: ['write_cr0'], vmx: [] },
  { n: 18, id: 'cr0.ts-only', why: REASONS.nobody, svm: [], vmx: [], api: { cr0: BASE | TS } },
  { n: 19, id: 'cr0.cd-only', why: REASONS.sameRoad, svm: SEL, vmx: CR, api: { cr0: BASE | PG | CD } },
  { n: 20, id: 'cr0.wp-only', why: REASONS.writeProtectOwned, svm: SEL, vmx: [], api: { cr0: BASE | PG | WP } },
  {
    n: 27,
    id: 'cr0.pe',
    why: REASONS.realModeIsVm86,
    svm: SEL,
    vmx: CR,
    noUrg: ['EXCEPTION_NMI'],
    api: { cr0: BASE },
  },
];

function scenarioOf(row: Row): Cr0Scenario {
  const found = CR0_SCENARIOS.find((s) => s.id === row.id);
  if (!found) throw new Error(`no scenario ${row.id}`);
  return found;
}
function exitsOf(row: Row, name: ConfigurationName): string[] {
  if (name === 'svm') return row.svm;
  return name === 'vmx' ? row.vmx : (row.noUrg ?? row.vmx);
}
const end = (name: ConfigurationName): string => (name === 'svm' ? 'io' : 'IO_INSTRUCTION');

/** The instruction pointer that the #GP pushed. */
function faultRip({ vm, vcpu }: Guest, mode: GuestModeName): bigint {
  const rsp = Number(vcpu.getRegs().rsp);
  if (mode === 'real') return vm.readGuestValue(rsp, 2);
  return mode === 'long' || mode === 'compatibility' ? vm.readGuestValue(rsp + 8, 8) : vm.readGuestValue(rsp + 4, 4);
}

describe.each(CONFIGURATION_NAMES)('%s, by the guest', (name) => {
  test.each(ROWS.map((row) => [row.n, scenarioOf(row).title, row] as const))('%i: %s', async (_n, _title, row) => {
    const scenario = scenarioOf(row);
    const { guest, exits, outcome } = await runGuest(CONFIGURATIONS[name](), scenario.guest);
    expect(outcome).toBe(scenario.outcome);
    expect(exits, `${row.why.reason} (${row.why.section})`).toEqual([...exitsOf(row, name), end(name)]);
    const sregs = guest.vcpu.getSregs();
    if (scenario.cr0 !== undefined) expect(sregs.cr0).toBe(scenario.cr0);
    if (scenario.lma !== undefined) expect((sregs.efer & EFER.LMA) !== 0n).toBe(scenario.lma);
    if (outcome === 'fault') {
      expect(faultRip(guest, scenario.guest.mode)).toBe(BigInt(Place.code + (row.faultAt ?? -1)));
    } else {
      // out F1h, al; hlt stand behind the code.
      expect(guest.vcpu.run({ budget: 100 })).toEqual({ reason: 'hlt' });
      expect(guest.vcpu.getRegs().rip).toBe(BigInt(Place.code + scenario.guest.code.length + 3));
    }
  });
});

/** 1: refused. LMSW has no way to say so. */
function ask(vcpu: Vcpu, api: Row['api']): number {
  if (!api) return 1;
  if ('cr0' in api) return kvmSetCr0(vcpu, api.cr0);
  kvmLmsw(vcpu, api.lmsw);
  return 0;
}

describe.each(CONFIGURATION_NAMES)('%s, through the API', (name) => {
  const make = CONFIGURATIONS[name];
  test.each(ROWS.filter((row) => row.api).map((row) => [row.n, scenarioOf(row).title, row] as const))(
    '%i: %s',
    async (_n, _title, row) => {
      const scenario = scenarioOf(row);
      const { vcpu } = await makeGuest(make(), scenario.guest);
      const before = vcpu.getSregs();
      const refused = ask(vcpu, row.api);
      expect(refused).toBe(scenario.outcome === 'fault' ? 1 : 0);
      if (refused) expect(vcpu.getSregs()).toEqual(before);
      else expect(vcpu.getSregs().cr0).toBe(scenario.cr0);
      if (scenario.lma !== undefined) expect((vcpu.getSregs().efer & EFER.LMA) !== 0n).toBe(scenario.lma);
    },
  );

  const refusals: readonly (readonly [number, string, string, GuestModeName, Partial<KvmSregs>])[] = [
    [1, 'NW=1, CD=0', 'SREGS_CR0', 'protected', { cr0: BASE | NW }],
    [2, 'PG=1, PE=0', 'SREGS_CR0', 'protected', { cr0: ET | PG }],
    [5, 'bit 40', 'SREGS_CR0', 'long', { cr0: BASE | PG | (1n << 40n) }],
    [6, 'LME=1, PG=1, PAE=0', 'SREGS_LONG_MODE_WITHOUT_PAE', 'long', { cr4: 0n }],
    [23, 'LMA=1, PG=0', 'SREGS_LMA_WITHOUT_PG', 'long', { cr0: BASE }],
    [24, 'LME=1, PG=1, LMA=0', 'SREGS_LONG_MODE_WITHOUT_LMA', 'long', { efer: EFER.LME }],
  ];
  test.each(refusals)('%i: setSregs refuses %s: %s', async (_n, _title, code, mode, change) => {
    const { vcpu } = await makeGuest(make(), { mode, code: [] });
    const before = vcpu.getSregs();
    let refusal: unknown;
    try {
      vcpu.setSregs({ ...before, ...change });
    } catch (error) {
      refusal = error;
    }
    expect(refusal).toBeInstanceOf(KvmError);
    expect(refusal).toMatchObject({ code, errno: 22 });
    expect(vcpu.getSregs()).toEqual(before);
  });

  test('12: setSregs takes a guest from long to protected mode and back, and it runs in each', async () => {
    const guest = await makeGuest(make(), { mode: 'long', code: [0xe6, 0x80, 0xe6, 0x80] });
    const { vcpu } = guest;
    const long = vcpu.getSregs();
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x80 });
    vcpu.setSregs({ ...long, cr0: BASE, efer: 0n, cr4: 0n, cs: { ...long.cs, selector: 8, l: 0, db: 1 } });
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x80 });
    expect(vcpu.getSregs()).toMatchObject({ cr0: BASE, efer: 0n });
    vcpu.setSregs(long);
    expect(finish(guest)).toBe('done');
    expect(vcpu.getSregs()).toMatchObject({ cr0: long.cr0, efer: long.efer, cs: long.cs });
  });

  test('19: CD toggled under PAE paging loads the PDPTEs again', async () => {
    const { vcpu, vm } = await makeGuest(make(), { mode: 'pae', code: [] });
    expect(vcpu.getSregs2().pdptrs).toEqual([BigInt(Place.pd) | 1n, 0n, 0n, 0n]);
    vm.writeGuestValue(Place.paePdpt + 8, BigInt(Place.pd32) | 1n, 8);
    expect(kvmSetCr0(vcpu, BASE | PG | CD)).toBe(0);
    expect(vcpu.getSregs2().pdptrs?.[1]).toBe(BigInt(Place.pd32) | 1n);
    vm.writeGuestValue(Place.paePdpt + 8, 3n, 8);
    expect(kvmSetCr0(vcpu, BASE | PG)).toBe(1);
    expect(vcpu.getSregs().cr0).toBe(BASE | PG | CD);
  });
  test('19: a guest that spoils a PDPTE and toggles CD gets #GP(0)', async () => {
    // mov dword [paePdpt + 8], 3; mov cr0 with CD
    const spoil = [0xc7, 0x05, ...bytes(BigInt(Place.paePdpt + 8), 4), ...bytes(3n, 4)];
    const { guest, outcome } = await runGuest(make(), { mode: 'pae', code: [...spoil, ...movCr0(BASE | PG | CD)] });
    expect(outcome).toBe('fault');
    expect(faultRip(guest, 'pae')).toBe(BigInt(Place.code + spoil.length + 5));
    expect(guest.vcpu.getSregs().cr0).toBe(BASE | PG);
  });

  test('20: WP toggled keeps the root', async () => {
    const guest = await makeGuest(make(), { mode: 'paging32', code: [0xe6, 0x80, 0xe6, 0x80] });
    const { vcpu } = guest;
    expect(vcpu.run({ budget: 100 })).toMatchObject({ reason: 'io', port: 0x80 });
    const root = { ...vcpu.arch.mmu };
    expect(root.hpa).toBeGreaterThan(0);
    const role = vcpu.arch.cpuRole;
    expect(kvmSetCr0(vcpu, BASE | PG | WP)).toBe(0);
    expect(vcpu.arch.cpuRole).not.toBe(role);
    expect(vcpu.run({ budget: 100 })).toMatchObject({ reason: 'io', port: 0x80 });
    expect(vcpu.arch.mmu.hpa).toBe(root.hpa);
  });

  test.each([
    [0n, ET],
    [CD, ET | CD],
    [CD | NW, ET | CD | NW],
  ])('25: INIT of the boot processor with CD and NW 0x%s: CR0 0x%s', async (cache, cr0) => {
    const { vcpu, vm } = await makeGuest(make(), { mode: 'protected', code: [0xeb, 0xfe], irqchip: true });
    vcpu.setSregs({ ...vcpu.getSregs(), cr0: BASE | TS | WP | cache });
    expect(vcpu.run({ budget: 100 })).toEqual({ reason: 'intr' });
    vm.signalMsi(0xfee00000n, 0x500);
    vcpu.run({ budget: 1 });
    expect(vcpu.getSregs()).toMatchObject({ cr0, cr3: 0n, cr4: 0n, efer: 0n });
    expect(vcpu.getSregs().cs).toMatchObject({ selector: 0xf000, base: 0xffff0000n });
  });
});

/** A second processor that runs `jmp $` in protected mode. */
function second(vm: Vm, first: Vcpu): Vcpu {
  const vcpu = vm.createVcpu(1);
  vcpu.setCpuid(vm.kvm.getSupportedCpuid());
  vm.writeGuest(0x9000, Uint8Array.of(0xeb, 0xfe));
  vcpu.setMpState(MpState.RUNNABLE);
  vcpu.setSregs({ ...vcpu.getSregs(), ...first.getSregs(), apicBase: vcpu.getSregs().apicBase });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x9000n, rflags: 2n });
  return vcpu;
}

describe.each(CONFIGURATION_NAMES)('%s, between processors and modes', (name) => {
  const make = CONFIGURATIONS[name];
  test('25: INIT by a write of the ICR: CR0 0x10, waiting for SIPI', async () => {
    // mov dword [FEE00310h], 1 << 24; mov dword [FEE00300h], 4500h
    const icr = (register: number, value: bigint) => [
      0xc7,
      0x05,
      ...bytes(0xfee00000n + BigInt(register), 4),
      ...bytes(value, 4),
    ];
    const guest = await makeGuest(make(), {
      mode: 'protected',
      code: [...icr(0x310, 1n << 24n), ...icr(0x300, 0x4500n)],
      irqchip: true,
    });
    const other = second(guest.vm, guest.vcpu);
    expect(other.run({ budget: 100 })).toEqual({ reason: 'intr' });
    expect(other.getSregs().cr0).toBe(BASE);
    expect(finish(guest)).toBe('done');
    expect(other.run({ budget: 100 }).reason).toBe('idle');
    expect(other.getMpState()).toBe(MpState.INIT_RECEIVED);
    expect(other.getSregs().cr0).toBe(ET);
    guest.vm.signalMsi(0xfee01000n, 0x612);
    other.run({ budget: 1 });
    expect(other.getSregs().cs).toMatchObject({ selector: 0x1200, base: 0x12000n });
  });

  const modes: readonly GuestModeName[] = ['real', 'protected', 'paging32', 'pae', 'compatibility', 'long'];
  test.each(modes)('26: SMI in %s mode; RSM restores CR0, CR3, CR4, EFER exactly', async (mode) => {
    const pcid = 5n;
    const guest = await makeGuest(make(), {
      mode,
      code: [0xe6, 0x80, 0x90],
      // The handler at SMBASE + 8000h: mov eax, cr0; or al, 1; mov cr0, eax; out 81h, al; rsm
      prepare: (vm) =>
        vm.writeGuest(0x38000, Uint8Array.of(0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xe6, 0x81, 0x0f, 0xaa)),
    });
    const { vcpu } = guest;
    const sregs = vcpu.getSregs();
    const withPcid = mode === 'long' && guestCpuidHas(vcpu, 'pcid');
    vcpu.setSregs({
      ...sregs,
      cr0: sregs.cr0 | MP | TS | (mode === 'real' ? 0n : WP),
      cr3: withPcid ? sregs.cr3 | pcid : sregs.cr3,
      cr4: withPcid ? sregs.cr4 | CR4.PCIDE : sregs.cr4,
    });
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x80 });
    const before = vcpu.getSregs();
    vcpu.smi();
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x81 });
    expect(vcpu.runIo.smm).toBe(true);
    expect(vcpu.getSregs()).toMatchObject({ cr4: 0n, efer: 0n });
    expect(vcpu.getSregs().cr0 & (PE | EM | TS | PG)).toBe(PE);
    expect(finish(guest)).toBe('done');
    expect(vcpu.runIo.smm).toBe(false);
    const { cr0, cr3, cr4, efer, cs, ss, ds } = before;
    expect(vcpu.getSregs()).toMatchObject({ cr0, cr3, cr4, efer, cs, ss, ds });
  });
});

describe('22: SEV-ES', () => {
  test('a MOV to CR0 traps behind the instruction; KVM mirrors it and never touches RIP', async () => {
    const image = firmware(expandImage(GUEST_IMAGES.sevEs), 'sev-es.bin');
    const machine = await createMachine({ backend: svm({ sevEs: true }), image, memory: 16 << 20 });
    const { exits, edges } = record(machine.kvm);
    const paths: (readonly string[])[] = [];
    machine.kvm.on('mode_switch', (event) => {
      if (event.exit?.name === 'write_cr0_trap') paths.push(event.path);
    });
    const stop = await machine.run({ maxInstructions: 2_000_000 });
    expect(stop).toEqual({ reason: 'guest-terminated', code: 0 });
    expect(exits).toContain('write_cr0_trap');
    expect(exits).not.toContain('write_cr0');
    expect(exits).not.toContain('cr0_sel_write');
    const callees = edges()
      .filter((edge) => edge.caller === 'crTrap')
      .map((edge) => edge.callee);
    expect(callees).toEqual(expect.arrayContaining(['svmSetCr0', 'kvmPostSetCr0']));
    expect(edges().some((edge) => edge.callee === 'kvmSetCr0')).toBe(false);
    expect(paths.length).toBeGreaterThan(0);
    for (const path of paths) expect(path.slice(-2)).toEqual(['crTrap', 'svmSetCr0']);
    expect(() => machine.vm.vcpus[0].getRegs()).toThrow(/encrypted/);
    expect(() => machine.vm.vcpus[0].getSregs()).toThrow(/encrypted/);
  });
});

describe('27: VT-x without unrestricted guest', () => {
  test('MOV CR0 with PE=1 leaves virtual-8086 mode; KVM emulates until the segments fit', async () => {
    // CS 0001h has base 10h and RPL 1: fine in real mode, no protected-mode code segment.
    const lead: number[] = new Array(16).fill(0x90);
    const jump = [0x66, 0xea, ...bytes(BigInt(Place.code + lead.length + 9 + 8), 4), 8, 0];
    const load = (modrm: number) => [0x8e, modrm];
    const guest = await makeGuest(vmx({ unrestrictedGuest: false }), {
      mode: 'real',
      code: [
        ...lead,
        ...[0x66, ...movCr0(BASE)],
        ...jump,
        // mov eax, 10h; mov ds, es, ss, fs, gs
        ...[0xb8, 0x10, 0, 0, 0, ...load(0xd8), ...load(0xc0), ...load(0xd0), ...load(0xe0), ...load(0xe8)],
      ],
      patch: (sregs) => {
        sregs.gdt = { base: BigInt(Place.gdt), limit: 0x27 };
        sregs.cs = { ...sregs.cs, selector: 1, base: 0x10n };
      },
    });
    const { vcpu } = guest;
    const emulated: number[] = [];
    guest.kvm.on('kvm_emulate_insn', (event) => emulated.push(Number(event.rip) - Place.code));
    const seen: [number, boolean, boolean][] = [];
    let exit = vcpu.exit;
    do {
      const { rip } = vcpu.getRegs();
      seen.push([Number(rip) - Place.code, toVmx(vcpu).rmode.vm86Active, vcpu.arch.emulationRequired]);
      exit = vcpu.run({ budget: 1 });
    } while (exit.reason === 'intr' && seen.length < 40);
    expect(exit).toMatchObject({ reason: 'io', port: DONE_PORT });
    const at = (rip: number) => seen.find(([r]) => r === rip)?.slice(1);
    expect(at(0)).toEqual([true, false]);
    expect(at(6)).toEqual([true, false]);
    // The emulator goes on at once: the first stop behind MOV CR0 may be behind the far jump, in either case out of virtual-8086 mode.
    expect(seen.filter(([r]) => r >= 9).every(([, vm86]) => !vm86)).toBe(true);
    expect(emulated).toContain(9);
    expect(toVmx(vcpu).rmode.vm86Active).toBe(false);
    expect(vcpu.arch.emulationRequired).toBe(false);
    expect(vcpu.getSregs().cs).toMatchObject({ selector: 8, db: 1 });
  });
});
