/**
 * Halting, hints, cache and TLB maintenance, undefined opcodes, RSM and hypercalls.
 * Manual: APM vol. 3, SDM vol. 2; KVM: em_hypercall, em_invlpg, em_clflush, em_rsm.
 */
import { NotImplementedError } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { CR4, RAX, RCX, Seg, Vector } from '../state-layout.ts';
import { cplOf, isCanonicalBase, maskOf, operandOffset, requireCpl0 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

const hlt: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  ctx.ops.halt();
  return X86Emul.CONTINUE;
};

/** Linear address of the memory operand without limit or right: cache and TLB instructions check neither. */
const plainLinear = (ctx: EmulateContext): bigint => {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  if (ctx.mode !== 'prot64') return (ctx.ops.getCachedSegmentBase(seg as 0) + offset) & 0xffff_ffffn;
  const based = seg === Seg.FS || seg === Seg.GS;
  return BigInt.asUintN(64, (based ? ctx.ops.getCachedSegmentBase(seg) : 0n) + offset);
};

/** A non-canonical address makes it a no-operation (SDM vol. 2, INVLPG). */
const invlpg: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  const linear = plainLinear(ctx);
  if (ctx.mode !== 'prot64' || isCanonicalBase(ctx.ops, linear)) ctx.ops.invlpg(linear);
  return X86Emul.CONTINUE;
};

/** Without an accessor of its own: toggling CR4.PGE drops every translation, which covers all types. */
const flushEverything = (ctx: EmulateContext): void => {
  const cr4 = ctx.ops.getCr(4);
  ctx.ops.setCr(4, cr4 ^ CR4.PGE);
  ctx.ops.setCr(4, cr4);
};

/** Descriptor: PCID in bits 11:0, zeroes to 63, then the linear address (APM vol. 3, INVPCID). */
const invpcid: SystemFunction = (ctx) => {
  if (ctx.mode === 'vm86') ctx.raise(Vector.GP, 0);
  requireCpl0(ctx);
  const { insn, ops } = ctx;
  const type = ctx.getReg(insn.reg, ctx.mode === 'prot64' ? 8 : 4);
  const pcid = ctx.read(insn.seg, ctx.effectiveAddress(), 8);
  const linear = ctx.read(insn.seg, operandOffset(ctx, 8), 8);
  if (type > 3n || pcid >> 12n) ctx.raise(Vector.GP, 0);
  if (type < 2n && pcid !== 0n && !(ops.getCr(4) & CR4.PCIDE)) ctx.raise(Vector.GP, 0);
  if (type === 0n && !isCanonicalBase(ops, linear)) ctx.raise(Vector.GP, 0);
  if (ops.invpcid) ops.invpcid(Number(type), Number(pcid), linear);
  else flushEverything(ctx);
  return X86Emul.CONTINUE;
};

const wbinvd: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  ctx.ops.wbinvd();
  return X86Emul.CONTINUE;
};

/** Memory is coherent, so there is nothing to lose; KVM's emulator leaves it out altogether. */
const invd: SystemFunction = (ctx) => (ctx.subset === 'kvm' ? X86Emul.CONTINUE : wbinvd(ctx));

/** No-operation on coherent memory, but the address must be readable. KVM's checks nothing. */
const clflush: SystemFunction = (ctx) => {
  if (ctx.subset === 'x86') ctx.read(ctx.insn.seg, ctx.effectiveAddress(), 1);
  return X86Emul.CONTINUE;
};

const low = (ctx: EmulateContext, reg: number): bigint => ctx.ops.readGpr(reg) & 0xffff_ffffn;

/** rAX by address size: the implicit address of MONITOR and CLZERO. */
const addressInRax = (ctx: EmulateContext): bigint => ctx.ops.readGpr(RAX) & maskOf(ctx.insn.addrSize);
const dataSegment = (ctx: EmulateContext): number => (ctx.insn.segOverride >= 0 ? ctx.insn.segOverride : Seg.DS);

