/** Kernels and initramfs files that are damaged, foreign or too large, and what a sound kernel finds at its entries. */
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32, gunzipSync, gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { busyboxInitramfs } from '../../../scripts/cpio.ts';
import { findBackend } from '../src/backends.ts';
import { UsageError } from '../src/machine/errors.ts';
import { isLinux, type LinuxOptions, linux } from '../src/machine/loaders/linux.ts';
import { mpTable } from '../src/machine/loaders/mp-table.ts';
import { createMachine } from '../src/machine/machine.ts';
import { tskvm } from './command-line.ts';

const MIB = 2 ** 20;
/** mov dx, 3f8h; mov al, MODE; out dx, al; mov al, [esi + 202h]; out dx, al; mov esi, [esi + 228h]; lodsb; out dx, al; mov dx, f4h; mov al, 0; out dx, al: alike in both modes. */
const code = (mode: string): number[] => [
  ...[0x66, 0xba, 0xf8, 0x03, 0xb0, mode.charCodeAt(0), 0xee],
  ...[0x8a, 0x86, 0x02, 0x02, 0, 0, 0xee, 0x8b, 0xb6, 0x28, 0x02, 0, 0, 0xac, 0xee],
  ...[0x66, 0xba, 0xf4, 0, 0xb0, 0, 0xee],
];

interface Fake {
  version?: number;
  loadFlags?: number;
  xloadFlags?: number;
  initSize?: number;
  preferred?: bigint;
  commandLineSize?: number;
}
/** A file that is a bzImage in all that a loader looks at, whose kernel says which entry was taken. */
function bzImage(fake: Fake = {}): Uint8Array {
  const file = new Uint8Array(1024 + 4096);
  const view = new DataView(file.buffer);
  file[0x1f1] = 1;
  view.setUint32(0x1f4, 4096 / 16, true);
  view.setUint16(0x1fe, 0xaa55, true);
  file.set([0xeb, 0x66, ...Buffer.from('HdrS')], 0x200);
  view.setUint16(0x206, fake.version ?? 0x20f, true);
  file[0x211] = fake.loadFlags ?? 1;
  view.setUint32(0x22c, 0x7fffffff, true);
  view.setUint32(0x230, 0x200000, true);
  file[0x234] = 1;
  view.setUint16(0x236, fake.xloadFlags ?? 1, true);
  view.setUint32(0x238, fake.commandLineSize ?? 2047, true);
  view.setBigUint64(0x258, fake.preferred ?? 0x1000000n, true);
  view.setUint32(0x260, fake.initSize ?? MIB, true);
  file.set(code('3'), 1024);
  file.set(code('6'), 1024 + 0x200);
  view.setUint32(file.length - 4, ~crc32(file.subarray(0, -4)) >>> 0, true);
  return file;
}
const options = (changes: Partial<LinuxOptions> = {}): LinuxOptions => ({
  kernel: bzImage(),
  kernelName: 'vmlinuz',
  memory: 64 * MIB,
  gunzip: gunzipSync,
  ...changes,
});
function refusal(changes: Partial<LinuxOptions>): string {
  try {
    linux(options(changes));
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    expect((error as UsageError).status).toBe(2);
    return `${(error as UsageError).code}: ${(error as UsageError).message}`;
  }
  return 'loaded';
}
const change = (bytes: Uint8Array, at: number, value: number): Uint8Array => {
  const copy = bytes.slice();
  copy[at] = value;
  return copy;
};
const elf = (machine: number, bits = 2): Uint8Array => {
  const bytes = new Uint8Array(64);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, bits, 1]);
  bytes[18] = machine;
  return bytes;
};
const archive = busyboxInitramfs(new Uint8Array(5000).fill(0x90));
/** The archive with another size of its first name, and 2 MiB behind it. */
const renamed = (size: string): Uint8Array => {
  const copy = new Uint8Array(2 * MIB);
  copy.set(archive);
  copy.set(Buffer.from(size), 94);
  return copy;
};

