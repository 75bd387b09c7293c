/**
 * Flags across blocks: an instruction whose flags are seen only where the region is left keeps their operands in locals of its own, and
 * wherever the region is left it is known, or a local tells, which instruction's operands to compute them from.
 */
import { type Effect, type Region as IrRegion, innerRegions, isNode, type Node } from '../interpret/ir.ts';
import { both, type Demand, isLeaf, Liveness, NO_DEMAND, type Wanted } from './liveness.ts';

type FlagsEffect = Effect & { kind: 'flags' };

/** Source 0 are the function's flag locals, others are sites. */
export interface FlagPlan {
  readonly liveness: readonly Liveness[];
  /** By block: where the flags may come from at its start. */
  readonly sources: readonly ReadonlySet<number>[];
  readonly sites: ReadonlyMap<Effect, number>;
  readonly effects: ReadonlyMap<number, FlagsEffect>;
  /** Some block has several sources: a local says which it is. */
  readonly tagged: boolean;
}

/** Where control goes from a place: blocks, and perhaps out of the region. */
export interface Ways {
  readonly to: readonly number[];
  readonly leaves: boolean;
}

export interface FlagGraph {
  readonly bodies: readonly IrRegion[];
  /** Number of instructions of a block. */
  count(block: number): number;
  readonly entries: ReadonlySet<number>;
  /** From the jump of an instruction. */
  jump(block: number, index: number): Ways;
  /** From the end of a block that does not jump away. */
  end(block: number): Ways;
}

/** More sources than this at one place, and the flags are computed where they are set. */
const MAX_SOURCES = 5;

const COLD: Demand = { sight: 'cold', carry: false };
const HOT: Demand = { sight: 'hot', carry: false };
const demandOf = ({ to, leaves }: Ways, entry: readonly Demand[]): Demand =>
  to.map((block) => entry[block]).reduce(both, leaves ? COLD : NO_DEMAND);

/** Where control leaves a block: behind its end, and at its jumps by instruction. */
interface Leaving {
  readonly end: Ways;
  readonly jumps: ReadonlyMap<number, Ways>;
}
function leavingOf(graph: FlagGraph, block: number): Leaving {
  const jumps = new Map<number, Ways>();
  let index = -1;
  const visit = (region: IrRegion): void => {
    for (const item of region.items) {
      if (isNode(item)) continue;
      if (item.kind === 'advance') index++;
      else if (item.kind === 'jump') jumps.set(index, graph.jump(block, index));
      for (const inner of innerRegions(item)) visit(inner);
    }
  };
  visit(graph.bodies[block]);
  return { end: graph.end(block), jumps };
}

const sameDemand = (a: Demand, b: Demand): boolean => a.sight === b.sight && a.carry === b.carry;

/** The livenesses of a graph's blocks: each is worked out again only when something else is wanted behind its block. */
class Livenesses {
  readonly #graph: FlagGraph;
  readonly #leaving: readonly Leaving[];
  readonly #known: ({ wanted: readonly Demand[]; live: Liveness } | undefined)[] = [];

