/**
 * PUSH, POP and stack frames. Segment registers and RFLAGS are pushed and popped in system/.
 * Manual: APM vol. 3 ch. 3 (PUSH, POP, PUSHA, POPA, ENTER, LEAVE).
 */
import type { Builder, Operation, RegRef, Semantics, Value } from '../builder/builder.ts';
import { RSP, Seg } from '../state-layout.ts';
import { bitsOf, loadStack, operand, push, reg, setStackPointer, stackOffset, stackPointer } from './support.ts';

const pushSemantics: Semantics = (b, op) => push(b, operand(op, 0).get(), op.size);

const pop: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const top = stackPointer(b);
  const value = loadStack(b, top, op.size);
  if (dst.kind === 'mem') b.store(b.ea(op.size), value, { seg: 'operand', size: op.size });
  setStackPointer(b, stackOffset(b, top, op.size));
  // After RSP, so that POP rSP keeps the popped value.
  if (dst.kind !== 'mem') dst.set(value);
};

const allRegisters: readonly RegRef[] = [reg.rax, reg.rcx, reg.rdx, reg.rbx, reg.rsp, reg.rbp, reg.rsi, reg.rdi];

/** Stores follow each other without probes: what was pushed before a fault stays in memory, RSP does not move. */
const pusha: Semantics = (b, op) => {
  const top = stackPointer(b);
  const size = op.size;
  allRegisters.forEach((r, i) => {
    b.store(stackOffset(b, top, -size * (i + 1)), b.getReg(r, size), { seg: Seg.SS, size });
    b.checkpoint();
  });
  setStackPointer(b, stackOffset(b, top, -size * 8));
};

/** Registers popped before a fault keep their new values. */
const popa: Semantics = (b, op) => {
  const top = stackPointer(b);
  const size = op.size;
  for (let i = 7; i >= 0; i--) {
    const value = loadStack(b, stackOffset(b, top, size * (7 - i)), size);
    if (i !== RSP) b.setReg(allRegisters[i]!, size, value);
    b.checkpoint();
  }
  setStackPointer(b, stackOffset(b, top, size * 8));
};

/** RBP as ENTER sets it: the offset of the saved one, with the bits of rSP that the stack's size leaves alone. */
function framePointer(b: Builder, op: Operation, frame: Value): Value {
  if (op.size <= b.stackSize) return frame;
  const kept = b.shl(b.shrU(b.getReg(reg.rsp, op.size), b.const(bitsOf(b.stackSize))), b.const(bitsOf(b.stackSize)));
  return b.or(kept, frame);
}

/** ENTER with a nesting level: copies the outer frame pointers, then pushes its own. Returns the offset of the last slot. */
function enterNested(b: Builder, op: Operation, level: Value, frame: Value): Value {
  const access = { seg: Seg.SS, size: op.size } as const;
  const step = b.const(op.size);
  const from = b.variable(b.getReg(reg.rbp, b.stackSize));
  const to = b.variable(frame);
  const left = b.variable(level);
  b.loop(() => {
    left.set(b.sub(left.get(), b.const(1)));
    to.set(b.zext(b.sub(to.get(), step), b.stackSize));
    const more = b.ne(left.get(), b.const(0));
    b.when(more, () => {
      from.set(b.zext(b.sub(from.get(), step), b.stackSize));
      b.store(to.get(), b.load(from.get(), access), access);
      b.checkpoint();
    });
    return more;
  });
  b.store(to.get(), framePointer(b, op, frame), access);
  b.checkpoint();
  return to.get();
}

/** Slots are written one after the other; at the end the new top of the stack has to be writable (APM vol. 3, ENTER). */
const enter: Semantics = (b, op) => {
  const size = op.size;
  const level = b.and(b.imm2(), b.const(31));
  const frame = stackOffset(b, stackPointer(b), -size);
  const bottom = b.variable(frame);
  b.store(frame, b.getReg(reg.rbp, size), { seg: Seg.SS, size });
  b.checkpoint();
  b.when(b.ne(level, b.const(0)), () => bottom.set(enterNested(b, op, level, frame)));
  const top = b.zext(b.sub(bottom.get(), b.zext(b.imm(), 2)), b.stackSize);
  b.probe(top, { seg: Seg.SS, size, forWrite: true });
  b.setReg(reg.rbp, size, framePointer(b, op, frame));
  setStackPointer(b, top);
};

const leave: Semantics = (b, op) => {
  const frame = b.getReg(reg.rbp, b.stackSize);
  const value = loadStack(b, frame, op.size);
  setStackPointer(b, stackOffset(b, frame, op.size));
  b.setReg(reg.rbp, op.size, value);
};

export const STACK: Record<string, Semantics> = { push: pushSemantics, pop, pusha, popa, enter, leave };
