/**
 * RDRAND and RDSEED. There is no random source: the numbers follow from the time stamp counter, so that runs repeat.
 * Manual: APM vol. 3 RDRAND and RDSEED.
 */
import { X86Emul } from '../ops.ts';
import { Flag } from '../state-layout.ts';
import { maskOf } from './common.ts';
import type { SystemFunction } from './context.ts';

/** SplitMix64: a bijection that spreads neighbouring time stamps over all 64 bits. */
const mix = (value: bigint): bigint => {
  let z = BigInt.asUintN(64, value + 0x9e37_79b9_7f4a_7c15n);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn);
  return z ^ (z >> 31n);
};

/** Always succeeds: CF is set, the other arithmetic flags are cleared. */
const random =
  (salt: bigint): SystemFunction =>
  (ctx) => {
    const { insn } = ctx;
    ctx.setReg(insn.rm, insn.opSize, mix(ctx.ops.rdtsc() ^ salt) & maskOf(insn.opSize));
    ctx.rflags = (ctx.rflags & ~BigInt(Flag.arith)) | BigInt(Flag.CF);
    return X86Emul.CONTINUE;
  };

export const RANDOM_INSTRUCTIONS = { rdrand: random(0n), rdseed: random(0x5eed_0000n) } as const satisfies Record<
  string,
  SystemFunction
>;
