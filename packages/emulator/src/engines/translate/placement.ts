/**
 * Where a node with one user is computed: with its user, if nothing in between changes what it reads; else in a local of its own.
 */
import { EFFECTFUL, type Effect, type Item, innerRegions, isNode, type Node, type Region } from '../interpret/ir.ts';
import type { Liveness } from './liveness.ts';
import { addressOf, gprAt } from './values.ts';

/** Does the effect, with all inside, write what the node reads? */
function clobbers(effect: Effect, node: Node): boolean {
  switch (effect.kind) {
    case 'setReg': {
      if (node.op !== 'reg') return false;
      const written = gprAt(addressOf(effect.address, effect.k));
      const read = gprAt(addressOf(node.args[0] ?? null, node.k));
      return written === null || read === null || written.number === read.number;
    }
    case 'setVector':
      return node.op === 'vector' && addressOf(effect.address, effect.k) === addressOf(node.args[0] ?? null, node.k);
    case 'flags':
      return node.op === 'flagResult' || node.op === 'flagAux';
    case 'setRflags':
      return node.op === 'rflags' || node.op === 'reg';
    case 'setVar':
      return node.op === 'var' && node.variable === effect.variable;
    default:
      return innerRegions(effect).some((r) => r.items.some((i) => !isNode(i) && clobbers(i, node)));
  }
}

const READS: ReadonlySet<Node['op']> = new Set<Node['op']>(['reg', 'vector', 'var', 'flagResult', 'flagAux', 'rflags']);

export class Placement {
  readonly inlined = new Set<Node>();
  readonly #position = new Map<Item, number>();
  readonly #live: Liveness;

  constructor(body: Region, live: Liveness) {
    this.#live = live;
    this.#region(body);
  }

  #region(region: Region): void {
    for (let i = region.items.length - 1; i >= 0; i--) {
      const item = region.items[i];
      if (!this.#live.emits(item)) continue;
      this.#position.set(item, i);
      if (isNode(item)) this.#node(region, item, i);
      else for (const inner of innerRegions(item)) this.#region(inner);
    }
  }

  #node(region: Region, node: Node, at: number): void {
    if (node.op === 'const') {
      this.inlined.add(node);
      return;
    }
    const users = this.#live.users.get(node);
    if (this.#live.kept.has(node) || users === undefined || users.length !== 1) return;
    const [user] = users;
    if (user.region !== region) return;
    const to = this.#position.get(user);
    if (to === undefined || !this.#mayMove(region, node, at, to)) return;
    this.inlined.add(node);
    this.#position.set(node, to);
  }

  #mayMove(region: Region, node: Node, from: number, to: number): boolean {
    if (EFFECTFUL.has(node.op)) return false;
    if (!READS.has(node.op)) return true;
    for (let i = from + 1; i < to; i++) {
      const item = region.items[i];
      if (!isNode(item) && this.#live.emits(item) && clobbers(item, node)) return false;
    }
    return true;
  }
}
