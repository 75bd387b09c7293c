/**
 * The short way of an interrupt, an exception or INT n to a 64-bit kernel's handler: a 64-bit gate, flat code at level 0, everything that is read or
 * written already in the TLB; in 32-bit protected mode direct-legacy.ts has it. Whatever else is evaluate's (system/events.ts).
 * Manual: APM vol. 2 section 8.9, SDM vol. 3 section 6.14.
 */
import type { PendingEvent } from '../guest-mode.ts';
import { PRIVATE } from '../memory/physical.ts';
import { EFER, Flag, RSP, S, Seg } from '../state-layout.ts';
import type { DirectRow } from './direct.ts';
import { enterLegacyHandler, isLegacyProtected } from './direct-legacy.ts';
import {
  CODE_MASK,
  CODE_WANTED,
  cached,
  descriptor,
  isCanonical,
  loadSegment,
  NO_STACK,
  type PlainUnit,
  setCpl,
  setFlat,
  slot,
} from './direct-transfer.ts';

const GPR = S.gpr >> 2;
const RIP = S.rip >> 2;
const RFLAGS = S.rflags >> 2;
const STATUS = S.cpl >> 2;
const LMA = Number(EFER.LMA);

const GATE_BYTES = 16;
/** Present, a system descriptor, type but for its lowest bit: interrupt and trap gates of 64 bits. */
const GATE_MASK = 0x9e00;
const GATE_WANTED = 0x8e00;
const TRAP_GATE = 0x100;
const IST_MASK = 7;
/** Offsets in a 64-bit TSS (APM vol. 2 figure 12-8). */
const TSS_RSP0 = 4;
const TSS_IST1 = 0x24;
const CLEARED = Flag.TF | Flag.NT | Flag.RF | Flag.VM;

/** Offset in linear memory of a table's bytes, the table given by its segment slot; -1: behind the limit, or not in the TLB. */
function inTable(unit: PlainUnit, seg: number, offset: number, size: number): number {
  const { words } = unit;
  const at = slot(seg);
  if (offset + size - 1 > words[at + 1] >>> 0) return -1;
  const low = (words[at + 2] + offset) | 0;
  const high = words[at + 3] + (low >>> 0 < offset ? 1 : 0);
  return cached(unit, low, high, size, true);
}

/** Offset in linear memory of a frame below a stack pointer that the TLB lets be written, or -1. */
function frameAt(unit: PlainUnit, low: number, high: number, size: number, system: boolean): number {
  const { access, memory } = unit.cpu;
  const start = low - size;
  if (start < 0 || (start & 0xfff) > 4096 - size || !isCanonical(high) || access.watching) return -1;
  const hpa = access.peekWrite(start | 0, high, system);
  return hpa >= 0 && memory.contains(hpa, size) ? PRIVATE + hpa : -1;
}

/** SS, RSP, RFLAGS, CS, RIP and, below them, an error code. */
function writeFrame(unit: PlainUnit, frame: number, errorCode: number | undefined, flags: number): void {
  const { words } = unit;
  const { view } = unit.cpu.memory;
  let at = frame;
  const push = (low: number, high: number): void => {
    view.setInt32(at, low, true);
    view.setInt32(at + 4, high, true);
    at += 8;
  };
  if (errorCode !== undefined) push(errorCode, 0);
  push(words[RIP], words[RIP + 1]);
  push(words[slot(Seg.CS)] & 0xffff, 0);
  push(flags, words[RFLAGS + 1]);
  push(words[GPR + RSP * 2], words[GPR + RSP * 2 + 1]);
  push(words[slot(Seg.SS)] & 0xffff, 0);
}

const inLongMode = ({ words }: PlainUnit): boolean => (words[S.efer >> 2] & LMA) !== 0;
/** Is this a processor that the short way is for. */
const isPlain = (unit: PlainUnit): boolean =>
  inLongMode(unit) ? unit.cpu.onModeChange === null : isLegacyProtected(unit);

