/**
 * Bit tests, bit scans, bit counts, BMI and CRC32.
 * Manual: APM vol. 3 ch. 3 (ANDN, BEXTR, BLSI, BLSMSK, BLSR, BSF, BSR, BT, BTC, BTR, BTS, BZHI, CRC32, LZCNT, PDEP, PEXT, POPCNT, TZCNT).
 */
import type { Builder, Cond, Operation, Semantics, Value } from '../builder/builder.ts';
import { bitsOf, operand, parity, resultFlags } from './support.ts';

/** Offset of the operand-sized unit that holds bit `index` (signed) of a bit string in memory. */
function unitOffset(b: Builder, op: Operation, index: Value): Value {
  const units = b.shrS(b.sext(index, op.size), b.const(Math.log2(bitsOf(op.size))));
  return b.zext(b.add(b.ea(), b.mul(units, b.const(op.size))), op.addrSize);
}

/** BT and its kin: a register index into memory reaches beyond the operand (APM vol. 3, BT). */
const bitTest =
  (change?: (b: Builder, x: Value, mask: Value) => Value): Semantics =>
  (b, op) => {
    const dst = operand(op, 0);
    const src = operand(op, 1);
    const index = src.get();
    const bit = b.and(index, b.const(bitsOf(op.size) - 1));
    const far = dst.kind === 'mem' && src.kind === 'reg';
    const access = { seg: 'operand', size: op.size, forWrite: change !== undefined, locked: op.lock } as const;
    const offset = far ? unitOffset(b, op, index) : undefined;
    const x = offset !== undefined ? b.load(offset, access) : change === undefined ? dst.get() : dst.getForWrite();
    if (change !== undefined) {
      const result = change(b, x, b.shl(b.const(1), bit));
      if (offset !== undefined) b.store(offset, result, access);
      else dst.set(result);
    }
    b.setFlags({ cf: b.bit(b.shrU(x, bit), 0) });
  };

/** BSF, BSR: a zero source leaves the destination (APM vol. 3: undefined by Intel, unchanged by AMD). */
const scan =
  (find: (b: Builder, x: Value) => Value): Semantics =>
  (b, op) => {
    const x = operand(op, 1).get();
    const zero = b.isZero(x);
    const found = find(b, x);
    b.when(b.notC(zero), () => operand(op, 0).set(found));
    const no = b.false();
    b.setFlags({ cf: no, pf: parity(b, b.select(zero, x, found)), af: no, zf: zero, sf: no, of: no });
  };

/** TZCNT, LZCNT: the width for zero. */
const count =
  (find: (b: Builder, op: Operation, x: Value) => Value): Semantics =>
  (b, op) => {
    const x = operand(op, 1).get();
    const result = find(b, op, x);
    operand(op, 0).set(result);
    const no = b.false();
    b.setFlags({ cf: b.isZero(x), zf: b.isZero(result), pf: no, af: no, sf: no });
  };

const tzcnt = count((b, op, x) => (op.size === 8 ? b.ctz(x) : b.ctz(b.or(x, b.const(1n << BigInt(bitsOf(op.size)))))));
const lzcnt = count((b, op, x) => b.sub(b.clz(x), b.const(64 - bitsOf(op.size))));

const popcnt: Semantics = (b, op) => {
  const result = b.popcnt(operand(op, 1).get());
  operand(op, 0).set(result);
  const no = b.false();
  b.setFlags({ cf: no, of: no, sf: no, af: no, pf: no, zf: b.isZero(result) });
};

/** SF, ZF, PF from the result, OF = AF = 0, CF as given (AF and PF are undefined by the manual). */
function bmiFlags(b: Builder, op: Operation, result: Value, cf: Cond): void {
  const size = operand(op, 0).size;
  const low = b.zext(result, size);
  b.setFlags({ cf, of: b.false(), af: b.false(), ...resultFlags(b, low, size) });
}

const andn: Semantics = (b, op) => {
  const result = b.and(b.not(operand(op, 1).get()), operand(op, 2).get());
  operand(op, 0).set(result);
  bmiFlags(b, op, result, b.false());
};

/** BLSR, BLSMSK, BLSI: the lowest set bit. `cf` is told whether the source is zero. */
const lowestBit =
  (compute: (b: Builder, x: Value) => Value, cf: (b: Builder, zero: Cond) => Cond): Semantics =>
  (b, op) => {
    const x = operand(op, 1).get();
    const result = compute(b, x);
    operand(op, 0).set(result);
    bmiFlags(b, op, result, cf(b, b.isZero(x)));
  };

