/** Constant folding of wasm's integer operations. Spec: WebAssembly 2.0, section 4.3.2. */
import type { Node, NodeOp } from './ir.ts';

const u = (x: bigint): bigint => BigInt.asUintN(64, x);
const s = (x: bigint): bigint => BigInt.asIntN(64, x);
const truth = (x: boolean): bigint => (x ? 1n : 0n);

const CONSTANT: Partial<Record<NodeOp, (a: bigint, b: bigint) => bigint>> = {
  i64Add: (a, b) => a + b,
  i64Sub: (a, b) => a - b,
  i64Mul: (a, b) => a * b,
  i64And: (a, b) => a & b,
  i64Or: (a, b) => a | b,
  i64Xor: (a, b) => a ^ b,
  i64Shl: (a, b) => a << (b & 63n),
  i64ShrU: (a, b) => u(a) >> (b & 63n),
  i64ShrS: (a, b) => s(a) >> (b & 63n),
  i64Eq: (a, b) => truth(a === b),
  i64Ne: (a, b) => truth(a !== b),
  i64LtU: (a, b) => truth(u(a) < u(b)),
  i64LeU: (a, b) => truth(u(a) <= u(b)),
  i64LtS: (a, b) => truth(s(a) < s(b)),
  i64LeS: (a, b) => truth(s(a) <= s(b)),
};

/** Operations for which a right operand of zero changes nothing. */
const NEUTRAL_ZERO = new Set<NodeOp>([
  'i64Add',
  'i64Sub',
  'i64Or',
  'i64Xor',
  'i64Shl',
  'i64ShrU',
  'i64ShrS',
  'i64Rotl',
  'i64Rotr',
]);
const COMMUTES = new Set<NodeOp>(['i64Add', 'i64Or', 'i64Xor']);

/** A constant, a node that the operation leaves as it is, or undefined. */
export function foldBinary(op: NodeOp, a: Node, b: Node): bigint | Node | undefined {
  if (a.op === 'const' && b.op === 'const') return CONSTANT[op]?.(a.k, b.k);
  if (b.op === 'const' && b.k === 0n) {
    if (NEUTRAL_ZERO.has(op)) return a;
    if (op === 'i64And' || op === 'i64Mul') return 0n;
  }
  if (a.op === 'const' && a.k === 0n) {
    if (COMMUTES.has(op)) return b;
    if (op === 'i64And' || op === 'i64Mul' || op === 'i64Shl' || op === 'i64ShrU') return 0n;
  }
  if (op === 'i64And' && b.op === 'const' && b.k === -1n) return a;
  return undefined;
}

const WIDTH: Partial<Record<NodeOp, number>> = { i64Extend8S: 8, i64Extend16S: 16, i64Extend32S: 32 };

export function foldUnary(op: NodeOp, a: Node): bigint | undefined {
  const width = WIDTH[op];
  return a.op === 'const' && width !== undefined ? BigInt.asIntN(width, a.k) : undefined;
}
