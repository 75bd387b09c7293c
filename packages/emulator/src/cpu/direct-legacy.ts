/**
 * The short way of interrupts, exceptions, INT n and IRETD in 32-bit protected mode: 32-bit gates to level 0, flat stacks of 32 bits,
 * everything that is read or written already in the TLB. Whatever else is evaluate's (system/events.ts, system/iret.ts).
 * Manual: APM vol. 2 section 8.7, SDM vol. 3 sections 6.12 and 7.2.1, APM vol. 3 IRET.
 */
import { PRIVATE } from '../memory/physical.ts';
import { Attrib, CR0, EFER, Flag, RSP, S, Seg } from '../state-layout.ts';
import type { DirectRow } from './direct.ts';
import {
  cached,
  DATA_MASK,
  DATA_WANTED,
  descriptor,
  dropsSegments,
  IRET_MASK,
  LEGACY_CODE_MASK,
  LEGACY_CODE_WANTED,
  limitAt,
  loadSegment,
  type PlainUnit,
  setCpl,
  slot,
} from './direct-transfer.ts';

const GPR = S.gpr >> 2;
const ESP = GPR + RSP * 2;
const RIP = S.rip >> 2;
const RFLAGS = S.rflags >> 2;
const STATUS = S.cpl >> 2;
const PE = Number(CR0.PE);
const LMA = Number(EFER.LMA);

const GATE_BYTES = 8;
/** Present, a system descriptor, type but for its lowest bit: interrupt and trap gates of 32 bits. */
const GATE_MASK = 0x9e00;
const GATE_WANTED = 0x8e00;
const TRAP_GATE = 0x100;
/** ESP0 and SS0 in a 32-bit TSS (APM vol. 2 figure 12-6). */
const TSS_ESP0 = 4;
const TSS_32 = 8;
const CLEARED = Flag.TF | Flag.NT | Flag.RF | Flag.VM;
/** B of a stack's descriptor, in its upper half. */
const BIG = 0x40_0000;
const STACK_MASK = Attrib.unusable | Attrib.P | Attrib.S | Attrib.DB | 0xe;
const STACK_WANTED = Attrib.P | Attrib.S | Attrib.DB | 2;

/** Protected mode outside long mode and virtual-8086 mode, and nobody who wants to hear of modes. */
export const isLegacyProtected = ({ words, cpu }: PlainUnit): boolean =>
  (words[S.cr0 >> 2] & PE) !== 0 &&
  (words[S.efer >> 2] & LMA) === 0 &&
  (words[RFLAGS] & Flag.VM) === 0 &&
  cpu.onModeChange === null;

/** SS covers 4 GiB from 0, expands up and has ESP. */
function hasFlatStack(words: Int32Array): boolean {
  const at = slot(Seg.SS);
  return ((words[at] >>> 16) & STACK_MASK) === STACK_WANTED && words[at + 1] === -1 && words[at + 2] === 0;
}
/** Likewise of a descriptor. */
function isFlatStack(unit: PlainUnit, at: number): boolean {
  const { view } = unit.cpu.memory;
  const high = view.getInt32(at + 4, true);
  const base = (view.getInt32(at, true) >>> 16) | (high & 0xff00_00ff);
  return base === 0 && (high & BIG) !== 0 && limitAt(unit, at) === 0xffff_ffff;
}

/** Offset in linear memory of a table's bytes, the table given by its segment slot; -1: behind the limit, or not in the TLB. */
function inTable({ words, cpu }: PlainUnit, seg: number, offset: number, size: number): number {
  const at = slot(seg);
  if (offset + size - 1 > words[at + 1] >>> 0) return -1;
  return cached({ words, cpu }, (words[at + 2] + offset) | 0, 0, size, true);
}

/** The frame's words from the top down, below `top`. */
function writeFrame(unit: PlainUnit, top: number, system: boolean, frame: readonly number[]): boolean {
  const { access, memory } = unit.cpu;
  const size = frame.length * 4;
  const start = top - size;
  if (start < 0 || (start & 0xfff) > 4096 - size || access.watching) return false;
  const hpa = access.peekWrite(start | 0, 0, system);
  if (hpa < 0 || !memory.contains(hpa, size)) return false;
  frame.forEach((value, n) => {
    memory.view.setInt32(PRIVATE + hpa + size - 4 - n * 4, value, true);
  });
  return true;
}

