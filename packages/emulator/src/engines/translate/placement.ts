/**
 * What stands between a node and its only user decides where it is computed: here with registers and variables told apart.
 */
import {
  EFFECTFUL,
  type Effect,
  type Item,
  innerRegions,
  isNode,
  type Node,
  Placing,
  type Region,
} from '../interpret/ir.ts';
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
    case 'setField':
      return node.op === 'field';
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

const READS: ReadonlySet<Node['op']> = new Set<Node['op']>([
  'reg',
  'field',
  'vector',
  'var',
  'flagResult',
  'flagAux',
  'rflags',
]);

/** The placement of a block's recording, by the region's liveness. */
export class Placement extends Placing {
  readonly #live: Liveness;

  constructor(body: Region, live: Liveness) {
    super();
    this.#live = live;
    this.place(body);
  }

  emits(item: Item): boolean {
    return this.#live.emits(item);
  }

  protected onlyUser(node: Node): Item | null {
    const users = this.#live.users.get(node);
    return this.#live.kept.has(node) || users?.length !== 1 ? null : users[0];
  }

  protected mayMove(region: Region, node: Node, from: number, to: number): boolean {
    if (EFFECTFUL.has(node.op)) return false;
    if (!READS.has(node.op)) return true;
    for (let i = from + 1; i < to; i++) {
      const item = region.items[i];
      if (!isNode(item) && this.#live.emits(item) && clobbers(item, node)) return false;
    }
    return true;
  }
}
