/**
 * Lanes: a vector value under every lane type. Kernels compute on three of them: result, first source, second source.
 * Manual: APM vol. 1 section 4.3 (data types). Lane 0 is the least significant; the host is little-endian as wasm memory is.
 */
export class Lanes {
  readonly u8: Uint8Array;
  readonly i8: Int8Array;
  readonly u16: Uint16Array;
  readonly i16: Int16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly i64: BigInt64Array;
  readonly f32: Float32Array;
  readonly f64: Float64Array;

  constructor() {
    const buffer = new ArrayBuffer(16);
    this.u8 = new Uint8Array(buffer);
    this.i8 = new Int8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.i16 = new Int16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.i64 = new BigInt64Array(buffer);
    this.f32 = new Float32Array(buffer);
    this.f64 = new Float64Array(buffer);
  }

  copy(from: Lanes): void {
    for (let i = 0; i < 4; i++) this.i32[i] = from.i32[i]!;
  }
  /** The low `bytes` of a little-endian number; the rest is zero. */
  load(value: bigint, bytes: number): void {
    this.u64[0] = BigInt.asUintN(64, value);
    this.u64[1] = bytes > 8 ? value >> 64n : 0n;
  }
  toBigInt(bytes: number): bigint {
    if (bytes === 16) return (this.u64[1]! << 64n) | this.u64[0]!;
    return BigInt.asUintN(bytes * 8, this.u64[0]!);
  }
}

/**
 * A pure function on vectors: `r` receives the result, `a` is the first source (the destination's old value), `b` the second; `imm` the
 * immediate byte; `bytes` how long the registers are (8 MMX, 16 SSE). `r` is neither `a` nor `b`.
 */
export type Kernel = (r: Lanes, a: Lanes, b: Lanes, imm: number, bytes: number) => void;
