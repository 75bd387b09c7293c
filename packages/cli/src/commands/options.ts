/** Options that run, modes and trace share, and what they mean: files read, sizes parsed, a machine's options made. */
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { Command } from 'commander';
import { findBackend } from '../backends.ts';
import { expandImage } from '../guests/image.ts';
import { GUEST_IMAGES } from '../guests/images.ts';
import { parseCpu } from '../machine/cpu.ts';
import { memoryImage } from '../machine/devices/ide.ts';
import { UsageError } from '../machine/errors.ts';
import { bootSector, firmware, flatBinary, type LoadPlan } from '../machine/loaders/image.ts';
import { isLinux, LINUX_DEFAULT_MEMORY, linux } from '../machine/loaders/linux.ts';
import { multiboot } from '../machine/loaders/multiboot.ts';
import type { MachineOptions } from '../machine/machine-options.ts';

/** Where Debian's package seabios puts its image. */
export const SEABIOS = '/usr/share/seabios/bios.bin';
/** Where Debian's package grub-rescue-pc puts its image. */
const GRUB = '/usr/lib/grub-rescue/grub-rescue-cdrom.iso';
/** The embedded guest that can be named in an image's place. */
const EMBEDDED = 'hello';
const MIB = 2 ** 20;
const DEFAULT_MEMORY = 64 * MIB;

/** As commander hands them over. */
export interface RunFlags {
  load?: string;
  bios?: string;
  disk?: string;
  cdrom?: string;
  kernel?: string;
  initrd?: string;
  append?: string;
  linuxEntry?: string;
  memory?: string;
  cpus?: string;
  quantum?: string;
  cpu?: string;
  backend?: string[];
  maxInstructions?: string;
  engine?: string;
  json?: boolean;
  input?: string;
  until?: string;
  debugcon?: boolean;
}

/** Behind the examples of commands that run a guest. */
export const INPUT_HELP = `
--input is typed on the serial console: \\r is Enter; \\n, \\t, \\\\ and \\xNN work
too. --until waits for what the guest answers, so that a script can go on:
  tskvm run --cdrom ${GRUB} --input c --until 'grub> '
"hello" is an embedded boot sector (unless there is a file of this name); give
the path of your own image in its place.`;

const collect = (value: string, list: string[] | undefined): string[] => [...(list ?? []), value];

/** Adds the shared options to a command. */
export function addRunOptions(command: Command): Command {
  return command
    .argument(
      '[image]',
      'a boot sector (512 bytes that end in 55 AA), loaded at 7C00; hello: the embedded one; behind --load, a flat binary',
    )
    .option(
      '--load <addr[:entry]>',
      'load a flat binary at a physical address and start it in real mode at entry (default: addr)',
    )
    .option('--bios <file>', `start firmware at the reset vector (SeaBIOS: ${SEABIOS})`)
    .option('--disk <file>', 'a disk image; without --bios SeaBIOS is looked for where Debian puts it')
    .option('--cdrom <file>', 'a CD-ROM image; likewise')
    .option('--kernel <file>', 'a Linux kernel (bzImage) or a Multiboot 1 kernel (32-bit ELF)')
    .option('--initrd <file>', "Linux's initramfs, or a module for a Multiboot kernel")
    .option('--append <text>', "the kernel's command line")
    .option('--linux-entry <bits>', "Linux's 32-bit or 64-bit entry (default: 64 where the kernel has one)")
    .option('--memory <size>', 'guest RAM, e.g. 16M or 1G (default 64M; 256M for Linux)')
    .option('--cpus <n>', 'virtual processors (default 1)')
    .option('--quantum <n>', 'instructions that a virtual processor runs before the next gets its turn (default 20000)')
    .option(
      '--cpu <model[,+feature,-feature…]>',
      "what the guest's CPUID says: epyc, xeon, qemu64, host (default) or max; see tskvm cpus",
    )
    .option(
      '--backend <name[,param=value…]>',
      'svm, vmx, a path or a package; may be given several times where a command compares',
      collect,
    )
    .option('--max-instructions <n>', 'stop after so many instructions')
    .option('--engine <name>', 'translate (default), interpret or evaluate')
    .option('--input <text>', 'type this on the serial console; \\r is Enter (see below)')
    .option('--until <text>', 'stop with status 0 as soon as the serial console has shown this text')
    .option('--debugcon', 'show what the firmware writes to its debug ports (0x402, 0xE9) on stderr')
    .option('--json', 'print the result as JSON (see below)');
}

