/**
 * What recorded x87 instructions need beside the Builder: the register stack in the state block, and a way out to the exact functions
 * (semantics/fp). Offsets are bytes of the state block (state-layout.ts).
 */
import type { Builder, Cond, Size, Value } from './builder.ts';

/**
 * What is known of the register stack where several instructions are recorded one behind the other. Registers are counted from the one that
 * was ST(0) at the beginning, modulo 8.
 */
export interface X87Known {
  /** Which one is ST(0) now. */
  top: number;
  /** TOP at the beginning, once somebody has asked for it. */
  first: Value | null;
  /** FSW.ES is clear. */
  checked: boolean;
  readonly used: Set<number>;
  readonly empty: Set<number>;
  /** A normal number or a zero. */
  readonly plain: Set<number>;
  readonly mant: Map<number, Value>;
  readonly signExponent: Map<number, Value>;
}

export interface X87Builder extends Builder {
  /** null: each instruction is recorded for itself. */
  x87Known(): X87Known | null;
  /** The number that a value is, if that is known. */
  constantOf(a: Value): number | null;
  /** A field of the state block. */
  state(offset: number, size: Size): Value;
  /** Sizes 1, 2 and 8 only. */
  setState(offset: number, size: Size, value: Value): void;
  /** A field at `offset` plus a computed distance. */
  stateAt(distance: Value, offset: number, size: Size): Value;
  setStateAt(distance: Value, offset: number, size: 2 | 8, value: Value): void;
  /** CR0.EM or TS is set, or the mode keeps linear instruction pointers (real and virtual-8086). */
  isX87Gated(): Cond;
  /** JavaScript executes the instruction after all; nothing may have been committed. */
  handBackWhen(c: Cond): void;
}

/** Static facts. The second immediate of the record is the instruction's opcode as FSTENV shows it. */
export interface X87Form {
  readonly operands: readonly string[];
  readonly memory: boolean;
}
