/**
 * A profile's samples: an engine in front of the processor's own, which it asks every so many ticks what stands at RIP. Nothing of that is
 * in the way of a processor that is not profiled, and no guest notices: samples fall where ticks say, not where a clock does.
 */
import { modeName, viewControls } from '../cpu/mode.ts';
import { Processor } from '../cpu/processor.ts';
import type { Instruction } from '../decode/instruction.ts';
import { PRIVATE } from '../memory/physical.ts';
import { Tag } from '../memory/tlb.ts';
import type { ModeName, ProcessorApi } from '../processor-api.ts';
import type { CodePlace, Engine, EngineStop, TranslateStatistics } from './engine.ts';

export interface Sample {
  /** Ticks since the sample before: this one's weight. */
  ticks: number;
  /** Linear address of the instruction that comes next. */
  linear: bigint;
  mode: ModeName;
  cpl: number;
  smm: boolean;
  place: CodePlace;
}

export interface SamplingOptions {
  onSample(sample: Sample): void;
  /** Ticks that were skipped because nothing ran, since power-on: samples don't count them. Default: none. */
  idle?(): number;
  /** The host's clock in milliseconds. Default: none, and host times are 0. */
  clock?(): number;
}

/**
 * Ticks between samples: a few close ones for guests that run for a moment; then so far apart that engines do what they do without
 * (they step through the last instructions before a sample), and after each so many twice as far, so that long guests stay cheap.
 */
const CLOSE = { samples: 64, ticks: 16 } as const;
const FIRST = 1000;
const SAMPLES_EACH = 4096;
const LAST = 50_000;

/** Counts of {@link Sampling}. */
export interface SamplingCounts {
  /** Ticks of the whole profile, idle time left out, and those of them that generated code retired. */
  ticks: number;
  generated: number;
  samples: number;
  /** Instructions that the engine handed to the processor, by mnemonic; '' for what it had not decoded. */
  handedBack: ReadonlyMap<string, number>;
  tlbMisses: number;
  tlbFills: number;
  /** What the translator did, if there is one: over the processor's life, milliseconds since the profile began. */
  translate: TranslateStatistics | null;
  /** Host milliseconds inside the engine, translating included: not the same in each run. */
  engineMilliseconds: number;
}

export class Sampling implements Engine {
  retired = 0;
  instruction: Instruction | null = null;
  readonly #processor: Processor;
  readonly #inner: Engine | null;
  readonly #options: SamplingOptions;
  readonly #view = { cr0: 0, cr4: 0 };
  readonly #handedBack = new Map<string, number>();
  readonly #began: { tick: number; misses: number; fills: number };
  readonly #clock: () => number;
  #period: number = CLOSE.ticks;
  #seed = 1;
  #next: number;
  /** Tick and idle ticks of the sample before. */
  #last: number;
  #idle: number;
  #samples = 0;
  #ticks = 0;
  #generated = 0;
  #milliseconds = 0;

  constructor(processor: Processor, options: SamplingOptions) {
    this.#processor = processor;
    this.#inner = processor.engine;
    this.#options = options;
    this.#clock = options.clock ?? (() => 0);
    const { tick } = processor;
    const { misses, fills } = processor.access.tlb;
    this.#began = { tick, misses, fills };
    this.#last = tick;
    this.#idle = options.idle?.() ?? 0;
    this.#next = tick + this.#period;
    processor.engine = this;
    this.#inner?.timeTranslations?.(this.#clock);
  }

  /** The processor gets its own engine back; what has run since the last sample counts as a sample. */
  stop(): void {
    if (this.#processor.engine !== this) return;
    this.#sample();
    this.#processor.engine = this.#inner;
    this.#inner?.timeTranslations?.(null);
  }

  get counts(): SamplingCounts {
    const { misses, fills } = this.#processor.access.tlb;
    return {
      ticks: this.#ticks,
      generated: this.#generated,
      samples: this.#samples,
      handedBack: this.#handedBack,
      tlbMisses: misses - this.#began.misses,
      tlbFills: fills - this.#began.fills,
      translate: this.#inner?.statistics ?? null,
      engineMilliseconds: this.#milliseconds,
    };
  }

  run(maxTicks: number): EngineStop {
    const { tick } = this.#processor;
    if (tick >= this.#next) this.#sample();
    if (this.#inner === null) {
      this.#count('');
      return 'instruction';
    }
    const began = this.#clock();
    const stop = this.#inner.run(Math.min(maxTicks, this.#next - tick));
    this.#milliseconds += this.#clock() - began;
    this.retired = this.#inner.retired;
    this.instruction = this.#inner.instruction;
    this.#generated += this.retired;
    if (stop === 'instruction') this.#count(this.instruction?.row.mnemonic ?? '');
    return stop;
  }
  #count(mnemonic: string): void {
    this.#handedBack.set(mnemonic, (this.#handedBack.get(mnemonic) ?? 0) + 1);
  }

  #sample(): void {
    const { state, tick, guest } = this.#processor;
    const idle = this.#options.idle?.() ?? 0;
    const ticks = tick - this.#last - (idle - this.#idle);
    this.#last = tick;
    this.#idle = idle;
    this.#schedule(tick);
    if (ticks <= 0) return;
    this.#ticks += ticks;
    this.#samples++;
    this.#options.onSample({
      ticks,
      linear: this.#processor.linearRip(),
      mode: modeName(state, viewControls(state, guest, this.#view)),
      cpl: state.cpl,
      smm: state.smm,
      place: this.#inner?.place?.() ?? { region: null, at: -1, why: 'handed-back' },
    });
  }
  /** Not in step with loops. */
  #schedule(tick: number): void {
    if (this.#samples === CLOSE.samples) this.#period = FIRST;
    else if (this.#samples % SAMPLES_EACH === SAMPLES_EACH - 1) this.#period = Math.min(LAST, this.#period * 2);
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) >>> 0;
    this.#next = tick + this.#period + ((this.#seed >>> 16) % (this.#period >> 2));
  }

  /** Up to so many bytes of code at a linear address, as far as the TLB maps them for fetches. Fills nothing. */
  codeAt(linear: bigint, length: number): Uint8Array {
    const { access, memory } = this.#processor;
    const bytes: number[] = [];
    for (let i = 0n; i < BigInt(length); i++) {
      const [low, high] = [Number((linear + i) & 0xffffffffn), Number((linear + i) >> 32n)];
      const pa = access.tlb.known(low | 0, high, access.context(), Tag.exec);
      if (pa < 0) break;
      bytes.push(memory.u8[PRIVATE + pa]);
    }
    return Uint8Array.from(bytes);
  }

  holdsCode(pa: number, length: number): boolean {
    return this.#inner?.holdsCode(pa, length) ?? false;
  }
  patch(pa: number, length: number): boolean {
    return this.#inner?.patch(pa, length) ?? false;
  }
  invalidatePage(hostPage: number): void {
    this.#inner?.invalidatePage(hostPage);
  }
  invalidateAll(): void {
    this.#inner?.invalidateAll();
  }
}

/** Samples a processor from now on. Throws where it is none of ours. */
export function startSampling(processor: ProcessorApi, options: SamplingOptions): Sampling {
  if (processor instanceof Processor) return new Sampling(processor, options);
  throw new TypeError('this processor has no samples: only what createProcessor makes does');
}
