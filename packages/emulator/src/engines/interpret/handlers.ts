/**
 * Which handler executes a form: one of the hot ones inside the dispatch function, or an out-of-line function made when first needed.
 * Compiled modules do not depend on any machine's memory: they are kept for the process.
 */
import { type Form, formKey } from './form.ts';
import { type HotForm, hotForms } from './hot.ts';
import { type Facts, packFacts, type Recording, unpackFacts } from './ir.ts';
import { type HotHandler, mainModule, TABLE_SIZE } from './main-module.ts';
import { recordForms } from './operation.ts';
import { outOfLineModule } from './out-of-line.ts';
import { fromBase64, PREBUILT } from './prebuilt.ts';
import { Special } from './records.ts';
import { UsualHandlers } from './usual-handlers.ts';

/** What the predecoder knows of a form. */
export interface FormInfo {
  readonly form: Form;
  readonly facts: Facts;
  /** Hot handler with all flags, or -1. */
  readonly hot: number;
  /** Hot handler without flag updates, or -1. */
  readonly dead: number;
  /** Jump forms that a hot handler executes together with this one. */
  readonly fuses: boolean;
  /** STI: the handler for where the next instruction stays in generated code. */
  readonly followed: (() => FormInfo) | null;
  /** Out-of-line slot once compiled, or -1. */
  slot: number;
}

/** Slots that a form may take: STI has two. */
const SLOTS_EACH = 2;

/** Beyond so many forms no vector form is added. */
export const VECTOR_FORMS = (TABLE_SIZE * 3) / 4;

/** A batch of out-of-line functions: instantiated by every engine that uses one of them. */
interface Batch {
  readonly module: WebAssembly.Module;
  readonly first: number;
  readonly count: number;
  /** It puts its functions into the table itself. */
  readonly fillsTable: boolean;
}

/** The hot handlers in the order of their numbers, by the forms that they execute. */
function hotHandlers(long: boolean): Map<string, HotForm> {
  const handlers = new Map<string, HotForm>();
  for (const hot of hotForms(long)) {
    const key = `${hot.forms.map(formKey).join(' + ')}${hot.dropFlags ? ' -' : ''}`;
    if (!handlers.has(key)) handlers.set(key, hot);
  }
  return handlers;
}

/** The interpreter's module, and the facts of its hot handlers in their order (see {@link packFacts}). */
export interface MainModule {
  readonly module: Uint8Array<ArrayBuffer>;
  readonly facts: string;
}
export function generateMain(long: boolean): MainModule {
  const handlers: HotHandler[] = [];
  let facts = '';
  for (const { forms, dropFlags } of hotHandlers(long).values()) {
    const recording = recordForms(forms);
    facts += packFacts(recording.facts);
    handlers.push({ record: () => recording, dropFlags });
  }
  return { module: mainModule(handlers, long), facts };
}
function prebuiltMain(long: boolean): MainModule | null {
  if (PREBUILT === null) return null;
  const { module, facts } = long ? PREBUILT.long : PREBUILT.legacy;
  return { module: fromBase64(module), facts };
}

/** The handlers of 64-bit code, or of all other code. */
export class HandlerSet {
  readonly module: WebAssembly.Module;
  readonly #forms = new Map<string, FormInfo>();
  readonly #hot = new Map<string, number>();
  /** Forms that begin a fused pair. */
  readonly #fusing = new Set<string>();
  readonly #fused = new Map<FormInfo, Map<FormInfo, number>>();
  /** Facts of all hot handlers, and recordings of forms that have no handler yet. */
  readonly #hotFacts: string;
  readonly #recordings = new Map<FormInfo, Recording>();
  readonly #batchOf: Batch[] = [];
  #nextSlot = 0;
  /** null as long as nobody asks for them. */
  #usual: UsualHandlers | null = null;
  #usualFirst = 0;
  /** Handler number of the out-of-line slot 0. */
  readonly firstSlot: number;

  constructor(readonly long: boolean) {
    for (const [key, { forms }] of hotHandlers(long)) {
      this.#hot.set(key, Special.count + this.#hot.size);
      if (forms.length > 1) this.#fusing.add(formKey(forms[0]));
    }
    this.firstSlot = Special.count + this.#hot.size;
    const { module, facts } = prebuiltMain(long) ?? generateMain(long);
    this.module = new WebAssembly.Module(module);
    this.#hotFacts = facts;
  }

