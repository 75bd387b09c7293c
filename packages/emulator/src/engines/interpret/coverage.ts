/**
 * Which bytes of host pages belong to predecoded instructions, as bits in linear memory: generated code stores beside the code of a page
 * without asking JavaScript. A place holds one page; pages that have lost theirs are asked for in JavaScript.
 */
import { PAGE } from '../../memory/physical.ts';
import { Covered } from './records.ts';

export class Coverage {
  readonly #bits: Uint8Array;
  readonly #tags: Int32Array;

  constructor(memory: WebAssembly.Memory) {
    this.#bits = new Uint8Array(memory.buffer, Covered.bits, Covered.places * Covered.bytes);
    this.#tags = new Int32Array(memory.buffer, Covered.tags, Covered.places);
  }

  #place(hostPage: number): number {
    return hostPage & (Covered.places - 1);
  }
  #has(hostPage: number): boolean {
    return this.#tags[this.#place(hostPage)] === (hostPage | 0);
  }

  /** A page begins to hold code. */
  claim(hostPage: number): void {
    const place = this.#place(hostPage);
    this.#tags[place] = hostPage;
    this.#bits.fill(0, place * Covered.bytes, (place + 1) * Covered.bytes);
  }
  /** The page holds no code any more, or nobody follows which. */
  release(hostPage: number): void {
    if (this.#has(hostPage)) this.#tags[this.#place(hostPage)] = Covered.none;
  }
  clear(): void {
    this.#tags.fill(Covered.none);
  }

  /** Bytes `from` to `to` of a page. */
  set(hostPage: number, from: number, to: number, covered: boolean): void {
    if (!this.#has(hostPage)) return;
    const at = this.#place(hostPage) * Covered.bytes;
    for (let byte = from; byte < Math.min(to, PAGE); byte++) {
      if (covered) this.#bits[at + (byte >> 3)] |= 1 << (byte & 7);
      else this.#bits[at + (byte >> 3)] &= ~(1 << (byte & 7));
    }
  }
}