/** Any wake-up is allowed after MONITOR: MWAIT returns at once, so the monitored line needs no watching. */
const monitor: SystemFunction = (ctx) => {
  if (cplOf(ctx) > 0) ctx.raise(Vector.UD);
  return monitorx(ctx);
};

/** #UD, not #GP, outside CPL 0. ECX bit 0: interrupts wake even if masked; bit 1 (MWAITX): EBX is a timeout. */
const mwait =
  (extensions: bigint): SystemFunction =>
  (ctx) => {
    if (cplOf(ctx) > 0) ctx.raise(Vector.UD);
    if (low(ctx, RCX) & ~extensions) ctx.raise(Vector.GP, 0);
    return X86Emul.CONTINUE;
  };

/** The user forms differ by their privilege: any level. */
const monitorx: SystemFunction = (ctx) => {
  if (low(ctx, RCX) !== 0n) ctx.raise(Vector.GP, 0);
  ctx.read(dataSegment(ctx), addressInRax(ctx), 1);
  return X86Emul.CONTINUE;
};

const mwaitx: SystemFunction = (ctx) => {
  if (low(ctx, RCX) & ~3n) ctx.raise(Vector.GP, 0);
  return X86Emul.CONTINUE;
};

/** Zeroes the 64-byte line at rAX. */
const clzero: SystemFunction = (ctx) => {
  const line = addressInRax(ctx) & ~63n;
  const linear = [0n, 32n].map((half) => ctx.linearize(dataSegment(ctx), line + half, 32, true));
  for (const at of linear) ctx.ops.probeWrite(at, 32);
  for (const at of linear) ctx.ops.writeEmulated(at, 0n, 32);
  return X86Emul.CONTINUE;
};

/** `leaveSmm` loads everything, RIP and RFLAGS included; a corrupt map is a shutdown. */
const rsm: SystemFunction = (ctx) => {
  const { ops } = ctx;
  if (!ops.isSmm()) ctx.raise(Vector.UD);
  if (ops.leaveSmm() !== 0) ops.tripleFault();
  ctx.eip = ops.getRip();
  ctx.rflags = ops.getRflags();
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

/** KVM's emulator patches in the native opcode and lets the guest execute that; on the processor an unintercepted one is #UD. */
const hypercall: SystemFunction = (ctx) => {
  if (ctx.subset === 'x86') return ctx.raise(Vector.UD);
  const result = ctx.ops.fixHypercall();
  if (result === X86Emul.CONTINUE) ctx.eip = ctx.rip;
  return result;
};

/** SMX leaves need CR4.SMXE, which no CPU model of ours offers. */
const getsec: SystemFunction = (ctx) => {
  if (!(ctx.ops.getCr(4) & CR4.SMXE)) ctx.raise(Vector.UD);
  throw new NotImplementedError('GETSEC', 'SDM vol. 2 ch. 7');
};

/** Outside a transaction XTEST is never reached without RTM; all of it is #UD where the feature is absent. */
const transactional: SystemFunction = (ctx) => {
  if (!ctx.ops.guestHas('rtm')) ctx.raise(Vector.UD);
  throw new NotImplementedError('restricted transactional memory', 'SDM vol. 1 ch. 16');
};

const enclave: SystemFunction = (ctx) => {
  if (!ctx.ops.guestHas('sgx')) ctx.raise(Vector.UD);
  throw new NotImplementedError('SGX', 'SDM vol. 3 ch. 33');
};

export const MISC_INSTRUCTIONS = {
  hlt,
  invlpg,
  invpcid,
  invd,
  wbinvd,
  wbnoinvd: wbinvd,
  clflush,
  clflushopt: clflush,
  clwb: clflush,
  clzero,
  monitor,
  mwait: mwait(1n),
  monitorx,
  mwaitx,
  rsm,
  vmcall: hypercall,
  vmmcall: hypercall,
  getsec,
  xbegin: transactional,
  xabort: transactional,
  xend: transactional,
  xtest: transactional,
  encls: enclave,
  enclu: enclave,
  enclv: enclave,
} as const satisfies Record<string, SystemFunction>;
