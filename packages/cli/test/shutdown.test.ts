/** What tskvm says about a shutdown: the exception, and the rule that refused a write; the rules agree with what KVM and the silicon refuse. */
import { brokenRules } from '@tskvm/core';
import { finish, type GuestModeName, makeGuest } from '@tskvm/core/testing';
import { bootSector, createMachine } from 'tskvm';
import { describe, expect, test } from 'vitest';
import { CONFIGURATION_NAMES, CONFIGURATIONS } from './harness.ts';

const LGDT = [0x0f, 0x01, 0x16, 0x00, 0x7d];
const PROTECT = [0xfa, 0x31, 0xc0, 0x8e, 0xd8, ...LGDT, 0x66, 0xb8, 0x11, 0, 0, 0, 0x0f, 0x22, 0xc0];
/** rdmsr and wrmsr of EFER with LME, then CR0 with PG: 16-bit protected mode, so that no far jump is needed. */
const LME = [0x66, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30];
const PAGING = [0x66, 0xb8, 0x11, 0, 0, 0x80, 0x0f, 0x22, 0xc0];
const PAE = [0x66, 0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0];
/** dword [1000h] = a present, writable PDPTE; CR3 = 1000h. */
const PDPTE = [0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0, 0, 0x66, 0xb8, 0, 0x10, 0, 0, 0x0f, 0x22, 0xd8];
/** lidt of six zero bytes: nothing can be delivered from here on. */
const NO_IDT = [0x0f, 0x01, 0x1e, 0x80, 0x7d];

function sector(code: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(512);
  bytes.set(code);
  bytes.set([15, 0, 0x10, 0x7d, 0, 0], 0x100);
  bytes.set([0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0], 0x110);
  bytes.set([0x55, 0xaa], 510);
  return bytes;
}

const CASES: readonly (readonly [what: string, code: readonly number[], text: RegExp])[] = [
  ['ud2', [...NO_IDT, ...PROTECT, 0x0f, 0x0b], /deliver #UD$/],
  [
    'PG with LME, without PAE',
    [...NO_IDT, ...PROTECT, ...LME, ...PAGING],
    /CR0 = 0x80000011 was refused: PG with EFER\.LME needs CR4\.PAE/,
  ],
  [
    'PG without PE',
    [...NO_IDT, 0x66, 0xb8, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0],
    /CR0 = 0x80000000 was refused: PG needs PE/,
  ],
  [
    'PAE tables meant for long mode, LME forgotten',
    [...NO_IDT, ...PROTECT, ...PDPTE, ...PAE, ...PAGING],
    /PAE paging outside long mode loads four PDPTEs.*set EFER\.LME first/,
  ],
  ['VMXE', [...NO_IDT, 0x66, 0xb8, 0, 0x20, 0, 0, 0x0f, 0x22, 0xe0], /CR4 = 0x2000 was refused: VMXE.*nested/],
  ['a reserved bit of CR4', [...NO_IDT, 0x66, 0xb8, 0, 0, 0, 0x80, 0x0f, 0x22, 0xe0], /CR4 = 0x80000000 was refused/],
  [
    'a reserved bit of EFER',
    [...NO_IDT, 0x66, 0xb9, 0x80, 0, 0, 0xc0, 0x66, 0xb8, 2, 0, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30],
    /EFER = 0x2 was refused/,
  ],
];

describe.each(CONFIGURATION_NAMES)('%s: a shutdown names its cause', (name) => {
  test.each(CASES)('%s', async (_what, code, text) => {
    const machine = await createMachine({ backend: CONFIGURATIONS[name](), image: bootSector(sector(code), 'test') });
    const stop = await machine.run({ maxInstructions: 1000 });
    if (stop.reason !== 'shutdown') throw new Error(stop.reason);
    expect(stop.cause).toMatch(text);
  });
});

test.each([
  [{ cr0: 0x80000000n }, 'CR0.PG needs CR0.PE'],
  [{ cr0: 0x20000000n }, 'CR0.NW needs CR0.CD'],
  [{ cr0: 1n << 40n }, 'CR0 bits 63:32 must be 0'],
])('KVM_SET_SREGS names the one rule: %o', async (patch, rule) => {
  const { vcpu } = await makeGuest(CONFIGURATIONS.svm(), { mode: 'real', code: [] });
  expect(() => vcpu.setSregs({ ...vcpu.getSregs(), ...patch })).toThrow(
    expect.objectContaining({ code: 'SREGS_CR0', rule }),
  );
});

test('a jump to where no memory is says so', async () => {
  const machine = await createMachine({
    backend: CONFIGURATIONS.vmx(),
    memory: 2 ** 20 * 16,
    image: bootSector(sector([...PROTECT, 0x66, 0xea, 0, 0, 0, 0x20, 8, 0]), 'test'),
  });
  expect(await machine.run({ maxInstructions: 1000 })).toMatchObject({
    code: 'INTERNAL_ERROR',
    message: expect.stringContaining('no memory at physical address 0x20000000'),
  });
});

/** A small generator (Numerical Recipes' LCG), so that a failure can be run again. */
function* numbers(seed: number): Generator<number> {
  for (let x = seed; ; ) yield (x = (Math.imul(x, 1664525) + 1013904223) >>> 0) >>> 8;
}
const CR0_BITS = [0, 1, 3, 16, 29, 30, 31];
const CR4_BITS = [4, 5, 7, 12, 17, 20, 21, 31];
const pick = (bits: readonly number[], from: number, base: bigint): bigint =>
  bits.reduce((value, bit, i) => ((from >> i) & 1 ? value ^ (1n << BigInt(bit)) : value), base);

describe.each(['svm', 'vmx'] as const)('%s: a rule is broken where, and only where, the write is refused', (name) => {
  const MODES: readonly GuestModeName[] = ['protected', 'paging32', 'pae', 'long', 'compatibility'];
  test.each(MODES)('mov to cr0 and cr4, %s', async (mode) => {
    const random = numbers(MODES.indexOf(mode) + 1);
    for (let i = 0; i < 14; i++) {
      const cr = i % 2 === 0 ? 0 : 4;
      const lme = mode === 'protected' && (random.next().value as number) % 2 === 0;
      const guest = await makeGuest(CONFIGURATIONS[name](), {
        mode,
        code: [0x0f, 0x22, 0xc0 | (cr << 3)],
        patch: (sregs) => {
          if (lme) sregs.efer |= 0x100n;
        },
      });
      const sregs = guest.vcpu.getSregs();
      const old = cr === 0 ? sregs.cr0 : sregs.cr4;
      // Few bits at a time: most values then break one rule or none.
      const value = pick(
        cr === 0 ? CR0_BITS : CR4_BITS,
        (random.next().value as number) & (random.next().value as number),
        old,
      );
      guest.vcpu.setRegs({ ...guest.vcpu.getRegs(), rax: value });
      const rules = brokenRules(guest.vcpu).map(({ code }) => code);
      const what = `${mode} lme ${lme} cr${cr} 0x${old.toString(16)} -> 0x${value.toString(16)}: ${rules}`;
      expect(finish(guest) === 'fault', what).toBe(rules.length > 0);
    }
  });
});
