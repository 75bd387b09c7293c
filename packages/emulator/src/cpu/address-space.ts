/**
 * What of control registers and of the guest's owner decides how addresses are translated, and what follows from it. The last few are kept:
 * kernels go back and forth between address spaces, and between CR0.WP set and clear.
 * Manual: APM vol. 2 ch. 5; SDM vol. 3 ch. 4.
 */
import type { NestedShape } from '../guest-mode.ts';
import type { PagingConfig } from '../memory/paging.ts';
import { SpaceWalk } from '../memory/walk.ts';
import { CR0, CR4, S } from '../state-layout.ts';
import { contextRights, isLongModeActive, pagingMode } from './mode.ts';
import type { StateBlock } from './state.ts';

/** PE follows from PG. */
const CR0_INPUTS = Number(CR0.PG | CR0.WP) | 0;
const WP = Number(CR0.WP);
const LA57 = Number(CR4.LA57);
const CR0_WORD = S.cr0 >> 2;
const CR3_WORD = S.cr3 >> 2;
const CR4_WORD = S.cr4 >> 2;
const EFER_WORD = S.efer >> 2;

/** Whose addresses they are. */
export interface AddressOwner {
  inGuest: boolean;
  asid: number;
  nestedRoot: number;
  /** undefined without nested tables, null where generated code can't walk them. */
  nestedShape: NestedShape | null | undefined;
  /** The TLB's. */
  generation: number;
}

export class AddressSpace implements AddressOwner {
  // What it follows from.
  #cr0 = 0;
  #cr3 = 0;
  #cr3High = 0;
  #cr4 = 0;
  #efer = 0;
  inGuest = false;
  asid = 0;
  nestedRoot = 0;
  nestedShape: NestedShape | null | undefined = undefined;
  /** -1: never filled, or no longer right. */
  generation = -1;
  /** Differs in CR0.WP alone, if it says the same of this one. */
  twin: AddressSpace | null = null;

  // What follows.
  paging = false;
  long = false;
  smapImplicit = false;
  /** The upper half of a canonical address, shifted so far, is 0 or -1: 48 or 57 bits. */
  canonicalShift = 15;
  config!: PagingConfig;
  readonly walk = new SpaceWalk();
  /** Contexts of explicit accesses by CPL 3 (1) and RFLAGS.AC (2), and that of implicit ones; 0: not interned yet. */
  readonly contexts = new Int32Array(4);
  systemContext = 0;

  matches(words: Int32Array, owner: AddressOwner): boolean {
    return (
      this.#cr3 === words[CR3_WORD] &&
      this.#cr0 === (words[CR0_WORD] & CR0_INPUTS) &&
      this.#cr3High === words[CR3_WORD + 1] &&
      this.#cr4 === words[CR4_WORD] &&
      this.#efer === words[EFER_WORD] &&
      this.inGuest === owner.inGuest &&
      this.asid === owner.asid &&
      this.nestedRoot === owner.nestedRoot &&
      this.nestedShape === owner.nestedShape &&
      this.generation === owner.generation
    );
  }

  /** Is it right for this CR0, if all else has stayed? */
  holds(cr0: number, generation: number): boolean {
    return this.#cr0 === (cr0 & CR0_INPUTS) && this.generation === generation;
  }
  /** Two between which somebody has gone know each other where that is CR0.WP. */
  pair(other: AddressSpace): void {
    const same =
      (this.#cr0 ^ other.#cr0) === WP &&
      this.#cr3 === other.#cr3 &&
      this.#cr3High === other.#cr3High &&
      this.#cr4 === other.#cr4 &&
      this.#efer === other.#efer &&
      this.inGuest === other.inGuest &&
      this.asid === other.asid &&
      this.nestedRoot === other.nestedRoot &&
      this.nestedShape === other.nestedShape;
    if (!same) return;
    this.twin = other;
    other.twin = this;
  }

  derive(state: StateBlock, owner: AddressOwner, config: PagingConfig): void {
    const { words } = state;
    this.twin = null;
    this.#cr0 = words[CR0_WORD] & CR0_INPUTS;
    this.#cr3 = words[CR3_WORD];
    this.#cr3High = words[CR3_WORD + 1];
    this.#cr4 = words[CR4_WORD];
    this.#efer = words[EFER_WORD];
    this.inGuest = owner.inGuest;
    this.asid = owner.asid;
    this.nestedRoot = owner.nestedRoot;
    this.nestedShape = owner.nestedShape;
    this.generation = owner.generation;
    this.paging = pagingMode(state) !== 'off';
    this.long = isLongModeActive(state);
    this.smapImplicit = (contextRights(state, true) & 8) !== 0;
    this.canonicalShift = (words[CR4_WORD] & LA57) !== 0 ? 24 : 15;
    this.config = config;
    this.walk.derive(config, owner.nestedRoot, owner.nestedShape);
    this.forgetContexts();
  }
  forgetContexts(): void {
    this.contexts.fill(0);
    this.systemContext = 0;
  }
}

/** As many as are kept. */
const PLACES = 4;

/** The spaces that were in force lately. */
export class AddressSpaces {
  readonly #places = Array.from({ length: PLACES }, () => new AddressSpace());
  #next = 0;
  /** In force before the one that is. */
  #before = this.#places[0];

  find(words: Int32Array, owner: AddressOwner, inForce: AddressSpace): AddressSpace | undefined {
    const before = this.#before;
    this.#before = inForce;
    if (before.matches(words, owner)) return before;
    for (let n = 0; n < PLACES; n++) if (this.#places[n].matches(words, owner)) return this.#places[n];
    return undefined;
  }
  /** The one that goes next; never `inForce`. */
  replace(inForce: AddressSpace): AddressSpace {
    this.#next = (this.#next + 1) % PLACES;
    if (this.#places[this.#next] === inForce) this.#next = (this.#next + 1) % PLACES;
    return this.#places[this.#next];
  }
  /** What was derived does not hold any more, whatever the registers say. */
  forget(): void {
    for (const space of this.#places) space.generation = -1;
  }
}
