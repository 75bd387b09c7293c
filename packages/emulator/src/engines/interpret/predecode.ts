/**
 * Predecoded code: from bytes of a host page to records in linear memory.
 * Runs of records are laid down one behind the other; an instruction that crosses a page is never cached.
 */
import { createInstruction, decode } from '../../decode/decode.ts';
import type { DecodeMode, Instruction } from '../../decode/instruction.ts';
import { Layout } from '../../memory/layout.ts';
import { PAGE, type PhysicalMemory } from '../../memory/physical.ts';
import { S } from '../../state-layout.ts';
import type { CodeKey } from '../engine.ts';
import { formOf, type Normal, normalise } from './form.ts';
import type { FormInfo, HandlerSet } from './handlers.ts';
import { hasSemantics } from './operation.ts';
import { FIRST_RECORD, Jump, jumpIndex, MAX_RUN, R, RECORDS_END, Special } from './records.ts';
import { hasSystemPath, segmentOperand } from './system-paths.ts';

/** One host page under one code key. */
export interface CodePage {
  readonly hostPage: number;
  readonly key: KeyState;
  /** Page offset → record address, 0 if none. */
  readonly records: Uint32Array;
  /** Targets not yet decoded → records that want to be linked to them. */
  readonly wanted: Map<number, number[]>;
  /** 1 for every byte of a predecoded instruction. */
  readonly covered: Uint8Array;
  /** Every run: first record, count (links included). */
  readonly runs: { first: number; count: number }[];
}

/** A code key and what follows from it. */
export interface KeyState {
  readonly key: CodeKey;
  /** From 1; upper half of the jump cache's tags. */
  readonly id: number;
  readonly handlers: HandlerSet;
  readonly mode: DecodeMode;
}

/** One instruction of a run that is being laid down. */
interface Pending {
  insn: Instruction | null;
  normal: Normal | null;
  info: FormInfo | null;
  offset: number;
  next: number;
}

/** Thrown when records have filled their region; the engine drops everything and goes on. */
export class OutOfRecords extends Error {}

/** Byte offset of a register in the state block, for a record. High byte registers are the second byte of the first four. */
function registerOffset(number: number, byte: boolean, rex: number): number {
  if (number < 0) return S.zero;
  if (byte && rex === 0 && number >= 4 && number < 8) return S.gpr + (number - 4) * 8 + 1;
  return S.gpr + number * 8;
}

export class Predecoder {
  readonly #memory: PhysicalMemory;
  readonly #pages = new Map<number, CodePage[]>();
  /** Instructions that records hand to JavaScript. */
  readonly #instructions = new Map<number, Instruction>();
  readonly #vendor: 'amd' | 'intel';
  readonly #install: (handlers: HandlerSet, info: FormInfo) => void;
  readonly #allFeatures: boolean;
  #next = FIRST_RECORD;
  /** Instruction objects that nobody keeps. */
  readonly #free: Instruction[] = [];

  constructor(
    memory: PhysicalMemory,
    vendor: 'amd' | 'intel',
    allFeatures: boolean,
    install: (handlers: HandlerSet, info: FormInfo) => void,
  ) {
    this.#memory = memory;
    this.#vendor = vendor;
    this.#allFeatures = allFeatures;
    this.#install = install;
  }

  instructionAt(record: number): Instruction | null {
    return this.#instructions.get(record) ?? null;
  }

  /** The page's records under this key, made if need be; `fresh` hears of a page's first. */
  page(hostPage: number, key: KeyState, fresh: (hostPage: number) => void): CodePage {
    let list = this.#pages.get(hostPage);
    if (list === undefined) this.#pages.set(hostPage, (list = []));
    let page = list.find((p) => p.key === key);
    if (page === undefined) {
      page = {
        hostPage,
        key,
        records: new Uint32Array(PAGE),
        wanted: new Map(),
        covered: new Uint8Array(PAGE),
        runs: [],
      };
      if (list.length === 0) fresh(hostPage);
      list.push(page);
    }
    return page;
  }

  /** Record of the instruction at a page offset; decodes a run if there is none. Throws {@link OutOfRecords}. */
  record(page: CodePage, offset: number): number {
    const known = page.records[offset];
    if (known !== 0) return known;
    const run = this.#decodeRun(page, offset);
    page.key.handlers.compile(run.flatMap((p) => (p.info ? [p.info] : [])));
    return this.#lay(page, run);
  }

  /** Puts a record into the jump cache. */
  remember(page: CodePage, offset: number, record: number): void {
    const pa = page.hostPage * PAGE + offset;
    const at = Jump.base + jumpIndex(pa) * Jump.size;
    const { view } = this.#memory;
    view.setUint32(at, pa, true);
    view.setUint32(at + 4, page.key.id, true);
    view.setUint32(at + 8, record, true);
  }

