/**
 * A Multiboot 1 loader for 32-bit ELF kernels, and for kernels that say in their header where they go, with one module and a command line.
 * Source: The Multiboot Specification, version 0.6.96, chapter 3; System V ABI, ELF32.
 */
import { UsageError } from '../errors.ts';
import type { LoadPlan } from './image.ts';

const HEADER_MAGIC = 0x1badb002;
const LOADER_MAGIC = 0x2badb002;
/** Offsets of the loader's structures in their area, which lies behind kernel and module. */
const MODULE_LIST = 0x200;
const MMAP = 0x300;
const STRINGS = 0x400;
const PAGE = 4096;

/** Flags word of the information structure. */
const INFO_MEMORY = 1;
const INFO_CMDLINE = 4;
const INFO_MODULES = 8;
const INFO_MMAP = 64;
const INFO_LOADER_NAME = 512;

interface Program {
  at: number;
  bytes: Uint8Array;
  memorySize: number;
}

/** What a header may demand: bits 15:0 of its flags. Modules stand at pages here, and there is always a memory map. */
const REQUIRES_PAGES = 1;
const REQUIRES_MEMORY = 2;
const REQUIRES_VIDEO = 4;
/** The address fields are valid. */
const HAS_ADDRESSES = 0x10000;

interface Header {
  at: number;
  flags: number;
}

function findHeader(bytes: Uint8Array): Header | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at + 12 <= Math.min(bytes.length, 8192); at += 4) {
    if (view.getUint32(at, true) !== HEADER_MAGIC) continue;
    const flags = view.getUint32(at + 4, true);
    if (((flags + view.getUint32(at + 8, true) + HEADER_MAGIC) & 0xffffffff) === 0) return { at, flags };
  }
  return undefined;
}

/** Is there a Multiboot header in the first 8192 bytes? */
export const isMultiboot = (bytes: Uint8Array): boolean => findHeader(bytes) !== undefined;

/** A loader must refuse what it can't give (Multiboot section 3.1.2). */
function checkFlags({ flags }: Header, name: string): void {
  const unknown = flags & 0xffff & ~(REQUIRES_PAGES | REQUIRES_MEMORY);
  if (unknown === 0) return;
  const what =
    (unknown & REQUIRES_VIDEO) !== 0 ? 'a video mode (flag 2)' : `what flag ${31 - Math.clz32(unknown)} means`;
  throw new UsageError(
    'BAD_KERNEL',
    `${name} can't be loaded: its Multiboot header demands ${what}, which this machine does not have. Build it without`,
  );
}

/** A kernel whose header says where it goes: header, load, load end, bss end and entry addresses. */
function readAddresses(bytes: Uint8Array, { at }: Header, name: string): { entry: number; programs: Program[] } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bad = (why: string): UsageError =>
    new UsageError('BAD_KERNEL', `${name} can't be loaded: the addresses in its Multiboot header ${why}`);
  if (at + 32 > bytes.length) throw bad('are truncated');
  const [header, load, loadEnd, bssEnd, entry] = [12, 16, 20, 24, 28].map((offset) =>
    view.getUint32(at + offset, true),
  );
  const from = at - (header - load);
  if (from < 0 || load > header) throw bad('begin in front of the file');
  const size = loadEnd === 0 ? bytes.length - from : loadEnd - load;
  if (size <= 0 || from + size > bytes.length) throw bad('speak of more than the file has: it is truncated');
  const memorySize = bssEnd === 0 ? size : bssEnd - load;
  if (memorySize < size) throw bad('end before they begin');
  return { entry, programs: [{ at: load, bytes: bytes.subarray(from, from + size), memorySize }] };
}

/** PT_LOAD segments and the entry of an ELF32 file for x86. */
function readElf32(bytes: Uint8Array, name: string): { entry: number; programs: Program[] } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bad = (why: string): UsageError =>
    new UsageError('BAD_KERNEL', `${name} can't be loaded: ${why}. Give a 32-bit ELF file with a Multiboot header`);
  if (bytes.length < 52 || view.getUint32(0) !== 0x7f454c46) throw bad('it is not an ELF file');
  if (bytes[4] !== 1 || view.getUint16(18, true) !== 3) throw bad('it is not a 32-bit x86 ELF file');
  const entry = view.getUint32(24, true);
  const table = view.getUint32(28, true);
  const entrySize = view.getUint16(42, true);
  const count = view.getUint16(44, true);
  if (entrySize < 32 || table + entrySize * count > bytes.length) throw bad('its program headers are truncated');
  const programs: Program[] = [];
  for (let i = 0; i < count; i++) {
    const at = table + i * entrySize;
    if (view.getUint32(at, true) !== 1) continue;
    const offset = view.getUint32(at + 4, true);
    const fileSize = view.getUint32(at + 16, true);
    const memorySize = view.getUint32(at + 20, true);
    if (offset + fileSize > bytes.length || fileSize > memorySize) throw bad('a segment is truncated');
    programs.push({ at: view.getUint32(at + 12, true), bytes: bytes.subarray(offset, offset + fileSize), memorySize });
  }
  if (programs.length === 0) throw bad('it has nothing to load');
  return { entry, programs };
}

