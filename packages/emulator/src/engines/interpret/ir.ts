/**
 * What a recorded instruction is: a graph of values, and regions of ordered effects. interpret turns it into handlers; a translator can
 * join many of them.
 *
 * A node stands at its place in its region's list of items. Pure nodes may be emitted later than they stand (at their only use), never
 * earlier. A mutable read (register, flag form, variable) may only move as far as nothing in between writes what it reads.
 */
import type { Size } from '../../builder/builder.ts';
import type { OP } from '../wasm/emitter.ts';
import type { SimdBinary, SimdExtract, SimdReplace, SimdShift, SimdTest, SimdUnary } from '../wasm/simd.ts';

export type NodeType = 'i64' | 'i32' | 'v128';

/** A value's operation: a wasm opcode of the same name, or one of ours. */
export type NodeOp =
  | keyof typeof OP
  /** `k` as a constant of the node's type. */
  | 'const'
  /** Zero-extends the low 32 bits. */
  | 'zext32'
  /** (condition, then, else). */
  | 'select64'
  | 'select32'
  /** Record fields. `disp` and `imm` are signed 64-bit, `segment` and `regAddress` (field `k`) are i32. */
  | 'imm'
  | 'imm2'
  | 'disp'
  | 'scale'
  | 'segment'
  | 'regAddress'
  /** RIP behind / of this instruction, not yet truncated. */
  | 'nextRip'
  | 'rip'
  /** Mutable reads: register (address argument or absolute `k`), variable, lazy flags, RFLAGS without arithmetic flags. */
  | 'reg'
  | 'var'
  | 'flagResult'
  | 'flagAux'
  | 'rflags'
  /** Base of segment `k`; does not change while generated code runs. */
  | 'segmentBase'
  /** Shared subroutines. */
  | 'div128'
  | 'mulHighU'
  | 'mulHighS'
  /** WebAssembly's vector instructions by name; lane numbers are `k`. */
  | SimdUnary
  | SimdBinary
  | SimdShift
  | SimdTest
  | SimdExtract
  | SimdReplace
  /** (a, b), the byte numbers are the bytes of `k`, lowest first. */
  | 'shuffle'
  | 'bitselect'
  /** `k` is 128 bits. */
  | 'vconst'
  /** An i64 as a number in every lane; lane 0 as a saturated i64. */
  | 'f64x2FromI64'
  | 'f32x4FromI64'
  | 'i64FromF64x2'
  | 'i64FromF32x4'
  /** Mutable read of the state block at a computed distance (i32) from `k` (in regions). */
  | 'field'
  /** Mutable read of 16 bytes of the state block: (address or none), absolute `k`. */
  | 'vector'
  /** Effects with a value. `block` (source or value, destination, count) gives iterations done; `k`: block-moves.ts. */
  | 'block'
  | 'load'
  | 'load128'
  | 'linear';

export interface Variable {
  readonly id: number;
  version: number;
}

export interface MemoryAccess {
  size: Size | 16;
  /** Static segment number, or 'operand': the record's. */
  seg: number | 'operand';
  forWrite: boolean;
  /** Bytes from here to the end of the operand that this is a part of: checked at once. Default: `size`. */
  span?: number;
}

export class Node {
  /** Filled by planning. */
  uses = 0;
  users: (Node | Effect)[] = [];
  live = false;
  constructor(
    readonly op: NodeOp,
    readonly type: NodeType,
    readonly args: readonly Node[],
    readonly k: bigint,
    /** Size of a register, or of an access. */
    readonly size: Size,
    readonly region: Region,
    /** Upper bound of the number of low bits that may be set. */
    readonly bits: number,
    readonly variable?: Variable,
    readonly access?: MemoryAccess,
  ) {}
}

