/**
 * Exchanges and compare-exchanges.
 * Manual: APM vol. 3 ch. 3 (CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD, XCHG).
 */
import type { Semantics } from '../builder/builder.ts';
import { operand, reg } from './support.ts';

const xchg: Semantics = (_b, op) => {
  const first = operand(op, 0);
  const second = operand(op, 1);
  // Memory may be either operand; it has to be read and written before a register changes.
  const memory = second.kind === 'mem' ? second : first;
  const register = second.kind === 'mem' ? first : second;
  const x = memory.getForWrite();
  const y = register.get();
  memory.set(y);
  register.set(x);
};

const xadd: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const src = operand(op, 1);
  const x = dst.getForWrite();
  const y = src.get();
  const sum = b.add(x, y);
  // The sum goes last into a register that is both (XADD r, r); memory has to come first.
  if (dst.kind === 'mem') dst.set(sum);
  src.set(x);
  if (dst.kind !== 'mem') dst.set(sum);
  b.flagsAdd(x, y, sum, op.size);
};

/** Memory is written in either case; of 32-bit registers only the one that is written loses its upper half. */
const cmpxchg: Semantics = (b, op) => {
  const dst = operand(op, 0);
  const x = dst.getForWrite();
  const y = operand(op, 1).get();
  const expected = b.getReg(reg.rax, op.size);
  const equal = b.eq(expected, x);
  if (dst.kind === 'mem') dst.set(b.select(equal, y, x));
  else b.when(equal, () => dst.set(y));
  b.when(b.notC(equal), () => b.setReg(reg.rax, op.size, x));
  b.flagsSub(expected, x, b.sub(expected, x), op.size);
};

const cmpxchg8b: Semantics = (b, op) => {
  const access = { seg: 'operand', size: 8, forWrite: true, locked: op.lock } as const;
  const offset = b.ea();
  const old = b.load(offset, access);
  const expected = b.or(b.shl(b.getReg(reg.rdx, 4), b.const(32)), b.getReg(reg.rax, 4));
  const replacement = b.or(b.shl(b.getReg(reg.rcx, 4), b.const(32)), b.getReg(reg.rbx, 4));
  const equal = b.eq(old, expected);
  b.store(offset, b.select(equal, replacement, old), access);
  b.when(b.notC(equal), () => {
    b.setReg(reg.rax, 4, old);
    b.setReg(reg.rdx, 4, b.shrU(old, b.const(32)));
  });
  b.setFlags({ zf: equal });
};

const cmpxchg16b: Semantics = (b, op) => {
  const access = { seg: 'operand', size: 8, forWrite: true, locked: op.lock } as const;
  const offset = b.ea();
  const upper = b.add(offset, b.const(8));
  const low = b.load(offset, { ...access, align: 16 });
  const high = b.load(upper, access);
  const equal = b.andC(b.eq(low, b.getReg(reg.rax, 8)), b.eq(high, b.getReg(reg.rdx, 8)));
  b.store(offset, b.select(equal, b.getReg(reg.rbx, 8), low), access);
  b.store(upper, b.select(equal, b.getReg(reg.rcx, 8), high), access);
  b.when(b.notC(equal), () => {
    b.setReg(reg.rax, 8, low);
    b.setReg(reg.rdx, 8, high);
  });
  b.setFlags({ zf: equal });
};

export const EXCHANGE: Record<string, Semantics> = { xchg, xadd, cmpxchg, cmpxchg8b, cmpxchg16b };
