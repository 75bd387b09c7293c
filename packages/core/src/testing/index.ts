/**
 * @module @tskvm/core/testing: the suite that every backend must pass. Needs vitest.
 *
 * It knows no vendor. Where vendors differ, the difference is a row of data with its reason and the manual's section.
 */
import { CR0, CR4, EFER } from '@tskvm/emulator';
import { describe, expect, test } from 'vitest';
import type { Backend } from '../backend.ts';
import { guestCpuidHas } from '../cpuid.ts';
import { KvmError } from '../diagnostics.ts';
import type { KvmExit } from '../types.ts';
import type { KvmSregs } from '../vcpu-state.ts';
import { CR0_SCENARIOS, type Cr0Scenario } from './cr0-scenarios.ts';
import { bytes, finish, type Guest, makeGuest, type Outcome, Place } from './guest.ts';
import { irqSuite } from './irq-suite.ts';
import { stateSuite } from './state-suite.ts';
import { taskSuite } from './task-suite.ts';

export { CR0_SCENARIOS, type Cr0Scenario } from './cr0-scenarios.ts';
export * from './guest.ts';

/** How a backend departs from a scenario. */
export interface Difference {
  /** The scenario's id. */
  scenario: string;
  reason: string;
  /** Manual section or KVM function. */
  section: string;
  /** What happens instead; `skip`: the scenario says nothing here. */
  expect: { outcome?: Outcome; cr0?: bigint; lma?: boolean } | 'skip';
}

/** Runs the suite. @param make a fresh backend for each guest */
export function backendSuite(make: () => Backend, differences: readonly Difference[] = []): void {
  describe(`backend ${make().name}`, () => {
    cr0Suite(make, differences);
    sregsSuite(make);
    exitSuite(make);
    smmSuite(make);
    irqSuite(make);
    stateSuite(make);
    taskSuite(make);
  });
}

function expected(scenario: Cr0Scenario, differences: readonly Difference[]): Cr0Scenario | 'skip' {
  const difference = differences.find((d) => d.scenario === scenario.id);
  if (!difference) return scenario;
  return difference.expect === 'skip' ? 'skip' : { ...scenario, ...difference.expect };
}

function cr0Suite(make: () => Backend, differences: readonly Difference[]): void {
  describe('CR0', () => {
    for (const scenario of CR0_SCENARIOS) {
      const want = expected(scenario, differences);
      test.skipIf(want === 'skip')(scenario.title, async () => {
        if (want === 'skip') return;
        if (want.needs) {
          const probe = await makeGuest(make(), { mode: 'real', code: [] });
          if (!guestCpuidHas(probe.vcpu, want.needs)) return;
        }
        const guest = await makeGuest(make(), want.guest);
        expect(finish(guest)).toBe(want.outcome);
        const sregs = guest.vcpu.getSregs();
        if (want.cr0 !== undefined) expect(sregs.cr0.toString(16)).toBe(want.cr0.toString(16));
        if (want.lma !== undefined) expect((sregs.efer & EFER.LMA) !== 0n).toBe(want.lma);
      });
    }
  });
}

const SREGS_REFUSALS: readonly (readonly [string, string, (s: KvmSregs) => void])[] = [
  [
    'LMA=1 with PG=0',
    'SREGS_LMA_WITHOUT_PG',
    (s) => {
      s.efer |= EFER.LMA;
    },
  ],
  [
    'LME=1, PG=1 with LMA=0',
    'SREGS_LONG_MODE_WITHOUT_LMA',
    (s) => {
      s.efer |= EFER.LME;
      s.cr4 |= CR4.PAE;
      s.cr0 |= CR0.PG;
    },
  ],
  [
    'LME=1, PG=1 with PAE=0',
    'SREGS_LONG_MODE_WITHOUT_PAE',
    (s) => {
      s.efer |= EFER.LME | EFER.LMA;
      s.cr0 |= CR0.PG;
    },
  ],
  [
    'CS.L=1 outside long mode',
    'SREGS_CS_L_OUTSIDE_LONG_MODE',
    (s) => {
      s.cs = { ...s.cs, l: 1 };
    },
  ],
  [
    'NW=1 with CD=0',
    'SREGS_CR0',
    (s) => {
      s.cr0 |= CR0.NW;
    },
  ],
  [
    'PG=1 with PE=0',
    'SREGS_CR0',
    (s) => {
      s.cr0 = (s.cr0 & ~CR0.PE) | CR0.PG;
    },
  ],
  [
    'a CR4 bit that does not exist',
    'SREGS_CR4',
    (s) => {
      s.cr4 |= 1n << 31n;
    },
  ],
  [
    'an EFER bit that does not exist',
    'SREGS_EFER',
    (s) => {
      s.efer |= 1n << 40n;
    },
  ],
  [
    'an APIC base with a reserved bit',
    'SREGS_APIC_BASE',
    (s) => {
      s.apicBase |= 1n;
    },
  ],
];

