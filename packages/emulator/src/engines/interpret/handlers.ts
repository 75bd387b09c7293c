/**
 * Which handler executes a form: one of the hot ones inside the dispatch function, or an out-of-line function made when first needed.
 * Compiled modules do not depend on any machine's memory: they are kept for the process.
 */
import { type Form, formKey } from './form.ts';
import { type HotForm, hotForms } from './hot.ts';
import type { Facts } from './ir.ts';
import { type HotHandler, mainModule, TABLE_SIZE } from './main-module.ts';
import { recordForms } from './operation.ts';
import { outOfLineModule } from './out-of-line.ts';
import { fromBase64, PREBUILT } from './prebuilt.ts';
import { Special } from './records.ts';

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

/** Beyond so many forms no vector form is added. */
export const VECTOR_FORMS = (TABLE_SIZE * 3) / 4;

/** A batch of out-of-line functions: instantiated by every engine that uses one of them. */
interface Batch {
  readonly module: WebAssembly.Module;
  readonly first: number;
  readonly count: number;
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

/** The interpreter's module, generated. */
export function mainModuleBytes(long: boolean): Uint8Array<ArrayBuffer> {
  const handlers: HotHandler[] = [];
  for (const { forms, dropFlags } of hotHandlers(long).values()) {
    handlers.push({ record: () => recordForms(forms), dropFlags });
  }
  return mainModule(handlers, long);
}

/** The handlers of 64-bit code, or of all other code. */
export class HandlerSet {
  readonly module: WebAssembly.Module;
  readonly #forms = new Map<string, FormInfo>();
  readonly #hot = new Map<string, number>();
  /** Forms that begin a fused pair. */
  readonly #fusing = new Set<string>();
  readonly #fused = new Map<FormInfo, Map<FormInfo, number>>();
  readonly #batchOf: Batch[] = [];
  #nextSlot = 0;
  /** Handler number of the out-of-line slot 0. */
  readonly firstSlot: number;

  constructor(readonly long: boolean) {
    for (const [key, { forms }] of hotHandlers(long)) {
      this.#hot.set(key, Special.count + this.#hot.size);
      if (forms.length > 1) this.#fusing.add(formKey(forms[0]));
    }
    this.firstSlot = Special.count + this.#hot.size;
    const built = PREBUILT === null ? mainModuleBytes(long) : fromBase64(long ? PREBUILT.long : PREBUILT.legacy);
    this.module = new WebAssembly.Module(built);
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
    const { facts } = recordForms([form]);
    const info: FormInfo = {
      form,
      facts,
      hot: this.#hot.get(key) ?? -1,
      dead: this.#hot.get(`${key} -`) ?? -1,
      fuses: this.#fusing.has(key),
      followed: form.mnemonic === 'sti' && !form.followed ? () => this.#info({ ...form, followed: true }) : null,
      slot: -1,
    };
    this.#forms.set(key, info);
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

  /** Compiles what has no handler yet, in one module. */
  compile(run: readonly { shape: { info: FormInfo | null } | null }[]): void {
    let missing: FormInfo[] | null = null;
    for (const { shape } of run) {
      const info = shape?.info;
      if (info && info.hot < 0 && info.slot < 0 && !missing?.includes(info)) (missing ??= []).push(info);
    }
    if (missing !== null) this.#compile(missing);
  }
  /** Makes sure that the form has a function of its own, even if it is hot. */
  compileApart(info: FormInfo): void {
    if (info.slot < 0) this.#compile([info]);
  }
  #compile(missing: readonly FormInfo[]): void {
    if (this.#nextSlot + missing.length > TABLE_SIZE) throw new RangeError('too many instruction forms');
    const bytes = outOfLineModule(
      missing.map((i) => recordForms([i.form])),
      this.long,
    );
    const batch = { module: new WebAssembly.Module(bytes), first: this.#nextSlot, count: missing.length };
    for (const info of missing) {
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
