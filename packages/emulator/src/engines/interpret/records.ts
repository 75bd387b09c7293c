/**
 * Layout of what the interpreter keeps in linear memory: predecoded records, private slots of the state block. The jump cache stands in front.
 * A record is one instruction: a handler and all that varies between instructions of the handler's form.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { PRIVATE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import { JUMP_END } from './jump-cache.ts';

/** Byte offsets in a record. */
export const R = {
  /** u16: handler to dispatch to (may be a variant with dead flags, or fused with the next record). */
  handler: 0,
  /** u16: the plain handler: all flags, this instruction only. Used where execution stops behind the record. */
  plain: 2,
  /** u16: page offset of the next instruction, up to 4096. */
  next: 4,
  /** u16 each: byte offsets of registers in the state block. `rm` also stands for the register in opcode bits 2:0. */
  reg: 6,
  rm: 8,
  /** u16: VEX.vvvv's register, or the second immediate. */
  vvvv: 10,
  /** u16 each: byte offsets of base and index register (S.zero if absent). */
  base: 12,
  index: 14,
  /** i32: displacement. A direct branch has none and keeps here the address of its target's record (0: not linked); a guard its page. */
  disp: 16,
  link: 16,
  /**
   * u32 each: of a direct branch, and of what goes on in the next page, the record of the target that was met last and the host physical
   * address of its page. For the address 0 (no record) a handler of 0 is read there: stale.
   */
  far: 8,
  farPage: 12,
  /** u8: scale as a shift. */
  scale: 20,
  /** u8: effective segment. */
  seg: 21,
  /** u16: page offset of this instruction. */
  offset: 22,
  /** i64: immediate. */
  imm: 24,
  size: 32,
} as const;
export const RECORD_SHIFT = 5;

/** A run of records never has more instructions than this; below it, `run` leaves and JavaScript steps exactly. */
export const MAX_RUN = 64;

/** Engine-private slots, as absolute addresses (in S.derived). */
const slot = Layout.state + S.derived;
export const P = {
  /** u64: TLB context id. */
  context: slot,
  /** u32: (context * 37) in place for the TLB index. */
  contextHash: slot + 8,
  /** u64: CS base, 0 in 64-bit code. */
  codeBase: slot + 16,
  /** u64: mask of linear addresses. */
  linearMask: slot + 24,
  /** u64: highest RIP that a page may reach. */
  codeLimit: slot + 32,
  /** i32: ticks left, written when `run` leaves. */
  remaining: slot + 40,
  /** u32: record at which `run` left. */
  pc: slot + 44,
  /** u32: host physical address of the page that `run` starts in, if it starts at a record. */
  page: slot + 12,
  /** u32: something waits for RFLAGS.IF; PUSHF or POPF may be intercepted. */
  awaited: slot + 56,
  flagsIntercepted: slot + 60,
  /** u32: bit 0 SSE instructions do not run as they are (CR0.EM, CR0.TS, CR4.OSFXSR), bit 1 AVX instructions do not, bit 2 x87 ones. */
  vectors: slot + 64,
  /** u32: ticks that regions and block moves used, counted up. */
  translated: slot + 68,
  /** i32: ticks that an out-of-line handler may use. */
  left: slot + 72,
  /** u32: what `vectors` is while CR0.TS is clear. */
  vectorsClear: slot + 76,
  /** u32: what the host says about writes of CR0 (EngineHost). */
  cr0Owned: slot + 80,
  cr0Seen: slot + 84,
  /** The tick at which the running slice would end (u64), TSC increments per tick (u32) and what is added to them (u64). */
  sliceEnd: slot + 88,
  tscPerTick: slot + 96,
  tscOffset: slot + 104,
  /** u32: what the host says about RDTSC and RDTSCP (EngineHost). */
  tscReaders: slot + 112,
  /** u32: what the host says about loads of segment registers (EngineHost); generated code sets `segmentsLoaded` (u64) to 1 behind one. */
  loadsSegments: slot + 116,
  segmentsLoaded: slot + 120,
  /**
   * The context with CR0.WP the other way (u64) and its hash (u32), where the code may change WP without asking anybody; 0: it may not.
   * Generated code that does exchanges them with the first two.
   */
  otherContext: slot + 128,
  otherHash: slot + 136,
  /** u32: an access over the end of a 4 GiB segment faults. */
  endsAt4G: slot + 140,
  /** u32: the ticks that were left in front of a load of SS behind which the run went on; 0: there was none since STI. Written by generated code. */
  shadowLeft: slot + 144,
  /** u64: id of the code key, where the jump cache's entries have it. */
  key: slot + 48,
} as const;