/** `16M`, `1G`, `65536`, `512K`. */
export function parseSize(text: string, what: string): number {
  const match = /^(\d+|0x[0-9a-f]+)\s*([kmg])?i?b?$/i.exec(text);
  if (!match)
    throw new UsageError('BAD_SIZE', `${what} ${text}: give a number with K, M or G behind it, for example 64M`);
  const unit = { k: 2 ** 10, m: MIB, g: 2 ** 30 }[(match[2] ?? '').toLowerCase()] ?? 1;
  const size = Number(match[1]) * unit;
  if (!Number.isSafeInteger(size)) throw new UsageError('BAD_SIZE', `${what} ${text}: no machine has so much; try 64M`);
  return size;
}
/** A whole number, decimal or hexadecimal, at least `min`. */
export function parseNumber(text: string, what: string, min = 0): number {
  const value = /^(0x[0-9a-f]+|\d+(_\d+)*)$/i.test(text) ? Number(text.replaceAll('_', '')) : Number.NaN;
  if (!Number.isSafeInteger(value) || value < min)
    throw new UsageError('BAD_NUMBER', `${what} ${text}: give a whole number of at least ${min}`);
  return value;
}
function parseAddress(text: string, what: string): number {
  const value = /^(0x)?[0-9a-f]+$/i.test(text) ? Number.parseInt(text.replace(/^0x/i, ''), 16) : Number.NaN;
  if (!Number.isSafeInteger(value))
    throw new UsageError('BAD_ADDRESS', `${what} ${text}: give a hexadecimal address, for example 0x7c00`);
  return value;
}

/** What a pipe or a device may give at most: some never end. */
const MOST_PIPED = 512 * MIB;
const CHUNK = 65536;