export type Effect = EffectBody & { region: Region; live?: boolean };
export type EffectBody =
  /** Loads and checked linear addresses are nodes in the item list; they need no effect of their own. */
  | { kind: 'setReg'; address: Node | null; k: bigint; size: Size; value: Node }
  | { kind: 'store'; linear: Node; value: Node; access: MemoryAccess; reuse: Node | null }
  | { kind: 'setVector'; address: Node | null; k: bigint; value: Node }
  | { kind: 'store128'; linear: Node; value: Node; access: MemoryAccess }
  | { kind: 'probe'; linear: Node; access: MemoryAccess }
  | { kind: 'flags'; result: Node | null; aux: Node | null }
  | { kind: 'setRflags'; value: Node }
  | { kind: 'setVar'; variable: Variable; value: Node }
  | { kind: 'when'; condition: Node; yes: Region; otherwise: Region | null }
  | { kind: 'loop'; body: Region }
  /** Last item of a loop's body. */
  | { kind: 'loopEnd'; condition: Node }
  | { kind: 'raiseWhen'; condition: Node | null; vector: number; hasErrorCode: boolean; errorCode: Node | null }
  /** #GP(0) unless RIP may become `target`. Direct ones are safe when their record is linked. */
  | { kind: 'checkTarget'; target: Node; direct: boolean }
  | { kind: 'jump'; condition: Node | null; target: Node; direct: boolean; check: boolean }
  | { kind: 'repeat'; condition: Node }
  /** Iterations of this record at once (`how`: block-moves.ts), if there are any; then this record again. */
  | { kind: 'block'; how: number; seg: number | 'operand' }
  /** So many ticks more (in regions). */
  | { kind: 'spend'; ticks: Node }
  /** The state block at a computed distance (i32) from `k` (in regions). */
  | { kind: 'setField'; address: Node; k: bigint; size: 2 | 8; value: Node }
  | { kind: 'handBack'; condition: Node }
  /** Leaves behind the instruction, at `next`; the one after it is in an interrupt shadow. */
  | { kind: 'shadowed'; next: Node }
  /** Goes on at `next` in the TLB context and by the code key that now stand in the engine's slots. */
  | { kind: 'recontext'; next: Node }
  /** Go on with the next record (fused handlers, regions). `leaves`: a region may be left there. */
  | { kind: 'advance'; leaves: boolean };

export type Item = Node | Effect;

export class Region {
  readonly items: Item[] = [];
  /** Pure nodes of this region by key, for sharing. */
  readonly shared = new Map<string, Node>();
  constructor(
    readonly parent: Region | null,
    readonly loops: number,
  ) {}

  contains(inner: Region): boolean {
    for (let r: Region | null = inner; r; r = r.parent) if (r === this) return true;
    return false;
  }
}

/** What planning and the predecoder want to know of a recording. */
export interface Facts {
  /** Reads any arithmetic flag (also: keeps some while setting others). */
  readsFlags: boolean;
  /** Sets all six on every path. */
  setsAllFlags: boolean;
  setsFlags: boolean;
  /** Reads a flag that it has set itself, so that its flag updates can't be left out. */
  readsOwnFlags: boolean;
  usesVendor: boolean;
  /** May go back to JavaScript, which then wants the decoded instruction. */
  mayHandBack: boolean;
  /** May fault, or end the run of records. */
  mayLeave: boolean;
}

const FACTS = [
  'readsFlags',
  'setsAllFlags',
  'setsFlags',
  'readsOwnFlags',
  'usesVendor',
  'mayHandBack',
  'mayLeave',
] as const satisfies readonly (keyof Facts)[];
/** Facts as two hexadecimal digits. */
export const packFacts = (facts: Facts): string =>
  FACTS.reduce((bits, name, i) => bits | (facts[name] ? 1 << i : 0), 0)
    .toString(16)
    .padStart(2, '0');
/** The facts at a place of many that were packed. */
export function unpackFacts(packed: string, place: number): Facts {
  const bits = Number.parseInt(packed.slice(2 * place, 2 * place + 2), 16);
  return Object.fromEntries(FACTS.map((name, i) => [name, (bits & (1 << i)) !== 0])) as Record<keyof Facts, boolean>;
}

export interface Recording {
  readonly body: Region;
  readonly facts: Facts;
}

export const isNode = (item: Item): item is Node => item instanceof Node;

/** Reads that a write may change. */
export const MUTABLE: ReadonlySet<NodeOp> = new Set([
  'reg',
  'field',
  'vector',
  'var',
  'flagResult',
  'flagAux',
  'rflags',
]);
/** Nodes that must stay where they stand. */
export const EFFECTFUL: ReadonlySet<NodeOp> = new Set(['load', 'load128', 'linear', 'block']);

/** Regions inside an effect. */
export function innerRegions(effect: Effect): Region[] {
  if (effect.kind === 'when') return effect.otherwise ? [effect.yes, effect.otherwise] : [effect.yes];
  return effect.kind === 'loop' ? [effect.body] : [];
}

/** Nodes that an effect uses directly. */
export function effectArgs(effect: Effect): Node[] {
  switch (effect.kind) {
    case 'setReg':
    case 'setVector':
      return effect.address ? [effect.value, effect.address] : [effect.value];
    case 'store':
    case 'store128':
      return [effect.linear, effect.value];
    case 'probe':
      return [effect.linear];
    case 'flags':
      return [effect.result, effect.aux].filter((n) => n !== null);
    case 'setRflags':
    case 'setVar':
      return [effect.value];
    case 'when':
    case 'loopEnd':
    case 'repeat':
    case 'handBack':
      return [effect.condition];
    case 'shadowed':
    case 'recontext':
      return [effect.next];
    case 'spend':
      return [effect.ticks];
    case 'setField':
      return [effect.address, effect.value];
    case 'raiseWhen':
      return [effect.condition, effect.errorCode].filter((n) => n !== null);
    case 'checkTarget':
      return [effect.target];
    case 'jump':
      return effect.condition ? [effect.condition, effect.target] : [effect.target];
    case 'loop':
    case 'advance':
    case 'block':
      return [];
  }
}

