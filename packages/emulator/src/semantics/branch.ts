/**
 * Near control transfers. Far ones are in system/.
 * Manual: APM vol. 3 ch. 3 (CALL near, Jcc, JCXZ, JMP near, LOOPcc, RET near).
 */
import type { Builder, Cond, Operation, Semantics, Value } from '../builder/builder.ts';
import { loadStack, operand, push, reg, setStackPointer, stackPointer } from './support.ts';

/** Relative or absolute target, truncated to the operand size. */
function target(b: Builder, op: Operation): Value {
  const dst = operand(op, 0);
  const value = dst.kind === 'imm' ? b.add(b.nextRip(), b.imm()) : dst.get();
  return b.zext(value, op.size);
}

const jmp: Semantics = (b, op) => b.jump(target(b, op));

const jcc: Semantics = (b, op) => b.jumpWhen(b.condition(op.condition), target(b, op));

const call: Semantics = (b, op) => {
  const to = target(b, op);
  b.probeJump(to);
  push(b, b.nextRip(), op.size);
  b.jump(to);
};

const ret: Semantics = (b, op) => {
  const top = stackPointer(b);
  const to = loadStack(b, top, op.size);
  b.probeJump(to);
  const extra = op.operands.length > 0 ? b.zext(b.imm(), 2) : b.const(0);
  setStackPointer(b, b.zext(b.add(b.add(top, b.const(op.size)), extra), b.stackSize));
  b.jump(to);
};

/** LOOPcc: rCX by address size; nothing changes if the target is illegal. */
const loop =
  (also: (b: Builder) => Cond): Semantics =>
  (b, op) => {
    const left = b.zext(b.sub(b.getReg(reg.rcx, op.addrSize), b.const(1)), op.addrSize);
    const taken = b.andC(b.ne(left, b.const(0)), also(b));
    const to = target(b, op);
    b.when(taken, () => b.probeJump(to));
    b.setReg(reg.rcx, op.addrSize, left);
    b.jumpWhen(taken, to);
  };

const jcxz: Semantics = (b, op) => b.jumpWhen(b.isZero(b.getReg(reg.rcx, op.addrSize)), target(b, op));

export const BRANCH: Record<string, Semantics> = {
  jmp,
  jcc,
  call,
  ret,
  loop: loop((b) => b.true()),
  loope: loop((b) => b.flag('zf')),
  loopne: loop((b) => b.notC(b.flag('zf'))),
  jcxz,
};
