/**
 * The short way of the system instructions that kernels and KVM's guests live on: the plain case of the functions of the same names in
 * system/, on the state block's words, and their intercepts as numbers. Whatever is not plain is refused and goes to evaluate.
 * Manual: APM vol. 3 ch. 4, APM vol. 2 sections 3.1, 13.2.4 and 15.9-15.11; SDM vol. 3 section 25.1.
 *
 * Only called where nothing is pending, no trap flag is set and no breakpoint is armed; RIP stands at the instruction.
 */
import type { Instruction } from '../decode/instruction.ts';
import { systemNumber } from '../decode/rows.ts';
import { type DirectExits, Verdict as verdicts } from '../guest-mode.ts';
import {
  CR0,
  CR4,
  EFER,
  Flag as flagBits,
  RAX as rax,
  RBX as rbx,
  RCX as rcx,
  RDX as rdx,
  Seg,
  S as stateLayout,
} from '../state-layout.ts';
import { int } from './direct-delivery.ts';
import { iretd } from './direct-legacy.ts';
import { iretq, jmpfar, movseg, syscall, sysret } from './direct-transfer.ts';
import { Msr } from './msrs.ts';
import type { Processor } from './processor.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const S = stateLayout;
const Flag = flagBits;
const Verdict = verdicts;
const RAX = rax;
const RBX = rbx;
const RCX = rcx;
const RDX = rdx;

/** What became of an instruction. */
export const Direct = {
  /** Nothing has happened: evaluate executes it. */
  refused: 0,
  /** Committed; RIP, RFLAGS.RF and the shadow are behind it. */
  retired: 1,
  /** The guest's owner recorded an exit. */
  left: 2,
} as const;

const GPR = S.gpr >> 2;
const RIP = S.rip >> 2;
const RFLAGS = S.rflags >> 2;
const CR0_WORD = S.cr0 >> 2;
const CR4_WORD = S.cr4 >> 2;
const EFER_WORD = S.efer >> 2;
/** CPL, shadow, NMI blocking and activity: a byte each. */
const STATUS = S.cpl >> 2;
const SHADOW = 0xff00;
const HALTED = 1 << 24;

const PE = Number(CR0.PE);
const TS = Number(CR0.TS);
const ET = Number(CR0.ET);
/** CR0 bits that decide nothing but how later instructions fault: neither translation's mode nor the segments follow them. */
const PLAIN_CR0 = Number(CR0.MP | CR0.EM | CR0.TS | CR0.ET | CR0.NE | CR0.WP | CR0.AM);
const TSD = Number(CR4.TSD);
const LA57 = Number(CR4.LA57);
const CET = Number(CR4.CET);
const LMA = Number(EFER.LMA);
const TWO32 = 0x1_0000_0000;

/** One instruction's short way. */
export interface DirectRow {
  /** It sets RIP, RFLAGS and the shadow by itself. */
  transfers?: boolean;
  /** #GP(0) outside CPL 0. */
  supervisor: boolean;
  /** The intercept's `ask`: true if an exit was recorded. Absent: evaluate asks. */
  asks?(unit: DirectUnit, exits: DirectExits, insn: Instruction): boolean;
  /** False: not plain. Before the intercept, after the check of CPL. */
  isPlain?(unit: DirectUnit, insn: Instruction): boolean;
  /** Executes; false: not plain, nothing has happened. */
  run(unit: DirectUnit, insn: Instruction): boolean;
}

export class DirectUnit {
  readonly cpu: Processor;
  readonly words: Int32Array;
  readonly #tscPerTick: number;
  /** Sum of the TSC's offsets as two halves, and what it was made of. */
  #guestOffset = 0n;
  #adjust = 0n;
  #offsetLow = 0;
  #offsetHigh = 0;

  constructor(cpu: Processor, tscPerTick: number) {
    this.cpu = cpu;
    this.words = cpu.state.words;
    this.#tscPerTick = tscPerTick;
  }

