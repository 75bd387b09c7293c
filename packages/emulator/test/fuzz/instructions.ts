/**
 * Makes up instructions: any row of the decode tables, with prefixes, registers, addresses and immediates drawn at random. Most addresses lie in
 * the data pages, most registers that are written are not those that hold addresses.
 */
import type { TableRow } from '../../src/decode/rows.ts';
import { ALL_ROWS } from '../../src/decode/tables/index.ts';
import { CHUNK, CHUNKS, CODE_SIZE, codeBase, codeBits, dataBase, type FuzzMode, Place, Sel } from './layout.ts';
import { littleEndian, type Random } from './random.ts';

/** What needs a machine around it (virtualisation, SMM, enclaves), and what only ends a program. */
const LEFT_OUT =
  /^(vm(?!ov)|inv(ept|vpid)$|getsec|skinit|encl|rsm|stgi|clgi|invlpga|xbegin|xend|xabort|xtest|rdpru|monitorx|mwaitx|hlt$|mwait)/;
/** What changes controls and tables: seldom, or little else would be seen. */
const SELDOM =
  /^(mov(cr|dr)|lgdt|lidt|lldt|ltr|lmsw|wrmsr|xsetbv|swapgs|sysret|sysexit|syscall|sysenter|cli|popf|iret|retfar|jmpfar|callfar|lss|int1|pop(seg)?|leave|enter|ret|jmp|call|into|intn?|invd|wbinvd)$/;

const usable = ALL_ROWS.filter((row) => !LEFT_OUT.test(row.mnemonic));
const family = (test: (row: TableRow) => boolean): { often: TableRow[]; seldom: TableRow[] } => {
  const rows = usable.filter(test);
  return {
    often: rows.filter((row) => !SELDOM.test(row.mnemonic)),
    seldom: rows.filter((row) => SELDOM.test(row.mnemonic)),
  };
};
/** Families of rows, with their weights. */
const FAMILIES = [
  { weight: 46, ...family((row) => row.unit === 'integer' && !row.string && row.blockEnd !== 'branch') },
  { weight: 6, ...family((row) => row.string) },
  { weight: 4, ...family((row) => row.blockEnd === 'branch') },
  { weight: 12, ...family((row) => row.unit === 'x87') },
  { weight: 6, ...family((row) => row.unit === 'mmx') },
  { weight: 14, ...family((row) => row.unit === 'sse') },
  { weight: 12, ...family((row) => row.unit === 'avx') },
] as const;
const TOTAL = FAMILIES.reduce((sum, { weight }) => sum + weight, 0);

/** Registers that hold addresses: RBX, RSP, RBP, RSI, RDI. */
const FREE = [0, 1, 2] as const;
const FREE_64 = [0, 1, 2, 8, 9, 10, 11, 12, 13, 14, 15] as const;

interface Prefixes {
  operandSize: boolean;
  addressSize: boolean;
  rexW: boolean;
  rexR: number;
  rexX: number;
  rexB: number;
}

export class InstructionMaker {
  readonly #random: Random;
  readonly #mode: FuzzMode;
  readonly #bits: 16 | 32 | 64;
  /** What the operand of the instruction at hand wants to be aligned to. */
  #align = 1;

  constructor(random: Random, mode: FuzzMode) {
    this.#random = random;
    this.#mode = mode;
    this.#bits = codeBits(mode);
  }

  /**
   * The start of some chunk, sometimes a byte in the middle of one, as an offset in the code segment: mostly one of those that follow, so that
   * programs come to an end.
   */
  target(at: number): number {
    const random = this.#random;
    const inside = random.chance(6) ? random.below(CHUNK) : 0;
    const start = Place.code - codeBase(this.#mode);
    const here = Math.floor((at - start) / CHUNK);
    const chunk = random.chance(5) ? random.below(CHUNKS) : Math.min(here + random.between(1, 6), CHUNKS);
    return start + chunk * CHUNK + inside;
  }

  /** One instruction that stands at an offset in the code segment. */
  make(at: number): number[] {
    const row = this.#row();
    const long = this.#bits === 64;
    if (long ? row.no64 : row.only64) return this.make(at);
    this.#align = /^f?x(save|rstor)/.test(row.mnemonic) ? 64 : row.unit === 'sse' || row.unit === 'avx' ? 16 : 1;
    return row.slot.vex ? this.#vex(row, at) : this.#legacy(row, at);
  }

  #row(): TableRow {
    const random = this.#random;
    let at = random.below(TOTAL);
    const chosen = FAMILIES.find(({ weight }) => (at -= weight) < 0)!;
    const seldom = chosen.seldom.length > 0 && (chosen.often.length === 0 || random.chance(4));
    return random.pick(seldom ? chosen.seldom : chosen.often);
  }

