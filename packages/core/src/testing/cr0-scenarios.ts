/** Writes of CR0 and what must come of them. Manual: APM vol. 2 3.1.1 and 14.6, SDM vol. 3 2.5; KVM: kvm_set_cr0. */
import { CR0, CR4, EFER } from '@tskvm/emulator';
import type { KvmSregs } from '../vcpu-state.ts';
import { bytes, type GuestOptions, movCr0, movCr0Long, type Outcome, Place } from './guest.ts';

/** One scenario: a guest, and the state that its end must show. */
export interface Cr0Scenario {
  id: string;
  title: string;
  guest: GuestOptions;
  outcome: Outcome;
  /** CR0 at the end. */
  cr0?: bigint;
  lma?: boolean;
  /** Feature of the guest's CPUID without which the scenario says nothing. */
  needs?: string;
}

const { PE, ET, NW, CD, PG, MP, EM, TS, WP } = CR0;
const BASE = PE | ET;
const withLme = (sregs: KvmSregs): void => {
  sregs.efer |= EFER.LME;
};
/** jmp 18h:next (32-bit code), where CS becomes a 64-bit segment that runs as 16-bit code outside long mode. */
const intoLongSegment = (rest: readonly number[]): number[] => [
  0xea,
  ...bytes(BigInt(Place.code + 7), 4),
  0x18,
  0,
  ...rest,
];

