/**
 * Segment and gate descriptors: fetching them from GDT and LDT, taking them apart, writing back their accessed and busy bits.
 * Manual: APM vol. 2 ch. 4.7-4.8, SDM vol. 3 ch. 3.4-3.5 and 5.8.
 */
import type { DescriptorTable, Segment } from '../state-layout.ts';
import { Attrib, Seg, Vector } from '../state-layout.ts';
import type { EventContext } from './common.ts';
import { isCanonicalBase } from './common.ts';

/** A descriptor as it stands in memory, taken apart. */
export interface Descriptor {
  /** Linear address that it was read from. */
  linear: bigint;
  low: number;
  high: number;
  /** Four type bits; with `s` false a system type. */
  type: number;
  s: boolean;
  dpl: number;
  present: boolean;
  /** VMCB packing, see `Attrib`. */
  attrib: number;
  /** Bytes, scaled by G. */
  limit: number;
  base: bigint;
}

/** System descriptor types (APM vol. 2 tables 4-5 and 4-6). */
export const SystemType = {
  availableTss16: 1,
  ldt: 2,
  busyTss16: 3,
  callGate16: 4,
  taskGate: 5,
  interruptGate16: 6,
  trapGate16: 7,
  availableTss32: 9,
  busyTss32: 11,
  callGate32: 12,
  interruptGate32: 14,
  trapGate32: 15,
} as const;

/** The exception for a bad selector: vector, and the EXT bit while an event is being delivered. */
export interface SelectorFault {
  vector: number;
  ext: number;
}
export const GP_FAULT: SelectorFault = { vector: Vector.GP, ext: 0 };
export const TS_FAULT: SelectorFault = { vector: Vector.TS, ext: 0 };

export const isNull = (selector: number): boolean => (selector & 0xfffc) === 0;
export const rplOf = (selector: number): number => selector & 3;

/** Raises `vector` with a selector error code (APM vol. 2 section 8.4.1). */
export const raiseSelector = (ctx: EventContext, vector: number, selector: number, ext = 0): never =>
  ctx.raise(vector, (selector & 0xfffc) | ext);

export const parseDescriptor = (raw: bigint, linear: bigint): Descriptor => {
  const low = Number(raw & 0xffff_ffffn);
  const high = Number((raw >> 32n) & 0xffff_ffffn);
  const limit = (low & 0xffff) | (high & 0xf0000);
  return {
    linear,
    low,
    high,
    type: (high >>> 8) & 15,
    s: (high & 0x1000) !== 0,
    dpl: (high >>> 13) & 3,
    present: (high & 0x8000) !== 0,
    attrib: ((high >>> 8) & 0xff) | ((high >>> 12) & 0xf00),
    limit: high & 0x80_0000 ? limit * 4096 + 4095 : limit,
    base: BigInt((((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000)) >>> 0) as number),
  };
};

/** The table that a selector points into; a null LDT has no entries. */
const tableOf = (ctx: EventContext, selector: number): DescriptorTable | undefined => {
  if (!(selector & 4)) return ctx.ops.getGdt();
  const ldt = ctx.ops.getSegment(Seg.LDTR);
  return ldt.attrib & Attrib.P && !(ldt.attrib & Attrib.unusable) ? ldt : undefined;
};

/** The descriptor that `selector` names, or undefined if its table does not reach so far (`bytes` 8 or 16). */
export const lookUpDescriptor = (ctx: EventContext, selector: number, bytes = 8): Descriptor | undefined => {
  const table = tableOf(ctx, selector);
  const offset = selector & 0xfff8;
  if (!table || offset + bytes - 1 > table.limit) return undefined;
  const linear = table.base + BigInt(offset);
  return parseDescriptor(ctx.ops.readStd(linear, 8, true), linear);
};

/** As {@link lookUpDescriptor}, but a descriptor outside its table is the fault given. */
export const fetchDescriptor = (ctx: EventContext, selector: number, fault: SelectorFault, bytes = 8): Descriptor =>
  lookUpDescriptor(ctx, selector, bytes) ?? raiseSelector(ctx, fault.vector, selector, fault.ext);

/** Upper eight bytes of a 16-byte descriptor: bits 63:32 of base or offset, and whether the second type field is zero as it must be. */
export const readUpperHalf = (ctx: EventContext, d: Descriptor): { upper: bigint; typeZero: boolean } => {
  const raw = ctx.ops.readStd(d.linear + 8n, 8, true);
  return { upper: raw & 0xffff_ffffn, typeZero: ((raw >> 40n) & 0x1fn) === 0n };
};

/** Completes the base of a 16-byte LDT or TSS descriptor; #GP(selector) if it is not canonical. */
export const widenBase = (ctx: EventContext, d: Descriptor, selector: number, fault: SelectorFault): void => {
  const { upper, typeZero } = readUpperHalf(ctx, d);
  const base = d.base | (upper << 32n);
  if ((!typeZero && ctx.subset === 'x86') || !isCanonicalBase(ctx.ops, base))
    raiseSelector(ctx, Vector.GP, selector, fault.ext);
  d.base = base;
};

/** Rewrites the type byte in memory (accessed and busy bits). Set before the last fault of the instruction, as both manuals allow. */
const writeType = (ctx: EventContext, d: Descriptor, type: number): void => {
  d.high = (d.high & ~0xf00) | (type << 8);
  d.type = type;
  d.attrib = (d.attrib & ~Attrib.typeMask) | type;
  ctx.ops.writeStd(d.linear + 5n, BigInt((d.high >>> 8) & 0xff), 1, true);
};

/** Sets the accessed bit of a code or data descriptor, in memory too. */
export const markAccessed = (ctx: EventContext, d: Descriptor): void => {
  if (!(d.type & 1)) writeType(ctx, d, d.type | 1);
};

/** Sets or clears the busy bit of a TSS descriptor, in memory too. */
export const markBusy = (ctx: EventContext, d: Descriptor, busy: boolean): void => {
  writeType(ctx, d, busy ? d.type | 2 : d.type & ~2);
};

export const isCode = (d: Descriptor): boolean => d.s && (d.type & 8) !== 0;
export const isConforming = (d: Descriptor): boolean => (d.type & 12) === 12;
export const isWritableData = (d: Descriptor): boolean => d.s && (d.type & 10) === 2;

export const segmentOf = (d: Descriptor, selector: number): Segment => ({
  selector,
  attrib: d.attrib,
  limit: d.limit,
  base: d.base,
});
