/**
 * From a hot record to a region: the instructions around it that belong to loops, as basic blocks.
 * Only code that has been decoded because it ran is followed, and only within pages that the predecoder keeps.
 */
import { PAGE } from '../../memory/physical.ts';
import type { FormInfo } from '../interpret/handlers.ts';
import type { CodePage, Pending, Predecoder } from '../interpret/predecode.ts';
import { isTranslatable } from './translatable.ts';

/** How an instruction goes on. */
export type Ending = 'next' | 'jcc' | 'jmp' | 'call' | 'indirect' | 'indirectCall';

export interface RegionInstruction {
  /** Offset from the start of the region's first page. */
  readonly at: number;
  /** Offset of the page, a multiple of its size. */
  readonly page: number;
  readonly record: number;
  readonly info: FormInfo;
  readonly next: number;
  readonly ending: Ending;
  /** Target of a direct branch. */
  readonly target: number;
}

export interface Block {
  readonly index: number;
  readonly at: number;
  readonly instructions: RegionInstruction[];
  /** Blocks of the region that follow, by offset. */
  readonly successors: number[];
}

export interface Region {
  readonly page: CodePage;
  readonly blocks: readonly Block[];
  readonly blockAt: ReadonlyMap<number, Block>;
  /** Offsets at which the region may be entered. */
  readonly entries: readonly number[];
  readonly instructionCount: number;
  /** Return addresses of calls inside the region. */
  readonly returns: readonly number[];
}

const MAX_INSTRUCTIONS = 400;

const ENDINGS: Readonly<Record<string, Ending>> = {
  jcc: 'jcc',
  loop: 'jcc',
  loope: 'jcc',
  loopne: 'jcc',
  jcxz: 'jcc',
};

/** Explores and cuts; null: nothing worth translating there. */
export class Explorer {
  readonly #instructions = new Map<number, RegionInstruction>();
  readonly #predecoder: Predecoder;
  readonly #page: CodePage;

  constructor(predecoder: Predecoder, page: CodePage) {
    this.#predecoder = predecoder;
    this.#page = page;
  }

  region(start: number): Region | null {
    this.#explore(start);
    const kept = this.#keep(start);
    if (kept === null) return null;
    return this.#blocks(start, kept);
  }

  #explore(start: number): void {
    const work = [start];
    while (work.length > 0 && this.#instructions.size < MAX_INSTRUCTIONS) {
      const at = work.shift()!;
      if (this.#instructions.has(at)) continue;
      const insn = this.#instruction(at);
      if (insn === null) continue;
      this.#instructions.set(at, insn);
      // Straight on first: blocks then stand in the order of the code.
      const follow = successorsOf(insn).filter((to) => this.#isLive(to));
      work.unshift(...follow);
    }
  }
  /** Was it ever decoded? */
  #isLive(at: number): boolean {
    return at >= 0 && at < PAGE && this.#page.records[at] !== 0;
  }

