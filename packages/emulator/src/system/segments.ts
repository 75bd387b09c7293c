/**
 * Loads of segment registers with all their checks, and the instructions that do nothing else.
 * Manual: APM vol. 2 ch. 4.5-4.11, SDM vol. 3 ch. 3.4 and 5.6-5.7; KVM: __load_segment_descriptor.
 */
import { X86Emul } from '../ops.ts';
import type { Segment, SegmentIndex } from '../state-layout.ts';
import { Attrib, RSP, Seg, Vector } from '../state-layout.ts';
import type { EventContext } from './common.ts';
import { maskOf, operandOffset, setStackPointer } from './common.ts';
import type { EmulateContext, EmulateMode, SystemFunction } from './context.ts';
import type { Descriptor, SelectorFault } from './descriptors.ts';
import {
  fetchDescriptor,
  GP_FAULT,
  isConforming,
  isNull,
  isWritableData,
  markAccessed,
  raiseSelector,
  rplOf,
  segmentOf,
} from './descriptors.ts';
import { reserveStack } from './stack.ts';

/** ES, SS, DS, FS or GS. */
export type DataSegment = 0 | 2 | 3 | 4 | 5;

/** Data segment of virtual-8086 mode: 64 KiB, writable, DPL 3 (APM vol. 2 section 10.5). */
const VM86_ATTRIB = 0xf3;

/** What a segment that was null becomes when real mode loads it: present, writable, DPL 0. */
const REAL_MODE_ATTRIB = 0x93;

/** Base from selector. Real mode keeps limit and rights (unreal mode); virtual-8086 mode sets its own. */
export const realModeSegment = (ctx: EventContext, seg: SegmentIndex, selector: number, mode: EmulateMode): Segment => {
  const base = BigInt(selector << 4);
  if (mode === 'vm86') return { selector, base, limit: 0xffff, attrib: VM86_ATTRIB };
  const old = ctx.ops.getSegment(seg);
  return { selector, base, limit: old.limit, attrib: old.attrib & Attrib.unusable ? REAL_MODE_ATTRIB : old.attrib };
};

/** A null selector in SS: only 64-bit mode has it, the DPL in the hidden part goes on saying the CPL. */
export const nullStackSegment = (selector: number, cpl: number): Segment => ({
  selector,
  base: 0n,
  limit: 0xffff_ffff,
  attrib: Attrib.unusable | Attrib.S | 3 | (cpl << Attrib.dplShift) | Attrib.P | Attrib.DB | Attrib.G,
});

/**
 * A null selector in a data segment register. AMD keeps base and limit (until NullSelectorClearsBase), Intel and KVM clear them
 * (APM vol. 2 section 4.5.3).
 */
export const nullDataSegment = (ctx: EventContext, seg: SegmentIndex, selector: number): Segment => {
  const keep = ctx.subset === 'x86' && ctx.vendor === 'amd' && !ctx.ops.guestHas('nullSelectorClearsBase');
  const old = keep ? ctx.ops.getSegment(seg) : { base: 0n, limit: 0 };
  return { selector, attrib: Attrib.unusable, limit: old.limit, base: old.base };
};

interface LoadOptions {
  cpl: number;
  fault: SelectorFault;
}

const checkStackSegment = (ctx: EventContext, d: Descriptor, selector: number, o: LoadOptions): void => {
  const fail = rplOf(selector) !== o.cpl || !isWritableData(d) || d.dpl !== o.cpl;
  if (fail) raiseSelector(ctx, o.fault.vector, selector, o.fault.ext);
  if (!d.present) raiseSelector(ctx, Vector.SS, selector, o.fault.ext);
};

const checkDataSegment = (ctx: EventContext, d: Descriptor, selector: number, o: LoadOptions): void => {
  const unreadable = !d.s || (d.type & 10) === 8;
  const unprivileged = !isConforming(d) && (rplOf(selector) > d.dpl || o.cpl > d.dpl);
  if (unreadable || unprivileged) raiseSelector(ctx, o.fault.vector, selector, o.fault.ext);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector, o.fault.ext);
};

/**
 * Checks a protected-mode load of SS for privilege level `cpl` and returns the hidden part; loads nothing.
 * @param fault #GP for loads and returns, #TS for stacks that come from a TSS; a segment that is not present is #SS
 */
export const prepareStackSegment = (
  ctx: EventContext,
  selector: number,
  cpl: number,
  fault: SelectorFault,
): Segment => {
  if (isNull(selector)) raiseSelector(ctx, fault.vector, selector, fault.ext);
  const d = fetchDescriptor(ctx, selector, fault);
  checkStackSegment(ctx, d, selector, { cpl, fault });
  markAccessed(ctx, d);
  return segmentOf(d, selector);
};

/** Checks a protected-mode load of ES, DS, FS or GS and returns the hidden part; loads nothing. */
export const prepareDataSegment = (
  ctx: EventContext,
  seg: DataSegment,
  selector: number,
  cpl: number,
  fault: SelectorFault,
): Segment => {
  if (isNull(selector)) return nullDataSegment(ctx, seg, selector);
  const d = fetchDescriptor(ctx, selector, fault);
  checkDataSegment(ctx, d, selector, { cpl, fault });
  markAccessed(ctx, d);
  return segmentOf(d, selector);
};

/** The hidden part that a load of `selector` by MOV, POP or LxS gives, after all checks. */
const prepareLoad = (ctx: EventContext, seg: DataSegment, selector: number): Segment => {
  if (ctx.mode === 'real' || ctx.mode === 'vm86') return realModeSegment(ctx, seg, selector, ctx.mode);
  const cpl = ctx.ops.cpl();
  if (seg !== Seg.SS) return prepareDataSegment(ctx, seg, selector, cpl, GP_FAULT);
  if (!isNull(selector)) return prepareStackSegment(ctx, selector, cpl, GP_FAULT);
  if (ctx.mode !== 'prot64' || cpl === 3 || rplOf(selector) !== cpl) ctx.raise(Vector.GP, 0);
  return nullStackSegment(selector, cpl);
};

