/**
 * Decides what is hot, has it translated, and keeps translations in step with the records they came from.
 * Time is sampled where calls of generated code end; that depends on guest instructions only.
 */

import { HELPER_TYPES } from '../interpret/helpers.ts';
import type { EngineParts, HotCode } from '../interpret/interpret.ts';
import { REGION, REGION_ENTRIES, TABLE_SIZE } from '../interpret/main-module.ts';
import type { CodePage, KeyState, LaidRun } from '../interpret/predecode.ts';
import { R, Special } from '../interpret/records.ts';
import { encodeModule } from '../wasm/emitter.ts';
import { Explorer, type Region } from './region.ts';
import { REGION_HELPERS, RegionEmitter } from './region-emitter.ts';

/** Ticks between samples while the interpreter does most of the work. */
const SHORT_SLICE = 16_000;
/** V8 does not replace a running function: calls must end from time to time. */
const LONG_SLICE = 1_000_000;

export interface TranslateOptions {
  /** Ticks between samples. Default 16,000. */
  sample: number;
  /** Samples in one run of records that make it hot. Default 2. */
  hot: number;
}
const DEFAULTS: TranslateOptions = { sample: SHORT_SLICE, hot: 2 };

/** A translated region in its table slots. */
interface Translation {
  readonly region: Region;
  readonly firstSlot: number;
  readonly entries: readonly { record: number; handler: number; plain: number }[];
}

export interface TranslateStatistics {
  regions: number;
  /** Live translations. */
  live: number;
  bytes: number;
  compileMs: number;
}

export class Translator implements HotCode {
  readonly statistics: TranslateStatistics = { regions: 0, live: 0, bytes: 0, compileMs: 0 };
  readonly #parts: EngineParts;
  readonly #view: DataView;
  readonly #options: TranslateOptions;
  #slice: number;
  #used = 0;
  /** Samples by first record of a run. */
  #samples = new Map<number, number>();
  /** Translations by host page. */
  readonly #byPage = new Map<number, Translation[]>();
  #nextSlot = 0;
  #seed = 1;

  constructor(parts: EngineParts, options: Partial<TranslateOptions> = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#slice = this.#options.sample;
    this.#parts = parts;
    this.#view = parts.memory.view;
  }

  slice(): number {
    // Not in step with loops.
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) >>> 0;
    return this.#slice + ((this.#seed >>> 16) % (this.#slice >> 4));
  }

  ran(record: number, ticks: number): void {
    this.#used += ticks;
    if (this.#used < this.#slice) return;
    this.#used = 0;
    const run = this.#parts.predecoder.runAt(record);
    if (run === undefined || this.#view.getUint16(run.first + R.plain, true) === Special.stale) return;
    if (this.#isTranslated(run, record)) {
      this.#slice = Math.min(LONG_SLICE, this.#slice * 2);
      return;
    }
    this.#slice = this.#options.sample;
    const samples = (this.#samples.get(run.first) ?? 0) + 1;
    this.#samples.set(run.first, samples);
    if (samples >= this.#options.hot) this.#translate(run, record);
  }

  #isTranslated({ page }: LaidRun, record: number): boolean {
    const offset = this.#view.getUint16(record + R.offset, true);
    const list = this.#byPage.get(page.hostPage);
    return list?.some((t) => t.region.page === page && covers(t.region, offset)) === true;
  }

  /** @param record where the sample was taken */
  #translate({ page, first }: LaidRun, record: number): void {
    const sampled = this.#view.getUint16(record + R.offset, true);
    const start = this.#view.getUint16(first + R.offset, true);
    const explore = (at: number): Region | null => new Explorer(this.#parts.predecoder, page).region(at);
    const region = explore(start) ?? explore(sampled);
    if (region === null || this.#nextSlot + region.entries.length > REGION_ENTRIES) return;
    const began = performance.now();
    this.#compile(region, page.key);
    this.statistics.compileMs += performance.now() - began;
  }

  #compile(region: Region, key: KeyState): void {
    const firstSlot = this.#nextSlot;
    this.#nextSlot += region.entries.length;
    const mode = { long: key.key.codeSize === 8, flatCode: key.key.flatCode };
    const body = new RegionEmitter(region, mode, TABLE_SIZE + firstSlot, this.#view).build('f');
    const bytes = encodeModule({
      types: [REGION],
      imports: REGION_HELPERS.map((name) => ({ module: 'helpers', name, type: HELPER_TYPES[name] })),
      functions: [body],
    });
    this.statistics.regions++;
    this.statistics.live++;
    this.statistics.bytes += bytes.length;
    const main = this.#parts.instance(key.handlers);
    const module = new WebAssembly.Module(bytes);
    const helpers = Object.fromEntries(REGION_HELPERS.map((name) => [name, main.exports[name]]));
    const { exports } = new WebAssembly.Instance(module, { env: { memory: this.#parts.memory.memory }, helpers });
    for (let i = 0; i < region.entries.length; i++) {
      main.table.set(TABLE_SIZE + firstSlot + i, exports.f as () => void);
    }
    this.#patch(region, key, firstSlot);
  }

  /** Makes the entries' records call the region. */
  #patch(region: Region, key: KeyState, firstSlot: number): void {
    const view = this.#view;
    const { handlers } = key;
    const entries = region.entries.map((at, i) => {
      const { record, info } = region.blockAt.get(at)!.instructions[0];
      handlers.compileApart(info);
      this.#parts.install(handlers, info);
      const entry = {
        record,
        handler: view.getUint16(record + R.handler, true),
        plain: view.getUint16(record + R.plain, true),
      };
      view.setUint16(record + R.plain, handlers.firstSlot + info.slot, true);
      view.setUint16(record + R.handler, handlers.firstSlot + TABLE_SIZE + firstSlot + i, true);
      return entry;
    });
    const translation = { region, firstSlot, entries };
    const list = this.#byPage.get(region.page.hostPage);
    if (list) list.push(translation);
    else this.#byPage.set(region.page.hostPage, [translation]);
  }

  dropped(hostPage: number): void {
    const list = this.#byPage.get(hostPage);
    if (list === undefined) return;
    this.#byPage.delete(hostPage);
    this.statistics.live -= list.length;
  }

  cleared(): void {
    this.#samples.clear();
    this.#byPage.clear();
    this.statistics.live = 0;
    this.#slice = this.#options.sample;
  }
}

const covers = (region: Region, offset: number): boolean =>
  region.blocks.some((b) => b.instructions.some((i) => i.at === offset));

export type { CodePage };
