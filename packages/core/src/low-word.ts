/** The low half of a bigint without a bigint on the way: for what is asked at every exit. No KVM counterpart. */
const QUAD = new BigUint64Array(1);
const HALVES = new Int32Array(QUAD.buffer);

/** Bits 31:0 as a signed number, for JavaScript's bit operators. */
export function lowWord(value: bigint): number {
  QUAD[0] = value;
  return HALVES[0];
}
/** Bits 63:32, likewise. */
export function highWord(value: bigint): number {
  QUAD[0] = value;
  return HALVES[1];
}
