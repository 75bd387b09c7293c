/**
 * Shapes: what the predecoder works out once for all instructions of a decode row that differ only in what their records hold.
 */
import type { Instruction, Row } from '../../decode/instruction.ts';
import { hasVectorSemantics } from '../../semantics/vector/index.ts';
import { hasX87Semantics } from '../../semantics/x87/fast.ts';
import type { CodeKey } from '../engine.ts';
import type { Stopwatch } from '../stopwatch.ts';
import type { ColdForm, ColdForms } from './cold-forms.ts';
import { countNotZero, formOf, isCounted, isVector, isX87, type Normal, normalise } from './form.ts';
import type { FormInfo, HandlerSet } from './handlers.ts';
import { hasSemantics } from './operation.ts';
import { hasSystemPath, isSegmentInstruction } from './system-paths.ts';

export interface Shape {
  /** null: JavaScript executes it. */
  info: FormInfo | null;
  /** It has, or gets, its handler only after it has run. */
  readonly cold: ColdForm | null;
  readonly normal: Normal;
  /** Nothing follows it in a run. */
  readonly ends: boolean;
  /** It has a relative target, which a record can link. */
  readonly direct: boolean;
  /** POP to memory. */
  readonly pops: boolean;
  /** Its record names a segment register. */
  readonly segment: boolean;
  /** A condition that a comparison before it may be fused with, or -1. */
  readonly condition: number;
}

/** Shapes of one row by signature. */
interface RowShapes {
  readonly counted: boolean;
  readonly segment: boolean;
  readonly vector: boolean;
  /** MOV to and from control registers, which `reg` names. */
  readonly control: boolean;
  readonly shapes: Map<number, Shape>;
}

export interface ShapeOptions {
  vendor: 'amd' | 'intel';
  /** The decoder knows the processor's features: what it decodes exists. */
  allFeatures: boolean;
  forms: ColdForms;
  /** Times what new forms take. */
  watch: Stopwatch;
}

const UNCONDITIONAL = new Set(['jmp', 'call', 'ret']);

/** Does generated code execute it? Otherwise JavaScript does: checks of privilege and intercepts live there. */
function isGenerated(insn: Instruction, allFeatures: boolean, key: CodeKey): boolean {
  const { row } = insn;
  if (insn.codeSize === 8 ? row.no64 : row.only64) return false;
  if (hasSystemPath(insn)) return !insn.lock;
  if (isX87(row)) return allFeatures && !insn.lock && hasX87Semantics(row);
  if (isVector(row)) return allFeatures && !insn.lock && hasVectorSemantics(row) && hasPlainAddress(insn, key);
  if (!hasSemantics(row.mnemonic) || row.unit !== 'integer') return false;
  if (row.intercept !== 'none' || row.privileged || row.protectedOnly || row.blockEnd === 'system') return false;
  // ENTER's levels store and load by turns: what a device has been told can't be done again by JavaScript.
  if (isNested(insn)) return false;
  if (row.feature !== undefined && !allFeatures) return false;
  return !insn.lock || (row.lockable && insn.mod !== 3);
}

const isNested = ({ row, imm2 }: Instruction): boolean => row.mnemonic === 'enter' && (imm2 & 31) !== 0;

/** Accesses of 16 bytes do not go through segment checks. */
const hasPlainAddress = (insn: Instruction, key: CodeKey): boolean =>
  insn.modrm < 0 || insn.mod === 3 || key.codeSize === 8 || (key.flat && insn.seg !== 1 && insn.seg < 4);

/** FS, GS, CS; the other segments make no difference to a form. */
const SEGMENT_CODE = [0, 3, 0, 0, 1, 2];
const REP_CODE = (rep: number): number => (rep === 0 ? 0 : rep === 0xf2 ? 1 : 2);

export class ShapeTable {
  readonly #rows = new Map<Row, RowShapes>();
  readonly #handlers: HandlerSet;
  readonly #key: CodeKey;
  readonly #options: ShapeOptions;

  constructor(handlers: HandlerSet, key: CodeKey, options: ShapeOptions) {
    this.#handlers = handlers;
    this.#key = key;
    this.#options = options;
  }

  of(insn: Instruction): Shape {
    let row = this.#rows.get(insn.row);
    if (row === undefined) {
      row = {
        counted: isCounted(insn.row),
        segment: isSegmentInstruction(insn.row),
        vector: isVector(insn.row),
        control: insn.row.mnemonic === 'movcr',
        shapes: new Map(),
      };
      this.#rows.set(insn.row, row);
    }
    const signature =
      (insn.opSize >> 1) |
      ((insn.addrSize >> 1) << 3) |
      (insn.mod === 3 ? 0x40 : 0) |
      (insn.ripRelative ? 0x100 : insn.index >= 0 ? 0x80 : 0) |
      (insn.lock ? 0x200 : 0) |
      (REP_CODE(insn.rep) << 10) |
      (SEGMENT_CODE[insn.seg] << 12) |
      (row.counted && countNotZero(insn) ? 0x4000 : 0) |
      (row.segment ? (insn.reg & 7) << 15 : row.control ? insn.reg << 15 : 0) |
      (isNested(insn) ? 1 << 27 : 0) |
      // Lanes are chosen by a static immediate.
      (row.vector ? (insn.vex.l << 18) | ((Number(insn.imm) & 0xff) << 19) : 0);
    let shape = row.shapes.get(signature);
    if (shape === undefined) row.shapes.set(signature, (shape = this.#make(insn, row.segment)));
    return shape;
  }

  #make(insn: Instruction, segment: boolean): Shape {
    const { mnemonic, operands, condition } = insn.row;
    const normal = normalise(insn);
    const { vendor, allFeatures, forms, watch } = this.#options;
    const form = isGenerated(insn, allFeatures, this.#key) ? formOf(insn, normal, this.#key, vendor) : null;
    const cold = form === null ? null : forms.of(this.#handlers, form);
    const known = form !== null && cold === null && this.#handlers.hasRoomFor(form);
    const generated = known || cold !== null;
    const shape: Shape = {
      info: known ? watch.time(() => this.#handlers.info(form)) : (cold?.info ?? null),
      cold,
      normal,
      ends: !generated || UNCONDITIONAL.has(mnemonic),
      direct: operands.some((s) => s[0] === 'J'),
      pops: mnemonic === 'pop',
      segment,
      condition: mnemonic === 'jcc' ? condition! : -1,
    };
    cold?.shapes.push(shape);
    return shape;
  }
}