/** What each part of a code key adds to its id (`P.key`): code or a stack of 32 bits (of 64: twice that), flat data, flat code. */
export const KeyPart = { first: 1, code: 1, stack: 3, flat: 9, flatCode: 18, ids: 1 + 3 * 3 * 2 * 2 } as const;

/** A record that looks up S.rip. */
export const ENTRY_RECORD = JUMP_END;
/** Copies of records for exact stepping: a run with the guard and the link that may stand in it, one more for the stop. */
export const SCRATCH_RECORDS = ENTRY_RECORD + R.size;
export const SCRATCH_COUNT = MAX_RUN + 3;
export const FIRST_RECORD = SCRATCH_RECORDS + R.size * SCRATCH_COUNT;
/** Records end here; in the last megabyte stand counters and the coverage of pages (coverage.ts). */
export const RECORDS_END = PRIVATE - 0x100000;
/** u32 for each slot of a region's entry: how often a region was entered, by its first slot. Written only for a profile. */
export const COUNTERS = RECORDS_END;
const COVERED = RECORDS_END + 0x20000;
/** `places` bitmaps of a page's bytes, and the host pages that they are of (u32 each). */
export const Covered = {
  bits: COVERED,
  bytes: 512,
  places: 1024,
  tags: COVERED + 512 * 1024,
  none: -1,
} as const;

/** Handlers with special duties, first in every module. */
export const Special = {
  /** Not decoded any more (its bytes changed): leave here. */
  stale: 0,
  /** End of exact stepping. */
  stop: 1,
  /** For JavaScript. */
  instruction: 2,
  /** Not an instruction: go on at `link`, or look up this RIP. */
  link: 3,
  /** Look up S.rip. */
  entry: 4,
  /**
   * Not an instruction: the guard in front of one that crosses into the next page. Goes on behind itself if the TLB maps that page for
   * fetches to the host physical address in `link`; else the instruction is for JavaScript.
   */
  guard: 5,
  /**
   * Not an instruction: reads the immediate of the one behind it from the code. `reg`: page offset of the immediate, `scale`: how it is
   * read, `next`: end of the instruction.
   */
  fresh: 6,
  count: 7,
} as const;

/** What `run` returns. */
export const Status = {
  /** Nothing known at RIP: predecode, then go on. */
  miss: 0,
  /** Fewer than MAX_RUN ticks left. */
  budget: 1,
  instruction: 2,
  fault: 3,
  stop: 4,
  /** One instruction has to be executed in the interrupt shadow. */
  shadowed: 5,
} as const;

/** What an out-of-line handler returns; `repeat` with the ticks that were used in the bits from {@link RECORD_SHIFT} on. */
export const Outcome = { next: 0, fault: 1, jumped: 2, repeat: 3, handBack: 4, shadowed: 5, recontext: 6 } as const;

/** Host page that the TLB maps a linear page to for fetches in the running context, or -1; nothing is filled in. */
export function fetchPage(view: DataView, linear: bigint): number {
  const context = view.getUint32(P.context, true);
  const index = (Number((linear >> 12n) & BigInt(Layout.tlbEntries - 1)) ^ (context * 37)) & (Layout.tlbEntries - 1);
  const entry = Layout.tlb + index * TlbEntry.size;
  const hit = view.getBigUint64(entry + TlbEntry.tagExec, true) === (linear | BigInt(context));
  return hit ? view.getUint32(entry + TlbEntry.infoExec, true) >>> 12 : -1;
}
