/**
 * The translate engine: interpret, with hot regions replaced by wasm functions of their own.
 * Contract: engines/engine.ts.
 */
import type { Instruction } from '../../decode/instruction.ts';
import type { CodePlace, Engine, EngineHost, EngineStop, TranslateStatistics } from '../engine.ts';
import { InterpretEngine, type InterpretOptions } from '../interpret/interpret.ts';
import { type TranslateOptions, Translator } from './translator.ts';

export class TranslateEngine implements Engine {
  readonly #interpret: InterpretEngine;
  #translator!: Translator;

  constructor(
    host: EngineHost,
    options: Omit<InterpretOptions, 'hotCode'> & { translate?: Partial<TranslateOptions> },
  ) {
    this.#interpret = new InterpretEngine(host, {
      ...options,
      hotCode: (parts) => {
        this.#translator = new Translator(parts, options.translate);
        return this.#translator;
      },
    });
  }

  get retired(): number {
    return this.#interpret.retired;
  }
  get instruction(): Instruction | null {
    return this.#interpret.instruction;
  }
  get statistics(): TranslateStatistics {
    const { statistics } = this.#translator;
    statistics.handlers = this.#interpret.watch.milliseconds;
    return statistics;
  }
  /**
   * Translates the code at RIP at once, if it has run before and a region may contain its first instruction: for tests of single
   * instructions. False: it stays with the interpreter.
   */
  translateHere(): boolean {
    this.#interpret.run(0);
    return this.#translator.translateHere();
  }
  place(): CodePlace {
    return this.#interpret.place();
  }
  timeTranslations(clock: (() => number) | null): void {
    this.#translator.clock = clock;
    this.#interpret.watch.clock = clock;
  }
  run(maxTicks: number): EngineStop {
    return this.#interpret.run(maxTicks);
  }
  holdsCode(pa: number, length: number): boolean {
    return this.#interpret.holdsCode(pa, length);
  }
  patch(pa: number, length: number): boolean {
    return this.#interpret.patch(pa, length);
  }
  invalidatePage(hostPage: number): void {
    this.#interpret.invalidatePage(hostPage);
  }
  invalidateAll(): void {
    this.#interpret.invalidateAll();
  }
}
