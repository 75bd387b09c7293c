/** Map of the private part of linear memory (below host physical address 0). One processor per memory. */
export const Layout = {
  /** The state block (state-layout.ts). */
  state: 0x1000,
  /** The software TLB: `tlbEntries` entries of 32 bytes. */
  tlb: 0x10000,
  tlbEntries: 4096,
  /** Predecoded records and code-page tables of the engines, up to `PRIVATE`. */
  code: 0x100000,
} as const;

/**
 * A TLB entry, 32 bytes, read inline by generated code.
 * A tag is the linear address with its low 12 bits replaced by the context id (1..4095); 0 never matches.
 * Index: (page ^ context * 37) mod `tlbEntries`, page = linear >> 12. A hit compares the tag of `linear + size - 1`, so that an access
 * that crosses a page never hits. Host offset = (low 32 bits of linear) + `addend` (mod 2^32) in linear memory.
 */
export const TlbEntry = {
  /** u64: matches reads. */
  tagRead: 0,
  /** u64: matches writes (dirty bit set in the guest's tables, page holds no predecoded code, no dirty logging pending). */
  tagWrite: 8,
  /** u64: matches fetches. */
  tagExec: 16,
  /** u32. */
  addend: 24,
  /** u32: bit 0 global; bits 2:1 page size class; bit 3 writes permitted; bits 31:12 host physical page number. */
  info: 28,
  size: 32,
} as const;
