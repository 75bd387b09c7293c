/**
 * Where the pages of a guest's page tables lie in host memory, kept between walks: without it each entry of a guest's walk is a nested walk.
 * Manual: SDM vol. 3 section 28.4.1 (guest-physical mappings may be cached), APM vol. 2 section 15.25 (nested paging).
 */
import { PAGE } from './physical.ts';

/** Covers 512 MiB of guest memory that is mapped in 4 KiB pages. */
const ENTRIES = 256;

/** Valid for one address space number and one nested root, until the silicon flushes what came through nested tables. */
export class TablePages {
  /** Guest page numbers, plus one. */
  readonly #guest = new Float64Array(ENTRIES);
  /** Host physical addresses of those pages. */
  readonly #host = new Float64Array(ENTRIES);
  #asid = -1;
  #root = -1;
  #epoch = -1;

  /** Must be called before `find` whenever one of these may have changed. */
  belongTo(asid: number, root: number, epoch: number): void {
    if (asid === this.#asid && root === this.#root && epoch === this.#epoch) return;
    this.#asid = asid;
    this.#root = root;
    this.#epoch = epoch;
    this.#guest.fill(0);
  }
  /** Host physical address of the page in which a guest physical address lies, or -1. */
  find(gpa: number, epoch: number): number {
    const page = Math.floor(gpa / PAGE);
    const at = page & (ENTRIES - 1);
    return this.#guest[at] === page + 1 && epoch === this.#epoch ? this.#host[at] : -1;
  }
  remember(gpa: number, hostPage: number): void {
    const page = Math.floor(gpa / PAGE);
    const at = page & (ENTRIES - 1);
    this.#guest[at] = page + 1;
    this.#host[at] = hostPage;
  }
}