/** SS0 and ESP0 for code of an outer level: the selector's descriptor and the pointer, or null. */
function innerStack(unit: PlainUnit): { selector: number; at: number; top: number } | null {
  if (((unit.words[slot(Seg.TR)] >>> 16) & TSS_32) === 0) return null;
  const pointer = inTable(unit, Seg.TR, TSS_ESP0, 8);
  if (pointer < 0) return null;
  const { view } = unit.cpu.memory;
  const selector = view.getUint16(pointer + 4, true);
  const at = descriptor(unit, selector, 0, DATA_MASK, DATA_WANTED);
  return at < 0 || !isFlatStack(unit, at) ? null : { selector, at, top: view.getUint32(pointer, true) };
}

/**
 * Enters a vector's handler with the return address at EIP. False: nothing was done.
 * @param resume RF, to be set in the pushed image, or 0
 * @param least DPL of the gate, at least
 */
export function enterLegacyHandler(
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
  const first = view.getInt32(gate, true);
  const rights = view.getInt32(gate + 4, true);
  if ((rights & GATE_MASK) !== GATE_WANTED || ((rights >> 13) & 3) < least) return false;
  const selector = first >>> 16;
  const cs = descriptor(unit, selector, 0, LEGACY_CODE_MASK, LEGACY_CODE_WANTED);
  const target = (first & 0xffff) | (rights & 0xffff_0000);
  if (cs < 0 || target >>> 0 > limitAt(unit, cs)) return false;

  const inner = (words[STATUS] & 0xff) !== 0;
  const stack = inner ? innerStack(unit) : null;
  if (inner ? stack === null : !hasFlatStack(words)) return false;
  const top = stack === null ? words[ESP] >>> 0 : stack.top;
  const flags = words[RFLAGS];
  const frame = [flags | resume, words[slot(Seg.CS)] & 0xffff, words[RIP]];
  if (inner) frame.unshift(words[slot(Seg.SS)] & 0xffff, words[ESP]);
  if (errorCode !== undefined) frame.push(errorCode);
  if (!writeFrame(unit, top, inner, frame)) return false;

  words[ESP] = (top - frame.length * 4) | 0;
  words[ESP + 1] = 0;
  words[RFLAGS] = flags & ~(CLEARED | ((rights & TRAP_GATE) === 0 ? Flag.IF : 0));
  words[RIP] = target;
  words[RIP + 1] = 0;
  loadSegment(unit, Seg.CS, selector, cs);
  if (stack !== null) loadSegment(unit, Seg.SS, stack.selector, stack.at);
  setCpl(words, 0);
  cpu.state.touch();
  return true;
}

/** IRETD of level 0 to level 0 or 3. */
export const iretd: DirectRow = {
  supervisor: true,
  isPlain: (unit, insn) => insn.opSize === 4 && (unit.words[RFLAGS] & Flag.NT) === 0 && isLegacyProtected(unit),
  run: returnDirectly,
};

function returnDirectly(unit: PlainUnit): boolean {
  const { words, cpu } = unit;
  const { view } = cpu.memory;
  const esp = words[ESP];
  if (!hasFlatStack(words)) return false;
  const frame = cached(unit, esp, 0, 12, false);
  if (frame < 0) return false;
  const target = view.getInt32(frame, true);
  const code = view.getUint16(frame + 4, true);
  const flags = view.getInt32(frame + 8, true);
  const cpl = code & 3;
  if ((cpl !== 0 && cpl !== 3) || (flags & (Flag.TF | Flag.VM)) !== 0) return false;
  const cs = descriptor(unit, code, cpl, LEGACY_CODE_MASK, LEGACY_CODE_WANTED);
  if (cs < 0 || target >>> 0 > limitAt(unit, cs)) return false;
  let ss = -1;
  let stack = 0;
  if (cpl !== 0) {
    if (cached(unit, esp, 0, 20, false) < 0) return false;
    stack = view.getUint16(frame + 16, true);
    ss = descriptor(unit, stack, cpl, DATA_MASK, DATA_WANTED);
    if (ss < 0 || (view.getInt32(ss + 4, true) & BIG) === 0 || dropsSegments(words)) return false;
  }
  words[RFLAGS] = (words[RFLAGS] & ~IRET_MASK & ~Flag.RF) | (flags & IRET_MASK) | 2;
  words[RIP] = target;
  words[RIP + 1] = 0;
  words[ESP] = cpl === 0 ? (esp + 12) | 0 : view.getInt32(frame + 12, true);
  words[ESP + 1] = 0;
  loadSegment(unit, Seg.CS, code, cs);
  if (ss >= 0) loadSegment(unit, Seg.SS, stack, ss);
  setCpl(words, cpl);
  cpu.state.nmiBlocked = false;
  cpu.state.touch();
  return true;
}
