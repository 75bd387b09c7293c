/**
 * Addition, subtraction and comparison.
 * Manual: APM vol. 3 ch. 3 (ADC, ADCX, ADD, ADOX, CMP, DEC, INC, NEG, SBB, SUB).
 */
import type { Builder, Cond, Operation, Semantics, Value } from '../builder/builder.ts';
import { operand } from './support.ts';

const add: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const y = operand(op, 1).get();
  const result = b.add(x, y);
  dst.set(result);
  b.flagsAdd(x, y, result, op.size);
};

const adc: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const y = operand(op, 1).get();
  const result = b.add(b.add(x, y), b.fromCond(b.flag('cf')));
  dst.set(result);
  b.flagsAdc(x, y, result, op.size);
};

const sub: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const y = operand(op, 1).get();
  const result = b.sub(x, y);
  dst.set(result);
  b.flagsSub(x, y, result, op.size);
};

const sbb: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const y = operand(op, 1).get();
  const result = b.sub(b.sub(x, y), b.fromCond(b.flag('cf')));
  dst.set(result);
  b.flagsSbb(x, y, result, op.size);
};

const cmp: Semantics = (b, op) => {
  const x = operand(op, 0).get();
  const y = operand(op, 1).get();
  b.flagsSub(x, y, b.sub(x, y), op.size);
};

const inc: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const result = b.add(dst.getForWrite(), b.const(1));
  dst.set(result);
  b.flagsInc(result, op.size);
};

const dec: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const result = b.sub(dst.getForWrite(), b.const(1));
  dst.set(result);
  b.flagsDec(result, op.size);
};

const neg: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const result = b.neg(x);
  dst.set(result);
  b.flagsSub(b.const(0), x, result, op.size);
};

/** x + y + carry as (sum, carry out): the sum of 32-bit operands has its carry in bit 32, 64-bit ones have to compare. */
function addWithCarry(b: Builder, op: Operation, carryIn: Cond): { sum: Value; carry: Cond } {
  const dst = operand(op, 0);
  const x = dst.get();
  const y = operand(op, 1).get();
  const sum = b.add(b.add(x, y), b.fromCond(carryIn));
  const carry = dst.size === 8 ? b.orC(b.ltU(sum, x), b.andC(carryIn, b.eq(sum, x))) : b.bit(sum, dst.size * 8);
  return { sum, carry };
}

const adcx: Semantics = (b, op) => {
  const { sum, carry } = addWithCarry(b, op, b.flag('cf'));
  operand(op, 0).set(sum);
  b.setFlags({ cf: carry });
};

const adox: Semantics = (b, op) => {
  const { sum, carry } = addWithCarry(b, op, b.flag('of'));
  operand(op, 0).set(sum);
  b.setFlags({ of: carry });
};

export const ARITHMETIC: Record<string, Semantics> = { add, adc, sub, sbb, cmp, inc, dec, neg, adcx, adox };
