/**
 * The software TLB: the only gate to memory; generated code probes the same entries inline (memory/layout.ts).
 * Manual: APM vol. 2 section 5.5 (translation-lookaside buffer) and 15.16 (ASID), SDM vol. 3 section 4.10.
 *
 * An entry belongs to one interned context {ASID or VPID, PCID, nested root, rights}; entering or leaving a guest flushes nothing.
 */
import { Layout, TlbEntry, TlbLinks, WalkWords } from './layout.ts';
import { type PhysicalMemory, PRIVATE } from './physical.ts';

/** The facts of a context that decide who may do what with a page (`rights` of {@link Tlb.context}). */
export const Rights = { user: 1, wp: 2, smep: 4, smap: 8, nx: 16, paging: 32 } as const;

/** Page sizes of `TlbEntry.info`, bits 2:1. */
export const PageSize = { small: 0, large: 1, huge: 2 } as const;

const PLACES = Layout.tlbEntries;
/** Of data and of fetches. */
const ENTRIES = 2 * PLACES;
const WORDS = TlbEntry.size / 4;
const WRITE = TlbEntry.tagWrite / 4;
const ADDEND = TlbEntry.addend / 4;
const INFO = TlbEntry.info / 4;
/** From an entry for data to that for fetches, in words. */
const FETCHES = TlbEntry.fetches / 4;
const MAX_CONTEXT = 4095;
/** Lists of a context (TlbLinks), and those of global pages among them. */
const LISTS = 4;
const GLOBALS = 2;
const LARGE = 1;
/** Above every nested root. */
const ROOTS = 2 ** 36;
/** `TlbEntry.info`: writes are permitted, whether or not `tagWrite` lets generated code do them. */
const MAY_WRITE = 8;

/** Which tag is asked for, from the entry for data. */
export const Tag = { read: 0, write: WRITE, exec: FETCHES } as const;
export type Tag = (typeof Tag)[keyof typeof Tag];

/** Where a page's entry for data stands. */
const placeOf = (low: number, context: number): number => ((low >>> 12) ^ (context * 37)) & (PLACES - 1);

interface Context {
  asid: number;
  pcid: number;
  nestedRoot: number;
  rights: number;
  /** Protection keys in force, 0: all permitted. */
  pkru: number;
  pkrs: number;
}

/** What {@link Tlb.fill} learns from a walk. */
export interface TlbFill {
  /** Host physical address of the 4 KiB page, inside RAM. */
  page: number;
  read: boolean;
  write: boolean;
  exec: boolean;
  /** For the entry of fetches; else for that of data. */
  fetch: boolean;
  /** The page holds predecoded code: writes go the slow way, but without a new walk. */
  code: boolean;
  global: boolean;
  size: number;
}

export interface TlbSave {
  contexts: Context[];
  entries: Uint8Array;
}

export class Tlb {
  readonly #u32: Uint32Array;
  readonly #u8: Uint8Array;
  // Generated code fills entries, too, and keeps these (TlbLinks).
  readonly #owner: Uint16Array;
  readonly #first: Uint16Array;
  readonly #next: Uint16Array;
  readonly #before: Uint16Array;
  readonly #epoch: Uint32Array;
  readonly #walked: BigUint64Array;
  readonly #ids = new Map<number, number>();
  #contexts: Context[] = [{ asid: 0, pcid: 0, nestedRoot: 0, rights: 0, pkru: 0, pkrs: 0 }];
  /** Numbers of nested roots, and of nested roots with protection keys in force. */
  readonly #roots = new Map<number, number>();
  /** Numbers of pairs of PKRU and IA32_PKRS, and the pair that was last asked for. */
  readonly #keys = new Map<string, number>();
  #pkru = 0;
  #pkrs = 0;
  #pair = 0;

  /** Changes whenever context ids lose their meaning. */
  generation = 0;
  /** Look-ups by the slow path that found nothing, and entries filled, but for those of generated code. */
  #misses = 0;
  #fills = 0;

  constructor({ memory: { buffer } }: PhysicalMemory) {
    this.#u32 = new Uint32Array(buffer, Layout.tlb, ENTRIES * WORDS);
    this.#u8 = new Uint8Array(buffer, Layout.tlb, ENTRIES * TlbEntry.size);
    this.#owner = new Uint16Array(buffer, TlbLinks.owner, ENTRIES);
    this.#next = new Uint16Array(buffer, TlbLinks.next, ENTRIES);
    this.#before = new Uint16Array(buffer, TlbLinks.before, ENTRIES);
    this.#first = new Uint16Array(buffer, TlbLinks.first, (MAX_CONTEXT + 1) * LISTS);
    this.#epoch = new Uint32Array(buffer, WalkWords.epoch, 1);
    this.#walked = new BigUint64Array(buffer, WalkWords.fills, 1);
  }