  /** Executes an instruction that an engine has handed back. */
  execute(insn: Instruction): number {
    const row = TABLE[insn.row.systemNumber];
    if (row === undefined || insn.lock) return Direct.refused;
    if (row.supervisor && !this.isSupervisor()) return Direct.refused;
    if (row.isPlain !== undefined && !row.isPlain(this, insn)) return Direct.refused;
    const { guest } = this.cpu;
    if (guest !== null) {
      const exits = guest.direct;
      if (exits === undefined || exits === null) return Direct.refused;
      const id = insn.row.interceptId;
      const verdict = exits.verdicts[id];
      if (verdict === Verdict.leave) {
        exits.leave(id, insn.length);
        return Direct.left;
      }
      if (verdict === Verdict.ask) {
        if (row.asks === undefined) return Direct.refused;
        if (row.asks(this, exits, insn)) return Direct.left;
      }
    }
    if (!row.run(this, insn)) return Direct.refused;
    if (row.transfers !== true) this.#retire(insn);
    return Direct.retired;
  }

  #retire(insn: Instruction): void {
    const { words } = this;
    const next = (words[RIP] + insn.length) | 0;
    words[RIP] = next;
    if (insn.codeSize !== 8) words[RIP + 1] = 0;
    else if (next >>> 0 < insn.length) words[RIP + 1]++;
    words[RFLAGS] &= ~Flag.RF;
    words[STATUS] &= ~SHADOW;
  }

  isReal(): boolean {
    return (this.words[CR0_WORD] & PE) === 0;
  }
  /** CPL 0, or real mode. */
  isSupervisor(): boolean {
    const { words } = this;
    if ((words[CR0_WORD] & PE) === 0) return true;
    return (words[STATUS] & 0xff) === 0 && (words[RFLAGS] & Flag.VM) === 0;
  }

  low(reg: number): number {
    return this.words[GPR + reg * 2];
  }
  /** Writes 32 bits; the upper half becomes zero. */
  set32(reg: number, value: number): void {
    this.words[GPR + reg * 2] = value;
    this.words[GPR + reg * 2 + 1] = 0;
  }

  /** TSC as the running code reads it, into EDX:EAX. False: beyond what a number holds. */
  readTsc(): boolean {
    const { cpu } = this;
    const ticks = cpu.tick * this.#tscPerTick;
    if (ticks > Number.MAX_SAFE_INTEGER) return false;
    this.#followOffsets(cpu.guest === null ? 0n : cpu.guest.tscOffset, cpu.tscAdjust);
    const low = (ticks % TWO32) + this.#offsetLow;
    const high = Math.floor(ticks / TWO32) + this.#offsetHigh + (low >= TWO32 ? 1 : 0);
    this.set32(RAX, low | 0);
    this.set32(RDX, high | 0);
    return true;
  }
  #followOffsets(guest: bigint, adjust: bigint): void {
    if (guest === this.#guestOffset && adjust === this.#adjust) return;
    this.#guestOffset = guest;
    this.#adjust = adjust;
    const sum = BigInt.asUintN(64, guest + adjust);
    this.#offsetLow = Number(sum & 0xffffffffn);
    this.#offsetHigh = Number(sum >> 32n);
  }

  /** A field of the state block into EDX:EAX. */
  readField(at: number): void {
    this.set32(RAX, this.words[at >> 2]);
    this.set32(RDX, this.words[(at >> 2) + 1]);
  }
}

/** CR4.TSD keeps the time from user code. */
const mayReadTime = (unit: DirectUnit): boolean => (unit.words[CR4_WORD] & TSD) === 0 || unit.isSupervisor();

const cpuid: DirectRow = {
  supervisor: false,
  run: (unit) => {
    // Intel's CPUID faulting may be on for user code.
    if (!unit.isSupervisor()) return false;
    const leaf = unit.cpu.cpuid(unit.low(RAX) >>> 0, unit.low(RCX) >>> 0);
    unit.set32(RAX, leaf[0]);
    unit.set32(RBX, leaf[1]);
    unit.set32(RCX, leaf[2]);
    unit.set32(RDX, leaf[3]);
    return true;
  },
};

const rdtsc: DirectRow = { supervisor: false, isPlain: mayReadTime, run: (unit) => unit.readTsc() };

const rdtscp: DirectRow = {
  supervisor: false,
  isPlain: mayReadTime,
  run: (unit) => {
    if (!unit.readTsc()) return false;
    unit.set32(RCX, unit.words[S.tscAux >> 2]);
    return true;
  },
};

