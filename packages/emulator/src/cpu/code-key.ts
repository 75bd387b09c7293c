/**
 * The code key of the running code, computed again only when something that it derives from has changed.
 * Manual: APM vol. 2 ch. 1 and 4.
 */
import type { CodeKey } from '../engines/engine.ts';
import { Attrib, CR0, EFER, Flag, S, Seg } from '../state-layout.ts';
import { computeCodeKey } from './mode.ts';
import type { StateBlock } from './state.ts';

const AM = Number(CR0.AM);
const LMA = Number(EFER.LMA);
const SEGMENTS = S.segments >> 2;
/** ES, CS, SS, DS: four words each. */
const SEGMENT_WORDS = 16;
const FLAGS = Flag.VM | Flag.AC;

const CS_WORD = SEGMENTS + Seg.CS * 4;
const LONG: readonly CodeKey[] = [false, true].map((alignmentCheck) => ({
  codeSize: 8,
  stackSize: 8,
  flat: true,
  flatCode: true,
  alignmentCheck,
}));

const idOf = (key: CodeKey): number =>
  key.codeSize * 64 + key.stackSize * 4 + (key.flat ? 2 : 0) + (key.flatCode ? 1 : 0) + (key.alignmentCheck ? 1024 : 0);

export class CodeKeyCache {
  readonly #state: StateBlock;
  readonly #keys: CodeKey[] = [];
  #key: CodeKey | undefined;
  /** Alignment is checked: the one thing that CR0, RFLAGS.AC and CPL say about code. */
  #aligned = false;
  #efer = 0;
  #flags = 0;
  #cpl = 0;
  /** ES, CS, SS and DS as the key was computed from. */
  readonly #segments = new Int32Array(SEGMENT_WORDS);

  constructor(state: StateBlock) {
    this.#state = state;
  }

  /** The key now. Equal keys are the same object. */
  now(): CodeKey {
    const state = this.#state;
    const { words } = state;
    const efer = words[S.efer >> 2] & LMA;
    const flags = words[S.rflags >> 2] & FLAGS;
    const cpl = words[S.cpl >> 2] & 0xff;
    const aligned = (words[S.cr0 >> 2] & AM) !== 0 && (flags & Flag.AC) !== 0 && cpl === 3;
    // In 64-bit mode nothing else matters (VM cannot be set).
    if (efer !== 0 && ((words[CS_WORD] >> 16) & Attrib.L) !== 0) return this.#long(aligned);
    const known = this.#key;
    const sameControls =
      aligned === this.#aligned &&
      efer === this.#efer &&
      flags === this.#flags &&
      cpl === this.#cpl &&
      known !== undefined;
    if (sameControls && (!state.segmentsStale || !this.#segmentsDiffer(words))) {
      state.segmentsStale = false;
      return known;
    }
    state.segmentsStale = false;
    this.#aligned = aligned;
    this.#efer = efer;
    this.#flags = flags;
    this.#cpl = cpl;
    return this.#compute();
  }

  /** World switches write segments that mostly are what they were: comparing is cheaper than computing. */
  #segmentsDiffer(words: Int32Array): boolean {
    const known = this.#segments;
    for (let n = 0; n < SEGMENT_WORDS; n++) if (known[n] !== words[SEGMENTS + n]) return true;
    return false;
  }

  #long(alignmentCheck: boolean): CodeKey {
    const key = LONG[alignmentCheck ? 1 : 0];
    const id = idOf(key);
    return (this.#keys[id] ??= key);
  }

  #compute(): CodeKey {
    const { words } = this.#state;
    for (let n = 0; n < SEGMENT_WORDS; n++) this.#segments[n] = words[SEGMENTS + n];
    const key = computeCodeKey(this.#state);
    const id = idOf(key);
    this.#key = this.#keys[id] ??= key;
    return this.#key;
  }
}