  constructor(graph: FlagGraph) {
    this.#graph = graph;
    this.#leaving = graph.bodies.map((_, block) => leavingOf(graph, block));
  }
  of(block: number, entry: readonly Demand[]): Liveness {
    const { end, jumps } = this.#leaving[block];
    const wanted = [end, ...jumps.values()].map((ways) => demandOf(ways, entry));
    const known = this.#known[block];
    if (known?.wanted.every((demand, i) => sameDemand(demand, wanted[i]))) return known.live;
    const places = new Map([...jumps.keys()].map((index, i) => [index, wanted[i + 1]]));
    const jump: Wanted['jump'] = (index) => places.get(index)!;
    const live = new Liveness(this.#graph.bodies[block], this.#graph.count(block), { end: wanted[0], jump });
    this.#known[block] = { wanted, live };
    return live;
  }
  edges(block: number): Edge[] {
    return edgesOf(this.#graph.bodies[block], this.#known[block]!.live, this.#leaving[block]);
  }
}

/** What is wanted at the start of each block. */
function entryDemands(graph: FlagGraph, livenesses: Livenesses, forced: ReadonlySet<number>): Demand[] {
  const entry = graph.bodies.map((_, block) => (forced.has(block) ? HOT : NO_DEMAND));
  for (let changed = true; changed; ) {
    changed = false;
    for (let block = graph.bodies.length - 1; block >= 0; block--) {
      const now = both(entry[block], livenesses.of(block, entry).entry);
      if (sameDemand(now, entry[block])) continue;
      entry[block] = now;
      changed = true;
    }
  }
  return entry;
}

/** An edge, or several, with what decided about the flags last in its block: null if nothing did. */
interface Edge {
  readonly to: readonly number[];
  readonly last: FlagsEffect | 'locals' | null;
}

function edgesOf(body: IrRegion, live: Liveness, { end, jumps }: Leaving): Edge[] {
  const edges: Edge[] = [];
  let last: Edge['last'] = null;
  let index = -1;
  for (const item of body.items) {
    if (isNode(item) || !live.emits(item)) continue;
    if (item.kind === 'advance') index++;
    else if (item.kind === 'flags') last = live.deferred.has(item) ? item : 'locals';
    else if (item.kind === 'jump') {
      edges.push({ to: jumps.get(index)!.to, last });
      if (item.condition === null) return edges;
    } else if (setsInside(item, live)) last = 'locals';
  }
  edges.push({ to: end.to, last });
  return edges;
}
const setsInside = (effect: Effect, live: Liveness): boolean =>
  innerRegions(effect).some((r) => r.items.some((x) => !isNode(x) && x.kind === 'flags' && live.emits(x)));

/** Spreads sources along edges until nothing changes. */
function spread(
  graph: FlagGraph,
  entry: readonly Demand[],
  edges: readonly (readonly Edge[])[],
  sites: ReadonlyMap<Effect, number>,
): Set<number>[] {
  const sources = graph.bodies.map((_, block) => new Set<number>(graph.entries.has(block) ? [0] : []));
  const add = (to: number, from: Iterable<number>): boolean => {
    const before = sources[to].size;
    for (const source of from) sources[to].add(source);
    return sources[to].size !== before;
  };
  for (let changed = true; changed; ) {
    changed = false;
    edges.forEach((list, block) => {
      for (const { to, last } of list) {
        const out = last === null ? [...sources[block]] : [last === 'locals' ? 0 : sites.get(last)!];
        for (const next of to) if (entry[next].sight !== 'none' && add(next, out)) changed = true;
      }
    });
  }
  return sources;
}

export function planFlags(graph: FlagGraph): FlagPlan {
  const forced = new Set<number>();
  const livenesses = new Livenesses(graph);
  for (;;) {
    const entry = entryDemands(graph, livenesses, forced);
    const liveness = graph.bodies.map((_, block) => livenesses.of(block, entry));
    const edges = liveness.map((_, block) => livenesses.edges(block));
    const sites = new Map<Effect, number>();
    const effects = new Map<number, FlagsEffect>();
    for (const { to, last } of edges.flat()) {
      if (last === null || last === 'locals' || sites.has(last)) continue;
      if (to.every((next) => entry[next].sight === 'none')) continue;
      effects.set(sites.size + 1, last);
      sites.set(last, sites.size + 1);
    }
    const sources = spread(graph, entry, edges, sites);
    const crowded = sources.findIndex((set, block) => set.size > MAX_SOURCES && !forced.has(block));
    if (crowded < 0) {
      const tagged = sources.some((set) => set.size > 1);
      return { liveness, sources, sites, effects, tagged };
    }
    forced.add(crowded);
  }
}

/** What a site has to keep so that its flags can be computed later: values that somebody computes anyway, or that can't be computed again. */
export function operandsOf(effect: FlagsEffect, live: Liveness): Node[] {
  const found = new Set<Node>();
  const visit = (node: Node): void => {
    if (node.op === 'const') return;
    if (isLeaf(node) || live.users.has(node)) found.add(node);
    else for (const arg of node.args) visit(arg);
  };
  visit(effect.result!);
  visit(effect.aux!);
  return [...found];
}
