/**
 * EPT: from a guest physical address to a host physical one, by walking the tables in host memory. Numbers only.
 * Manual: SDM vol. 3 section 28.3.
 */
import { type NestedShape, type NestedTranslation, type PhysicalMemory, tableIndex } from '@tskvm/emulator';
import { EptCap } from './bits.ts';

/** What a walk came to. */
export const Walk = { ok: 0, violation: 1, misconfiguration: 2 } as const;
export type Walk = (typeof Walk)[keyof typeof Walk];

const READ = 1;
const WRITE = 2;
const EXECUTE = 4;
const LARGE = 1 << 7;
const ACCESSED = 1 << 8;
const DIRTY = 1 << 9;

/** Address bits 31:12 below the size of a page that the entry of a level maps. */
const LARGE_OFFSET = [0, 0, 0x1ff000, 0x3ffff000];

/** A bit for each memory type that a leaf may have: not 2, 3 and 7. */
const MEMORY_TYPES = 0x73;

/**
 * Entries that a walk leaves as they are.
 * @param ad EPTP bit 6
 * @param cap low word of IA32_VMX_EPT_VPID_CAP
 */
export const plainEpt = (ad: boolean, cap: number): NestedShape => ({
  tableSet: BigInt(READ | WRITE | EXECUTE | (ad ? ACCESSED : 0)),
  // A frame above 4 GiB is outside memory, and some bits there are reserved.
  tableClear: (0xfffffn << 32n) | 0xf8n,
  leafSet: BigInt(READ | (ad ? ACCESSED : 0)),
  leafClear: 0xfffffn << 32n,
  largeClear: 0x1ff000n | (cap & EptCap.page2m ? 0n : BigInt(LARGE)),
  types: MEMORY_TYPES,
  writable: BigInt(WRITE | (ad ? DIRTY : 0)),
  execute: BigInt(EXECUTE),
  executeFlip: 0n,
  tableWalksWrite: ad,
});

/** The walker of one processor. Results stand in its fields and live until the next walk. */
export class EptWalker {
  /** Valid after {@link Walk.ok}. */
  readonly result: NestedTranslation = { hpa: 0, writable: false, executable: false, shift: 12 };
  /** Exit qualification bits 5:0 after {@link Walk.violation} (SDM table 27-7). */
  qualification = 0;
  readonly #memory: PhysicalMemory;
  readonly #u32: Uint32Array;
  readonly #cap: number;
  /** Bits of an entry's high word above the physical address width. */
  readonly #reservedHigh: number;
  #leafAt = 0;
  #leafLow = 0;
  #leafHigh = 0;
  #leafLevel = 1;
  #rights = 7;

  /** @param cap low word of IA32_VMX_EPT_VPID_CAP */
  constructor(memory: PhysicalMemory, cap: number, maxphyaddr: number) {
    this.#memory = memory;
    this.#u32 = new Uint32Array(memory.memory.buffer);
    this.#cap = cap;
    // Bits 51:maxphyaddr are reserved; 62:52 are ignored and 63 is "suppress #VE".
    this.#reservedHigh = (0xfffff & ~(2 ** (maxphyaddr - 32) - 1)) >>> 0;
  }

  /**
   * Translates.
   * @param root host physical address of the top table
   * @param levels 4 or 5
   * @param ad EPTP bit 6: accessed and dirty flags are kept
   * @param gpa guest physical address
   */
  walk(root: number, levels: number, ad: boolean, gpa: number, write: boolean, fetch: boolean): Walk {
    const want = (write ? WRITE : fetch ? EXECUTE : READ) | 0;
    const found = this.#descend(root, levels, ad, gpa);
    if (found === Walk.misconfiguration) return found;
    if (found === Walk.violation || (this.#rights & want) !== want) {
      this.qualification = want | ((found === Walk.violation ? 0 : this.#rights) << 3);
      return Walk.violation;
    }
    if (ad) this.#mark(write);
    this.#fill(gpa, ad);
    return Walk.ok;
  }

  /** Goes down to the leaf; the rights are the AND of all levels (SDM 28.3.3.2). */
  #descend(root: number, levels: number, ad: boolean, gpa: number): Walk {
    this.#rights = 7;
    let table = root;
    const gpaHigh = gpa / 2 ** 32;
    for (let level = levels; level >= 1; level--) {
      const pa = table + (tableIndex(level, gpa, gpaHigh) << 3);
      // Nothing decodes the address: the read returns ones, which is a misconfigured entry.
      if (!this.#memory.contains(pa, 8)) return Walk.misconfiguration;
      const at = this.#memory.offset(pa, 8) >>> 2;
      const low = this.#u32[at];
      const high = this.#u32[at + 1];
      if ((low & 7) === 0) return Walk.violation;
      const leaf = level === 1 || (level <= 3 && (low & LARGE) !== 0);
      if (this.#misconfigured(low, high, level, leaf)) return Walk.misconfiguration;
      this.#rights &= low;
      if (leaf) {
        this.#leafAt = at;
        this.#leafLow = low;
        this.#leafHigh = high;
        this.#leafLevel = level;
        return Walk.ok;
      }
      if (ad && (low & ACCESSED) === 0) this.#u32[at] = low | ACCESSED;
      table = (high & 0xfffff) * 2 ** 32 + ((low & 0xfffff000) >>> 0);
    }
    return Walk.misconfiguration;
  }

  /** SDM 28.3.3.1. */
  #misconfigured(low: number, high: number, level: number, leaf: boolean): boolean {
    const rights = low & 7;
    if (rights === WRITE || rights === (WRITE | EXECUTE)) return true;
    if (rights === EXECUTE && !(this.#cap & EptCap.executeOnly)) return true;
    if (high & this.#reservedHigh) return true;
    if (!leaf) return (low & (level >= 4 ? 0xf8 : 0x78)) !== 0;
    const memoryType = (low >> 3) & 7;
    if (((MEMORY_TYPES >> memoryType) & 1) === 0) return true;
    if (level === 3) return !(this.#cap & EptCap.page1g) || (low & 0x3ffff000) !== 0;
    if (level === 2) return !(this.#cap & EptCap.page2m) || (low & 0x1ff000) !== 0;
    return false;
  }

  /** Sets the leaf's accessed and, for a write, dirty flag (SDM 28.3.5). */
  #mark(write: boolean): void {
    const marked = this.#leafLow | ACCESSED | (write ? DIRTY : 0);
    if (marked !== this.#leafLow) {
      this.#u32[this.#leafAt] = marked;
      this.#leafLow = marked;
    }
  }

  #fill(gpa: number, ad: boolean): void {
    const inside = LARGE_OFFSET[this.#leafLevel];
    const page = (this.#leafLow & 0xfffff000 & ~inside) | (gpa & inside);
    const result = this.result;
    result.hpa = (this.#leafHigh & 0xfffff) * 2 ** 32 + (page >>> 0);
    // A page that is not yet dirty is cached read-only, so that its first write walks again.
    result.writable = (this.#rights & WRITE) !== 0 && (!ad || (this.#leafLow & DIRTY) !== 0);
    result.executable = (this.#rights & EXECUTE) !== 0;
    result.shift = 3 + 9 * this.#leafLevel;
  }
}
