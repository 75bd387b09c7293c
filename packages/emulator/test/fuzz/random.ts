/**
 * A seeded stream of choices for programs that are made up.
 */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bf03635) | 1;
    for (let i = 0; i < 8; i++) this.next();
  }
  /** 32 bits (xorshift). */
  next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }
  below(limit: number): number {
    return this.next() % limit;
  }
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
  bits64(): bigint {
    return (BigInt(this.next()) << 32n) | BigInt(this.next());
  }
  /** Bytes of a number that is often small, a power of two, or all ones. */
  immediate(size: number): number[] {
    const kind = this.below(5);
    const raw =
      kind === 0
        ? BigInt(this.below(8))
        : kind === 1
          ? 1n << BigInt(this.below(size * 8))
          : kind === 2
            ? -BigInt(this.between(1, 4))
            : this.bits64();
    return littleEndian(raw, size);
  }
}

/** The low `size` bytes of a number. */
export function littleEndian(value: bigint | number, size: number): number[] {
  const bits = BigInt.asUintN(64, BigInt(value));
  return Array.from({ length: size }, (_, i) => Number((bits >> BigInt(i * 8)) & 0xffn));
}
