/**
 * The lazy form of the six arithmetic flags: two 64-bit words that hold any combination of them, without a note of which operation
 * made them.
 *
 *   ZF = result is 0                              CF = aux bit 63
 *   SF = result bit 63 ^ aux bit 0                OF = aux bit 63 ^ aux bit 62
 *   PF = even parity of (result ^ aux >> 8) & FF  AF = aux bit 3 | aux bit 4
 *
 * `result` is sign-extended from the operand size. For an addition bit 62 is the carry into the top bit.
 * Manual: APM vol. 1 section 3.1.4 (flags).
 */
import type { FlagName, FlagUpdate, Size } from '../../builder/builder.ts';
import type { Node } from './ir.ts';

/** The arithmetic that the flag algebra needs, on nodes. */
export interface FlagArithmetic {
  n64(value: bigint): Node;
  and(a: Node, b: Node): Node;
  or(a: Node, b: Node): Node;
  xor(a: Node, b: Node): Node;
  not(a: Node): Node;
  add(a: Node, b: Node): Node;
  sub(a: Node, b: Node): Node;
  shl(a: Node, n: Node): Node;
  shrU(a: Node, n: Node): Node;
  popcnt(a: Node): Node;
  zext(a: Node, size: Size): Node;
  sext(a: Node, size: Size): Node;
  eq(a: Node, b: Node): Node;
  ltS(a: Node, b: Node): Node;
  isZero(a: Node): Node;
  bit(a: Node, n: number): Node;
  notC(a: Node): Node;
  orC(a: Node, b: Node): Node;
  xorC(a: Node, b: Node): Node;
  fromCond(c: Node): Node;
}

export interface Lazy {
  result: Node;
  aux: Node;
}

const TOP = 1n << 63n;
const NEXT = 1n << 62n;
const AF = 1n << 3n;

const at = (m: FlagArithmetic, condition: Node, bit: number): Node => m.shl(m.fromCond(condition), m.n64(BigInt(bit)));

/** Reads one flag out of the lazy form. */
export function readFlag(m: FlagArithmetic, name: FlagName, { result, aux }: Lazy): Node {
  switch (name) {
    case 'cf':
      return m.ltS(aux, m.n64(0n));
    case 'of':
      return m.ltS(m.xor(aux, m.shl(aux, m.n64(1n))), m.n64(0n));
    case 'zf':
      return m.isZero(result);
    case 'sf':
      return m.ltS(m.xor(result, m.shl(aux, m.n64(63n))), m.n64(0n));
    case 'pf':
      return parityOf(m, m.xor(result, m.shrU(aux, m.n64(8n))));
    case 'af':
      return m.notC(m.isZero(m.and(aux, m.n64(0x18n))));
  }
}

/** Even parity of the low byte. */
export const parityOf = (m: FlagArithmetic, value: Node): Node => m.notC(m.bit(m.popcnt(m.zext(value, 1)), 0));

/** SF ^ OF in one comparison. */
export function lessThan(m: FlagArithmetic, { result, aux }: Lazy): Node {
  const sign = m.xor(result, m.shl(aux, m.n64(63n)));
  return m.ltS(m.xor(sign, m.xor(aux, m.shl(aux, m.n64(1n)))), m.n64(0n));
}

/** `borrows` / carries of a sum below 64 bits: the operands' difference from the plain exclusive or, carry in bit 8 * size. */
function narrowAux(m: FlagArithmetic, vector: Node, size: Size): Node {
  const high = m.shl(vector, m.n64(BigInt(63 - 8 * size)));
  return m.or(high, m.and(vector, m.n64(0x10n)));
}

/** A vector of carries out of every bit, any size. */
function wideAux(m: FlagArithmetic, carries: Node, size: Size): Node {
  if (size === 8) return m.and(carries, m.n64(TOP | NEXT | AF));
  return m.or(m.shl(carries, m.n64(BigInt(64 - 8 * size))), m.and(carries, m.n64(AF)));
}

/** a + b, operands zero-extended. */
export function auxAdd(m: FlagArithmetic, a: Node, b: Node, result: Node, size: Size): Node {
  if (size !== 8) {
    const x = m.zext(a, size);
    const y = m.zext(b, size);
    return narrowAux(m, m.xor(m.xor(x, y), m.add(x, y)), size);
  }
  return auxAdc(m, a, b, result, size);
}

/** a + b + carry; `result` includes the carry. */
export const auxAdc = (m: FlagArithmetic, a: Node, b: Node, result: Node, size: Size): Node =>
  wideAux(m, m.or(m.and(a, b), m.and(m.or(a, b), m.not(result))), size);

export function auxSub(m: FlagArithmetic, a: Node, b: Node, result: Node, size: Size): Node {
  if (size !== 8) {
    const x = m.zext(a, size);
    const y = m.zext(b, size);
    return narrowAux(m, m.xor(m.xor(x, y), m.sub(x, y)), size);
  }
  return auxSbb(m, a, b, result, size);
}

export const auxSbb = (m: FlagArithmetic, a: Node, b: Node, result: Node, size: Size): Node =>
  wideAux(m, m.or(m.and(m.not(a), b), m.and(m.not(m.xor(a, b)), result)), size);

/** INC and DEC keep CF. `edge`: the result that means overflow. */
export function auxStep(m: FlagArithmetic, old: Node, result: Node, size: Size, up: boolean): Node {
  const minimum = -1n << BigInt(8 * size - 1);
  const edge = up ? minimum : -minimum - 1n;
  const carry = m.and(old, m.n64(TOP));
  const overflow = m.eq(m.sext(result, size), m.n64(edge));
  const low = m.and(result, m.n64(15n));
  const adjust = up ? m.isZero(low) : m.eq(low, m.n64(15n));
  const next = m.xor(m.shrU(carry, m.n64(1n)), at(m, overflow, 62));
  return m.or(m.or(carry, next), at(m, adjust, 3));
}

/** CF and OF as lazy bits. */
const carryBits = (m: FlagArithmetic, cf: Node, of: Node): Node => m.or(at(m, cf, 63), at(m, m.xorC(cf, of), 62));

/** All six, `result` being what ZF, SF and PF follow. */
export const auxOf = (m: FlagArithmetic, cf: Node, of: Node, af: Node): Node =>
  m.or(carryBits(m, cf, of), at(m, af, 3));

/** All six from conditions. */
export function explicit(m: FlagArithmetic, f: Required<FlagUpdateNodes>): Lazy {
  const result = m.fromCond(m.notC(f.zf));
  const delta = m.or(at(m, m.xorC(f.pf, f.zf), 8), m.fromCond(f.sf));
  return { result, aux: m.or(auxOf(m, f.cf, f.of, f.af), delta) };
}

export type FlagUpdateNodes = { [K in keyof FlagUpdate]?: Node };

/** CF, OF, AF changed where given; ZF, SF, PF stay as they are encoded. */
export function changeAux(m: FlagArithmetic, old: Node, update: FlagUpdateNodes): Node {
  let aux = old;
  if (update.cf !== undefined || update.of !== undefined) {
    const lazy = { result: old, aux: old };
    const cf = update.cf ?? readFlag(m, 'cf', lazy);
    const of = update.of ?? readFlag(m, 'of', lazy);
    aux = m.or(m.and(aux, m.n64(NEXT - 1n)), carryBits(m, cf, of));
  }
  if (update.af !== undefined) aux = m.or(m.and(aux, m.n64(~0x18n)), at(m, update.af, 3));
  return aux;
}