  /** Changes with each flush that takes guest-physical mappings along; those of a guest's MOV CR3 and INVLPG don't. */
  get nestedEpoch(): number {
    return this.#epoch[0];
  }
  /** Look-ups outside the fast path that found nothing, and entries filled. Not part of the saved state. */
  get misses(): number {
    return this.#misses + Number(this.#walked[0]);
  }
  get fills(): number {
    return this.#fills + Number(this.#walked[0]);
  }
  /** As `lookup`, but for whoever only wants to know: no miss is counted. */
  known(low: number, high: number, context: number, tag: Tag): number {
    const misses = this.#misses;
    const hpa = this.lookup(low, high, context, tag);
    this.#misses = misses;
    return hpa;
  }

  /** Interns a context: an id from 1 to 4095. When ids run out everything is flushed and numbering starts again. */
  context(asid: number, pcid: number, nestedRoot: number, rights: number, pkru = 0, pkrs = 0): number {
    const rootKey = pkru === 0 && pkrs === 0 ? nestedRoot : this.#keyPair(pkru, pkrs) * ROOTS + nestedRoot;
    let root = this.#roots.get(rootKey);
    if (root === undefined) this.#roots.set(rootKey, (root = this.#roots.size));
    const key = ((root * 65536 + asid) * 4096 + pcid) * 64 + rights;
    const known = this.#ids.get(key);
    if (known !== undefined) return known;
    if (this.#contexts.length > MAX_CONTEXT) {
      this.#forget();
      return this.context(asid, pcid, nestedRoot, rights, pkru, pkrs);
    }
    this.#contexts.push({ asid, pcid, nestedRoot, rights, pkru, pkrs });
    this.#ids.set(key, this.#contexts.length - 1);
    return this.#contexts.length - 1;
  }

  /** From 1. Usually the one that was asked for before. */
  #keyPair(pkru: number, pkrs: number): number {
    if (pkru === this.#pkru && pkrs === this.#pkrs) return this.#pair;
    const name = `${pkru} ${pkrs}`;
    let pair = this.#keys.get(name);
    if (pair === undefined) this.#keys.set(name, (pair = this.#keys.size + 1));
    this.#pkru = pkru;
    this.#pkrs = pkrs;
    this.#pair = pair;
    return pair;
  }