const rdmsr: DirectRow = {
  supervisor: true,
  asks: (unit, exits, insn) => exits.msr(unit.low(RCX) >>> 0, false, insn.length),
  run: (unit) => {
    const index = unit.low(RCX) >>> 0;
    if (index === Msr.TSC) return unit.readTsc();
    const at = index === Msr.EFER ? S.efer : unit.cpu.msrs.fieldOf(index, false);
    if (at < 0) return false;
    unit.readField(at);
    return true;
  },
};

/** Is EDX:EAX sign-extended from 48 bits? */
const isCanonicalPair = (unit: DirectUnit): boolean => {
  const top = unit.low(RDX) >> 15;
  return top === 0 || top === -1;
};

const wrmsr: DirectRow = {
  supervisor: true,
  asks: (unit, exits, insn) => exits.msr(unit.low(RCX) >>> 0, true, insn.length),
  run: (unit) => {
    const at = unit.cpu.msrs.fieldOf(unit.low(RCX) >>> 0, true);
    // Neither translation nor the code key derives from what is left: system call registers, bases of FS and GS, the APIC's base.
    if (at < 0 || !isCanonicalPair(unit)) return false;
    unit.words[at >> 2] = unit.low(RAX);
    unit.words[(at >> 2) + 1] = unit.low(RDX);
    return true;
  },
};

/** E4..E7 name the port, EC..EF take it from DX; odd opcodes move a word or more. */
const portOf = (unit: DirectUnit, insn: Instruction): number =>
  insn.opcode < 0xe8 ? Number(insn.imm) & 0xff : unit.low(RDX) & 0xffff;
const portSize = (insn: Instruction): number => ((insn.opcode & 1) === 0 ? 1 : insn.opSize === 2 ? 2 : 4);

/** No bitmap has to be asked. */
const ownsPorts = (unit: DirectUnit): boolean => {
  if (unit.isReal()) return true;
  const { words } = unit;
  return (words[RFLAGS] & Flag.VM) === 0 && (words[STATUS] & 0xff) <= ((words[RFLAGS] >> 12) & 3);
};

const asksPort = (input: boolean) => (unit: DirectUnit, exits: DirectExits, insn: Instruction) =>
  exits.port(portOf(unit, insn), portSize(insn), input, insn.opcode < 0xe8, insn.length, insn.addrSize);

const inPort: DirectRow = {
  supervisor: false,
  isPlain: ownsPorts,
  asks: asksPort(true),
  run: (unit, insn) => {
    const size = portSize(insn);
    const { bus } = unit.cpu;
    const value = bus === null ? -1 : bus.pioIn(portOf(unit, insn), size);
    const { words } = unit;
    if (size === 4) unit.set32(RAX, value);
    else if (size === 2) words[GPR] = (words[GPR] & ~0xffff) | (value & 0xffff);
    else words[GPR] = (words[GPR] & ~0xff) | (value & 0xff);
    return true;
  },
};

const outPort: DirectRow = {
  supervisor: false,
  isPlain: ownsPorts,
  asks: asksPort(false),
  run: (unit, insn) => {
    const size = portSize(insn);
    const value = size === 4 ? unit.low(RAX) >>> 0 : unit.low(RAX) & (size === 2 ? 0xffff : 0xff);
    unit.cpu.bus?.pioOut(portOf(unit, insn), size, value);
    return true;
  },
};

const hlt: DirectRow = {
  supervisor: true,
  run: (unit) => {
    unit.words[STATUS] = (unit.words[STATUS] & 0xffffff) | HALTED;
    return true;
  },
};

/** Nothing but RIP moves: the pause itself, and caches that are transparent. */
const nothing = (supervisor: boolean): DirectRow => ({ supervisor, run: () => true });

const movcr: DirectRow = {
  supervisor: true,
  isPlain: (_unit, { reg }) => CR_FIELD[reg] > 0,
  asks: (_unit, exits, insn) => exits.movCr(insn.reg, insn.opcode === 0x0f22, insn.rm, insn.length),
  run: (unit, insn) => (insn.opcode === 0x0f22 ? writeCr(unit, insn) : readCr(unit, insn)),
};

/** 0: no such register. */
const CR_FIELD: readonly number[] = [S.cr0, 0, S.cr2, S.cr3, S.cr4, 0, 0, 0, S.cr8];

