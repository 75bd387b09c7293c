/**
 * AES, PCLMULQDQ and SHA, recorded.
 * Manual: APM vol. 4 (AESDEC to AESKEYGENASSIST, PCLMULQDQ, SHA1..., SHA256...), FIPS 197 and 180-4 (the algorithms).
 */
import type { Value } from '../../builder/builder.ts';
import type { V128, VectorBuilder } from '../../builder/vector.ts';
import { INVERSE_S_BOX, S_BOX } from '../simd/crypto.ts';
import { lanesOf, ofSource, perHalf } from './integer.ts';
import { bytesFrom, type Rule } from './rule.ts';

const everyByte = (byte: number): bigint => BigInt(byte) * 0x01010101010101010101010101010101n;
const fromBytes = (bytes: ArrayLike<number>): bigint =>
  Array.from(bytes).reduceRight((bits, byte) => (bits << 8n) | BigInt(byte), 0n);
const xor = (b: VectorBuilder, ...terms: readonly V128[]): V128 => terms.reduce((x, y) => b.v2('v128Xor', x, y));

// AES

/** A table of 256 bytes, sixteen at a time: swizzle gives zero for all numbers beyond. */
function substitute(b: VectorBuilder, x: V128, table: Uint8Array): V128 {
  const parts = Array.from({ length: 16 }, (_, i) =>
    b.v2(
      'i8x16Swizzle',
      b.vconst(fromBytes(table.subarray(i * 16, i * 16 + 16))),
      xor(b, x, b.vconst(everyByte(i << 4))),
    ),
  );
  return parts.reduce((sum, part) => b.v2('v128Or', sum, part));
}
/** Rows are the bytes i & 3 of the columns: row r moves by r columns. */
const shiftRows = (b: VectorBuilder, x: V128, inverse: boolean): V128 =>
  b.shuffle(
    x,
    x,
    bytesFrom((i) => (i + (inverse ? -4 : 4) * (i & 3)) & 15),
  );
/** Columns turned by so many bytes. */
const turned = (b: VectorBuilder, x: V128, by: number): V128 =>
  b.shuffle(
    x,
    x,
    bytesFrom((i) => (i & 12) | ((i + by) & 3)),
  );
/** Times x in the field. */
const double = (b: VectorBuilder, x: V128): V128 =>
  xor(b, b.v2('i8x16Add', x, x), b.v2('v128And', b.v2('i8x16GtS', b.vconst(0n), x), b.vconst(everyByte(0x1b))));
/** 2 a0 + 3 a1 + a2 + a3 = 2 (a0 + a1) + a1 + a2 + a3. */
function mixColumns(b: VectorBuilder, x: V128): V128 {
  const next = turned(b, x, 1);
  return xor(b, double(b, xor(b, x, next)), next, turned(b, x, 2), turned(b, x, 3));
}
/** The inverse matrix is that of the mix times (5, 0, 4, 0): a0 + 4 (a0 + a2). */
const unmixColumns = (b: VectorBuilder, x: V128): V128 =>
  mixColumns(b, xor(b, x, double(b, double(b, xor(b, x, turned(b, x, 2))))));

const encrypt = (last: boolean): Rule =>
  perHalf((b, x, key) => {
    const substituted = substitute(b, shiftRows(b, x, false), S_BOX);
    return xor(b, last ? substituted : mixColumns(b, substituted), key);
  });
const decrypt = (last: boolean): Rule =>
  perHalf((b, x, key) => {
    const substituted = substitute(b, shiftRows(b, x, true), INVERSE_S_BOX);
    return xor(b, last ? substituted : unmixColumns(b, substituted), key);
  });
/** Dwords 1 and 3, substituted, as they are and turned by a byte with the immediate. */
const keygenAssist = ofSource((b, x, _half, imm) => {
  const substituted = substitute(b, x, S_BOX);
  const lanes = [4, 5, 6, 7, 5, 6, 7, 4, 12, 13, 14, 15, 13, 14, 15, 12];
  return xor(b, b.shuffle(substituted, substituted, lanes), b.vconst((BigInt(imm) << 32n) | (BigInt(imm) << 96n)));
});

