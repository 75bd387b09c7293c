/**
 * What of a block's recording is emitted: nodes that somebody uses, and flags by who wants to see them.
 * `cold` flags are seen only where the region is left: their operands stay in locals and the flags are computed there.
 */
import {
  EFFECTFUL,
  type Effect,
  effectArgs,
  type Item,
  innerRegions,
  isNode,
  MUTABLE,
  type Node,
  type Region,
} from '../interpret/ir.ts';

/** Who sees the flags at a place. */
export type Sight = 'none' | 'cold' | 'hot';
const ORDER: Readonly<Record<Sight, number>> = { none: 0, cold: 1, hot: 2 };
export const more = (a: Sight, b: Sight): Sight => (ORDER[a] >= ORDER[b] ? a : b);

/** Larger computations of flags are not repeated at every exit. */
const MAX_COLD = 48;
const DIVISIONS: ReadonlySet<Node['op']> = new Set<Node['op']>([
  'div128',
  'i64DivS',
  'i64DivU',
  'i64RemS',
  'i64RemU',
  'mulHighS',
  'mulHighU',
]);
/** Values that can't be computed again later. */
export const isLeaf = (node: Node): boolean => EFFECTFUL.has(node.op) || MUTABLE.has(node.op) || DIVISIONS.has(node.op);

export class Liveness {
  /** Users of each live node where it is not cold. */
  readonly users = new Map<Node, Item[]>();
  /** Nodes that need a local whatever their users. */
  readonly kept = new Set<Node>();
  /** Flag effects that are emitted where they stand. */
  readonly eager = new Set<Effect>();
  /** Flag effects that are computed at exits. */
  readonly deferred = new Set<Effect>();
  /** Effects with something live inside. */
  readonly #live = new Set<Effect>();
  /** Who sees the flags at the start of the block. */
  readonly entry: Sight;

  constructor(body: Region, end: Sight) {
    this.entry = this.#region(body, end, true);
  }

  emits(item: Item): boolean {
    return isNode(item) ? this.users.has(item) || this.kept.has(item) : this.#live.has(item);
  }

  #use(node: Node, user: Item): void {
    const users = this.users.get(node);
    if (users) users.push(user);
    else this.users.set(node, [user]);
  }

  #region(region: Region, end: Sight, top: boolean): Sight {
    let sight = end;
    for (let i = region.items.length - 1; i >= 0; i--) {
      const item = region.items[i];
      sight = isNode(item) ? this.#node(item, sight) : this.#effect(item, sight, top);
    }
    return sight;
  }

  #node(node: Node, sight: Sight): Sight {
    if (EFFECTFUL.has(node.op)) this.kept.add(node);
    else if (!this.users.has(node) && !this.kept.has(node)) return sight;
    for (const arg of node.args) this.#use(arg, node);
    if (node.op === 'flagResult' || node.op === 'flagAux') return 'hot';
    return EFFECTFUL.has(node.op) ? more(sight, 'cold') : sight;
  }

  #effect(effect: Effect, sight: Sight, top: boolean): Sight {
    if (effect.kind === 'flags') return this.#flags(effect, sight, top);
    if (effect.kind === 'when') return this.#when(effect, sight);
    this.#live.add(effect);
    for (const arg of effectArgs(effect)) this.#use(arg, effect);
    return leaves(effect) ? more(sight, 'cold') : sight;
  }

  #when(effect: Effect & { kind: 'when' }, sight: Sight): Sight {
    const inner = innerRegions(effect);
    const setsFlags = inner.some((r) => r.items.some((i) => !isNode(i) && i.kind === 'flags'));
    // Set on one path only: what was there before must stand in the same place.
    const end = setsFlags && sight !== 'none' ? 'hot' : sight;
    const before = inner.map((r) => this.#region(r, end, false));
    const live = inner.some((r) => r.items.some((i) => this.emits(i)));
    if (!live) return sight;
    this.#live.add(effect);
    this.#use(effect.condition, effect);
    return before.reduce(more, end);
  }

  #flags(effect: Effect & { kind: 'flags' }, sight: Sight, top: boolean): Sight {
    if (sight === 'none') return 'none';
    this.#live.add(effect);
    const full = effect.result !== null && effect.aux !== null;
    const cold = top && full && sight === 'cold' && this.#isCheap(effect.result!) && this.#isCheap(effect.aux!);
    if (cold) {
      this.deferred.add(effect);
      this.#keep(effect.result!);
      this.#keep(effect.aux!);
      return 'none';
    }
    this.eager.add(effect);
    for (const arg of effectArgs(effect)) this.#use(arg, effect);
    return full && top ? 'none' : 'hot';
  }
  #isCheap(node: Node): boolean {
    let size = 0;
    const visit = (at: Node): void => {
      if (++size > MAX_COLD || isLeaf(at)) return;
      for (const arg of at.args) visit(arg);
    };
    visit(node);
    return size <= MAX_COLD;
  }
  /** Everything below that can't be computed again gets a local. */
  #keep(node: Node): void {
    if (node.op === 'const') return;
    if (isLeaf(node)) this.kept.add(node);
    else for (const arg of node.args) this.#keep(arg);
  }
}

/** May the region be left in front of the effect's instruction? */
const leaves = ({ kind }: Effect): boolean =>
  kind === 'store' ||
  kind === 'store128' ||
  kind === 'probe' ||
  kind === 'raiseWhen' ||
  kind === 'handBack' ||
  kind === 'checkTarget' ||
  kind === 'jump';
