/**
 * RDRAND and RDSEED. The numbers are a sequence that belongs to the machine: it starts from a seed and is saved, so that runs repeat.
 * Manual: APM vol. 3 RDRAND and RDSEED.
 */
import { X86Emul } from '../ops.ts';
import { Flag } from '../state-layout.ts';
import { maskOf } from './common.ts';
import type { SystemFunction } from './context.ts';

const STEP = 0x9e37_79b9_7f4a_7c15n;

/** The next state of the sequence. */
export const nextRandomState = (state: bigint): bigint => BigInt.asUintN(64, state + STEP);

/** SplitMix64: the number that belongs to a state; neighbouring states spread over all 64 bits. */
export const randomOf = (state: bigint): bigint => {
  let z = state;
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn);
  return z ^ (z >> 31n);
};

/** CF says that there is a number, and without one the destination is zero; the other arithmetic flags are cleared. */
const random: SystemFunction = (ctx) => {
  const { insn } = ctx;
  const value = ctx.ops.random?.();
  ctx.setReg(insn.rm, insn.opSize, (value ?? 0n) & maskOf(insn.opSize));
  ctx.rflags = (ctx.rflags & ~BigInt(Flag.arith)) | BigInt(value === undefined ? 0 : Flag.CF);
  return X86Emul.CONTINUE;
};

export const RANDOM_INSTRUCTIONS = { rdrand: random, rdseed: random } as const satisfies Record<string, SystemFunction>;