function readToEnd(descriptor: number): Buffer {
  const parts: Buffer[] = [];
  for (let total = 0; total <= MOST_PIPED; ) {
    const part = Buffer.allocUnsafe(CHUNK);
    const length = readSync(descriptor, part);
    if (length === 0) return Buffer.concat(parts);
    parts.push(part.subarray(0, length));
    total += length;
  }
  throw new Error(`it does not end within ${MOST_PIPED / MIB} MiB; give a file`);
}
function readPiped(file: string): Buffer {
  const descriptor = openSync(file, 'r');
  try {
    return readToEnd(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** Reads a file or says what is wrong with it. */
export function readImage(file: string, what: string): Uint8Array {
  if (!existsSync(file)) {
    const own = what === 'image' ? '; give the path of yours, or hello for the embedded guest' : '';
    const hint = file === SEABIOS ? '; install the Debian package seabios, or name another image by --bios' : own;
    throw new UsageError('FILE_NOT_FOUND', `${what} ${file}: there is no such file${hint}`);
  }
  const kind = statSync(file);
  if (kind.isDirectory())
    throw new UsageError('FILE_UNREADABLE', `${what} ${file} can't be read: it is a folder; give a file in it`);
  try {
    const bytes = kind.isFile() ? readFileSync(file) : readPiped(file);
    if (bytes.length === 0)
      throw new UsageError('FILE_EMPTY', `${what} ${file} is empty: build it first, or give another`);
    return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError('FILE_UNREADABLE', `${what} ${file} can't be read: ${(error as Error).message}`);
  }
}

const WRITE_PROBLEMS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such folder; make it first',
  ENOTDIR: 'there is no such folder; make it first',
  EISDIR: 'it is a folder; give a file in it',
  EACCES: 'it may not be written by you',
  EROFS: 'its file system may only be read',
  ENOSPC: 'there is no space left',
};
/** Writes a file or says what is in the way. */
export function writing(file: string, what: string, write: () => void): void {
  try {
    write();
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    throw new UsageError('FILE_UNWRITABLE', `${what} ${file} can't be written: ${WRITE_PROBLEMS[code] ?? message}`);
  }
}

/** A kernel by what its file is: Linux's bzImage or Multiboot. */
function kernelPlan(kernel: Uint8Array, file: string, flags: RunFlags, memory: number | undefined): LoadPlan {
  const kernelName = basename(file);
  const initrd = flags.initrd ? readImage(flags.initrd, 'initrd') : undefined;
  const common = { kernel, kernelName, append: flags.append };
  if (!isLinux(kernel)) {
    if (flags.linuxEntry)
      throw new UsageError('NOT_LINUX', `--linux-entry is for Linux kernels; ${kernelName} is none`);
    return multiboot({ ...common, module: initrd, memory: memory ?? DEFAULT_MEMORY });
  }
  const bytes = memory ?? LINUX_DEFAULT_MEMORY;
  return linux({
    ...common,
    initrd,
    initrdName: flags.initrd && basename(flags.initrd),
    gunzip: (packed) => gunzipSync(packed, { maxOutputLength: bytes }),
    memory: bytes,
    cpus: cpusOf(flags),
    entry: linuxEntry(flags.linuxEntry),
  });
}
function linuxEntry(text: string | undefined): 32 | 64 | undefined {
  if (text === undefined) return undefined;
  if (text === '32' || text === '64') return text === '32' ? 32 : 64;
  throw new UsageError('BAD_NUMBER', `--linux-entry ${text}: choose 32 or 64`);
}
const cpusOf = (flags: RunFlags): number => (flags.cpus === undefined ? 1 : parseNumber(flags.cpus, '--cpus', 1));

/** The image that the flags name. Exactly one kind. */
function plan(image: string | undefined, flags: RunFlags, memory: number | undefined): LoadPlan {
  const ways = [flags.load && '--load', flags.bios && '--bios', flags.kernel && '--kernel'].filter(Boolean);
  if (ways.length > 1) throw new UsageError('TWO_IMAGES', `${ways.join(' and ')} exclude each other: give one`);
  if (flags.kernel) {
    if (image) throw new UsageError('TWO_IMAGES', `${image} and --kernel exclude each other: give one`);
    return kernelPlan(readImage(flags.kernel, 'kernel'), flags.kernel, flags, memory);
  }
  for (const [option, given] of [
    ['--initrd', flags.initrd],
    ['--append', flags.append],
    ['--linux-entry', flags.linuxEntry],
  ]) {
    if (given === undefined) continue;
    throw new UsageError('NO_KERNEL', `${option} belongs to a kernel: give --kernel FILE, or leave ${option} out`);
  }
  if (flags.load) {
    if (!image)
      throw new UsageError('NO_IMAGE', '--load needs the file behind the options: tskvm run --load 0x1000 FILE');
    const [address, entry] = flags.load.split(':');
    const at = parseAddress(address, '--load');
    return flatBinary(readImage(image, 'image'), at, entry === undefined ? at : parseAddress(entry, '--load entry'));
  }
  if (image && flags.bios)
    throw new UsageError('TWO_IMAGES', `${image} and --bios exclude each other: firmware boots from --disk or --cdrom`);
  if (image === EMBEDDED && !existsSync(image)) return bootSector(expandImage(GUEST_IMAGES.hello), image);
  if (image) return bootSector(readImage(image, 'image'), image);
  if (flags.bios || flags.disk || flags.cdrom) {
    const file = flags.bios ?? SEABIOS;
    return firmware(readImage(file, 'firmware'), file);
  }
  throw new UsageError(
    'NO_IMAGE',
    'nothing to run: give a boot sector (or hello, the embedded one), --load ADDR FILE, --bios FILE, --disk FILE, --cdrom FILE or --kernel FILE',
  );
}

/** The text of `--cpu` if its names are known; what it means depends on the backend. */
function checkedCpu(text: string): string {
  parseCpu(text);
  return text;
}

/** Everything of a machine but its backend. */
export type CommonOptions = Omit<MachineOptions, 'backend'>;

const isEngine = (name: string): name is NonNullable<MachineOptions['engine']> =>
  name === 'translate' || name === 'interpret' || name === 'evaluate';

export function machineOptions(image: string | undefined, flags: RunFlags): CommonOptions {
  const wanted = flags.memory === undefined ? undefined : parseSize(flags.memory, '--memory');
  if (flags.engine !== undefined && !isEngine(flags.engine)) {
    throw new UsageError('BAD_ENGINE', `engine ${flags.engine}: choose translate, interpret or evaluate`);
  }
  const loaded = plan(image, flags, wanted);
  return {
    image: loaded,
    memory: wanted ?? loaded.memory ?? DEFAULT_MEMORY,
    cpus: cpusOf(flags),
    quantum: flags.quantum === undefined ? undefined : parseNumber(flags.quantum, '--quantum', 1),
    cpu: flags.cpu === undefined ? undefined : checkedCpu(flags.cpu),
    disks: flags.disk ? [memoryImage(readImage(flags.disk, 'disk').slice())] : [],
    cdrom: flags.cdrom ? { ...memoryImage(readImage(flags.cdrom, 'CD-ROM')), write: undefined } : undefined,
    engine: flags.engine as MachineOptions['engine'],
  };
}

/** The backends that `--backend` names, or the defaults. */
export async function backendSpecs(flags: RunFlags, defaults: readonly string[]): Promise<string[]> {
  const specs = flags.backend ?? [...defaults];
  for (const spec of specs) await findBackend(spec);
  return specs;
}

/** The backend of a command that runs one machine. */
export async function backendSpec(flags: RunFlags): Promise<string> {
  const specs = await backendSpecs(flags, ['svm']);
  if (specs.length > 1) {
    throw new UsageError('ONE_BACKEND', `this command takes one --backend; modes and tour compare several`);
  }
  return specs[0];
}

/** `\r`, `\n`, `\t`, `\\`, `\xNN` in `--input`. */
export function unescapeInput(text: string): Uint8Array {
  const plain = text.replace(/\\(r|n|t|\\|x[0-9a-fA-F]{2})/g, (_, code: string) => {
    if (code.startsWith('x')) return String.fromCharCode(Number.parseInt(code.slice(1), 16));
    return { r: '\r', n: '\n', t: '\t', '\\': '\\' }[code] as string;
  });
  return Uint8Array.from(plain, (character) => character.charCodeAt(0) & 0xff);
}
