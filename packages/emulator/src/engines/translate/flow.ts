/**
 * Control flow of a region: which edges go back, who dominates whom, and what must go through the dispatcher so that the rest is reducible.
 * Method: dominators by Cooper, Harvey and Kennedy; structured code from the dominator tree (Ramsey, "Beyond Relooper").
 */

export interface Flow {
  /** Blocks in reverse postorder; blocks that no entry reaches are missing. */
  readonly order: readonly number[];
  /** Place in `order`, -1 if missing. */
  readonly rank: readonly number[];
  /** Children in the dominator tree that several forward branches reach (or that are dispatched to), last in order first. */
  readonly merges: readonly (readonly number[])[];
  /** Blocks that the dispatcher reaches, by state. */
  readonly targets: readonly number[];
  /** More than one target: the function begins with a dispatcher. */
  readonly dispatched: boolean;
  isHeader(block: number): boolean;
  isMerge(block: number): boolean;
  /** A back edge. */
  isBack(from: number, to: number): boolean;
  /** The edge goes through the dispatcher. */
  isRouted(from: number, to: number): boolean;
}

/** The graph with a root in front of the targets. */
class Graph {
  readonly count: number;
  readonly root: number;
  readonly rank: number[];
  readonly order: number[] = [];
  readonly idom: number[];
  readonly predecessors: number[][];

  constructor(
    readonly successors: readonly (readonly number[])[],
    targets: readonly number[],
    routed: ReadonlySet<number>,
  ) {
    this.count = successors.length;
    this.root = this.count;
    this.rank = Array<number>(this.count + 1).fill(-1);
    this.idom = Array<number>(this.count + 1).fill(-1);
    this.predecessors = Array.from({ length: this.count + 1 }, () => []);
    const next = (u: number): readonly number[] =>
      u === this.root ? targets : successors[u].filter((w) => !routed.has(edge(u, w)));
    this.#sort(next);
    for (const u of [this.root, ...this.order]) for (const w of next(u)) this.predecessors[w].push(u);
    this.#dominate();
  }

  #sort(next: (u: number) => readonly number[]): void {
    const post: number[] = [];
    const seen = new Set<number>([this.root]);
    const stack = [{ node: this.root, successors: next(this.root), at: 0 }];
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      if (top.at < top.successors.length) {
        const node = top.successors[top.at++];
        if (seen.has(node)) continue;
        seen.add(node);
        stack.push({ node, successors: next(node), at: 0 });
      } else {
        post.push(top.node);
        stack.pop();
      }
    }
    post.reverse();
    for (const node of post) {
      this.rank[node] = this.order.length - 1;
      this.order.push(node);
    }
    this.order.shift();
    this.order.forEach((node, i) => {
      this.rank[node] = i;
    });
    this.rank[this.root] = -1;
  }

  #dominate(): void {
    this.idom[this.root] = this.root;
    for (let changed = true; changed; ) {
      changed = false;
      for (const node of this.order) {
        let best = -1;
        for (const p of this.predecessors[node]) if (this.idom[p] >= 0) best = best < 0 ? p : this.#common(best, p);
        if (this.idom[node] !== best) {
          this.idom[node] = best;
          changed = true;
        }
      }
    }
  }
  #common(a: number, b: number): number {
    while (a !== b) {
      while (this.rank[a] > this.rank[b]) a = this.idom[a];
      while (this.rank[b] > this.rank[a]) b = this.idom[b];
    }
    return a;
  }
  dominates(a: number, b: number): boolean {
    for (let node = b; ; node = this.idom[node]) {
      if (node === a) return true;
      if (node === this.root) return false;
    }
  }
}

const edge = (from: number, to: number): number => from * 65536 + to;

/** Routes back edges that don't go to a dominator through the dispatcher until the rest is reducible. */
function reduce(successors: readonly (readonly number[])[], targets: number[], routed: Set<number>): Graph {
  for (;;) {
    const graph = new Graph(successors, targets, routed);
    let changed = false;
    for (const u of graph.order) {
      for (const w of successors[u]) {
        if (routed.has(edge(u, w)) || graph.rank[w] > graph.rank[u] || graph.dominates(w, u)) continue;
        routed.add(edge(u, w));
        if (!targets.includes(w)) targets.push(w);
        changed = true;
      }
    }
    if (!changed) return graph;
  }
}

/**
 * @param successors of each block, as often as it branches there
 * @param entries blocks that are entered from outside, in the order of their states
 */
export function analyse(successors: readonly (readonly number[])[], entries: readonly number[]): Flow {
  const targets = [...entries];
  const routed = new Set<number>();
  const graph = reduce(successors, targets, routed);
  const { rank, order } = graph;
  const dispatched = targets.length > 1;
  const back = (u: number, w: number): boolean => u !== graph.root && rank[w] <= rank[u];
  const headers = new Set<number>();
  const merges: number[][] = Array.from({ length: successors.length + 1 }, () => []);
  const merge = new Set<number>();
  for (const node of order) {
    const forward = graph.predecessors[node].filter((p) => !back(p, node));
    if (graph.predecessors[node].some((p) => back(p, node))) headers.add(node);
    if (forward.length > 1 || (dispatched && targets.includes(node))) {
      merge.add(node);
      merges[graph.idom[node]].unshift(node);
    }
  }
  return {
    order,
    rank,
    merges,
    targets,
    dispatched,
    isHeader: (block) => headers.has(block),
    isMerge: (block) => merge.has(block),
    isBack: (from, to) => !routed.has(edge(from, to)) && rank[to] <= rank[from],
    isRouted: (from, to) => routed.has(edge(from, to)),
  };
}
