/**
 * A loader for Linux kernels (bzImage), by the 64-bit or the 32-bit entry of the boot protocol.
 * Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.
 */
import { UsageError } from '../errors.ts';
import type { LoadPlan, StartState } from './image.ts';
import { checkInitramfs } from './initramfs.ts';
import { checkLinux, describeForeign, type SetupHeader } from './linux-header.ts';
import { mpTable } from './mp-table.ts';

const MIB = 2 ** 20;
const PAGE = 4096;

/** Where the loader's own structures stand; below 1 MiB, as boot loaders put them. */
const GDT_AT = 0x1000;
const PAGE_TABLES_AT = 0x2000;
const BOOT_PARAMS_AT = 0x10000;
const COMMAND_LINE_AT = 0x20000;
const EBDA_AT = 0x9fc00;
const BIOS_AT = 0xf0000;
const HIGH_MEMORY = 0x100000;

/** Offsets in struct boot_params (zero-page.rst) and in the setup header at 0x1F1. */
const SCREEN_INFO = { mode: 6, columns: 7, lines: 14, isVga: 15, points: 16 } as const;
const E820_ENTRIES = 0x1e8;
const E820_TABLE = 0x2d0;
const SETUP_HEADER = 0x1f1;
const TYPE_OF_LOADER = 0x210;
const RAMDISK_IMAGE = 0x218;
const RAMDISK_SIZE = 0x21c;
const VIDEO_MODE = 0x1fa;
const CODE32_START = 0x214;
const CMD_LINE_PTR = 0x228;
const UNDEFINED_LOADER = 0xff;
const NORMAL_VIDEO = 0xffff;
/** The 64-bit entry stands behind the 32-bit one. */
const ENTRY_64 = 0x200;

const E820_RAM = 1;
const E820_RESERVED = 2;
/** __BOOT_CS and __BOOT_DS, which the protocol demands. */
const BOOT_CS = 0x10;
const BOOT_DS = 0x18;

export interface LinuxOptions {
  kernel: Uint8Array;
  kernelName: string;
  /** An initramfs or initial RAM disk. */
  initrd?: Uint8Array;
  initrdName?: string;
  /** Unpacks gzip, to check a compressed initramfs. */
  gunzip?: (bytes: Uint8Array) => Uint8Array;
  /** The kernel's command line. */
  append?: string;
  /** Bytes of RAM. */
  memory: number;
  cpus?: number;
  /** Which entry: 64 needs a kernel that has one (the default then). */
  entry?: 32 | 64;
}

/** Is this meant for {@link linux}: a bzImage, or a kernel of another kind that it names in its refusal. */
export const isLinux = (bytes: Uint8Array): boolean =>
  (bytes.length >= 0x206 && String.fromCharCode(...bytes.subarray(0x202, 0x206)) === 'HdrS') ||
  describeForeign(bytes) !== undefined;

/** RAM that a kernel needs at least, to choose a default: what it takes to unpack itself, its initramfs and room to work. */
export const LINUX_DEFAULT_MEMORY = 256 * MIB;

/** Lays out kernel, initramfs, zero page, command line and MP table. Throws {@link UsageError} for what can't be loaded. */
export function linux(options: LinuxOptions): LoadPlan {
  const header = checkLinux(options.kernel, options.kernelName);
  const entry = options.entry ?? (header.has64 ? 64 : 32);
  if (entry === 64 && !header.has64) {
    throw new UsageError(
      'NO_ENTRY_64',
      `${options.kernelName} has no 64-bit entry: it is a 32-bit kernel; leave --linux-entry out`,
    );
  }
  const kernelAt = placeKernel(options, header);
  const commandLine = encodeCommandLine(options, header);
  const initrdAt = placeInitrd(options, header, kernelAt + header.initSize);
  const segments = [
    { at: kernelAt, bytes: header.payload },
    { at: BOOT_PARAMS_AT, bytes: bootParams(options, header, kernelAt, initrdAt) },
    { at: COMMAND_LINE_AT, bytes: commandLine },
    { at: 0x400, bytes: biosData() },
    { at: BIOS_AT, bytes: mpTable(BIOS_AT, { cpus: options.cpus ?? 1 }) },
    { at: GDT_AT, bytes: gdt(entry) },
  ];
  if (options.initrd) segments.push({ at: initrdAt, bytes: options.initrd });
  if (entry === 64) segments.push({ at: PAGE_TABLES_AT, bytes: identityTables() });
  return { segments, start: startState(entry, kernelAt), afterFirmware: true, memory: options.memory };
}

function startState(entry: 32 | 64, kernelAt: number): StartState {
  const tables = { base: GDT_AT, limit: 0x1f, code: BOOT_CS, data: BOOT_DS };
  if (entry === 64) {
    return { kind: 'long64', rip: kernelAt + ENTRY_64, rsi: BOOT_PARAMS_AT, cr3: PAGE_TABLES_AT, gdt: tables };
  }
  return { kind: 'protected32', eip: kernelAt, eax: 0, ebx: 0, esi: BOOT_PARAMS_AT, gdt: tables };
}

const tooLarge = (message: string): UsageError => new UsageError('IMAGE_TOO_LARGE', message);
const mib = (bytes: number): number => Math.ceil(bytes / MIB);

/** The preferred address: a kernel that is loaded below moves itself there, whether it is relocatable or not. */
function placeKernel({ kernelName, memory }: LinuxOptions, header: SetupHeader): number {
  const needed = header.preferred + header.initSize;
  if (needed <= memory) return header.preferred;
  throw tooLarge(
    `${kernelName} needs ${mib(needed)} MiB to unpack itself and the machine has ${Math.floor(memory / MIB)}: give a larger --memory, for example ${mib(needed) + 64}M`,
  );
}

