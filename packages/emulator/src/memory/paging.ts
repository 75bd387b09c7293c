/**
 * Page walks: one loop over a table of levels for 32-bit (PSE, PSE-36), PAE, 4- and 5-level paging, nested or not.
 * Manual: APM vol. 2 ch. 5 and section 15.25 (nested paging), SDM vol. 3 ch. 4.
 *
 * Linear addresses and table entries are handled as two 32-bit halves; physical addresses are numbers below 2^52.
 */
import { Pfec } from '../state-layout.ts';
import { PageSize } from './tlb.ts';

/** Kind of an access, as flags. */
export const AccessKind = {
  read: 0,
  write: 1,
  fetch: 2,
  /** Implicit supervisor access (descriptor tables, TSS): SMAP applies whatever RFLAGS.AC says. */
  system: 4,
} as const;

/** The paging mode that the control registers select. */
export type PagingMode = 'off' | '32-bit' | 'PAE' | '4-level' | '5-level';
export const isLongPaging = (mode: PagingMode): boolean => mode === '4-level' || mode === '5-level';

/** What a walk depends on; computed once per change of the control registers. */
export interface PagingConfig {
  mode: PagingMode;
  /** Physical address of the top table. */
  root: number;
  wp: boolean;
  nx: boolean;
  smep: boolean;
  smap: boolean;
  pse: boolean;
  pge: boolean;
  maxphyaddr: number;
  gbPages: boolean;
  /** AMD: bit 8 of entries that are not leaves must be zero above the page directory (APM vol. 2 section 5.3). */
  bit8Reserved: boolean;
  /** Legacy PAE: the four PDPTEs come from registers, low and high halves; undefined: from memory at each walk (APM 15.25.10). */
  pdpte: Uint32Array | undefined;
  /** Rights of user pages' protection keys, two bits a key (AD, WD); 0 or absent: not in force (SDM vol. 3 section 4.6.2). */
  pkru?: number;
  /** Likewise for supervisor pages. */
  pkrs?: number;
}

/** Physical memory as a walk sees it: guest physical addresses, translated and checked by the implementation. */
export interface WalkMemory {
  /** Host physical address of a table entry. `write`: its A or D bit is about to be set. */
  entryAddress(gpa: number, write: boolean): number;
  read32(hpa: number): number;
  write32(hpa: number, value: number): void;
}

const P = 1;
const RW = 2;
const US = 4;
const ACCESSED = 0x20;
const DIRTY = 0x40;
const PS = 0x80;
const GLOBAL = 0x100;
const MAX_LEVELS = 5;

/** Protection key in an entry's high half, and a key's rights. */
const KEY_SHIFT = 27;
const ACCESS_DISABLE = 1;
const WRITE_DISABLE = 2;

interface Level {
  shift: number;
  bits: number;
  /** Size class if PS may be set here. */
  large: 'none' | '4M' | '2M' | '1G';
  /** Bits that are always reserved in an entry that points to a table, low half. */
  reserved: number;
  /** Legacy PAE's top level: no rights, no A bit. */
  bare: boolean;
}
const level = (shift: number, bits: number, large: Level['large'] = 'none', reserved = 0, bare = false): Level => ({
  shift,
  bits,
  large,
  reserved,
  bare,
});

const FOUR_LEVELS = [level(39, 9, 'none', 0x80), level(30, 9, '1G'), level(21, 9, '2M'), level(12, 9)];
const LEVELS: Readonly<Record<PagingMode, readonly Level[]>> = {
  off: [],
  '32-bit': [level(22, 10, '4M'), level(12, 10)],
  PAE: [level(30, 2, 'none', 0x1e6, true), level(21, 9, '2M'), level(12, 9)],
  '4-level': FOUR_LEVELS,
  '5-level': [level(48, 9, 'none', 0x80), ...FOUR_LEVELS],
};

/** Low-half bits that are reserved in a large page's entry: address bits below the page's size, without PAT (bit 12). */
const LARGE_RESERVED = { none: 0, '4M': 0x200000, '2M': 0x1fe000, '1G': 0x3fffe000 } as const;
const SIZE_CLASS = { none: PageSize.small, '4M': PageSize.large, '2M': PageSize.large, '1G': PageSize.huge } as const;

/** Index into the 512-entry table of a level (1: page table, to 5), for walks of nested tables; `high` is the address divided by 2^32. */
export function tableIndex(level: number, address: number, high: number): number {
  switch (level) {
    case 1:
      return (address >>> 12) & 0x1ff;
    case 2:
      return (address >>> 21) & 0x1ff;
    case 3:
      return ((address >>> 30) | (high << 2)) & 0x1ff;
    default:
      return (high >>> (level === 4 ? 7 : 16)) & 0x1ff;
  }
}

