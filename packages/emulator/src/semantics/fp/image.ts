/**
 * Images of registers in memory: written and read in pieces, after all of them are known to be accessible.
 * Manual: APM vol. 2 section 11.4.4, APM vol. 5 (FSAVE, FXSAVE).
 */
import type { FpContext } from './context.ts';

/** Bytes of an FXSAVE image. */
export const FX_SIZE = 512;

/** An area of memory that is written only after all of it is known to be writable, in pieces of at most 8 bytes. */
export class Image {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  constructor(size: number) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
  }

  store(ctx: FpContext, keep: readonly (readonly [number, number])[] = []): void {
    const { seg } = ctx.insn;
    const offset = ctx.effectiveAddress();
    probe(ctx, this.bytes.length, (segment, at, size) => ctx.probeWrite(segment, at, size));
    for (let at = 0; at < this.bytes.length; ) {
      const size = pieceAt(at, this.bytes.length);
      if (!keep.some(([from, to]) => at >= from && at < to))
        ctx.write(seg, wrap(ctx, offset, at), this.#piece(at, size), size);
      at += size;
    }
  }
  #piece(at: number, size: number): bigint {
    if (size === 8) return this.view.getBigUint64(at, true);
    return BigInt(size === 4 ? this.view.getUint32(at, true) : this.view.getUint16(at, true));
  }

  load(ctx: FpContext): void {
    const { seg } = ctx.insn;
    const offset = ctx.effectiveAddress();
    probe(ctx, this.bytes.length, (segment, at, size) => ctx.read(segment, at, size));
    for (let at = 0; at < this.bytes.length; ) {
      const size = pieceAt(at, this.bytes.length);
      const value = ctx.read(seg, wrap(ctx, offset, at), size);
      if (size === 8) this.view.setBigUint64(at, value, true);
      else if (size === 4) this.view.setUint32(at, Number(value), true);
      else this.view.setUint16(at, Number(value), true);
      at += size;
    }
  }
}

const pieceAt = (at: number, length: number): number => (length - at >= 8 ? 8 : length - at >= 4 ? 4 : 2);
const wrap = (ctx: FpContext, offset: bigint, at: number): bigint =>
  BigInt.asUintN(ctx.insn.addrSize * 8, offset + BigInt(at));

/**
 * The first field and the last byte are probed before anything else, as processors do it (CR2 shows which); FXSAVE and FXRSTOR look at the
 * last byte first.
 */
function probe(ctx: FpContext, length: number, access: (seg: number, offset: bigint, size: number) => void): void {
  const { seg, opSize } = ctx.insn;
  const offset = ctx.effectiveAddress();
  const last = wrap(ctx, offset, length - 1);
  if (length === FX_SIZE) access(seg, last, 1);
  access(seg, offset, opSize === 2 ? 2 : 4);
  if (length !== FX_SIZE) access(seg, last, 1);
}

export function put80(view: DataView, at: number, value: bigint): void {
  view.setBigUint64(at, BigInt.asUintN(64, value), true);
  view.setUint16(at + 8, Number(value >> 64n), true);
}
export const get80 = (view: DataView, at: number): bigint =>
  (BigInt(view.getUint16(at + 8, true)) << 64n) | view.getBigUint64(at, true);

/** Faults as a write of bytes [from, to) of an area behind the memory operand would: both ends are tried. */
export function probeRange(ctx: FpContext, from: number, to: number): void {
  const { seg } = ctx.insn;
  const offset = ctx.effectiveAddress();
  ctx.probeWrite(seg, wrap(ctx, offset, from), 8);
  if (to - from > 8) ctx.probeWrite(seg, wrap(ctx, offset, to - 8), 8);
}

/** Writes bytes [from, to) of `view`; both are multiples of 8. */
export function storeRange(ctx: FpContext, view: DataView, from: number, to: number): void {
  const offset = ctx.effectiveAddress();
  for (let at = from; at < to; at += 8) {
    ctx.write(ctx.insn.seg, wrap(ctx, offset, at), view.getBigUint64(at, true), 8);
  }
}

/** Reads bytes [from, to) into `view`. */
export function loadRange(ctx: FpContext, view: DataView, from: number, to: number): void {
  const offset = ctx.effectiveAddress();
  for (let at = from; at < to; at += 8) {
    view.setBigUint64(at, ctx.read(ctx.insn.seg, wrap(ctx, offset, at), 8), true);
  }
}