// Carry-less products

const STRIDE = [0x1111111111111111n, 0x2222222222222222n, 0x4444444444444444n, 0x8888888888888888n];

/**
 * The low 64 bits of x * y without carries: of each factor every fourth bit at a time, so that the carries of the integer products stay in
 * the gaps.
 */
function lowProduct(b: VectorBuilder, x: Value, y: Value): Value {
  const xs = STRIDE.map((mask) => b.and(x, b.const(mask)));
  const ys = STRIDE.map((mask) => b.and(y, b.const(mask)));
  const parts = STRIDE.map((mask, i) => {
    const products = xs.map((part, j) => b.mul(part, ys[(i - j) & 3]!));
    return b.and(
      products.reduce((sum, product) => b.xor(sum, product)),
      b.const(mask),
    );
  });
  return parts.reduce((sum, part) => b.or(sum, part));
}
const SWAPS = [
  [1, 0x5555555555555555n],
  [2, 0x3333333333333333n],
  [4, 0x0f0f0f0f0f0f0f0fn],
] as const;
function reverseBits(b: VectorBuilder, x: Value): Value {
  const swapped = SWAPS.reduce((value, [by, mask]) => {
    const low = b.shl(b.and(value, b.const(mask)), b.const(by));
    return b.or(low, b.and(b.shrU(value, b.const(by)), b.const(mask)));
  }, x);
  return b.bswap(swapped, 8);
}
const pclmulqdq = perHalf((b, x, y, _half, imm) => {
  const p = b.extract('i64x2ExtractLane', x, imm & 1);
  const q = b.extract('i64x2ExtractLane', y, (imm >> 4) & 1);
  // The product of reversed factors is the reversed product: its low half is the upper one, but for a bit.
  const reversed = lowProduct(b, reverseBits(b, p), reverseBits(b, q));
  const high = b.shrU(reverseBits(b, reversed), b.const(1));
  const low = b.replace('i64x2ReplaceLane', b.vconst(0n), 0, lowProduct(b, p, q));
  return b.replace('i64x2ReplaceLane', low, 1, high);
});

// SHA: words are values of 32 bits, lane 3 is the first

const words = (b: VectorBuilder, x: V128): Value[] => [0, 1, 2, 3].map((i) => b.extract('i32x4ExtractLane', x, i));
const fromWords = (b: VectorBuilder, values: readonly Value[]): V128 =>
  values.reduce((vector, value, i) => b.replace('i32x4ReplaceLane', vector, i, value), b.vconst(0n));
const sum = (b: VectorBuilder, ...terms: readonly Value[]): Value =>
  b.zext(
    terms.reduce((x, y) => b.add(x, y)),
    4,
  );
const xorValues = (b: VectorBuilder, ...terms: readonly Value[]): Value => terms.reduce((x, y) => b.xor(x, y));
/** Low 32 bits: exclusive or of rotations to the right. */
function rotations(b: VectorBuilder, x: Value, ...counts: readonly number[]): Value {
  const doubled = b.or(x, b.shl(x, b.const(32)));
  return b.zext(xorValues(b, ...counts.map((count) => b.shrU(doubled, b.const(count)))), 4);
}
const rotateLeft = (b: VectorBuilder, x: Value, by: number): Value => rotations(b, x, 32 - by);
const choose = (b: VectorBuilder, x: Value, y: Value, z: Value): Value => b.xor(b.and(x, b.xor(y, z)), z);
const majority = (b: VectorBuilder, x: Value, y: Value, z: Value): Value => b.or(b.and(x, y), b.and(z, b.or(x, y)));
const parity = (b: VectorBuilder, x: Value, y: Value, z: Value): Value => xorValues(b, x, y, z);

const sha256rnds2: Rule = (o) => {
  const { b } = o;
  const k = words(b, b.getRegister(0, 0));
  const source = words(b, o.read(o.src)[0]!);
  let [h, g, d, c] = words(b, o.read(o.first)[0]!) as [Value, Value, Value, Value];
  let [f, e, bb, a] = source as [Value, Value, Value, Value];
  for (let i = 0; i < 2; i++) {
    const first = sum(b, h, rotations(b, e, 6, 11, 25), choose(b, e, f, g), k[i]!);
    const second = b.add(rotations(b, a, 2, 13, 22), majority(b, a, bb, c));
    [h, g, f, e, d, c, bb, a] = [g, f, e, sum(b, d, first), c, bb, a, sum(b, first, second)];
  }
  o.write(o.dst, [fromWords(b, [f, e, bb, a])]);
};

