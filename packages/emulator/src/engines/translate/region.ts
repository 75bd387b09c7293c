/**
 * From explored code to a region: what belongs to loops, as basic blocks, with the places where it may be entered.
 */
import { PAGE } from '../../memory/physical.ts';
import type { CodePage } from '../interpret/predecode.ts';
import { type Code, crossesPage, type RegionInstruction } from './explore.ts';

export interface Block {
  readonly index: number;
  readonly at: number;
  readonly instructions: RegionInstruction[];
  /** Blocks of the region that follow, by offset: behind any of its branches, or at its end. */
  readonly successors: number[];
}

export interface Region {
  /** Its code pages by distance from the first. */
  readonly pages: ReadonlyMap<number, CodePage>;
  readonly blocks: readonly Block[];
  readonly blockAt: ReadonlyMap<number, Block>;
  /** Offsets at which the region may be entered. */
  readonly entries: readonly number[];
  readonly instructionCount: number;
}

/** Offsets of the pages that its instructions stand in. */
export function pageOffsets({ blocks }: Pick<Region, 'blocks'>): Set<number> {
  const offsets = new Set<number>();
  for (const { instructions } of blocks) {
    offsets.add(instructions[0].page);
    const last = instructions[instructions.length - 1];
    if (crossesPage(last)) offsets.add(last.page + PAGE);
  }
  return offsets;
}

/** Code without loops is worth a function if it is this long. */
const MIN_STRAIGHT = 8;
const MAX_ENTRIES = 24;

type Successors = (at: number) => readonly number[];

/** The strongly connected components that are cycles (Tarjan, iteratively). */
function cycles(nodes: Iterable<number>, successors: Successors): Set<number> {
  const index = new Map<number, number>();
  const low = new Map<number, number>();
  const stack: number[] = [];
  const open = new Set<number>();
  const found = new Set<number>();
  const work: { at: number; successors: readonly number[]; next: number }[] = [];
  const enter = (at: number): void => {
    low.set(at, index.size);
    index.set(at, index.size);
    stack.push(at);
    open.add(at);
    work.push({ at, successors: successors(at), next: 0 });
  };
  const lower = (at: number, to: number): void => void low.set(at, Math.min(low.get(at)!, to));
  const close = (top: { at: number; successors: readonly number[] }): void => {
    const component: number[] = [];
    for (let at = -1; at !== top.at; component.push(at)) {
      at = stack.pop()!;
      open.delete(at);
    }
    if (component.length > 1 || top.successors.includes(top.at)) for (const at of component) found.add(at);
  };
  for (const root of nodes) {
    if (index.has(root)) continue;
    enter(root);
    while (work.length > 0) {
      const top = work[work.length - 1];
      if (top.next < top.successors.length) {
        const to = top.successors[top.next++];
        if (!index.has(to)) enter(to);
        else if (open.has(to)) lower(top.at, index.get(to)!);
        continue;
      }
      work.pop();
      if (work.length > 0) lower(work[work.length - 1].at, low.get(top.at)!);
      if (low.get(top.at) === index.get(top.at)) close(top);
    }
  }
  return found;
}

/** Everything from which one of `goals` can be reached. */
function reaching(goals: ReadonlySet<number>, nodes: Iterable<number>, successors: Successors): Set<number> {
  const predecessors = new Map<number, number[]>();
  for (const from of nodes) {
    for (const to of successors(from)) {
      const list = predecessors.get(to);
      if (list) list.push(from);
      else predecessors.set(to, [from]);
    }
  }
  const reached = new Set(goals);
  const work = [...goals];
  while (work.length > 0) {
    for (const from of predecessors.get(work.pop()!) ?? []) {
      if (reached.has(from)) continue;
      reached.add(from);
      work.push(from);
    }
  }
  return reached;
}

/** What is kept of explored code, and whether loops close only through instructions that are left out. */
interface Cut {
  kept: Set<number>;
  broken: boolean;
}

