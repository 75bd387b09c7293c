/**
 * Kernels of packed integers: MMX, SSE2, SSSE3, SSE4.1.
 * Manual: APM vol. 4 and 5 (the instructions by name).
 */
import type { Kernel, Lanes } from './lanes.ts';

type View = 'u8' | 'i8' | 'u16' | 'i16' | 'u32' | 'i32';
const WIDTH: Readonly<Record<View, number>> = { u8: 1, i8: 1, u16: 2, i16: 2, u32: 4, i32: 4 };

/** One result lane from the same lane of both sources. */
const lanes =
  (view: View, f: (x: number, y: number) => number): Kernel =>
  (r, a, b, _imm, bytes) => {
    const count = bytes / WIDTH[view];
    const [to, x, y] = [r[view], a[view], b[view]];
    for (let i = 0; i < count; i++) to[i] = f(x[i]!, y[i]!);
  };
const lanes64 =
  (f: (x: bigint, y: bigint) => bigint, view: 'u64' | 'i64' = 'u64'): Kernel =>
  (r, a, b, _imm, bytes) => {
    for (let i = 0; i < bytes / 8; i++) r[view][i] = f(a[view][i]!, b[view][i]!);
  };
/** One source: the second operand. */
const unary = (view: View, f: (x: number) => number): Kernel => lanes(view, (_x, y) => f(y));

const clamp = (low: number, high: number) => (x: number) => Math.max(low, Math.min(x, high));
export const SATURATE = {
  i8: clamp(-128, 127),
  u8: clamp(0, 255),
  i16: clamp(-32768, 32767),
  u16: clamp(0, 65535),
};
const ones = (condition: boolean): number => (condition ? -1 : 0);

/** Interleaves the low or high halves. */
export const interleave =
  (view: View | 'u64', high: boolean): Kernel =>
  (r, a, b, _imm, bytes) => {
    const width = view === 'u64' ? 8 : WIDTH[view];
    const half = bytes / width / 2;
    const from = high ? half : 0;
    const to = r[view] as { [i: number]: number | bigint };
    for (let i = 0; i < half; i++) {
      to[2 * i] = a[view][from + i]!;
      to[2 * i + 1] = b[view][from + i]!;
    }
  };

/** Narrows both sources with saturation. */
const pack =
  (source: 'i16' | 'i32', to: 'i8' | 'u8' | 'i16' | 'u16'): Kernel =>
  (r, a, b, _imm, bytes) => {
    const half = bytes / WIDTH[source];
    const saturate = SATURATE[to];
    for (let i = 0; i < half; i++) {
      r[to][i] = saturate(a[source][i]!);
      r[to][half + i] = saturate(b[source][i]!);
    }
  };

/** Shifts by one count for all lanes; `over` says what a count beyond the lane gives. */
const shift =
  (view: View, bits: number, f: (x: number, n: number) => number, arithmetic = false): ShiftKernel =>
  (r, a, count, bytes) => {
    const lanesCount = bytes / WIDTH[view];
    const n = count >= bits ? (arithmetic ? bits - 1 : -1) : count;
    for (let i = 0; i < lanesCount; i++) r[view][i] = n < 0 ? 0 : f(a[view][i]!, n);
  };
const shift64 =
  (f: (x: bigint, n: bigint) => bigint): ShiftKernel =>
  (r, a, count, bytes) => {
    for (let i = 0; i < bytes / 8; i++) r.u64[i] = count > 63 ? 0n : f(a.u64[i]!, BigInt(count));
  };
export type ShiftKernel = (r: Lanes, a: Lanes, count: number, bytes: number) => void;

export const SHIFTS: Readonly<Record<string, ShiftKernel>> = {
  psllw: shift('u16', 16, (x, n) => x << n),
  pslld: shift('u32', 32, (x, n) => x << n),
  psllq: shift64((x, n) => x << n),
  psrlw: shift('u16', 16, (x, n) => x >>> n),
  psrld: shift('u32', 32, (x, n) => x >>> n),
  psrlq: shift64((x, n) => x >> n),
  psraw: shift('i16', 16, (x, n) => x >> n, true),
  psrad: shift('i32', 32, (x, n) => x >> n, true),
  pslldq: (r, a, count) => {
    for (let i = 0; i < 16; i++) r.u8[i] = i >= count ? a.u8[i - count]! : 0;
  },
  psrldq: (r, a, count) => {
    for (let i = 0; i < 16; i++) r.u8[i] = i + count < 16 ? a.u8[i + count]! : 0;
  },
};

