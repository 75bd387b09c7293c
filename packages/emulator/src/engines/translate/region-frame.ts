/**
 * What a region's function keeps in locals: registers, flags, the TLB context, limits and bases of segments; loaded where it is entered,
 * stored where it is left.
 * Layout: state-layout.ts, memory/layout.ts.
 */
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import { type Effect, type Region as IrRegion, innerRegions, isNode, type MemoryAccess } from '../interpret/ir.ts';
import { P } from '../interpret/records.ts';
import { vectorMem } from '../interpret/vector-emit.ts';
import { type Code, I32, I64, MEM, OP, V128, type ValType } from '../wasm/emitter.ts';
import { V128_LOAD, V128_STORE } from '../wasm/simd.ts';
import { CARRY } from './liveness.ts';
import { pageOffsets, type Region } from './region.ts';
import { addressOf, gprAt, type Machine, vectorAt } from './values.ts';
import { LOAD_WORD, STORE_WORD, wordOf } from './words.ts';

/** Functions of the main module that regions call, in the order of their imports. */
export const REGION_HELPERS = ['div128', 'mulHighU', 'mulHighS', 'block'] as const;

export const PARAM = { pageBase: 1, left: 2, slot: 3 } as const;
const PARAMS = 4;
const VECTORS = Layout.state + S.ymm;
/** Segment types that may be read (data that expands up, readable code) and written (data that expands up). */
const READABLE = 0xcc0f;
const WRITABLE = 0x000c;

export interface RegionMode {
  /** 64-bit code. */
  long: boolean;
  /** No target of a near branch can be beyond the code segment's limit. */
  flatCode: boolean;
  /** Address of a u32 that counts entries; null: nobody wants to know. */
  counter: number | null;
  /** The last offset in the code segment before direct branches wrap; null in 64-bit code. */
  lastOffset: bigint | null;
}

/** Locals that a block has taken for its values. */
type Taken = { local: number; type: ValType }[];

export class RegionFrame implements Machine {
  readonly word: ValType;
  readonly base: number;
  readonly result: number;
  readonly aux: number;
  readonly context: number;
  readonly hash: number;
  readonly rip: number;
  readonly state: number;
  /** Types of the locals behind the parameters. */
  readonly locals: ValType[] = [];
  /** Limits (-1: no access) and bases of segments that are checked. */
  readonly limits = new Map<number, number>();
  readonly bases = new Map<number, number>();
  /** By page: a local that says whether the page's mapping was checked. Empty where there is only the first page. */
  readonly checked = new Map<number, number>();
  readonly #region: Region;
  readonly #mode: RegionMode;
  readonly #firstSlot: number;
  readonly #registers = new Map<number, number>();
  readonly #written = new Set<number>();
  /** Halves of vector registers. */
  readonly #vectors = new Map<number, number>();
  readonly #writtenVectors = new Set<number>();
  readonly #variables = new Map<number, number>();
  /** Variables that stand for words of the state block, and were written. */
  readonly #writtenWords = new Set<number>();
  /** Locals of values, free again in the next block. */
  readonly #pool: Record<ValType, number[]> = { [I32]: [], [I64]: [], [V128]: [] };
  #taken: Taken = [];

  /**
   * @param firstSlot slot of the region's first entry; the others follow
   * @param bodies what was recorded of the region's blocks
   */
  constructor(region: Region, mode: RegionMode, firstSlot: number, bodies: readonly IrRegion[]) {
    this.#region = region;
    this.#mode = mode;
    this.#firstSlot = firstSlot;
    this.word = mode.long ? I64 : I32;
    this.base = this.local(I64);
    this.result = this.local(I64);
    this.aux = this.local(I64);
    this.context = this.local(I64);
    this.hash = this.local(I32);
    this.rip = this.local(I64);
    this.state = this.local(I32);
    const pages = pageOffsets(region);
    if (pages.size > 1 || !pages.has(0)) for (const page of pages) this.checked.set(page, this.local(I32));
    this.#findRegisters(bodies);
  }

  // ---- locals