const belowLowest = (b: Builder, x: Value): Value => b.sub(x, b.const(1));

/** The low `length` bits set; 64 and more give all. */
const lowMask = (b: Builder, length: Value): Value =>
  b.select(b.ltU(length, b.const(64)), b.sub(b.shl(b.const(1), length), b.const(1)), b.const(-1n));

const bextr: Semantics = (b, op) => {
  const x = operand(op, 1).get();
  const control = operand(op, 2).get();
  const start = b.zext(control, 1);
  const length = b.zext(b.shrU(control, b.const(8)), 1);
  const shifted = b.select(b.ltU(start, b.const(64)), b.shrU(x, start), b.const(0));
  const result = b.and(shifted, lowMask(b, length));
  operand(op, 0).set(result);
  const no = b.false();
  b.setFlags({ cf: no, of: no, zf: b.isZero(result), sf: no, af: b.true(), pf: parity(b, result) });
};

const bzhi: Semantics = (b, op) => {
  const x = operand(op, 1).get();
  const index = b.zext(operand(op, 2).get(), 1);
  const result = b.and(x, lowMask(b, index));
  operand(op, 0).set(result);
  bmiFlags(b, op, result, b.ltU(b.const(bitsOf(operand(op, 0).size) - 1), index));
};

/** PEXT, PDEP walk the mask's set bits from below; `dense` is the bit in the packed value, `sparse` the one in the mask. */
const bitGather =
  (select: (b: Builder, x: Value, dense: Value, sparse: Value) => { test: Value; put: Value }): Semantics =>
  (b, op) => {
    const x = operand(op, 1).get();
    const mask = b.variable(operand(op, 2).get());
    const dense = b.variable(b.const(1));
    const result = b.variable(b.const(0));
    b.loop(() => {
      const sparse = b.and(mask.get(), b.neg(mask.get()));
      const { test, put } = select(b, x, dense.get(), sparse);
      result.set(b.or(result.get(), b.select(b.isZero(test), b.const(0), put)));
      dense.set(b.shl(dense.get(), b.const(1)));
      mask.set(b.xor(mask.get(), sparse));
      return b.ne(mask.get(), b.const(0));
    });
    operand(op, 0).set(result.get());
  };

const pext = bitGather((b, x, dense, sparse) => ({ test: b.and(x, sparse), put: dense }));
const pdep = bitGather((b, x, dense, sparse) => ({ test: b.and(x, dense), put: sparse }));

/** The Castagnoli polynomial, bit-reversed. */
const CRC32C = 0x82f63b78;

const crc32: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const src = operand(op, 1);
  const rest = b.variable(b.xor(b.zext(dst.get(), 4), src.get()));
  const left = b.variable(b.const(bitsOf(src.size)));
  b.loop(() => {
    const value = rest.get();
    const feedback = b.select(b.bit(value, 0), b.const(CRC32C), b.const(0));
    rest.set(b.xor(b.shrU(value, b.const(1)), feedback));
    left.set(b.sub(left.get(), b.const(1)));
    return b.ne(left.get(), b.const(0));
  });
  dst.set(b.zext(rest.get(), 4));
};

export const BIT: Record<string, Semantics> = {
  bt: bitTest(),
  bts: bitTest((b, x, mask) => b.or(x, mask)),
  btr: bitTest((b, x, mask) => b.and(x, b.not(mask))),
  btc: bitTest((b, x, mask) => b.xor(x, mask)),
  bsf: scan((b, x) => b.ctz(x)),
  bsr: scan((b, x) => b.sub(b.const(63), b.clz(x))),
  tzcnt,
  lzcnt,
  popcnt,
  andn,
  blsr: lowestBit(
    (b, x) => b.and(x, belowLowest(b, x)),
    (_b, zero) => zero,
  ),
  blsmsk: lowestBit(
    (b, x) => b.xor(x, belowLowest(b, x)),
    (_b, zero) => zero,
  ),
  blsi: lowestBit(
    (b, x) => b.and(x, b.neg(x)),
    (b, zero) => b.notC(zero),
  ),
  bextr,
  bzhi,
  pext,
  pdep,
  crc32,
};