  // ---- prefixes

  #legacy(row: TableRow, at: number): number[] {
    const random = this.#random;
    const { slot } = row;
    const mandatory = slot.prefixes === 0 ? -1 : random.pick([0, 1, 2, 3].filter((n) => (slot.prefixes >> n) & 1));
    const out: number[] = [];
    const prefixes: Prefixes = { operandSize: false, addressSize: false, rexW: false, rexR: 0, rexX: 0, rexB: 0 };
    if (random.chance(4)) out.push(random.pick([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]));
    if (random.chance(this.#bits === 16 ? 25 : 4)) {
      prefixes.addressSize = true;
      out.push(0x67);
    }
    if (mandatory === 1 || (mandatory < 0 && random.chance(12))) {
      prefixes.operandSize = true;
      out.push(0x66);
    }
    if (mandatory === 2) out.push(0xf3);
    if (mandatory === 3) out.push(0xf2);
    if (mandatory < 0 && row.string && random.chance(60)) out.push(random.pick([0xf3, 0xf3, 0xf2]));
    if (row.lockable && random.chance(15)) out.push(0xf0);
    if (this.#bits === 64) this.#rex(out, prefixes);
    const map = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]][slot.map]!;
    const opReg = slot.opcodeCount === 8 ? this.#register() & 7 : 0;
    out.push(...map, slot.opcode + opReg);
    this.#modrm(out, row, prefixes);
    this.#immediates(out, row, prefixes, at);
    return out.slice(0, 15);
  }
  #rex(out: number[], prefixes: Prefixes): void {
    const random = this.#random;
    if (random.chance(45)) return;
    prefixes.rexW = random.chance(60);
    prefixes.rexR = random.chance(30) ? 1 : 0;
    prefixes.rexX = random.chance(10) ? 1 : 0;
    prefixes.rexB = random.chance(15) ? 1 : 0;
    out.push(0x40 | (prefixes.rexW ? 8 : 0) | (prefixes.rexR << 2) | (prefixes.rexX << 1) | prefixes.rexB);
  }

  #vex(row: TableRow, at: number): number[] {
    const random = this.#random;
    const { slot } = row;
    const long = this.#bits === 64;
    const l = slot.l < 0 ? random.below(2) : slot.l;
    const w = slot.w < 0 ? random.below(2) : slot.w;
    const pp = random.pick([0, 1, 2, 3].filter((n) => slot.prefixes === 0 || (slot.prefixes >> n) & 1));
    const vvvv = row.usesVvvv ? random.below(long ? 16 : 8) : random.chance(3) ? random.below(8) : 0;
    const bit = (): number => (long && random.chance(30) ? 1 : 0);
    const prefixes: Prefixes = {
      operandSize: false,
      addressSize: false,
      rexW: w === 1,
      rexR: bit(),
      rexX: long && random.chance(10) ? 1 : 0,
      rexB: long && random.chance(15) ? 1 : 0,
    };
    const low = ((~vvvv & 15) << 3) | (l << 2) | pp;
    const out =
      slot.map === 1 && w === 0 && prefixes.rexX === 0 && prefixes.rexB === 0 && random.chance(60)
        ? [0xc5, ((1 - prefixes.rexR) << 7) | low]
        : [
            0xc4,
            ((1 - prefixes.rexR) << 7) | ((1 - prefixes.rexX) << 6) | ((1 - prefixes.rexB) << 5) | slot.map,
            (w << 7) | low,
          ];
    out.push(slot.opcode);
    this.#modrm(out, row, prefixes);
    this.#immediates(out, row, prefixes, at);
    return out.slice(0, 15);
  }

  // ---- operands

  /** A register that holds no address, mostly. */
  #register(): number {
    const random = this.#random;
    if (random.chance(4)) return random.below(8);
    return random.pick(this.#bits === 64 ? FREE_64 : FREE);
  }

  #modrm(out: number[], row: TableRow, prefixes: Prefixes): void {
    if (!row.hasModrm) return;
    const random = this.#random;
    const { slot } = row;
    if (slot.modrmFirst >= 0) {
      out.push(slot.modrmFirst + random.below(slot.modrmCount));
      return;
    }
    const general = row.unit === 'integer';
    const reg = slot.ext >= 0 ? slot.ext : general ? this.#register() & 7 : random.below(8);
    const register = row.modrm === 'register' || (row.modrm === 'any' && random.chance(50));
    if (register) out.push(0xc0 | (reg << 3) | (general ? this.#register() & 7 : random.below(8)));
    else this.#memory(out, reg, row.vsib, prefixes);
  }

  /** Often a multiple of what vectors and save areas are aligned to. */
  #displacement(): number {
    const random = this.#random;
    if (random.chance(this.#align > 1 ? 60 : 10)) return (random.below(256) - 128) & -this.#align;
    return random.chance(50) ? random.below(64) - 32 : random.below(256) - 128;
  }
  /** A place in data or, seldom, in code: seen from DS. */
  #absolute(): number {
    const random = this.#random;
    if (random.chance(6)) return Place.code - codeBase(this.#mode) + random.below(CODE_SIZE);
    if (random.chance(3)) return random.below(0x90000);
    return (
      Place.data -
      dataBase(this.#mode) +
      random.below(16) * 0x1000 +
      random.pick([0, 8, 0x7f3, 0xff0, 0xff8, 0xffd, 0xfff])
    );
  }

  #memory(out: number[], reg: number, vsib: boolean, prefixes: Prefixes): void {
    const narrow = this.#bits === 16 ? !prefixes.addressSize : this.#bits === 32 && prefixes.addressSize;
    if (narrow) this.#memory16(out, reg);
    else if (vsib) this.#sib(out, reg, this.#random.below(8));
    else this.#memory32(out, reg);
  }
  #memory16(out: number[], reg: number): void {
    const random = this.#random;
    const rm = random.below(8);
    if (rm === 6 && random.chance(60)) {
      out.push((reg << 3) | 6, ...littleEndian(this.#absolute() & 0xffff, 2));
      return;
    }
    if (random.chance(70)) out.push(0x40 | (reg << 3) | rm, this.#displacement() & 0xff);
    else out.push(0x80 | (reg << 3) | rm, ...littleEndian(this.#displacement(), 2));
  }
  #memory32(out: number[], reg: number): void {
    const random = this.#random;
    const kind = random.below(20);
    if (kind < 2) {
      // Absolute; relative to RIP in 64-bit code: reaches data and code alike.
      if (this.#bits === 64 && kind === 0)
        out.push((reg << 3) | 5, ...littleEndian(random.below(CODE_SIZE) - 0x1000, 4));
      else if (this.#bits === 64) out.push((reg << 3) | 4, 0x25, ...littleEndian(this.#absolute(), 4));
      else out.push((reg << 3) | 5, ...littleEndian(this.#absolute(), 4));
      return;
    }
    if (kind < 6) {
      this.#sib(out, reg, random.pick([0, 1, 2, 4, 6]));
      return;
    }
    const base = random.pick([3, 3, 5, 6, 7]);
    if (kind < 17) out.push(0x40 | (reg << 3) | base, this.#displacement() & 0xff);
    else out.push(0x80 | (reg << 3) | base, ...littleEndian(this.#displacement() * 8, 4));
  }
  #sib(out: number[], reg: number, index: number): void {
    const random = this.#random;
    const base = random.pick([3, 3, 5, 6, 7, 4]);
    out.push(0x44 | (reg << 3), (random.below(4) << 6) | (index << 3) | base, this.#displacement() & 0xff);
  }

  // ---- immediates

  #immediates(out: number[], row: TableRow, prefixes: Prefixes, at: number): void {
    const long = this.#bits === 64;
    const narrow = this.#bits === 16 ? !prefixes.operandSize : prefixes.operandSize;
    const v = prefixes.rexW ? 8 : narrow ? 2 : 4;
    const z = v === 8 ? 4 : v;
    for (const spec of row.immediates) {
      if (spec[0] === 'J') this.#relative(out, spec === 'Jb' ? 1 : long ? 4 : z, at);
      else if (spec[0] === 'O') this.#moffs(out, prefixes);
      else if (spec === 'Ap') {
        out.push(...littleEndian(this.target(at), v === 2 ? 2 : 4));
        out.push(...littleEndian(this.#random.pick([Sel.userCode32, Sel.code32, Sel.conforming, Sel.gate, 0x1000]), 2));
      } else {
        const size = { b: 1, w: 2, z, v }[spec[1] as 'b' | 'w' | 'z' | 'v'] ?? 1;
        out.push(...this.#random.immediate(size));
      }
    }
  }
  #relative(out: number[], size: number, at: number): void {
    const next = at + out.length + size;
    // Back is for loops, which count.
    const to = size === 1 ? (at & ~(CHUNK - 1)) + CHUNK * this.#random.between(1, 3) : this.target(at);
    out.push(...littleEndian(to - next, size));
  }
  #moffs(out: number[], prefixes: Prefixes): void {
    const size =
      this.#bits === 64 ? (prefixes.addressSize ? 4 : 8) : (this.#bits === 16) !== prefixes.addressSize ? 2 : 4;
    out.push(...littleEndian(this.#absolute(), size));
  }
}