  #decodeRun(page: CodePage, start: number): Pending[] {
    const run: Pending[] = [];
    let offset = start;
    while (run.length < MAX_RUN && offset < PAGE && page.records[offset] === 0) {
      const pending = this.#decodeOne(page, offset);
      run.push(pending);
      if (pending.info === null || endsRun(pending.insn!)) break;
      offset = pending.next;
    }
    return run;
  }

  #decodeOne(page: CodePage, offset: number): Pending {
    const insn = this.#free.pop() ?? createInstruction();
    const at = this.#memory.offset(page.hostPage * PAGE, PAGE) + offset;
    const available = Math.min(15, PAGE - offset);
    const result = decode(this.#memory.u8.subarray(at, at + available), available, page.key.mode, insn);
    if (result !== 'ok') {
      this.#free.push(insn);
      return { insn: null, normal: null, info: null, offset, next: offset };
    }
    const next = offset + insn.length;
    if (!this.#generated(insn)) return { insn, normal: null, info: null, offset, next };
    const normal = normalise(insn);
    const info = page.key.handlers.info(formOf(insn, normal, page.key.key, this.#vendor));
    return { insn, normal, info, offset, next };
  }

  /** Does generated code execute it? Otherwise JavaScript does: checks of privilege and intercepts live there. */
  #generated(insn: Instruction): boolean {
    const { row } = insn;
    if (hasSystemPath(insn)) return !insn.lock && (insn.codeSize === 8 ? !row.no64 : !row.only64);
    if (!hasSemantics(row.mnemonic) || row.unit !== 'integer') return false;
    if (row.intercept !== 'none' || row.privileged || row.protectedOnly || row.blockEnd === 'system') return false;
    if (row.feature !== undefined && !this.#allFeatures) return false;
    if (insn.lock && (!row.lockable || insn.mod === 3)) return false;
    return insn.codeSize === 8 ? !row.no64 : !row.only64;
  }

  #lay(page: CodePage, run: readonly Pending[]): number {
    const first = this.#next;
    const last = run[run.length - 1];
    const open = last.info !== null && !endsRun(last.insn!);
    const count = run.length + (open ? 1 : 0);
    if (first + count * R.size > RECORDS_END) throw new OutOfRecords();
    this.#next += count * R.size;
    run.forEach((pending, i) => {
      const at = first + i * R.size;
      page.records[pending.offset] = at;
      this.#write(page, pending, at);
    });
    this.#chooseHandlers(page, run, first);
    if (open) this.#writeLink(page, last.next, first + run.length * R.size);
    page.runs.push({ first, count });
    for (const pending of run) {
      // What did not decode depends on all bytes that were looked at.
      page.covered.fill(1, pending.offset, pending.insn === null ? pending.offset + 15 : pending.next);
      this.#satisfy(page, pending.offset);
      if (pending.normal !== null && !pending.info?.facts.mayHandBack) this.#free.push(pending.insn!);
    }
    return first;
  }

  #write(page: CodePage, pending: Pending, at: number): void {
    const { view, u8 } = this.#memory;
    const { insn, normal } = pending;
    u8.fill(0, at, at + R.size);
    view.setUint16(at + R.offset, pending.offset, true);
    view.setUint16(at + R.next, pending.next, true);
    if (insn === null || normal === null) {
      view.setUint16(at + R.handler, Special.instruction, true);
      view.setUint16(at + R.plain, Special.instruction, true);
      if (insn !== null) this.#instructions.set(at, insn);
      return;
    }
    const { rex } = insn;
    const put = (field: number, value: number): void => view.setUint16(at + field, value, true);
    const segment = segmentOperand(insn);
    if (segment >= 0) put(R.reg, S.segments + segment * 16);
    else put(R.reg, registerOffset(normal.reg, normal.byteReg, insn.vex.present ? 0x40 : rex));
    if (pending.info?.facts.mayHandBack) this.#instructions.set(at, insn);
    put(R.rm, registerOffset(normal.rm, normal.byteRm, rex));
    put(R.vvvv, normal.vvvv >= 0 ? registerOffset(normal.vvvv, false, rex) : insn.imm2 & 0xffff);
    put(R.base, registerOffset(insn.ripRelative ? -1 : insn.base, false, rex));
    put(R.index, registerOffset(insn.index, false, rex));
    u8[at + R.scale] = insn.scale;
    u8[at + R.seg] = insn.seg;
    view.setBigInt64(at + R.imm, BigInt.asIntN(64, normal.imm), true);
    if (isDirectBranch(insn)) this.#linkBranch(page, insn, pending, at);
    else view.setInt32(at + R.disp, Number(displacement(insn)), true);
  }

  #linkBranch(page: CodePage, insn: Instruction, pending: Pending, at: number): void {
    // Targets that get truncated may lie elsewhere; so may those that wrap (their page is entered through the look-up).
    if (insn.opSize !== insn.codeSize) return;
    const target = pending.next + Number(insn.imm);
    if (target >= 0 && target < PAGE) this.#link(page, target, at);
  }

  #link(page: CodePage, target: number, at: number): void {
    const record = page.records[target];
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
    for (const at of list) this.#memory.view.setUint32(at + R.link, page.records[offset], true);
  }

  #writeLink(page: CodePage, offset: number, at: number): void {
    const { view, u8 } = this.#memory;
    u8.fill(0, at, at + R.size);
    view.setUint16(at + R.handler, Special.link, true);
    view.setUint16(at + R.plain, Special.link, true);
    view.setUint16(at + R.offset, offset, true);
    view.setUint16(at + R.next, offset, true);
    if (offset < PAGE) this.#link(page, offset, at);
  }

  /** Backwards through the run: flags that nobody can see are not computed; a comparison goes with the jump behind it. */
  #chooseHandlers(page: CodePage, run: readonly Pending[], first: number): void {
    const { view } = this.#memory;
    const { handlers } = page.key;
    let live = true;
    for (let i = run.length - 1; i >= 0; i--) {
      const { info } = run[i];
      if (info === null) {
        live = true;
        continue;
      }
      const { facts } = info;
      const at = first + i * R.size;
      const plain = info.hot >= 0 ? info.hot : handlers.firstSlot + info.slot;
      if (info.hot < 0) this.#install(handlers, info);
      let handler = plain;
      const dead = !live && facts.setsFlags && info.dead >= 0 && !facts.readsOwnFlags;
      if (dead) handler = info.dead;
      const next = run[i + 1]?.info;
      const fused = next ? handlers.fused(info.form, next.form) : -1;
      if (fused >= 0) handler = fused;
      view.setUint16(at + R.handler, handler, true);
      view.setUint16(at + R.plain, plain, true);
      live = flagsLiveBefore(live, facts, dead);
    }
  }

  /** Do these bytes of one host page belong to predecoded instructions? */
  holdsCode(pa: number, length: number): boolean {
    const from = pa % PAGE;
    const list = this.#pages.get(Math.floor(pa / PAGE));
    if (list === undefined) return false;
    return list.some(({ covered }) => covered.subarray(from, from + length).includes(1));
  }

  /** Drops a page's records: all become stale, links and jump cache entries with them. */
  invalidate(hostPage: number): void {
    const list = this.#pages.get(hostPage);
    if (list === undefined) return;
    this.#pages.delete(hostPage);
    for (const page of list) this.#drop(page);
  }

  #drop(page: CodePage): void {
    const { view } = this.#memory;
    for (const { first, count } of page.runs) {
      for (let at = first; at < first + count * R.size; at += R.size) {
        view.setUint16(at + R.handler, Special.stale, true);
        view.setUint16(at + R.plain, Special.stale, true);
        this.#instructions.delete(at);
        this.#forget(page, view.getUint16(at + R.offset, true));
      }
    }
  }

  #forget(page: CodePage, offset: number): void {
    const pa = page.hostPage * PAGE + offset;
    const at = Jump.base + jumpIndex(pa) * Jump.size;
    const { view } = this.#memory;
    if (view.getUint32(at, true) === pa && view.getUint32(at + 4, true) === page.key.id) {
      view.setUint32(at + 4, 0, true);
    }
  }

  /** Drops everything; returns the host pages that held code. */
  clear(): number[] {
    const pages = [...this.#pages.keys()];
    this.#pages.clear();
    this.#instructions.clear();
    this.#next = FIRST_RECORD;
    this.#memory.u8.fill(0, Jump.base, Jump.base + Jump.entries * Jump.size);
    return pages;
  }
}

/** Are flags wanted before an instruction, if `live` behind it? Whoever may leave shows them to JavaScript. */
function flagsLiveBefore(live: boolean, facts: FormInfo['facts'], dead: boolean): boolean {
  if (facts.mayLeave) return true;
  if (facts.readsFlags && !dead) return true;
  return facts.setsAllFlags ? false : live;
}

const UNCONDITIONAL = new Set(['jmp', 'call', 'ret']);
const endsRun = (insn: Instruction): boolean => UNCONDITIONAL.has(insn.row.mnemonic);
const isDirectBranch = (insn: Instruction): boolean => insn.row.operands.some((s) => s[0] === 'J');

/** POP to memory counts RSP as moved when RSP is the base (APM vol. 3, POP). */
function displacement(insn: Instruction): bigint {
  const popped = insn.row.mnemonic === 'pop' && insn.base === 4 ? BigInt(insn.opSize) : 0n;
  return insn.disp + popped;
}

/** Where the state block's zero stands; a record's absent registers point there. */
export const ZERO_SLOT = Layout.state + S.zero;