export const CR0_SCENARIOS: readonly Cr0Scenario[] = [
  {
    id: 'cr0.nw-without-cd',
    title: 'mov cr0 with NW=1, CD=0: #GP(0), CR0 as it was',
    guest: { mode: 'protected', code: movCr0(BASE | NW) },
    outcome: 'fault',
    cr0: BASE,
  },
  {
    id: 'cr0.pg-without-pe',
    title: 'mov cr0 with PG=1, PE=0: #GP(0)',
    guest: { mode: 'protected', code: movCr0(ET | PG) },
    outcome: 'fault',
    cr0: BASE,
  },
  {
    id: 'cr0.undefined-bit',
    title: 'mov cr0 with undefined bit 17: ignored',
    guest: { mode: 'protected', code: movCr0(BASE | (1n << 17n)) },
    outcome: 'done',
    cr0: BASE,
  },
  {
    id: 'cr0.et',
    title: 'mov cr0 with ET=0: reads back 1',
    guest: { mode: 'protected', code: movCr0(PE) },
    outcome: 'done',
    cr0: BASE,
  },
  {
    id: 'cr0.upper-half',
    title: 'mov cr0, rax with bit 40: #GP(0)',
    guest: { mode: 'long', code: movCr0Long(BASE | PG | (1n << 40n)) },
    outcome: 'fault',
    cr0: BASE | PG,
  },
  {
    id: 'cr0.pe',
    title: 'mov cr0 with PE=1 in real mode',
    guest: { mode: 'real', code: [0x66, ...movCr0(BASE)] },
    outcome: 'done',
    cr0: BASE,
  },
  {
    id: 'cr0.lme-without-pae',
    title: 'PG 0→1, LME=1, PAE=0: #GP(0)',
    guest: { mode: 'protected', code: movCr0(BASE | PG), patch: withLme },
    outcome: 'fault',
    cr0: BASE,
    lma: false,
  },
  {
    id: 'cr0.lme-with-cs-l',
    title: 'PG 0→1, LME=1, PAE=1, CS.L=1: #GP(0)',
    guest: {
      mode: 'protected',
      code: intoLongSegment([0x66, ...movCr0(BASE | PG)]),
      patch: (sregs) => {
        withLme(sregs);
        sregs.cr4 |= CR4.PAE;
        sregs.cr3 = BigInt(Place.pml4);
      },
    },
    outcome: 'fault',
    lma: false,
  },
  {
    id: 'cr0.enter-long',
    title: 'PG 0→1, LME=1, PAE=1, CS.L=0: LMA=1',
    guest: {
      mode: 'protected',
      code: movCr0(BASE | PG),
      patch: (sregs) => {
        withLme(sregs);
        sregs.cr4 |= CR4.PAE;
        sregs.cr3 = BigInt(Place.pml4);
      },
    },
    outcome: 'done',
    cr0: BASE | PG,
    lma: true,
  },
  {
    id: 'cr0.enter-paging32',
    title: 'PG 0→1 with 32-bit paging',
    guest: {
      mode: 'protected',
      code: movCr0(BASE | PG | WP),
      patch: (sregs) => {
        sregs.cr4 |= CR4.PSE;
        sregs.cr3 = BigInt(Place.pd32);
      },
    },
    outcome: 'done',
    cr0: BASE | PG | WP,
    lma: false,
  },
  ...[true, false].map(
    (present): Cr0Scenario => ({
      id: present ? 'cr0.pdpte-reserved' : 'cr0.pdpte-not-present',
      title: present
        ? 'PG 0→1, PAE=1, a present PDPTE with a reserved bit: #GP(0)'
        : 'PG 0→1, PAE=1, a PDPTE with a reserved bit that is not present: ok',
      guest: {
        mode: 'protected',
        code: movCr0(BASE | PG),
        patch: (sregs) => {
          sregs.cr4 |= CR4.PAE;
          sregs.cr3 = BigInt(Place.paePdpt);
        },
        prepare: (vm) => vm.writeGuestValue(Place.paePdpt + 8, present ? 3n : 2n, 8),
      },
      outcome: present ? 'fault' : 'done',
      cr0: present ? BASE : BASE | PG,
    }),
  ),
  {
    id: 'cr0.pg-off-in-64-bit-code',
    title: 'PG 1→0 in 64-bit code: #GP(0)',
    guest: { mode: 'long', code: movCr0Long(BASE) },
    outcome: 'fault',
    cr0: BASE | PG,
    lma: true,
  },
  {
    id: 'cr0.leave-long',
    title: 'PG 1→0 in compatibility mode: LMA=0',
    guest: { mode: 'compatibility', code: movCr0(BASE) },
    outcome: 'done',
    cr0: BASE,
    lma: false,
  },
  {
    id: 'cr0.pg-off-with-pcide',
    title: 'PG 1→0 in compatibility mode with CR4.PCIDE=1: #GP(0)',
    guest: {
      mode: 'compatibility',
      code: movCr0(BASE),
      patch: (sregs) => {
        sregs.cr4 |= CR4.PCIDE;
      },
    },
    outcome: 'fault',
    cr0: BASE | PG,
    needs: 'pcid',
  },
  {
    id: 'lmsw.keeps-pe',
    title: 'lmsw 0 in protected mode: PE stays, MP, EM and TS go',
    guest: {
      mode: 'protected',
      code: [0x31, 0xc0, 0x0f, 0x01, 0xf0],
      patch: (sregs) => {
        sregs.cr0 |= MP | EM | TS;
      },
    },
    outcome: 'done',
    cr0: BASE,
  },
  {
    id: 'lmsw.sets-pe',
    title: 'lmsw 1 in real mode: PE=1',
    guest: { mode: 'real', code: [0xb8, 1, 0, 0x0f, 0x01, 0xf0] },
    outcome: 'done',
    cr0: BASE,
  },
  ...[0n, CD].map(
    (cache): Cr0Scenario => ({
      id: cache ? 'clts.with-cd' : 'clts',
      title: cache ? 'clts with CD=1 (KVM hides CD from the hardware)' : 'clts',
      guest: {
        mode: 'protected',
        code: [0x0f, 0x06],
        patch: (sregs) => {
          sregs.cr0 |= TS | cache;
        },
      },
      outcome: 'done',
      cr0: BASE | cache,
    }),
  ),
  {
    id: 'cr0.ts-only',
    title: 'mov cr0 that changes TS alone',
    guest: { mode: 'protected', code: movCr0(BASE | TS) },
    outcome: 'done',
    cr0: BASE | TS,
  },
  {
    id: 'cr0.cd-only',
    title: 'CD toggled under PAE paging: PDPTEs are loaded again, the guest goes on',
    guest: { mode: 'pae', code: movCr0(BASE | PG | CD) },
    outcome: 'done',
    cr0: BASE | PG | CD,
  },
  {
    id: 'cr0.wp-only',
    title: 'WP toggled under 32-bit paging',
    guest: { mode: 'paging32', code: movCr0(BASE | PG | WP) },
    outcome: 'done',
    cr0: BASE | PG | WP,
  },
  {
    id: 'cr0.read-back',
    title: 'mov ebx, cr0 reads what KVM holds, not what the hardware has',
    guest: {
      mode: 'protected',
      // mov ebx, cr0; mov eax, ebx; mov cr0, eax
      code: [0x0f, 0x20, 0xc3, 0x89, 0xd8, 0x0f, 0x22, 0xc0],
      patch: (sregs) => {
        sregs.cr0 |= CD | NW;
      },
    },
    outcome: 'done',
    cr0: BASE | CD | NW,
  },
  {
    id: 'cr0.back-to-real',
    title: 'PE 1→0 in protected mode',
    guest: {
      mode: 'protected',
      code: movCr0(ET),
      // Real mode goes on in a 32-bit segment until the far jump: out F1h, al is the same there.
      patch: (sregs) => {
        sregs.cs = { ...sregs.cs, selector: 8 };
      },
    },
    outcome: 'done',
    cr0: ET,
  },
];
