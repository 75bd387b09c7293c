/**
 * What AVX and AVX2 add: broadcasts, permutations, halves of 128 bits, shifts by lane, VZEROUPPER and VZEROALL; and blends by a mask. Recorded.
 * Manual: APM vol. 4 (the instructions by name).
 */
import type { V128, VectorBuilder } from '../../builder/vector.ts';
import type { SimdShift } from '../../engines/wasm/simd.ts';
import { lanesOf, perHalf, shuffledSource } from './integer.ts';
import type { Operands } from './operands.ts';
import { bytesFrom, type Rule } from './rule.ts';

/** A byte, or eight of them, in all places. */
const everyByte = (byte: number): bigint => BigInt(byte) * 0x01010101010101010101010101010101n;
const twice = (bits: bigint): bigint => (bits << 64n) | bits;
const fourTimes = (bits: bigint): bigint => twice((bits << 32n) | bits);

/** In 64-bit mode all sixteen registers, elsewhere eight. */
const clear =
  (all: boolean): Rule =>
  ({ b }) => {
    for (let n = 0; n < (b.codeSize === 8 ? 16 : 8); n++) {
      if (all) b.setRegister(n, 0, b.vconst(0n));
      b.setRegister(n, 1, b.vconst(0n));
    }
  };

const broadcast =
  (bytes: 1 | 2 | 4 | 8 | 16): Rule =>
  (o) => {
    const { b } = o;
    const inMemory = o.isMemory(o.src);
    const source = !inMemory ? b.getVector('rm', 0) : bytes === 16 ? b.loadVector(0) : o.scalar(o.src, bytes);
    const all = b.shuffle(
      source,
      source,
      bytesFrom((i) => i & (bytes - 1)),
    );
    o.write(o.dst, o.halves === 2 ? [all, all] : [all]);
  };

const insertHalf: Rule = (o) => {
  const [low, high] = o.read(o.first);
  const source = o.read(o.src)[0]!;
  o.write(o.dst, (o.form.imm & 1) !== 0 ? [low!, source] : [source, high!]);
};
const extractHalf: Rule = (o) => o.store(o.dst, [o.read(o.src)[o.form.imm & 1]!]);

/** Per half four bits choose one of four halves, or zero. */
const permuteHalves: Rule = (o) => {
  const halves = [...o.read(o.first), ...o.read(o.src)];
  const chosen = (control: number): V128 => ((control & 8) !== 0 ? o.b.vconst(0n) : halves[control & 3]!);
  o.write(o.dst, [chosen(o.form.imm), chosen(o.form.imm >> 4)]);
};
/** Two bits of the immediate for each quadword. */
const permuteQuadwords: Rule = (o) => {
  const src = o.read(o.src);
  const pick = (half: number): V128 => {
    const [low, high] = [0, 1].map((i) => (o.form.imm >> (4 * half + 2 * i)) & 3) as [number, number];
    const lanes = bytesFrom((i) => (i < 8 ? (low & 1) * 8 + i : 16 + (high & 1) * 8 + i - 8));
    return o.b.shuffle(src[low >> 1]!, src[high >> 1]!, lanes);
  };
  o.write(o.dst, [pick(0), pick(1)]);
};

/** Numbers of dwords (up to 7) as numbers of their bytes. */
const dwordBytes = (b: VectorBuilder, numbers: V128): V128 =>
  b.v2('i32x4Add', b.v2('i32x4Mul', numbers, b.vconst(fourTimes(0x04040404n))), b.vconst(fourTimes(0x03020100n)));

/** The first source holds the numbers of dwords. */
const permuteDwords: Rule = (o) => {
  const { b } = o;
  const [low, high] = o.read(o.src);
  const result = o.read(o.first).map((numbers) => {
    const bytes = dwordBytes(b, b.v2('v128And', numbers, b.vconst(fourTimes(7n))));
    // Where a number lies in the other half, swizzle gives zero.
    const above = b.v2('i8x16Sub', bytes, b.vconst(everyByte(16)));
    return b.v2('v128Or', b.v2('i8x16Swizzle', low!, bytes), b.v2('i8x16Swizzle', high!, above));
  });
  o.write(o.dst, result);
};

