/**
 * LGDT, LIDT, SGDT, SIDT, LLDT, SLDT, LTR, STR, LAR, LSL, VERR, VERW, ARPL.
 * Manual: APM vol. 2 ch. 4.6 and 4.12-4.13, SDM vol. 3 ch. 2.4 and 5.10; KVM: em_lgdt_lidt, em_lldt, em_ltr.
 */
import { X86Emul } from '../ops.ts';
import type { DescriptorTable } from '../state-layout.ts';
import { Attrib, Seg, Vector } from '../state-layout.ts';
import {
  checkUmip,
  inLongMode,
  isCanonicalBase,
  maskOf,
  nativeSize,
  operandOffset,
  readRm16,
  requireCpl0,
  requireProtected,
  setZf,
  wideDescriptors,
  writeRegOrMem16,
} from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import type { Descriptor } from './descriptors.ts';
import {
  fetchDescriptor,
  GP_FAULT,
  isConforming,
  isNull,
  isWritableData,
  lookUpDescriptor,
  markBusy,
  raiseSelector,
  rplOf,
  SystemType,
  segmentOf,
  widenBase,
} from './descriptors.ts';

/** A 16-bit operand size takes 24 bits of base, 64-bit mode all 64. */
const readTable = (ctx: EmulateContext): DescriptorTable => {
  const { insn } = ctx;
  const size = nativeSize(ctx);
  const limit = Number(ctx.read(insn.seg, ctx.effectiveAddress(), 2));
  const base = ctx.read(insn.seg, operandOffset(ctx, 2), size);
  if (size === 8 && !isCanonicalBase(ctx.ops, base)) ctx.raise(Vector.GP, 0);
  return { limit, base: size === 4 && insn.opSize === 2 ? base & 0xff_ffffn : base };
};

const lgdt: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  ctx.ops.setGdt(readTable(ctx));
  return X86Emul.CONTINUE;
};

const lidt: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  ctx.ops.setIdt(readTable(ctx));
  return X86Emul.CONTINUE;
};

/** Both stores are probed before either is made. The operand size does not matter, but KVM stores 24 bits of base for 16-bit ones. */
const storeTable = (ctx: EmulateContext, table: DescriptorTable): X86Emul => {
  checkUmip(ctx);
  const { ops, insn } = ctx;
  const size = nativeSize(ctx);
  const limit = ctx.linearize(insn.seg, ctx.effectiveAddress(), 2, true);
  const base = ctx.linearize(insn.seg, operandOffset(ctx, 2), size, true);
  ops.probeWrite(limit, 2);
  ops.probeWrite(base, size);
  ops.writeEmulated(limit, BigInt(table.limit & 0xffff), 2);
  ops.writeEmulated(base, table.base & (ctx.subset === 'kvm' && insn.opSize === 2 ? 0xff_ffffn : maskOf(size)), size);
  return X86Emul.CONTINUE;
};

const sgdt: SystemFunction = (ctx) => storeTable(ctx, ctx.ops.getGdt());
const sidt: SystemFunction = (ctx) => storeTable(ctx, ctx.ops.getIdt());

const storeSelector =
  (seg: 7 | 9): SystemFunction =>
  (ctx) => {
    requireProtected(ctx);
    checkUmip(ctx);
    writeRegOrMem16(ctx, BigInt(ctx.ops.getSegment(seg).selector));
    return X86Emul.CONTINUE;
  };

/** Fetches an LDT or TSS descriptor from the GDT with the checks that LLDT and LTR share. */
const fetchSystem = (ctx: EmulateContext, selector: number, types: readonly number[]): Descriptor => {
  if (selector & 4) raiseSelector(ctx, Vector.GP, selector);
  const wide = wideDescriptors(ctx);
  const d = fetchDescriptor(ctx, selector, GP_FAULT, wide ? 16 : 8);
  if (d.s || !types.includes(d.type)) raiseSelector(ctx, Vector.GP, selector);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector);
  if (wide) widenBase(ctx, d, selector, GP_FAULT);
  return d;
};

