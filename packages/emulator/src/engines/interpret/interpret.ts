/**
 * The interpret engine: runs predecoded records in one wasm function; decodes what is missing, steps exactly near the end of a slice,
 * and hands to JavaScript what has no generated code.
 */
import type { Instruction } from '../../decode/instruction.ts';
import { Layout as memoryLayout, TlbEntry } from '../../memory/layout.ts';
import { PAGE, type PhysicalMemory } from '../../memory/physical.ts';
import { Flag as flagBits, Seg, S as stateLayout } from '../../state-layout.ts';
import {
  type CodeKey,
  type CodePlace,
  type Engine,
  type EngineHost,
  type EngineStop,
  Stale as staleParts,
} from '../engine.ts';
import { Stopwatch } from '../stopwatch.ts';
import { AT_ONCE, ColdForms, type FormOptions } from './cold-forms.ts';
import { HELPERS } from './frame.ts';
import { type FormInfo, type HandlerSet, handlerSet } from './handlers.ts';
import type { HostImport } from './helpers.ts';
import { Jump as jumpCache } from './jump-cache.ts';
import { type CodePage, type KeyState, OutOfRecords, Predecoder } from './predecode.ts';
import {
  ENTRY_RECORD as entryRecord,
  fetchPage,
  KeyPart,
  MAX_RUN as maxRun,
  P as places,
  RECORDS_END,
  R as recordFields,
  Status as runStatus,
  SCRATCH_COUNT,
  SCRATCH_RECORDS as scratchRecords,
  Special as specialHandlers,
} from './records.ts';
import { ShapeTable } from './shape.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const P = places;
const Jump = jumpCache;
const R = recordFields;
const ENTRY_RECORD = entryRecord;
const SCRATCH_RECORDS = scratchRecords;
const MAX_RUN = maxRun;
const Special = specialHandlers;
const Status = runStatus;
const S = stateLayout;
const Flag = flagBits;
const Layout = memoryLayout;
const Stale = staleParts;

export interface InterpretOptions {
  vendor: 'amd' | 'intel';
  /** Features of the processor: rows of absent ones do not decode. Absent: instructions that need a feature go to JavaScript. */
  features?: ReadonlySet<string>;
  /** When forms get handlers. Default: where they are first decoded. */
  forms?: FormOptions;
  /** Whoever wants to replace hot records by something faster. */
  hotCode?: (parts: EngineParts) => HotCode;
}

/** What a {@link HotCode} works on. */
export interface EngineParts {
  readonly memory: PhysicalMemory;
  readonly predecoder: Predecoder;
  instance(handlers: HandlerSet): Instance;
  /** Puts a form's out-of-line function into the table. */
  install(handlers: HandlerSet, info: FormInfo): void;
}

/** Follows where time goes, between calls of generated code. */
export interface HotCode {
  /** Ticks of the next call at most. */
  slice(): number;
  /** A call used so many ticks, some of them in regions, and left at (or behind) a record. */
  ran(record: number, ticks: number, translated: number): void;
  /** Handlers were made; that was worth so many ticks, for which nothing else is to be compiled. */
  made(ticks: number): void;
  /** The records of a host page are stale. */
  dropped(hostPage: number): void;
  /** Bytes of a host page changed; its records are going to follow one by one. */
  patched(hostPage: number, from: number, to: number): void;
  /** The handler that a record gets back is to be its plain one. False: it has not been replaced. */
  unfuse(record: number): boolean;
  /** All records are gone. */
  cleared(): void;
  /** What stands at RIP. */
  place(): CodePlace;
}

/** Stores of instructions; whatever is larger is new code. */
const MAX_PATCH = 32;

/** Instructions in one wasm call: V8 does not replace a running function, so long calls would stay in slow code. */
const SLICE = 200_000;

const CS_LIMIT = Layout.state + S.segments + Seg.CS * 16 + 4;
const CS_BASE = CS_LIMIT + 4;
const SHADOW = Layout.state + S.shadow;
const RFLAGS = Layout.state + S.rflags;
const TWO_TO_MINUS_32 = 2 ** -32;