function cut(code: Code, start: number, minimum: number): Cut | null {
  const { instructions, stops } = code;
  const direct: Successors = (at) => code.successors(instructions.get(at)!).filter((to) => instructions.has(to));
  const loops = cycles(instructions.keys(), direct);
  if (loops.size > 0) return { kept: reaching(loops, instructions.keys(), direct), broken: false };
  const all = [...instructions.keys(), ...stops.keys()];
  const known = (to: number): boolean => instructions.has(to) || stops.has(to);
  const through: Successors = (at) => {
    const insn = instructions.get(at);
    return (insn === undefined ? [stops.get(at)!] : code.successors(insn)).filter(known);
  };
  const broken = cycles(all, through);
  const kept = broken.size > 0 ? reaching(broken, all, through) : new Set(all);
  for (const at of stops.keys()) kept.delete(at);
  return instructions.has(start) && kept.size >= minimum ? { kept, broken: true } : null;
}

function blocksOf(code: Code, kept: ReadonlySet<number>, leaders: ReadonlySet<number>): Block[] {
  const blocks: Block[] = [];
  for (const at of [...leaders].filter((l) => kept.has(l)).sort((a, b) => a - b)) {
    const block: Block = { index: blocks.length, at, instructions: [], successors: [] };
    for (let next = at; kept.has(next) && (next === at || !leaders.has(next)); ) {
      const insn = code.instructions.get(next)!;
      block.instructions.push(insn);
      next = insn.next;
      if (insn.ending !== 'next' && insn.ending !== 'jcc') break;
    }
    blocks.push(block);
  }
  return blocks;
}

function leadersOf(code: Code, kept: ReadonlySet<number>, entries: readonly number[]): Set<number> {
  const leaders = new Set<number>(entries);
  const followed = new Set<number>();
  for (const at of kept) {
    const insn = code.instructions.get(at)!;
    const goesOn = insn.ending === 'next' || insn.ending === 'jcc';
    if (goesOn) followed.add(insn.next);
    // A block goes on behind a branch that is not taken, but stays in one page.
    for (const to of code.successors(insn)) if (!goesOn || to !== insn.next || insn.target === to) leaders.add(to);
    if (goesOn && Math.floor(insn.next / PAGE) !== Math.floor(at / PAGE)) leaders.add(insn.next);
  }
  for (const at of kept) if (!followed.has(at)) leaders.add(at);
  return leaders;
}

/** Targets of edges that go back, from `start` on. */
function headers(start: number, blocks: readonly Block[], blockAt: ReadonlyMap<number, Block>): number[] {
  const found: number[] = [];
  const state = new Map<number, 'open' | 'done'>();
  for (const root of [start, ...blocks.map((b) => b.at)]) {
    if (state.has(root) || !blockAt.has(root)) continue;
    const work = [{ at: root, next: 0 }];
    state.set(root, 'open');
    while (work.length > 0) {
      const top = work[work.length - 1];
      const { successors } = blockAt.get(top.at)!;
      if (top.next === successors.length) {
        state.set(top.at, 'done');
        work.pop();
        continue;
      }
      const to = successors[top.next++];
      const seen = state.get(to);
      if (seen === 'open' && !found.includes(to)) found.push(to);
      if (seen !== undefined) continue;
      state.set(to, 'open');
      work.push({ at: to, next: 0 });
    }
  }
  return found;
}

/**
 * The region around `start`; null if there is nothing worth translating.
 * @param minimum instructions that make a region without loops
 */
export function regionOf(
  code: Code,
  start: number,
  pages: ReadonlyMap<number, CodePage>,
  minimum = MIN_STRAIGHT,
): Region | null {
  const what = cut(code, start, minimum);
  if (what === null) return null;
  const { kept, broken } = what;
  const entries = kept.has(start) ? [start] : [];
  // Behind an instruction that is left out the region is entered again.
  if (broken) for (const next of code.stops.values()) if (kept.has(next) && !entries.includes(next)) entries.push(next);
  const blocks = blocksOf(code, kept, leadersOf(code, kept, entries));
  const blockAt = new Map(blocks.map((block) => [block.at, block]));
  for (const block of blocks) {
    for (const insn of block.instructions) {
      for (const to of code.successors(insn)) {
        if (blockAt.has(to) && !block.successors.includes(to)) block.successors.push(to);
      }
    }
  }
  for (const at of headers(start, blocks, blockAt)) if (!entries.includes(at)) entries.push(at);
  if (entries.length === 0) entries.push(blocks[0].at);
  entries.length = Math.min(entries.length, MAX_ENTRIES);
  return { pages, blocks, blockAt, entries, instructionCount: kept.size };
}