  local(type: ValType): number {
    this.locals.push(type);
    return PARAMS + this.locals.length - 1;
  }
  acquire(type: ValType): number {
    const local = this.#pool[type].pop() ?? this.local(type);
    this.#taken.push({ local, type });
    return local;
  }
  /** `work` with locals of its own: those of a block around it are left alone. */
  apart(work: () => void): void {
    const outer = this.#taken;
    this.#taken = [];
    work();
    for (const { local, type } of this.#taken) this.#pool[type].push(local);
    this.#taken = outer;
  }
  register(number: number): number {
    return this.#registers.get(number)!;
  }
  vector(number: number): number {
    let local = this.#vectors.get(number);
    if (local === undefined) this.#vectors.set(number, (local = this.local(V128)));
    return local;
  }
  variable(id: number): number {
    let local = this.#variables.get(id);
    if (local === undefined) this.#variables.set(id, (local = this.local(I64)));
    return local;
  }
  /** The variable is stored where the region is left. */
  writesWord(id: number): void {
    if (wordOf(id) !== undefined) this.#writtenWords.add(id);
  }
  helper(name: (typeof REGION_HELPERS)[number]): number {
    return REGION_HELPERS.indexOf(name);
  }

  /** Every way on needs as many ticks as the region has instructions at most. */
  spare(code: Code): void {
    code.get(PARAM.left).i32(this.#region.instructionCount).op(OP.i32Sub);
  }

  // ---- what the blocks use

  #findRegisters(bodies: readonly IrRegion[]): void {
    const note = (address: number): number | null => {
      const gpr = gprAt(address);
      if (gpr === null) return null;
      if (!this.#registers.has(gpr.number)) this.#registers.set(gpr.number, this.local(this.word));
      return gpr.number;
    };
    const visit = (region: IrRegion): void => {
      for (const item of region.items) {
        if (isNode(item)) {
          if (item.op === 'reg') note(addressOf(item.args[0] ?? null, item.k));
          if (item.op === 'vector') this.vector(vectorAt(addressOf(item.args[0] ?? null, item.k)));
          if (item.op === 'linear') this.#noteSegment(item.access!);
          continue;
        }
        if (item.kind === 'setVector') this.#writtenVectors.add(this.vectorOf(item));
        if (item.kind === 'setReg') this.#written.add(note(addressOf(item.address, item.k))!);
        for (const inner of innerRegions(item)) visit(inner);
      }
    };
    for (const body of bodies) visit(body);
  }
  vectorOf({ address, k }: Effect & { kind: 'setVector' }): number {
    const number = vectorAt(addressOf(address, k));
    this.vector(number);
    return number;
  }
  #noteSegment(access: MemoryAccess): void {
    const seg = access.seg as number;
    const key = seg * 2 + (access.forWrite ? 1 : 0);
    if (!this.limits.has(key)) this.limits.set(key, this.local(I64));
    if (!this.bases.has(seg)) this.bases.set(seg, this.local(I32));
  }

  // ---- entering

  prologue(code: Code): void {
    code.get(PARAM.left).i32(this.#region.instructionCount).op(OP.i32LtS).if();
    code.get(PARAM.left).op(OP.return).end();
    const { counter } = this.#mode;
    if (counter !== null) {
      code.i32(0).i32(0).mem(MEM.i32Load, counter);
      code.i32(1).op(OP.i32Add).mem(MEM.i32Store, counter);
    }
    if (this.word === I32) this.#requireLowRegisters(code);
    code.i32(0).mem(MEM.i64Load, P.context).set(this.context);
    code.i32(0).mem(MEM.i32Load, P.contextHash).set(this.hash);
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.lazyResult)
      .set(this.result);
    code
      .i32(0)
      .mem(MEM.i64Load, Layout.state + S.lazyAux)
      .set(this.aux);
    const carry = this.#variables.get(CARRY.id);
    if (carry !== undefined) code.get(this.aux).i64(63n).op(OP.i64ShrU).set(carry);
    for (const [id, local] of this.#variables) {
      const word = wordOf(id);
      if (word !== undefined)
        code
          .i32(0)
          .mem(LOAD_WORD[word.size], Layout.state + word.offset)
          .set(local);
    }
    for (const [number, local] of this.#registers) {
      const opcode = this.word === I64 ? MEM.i64Load : MEM.i32Load;
      code
        .i32(0)
        .mem(opcode, Layout.state + S.gpr + number * 8)
        .set(local);
    }
    for (const [number, local] of this.#vectors) {
      vectorMem(code.i32(0), V128_LOAD, VECTORS + number * 16).set(local);
    }
    for (const [key, local] of this.limits) this.#loadLimit(code, key, local);
    for (const [seg, local] of this.bases) {
      code
        .i32(0)
        .mem(MEM.i32Load, Layout.state + S.segments + seg * 16 + 8)
        .set(local);
    }
    code.get(PARAM.slot).i32(this.#firstSlot).op(OP.i32Sub).set(this.state);
    this.#enterPage(code);
    if (this.#mode.lastOffset !== null) this.#requireReach(code, this.#mode.lastOffset);
  }
  /** Where a branch of the region would wrap at either end of the code segment, the region is not for that place. */
  #requireReach(code: Code, last: bigint): void {
    const instructions = this.#region.blocks.flatMap((block) => block.instructions);
    const offsets = instructions.flatMap(({ ending, next, target }) =>
      ending === 'jcc' || ending === 'jmp' || ending === 'call' ? [next, target] : [next],
    );
    const [low, high] = [Math.min(...offsets), Math.max(...offsets)];
    code.get(this.base).i64(BigInt(low)).op(OP.i64Add);
    code.i64(0n).op(OP.i64LtS);
    code.get(this.base).i64(BigInt(high)).op(OP.i64Add);
    code.i64(last).op(OP.i64GtS).op(OP.i32Or).if();
    code.get(PARAM.left).op(OP.return).end();
  }
  /** RIP comes relative to the page that is entered. */
  #enterPage(code: Code): void {
    code.get(PARAM.pageBase).set(this.base);
    if (this.checked.size === 0) return;
    this.#region.entries.forEach((at, state) => {
      const { page } = this.#region.blockAt.get(at)!.instructions[0];
      code.get(this.state).i32(state).op(OP.i32Eq).if();
      code.get(PARAM.pageBase).i64(BigInt(page)).op(OP.i64Sub).set(this.base);
      code.i32(1).set(this.checked.get(page)!).end();
    });
  }
  /** Outside 64-bit code upper halves are kept as zeros only. */
  #requireLowRegisters(code: Code): void {
    if (this.#written.size === 0) return;
    code.i32(0);
    for (const number of this.#written) {
      code
        .i32(0)
        .mem(MEM.i32Load, Layout.state + S.gpr + number * 8 + 4)
        .op(OP.i32Or);
    }
    code.if();
    code.get(PARAM.left).op(OP.return).end();
  }
  #loadLimit(code: Code, key: number, local: number): void {
    const slot = Layout.state + S.segments + (key >> 1) * 16;
    const attrib = this.state;
    code
      .i32(0)
      .mem(MEM.i64Load32U, slot + 4)
      .i64(-1n);
    code
      .i32(0)
      .mem(MEM.i32Load16U, slot + 2)
      .tee(attrib)
      .i32(0x8090)
      .op(OP.i32And)
      .i32(0x90)
      .op(OP.i32Eq);
    code
      .i32(key & 1 ? WRITABLE : READABLE)
      .get(attrib)
      .i32(15)
      .op(OP.i32And)
      .op(OP.i32ShrU)
      .op(OP.i32And);
    code.op(OP.select).set(local);
  }

  // ---- leaving

  /** Stores everything that the region may have changed. */
  epilogue(code: Code): void {
    for (const number of this.#written) {
      code.i32(0).get(this.register(number));
      code.mem(this.word === I64 ? MEM.i64Store : MEM.i32Store, Layout.state + S.gpr + number * 8);
    }
    for (const number of this.#writtenVectors) {
      vectorMem(code.i32(0).get(this.vector(number)), V128_STORE, VECTORS + number * 16);
    }
    for (const id of this.#writtenWords) {
      const { offset, size } = wordOf(id)!;
      code
        .i32(0)
        .get(this.variable(id))
        .mem(STORE_WORD[size], Layout.state + offset);
    }
    const stores = [
      [this.rip, S.rip],
      [this.result, S.lazyResult],
      [this.aux, S.lazyAux],
    ];
    for (const [local, offset] of stores)
      code
        .i32(0)
        .get(local)
        .mem(MEM.i64Store, Layout.state + offset);
    code.get(PARAM.left);
  }
}
