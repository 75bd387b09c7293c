/**
 * Loads, stores and the mappings of code pages in a region: the TLB inline, the region is left where it does not answer.
 * TLB: memory/layout.ts; segments: APM vol. 2 section 4.12.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { PAGE } from '../../memory/physical.ts';
import { type Effect, type Region as IrRegion, isNode, type Node } from '../interpret/ir.ts';
import { P } from '../interpret/records.ts';
import { type Code, I32, I64, type Label, MEM, OP, type ValType } from '../wasm/emitter.ts';
import type { Region } from './region.ts';
import type { RegionFrame } from './region-frame.ts';
import type { Values } from './values.ts';

const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;
const LOAD: Record<number, number> = { 1: MEM.i32Load8U, 2: MEM.i32Load16U, 4: MEM.i32Load, 8: MEM.i64Load };
export const STORE: Record<number, number> = { 1: MEM.i32Store8, 2: MEM.i32Store16, 4: MEM.i32Store, 8: MEM.i64Store };

/** An address as a sum: accesses of a block that differ in `disp` only mostly lie in one page. */
interface Sum {
  root: Node;
  /** Only the low 32 bits count. */
  masked: boolean;
  disp: bigint;
}
function sumOf(node: Node): Sum {
  const masked = node.op === 'zext32';
  const sum = masked ? node.args[0] : node;
  const [root, disp] = sum.args;
  if (sum.op === 'i64Add' && disp.op === 'const') return { root, masked, disp: disp.k };
  return { root: sum, masked, disp: 0n };
}

/** Accesses of a block around one address. */
interface Group {
  count: number;
  writes: boolean;
  /** Of the one that was emitted first: its address, and locals of its linear address and its offset in linear memory. */
  first: { sum: Sum; linear: number; type: ValType; host: number; writable: boolean } | null;
}
type Groups = Map<Node, Group>;

/** The linear address that an item of a block accesses. */
function accessOf(item: Node | Effect): { linear: Node; write: boolean } | null {
  if (isNode(item)) {
    const load = item.op === 'load' || item.op === 'load128';
    return load ? { linear: item.args[0], write: item.access!.forWrite } : null;
  }
  const { kind } = item;
  return kind === 'store' || kind === 'store128' || kind === 'probe' ? { linear: item.linear, write: true } : null;
}
function groupsOf(body: IrRegion): Groups {
  const groups: Groups = new Map();
  for (const item of body.items) {
    const access = accessOf(item);
    if (access === null) continue;
    const { root } = sumOf(access.linear);
    const group = groups.get(root) ?? { count: 0, writes: false, first: null };
    group.count++;
    group.writes ||= access.write;
    groups.set(root, group);
  }
  return groups;
}

export class RegionMemory {
  readonly #code: Code;
  readonly #frame: RegionFrame;
  readonly #values: Values;
  readonly #region: Region;
  /** Label of the exit in front of the instruction at hand. */
  readonly #leave: () => Label;
  /** Where read-modify-write loads left their offsets. */
  readonly #hosts = new Map<Node, number>();
  #groups: Groups = new Map();
  /** Inside what is done on a condition: what is found out there holds there only. */
  #aside = false;

  constructor(code: Code, frame: RegionFrame, values: Values, region: Region, leave: () => Label) {
    this.#code = code;
    this.#frame = frame;
    this.#values = values;
    this.#region = region;
    this.#leave = leave;
  }

