/**
 * Where the pages of a guest's page tables lie in host memory, kept between walks: without it each entry of a guest's walk is a nested walk.
 * Manual: SDM vol. 3 section 28.4.1 (guest-physical mappings may be cached), APM vol. 2 section 15.25 (nested paging).
 */
import { Layout, WalkWords } from './layout.ts';
import { PAGE, type PhysicalMemory } from './physical.ts';

const ENTRIES = Layout.tablePages;

/**
 * Valid for one address space number and one nested root, until the silicon flushes what came through nested tables. Generated code reads
 * and adds entries: guest page number plus one, host physical address of a page of RAM.
 */
export class TablePages {
  readonly #entries: Uint32Array;
  readonly #epoch: Uint32Array;
  #asid = -1;
  #root = -1;

  constructor({ memory }: PhysicalMemory) {
    this.#entries = new Uint32Array(memory.buffer, Layout.tables, ENTRIES * 2);
    this.#epoch = new Uint32Array(memory.buffer, WalkWords.tablesEpoch, 1);
  }

  /** Must be called before `find` whenever one of these may have changed. */
  belongTo(asid: number, root: number, epoch: number): void {
    if (asid === this.#asid && root === this.#root && epoch === this.#epoch[0]) return;
    this.#asid = asid;
    this.#root = root;
    this.#epoch[0] = epoch;
    this.#entries.fill(0);
  }
  /** Host physical address of the page in which a guest physical address lies, or -1. */
  find(gpa: number, epoch: number): number {
    const page = Math.floor(gpa / PAGE);
    const at = (page & (ENTRIES - 1)) * 2;
    return this.#entries[at] === page + 1 && epoch === this.#epoch[0] ? this.#entries[at + 1] : -1;
  }
  remember(gpa: number, hostPage: number): void {
    const page = Math.floor(gpa / PAGE);
    if (page >= 0xffffffff) return;
    const at = (page & (ENTRIES - 1)) * 2;
    this.#entries[at] = page + 1;
    this.#entries[at + 1] = hostPage;
  }
}
