/** A guest that changes a page table and does not flush meets what the TLB still holds: the same on every engine and with every budget. */
import { finish, makeGuest, Place } from '@tskvm/core/testing';
import { describe, expect, test } from 'vitest';
import { CONFIGURATION_NAMES, CONFIGURATIONS } from './harness.ts';

const CODE = 0x40000;
const TABLE = 0x20000;
/** Linear 4 MiB and up: the first pages once more. */
const ALIAS = 0x400000;
const le32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);

const CALL = [0xff, 0xd3]; // call rbx
const patch = (byte: number): number[] => [0xc6, 0x04, 0x25, ...le32(ALIAS + CODE + 1), byte]; // mov byte [alias], byte
const PROGRAM = [
  ...[0xbb, ...le32(CODE), ...CALL, ...patch(0x22), ...CALL],
  ...[0x89, 0xc6], // mov esi, eax
  ...[0x48, 0xc7, 0x04, 0x25, ...le32(TABLE + (CODE >> 12) * 8), ...le32(0x50063)], // the alias's entry names another page
  ...[...patch(0x33), ...CALL],
  ...[0x89, 0xc7], // mov edi, eax
];

/** Clears the accessed bit of a page's entry, reads the page, counts in ESI whether the bit is set; ECX times. */
const ROUNDS = 2000;
const WATCH = [
  ...[0xb9, ...le32(ROUNDS)],
  ...[0x48, 0x83, 0x24, 0x25, ...le32(TABLE + (Place.code >> 12) * 8), 0xdf], // and qword [entry], ~20h
  ...[0x8b, 0x04, 0x25, ...le32(0x1000000 + Place.code)], // mov eax, [page]: 16 MiB above the code
  ...[0x8b, 0x14, 0x25, ...le32(TABLE + (Place.code >> 12) * 8)], // mov edx, [entry]
  ...[0x83, 0xe2, 0x20, 0x01, 0xd6, 0xff, 0xc9, 0x75, 0xe0], // and edx, 20h; add esi, edx; dec ecx; jnz
];

describe.each(CONFIGURATION_NAMES)('%s', (name) => {
  test.each(['evaluate', 'interpret', 'translate'] as const)(
    'a store into code through a stale alias, %s',
    async (engine) => {
      const guest = await makeGuest(CONFIGURATIONS[name](), {
        mode: 'long',
        code: PROGRAM,
        kvm: { engine },
        prepare: (vm) => {
          vm.writeGuest(CODE, Uint8Array.from([0xb8, 0x11, 0x11, 0x11, 0x11, 0xc3])); // mov eax, 11111111h; ret
          vm.writeGuestValue(Place.pd + 2 * 8, BigInt(TABLE) | 3n, 8);
          for (let page = 0; page < 512; page++) vm.writeGuestValue(TABLE + 8 * page, (BigInt(page) << 12n) | 0x63n, 8);
        },
      });
      expect(finish(guest)).toBe('done');
      const { rsi, rdi } = guest.vcpu.getRegs();
      expect([rsi, rdi]).toEqual([0x11111122n, 0x11111133n]);
    },
  );

  test.each([
    ['evaluate', 100_000],
    ['evaluate', 7],
    ['interpret', 100_000],
    ['interpret', 7],
    ['interpret', 100],
    ['translate', 100_000],
    ['translate', 1000],
  ] as const)('reads a page at the place of the code, %s, budgets of %i', async (engine, budget) => {
    const guest = await makeGuest(CONFIGURATIONS[name](), {
      mode: 'long',
      code: WATCH,
      kvm: { engine },
      prepare: (vm) => {
        vm.writeGuestValue(Place.pd + 8 * 8, BigInt(TABLE) | 3n, 8);
        for (let page = 0; page < 512; page++) vm.writeGuestValue(TABLE + 8 * page, (BigInt(page) << 12n) | 3n, 8);
      },
    });
    const { vcpu } = guest;
    while (vcpu.run({ budget }).reason === 'intr') {}
    // What the first read has found stays; the loop's fetches take no places away.
    expect(vcpu.getRegs()).toMatchObject({ rcx: 0n, rsi: 0x20n });
  });
});
