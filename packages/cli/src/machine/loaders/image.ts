/**
 * Images that a machine can start from, each as a plan: bytes to put into guest memory and the state in which the boot processor begins.
 * Boot sector: IBM PC/AT convention (55AA at offset 510, loaded at 7C00). Firmware: the reset vector.
 */
import { UsageError } from '../errors.ts';

/** Where the boot processor begins. */
export type StartState =
  /** The reset state as it is: F000:FFF0. */
  | { kind: 'reset' }
  /** Real mode at CS:IP with DL set. */
  | { kind: 'real'; cs: number; ip: number; dl: number }
  /** Flat 32-bit protected mode, paging off (Multiboot; Linux's 32-bit entry, which wants a GDT in memory). */
  | { kind: 'protected32'; eip: number; eax: number; ebx: number; esi?: number; gdt?: StartGdt }
  /** Long mode with the loader's page tables (Linux's 64-bit entry). */
  | { kind: 'long64'; rip: number; rsi: number; cr3: number; gdt: StartGdt };

/** A descriptor table in guest memory and the selectors that are loaded from it. */
export interface StartGdt {
  base: number;
  limit: number;
  code: number;
  data: number;
}

export interface LoadPlan {
  /** [guest physical address, bytes]. */
  segments: { at: number; bytes: Uint8Array }[];
  /** Firmware: an image whose end stands below 4 GiB and, its last 128 KiB, below 1 MiB. */
  rom?: Uint8Array;
  start: StartState;
  /** It expects what firmware sets up before it starts a kernel (MTRRs). */
  afterFirmware?: boolean;
  /** Bytes of RAM for which it was laid out, where that matters. */
  memory?: number;
}

const BOOT_SECTOR_AT = 0x7c00;
const hex = (value: number): string => `0x${value.toString(16)}`;

/** A boot sector: 512 bytes or more whose bytes 510 and 511 are 55 AA. `name` is for messages. */
export function bootSector(bytes: Uint8Array, name = 'the image'): LoadPlan {
  if (bytes.length < 512 || bytes[510] !== 0x55 || bytes[511] !== 0xaa) {
    throw new UsageError(
      'IMAGE_NOT_BOOTABLE',
      `${name} is not bootable: a boot sector has 512 bytes and ends in 55 AA. A flat binary is loaded by --load ADDRESS (flatBinary), firmware by --bios (firmware)`,
    );
  }
  return {
    segments: [{ at: BOOT_SECTOR_AT, bytes: bytes.subarray(0, 512) }],
    start: { kind: 'real', cs: 0, ip: BOOT_SECTOR_AT, dl: 0x80 },
  };
}

/** A flat binary at a physical address; execution begins in real mode at `entry` (default: the address), which must lie below 1 MiB. */
export function flatBinary(bytes: Uint8Array, at: number, entry = at): LoadPlan {
  if (entry > 0xfffff) {
    throw new UsageError('BAD_ENTRY', `entry ${hex(entry)} is not reachable in real mode: choose one below 0x100000`);
  }
  const cs = entry < 0x10000 ? 0 : (entry >> 4) & 0xf000;
  return { segments: [{ at, bytes }], start: { kind: 'real', cs, ip: entry - cs * 16, dl: 0 } };
}

/** Firmware: up to 16 MiB whose last byte stands at FFFFFFFF. */
export function firmware(bytes: Uint8Array, name = 'the firmware'): LoadPlan {
  if (bytes.length === 0 || bytes.length % 4096 !== 0 || bytes.length > 16 << 20) {
    throw new UsageError(
      'BAD_FIRMWARE',
      `${name} has ${bytes.length} bytes: a firmware image has a multiple of 4096 and at most 16 MiB`,
    );
  }
  return { segments: [], rom: bytes, start: { kind: 'reset' } };
}
