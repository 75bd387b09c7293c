/**
 * What of a block's recording is emitted: nodes that somebody uses, and flags by who wants to see them.
 * `cold` flags are seen only where the region is left: their operands stay in locals and the flags are computed there.
 * CF has a local of its own besides: INC and DEC keep it, and most of those who read a flag read this one.
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
  type Variable,
} from '../interpret/ir.ts';

/** Who sees the flags at a place. */
export type Sight = 'none' | 'cold' | 'hot';
const ORDER: Readonly<Record<Sight, number>> = { none: 0, cold: 1, hot: 2 };
export const more = (a: Sight, b: Sight): Sight => (ORDER[a] >= ORDER[b] ? a : b);

/** Who sees the flags, and whether somebody computes with CF. */
export interface Demand {
  readonly sight: Sight;
  readonly carry: boolean;
}
export const NO_DEMAND: Demand = { sight: 'none', carry: false };
export const both = (a: Demand, b: Demand): Demand => ({ sight: more(a.sight, b.sight), carry: a.carry || b.carry });

/** The variable that holds CF as 0 or 1. */
export const CARRY: Variable = { id: -1, version: 0 };

/** What the rest of the region wants of a block. */
export interface Wanted {
  /** Behind its last instruction. */
  readonly end: Demand;
  /** Where instruction `index` jumps to. */
  jump(index: number): Demand;
}

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
  /** Flag effects that are computed at exits. */
  readonly deferred = new Set<Effect>();
  readonly #live = new Set<Effect>();
  readonly #wanted: Wanted;
  #sight: Sight;
  #carry: boolean;
  #index: number;

  /** @param count instructions of the block */
  constructor(body: Region, count: number, wanted: Wanted) {
    this.#wanted = wanted;
    this.#sight = wanted.end.sight;
    this.#carry = wanted.end.carry;
    this.#index = count - 1;
    this.#region(body, true);
  }

  /** At the start of the block. */
  get entry(): Demand {
    return { sight: this.#sight, carry: this.#carry };
  }
  emits(item: Item): boolean {
    return isNode(item) ? this.users.has(item) || this.kept.has(item) : this.#live.has(item);
  }

  #use(node: Node, user: Item): void {
    const users = this.users.get(node);
    if (users) users.push(user);
    else this.users.set(node, [user]);
  }
  #see(sight: Sight): void {
    this.#sight = more(this.#sight, sight);
  }

  #region(region: Region, top: boolean): void {
    for (let i = region.items.length - 1; i >= 0; i--) {
      const item = region.items[i];
      if (isNode(item)) this.#node(item);
      else this.#effect(item, top);
    }
  }

  #node(node: Node): void {
    if (EFFECTFUL.has(node.op)) {
      this.kept.add(node);
      this.#see('cold');
    } else if (!this.users.has(node) && !this.kept.has(node)) return;
    for (const arg of node.args) this.#use(arg, node);
    if (node.op === 'flagResult' || node.op === 'flagAux') this.#see('hot');
    if (node.op === 'var' && node.variable === CARRY) this.#carry = true;
  }

  #effect(effect: Effect, top: boolean): void {
    switch (effect.kind) {
      case 'advance':
        this.#live.add(effect);
        this.#index--;
        if (effect.leaves) this.#see('cold');
        return;
      case 'flags':
        this.#flags(effect, top);
        return;
      case 'setVar':
        if (effect.variable !== CARRY) break;
        if (!this.#carry) return;
        if (top) this.#carry = false;
        break;
      case 'when':
        this.#when(effect);
        return;
      case 'jump': {
        const { sight, carry } = this.#wanted.jump(this.#index);
        // An unconditional one is the end.
        if (effect.condition === null) {
          this.#sight = sight;
          this.#carry = carry;
        } else {
          this.#see(sight);
          this.#carry ||= carry;
        }
        break;
      }
      case 'store':
      case 'store128':
      case 'probe':
      case 'handBack':
      case 'raiseWhen':
      case 'checkTarget':
        this.#see('cold');
    }
    this.#live.add(effect);
    for (const arg of effectArgs(effect)) this.#use(arg, effect);
  }

  #when(effect: Effect & { kind: 'when' }): void {
    const inner = innerRegions(effect);
    const setsFlags = inner.some((r) => r.items.some((i) => !isNode(i) && i.kind === 'flags'));
    // Set on one path only: what was there before must stand in the same place.
    if (setsFlags && this.#sight !== 'none') this.#sight = 'hot';
    for (const region of inner) this.#region(region, false);
    if (!inner.some((r) => r.items.some((i) => this.emits(i)))) return;
    this.#live.add(effect);
    this.#use(effect.condition, effect);
  }

  #flags(effect: Effect & { kind: 'flags' }, top: boolean): void {
    if (this.#sight === 'none') return;
    this.#live.add(effect);
    const { result, aux } = effect;
    const full = top && result !== null && aux !== null;
    if (full && this.#sight === 'cold' && this.#isCheap(result) && this.#isCheap(aux)) {
      this.deferred.add(effect);
      this.#keep(result);
      this.#keep(aux);
      this.#sight = 'none';
      return;
    }
    for (const arg of effectArgs(effect)) this.#use(arg, effect);
    this.#sight = full ? 'none' : 'hot';
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