/** The result of a successful walk, and the walker's state. One object per processor. */
export class PageWalker {
  /** Guest physical address of the byte. */
  gpa = 0;
  user = true;
  writable = true;
  nx = false;
  dirty = true;
  global = false;
  size: number = PageSize.small;
  /** Protection key of the leaf. */
  key = 0;
  /** Error code of a failed walk (`walk` returned false). */
  errorCode = 0;

  #config: PagingConfig = {
    mode: 'off',
    root: 0,
    wp: false,
    nx: false,
    smep: false,
    smap: false,
    pse: false,
    pge: false,
    maxphyaddr: 52,
    gbPages: false,
    bit8Reserved: false,
    pdpte: undefined,
  };
  #levels: readonly Level[] = LEVELS.off;
  /** Reserved bits of 64-bit entries, high half: tables and leaves alike. */
  #reservedHigh = 0;
  readonly #seenAddress = new Float64Array(MAX_LEVELS);
  readonly #seenLow = new Int32Array(MAX_LEVELS);
  #seen = 0;
  #low = 0;
  #high = 0;
  readonly #memory: WalkMemory;

  constructor(memory: WalkMemory) {
    this.#memory = memory;
  }

  configure(config: PagingConfig): void {
    const { mode, nx, maxphyaddr } = this.#config;
    this.#config = config;
    if (config.mode === mode && config.nx === nx && config.maxphyaddr === maxphyaddr) return;
    this.#levels = LEVELS[config.mode];
    const above = config.maxphyaddr >= 52 ? 0 : (0xfffff >>> (config.maxphyaddr - 32)) << (config.maxphyaddr - 32);
    // Legacy PAE reserves 62:52 as well; 4-level paging ignores them (SDM vol. 3 tables 4-8 to 4-19).
    this.#reservedHigh = above | (config.mode === 'PAE' ? 0x7ff00000 : 0) | (config.nx ? 0 : 0x80000000);
  }

  /**
   * Walks the tables for a linear address. True: the result fields are valid and A/D bits are set; false: #PF with `errorCode`.
   * @param kind {@link AccessKind} flags
   * @param user CPL is 3 and the access is explicit
   * @param smap supervisor data accesses to user pages fault
   */
  walk(low: number, high: number, kind: number, user: boolean, smap: boolean): boolean {
    this.#start();
    if (this.#config.mode === 'off') {
      this.gpa = low >>> 0;
      return true;
    }
    const access = this.#accessBits(kind, user);
    const fault = this.#descend(low, high);
    if (fault !== 0) return this.#fail(access | (fault & Pfec.P) | (fault & Pfec.RSVD));
    if (!this.permits(kind, user, smap)) {
      return this.#fail(access | Pfec.P | (this.#keyDenies(kind, user) ? Pfec.PK : 0));
    }
    this.#markAccessed((kind & AccessKind.write) !== 0);
    return true;
  }

  #start(): void {
    this.user = true;
    this.writable = true;
    this.nx = false;
    this.dirty = true;
    this.global = false;
    this.size = PageSize.small;
    this.#seen = 0;
  }

  #fail(errorCode: number): false {
    this.errorCode = errorCode;
    return false;
  }

  /** I/D is reported only where instruction fetches are told apart (SDM vol. 3 section 4.7). */
  #accessBits(kind: number, user: boolean): number {
    const fetch = (kind & AccessKind.fetch) !== 0 && (this.#config.nx || this.#config.smep);
    return (kind & AccessKind.write ? Pfec.W : 0) | (user ? Pfec.U : 0) | (fetch ? Pfec.F : 0);
  }

  /** Reads the entries down to the leaf. 0, or the P and RSVD bits of the error code with bit 31 set. */
  #descend(low: number, high: number): number {
    const { mode, pse } = this.#config;
    let table = this.#config.root;
    for (let n = 0; ; n++) {
      const here = this.#levels[n];
      this.#readEntry(here, n, table, low, high);
      if ((this.#low & P) === 0) return 0x80000000;
      const large = (this.#low & PS) !== 0 && here.large !== 'none' && (mode !== '32-bit' || pse);
      if (this.#isReserved(here, n, large)) return 0x80000000 | Pfec.P | Pfec.RSVD;
      if (!here.bare) this.#combineRights();
      if (large || n === this.#levels.length - 1) return this.#leaf(here, low, large);
      table = this.#frame(0xfffff000);
    }
  }

  #readEntry(here: Level, n: number, table: number, low: number, high: number): void {
    const index = this.#index(here, low, high);
    if (here.bare && this.#config.pdpte !== undefined) {
      this.#low = this.#config.pdpte[index * 2];
      this.#high = this.#config.pdpte[index * 2 + 1];
      return;
    }
    const wide = this.#config.mode !== '32-bit';
    const hpa = this.#memory.entryAddress(table + index * (wide ? 8 : 4), false);
    this.#low = this.#memory.read32(hpa);
    this.#high = wide ? this.#memory.read32(hpa + 4) : 0;
    if (here.bare) return;
    this.#seenAddress[n] = table + index * (wide ? 8 : 4);
    this.#seenLow[n] = this.#low;
    this.#seen = n + 1;
  }

  #index(here: Level, low: number, high: number): number {
    const mask = (1 << here.bits) - 1;
    if (here.shift >= 32) return (high >>> (here.shift - 32)) & mask;
    return ((low >>> here.shift) | (high << (32 - here.shift))) & mask;
  }

  #isReserved(here: Level, n: number, large: boolean): boolean {
    const { mode, maxphyaddr, gbPages, bit8Reserved } = this.#config;
    if (mode === '32-bit') {
      if (!large) return false;
      // PSE-36: bits 20:13 are address bits 39:32.
      const above = maxphyaddr >= 40 ? 0 : (0xff << (maxphyaddr - 32)) & 0xff;
      return (this.#low & (LARGE_RESERVED['4M'] | (above << 13))) !== 0;
    }
    if ((this.#high & (here.bare ? this.#reservedHigh | 0x80000000 : this.#reservedHigh)) !== 0) return true;
    if (large) return (this.#low & LARGE_RESERVED[here.large]) !== 0 || (here.large === '1G' && !gbPages);
    const bit8 = bit8Reserved && isLongPaging(mode) && n < this.#levels.length - 2 ? GLOBAL : 0;
    return (this.#low & (here.reserved | bit8)) !== 0;
  }

  #combineRights(): void {
    if ((this.#low & US) === 0) this.user = false;
    if ((this.#low & RW) === 0) this.writable = false;
    if (this.#config.nx && (this.#high & 0x80000000) !== 0) this.nx = true;
  }

  #frame(lowMask: number): number {
    return (this.#high & 0xfffff) * 0x100000000 + ((this.#low & lowMask) >>> 0);
  }

  #leaf(here: Level, low: number, large: boolean): 0 {
    const mask = large ? (1 << here.shift) - 1 : 0xfff;
    const psePart = here.large === '4M' && large ? ((this.#low >>> 13) & 0xff) * 0x100000000 : 0;
    this.gpa = this.#frame(~mask) + psePart + ((low & mask) >>> 0);
    this.size = large ? SIZE_CLASS[here.large] : PageSize.small;
    this.global = this.#config.pge && (this.#low & GLOBAL) !== 0;
    this.dirty = (this.#low & DIRTY) !== 0;
    this.key = (this.#high >>> KEY_SHIFT) & 15;
    return 0;
  }

  /** Do the rights of the last walk permit this access? (SDM vol. 3 section 4.6, APM vol. 2 section 5.6.) */
  permits(kind: number, user: boolean, smap: boolean): boolean {
    const { mode, wp, smep } = this.#config;
    if (mode === 'off') return true;
    if ((kind & AccessKind.fetch) !== 0) {
      return !this.nx && (user ? this.user : !(this.user && smep));
    }
    if (this.#keyDenies(kind, user)) return false;
    if (user) return this.user && (this.writable || (kind & AccessKind.write) === 0);
    if (smap && this.user) return false;
    return (kind & AccessKind.write) === 0 || this.writable || !wp;
  }

  /** Does the page's protection key forbid a data access? WD binds the supervisor under CR0.WP only (SDM vol. 3 section 4.6.2). */
  #keyDenies(kind: number, user: boolean): boolean {
    const rights = (this.user ? this.#config.pkru : this.#config.pkrs) ?? 0;
    if (rights === 0 || (kind & AccessKind.fetch) !== 0) return false;
    const own = (rights >>> (this.key * 2)) & 3;
    if ((own & ACCESS_DISABLE) !== 0) return true;
    return (own & WRITE_DISABLE) !== 0 && (kind & AccessKind.write) !== 0 && (user || this.#config.wp);
  }

  /** Sets A in each entry used, then D in the leaf: nothing is marked by a walk that faults. */
  #markAccessed(write: boolean): void {
    for (let n = 0; n < this.#seen; n++) {
      // The first slot of legacy PAE is empty: PDPTEs have no A bit.
      if (this.#levels[n].bare) continue;
      const leaf = n === this.#seen - 1;
      const wanted = ACCESSED | (leaf && write ? DIRTY : 0);
      if ((this.#seenLow[n] & wanted) === wanted) continue;
      this.#memory.write32(this.#memory.entryAddress(this.#seenAddress[n], true), this.#seenLow[n] | wanted);
    }
    if (write) this.dirty = true;
  }
}
