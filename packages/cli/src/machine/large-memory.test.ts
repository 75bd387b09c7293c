/** Control blocks, page tables and guest RAM whose host addresses have bit 31 set. */
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { describe, expect, it } from 'vitest';
import { expandImage } from '../guests/image.ts';
import { GUEST_IMAGES } from '../guests/images.ts';
import { firmware } from './loaders/image.ts';
import { createMachine } from './machine.ts';

const GIB = 2 ** 30;

describe.each([
  ['svm', () => svm()],
  ['vmx', () => vmx()],
  ['svm without nested paging', () => svm({ npt: false })],
  ['vmx without EPT', () => vmx({ ept: false })],
] as const)('%s', (_name, backend) => {
  it.each([2 * GIB, 3.5 * GIB])('the tour in %i bytes of RAM', async (memory) => {
    let serial = '';
    const machine = await createMachine({
      backend: backend(),
      image: firmware(expandImage(GUEST_IMAGES.tour), 'tour.bin'),
      memory,
      cpus: 2,
      onSerial: (byte) => {
        serial += String.fromCharCode(byte);
      },
    });
    const stop = await machine.run({ maxInstructions: 30_000_000 });
    expect(stop.reason).toBe('shutdown');
    expect(serial).toContain('tour complete');
    // The last page of RAM, by way of the memory slots.
    machine.vm.writeGuestValue(memory - 8, 0x1122334455667788n, 8);
    expect(machine.vm.readGuestValue(memory - 8, 8)).toBe(0x1122334455667788n);
  });
});
