/**
 * What far transfers, returns and events share: code segment checks, instruction pointer checks, stacks taken from the TSS.
 * Manual: APM vol. 2 ch. 4.10-4.11 and 12.2, SDM vol. 3 ch. 5.8.
 */
import type { Segment } from '../state-layout.ts';
import { Attrib, Seg, Vector } from '../state-layout.ts';
import type { EventContext } from './common.ts';
import { inLongMode, isCanonical } from './common.ts';
import type { Descriptor, SelectorFault } from './descriptors.ts';
import {
  fetchDescriptor,
  isCode,
  isConforming,
  isNull,
  isWritableData,
  markAccessed,
  raiseSelector,
  rplOf,
  segmentOf,
} from './descriptors.ts';
import { nullStackSegment } from './segments.ts';
import type { StackTarget } from './stack.ts';
import { stackWidth } from './stack.ts';

/** The descriptor of a selector that must not be null; null is the fault with index 0. */
export const fetchNonNull = (ctx: EventContext, selector: number, fault: SelectorFault): Descriptor => {
  if (isNull(selector)) ctx.raise(fault.vector, fault.ext);
  return fetchDescriptor(ctx, selector, fault);
};

/** True for a code descriptor that long mode refuses: L and D set together. */
export const badLongCode = (ctx: EventContext, d: Descriptor): boolean =>
  (d.attrib & (Attrib.L | Attrib.DB)) === (Attrib.L | Attrib.DB) && inLongMode(ctx.ops);

/** Rights of a direct far JMP or CALL to a code segment (APM vol. 2 section 4.10.1). */
export const checkDirectTransfer = (ctx: EventContext, d: Descriptor, selector: number, cpl: number): void => {
  const rights = isConforming(d) ? d.dpl <= cpl : rplOf(selector) <= cpl && d.dpl === cpl;
  if (!rights || badLongCode(ctx, d)) raiseSelector(ctx, Vector.GP, selector);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector);
};

/** Rights of a far return to a code segment: the selector's RPL becomes CPL. */
export const checkReturn = (ctx: EventContext, d: Descriptor, selector: number, cpl: number): void => {
  const rpl = rplOf(selector);
  const rights = isConforming(d) ? d.dpl <= rpl : d.dpl === rpl;
  if (!isCode(d) || rpl < cpl || !rights || badLongCode(ctx, d)) raiseSelector(ctx, Vector.GP, selector);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector);
};

/** The hidden part of CS for a checked descriptor; RPL becomes CPL. Marks it accessed. */
export const codeSegment = (ctx: EventContext, d: Descriptor, selector: number, cpl: number): Segment => {
  markAccessed(ctx, d);
  return segmentOf(d, (selector & 0xfffc) | cpl);
};

/** True if CS runs 64-bit code once it is loaded. */
export const is64BitCode = (ctx: EventContext, cs: Segment): boolean =>
  (cs.attrib & Attrib.L) !== 0 && inLongMode(ctx.ops);

/** #GP(ext) if an instruction pointer lies outside its segment, or is not canonical in 64-bit code. */
export const checkTarget = (ctx: EventContext, cs: Segment, offset: bigint, ext = 0): void => {
  const good = is64BitCode(ctx, cs) ? isCanonical(ctx.ops, offset) : offset <= BigInt(cs.limit);
  if (!good) ctx.raise(Vector.GP, ext);
};

/** A field of the current TSS; #TS(TR's selector) if the TSS does not reach so far. */
const readTss = (ctx: EventContext, offset: number, size: number, ext: number): bigint => {
  const tr = ctx.ops.getSegment(Seg.TR);
  if (offset + size - 1 > tr.limit) raiseSelector(ctx, Vector.TS, tr.selector, ext);
  return ctx.ops.readStd(tr.base + BigInt(offset), size, true);
};

/** RSP0..2 or an IST entry of a 64-bit TSS; #SS(ext) if it is not canonical. `ist` 0: by privilege level. */
export const longModeStack = (ctx: EventContext, cpl: number, ist: number, ext: number): bigint => {
  const sp = readTss(ctx, ist ? 0x24 + 8 * (ist - 1) : 4 + 8 * cpl, 8, ext);
  if (!isCanonical(ctx.ops, sp)) ctx.raise(Vector.SS, ext);
  return sp;
};

const tssPointer = (ctx: EventContext, cpl: number, ext: number): { sp: bigint; selector: number } => {
  const wide = (ctx.ops.getSegment(Seg.TR).attrib & 8) !== 0;
  const size = wide ? 4 : 2;
  const at = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
  // The pair is one field as far as the limit goes.
  const selector = Number(readTss(ctx, at + size, 2, ext));
  return { sp: readTss(ctx, at, size, ext), selector };
};

/**
 * The stack of an inner privilege level, from the TSS (legacy modes: SS:ESP with all checks of SS; long mode: RSP, and a null SS).
 * Loads nothing. Faults are #TS with the stack's selector, #SS if it is not present.
 */
export const innerStack = (ctx: EventContext, cpl: number, ext: number): StackTarget => {
  if (inLongMode(ctx.ops)) {
    const sp = longModeStack(ctx, cpl, 0, ext);
    return { ss: nullStackSegment(cpl, cpl), sp, width: 8, system: cpl < 3, errorCode: ext };
  }
  const { sp, selector } = tssPointer(ctx, cpl, ext);
  const d = fetchNonNull(ctx, selector, { vector: Vector.TS, ext });
  if (rplOf(selector) !== cpl || d.dpl !== cpl || !isWritableData(d)) raiseSelector(ctx, Vector.TS, selector, ext);
  if (!d.present) raiseSelector(ctx, Vector.SS, selector, ext);
  markAccessed(ctx, d);
  const ss = segmentOf(d, selector);
  const width = stackWidth(ss, false);
  return {
    ss,
    sp: sp & (width === 2 ? 0xffffn : 0xffff_ffffn),
    width,
    system: true,
    errorCode: (selector & 0xfffc) | ext,
  };
};
