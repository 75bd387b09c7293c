/**
 * Forms without a handler, which are neither hot nor usual: evaluate executes their instructions until they have run often enough to be worth one. Handlers are made together,
 * in one module, and have a share of the ticks: whoever shares the thread stands still meanwhile. No clock decides: the same run makes the same.
 */
import type { Stopwatch } from '../stopwatch.ts';
import { type Form, formKey } from './form.ts';
import type { FormInfo, HandlerSet } from './handlers.ts';
import type { Shape } from './shape.ts';

export interface FormOptions {
  /** Usual forms, whose handlers come with the build, have them from the first. */
  usual: boolean;
  /** Runs by evaluate before a form is to have a handler; 0: it gets one where it is first decoded, and nothing of the rest applies. */
  runs: number;
  /** Runs by evaluate of forms that are to have a handler, together, before a module is made: as much time as it takes. */
  gather: number;
  /** Ticks that have to pass for each handler; for each module as for {@link MODULE} handlers. */
  ticksEach: number;
  /** Handlers that ticks are saved up for at most, a module included. */
  burst: number;
}

/** Tests of handlers: evaluate does nothing that they can do. */
export const AT_ONCE: FormOptions = { usual: false, runs: 0, gather: 0, ticksEach: 0, burst: 0 };
/**
 * A run by evaluate takes some 1.5 us, a handler some 0.25 ms, and three times as much as long as all is new to the host: 50 ms at most in
 * two million ticks, after which a machine lets others have a turn (2026).
 */
export const IN_TURN: FormOptions = { usual: true, runs: 16, gather: 256, ticksEach: 40_000, burst: 20 };

/** What a module costs, in handlers. */
const MODULE = 4;
/** Handlers that are worth a module if more wait than may be made. */
const WORTHWHILE = 8;

/** A form of one engine. */
export class ColdForm {
  runs = 0;
  /** null: it has no handler. */
  info: FormInfo | null = null;
  /** What it is the form of. */
  readonly shapes: Shape[] = [];

  constructor(
    readonly form: Form,
    readonly handlers: HandlerSet,
    /** From 1; in the records of its instructions. */
    readonly index: number,
  ) {}

  become(info: FormInfo | null): void {
    this.info = info;
    for (const shape of this.shapes) shape.info = info;
  }
}

export class ColdForms {
  readonly #options: FormOptions;
  readonly #watch: Stopwatch;
  readonly #forms: ColdForm[] = [];
  readonly #byKey = new Map<string, ColdForm>();
  #waiting: ColdForm[] = [];
  #gathered = 0;
  /** Ticks saved up. */
  #saved: number;

  readonly #made: (ticks: number) => void;

  /** @param made hears how many ticks making handlers was worth */
  constructor(options: FormOptions, watch: Stopwatch, made: (ticks: number) => void) {
    this.#options = options;
    this.#watch = watch;
    this.#made = made;
    this.#saved = options.burst * options.ticksEach;
  }

  /** The form, where it has to wait for a handler. */
  of(handlers: HandlerSet, form: Form): ColdForm | null {
    const { usual, runs } = this.#options;
    if (runs === 0 || handlers.isHot(form)) return null;
    if (usual && !handlers.hasUsual) this.#watch.time(() => handlers.loadUsual());
    if (usual && handlers.isUsual(form)) return null;
    const key = formKey(form);
    let cold = this.#byKey.get(key);
    if (cold === undefined) {
      cold = new ColdForm(form, handlers, this.#forms.length + 1);
      this.#byKey.set(key, cold);
      this.#forms.push(cold);
    }
    return cold;
  }

  elapsed(ticks: number): void {
    this.#saved = Math.min(this.#saved + ticks, this.#options.burst * this.#options.ticksEach);
  }

  /** An instruction of the form of this index is to run, by evaluate unless the answer is true: there is a handler. */
  ran(index: number): boolean {
    const cold = this.#forms[index - 1]!;
    if (cold.info !== null) return true;
    this.elapsed(1);
    const { runs, gather } = this.#options;
    if (++cold.runs < runs) return false;
    if (cold.runs === runs) this.#waiting.push(cold);
    if (++this.#gathered >= gather && this.#waiting.length > 0) this.#make();
    return cold.info !== null;
  }

  #make(): void {
    const { ticksEach } = this.#options;
    const affordable = Math.floor(this.#saved / ticksEach) - MODULE;
    if (affordable < Math.min(this.#waiting.length, WORTHWHILE)) return;
    const { handlers } = this.#waiting[0]!;
    const taken: ColdForm[] = [];
    const others: ColdForm[] = [];
    for (const cold of this.#waiting) {
      (cold.handlers === handlers && taken.length < affordable ? taken : others).push(cold);
    }
    this.#waiting = others;
    this.#gathered = 0;
    const ticks = (taken.length + MODULE) * ticksEach;
    this.#saved -= ticks;
    this.#made(ticks);
    const infos = this.#watch.time(() => handlers.make(taken.map(({ form }) => form)));
    // Where the table is full, evaluate keeps them.
    for (const [i, cold] of taken.entries()) cold.become(infos[i]!);
  }

  /** All are cold again. */
  clear(): void {
    for (const cold of this.#forms) {
      cold.runs = 0;
      cold.become(null);
    }
    this.#waiting = [];
    this.#gathered = 0;
    this.#saved = this.#options.burst * this.#options.ticksEach;
  }
}
