/**
 * The seam between the processor and an engine that runs many instructions (interpret, translate).
 * evaluate is not behind it: the processor uses it for whatever an engine hands back.
 */
import type { Instruction } from '../decode/instruction.ts';
import type { PhysicalMemory } from '../memory/physical.ts';
import type { ProcessorState } from '../processor-api.ts';

/** Static facts of the running code: part of the key of predecoded records. */
export interface CodeKey {
  codeSize: 2 | 4 | 8;
  stackSize: 2 | 4 | 8;
  /** CS, DS, ES, SS have base 0 and no limit or right that a data access could break (always so in 64-bit mode). */
  flat: boolean;
  /** Near branches need no limit check (CS limit 4G or 64-bit mode). */
  flatCode: boolean;
  /** Alignment checks are armed (CR0.AM, RFLAGS.AC, CPL 3): the engine hands every instruction back. */
  alignmentCheck: boolean;
}

/** What of the things that an engine derives from its host may have changed, as bits. */
export const Stale = {
  /** Segments, and with them the code key. */
  segments: 1,
  /** The TLB context, CR0 and RFLAGS.AC. */
  rights: 2,
  /** All else. */
  owner: 4,
  all: 7,
} as const;

/** What the engine needs of the processor. Linear addresses cross as two 32-bit halves; results through `S.scratch`. */
export interface EngineHost {
  readonly memory: PhysicalMemory;
  readonly state: ProcessorState;
  /**
   * May the context, the key, the segments, the control registers, XCR0 or what is intercepted of flag images be others than when this was
   * last asked? {@link Stale}'s bits. Asking answers for what the host shows from now on.
   */
  takeStale(): number;
  /** TLB context id of data accesses now (tags of TlbEntry). */
  tlbContext(): number;
  codeKey(): CodeKey;
  /** Something waits for RFLAGS.IF to become 1: whoever sets it gives control back. */
  awaitsInterrupts(): boolean;
  /** Nobody intercepts PUSHF and POPF now. */
  plainFlagImages(): boolean;
  /**
   * Low half of the bits of CR0 that CLTS and MOV to CR0 must leave as the code sees them (`cr0Seen`) if they are to change CR0.TS without
   * asking anybody; -1: every write is the host's.
   */
  cr0Owned(): number;
  /** Low half of CR0 as the code sees it. */
  cr0Seen(): number;
  /**
   * TLB context with CR0.WP the other way where the code may change WP without asking anybody, and nothing else follows from that but a flag
   * of the page walk (`WalkWords`); 0: every write of WP is the host's. Generated code that exchanges the two says so by `contextExchanged`
   * before the host is asked for anything that follows from them.
   */
  otherContext(): number;
  contextExchanged(): void;
  /**
   * 1: outside long mode generated code may load segment registers of level 0 from the GDT by itself, and says so by `segmentsLoaded` when it
   * leaves; 2: in real mode it may jump to another segment; 0: neither.
   */
  loadsSegments(): number;
  segmentsLoaded(): void;
  /** Instructions retired; stands still while an engine runs. */
  readonly tick: number;
  readonly tscPerTick: number;
  /** What RDTSC and RDTSCP add to ticks times `tscPerTick`. */
  tscOffset(): bigint;
  /** Who may read it without asking anybody: bit 0 RDTSC, bit 1 RDTSCP. */
  tscReaders(): number;
  /** Full access behind the inline TLB probe: fills the TLB, does MMIO, crosses pages. 0: done (value in S.scratch), 1: fault or exit recorded. */
  slowRead(low: number, high: number, size: number): number;
  /** Value in S.scratch. 0: done, 1: fault or exit recorded, 2: done and predecoded code was hit (leave the record). */
  slowWrite(low: number, high: number, size: number): number;
  /** Reads as slowRead but with write intent; later slowWrite to the same place cannot fault. */
  slowReadForWrite(low: number, high: number, size: number): number;
  slowProbe(low: number, high: number, size: number): number;
  /** Translates a fetch; host physical address, or -1 (fault or exit recorded). */
  translateFetch(linear: bigint): number;
  /** Segment-checked linear address for non-flat accesses: 0 (linear in S.scratch), 1 fault recorded. */
  slowLinear(seg: number, low: number, high: number, size: number, write: number): number;
  /** Records an exception for the instruction at hand. */
  recordException(vector: number, hasErrorCode: number, errorCode: number): void;
  /** Marks a host page as holding predecoded code, so that writes to it report. */
  protectCodePage(hostPage: number): void;
}