const lldt: SystemFunction = (ctx) => {
  requireProtected(ctx);
  requireCpl0(ctx);
  const selector = readRm16(ctx);
  const ldtr = isNull(selector)
    ? { selector, attrib: Attrib.unusable, limit: 0, base: 0n }
    : segmentOf(fetchSystem(ctx, selector, [SystemType.ldt]), selector);
  ctx.ops.setSegment(Seg.LDTR, ldtr);
  return X86Emul.CONTINUE;
};

const ltr: SystemFunction = (ctx) => {
  requireProtected(ctx);
  requireCpl0(ctx);
  const selector = readRm16(ctx);
  if (isNull(selector)) ctx.raise(Vector.GP, 0);
  const long = ctx.subset === 'x86' && inLongMode(ctx.ops);
  const types = long ? [SystemType.availableTss32] : [SystemType.availableTss16, SystemType.availableTss32];
  const d = fetchSystem(ctx, selector, types);
  markBusy(ctx, d, true);
  ctx.ops.setSegment(Seg.TR, segmentOf(d, selector));
  return X86Emul.CONTINUE;
};

/** System types that LAR and LSL accept, outside and in long mode (APM vol. 3, LAR and LSL). */
const LAR_TYPES = { legacy: [1, 2, 3, 4, 5, 9, 11, 12], long: [2, 9, 11, 12] } as const;
const LSL_TYPES = { legacy: [1, 2, 3, 9, 11], long: [2, 9, 11] } as const;

/** The descriptor if the selector may be looked at from here, else undefined: these instructions report by ZF. */
const visibleDescriptor = (ctx: EmulateContext, selector: number): Descriptor | undefined => {
  const d = isNull(selector) ? undefined : lookUpDescriptor(ctx, selector);
  if (!d) return undefined;
  const hidden = !(d.s && isConforming(d)) && d.dpl < Math.max(ctx.ops.cpl(), rplOf(selector));
  return hidden ? undefined : d;
};

const describe =
  (types: typeof LAR_TYPES | typeof LSL_TYPES, result: (d: Descriptor) => number): SystemFunction =>
  (ctx) => {
    requireProtected(ctx);
    const d = visibleDescriptor(ctx, readRm16(ctx));
    const list: readonly number[] = inLongMode(ctx.ops) ? types.long : types.legacy;
    if (!d || (!d.s && !list.includes(d.type))) return setZf(ctx, false);
    const { insn } = ctx;
    ctx.setReg(insn.reg, insn.opSize, BigInt(result(d) >>> 0) & maskOf(insn.opSize));
    return setZf(ctx, true);
  };

const lar = describe(LAR_TYPES, (d) => d.high & 0x00ff_ff00);
const lsl = describe(LSL_TYPES, (d) => d.limit);

const verify =
  (good: (d: Descriptor) => boolean): SystemFunction =>
  (ctx) => {
    requireProtected(ctx);
    const d = visibleDescriptor(ctx, readRm16(ctx));
    return setZf(ctx, d?.s === true && good(d));
  };

const verr = verify((d) => (d.type & 10) !== 8);
const verw = verify(isWritableData);

/** Raises the RPL of the destination selector to that of the source; memory is written only if it changes. */
const arpl: SystemFunction = (ctx) => {
  requireProtected(ctx);
  const { insn } = ctx;
  const rpl = Number(ctx.getReg(insn.reg, 2)) & 3;
  const selector = readRm16(ctx);
  if (rplOf(selector) >= rpl) return setZf(ctx, false);
  const raised = BigInt((selector & 0xfffc) | rpl);
  if (insn.mod === 3) ctx.setReg(insn.rm, 2, raised);
  else ctx.write(insn.seg, ctx.effectiveAddress(), raised, 2);
  return setZf(ctx, true);
};

export const TABLE_INSTRUCTIONS = {
  lgdt,
  lidt,
  sgdt,
  sidt,
  lldt,
  sldt: storeSelector(Seg.LDTR),
  ltr,
  str: storeSelector(Seg.TR),
  lar,
  lsl,
  verr,
  verw,
  arpl,
} as const satisfies Record<string, SystemFunction>;
