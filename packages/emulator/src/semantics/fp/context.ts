/**
 * What an x87, MMX or SSE instruction sees while it executes, and the checks that they share.
 * Manual: APM vol. 2 section 8.2.17 (#MF), section 3.1.1 (CR0.NE), APM vol. 4 section 1.2.4.
 */
import type { Row } from '../../decode/instruction.ts';
import { NotImplementedError } from '../../exceptions.ts';
import { X86Emul, type X86EmulateOps } from '../../ops.ts';
import { CR0, CR4, Vector } from '../../state-layout.ts';
import type { EmulateContext } from '../../system/context.ts';
import { FpuArea } from './area.ts';

/** EmulateContext with what wide operands need. */
export interface FpContext extends EmulateContext {
  /** One read through the log. */
  readLinear(linear: bigint, size: number, forWrite: boolean): bigint;
  probeWrite(seg: number, offset: bigint, size: number): void;
}
export type FpFunction = (ctx: FpContext) => X86Emul;
/** Instructions of a family: by row, so that a function is specialised once for the row's operands. */
export type FpFamily = (row: Row) => FpFunction | undefined;

const areas = new WeakMap<X86EmulateOps, FpuArea>();

/** The registers of the machine that `ops` is. A machine that replaces its area gives a new view; the accessor follows. */
export function fpuOf(ctx: EmulateContext): FpuArea {
  const { ops } = ctx;
  const view = ops.fpuArea?.();
  if (view === undefined) {
    throw new NotImplementedError('x87 and SSE registers of this machine', 'X86EmulateOps.fpuArea');
  }
  let area = areas.get(ops);
  if (area === undefined || area.view !== view) {
    area = new FpuArea(view);
    areas.set(ops, area);
  }
  return area;
}

/** #MF if an unmasked x87 exception is pending: before every x87 instruction that waits, every MMX instruction, and WAIT. */
export function checkPending(ctx: EmulateContext, fpu: FpuArea): void {
  if ((fpu.sw & 0x80) === 0) return;
  if ((ctx.ops.getCr(0) & CR0.NE) !== 0n) ctx.raise(Vector.MF);
  // Without NE the processor asserts FERR#, and the platform answers with IRQ 13.
  ctx.ops.assertFerr?.();
}

/** #XM, or #UD where the operating system has not announced a handler (CR4.OSXMMEXCPT). */
export function raiseSimdException(ctx: EmulateContext): never {
  return ctx.raise((ctx.ops.getCr(4) & CR4.OSXMMEXCPT) !== 0n ? Vector.XM : Vector.UD);
}

export const done = (): X86Emul => X86Emul.CONTINUE;
