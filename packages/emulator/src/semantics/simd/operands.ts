/**
 * Operands of vector instructions: registers and memory as the decode rows name them.
 * Manual: APM vol. 4 section 1.2 (alignment and exceptions), APM vol. 3 appendix A (the letters).
 */
import type { OperandSpec, Row } from '../../decode/instruction.ts';
import { Seg, Vector } from '../../state-layout.ts';
import type { FpuArea } from '../fp/area.ts';
import { checkPending, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import type { Lanes } from './lanes.ts';

const SIZES: Readonly<Record<string, number>> = { b: 1, w: 2, d: 4, q: 8, dq: 16, ss: 4, sd: 8, ps: 16, pd: 16 };

/** Instructions whose 16-byte operand may stand anywhere. */
const UNALIGNED: ReadonlySet<string> = new Set([
  'movups',
  'movupd',
  'movdqu',
  'lddqu',
  'pcmpestrm',
  'pcmpestri',
  'pcmpistrm',
  'pcmpistri',
]);

/** SHA instructions: only Intel's demand alignment (SDM vol. 2 table 2-21; AMD processors do not, although APM vol. 4 lists #GP). */
const isAligned = (ctx: FpContext, operand: VectorOperand): boolean =>
  operand.aligned && !(operand.sha && ctx.vendor === 'amd');

export interface VectorOperand {
  letter: string;
  /** Bytes as memory operand; 0: by operand size. */
  size: number;
  aligned: boolean;
  sha: boolean;
}

export function vectorOperand(row: Row, n: number): VectorOperand {
  const spec: OperandSpec = row.operands[n] ?? '';
  const [first = '', memory] = spec.split('/');
  const size = SIZES[(memory ?? first).slice(1)] ?? 0;
  return {
    letter: first.charAt(0),
    size,
    aligned: size === 16 && !UNALIGNED.has(row.mnemonic),
    sha: row.mnemonic.startsWith('sha') && row.feature === 'sha',
  };
}

export const isMmx = (operand: VectorOperand): boolean =>
  operand.letter === 'P' || operand.letter === 'Q' || operand.letter === 'N';

/** True if the operand is memory in this instruction. */
export const inMemory = (ctx: FpContext, operand: VectorOperand): boolean =>
  ctx.insn.mod !== 3 && 'WQEMR'.includes(operand.letter);

/** Linear address of a 16-byte operand: #GP(0) if it must be aligned and isn't. */
function linearOf(ctx: FpContext, aligned: boolean, write: boolean): bigint {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  // In 64-bit mode misalignment comes before the canonical check (#GP, not #SS).
  if (aligned && ctx.mode === 'prot64') {
    const base = seg === Seg.FS || seg === Seg.GS ? ctx.ops.getCachedSegmentBase(seg) : 0n;
    if (((base + offset) & 15n) !== 0n) ctx.raise(Vector.GP, 0);
  }
  const linear = ctx.linearize(seg, offset, 16, write);
  if (aligned && (linear & 15n) !== 0n) ctx.raise(Vector.GP, 0);
  return linear;
}

export function readMemory(ctx: FpContext, size: number, aligned: boolean): bigint {
  if (size === 16) return ctx.readLinear(linearOf(ctx, aligned, false), 16, false);
  return ctx.read(ctx.insn.seg, ctx.effectiveAddress(), size);
}

export function writeMemory(ctx: FpContext, value: bigint, size: number, aligned: boolean): void {
  if (size === 16) ctx.ops.writeEmulated(linearOf(ctx, aligned, true), value, 16);
  else ctx.write(ctx.insn.seg, ctx.effectiveAddress(), value, size);
}

/** Reads a register or memory operand; memory is zero-extended. */
export function readVector(ctx: FpContext, fpu: FpuArea, operand: VectorOperand, into: Lanes): void {
  const { insn } = ctx;
  if (inMemory(ctx, operand)) {
    into.load(readMemory(ctx, operand.size, isAligned(ctx, operand)), operand.size);
    return;
  }
  switch (operand.letter) {
    case 'V':
      fpu.readXmm(insn.reg, into);
      break;
    case 'P':
      fpu.readMm(insn.reg & 7, into);
      break;
    case 'Q':
    case 'N':
      fpu.readMm(insn.rm & 7, into);
      break;
    default:
      fpu.readXmm(insn.rm, into);
  }
}

/** Writes a register operand; an MMX one enters MMX mode. */
export function writeVector(ctx: FpContext, fpu: FpuArea, operand: VectorOperand, from: Lanes): void {
  const { insn } = ctx;
  switch (operand.letter) {
    case 'V':
      fpu.writeXmm(insn.reg, from);
      break;
    case 'P':
      fpu.writeMm(insn.reg & 7, from);
      break;
    case 'Q':
    case 'N':
      fpu.writeMm(insn.rm & 7, from);
      break;
    default:
      fpu.writeXmm(insn.rm, from);
  }
}

/** Value of a general register or memory operand (`Ey`, `Ry/Mw`). */
export function readGeneral(ctx: FpContext, operand: VectorOperand): bigint {
  const size = operand.size === 0 ? ctx.insn.opSize : operand.size;
  if (inMemory(ctx, operand)) return readMemory(ctx, size, false);
  return ctx.getReg(ctx.insn.rm, size);
}

/** Wraps the body of an instruction that touches MMX registers: pending exceptions before, MMX mode after. */
export const mmxMode =
  (body: FpFunction): FpFunction =>
  (ctx) => {
    const fpu = fpuOf(ctx);
    checkPending(ctx, fpu);
    const code = body(ctx);
    fpu.enterMmx();
    return code;
  };

/** `body` as it is, or in MMX mode if the row names an MMX register. */
export const forRow = (row: Row, body: FpFunction): FpFunction =>
  row.operands.some((spec) => /^[PQN]/.test(spec)) ? mmxMode(body) : body;
