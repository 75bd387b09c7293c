/**
 * A form: all that is static about a handler. Instructions of one form differ only in their record's fields.
 * Operand letters: decode/mnemonics.ts.
 */
import type { Size } from '../../builder/builder.ts';
import type { Instruction, Row } from '../../decode/instruction.ts';
import { Seg } from '../../state-layout.ts';
import type { CodeKey } from '../engine.ts';

/** How segments become linear addresses. */
export type SegmentMode =
  /** 64-bit code: bases of FS and GS only. */
  | 'long'
  /** Flat 32-bit (or 16-bit) code: FS and GS are checked, the others do nothing. */
  | 'flat'
  /** Everything is checked. */
  | 'checked';

export interface Form {
  readonly mnemonic: string;
  /** Operand specifiers after {@link normalise}. */
  readonly operands: readonly string[];
  readonly opSize: Size;
  readonly addrSize: 2 | 4 | 8;
  readonly codeSize: 2 | 4 | 8;
  readonly stackSize: 2 | 4 | 8;
  readonly segments: SegmentMode;
  /** The memory operand's segment, if it is not as flat as the others: FS (4), GS (5), outside 64-bit code also CS (1); else -1. */
  readonly special: -1 | 1 | 4 | 5;
  /** r/m is memory, and what its address consists of. */
  readonly memory: 'none' | 'base' | 'index' | 'rip';
  readonly lock: boolean;
  readonly rep: 0 | 0xf2 | 0xf3;
  readonly condition: number;
  /** The immediate is a shift count that does not come out as zero. */
  readonly countNotZero: boolean;
  readonly vendor: 'amd' | 'intel';
  /** Vector instructions only. */
  readonly vector?: { readonly vex: boolean; readonly wide: boolean; readonly imm: number };
  /** x87 instructions only. */
  readonly x87?: true;
  /** MOV to SS only: it leaves an interrupt shadow. */
  readonly shadows?: true;
  /** STI only: what follows neither leaves generated code nor sees the shadow. */
  readonly followed?: true;
}

export const formKey = (f: Form): string =>
  `${f.mnemonic}.${f.condition} ${f.operands.join()} o${f.opSize} a${f.addrSize} c${f.codeSize} s${f.stackSize} ${f.segments}${f.special} ${f.memory} ${f.lock ? 'L' : ''}${f.rep}${f.countNotZero ? 'n' : ''} ${f.vendor}${f.vector === undefined ? '' : vectorKey(f.vector)}${f.followed ? ' f' : ''}${f.shadows ? ' m' : ''}`;
const vectorKey = ({ vex, wide, imm }: NonNullable<Form['vector']>): string =>
  ` ${vex ? 'v' : ''}${wide ? 'w' : ''}${imm}`;

/** How an instruction becomes its canonical form: fewer forms, same meaning. */
export interface Normal {
  operands: readonly string[];
  /** The record's register fields change places. */
  swapped: boolean;
  /** The record's `rm` is RAX (AL). */
  accumulator: boolean;
  hasVvvv: boolean;
  byteReg: boolean;
  byteRm: boolean;
  /** The record's register fields name vector registers. */
  vectorReg: boolean;
  vectorRm: boolean;
  vectorVvvv: boolean;
}

const isRegisterRm = (insn: Instruction, spec: string): boolean =>
  spec[0] === 'R' || (spec[0] === 'E' && insn.mod === 3) || (spec.startsWith('R') && insn.mod === 3);

const isByte = (spec: string): boolean => spec[1] === 'b';

const SWAPPABLE: Readonly<Record<string, readonly string[]>> = { 'Gb Eb': ['Rb', 'Gb'], 'Gv Ev': ['Rv', 'Gv'] };
const ACCUMULATOR: Readonly<Record<string, readonly string[]>> = { 'AL Ib': ['Rb', 'Ib'], 'rAX Iz': ['Rv', 'Iz'] };
/** `Z` is a register r/m; how long a relative branch or a sign-extended byte was does not matter any more. */
const PLAIN_ALIASES: Readonly<Record<string, string>> = { Zv: 'Rv', Zb: 'Rb', Jz: 'Jb', Ibs: 'Iz' };
/** Mnemonics of the two-operand ALU scheme, where both directions mean the same for registers. */
const TWO_WAY = new Set(['add', 'or', 'adc', 'sbb', 'and', 'sub', 'xor', 'cmp', 'mov', 'test']);

/**
 * Canonical operands. Register forms of `Gv Ev` become `Ev Gv` with the fields swapped, an accumulator becomes an r/m register, a sign-extended
 * byte is an immediate like any other, `Z` is an r/m register.
 */
export function normalise(insn: Instruction): Normal {
  const specs = insn.row.operands;
  const text = specs.join(' ');
  const register = insn.modrm >= 0 && specs.some((s) => isRegisterRm(insn, s));
  const normal: Normal = {
    operands: specs.map((s) => PLAIN_ALIASES[s] ?? s),
    swapped: false,
    accumulator: false,
    hasVvvv: specs.some((s) => s[0] === 'B'),
    byteReg: specs.some((s) => s === 'Gb'),
    byteRm: specs.some((s) => (s[0] === 'E' || s[0] === 'Z' || s[0] === 'R') && isByte(s)),
    vectorReg: false,
    vectorRm: false,
    vectorVvvv: false,
  };
  if (isVector(insn.row)) return normaliseVector(normal, specs);
  if (insn.row.mnemonic === 'call') normal.operands = specs;
  if (TWO_WAY.has(insn.row.mnemonic)) normaliseTwoWay(normal, text, register);
  if (register) normal.operands = normal.operands.map((s) => (s[0] === 'E' ? `R${s.slice(1)}` : s));
  return normal;
}

