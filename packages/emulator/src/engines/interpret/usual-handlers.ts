/** The handlers of usual forms as one module, which a build carries, and of hot forms those that regions need in a function of their own. */
import { type Form, formKey } from './form.ts';
import { hotForms } from './hot.ts';
import { type Facts, packFacts, unpackFacts } from './ir.ts';
import { recordForms } from './operation.ts';
import { usualModule } from './out-of-line.ts';
import { fromBase64, PREBUILT } from './prebuilt.ts';
import { usualForms } from './usual.ts';

/** By key, in the order of their functions. */
function formsOf(long: boolean): Map<string, Form> {
  const all = new Map<string, Form>();
  const add = (form: Form): void => void all.set(formKey(form), form);
  for (const { forms, dropFlags } of hotForms(long)) if (forms.length === 1 && !dropFlags) add(forms[0]);
  for (const form of usualForms(long)) {
    add(form);
    if (form.mnemonic === 'sti') add({ ...form, followed: true });
  }
  return all;
}

/** The module, and the facts of its forms in their order (see {@link packFacts}). */
export function generateUsual(long: boolean): { module: Uint8Array<ArrayBuffer>; facts: string } {
  const recordings = [...formsOf(long).values()].map((form) => recordForms([form]));
  return { module: usualModule(recordings, long), facts: recordings.map(({ facts }) => packFacts(facts)).join('') };
}
function prebuilt(long: boolean): ReturnType<typeof generateUsual> | null {
  if (PREBUILT === null) return null;
  const { module, facts } = (long ? PREBUILT.long : PREBUILT.legacy).usual;
  return { module: fromBase64(module), facts };
}

export class UsualHandlers {
  readonly module: WebAssembly.Module;
  /** Functions of the module, by the keys of their forms. */
  readonly places: ReadonlyMap<string, number>;
  readonly #facts: string;

  constructor(long: boolean) {
    this.places = new Map([...formsOf(long).keys()].map((key, place) => [key, place]));
    const { module, facts } = prebuilt(long) ?? generateUsual(long);
    this.module = new WebAssembly.Module(module);
    this.#facts = facts;
  }

  factsAt(place: number): Facts {
    return unpackFacts(this.#facts, place);
  }
}
