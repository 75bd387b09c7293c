/** What both kinds of random programs share: where things lie, random numbers, descriptors, the shape of a program. */

/** Where the tables lie. The driver writes them, so that no case sees what another has done to them. */
export const LAYOUT = {
  next: 0x500,
  idt: 0x1000,
  tss: 0x2000,
  ldt: 0x3800,
  gdt: 0x4000,
  /** Stacks of rings 0 to 3 for exceptions, top first. */
  stacks: [0x5000, 0x5400, 0x5800, 0x5c00],
  doubleFaultStack: 0x6000,
  stack: 0x7000,
  end: 0x7000,
} as const;
export const ROM = 0xf0000;
export const TSS_STRIDE = 0x100;
/** Offsets in the image. */
export const LANDING = 0x80;
export const HANDLER = 0x90;
export const FIRST_CASE = 0x100;

/** Does an address lie in what is common to all cases. */
export const isHandler = (rip: bigint): boolean => rip >= BigInt(ROM + HANDLER) && rip < BigInt(ROM + FIRST_CASE);

/** mulberry32. */
export function makeRandom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
export type Random = ReturnType<typeof makeRandom>;
export const pick = <T>(random: Random, values: readonly T[]): T => values[random(values.length)];

export function descriptor(base: number, limit: number, access: number, flags: number): bigint {
  const low = BigInt((limit & 0xffff) + (base & 0xffff) * 0x10000);
  const high = BigInt(
    ((base >>> 16) & 0xff) + (access << 8) + (((limit >>> 16) & 15) << 16) + (flags << 20) + (base >>> 24) * 2 ** 24,
  );
  return low | (high << 32n);
}
/** A 16-bit gate's offset has no upper half. */
export const gate = (selector: number, offset: number, access: number, count = 0): bigint =>
  BigInt((offset & 0xffff) + selector * 0x10000) |
  (BigInt(count + access * 0x100 + (access & 8 ? offset >>> 16 : 0) * 0x10000) << 32n);

export const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;

/** Vector whose gate any level may use: the two bytes of INT are the end of each case, in every mode. */
export const EXIT_VECTOR = 0x30;

export interface Program {
  source: string;
  /** LAYOUT.idt to LAYOUT.end, put back behind each case. */
  ram: Uint8Array;
  /** More that is written once: [physical address, bytes]. */
  once: [number, Uint8Array][];
}

/** LAYOUT.next points to the first case. */
export function firstCase(): [number, Uint8Array] {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setUint32(0, ROM + FIRST_CASE, true);
  return [LAYOUT.next, bytes];
}
