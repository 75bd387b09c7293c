/**
 * AES, PCLMULQDQ and SHA kernels.
 * Manual: APM vol. 4 (AESDEC to AESKEYGENASSIST, PCLMULQDQ, SHA1..., SHA256...), FIPS 197 and 180-4 (the algorithms).
 */
import type { Kernel, Lanes } from './lanes.ts';

/** Multiplication by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
const double = (a: number): number => ((a << 1) ^ ((a & 0x80) !== 0 ? 0x1b : 0)) & 0xff;

function product(a: number, b: number): number {
  let sum = 0;
  for (let x = a, y = b; y !== 0; y >>= 1, x = double(x)) if ((y & 1) !== 0) sum ^= x;
  return sum;
}

/** a^254 is the inverse of a, and 0 for 0. */
const INVERSES = Uint8Array.from({ length: 256 }, (_, a) => {
  let inverse = a;
  for (let i = 0; i < 6; i++) inverse = product(product(inverse, inverse), a);
  return product(inverse, inverse);
});

/** The S-box: the inverse in the field, then an affine map. */
export const S_BOX = INVERSES.map((inverse) => {
  let result = 0x63;
  for (let shift = 0; shift < 5; shift++) result ^= (inverse << shift) | (inverse >> (8 - shift));
  return result & 0xff;
});
export const INVERSE_S_BOX = new Uint8Array(256);
S_BOX.forEach((value, i) => {
  INVERSE_S_BOX[value] = i;
});

/** Byte i of the state comes from byte (i * 5) & 15: rows shift left by their number; the inverse goes by 13. */
function substitute(r: Lanes, a: Lanes, box: Uint8Array, step: 5 | 13): void {
  for (let i = 0; i < 16; i++) {
    const column = i & ~3;
    const row = i & 3;
    r.u8[i] = box[a.u8[((column + (step === 5 ? 4 : -4) * row) & 12) | row]!]!;
  }
}

function mixColumns(v: Lanes, coefficients: readonly number[]): void {
  for (let c = 0; c < 16; c += 4) {
    const column = [0, 1, 2, 3].map((i) => v.u8[c + i]!);
    for (let i = 0; i < 4; i++) {
      let sum = 0;
      for (let j = 0; j < 4; j++) sum ^= product(column[j]!, coefficients[(j - i + 4) & 3]!);
      v.u8[c + i] = sum;
    }
  }
}
const MIX = [2, 3, 1, 1];
const INVERSE_MIX = [14, 11, 13, 9];

const aes =
  (decrypt: boolean, last: boolean): Kernel =>
  (r, a, b) => {
    substitute(r, a, decrypt ? INVERSE_S_BOX : S_BOX, decrypt ? 13 : 5);
    if (!last) mixColumns(r, decrypt ? INVERSE_MIX : MIX);
    for (let i = 0; i < 4; i++) r.i32[i] = r.i32[i]! ^ b.i32[i]!;
  };

const subWord = (word: number): number =>
  S_BOX[word & 255]! |
  (S_BOX[(word >>> 8) & 255]! << 8) |
  (S_BOX[(word >>> 16) & 255]! << 16) |
  (S_BOX[word >>> 24]! << 24);

const aeskeygenassist: Kernel = (r, _a, b, imm) => {
  for (const lane of [1, 3]) {
    const word = subWord(b.u32[lane]!);
    r.i32[lane - 1] = word;
    r.i32[lane] = rotateRight(word, 8) ^ imm;
  }
};

const pclmulqdq: Kernel = (r, a, b, imm) => {
  const x = a.u64[imm & 1]!;
  let result = 0n;
  for (let y = b.u64[(imm >> 4) & 1]!, shift = 0n; y !== 0n; y >>= 1n, shift++) {
    if ((y & 1n) !== 0n) result ^= x << shift;
  }
  r.u64[0] = BigInt.asUintN(64, result);
  r.u64[1] = result >> 64n;
};

// GFNI: bytes are elements of GF(2^8) under AES's polynomial

/** Each byte of the first source times the second's. */
const gf2p8mulb: Kernel = (r, a, b) => {
  for (let i = 0; i < 16; i++) r.u8[i] = product(a.u8[i]!, b.u8[i]!);
};

const parityOf = (byte: number): number => (0x6996 >> ((byte ^ (byte >> 4)) & 15)) & 1;

/** An affine map: each byte of the first source, or its inverse, times the 8x8 bit matrix of its quadword in the second; plus imm. */
const affine =
  (inverse: boolean): Kernel =>
  (r, a, b, imm) => {
    for (let i = 0; i < 16; i++) {
      const x = inverse ? INVERSES[a.u8[i]!]! : a.u8[i]!;
      let byte = imm & 0xff;
      for (let bit = 0; bit < 8; bit++) byte ^= parityOf(x & b.u8[(i & 8) + 7 - bit]!) << bit;
      r.u8[i] = byte;
    }
  };

