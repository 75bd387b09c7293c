/** Multiboot kernels: what is refused by name, and what is loaded where. */
import { describe, expect, test } from 'vitest';
import { findBackend } from '../src/backends.ts';
import { UsageError } from '../src/machine/errors.ts';
import { type MultibootOptions, multiboot } from '../src/machine/loaders/multiboot.ts';
import { createMachine } from '../src/machine/machine.ts';

const MIB = 2 ** 20;
/** mov al, '!'; mov dx, 3f8h; out dx, al; mov al, 0; mov dx, f4h; out dx, al. */
const CODE = [0xb0, 0x21, 0x66, 0xba, 0xf8, 3, 0xee, 0xb0, 0, 0x66, 0xba, 0xf4, 0, 0xee];

/** Header at offset 16, code at 64; with bit 16 the address fields. */
function raw(flags: number, addresses: readonly number[] = [0x100010, 0x100000, 0, 0, 0x100040]): Uint8Array {
  const bytes = new Uint8Array(128);
  const view = new DataView(bytes.buffer);
  [0x1badb002, flags, -(0x1badb002 + flags) >>> 0, ...addresses].forEach((word, i) => {
    view.setUint32(16 + i * 4, word, true);
  });
  bytes.set(CODE, 64);
  return bytes;
}
/** The same as an ELF file: header at 0x60, code at 0x80. */
function elf(flags: number, change: (view: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(256);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  view.setUint16(18, 3, true);
  view.setUint32(24, 0x100080, true);
  view.setUint32(28, 52, true);
  view.setUint16(42, 32, true);
  view.setUint16(44, 1, true);
  [1, 0, 0x100000, 0x100000, 256, 4096].forEach((word, i) => {
    view.setUint32(52 + i * 4, word, true);
  });
  [0x1badb002, flags, -(0x1badb002 + flags) >>> 0].forEach((word, i) => {
    view.setUint32(0x60 + i * 4, word, true);
  });
  bytes.set(CODE, 0x80);
  change(view);
  return bytes;
}
const options = (kernel: Uint8Array, changes: Partial<MultibootOptions> = {}): MultibootOptions => ({
  kernel,
  kernelName: 'k.elf',
  memory: 16 * MIB,
  ...changes,
});
function refusal(kernel: Uint8Array, changes: Partial<MultibootOptions> = {}): string {
  try {
    multiboot(options(kernel, changes));
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    expect((error as UsageError).status).toBe(2);
    return `${(error as UsageError).code}: ${(error as UsageError).message}`;
  }
  return 'loaded';
}

describe('a Multiboot kernel is refused', () => {
  test.each([
    ['that demands a video mode', elf(4), {}, /BAD_KERNEL: k\.elf .*video mode \(flag 2\)/],
    ['with a requirement that nobody knows', elf(0x20), {}, /BAD_KERNEL: .*flag 5/],
    ['with a requirement and addresses of its own', raw(0x10008), {}, /BAD_KERNEL: .*flag 3/],
    ['without a header', new Uint8Array(128), {}, /BAD_KERNEL: .*no Multiboot header/],
    ['for another processor', elf(0, (v) => v.setUint16(18, 40, true)), {}, /BAD_KERNEL: .*32-bit x86/],
    ['whose program headers are cut off', elf(0, (v) => v.setUint16(44, 90, true)), {}, /BAD_KERNEL: .*truncated/],
    ['whose segment is cut off', elf(0, (v) => v.setUint32(68, 4000, true)), {}, /BAD_KERNEL: .*truncated/],
    ['that is larger than memory', elf(0, (v) => v.setUint32(72, 64 * MIB, true)), {}, /IMAGE_TOO_LARGE: .*6\d MiB/],
    ['with a module that is larger', elf(0), { module: new Uint8Array(16 * MIB) }, /IMAGE_TOO_LARGE/],
    ['whose addresses begin before the file', raw(0x10000, [0x100010, 0xff000, 0, 0, 0]), {}, /in front of the file/],
    ['whose addresses go on behind the file', raw(0x10000, [0x100010, 0x100000, 0x101000, 0, 0]), {}, /truncated/],
    [
      'whose addresses end early',
      raw(0x10000, [0x100010, 0x100000, 0x100040, 0x100020, 0]),
      {},
      /end before they begin/,
    ],
  ] as const)('%s', (_name, kernel, changes, message) => {
    expect(refusal(kernel, changes)).toMatch(message);
  });
});

test.each([
  ['an ELF file that wants its modules at pages and a memory map', elf(3)],
  ['a flat file with addresses', raw(0x10003)],
  ['optional features are not demands', elf(0x20000)],
])('%s runs', async (_name, kernel) => {
  let text = '';
  const machine = await createMachine({
    backend: await findBackend('svm'),
    image: multiboot(options(kernel)),
    memory: 16 * MIB,
    onSerial: (byte) => {
      text += String.fromCharCode(byte);
    },
  });
  expect(await machine.run({ maxInstructions: 1000 })).toMatchObject({ reason: 'debug-exit' });
  expect(text).toBe('!');
});