const word = (offset: number): number => (Layout.state + offset) >> 2;
const CR0_WORD = word(S.cr0);
const TS = 8;
const AM = 0x40000;
/** CPL in its low byte. */
const STATUS_WORD = word(S.cpl);
const CR4_WORD = word(S.cr4);
const XCR0_WORD = word(S.xcr0);

/** All of {@link P.vectors}: what CR0.TS does to them. */
const ALL_GATES = 7;
/** {@link P.vectors} by CR0.EM, CR0.TS, CR4.OSFXSR and OSXSAVE, XCR0, and the mode (APM vol. 4 section 1.2.4). */
function vectorGates(words: Int32Array, cr0: number): number {
  const cr4 = words[CR4_WORD];
  const sse = (cr0 & 0xc) === 0 && (cr4 & 0x200) !== 0;
  const protectedMode = (cr0 & 1) !== 0 && (words[RFLAGS >> 2] & Flag.VM) === 0;
  const avx = (cr0 & 8) === 0 && (cr4 & 0x40000) !== 0 && (words[XCR0_WORD] & 6) === 6 && protectedMode;
  const x87 = (cr0 & 0xc) === 0 && protectedMode;
  return (sse ? 0 : 1) | (avx ? 0 : 2) | (x87 ? 0 : 4);
}

type Run = (record: number, ticks: number) => number;

/** A module's instance in this engine's memory. */
export interface Instance {
  run: Run;
  table: WebAssembly.Table;
  exports: WebAssembly.Exports;
  installed: Uint8Array;
}

const hashOf = (context: number): number => ((context * 37) % Layout.tlbEntries) * TlbEntry.size;
const keyId = (key: CodeKey): number =>
  KeyPart.first +
  KeyPart.code * (key.codeSize >> 2) +
  KeyPart.stack * (key.stackSize >> 2) +
  (key.flat ? KeyPart.flat : 0) +
  (key.flatCode ? KeyPart.flatCode : 0);

export class InterpretEngine implements Engine {
  retired = 0;
  instruction: Instruction | null = null;
  /** Times what handlers for new forms take. */
  readonly watch = new Stopwatch();
  readonly #host: EngineHost;
  readonly #options: InterpretOptions;
  readonly #predecoder: Predecoder;
  readonly #forms: ColdForms;
  /** Since forms were told of ticks. */
  #ticks = 0;
  readonly #keys: (KeyState | undefined)[] = new Array<KeyState | undefined>(KeyPart.ids).fill(undefined);
  readonly #runs: (Run | undefined)[] = new Array<Run | undefined>(KeyPart.ids).fill(undefined);
  readonly #instances = new Map<HandlerSet, Instance>();
  readonly #view: DataView;
  readonly #u8: Uint8Array;
  /** The private part of memory as 32-bit words. */
  readonly #words: Int32Array;
  readonly #protect = (hostPage: number): void => this.#host.protectCodePage(hostPage);
  /** Records that the scratch copies were made from. */
  #stepped = 0;
  #running = false;
  readonly #hot: HotCode | null;
  /** Records that leave, and the handlers that they had. */
  readonly #paused: { at: number; handler: number }[] = [];

