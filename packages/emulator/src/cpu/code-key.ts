/**
 * The code key: what of mode and segments is static for the running code. Asked whenever something was written that it may follow from, so
 * it is read off the state's words, and equal keys are one object.
 * Manual: APM vol. 2 ch. 1 and 4.
 */
import type { CodeKey } from '../engines/engine.ts';
import { Attrib, CR0, EFER, Flag, Seg, S as stateLayout } from '../state-layout.ts';
import type { StateBlock } from './state.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const S = stateLayout;
const AM = Number(CR0.AM);
const LMA = Number(EFER.LMA);
const { VM, AC } = Flag;
/** Attributes in a slot's first word. */
const BIG = Attrib.DB << 16;
const LONG = Attrib.L << 16;
/** Present, usable, writable data that does not expand down: what is wanted, and of which bits. */
const DATA = (Attrib.P | Attrib.S | 0x2) << 16;
const DATA_MASK = DATA | ((0xc | Attrib.unusable) << 16);

const slot = (seg: number): number => (S.segments + seg * 16) >> 2;
const ES = slot(Seg.ES);
const CS = slot(Seg.CS);
const SS = slot(Seg.SS);
const DS = slot(Seg.DS);

/** Bits of a key's number; sizes stand in it as they are. */
const FLAT = 1;
const FLAT_CODE = 2;
const ALIGNED = 4;
const STACK_SHIFT = 3;
const CODE_SHIFT = 7;

/** Base 0 and limit 4 GiB. */
const spansAll = (words: Int32Array, at: number): boolean =>
  words[at + 1] === -1 && words[at + 2] === 0 && words[at + 3] === 0;
/** No data access through it can fault. */
const isFlatData = (words: Int32Array, at: number): boolean => (words[at] & DATA_MASK) === DATA && spansAll(words, at);

/** CR0.AM, RFLAGS.AC and CPL 3. */
const isAligned = (words: Int32Array): boolean =>
  (words[S.rflags >> 2] & AC) !== 0 && (words[S.cr0 >> 2] & AM) !== 0 && (words[S.cpl >> 2] & 0xff) === 3;

/** The key of the running code as a number. */
export function codeKeyId(words: Int32Array): number {
  const cs = words[CS];
  const aligned = isAligned(words) ? ALIGNED : 0;
  // In 64-bit mode nothing else matters (VM cannot be set).
  if ((words[S.efer >> 2] & LMA) !== 0 && (cs & LONG) !== 0) {
    return (8 << CODE_SHIFT) | (8 << STACK_SHIFT) | FLAT | FLAT_CODE | aligned;
  }
  // CS.D outlives CR0.PE until CS is loaded (APM vol. 2 4.7.2).
  const code = (words[S.rflags >> 2] & VM) === 0 && (cs & BIG) !== 0 ? 4 : 2;
  const stack = (words[SS] & BIG) !== 0 ? 4 : 2;
  const sizes = (code << CODE_SHIFT) | (stack << STACK_SHIFT) | aligned;
  if (words[CS + 1] !== -1) return sizes;
  const flat = spansAll(words, CS) && isFlatData(words, ES) && isFlatData(words, SS) && isFlatData(words, DS);
  return sizes | FLAT_CODE | (flat ? FLAT : 0);
}

const keyOf = (id: number): CodeKey => ({
  codeSize: (id >> CODE_SHIFT) as CodeKey['codeSize'],
  stackSize: ((id >> STACK_SHIFT) & 15) as CodeKey['stackSize'],
  flat: (id & FLAT) !== 0,
  flatCode: (id & FLAT_CODE) !== 0,
  alignmentCheck: (id & ALIGNED) !== 0,
});

export class CodeKeys {
  readonly #words: Int32Array;
  readonly #keys: (CodeKey | undefined)[] = new Array<CodeKey | undefined>(16 << CODE_SHIFT).fill(undefined);

  constructor({ words }: StateBlock) {
    this.#words = words;
  }

  /** The key now. Equal keys are the same object. */
  now(): CodeKey {
    const id = codeKeyId(this.#words);
    return this.#keys[id] ?? (this.#keys[id] = keyOf(id));
  }
}
