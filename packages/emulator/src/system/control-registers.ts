/**
 * MOV CR, MOV DR, LMSW, SMSW, CLTS, XGETBV, XSETBV.
 * Manual: APM vol. 2 ch. 3.1 and 13.1, SDM vol. 3 ch. 2.5 and 17.2; KVM: em_cr_write, check_dr_write, em_lmsw.
 */
import { X86Emul } from '../ops.ts';
import type { FpContext } from '../semantics/fp/context.ts';
import { inUseOf } from '../semantics/fp/xsave.ts';
import { CR0, CR4, RAX, RCX, RDX, Vector } from '../state-layout.ts';
import { checkUmip, maskOf, nativeSize, readRm16, requireCpl0, writeRegOrMem16 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

const MOV_FROM_CR = 0x0f20;
const MOV_FROM_DR = 0x0f21;
/** DR6 bits that #DB for a protected debug register sets, DR7.GD. */
const DR6_BD = 0x2000n;
const DR7_GD = 0x2000n;

/**
 * #UD for a control register that does not exist, #GP(0) outside CPL 0 (KVM: check_cr_access). The decoder has made CR8 of AMD's LOCK MOV CR0.
 */
const checkMovCr = (ctx: EmulateContext): void => {
  const cr = ctx.insn.reg;
  if (cr > 8 || cr === 1 || (cr >= 5 && cr <= 7)) ctx.raise(Vector.UD);
  requireCpl0(ctx);
};

const movcr: SystemFunction = (ctx) => {
  checkMovCr(ctx);
  const { insn, ops } = ctx;
  const cr = insn.reg;
  const size = nativeSize(ctx);
  if (insn.opcode === MOV_FROM_CR) {
    ctx.setReg(insn.rm, size, ops.getCr(cr) & maskOf(size));
    return X86Emul.CONTINUE;
  }
  if (ops.setCr(cr, ctx.getReg(insn.rm, size)) !== 0) ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

/** DR4 and DR5 name DR6 and DR7 while CR4.DE is clear (APM vol. 2 section 13.1.1). */
const debugRegister = (reg: number): number => (reg === 4 || reg === 5 ? reg + 2 : reg);

const checkMovDr = (ctx: EmulateContext): void => {
  const { insn, ops } = ctx;
  const aliased = insn.reg === 4 || insn.reg === 5;
  if (insn.reg > 7 || (aliased && ops.getCr(4) & CR4.DE)) ctx.raise(Vector.UD);
  requireCpl0(ctx);
  if (ops.getDr(7) & DR7_GD) ctx.raise(Vector.DB, undefined, DR6_BD);
};

const movdr: SystemFunction = (ctx) => {
  checkMovDr(ctx);
  const { insn, ops } = ctx;
  const dr = debugRegister(insn.reg);
  const size = nativeSize(ctx);
  if (insn.opcode === MOV_FROM_DR) {
    ctx.setReg(insn.rm, size, ops.getDr(dr) & maskOf(size));
    return X86Emul.CONTINUE;
  }
  const value = ctx.getReg(insn.rm, size);
  if (dr >= 6 && value >> 32n) ctx.raise(Vector.GP, 0);
  if (ops.setDr(dr, value) !== 0) ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

/** PE can be set, not cleared; MP, EM and TS are replaced. KVM ignores a refusal, on the processor it is #GP(0) (VMX fixed bits). */
const lmsw: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  const msw = BigInt(readRm16(ctx) & 15);
  const refused = ctx.ops.setCr(0, (ctx.ops.getCr(0) & ~(CR0.MP | CR0.EM | CR0.TS)) | msw);
  if (refused !== 0 && ctx.subset === 'x86') ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

const smsw: SystemFunction = (ctx) => {
  checkUmip(ctx);
  writeRegOrMem16(ctx, ctx.ops.getCr(0));
  return X86Emul.CONTINUE;
};

const clts: SystemFunction = (ctx) => {
  requireCpl0(ctx);
  const refused = ctx.ops.setCr(0, ctx.ops.getCr(0) & ~CR0.TS);
  if (refused !== 0 && ctx.subset === 'x86') ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

const low32 = (ctx: EmulateContext, reg: number): bigint => ctx.ops.readGpr(reg) & 0xffff_ffffn;

const requireOsxsave = (ctx: EmulateContext): void => {
  if (!(ctx.ops.getCr(4) & CR4.OSXSAVE)) ctx.raise(Vector.UD);
};

/** XCR1 is XCR0's part of what is in use, where XGETBV with ECX 1 exists (SDM vol. 2, XGETBV). */
const xgetbv: SystemFunction = (ctx) => {
  requireOsxsave(ctx);
  const index = Number(low32(ctx, RCX));
  if (index !== 0 && !(index === 1 && ctx.ops.guestHas('xgetbvEcx1'))) ctx.raise(Vector.GP, 0);
  const value = index === 1 ? inUseOf(ctx as FpContext) : ctx.ops.getXcr(0);
  ctx.setReg(RAX, 4, value & 0xffff_ffffn);
  ctx.setReg(RDX, 4, value >> 32n);
  return X86Emul.CONTINUE;
};

/** KVM's emulator looks at the privilege first. */
const checkXsetbv = (ctx: EmulateContext): void => {
  if (ctx.subset === 'x86') requireOsxsave(ctx);
  requireCpl0(ctx);
};

const xsetbv: SystemFunction = (ctx) => {
  checkXsetbv(ctx);
  requireOsxsave(ctx);
  const value = (low32(ctx, RDX) << 32n) | low32(ctx, RAX);
  if (ctx.ops.setXcr(Number(low32(ctx, RCX)), value) !== 0) ctx.raise(Vector.GP, 0);
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

export const CONTROL_INSTRUCTIONS = { movcr, movdr, lmsw, smsw, clts, xgetbv, xsetbv } as const satisfies Record<
  string,
  SystemFunction
>;

/** Checks that stand before the POST_EXCEPT intercept (KVM: check_perm hooks). */
export const CONTROL_CHECKS = { movcr: checkMovCr, movdr: checkMovDr, xsetbv: checkXsetbv } as const;
