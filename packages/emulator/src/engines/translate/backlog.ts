/**
 * Regions that were found and wait for their translation. Translating stops the guest, and whoever shares its thread: it has a share of
 * the ticks. What is found meanwhile comes next, together, in one module: each costs V8 some 10 KB and 0.3 ms of its own (Node 20).
 */
import type { KeyState } from '../interpret/predecode.ts';
import type { RegionInstruction } from './explore.ts';
import type { Region } from './region.ts';

export interface Found {
  readonly region: Region;
  readonly key: KeyState;
}

/** Instructions, and regions, that one module takes at most: some 15 ms. No more regions wait. */
const MAX_INSTRUCTIONS = 250;
const MAX_REGIONS = 64;
/**
 * For each module that was made before, the next one waits as long as for so many instructions: V8 keeps some 2 KB of a module for good
 * (Node 20), so guests must not have any number of them made.
 */
const PAST = 1 / 2;
/** What looking at an instruction costs, in parts of what translating it costs. */
const LOOK = 1 / 8;

export class Backlog {
  readonly #ticksEach: number;
  readonly #maxEntries: number;
  #waiting: Found[] = [];
  /** Ticks until nothing tells of the looks that were had. */
  #looks = 0;
  /** Ticks until the next translation, and what comes to them behind it. */
  #rest = 0;
  #due = 0;
  #modules = 0;

  /**
   * @param ticksEach ticks that have to pass for each instruction translated
   * @param maxEntries entries that regions of one module have at most together
   */
  constructor(ticksEach: number, maxEntries: number) {
    this.#ticksEach = ticksEach;
    this.#maxEntries = maxEntries;
  }

  elapsed(ticks: number): void {
    this.#rest = Math.max(0, this.#rest + this.#due - ticks);
    this.#due = 0;
    this.#looks = Math.max(0, this.#looks - ticks);
  }
  /** Something else was compiled, worth so many ticks. */
  rest(ticks: number): void {
    this.#due += ticks;
  }
  /** May code be looked at? */
  get mayLook(): boolean {
    return this.#waiting.length < MAX_REGIONS && this.#looks < MAX_INSTRUCTIONS * this.#ticksEach;
  }
  looked(instructions: number): void {
    const ticks = Math.ceil(instructions * LOOK * this.#ticksEach);
    this.#due += ticks;
    this.#looks += ticks;
  }

  add(found: Found): void {
    this.#waiting.push(found);
  }
  /** Is the record the first of an entry that waits? */
  holds(record: number): boolean {
    return this.#waiting.some(({ region }) => region.entries.some((at) => leadOf(region, at) === record));
  }
  /** Forgets those; were there any? */
  drop(which: (region: Region) => boolean): boolean {
    const before = this.#waiting.length;
    this.#waiting = this.#waiting.filter(({ region }) => !which(region));
    return this.#waiting.length < before;
  }
  clear(): void {
    this.#waiting = [];
    this.#rest = 0;
    this.#due = 0;
  }

  /** What is to be translated now, in one module; mostly nothing. */
  take(): Found[] {
    if (this.#rest > 0 || this.#waiting.length === 0) return [];
    const { handlers } = this.#waiting[0]!.key;
    const taken: Found[] = [];
    let [instructions, entries] = [0, 0];
    for (const found of this.#waiting) {
      const { region, key } = found;
      const more = [instructions + region.instructionCount, entries + region.entries.length] as const;
      const fits = more[0] <= MAX_INSTRUCTIONS && more[1] <= this.#maxEntries && taken.length < MAX_REGIONS;
      if (key.handlers !== handlers || (!fits && taken.length > 0)) continue;
      taken.push(found);
      [instructions, entries] = more;
    }
    this.#waiting = this.#waiting.filter((found) => !taken.includes(found));
    this.#due += Math.max(instructions, this.#modules++ * PAST) * this.#ticksEach;
    return taken;
  }
}

/** The instruction at which a region is entered at an offset, and the record through which it is. */
export const startOf = (region: Region, at: number): RegionInstruction => region.blockAt.get(at)!.instructions[0]!;
export const leadOf = (region: Region, at: number): number => startOf(region, at).lead;