/** Neighbouring lanes of both sources, joined. */
const horizontal =
  (view: 'i16' | 'i32', f: (x: number, y: number) => number): Kernel =>
  (r, a, b, _imm, bytes) => {
    const half = bytes / WIDTH[view] / 2;
    for (let i = 0; i < half; i++) {
      r[view][i] = f(a[view][2 * i]!, a[view][2 * i + 1]!);
      r[view][half + i] = f(b[view][2 * i]!, b[view][2 * i + 1]!);
    }
  };

const bitwise = (f: (x: number, y: number) => number): Kernel => lanes('i32', f);

const psadbw: Kernel = (r, a, b, _imm, bytes) => {
  for (let q = 0; q < bytes / 8; q++) {
    let sum = 0;
    for (let i = q * 8; i < q * 8 + 8; i++) sum += Math.abs(a.u8[i]! - b.u8[i]!);
    r.u32[q * 2] = sum;
    r.u32[q * 2 + 1] = 0;
  }
};

const pmaddwd: Kernel = (r, a, b, _imm, bytes) => {
  for (let i = 0; i < bytes / 4; i++) {
    r.i32[i] = (a.i16[2 * i]! * b.i16[2 * i]! + a.i16[2 * i + 1]! * b.i16[2 * i + 1]!) | 0;
  }
};

const pmaddubsw: Kernel = (r, a, b, _imm, bytes) => {
  for (let i = 0; i < bytes / 2; i++) {
    r.i16[i] = SATURATE.i16(a.u8[2 * i]! * b.i8[2 * i]! + a.u8[2 * i + 1]! * b.i8[2 * i + 1]!);
  }
};

const pshufb: Kernel = (r, a, b, _imm, bytes) => {
  for (let i = 0; i < bytes; i++) {
    const control = b.u8[i]!;
    r.u8[i] = (control & 0x80) !== 0 ? 0 : a.u8[control & (bytes - 1)]!;
  }
};

const palignr: Kernel = (r, a, b, imm, bytes) => {
  for (let i = 0; i < bytes; i++) {
    const from = i + imm;
    r.u8[i] = from < bytes ? b.u8[from]! : from < 2 * bytes ? a.u8[from - bytes]! : 0;
  }
};

/** Four lanes of the second source by the immediate's bit pairs. */
const shuffleWords =
  (base: number): Kernel =>
  (r, _a, b, imm) => {
    r.copy(b);
    for (let i = 0; i < 4; i++) r.u16[base + i] = b.u16[base + ((imm >> (2 * i)) & 3)]!;
  };
const pshufd: Kernel = (r, _a, b, imm) => {
  for (let i = 0; i < 4; i++) r.u32[i] = b.u32[(imm >> (2 * i)) & 3]!;
};
const shufps: Kernel = (r, a, b, imm) => {
  for (let i = 0; i < 4; i++) r.u32[i] = (i < 2 ? a : b).u32[(imm >> (2 * i)) & 3]!;
};
const shufpd: Kernel = (r, a, b, imm) => {
  r.u64[0] = a.u64[imm & 1]!;
  r.u64[1] = b.u64[(imm >> 1) & 1]!;
};

/** Products of the even lanes. */
const evenProducts =
  (view: 'u32' | 'i32', to: 'u64' | 'i64'): Kernel =>
  (r, a, b, _imm, bytes) => {
    for (let i = 0; i < bytes / 8; i++) r[to][i] = BigInt(a[view][2 * i]!) * BigInt(b[view][2 * i]!);
  };

const sign =
  (view: 'i8' | 'i16' | 'i32'): Kernel =>
  (r, a, b, imm, bytes) =>
    lanes(view, (x, y) => (y === 0 ? 0 : y < 0 ? -x : x))(r, a, b, imm, bytes);

/** Widens lanes of the second source's low part. */
const extend =
  (from: View, to: View | 'u64' | 'i64'): Kernel =>
  (r, _a, b) => {
    if (to === 'u64' || to === 'i64') for (let i = 0; i < 2; i++) r[to][i] = BigInt(b[from][i]!);
    else for (let i = 0; i < 16 / WIDTH[to]; i++) r[to][i] = b[from][i]!;
  };

