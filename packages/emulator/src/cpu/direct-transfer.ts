/**
 * The short way of SYSCALL, SYSRET and IRETQ where a 64-bit kernel and its 64-bit programs use them: flat segments, everything that is read
 * already in the TLB, accessed bits set. Whatever else is evaluate's (system/syscall.ts, system/iret.ts).
 * Manual: APM vol. 3 SYSCALL, SYSRET and IRET; SDM vol. 2 the same.
 */
import { PRIVATE } from '../memory/physical.ts';
import { Attrib, EFER, Flag, RCX, RSP, S, Seg } from '../state-layout.ts';
import type { DirectRow, DirectUnit } from './direct.ts';

/** The processor and its state's words: what direct-delivery.ts has, too. */
export type PlainUnit = Pick<DirectUnit, 'cpu' | 'words'>;

const GPR = S.gpr >> 2;
const RIP = S.rip >> 2;
const RFLAGS = S.rflags >> 2;
const STATUS = S.cpl >> 2;
const R11 = 11;
const SCE = Number(EFER.SCE);
const LMA = Number(EFER.LMA);
/** The shadow's byte, and what MOV SS leaves there. */
const SHADOW = 0xff00;
const MOV_SS = 0x0200;
const RESERVED_ONE = 2;
const RPL = 3;
/** RFLAGS bits that SYSRET takes from R11 (SDM vol. 2, SYSRET). */
const SYSRET_FLAGS = 0x3c7fd7;
/** What IRETQ takes from the image at any level, and at level 0 alone (SDM vol. 2, IRET). */
const IRET_FLAGS = Flag.arith | Flag.TF | Flag.DF | Flag.NT | Flag.RF | Flag.AC | Flag.ID;
const IRET_SUPERVISOR = Flag.IF | Flag.IOPL | Flag.VIF | Flag.VIP;
export const IRET_MASK = IRET_FLAGS | IRET_SUPERVISOR;

const FLAT = Attrib.P | Attrib.S | Attrib.G;
const CODE64 = FLAT | Attrib.L | 0xb;
const STACK = FLAT | Attrib.DB | 0x3;

/** A null selector in SS, as segments.ts has it. */
export const NO_STACK = STACK | Attrib.unusable;

export const slot = (seg: number): number => (S.segments >> 2) + seg * 4;

export function setFlat(words: Int32Array, seg: number, selector: number, attrib: number): void {
  const at = slot(seg);
  words[at] = selector | (attrib << 16);
  words[at + 1] = -1;
  words[at + 2] = 0;
  words[at + 3] = 0;
}

/** Sets CPL; the shadow ends, too. */
export function setCpl(words: Int32Array, cpl: number): void {
  words[STATUS] = (words[STATUS] & ~0xffff) | cpl;
}

export const isCanonical = (high: number): boolean => {
  const top = high >> 15;
  return top === 0 || top === -1;
};

/** 64-bit mode with the instruction enabled, and nobody who wants to hear of modes. */
const isPlainSyscall = (unit: DirectUnit, { codeSize }: { codeSize: number }): boolean =>
  codeSize === 8 && (unit.words[S.efer >> 2] & SCE) !== 0 && unit.cpu.onModeChange === null;

export const syscall: DirectRow = {
  supervisor: false,
  transfers: true,
  isPlain: isPlainSyscall,
  run: (unit, insn) => {
    const { words, cpu } = unit;
    const flags = words[RFLAGS] & ~Flag.RF;
    const left = flags & ~words[S.sfmask >> 2];
    if ((left & Flag.TF) !== 0) return false;
    const next = (words[RIP] + insn.length) | 0;
    words[GPR + RCX * 2] = next;
    words[GPR + RCX * 2 + 1] = words[RIP + 1] + (next >>> 0 < insn.length ? 1 : 0);
    words[GPR + R11 * 2] = flags;
    words[GPR + R11 * 2 + 1] = words[RFLAGS + 1];
    words[RFLAGS] = left | RESERVED_ONE;
    const selector = words[(S.star >> 2) + 1] & 0xfffc;
    setFlat(words, Seg.CS, selector, CODE64);
    setFlat(words, Seg.SS, (selector + 8) & 0xffff, STACK);
    words[RIP] = words[S.lstar >> 2];
    words[RIP + 1] = words[(S.lstar >> 2) + 1];
    setCpl(words, 0);
    cpu.state.touch();
    return true;
  },
};

