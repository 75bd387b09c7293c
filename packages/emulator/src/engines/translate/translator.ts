/**
 * Decides what is hot, has it translated, and keeps translations in step with the records they came from.
 * Time is sampled where calls of generated code end; that depends on guest instructions only.
 */
import { Layout } from '../../memory/layout.ts';
import { PAGE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import type { CodePlace, NotTranslated, RegionFacts, TranslateStatistics } from '../engine.ts';
import type { EngineParts, HotCode } from '../interpret/interpret.ts';
import { Jump } from '../interpret/jump-cache.ts';
import { REGION, REGION_ENTRIES, TABLE_SIZE } from '../interpret/main-module.ts';
import type { CodePage, KeyState, LaidRun } from '../interpret/predecode.ts';
import { COUNTERS, fetchPage, P, R, Special } from '../interpret/records.ts';
import { Code, encodeModule, type FuncBody } from '../wasm/emitter.ts';
import { type Assembly, assemble } from './assembly.ts';
import { Backlog, type Found, leadOf, startOf } from './backlog.ts';
import { Explorer, type PageLookup } from './explore.ts';
import { pageOffsets, type Region, regionOf } from './region.ts';
import { RegionEmitter } from './region-emitter.ts';
import type { RegionMode } from './region-frame.ts';
import { type HostGlobal, regionSize } from './region-size.ts';

export interface TranslateOptions {
  /** Ticks between samples while the interpreter does most of the work. Default 16,000. */
  sample: number;
  /** Samples that make a run of records hot: as much time as a translation takes. Default 16. */
  hot: number;
  /** Bytes of translated code that are kept at most; the oldest go first. Default 8 MiB. */
  maxBytes: number;
  /** Entries of regions that are given out before all start anew. Default: as many as the table has. */
  maxEntries: number;
  /** Instructions that a region has at most. Default: see {@link regionSize}. */
  maxInstructions: number;
}
let defaults: TranslateOptions | undefined;
const defaultOptions = (): TranslateOptions =>
  (defaults ??= {
    sample: 16_000,
    hot: 16,
    maxBytes: 8 * 2 ** 20,
    maxEntries: REGION_ENTRIES,
    maxInstructions: regionSize(globalThis as HostGlobal),
  });

/** V8 does not replace a running function: calls must end from time to time. */
const LONG_SLICE = 1_000_000;
/** Share of translated ticks from which on looking out for more is done less often. */
const SETTLED = 15 / 16;
/** Pages ahead and behind that a region may reach into. */
const REACH = 2;
/** Sampled places that are remembered. */
const MAX_SAMPLES = 4096;
/** A page whose code changes again and again needs this many times more samples each time, up to a limit. */
const BACK_OFF_SHIFT = 2;
const BACK_OFF = 1 << BACK_OFF_SHIFT;
const MAX_CHURN = 6;
/** Translations that are kept at most: each takes 25 KB of V8's memory besides its machine code, and 10 more if it is a module of its own. */
const MAX_LIVE = 2000;
const MAX_NEEDED = 1024;
/**
 * Samples that pass for each instruction translated. At 50 us an instruction (on a machine of 2026) that is some 25 ms of translating in two
 * million ticks, after which a machine lets others have a turn.
 */
const REST = 1 / 2;
const LAST_OFFSET = { 2: 0xffffn, 4: 0xffffffffn, 8: null } as const;

/** A translated region in its table slots. */
interface Translation {
  readonly region: Region;
  readonly instance: WebAssembly.Table;
  readonly firstSlot: number;
  /** The module that its function is in, and the function's part of it. */
  readonly assembly: Assembly;
  readonly bytes: number;
  readonly records: readonly number[];
  /** Address of a u32 that counts its entries. */
  readonly counter: number | null;
}

/** A record as it was before a region took it over. */
interface Original {
  readonly translation: Translation;
  readonly handler: number;
  readonly plain: number;
}

/** A region that is never for the record: stands in the slots of those that are gone. */
const NONE: FuncBody = { type: REGION, locals: [], code: new Code().get(2), export: 'f' };
const noneModule = new WebAssembly.Module(encodeModule({ imports: [], functions: [NONE] }));

export class Translator implements HotCode {
  readonly statistics: TranslateStatistics = {
    ...{ regions: 0, modules: 0, instructions: 0, translated: 0, live: 0, bytes: 0 },
    ...{ invalidated: 0, evicted: 0, milliseconds: 0, handlers: 0 },
  };
  /** Milliseconds of the host, while somebody wants to know what translating takes; regions then count their entries. */
  clock: (() => number) | null = null;
  readonly #parts: EngineParts;
  readonly #options: TranslateOptions;
  readonly #view: DataView;
  readonly #none: () => void;
  #slice: number;
  #used = 0;
  #translated = 0;
  #seed = 1;
  /** Samples by physical address of a run's first instruction. */
  readonly #samples = new Map<number, number>();
  /** Samples that a place needs now: more each time that it was looked at. */
  readonly #needed = new Map<number, number>();
  /** How often a host page lost translations. */
  readonly #churn = new Map<number, number>();
  /** Oldest first. */
  readonly #translations = new Set<Translation>();
  readonly #backlog: Backlog;
  readonly #byPage = new Map<number, Set<Translation>>();
  readonly #originals = new Map<number, Original>();
  #nextSlot = 0;
  /** Some record may still name a slot that is empty now. */
  #leftBehind = false;

  constructor(parts: EngineParts, options: Partial<TranslateOptions> = {}) {
    this.#options = { ...defaultOptions(), ...options };
    this.#slice = this.#options.sample;
    this.#backlog = new Backlog(this.#options.sample * REST, this.#options.maxEntries);
    this.#parts = parts;
    this.#view = parts.memory.view;
    const env = { memory: parts.memory.memory };
    this.#none = new WebAssembly.Instance(noneModule, { env }).exports.f as () => void;
  }

  slice(): number {
    // Not in step with loops.
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) >>> 0;
    return this.#slice + (((this.#seed >>> 20) * (this.#slice >> 4)) >>> 12);
  }

  ran(record: number, ticks: number, translated: number): void {
    this.#backlog.elapsed(ticks);
    this.#used += ticks;
    this.#translated += translated;
    if (this.#used < this.#slice) return;
    const settled = this.#translated >= this.#used * SETTLED;
    this.#used = 0;
    this.#translated = 0;
    this.#slice = settled ? Math.min(LONG_SLICE, this.#slice * 2) : this.#options.sample;
    const began = this.clock?.() ?? 0;
    if (!(settled && this.#originals.has(record)) && this.#backlog.mayLook) this.#sampled(record);
    const found = this.#backlog.take();
    if (found.length > 0) this.#compile(found);
    this.statistics.milliseconds += this.clock === null ? 0 : this.clock() - began;
  }
  made(ticks: number): void {
    this.#backlog.rest(ticks);
  }
  #sampled(record: number): void {
    const run = this.#parts.predecoder.runAt(record);
    if (run === undefined || this.#view.getUint16(run.first + R.plain, true) === Special.stale) return;
    if (this.#isHot(run)) this.#lookAround(run, record);
  }

  /** Translates what stands at RIP now, hot or not and however short, if it has been decoded. Answers whether a region starts there. */
  translateHere(): boolean {
    const page = this.#pageOfRip();
    if (page === undefined) return false;
    const at = Number(this.#linearRip() & 0xfffn);
    const region = this.#explore(page, at, 1);
    if (region === null || !region.entries.includes(at)) return false;
    return this.#compile([{ region, key: page.key }]);
  }

  #isHot({ page, first }: LaidRun): boolean {
    const address = page.hostPage * PAGE + this.#view.getUint16(first + R.offset, true);
    const samples = (this.#samples.get(address) ?? 0) + 1;
    if (this.#samples.size >= MAX_SAMPLES) this.#samples.clear();
    this.#samples.set(address, samples);
    const churn = 1 << (BACK_OFF_SHIFT * Math.min(MAX_CHURN, this.#churn.get(page.hostPage) ?? 0));
    const needed = this.#needed.get(address) ?? this.#options.hot;
    if (samples < needed * churn) return false;
    this.#samples.delete(address);
    this.#need(address, needed * BACK_OFF);
    return true;
  }

  #need(address: number, samples: number): void {
    if (this.#needed.size >= MAX_SAMPLES) this.#needed.clear();
    this.#needed.set(address, Math.min(samples, this.#options.hot * MAX_NEEDED));
  }

  /** @param record where the sample was taken */
  #lookAround({ page, first }: LaidRun, record: number): void {
    const { view, region } = { view: this.#view, region: (p: CodePage, at: number) => this.#explore(p, at) };
    const sampled = view.getUint16(record + R.offset, true);
    const rip = Number(this.#linearRip() & 0xfffn);
    const here = this.#pageOfRip(page.key.id);
    // The sample was taken on the way into a region.
    if (here !== undefined && this.#originals.has(here.records.at(rip))) return;
    const found =
      (here === page || here === undefined ? null : region(here, rip)) ??
      region(page, view.getUint16(first + R.offset, true)) ??
      (sampled < PAGE ? region(page, sampled) : null);
    if (found === null) return;
    if (found.entries.every((at) => this.#isKnown(leadOf(found, at)))) return;
    if (this.#isTooSoon(found, page, first)) return;
    this.#backlog.add({ region: found, key: page.key });
  }
  /** Does a region begin at the record, or will it soon? */
  #isKnown(record: number): boolean {
    return this.#originals.has(record) || this.#backlog.holds(record);
  }
  /** A large region has to be worth its translation: it takes more samples than a small one. */
  #isTooSoon({ instructionCount }: Region, page: CodePage, first: number): boolean {
    const wanted = (this.#options.hot * instructionCount) >> 5;
    const address = page.hostPage * PAGE + this.#view.getUint16(first + R.offset, true);
    const seen = (this.#needed.get(address) ?? 0) / BACK_OFF;
    if (seen >= wanted) return false;
    this.#need(address, wanted);
    return true;
  }
  #explore(page: CodePage, at: number, minimum?: number): Region | null {
    const pages = new Map<number, CodePage>();
    const code = this.#explorer(page, pages).explore(at);
    this.#backlog.looked(code.instructions.size);
    return regionOf(code, at, pages, minimum);
  }
  #explorer(page: CodePage, pages: Map<number, CodePage>): Explorer {
    return new Explorer(
      this.#parts.predecoder,
      this.#view,
      this.#pagesAround(page, pages),
      this.#options.maxInstructions,
    );
  }

  /** Pages at a distance from the one that runs now, if the TLB maps them for fetches and they hold records. */
  #pagesAround(page: CodePage, pages: Map<number, CodePage>): PageLookup {
    pages.set(0, page);
    const base = this.#linearOf(page);
    const missing = new Set<number>();
    return (distance) => {
      const known = pages.get(distance);
      if (known !== undefined) return known;
      if (base < 0n || Math.abs(distance) > REACH || missing.has(distance)) return null;
      const hostPage = fetchPage(this.#view, base + BigInt(distance * PAGE));
      const found = hostPage < 0 ? undefined : this.#parts.predecoder.find(hostPage, page.key.id);
      if (found === undefined) missing.add(distance);
      else pages.set(distance, found);
      return found ?? null;
    };
  }
  /** Linear address of RIP. */
  #linearRip(): bigint {
    const view = this.#view;
    const rip = view.getBigUint64(Layout.state + S.rip, true);
    return (rip + view.getBigUint64(P.codeBase, true)) & view.getBigUint64(P.linearMask, true);
  }
  /** @param id the key's; default: of the run that was prepared last */
  #pageOfRip(id = this.#view.getUint32(P.key, true) >>> Jump.idShift): CodePage | undefined {
    const hostPage = fetchPage(this.#view, this.#linearRip() & ~0xfffn);
    return hostPage < 0 ? undefined : this.#parts.predecoder.find(hostPage, id);
  }
  /** Linear address of a page, if RIP is in it now; else -1. */
  #linearOf(page: CodePage): bigint {
    const linear = this.#linearRip() & ~0xfffn;
    return fetchPage(this.#view, linear) === page.hostPage ? linear : -1n;
  }

  /** Translates regions of one set of handlers, in one module. False: there is no room for them. */
  #compile(found: readonly Found[]): boolean {
    const entries = found.reduce((sum, { region }) => sum + region.entries.length, 0);
    if (this.#nextSlot + entries > this.#options.maxEntries && !this.#restart()) return false;
    const laid = found.map((one) => ({ ...one, firstSlot: this.#slotsFor(one.region) }));
    const functions = laid.map(({ region, key, firstSlot }, i) => {
      const mode = this.#modeOf(key, firstSlot);
      return new RegionEmitter(region, mode, TABLE_SIZE + firstSlot, this.#view).build(`f${i}`);
    });
    const main = this.#parts.instance(found[0]!.key.handlers);
    const { assembly, exports } = assemble(functions, this.#parts.memory, main);
    this.statistics.modules++;
    this.statistics.translated += assembly.bytes;
    this.statistics.bytes += assembly.bytes;
    const starts = found.flatMap(({ region }) => region.entries.map((at) => startOf(region, at).info));
    found[0]!.key.handlers.compileApart(starts);
    laid.forEach(({ region, key, firstSlot }, i) => {
      const records = region.entries.map((at) => leadOf(region, at));
      const { counter } = this.#modeOf(key, firstSlot);
      const bytes = functions[i]!.code.length;
      const translation = { region, instance: main.table, firstSlot, assembly, bytes, records, counter };
      this.#install(translation, key, exports[`f${i}`] as () => void);
    });
    this.#evict();
    return true;
  }
  #slotsFor({ entries }: Region): number {
    const first = this.#nextSlot;
    this.#nextSlot += entries.length;
    if (this.clock !== null) this.#view.setUint32(COUNTERS + first * 4, 0, true);
    return first;
  }
  #modeOf({ key: { codeSize, flatCode } }: KeyState, firstSlot: number): RegionMode {
    const counter = this.clock === null ? null : COUNTERS + firstSlot * 4;
    return { long: codeSize === 8, flatCode, lastOffset: LAST_OFFSET[codeSize], counter };
  }

  /** Makes the entries' records call the region. */
  #install(translation: Translation, key: KeyState, run: () => void): void {
    const view = this.#view;
    const { handlers } = key;
    const { region, firstSlot } = translation;
    region.entries.forEach((at, i) => {
      const { lead: record, info } = startOf(region, at);
      translation.instance.set(TABLE_SIZE + firstSlot + i, run);
      this.#parts.install(handlers, info);
      const before = this.#originals.get(record);
      const handler = before?.handler ?? view.getUint16(record + R.handler, true);
      const plain = before?.plain ?? view.getUint16(record + R.plain, true);
      this.#originals.set(record, { translation, handler, plain });
      if (plain !== Special.guard) {
        view.setUint16(record + R.plain, handlers.firstSlot + info.slot, true);
        key.infos[handlers.firstSlot + info.slot] = info;
      }
      view.setUint16(record + R.handler, handlers.firstSlot + TABLE_SIZE + firstSlot + i, true);
    });
    for (const hostPage of pagesOf(region)) {
      const list = this.#byPage.get(hostPage);
      if (list) list.add(translation);
      else this.#byPage.set(hostPage, new Set([translation]));
    }
    this.#translations.add(translation);
    this.statistics.regions++;
    this.statistics.instructions += region.instructionCount;
    this.statistics.live++;
  }

  #evict(): void {
    for (const translation of this.#translations) {
      if (this.statistics.bytes <= this.#options.maxBytes && this.statistics.live <= MAX_LIVE) return;
      this.#remove(translation);
      this.statistics.evicted++;
    }
  }

  /** Takes a translation out of its records; its slots do nothing from now on. */
  #remove(translation: Translation): void {
    if (!this.#translations.delete(translation)) return;
    const view = this.#view;
    translation.records.forEach((record, i) => {
      translation.instance.set(TABLE_SIZE + translation.firstSlot + i, this.#none);
      const original = this.#originals.get(record);
      if (original?.translation !== translation) return;
      this.#originals.delete(record);
      if (view.getUint16(record + R.plain, true) === Special.stale) return;
      // The host holds the record back at this moment and will put the region's handler back: its slot has to stay empty.
      if (view.getUint16(record + R.handler, true) === Special.stale) this.#leftBehind = true;
      view.setUint16(record + R.handler, original.handler, true);
      view.setUint16(record + R.plain, original.plain, true);
    });
    for (const hostPage of pagesOf(translation.region)) {
      const list = this.#byPage.get(hostPage);
      list?.delete(translation);
      if (list?.size === 0) this.#byPage.delete(hostPage);
    }
    this.statistics.live--;
    if (--translation.assembly.live === 0) this.statistics.bytes -= translation.assembly.bytes;
  }

  /** All slots were used once: every translation goes, and slots are given out from the first one again. */
  #restart(): boolean {
    for (const translation of this.#translations) {
      this.#remove(translation);
      this.statistics.evicted++;
    }
    if (this.#leftBehind) return false;
    this.#nextSlot = 0;
    return true;
  }

  place(): CodePlace {
    const page = this.#pageOfRip();
    const offset = Number(this.#linearRip() & 0xfffn);
    const record = page?.records.at(offset) ?? 0;
    if (page === undefined || record === 0) return NOWHERE;
    for (const translation of this.#byPage.get(page.hostPage) ?? []) {
      const facts = this.#factsOf(translation);
      for (const [distance, { hostPage, key }] of translation.region.pages) {
        const at = distance * PAGE + offset;
        if (hostPage === page.hostPage && key === page.key && facts.instructions.has(at))
          return { region: facts, at, why: null };
      }
    }
    return { region: null, at: offset, why: this.#whyNot(page, record) };
  }
  readonly #facts = new WeakMap<Translation, RegionFacts>();
  #factsOf(translation: Translation): RegionFacts {
    let facts = this.#facts.get(translation);
    if (facts === undefined) this.#facts.set(translation, (facts = factsOf(translation, this.#view)));
    return facts;
  }
  #whyNot(page: CodePage, record: number): NotTranslated {
    // One that only waits for its form's handler names the form.
    const forJavaScript = this.#view.getUint16(record + R.plain, true) === Special.instruction;
    if (forJavaScript) return this.#view.getUint32(record + R.link, true) === 0 ? 'handed-back' : 'cold';
    if ((this.#churn.get(page.hostPage) ?? 0) > 0) return 'changes';
    const run = this.#parts.predecoder.runAt(record);
    const first = run === undefined ? 0 : this.#view.getUint16(run.first + R.offset, true);
    return this.#needed.has(page.hostPage * PAGE + first) ? 'no-region' : 'cold';
  }

  dropped(hostPage: number): void {
    const waited = this.#backlog.drop((region) => pagesOf(region).has(hostPage));
    const list = this.#byPage.get(hostPage);
    if (list === undefined && !waited) return;
    this.#churn.set(hostPage, (this.#churn.get(hostPage) ?? 0) + 1);
    for (const translation of [...(list ?? [])]) {
      this.#remove(translation);
      this.statistics.invalidated++;
    }
  }

  patched(hostPage: number, from: number, to: number): void {
    let any = this.#backlog.drop((region) => overlaps(region, hostPage, from, to));
    for (const translation of [...(this.#byPage.get(hostPage) ?? [])]) {
      if (!overlaps(translation.region, hostPage, from, to)) continue;
      any = true;
      this.#remove(translation);
      this.statistics.invalidated++;
    }
    if (any) this.#churn.set(hostPage, (this.#churn.get(hostPage) ?? 0) + 1);
  }
  unfuse(record: number): boolean {
    const original = this.#originals.get(record);
    if (original === undefined) return false;
    this.#originals.set(record, { ...original, handler: original.plain });
    return true;
  }

  cleared(): void {
    for (const translation of this.#translations) {
      translation.records.forEach((_, i) => {
        translation.instance.set(TABLE_SIZE + translation.firstSlot + i, this.#none);
      });
    }
    this.#backlog.clear();
    this.#translations.clear();
    this.#byPage.clear();
    this.#originals.clear();
    this.#samples.clear();
    this.#needed.clear();
    this.#churn.clear();
    this.#nextSlot = 0;
    this.#leftBehind = false;
    this.statistics.live = 0;
    this.statistics.bytes = 0;
    this.#slice = this.#options.sample;
  }
}

const pagesOf = (region: Region): Set<number> =>
  new Set([...pageOffsets(region)].map((page) => region.pages.get(page / PAGE)!.hostPage));

const NOWHERE: CodePlace = { region: null, at: -1, why: 'unknown' };
function factsOf({ region, bytes, counter }: Translation, view: DataView): RegionFacts {
  const all = region.blocks.flatMap((block) => block.instructions).sort((a, b) => a.at - b.at);
  return {
    instructions: new Map(all.map(({ at, next }) => [at, next])),
    entries: region.entries,
    bytes,
    entered: () => (counter === null ? undefined : view.getUint32(counter, true)),
  };
}

/** Does an instruction of the region have a part in bytes `from` to `to` of a host page? */
function overlaps(region: Region, hostPage: number, from: number, to: number): boolean {
  for (const [distance, { hostPage: there }] of region.pages) {
    if (there !== hostPage) continue;
    const start = distance * PAGE;
    const hit = region.blocks.some((b) => b.instructions.some((i) => i.at < start + to && i.next > start + from));
    if (hit) return true;
  }
  return false;
}