  constructor(host: EngineHost, options: InterpretOptions) {
    this.#host = host;
    this.#options = options;
    this.#view = host.memory.view;
    this.#u8 = host.memory.u8;
    this.#words = new Int32Array(host.memory.memory.buffer, 0, RECORDS_END >> 2);
    const install = (handlers: HandlerSet, info: FormInfo): void => this.#install(handlers, info);
    this.#forms = new ColdForms(options.forms ?? AT_ONCE, this.watch, (ticks) => this.#hot?.made(ticks));
    this.#predecoder = new Predecoder(host.memory, install, this.#forms, this.watch);
    const { memory } = host;
    const parts = { memory, predecoder: this.#predecoder, instance: (h: HandlerSet) => this.#instance(h), install };
    this.#hot = options.hotCode?.(parts) ?? null;
    this.#clear();
  }

  #key(key: CodeKey): KeyState {
    const id = keyId(key);
    const known = this.#keys[id];
    if (known !== undefined) return known;
    const mode = { codeSize: key.codeSize, intel: this.#options.vendor === 'intel', features: this.#options.features };
    const handlers = handlerSet(key.codeSize === 8);
    const { vendor, features } = this.#options;
    const shapes = new ShapeTable(
      handlers,
      { ...key },
      { vendor, allFeatures: features !== undefined, forms: this.#forms, watch: this.watch },
    );
    const state = { key: { ...key }, id, handlers, shapes, mode, infos: [] };
    this.#keys[id] = state;
    return state;
  }

  /** The host's key as of the last run, and what belongs to it. A host that has the same key shows the same object. */
  #codeKey: CodeKey | null = null;
  #keyState: KeyState | null = null;
  #run: Run | null = null;
  /** Alignment is checked. */
  #aligned = false;
  /** Something waits for RFLAGS.IF: an instruction under a shadow is run by itself. */
  #awaited = false;
  #follow(codeKey: CodeKey): void {
    const state = this.#key(codeKey);
    this.#keyState = state;
    this.#run = this.#runs[state.id] ??= this.#instance(state.handlers).run;
    this.#codeKey = codeKey;
  }

  #instance(handlers: HandlerSet): Instance {
    const known = this.#instances.get(handlers);
    if (known !== undefined) return known;
    const host = this.#host;
    const imports: Record<HostImport, (...args: number[]) => number | undefined> = {
      slowRead: (low, high, size) => {
        this.#followContext();
        return host.slowRead(low, high, size);
      },
      slowReadForWrite: (low, high, size) => {
        this.#followContext();
        return host.slowReadForWrite(low, high, size);
      },
      slowProbe: (low, high, size) => {
        this.#followContext();
        return host.slowProbe(low, high, size);
      },
      slowWrite: (low, high, size) => {
        this.#followContext();
        const result = host.slowWrite(low, high, size);
        if (result === 2) this.#pause();
        return result;
      },
      slowLinear: (seg, low, high, size, write) => host.slowLinear(seg, low, high, size, write),
      hostException: (vector, has, code) => void host.recordException(vector, has, code),
    };
    const env = { memory: host.memory.memory };
    const { exports } = new WebAssembly.Instance(handlers.module, { env, host: imports });
    const table = exports.table as WebAssembly.Table;
    const instance = { run: exports.run as Run, table, exports, installed: new Uint8Array(table.length) };
    this.#instances.set(handlers, instance);
    return instance;
  }

  /** The host wants control behind the running instruction: what would come next leaves. */
  #pause(): void {
    const view = this.#view;
    const pc = view.getUint32(P.pc, true);
    for (const at of [pc, pc + R.size]) {
      if (this.#paused.some((p) => p.at === at)) continue;
      this.#paused.push({ at, handler: view.getUint16(at + R.handler, true) });
      view.setUint16(at + R.handler, Special.stale, true);
    }
  }
  #resume(): void {
    for (const { at, handler } of this.#paused) {
      // A dropped record stays so.
      if (this.#view.getUint16(at + R.plain, true) !== Special.stale)
        this.#view.setUint16(at + R.handler, handler, true);
    }
    this.#paused.length = 0;
  }

  /** Puts an out-of-line function, with all that were compiled with it, into this engine's table. */
  #install(handlers: HandlerSet, info: FormInfo): void {
    const instance = this.#instance(handlers);
    if (instance.installed[info.slot]) return;
    this.watch.time(() => this.#instantiate(handlers, info, instance));
  }
  #instantiate(handlers: HandlerSet, info: FormInfo, instance: Instance): void {
    const batch = handlers.batch(info.slot);
    const helpers: Record<string, WebAssembly.ExportValue> = {};
    for (const name of HELPERS) helpers[name] = instance.exports[name];
    const first = new WebAssembly.Global({ value: 'i32' }, batch.first);
    const env = { memory: this.#host.memory.memory, table: instance.table, first };
    const { exports } = new WebAssembly.Instance(batch.module, { env, helpers });
    instance.installed.fill(1, batch.first, batch.first + batch.count);
    if (batch.fillsTable) return;
    for (let i = 0; i < batch.count; i++) instance.table.set(batch.first + i, exports[`f${i}`] as () => void);
  }

