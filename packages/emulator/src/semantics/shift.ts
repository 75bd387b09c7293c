/**
 * Shifts and rotates. A masked count of zero changes no flag; the destination is written all the same.
 * Manual: APM vol. 3 ch. 3 (RCL, RCR, ROL, ROR, SAL, SAR, SHL, SHLD, SHR, SHRD, RORX, SARX, SHLX, SHRX).
 */
import type { Builder, Cond, Operation, Semantics, Size, Value } from '../builder/builder.ts';
import { bitsOf, operand, resultFlags, sign } from './support.ts';

/** The count, masked to 5 bits (6 for 64-bit operands). */
const maskedCount = (b: Builder, op: Operation, n: number): Value =>
  b.and(operand(op, n).get(), b.const(operand(op, 0).size === 8 ? 63 : 31));

interface Shifted {
  result: Value;
  cf: Cond;
  of: Cond;
}

const oneLess = (b: Builder, count: Value): Value => b.sub(count, b.const(1));

const shift =
  (compute: (b: Builder, x: Value, count: Value, size: Size) => Shifted): Semantics =>
  (b, op) => {
    const dst = operand(op, 0);
    const x = dst.getForWrite();
    const count = maskedCount(b, op, 1);
    const { result, cf, of } = compute(b, x, count, op.size);
    dst.set(result);
    b.when(b.ne(count, b.const(0)), () => {
      // AF is undefined; the processor sets it.
      b.setFlags({ cf, of, af: b.true(), ...resultFlags(b, result, op.size) });
    });
  };

const shl = shift((b, x, count, size) => {
  const result = b.shl(x, count);
  const cf = sign(b, b.shl(x, oneLess(b, count)), size);
  return { result, cf, of: b.xorC(cf, sign(b, result, size)) };
});

/** OF is the old sign for a count of one and clear for others: the bit below the result's sign. */
const shr = shift((b, x, count, size) => {
  const result = b.shrU(x, count);
  return { result, cf: b.bit(b.shrU(x, oneLess(b, count)), 0), of: b.bit(result, bitsOf(size) - 2) };
});

const sar = shift((b, x, count, size) => {
  const wide = b.sext(x, size);
  return { result: b.shrS(wide, count), cf: b.bit(b.shrS(wide, oneLess(b, count)), 0), of: b.false() };
});

/** Rotates change CF and OF only. */
const rotate =
  (compute: (b: Builder, x: Value, count: Value, size: Size) => Shifted): Semantics =>
  (b, op) => {
    const dst = operand(op, 0);
    const x = dst.getForWrite();
    const count = maskedCount(b, op, 1);
    const { result, cf, of } = compute(b, x, count, op.size);
    dst.set(result);
    b.when(b.ne(count, b.const(0)), () => b.setFlags({ cf, of }));
  };

/** Two bits below the top differ: what OF of a right rotate by one says. */
const topBitsDiffer = (b: Builder, value: Value, size: Size): Cond =>
  b.xorC(sign(b, value, size), b.bit(value, bitsOf(size) - 2));

/** Rotate left of the low `size` bytes; `count` is below the width. */
function rotateLeft(b: Builder, x: Value, count: Value, size: Size): Value {
  if (size === 8) return b.rotl(x, count);
  return b.zext(b.or(b.shl(x, count), b.shrU(x, b.sub(b.const(bitsOf(size)), count))), size);
}

function rotateRight(b: Builder, x: Value, count: Value, size: Size): Value {
  if (size === 8) return b.rotr(x, count);
  return b.zext(b.or(b.shrU(x, count), b.shl(x, b.sub(b.const(bitsOf(size)), count))), size);
}

const rol = rotate((b, x, count, size) => {
  const result = rotateLeft(b, x, b.and(count, b.const(bitsOf(size) - 1)), size);
  const cf = b.bit(result, 0);
  return { result, cf, of: b.xorC(cf, sign(b, result, size)) };
});

const ror = rotate((b, x, count, size) => {
  const result = rotateRight(b, x, b.and(count, b.const(bitsOf(size) - 1)), size);
  return { result, cf: sign(b, result, size), of: topBitsDiffer(b, result, size) };
});