export interface MultibootOptions {
  kernel: Uint8Array;
  kernelName: string;
  /** Module (the environment file of kvm-unit-tests). */
  module?: Uint8Array;
  /** Arguments after the kernel's name. */
  append?: string;
  /** Bytes of RAM. */
  memory: number;
}

/** Lays out kernel, module and information structure. Throws {@link UsageError} for what can't be loaded. */
export function multiboot(options: MultibootOptions): LoadPlan {
  const { kernel, kernelName, memory } = options;
  const header = findHeader(kernel);
  if (header === undefined) {
    throw new UsageError(
      'BAD_KERNEL',
      `${kernelName} has no Multiboot header; --kernel takes Multiboot 1 kernels and bzImages`,
    );
  }
  checkFlags(header, kernelName);
  const hasAddresses = (header.flags & HAS_ADDRESSES) !== 0;
  const { entry, programs } = hasAddresses ? readAddresses(kernel, header, kernelName) : readElf32(kernel, kernelName);
  let top = 0;
  for (const program of programs) top = Math.max(top, program.at + program.memorySize);
  const moduleAt = Math.ceil(top / PAGE) * PAGE;
  const infoAt = Math.ceil((moduleAt + (options.module?.length ?? 0)) / PAGE) * PAGE;
  const info = information(options, moduleAt, infoAt);
  const needed = Math.max(...info.map(({ at, bytes }) => at + bytes.length));
  if (needed > memory) {
    throw new UsageError(
      'IMAGE_TOO_LARGE',
      `${kernelName} needs ${Math.ceil(needed / 2 ** 20)} MiB and the machine has ${Math.floor(memory / 2 ** 20)}: give a larger --memory`,
    );
  }
  const segments = programs.map(({ at, bytes }) => ({ at, bytes }));
  if (options.module) segments.push({ at: moduleAt, bytes: options.module });
  segments.push(...info);
  return { segments, start: { kind: 'protected32', eip: entry, eax: LOADER_MAGIC, ebx: infoAt } };
}

function information(options: MultibootOptions, moduleAt: number, infoAt: number): LoadPlan['segments'] {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);
  const commandLine = encode(`${options.kernelName} ${options.append ?? ''}`.trim());
  const loaderName = encode('tskvm');
  const info = new Uint8Array(120);
  const view = new DataView(info.buffer);
  const modules = options.module ? 1 : 0;
  view.setUint32(0, INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER_NAME | (modules ? INFO_MODULES : 0), true);
  view.setUint32(4, 640, true);
  view.setUint32(8, Math.floor((options.memory - 2 ** 20) / 1024), true);
  view.setUint32(16, infoAt + STRINGS, true);
  view.setUint32(20, modules, true);
  view.setUint32(24, infoAt + MODULE_LIST, true);
  view.setUint32(44, 48, true);
  view.setUint32(48, infoAt + MMAP, true);
  view.setUint32(64, infoAt + STRINGS + commandLine.length, true);
  const list = new Uint8Array(16);
  new DataView(list.buffer).setUint32(0, moduleAt, true);
  new DataView(list.buffer).setUint32(4, moduleAt + (options.module?.length ?? 0), true);
  const map = new Uint8Array(48);
  const mapView = new DataView(map.buffer);
  const ranges = [
    [0, 0xa0000],
    [0x100000, options.memory - 0x100000],
  ];
  ranges.forEach(([base, length], i) => {
    mapView.setUint32(i * 24, 20, true);
    mapView.setBigUint64(i * 24 + 4, BigInt(base), true);
    mapView.setBigUint64(i * 24 + 12, BigInt(length), true);
    mapView.setUint32(i * 24 + 20, 1, true);
  });
  const strings = new Uint8Array(commandLine.length + loaderName.length);
  strings.set(commandLine);
  strings.set(loaderName, commandLine.length);
  return [
    { at: infoAt, bytes: info },
    { at: infoAt + MODULE_LIST, bytes: list },
    { at: infoAt + MMAP, bytes: map },
    { at: infoAt + STRINGS, bytes: strings },
  ];
}
