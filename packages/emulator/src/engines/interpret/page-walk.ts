/**
 * The page walk of generated code: fills a TLB entry where nothing is unusual, as memory/paging.ts and cpu/access.ts would. A missing
 * accessed or dirty bit, a fault, a device, protection keys: JavaScript is asked, before anything was changed.
 * Manual: APM vol. 2 ch. 5 and section 15.25, SDM vol. 3 ch. 4 and section 28.3.
 */
import { Layout, TlbEntry, TlbLinks, WalkWords as W, WalkFlag, WalkKind } from '../../memory/layout.ts';
import { PRIVATE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import { Code, type FuncBody, type FuncType, I32, I64, type Label, MEM, OP, type ValType } from '../wasm/emitter.ts';
import { P } from './records.ts';

const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;
const FRAME = 0x000ffffffffff000n;
const PRESENT_ACCESSED = 0x21n;
const WRITABLE = 2n;
const USER = 4n;
const DIRTY = 0x40n;
const LARGE = 0x80n;
const GLOBAL = 0x100n;
const NO_EXECUTE = 1n << 63n;
/** Bits that legacy PAE reserves in its top entries. */
const PDPTE_RESERVED = 0x1e6n;
/** Address bits below the size of a large page, without PAT. */
const RESERVED_2M = 0x1fe000n;
const RESERVED_1G = 0x3fffe000n;
/** PSE-36 has physical address bits 39:32 in 20:13; bit 21 is reserved. */
const ABOVE_4M = 0x3fe000n;
/** Place of `TlbEntry.info`'s bit that says that writes are permitted. */
const MAY_WRITE_SHIFT = 3;

const type = (params: ValType[], results: ValType[]): FuncType => ({ params, results });
const NESTED = type([I64, I64], [I32]);
const TABLE = type([I64], [I32]);
const FILL = type([I64, I32], [I32]);

const word = (code: Code, address: number): Code => code.i32(0).mem(MEM.i32Load, address);
/** Pops an address. */
const word16 = (code: Code, offset: number): Code => code.mem(MEM.i32Load16U, offset);
const long = (code: Code, address: number): Code => code.i32(0).mem(MEM.i64Load, address);
/** Behind a condition: gives up where it holds. */
const giveUp = (code: Code): Code => {
  code.if();
  return code.i32(0).op(OP.return).end();
};
/** Gives up unless all bits of a mask are set in the local, or if one of them is. */
const requireSet = (code: Code, local: number, mask: () => Code): void => {
  code.get(local);
  mask().op(OP.i64And);
  giveUp(mask().op(OP.i64Ne));
};
const requireClear = (code: Code, local: number, mask: () => Code): void => {
  code.get(local);
  giveUp(mask().op(OP.i64And).i64(0n).op(OP.i64Ne));
};

/** (guest physical address, bits that the leaf must have) → host page | 1 | writable * 2 | executable * 4, or 0. */
function nestedPage(): FuncBody {
  const code = new Code();
  const [gpa, needed, table, shift, entry, page] = [0, 1, 2, 3, 4, 5];
  const tooHigh = (local: number): Code => giveUp(word(code.get(local), W.lastPage).op(OP.i32GtU));
  giveUp(code.get(gpa).i64(48n).op(OP.i64ShrU).i64(0n).op(OP.i64Ne));
  word(code, W.nestedRoot).set(table);
  tooHigh(table);
  code.i64(39n).set(shift);
  const leaf = code.block();
  const down = code.loop();
  code.get(table).get(gpa).get(shift).op(OP.i64ShrU).op(OP.i32WrapI64).i32(511).op(OP.i32And).i32(3).op(OP.i32Shl);
  code.op(OP.i32Add).mem(MEM.i64Load, PRIVATE).set(entry);
  code.get(shift).i64(12n).op(OP.i64Eq).brIf(leaf);
  code
    .get(entry)
    .i64(LARGE)
    .op(OP.i64And)
    .i64(0n)
    .op(OP.i64Ne)
    .get(shift)
    .i64(21n)
    .op(OP.i64Eq)
    .op(OP.i32And)
    .brIf(leaf);
  requireSet(code, entry, () => long(code, W.tableSet));
  requireClear(code, entry, () => long(code, W.tableClear));
  code.get(entry).op(OP.i32WrapI64).i32(-4096).op(OP.i32And).set(table);
  tooHigh(table);
  code.get(shift).i64(9n).op(OP.i64Sub).set(shift).br(down).end().end();
  requireSet(code, entry, () => long(code, W.leafSet));
  requireClear(code, entry, () => long(code, W.leafClear));
  requireSet(code, entry, () => code.get(needed));
  word(code, W.types).get(entry).i64(3n).op(OP.i64ShrU).op(OP.i32WrapI64).i32(7).op(OP.i32And).op(OP.i32ShrU);
  giveUp(code.i32(1).op(OP.i32And).op(OP.i32Eqz));
  code.get(entry).op(OP.i32WrapI64).i32(-4096).op(OP.i32And).set(page);
  code.get(shift).i64(21n).op(OP.i64Eq).if();
  requireClear(code, entry, () => long(code, W.largeClear));
  code
    .get(page)
    .i32(-0x200000)
    .op(OP.i32And)
    .get(gpa)
    .op(OP.i32WrapI64)
    .i32(0x1ff000)
    .op(OP.i32And)
    .op(OP.i32Or)
    .set(page);
  code.end();
  tooHigh(page);
  code.get(page).i32(1).op(OP.i32Or);
  long(long(code.get(entry), W.writable).op(OP.i64And), W.writable)
    .op(OP.i64Eq)
    .i32(1)
    .op(OP.i32Shl)
    .op(OP.i32Or);
  long(long(code.get(entry), W.executeFlip).op(OP.i64Xor), W.execute).op(OP.i64And);
  code.i64(0n).op(OP.i64Ne).i32(2).op(OP.i32Shl).op(OP.i32Or);
  return { type: NESTED, locals: [I32, I64, I64, I32], code };
}

/** (guest physical address of a table's entry) → its offset in linear memory, or 0. */
function tableEntry(nested: number): FuncBody {
  const code = new Code();
  const [gpa, slot, page, host] = [0, 1, 2, 3];
  word(code, W.nested).op(OP.i32Eqz).if();
  code.get(gpa).i64(-4096n).op(OP.i64And).i32(0).mem(MEM.i64Load32U, W.lastPage);
  giveUp(code.op(OP.i64GtU));
  code.get(gpa).op(OP.i32WrapI64).i32(PRIVATE).op(OP.i32Add).op(OP.return).end();
  // What is known may have been flushed: whoever notices makes the pages known belong to the present again.
  giveUp(word(word(code, W.epoch), W.tablesEpoch).op(OP.i32Ne));
  giveUp(code.get(gpa).i64(44n).op(OP.i64ShrU).i64(0n).op(OP.i64Ne));
  code.get(gpa).i64(12n).op(OP.i64ShrU).op(OP.i32WrapI64).tee(page);
  code
    .i32(Layout.tablePages - 1)
    .op(OP.i32And)
    .i32(3)
    .op(OP.i32Shl)
    .set(slot);
  code.get(page).i32(1).op(OP.i32Add).tee(page);
  code.get(slot).mem(MEM.i32Load, Layout.tables).op(OP.i32Eq).if(I32);
  code.get(slot).mem(MEM.i32Load, Layout.tables + 4);
  code.else();
  long(code.get(gpa), W.forTables).call(nested).i32(-4096).op(OP.i32And).tee(host);
  // Host page 0 is JavaScript's.
  giveUp(code.op(OP.i32Eqz));
  code.get(slot).get(page).mem(MEM.i32Store, Layout.tables);
  code
    .get(slot)
    .get(host)
    .mem(MEM.i32Store, Layout.tables + 4);
  code.get(host).end();
  code.get(gpa).op(OP.i32WrapI64).i32(0xfff).op(OP.i32And).op(OP.i32Add).i32(PRIVATE).op(OP.i32Add);
  return { type: TABLE, locals: [I32, I32, I32], code };
}

/** Locals of `fill`; the first two are its parameters. */
const L = {
  linear: 0,
  /** Byte offset of the tag in a TLB entry: what the access needs. */
  tag: 1,
  /** Offset of a table's entry, then index of the TLB's entry times 2. */
  at: 2,
  flags: 3,
  /** TlbEntry.info. */
  info: 4,
  read: 5,
  write: 6,
  exec: 7,
  page: 8,
  next: 9,
  before: 10,
  /** Offset of the TLB's entry. */
  slot: 11,
  gpa: 12,
  entry: 13,
  shift: 14,
  /** Rights of all levels: AND of the entries, and the no-execute bit of any. */
  rights: 15,
  noExecute: 16,
  wanted: 17,
} as const;
const FILL_LOCALS: ValType[] = [...Array<ValType>(10).fill(I32), ...Array<ValType>(6).fill(I64)];

class FillEmitter {
  readonly #code = new Code();

  constructor(
    readonly nested: number,
    readonly table: number,
  ) {}

  build(name: string): FuncBody {
    const code = this.#code;
    giveUp(word(code, W.kind).op(OP.i32Eqz));
    giveUp(code.i32(0).mem(MEM.i64Load32U, W.context).i32(0).mem(MEM.i64Load, P.context).op(OP.i64Ne));
    word(code, W.flags).set(L.flags);
    code.i64(-1n).set(L.rights);
    const translated = code.block();
    const paged = code.block();
    this.#unpaged(paged);
    code.br(translated).end();
    this.#paged();
    code.end();
    this.#throughNested();
    this.#store();
    return { type: FILL, locals: FILL_LOCALS, code, export: name };
  }

  /** 1 or 0: a flag. */
  #flag(flag: number): Code {
    return this.#code.get(L.flags).i32(flag).op(OP.i32And).i32(0).op(OP.i32Ne);
  }
  #bit(local: number, bit: bigint): Code {
    return this.#code.get(local).i64(bit).op(OP.i64And).i64(0n).op(OP.i64Ne);
  }
  #kindIs(kind: number): Code {
    return word(this.#code, W.kind).i32(kind).op(OP.i32Eq);
  }
  /** Outside long mode addresses have 32 bits. */
  #requireLegacy(): void {
    giveUp(this.#code.get(L.linear).i64(32n).op(OP.i64ShrU).i64(0n).op(OP.i64Ne));
  }

  /** Sign-extended from 9 bits above the place of the top index. */
  #requireCanonical(): void {
    const code = this.#code;
    const unused = (): Code => code.i64(55n).get(L.shift).op(OP.i64Sub);
    code.get(L.linear);
    unused().op(OP.i64Shl);
    giveUp(unused().op(OP.i64ShrS).get(L.linear).op(OP.i64Ne));
  }

  #unpaged(otherwise: Label): void {
    const code = this.#code;
    this.#kindIs(WalkKind.off).op(OP.i32Eqz).brIf(otherwise);
    this.#requireLegacy();
    code.get(L.linear).set(L.gpa);
    for (const right of [L.read, L.write, L.exec]) code.i32(1).set(right);
  }

  #paged(): void {
    const code = this.#code;
    long(code, W.root).set(L.gpa);
    const found = code.block();
    this.#kindIs(WalkKind.bits32).if();
    this.#levels32(found);
    code.end();
    word(code, W.kind).i32(WalkKind.levels4).op(OP.i32GeU).if();
    code.i64(48n).i64(39n);
    this.#kindIs(WalkKind.levels5).op(OP.select).set(L.shift);
    this.#requireCanonical();
    code.else();
    this.#pdpte();
    code.i64(21n).set(L.shift).end();
    this.#levels64(found);
    code.end();
    this.#leaf();
    this.#rights();
  }

  /** Puts the entry of a table at `gpa` into a local. @param shift pushes that of the index, bits of which are masked by `last` */
  #read(shift: () => void, last: bigint, size: 4 | 8): void {
    const code = this.#code;
    code.get(L.gpa).get(L.linear);
    shift();
    code
      .op(OP.i64ShrU)
      .i64(last)
      .op(OP.i64And)
      .i64(size === 8 ? 3n : 2n)
      .op(OP.i64Shl)
      .op(OP.i64Add);
    giveUp(code.call(this.table).tee(L.at).op(OP.i32Eqz));
    code
      .get(L.at)
      .mem(size === 8 ? MEM.i64Load : MEM.i64Load32U, 0)
      .set(L.entry);
  }
  /** Present and accessed; its rights count. */
  #use(): void {
    const code = this.#code;
    requireSet(code, L.entry, () => code.i64(PRESENT_ACCESSED));
    code.get(L.rights).get(L.entry).op(OP.i64And).set(L.rights);
  }

  #levels32(found: Label): void {
    const code = this.#code;
    this.#requireLegacy();
    this.#read(() => code.i64(22n), 0x3ffn, 4);
    this.#use();
    this.#bit(L.entry, LARGE);
    this.#flag(WalkFlag.pse).op(OP.i32And).if();
    requireClear(code, L.entry, () => code.i64(ABOVE_4M));
    code.i64(22n).set(L.shift).br(found).end();
    code.get(L.entry).i64(FRAME).op(OP.i64And).set(L.gpa);
    this.#read(() => code.i64(12n), 0x3ffn, 4);
    this.#use();
    code.i64(12n).set(L.shift).br(found);
  }

  /** Legacy PAE's top level: no rights, no accessed bit. */
  #pdpte(): void {
    const code = this.#code;
    this.#requireLegacy();
    this.#kindIs(WalkKind.paeRegisters).if();
    code.get(L.linear).i64(30n).op(OP.i64ShrU).op(OP.i32WrapI64).i32(3).op(OP.i32Shl);
    code
      .mem(MEM.i64Load, Layout.state + S.pdpte)
      .set(L.entry)
      .else();
    this.#read(() => code.i64(30n), 3n, 8);
    code.end();
    requireSet(code, L.entry, () => code.i64(1n));
    requireClear(code, L.entry, () =>
      long(code, W.reserved)
        .i64(NO_EXECUTE | PDPTE_RESERVED)
        .op(OP.i64Or),
    );
    code.get(L.entry).i64(FRAME).op(OP.i64And).set(L.gpa);
  }

  #levels64(found: Label): void {
    const code = this.#code;
    const down = code.loop();
    this.#read(() => code.get(L.shift), 0x1ffn, 8);
    this.#use();
    requireClear(code, L.entry, () => long(code, W.reserved));
    code.get(L.noExecute).get(L.entry).op(OP.i64Or).set(L.noExecute);
    code.get(L.shift).i64(12n).op(OP.i64Eq).brIf(found);
    this.#bit(L.entry, LARGE).if();
    code.get(L.shift).i64(21n).op(OP.i64Eq).if();
    requireClear(code, L.entry, () => code.i64(RESERVED_2M));
    code.br(found).end();
    code.get(L.shift).i64(30n).op(OP.i64Ne);
    giveUp(this.#flag(WalkFlag.gbPages).op(OP.i32Eqz).op(OP.i32Or));
    requireClear(code, L.entry, () => code.i64(RESERVED_1G));
    code.br(found).end();
    // AMD reserves the bit in the upper levels.
    this.#bit(L.entry, GLOBAL);
    giveUp(code.get(L.shift).i64(30n).op(OP.i64GeU).op(OP.i32And));
    code.get(L.entry).i64(FRAME).op(OP.i64And).set(L.gpa);
    code.get(L.shift).i64(9n).op(OP.i64Sub).set(L.shift).br(down).end();
  }

  #leaf(): void {
    const code = this.#code;
    const inside = (): Code => code.i64(1n).get(L.shift).op(OP.i64Shl).i64(1n).op(OP.i64Sub);
    code.get(L.entry).i64(FRAME).op(OP.i64And);
    inside().i64(-1n).op(OP.i64Xor).op(OP.i64And).get(L.linear);
    inside().op(OP.i64And).op(OP.i64Or).set(L.gpa);
    this.#bit(L.entry, GLOBAL);
    this.#flag(WalkFlag.pge).op(OP.i32And);
    // Size class: 0, 1, or 2 for 1 GiB.
    code.get(L.shift).i64(12n).op(OP.i64Ne).get(L.shift).i64(30n).op(OP.i64Eq).op(OP.i32Add);
    code.i32(1).op(OP.i32Shl).op(OP.i32Or).set(L.info);
  }

  /** SDM vol. 3 section 4.6, APM vol. 2 section 5.6. A page that is not dirty is not writable yet. */
  #rights(): void {
    this.#flag(WalkFlag.user).if();
    this.#bit(L.rights, USER).tee(L.read).set(L.exec);
    this.#bit(L.rights, WRITABLE).set(L.write).else();
    this.#flag(WalkFlag.smap);
    this.#bit(L.rights, USER).op(OP.i32And).op(OP.i32Eqz).set(L.read);
    this.#flag(WalkFlag.smep);
    this.#bit(L.rights, USER).op(OP.i32And).op(OP.i32Eqz).set(L.exec);
    this.#flag(WalkFlag.wp).op(OP.i32Eqz);
    this.#bit(L.rights, WRITABLE).op(OP.i32Or).set(L.write).end();
    this.#bit(L.entry, DIRTY).get(L.read).op(OP.i32And).get(L.write).op(OP.i32And).set(L.write);
    this.#bit(L.noExecute, NO_EXECUTE).op(OP.i32Eqz).get(L.exec).op(OP.i32And).set(L.exec);
  }

  /** Sets `page`, and takes rights that the nested tables don't give. Gives up unless the access is permitted. */
  #throughNested(): void {
    const code = this.#code;
    word(code, W.nested).if();
    code.get(L.gpa);
    long(code, W.writable).i64(0n).get(L.tag).i32(TlbEntry.tagWrite).op(OP.i32Eq).op(OP.select);
    giveUp(code.call(this.nested).tee(L.page).op(OP.i32Eqz));
    code.get(L.page).i32(1).op(OP.i32ShrU).get(L.write).op(OP.i32And).set(L.write);
    code.get(L.page).i32(2).op(OP.i32ShrU).get(L.exec).op(OP.i32And).set(L.exec);
    code.else();
    code.get(L.gpa).i64(-4096n).op(OP.i64And).i32(0).mem(MEM.i64Load32U, W.lastPage);
    giveUp(code.op(OP.i64GtU));
    code.get(L.gpa).op(OP.i32WrapI64).set(L.page).end();
    code.get(L.page).i32(-4096).op(OP.i32And).set(L.page);
    code.get(L.write).get(L.exec).get(L.tag).i32(TlbEntry.tagWrite).op(OP.i32Eq).op(OP.select);
    code.get(L.read).get(L.tag).op(OP.select);
    giveUp(code.op(OP.i32Eqz));
  }

  /** As `Tlb.fill`; pushes whether generated code may do the access. */
  #store(): void {
    const code = this.#code;
    code.get(L.linear).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
    word(code, P.contextHash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And).tee(L.slot);
    code.i32(4).op(OP.i32ShrU).set(L.at);
    this.#forFetches();
    this.#unlink();
    code.get(L.linear).i64(-4096n).op(OP.i64And).i32(0).mem(MEM.i64Load, P.context).op(OP.i64Or).set(L.wanted);
    code.get(L.page).get(L.info).op(OP.i32Or).get(L.write);
    code.i32(MAY_WRITE_SHIFT).op(OP.i32Shl).op(OP.i32Or).set(L.info);
    // From here on: by generated code.
    code.get(L.page).i32(12).op(OP.i32ShrU).mem(MEM.i32Load8U, Layout.codePages).op(OP.i32Eqz);
    code.get(L.write).op(OP.i32And).set(L.write);
    this.#tag(TlbEntry.tagRead, L.read);
    this.#tag(TlbEntry.tagWrite, L.write);
    code.get(L.slot).get(L.page).i32(PRIVATE).op(OP.i32Add);
    code.get(L.linear).op(OP.i32WrapI64).i32(-4096).op(OP.i32And).op(OP.i32Sub);
    code.mem(MEM.i32Store, Layout.tlb + TlbEntry.addend);
    code
      .get(L.slot)
      .get(L.info)
      .mem(MEM.i32Store, Layout.tlb + TlbEntry.info);
    this.#link();
    long(code.i32(0), W.fills).i64(1n).op(OP.i64Add).mem(MEM.i64Store, W.fills);
    code.get(L.write).i32(1).get(L.tag).i32(TlbEntry.tagWrite).op(OP.i32Eq).op(OP.select);
  }
  /** A fetch: the entry is another, and knows nothing of reads and writes. */
  #forFetches(): void {
    const code = this.#code;
    code.get(L.tag).i32(TlbEntry.tagExec).op(OP.i32Eq).if();
    code.get(L.slot).i32(TlbEntry.fetches).op(OP.i32Add).set(L.slot);
    code
      .get(L.at)
      .i32(2 * Layout.tlbEntries)
      .op(OP.i32Add)
      .set(L.at);
    code.get(L.exec).set(L.read).i32(0).set(L.write).end();
  }
  #tag(offset: number, right: number): void {
    this.#code
      .get(L.slot)
      .get(L.wanted)
      .i64(0n)
      .get(right)
      .op(OP.select)
      .mem(MEM.i64Store, Layout.tlb + offset);
  }

  /** Pushes twice the number of the entry's list; its owner is in `next`. */
  #list(): void {
    const code = this.#code;
    const info = (): Code => word16(code.get(L.slot), Layout.tlb + TlbEntry.info);
    code.get(L.next).i32(2).op(OP.i32Shl);
    info().i32(6).op(OP.i32And).i32(0).op(OP.i32Ne).op(OP.i32Or);
    info().i32(1).op(OP.i32And).i32(1).op(OP.i32Shl).op(OP.i32Or).i32(1).op(OP.i32Shl);
  }
  /** Pushes the address of the word of the entry whose index + 1 is in a local. */
  #of(local: number): void {
    this.#code.get(local).i32(1).op(OP.i32Sub).i32(1).op(OP.i32Shl);
  }
  /** Takes the entry out of its list. */
  #unlink(): void {
    const code = this.#code;
    word16(code.get(L.at), TlbLinks.owner).tee(L.next).if();
    word16(code.get(L.at), TlbLinks.before).tee(L.before).if();
    this.#of(L.before);
    word16(code.get(L.at), TlbLinks.next).mem(MEM.i32Store16, TlbLinks.next).else();
    this.#list();
    word16(code.get(L.at), TlbLinks.next).mem(MEM.i32Store16, TlbLinks.first).end();
    word16(code.get(L.at), TlbLinks.next).tee(L.next).if();
    this.#of(L.next);
    code.get(L.before).mem(MEM.i32Store16, TlbLinks.before).end().end();
  }
  /** Puts it in front of the context's. */
  #link(): void {
    const code = this.#code;
    word(code, P.context).set(L.next);
    code.get(L.at).get(L.next).mem(MEM.i32Store16, TlbLinks.owner);
    this.#list();
    code.tee(L.flags).mem(MEM.i32Load16U, TlbLinks.first).set(L.next);
    code.get(L.at).get(L.next).mem(MEM.i32Store16, TlbLinks.next);
    code.get(L.at).i32(0).mem(MEM.i32Store16, TlbLinks.before);
    const own = (): Code => code.get(L.at).i32(1).op(OP.i32ShrU).i32(1).op(OP.i32Add);
    code.get(L.next).if();
    this.#of(L.next);
    own().mem(MEM.i32Store16, TlbLinks.before).end();
    code.get(L.flags);
    own().mem(MEM.i32Store16, TlbLinks.first);
  }
}

export const FILL_FUNCTIONS = 3;
/**
 * The functions of the walk. The last one, exported as `fill`: (linear, byte offset of the tag in a TLB entry) → 1 if the running context
 * has an entry with that tag now. 0: JavaScript must do the access; there may be an entry then whose page holds code.
 * @param first index of the first of them
 */
export const fillFunctions = (first: number): FuncBody[] => [
  nestedPage(),
  tableEntry(first),
  new FillEmitter(first, first + 1).build('fill'),
];
