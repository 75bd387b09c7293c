/**
 * Operand specifiers of the decode tables as evaluate needs them: parsed once per row, bound to each instruction.
 * Manual: APM vol. 3 appendix A (the letters); decode/mnemonics.ts restates them.
 */
import type { Size } from '../../builder/builder.ts';
import type { Instruction, Row } from '../../decode/instruction.ts';

/** Where an operand is. `reg` fields name the record field that holds the register number. */
export type OperandPlace =
  | 'rm'
  /** modrm.rm as a register whatever mod says (MOV CR). */
  | 'rmRegister'
  | 'reg'
  | 'opReg'
  | 'vvvv'
  | 'imm'
  | 'rel'
  | 'moffs'
  | 'source'
  | 'destination'
  | 'gpr'
  | 'one'
  | 'segment'
  | 'fixedSegment'
  | 'control'
  | 'other';

export interface OperandForm {
  place: OperandPlace;
  /** Size letter as register and as memory operand: b w d q dq v z y p s a, or '' (an address only). */
  registerSize: string;
  memorySize: string;
  /** Number of a fixed register or segment. */
  fixed: number;
}

const FIXED: Readonly<Record<string, OperandForm>> = {
  AL: { place: 'gpr', registerSize: 'b', memorySize: 'b', fixed: 0 },
  CL: { place: 'gpr', registerSize: 'b', memorySize: 'b', fixed: 1 },
  DX: { place: 'gpr', registerSize: 'w', memorySize: 'w', fixed: 2 },
  rAX: { place: 'gpr', registerSize: 'v', memorySize: 'v', fixed: 0 },
  eAX: { place: 'gpr', registerSize: 'z', memorySize: 'z', fixed: 0 },
  '1': { place: 'one', registerSize: 'b', memorySize: 'b', fixed: 1 },
  ES: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 0 },
  CS: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 1 },
  SS: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 2 },
  DS: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 3 },
  FS: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 4 },
  GS: { place: 'fixedSegment', registerSize: 'w', memorySize: 'w', fixed: 5 },
};

const PLACES: Readonly<Record<string, OperandPlace>> = {
  E: 'rm',
  M: 'rm',
  R: 'rm',
  G: 'reg',
  Z: 'opReg',
  B: 'vvvv',
  I: 'imm',
  J: 'rel',
  O: 'moffs',
  X: 'source',
  Y: 'destination',
  S: 'segment',
  C: 'control',
  D: 'control',
};

/** Parses one specifier, e.g. `Ev`, `Ibs`, `Rv/Mw`, `rAX`. */
export function parseOperand(spec: string): OperandForm {
  const fixed = FIXED[spec];
  if (fixed !== undefined) return fixed;
  const [first = '', second] = spec.split('/');
  const registerSize = first.slice(1);
  const memorySize = second === undefined ? registerSize : second.slice(1);
  const letter = first.charAt(0);
  const place = letter === 'R' && second === undefined ? 'rmRegister' : (PLACES[letter] ?? 'other');
  return { place, registerSize, memorySize, fixed: 0 };
}

/** Bytes of a size letter under an operand size; 0 for what has no size of 1..8 bytes. */
export function sizeOf(letter: string, opSize: number): number {
  switch (letter) {
    case 'b':
      return 1;
    case 'w':
      return 2;
    case 'd':
      return 4;
    case 'q':
      return 8;
    case 'z':
      return opSize === 2 ? 2 : 4;
    case 'y':
      return opSize === 8 ? 8 : 4;
    case 'dq':
      return 16;
    default:
      return opSize;
  }
}

/** The general register that the operand names in this instruction. */
export function registerOf(form: OperandForm, insn: Instruction): number {
  switch (form.place) {
    case 'reg':
      return insn.reg;
    case 'rm':
    case 'rmRegister':
      return insn.rm;
    case 'opReg':
      return insn.opReg;
    case 'vvvv':
      return insn.vex.vvvv;
    default:
      return form.fixed;
  }
}

export const isMemory = (form: OperandForm, insn: Instruction): boolean =>
  form.place === 'moffs' || (form.place === 'rm' && insn.mod !== 3);

/** Size of an operand in this instruction. Immediates but `Ib` and `Iw` are extended to the operand size. */
export function operandSize(form: OperandForm, insn: Instruction): Size {
  if (form.place === 'imm' && form.registerSize !== 'b' && form.registerSize !== 'w') return insn.opSize;
  return sizeOf(isMemory(form, insn) ? form.memorySize : form.registerSize, insn.opSize) as Size;
}

/** The row's operands, parsed. */
export const operandForms = (row: Row): readonly OperandForm[] =>
  row.operands.filter((spec) => spec !== '').map(parseOperand);
