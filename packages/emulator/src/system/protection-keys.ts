/**
 * RDPKRU and WRPKRU: the rights of user pages' protection keys, at any privilege level.
 * Manual: SDM vol. 2 RDPKRU, WRPKRU; vol. 3 section 4.6.2; APM vol. 2 section 5.6.7.
 */
import { NotImplementedError } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { CR4, RAX, RCX, RDX, Vector } from '../state-layout.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

const low = (ctx: EmulateContext, reg: number): bigint => ctx.ops.readGpr(reg) & 0xffff_ffffn;

/** #UD while the system has not set CR4.PKE, #GP(0) for another register than 0. */
function checkKeys(ctx: EmulateContext): void {
  if (!(ctx.ops.getCr(4) & CR4.PKE)) ctx.raise(Vector.UD);
  if (low(ctx, RCX) !== 0n) ctx.raise(Vector.GP, 0);
}

const rdpkru: SystemFunction = (ctx) => {
  checkKeys(ctx);
  const { ops } = ctx;
  if (ops.getPkru === undefined) throw new NotImplementedError('RDPKRU in this emulator', 'SDM vol. 2, RDPKRU');
  ctx.setReg(RAX, 4, BigInt(ops.getPkru()));
  ctx.setReg(RDX, 4, 0n);
  return X86Emul.CONTINUE;
};

const wrpkru: SystemFunction = (ctx) => {
  checkKeys(ctx);
  const { ops } = ctx;
  if (low(ctx, RDX) !== 0n) ctx.raise(Vector.GP, 0);
  if (ops.setPkru === undefined) throw new NotImplementedError('WRPKRU in this emulator', 'SDM vol. 2, WRPKRU');
  ops.setPkru(Number(low(ctx, RAX)));
  return X86Emul.CONTINUE;
};

export const KEY_INSTRUCTIONS = { rdpkru, wrpkru } as const satisfies Record<string, SystemFunction>;