const phminposuw: Kernel = (r, _a, b) => {
  let at = 0;
  for (let i = 1; i < 8; i++) if (b.u16[i]! < b.u16[at]!) at = i;
  r.u64.fill(0n);
  r.u16[0] = b.u16[at]!;
  r.u16[1] = at;
};

const mpsadbw: Kernel = (r, a, b, imm) => {
  const from = ((imm >> 2) & 1) * 4;
  const block = (imm & 3) * 4;
  for (let i = 0; i < 8; i++) {
    let sum = 0;
    for (let j = 0; j < 4; j++) sum += Math.abs(a.u8[from + i + j]! - b.u8[block + j]!);
    r.u16[i] = sum;
  }
};

/** Lanes of the second source where the immediate has a bit. */
const blend =
  (view: 'u16' | 'u32' | 'u64'): Kernel =>
  (r, a, b, imm) => {
    const count = r[view].length;
    const to = r[view] as { [i: number]: number | bigint };
    for (let i = 0; i < count; i++) to[i] = ((imm >> i) & 1) !== 0 ? b[view][i]! : a[view][i]!;
  };

const insertps: Kernel = (r, a, b, imm) => {
  r.copy(a);
  // A memory source is one element, zero-extended: the caller clears the selector.
  r.u32[(imm >> 4) & 3] = b.u32[(imm >> 6) & 3]!;
  for (let i = 0; i < 4; i++) if (((imm >> i) & 1) !== 0) r.u32[i] = 0;
};

