/**
 * Predecoded code: from bytes of a host page to records in linear memory.
 * Runs of records are laid down one behind the other. An instruction that crosses into the next page ends its run and stands behind a guard.
 */
import { createInstruction, decode } from '../../decode/decode.ts';
import type { DecodeMode, Instruction } from '../../decode/instruction.ts';
import { PAGE, type PhysicalMemory, PRIVATE } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import type { CodeKey } from '../engine.ts';
import type { Stopwatch } from '../stopwatch.ts';
import type { ColdForms } from './cold-forms.ts';
import { Coverage } from './coverage.ts';
import type { Normal } from './form.ts';
import type { FormInfo, HandlerSet } from './handlers.ts';
import { JumpCache } from './jump-cache.ts';
import { ByteSet, PageRecords, RecordPool } from './page-maps.ts';
import { areShared, immediateOf, type PatchTools, patchPage } from './patching.ts';
import { FIRST_RECORD, MAX_RUN, R, RECORDS_END, Special } from './records.ts';
import type { Shape, ShapeTable } from './shape.ts';
import { segmentOperand } from './system-paths.ts';

/** One host page under one code key. */
export interface CodePage {
  readonly hostPage: number;
  readonly key: KeyState;
  /** Page offset → record address, 0 if none. */
  readonly records: PageRecords;
  /** Targets not yet decoded → records that want to be linked to them. */
  readonly wanted: Map<number, number[]>;
  /** 1 for every byte of a predecoded instruction. */
  readonly covered: ByteSet;
  /** Every run. */
  readonly runs: KeptRun[];
  /** How often an instruction was patched, by its offset. */
  readonly patched: Map<number, number>;
  /** Records of their own of instructions that were patched with others. */
  readonly places: Map<number, number>;
  /** Instructions that were given such records since the page last got new ones. */
  retired: number;
  /** Pages with an instruction that ends in this one. */
  readonly crossers: Set<CodePage>;
}

/** A code key and what follows from it. */
export interface KeyState {
  readonly key: CodeKey;
  /** From 1; part of the jump cache's entries. */
  readonly id: number;
  readonly handlers: HandlerSet;
  readonly shapes: ShapeTable;
  readonly mode: DecodeMode;
  /** By number of a plain handler, the form that it executes, as far as records have met it. */
  readonly infos: FormInfo[];
}

/** One instruction of a run that is being laid down. */
export interface Pending {
  insn: Instruction;
  /** null: it did not decode. */
  shape: Shape | null;
  offset: number;
  next: number;
  /** It did not decode because the page ends. */
  cut: boolean;
}

/** Places for instructions that were handed to JavaScript lately. */
const RECENT = 256;

/** Pages that hold records at most: beside their records each takes about 2 KB. */
const MAX_PAGES = 16_384;

/** Thrown when records have filled their region, or stand in too many pages; the engine drops everything and goes on. */
export class OutOfRecords extends Error {}

/** Byte offset of a register in the state block, for a record. High byte registers are the second byte of the first four. */
function registerOffset(number: number, byte: boolean, rex: number): number {
  if (number < 0) return S.zero;
  if (byte && rex === 0 && number >= 4 && number < 8) return S.gpr + (number - 4) * 8 + 1;
  return S.gpr + number * 8;
}

const vectorOffset = (number: number): number => S.ymm + number * 32;
/** The opcode as FSTENV shows it; its low bits are i of ST(i). */
const x87Opcode = (insn: Instruction): number => ((insn.opcode & 7) << 8) | (insn.modrm & 0xff);
/** Place of VEX.vvvv's register, or the second immediate. */
function vvvvOffset(insn: Instruction, normal: Normal): number {
  if (insn.row.unit === 'x87') return x87Opcode(insn);
  if (normal.vectorVvvv) return vectorOffset(insn.vex.vvvv);
  return normal.hasVvvv ? registerOffset(insn.vex.vvvv, false, insn.rex) : insn.imm2 & 0xffff;
}

/** Records that were laid down together: first record, count (links included). */
export interface LaidRun {
  readonly page: CodePage;
  readonly first: number;
  readonly count: number;
}
/** As it is kept: without a dropped page, whose tables are large; a guest that rewrites its code drops one after the other. */
type KeptRun = Omit<LaidRun, 'page'> & { page: CodePage | null };

