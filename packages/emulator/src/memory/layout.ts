/** Map of the private part of linear memory (below host physical address 0). One processor per memory. */
export const Layout = {
  /** The state block (state-layout.ts). */
  state: 0x1000,
  /** The software TLB: `tlbEntries` entries of 32 bytes for data, and behind them as many for fetches. */
  tlb: 0x10000,
  tlbEntries: 4096,
  /** The lists of its entries ({@link TlbLinks}). */
  tlbLinks: 0x50000,
  /** What the page walk of generated code knows ({@link WalkWords}). */
  walk: 0x6f000,
  /** Where pages of the guest's page tables lie: `tablePages` entries of 8 bytes (memory/table-pages.ts). */
  tables: 0x70000,
  tablePages: 1024,
  /** A byte for each host page: 1, it holds predecoded code. */
  codePages: 0x100000,
  /** Predecoded records and code-page tables of the engines, up to `PRIVATE`. */
  code: 0x200000,
} as const;

const FETCHES = Layout.tlbEntries * 32;
/**
 * A TLB entry, 32 bytes, read inline by generated code. Fetches have entries of their own, behind those of data: how often an engine looks
 * code up then leaves no trace in what data accesses find, nor they in it.
 * A tag is the linear address with its low 12 bits replaced by the context id (1..4095); 0 never matches.
 * Index: (page ^ context * 37) mod `tlbEntries`, page = linear >> 12. A hit compares the tag of `linear + size - 1`, so that an access
 * that crosses a page never hits. Host offset = (low 32 bits of linear) + `addend` (mod 2^32) in linear memory.
 */
export const TlbEntry = {
  /** u64: matches reads. */
  tagRead: 0,
  /** u64: matches writes (dirty bit set in the guest's tables, page holds no predecoded code, no dirty logging pending). */
  tagWrite: 8,
  /** u32. */
  addend: 24,
  /** u32: bit 0 global; bits 2:1 page size class; bit 3 writes permitted; bits 31:12 host physical page number. */
  info: 28,
  size: 32,
  /** From a page's entry for data to that for fetches, and to its tag (u64: matches fetches) and info. */
  fetches: FETCHES,
  tagExec: FETCHES,
  infoExec: FETCHES + 28,
} as const;

/**
 * Entries of a context, those for fetches too, in four lists: small pages (context * 4), parts of large ones (+ 1), and the global ones of both (+ 2). u16 each:
 * index + 1 of the entry, 0 for none.
 */
const links = Layout.tlbLinks;
export const TlbLinks = {
  /** Context of each entry, 0 for a free one. */
  owner: links,
  next: links + Layout.tlbEntries * 4,
  before: links + Layout.tlbEntries * 8,
  /** First entry of each list. */
  first: links + Layout.tlbEntries * 12,
} as const;

/** Words that say how the running context's addresses are translated (memory/walk.ts fills them, engines/interpret/page-walk.ts reads them). */
const walk = Layout.walk;
export const WalkWords = {
  /** u32: {@link WalkKind}. */
  kind: walk,
  /** u32: {@link WalkFlag}. */
  flags: walk + 4,
  /** u64: physical address of the guest's top table. */
  root: walk + 8,
  /** u64: bits of a 64-bit entry that must be clear. */
  reserved: walk + 16,
  /** u32: 1 with nested paging; host physical address of its top table. */
  nested: walk + 24,
  nestedRoot: walk + 28,
  /** u64 each: NestedShape (guest-mode.ts). */
  tableSet: walk + 32,
  tableClear: walk + 40,
  leafSet: walk + 48,
  leafClear: walk + 56,
  largeClear: walk + 64,
  writable: walk + 72,
  execute: walk + 80,
  executeFlip: walk + 88,
  /** u64: bits that must be set where a page of the guest's tables lies. */
  forTables: walk + 96,
  /** u32: NestedShape's types. */
  types: walk + 104,
  /** u32: the TLB context that all this belongs to. */
  context: walk + 108,
  /** u32: host physical address of the last page of RAM. */
  lastPage: walk + 112,
  /** u32 each: the TLB's nested epoch, and that of the known pages of tables. */
  epoch: walk + 116,
  tablesEpoch: walk + 120,
  /** u64: entries that generated code has filled. */
  fills: walk + 128,
} as const;

/** How the guest's own tables look. `ask`: only JavaScript knows. */
export const WalkKind = {
  ask: 0,
  off: 1,
  bits32: 2,
  paeRegisters: 3,
  paeMemory: 4,
  levels4: 5,
  levels5: 6,
} as const;
export const WalkFlag = { user: 1, smap: 2, wp: 4, smep: 8, pge: 16, pse: 32, gbPages: 64 } as const;
