/**
 * IRET in all modes: real, virtual-8086 (IOPL and VME), protected, to virtual-8086, nested task, long mode.
 * Manual: APM vol. 3 IRET, SDM vol. 2 IRET; KVM: emulate_iret (real mode only).
 */
import { X86Emul } from '../ops.ts';
import { CR4, Flag, Seg, Vector } from '../state-layout.ts';
import { checkReturn, checkTarget, codeSegment, fetchNonNull } from './code-transfer.ts';
import { cplOf, inLongMode, iopl, setStackPointer } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import { GP_FAULT, rplOf } from './descriptors.ts';
import { checkedReturn, commitReturn, probeOuterStack } from './far-transfer.ts';
import { dropInnerSegments, realModeSegment } from './segments.ts';
import { StackReader } from './stack.ts';
import { returnToPreviousTask } from './task-switch.ts';

const ALWAYS = Flag.arith | Flag.TF | Flag.DF | Flag.NT;
const WIDE = Flag.RF | Flag.AC | Flag.ID;

/** RFLAGS bits that IRET takes from the image (APM vol. 3 IRET, SDM vol. 2 table of IRET). */
const iretMask = (ctx: EmulateContext, size: number, cpl: number): bigint => {
  let mask = ALWAYS;
  if (cpl <= iopl(ctx.rflags)) mask |= Flag.IF;
  if (cpl === 0) mask |= Flag.IOPL;
  if (size > 2) mask |= WIDE;
  if (size > 2 && cpl === 0 && ctx.mode !== 'real') mask |= Flag.VIF | Flag.VIP;
  return BigInt(mask);
};

const mergeFlags = (old: bigint, image: bigint, mask: bigint): bigint => (old & ~mask) | (image & mask) | 2n;

interface Frame {
  eip: bigint;
  selector: number;
  flags: bigint;
}

const popFrame = (stack: StackReader, size: number): Frame => {
  const [eip, cs, flags] = stack.popAll(3, size);
  return { eip: eip!, selector: Number(cs! & 0xffffn), flags: flags! };
};

/** The handler of an NMI ends with IRET, also if IRET goes elsewhere. */
const finish = (ctx: EmulateContext, eip: bigint, rflags: bigint): X86Emul => {
  ctx.eip = eip;
  ctx.rflags = rflags;
  ctx.modeChanged = true;
  ctx.ops.setNmiMask(false);
  return X86Emul.CONTINUE;
};

const realIret = (ctx: EmulateContext, mask: bigint): X86Emul => {
  const size = ctx.insn.opSize;
  const stack = new StackReader(ctx);
  const f = popFrame(stack, size);
  const cs = realModeSegment(ctx, Seg.CS, f.selector, ctx.mode);
  checkTarget(ctx, cs, f.eip);
  ctx.ops.setSegment(Seg.CS, cs);
  setStackPointer(ctx.ops, stack.sp, stack.width);
  return finish(ctx, f.eip, mergeFlags(ctx.rflags, f.flags, mask));
};

/** Virtual-8086 mode with VME and IOPL below 3: IF in the image means VIF (APM vol. 2 section 8.10.4, SDM vol. 3 section 20.3). */
const vmeIret = (ctx: EmulateContext): X86Emul => {
  const stack = new StackReader(ctx);
  const f = popFrame(stack, 2);
  const interruptible = (f.flags & BigInt(Flag.IF)) !== 0n;
  if (f.flags & BigInt(Flag.TF) || (interruptible && ctx.rflags & BigInt(Flag.VIP))) ctx.raise(Vector.GP, 0);
  const cs = realModeSegment(ctx, Seg.CS, f.selector, 'vm86');
  checkTarget(ctx, cs, f.eip);
  ctx.ops.setSegment(Seg.CS, cs);
  setStackPointer(ctx.ops, stack.sp, stack.width);
  const merged = mergeFlags(ctx.rflags, f.flags, BigInt(ALWAYS & ~Flag.TF));
  const vif = BigInt(Flag.VIF);
  return finish(ctx, f.eip, interruptible ? merged | vif : merged & ~vif);
};