function sregsSuite(make: () => Backend): void {
  describe('KVM_SET_SREGS refuses', () => {
    test.each(SREGS_REFUSALS)('%s: %s', async (_title, code, change) => {
      const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [] });
      const before = vcpu.getSregs();
      const sregs = vcpu.getSregs();
      change(sregs);
      let refusal: unknown;
      try {
        vcpu.setSregs(sregs);
      } catch (error) {
        refusal = error;
      }
      expect(refusal).toBeInstanceOf(KvmError);
      expect([(refusal as KvmError).code, (refusal as KvmError).errno]).toEqual([code, 22]);
      expect(vcpu.getSregs()).toEqual(before);
    });
  });
  test('CR3 beyond the physical width outside long mode: KVM takes it, the silicon decides at the entry', async () => {
    // Intel checks CR3 in every mode (SDM vol. 3 26.3.1.1), AMD in long mode only (APM vol. 2 15.5.1).
    const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [0xf4] });
    vcpu.setSregs({ ...vcpu.getSregs(), cr3: 1n << 63n });
    const exit = vcpu.run({ budget: 1000 });
    if (exit.reason === 'fail_entry')
      expect(exit.failures.map(({ code }) => code)).toEqual([expect.stringMatching(/\.cr3\./)]);
    else expect(exit.reason).toBe('hlt');
  });
  test('registers are read back as they were set', async () => {
    const { vcpu } = await makeGuest(make(), { mode: 'long', code: [] });
    const regs = { ...vcpu.getRegs(), rax: 0x1122334455667788n, r15: 0xffffffffffffffffn, rflags: 0x246n };
    vcpu.setRegs(regs);
    expect(vcpu.getRegs()).toEqual(regs);
    const sregs = vcpu.getSregs();
    vcpu.setSregs(sregs);
    expect(vcpu.getSregs()).toEqual(sregs);
  });
}

/** Answers exits and writes down what they were. */
function logged(guest: Guest, input = 0): { outcome: Outcome; log: string[] } {
  const log: string[] = [];
  const outcome = finish(guest, (exit: KvmExit) => {
    if (exit.reason === 'io') {
      if (exit.direction === 'in') exit.data.fill(input);
      log.push(`${exit.direction} ${exit.port.toString(16)} ${[...exit.data].map((b) => b.toString(16)).join(' ')}`);
    } else if (exit.reason === 'mmio') {
      if (!exit.isWrite) exit.data.set(Array.from({ length: exit.len }, (_, i) => input + i));
      const data = [...exit.data.subarray(0, exit.len)].map((b) => b.toString(16)).join(' ');
      log.push(`${exit.isWrite ? 'write' : 'read'} ${exit.physAddr.toString(16)} ${data}`);
    }
  });
  return { outcome, log };
}

