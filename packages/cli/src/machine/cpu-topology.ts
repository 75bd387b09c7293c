/**
 * What a machine monitor writes into the guest's CPUID besides features: one socket, a core per virtual processor, one thread a core.
 * Manual: SDM vol. 2 CPUID leaves 1, 4 and 0Bh; APM vol. 3 appendix E.3.2, E.4.7 and E.4.17.
 */
import type { CpuidEntry } from '@tskvm/core';

const HTT = 1 << 28;
const CMP_LEGACY = 1 << 1;

/** How one leaf changes. */
type Edit = (entry: CpuidEntry, id: number, cpus: number) => void;

/** Bits of an APIC ID that number the cores of a socket. */
const coreBits = (cpus: number): number => 32 - Math.clz32(cpus - 1);

const EDITS: ReadonlyMap<number, Edit> = new Map<number, Edit>([
  [
    1,
    (entry, id, cpus) => {
      entry.ebx = ((entry.ebx & 0xffff) | (cpus << 16) | (id << 24)) >>> 0;
      if (cpus > 1) entry.edx = (entry.edx | HTT) >>> 0;
    },
  ],
  [
    4,
    (entry, _id, cpus) => {
      if ((entry.eax & 0x1f) === 0) return;
      // The last level is shared by all cores.
      const sharing = ((entry.eax >>> 5) & 7) === 3 ? cpus - 1 : 0;
      entry.eax = ((entry.eax & 0x3fff) | (sharing << 14) | ((cpus - 1) << 26)) >>> 0;
    },
  ],
  [
    0xb,
    (entry, id, cpus) => {
      const level = [
        [0, 1, 0x100],
        [coreBits(cpus), cpus, 0x201],
      ][entry.index] ?? [0, 0, entry.index];
      [entry.eax, entry.ebx, entry.ecx] = level as [number, number, number];
      entry.edx = id;
    },
  ],
  [
    0x80000008,
    (entry, _id, cpus) => {
      entry.ecx = cpus > 1 ? (cpus - 1) | (coreBits(cpus) << 12) : 0;
    },
  ],
  [
    0x8000001d,
    (entry, _id, cpus) => {
      if ((entry.eax & 0x1f) === 0) return;
      const sharing = ((entry.eax >>> 5) & 7) === 3 ? cpus - 1 : 0;
      entry.eax = ((entry.eax & 0x3fff) | (sharing << 14)) >>> 0;
    },
  ],
  [
    0x8000001e,
    (entry, id) => {
      [entry.eax, entry.ebx, entry.ecx] = [id, id & 0xff, 0];
    },
  ],
]);

/** Leaf 80000001h ECX: AMD's processors say in it that several logical processors are cores. */
function markCores(entries: readonly CpuidEntry[], cpus: number): void {
  const isAmd = entries.find((e) => e.function === 0)?.ebx === 0x68747541;
  const extended = entries.find((e) => e.function === 0x80000001);
  if (isAmd && extended && cpus > 1) extended.ecx = (extended.ecx | CMP_LEGACY) >>> 0;
}

/** The entries for the virtual processor with this APIC ID; they are changed in place. */
export function withTopology(entries: CpuidEntry[], id: number, cpus: number): CpuidEntry[] {
  for (const entry of entries) EDITS.get(entry.function)?.(entry, id, cpus);
  markCores(entries, cpus);
  return entries;
}