describe('a kernel file', () => {
  test.each([
    ['truncated in the header', bzImage().subarray(0, 0x210), /BAD_KERNEL: .*truncated/],
    [
      'truncated behind it',
      bzImage().subarray(0, 3000),
      /BAD_KERNEL: .* 3000 bytes and its header speaks of 5120: .*truncated/,
    ],
    ['with a byte changed', change(bzImage(), 2000, 1), /BAD_KERNEL: .*checksum.*corrupt/],
    ['without a boot signature', change(bzImage(), 0x1fe, 0), /BAD_KERNEL: .*corrupt/],
    ['of an old protocol', bzImage({ version: 0x203 }), /BAD_KERNEL: .*protocol 2\.3 is too old/],
    ['that loads low', bzImage({ loadFlags: 0 }), /BAD_KERNEL: .*zImage/],
    [
      'for ARM, 64 bits',
      new Uint8Array(4096).map((_, i) => [0x41, 0x52, 0x4d, 0x64][i - 0x38] ?? 0),
      /BAD_KERNEL: .*64-bit ARM/,
    ],
    ['for RISC-V', new Uint8Array(4096).map((_, i) => [0x52, 0x53, 0x43, 0x05][i - 0x38] ?? 0), /BAD_KERNEL: .*RISC-V/],
    ['that is an ELF file for ARM', elf(183), /BAD_KERNEL: .*64-bit ARM/],
    ['that is a vmlinux', elf(62), /BAD_KERNEL: .*vmlinux.*bzImage/],
    ['with a length of 0', change(change(bzImage(), 0x1f4, 0), 0x1f5, 0), /BAD_KERNEL: .*no packed kernel.*corrupt/],
    ['whose payload lies outside', change(bzImage(), 0x24f, 1), /BAD_KERNEL: .*no packed kernel.*corrupt/],
    ['whose payload is none', change(bzImage(), 0x24c, 1), /BAD_KERNEL: .*no packed kernel.*corrupt/],
    ['that is a zstd file', Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0]), /BAD_KERNEL: .*zstd.*bzImage/],
    ['that is a Debian package', new TextEncoder().encode('!<arch>\ndebian-binary'), /BAD_KERNEL: .*Debian package/],
    ['that is an initramfs', archive, /BAD_KERNEL: .*cpio archive.*--initrd/],
    ['that is compressed', Uint8Array.from(gzipSync(bzImage())), /BAD_KERNEL: .*gzip.*bzImage/],
  ])('%s is refused', (_name, kernel, message) => {
    expect(isLinux(kernel) || kernel.length < 0x220).toBe(true);
    expect(refusal({ kernel })).toMatch(message);
  });
  test('signed for Secure Boot keeps its checksum', () => {
    const file = bzImage();
    const view = new DataView(file.buffer);
    view.setUint16(0, 0x5a4d, true);
    view.setUint32(0x3c, 0x40, true);
    view.setUint32(0x40, 0x4550, true);
    view.setUint16(0x58, 0x20b, true);
    view.setUint32(file.length - 4, ~crc32(file.subarray(0, -4)) >>> 0, true);
    view.setUint32(0x58 + 64, 0x12345678, true);
    view.setUint32(0x58 + 112 + 32, 0x1400, true);
    expect(refusal({ kernel: file })).toBe('loaded');
  });
  test('that does not fit names the memory that it needs', () => {
    expect(refusal({ kernel: bzImage({ initSize: 100 * MIB }) })).toMatch(
      /IMAGE_TOO_LARGE: .*needs 116 MiB.*has 64: give a larger --memory/,
    );
  });
  test('that wants to lie on the tables below 1 MiB is refused', () => {
    for (const preferred of [0n, 0x1000n, 0x10000n, 0xfffffn]) {
      expect(refusal({ kernel: bzImage({ preferred }) })).toMatch(/BAD_KERNEL: .*corrupt/);
    }
    expect(refusal({ kernel: bzImage({ preferred: (1n << 64n) - 1n }) })).toMatch(/IMAGE_TOO_LARGE/);
  });
  test('that says it needs less than it has does not get its initramfs on top', () => {
    const { segments } = linux(options({ kernel: bzImage({ initSize: 1 }), initrd: archive, memory: 17 * MIB }));
    const kernel = segments[0];
    expect(segments.find(({ bytes }) => bytes === archive)!.at).toBeGreaterThanOrEqual(kernel.at + kernel.bytes.length);
  });
  test('without a 64-bit entry starts in 32 bits', () => {
    expect(linux(options({ kernel: bzImage({ xloadFlags: 0 }) })).start.kind).toBe('protected32');
    expect(refusal({ kernel: bzImage({ xloadFlags: 0 }), entry: 64 })).toMatch(/NO_ENTRY_64/);
  });
  test('takes a command line up to the size that it says', () => {
    expect(refusal({ append: 'x'.repeat(2047) })).toBe('loaded');
    expect(refusal({ append: 'x'.repeat(2048) })).toMatch(/COMMAND_LINE_TOO_LONG: .*2048.*2047/);
    const kernel = bzImage({ commandLineSize: 0xffffffff });
    expect(refusal({ kernel, append: 'x'.repeat(0x80000) })).toMatch(/COMMAND_LINE_TOO_LONG/);
  });
});