export const isX87 = (row: Row): boolean => row.unit === 'x87' || row.mnemonic === 'wait';
export const isVector = (row: Row): boolean => row.unit === 'sse' || row.unit === 'avx';

/** Operands of vector instructions stay as they are; AH to BH do not occur. */
function normaliseVector(normal: Normal, specs: readonly string[]): Normal {
  const names = (letters: string): boolean => specs.some((s) => letters.includes(s.charAt(0)));
  return {
    ...normal,
    operands: specs,
    byteReg: false,
    byteRm: false,
    vectorReg: names('V'),
    vectorRm: names('WU'),
    vectorVvvv: names('H'),
  };
}

function normaliseTwoWay(normal: Normal, text: string, register: boolean): void {
  const immediate = ACCUMULATOR[text];
  if (immediate !== undefined) {
    normal.operands = immediate;
    normal.accumulator = true;
    normal.byteRm = immediate[0] === 'Rb';
  } else if (register && SWAPPABLE[text] !== undefined) {
    normal.operands = SWAPPABLE[text];
    normal.swapped = true;
  } else if (text === 'Zv Iv') normal.operands = ['Rv', 'Iz'];
}

/** Mnemonics whose immediate is a shift count. */
const COUNTED = new Set(['rol', 'ror', 'rcl', 'rcr', 'shl', 'sal', 'shr', 'sar', 'shld', 'shrd']);

export const isCounted = (row: Row): boolean => COUNTED.has(row.mnemonic) && row.operands.includes('Ib');
export const countNotZero = (insn: Instruction): boolean => (Number(insn.imm) & (insn.opSize === 8 ? 63 : 31)) !== 0;

/** Where the form's memory operand comes from. */
function memoryKind(insn: Instruction): Form['memory'] {
  if (insn.modrm < 0 || insn.mod === 3 || insn.row.modrm === 'none' || insn.row.modrm === 'register') return 'none';
  if (insn.ripRelative) return 'rip';
  return insn.index >= 0 ? 'index' : 'base';
}

const usesMemory = (operands: readonly string[]): boolean =>
  operands.some((s) => 'EMOXYW'.includes(s[0]) || s.includes('/M'));
/** Implicit accesses through the operand segment. */
const IMPLICIT = new Set(['xlat', 'movs', 'cmps', 'stos', 'lods', 'scas', 'outs', 'ins']);
/** Semantics that depend on the code size or use the stack. */
const MODAL = new Set(
  'jcc jmp call ret loop loope loopne jcxz push pop pusha popa enter leave pushf popf pushseg popseg iret syscall sysret'.split(
    ' ',
  ),
);
/** Semantics that use the stack or implicit registers by address size. */
const BY_ADDRESS_SIZE = new Set(['loop', 'loope', 'loopne', 'jcxz', 'lea']);

const NOTHING = [''];

/** The form of an instruction, with everything left out that can't matter. */
export function formOf(insn: Instruction, normal: Normal, key: CodeKey, vendor: 'amd' | 'intel'): Form {
  const { row } = insn;
  // NOP looks at nothing, however long it is.
  const idle = row.mnemonic === 'nop';
  const operands = idle ? NOTHING : normal.operands;
  const memory = idle ? 'none' : memoryKind(insn);
  const accesses = (usesMemory(operands) && memory !== 'none') || hasMoffs(normal) || IMPLICIT.has(row.mnemonic);
  const addressed = accesses || BY_ADDRESS_SIZE.has(row.mnemonic);
  const long = key.codeSize === 8;
  const loadsSegment = row.mnemonic === 'movseg' && row.operands[0] === 'Sw';
  const modal = MODAL.has(row.mnemonic) || loadsSegment;
  const segments = long ? 'long' : key.flat || !(accesses || modal) ? 'flat' : 'checked';
  return {
    mnemonic: row.mnemonic,
    operands,
    opSize: idle ? 4 : row.unit === 'integer' || row.operands.some((s) => s.endsWith('y')) ? insn.opSize : 4,
    addrSize: addressed ? insn.addrSize : long ? 8 : 4,
    codeSize: modal ? key.codeSize : long ? 8 : 4,
    stackSize: modal ? key.stackSize : long ? 8 : 4,
    segments,
    special: accesses ? specialSegment(insn.seg, long) : -1,
    memory,
    lock: insn.lock,
    rep: row.string ? insn.rep : 0,
    condition: row.condition ?? -1,
    countNotZero: isCounted(row) && countNotZero(insn),
    vendor,
    ...(loadsSegment && insn.reg === Seg.SS ? { shadows: true as const } : {}),
    ...(isVector(row) ? { vector: vectorFacts(insn) } : isX87(row) ? { x87: true as const } : {}),
  };
}

/** Shifts by more than the lane do the same whatever the count. */
function significantImmediate({ row, imm }: Instruction): number {
  const byte = Number(imm) & 0xff;
  return /^v?ps[lr]/.test(row.mnemonic) ? Math.min(byte, 64) : byte;
}
/** Immediates of vector instructions are static: they choose lanes. */
const vectorFacts = (insn: Instruction): NonNullable<Form['vector']> => ({
  vex: insn.vex.present,
  wide: insn.vex.l === 1,
  imm: insn.row.operands.some((spec) => spec === 'Ib' || spec === 'Lx') ? significantImmediate(insn) : 0,
});

function specialSegment(seg: number, long: boolean): Form['special'] {
  if (seg === 4 || seg === 5) return seg;
  return seg === 1 && !long ? 1 : -1;
}

const hasMoffs = (normal: Normal): boolean => normal.operands.some((s) => s[0] === 'O');