  run(maxTicks: number): EngineStop {
    this.instruction = null;
    this.retired = 0;
    const stale = this.#host.takeStale();
    if (stale !== 0) {
      if ((stale & Stale.owner) !== 0) this.#prepare();
      if ((stale & Stale.rights) !== 0) this.#prepareRights();
      if ((stale & Stale.segments) !== 0 || this.#isAligned() !== this.#aligned) this.#prepareCode();
    }
    if (this.#aligned) return 'instruction';
    let key = this.#keyState!;
    let run = this.#run!;
    this.#awaited = this.#host.awaitsInterrupts();
    this.#words[P.awaited >> 2] = this.#awaited ? 1 : 0;
    this.#running = true;
    // A small integer, where the host's deadlines are none.
    let left = maxTicks | 0;
    let at = ENTRY_RECORD;
    let shadowed = this.#u8[SHADOW] !== 0;
    let stop: EngineStop | undefined;
    while (stop === undefined && left > 0) {
      const slice = Math.min(left, shadowed && this.#awaited ? 1 : this.#hot === null ? SLICE : this.#hot.slice());
      const exact = slice <= MAX_RUN;
      if (exact && at === ENTRY_RECORD && (at = this.#enter(key)) === 0) break;
      if (exact) this.#copyRun(at, slice);
      // A repeated instruction that goes on sets it again; one that was overwritten between its iterations does not.
      const resume = this.#words[RFLAGS >> 2] & Flag.RF;
      if (resume !== 0) this.#words[RFLAGS >> 2] &= ~Flag.RF;
      // Likewise a shadow: it ends with the first instruction, which may leave another.
      const shadow = shadowed ? this.#u8[SHADOW] : 0;
      if (shadowed) this.#u8[SHADOW] = 0;
      this.#setSliceEnd(this.#host.tick + ((maxTicks | 0) - left) + slice);
      const status = run(exact ? SCRATCH_RECORDS : at, slice);
      this.#followContext();
      const used = slice - this.#words[P.remaining >> 2];
      // Nothing retired: RF and the shadow are still in force.
      if (used === 0) {
        this.#words[RFLAGS >> 2] |= resume;
        if (shadowed) this.#u8[SHADOW] = shadow;
      }
      this.#endShadow(slice - used);
      left -= used;
      stop = this.#after(status);
      const over = shadowed;
      shadowed = this.#u8[SHADOW] !== 0;
      // What may come now is for the host to say.
      if (over && !shadowed && (this.#awaited || this.#host.awaitsInterrupts())) stop ??= 'budget';
      if (this.#words[P.segmentsLoaded >> 2] !== 0) {
        this.#followSegments();
        key = this.#keyState!;
        run = this.#run!;
      }
      at = ENTRY_RECORD;
      if (this.#paused.length > 0) {
        this.#resume();
        stop ??= 'budget';
      }
      if (!exact && this.#hot !== null) {
        const translated = this.#words[P.translated >> 2];
        this.#words[P.translated >> 2] = 0;
        this.#hot.ran(this.#words[P.pc >> 2], used, translated);
      }
      // Start at the record itself: nothing says that the TLB keeps what was just fetched through it.
      if (stop === undefined && status === Status.miss && left > 0 && (at = this.#enter(key)) === 0) break;
    }
    if (at === 0) stop = this.#entryStop;
    this.#running = false;
    this.retired = (maxTicks | 0) - left;
    this.#ticks += this.retired;
    return stop ?? 'budget';
  }

  /** Behind a load of SS generated code went on: the shadow is over if an instruction has retired since. */
  #endShadow(left: number): void {
    const before = this.#words[P.shadowLeft >> 2];
    if (before === 0) return;
    this.#words[P.shadowLeft >> 2] = 0;
    if (left < before - 1) this.#u8[SHADOW] = 0;
  }

  /** Generated code has loaded segment registers. */
  #followSegments(): void {
    this.#words[P.segmentsLoaded >> 2] = 0;
    this.#host.segmentsLoaded();
    this.#prepareCode();
  }

  #setSliceEnd(tick: number): void {
    this.#words[P.sliceEnd >> 2] = tick | 0;
    this.#words[(P.sliceEnd >> 2) + 1] = (tick * TWO_TO_MINUS_32) | 0;
  }

  #after(status: number): EngineStop | undefined {
    if (status === Status.fault) return 'fault';
    if (status !== Status.instruction) return undefined;
    const pc = this.#words[P.pc >> 2];
    const copied = pc >= SCRATCH_RECORDS && pc < SCRATCH_RECORDS + SCRATCH_COUNT * R.size;
    const record = copied ? this.#stepped + pc - SCRATCH_RECORDS : pc;
    const plain = this.#view.getUint16(record + R.plain, true);
    const mayGoOn = plain === Special.guard || this.#words[(record + R.link) >> 2] !== 0;
    if (mayGoOn && this.#goesOn(record, plain)) return undefined;
    this.instruction = this.#predecoder.instructionAt(record);
    return 'instruction';
  }

  /** RIP is at a guard that has refused, or at a record for JavaScript: can generated code execute it from now on? */
  #goesOn(record: number, plain: number): boolean {
    if (plain === Special.guard) return this.#crosses(record);
    if (plain !== Special.instruction) return false;
    const cold = this.#view.getUint32(record + R.link, true);
    this.#tellTicks();
    // One that is held back gets the handler again that it had.
    if (!this.#forms.ran(cold) || this.#paused.length > 0) return false;
    this.#predecoder.warm(record);
    return true;
  }
  /** Forms hear of ticks before they are asked for handlers. */
  #tellTicks(): void {
    this.#forms.elapsed(this.#ticks);
    this.#ticks = 0;
  }

  /** Can a guard that has refused let through from now on? By the TLB as it is: a fetch that misses is the host's. */
  #crosses(guard: number): boolean {
    const view = this.#view;
    const rip = view.getBigUint64(Layout.state + S.rip, true);
    const next = rip - BigInt(view.getUint16(guard + R.offset, true)) + BigInt(PAGE);
    if (BigInt.asUintN(64, next) + 0xfffn > view.getBigUint64(P.codeLimit, true)) return false;
    const linear = (next + view.getBigUint64(P.codeBase, true)) & view.getBigUint64(P.linearMask, true);
    const hostPage = fetchPage(view, linear);
    if (hostPage < 0 || !this.#host.memory.contains(hostPage * PAGE, PAGE)) return false;
    const page = this.#predecoder.runAt(guard)?.page;
    if (page === undefined) return false;
    this.#tellTicks();
    return this.#predecoder.cross(page, guard, this.#predecoder.page(hostPage, page.key, this.#protect));
  }

  /** Facts for generated code that hold until the host says otherwise. By 32-bit words: runs are often short. */
  #prepare(): void {
    const words = this.#words;
    const host = this.#host;
    words[P.flagsIntercepted >> 2] = host.plainFlagImages() ? 0 : 1;
    words[P.cr0Owned >> 2] = host.cr0Owned();
    this.#prepareTsc();
  }
  /** Those that follow from the TLB context and CR0. */
  #prepareRights(): void {
    const words = this.#words;
    const host = this.#host;
    const context = host.tlbContext();
    this.#context = context;
    words[P.context >> 2] = context;
    words[P.contextHash >> 2] = hashOf(context);
    const other = host.otherContext();
    words[P.otherContext >> 2] = other;
    words[P.otherHash >> 2] = hashOf(other);
    const cr0 = words[CR0_WORD];
    const gates = vectorGates(words, cr0 & ~TS);
    words[P.vectors >> 2] = (cr0 & TS) === 0 ? gates : ALL_GATES;
    words[P.vectorsClear >> 2] = gates;
    words[P.cr0Seen >> 2] = host.cr0Seen();
    words[P.loadsSegments >> 2] = host.loadsSegments();
  }
  /** All of the code key that follows from rights (cpu/code-key.ts). */
  #isAligned(): boolean {
    const words = this.#words;
    return (words[RFLAGS >> 2] & Flag.AC) !== 0 && (words[CR0_WORD] & AM) !== 0 && (words[STATUS_WORD] & 0xff) === 3;
  }
  /** Those that follow from segments. */
  #prepareCode(): void {
    const words = this.#words;
    const codeKey = this.#host.codeKey();
    this.#aligned = codeKey.alignmentCheck;
    if (this.#aligned) return;
    if (codeKey !== this.#codeKey) this.#follow(codeKey);
    const { key, id } = this.#keyState!;
    const long = key.codeSize === 8;
    words[P.codeBase >> 2] = long ? 0 : words[CS_BASE >> 2];
    words[(P.codeBase >> 2) + 1] = long ? 0 : words[(CS_BASE >> 2) + 1];
    words[P.linearMask >> 2] = -1;
    words[(P.linearMask >> 2) + 1] = long ? -1 : 0;
    words[P.codeLimit >> 2] = long ? -1 : words[CS_LIMIT >> 2];
    words[(P.codeLimit >> 2) + 1] = long ? -1 : 0;
    words[P.key >> 2] = id << Jump.idShift;
    words[P.endsAt4G >> 2] = this.#options.vendor === 'amd' ? 1 : 0;
  }

  /** The TSC's offset, and its halves. */
  #tscOffset = 0n;
  #tscLow = 0;
  #tscHigh = 0;
  #prepareTsc(): void {
    const words = this.#words;
    const host = this.#host;
    const offset = host.tscOffset();
    if (offset !== this.#tscOffset) {
      this.#tscOffset = offset;
      this.#tscLow = Number(BigInt.asIntN(32, offset));
      this.#tscHigh = Number(BigInt.asIntN(32, offset >> 32n));
    }
    words[P.tscOffset >> 2] = this.#tscLow;
    words[(P.tscOffset >> 2) + 1] = this.#tscHigh;
    words[P.tscPerTick >> 2] = host.tscPerTick;
    words[P.tscReaders >> 2] = host.tscReaders();
  }

  /** As prepared. */
  #context = 0;
  /** Generated code may have exchanged it for the other one. */
  #followContext(): void {
    const context = this.#words[P.context >> 2];
    if (context === this.#context) return;
    this.#context = context;
    this.#host.contextExchanged();
  }

  #entryStop: EngineStop = 'fault';
  /** Record of the instruction at RIP, put into the jump cache; 0 with `#entryStop` set. */
  #enter(key: KeyState): number {
    const view = this.#view;
    const rip = view.getBigUint64(Layout.state + S.rip, true);
    const linear = (rip + view.getBigUint64(P.codeBase, true)) & view.getBigUint64(P.linearMask, true);
    const offset = Number(linear & 0xfffn);
    // A page that RIP can't go through from end to end is executed by JavaScript.
    const pageBase = rip - BigInt(offset);
    const limit = view.getBigUint64(P.codeLimit, true);
    if (BigInt.asUintN(64, pageBase) + 0xfffn > limit) return this.#refuse('instruction');
    const pa = this.#host.translateFetch(linear);
    if (pa < 0) return this.#refuse('fault');
    if (!this.#host.memory.contains(pa - offset, PAGE)) return this.#refuse('instruction');
    try {
      return this.#record(key, Math.floor(pa / PAGE), offset);
    } catch (error) {
      if (!(error instanceof OutOfRecords)) throw error;
      this.#clear();
      return this.#record(key, Math.floor(pa / PAGE), offset);
    }
  }
  #refuse(stop: EngineStop): 0 {
    this.#entryStop = stop;
    return 0;
  }
  #record(key: KeyState, hostPage: number, offset: number): number {
    const page: CodePage = this.#predecoder.page(hostPage, key, this.#protect);
    const record = this.#predecoder.record(page, offset);
    this.#predecoder.remember(page, offset, record);
    this.#view.setUint32(P.page, hostPage * PAGE, true);
    return record;
  }

