/**
 * Finds the instructions around a hot record: what was decoded because it ran, along direct branches, calls and returns, across pages.
 */
import { PAGE } from '../../memory/physical.ts';
import type { Form } from '../interpret/form.ts';
import type { FormInfo } from '../interpret/handlers.ts';
import type { CodePage, Pending, Predecoder } from '../interpret/predecode.ts';
import { R } from '../interpret/records.ts';
import { isTranslatable } from './translatable.ts';

/** How an instruction goes on. */
export type Ending = 'next' | 'jcc' | 'jmp' | 'call' | 'ret' | 'indirect';

export interface RegionInstruction {
  /** Offset from the start of the region's first page. */
  readonly at: number;
  /** Offset of its page, a multiple of the size of pages. */
  readonly page: number;
  readonly record: number;
  /** The record that control comes to: the guard in front of `record` if the instruction crosses into the next page. */
  readonly lead: number;
  readonly info: FormInfo;
  readonly next: number;
  readonly ending: Ending;
  /** Target of a direct branch. */
  readonly target: number;
}

export const crossesPage = ({ record, lead }: RegionInstruction): boolean => record !== lead;

/** The code page at a distance from the first one, if it is known and mapped there. */
export type PageLookup = (distance: number) => CodePage | null;

/** What is known of an instruction: end and branch as in its record. */
interface What {
  readonly info: FormInfo | null;
  readonly record: number;
  readonly next: number;
  /** Displacement of a direct branch. */
  readonly branch: number | null;
  /** If regions can't contain it, the code behind it may still be reached. */
  readonly goesOn: boolean;
}

const isDirect = ({ operands }: Form): boolean => operands[0]?.startsWith('J') === true;
const goesOn = (mnemonic: string): boolean => mnemonic !== 'jmp' && mnemonic !== 'ret';

const CONDITIONAL = new Set(['jcc', 'loop', 'loope', 'loopne', 'jcxz']);

/** Explored code: instructions by offset. */
export class Code {
  readonly instructions = new Map<number, RegionInstruction>();
  /** Instructions that regions can't contain, with where they go on. */
  readonly stops = new Map<number, number>();
  /** Where a return may go to, as far as its calls are known. */
  readonly sites = new Map<number, number[]>();

  /** Offsets that control goes to inside the explored code. */
  successors({ at, ending, next, target }: RegionInstruction): number[] {
    switch (ending) {
      case 'next':
        return [next];
      case 'jcc':
        return target === next ? [next] : [next, target];
      case 'jmp':
      case 'call':
        return [target];
      case 'ret':
        return this.sites.get(at) ?? [];
      case 'indirect':
        return [];
    }
  }
}

export class Explorer {
  readonly code = new Code();
  readonly #predecoder: Predecoder;
  readonly #view: DataView;
  readonly #page: PageLookup;

  readonly #maxInstructions: number;

  constructor(predecoder: Predecoder, view: DataView, page: PageLookup, maxInstructions: number) {
    this.#predecoder = predecoder;
    this.#view = view;
    this.#page = page;
    this.#maxInstructions = maxInstructions;
  }

  explore(start: number): Code {
    const { code } = this;
    const work = [start];
    while (work.length > 0 && code.instructions.size < this.#maxInstructions) {
      const at = work.pop()!;
      if (code.instructions.has(at) || code.stops.has(at) || !this.#isLive(at)) continue;
      const insn = this.#instruction(at);
      if (insn === null) {
        const next = code.stops.get(at);
        if (next !== undefined) work.push(next);
        continue;
      }
      code.instructions.set(at, insn);
      // The last one comes first: straight on.
      if (insn.ending === 'call') work.push(insn.next, insn.target);
      else work.push(...code.successors(insn).reverse());
    }
    this.#matchReturns();
    return code;
  }

  /** Was it ever decoded? */
  #isLive(at: number): boolean {
    const page = this.#page(Math.floor(at / PAGE));
    return page !== null && page.records.at(at & (PAGE - 1)) !== 0;
  }

