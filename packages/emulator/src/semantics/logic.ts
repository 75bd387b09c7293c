/**
 * Bitwise logic.
 * Manual: APM vol. 3 ch. 3 (AND, NOT, OR, TEST, XOR).
 */
import type { Builder, Semantics, Value } from '../builder/builder.ts';
import { operand } from './support.ts';

const binary =
  (compute: (b: Builder, x: Value, y: Value) => Value): Semantics =>
  (b, op) => {
    const dst = operand(op, 0);
    const x = dst.getForWrite();
    const result = compute(b, x, operand(op, 1).get());
    dst.set(result);
    b.flagsLogic(result, op.size);
  };

const test: Semantics = (b, op) => {
  b.flagsLogic(b.and(operand(op, 0).get(), operand(op, 1).get()), op.size);
};

const not: Semantics = (b, op) => {
  const dst = operand(op, 0);
  dst.set(b.not(dst.getForWrite()));
};

export const LOGIC: Record<string, Semantics> = {
  and: binary((b, x, y) => b.and(x, y)),
  or: binary((b, x, y) => b.or(x, y)),
  xor: binary((b, x, y) => b.xor(x, y)),
  test,
  not,
};