/** Why an engine's `run` came back. State (RIP, RFLAGS, registers) is exact in the state block. */
export type EngineStop =
  /** All ticks used. */
  | 'budget'
  /** The instruction at RIP is for JavaScript: `engine.instruction` if decoded, else decode it by evaluate. */
  | 'instruction'
  /** host recorded a fault or an exit for the instruction at RIP. */
  | 'fault';

/** A translated region, for a profile. One object as long as the region stands. */
export interface RegionFacts {
  /** Instructions by offset from the start of the region's first page, with where each ends. */
  readonly instructions: ReadonlyMap<number, number>;
  /** Offsets at which it may be entered. */
  readonly entries: readonly number[];
  /** Bytes of its wasm function. */
  readonly bytes: number;
  /** How often it was entered since it was translated, modulo 2^32; undefined: it was translated while nobody asked for that. */
  entered(): number | undefined;
}

/** Why the instruction at a place is in no region. */
export type NotTranslated =
  /** Its page has lost regions because its code changed, and waits the longer. */
  | 'changes'
  /** It was looked at, and no region was found: no loop, or an instruction that regions can't contain. */
  | 'no-region'
  /** Not met often enough. */
  | 'cold'
  /** No generated code: the processor executes it. */
  | 'handed-back'
  /** The TLB doesn't map it, or it has not been decoded. */
  | 'unknown'
  /** This engine translates nothing. */
  | 'engine';

/** What an engine knows of the instruction at RIP, for a profile. */
export interface CodePlace {
  readonly region: RegionFacts | null;
  /** Offset of the instruction from the start of the region's first page. */
  readonly at: number;
  /** null in a region. */
  readonly why: NotTranslated | null;
}

/** Numbers of an engine's life; {@link Engine.statistics}. */
export interface TranslateStatistics {
  /** Regions ever translated, the modules that they came in, their instructions and the bytes of their modules. */
  regions: number;
  modules: number;
  instructions: number;
  translated: number;
  /** Those that stand now, and the bytes of their modules. */
  live: number;
  bytes: number;
  /** Translations that were lost because code or its page changed, and because there were too many. */
  invalidated: number;
  evicted: number;
  /** Host milliseconds that looking for regions and translating them took while a clock was given: not the same in each run. */
  milliseconds: number;
  /** The same of handlers that the interpreter needed for new forms of instructions. */
  handlers: number;
}

export interface Engine {
  /** Runs at most `maxTicks` ticks; `retired` says how many were used. */
  run(maxTicks: number): EngineStop;
  readonly retired: number;
  readonly instruction: Instruction | null;
  /** What stands at RIP now. Nothing is decoded, filled or counted by that. */
  place?(): CodePlace;
  /** Of an engine that translates. */
  readonly statistics?: TranslateStatistics;
  /** Times translations and new handlers by the host's clock (milliseconds), and has regions count their entries, from now on; null: no more. */
  timeTranslations?(clock: (() => number) | null): void;
  /** Do any of these bytes (of one host page) belong to predecoded instructions? Writes beside them leave the page's code as it is. */
  holdsCode(pa: number, length: number): boolean;
  /**
   * Bytes that belong to predecoded instructions changed: brings these instructions up to date, so that the page goes on holding code. False:
   * that is not possible, or not worth it; the page has to be invalidated.
   */
  patch(pa: number, length: number): boolean;
  /** Bytes of a host page changed: drop what was predecoded from it. */
  invalidatePage(hostPage: number): void;
  /** Drop everything (power-on, load). */
  invalidateAll(): void;
}