function exitSuite(make: () => Backend): void {
  describe('exits', () => {
    test('hlt without an irqchip', async () => {
      const { vcpu } = await makeGuest(make(), { mode: 'real', code: [0xf4] });
      expect(vcpu.run()).toEqual({ reason: 'hlt' });
      expect(vcpu.getRegs().rip).toBe(BigInt(Place.code + 1));
    });
    test('out 80h, al; in al, 81h; out 82h, ax', async () => {
      const guest = await makeGuest(make(), {
        mode: 'real',
        code: [0xb8, 0x41, 0x12, 0xe6, 0x80, 0xe4, 0x81, 0xe7, 0x82],
      });
      expect(logged(guest, 0x5a)).toEqual({ outcome: 'done', log: ['out 80 41', 'in 81 5a', 'out 82 5a 12'] });
    });
    test('rep outsb', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        // mov esi, 600h; mov ecx, 3; mov edx, 80h; rep outsb
        code: [0xbe, 0, 6, 0, 0, 0xb9, 3, 0, 0, 0, 0xba, 0x80, 0, 0, 0, 0xf3, 0x6e],
      });
      expect(logged(guest)).toEqual({ outcome: 'done', log: ['out 80 e6', 'out 80 f0', 'out 80 f4'] });
    });
    test('rep insw', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        // mov edi, 5000h; mov ecx, 2; mov edx, 80h; rep insw
        code: [0xbf, 0, 0x50, 0, 0, 0xb9, 2, 0, 0, 0, 0xba, 0x80, 0, 0, 0, 0xf3, 0x66, 0x6d],
      });
      expect(logged(guest, 0x77)).toEqual({ outcome: 'done', log: ['in 80 77 77 77 77'] });
      expect(guest.vm.readGuestValue(0x5000, 4)).toBe(0x77777777n);
    });
    test.each([
      ['ud2', [0x0f, 0x0b]],
      ['int 20h', [0xcd, 0x20]],
    ])('%s whose gate lies in MMIO: KVM can not go on from the middle of a delivery', async (_text, code) => {
      const { vcpu } = await makeGuest(make(), {
        mode: 'protected',
        code,
        patch: (sregs) => {
          sregs.idt = { base: 0xe0000000n, limit: 0x7ff };
        },
      });
      expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'internal_error', suberror: 3 });
    });
    test('rep insb reads ahead to the end of the page, and no further', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        // mov edi, 5ffdh; mov ecx, 5; mov edx, 80h; rep insb
        code: [0xbf, 0xfd, 0x5f, 0, 0, 0xb9, 5, 0, 0, 0, 0xba, 0x80, 0, 0, 0, 0xf3, 0x6c],
      });
      expect(logged(guest, 7)).toEqual({ outcome: 'done', log: ['in 80 7 7 7', 'in 80 7 7'] });
      expect(guest.vm.readGuest(0x5ffc, 7)).toEqual(Uint8Array.from([0, 7, 7, 7, 7, 7, 0]));
      expect(guest.vcpu.getRegs()).toMatchObject({ rcx: 0n, rdi: 0x6002n });
    });
    test('MMIO: mov [fed00000h], eax; mov ebx, [fed00004h]', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        code: [0xb8, 1, 2, 3, 4, 0xa3, 0, 0, 0xd0, 0xfe, 0x8b, 0x1d, 4, 0, 0xd0, 0xfe, 0x89, 0x1d, 8, 0, 0xd0, 0xfe],
      });
      expect(logged(guest, 0x10)).toEqual({
        outcome: 'done',
        log: ['write fed00000 1 2 3 4', 'read fed00004 10 11 12 13', 'write fed00008 10 11 12 13'],
      });
    });
    test('an MMIO read modify write reads once', async () => {
      // add dword [fed00000h], 1
      const guest = await makeGuest(make(), { mode: 'protected', code: [0x83, 0x05, 0, 0, 0xd0, 0xfe, 1] });
      expect(logged(guest, 0x10)).toEqual({
        outcome: 'done',
        log: ['read fed00000 10 11 12 13', 'write fed00000 11 11 12 13'],
      });
    });
    test('a read-only slot: reads are memory, writes are MMIO', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        // mov al, [fff00010h]; mov [fff00010h], al
        code: [0xa0, 0x10, 0, 0xf0, 0xff, 0xa2, 0x10, 0, 0xf0, 0xff],
        prepare: (vm) => {
          vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0xfff00000, memorySize: 0x1000, flags: 2 });
          vm.writeGuestValue(0xfff00010, 0x99n, 1);
        },
      });
      expect(logged(guest)).toEqual({ outcome: 'done', log: ['write fff00010 99'] });
    });
    test('a write to a logged slot shows in its dirty log, a read does not', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        // mov eax, [200000h]; mov [201000h], eax; mov [201004h], eax
        code: [0xa1, ...bytes(0x200000n, 4), 0xa3, ...bytes(0x201000n, 4), 0xa3, ...bytes(0x201004n, 4)],
        prepare: (vm) => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x200000, memorySize: 0x4000, flags: 1 }),
      });
      expect(finish(guest)).toBe('done');
      expect([...guest.vm.getDirtyLog(1)]).toEqual([2]);
    });
    test('jmp $ is stopped by the budget', async () => {
      const { vcpu } = await makeGuest(make(), { mode: 'real', code: [0xeb, 0xfe] });
      expect(vcpu.run({ budget: 5000 })).toEqual({ reason: 'intr' });
      expect(vcpu.getRegs().rip).toBe(BigInt(Place.code));
    });
    test('a triple fault is a shutdown', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        code: [0x0f, 0x0b],
        patch: (sregs) => {
          sregs.idt = { base: 0n, limit: 0 };
        },
      });
      expect(finish(guest)).toBe('shutdown');
    });
    test('shuffled host frames make no difference', async () => {
      const code = [0xb8, 0x41, 0x12, 0xe6, 0x80, 0xe4, 0x81, 0xe7, 0x82];
      const guest = await makeGuest(make(), {
        mode: 'long',
        code: [0x90, ...code.slice(3)],
        kvm: { shuffleFrames: 5 },
      });
      expect(logged(guest, 3).outcome).toBe('done');
    });
  });
}

function smmSuite(make: () => Backend): void {
  test('SMI in 64-bit mode, RSM: everything is as it was', async () => {
    const guest = await makeGuest(make(), {
      mode: 'long',
      code: [0xe6, 0x80, 0x90],
      prepare: (vm) => {
        // The handler at SMBASE + 8000h: out 81h, al; rsm
        vm.writeGuest(0x38000, Uint8Array.from([0xe6, 0x81, 0x0f, 0xaa]));
      },
    });
    const { vcpu } = guest;
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x80 });
    const before = { regs: vcpu.getRegs(), sregs: vcpu.getSregs() };
    vcpu.smi();
    expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'io', port: 0x81 });
    expect(vcpu.runIo.smm).toBe(true);
    expect(vcpu.getSregs().cr0 & (CR0.PE | CR0.PG)).toBe(0n);
    expect(finish(guest)).toBe('done');
    expect(vcpu.runIo.smm).toBe(false);
    const after = vcpu.getSregs();
    for (const name of ['cr0', 'cr3', 'cr4', 'efer', 'cs', 'ss', 'gdt', 'idt'] as const) {
      expect([name, after[name]]).toEqual([name, before.sregs[name]]);
    }
    expect(vcpu.getRegs().rsp).toBe(before.regs.rsp);
  });
}
