/**
 * Code that is patched: single instructions are decoded again where their records stand, or in records of their own; the page keeps the rest. An
 * immediate that is patched again and again is read from the code each time; its bytes count as data from then on.
 * Manual: APM vol. 2 section 7.6.1 (self-modifying code is seen at once).
 */
import type { Instruction } from '../../decode/instruction.ts';
import type { CodePage, Pending } from './predecode.ts';
import { R, Special } from './records.ts';

/** What patching needs of the predecoder. */
export interface PatchTools {
  readonly view: DataView;
  /** Writes the instruction's record again; false if its form or length is another. */
  redecode(page: CodePage, offset: number): boolean;
  /** Decodes the instruction again into a record of its own, whatever it is now; false if it can't have one. */
  retire(page: CodePage, offset: number): boolean;
  /** Lays the instruction down again with its immediate read from the code each time; false if it has none of that kind, or not alone. */
  freshen(page: CodePage, offset: number): boolean;
  /** These bytes are no code. */
  uncover(page: CodePage, from: number, to: number): void;
}

/** The longest instruction. */
const LONGEST = 15;
/** Patched so often, an immediate is no part of the code any more. */
const OFTEN = 8;
/** A page that is written over with other code is dropped behind so many instructions. */
const MAX_RETIRED = 8;

/** Offsets of the instructions that bytes `from` to `to` belong to. */
function affected(view: DataView, page: CodePage, from: number, to: number): number[] {
  const found: number[] = [];
  for (let offset = Math.max(0, from - LONGEST + 1); offset < to; offset++) {
    const record = page.records.at(offset);
    if (record === 0) continue;
    const next = view.getUint16(record + R.next, true);
    // What did not decode, or crosses into the next page, depends on all that follows.
    if ((next === offset ? offset + LONGEST : next) > from) found.push(offset);
  }
  return found;
}

/** Do bytes belong to more than one instruction: one is jumped into, or one crosses into this page? */
export const areShared = (view: DataView, page: CodePage, from: number, to: number): boolean =>
  affected(view, page, from, to).length > 1 || (from < LONGEST && page.crossers.size > 0);

/** Are the bytes within the immediate that is read each time? */
function isFresh(view: DataView, record: number, from: number, to: number): boolean {
  if (view.getUint16(record + R.plain, true) !== Special.fresh) return false;
  return from >= view.getUint16(record + R.reg, true) && to <= view.getUint16(record + R.next, true);
}

/** Bytes `from` to `to` of a page have changed. False: the whole page has to go. */
export function patchPage(tools: PatchTools, page: CodePage, from: number, to: number): boolean {
  const { view } = tools;
  if (from < LONGEST && page.crossers.size > 0) return false;
  const offsets = affected(view, page, from, to);
  for (const offset of offsets) {
    const record = page.records.at(offset);
    const plain = view.getUint16(record + R.plain, true);
    if (plain === Special.guard) return false;
    if (isFresh(view, record, from, to)) continue;
    if (plain !== Special.fresh && tools.redecode(page, offset)) {
      const times = (page.patched.get(offset) ?? 0) + 1;
      page.patched.set(offset, times);
      if (times === OFTEN && offsets.length === 1) tools.freshen(page, offset);
      continue;
    }
    if (!tools.retire(page, offset) || page.retired > MAX_RETIRED) return false;
  }
  if (offsets.length === 0) tools.uncover(page, from, to);
  return true;
}

/** How an immediate is read, in {@link R.scale} of a fresh record. */
export const FreshKind = { signed8: 0, unsigned8: 1, signed16: 2, unsigned16: 3, signed32: 4, wide: 5 } as const;
const SIZES = [1, 1, 2, 2, 4, 8] as const;

function kindOf(spec: string, opSize: number): number | null {
  switch (spec) {
    case 'Ibs':
      return FreshKind.signed8;
    case 'Ib':
      return FreshKind.unsigned8;
    case 'Iw':
      return FreshKind.unsigned16;
    case 'Iz':
      return opSize === 2 ? FreshKind.signed16 : FreshKind.signed32;
    case 'Iv':
      return opSize === 8 ? FreshKind.wide : opSize === 2 ? FreshKind.signed16 : FreshKind.signed32;
    default:
      return null;
  }
}

/** The one immediate at the end of an instruction: how it is read, and its size. null: it has none, or its value says which form it has. */
export function immediateOf({ insn, shape, cut }: Pending): { kind: number; size: number } | null {
  const info = shape?.info ?? null;
  if (info === null || cut || shape!.ends || info.facts.mayHandBack) return null;
  const { form } = info;
  if (form.vector !== undefined || form.x87 || shape!.direct || isCountedForm(insn)) return null;
  const immediates = insn.row.operands.filter((spec) => spec.startsWith('I'));
  const kind = immediates.length === 1 && insn.imm2 === 0 ? kindOf(immediates[0]!, insn.opSize) : null;
  return kind === null ? null : { kind, size: SIZES[kind]! };
}
/** A shift's count decides about its flags. */
const isCountedForm = ({ row }: Instruction): boolean => /^(ro[lr]|rc[lr]|s[ah][lr]d?)$/.test(row.mnemonic);
