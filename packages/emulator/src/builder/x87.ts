/**
 * What recorded x87 instructions need beside the Builder: the register stack in the state block, and a way out to the exact functions
 * (semantics/fp). Offsets are bytes of the state block (state-layout.ts).
 */
import type { Builder, Cond, Size, Value } from './builder.ts';

export interface X87Builder extends Builder {
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