const byImmediate = (o: Operands): boolean => o.form.operands.at(-1) === 'Ib';
const singlesByVector = perHalf((b, x, control) =>
  b.v2('i8x16Swizzle', x, dwordBytes(b, b.v2('v128And', control, b.vconst(fourTimes(3n))))),
);
/** Bit 1 of each quadword chooses. */
const doublesByVector = perHalf((b, x, control) => {
  const bit = b.v2('v128And', b.vshift('i64x2ShrU', control, b.const(1)), b.vconst(twice(1n)));
  const upper = b.v2('v128And', b.v2('i64x2Sub', b.vconst(0n), bit), b.vconst(everyByte(8)));
  return b.v2('i8x16Swizzle', x, b.v2('i8x16Add', upper, b.vconst(twice(0x0706050403020100n))));
});
const singlesByImmediate = shuffledSource((_half, imm) => lanesOf(4, (i) => (imm >> (2 * i)) & 3));
const doublesByImmediate = shuffledSource((half, imm) => lanesOf(8, (i) => (imm >> (2 * half + i)) & 1));

/** Where the top bit of the mask's lane is set, the second source. The mask is XMM0, or the register in the immediate's upper half. */
const blendByMask =
  (op: SimdShift, bits: number): Rule =>
  (o) => {
    const { b } = o;
    const number = o.form.vex ? (o.form.imm >> 4) & (b.codeSize === 8 ? 15 : 7) : 0;
    const src = o.read(o.src);
    const result = o.read(o.first).map((x, half) => {
      const mask = b.vshift(op, b.getRegister(number, half as 0 | 1), b.const(bits - 1));
      return b.bitselect(src[half]!, x, mask);
    });
    o.write(o.dst, result);
  };

/** Each lane by the count in the same lane of the second source. */
const shiftLanes =
  (width: 4 | 8, kind: 'left' | 'right' | 'arithmetic'): Rule =>
  (o) => {
    const { b } = o;
    const bits = b.const(width * 8);
    const src = o.read(o.src);
    const [extract, replace] =
      width === 4
        ? (['i32x4ExtractLane', 'i32x4ReplaceLane'] as const)
        : (['i64x2ExtractLane', 'i64x2ReplaceLane'] as const);
    const result = o.read(o.first).map((x, half) => {
      let out = x;
      for (let lane = 0; lane < 16 / width; lane++) {
        const value = b.extract(extract, x, lane);
        const count = b.extract(extract, src[half]!, lane);
        const over = b.leU(bits, count);
        const limited = b.select(over, b.const(width * 8 - 1), count);
        const shifted =
          kind === 'arithmetic'
            ? b.shrS(b.sext(value, width), limited)
            : b.select(over, b.const(0), kind === 'left' ? b.shl(value, count) : b.shrU(value, count));
        out = b.replace(replace, out, lane, shifted);
      }
      return out;
    });
    o.write(o.dst, result);
  };

export const PERMUTATIONS: Readonly<Record<string, Rule>> = {
  zeroupper: clear(false),
  zeroall: clear(true),
  pbroadcastb: broadcast(1),
  pbroadcastw: broadcast(2),
  pbroadcastd: broadcast(4),
  pbroadcastq: broadcast(8),
  broadcastss: broadcast(4),
  broadcastsd: broadcast(8),
  broadcastf128: broadcast(16),
  broadcasti128: broadcast(16),
  insertf128: insertHalf,
  inserti128: insertHalf,
  extractf128: extractHalf,
  extracti128: extractHalf,
  perm2f128: permuteHalves,
  perm2i128: permuteHalves,
  permq: permuteQuadwords,
  permpd: permuteQuadwords,
  permd: permuteDwords,
  permps: permuteDwords,
  permilps: (o) => (byImmediate(o) ? singlesByImmediate : singlesByVector)(o),
  permilpd: (o) => (byImmediate(o) ? doublesByImmediate : doublesByVector)(o),
  pblendvb: blendByMask('i8x16ShrS', 8),
  blendvps: blendByMask('i32x4ShrS', 32),
  blendvpd: blendByMask('i64x2ShrS', 64),
  psllvd: shiftLanes(4, 'left'),
  psllvq: shiftLanes(8, 'left'),
  psrlvd: shiftLanes(4, 'right'),
  psrlvq: shiftLanes(8, 'right'),
  psravd: shiftLanes(4, 'arithmetic'),
};
