/**
 * RDMSR, WRMSR, RDTSC, RDTSCP, RDPID, RDPMC, RDPRU, CPUID, SWAPGS and the FSGSBASE instructions.
 * Manual: APM vol. 2 ch. 3.2 and 4.5.3, APM vol. 3; SDM vol. 2. KVM: em_rdmsr, em_wrmsr, em_rdtsc, em_rdpid, em_cpuid.
 */
import { X86Emul } from '../ops.ts';
import { CR4, RAX, RBX, RCX, RDX, Seg, Vector } from '../state-layout.ts';
import { cplOf, isCanonicalBase, MSR, nativeSize, requireCpl0 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

const LOW = 0xffff_ffffn;

const low = (ctx: EmulateContext, reg: number): bigint => ctx.ops.readGpr(reg) & LOW;

/** EDX:EAX. */
const setPair = (ctx: EmulateContext, value: bigint): X86Emul => {
  ctx.setReg(RAX, 4, value & LOW);
  ctx.setReg(RDX, 4, (value >> 32n) & LOW);
  return X86Emul.CONTINUE;
};

const rdmsr: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  const index = Number(low(ctx, RCX));
  const value = ctx.ops.getMsrWithFilter ? ctx.ops.getMsrWithFilter(index) : ctx.ops.getMsr(index);
  if (value === undefined) return ctx.raise(Vector.GP, 0);
  return setPair(ctx, value);
};

const wrmsr: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  const index = Number(low(ctx, RCX));
  const value = (low(ctx, RDX) << 32n) | low(ctx, RAX);
  const refused = ctx.ops.setMsrWithFilter?.(index, value) ?? ctx.ops.setMsr(index, value);
  if (refused !== 0) ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

/** CR4.TSD keeps the time from user code (KVM: check_rdtsc). */
const checkTsc = (ctx: EmulateContext): void => {
  if (ctx.ops.getCr(4) & CR4.TSD && cplOf(ctx) > 0) ctx.raise(Vector.GP, 0);
};

const rdtsc: SystemFunction = (ctx) => {
  checkTsc(ctx);
  return setPair(ctx, ctx.ops.rdtsc());
};

const tscAux = (ctx: EmulateContext): bigint => ctx.ops.getMsr(MSR.TSC_AUX) ?? 0n;

const rdtscp: SystemFunction = (ctx) => {
  checkTsc(ctx);
  const aux = tscAux(ctx);
  setPair(ctx, ctx.ops.rdtsc());
  ctx.setReg(RCX, 4, aux & LOW);
  return X86Emul.CONTINUE;
};

const rdpid: SystemFunction = (ctx) => {
  if (!ctx.ops.guestHas('rdpid')) ctx.raise(Vector.UD);
  ctx.setReg(ctx.insn.rm, nativeSize(ctx), tscAux(ctx) & LOW);
  return X86Emul.CONTINUE;
};

/** CR4.PCE opens the counters to user code (KVM: check_rdpmc). */
const checkPmc = (ctx: EmulateContext): void => {
  if (!(ctx.ops.getCr(4) & CR4.PCE) && cplOf(ctx) > 0) ctx.raise(Vector.GP, 0);
};

const rdpmc: SystemFunction = (ctx) => {
  checkPmc(ctx);
  const value = ctx.ops.readPmc(Number(low(ctx, RCX)));
  if (value === undefined) return ctx.raise(Vector.GP, 0);
  return setPair(ctx, value);
};

/** MPERF and APERF; registers beyond them read as zero (APM vol. 3, RDPRU). */
const RDPRU_MSRS = [0xe7, 0xe8];

const rdpru: SystemFunction = (ctx) => {
  checkTsc(ctx);
  const index = RDPRU_MSRS[Number(low(ctx, RCX))];
  return setPair(ctx, index === undefined ? 0n : (ctx.ops.getMsr(index) ?? 0n));
};

/** Intel's CPUID faulting: MISC_FEATURES_ENABLES bit 0 makes it #GP(0) outside CPL 0 (SDM vol. 3, virtualization of CPUID). */
const cpuid: SystemFunction = (ctx) => {
  const { ops } = ctx;
  if (cplOf(ctx) > 0 && (ops.getMsr(MSR.MISC_FEATURES_ENABLES) ?? 0n) & 1n) ctx.raise(Vector.GP, 0);
  const leaf = ops.getCpuid(Number(low(ctx, RAX)), Number(low(ctx, RCX)));
  [RAX, RBX, RCX, RDX].forEach((reg, i) => {
    ctx.setReg(reg, 4, BigInt(leaf[i]! >>> 0));
  });
  return X86Emul.CONTINUE;
};

const setBase = (ctx: EmulateContext, seg: 4 | 5, base: bigint): void => {
  ctx.ops.setSegment(seg, { ...ctx.ops.getSegment(seg), base });
};

const swapgs: SystemFunction = (ctx) => {
  if (ctx.mode !== 'prot64') ctx.raise(Vector.UD);
  requireCpl0(ctx);
  const kernel = ctx.ops.getMsr(MSR.KERNEL_GS_BASE) ?? 0n;
  ctx.ops.setMsr(MSR.KERNEL_GS_BASE, ctx.ops.getCachedSegmentBase(Seg.GS));
  setBase(ctx, Seg.GS, kernel);
  return X86Emul.CONTINUE;
};

const requireFsGsBase = (ctx: EmulateContext): void => {
  if (ctx.mode !== 'prot64' || !(ctx.ops.getCr(4) & CR4.FSGSBASE)) ctx.raise(Vector.UD);
};

const readBase =
  (seg: 4 | 5): SystemFunction =>
  (ctx) => {
    requireFsGsBase(ctx);
    const base = ctx.ops.getCachedSegmentBase(seg);
    ctx.setReg(ctx.insn.rm, ctx.insn.opSize === 8 ? 8 : 4, ctx.insn.opSize === 8 ? base : base & LOW);
    return X86Emul.CONTINUE;
  };

const writeBase =
  (seg: 4 | 5): SystemFunction =>
  (ctx) => {
    requireFsGsBase(ctx);
    const base = ctx.getReg(ctx.insn.rm, ctx.insn.opSize === 8 ? 8 : 4);
    if (!isCanonicalBase(ctx.ops, base)) ctx.raise(Vector.GP, 0);
    setBase(ctx, seg, base);
    return X86Emul.CONTINUE;
  };

export const MSR_INSTRUCTIONS = {
  rdmsr,
  wrmsr,
  rdtsc,
  rdtscp,
  rdpid,
  rdpmc,
  rdpru,
  cpuid,
  swapgs,
  rdfsbase: readBase(Seg.FS),
  rdgsbase: readBase(Seg.GS),
  wrfsbase: writeBase(Seg.FS),
  wrgsbase: writeBase(Seg.GS),
} as const satisfies Record<string, SystemFunction>;

/** Checks that stand before the POST_EXCEPT intercept (KVM: check_rdtsc, check_rdpmc). */
export const MSR_CHECKS = { rdtsc: checkTsc, rdtscp: checkTsc, rdpmc: checkPmc } as const;