  #instruction(at: number): RegionInstruction | null {
    const pending = this.#predecoder.decodeAt(this.#page, at);
    const { shape } = pending;
    if (shape === null || shape.info === null || !isTranslatable(shape.info)) return null;
    const record = this.#page.records[at];
    const { next } = pending;
    const ending = endingOf(pending);
    if (ending === null) return null;
    const target = shape.direct ? next + Number(pending.insn.imm) : -1;
    return { at, page: 0, record, info: shape.info, next, ending, target };
  }

  /** Instructions from which a loop can be reached; all of them if there is no loop. */
  #keep(start: number): Set<number> | null {
    if (!this.#instructions.has(start)) return null;
    const loops = this.#loops();
    if (loops.size === 0) return this.#instructions.size >= 8 ? new Set(this.#instructions.keys()) : null;
    const predecessors = new Map<number, number[]>();
    for (const insn of this.#instructions.values()) {
      for (const to of successorsOf(insn)) {
        const list = predecessors.get(to);
        if (list) list.push(insn.at);
        else predecessors.set(to, [insn.at]);
      }
    }
    const kept = new Set(loops);
    const work = [...loops];
    while (work.length > 0) {
      for (const from of predecessors.get(work.pop()!) ?? []) {
        if (kept.has(from)) continue;
        kept.add(from);
        work.push(from);
      }
    }
    return kept;
  }

  /** Instructions on cycles (Tarjan's strongly connected components, iteratively). */
  #loops(): Set<number> {
    const index = new Map<number, number>();
    const low = new Map<number, number>();
    const stack: number[] = [];
    const on = new Set<number>();
    const found = new Set<number>();
    const follow = (at: number): number[] =>
      successorsOf(this.#instructions.get(at)!).filter((to) => this.#instructions.has(to));
    for (const root of this.#instructions.keys()) {
      if (index.has(root)) continue;
      const work = [{ at: root, successors: follow(root), next: 0 }];
      index.set(root, index.size);
      low.set(root, index.get(root)!);
      stack.push(root);
      on.add(root);
      while (work.length > 0) {
        const top = work[work.length - 1];
        if (top.next < top.successors.length) {
          const to = top.successors[top.next++];
          if (!index.has(to)) {
            index.set(to, index.size);
            low.set(to, index.get(to)!);
            stack.push(to);
            on.add(to);
            work.push({ at: to, successors: follow(to), next: 0 });
          } else if (on.has(to)) low.set(top.at, Math.min(low.get(top.at)!, index.get(to)!));
          continue;
        }
        work.pop();
        const parent = work[work.length - 1];
        if (parent) low.set(parent.at, Math.min(low.get(parent.at)!, low.get(top.at)!));
        if (low.get(top.at) !== index.get(top.at)) continue;
        const component: number[] = [];
        for (let at = -1; at !== top.at; ) {
          at = stack.pop()!;
          on.delete(at);
          component.push(at);
        }
        if (component.length > 1 || top.successors.includes(top.at)) for (const at of component) found.add(at);
      }
    }
    return found;
  }

  #blocks(start: number, kept: Set<number>): Region {
    const leaders = new Set<number>([start]);
    for (const at of kept) {
      const insn = this.#instructions.get(at)!;
      if (insn.ending === 'next') continue;
      for (const to of successorsOf(insn)) if (kept.has(to)) leaders.add(to);
    }
    // An instruction whose predecessor was cut off, or that overlaps another.
    const followed = new Set<number>();
    for (const at of kept) {
      const insn = this.#instructions.get(at)!;
      if (insn.ending === 'next') followed.add(insn.next);
    }
    for (const at of kept) if (!followed.has(at)) leaders.add(at);
    const blocks: Block[] = [];
    const blockAt = new Map<number, Block>();
    for (const at of [...leaders].filter((l) => kept.has(l)).sort((a, b) => a - b)) {
      const block: Block = { index: blocks.length, at, instructions: [], successors: [] };
      for (let next = at; kept.has(next) && (next === at || !leaders.has(next)); ) {
        const insn = this.#instructions.get(next)!;
        block.instructions.push(insn);
        next = insn.next;
        if (insn.ending !== 'next') break;
      }
      blocks.push(block);
      blockAt.set(at, block);
    }
    for (const block of blocks) {
      const last = block.instructions[block.instructions.length - 1];
      for (const to of successorsOf(last)) if (blockAt.has(to)) block.successors.push(to);
    }
    return {
      page: this.#page,
      blocks,
      blockAt,
      entries: this.#entries(start, blocks, blockAt),
      instructionCount: kept.size,
      returns: [],
    };
  }

  /** The start and every target of an edge that goes back. */
  #entries(start: number, blocks: readonly Block[], blockAt: ReadonlyMap<number, Block>): number[] {
    const entries = blockAt.has(start) ? [start] : [];
    const state = new Map<number, 1 | 2>();
    for (const root of [start, ...blocks.map((b) => b.at)]) {
      if (state.has(root) || !blockAt.has(root)) continue;
      const work = [{ at: root, next: 0 }];
      state.set(root, 1);
      while (work.length > 0) {
        const top = work[work.length - 1];
        const { successors } = blockAt.get(top.at)!;
        if (top.next === successors.length) {
          state.set(top.at, 2);
          work.pop();
          continue;
        }
        const to = successors[top.next++];
        const seen = state.get(to);
        if (seen === 1 && !entries.includes(to)) entries.push(to);
        if (seen !== undefined) continue;
        state.set(to, 1);
        work.push({ at: to, next: 0 });
      }
    }
    return entries;
  }
}

/** null: the region ends in front of it. */
function endingOf({ insn, shape, next }: Pending): Ending | null {
  const { mnemonic } = insn.row;
  const direct = shape!.direct;
  // Targets that are truncated may lie anywhere.
  if (direct && insn.opSize !== insn.codeSize) return null;
  if (ENDINGS[mnemonic] !== undefined) return ENDINGS[mnemonic];
  const target = next + Number(insn.imm);
  if (direct && (target < 0 || target >= PAGE)) return null;
  if (mnemonic === 'jmp') return direct ? 'jmp' : 'indirect';
  if (mnemonic === 'ret') return 'indirect';
  if (mnemonic === 'call') return direct ? 'call' : 'indirectCall';
  return next > PAGE ? null : 'next';
}

/** Offsets that control goes to directly. */
export function successorsOf({ ending, next, target }: RegionInstruction): number[] {
  switch (ending) {
    case 'next':
      return [next];
    case 'jcc':
      return target === next ? [next] : [next, target];
    case 'jmp':
    case 'call':
      return [target];
    default:
      return [];
  }
}
