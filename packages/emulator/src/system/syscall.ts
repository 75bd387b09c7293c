/**
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT of both vendors in all modes.
 * Manual: APM vol. 2 ch. 6.1 and APM vol. 3, SDM vol. 2 and vol. 3 ch. 5.8.7-5.8.8; KVM: em_syscall, em_sysenter, em_sysexit.
 */
import { X86Emul } from '../ops.ts';
import type { Segment } from '../state-layout.ts';
import { Attrib, EFER, Flag, RCX, RDX, RSP, Seg, Vector } from '../state-layout.ts';
import { efer, inLongMode, isCanonical, MSR, requireCpl0 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

const R11 = 11;
const LOW = 0xffff_ffffn;
/** RFLAGS bits that SYSRET takes from R11 (SDM vol. 2, SYSRET). */
const SYSRET_FLAGS = 0x3c7fd7n;

const FLAT = Attrib.P | Attrib.S | Attrib.G;

/** A flat code segment: 64-bit (L) or 32-bit (D). */
const flatCode = (selector: number, dpl: number, is64: boolean): Segment => ({
  selector,
  attrib: FLAT | 11 | (dpl << Attrib.dplShift) | (is64 ? Attrib.L : Attrib.DB),
  limit: 0xffff_ffff,
  base: 0n,
});

const flatStack = (selector: number, dpl: number): Segment => ({
  selector,
  attrib: FLAT | 3 | Attrib.DB | (dpl << Attrib.dplShift),
  limit: 0xffff_ffff,
  base: 0n,
});

const msr = (ctx: EmulateContext, index: number): bigint => ctx.ops.getMsr(index) ?? 0n;

const isIntel = (ctx: EmulateContext): boolean =>
  ctx.subset === 'kvm' ? ctx.ops.isIntelCompatible() : ctx.vendor === 'intel';

const commit = (ctx: EmulateContext, cs: Segment, ss: Segment, eip: bigint, rflags: bigint): X86Emul => {
  ctx.ops.setSegment(Seg.CS, cs);
  ctx.ops.setSegment(Seg.SS, ss);
  ctx.eip = eip;
  ctx.rflags = rflags | 2n;
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

/** Intel has SYSCALL and SYSRET in 64-bit mode only, AMD in all of protected mode. */
const requireSyscall = (ctx: EmulateContext): void => {
  const outside = ctx.mode === 'real' || ctx.mode === 'vm86' || (isIntel(ctx) && ctx.mode !== 'prot64');
  if (outside || !(efer(ctx.ops) & EFER.SCE)) ctx.raise(Vector.UD);
};

const syscall: SystemFunction = (ctx) => {
  requireSyscall(ctx);
  const { ops } = ctx;
  const long = inLongMode(ops);
  const star = msr(ctx, MSR.STAR);
  const selector = Number((star >> 32n) & 0xfffcn);
  const cs = flatCode(selector, 0, long);
  const ss = flatStack((selector + 8) & 0xffff, 0);
  const clear = long ? msr(ctx, MSR.SFMASK) : BigInt(Flag.VM | Flag.IF);
  const target = long ? msr(ctx, ctx.mode === 'prot64' ? MSR.LSTAR : MSR.CSTAR) : star & LOW;
  ops.writeGpr(RCX, ctx.eip);
  if (long) ops.writeGpr(R11, ctx.rflags & ~BigInt(Flag.RF));
  const rflags = ctx.rflags & ~clear & ~BigInt(Flag.RF);
  ctx.singleStep = (rflags & BigInt(Flag.TF)) !== 0n;
  return commit(ctx, cs, ss, target, rflags);
};

/** AMD loads SS's selector only and leaves its hidden part (APM vol. 3, SYSRET); CPL is 3 all the same. */
const sysretStack = (ctx: EmulateContext, selector: number): Segment => {
  if (isIntel(ctx)) return flatStack(selector | 3, 3);
  const old = ctx.ops.getSegment(Seg.SS);
  return { ...old, selector, attrib: old.attrib | (3 << Attrib.dplShift) };
};

const sysretFlags = (ctx: EmulateContext): bigint => {
  if (!inLongMode(ctx.ops)) return ctx.rflags | BigInt(Flag.IF);
  return ctx.ops.readGpr(R11) & SYSRET_FLAGS;
};

/** Intel faults on a non-canonical RCX here, in CPL 0; AMD at the first fetch, in CPL 3. */
const sysret: SystemFunction = (ctx) => {
  requireSyscall(ctx);
  requireCpl0(ctx);
  const { ops, insn } = ctx;
  const to64 = insn.opSize === 8;
  const rcx = ops.readGpr(RCX);
  if (to64 && isIntel(ctx) && !isCanonical(ops, rcx)) ctx.raise(Vector.GP, 0);
  const selector = Number((msr(ctx, MSR.STAR) >> 48n) & 0xffffn);
  const cs = flatCode(((selector + (to64 ? 16 : 0)) & 0xffff) | 3, 3, to64);
  const ss = sysretStack(ctx, (selector + 8) & 0xffff);
  const rflags = sysretFlags(ctx);
  // As SYSCALL: the TF at the end of the instruction decides, so a traced program traps on its first instruction's boundary.
  ctx.singleStep = (rflags & BigInt(Flag.TF)) !== 0n;
  return commit(ctx, cs, ss, to64 ? rcx : rcx & LOW, rflags);
};

/** AMD has SYSENTER and SYSEXIT outside long mode only. KVM's emulator does not do them in 64-bit mode. */
const sysenterMissing = (ctx: EmulateContext): boolean => !isIntel(ctx) && inLongMode(ctx.ops);

const sysenter: SystemFunction = (ctx) => {
  if (ctx.mode === 'real') ctx.raise(Vector.GP, 0);
  if (ctx.subset === 'kvm' && ctx.mode === 'prot64') return X86Emul.UNHANDLEABLE;
  if (sysenterMissing(ctx)) ctx.raise(Vector.UD);
  const selector = Number(msr(ctx, MSR.SYSENTER_CS) & 0xfffcn);
  if (selector === 0) ctx.raise(Vector.GP, 0);
  const long = inLongMode(ctx.ops);
  const mask = long ? -1n : LOW;
  const eip = msr(ctx, MSR.SYSENTER_EIP) & mask;
  const esp = msr(ctx, MSR.SYSENTER_ESP) & mask;
  const rflags = ctx.rflags & ~BigInt(Flag.VM | Flag.IF | Flag.RF);
  ctx.ops.writeGpr(RSP, BigInt.asUintN(64, esp));
  return commit(
    ctx,
    flatCode(selector, 0, long),
    flatStack((selector + 8) & 0xffff, 0),
    BigInt.asUintN(64, eip),
    rflags,
  );
};

const checkSysexit = (ctx: EmulateContext): number => {
  if (ctx.mode === 'real' || ctx.mode === 'vm86') ctx.raise(Vector.GP, 0);
  if (ctx.subset === 'x86' && sysenterMissing(ctx)) ctx.raise(Vector.UD);
  requireCpl0(ctx);
  const selector = Number(msr(ctx, MSR.SYSENTER_CS) & 0xfffcn);
  return selector === 0 ? ctx.raise(Vector.GP, 0) : selector;
};

const sysexit: SystemFunction = (ctx) => {
  const selector = checkSysexit(ctx);
  const { ops, insn } = ctx;
  const to64 = insn.opSize === 8;
  const rip = ops.readGpr(RDX);
  const rsp = ops.readGpr(RCX);
  if (to64 && !(isCanonical(ops, rip) && isCanonical(ops, rsp))) ctx.raise(Vector.GP, 0);
  const cs = flatCode(((selector + (to64 ? 32 : 16)) & 0xffff) | 3, 3, to64);
  const ss = flatStack(((selector + (to64 ? 40 : 24)) & 0xffff) | 3, 3);
  ops.writeGpr(RSP, to64 ? rsp : rsp & LOW);
  return commit(ctx, cs, ss, to64 ? rip : rip & LOW, ctx.rflags);
};

/** SYSENTER is legal at any level; the others say by themselves where they are not. */
export const SYSCALL_INSTRUCTIONS = { syscall, sysret, sysenter, sysexit } as const satisfies Record<
  string,
  SystemFunction
>;
