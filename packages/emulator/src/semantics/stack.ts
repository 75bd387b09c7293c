/**
 * PUSH, POP and stack frames. Segment registers and RFLAGS are pushed and popped in system/.
 * Manual: APM vol. 3 ch. 3 (PUSH, POP, PUSHA, POPA, ENTER, LEAVE).
 */
import type { Builder, Operation, RegRef, Semantics, Size, Value, Var } from '../builder/builder.ts';
import { Seg } from '../state-layout.ts';
import { loadStack, operand, push, reg, setStackPointer, stackOffset, stackPointer } from './support.ts';

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

const pusha: Semantics = (b, op) => {
  const top = stackPointer(b);
  const size = op.size;
  const slots = allRegisters.map((_, i) => stackOffset(b, top, -size * (i + 1)));
  for (const slot of slots) b.probe(slot, { seg: Seg.SS, size, forWrite: true });
  allRegisters.forEach((r, i) => {
    b.store(slots[i]!, b.getReg(r, size), { seg: Seg.SS, size });
  });
  setStackPointer(b, slots[7]!);
};

const popa: Semantics = (b, op) => {
  const top = stackPointer(b);
  const size = op.size;
  const values = allRegisters.map((_, i) => loadStack(b, stackOffset(b, top, size * (7 - i)), size));
  allRegisters.forEach((r, i) => {
    if (r !== reg.rsp) b.setReg(r, size, values[i]!);
  });
  setStackPointer(b, stackOffset(b, top, size * 8));
};

/** Calls `each` for the frame pointers 1 .. level-1 with the slot to read and the slot to write. */
function eachOuterFrame(
  b: Builder,
  op: Operation,
  level: Value,
  frame: Value,
  each: (from: Value, to: Value) => void,
): Var {
  const size = b.const(op.size);
  const from = b.variable(b.getReg(reg.rbp, b.stackSize));
  const to = b.variable(frame);
  const left = b.variable(level);
  b.loop(() => {
    left.set(b.sub(left.get(), b.const(1)));
    const more = b.ne(left.get(), b.const(0));
    b.when(more, () => {
      from.set(b.zext(b.sub(from.get(), size), b.stackSize));
      to.set(b.zext(b.sub(to.get(), size), b.stackSize));
      each(from.get(), to.get());
    });
    return more;
  });
  return to;
}

/** ENTER with a nesting level: every slot is probed before the first is written. */
function enterNested(b: Builder, op: Operation, level: Value, frame: Value): Value {
  const size: Size = op.size;
  const access = { seg: Seg.SS, size } as const;
  const lastProbed = eachOuterFrame(b, op, level, frame, (from, to) => {
    b.load(from, access);
    b.probe(to, { ...access, forWrite: true });
  });
  const last = stackOffset(b, lastProbed.get(), -size);
  b.probe(last, { ...access, forWrite: true });
  b.store(frame, b.getReg(reg.rbp, size), access);
  eachOuterFrame(b, op, level, frame, (from, to) => b.store(to, b.load(from, access), access));
  b.store(last, frame, access);
  return last;
}

const enter: Semantics = (b, op) => {
  const size = op.size;
  const level = b.and(b.imm2(), b.const(31));
  const frame = stackOffset(b, stackPointer(b), -size);
  const bottom = b.variable(frame);
  b.probe(frame, { seg: Seg.SS, size, forWrite: true });
  b.when(
    b.isZero(level),
    () => b.store(frame, b.getReg(reg.rbp, size), { seg: Seg.SS, size }),
    () => bottom.set(enterNested(b, op, level, frame)),
  );
  b.setReg(reg.rbp, size, frame);
  setStackPointer(b, b.zext(b.sub(bottom.get(), b.zext(b.imm(), 2)), b.stackSize));
};

const leave: Semantics = (b, op) => {
  const frame = b.getReg(reg.rbp, b.stackSize);
  const value = loadStack(b, frame, op.size);
  setStackPointer(b, stackOffset(b, frame, op.size));
  b.setReg(reg.rbp, op.size, value);
};

export const STACK: Record<string, Semantics> = { push: pushSemantics, pop, pusha, popa, enter, leave };