/** Rotates through carry turn `width + 1` bits; below 64 bits that ring fits into one value. */
function carryRing(b: Builder, x: Value, count: Value, size: Size, left: boolean): { result: Value; cf: Cond } {
  const width = bitsOf(size);
  const turn = size < 4 ? b.remU(count, b.const(width + 1)) : count;
  const ring = b.or(x, b.shl(b.fromCond(b.flag('cf')), b.const(width)));
  const rest = b.sub(b.const(width + 1), turn);
  const turned = left ? b.or(b.shl(ring, turn), b.shrU(ring, rest)) : b.or(b.shrU(ring, turn), b.shl(ring, rest));
  return { result: b.zext(turned, size), cf: b.bit(turned, width) };
}

/** The 65-bit ring, for counts 1..63; a count of zero is left out by `select`. */
function carryRing64(b: Builder, x: Value, count: Value, left: boolean): { result: Value; cf: Cond } {
  const carry = b.fromCond(b.flag('cf'));
  const away = b.sub(b.const(64), count);
  const turned = left
    ? b.or(b.or(b.shl(x, count), b.shl(carry, oneLess(b, count))), b.shrU(b.shrU(x, away), b.const(1)))
    : b.or(b.or(b.shrU(x, count), b.shl(carry, away)), b.shl(b.shl(x, away), b.const(1)));
  const cf = b.bit(b.shrU(x, left ? away : oneLess(b, count)), 0);
  return { result: b.select(b.isZero(count), x, turned), cf };
}

const throughCarry = (left: boolean): Semantics =>
  rotate((b, x, count, size) => {
    const { result, cf } = size === 8 ? carryRing64(b, x, count, left) : carryRing(b, x, count, size, left);
    const of = left ? b.xorC(cf, sign(b, result, size)) : topBitsDiffer(b, result, size);
    return { result, cf, of };
  });

/** Double shifts: bits of `fill` move into `x`. Counts above 16 of a 16-bit operand go round through both. */
function doubleShift(b: Builder, x: Value, fill: Value, count: Value, size: Size, left: boolean): Value {
  if (size === 2) {
    const middle = b.shl(fill, b.const(16));
    return left
      ? b.shrU(b.shl(b.or(b.shl(x, b.const(32)), b.or(middle, fill)), count), b.const(32))
      : b.shrU(b.or(x, b.or(middle, b.shl(fill, b.const(32)))), count);
  }
  const rest = b.sub(b.const(bitsOf(size) - 1), count);
  return left
    ? b.or(b.shl(x, count), b.shrU(b.shrU(fill, b.const(1)), rest))
    : b.or(b.shrU(x, count), b.shl(b.shl(fill, b.const(1)), rest));
}

const double =
  (left: boolean): Semantics =>
  (b, op) => {
    const dst = operand(op, 0);
    const x = dst.getForWrite();
    const fill = operand(op, 1).get();
    const count = maskedCount(b, op, 2);
    const result = doubleShift(b, x, fill, count, op.size, left);
    dst.set(result);
    b.when(b.ne(count, b.const(0)), () => {
      const before = oneLess(b, count);
      const cf = left ? sign(b, b.shl(x, before), op.size) : b.bit(b.shrU(x, before), 0);
      const of = left ? b.xorC(cf, sign(b, result, op.size)) : topBitsDiffer(b, result, op.size);
      // AF is undefined; the processor sets it.
      b.setFlags({ cf, of, af: b.true(), ...resultFlags(b, result, op.size) });
    });
  };

/** BMI2 shifts change no flag. */
const flagless =
  (compute: (b: Builder, x: Value, count: Value, size: Size) => Value): Semantics =>
  (b, op) => {
    const x = operand(op, 1).get();
    const count = maskedCount(b, op, 2);
    const dst = operand(op, 0);
    dst.set(compute(b, x, count, dst.size));
  };

export const SHIFT: Record<string, Semantics> = {
  rol,
  ror,
  rcl: throughCarry(true),
  rcr: throughCarry(false),
  shl,
  shr,
  sar,
  shld: double(true),
  shrd: double(false),
  shlx: flagless((b, x, count) => b.shl(x, count)),
  shrx: flagless((b, x, count) => b.shrU(x, count)),
  sarx: flagless((b, x, count, size) => b.shrS(b.sext(x, size), count)),
  rorx: flagless((b, x, count, size) => rotateRight(b, x, count, size)),
};
