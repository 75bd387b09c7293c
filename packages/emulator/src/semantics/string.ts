/**
 * String instructions. With REP one execution is one iteration: it commits, and `repeat` leaves RIP where it is.
 * Manual: APM vol. 3 ch. 3 (CMPS, LODS, MOVS, SCAS, STOS), section 1.2.6 (repeat prefixes).
 */
import type { Block, Builder, Cond, Operation, Semantics, Value } from '../builder/builder.ts';
import { Seg } from '../state-layout.ts';
import { reg } from './support.ts';

const advance = (b: Builder, op: Operation, which: 'rsi' | 'rdi', step: Value): void =>
  b.setReg(reg[which], op.addrSize, b.add(b.getReg(reg[which], op.addrSize), step));

const source = (b: Builder, op: Operation): Value =>
  b.load(b.getReg(reg.rsi, op.addrSize), { seg: 'operand', size: op.size });

const destination = (b: Builder, op: Operation): Value =>
  b.load(b.getReg(reg.rdi, op.addrSize), { seg: Seg.ES, size: op.size });

const storeDestination = (b: Builder, op: Operation, value: Value): void =>
  b.store(b.getReg(reg.rdi, op.addrSize), value, { seg: Seg.ES, size: op.size });

interface Repetition {
  /** What REPE / REPNE ask after the element. */
  goesOn?: () => Cond;
  /** Elements that only move may go together. */
  block?: 'move' | 'fill';
}
const blockOf = (b: Builder, op: Operation, count: Value, kind: 'move' | 'fill'): Block => ({
  size: op.size,
  addrSize: op.addrSize,
  count,
  to: b.getReg(reg.rdi, op.addrSize),
  from: kind === 'fill' ? b.getReg(reg.rax, op.size) : b.getReg(reg.rsi, op.addrSize),
  fill: kind === 'fill',
});

/** Wraps one element's work with rCX. */
function repeated(b: Builder, op: Operation, element: () => void, how: Repetition = {}): void {
  if (op.rep === 0) {
    element();
    return;
  }
  const { goesOn, block } = how;
  const count = b.getReg(reg.rcx, op.addrSize);
  b.when(b.ne(count, b.const(0)), () => {
    if (block !== undefined && b.repeatBlock(blockOf(b, op, count, block))) return;
    element();
    const left = b.zext(b.sub(count, b.const(1)), op.addrSize);
    b.setReg(reg.rcx, op.addrSize, left);
    const more = b.ne(left, b.const(0));
    b.repeat(goesOn === undefined ? more : b.andC(more, goesOn()));
  });
}

const movs: Semantics = (b, op) =>
  repeated(
    b,
    op,
    () => {
      storeDestination(b, op, source(b, op));
      const step = b.stringStep(op.size);
      advance(b, op, 'rsi', step);
      advance(b, op, 'rdi', step);
    },
    { block: 'move' },
  );

const stos: Semantics = (b, op) =>
  repeated(
    b,
    op,
    () => {
      storeDestination(b, op, b.getReg(reg.rax, op.size));
      advance(b, op, 'rdi', b.stringStep(op.size));
    },
    { block: 'fill' },
  );

const lods: Semantics = (b, op) =>
  repeated(b, op, () => {
    b.setReg(reg.rax, op.size, source(b, op));
    advance(b, op, 'rsi', b.stringStep(op.size));
  });

/** REPE goes on while equal, REPNE while not. */
const whileZf = (b: Builder, op: Operation) => (): Cond => (op.rep === 0xf3 ? b.flag('zf') : b.notC(b.flag('zf')));

const cmps: Semantics = (b, op) =>
  repeated(
    b,
    op,
    () => {
      // AMD's processors read the destination first, but for REPE CMPSB.
      const reversed = b.vendor === 'amd' && !(op.size === 1 && op.rep === 0xf3);
      const early = reversed ? destination(b, op) : undefined;
      const x = source(b, op);
      const y = early ?? destination(b, op);
      const step = b.stringStep(op.size);
      advance(b, op, 'rsi', step);
      advance(b, op, 'rdi', step);
      b.flagsSub(x, y, b.sub(x, y), op.size);
    },
    { goesOn: whileZf(b, op) },
  );

const scas: Semantics = (b, op) =>
  repeated(
    b,
    op,
    () => {
      const x = b.getReg(reg.rax, op.size);
      const y = destination(b, op);
      advance(b, op, 'rdi', b.stringStep(op.size));
      b.flagsSub(x, y, b.sub(x, y), op.size);
    },
    { goesOn: whileZf(b, op) },
  );

export const STRING: Record<string, Semantics> = { movs, stos, lods, cmps, scas };
