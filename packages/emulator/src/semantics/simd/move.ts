/**
 * Moves between vector registers, memory and general registers.
 * Manual: APM vol. 4 and 5 (MOVAPS to MOVUPS, MOVD, MOVQ, MASKMOVDQU, MASKMOVQ).
 */
import type { Row } from '../../decode/instruction.ts';
import { RDI } from '../../state-layout.ts';
import { done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { Lanes } from './lanes.ts';
import {
  forRow,
  inMemory,
  isMmx,
  isWide,
  memorySize,
  operationName,
  readGeneral,
  readMemory,
  readVector,
  registerOf,
  vectorOperand,
  vectorOperands,
  writeMemory,
  writeVector,
} from './operands.ts';

const v = new Lanes();
const old = new Lanes();
/** Bits 255:128. */
const high = new Lanes();

/** Whole registers; loads from memory are zero-extended, stores take the operand's size. */
function whole(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    const wide = src.byLength && isWide(ctx);
    readVector(ctx, fpu, src, v, wide ? high : undefined);
    if (inMemory(ctx, dst)) {
      const value = wide ? (high.toBigInt(16) << 128n) | v.toBigInt(16) : v.toBigInt(dst.size);
      writeMemory(ctx, value, memorySize(ctx, dst), dst.aligned);
    } else writeVector(ctx, fpu, dst, v, wide ? high : undefined);
    return done();
  });
}

/** MOVSS, MOVSD: between registers the rest comes from the destination, or from VEX.vvvv. */
function scalar(row: Row): FpFunction {
  const { dst, first, src } = vectorOperands(row);
  const bytes = src.size;
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, v);
    if (inMemory(ctx, dst)) writeMemory(ctx, v.toBigInt(dst.size), dst.size, false);
    else {
      if (!inMemory(ctx, src)) {
        readVector(ctx, fpu, first, old);
        for (let i = bytes; i < 16; i++) v.u8[i] = old.u8[i]!;
      }
      writeVector(ctx, fpu, dst, v);
    }
    return done();
  };
}

/** MOVQ between XMM registers and memory: the upper half becomes zero. */
function movq(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  if (isMmx(dst)) return whole(row);
  return (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, v);
    v.u64[1] = 0n;
    if (inMemory(ctx, dst)) writeMemory(ctx, v.u64[0]!, 8, false);
    else writeVector(ctx, fpu, dst, v);
    return done();
  };
}

/** One 64-bit half: of the register, to or from memory or another register's half. */
const half =
  (lane: 0 | 1, sourceLane: 0 | 1) =>
  (row: Row): FpFunction => {
    const { dst, first } = vectorOperands(row);
    return (ctx) => {
      const fpu = fpuOf(ctx);
      if (dst.letter === 'M') {
        fpu.readXmm(ctx.insn.reg, old);
        writeMemory(ctx, old.u64[lane]!, 8, false);
        return done();
      }
      fpu.readXmm(registerOf(ctx, first), old);
      if (ctx.insn.mod !== 3) old.u64[lane] = readMemory(ctx, 8, false);
      else {
        fpu.readXmm(ctx.insn.rm, v);
        old.u64[lane] = v.u64[sourceLane]!;
      }
      writeVector(ctx, fpu, dst, old);
      return done();
    };
  };

/** MOVD and MOVQ with a general register. */
function movd(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  if (dst.letter === 'E') {
    return forRow(row, (ctx) => {
      const { opSize } = ctx.insn;
      const size = opSize === 8 ? 8 : 4;
      readVector(ctx, fpuOf(ctx), src, v);
      if (inMemory(ctx, dst)) writeMemory(ctx, v.toBigInt(size), size, false);
      else ctx.setReg(ctx.insn.rm, size, v.toBigInt(size));
      return done();
    });
  }
  return forRow(row, (ctx) => {
    v.load(readGeneral(ctx, src), 8);
    writeVector(ctx, fpuOf(ctx), dst, v);
    return done();
  });
}

/** MOVQ2DQ, MOVDQ2Q: the low half, zero-extended. */
function across(row: Row): FpFunction {
  const dst = vectorOperand(row, 0);
  const src = vectorOperand(row, 1);
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, src, v);
    v.u64[1] = 0n;
    writeVector(ctx, fpu, dst, v);
    return done();
  });
}

/** Stores the bytes whose mask has its top bit set, at rDI. */
function maskedMove(row: Row): FpFunction {
  const data = vectorOperand(row, 0);
  const mask = vectorOperand(row, 1);
  const bytes = isMmx(data) ? 8 : 16;
  return forRow(row, (ctx) => {
    const fpu = fpuOf(ctx);
    readVector(ctx, fpu, mask, old);
    readVector(ctx, fpu, data, v);
    const at = (i: number): bigint =>
      BigInt.asUintN(ctx.insn.addrSize * 8, ctx.getReg(RDI, ctx.insn.addrSize) + BigInt(i));
    // MMX mode is entered even if the store faults.
    if (bytes === 8) fpu.enterMmx();
    const selected = Array.from({ length: bytes }, (_, i) => i).filter((i) => old.i8[i]! < 0);
    // All of the operand is accessed, whatever is selected, eight bytes at a time.
    for (let i = 0; i < bytes; i += 8) {
      ctx.linearize(ctx.insn.seg, at(i), 8, true);
      probeMasked(ctx, at, i);
      probeMasked(ctx, at, i + 7);
    }
    for (const i of selected) ctx.write(ctx.insn.seg, at(i), BigInt(v.u8[i]!), 1);
    return done();
  });
}

/** The access is one: a fault names the first of its bytes in the page, selected or not. */
function probeMasked(ctx: FpContext, at: (i: number) => bigint, i: number): void {
  const linear = ctx.linearize(ctx.insn.seg, at(i), 1, true);
  ctx.probeWrite(ctx.insn.seg, at(Math.max(0, i - Number(linear & 0xfffn))), 1);
}

const MOVES: Readonly<Record<string, (row: Row) => FpFunction>> = {
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
  movntq: whole,
  movss: scalar,
  movsd: scalar,
  movq,
  movd,
  movlps: half(0, 0),
  movlpd: half(0, 0),
  movhlps: half(0, 1),
  movhps: half(1, 0),
  movhpd: half(1, 0),
  movlhps: half(1, 0),
  movq2dq: across,
  movdq2q: across,
  maskmovq: maskedMove,
  maskmovdqu: maskedMove,
};

/** The function of a row that moves, or undefined. */
export const moveFunction = (row: Row): FpFunction | undefined => MOVES[operationName(row)]?.(row);
