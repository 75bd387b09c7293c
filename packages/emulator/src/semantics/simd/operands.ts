/**
 * Operands of vector instructions: registers and memory as the decode rows name them.
 * Manual: APM vol. 4 section 1.2 (alignment and exceptions), APM vol. 3 appendix A (the letters).
 */
import type { OperandSpec, Row } from '../../decode/instruction.ts';
import { Seg, type SegmentIndex, Vector } from '../../state-layout.ts';
import type { FpuArea } from '../fp/area.ts';
import { checkPending, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { Lanes } from './lanes.ts';

const SIZES: Readonly<Record<string, number>> = { b: 1, w: 2, d: 4, q: 8, dq: 16, ss: 4, sd: 8, ps: 16, pd: 16 };

/** Legacy instructions whose 16-byte operand may stand anywhere. */
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
/** With VEX it is the other way round: these alone demand alignment, to the operand's size (APM vol. 4 section 1.2.3). */
const ALIGNED_VEX: ReadonlySet<string> = new Set([
  'vmovaps',
  'vmovapd',
  'vmovdqa',
  'vmovntps',
  'vmovntpd',
  'vmovntdq',
  'vmovntdqa',
]);

/** SHA instructions: only Intel's demand alignment (SDM vol. 2 table 2-21; AMD processors do not, although APM vol. 4 lists #GP). */
const isAligned = (ctx: FpContext, operand: VectorOperand): boolean =>
  operand.aligned && !(operand.sha && ctx.vendor === 'amd');

export interface VectorOperand {
  letter: string;
  /** Bytes as memory operand; 0: by operand size. */
  size: number;
  /** VEX: 16 or 32 bytes by VEX.L; `size` is 16. */
  byLength: boolean;
  aligned: boolean;
  sha: boolean;
  /** The row has a VEX prefix: writing a register clears what is above. */
  vex: boolean;
}

export function vectorOperand(row: Row, n: number): VectorOperand {
  const spec: OperandSpec = row.operands[n] ?? '';
  const [first = '', memory] = spec.split('/');
  const letters = (memory ?? first).slice(1);
  const vex = row.unit === 'avx';
  const byLength = letters === 'x';
  const size = byLength ? 16 : (SIZES[letters] ?? 0);
  const aligned = vex ? ALIGNED_VEX.has(row.mnemonic) : !UNALIGNED.has(row.mnemonic);
  return {
    letter: first.charAt(0),
    size,
    byLength,
    aligned: size === 16 && aligned,
    sha: row.mnemonic.startsWith('sha') && row.feature === 'sha',
    vex,
  };
}

/** Name of the operation: VEX forms carry a leading v. */
export const operationName = (row: Row): string => (row.unit === 'avx' ? row.mnemonic.slice(1) : row.mnemonic);

/** Operands of an instruction with a result: with VEX the first source is an operand of its own. */
export interface VectorOperands {
  dst: VectorOperand;
  /** The destination's old value, or VEX.vvvv. */
  first: VectorOperand;
  src: VectorOperand;
  /** An operand's length goes by VEX.L. */
  byLength: boolean;
}
export function vectorOperands(row: Row): VectorOperands {
  const named = row.operands.findIndex((spec) => spec.startsWith('H'));
  const dst = vectorOperand(row, 0);
  const first = named > 0 ? vectorOperand(row, named) : dst;
  const src = vectorOperand(row, named === 1 ? 2 : 1);
  return { dst, first, src, byLength: [dst, first, src].some((operand) => operand.byLength) };
}

/** VEX.L says 256 bits. */
export const isWide = (ctx: FpContext): boolean => ctx.insn.vex.l === 1 && ctx.insn.vex.present;
/** Bytes of an operand in memory. */
export const memorySize = (ctx: FpContext, operand: VectorOperand): number =>
  operand.byLength && isWide(ctx) ? 32 : operand.size;

export const isMmx = (operand: VectorOperand): boolean =>
  operand.letter === 'P' || operand.letter === 'Q' || operand.letter === 'N';

/** True if the operand is memory in this instruction. */
export const inMemory = (ctx: FpContext, operand: VectorOperand): boolean =>
  ctx.insn.mod !== 3 && 'WQEMR'.includes(operand.letter);

/** Linear address of a 16- or 32-byte operand: #GP(0) if it must be aligned and isn't. */
function linearOf(ctx: FpContext, size: number, aligned: boolean, write: boolean): bigint {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  const mask = BigInt(size - 1);
  // Misalignment comes before the check of limit or canonical form (#GP, not #SS).
  if (aligned) {
    const based = ctx.mode !== 'prot64' || seg === Seg.FS || seg === Seg.GS;
    const base = based ? ctx.ops.getCachedSegmentBase(seg as SegmentIndex) : 0n;
    if (((base + offset) & mask) !== 0n) ctx.raise(Vector.GP, 0);
  }
  const linear = ctx.linearize(seg, offset, size, write);
  if (aligned && (linear & mask) !== 0n) ctx.raise(Vector.GP, 0);
  return linear;
}

export function readMemory(ctx: FpContext, size: number, aligned: boolean): bigint {
  if (size >= 16) return ctx.readLinear(linearOf(ctx, size, aligned, false), size, false);
  return ctx.read(ctx.insn.seg, ctx.effectiveAddress(), size);
}

export function writeMemory(ctx: FpContext, value: bigint, size: number, aligned: boolean): void {
  if (size >= 16) ctx.ops.writeEmulated(linearOf(ctx, size, aligned, true), value, size);
  else ctx.write(ctx.insn.seg, ctx.effectiveAddress(), value, size);
}

/** Number of the vector register that an operand names. */
export function registerOf(ctx: FpContext, operand: VectorOperand): number {
  const { insn } = ctx;
  if (operand.letter === 'V') return insn.reg;
  if (operand.letter === 'H') return insn.vex.vvvv;
  // imm[7:4]; outside 64-bit mode there are eight registers.
  if (operand.letter === 'L') return (Number(insn.imm) >> 4) & (ctx.mode === 'prot64' ? 15 : 7);
  return insn.rm;
}

/** Reads a register or memory operand; memory is zero-extended. `high`: also bits 255:128. */
export function readVector(ctx: FpContext, fpu: FpuArea, operand: VectorOperand, into: Lanes, high?: Lanes): void {
  const { insn } = ctx;
  if (inMemory(ctx, operand)) {
    const size = memorySize(ctx, operand);
    const value = readMemory(ctx, size, isAligned(ctx, operand));
    into.load(size === 32 ? BigInt.asUintN(128, value) : value, Math.min(size, 16));
    high?.load(size === 32 ? value >> 128n : 0n, 16);
    return;
  }
  if (operand.letter === 'P') fpu.readMm(insn.reg & 7, into);
  else if (operand.letter === 'Q' || operand.letter === 'N') fpu.readMm(insn.rm & 7, into);
  else {
    const register = registerOf(ctx, operand);
    fpu.readXmm(register, into);
    if (high !== undefined) fpu.readHigh(register, high);
  }
}

/**
 * Writes a register operand; an MMX one enters MMX mode. With VEX bits 255:128 are `high` or zero, without they stay.
 */
export function writeVector(ctx: FpContext, fpu: FpuArea, operand: VectorOperand, from: Lanes, high?: Lanes): void {
  const { insn } = ctx;
  if (operand.letter === 'P') fpu.writeMm(insn.reg & 7, from);
  else if (operand.letter === 'Q' || operand.letter === 'N') fpu.writeMm(insn.rm & 7, from);
  else {
    const register = registerOf(ctx, operand);
    fpu.writeXmm(register, from);
    if (operand.vex) fpu.writeHigh(register, high ?? ZERO);
  }
}
const ZERO = new Lanes();

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