  /** A linear address in a local. */
  #address(node: Node): { local: number; type: ValType } {
    const type = this.#values.typeOf(node);
    const local = this.#frame.acquire(type);
    this.#values.push(node, type);
    this.#code.set(local);
    return { local, type };
  }
  /** `work` on a block. */
  within(body: IrRegion, work: () => void): void {
    const outer = this.#groups;
    this.#groups = groupsOf(body);
    work();
    this.#groups = outer;
  }
  aside(work: () => void): void {
    const outer = this.#aside;
    this.#aside = true;
    work();
    this.#aside = outer;
  }

  /** Leaves the region unless the TLB has the address; pushes the offset in linear memory. */
  translate(node: Node, size: number, tag: number): void {
    const sum = sumOf(node);
    const group = this.#groups.get(sum.root);
    if (group === undefined || group.count < 2) {
      this.#lookUp(node, size, tag);
      return;
    }
    const { first } = group;
    if (first === null || first.sum.masked !== sum.masked) this.#lookUpFirst(node, sum, size, tag, group);
    else {
      const distance = Number(sum.disp - first.sum.disp);
      const useful = Math.abs(distance) < PAGE && (first.writable || tag === TlbEntry.tagRead);
      if (useful) this.#besideFirst(first, distance, size, () => this.#lookUp(node, size, tag));
      else this.#lookUp(node, size, tag);
    }
  }
  /** Asks for the right to write at once, if it will be wanted. */
  #lookUpFirst(node: Node, sum: Sum, size: number, tag: number, group: Group): void {
    if (this.#aside || group.first !== null) {
      this.#lookUp(node, size, tag);
      return;
    }
    const writable = group.writes || tag === TlbEntry.tagWrite;
    const { local, type } = this.#lookUp(node, size, writable ? TlbEntry.tagWrite : tag);
    const host = this.#frame.acquire(I32);
    this.#code.tee(host);
    group.first = { sum, linear: local, type, host, writable };
  }
  /** So many bytes behind the group's first access: in the same page, or looked up. */
  #besideFirst(first: Group['first'] & object, distance: number, size: number, lookUp: () => void): void {
    const code = this.#code;
    code.get(first.linear);
    if (first.type === I64) code.op(OP.i32WrapI64);
    code
      .i32(PAGE - 1)
      .op(OP.i32And)
      .i32(distance)
      .op(OP.i32Add)
      .i32(PAGE - size)
      .op(OP.i32LeU)
      .if(I32);
    code.get(first.host).i32(distance).op(OP.i32Add).else();
    lookUp();
    code.end();
  }
  #lookUp(node: Node, size: number, tag: number): { local: number; type: ValType } {
    const code = this.#code;
    const { local, type } = this.#address(node);
    const entry = this.#frame.acquire(I32);
    code.get(local);
    if (type === I64) code.i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
    else code.i32(7).op(OP.i32ShrU);
    code.get(this.#frame.hash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And);
    code.tee(entry).mem(MEM.i64Load, Layout.tlb + tag);
    code.get(local);
    if (type === I64) {
      if (size > 1) code.i64(BigInt(size - 1)).op(OP.i64Add);
      code.i64(-4096n).op(OP.i64And);
    } else {
      if (size > 1) code.i32(size - 1).op(OP.i32Add);
      code.i32(-4096).op(OP.i32And).op(OP.i64ExtendI32U);
    }
    code.get(this.#frame.context).op(OP.i64Or).op(OP.i64Ne).brIf(this.#leave());
    code.get(local);
    if (type === I64) code.op(OP.i32WrapI64);
    code
      .get(entry)
      .mem(MEM.i32Load, Layout.tlb + TlbEntry.addend)
      .op(OP.i32Add);
    return { local, type };
  }
  load(node: Node): void {
    const code = this.#code;
    const { size, forWrite } = node.access!;
    this.translate(node.args[0], size, forWrite ? TlbEntry.tagWrite : TlbEntry.tagRead);
    if (forWrite) {
      const host = this.#frame.acquire(I32);
      code.tee(host);
      this.#hosts.set(node, host);
    }
    code.mem(LOAD[size], 0);
  }
  store({ linear, value, access, reuse }: Effect & { kind: 'store' }): void {
    const code = this.#code;
    const host = reuse === null ? undefined : this.#hosts.get(reuse);
    if (host === undefined) this.translate(linear, access.size, TlbEntry.tagWrite);
    else code.get(host);
    this.#values.push(value, access.size === 8 ? I64 : I32);
    code.mem(STORE[access.size], 0);
  }
  checkedLinear(node: Node): void {
    const code = this.#code;
    const { seg, size, forWrite } = node.access!;
    const offset = node.args[0];
    this.#values.push(offset, I64);
    code.i64(BigInt(size - 1)).op(OP.i64Add);
    code
      .get(this.#frame.limits.get((seg as number) * 2 + (forWrite ? 1 : 0))!)
      .op(OP.i64GtS)
      .brIf(this.#leave());
    this.#values.push(offset, I32);
    code.get(this.#frame.bases.get(seg as number)!).op(OP.i32Add);
  }

  /** Leaves by a label unless a page of the region is still mapped where it was. */
  requirePage(page: number, otherwise: () => Label): void {
    const checked = this.#frame.checked.get(page);
    if (checked === undefined) return;
    const code = this.#code;
    const label = otherwise();
    const linear = this.#frame.acquire(I64);
    const entry = this.#frame.acquire(I32);
    code.get(checked).op(OP.i32Eqz).if();
    code.get(this.#frame.base).i64(BigInt(page)).op(OP.i64Add);
    if (this.#frame.word === I32) {
      code.tee(linear).i64(0xfffn).op(OP.i64Add);
      code.i32(0).mem(MEM.i64Load, P.codeLimit).op(OP.i64GtU).brIf(label);
      code.get(linear).i32(0).mem(MEM.i64Load, P.codeBase).op(OP.i64Add).i64(0xffffffffn).op(OP.i64And);
    }
    code
      .tee(linear)
      .i64(7n)
      .op(OP.i64ShrU)
      .op(OP.i32WrapI64)
      .get(this.#frame.hash)
      .op(OP.i32Xor)
      .i32(TLB_MASK)
      .op(OP.i32And);
    code.tee(entry).mem(MEM.i64Load, Layout.tlb + TlbEntry.tagExec);
    code.get(linear).get(this.#frame.context).op(OP.i64Or).op(OP.i64Ne).brIf(label);
    const host = this.#region.pages.get(page / PAGE)!.hostPage * PAGE;
    code
      .get(entry)
      .mem(MEM.i32Load, Layout.tlb + TlbEntry.infoExec)
      .i32(-PAGE)
      .op(OP.i32And);
    code
      .i32(host | 0)
      .op(OP.i32Ne)
      .brIf(label);
    code.i32(1).set(checked).end();
  }
}
