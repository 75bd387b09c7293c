/**
 * The nested page walk: guest physical to host physical through the tables at nCR3, in numbers only.
 * Manual: APM vol. 2 section 15.25 (nested paging), 5.3 (long-mode page translation, the host's paging mode).
 */
import { type NestedShape, type NestedTranslation, type PhysicalMemory, tableIndex } from '@tskvm/emulator';
import { NpfError } from './exit-codes.ts';

const PRESENT = 0x01;
const WRITABLE = 0x02;
const USER = 0x04;
const ACCESSED = 0x20;
const DIRTY = 0x40;
const PAGE_SIZE = 0x80;
const NX_HIGH = 0x8000_0000;

/** What a walk is asked; reused between calls. */
export interface NestedAccess {
  write: boolean;
  fetch: boolean;
  pageWalk: boolean;
}

/** Host context of the walk: the host's paging mode as VMRUN found it. */
export interface HostPaging {
  /** 4 (CR4.LA57=0) or 5. */
  levels: 4 | 5;
  /** EFER.NXE: bit 63 is no-execute, else it is reserved. */
  nxe: boolean;
  /** Physical address bits above bit 31 that are reserved in an entry's high half. */
  reservedHigh: number;
  /** CR4-independent: 1 GiB pages exist. */
  gigabytePages: boolean;
}

/** Mask of the reserved bits in an entry's high half for a physical address width. */
export const reservedHighMask = (maxphyaddr: number): number =>
  maxphyaddr >= 52 ? 0 : ((0xf_ffff << Math.max(0, maxphyaddr - 32)) & 0xf_ffff) >>> 0;

/** Entries with EFER.NXE=1 that a walk leaves as they are; every walk of the guest's own tables is a write (APM 15.25.5). */
export const PLAIN_NPT: NestedShape = {
  tableSet: BigInt(PRESENT | WRITABLE | USER | ACCESSED),
  // A frame above 4 GiB is outside memory, and some bits there are reserved.
  tableClear: (1n << 63n) | (0xf_ffffn << 32n) | BigInt(PAGE_SIZE),
  leafSet: BigInt(PRESENT | USER | ACCESSED),
  leafClear: 0xf_ffffn << 32n,
  largeClear: 0x001f_e000n,
  types: 0xff,
  writable: BigInt(WRITABLE | DIRTY),
  execute: 1n << 63n,
  executeFlip: 1n << 63n,
  tableWalksWrite: true,
};

/** Walks NPT. `translation` holds the result of the last successful walk; it is reused. */
export class NestedWalker {
  readonly translation: NestedTranslation = { hpa: 0, writable: false, executable: false, shift: 12 };
  readonly #memory: PhysicalMemory;
  readonly #view: DataView;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
    this.#view = memory.view;
  }

  /**
   * Translates `gpa`. Returns 0 with the result in `translation`, or the nested fault's error code (bits 4:0, APM 15.25.6).
   * Every guest access is a user access at this level; a walk of the guest's own tables is a user write.
   * A page is reported writable only once its dirty bit is set, so that the first write walks again and sets it.
   */
  walk(root: number, gpa: number, access: NestedAccess, host: HostPaging): number {
    const write = access.write || access.pageWalk;
    const want = NpfError.U | (write ? NpfError.W : 0) | (access.fetch ? NpfError.FETCH : 0);
    let table = root;
    let rights = WRITABLE | USER;
    let noExecute = false;
    const gpaHigh = gpa / 0x1_0000_0000;
    for (let level: number = host.levels; level > 0; level -= 1) {
      const pte = table + (tableIndex(level, gpa, gpaHigh) << 3);
      if (!this.#memory.contains(pte, 8)) return want | NpfError.P | NpfError.RSVD;
      const at = this.#memory.offset(pte, 8);
      const low = this.#view.getUint32(at, true);
      const high = this.#view.getUint32(at + 4, true);
      if ((low & PRESENT) === 0) return want;
      const leaf = level === 1 || (low & PAGE_SIZE) !== 0;
      if (entryReserved(low, high, level, leaf && level > 1, host)) return want | NpfError.P | NpfError.RSVD;
      rights &= low;
      noExecute ||= high >>> 31 !== 0;
      if (!leaf) {
        if ((low & ACCESSED) === 0) this.#view.setUint32(at, low | ACCESSED, true);
        table = (high & 0xf_ffff) * 0x1_0000_0000 + ((low & 0xffff_f000) >>> 0);
        continue;
      }
      if ((rights & USER) === 0 || (write && (rights & WRITABLE) === 0) || (access.fetch && noExecute)) {
        return want | NpfError.P;
      }
      const marked = low | ACCESSED | (write ? DIRTY : 0);
      if (marked !== low) this.#view.setUint32(at, marked, true);
      this.#fill(marked, high, level, gpa, rights, noExecute);
      return 0;
    }
    return want;
  }

  #fill(low: number, high: number, level: number, gpa: number, rights: number, noExecute: boolean): void {
    // Bit 12 of a large page's entry is PAT, not address; what lies inside a large page comes from the guest's address.
    const inside = LARGE_OFFSET[level];
    const page = (low & 0xffff_f000 & ~inside) | (gpa & inside);
    const { translation } = this;
    translation.hpa = (high & 0xf_ffff) * 0x1_0000_0000 + (page >>> 0);
    translation.writable = (rights & WRITABLE) !== 0 && (low & DIRTY) !== 0;
    translation.executable = !noExecute;
    translation.shift = 3 + 9 * level;
  }
}

/** Address bits 31:12 below the size of a page that the entry of a level maps. */
const LARGE_OFFSET = [0, 0, 0x1f_f000, 0x3fff_f000];

/** Reserved bits of one entry (APM 5.3.3 and 5.4.1; bit 7 is reserved above the levels that have large pages). */
function entryReserved(low: number, high: number, level: number, large: boolean, host: HostPaging): boolean {
  if ((high & host.reservedHigh) !== 0) return true;
  if (!host.nxe && (high & NX_HIGH) !== 0) return true;
  if (!large) return false;
  if (level > 3 || (level === 3 && !host.gigabytePages)) return true;
  return (low & (level === 3 ? 0x3fff_e000 : 0x001f_e000)) !== 0;
}
