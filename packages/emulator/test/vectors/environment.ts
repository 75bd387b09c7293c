/**
 * The environment in which the vectors were captured: two pages of data, a read-only page, two pages of code, descriptor tables.
 */
import type { Segment } from '../../src/state-layout.ts';
import { type Header, hex, SEGMENT_NAMES } from './format.ts';

export const DATA = 0x1000_0000;
export const DATA_SIZE = 0x3000;
export const READ_ONLY = 0x1000_2000;
export const CODE = 0x2000_0000;
export const CODE_SIZE = 0x2000;

/** Where our own tables stand (supervisor memory that no case uses). */
export const GDT = 0x4000_0000;
export const LDT = 0x4000_1000;
export const IDT = 0x4000_2000;
export const TSS = 0x4000_3000;
export const KERNEL_STACK = 0x4000_4000;
export const SYSTEM_SIZE = 0x5000;
/** Handler of vector n is at HANDLERS + 16 n. */
export const HANDLERS = 0x5000_0000;
export const KERNEL_CS = 0x10;

/** Linux's GDT has sixteen entries. */
export const GDT_LIMIT = 0x7f;

/** Background of the data pages: byte(a) = ((a * 0x9E3779B1) mod 2^32) >> 24. */
export function background(): Uint8Array {
  const bytes = new Uint8Array(DATA_SIZE);
  for (let i = 0; i < DATA_SIZE; i++) bytes[i] = Math.imul(DATA + i, 0x9e3779b1) >>> 24;
  return bytes;
}

function put64(view: DataView, offset: number, value: bigint): void {
  view.setBigUint64(offset, value, true);
}

const systemImages = new WeakMap<Header, Uint8Array>();

/** GDT, LDT, IDT (gates 3 and 4 for everybody) and a TSS with a kernel stack, as bytes from GDT on. Not to be changed. */
export function systemMemory(header: Header): Uint8Array {
  let image = systemImages.get(header);
  if (image === undefined) systemImages.set(header, (image = buildSystemMemory(header)));
  return image;
}

function buildSystemMemory(header: Header): Uint8Array {
  const bytes = new Uint8Array(SYSTEM_SIZE);
  const view = new DataView(bytes.buffer);
  header.gdt.forEach((text, i) => {
    put64(view, i * 8, hex(text));
  });
  header.ldt.forEach((text, i) => {
    put64(view, LDT - GDT + i * 8, hex(text));
  });
  for (let vector = 0; vector < 256; vector++) {
    const target = BigInt(HANDLERS + vector * 16);
    const access = vector === 3 || vector === 4 ? 0xeen : 0x8en;
    const low = (target & 0xffffn) | (BigInt(KERNEL_CS) << 16n) | (access << 40n) | ((target >> 16n) << 48n);
    put64(view, IDT - GDT + vector * 16, low);
  }
  put64(view, TSS - GDT + 4, BigInt(KERNEL_STACK + 0x1000));
  view.setUint16(TSS - GDT + 102, 0xffff, true);
  return bytes;
}

/** Attributes of a selector, in the packing of `Segment.attrib`. */
export function attributes(header: Header, selector: number): number {
  const table = (selector & 4) !== 0 ? header.ldt : header.gdt;
  const descriptor = hex(table[selector >> 3] ?? '0');
  return Number((descriptor >> 40n) & 0xffn) | (Number((descriptor >> 52n) & 0xfn) << 8);
}

const segments = new WeakMap<Header, Segment[]>();

/** A segment register as every case finds it. */
export function segmentOf(header: Header, index: number): Segment {
  let all = segments.get(header);
  if (all === undefined) segments.set(header, (all = [0, 1, 2, 3, 4, 5].map((i) => buildSegment(header, i))));
  return { ...all[index]! };
}

const buildSegment = (header: Header, index: number): Segment => {
  const text = header.seg[SEGMENT_NAMES[index]!];
  const selector = Number.parseInt(text.sel, 16);
  const null64 = (selector & ~3) === 0;
  return {
    selector,
    attrib: null64 ? 0x8000 : attributes(header, selector),
    limit: Number.parseInt(text.limit, 16),
    base: hex(text.base),
  };
};
