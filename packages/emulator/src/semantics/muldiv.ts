/**
 * Multiplication, division and the sign extensions that prepare for them.
 * Manual: APM vol. 3 ch. 3 (MUL, IMUL, DIV, IDIV, CBW, CWD, MULX).
 */
import type { Builder, Cond, Operation, Semantics, Size, Value } from '../builder/builder.ts';
import { Vector } from '../state-layout.ts';
import { bitsOf, operand, reg } from './support.ts';

/** Writes a product to AX or rDX:rAX. */
function setProduct(b: Builder, size: Size, low: Value, high: Value): void {
  if (size === 1) {
    b.setReg(reg.rax, 2, low);
    return;
  }
  b.setReg(reg.rax, size, low);
  b.setReg(reg.rdx, size, high);
}

/** CF = OF = the upper half matters; the other flags are undefined and stay. */
const productFlags = (b: Builder, overflow: Cond): void => b.setFlags({ cf: overflow, of: overflow });

const mul: Semantics = (b, op) => {
  const size = op.size;
  const y = operand(op, 0).get();
  const x = b.getReg(reg.rax, size);
  const low = b.mul(x, y);
  const high = size === 8 ? b.mulHighU(x, y) : b.shrU(low, b.const(bitsOf(size)));
  setProduct(b, size, low, high);
  productFlags(b, b.ne(high, b.const(0)));
};

/** Signed product of two `size`-byte values: low 64 bits, high part, and whether it does not fit into `size` bytes. */
function signedProduct(b: Builder, x: Value, y: Value, size: Size): { low: Value; high: Value; overflow: Cond } {
  const a = b.sext(x, size);
  const c = b.sext(y, size);
  const low = b.mul(a, c);
  if (size === 8) {
    const high = b.mulHighS(a, c);
    return { low, high, overflow: b.ne(high, b.shrS(low, b.const(63))) };
  }
  return { low, high: b.shrU(low, b.const(bitsOf(size))), overflow: b.ne(low, b.sext(low, size)) };
}

const imul: Semantics = (b, op) => {
  const size = op.size;
  if (op.operands.length === 1) {
    const { low, high, overflow } = signedProduct(b, b.getReg(reg.rax, size), operand(op, 0).get(), size);
    setProduct(b, size, low, high);
    productFlags(b, overflow);
    return;
  }
  const dst = operand(op, 0);
  const x = op.operands.length === 2 ? dst.get() : operand(op, 2).get();
  const { low, overflow } = signedProduct(b, x, operand(op, 1).get(), size);
  dst.set(low);
  productFlags(b, overflow);
};

const mulx: Semantics = (b, op) => {
  const size = operand(op, 0).size;
  const x = b.getReg(reg.rdx, size);
  const y = operand(op, 2).get();
  const low = b.mul(x, y);
  const high = size === 8 ? b.mulHighU(x, y) : b.shrU(low, b.const(bitsOf(size)));
  operand(op, 1).set(low);
  operand(op, 0).set(high);
};

/** The dividend of operands below 64 bits as one value: AX, or rDX:rAX. */
function narrowDividend(b: Builder, size: Size): Value {
  if (size === 1) return b.getReg(reg.rax, 2);
  return b.or(b.shl(b.getReg(reg.rdx, size), b.const(bitsOf(size))), b.getReg(reg.rax, size));
}

/** CF and OF stay; the others, undefined, are what the processor makes of them. */
function setQuotient(b: Builder, size: Size, quotient: Value, remainder: Value): void {
  b.setFlags({ pf: b.false(), af: b.true(), zf: b.false(), sf: b.false() });
  if (size === 1) {
    b.setReg(reg.rax, 2, b.or(b.zext(quotient, 1), b.shl(b.zext(remainder, 1), b.const(8))));
    return;
  }
  b.setReg(reg.rax, size, quotient);
  b.setReg(reg.rdx, size, remainder);
}

const div: Semantics = (b, op) => {
  const size = op.size;
  const divisor = operand(op, 0).get();
  if (size === 8) {
    const high = b.getReg(reg.rdx, 8);
    // Covers a zero divisor too.
    b.raiseWhen(b.leU(divisor, high), Vector.DE);
    const { quotient, remainder } = b.div128U(high, b.getReg(reg.rax, 8), divisor);
    setQuotient(b, size, quotient, remainder);
    return;
  }
  const dividend = narrowDividend(b, size);
  b.raiseWhen(b.leU(divisor, b.shrU(dividend, b.const(bitsOf(size)))), Vector.DE);
  setQuotient(b, size, b.divU(dividend, divisor), b.remU(dividend, divisor));
};

/** IDIV below 64 bits: the dividend fits into 64 bits. */
function idivNarrow(b: Builder, op: Operation): void {
  const size = op.size;
  const divisor = b.sext(operand(op, 0).get(), size);
  const raw = narrowDividend(b, size);
  const dividend = size === 4 ? raw : b.sext(raw, size === 1 ? 2 : 4);
  b.raiseWhen(b.isZero(divisor), Vector.DE);
  // The one quotient that 64 bits can't hold.
  const tooLow = b.andC(b.eq(dividend, b.const(1n << 63n)), b.eq(divisor, b.const(-1n)));
  b.raiseWhen(tooLow, Vector.DE);
  const quotient = b.divS(dividend, divisor);
  b.raiseWhen(b.ne(quotient, b.sext(quotient, size)), Vector.DE);
  setQuotient(b, size, quotient, b.remS(dividend, divisor));
}

/** IDIV of RDX:RAX: by magnitudes. */
function idivWide(b: Builder, op: Operation): void {
  const divisor = operand(op, 0).get();
  const high = b.getReg(reg.rdx, 8);
  const low = b.getReg(reg.rax, 8);
  const negative = b.bit(high, 63);
  const divisorNegative = b.bit(divisor, 63);
  const magnitudeLow = b.select(negative, b.neg(low), low);
  const negatedHigh = b.sub(b.not(high), b.const(-1n));
  const borrowedHigh = b.select(b.isZero(low), negatedHigh, b.not(high));
  const magnitudeHigh = b.select(negative, borrowedHigh, high);
  const magnitude = b.select(divisorNegative, b.neg(divisor), divisor);
  b.raiseWhen(b.leU(magnitude, magnitudeHigh), Vector.DE);
  const { quotient, remainder } = b.div128U(magnitudeHigh, magnitudeLow, magnitude);
  const quotientNegative = b.xorC(negative, divisorNegative);
  const limit = b.select(quotientNegative, b.const(1n << 63n), b.const((1n << 63n) - 1n));
  b.raiseWhen(b.ltU(limit, quotient), Vector.DE);
  setQuotient(
    b,
    8,
    b.select(quotientNegative, b.neg(quotient), quotient),
    b.select(negative, b.neg(remainder), remainder),
  );
}

const idiv: Semantics = (b, op) => (op.size === 8 ? idivWide(b, op) : idivNarrow(b, op));

/** CBW, CWDE, CDQE by operand size. */
const cbw: Semantics = (b, op) => {
  const half = (op.size / 2) as Size;
  b.setReg(reg.rax, op.size, b.sext(b.getReg(reg.rax, half), half));
};

/** CWD, CDQ, CQO by operand size. */
const cwd: Semantics = (b, op) => {
  const wide = b.sext(b.getReg(reg.rax, op.size), op.size);
  b.setReg(reg.rdx, op.size, b.shrS(wide, b.const(63)));
};

export const MULDIV: Record<string, Semantics> = { mul, imul, mulx, div, idiv, cbw, cwd };
