/**
 * What the page walk of generated code knows of an address space: the words of layout.ts, made from the same configuration that the walker has.
 * It does the plain case only; everything else is the walker's (paging.ts).
 * Manual: APM vol. 2 ch. 5 and section 15.25, SDM vol. 3 ch. 4 and section 28.3.
 */
import type { NestedShape } from '../guest-mode.ts';
import { Layout, WalkFlag, WalkKind, WalkWords } from './layout.ts';
import type { PagingConfig } from './paging.ts';
import { PAGE, type PhysicalMemory } from './physical.ts';

/** Words of an address space: all but the context, and what is the machine's. */
const WORDS = (WalkWords.context - Layout.walk) / 4;
const word = (address: number): number => (address - Layout.walk) / 4;
const FLAGS = word(WalkWords.flags);
const CONTEXT = word(WalkWords.context);

/** Bits of the high half of an entry that must be clear: above the width of physical addresses, and no-execute where it is not known. */
function reservedHigh({ maxphyaddr, mode, nx }: PagingConfig): number {
  const above = maxphyaddr >= 52 ? 0 : (0xfffff >>> (maxphyaddr - 32)) << (maxphyaddr - 32);
  return above | (mode === 'PAE' ? 0x7ff00000 : 0) | (nx ? 0 : 0x80000000);
}

function kindOf({ mode, pdpte, pkru, pkrs }: PagingConfig): number {
  // Protection keys are looked up by page: the walker's.
  if ((pkru ?? 0) !== 0 || (pkrs ?? 0) !== 0) return WalkKind.ask;
  if (mode === 'off') return WalkKind.off;
  if (mode === '32-bit') return WalkKind.bits32;
  if (mode === 'PAE') return pdpte === undefined ? WalkKind.paeMemory : WalkKind.paeRegisters;
  return mode === '4-level' ? WalkKind.levels4 : WalkKind.levels5;
}

const flagsOf = ({ wp, smep, pge, pse, gbPages }: PagingConfig): number =>
  (wp ? WalkFlag.wp : 0) |
  (smep ? WalkFlag.smep : 0) |
  (pge ? WalkFlag.pge : 0) |
  (pse ? WalkFlag.pse : 0) |
  (gbPages ? WalkFlag.gbPages : 0);

/** The words of one address space. */
export class SpaceWalk {
  readonly words = new Uint32Array(WORDS);
  /** Walks that share it have the same words but for the flags. */
  kind: object = {};

  /** @param shape undefined without nested paging; null: only the vendor can walk its tables */
  derive(config: PagingConfig, nestedRoot: number, shape: NestedShape | null | undefined): void {
    const { words } = this;
    words.fill(0);
    this.kind = {};
    const known = shape !== null && nestedRoot < 2 ** 32;
    words[word(WalkWords.kind)] = known ? kindOf(config) : WalkKind.ask;
    words[FLAGS] = flagsOf(config);
    this.#long(WalkWords.root, BigInt(config.root));
    words[word(WalkWords.reserved) + 1] = reservedHigh(config);
    if (shape) this.#nested(nestedRoot, shape);
  }
  #long(address: number, value: bigint): void {
    this.words[word(address)] = Number(value & 0xffffffffn);
    this.words[word(address) + 1] = Number(value >> 32n);
  }
  #nested(root: number, shape: NestedShape): void {
    const { words } = this;
    words[word(WalkWords.nested)] = 1;
    words[word(WalkWords.nestedRoot)] = root;
    this.#long(WalkWords.tableSet, shape.tableSet);
    this.#long(WalkWords.tableClear, shape.tableClear);
    this.#long(WalkWords.leafSet, shape.leafSet);
    this.#long(WalkWords.leafClear, shape.leafClear);
    this.#long(WalkWords.largeClear, shape.largeClear);
    this.#long(WalkWords.writable, shape.writable);
    this.#long(WalkWords.execute, shape.execute);
    this.#long(WalkWords.executeFlip, shape.executeFlip);
    this.#long(WalkWords.forTables, shape.tableWalksWrite ? shape.writable : 0n);
    words[word(WalkWords.types)] = shape.types;
  }
}

/** The words in memory: those of the space in force, and of whoever accesses. */
export class WalkState {
  readonly #words: Uint32Array;
  /** Of the words that are there. */
  #kind: object | null = null;

  constructor({ memory, size }: PhysicalMemory) {
    this.#words = new Uint32Array(memory.buffer, Layout.walk, (Layout.tables - Layout.walk) / 4);
    this.#words[word(WalkWords.lastPage)] = size - PAGE;
  }
  /** @param user CPL is 3; @param smap supervisor accesses to user pages fault; @param context the TLB's */
  enter(walk: SpaceWalk, user: boolean, smap: boolean, context: number): void {
    const { words } = walk;
    if (walk.kind !== this.#kind) {
      if (this.#kind !== null && this.#holds(words)) walk.kind = this.#kind;
      else this.#words.set(words);
      this.#kind = walk.kind;
    }
    this.#words[FLAGS] = words[FLAGS] | (user ? WalkFlag.user : 0) | (smap ? WalkFlag.smap : 0);
    this.#words[CONTEXT] = context;
  }
  /** Flags aside, which follow: spaces that differ in CR0.WP are alike. */
  #holds(words: Uint32Array): boolean {
    const held = this.#words;
    for (let n = 0; n < WORDS; n++) if (held[n] !== words[n] && n !== FLAGS) return false;
    return true;
  }
}