  /** Copies at most `count` records for exact stepping, in plain variants, and a stop behind them. */
  #copyRun(record: number, count: number): void {
    const view = this.#view;
    this.#stepped = record;
    let to = SCRATCH_RECORDS;
    let from = record;
    for (let left = count; left > 0; left--) {
      const plain = view.getUint16(from + R.plain, true);
      if (plain === Special.link || plain === Special.stale) break;
      this.#u8.copyWithin(to, from, from + R.size);
      view.setUint16(to + R.handler, plain, true);
      to += R.size;
      from += R.size;
      if (plain === Special.guard || plain === Special.fresh) left++;
      if (plain === Special.instruction) return;
    }
    view.setUint16(to + R.handler, Special.stop, true);
    view.setUint16(to + R.offset, view.getUint16(to - R.size + R.next, true), true);
  }

  place(): CodePlace {
    this.#prepare();
    this.#prepareRights();
    this.#prepareCode();
    if (this.#aligned) return { region: null, at: -1, why: 'handed-back' };
    return this.#hot?.place() ?? { region: null, at: -1, why: 'engine' };
  }
  holdsCode(pa: number, length: number): boolean {
    return this.#predecoder.holdsCode(pa, length);
  }
  readonly #unfuse = (record: number): boolean => this.#hot?.unfuse(record) === true;
  patch(pa: number, length: number): boolean {
    const from = pa % PAGE;
    const to = from + length;
    // Records that are held back now would get their old handlers again.
    if (length > MAX_PATCH || to > PAGE || this.#paused.length > 0) return false;
    const hostPage = Math.floor(pa / PAGE);
    if (this.#running && this.#overwritesItself(hostPage, from, to)) return false;
    this.#hot?.patched(hostPage, from, to);
    if (!this.#predecoder.patch(hostPage, from, to, this.#unfuse)) return false;
    this.#forgetCopies();
    return true;
  }
  /** Is it the storing instruction that is stored into? Its record is needed until it has ended. */
  #overwritesItself(hostPage: number, from: number, to: number): boolean {
    const pc = this.#words[P.pc >> 2];
    if (this.#predecoder.runAt(pc)?.page.hostPage !== hostPage) return false;
    const view = this.#view;
    return from < view.getUint16(pc + R.next, true) && to > view.getUint16(pc + R.offset, true);
  }
  invalidatePage(hostPage: number): void {
    for (const gone of this.#predecoder.invalidate(hostPage)) this.#hot?.dropped(gone);
    this.#forgetCopies();
  }
  /** Whatever is being stepped now may come from a page that has changed: leave behind the current instruction. */
  #forgetCopies(): void {
    if (!this.#running) return;
    for (let i = 0; i < SCRATCH_COUNT; i++) {
      this.#view.setUint16(SCRATCH_RECORDS + i * R.size + R.handler, Special.stale, true);
      this.#view.setUint16(SCRATCH_RECORDS + i * R.size + R.plain, Special.stale, true);
    }
  }

  invalidateAll(): void {
    this.#clear();
    this.#forms.clear();
    this.#ticks = 0;
  }
  #clear(): void {
    this.#predecoder.clear();
    this.#hot?.cleared();
    this.#u8.fill(0, ENTRY_RECORD, SCRATCH_RECORDS + SCRATCH_COUNT * R.size);
    this.#view.setUint16(ENTRY_RECORD + R.handler, Special.entry, true);
  }
}
