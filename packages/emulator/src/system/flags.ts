/**
 * CLI, STI, PUSHF, POPF with their virtual-8086 and protected-mode virtual interrupts; CLAC, STAC.
 * Manual: APM vol. 2 ch. 8.10, SDM vol. 3 ch. 20.3-20.4, SDM vol. 2 POPF tables; KVM: em_cli, em_sti, emulate_popf.
 */
import { X86Emul } from '../ops.ts';
import { CR4, Flag, RSP, Seg, Vector } from '../state-layout.ts';
import { cplOf, iopl, maskOf, setStackPointer, withFlag } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import { reserveStack } from './stack.ts';

/**
 * Which flag CLI and STI work on here: IF, VIF (VME, PVI), or neither: #GP(0). KVM knows IF only, and refuses virtual-8086 mode even with
 * IOPL 3 (emulator_bad_iopl).
 */
const interruptFlag = (ctx: EmulateContext): number => {
  const cpl = cplOf(ctx);
  const refused = ctx.subset === 'kvm' && ctx.mode === 'vm86';
  if (iopl(ctx.rflags) >= cpl && !refused) return Flag.IF;
  const feature = ctx.mode === 'vm86' ? CR4.VME : CR4.PVI;
  const virtual = ctx.subset === 'x86' && cpl === 3 && (ctx.ops.getCr(4) & feature) !== 0n;
  return virtual ? Flag.VIF : ctx.raise(Vector.GP, 0);
};

const cli: SystemFunction = (ctx) => {
  ctx.rflags = withFlag(ctx.rflags, interruptFlag(ctx), false);
  return X86Emul.CONTINUE;
};

/** The shadow follows only a change of IF from 0 to 1; KVM sets it always. */
const sti: SystemFunction = (ctx) => {
  const flag = interruptFlag(ctx);
  if (flag === Flag.VIF && ctx.rflags & BigInt(Flag.VIP)) ctx.raise(Vector.GP, 0);
  const wasClear = (ctx.rflags & BigInt(Flag.IF)) === 0n;
  if (flag === Flag.IF && (wasClear || ctx.subset === 'kvm')) ctx.interruptShadow = 1;
  ctx.rflags = withFlag(ctx.rflags, flag, true);
  return X86Emul.CONTINUE;
};

/** True in virtual-8086 mode where VME stands in for IOPL 3; #GP(0) where nothing does. */
const usesVme = (ctx: EmulateContext): boolean => {
  if (ctx.mode !== 'vm86' || iopl(ctx.rflags) === 3) return false;
  const vme = ctx.subset === 'x86' && (ctx.ops.getCr(4) & CR4.VME) !== 0n && ctx.insn.opSize === 2;
  return vme || ctx.raise(Vector.GP, 0);
};

const pushf: SystemFunction = (ctx) => {
  const { insn, ops } = ctx;
  let image = ctx.rflags & ~BigInt(Flag.VM | Flag.RF);
  // VME shows VIF as IF, and IOPL 3.
  if (usesVme(ctx)) image = withFlag(image | BigInt(Flag.IOPL), Flag.IF, (image & BigInt(Flag.VIF)) !== 0n);
  const width = ctx.stackSize();
  const sp = (ops.readGpr(RSP) - BigInt(insn.opSize)) & maskOf(width);
  reserveStack(ctx, sp, insn.opSize)(image);
  setStackPointer(ops, sp, width);
  return X86Emul.CONTINUE;
};

/** Flags that POPF takes from the image. */
const popfMask = (ctx: EmulateContext): bigint => {
  const cpl = cplOf(ctx);
  let mask = Flag.arith | Flag.TF | Flag.DF | Flag.NT | Flag.AC | Flag.ID | Flag.RF;
  if (cpl === 0) mask |= Flag.IOPL;
  if (cpl <= iopl(ctx.rflags)) mask |= Flag.IF;
  return BigInt(mask) & maskOf(ctx.insn.opSize);
};

const popfVme = (ctx: EmulateContext, image: bigint): bigint => {
  const interruptible = (image & BigInt(Flag.IF)) !== 0n;
  if (image & BigInt(Flag.TF) || (interruptible && ctx.rflags & BigInt(Flag.VIP))) ctx.raise(Vector.GP, 0);
  const mask = BigInt(Flag.arith | Flag.DF | Flag.NT);
  return withFlag((ctx.rflags & ~mask) | (image & mask), Flag.VIF, interruptible);
};

/** RF is cleared by the wide forms, whatever the image says. */
const popf: SystemFunction = (ctx) => {
  const { insn, ops } = ctx;
  const vme = usesVme(ctx);
  const width = ctx.stackSize();
  const sp = ops.readGpr(RSP) & maskOf(width);
  const image = ctx.read(Seg.SS, sp, insn.opSize);
  const mask = popfMask(ctx);
  const flags = vme ? popfVme(ctx, image) : (ctx.rflags & ~mask) | (image & ~BigInt(Flag.RF) & mask) | 2n;
  setStackPointer(ops, sp + BigInt(insn.opSize), width);
  ctx.rflags = flags;
  return X86Emul.CONTINUE;
};

/** CLAC and STAC: #UD without SMAP or outside CPL 0. */
const setAc =
  (set: boolean): SystemFunction =>
  (ctx) => {
    if (cplOf(ctx) > 0 || !ctx.ops.guestHas('smap')) ctx.raise(Vector.UD);
    ctx.rflags = withFlag(ctx.rflags, Flag.AC, set);
    return X86Emul.CONTINUE;
  };

export const FLAG_INSTRUCTIONS = {
  cli,
  sti,
  pushf,
  popf,
  clac: setAc(false),
  stac: setAc(true),
} as const satisfies Record<string, SystemFunction>;
