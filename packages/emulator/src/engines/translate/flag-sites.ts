/**
 * Flags across blocks: an instruction whose flags are seen only where the region is left keeps their operands in locals of its own, and
 * wherever the region is left it is known, or a local tells, which instruction's operands to compute them from.
 */
import { type Effect, type Region as IrRegion, innerRegions, isNode, type Node } from '../interpret/ir.ts';
import { isLeaf, Liveness, more, type Sight } from './liveness.ts';

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

export interface FlagGraph {
  readonly bodies: readonly IrRegion[];
  readonly successors: readonly (readonly number[])[];
  readonly entries: ReadonlySet<number>;
  /** Does control leave the region at the end of a block, or may it? */
  leaves(block: number): boolean;
}

/** More sources than this at one place, and the flags are computed where they are set. */
const MAX_SOURCES = 5;

/** Who sees the flags at the start of each block. */
function entrySights(graph: FlagGraph, forced: ReadonlySet<number>): Sight[] {
  const entry: Sight[] = graph.bodies.map((_, block) => (forced.has(block) ? 'hot' : 'none'));
  for (let changed = true; changed; ) {
    changed = false;
    for (let block = graph.bodies.length - 1; block >= 0; block--) {
      const now = more(entry[block], new Liveness(graph.bodies[block], endSight(graph, entry, block)).entry);
      if (now === entry[block]) continue;
      entry[block] = now;
      changed = true;
    }
  }
  return entry;
}

function endSight(graph: FlagGraph, entry: readonly Sight[], block: number): Sight {
  return graph.successors[block].map((to) => entry[to]).reduce(more, graph.leaves(block) ? 'cold' : 'none');
}

/** The last effect of a block that decides about flags: deferred ones stand for themselves. */
function lastOf(body: IrRegion, live: Liveness): FlagsEffect | 'locals' | null {
  for (let i = body.items.length - 1; i >= 0; i--) {
    const item = body.items[i];
    if (isNode(item) || !live.emits(item)) continue;
    if (item.kind === 'flags') return live.deferred.has(item) ? item : 'locals';
    if (innerRegions(item).some((r) => r.items.some((x) => !isNode(x) && x.kind === 'flags' && live.emits(x)))) {
      return 'locals';
    }
  }
  return null;
}

function flow(graph: FlagGraph, entry: readonly Sight[], outs: readonly (number | null)[]): Set<number>[] {
  const sources = graph.bodies.map((_, block) => new Set<number>(graph.entries.has(block) ? [0] : []));
  for (let changed = true; changed; ) {
    changed = false;
    graph.bodies.forEach((_, block) => {
      const out = outs[block];
      for (const to of graph.successors[block]) {
        if (entry[to] === 'none') continue;
        for (const source of out === null ? sources[block] : [out]) {
          if (sources[to].has(source)) continue;
          sources[to].add(source);
          changed = true;
        }
      }
    });
  }
  return sources;
}

export function planFlags(graph: FlagGraph): FlagPlan {
  const forced = new Set<number>();
  for (;;) {
    const entry = entrySights(graph, forced);
    const liveness = graph.bodies.map((body, block) => new Liveness(body, endSight(graph, entry, block)));
    const sites = new Map<Effect, number>();
    const effects = new Map<number, FlagsEffect>();
    const outs = graph.bodies.map((body, block) => {
      const last = lastOf(body, liveness[block]);
      if (last === null || last === 'locals') return last === null ? null : 0;
      // Wanted behind the block only if a successor sees it.
      if (graph.successors[block].every((to) => entry[to] === 'none')) return 0;
      const site = sites.size + 1;
      sites.set(last, site);
      effects.set(site, last);
      return site;
    });
    const sources = flow(graph, entry, outs);
    const crowded = sources.findIndex((set, block) => set.size > MAX_SOURCES && !forced.has(block));
    if (crowded < 0) {
      const tagged = sources.some((set, block) => set.size > 1 && entry[block] !== 'none');
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
