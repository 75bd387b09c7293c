/**
 * Moves, recorded: whole registers, scalars, halves, general registers.
 * Manual: APM vol. 4 (MOVAPS to MOVUPS, MOVD, MOVQ, MOVSS, MOVLPS, PINSRW, PEXTRW ...).
 */
import type { V128 } from '../../builder/vector.ts';
import { type Operands, sizeOf } from './operands.ts';
import { bytesFrom, type Rule } from './rule.ts';

const whole: Rule = (o) => o.store(o.dst, o.read(o.src));

/** The low `bytes` of `low`, the rest of `rest`. */
export const mergeLow = (o: Operands, low: V128, rest: V128, bytes: number): V128 =>
  o.b.shuffle(
    low,
    rest,
    bytesFrom((i) => (i < bytes ? i : 16 + i)),
  );

/** MOVSS, MOVSD. */
const scalar =
  (bytes: 4 | 8): Rule =>
  (o) => {
    const { b } = o;
    if (o.isMemory(o.src)) {
      o.write(o.dst, [o.scalar(o.src, bytes)]);
      return;
    }
    const value = b.getVector(o.field(o.src), 0);
    if (o.isMemory(o.dst)) {
      b.store(b.ea(), b.extract('i64x2ExtractLane', value, 0), { seg: 'operand', size: bytes });
    } else o.write(o.dst, [mergeLow(o, value, b.getVector(o.field(o.first), 0), bytes)]);
  };

/** MOVQ between vector registers and memory. */
const movq: Rule = (o) => {
  const { b } = o;
  if (o.isMemory(o.src)) {
    o.write(o.dst, [o.scalar(o.src, 8)]);
    return;
  }
  const value = b.getVector(o.field(o.src), 0);
  if (o.isMemory(o.dst)) {
    b.store(b.ea(), b.extract('i64x2ExtractLane', value, 0), { seg: 'operand', size: 8 });
  } else o.write(o.dst, [b.replace('i64x2ReplaceLane', value, 1, b.const(0))]);
};

/** MOVD and MOVQ with a general register. */
const movd: Rule = (o) => {
  const { b } = o;
  const size = o.form.opSize === 8 ? 8 : 4;
  if (o.dst.startsWith('E')) {
    o.setGeneral(o.dst, size, b.zext(b.extract('i64x2ExtractLane', b.getVector('reg', 0), 0), size));
  } else o.write(o.dst, [b.replace('i64x2ReplaceLane', b.vconst(0n), 0, o.general(o.src, size))]);
};

/** A 64-bit half of the register to or from memory, or from a half of another register. */
const half =
  (lane: 0 | 1, sourceLane: 0 | 1): Rule =>
  (o) => {
    const { b } = o;
    if (o.dst.startsWith('M')) {
      b.store(b.ea(), b.extract('i64x2ExtractLane', b.getVector('reg', 0), lane), { seg: 'operand', size: 8 });
      return;
    }
    const value = o.isMemory(o.src)
      ? b.load(b.ea(), { seg: 'operand', size: 8 })
      : b.extract('i64x2ExtractLane', b.getVector('rm', 0), sourceLane);
    o.write(o.dst, [b.replace('i64x2ReplaceLane', b.getVector(o.field(o.first), 0), lane, value)]);
  };

const INSERTS = {
  1: 'i8x16ReplaceLane',
  2: 'i16x8ReplaceLane',
  4: 'i32x4ReplaceLane',
  8: 'i64x2ReplaceLane',
} as const;
const EXTRACTS = {
  1: 'i8x16ExtractLaneU',
  2: 'i16x8ExtractLaneU',
  4: 'i32x4ExtractLane',
  8: 'i64x2ExtractLane',
} as const;

const insert: Rule = (o) => {
  const size = sizeOf(o.src, o.form.opSize) as 1 | 2 | 4 | 8;
  const value = o.general(o.src, o.isMemory(o.src) || size === 8 ? size : 4);
  const lane = o.form.imm & (16 / size - 1);
  o.write(o.dst, [o.b.replace(INSERTS[size], o.b.getVector(o.field(o.first), 0), lane, value)]);
};

const extract: Rule = (o) => {
  const { b } = o;
  // 0F C5 has its source in modrm.rm, the others have their destination there.
  if (o.dst === 'Gd') {
    b.setReg({ field: 'reg' }, 4, b.extract('i16x8ExtractLaneU', b.getVector('rm', 0), o.form.imm & 7));
    return;
  }
  const size = sizeOf(o.dst, o.form.opSize) as 1 | 2 | 4 | 8;
  const value = b.extract(EXTRACTS[size], b.getVector('reg', 0), o.form.imm & (16 / size - 1));
  o.setGeneral(o.dst, o.isMemory(o.dst) || size === 8 ? size : 4, value);
};

/** Reserved bits are #GP(0). */
const LOW = 0xffff;
const ldmxcsr: Rule = ({ b }) => {
  const value = b.load(b.ea(), { seg: 'operand', size: 4 });
  b.handBackWhen(b.ltU(b.const(LOW), value));
  b.setMxcsr(value);
};
const stmxcsr: Rule = ({ b }) => b.store(b.ea(), b.mxcsr(), { seg: 'operand', size: 4 });

export const MOVES: Readonly<Record<string, Rule>> = {
  movups: whole,
  movupd: whole,
  movaps: whole,
  movapd: whole,
  movdqa: whole,
  movdqu: whole,
  lddqu: whole,
  movntps: whole,
  movntpd: whole,
  movntdq: whole,
  movntdqa: whole,
  movss: scalar(4),
  movsd: scalar(8),
  movq,
  movd,
  movlps: half(0, 0),
  movlpd: half(0, 0),
  movhlps: half(0, 1),
  movhps: half(1, 0),
  movhpd: half(1, 0),
  movlhps: half(1, 0),
  pinsrb: insert,
  pinsrw: insert,
  pinsrd: insert,
  pextrb: extract,
  pextrw: extract,
  pextrd: extract,
  ldmxcsr,
  stmxcsr,
};
