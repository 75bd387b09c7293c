/**
 * VM-exit instruction information: how the exiting instruction named its operands.
 * Manual: SDM vol. 3 tables 27-9 to 27-15.
 */
import type { InstructionInfo, Intercept } from '@tskvm/emulator';

/** Bits 29:28 of LGDT's and LLDT's families (SDM tables 27-11 and 27-12). */
const IDENTITY: { readonly [I in Intercept]?: number } = {
  sgdt: 0,
  sidt: 1,
  lgdt: 2,
  lidt: 3,
  sldt: 0,
  str: 1,
  lldt: 2,
  ltr: 3,
};
const REG2: ReadonlySet<Intercept> = new Set(['vmread', 'vmwrite', 'invept', 'invvpid', 'invpcid']);

const NO_INDEX = 1 << 22;
const NO_BASE = 1 << 27;

/** Scale, index, base and segment of a memory operand; absent parts are marked invalid. */
function memoryOperand(info: InstructionInfo): number {
  const { scale = 0, index = -1, base = -1 } = info;
  return (
    (scale & 3) |
    ((info.adBytes >> 2) << 7) |
    ((info.seg & 7) << 15) |
    (index < 0 ? NO_INDEX : (index & 15) << 18) |
    (base < 0 ? NO_BASE : (base & 15) << 23)
  );
}

/** The field's value for an instruction that has one. */
export function instructionInformation(info: InstructionInfo): number {
  const register = info.mod === 3;
  const identity = IDENTITY[info.intercept];
  const size = info.dstBytes === 8 ? 2 : info.dstBytes === 4 ? 1 : 0;
  if (info.intercept === 'rdrand' || info.intercept === 'rdseed') return ((info.rm & 15) << 3) | (size << 11);
  let value = register ? ((info.rm & 15) << 3) | (1 << 10) : memoryOperand(info);
  if (identity !== undefined) value |= (identity << 28) | (size ? 1 << 11 : 0);
  if (REG2.has(info.intercept)) value |= (info.reg & 15) << 28;
  return value >>> 0;
}
