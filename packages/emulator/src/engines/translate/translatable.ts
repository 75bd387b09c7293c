/**
 * Which forms a region may contain: those that only touch registers, flags and memory, and whose effects come behind all that may fault.
 */
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import type { Form } from '../interpret/form.ts';
import type { FormInfo } from '../interpret/handlers.ts';
import { EFFECTFUL, type Effect, innerRegions, isNode, type Node, type NodeOp, type Region } from '../interpret/ir.ts';
import { recordForms } from '../interpret/operation.ts';
import { VECTOR_OPS } from '../interpret/vector-emit.ts';

const OPS: ReadonlySet<NodeOp> = new Set<NodeOp>([
  'const',
  'zext32',
  'select64',
  'select32',
  'imm',
  'imm2',
  'disp',
  'scale',
  'segment',
  'regAddress',
  'nextRip',
  'rip',
  'reg',
  'var',
  'flagResult',
  'flagAux',
  'rflags',
  'segmentBase',
  'div128',
  'mulHighU',
  'mulHighS',
  'load',
  'linear',
  'i32Eqz',
  'i32And',
  'i32Or',
  'i32Xor',
  'i32WrapI64',
  'i64Eqz',
  'i64Eq',
  'i64Ne',
  'i64LtS',
  'i64LtU',
  'i64LeS',
  'i64LeU',
  'i64Clz',
  'i64Ctz',
  'i64Popcnt',
  'i64Add',
  'i64Sub',
  'i64Mul',
  'i64DivS',
  'i64DivU',
  'i64RemS',
  'i64RemU',
  'i64And',
  'i64Or',
  'i64Xor',
  'i64Shl',
  'i64ShrS',
  'i64ShrU',
  'i64Rotl',
  'i64Rotr',
  'i64ExtendI32U',
  'i64Extend8S',
  'i64Extend16S',
  'i64Extend32S',
  'vector',
  'load128',
  ...VECTOR_OPS,
]);
const EFFECTS: ReadonlySet<Effect['kind']> = new Set<Effect['kind']>([
  'setReg',
  'store',
  'probe',
  'flags',
  'setRflags',
  'setVar',
  'when',
  'raiseWhen',
  'checkTarget',
  'jump',
  'setVector',
  'store128',
  'handBack',
]);
/** Effects that can't be taken back. */
const COMMITS: ReadonlySet<Effect['kind']> = new Set<Effect['kind']>([
  'setReg',
  'setVector',
  'flags',
  'setRflags',
  'store',
  'store128',
]);
/** Effects after which the instruction may not have happened. */
const LEAVES: ReadonlySet<Effect['kind']> = new Set<Effect['kind']>([
  'store',
  'store128',
  'probe',
  'raiseWhen',
  'handBack',
  'checkTarget',
]);

const GPR_END = Layout.state + S.gpr + 128;
/** Static register numbers below the end of the general registers; record fields of segment moves name others. */
const isGpr = (node: Node | null, k: bigint): boolean =>
  node === null ? k >= BigInt(Layout.state + S.gpr) && k < BigInt(GPR_END) : k === BigInt(Layout.state);

class Check {
  #committed = false;
  /** Addresses that are known to be writable: a store there goes through. */
  readonly #probed = new Set<Node>();
  ok = true;

  region(region: Region): void {
    for (const item of region.items) {
      if (isNode(item)) this.#node(item);
      else this.#effect(item);
    }
  }
  #node(node: Node): void {
    if (!OPS.has(node.op)) this.ok = false;
    if (EFFECTFUL.has(node.op) && this.#committed) this.ok = false;
  }
  #effect(effect: Effect): void {
    const { kind } = effect;
    if (!EFFECTS.has(kind)) this.ok = false;
    if (kind === 'probe') this.#probed.add(effect.linear);
    const sure = kind === 'store128' && this.#probed.has(effect.linear);
    if (LEAVES.has(kind) && this.#committed && !sure) this.ok = false;
    if (kind === 'jump' && effect.check && !effect.direct && this.#committed) this.ok = false;
    if (kind === 'setReg' && !isGpr(effect.address, effect.k)) this.ok = false;
    if (COMMITS.has(kind)) this.#committed = true;
    for (const inner of innerRegions(effect)) this.region(inner);
  }
}

/** REP MOVS, REP STOS: regions do them by the block. */
const isBlock = ({ mnemonic, rep }: Form): boolean => rep !== 0 && (mnemonic === 'movs' || mnemonic === 'stos');

const known = new WeakMap<FormInfo, boolean>();

/** May a region contain instructions of this form? */
export function isTranslatable(info: FormInfo): boolean {
  let answer = known.get(info);
  if (answer === undefined) {
    // Regions keep the x87 words in variables: a recording for handlers says nothing about them.
    if (isBlock(info.form) || info.form.x87) {
      known.set(info, true);
      return true;
    }
    const check = new Check();
    // What vector instructions and CMPXCHG16B hand back is left to their records; system instructions have effects of their own.
    const checksAlignment = info.form.vector !== undefined || info.form.mnemonic === 'cmpxchg16b';
    const handsBack = info.facts.mayHandBack && !checksAlignment;
    if (!handsBack && info.form.mnemonic !== 'movseg') check.region(recordForms([info.form]).body);
    answer = check.ok && !handsBack && !/seg$/.test(info.form.mnemonic);
    known.set(info, answer);
  }
  return answer;
}