export class Predecoder {
  readonly #memory: PhysicalMemory;
  /** By address: records are laid down upwards. */
  readonly #laid: KeptRun[] = [];
  readonly #pages = new Map<number, CodePage[]>();
  /** Instructions that records hand to JavaScript. */
  readonly #instructions = new Map<number, Instruction>();
  /** What `instructionAt` has found lately, by the record's address. */
  readonly #recentRecords = new Int32Array(RECENT);
  readonly #recent: (Instruction | null)[] = new Array<Instruction | null>(RECENT).fill(null);
  readonly #install: (handlers: HandlerSet, info: FormInfo) => void;
  readonly #watch: Stopwatch;
  readonly #forms: ColdForms;
  #pool = new RecordPool();
  readonly #words: Int32Array;
  readonly #quads: BigInt64Array;
  readonly #coverage: Coverage;
  readonly #jumps: JumpCache;
  readonly #bytes = new Uint8Array(15);
  #next = FIRST_RECORD;
  /** Instruction objects that nobody keeps. */
  readonly #free: Instruction[] = [];

  constructor(
    memory: PhysicalMemory,
    install: (handlers: HandlerSet, info: FormInfo) => void,
    forms: ColdForms,
    watch: Stopwatch,
  ) {
    this.#memory = memory;
    this.#forms = forms;
    this.#watch = watch;
    this.#coverage = new Coverage(memory.memory);
    this.#jumps = new JumpCache(memory.memory);
    this.#install = install;
    this.#words = new Int32Array(memory.memory.buffer, 0, RECORDS_END >> 2);
    this.#quads = new BigInt64Array(memory.memory.buffer, 0, RECORDS_END >> 3);
  }

  instructionAt(record: number): Instruction | null {
    const slot = (record / R.size) & (RECENT - 1);
    if (this.#recentRecords[slot] === record) return this.#recent[slot];
    const insn = this.#instructions.get(record) ?? null;
    this.#recentRecords[slot] = record;
    this.#recent[slot] = insn;
    return insn;
  }

  /** The page's records under the key of this id, if there are any. */
  find(hostPage: number, id: number): CodePage | undefined {
    return this.#pages.get(hostPage)?.find((page) => page.key.id === id);
  }
  /** The page's records under this key, made if need be; `fresh` hears of a page without records. */
  page(hostPage: number, key: KeyState, fresh: (hostPage: number) => void): CodePage {
    let list = this.#pages.get(hostPage);
    if (list === undefined) this.#pages.set(hostPage, (list = []));
    let page = list.find((p) => p.key === key);
    if (page === undefined) {
      page = {
        hostPage,
        key,
        records: new PageRecords(this.#pool),
        wanted: new Map(),
        covered: new ByteSet(),
        runs: [],
        patched: new Map(),
        places: new Map(),
        retired: 0,
        crossers: new Set(),
      };
      list.push(page);
    }
    // One that was only looked at, for what might cross into it, holds no code yet.
    if (!list.some(hasCode)) {
      this.#coverage.claim(hostPage);
      fresh(hostPage);
    }
    return page;
  }

  /** Record of the instruction at a page offset; decodes a run if there is none. Throws {@link OutOfRecords}. */
  record(page: CodePage, offset: number): number {
    const known = page.records.at(offset);
    if (known !== 0) return known;
    if (this.#pool.left < MAX_RUN || this.#pages.size > MAX_PAGES) throw new OutOfRecords();
    const run = this.#decodeRun(page, offset);
    this.#compile(page, run);
    page.retired = 0;
    return this.#lay(page, run);
  }

  /** Puts a record into the jump cache. */
  remember(page: CodePage, offset: number, record: number): void {
    this.#jumps.remember(page.hostPage * PAGE + offset, page.key.id, record);
  }

  #decodeRun(page: CodePage, start: number): Pending[] {
    const run: Pending[] = [];
    let offset = start;
    while (run.length < MAX_RUN && offset < PAGE && page.records.at(offset) === 0) {
      const pending = this.#decodeOne(page, offset);
      run.push(pending);
      if (pending.shape === null || pending.shape.ends) break;
      offset = pending.next;
    }
    return run;
  }

  #decodeOne(page: CodePage, offset: number): Pending {
    const insn = this.#free.pop() ?? createInstruction();
    const { u8 } = this.#memory;
    const at = PRIVATE + page.hostPage * PAGE + offset;
    const available = Math.min(15, PAGE - offset);
    const bytes = this.#bytes;
    for (let i = 0; i < available; i++) bytes[i] = u8[at + i];
    const result = decode(bytes, available, page.key.mode, insn);
    if (result !== 'ok') return { insn, shape: null, offset, next: offset, cut: result === 'need-more' };
    return { insn, shape: page.key.shapes.of(insn), offset, next: offset + insn.length, cut: false };
  }
  /** The instruction at the end of a page with its bytes in the next one. */
  #decodeAcross(page: CodePage, next: CodePage, offset: number): Pending {
    const insn = this.#free.pop() ?? createInstruction();
    const { u8 } = this.#memory;
    const bytes = this.#bytes;
    const here = PAGE - offset;
    bytes.set(u8.subarray(PRIVATE + page.hostPage * PAGE + offset, PRIVATE + page.hostPage * PAGE + PAGE));
    bytes.set(u8.subarray(PRIVATE + next.hostPage * PAGE, PRIVATE + next.hostPage * PAGE + bytes.length - here), here);
    const decoded = decode(bytes, bytes.length, page.key.mode, insn) === 'ok';
    return { insn, shape: decoded ? page.key.shapes.of(insn) : null, offset, next: offset + insn.length, cut: true };
  }