describe('an initramfs', () => {
  test.each([
    ['empty', new Uint8Array(512), /BAD_INITRD: .*empty/],
    ['text', new TextEncoder().encode('hello, this is no archive at all'), /BAD_INITRD: .*neither/],
    ['truncated inside a file', archive.subarray(0, 3000), /BAD_INITRD: .*truncated/],
    ['truncated at its trailer', archive.subarray(0, archive.length - 60), /BAD_INITRD: .*truncated/],
    ['corrupt in a header', change(archive, 54, 0x7a), /BAD_INITRD: .*corrupt/],
    ['corrupt in a name size, which points back', renamed('fffff000'), /BAD_INITRD: .*corrupt/],
    ['corrupt in a name size, which is huge', renamed('00100000'), /BAD_INITRD: .*corrupt/],
    ['corrupt in a field that is not asked for', change(archive, 20, 0x7a), /BAD_INITRD: .*corrupt/],
    ['gzip twice', Uint8Array.from(gzipSync(gzipSync(archive))), /BAD_INITRD: what .* unpacks to .*twice/],
    ['gzip of nothing', Uint8Array.from(gzipSync(Buffer.alloc(0))), /BAD_INITRD: what .* unpacks to .*empty/],
    ['gzip, truncated', Uint8Array.from(gzipSync(archive)).subarray(0, 100), /BAD_INITRD: .*gzip.*truncated/],
    ['gzip of something else', Uint8Array.from(gzipSync(Buffer.from('nothing'.repeat(40)))), /BAD_INITRD: .*neither/],
  ])('%s is refused', (_name, initrd, message) => {
    expect(refusal({ initrd })).toMatch(message);
  });
  test.each([
    ['an archive', archive],
    ['two archives with padding between', Uint8Array.from([...archive, ...new Uint8Array(64), ...archive])],
    ['gzip', Uint8Array.from(gzipSync(archive))],
    ['an archive with a compressed one behind it', Uint8Array.from([...archive, ...gzipSync(archive)])],
    ['xz, unpacked by the kernel alone', Uint8Array.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 1, 2, 3])],
  ])('%s is taken', (_name, initrd) => {
    expect(refusal({ initrd })).toBe('loaded');
  });
  test('lies at the top of memory, on a page, below the limit of the kernel', () => {
    const { segments } = linux(options({ initrd: archive }));
    const at = segments.find(({ bytes }) => bytes === archive)?.at as number;
    expect(at % 4096).toBe(0);
    expect(at + archive.length).toBeLessThanOrEqual(64 * MIB);
    expect(at + archive.length).toBeGreaterThan(64 * MIB - 4096);
  });
  test('a file that unpacks to more than memory is not unpacked to its end', () => {
    const initrd = Uint8Array.from(gzipSync(new Uint8Array(65 * MIB)));
    const gunzip = (packed: Uint8Array) => gunzipSync(packed, { maxOutputLength: 64 * MIB });
    expect(refusal({ initrd, gunzip })).toMatch(/BAD_INITRD: .*unpacks to more than the machine has.*--memory/);
  });
  test('too large for memory is refused, packed and unpacked', () => {
    const large = busyboxInitramfs(new Uint8Array(50 * MIB));
    expect(refusal({ initrd: large })).toMatch(/IMAGE_TOO_LARGE: .*--memory/);
    expect(refusal({ initrd: Uint8Array.from(gzipSync(busyboxInitramfs(new Uint8Array(80 * MIB)))) })).toMatch(
      /IMAGE_TOO_LARGE: .*unpacks to 81 MiB/,
    );
  });
});

test('the MP table adds up to zero and lists processor, buses, IOAPIC and the lines of the ISA bus', () => {
  const table = mpTable(0xf0000, { cpus: 2 });
  const sum = (bytes: Uint8Array) => bytes.reduce((a, b) => (a + b) & 0xff, 0);
  expect(sum(table.subarray(0, 16))).toBe(0);
  const view = new DataView(table.buffer);
  expect(view.getUint32(4, true)).toBe(0xf0010);
  expect(view.getUint16(16 + 4, true)).toBe(table.length - 16);
  expect(sum(table.subarray(16))).toBe(0);
  expect(view.getUint16(16 + 34, true)).toBe(2 + 2 + 1 + 15 + 2);
});

describe.each(['svm', 'vmx', 'vmx,unrestrictedGuest=0'])('entries under %s', (spec) => {
  test.each([
    [64, '6Hq'],
    [32, '3Hq'],
  ] as const)('the %i-bit entry finds zero page and command line by RSI', async (entry, text) => {
    let serial = '';
    const machine = await createMachine({
      backend: await findBackend(spec),
      memory: 64 * MIB,
      image: linux(options({ append: 'quiet', entry })),
      onSerial: (byte) => {
        serial += String.fromCharCode(byte);
      },
    });
    expect(await machine.run({ maxInstructions: 100_000 })).toEqual({ reason: 'debug-exit', status: 1 });
    expect(serial).toBe(text);
  });
});

test('tskvm run says what is wrong and leaves with 2', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'linux-'));
  const file = (name: string, bytes: Uint8Array): string => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };
  const kernel = file('vmlinuz', bzImage());
  const cases: [string[], RegExp][] = [
    [['--kernel', file('short', bzImage().subarray(0, 2000))], /short can't be loaded: .*truncated/],
    [['--kernel', kernel, '--initrd', file('junk', new Uint8Array(100).fill(65))], /junk is no sound initramfs/],
    [['--kernel', kernel, '--memory', '1M'], /vmlinuz needs .*--memory/],
    [['--kernel', kernel, '--linux-entry', '16'], /choose 32 or 64/],
  ];
  for (const [args, message] of cases) {
    const result = await tskvm(['run', ...args]);
    expect(result.stderr).toMatch(message);
    expect(result.status).toBe(2);
  }
  expect(await tskvm(['run', '--kernel', kernel, '--append', 'quiet'])).toMatchObject({ status: 1, stdout: '6Hq' });
}, 240_000);