function readCr(unit: DirectUnit, insn: Instruction): boolean {
  const { words, cpu } = unit;
  const to = GPR + insn.rm * 2;
  const from = CR_FIELD[insn.reg] >> 2;
  let low = words[from];
  let high = words[from + 1];
  const { guest } = cpu;
  if (guest?.viewCr !== undefined && (insn.reg === 0 || insn.reg === 4)) {
    const shadow = guest.readCr(insn.reg) ?? cpu.state.get64(CR_FIELD[insn.reg]);
    low = Number(shadow & 0xffffffffn);
    high = Number(shadow >> 32n);
  }
  words[to] = low;
  words[to + 1] = insn.codeSize === 8 ? high : 0;
  return true;
}

/** Writes that can switch the mode or load PDPTEs are evaluate's, and all that somebody listens to. */
function writeCr(unit: DirectUnit, insn: Instruction): boolean {
  const { cpu, words } = unit;
  const { reg } = insn;
  if (cpu.onModeChange !== null) return false;
  const low = unit.low(insn.rm);
  const high = insn.codeSize === 8 ? words[GPR + insn.rm * 2 + 1] : 0;
  if (reg === 0) return writeCr0(unit, low, high);
  if (reg === 2) {
    words[S.cr2 >> 2] = low;
    words[(S.cr2 >> 2) + 1] = high;
    return true;
  }
  // Legacy paging may load PDPTEs, which can fault half-way.
  if ((words[EFER_WORD] & LMA) === 0 && reg !== 8) return false;
  const value = (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
  const wanted = cpu.guest?.writeCr(reg, value) ?? value;
  const { control } = cpu;
  return !(reg === 3 ? control.setCr3(wanted) : reg === 4 ? control.setCr4(wanted) : control.setCr8(wanted));
}

function writeCr0(unit: DirectUnit, low: number, high: number): boolean {
  const { cpu, words } = unit;
  const old = words[CR0_WORD];
  if (high !== 0) return false;
  const { guest } = cpu;
  const value = guest?.viewCr === undefined ? low : guest.direct?.mergeCr0?.(low);
  if (value === undefined) return false;
  if (((value ^ old) & ~PLAIN_CR0) !== 0 || (words[CR4_WORD] & CET) !== 0) return false;
  words[CR0_WORD] = value | ET;
  cpu.state.touchRights();
  return true;
}

const clts: DirectRow = {
  supervisor: true,
  run: (unit) => {
    const { cpu, words } = unit;
    if (cpu.onModeChange !== null) return false;
    words[CR0_WORD] &= ~TS;
    cpu.state.touchRights();
    return true;
  },
};

/** Kernels flush single pages by an address in one register. */
const invlpg: DirectRow = {
  supervisor: true,
  isPlain: (_unit, insn) => insn.codeSize === 8 && insn.addrSize === 8 && insn.index < 0 && insn.seg < Seg.FS,
  run: (unit, insn) => {
    if (insn.base < 0) return false;
    const linear = BigInt.asUintN(64, unit.cpu.state.gpr[insn.base] + insn.disp);
    const width = (unit.words[CR4_WORD] & LA57) === 0 ? 48 : 57;
    if (BigInt.asUintN(64, BigInt.asIntN(width, linear)) === linear) unit.cpu.ops.invlpg(linear);
    return true;
  },
};

const iretOf = (insn: Instruction): DirectRow => (insn.codeSize === 8 ? iretq : iretd);
const iret: DirectRow = {
  supervisor: true,
  transfers: true,
  isPlain: (unit, insn) => iretOf(insn).isPlain!(unit, insn),
  run: (unit, insn) => iretOf(insn).run(unit, insn),
};

const ROWS: Readonly<Record<string, DirectRow>> = {
  cpuid,
  rdtsc,
  rdtscp,
  rdmsr,
  wrmsr,
  in: inPort,
  out: outPort,
  hlt,
  pause: nothing(false),
  wbinvd: nothing(true),
  movcr,
  clts,
  invlpg,
  syscall,
  sysret,
  int,
  iret,
  jmpfar,
  movseg,
};

/** By `Row.systemNumber`; all of one shape, so that the loop that asks them knows where their members stand. */
const TABLE: (DirectRow | undefined)[] = [];
for (const [mnemonic, { transfers, supervisor, asks, isPlain, run }] of Object.entries(ROWS)) {
  TABLE[systemNumber(mnemonic)] = { transfers, supervisor, asks, isPlain, run };
}