/** Loads a data segment register as MOV, POP and LxS do (KVM: load_segment_descriptor). */
export const loadSegmentRegister = (ctx: EventContext, seg: DataSegment, selector: number): void => {
  ctx.ops.setSegment(seg, prepareLoad(ctx, seg, selector));
  ctx.modeChanged = true;
};

/**
 * Nulls the data segments that code at `cpl` may not use, after a return to an outer level (APM vol. 2 section 4.11). Null selectors 1 to 3
 * become 0 too: their hidden DPL is 0. Only the selector goes and the segment becomes invalid (SDM vol. 2, RET): 64-bit code still sees
 * the bases of FS and GS.
 */
export const dropInnerSegments = (ctx: EventContext, cpl: number): void => {
  for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const) {
    const s = ctx.ops.getSegment(seg);
    const conforming = (s.attrib & (Attrib.S | 12)) === (Attrib.S | 12);
    const dpl = (s.attrib >> Attrib.dplShift) & 3;
    if (s.attrib & Attrib.unusable ? s.selector === 0 : conforming || dpl >= cpl) continue;
    ctx.ops.setSegment(seg, { ...s, selector: 0, attrib: Attrib.unusable });
  }
};

/** 8C and 8E. */
const movseg: SystemFunction = (ctx) => {
  const { insn } = ctx;
  const seg = insn.reg & 7;
  if (seg > 5 || (insn.opcode === 0x8e && seg === Seg.CS)) ctx.raise(Vector.UD);
  if (insn.opcode === 0x8c) {
    const value = BigInt(ctx.ops.getSegment(seg as SegmentIndex).selector);
    if (insn.mod === 3) ctx.setReg(insn.rm, insn.opSize, value);
    else ctx.write(insn.seg, ctx.effectiveAddress(), value, 2);
    return X86Emul.CONTINUE;
  }
  const selector = insn.mod === 3 ? ctx.getReg(insn.rm, 2) : ctx.read(insn.seg, ctx.effectiveAddress(), 2);
  loadSegmentRegister(ctx, seg as DataSegment, Number(selector));
  if (seg === Seg.SS) ctx.interruptShadow = 2;
  return X86Emul.CONTINUE;
};

/** Segment register in the opcode of PUSH, POP. */
const SEGMENT_OF_OPCODE: Readonly<Record<number, SegmentIndex>> = {
  6: 0,
  7: 0,
  14: 1,
  22: 2,
  23: 2,
  30: 3,
  31: 3,
  4000: 4,
  4001: 4,
  4008: 5,
  4009: 5,
};

/** Intel writes only the selector's two bytes into a wider slot (SDM vol. 2, PUSH); KVM does so for four bytes. */
const pushseg: SystemFunction = (ctx) => {
  const { insn, ops } = ctx;
  const value = BigInt(ops.getSegment(SEGMENT_OF_OPCODE[insn.opcode]!).selector);
  const narrow = insn.opSize === 4 && (ctx.subset === 'kvm' || ctx.vendor === 'intel');
  const width = ctx.stackSize();
  const sp = (ops.readGpr(RSP) - BigInt(insn.opSize)) & maskOf(width);
  const store = reserveStack(ctx, sp, narrow ? 2 : insn.opSize);
  store(value);
  setStackPointer(ops, sp, width);
  return X86Emul.CONTINUE;
};

const popseg: SystemFunction = (ctx) => {
  const { insn, ops } = ctx;
  const seg = SEGMENT_OF_OPCODE[insn.opcode]! as DataSegment;
  const width = ctx.stackSize();
  const sp = ops.readGpr(RSP) & maskOf(width);
  const selector = Number(ctx.read(Seg.SS, sp, ctx.subset === 'kvm' ? 2 : insn.opSize) & 0xffffn);
  loadSegmentRegister(ctx, seg, selector);
  setStackPointer(ops, sp + BigInt(insn.opSize), width);
  if (seg === Seg.SS) ctx.interruptShadow = 2;
  return X86Emul.CONTINUE;
};

const loadFarPointer =
  (seg: DataSegment): SystemFunction =>
  (ctx) => {
    const { insn } = ctx;
    if (insn.mod === 3) ctx.raise(Vector.UD);
    const size = farPointerOffsetSize(ctx);
    const offset = ctx.read(insn.seg, ctx.effectiveAddress(), size);
    const selector = Number(ctx.read(insn.seg, operandOffset(ctx, size), 2));
    loadSegmentRegister(ctx, seg, selector);
    ctx.setReg(insn.reg, insn.opSize, offset);
    return X86Emul.CONTINUE;
  };

/** AMD has no 64-bit offsets in far pointers in memory: REX.W leaves them at 4 bytes (APM vol. 3, LSS, JMP far). */
export const farPointerOffsetSize = (ctx: EmulateContext): number =>
  ctx.vendor === 'amd' && ctx.subset === 'x86' ? Math.min(ctx.insn.opSize, 4) : ctx.insn.opSize;

export const SEGMENT_INSTRUCTIONS = {
  movseg,
  pushseg,
  popseg,
  les: loadFarPointer(Seg.ES),
  lss: loadFarPointer(Seg.SS),
  lds: loadFarPointer(Seg.DS),
  lfs: loadFarPointer(Seg.FS),
  lgs: loadFarPointer(Seg.GS),
} as const satisfies Record<string, SystemFunction>;