/**
 * Delivers an event. False: nothing was done, evaluate must.
 * @param resume RF is set in the pushed image
 */
export function deliverDirectly(unit: PlainUnit, event: PendingEvent, resume: boolean): boolean {
  const { kind } = event;
  if ((kind !== 'exception' && kind !== 'external' && kind !== 'nmi') || !isPlain(unit)) return false;
  return enterHandler(unit, event.vector, event.errorCode, resume ? Flag.RF : 0, 0);
}

/** INT n through a gate that CPL may use. */
export const int: DirectRow = {
  supervisor: false,
  transfers: true,
  isPlain,
  run: (unit, insn) => {
    const { words } = unit;
    const vector = Number(insn.imm) & 0xff;
    const flags = words[RFLAGS];
    const low = words[RIP];
    const high = words[RIP + 1];
    words[RFLAGS] = flags & ~Flag.RF;
    words[RIP] = (low + insn.length) | 0;
    words[RIP + 1] = insn.codeSize === 8 && words[RIP] >>> 0 < insn.length ? high + 1 : high;
    if (enterHandler(unit, vector, undefined, 0, words[STATUS] & 0xff)) return true;
    words[RFLAGS] = flags;
    words[RIP] = low;
    words[RIP + 1] = high;
    return false;
  },
};

/**
 * Enters a vector's handler with the return address at RIP. False: nothing was done.
 * @param resume RF, to be set in the pushed image, or 0
 * @param least DPL of the gate, at least
 */
function enterHandler(
  unit: PlainUnit,
  vector: number,
  errorCode: number | undefined,
  resume: number,
  least: number,
): boolean {
  const enter = inLongMode(unit) ? enterLongHandler : enterLegacyHandler;
  return enter(unit, vector, errorCode, resume, least);
}

function enterLongHandler(
  unit: PlainUnit,
  vector: number,
  errorCode: number | undefined,
  resume: number,
  least: number,
): boolean {
  const { words, cpu } = unit;
  const { view } = cpu.memory;
  const gate = inTable(unit, Seg.IDTR, vector * GATE_BYTES, GATE_BYTES);
  if (gate < 0) return false;
  const rights = view.getInt32(gate + 4, true);
  const target = view.getInt32(gate + 8, true);
  if ((rights & GATE_MASK) !== GATE_WANTED || !isCanonical(target) || ((rights >> 13) & 3) < least) return false;
  const first = view.getInt32(gate, true);
  const selector = first >>> 16;
  const cs = descriptor(unit, selector, 0, CODE_MASK, CODE_WANTED);
  if (cs < 0) return false;

  const inner = (words[STATUS] & 0xff) !== 0;
  const ist = rights & IST_MASK;
  let low = words[GPR + RSP * 2];
  let high = words[GPR + RSP * 2 + 1];
  if (inner || ist !== 0) {
    const pointer = inTable(unit, Seg.TR, ist === 0 ? TSS_RSP0 : TSS_IST1 + 8 * (ist - 1), 8);
    if (pointer < 0) return false;
    low = view.getInt32(pointer, true);
    high = view.getInt32(pointer + 4, true);
  }
  const top = (low & ~15) >>> 0;
  const size = errorCode === undefined ? 40 : 48;
  const frame = frameAt(unit, top, high, size, inner);
  if (frame < 0) return false;

  const flags = words[RFLAGS];
  writeFrame(unit, frame, errorCode, flags | resume);
  words[GPR + RSP * 2] = (top - size) | 0;
  words[GPR + RSP * 2 + 1] = high;
  words[RFLAGS] = flags & ~(CLEARED | ((rights & TRAP_GATE) === 0 ? Flag.IF : 0));
  words[RIP] = (first & 0xffff) | (rights & 0xffff_0000);
  words[RIP + 1] = target;
  loadSegment(unit, Seg.CS, selector, cs);
  if (inner) setFlat(words, Seg.SS, 0, NO_STACK);
  setCpl(words, 0);
  cpu.state.touch();
  return true;
}
