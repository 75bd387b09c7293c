/** What is known of a page's bytes, small enough for tens of thousands of pages: which record stands for an offset, and which bytes are code. */
import { PAGE } from '../../memory/physical.ts';

const BLOCK = 64;
const BLOCKS = PAGE / BLOCK;
/** Blocks of all pages at most: 16 MiB. */
const MAX_BLOCKS = 65_536;

/** Blocks of record addresses, shared by all pages. Block 0 is of nobody, and stays zero. */
export class RecordPool {
  words = new Uint32Array(256 * BLOCK);
  readonly #free: number[] = [];
  #used = 1;

  /** Blocks that can still be given out. */
  get left(): number {
    return MAX_BLOCKS - this.#used + this.#free.length;
  }
  /** A block of zeros. */
  take(): number {
    const freed = this.#free.pop();
    if (freed !== undefined) return freed;
    if ((this.#used + 1) * BLOCK > this.words.length) {
      const more = new Uint32Array(this.words.length * 2);
      more.set(this.words);
      this.words = more;
    }
    return this.#used++;
  }
  give(block: number): void {
    this.words.fill(0, block * BLOCK, (block + 1) * BLOCK);
    this.#free.push(block);
  }
}

/** Page offset → record address, 0 if there is none. */
export class PageRecords {
  readonly #pool: RecordPool;
  readonly #blocks = new Uint16Array(BLOCKS);

  constructor(pool: RecordPool) {
    this.#pool = pool;
  }
  at(offset: number): number {
    return this.#pool.words[(this.#blocks[offset >> 6] << 6) | (offset & 63)];
  }
  set(offset: number, record: number): void {
    const block = (this.#blocks[offset >> 6] ||= this.#pool.take());
    this.#pool.words[(block << 6) | (offset & 63)] = record;
  }
  /** None from now on. */
  clear(): void {
    for (const block of this.#blocks) if (block !== 0) this.#pool.give(block);
    this.#blocks.fill(0);
  }
}

/** A set of a page's bytes. */
export class ByteSet {
  readonly #bits = new Uint8Array(PAGE / 8);

  has(at: number): boolean {
    return (this.#bits[at >> 3] & (1 << (at & 7))) !== 0;
  }
  /** Is one of `from` to `to`, exclusive, in it? */
  hasAny(from: number, to: number): boolean {
    for (let at = from; at < to && at < PAGE; at++) if (this.has(at)) return true;
    return false;
  }
  /** Those that lie beyond the page are nobody's. */
  set(from: number, to: number, member: boolean): void {
    for (let at = from; at < to && at < PAGE; at++) {
      if (member) this.#bits[at >> 3] |= 1 << (at & 7);
      else this.#bits[at >> 3] &= ~(1 << (at & 7));
    }
  }
}