  /** Fills in the record behind a guard. False: that is done, or the instruction has no generated code. */
  cross(page: CodePage, guard: number, next: CodePage): boolean {
    const { view } = this.#memory;
    const address = next.hostPage * PAGE;
    if (view.getUint32(guard + R.link, true) === address) return false;
    const pending = this.#decodeAcross(page, next, view.getUint16(guard + R.offset, true));
    const { shape } = pending;
    if (shape !== null && shape.info === null && shape.cold !== null) this.#forms.ran(shape.cold.index);
    const info = shape?.info ?? null;
    if (info === null) return false;
    const at = guard + R.size;
    this.#compile(page, [pending]);
    this.#chooseHandlers(page, [pending], at);
    this.#write(page, pending, pending.shape!, at);
    if (info.facts.mayHandBack) this.#keep(at, pending.insn);
    this.#writeLink(page, pending.next, at + R.size);
    this.#cover(next, 0, pending.next - PAGE);
    next.crossers.add(page);
    view.setUint32(guard + R.link, address, true);
    return true;
  }
  /** The instruction behind a page's guard, with its record, if it is there and ends in `next`. */
  crossing(page: CodePage, offset: number, next: CodePage): { pending: Pending; record: number } | null {
    const guard = page.records.at(offset);
    const { view } = this.#memory;
    if (guard === 0 || view.getUint32(guard + R.link, true) !== next.hostPage * PAGE) return null;
    return { pending: this.#decodeAcross(page, next, offset), record: guard + R.size };
  }

  #lay(page: CodePage, run: readonly Pending[]): number {
    const first = this.#next;
    const last = run[run.length - 1];
    const open = last.shape !== null && !last.shape.ends;
    const count = run.length + (last.cut ? 2 : open ? 1 : 0);
    if (first + count * R.size > RECORDS_END) throw new OutOfRecords();
    this.#next += count * R.size;
    for (let i = 0; i < run.length; i++) page.records.set(run[i].offset, first + i * R.size);
    this.#chooseHandlers(page, run, first);
    for (let i = 0; i < run.length; i++) this.#finish(page, run[i], first + i * R.size);
    if (open) this.#writeLink(page, last.next, first + run.length * R.size);
    if (last.cut) this.#writeGuard(last.offset, first + (run.length - 1) * R.size);
    this.#remember(page, first, count);
    return first;
  }
  #remember(page: CodePage, first: number, count: number): void {
    const laid: KeptRun = { page, first, count };
    page.runs.push(laid);
    this.#laid.push(laid);
  }

  /** The run that a record belongs to, unless its page has been dropped. */
  runAt(record: number): LaidRun | undefined {
    let from = 0;
    let to = this.#laid.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#laid[middle].first <= record) from = middle + 1;
      else to = middle;
    }
    const run = this.#laid[from - 1];
    if (run === undefined || run.page === null || record >= run.first + run.count * R.size) return undefined;
    return run as LaidRun;
  }

  /** The form of the instruction that a record stands for; null: it has no handler, or the record is not an instruction. */
  infoAt(page: CodePage, record: number): FormInfo | null {
    return page.key.infos[this.#memory.view.getUint16(record + R.plain, true)] ?? null;
  }

  /** Decodes without laying down anything. */
  decodeAt(page: CodePage, offset: number): Pending {
    return this.#decodeOne(page, offset);
  }

  /** Everything of a record but its handlers, and what the page has to know about it. */
  #finish(page: CodePage, pending: Pending, at: number): void {
    const { insn, shape, offset, next } = pending;
    // What did not decode depends on all bytes that were looked at.
    this.#cover(page, offset, shape === null ? offset + 15 : next);
    if (page.wanted.size > 0) this.#satisfy(page, offset);
    if (shape === null || shape.info === null) {
      this.#writePlace(at, offset, next);
      if (shape === null) this.#free.push(insn);
      else this.#handBack(at, insn, shape);
      return;
    }
    this.#write(page, pending, shape, at);
    if (shape.info.facts.mayHandBack) this.#keep(at, insn);
    else this.#free.push(insn);
  }

  /** JavaScript executes the record's instruction. */
  #handBack(at: number, insn: Instruction, { cold }: Shape): void {
    this.#words[(at + R.link) >> 2] = cold?.index ?? 0;
    this.#keep(at, insn);
  }
  /** The form of a record that was handed back has a handler now. */
  warm(at: number): void {
    const page = this.runAt(at)!.page;
    const pending = this.#decodeOne(page, this.#memory.view.getUint16(at + R.offset, true));
    const { insn, shape } = pending;
    const { info } = shape!;
    const next = info!.followed !== null && pending.next < PAGE ? this.#decodeOne(page, pending.next) : undefined;
    this.#chooseHandler(page, info!, at, true, next);
    this.#write(page, pending, shape!, at);
    this.#forgetInstruction(at);
    if (info!.facts.mayHandBack) this.#keep(at, insn);
  }

  #keep(record: number, insn: Instruction): void {
    this.#instructions.set(record, insn);
    this.#recentRecords[(record / R.size) & (RECENT - 1)] = 0;
  }

  /** A record that is only a place. */
  #writePlace(at: number, offset: number, next: number): void {
    const words = this.#words;
    const word = at >> 2;
    words[word + 1] = next;
    for (let i = 2; i < 8; i++) words[word + i] = 0;
    words[word + (R.scale >> 2)] = offset << 16;
  }

  #write(page: CodePage, { insn, offset, next, cut }: Pending, shape: Shape, at: number): void {
    const { normal } = shape;
    const { rex } = insn;
    const words = this.#words;
    const word = at >> 2;
    const encodedRm = insn.modrm >= 0 ? insn.rm : insn.opReg;
    const rm = normal.accumulator ? 0 : normal.swapped ? insn.reg : encodedRm;
    const rmOffset = normal.vectorRm
      ? vectorOffset(rm)
      : registerOffset(rm, normal.byteRm, normal.accumulator ? 0x40 : rex);
    let regOffset = normal.vectorReg
      ? vectorOffset(insn.reg)
      : registerOffset(normal.swapped ? encodedRm : insn.reg, normal.byteReg, rex);
    if (shape.segment) regOffset = S.segments + segmentOperand(insn) * 16;
    const vvvv = vvvvOffset(insn, normal);
    const base = registerOffset(insn.ripRelative ? -1 : insn.base, false, rex);
    words[word + 1] = next | (regOffset << 16);
    words[word + 2] = shape.direct ? 0 : rmOffset | (vvvv << 16);
    words[word + 3] = shape.direct ? 0 : base | (registerOffset(insn.index, false, rex) << 16);
    words[word + 4] = shape.direct ? 0 : displacement(insn, shape);
    words[word + 5] = insn.scale | (insn.seg << 8) | (offset << 16);
    this.#quads[(at + R.imm) >> 3] = insn.imm;
    // What crosses a page may be written again for another page behind it.
    if (shape.direct && !cut) this.#linkBranch(page, insn, next, at);
  }

  #linkBranch(page: CodePage, insn: Instruction, next: number, at: number): void {
    // Targets that get truncated may lie elsewhere; so may those that wrap (their page is entered through the look-up).
    if (insn.opSize !== insn.codeSize) return;
    const target = next + Number(insn.imm);
    if (target >= 0 && target < PAGE) this.#link(page, target, at);
  }

  #link(page: CodePage, target: number, at: number): void {
    const record = page.records.at(target);
    if (record !== 0) {
      this.#memory.view.setUint32(at + R.link, record, true);
      return;
    }
    const list = page.wanted.get(target);
    if (list) list.push(at);
    else page.wanted.set(target, [at]);
  }

  #satisfy(page: CodePage, offset: number): void {
    const list = page.wanted.get(offset);
    if (list === undefined) return;
    page.wanted.delete(offset);
    for (const at of list) this.#memory.view.setUint32(at + R.link, page.records.at(offset), true);
  }

  #writeLink(page: CodePage, offset: number, at: number): void {
    this.#words[at >> 2] = Special.link | (Special.link << 16);
    this.#writePlace(at, offset, offset);
    if (offset < PAGE) this.#link(page, offset, at);
  }

  /** Behind it there is room for the instruction and a link. */
  #writeGuard(offset: number, at: number): void {
    this.#writePlace(at, offset, offset);
    this.#words[at >> 2] = Special.guard | (Special.guard << 16);
    this.#words[(at + R.link) >> 2] = -1;
    for (const behind of [at + R.size, at + 2 * R.size]) {
      this.#writePlace(behind, offset, offset);
      this.#words[behind >> 2] = Special.stale | (Special.stale << 16);
    }
  }

  #compile(page: CodePage, run: readonly Pending[]): void {
    const { handlers } = page.key;
    const missing = handlers.missing(run);
    if (missing !== null) this.#watch.time(() => handlers.compileApart(missing));
  }
  /** Backwards through the run: flags that nobody can see are not computed; a comparison goes with the jump behind it. */
  #chooseHandlers(page: CodePage, run: readonly Pending[], first: number): void {
    let live = true;
    for (let i = run.length - 1; i >= 0; i--) {
      const at = first + i * R.size;
      const info = run[i].shape?.info ?? null;
      if (info === null) {
        this.#words[at >> 2] = Special.instruction | (Special.instruction << 16);
        live = true;
        continue;
      }
      const dead = this.#chooseHandler(page, info, at, live, run[i + 1]);
      live = flagsLiveBefore(live, info.facts, dead);
    }
  }
  /** Answers whether the handler leaves the flags out. */
  #chooseHandler(page: CodePage, info: FormInfo, at: number, live: boolean, next: Pending | undefined): boolean {
    const { handlers } = page.key;
    const { facts } = info;
    const plain = info.hot >= 0 ? info.hot : handlers.firstSlot + info.slot;
    if (info.hot < 0) this.#install(handlers, info);
    page.key.infos[plain] = info;
    const dead = !live && facts.setsFlags && info.dead >= 0 && !facts.readsOwnFlags;
    const fused = info.fuses || info.followed !== null ? this.#fused(handlers, info, next) : -1;
    this.#words[at >> 2] = (fused >= 0 ? fused : dead ? info.dead : plain) | (plain << 16);
    return dead;
  }
  #fused(handlers: HandlerSet, info: FormInfo, next: Pending | undefined): number {
    const shape = next?.shape;
    if (!shape?.info) return -1;
    if (info.followed === null) return shape.condition >= 0 ? handlers.fused(info, shape.info) : -1;
    const { mayLeave, mayHandBack } = shape.info.facts;
    if (mayLeave || mayHandBack) return -1;
    const followed = info.followed();
    handlers.compileApart([followed]);
    this.#install(handlers, followed);
    return handlers.firstSlot + followed.slot;
  }

  /** Do these bytes of one host page belong to predecoded instructions? */
  holdsCode(pa: number, length: number): boolean {
    const from = pa % PAGE;
    const list = this.#pages.get(Math.floor(pa / PAGE));
    if (list === undefined) return false;
    if (length === PAGE) return list.some(hasCode);
    return list.some(({ covered }) => covered.hasAny(from, from + length));
  }

  // ---- code that is patched

  #cover(page: CodePage, from: number, to: number): void {
    page.covered.set(from, to, true);
    this.#coverage.set(page.hostPage, from, to, true);
  }
  #uncover(page: CodePage, from: number, to: number): void {
    page.covered.set(from, to, false);
    const list = this.#pages.get(page.hostPage)!;
    for (let at = from; at < to; at++) {
      if (!list.some(({ covered }) => covered.has(at))) this.#coverage.set(page.hostPage, at, at + 1, false);
    }
  }

  /** Brings the instructions that these bytes of a page belong to up to date; `false`: the page has to be dropped. */
  patch(hostPage: number, from: number, to: number, unfuse: (record: number) => boolean): boolean {
    const list = this.#pages.get(hostPage);
    if (list === undefined) return true;
    const tools: PatchTools = {
      view: this.#memory.view,
      redecode: (page, offset) => this.#redecode(page, offset),
      retire: (page, offset) => this.#retire(page, offset, unfuse),
      freshen: (page, offset) => this.#freshen(page, offset, unfuse),
      uncover: (page, start, end) => this.#uncover(page, start, end),
    };
    return list.every((page) => patchPage(tools, page, from, to));
  }

  #redecode(page: CodePage, offset: number): boolean {
    const { view } = this.#memory;
    const at = page.records.at(offset);
    const plain = view.getUint16(at + R.plain, true);
    const pending = this.#decodeOne(page, offset);
    const { shape, insn, next } = pending;
    if (shape === null || next !== view.getUint16(at + R.next, true)) return false;
    const { info } = shape;
    if (info === null) {
      if (plain !== Special.instruction) return false;
      this.#handBack(at, insn, shape);
      return true;
    }
    // A form that never ran has no handler yet.
    if (info.hot < 0 && info.slot < 0) return false;
    if (plain !== (info.hot >= 0 ? info.hot : page.key.handlers.firstSlot + info.slot)) return false;
    // Its old target may still wait to be linked.
    if (shape.direct) this.#unlink(page, at);
    this.#write(page, pending, shape, at);
    if (info.facts.mayHandBack) this.#keep(at, insn);
    else this.#free.push(insn);
    return true;
  }

  /**
   * Gives the instruction a place of its own, with a link behind it, where it is written anew each time that it is patched. False: it crosses
   * into the next page, or there is no room.
   */
  #retire(page: CodePage, offset: number, unfuse: (record: number) => boolean): boolean {
    const at = page.records.at(offset);
    const known = page.places.get(offset);
    if (known === at) return this.#rewrite(page, offset, at);
    const place = this.#next;
    if (place + 2 * R.size > RECORDS_END) return false;
    if (!this.#rewrite(page, offset, place)) return false;
    this.#next += 2 * R.size;
    this.#remember(page, place, 2);
    this.#forward(page, at, place, unfuse);
    page.places.set(offset, place);
    page.records.set(offset, place);
    page.retired++;
    return true;
  }
  /** The instruction as it is now, and a link to what follows it. */
  #rewrite(page: CodePage, offset: number, at: number): boolean {
    const pending = this.#decodeOne(page, offset);
    if (pending.cut) return false;
    this.#forgetInstruction(at);
    for (const record of [at, at + R.size]) this.#unlink(page, record);
    this.#compile(page, [pending]);
    this.#chooseHandlers(page, [pending], at);
    this.#finish(page, pending, at);
    this.#writeLink(page, pending.next, at + R.size);
    return true;
  }
  /** From now on the record only leads to another. */
  #forward(page: CodePage, at: number, to: number, unfuse: (record: number) => boolean): void {
    const { view } = this.#memory;
    // What stands in front of it may have left its flags to it, or be a comparison that goes with it.
    const { first } = this.runAt(at)!;
    for (let before = at - R.size; before >= first; before -= R.size) {
      const plain = view.getUint16(before + R.plain, true);
      if (plain < Special.count) break;
      if (!unfuse(before)) view.setUint16(before + R.handler, plain, true);
    }
    this.#forgetInstruction(at);
    this.#forget(page, view.getUint16(at + R.offset, true));
    this.#unlink(page, at);
    this.#writePlace(at, view.getUint16(at + R.offset, true), view.getUint16(at + R.offset, true));
    this.#words[at >> 2] = Special.link | (Special.link << 16);
    view.setUint32(at + R.link, to, true);
  }
  #forgetInstruction(at: number): void {
    this.#instructions.delete(at);
    this.#recentRecords[(at / R.size) & (RECENT - 1)] = 0;
  }
  /** It waits for no target any more. */
  #unlink(page: CodePage, at: number): void {
    for (const waiting of page.wanted.values()) remove(waiting, at);
  }

  #freshen(page: CodePage, offset: number, unfuse: (record: number) => boolean): boolean {
    const pending = this.#decodeOne(page, offset);
    const immediate = immediateOf(pending);
    const first = this.#next;
    if (immediate === null || first + 3 * R.size > RECORDS_END) return false;
    const from = pending.next - immediate.size;
    // They stay code for whoever else has them.
    if (areShared(this.#memory.view, page, from, pending.next)) return false;
    this.#next += 3 * R.size;
    this.#forward(page, page.records.at(offset), first, unfuse);
    this.#words[first >> 2] = Special.fresh | (Special.fresh << 16);
    this.#writePlace(first, offset, pending.next);
    this.#memory.view.setUint16(first + R.reg, from, true);
    this.#memory.view.setUint8(first + R.scale, immediate.kind);
    this.#chooseHandlers(page, [pending], first + R.size);
    this.#write(page, pending, pending.shape!, first + R.size);
    page.records.set(offset, first);
    this.#writeLink(page, pending.next, first + 2 * R.size);
    this.#remember(page, first, 3);
    this.#uncover(page, from, pending.next);
    return true;
  }
  /** Is the immediate of the instruction there read from the code each time? */
  isFresh(page: CodePage, offset: number): boolean {
    return this.#memory.view.getUint16(page.records.at(offset) + R.plain, true) === Special.fresh;
  }

  /**
   * Drops a page's records: all become stale, links and jump cache entries with them. Pages whose instructions reach into it go, too.
   * Returns the host pages that went.
   */
  invalidate(hostPage: number): number[] {
    const list = this.#pages.get(hostPage);
    if (list === undefined) return [];
    this.#pages.delete(hostPage);
    this.#coverage.release(hostPage);
    const gone = [hostPage];
    for (const page of list) {
      this.#drop(page);
      for (const crosser of page.crossers) {
        if (this.#pages.get(crosser.hostPage)?.includes(crosser)) gone.push(...this.invalidate(crosser.hostPage));
      }
    }
    return gone;
  }

  #drop(page: CodePage): void {
    const { view } = this.#memory;
    page.records.clear();
    for (const run of page.runs) {
      const { first, count } = run;
      run.page = null;
      for (let at = first; at < first + count * R.size; at += R.size) {
        view.setUint16(at + R.handler, Special.stale, true);
        view.setUint16(at + R.plain, Special.stale, true);
        this.#instructions.delete(at);
        this.#recentRecords[(at / R.size) & (RECENT - 1)] = 0;
        this.#forget(page, view.getUint16(at + R.offset, true));
      }
    }
  }

  #forget(page: CodePage, offset: number): void {
    this.#jumps.forget(page.hostPage * PAGE + offset, page.key.id);
  }

  /** Drops everything; returns the host pages that held code. */
  clear(): number[] {
    const pages = [...this.#pages.keys()];
    this.#pages.clear();
    this.#pool = new RecordPool();
    this.#coverage.clear();
    this.#instructions.clear();
    this.#recentRecords.fill(0);
    this.#laid.length = 0;
    this.#next = FIRST_RECORD;
    this.#jumps.clear();
    return pages;
  }
}

const hasCode = ({ runs, crossers }: CodePage): boolean => runs.length > 0 || crossers.size > 0;

/** Are flags wanted before an instruction, if `live` behind it? Whoever may leave shows them to JavaScript. */
function flagsLiveBefore(live: boolean, facts: FormInfo['facts'], dead: boolean): boolean {
  if (facts.mayLeave) return true;
  if (facts.readsFlags && !dead) return true;
  return facts.setsAllFlags ? false : live;
}

/** POP to memory counts RSP as moved when RSP is the base (APM vol. 3, POP). */
function displacement(insn: Instruction, shape: Shape): number {
  const disp = Number(insn.disp);
  return shape.pops && insn.base === 4 ? disp + insn.opSize : disp;
}

function remove(list: number[], item: number): void {
  const at = list.indexOf(item);
  if (at >= 0) list.splice(at, 1);
}