/** As high as the protocol lets, so that the kernel below can grow. 0 without an initramfs. */
function placeInitrd(options: LinuxOptions, header: SetupHeader, above: number): number {
  const { initrd, memory } = options;
  if (!initrd) return 0;
  const name = options.initrdName ?? 'the initramfs';
  const unpacked = checkInitramfs({ bytes: initrd, name, gunzip: options.gunzip });
  if (initrd.length + unpacked > memory) {
    throw tooLarge(
      `${name} unpacks to ${mib(unpacked)} MiB and the machine has ${Math.floor(memory / MIB)}: give a larger --memory`,
    );
  }
  const top = Math.min(memory, header.initrdMax + 1);
  const at = Math.floor((top - initrd.length) / PAGE) * PAGE;
  if (at >= above) return at;
  if (memory <= header.initrdMax) {
    throw tooLarge(
      `${name} (${mib(initrd.length)} MiB) and ${options.kernelName} need ${mib(above + initrd.length)} MiB and the machine has ${Math.floor(memory / MIB)}: give a larger --memory`,
    );
  }
  throw tooLarge(
    `${name} has ${mib(initrd.length)} MiB; ${options.kernelName} takes an initramfs only below ${mib(header.initrdMax)} MiB, which leaves ${Math.max(0, Math.floor((top - above) / MIB))} MiB`,
  );
}

function encodeCommandLine({ append = '', kernelName }: LinuxOptions, header: SetupHeader): Uint8Array {
  const bytes = new TextEncoder().encode(`${append}\0`);
  // Whatever the header says, the EBDA comes behind it.
  const most = Math.min(header.commandLineSize, EBDA_AT - COMMAND_LINE_AT - 1);
  if (bytes.length - 1 > most) {
    throw new UsageError(
      'COMMAND_LINE_TOO_LONG',
      `--append has ${bytes.length - 1} bytes; ${kernelName} takes at most ${most}`,
    );
  }
  return bytes;
}

function bootParams(options: LinuxOptions, header: SetupHeader, kernelAt: number, initrdAt: number): Uint8Array {
  const page = new Uint8Array(PAGE);
  const view = new DataView(page.buffer);
  page.set(header.bytes, SETUP_HEADER);
  page[SCREEN_INFO.mode] = 3;
  page[SCREEN_INFO.columns] = 80;
  page[SCREEN_INFO.lines] = 25;
  page[SCREEN_INFO.isVga] = 1;
  view.setUint16(SCREEN_INFO.points, 16, true);
  page[TYPE_OF_LOADER] = UNDEFINED_LOADER;
  view.setUint16(VIDEO_MODE, NORMAL_VIDEO, true);
  view.setUint32(CODE32_START, kernelAt, true);
  view.setUint32(RAMDISK_IMAGE, initrdAt, true);
  view.setUint32(RAMDISK_SIZE, options.initrd?.length ?? 0, true);
  view.setUint32(CMD_LINE_PTR, COMMAND_LINE_AT, true);
  const map = memoryMap(options.memory);
  page[E820_ENTRIES] = map.length;
  map.forEach(([start, end, type], i) => {
    const at = E820_TABLE + i * 20;
    view.setBigUint64(at, BigInt(start), true);
    view.setBigUint64(at + 8, BigInt(end - start), true);
    view.setUint32(at + 16, type, true);
  });
  return page;
}

/** [start, end, type]: what a PC's firmware reports by INT 15h E820. */
const memoryMap = (memory: number): [number, number, number][] => [
  [0, EBDA_AT, E820_RAM],
  [EBDA_AT, 0xa0000, E820_RESERVED],
  [BIOS_AT, HIGH_MEMORY, E820_RESERVED],
  [HIGH_MEMORY, memory, E820_RAM],
];

/** The BIOS data area's words that kernels read: COM1, the EBDA's segment, KiB of conventional memory. */
function biosData(): Uint8Array {
  const bytes = new Uint8Array(0x100);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 0x3f8, true);
  view.setUint16(0x0e, EBDA_AT >> 4, true);
  view.setUint16(0x13, EBDA_AT >> 10, true);
  return bytes;
}

/** Flat 4 GiB segments at selectors 10h and 18h. */
function gdt(entry: 32 | 64): Uint8Array {
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(BOOT_CS, entry === 64 ? 0x00af9b000000ffffn : 0x00cf9b000000ffffn, true);
  view.setBigUint64(BOOT_DS, 0x00cf93000000ffffn, true);
  return bytes;
}

/** Four-level tables that map the low 4 GiB to themselves in 2 MiB pages. */
function identityTables(): Uint8Array {
  const bytes = new Uint8Array(6 * PAGE);
  const view = new DataView(bytes.buffer);
  const PRESENT_WRITABLE = 3n;
  const LARGE = 0x80n;
  view.setBigUint64(0, BigInt(PAGE_TABLES_AT + PAGE) | PRESENT_WRITABLE, true);
  for (let i = 0; i < 4; i++) {
    view.setBigUint64(PAGE + i * 8, BigInt(PAGE_TABLES_AT + (2 + i) * PAGE) | PRESENT_WRITABLE, true);
  }
  for (let i = 0; i < 2048; i++) {
    view.setBigUint64(2 * PAGE + i * 8, (BigInt(i) << 21n) | LARGE | PRESENT_WRITABLE, true);
  }
  return bytes;
}