  #instruction(at: number): RegionInstruction | null {
    const distance = Math.floor(at / PAGE);
    const from = this.#page(distance)!;
    const base = distance * PAGE;
    const lead = from.records.at(at - base);
    const laid = this.#predecoder.infoAt(from, lead);
    const what = laid === null ? this.#decoded(from, at - base, distance) : this.#laid(lead, laid);
    const { info, record } = what;
    const next = base + what.next;
    const target = what.branch === null ? -1 : next + what.branch;
    const ending = info === null || !isTranslatable(info) ? null : this.#ending(info.form, target);
    if (info === null || ending === null) {
      this.code.stops.set(at, what.goesOn ? next : -1);
      return null;
    }
    return { at, page: base, record, lead, info, next, ending, target };
  }
  /** An instruction whose record says all. */
  #laid(record: number, info: FormInfo): What {
    const view = this.#view;
    const branch = isDirect(info.form) ? view.getInt32(record + R.imm, true) : null;
    return { info, record, next: view.getUint16(record + R.next, true), branch, goesOn: goesOn(info.form.mnemonic) };
  }
  /** One that has no handler, crosses into the next page, or whose immediate is read from the code each time. */
  #decoded(from: CodePage, offset: number, distance: number): What {
    const { pending, record } = this.#decode(from, offset, distance);
    const { shape, insn, next } = pending;
    const info = this.#predecoder.isFresh(from, offset) ? null : (shape?.info ?? null);
    const branch = shape?.direct ? Number(insn.imm) : null;
    return { info, record, next, branch, goesOn: shape !== null && goesOn(insn.row.mnemonic) };
  }
  #decode(from: CodePage, offset: number, distance: number): { pending: Pending; record: number } {
    const pending = this.#predecoder.decodeAt(from, offset);
    const next = pending.cut ? this.#page(distance + 1) : null;
    return (next && this.#predecoder.crossing(from, offset, next)) ?? { pending, record: from.records.at(offset) };
  }

  /** null: regions end in front of it. */
  #ending(form: Form, target: number): Ending | null {
    const { mnemonic } = form;
    const direct = isDirect(form);
    // Targets that are truncated may lie anywhere.
    if (direct && form.opSize !== form.codeSize) return null;
    if (CONDITIONAL.has(mnemonic)) return 'jcc';
    if (mnemonic !== 'jmp' && mnemonic !== 'call') return mnemonic === 'ret' ? 'ret' : 'next';
    if (!direct) return 'indirect';
    // Where the target is not known to be allowed, the record checks it.
    if (!this.#isLive(target)) return null;
    return mnemonic === 'jmp' ? 'jmp' : 'call';
  }

  // ---- returns

  #matchReturns(): void {
    const { instructions, sites } = this.code;
    const returns = new Map<number, number[]>();
    for (const { ending, target, next } of instructions.values()) {
      if (ending !== 'call' || !instructions.has(next)) continue;
      let list = returns.get(target);
      if (list === undefined) returns.set(target, (list = this.#returnsOf(target)));
      for (const ret of list) {
        const known = sites.get(ret);
        if (known === undefined) sites.set(ret, [next]);
        else if (!known.includes(next)) known.push(next);
      }
    }
  }
  /** Returns that a function reaches, calls in it taken as straight on. */
  #returnsOf(entry: number): number[] {
    const { instructions } = this.code;
    const seen = new Set<number>();
    const work = [entry];
    const found: number[] = [];
    while (work.length > 0) {
      const insn = instructions.get(work.pop()!);
      if (insn === undefined || seen.has(insn.at)) continue;
      seen.add(insn.at);
      if (insn.ending === 'ret') found.push(insn.at);
      else if (insn.ending === 'call') work.push(insn.next);
      else work.push(...this.code.successors(insn));
    }
    return found;
  }
}
