/**
 * Small pieces that the semantics of several families share: register names, sign and parity facts, stack accesses.
 * Manual: APM vol. 1 ch. 3, APM vol. 3 ch. 1.
 */
import type { Builder, Cond, OperandAccess, Operation, RegRef, Size, Value } from '../builder/builder.ts';
import { RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Seg } from '../state-layout.ts';

export const reg = {
  rax: { fixed: RAX },
  rcx: { fixed: RCX },
  rdx: { fixed: RDX },
  rbx: { fixed: RBX },
  rsp: { fixed: RSP },
  rbp: { fixed: RBP },
  rsi: { fixed: RSI },
  rdi: { fixed: RDI },
} satisfies Record<string, RegRef>;

/** Operand `n`; the decode tables guarantee that it is there. */
export const operand = (op: Operation, n: number): OperandAccess => op.operands[n] as OperandAccess;

export const bitsOf = (size: Size): number => size * 8;

/** Sign bit of the low `size` bytes. */
export const sign = (b: Builder, value: Value, size: Size): Cond => b.bit(value, bitsOf(size) - 1);

/** ZF, SF, PF as a `size`-byte result sets them. */
export function resultFlags(b: Builder, result: Value, size: Size): { zf: Cond; sf: Cond; pf: Cond } {
  const low = b.zext(result, size);
  return { zf: b.isZero(low), sf: sign(b, low, size), pf: parity(b, low) };
}

/** PF: an even number of ones in the low byte. */
export const parity = (b: Builder, value: Value): Cond => b.notC(b.bit(b.popcnt(b.zext(value, 1)), 0));

/** RSP as an offset in SS. */
export const stackPointer = (b: Builder): Value => b.getReg(reg.rsp, b.stackSize);

/** RSP moved by a static number of bytes, as an offset in SS. */
export const stackOffset = (b: Builder, pointer: Value, bytes: number): Value =>
  b.zext(b.add(pointer, b.const(bytes)), b.stackSize);

export const setStackPointer = (b: Builder, offset: Value): void => b.setReg(reg.rsp, b.stackSize, offset);

/** Stores `value` below RSP and moves RSP; the store is the last access that may fault. */
export function push(b: Builder, value: Value, size: Size): void {
  const top = stackOffset(b, stackPointer(b), -size);
  b.store(top, value, { seg: Seg.SS, size });
  setStackPointer(b, top);
}

/** The value at `pointer` on the stack. */
export const loadStack = (b: Builder, pointer: Value, size: Size): Value => b.load(pointer, { seg: Seg.SS, size });