const rotateLanes = (b: VectorBuilder, x: V128, right: number): V128 =>
  b.v2('v128Or', b.vshift('i32x4ShrU', x, b.const(right)), b.vshift('i32x4Shl', x, b.const(32 - right)));
const smallSigma = (b: VectorBuilder, x: V128, first: number, second: number, shift: number): V128 =>
  xor(b, rotateLanes(b, x, first), rotateLanes(b, x, second), b.vshift('i32x4ShrU', x, b.const(shift)));
const sha256msg1 = perHalf((b, x, y) => {
  const next = b.shuffle(
    x,
    y,
    lanesOf(4, (i) => i + 1),
  );
  return b.v2('i32x4Add', x, smallSigma(b, next, 7, 18, 3));
});
/** The upper two lanes follow the lower two. */
const sha256msg2 = perHalf((b, x, y) => {
  const zero = b.vconst(0n);
  const step = (source: V128, lanes: readonly number[]): V128 =>
    smallSigma(
      b,
      b.shuffle(
        source,
        zero,
        lanesOf(4, (i) => lanes[i]!),
      ),
      17,
      19,
      10,
    );
  const low = b.v2('i32x4Add', x, step(y, [2, 3, 4, 4]));
  return b.v2('i32x4Add', low, step(low, [4, 4, 0, 1]));
});

const SHA1_ROUNDS = [
  { f: choose, k: 0x5a827999 },
  { f: parity, k: 0x6ed9eba1 },
  { f: majority, k: 0x8f1bbcdc },
  { f: parity, k: 0xca62c1d6 },
];
const sha1rnds4 = perHalf((b, state, message, _half, imm) => {
  const { f, k } = SHA1_ROUNDS[imm & 3]!;
  const m = words(b, message);
  let [d, c, bb, a] = words(b, state) as [Value, Value, Value, Value];
  let e = b.const(0);
  for (let i = 3; i >= 0; i--) {
    const next = sum(b, rotateLeft(b, a, 5), f(b, bb, c, d), e, b.const(k), m[i]!);
    [e, d, c, bb, a] = [d, c, rotateLeft(b, bb, 30), a, next];
  }
  return fromWords(b, [d, c, bb, a]);
});
const sha1nexte = perHalf((b, x, y) => {
  const e = rotateLeft(b, b.extract('i32x4ExtractLane', x, 3), 30);
  return b.replace('i32x4ReplaceLane', y, 3, sum(b, b.extract('i32x4ExtractLane', y, 3), e));
});
const sha1msg1 = perHalf((b, x, y) =>
  xor(
    b,
    x,
    b.shuffle(
      x,
      y,
      lanesOf(4, (i) => (i < 2 ? 6 + i : i - 2)),
    ),
  ),
);
const sha1msg2 = perHalf((b, x, y) => {
  const [x0, x1, x2, x3] = words(b, x) as [Value, Value, Value, Value];
  const [y0, y1, y2] = words(b, y) as [Value, Value, Value, Value];
  const turn = (p: Value, q: Value): Value => rotateLeft(b, b.xor(p, q), 1);
  const r3 = turn(x3, y2);
  return fromWords(b, [turn(x0, r3), turn(x1, y0), turn(x2, y1), r3]);
});

export const CRYPTO: Readonly<Record<string, Rule>> = {
  aesenc: encrypt(false),
  aesenclast: encrypt(true),
  aesdec: decrypt(false),
  aesdeclast: decrypt(true),
  aesimc: ofSource((b, x) => unmixColumns(b, x)),
  aeskeygenassist: keygenAssist,
  pclmulqdq,
  sha256rnds2,
  sha256msg1,
  sha256msg2,
  sha1rnds4,
  sha1nexte,
  sha1msg1,
  sha1msg2,
};