/** Does the effect (with all inside) write what the node reads? */
export function clobbers(effect: Effect, node: Node): boolean {
  switch (effect.kind) {
    case 'setReg':
      return node.op === 'reg';
    case 'setVector':
      return node.op === 'vector';
    case 'flags':
      return (node.op === 'flagResult' && effect.result !== null) || (node.op === 'flagAux' && effect.aux !== null);
    case 'setRflags':
      return node.op === 'rflags' || node.op === 'reg';
    case 'setVar':
      return node.op === 'var' && node.variable === effect.variable;
    case 'advance':
      return true;
    case 'when':
    case 'loop':
      return innerRegions(effect).some((r) => r.items.some((i) => !isNode(i) && clobbers(i, node)));
    default:
      return false;
  }
}

/** Reads of the record change with `advance`. */
export const RECORD_READS: ReadonlySet<NodeOp> = new Set([
  'imm',
  'imm2',
  'disp',
  'scale',
  'segment',
  'regAddress',
  'nextRip',
  'rip',
]);

/**
 * Where every live value is computed: in a local at its own place, or with its only user if nothing in between changes what it reads.
 * Both emitters place so; what is emitted, who uses a node and what may pass it is theirs.
 */
export abstract class Placing {
  /** Nodes that are computed with their only user. */
  readonly inlined = new Set<Node>();
  readonly #position = new Map<Item, number>();

  /** Is the item emitted at all? */
  abstract emits(item: Item): boolean;
  /** The node's user, if it has one only and needs no local for itself; else null. */
  protected abstract onlyUser(node: Node): Item | null;
  /** May the node, item `from` of its region, be computed where item `to` stands? */
  protected abstract mayMove(region: Region, node: Node, from: number, to: number): boolean;

  protected place(region: Region): void {
    for (let i = region.items.length - 1; i >= 0; i--) {
      const item = region.items[i];
      if (!this.emits(item)) continue;
      this.#position.set(item, i);
      if (isNode(item)) this.#tryInline(region, item, i);
      else for (const inner of innerRegions(item)) this.place(inner);
    }
  }

  #tryInline(region: Region, node: Node, at: number): void {
    if (node.op === 'const') {
      this.inlined.add(node);
      return;
    }
    const user = this.onlyUser(node);
    if (user === null || user.region !== region) return;
    const to = this.#position.get(user);
    if (to === undefined || !this.mayMove(region, node, at, to)) return;
    this.inlined.add(node);
    this.#position.set(node, to);
  }
}

/** The placement of one instruction's recording. `dropFlags` removes flag updates first (a later instruction overwrites them). */
export class Plan extends Placing {
  readonly #dropFlags: boolean;

  constructor(
    readonly body: Region,
    dropFlags: boolean,
  ) {
    super();
    this.#dropFlags = dropFlags;
    this.#mark(body);
    this.place(body);
  }

  /** Is the item emitted at all? */
  emits(item: Item): boolean {
    return isNode(item) ? item.live : item.live === true;
  }

  #mark(region: Region): boolean {
    let any = false;
    region.items.forEach((item) => {
      if (isNode(item)) {
        // A load whose value nobody wants still faults.
        if (EFFECTFUL.has(item.op)) {
          any = true;
          this.#use(item);
        }
        return;
      }
      item.live = !(this.#dropFlags && item.kind === 'flags');
      if (item.kind === 'when' || item.kind === 'loop') {
        const inside = innerRegions(item).map((r) => this.#mark(r));
        item.live = item.kind === 'loop' || inside.some((x) => x);
      }
      if (!item.live) return;
      any = true;
      for (const arg of effectArgs(item)) this.#useBy(arg, item);
    });
    return any;
  }

  #useBy(node: Node, user: Item): void {
    this.#use(node);
    node.uses++;
    node.users.push(user);
  }
  #use(node: Node): void {
    if (node.live) return;
    node.live = true;
    for (const arg of node.args) this.#useBy(arg, node);
  }

  protected onlyUser(node: Node): Item | null {
    return node.uses === 1 ? node.users[0] : null;
  }

  protected mayMove(region: Region, node: Node, from: number, to: number): boolean {
    const ordered = EFFECTFUL.has(node.op);
    const mutable = MUTABLE.has(node.op);
    const record = RECORD_READS.has(node.op);
    if (!ordered && !mutable && !record) return true;
    for (let i = from + 1; i < to; i++) {
      const item = region.items[i];
      if (!this.emits(item)) continue;
      if (isNode(item)) {
        if (ordered && EFFECTFUL.has(item.op)) return false;
      } else if (ordered || (mutable && clobbers(item, node)) || (record && item.kind === 'advance')) {
        return false;
      }
    }
    return true;
  }
}
