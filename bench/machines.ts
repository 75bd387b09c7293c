/** Machines that benchmarks watch from inside their process, and what such a process holds and spends. */
import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { Engine } from '@tskvm/emulator';
import { createMachine, firmware, type Machine } from 'tskvm';
import { linux } from '../packages/cli/src/machine/loaders/linux.ts';
import { BACKENDS, type Vendor } from './backends.ts';
import { assemble, root } from './peers.ts';

const MIB = 2 ** 20;
/** What lies in tskvm's memory in front of guest RAM: state, TLB, records. */
const PRIVATE_MIB = 64;
export const LINUX_MIB = 256;

export const linuxFile = (architecture: string, name: string): string => join(root, '.cache/linux', architecture, name);
export const hasLinux = (): boolean => existsSync(linuxFile('amd64', 'busybox'));

/** Debian's amd64 kernel. */
export function linuxMachine(vendor: Vendor, onSerial: (byte: number) => void): Promise<Machine> {
  const file = (name: string): Uint8Array => new Uint8Array(readFileSync(linuxFile('amd64', name)));
  const image = linux({
    kernel: file('vmlinuz'),
    kernelName: 'vmlinuz',
    initrd: file('initramfs.cpio'),
    append: 'console=ttyS0',
    memory: LINUX_MIB * MIB,
  });
  return createMachine({ backend: BACKENDS[vendor](), image, memory: LINUX_MIB * MIB, onSerial });
}

/** Larger than what V8 maps in one piece. */
export const KERNEL_MIB = 256;
/** One of bench/guests/kernels.asm, 32-bit. */
export function kernelMachine(vendor: Vendor, kernel: string, iterations: number): Promise<Machine> {
  const rom = assemble('kernels', [`KERNEL_${kernel}`, `ITERATIONS=${iterations}`]);
  return createMachine({ backend: BACKENDS[vendor](), image: firmware(rom, kernel), memory: KERNEL_MIB * MIB });
}

/** The processor's engine; it is in no public type. */
export const engineOf = (machine: Machine): Engine =>
  (machine.kvm.processor as unknown as { engine: Engine | null }).engine!;

const PAGE = 4096;
/** MiB of the first `mib` of a mapping that are in memory (proc(5), pagemap: bit 63 of each page's entry). */
function presentMib(pid: number, start: number, mib: number): number {
  const entries = Buffer.alloc(((mib * MIB) / PAGE) * 8);
  const file = openSync(`/proc/${pid}/pagemap`, 'r');
  const length = readSync(file, entries, 0, entries.length, (start / PAGE) * 8);
  closeSync(file);
  let pages = 0;
  for (let at = 7; at < length; at += 8) pages += entries[at]! >> 7;
  return (pages * PAGE) / MIB;
}

/** MiB that a process has resident beside guest RAM: in the mapping that holds it our own structures come first. */
export function residentBeside(pid: number, guestMib: number): number {
  const smaps = readFileSync(`/proc/${pid}/smaps`, 'utf8');
  const mappings = smaps.matchAll(/^([0-9a-f]+)-\S+ .*\nSize: +(\d+) kB[\s\S]*?^Rss: +(\d+) kB/gm);
  let beside = 0;
  for (const [, start, size, rss] of mappings) {
    const isRam = Number(size) / 1024 >= guestMib && Number(rss) > 0;
    beside += isRam ? presentMib(pid, Number.parseInt(start!, 16), PRIVATE_MIB) : Number(rss) / 1024;
  }
  return beside;
}