  /** Does a hot handler execute the form as it is? */
  isHot(form: Form): boolean {
    const hot = this.#hot.get(formKey({ ...form, vendor: 'amd' }));
    return hot !== undefined && (form.vendor === 'amd' || !this.#factsOf(hot).usesVendor);
  }
  /** Does a handler of the usual ones execute the form as it is? They have to be loaded. */
  isUsual(form: Form): boolean {
    const usual = this.#usual!;
    const place = usual.places.get(formKey({ ...form, vendor: 'amd' }));
    return place !== undefined && (form.vendor === 'amd' || !usual.factsAt(place).usesVendor);
  }
  get hasUsual(): boolean {
    return this.#usual !== null;
  }
  loadUsual(): void {
    const usual = new UsualHandlers(this.long);
    const batch = { module: usual.module, first: this.#nextSlot, count: usual.places.size, fillsTable: true };
    this.#usualFirst = this.#nextSlot;
    this.#nextSlot += batch.count;
    for (let slot = batch.first; slot < this.#nextSlot; slot++) this.#batchOf[slot] = batch;
    this.#usual = usual;
  }
  #factsOf(hot: number): Facts {
    return unpackFacts(this.#hotFacts, hot - Special.count);
  }

  /** A guest can make many vector forms, one for each immediate: they leave the others enough of the table. */
  hasRoomFor(form: Form): boolean {
    const many = form.vector !== undefined;
    return !many || this.#forms.size < VECTOR_FORMS || this.#forms.has(formKey({ ...form, vendor: 'amd' }));
  }

  /** Forms that do not ask for the vendor are the same for both. */
  info(form: Form): FormInfo {
    const common = this.#info({ ...form, vendor: 'amd' });
    return common.facts.usesVendor && form.vendor !== 'amd' ? this.#info(form) : common;
  }
  #info(form: Form): FormInfo {
    const key = formKey(form);
    const known = this.#forms.get(key);
    if (known !== undefined) return known;
    const hot = this.#hot.get(key) ?? -1;
    const place = this.#usual?.places.get(key) ?? -1;
    const recording = hot < 0 && place < 0 ? recordForms([form]) : null;
    const info: FormInfo = {
      form,
      facts: recording?.facts ?? (hot < 0 ? this.#usual!.factsAt(place) : this.#factsOf(hot)),
      hot,
      dead: this.#hot.get(`${key} -`) ?? -1,
      fuses: this.#fusing.has(key),
      followed: form.mnemonic === 'sti' && !form.followed ? () => this.#info({ ...form, followed: true }) : null,
      slot: -1,
    };
    this.#forms.set(key, info);
    if (recording !== null) this.#recordings.set(info, recording);
    return info;
  }

  /** Handler of two consecutive forms in one, or -1. */
  fused(first: FormInfo, second: FormInfo): number {
    let known = this.#fused.get(first);
    if (known === undefined) this.#fused.set(first, (known = new Map()));
    let handler = known.get(second);
    if (handler === undefined) {
      handler = this.#hot.get(`${formKey(first.form)} + ${formKey(second.form)}`) ?? -1;
      known.set(second, handler);
    }
    return handler;
  }

  /** Forms of a run that are to have handlers and have none yet; null: none. */
  missing(run: readonly { shape: { info: FormInfo | null } | null }[]): FormInfo[] | null {
    let missing: FormInfo[] | null = null;
    for (const { shape } of run) {
      const info = shape?.info;
      if (info && info.hot < 0 && info.slot < 0) (missing ??= []).push(info);
    }
    return missing;
  }
  /** What is known of forms, with handlers for them from one module; null where there is no room. */
  make(forms: readonly Form[]): (FormInfo | null)[] {
    let room = TABLE_SIZE - this.#nextSlot;
    const made = forms.map((form) => {
      const info = room >= SLOTS_EACH && this.hasRoomFor(form) ? this.info(form) : null;
      room -= SLOTS_EACH;
      return info;
    });
    const infos = made.filter((info) => info !== null);
    this.compileApart(infos.flatMap((info) => (info.followed === null ? [info] : [info, info.followed()])));
    return made;
  }
  /** Makes sure that forms have functions of their own, even if they are hot: in one module. */
  compileApart(infos: readonly FormInfo[]): void {
    const missing = [...new Set(infos.filter(({ slot }) => slot < 0))].filter((info) => !this.#takeUsual(info));
    if (missing.length > 0) this.#compile(missing);
  }
  /** Gives a form the handler that it has among the usual ones. */
  #takeUsual(info: FormInfo): boolean {
    const place = this.#usual?.places.get(formKey(info.form));
    if (place !== undefined) info.slot = this.#usualFirst + place;
    return place !== undefined;
  }
  #compile(missing: readonly FormInfo[]): void {
    if (this.#nextSlot + missing.length > TABLE_SIZE) throw new RangeError('too many instruction forms');
    const recordings = missing.map((info) => this.#recordings.get(info) ?? recordForms([info.form]));
    const module = new WebAssembly.Module(outOfLineModule(recordings, this.long));
    const batch = { module, first: this.#nextSlot, count: missing.length, fillsTable: false };
    for (const info of missing) {
      this.#recordings.delete(info);
      info.slot = this.#nextSlot;
      this.#batchOf[this.#nextSlot++] = batch;
    }
  }

  /** Batch that a slot belongs to. */
  batch(slot: number): Batch {
    return this.#batchOf[slot];
  }
}

const sets = new Map<boolean, HandlerSet>();

/** The process's handlers for 64-bit code (`long`) or the rest. */
export function handlerSet(long: boolean): HandlerSet {
  let set = sets.get(long);
  if (set === undefined) sets.set(long, (set = new HandlerSet(long)));
  return set;
}