export const KERNELS: Readonly<Record<string, Kernel>> = {
  punpcklbw: interleave('u8', false),
  punpcklwd: interleave('u16', false),
  punpckldq: interleave('u32', false),
  punpcklqdq: interleave('u64', false),
  punpckhbw: interleave('u8', true),
  punpckhwd: interleave('u16', true),
  punpckhdq: interleave('u32', true),
  punpckhqdq: interleave('u64', true),
  unpcklps: interleave('u32', false),
  unpcklpd: interleave('u64', false),
  unpckhps: interleave('u32', true),
  unpckhpd: interleave('u64', true),
  packsswb: pack('i16', 'i8'),
  packuswb: pack('i16', 'u8'),
  packssdw: pack('i32', 'i16'),
  packusdw: pack('i32', 'u16'),
  pcmpeqb: lanes('i8', (x, y) => ones(x === y)),
  pcmpeqw: lanes('i16', (x, y) => ones(x === y)),
  pcmpeqd: lanes('i32', (x, y) => ones(x === y)),
  pcmpeqq: lanes64((x, y) => (x === y ? -1n : 0n)),
  pcmpgtb: lanes('i8', (x, y) => ones(x > y)),
  pcmpgtw: lanes('i16', (x, y) => ones(x > y)),
  pcmpgtd: lanes('i32', (x, y) => ones(x > y)),
  pcmpgtq: lanes64((x, y) => (x > y ? -1n : 0n), 'i64'),
  pand: bitwise((x, y) => x & y),
  pandn: bitwise((x, y) => ~x & y),
  por: bitwise((x, y) => x | y),
  pxor: bitwise((x, y) => x ^ y),
  andps: bitwise((x, y) => x & y),
  andpd: bitwise((x, y) => x & y),
  andnps: bitwise((x, y) => ~x & y),
  andnpd: bitwise((x, y) => ~x & y),
  orps: bitwise((x, y) => x | y),
  orpd: bitwise((x, y) => x | y),
  xorps: bitwise((x, y) => x ^ y),
  xorpd: bitwise((x, y) => x ^ y),
  paddb: lanes('u8', (x, y) => x + y),
  paddw: lanes('u16', (x, y) => x + y),
  paddd: lanes('i32', (x, y) => (x + y) | 0),
  paddq: lanes64((x, y) => x + y),
  psubb: lanes('u8', (x, y) => x - y),
  psubw: lanes('u16', (x, y) => x - y),
  psubd: lanes('i32', (x, y) => (x - y) | 0),
  psubq: lanes64((x, y) => x - y),
  paddsb: lanes('i8', (x, y) => SATURATE.i8(x + y)),
  paddsw: lanes('i16', (x, y) => SATURATE.i16(x + y)),
  paddusb: lanes('u8', (x, y) => SATURATE.u8(x + y)),
  paddusw: lanes('u16', (x, y) => SATURATE.u16(x + y)),
  psubsb: lanes('i8', (x, y) => SATURATE.i8(x - y)),
  psubsw: lanes('i16', (x, y) => SATURATE.i16(x - y)),
  psubusb: lanes('u8', (x, y) => SATURATE.u8(x - y)),
  psubusw: lanes('u16', (x, y) => SATURATE.u16(x - y)),
  pmullw: lanes('i16', (x, y) => x * y),
  pmulhw: lanes('i16', (x, y) => (x * y) >> 16),
  pmulhuw: lanes('u16', (x, y) => Math.floor((x * y) / 65536)),
  pmulhrsw: lanes('i16', (x, y) => (((x * y) >> 14) + 1) >> 1),
  pmulld: lanes('i32', (x, y) => Math.imul(x, y)),
  pmuludq: evenProducts('u32', 'u64'),
  pmuldq: evenProducts('i32', 'i64'),
  pmaddwd,
  pmaddubsw,
  psadbw,
  pavgb: lanes('u8', (x, y) => (x + y + 1) >> 1),
  pavgw: lanes('u16', (x, y) => (x + y + 1) >> 1),
  pminub: lanes('u8', Math.min),
  pminuw: lanes('u16', Math.min),
  pminud: lanes('u32', Math.min),
  pminsb: lanes('i8', Math.min),
  pminsw: lanes('i16', Math.min),
  pminsd: lanes('i32', Math.min),
  pmaxub: lanes('u8', Math.max),
  pmaxuw: lanes('u16', Math.max),
  pmaxud: lanes('u32', Math.max),
  pmaxsb: lanes('i8', Math.max),
  pmaxsw: lanes('i16', Math.max),
  pmaxsd: lanes('i32', Math.max),
  phaddw: horizontal('i16', (x, y) => x + y),
  phaddd: horizontal('i32', (x, y) => (x + y) | 0),
  phaddsw: horizontal('i16', (x, y) => SATURATE.i16(x + y)),
  phsubw: horizontal('i16', (x, y) => x - y),
  phsubd: horizontal('i32', (x, y) => (x - y) | 0),
  phsubsw: horizontal('i16', (x, y) => SATURATE.i16(x - y)),
  psignb: sign('i8'),
  psignw: sign('i16'),
  psignd: sign('i32'),
  pabsb: unary('i8', Math.abs),
  pabsw: unary('i16', Math.abs),
  pabsd: unary('i32', (x) => (x < 0 ? -x | 0 : x)),
  pshufb,
  palignr,
  pshufd,
  pshufw: shuffleWords(0),
  pshuflw: shuffleWords(0),
  pshufhw: shuffleWords(4),
  shufps,
  shufpd,
  pmovsxbw: extend('i8', 'i16'),
  pmovsxbd: extend('i8', 'i32'),
  pmovsxbq: extend('i8', 'i64'),
  pmovsxwd: extend('i16', 'i32'),
  pmovsxwq: extend('i16', 'i64'),
  pmovsxdq: extend('i32', 'i64'),
  pmovzxbw: extend('u8', 'u16'),
  pmovzxbd: extend('u8', 'u32'),
  pmovzxbq: extend('u8', 'u64'),
  pmovzxwd: extend('u16', 'u32'),
  pmovzxwq: extend('u16', 'u64'),
  pmovzxdq: extend('u32', 'u64'),
  phminposuw,
  mpsadbw,
  pblendw: blend('u16'),
  blendps: blend('u32'),
  blendpd: blend('u64'),
  insertps,
  movsldup: (r, _a, b) => {
    for (let i = 0; i < 4; i++) r.u32[i] = b.u32[i & 2]!;
  },
  movshdup: (r, _a, b) => {
    for (let i = 0; i < 4; i++) r.u32[i] = b.u32[i | 1]!;
  },
  movddup: (r, _a, b) => {
    r.u64[0] = b.u64[0]!;
    r.u64[1] = b.u64[0]!;
  },
};