export const sysret: DirectRow = {
  supervisor: true,
  transfers: true,
  isPlain: isPlainSyscall,
  run: (unit, insn) => {
    const { words, cpu } = unit;
    const high = words[GPR + RCX * 2 + 1];
    const flags = words[GPR + R11 * 2] & SYSRET_FLAGS;
    if (insn.opSize !== 8 || !isCanonical(high) || (flags & Flag.TF) !== 0) return false;
    const selector = words[(S.star >> 2) + 1] >>> 16;
    const user = RPL << Attrib.dplShift;
    setFlat(words, Seg.CS, ((selector + 16) & 0xffff) | RPL, CODE64 | user);
    const stack = (selector + 8) & 0xffff;
    // AMD loads the selector alone, and CPL becomes 3 all the same (APM vol. 3, SYSRET).
    const ss = slot(Seg.SS);
    if (cpu.model.vendor === 'intel') setFlat(words, Seg.SS, stack | RPL, STACK | user);
    else words[ss] = (words[ss] & ~0xffff) | stack | (user << 16);
    words[RIP] = words[GPR + RCX * 2];
    words[RIP + 1] = high;
    words[RFLAGS] = flags | RESERVED_ONE;
    words[RFLAGS + 1] = 0;
    setCpl(words, RPL);
    cpu.state.touch();
    return true;
  },
};

/** Offset in linear memory of bytes within one page that the TLB knows, or -1. */
export function cached(unit: PlainUnit, low: number, high: number, size: number, system: boolean): number {
  const { access, memory } = unit.cpu;
  if ((low & 0xfff) > 4096 - size) return -1;
  const hpa = access.peek(low, high, system);
  return hpa >= 0 && memory.contains(hpa, size) ? PRIVATE + hpa : -1;
}

/** Offset in linear memory of a GDT descriptor that fits a return to `cpl`: `type` under `mask` of its upper half; -1 otherwise. */
export function descriptor(unit: PlainUnit, selector: number, cpl: number, mask: number, type: number): number {
  const { words } = unit;
  const gdt = slot(Seg.GDTR);
  const offset = selector & 0xfff8;
  if ((selector & 4) !== 0 || offset === 0 || (selector & RPL) !== cpl || offset + 7 > words[gdt + 1] >>> 0) return -1;
  const low = (words[gdt + 2] + offset) | 0;
  const high = words[gdt + 3] + (low >>> 0 < offset ? 1 : 0);
  const at = cached(unit, low, high, 8, true);
  if (at < 0) return -1;
  const upper = unit.cpu.memory.view.getInt32(at + 4, true);
  return (upper & (mask | 0x6000)) === (type | (cpl << 13)) ? at : -1;
}
/** Present, code or data, type bits: accessed code that is not conforming, of 64 bits; accessed writable expand-up data. */
export const CODE_MASK = 0x60_9d00;
export const CODE_WANTED = 0x20_9900;
export const DATA_MASK = 0x9f00;
export const DATA_WANTED = 0x9300;

/** A descriptor becomes a segment. */
export function loadSegment(unit: PlainUnit, seg: number, selector: number, at: number): void {
  const { view } = unit.cpu.memory;
  const { words } = unit;
  const low = view.getInt32(at, true);
  const high = view.getInt32(at + 4, true);
  const limit = (low & 0xffff) | (high & 0xf0000);
  const to = slot(seg);
  words[to] = selector | ((((high >>> 8) & 0xff) | ((high >>> 12) & 0xf00)) << 16);
  words[to + 1] = (high & 0x80_0000) !== 0 ? (limit << 12) | 0xfff : limit;
  words[to + 2] = (low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000);
  words[to + 3] = 0;
}

/** Real mode, or protected mode of level 0 outside long mode; and nobody who wants to hear of modes. */
function isLegacySupervisor({ words, cpu }: DirectUnit): boolean {
  if (cpu.onModeChange !== null || (words[S.efer >> 2] & LMA) !== 0) return false;
  return (words[RFLAGS] & Flag.VM) === 0 && (words[STATUS] & 0xff) === 0;
}
/** Real mode keeps limit and rights: only the selector and the base go. */
function loadReal(words: Int32Array, seg: number, selector: number): void {
  const at = slot(seg);
  words[at] = (words[at] & ~0xffff) | selector;
  words[at + 2] = selector << 4;
  words[at + 3] = 0;
}
/** A real-mode segment as RESET leaves it: anything else is looked at by evaluate. */
const isPlainReal = (words: Int32Array, seg: number): boolean =>
  words[slot(seg)] >= 0 && words[slot(seg) + 1] === 0xffff;

/** Code of level 0 outside long mode, accessed, not conforming: L clear. */
export const LEGACY_CODE_MASK = 0x20_9d00;
export const LEGACY_CODE_WANTED = 0x9900;
/** Limit of a descriptor, in bytes. */
export function limitAt(unit: PlainUnit, at: number): number {
  const { view } = unit.cpu.memory;
  const high = view.getInt32(at + 4, true);
  const limit = (view.getInt32(at, true) & 0xffff) | (high & 0xf0000);
  return (high & 0x80_0000) !== 0 ? ((limit << 12) | 0xfff) >>> 0 : limit;
}

