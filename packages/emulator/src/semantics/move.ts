/**
 * Moves, extensions, conditional moves and sets, address computation, and what does nothing.
 * Manual: APM vol. 3 ch. 3 (MOV, MOVZX, MOVSX, MOVSXD, MOVBE, MOVNTI, BSWAP, CMOVcc, SETcc, LEA, XLAT, NOP, PREFETCH).
 */
import type { Builder, Semantics, Size, Value } from '../builder/builder.ts';
import { Vector } from '../state-layout.ts';
import { operand, reg } from './support.ts';

const mov: Semantics = (_b, op) => operand(op, 0).set(operand(op, 1).get());

const signExtend: Semantics = (b, op) => {
  const src = operand(op, 1);
  operand(op, 0).set(b.sext(src.get(), src.size));
};

/** Bytes of the low `size` bytes turned round. A 16-bit BSWAP is undefined; the processor clears the register. */
const swapped = (b: Builder, value: Value, size: Size): Value =>
  size === 2 ? b.shrU(b.bswap(value, 4), b.const(16)) : b.bswap(value, size as 4 | 8);

const movbe: Semantics = (b, op) => operand(op, 0).set(swapped(b, operand(op, 1).get(), op.size));

const bswap: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const value = dst.get();
  dst.set(op.size === 2 ? b.const(0) : swapped(b, value, op.size));
};

/** The source is read whatever the condition; a 32-bit destination loses its upper half even if nothing moves. */
const cmovcc: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const src = operand(op, 1).get();
  dst.set(b.select(b.condition(op.condition), src, dst.get()));
};

const setcc: Semantics = (b, op) => operand(op, 0).set(b.fromCond(b.condition(op.condition)));

const lea: Semantics = (b, op) => operand(op, 0).set(b.ea());

const xlat: Semantics = (b, op) => {
  const offset = b.add(b.getReg(reg.rbx, op.addrSize), b.getReg(reg.rax, 1));
  b.setReg(reg.rax, 1, b.load(b.zext(offset, op.addrSize), { seg: 'operand', size: 1 }));
};

const nothing: Semantics = () => {};

/** UD0, UD1, UD2. */
const undefinedOpcode: Semantics = (b) => b.raise(Vector.UD);

export const MOVE: Record<string, Semantics> = {
  mov,
  movnti: mov,
  movzx: mov,
  movsx: signExtend,
  movsxd: signExtend,
  movbe,
  bswap,
  cmovcc,
  setcc,
  lea,
  xlat,
  nop: nothing,
  pause: nothing,
  lfence: nothing,
  mfence: nothing,
  sfence: nothing,
  ud0: undefinedOpcode,
  ud1: undefinedOpcode,
  ud2: undefinedOpcode,
};