// SHA: lane 3 is the first word of a block

const rotateLeft = (x: number, n: number): number => (x << n) | (x >>> (32 - n));
const rotateRight = (x: number, n: number): number => (x >>> n) | (x << (32 - n));

const choose = (x: number, y: number, z: number): number => (x & y) ^ (~x & z);
const majority = (x: number, y: number, z: number): number => (x & y) ^ (x & z) ^ (y & z);
const parity = (x: number, y: number, z: number): number => x ^ y ^ z;

const SHA1_ROUNDS = [
  { f: choose, k: 0x5a827999 },
  { f: parity, k: 0x6ed9eba1 },
  { f: majority, k: 0x8f1bbcdc },
  { f: parity, k: 0xca62c1d6 },
];

/** Four rounds; `b` holds the message words with E added to the first. */
const sha1rnds4: Kernel = (r, s, m, imm) => {
  const { f, k } = SHA1_ROUNDS[imm & 3]!;
  let [d, c, b, a] = s.i32 as unknown as [number, number, number, number];
  let e = 0;
  for (let i = 3; i >= 0; i--) {
    const next = (rotateLeft(a, 5) + f(b, c, d) + e + k + m.i32[i]!) | 0;
    [e, d, c, b, a] = [d, c, rotateLeft(b, 30), a, next];
  }
  r.i32.set([d, c, b, a]);
};
const sha1nexte: Kernel = (r, a, b) => {
  r.copy(b);
  r.i32[3] = b.i32[3]! + rotateLeft(a.i32[3]!, 30);
};
const sha1msg1: Kernel = (r, a, b) => {
  r.i32[3] = a.i32[1]! ^ a.i32[3]!;
  r.i32[2] = a.i32[0]! ^ a.i32[2]!;
  r.i32[1] = b.i32[3]! ^ a.i32[1]!;
  r.i32[0] = b.i32[2]! ^ a.i32[0]!;
};
const sha1msg2: Kernel = (r, a, b) => {
  r.i32[3] = rotateLeft(a.i32[3]! ^ b.i32[2]!, 1);
  r.i32[2] = rotateLeft(a.i32[2]! ^ b.i32[1]!, 1);
  r.i32[1] = rotateLeft(a.i32[1]! ^ b.i32[0]!, 1);
  r.i32[0] = rotateLeft(a.i32[0]! ^ r.i32[3]!, 1);
};

const smallSigma0 = (x: number): number => rotateRight(x, 7) ^ rotateRight(x, 18) ^ (x >>> 3);
const smallSigma1 = (x: number): number => rotateRight(x, 17) ^ rotateRight(x, 19) ^ (x >>> 10);
const bigSigma0 = (x: number): number => rotateRight(x, 2) ^ rotateRight(x, 13) ^ rotateRight(x, 22);
const bigSigma1 = (x: number): number => rotateRight(x, 6) ^ rotateRight(x, 11) ^ rotateRight(x, 25);

/** Two rounds: `s` is C D G H, `t` A B E F, from lane 3 down; the words with their constants are in `k`. */
export function sha256rnds2(r: Lanes, s: Lanes, t: Lanes, k: Lanes): void {
  let [h, g, d, c] = s.i32 as unknown as [number, number, number, number];
  let [f, e, b, a] = t.i32 as unknown as [number, number, number, number];
  for (let i = 0; i < 2; i++) {
    const first = (h + bigSigma1(e) + choose(e, f, g) + k.i32[i]!) | 0;
    const second = (bigSigma0(a) + majority(a, b, c)) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
  }
  r.i32.set([f, e, b, a]);
}
const sha256msg1: Kernel = (r, a, b) => {
  const next = [a.i32[1]!, a.i32[2]!, a.i32[3]!, b.i32[0]!];
  for (let i = 0; i < 4; i++) r.i32[i] = a.i32[i]! + smallSigma0(next[i]!);
};
const sha256msg2: Kernel = (r, a, b) => {
  r.i32[0] = a.i32[0]! + smallSigma1(b.i32[2]!);
  r.i32[1] = a.i32[1]! + smallSigma1(b.i32[3]!);
  r.i32[2] = a.i32[2]! + smallSigma1(r.i32[0]!);
  r.i32[3] = a.i32[3]! + smallSigma1(r.i32[1]!);
};

export const CRYPTO_KERNELS: Readonly<Record<string, Kernel>> = {
  aesenc: aes(false, false),
  aesenclast: aes(false, true),
  aesdec: aes(true, false),
  aesdeclast: aes(true, true),
  aesimc: (r, _a, b) => {
    r.copy(b);
    mixColumns(r, INVERSE_MIX);
  },
  aeskeygenassist,
  pclmulqdq,
  gf2p8mulb,
  gf2p8affineqb: affine(false),
  gf2p8affineinvqb: affine(true),
  sha1rnds4,
  sha1nexte,
  sha1msg1,
  sha1msg2,
  sha256msg1,
  sha256msg2,
};