const vm86Iret = (ctx: EmulateContext): X86Emul => {
  if (iopl(ctx.rflags) === 3) return realIret(ctx, iretMask(ctx, ctx.insn.opSize, 3));
  if (!(ctx.ops.getCr(4) & CR4.VME) || ctx.insn.opSize !== 2) ctx.raise(Vector.GP, 0);
  return vmeIret(ctx);
};

/** CPL 0 returns to virtual-8086 mode: ESP, SS, ES, DS, FS, GS follow the frame. */
const iretToVm86 = (ctx: EmulateContext, stack: StackReader, f: Frame): X86Emul => {
  const { ops } = ctx;
  const esp = stack.pop(4);
  const [ss, es, ds, fs, gs] = Array.from({ length: 5 }, () => Number(stack.pop(4) & 0xffffn));
  if ((f.eip & 0xffff_ffffn) > 0xffffn) ctx.raise(Vector.GP, 0);
  const selectors = [es!, f.selector, ss!, ds!, fs!, gs!];
  for (const seg of [0, 1, 2, 3, 4, 5] as const)
    ops.setSegment(seg, realModeSegment(ctx, seg, selectors[seg]!, 'vm86'));
  setStackPointer(ops, esp, 4);
  const all = iretMask(ctx, 4, 0) | BigInt(Flag.VM);
  return finish(ctx, f.eip & 0xffffn, mergeFlags(ctx.rflags, f.flags, all));
};

/** In 64-bit mode SS:RSP is always popped, otherwise only for an outer level. */
const protectedIret = (ctx: EmulateContext, stack: StackReader, f: Frame): X86Emul => {
  const size = ctx.insn.opSize;
  const cpl = ctx.ops.cpl();
  const rpl = rplOf(f.selector);
  if (ctx.mode === 'prot64' || rpl !== cpl) probeOuterStack(ctx, stack, 0);
  const d = fetchNonNull(ctx, f.selector, GP_FAULT);
  checkReturn(ctx, d, f.selector, cpl);
  const cs = codeSegment(ctx, d, f.selector, rpl);
  const rflags = mergeFlags(ctx.rflags, f.flags, iretMask(ctx, size, cpl));
  if (ctx.mode !== 'prot64' && rpl === cpl) {
    checkTarget(ctx, cs, f.eip);
    ctx.ops.setSegment(Seg.CS, cs);
    setStackPointer(ctx.ops, stack.sp, stack.width);
    return finish(ctx, f.eip, rflags);
  }
  const sp = stack.pop(size);
  const selector = Number(stack.pop(size) & 0xffffn);
  const ss = checkedReturn(ctx, cs, f.eip, selector, rpl);
  commitReturn(ctx, cs, f.eip, ss, sp);
  if (rpl !== cpl) dropInnerSegments(ctx, rpl);
  return finish(ctx, f.eip, rflags);
};

const iretProtected = (ctx: EmulateContext): X86Emul => {
  const long = inLongMode(ctx.ops);
  if (ctx.rflags & BigInt(Flag.NT)) {
    if (long) ctx.raise(Vector.GP, 0);
    const result = returnToPreviousTask(ctx);
    ctx.ops.setNmiMask(false);
    return result;
  }
  const stack = new StackReader(ctx);
  const f = popFrame(stack, ctx.insn.opSize);
  const toVm86 = !long && ctx.insn.opSize === 4 && cplOf(ctx) === 0 && (f.flags & BigInt(Flag.VM)) !== 0n;
  return toVm86 ? iretToVm86(ctx, stack, f) : protectedIret(ctx, stack, f);
};

/** KVM's emulator has IRET in real mode only. */
const iret: SystemFunction = (ctx) => {
  if (ctx.mode === 'real') return realIret(ctx, iretMask(ctx, ctx.insn.opSize, 0));
  if (ctx.subset === 'kvm') return X86Emul.UNHANDLEABLE;
  return ctx.mode === 'vm86' ? vm86Iret(ctx) : iretProtected(ctx);
};

export const IRET_INSTRUCTIONS = { iret } as const satisfies Record<string, SystemFunction>;