  #forget(): void {
    this.flushAll();
    this.generation++;
    this.#ids.clear();
    this.#roots.clear();
    this.#keys.clear();
    this.#pkru = 0;
    this.#pkrs = 0;
    this.#contexts.length = 1;
  }

  /** Host physical address of a linear address given as two 32-bit halves, or -1 for a miss. */
  lookup(low: number, high: number, context: number, tag: Tag): number {
    const at = placeOf(low, context) * WORDS;
    const u32 = this.#u32;
    const wanted = ((low & 0xfffff000) | context) >>> 0;
    if (u32[at + tag] !== wanted || u32[at + tag + 1] !== high >>> 0) {
      const withheld = tag === WRITE && (u32[at + INFO] & MAY_WRITE) !== 0;
      if (!withheld || u32[at] !== wanted || u32[at + 1] !== high >>> 0) {
        this.#misses++;
        return -1;
      }
    }
    const info = u32[(tag === FETCHES ? at + FETCHES : at) + INFO];
    return ((info & 0xfffff000) | (low & 0xfff)) >>> 0;
  }

  /** Gives back the inline right to write that `protectPage` withheld. The entry is one that `lookup` has just found for a write. */
  allowWrite(low: number, context: number): void {
    const at = placeOf(low, context) * WORDS;
    this.#u32[at + WRITE] = this.#u32[at];
    this.#u32[at + WRITE + 1] = this.#u32[at + 1];
  }

  fill(low: number, high: number, context: number, fill: TlbFill): void {
    const { fetch } = fill;
    const index = placeOf(low, context) + (fetch ? PLACES : 0);
    const at = index * WORDS;
    const tag = ((low & 0xfffff000) | context) >>> 0;
    const write = fill.write && !fetch;
    this.#fills++;
    this.#unlink(index);
    this.#setTag(at, fetch ? fill.exec : fill.read, tag, high);
    this.#setTag(at + WRITE, write && !fill.code, tag, high);
    this.#u32[at + ADDEND] = PRIVATE + fill.page - ((low & 0xfffff000) >>> 0);
    this.#u32[at + INFO] = fill.page | (write ? MAY_WRITE : 0) | (fill.size << 1) | (fill.global ? 1 : 0);
    this.#link(index, context);
  }
  #setTag(at: number, on: boolean, tag: number, high: number): void {
    this.#u32[at] = on ? tag : 0;
    this.#u32[at + 1] = on ? high : 0;
  }

  #listOf(index: number): number {
    const info = this.#u32[index * WORDS + INFO];
    const large = ((info >>> 1) & 3) === PageSize.small ? 0 : LARGE;
    return this.#owner[index] * LISTS + large + (info & 1) * GLOBALS;
  }
  #link(index: number, context: number): void {
    this.#owner[index] = context;
    const list = this.#listOf(index);
    const second = this.#first[list];
    this.#next[index] = second;
    this.#before[index] = 0;
    if (second !== 0) this.#before[second - 1] = index + 1;
    this.#first[list] = index + 1;
  }
  /** Before its info changes. */
  #unlink(index: number): void {
    if (this.#owner[index] === 0) return;
    const [next, before] = [this.#next[index], this.#before[index]];
    if (before !== 0) this.#next[before - 1] = next;
    else this.#first[this.#listOf(index)] = next;
    if (next !== 0) this.#before[next - 1] = before;
    this.#owner[index] = 0;
  }

  #drop(index: number): void {
    this.#unlink(index);
    const u32 = this.#u32;
    for (let word = index * WORDS, end = word + WORDS; word < end; word++) u32[word] = 0;
  }

  flushAll(): void {
    this.#epoch[0]++;
    this.#u32.fill(0);
    this.#owner.fill(0);
    this.#first.fill(0);
  }

  #flushList(list: number): void {
    for (let at = this.#first[list]; at !== 0; ) {
      const index = at - 1;
      at = this.#next[index];
      this.#drop(index);
    }
  }
  #flushContext(id: number, keepGlobal: boolean): void {
    for (let list = id * LISTS, end = list + (keepGlobal ? GLOBALS : LISTS); list < end; list++) this.#flushList(list);
  }

  /** Everything of an address space (MOV CR3, CR4.PGE, TLB_CONTROL, INVVPID). `pcid` limits it to one PCID. */
  flushAsid(asid: number, keepGlobal: boolean, pcid?: number): void {
    if (!keepGlobal && pcid === undefined) this.#epoch[0]++;
    for (let id = 1; id < this.#contexts.length; id++) {
      const context = this.#contexts[id];
      if (context.asid === asid && (pcid === undefined || context.pcid === pcid)) this.#flushContext(id, keepGlobal);
    }
  }

  /** Everything that came through one nested root (INVEPT single-context, an NPT root that was replaced). */
  flushNested(root: number): void {
    this.#epoch[0]++;
    for (let id = 1; id < this.#contexts.length; id++) {
      if (this.#contexts[id].nestedRoot === root) this.#flushContext(id, false);
    }
  }

  /**
   * INVLPG, INVLPGA, INVVPID type 0, INVPCID type 0: the page of `linear` in all contexts of `asid`, all parts of a large page.
   * Globals go whatever PCID they were filled under; flushing another PCID's entry too is allowed (SDM vol. 3, 4.10.4.1).
   */
  flushPage(asid: number, linear: bigint): void {
    const low = Number(linear & 0xffffffffn);
    const high = Number((linear >> 32n) & 0xffffffffn);
    for (let id = 1; id < this.#contexts.length; id++) {
      if (this.#contexts[id].asid !== asid) continue;
      const place = placeOf(low, id);
      for (const index of [place, place + PLACES]) {
        if (this.#owner[index] === id && this.#samePage(index, low, high, 12)) this.#drop(index);
      }
      this.#flushLarge(id * LISTS + LARGE, low, high);
      this.#flushLarge(id * LISTS + LARGE + GLOBALS, low, high);
    }
  }

  #flushLarge(list: number, low: number, high: number): void {
    for (let at = this.#first[list]; at !== 0; ) {
      const index = at - 1;
      at = this.#next[index];
      const size = (this.#u32[index * WORDS + INFO] >>> 1) & 3;
      // 22 covers the 4 MiB page of 32-bit paging; for 2 MiB pages it drops a neighbour, which is allowed.
      if (this.#samePage(index, low, high, size === PageSize.huge ? 30 : 22)) this.#drop(index);
    }
  }

  #samePage(index: number, low: number, high: number, shift: number): boolean {
    const at = index * WORDS;
    const tag = this.#anyTag(at);
    return tag >= 0 && this.#u32[tag] >>> shift === low >>> shift && this.#u32[tag + 1] === high;
  }

  #anyTag(at: number): number {
    if (this.#u32[at] !== 0) return at;
    return this.#u32[at + WRITE] !== 0 ? at + WRITE : -1;
  }

  /** Withdraws the inline right to write a host physical page (it now holds predecoded code). */
  protectPage(hostPage: number): void {
    for (let index = 0; index < PLACES; index++) {
      const at = index * WORDS;
      if (this.#u32[at + INFO] >>> 12 !== hostPage || this.#u32[at + WRITE] === 0) continue;
      this.#u32[at + WRITE] = 0;
      this.#u32[at + WRITE + 1] = 0;
    }
  }

  save(): TlbSave {
    return { contexts: this.#contexts.map((context) => ({ ...context })), entries: this.#u8.slice() };
  }

  load(saved: TlbSave): void {
    this.#forget();
    for (const { asid, pcid, nestedRoot, rights, pkru, pkrs } of saved.contexts.slice(1)) {
      this.context(asid, pcid, nestedRoot, rights, pkru, pkrs);
    }
    this.#u8.set(saved.entries);
    for (let index = 0; index < ENTRIES; index++) {
      const tag = this.#anyTag(index * WORDS);
      if (tag >= 0) this.#link(index, this.#u32[tag] & 0xfff);
    }
  }
}
