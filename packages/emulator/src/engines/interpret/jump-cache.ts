/**
 * The jump cache: from a host physical address and a code key to the record there. Generated code looks into it for every jump whose
 * target is not linked, so it is small: two places for each 8 bytes of code, what was put in last in front.
 */
import { Layout } from '../../memory/layout.ts';

/** `sets` of two u64 each: physical address << 27 | id of the code key << 21 | number of the record (its address / 32); 0 for none. */
export const Jump = { base: Layout.code, sets: 16384, setBytes: 16, idShift: 21, addressShift: 27 } as const;
export const JUMP_END = Jump.base + Jump.sets * Jump.setBytes;
/** What the place of an address is computed from: of `pa >>> 3 ^ pa >>> 12` the low bits. */
export const SET_SHIFT = 3;
export const PAGE_SHIFT = 12;
const RECORD_SHIFT = 5;
const HIGH_SHIFT = 32 - Jump.addressShift;

export class JumpCache {
  readonly #words: Int32Array;

  constructor(memory: WebAssembly.Memory) {
    this.#words = new Int32Array(memory.buffer, 0, JUMP_END >> 2);
  }

  remember(pa: number, id: number, record: number): void {
    const words = this.#words;
    const first = wordOf(pa);
    const low = lowOf(pa, id) | (record >>> RECORD_SHIFT);
    if (!this.#holds(first, pa, id)) {
      words[first + 2] = words[first];
      words[first + 3] = words[first + 1];
    }
    words[first] = low;
    words[first + 1] = pa >>> HIGH_SHIFT;
  }

  forget(pa: number, id: number): void {
    const first = wordOf(pa);
    for (const word of [first, first + 2]) {
      if (!this.#holds(word, pa, id)) continue;
      this.#words[word] = 0;
      this.#words[word + 1] = 0;
    }
  }

  clear(): void {
    this.#words.fill(0, Jump.base >> 2);
  }

  #holds(word: number, pa: number, id: number): boolean {
    const words = this.#words;
    return words[word] >>> Jump.idShift === lowOf(pa, id) >>> Jump.idShift && words[word + 1] === pa >>> HIGH_SHIFT;
  }
}

const wordOf = (pa: number): number =>
  (Jump.base + (((pa >>> SET_SHIFT) ^ (pa >>> PAGE_SHIFT)) & (Jump.sets - 1)) * Jump.setBytes) >> 2;
const lowOf = (pa: number, id: number): number => (pa << Jump.addressShift) | (id << Jump.idShift);
