/** Machines that benchmarks watch from inside their process, and what such a process holds and spends. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Engine } from '@tskvm/emulator';
import { createMachine, firmware, type Machine } from 'tskvm';
import { linux } from '../packages/cli/src/machine/loaders/linux.ts';
import { BACKENDS, type Vendor } from './backends.ts';
import { assemble, root } from './peers.ts';

const MIB = 2 ** 20;
/** What lies in tskvm's memory beside guest RAM: state, TLB, records. */
export const PRIVATE_MIB = 64;
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

/** MiB that a process has resident, without the part of the largest mapping (guest RAM's) that is guest RAM. */
export function residentBeside(pid: number, guestMib: number): number {
  const mappings = readFileSync(`/proc/${pid}/smaps`, 'utf8').matchAll(/^Size: +(\d+) kB[\s\S]*?^Rss: +(\d+) kB/gm);
  const sizes = [...mappings].map(([, size, rss]) => ({ size: Number(size) / 1024, rss: Number(rss) / 1024 }));
  const all = sizes.reduce((sum, { rss }) => sum + rss, 0);
  const ram = sizes.filter(({ size }) => size >= guestMib).reduce((sum, { rss }) => sum + rss, 0);
  return all - Math.max(0, ram - PRIVATE_MIB);
}