/** JMP ptr16:16 and ptr16:32 to code of the same level. */
export const jmpfar: DirectRow = {
  supervisor: true,
  transfers: true,
  isPlain: (unit, insn) => insn.opcode === 0xea && isLegacySupervisor(unit),
  run: (unit, insn) => {
    const { words, cpu } = unit;
    const selector = insn.imm2 & 0xffff;
    const offset = Number(insn.imm & 0xffff_ffffn) & (insn.opSize === 2 ? 0xffff : -1);
    if (unit.isReal()) {
      if (!isPlainReal(words, Seg.CS) || offset >>> 0 > 0xffff) return false;
      loadReal(words, Seg.CS, selector);
    } else {
      const cs = descriptor(unit, selector, 0, LEGACY_CODE_MASK, LEGACY_CODE_WANTED);
      if (cs < 0 || offset >>> 0 > limitAt(unit, cs)) return false;
      loadSegment(unit, Seg.CS, selector, cs);
    }
    words[RIP] = offset;
    words[RIP + 1] = 0;
    words[RFLAGS] &= ~Flag.RF;
    words[STATUS] &= ~SHADOW;
    cpu.state.touchSegments();
    return true;
  },
};

/** MOV to ES, SS, DS, FS or GS from a register; in protected mode of data whose DPL is the selector's RPL, at level 0. */
export const movseg: DirectRow = {
  supervisor: true,
  transfers: true,
  isPlain: ({ words, cpu }, insn) =>
    insn.opcode === 0x8e &&
    insn.mod === 3 &&
    insn.reg !== Seg.CS &&
    insn.reg <= Seg.GS &&
    cpu.onModeChange === null &&
    (words[RFLAGS] & Flag.VM) === 0 &&
    (words[STATUS] & 0xff) === 0,
  run: (unit, insn) => {
    const { words, cpu } = unit;
    const seg = insn.reg;
    const selector = unit.low(insn.rm) & 0xffff;
    if (unit.isReal()) {
      if (!isPlainReal(words, seg)) return false;
      loadReal(words, seg, selector);
    } else {
      const level = seg === Seg.SS ? 0 : selector & RPL;
      const at = descriptor(unit, selector, level, DATA_MASK, DATA_WANTED);
      if (at < 0) return false;
      loadSegment(unit, seg, selector, at);
    }
    const next = (words[RIP] + insn.length) | 0;
    words[RIP] = next;
    if (insn.codeSize !== 8) words[RIP + 1] = 0;
    else if (next >>> 0 < insn.length) words[RIP + 1]++;
    words[RFLAGS] &= ~Flag.RF;
    words[STATUS] = (words[STATUS] & ~SHADOW) | (seg === Seg.SS ? MOV_SS : 0);
    cpu.state.touchSegments();
    return true;
  },
};

const DATA_SEGMENTS = [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const;
/** Would a return to an outer level take a data segment away? */
export function dropsSegments(words: Int32Array): boolean {
  for (const seg of DATA_SEGMENTS) {
    const first = words[slot(seg)];
    const unusable = first < 0;
    if (unusable ? (first & 0xffff) !== 0 : ((first >> (16 + Attrib.dplShift)) & 3) !== RPL) return true;
  }
  return false;
}

export const iretq: DirectRow = {
  supervisor: true,
  isPlain: ({ words, cpu }, insn) =>
    insn.opSize === 8 &&
    (words[RFLAGS] & Flag.NT) === 0 &&
    cpu.onModeChange === null &&
    isCanonical(words[GPR + RSP * 2 + 1]),
  run: (unit) => {
    const { words, cpu } = unit;
    const { view } = cpu.memory;
    const frame = cached(unit, words[GPR + RSP * 2], words[GPR + RSP * 2 + 1], 40, false);
    if (frame < 0) return false;
    const code = view.getUint16(frame + 8, true);
    const flags = view.getInt32(frame + 16, true);
    const stack = view.getUint16(frame + 32, true);
    const cpl = code & RPL;
    const high = view.getInt32(frame + 4, true);
    if ((cpl !== 0 && cpl !== RPL) || (flags & Flag.TF) !== 0 || !isCanonical(high)) return false;
    const cs = descriptor(unit, code, cpl, CODE_MASK, CODE_WANTED);
    if (cs < 0) return false;
    // 64-bit code at level 0 may have no stack segment.
    const none = cpl === 0 && stack === 0;
    const ss = none ? 0 : descriptor(unit, stack, cpl, DATA_MASK, DATA_WANTED);
    if (ss < 0 || (cpl !== 0 && dropsSegments(words))) return false;
    // Level 0 owns all of them, and the image says VM for 32-bit returns only.
    words[RFLAGS] = (words[RFLAGS] & ~IRET_MASK & ~Flag.RF) | (flags & IRET_MASK) | RESERVED_ONE;
    words[RIP] = view.getInt32(frame, true);
    words[RIP + 1] = high;
    words[GPR + RSP * 2] = view.getInt32(frame + 24, true);
    words[GPR + RSP * 2 + 1] = view.getInt32(frame + 28, true);
    loadSegment(unit, Seg.CS, code, cs);
    if (none) setFlat(words, Seg.SS, 0, NO_STACK);
    else loadSegment(unit, Seg.SS, stack, ss);
    setCpl(words, cpl);
    cpu.state.nmiBlocked = false;
    cpu.state.touch();
    return true;
  },
};
