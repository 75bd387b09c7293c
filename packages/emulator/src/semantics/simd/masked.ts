/**
 * Accesses element by element under a mask: VMASKMOVPS and its kin, and the gathers.
 * Manual: APM vol. 4 (VMASKMOVPS, VPMASKMOVD, VPGATHERDD ...). Elements whose mask is clear are not accessed and cannot fault.
 */
import type { Row } from '../../decode/instruction.ts';
import { GuestException } from '../../exceptions.ts';
import type { FpuArea } from '../fp/area.ts';
import { done, type FpContext, type FpFunction, fpuOf } from '../fp/context.ts';
import { Lanes } from './lanes.ts';
import { isWide, operationName } from './operands.ts';

/** A YMM register by its elements. */
class Elements {
  readonly low = new Lanes();
  readonly high = new Lanes();

  load(fpu: FpuArea, register: number): void {
    fpu.readXmm(register, this.low);
    fpu.readHigh(register, this.high);
  }
  store(fpu: FpuArea, register: number): void {
    fpu.writeXmm(register, this.low);
    fpu.writeHigh(register, this.high);
  }
  get(i: number, size: 4 | 8): bigint {
    const half = i * size < 16 ? this.low : this.high;
    const at = ((i * size) & 15) / size;
    return size === 4 ? BigInt(half.u32[at]!) : half.u64[at]!;
  }
  set(i: number, size: 4 | 8, value: bigint): void {
    const half = i * size < 16 ? this.low : this.high;
    const at = ((i * size) & 15) / size;
    if (size === 4) half.u32[at] = Number(value);
    else half.u64[at] = value;
  }
  isSet(i: number, size: 4 | 8): boolean {
    return this.get(i, size) >> BigInt(size * 8 - 1) !== 0n;
  }
  /** Zeroes everything from a byte on. */
  clearFrom(byte: number): void {
    for (let i = byte; i < 32; i++) (i < 16 ? this.low : this.high).u8[i & 15] = 0;
  }
}
const data = new Elements();
const mask = new Elements();
const indices = new Elements();

const truncate = (ctx: FpContext, offset: bigint): bigint => BigInt.asUintN(ctx.insn.addrSize * 8, offset);

/** Loads: elements that are not selected become zero. */
const load =
  (size: 4 | 8): FpFunction =>
  (ctx) => {
    const { insn } = ctx;
    const fpu = fpuOf(ctx);
    const count = (isWide(ctx) ? 32 : 16) / size;
    const offset = ctx.effectiveAddress();
    mask.load(fpu, insn.vex.vvvv);
    data.clearFrom(0);
    for (let i = 0; i < count; i++) {
      if (mask.isSet(i, size)) data.set(i, size, ctx.read(insn.seg, truncate(ctx, offset + BigInt(i * size)), size));
    }
    data.store(fpu, insn.reg);
    return done();
  };

const store =
  (size: 4 | 8): FpFunction =>
  (ctx) => {
    const { insn } = ctx;
    const fpu = fpuOf(ctx);
    const count = (isWide(ctx) ? 32 : 16) / size;
    const offset = ctx.effectiveAddress();
    const at = (i: number): bigint => truncate(ctx, offset + BigInt(i * size));
    mask.load(fpu, insn.vex.vvvv);
    data.load(fpu, insn.reg);
    for (let i = 0; i < count; i++) if (mask.isSet(i, size)) ctx.probeWrite(insn.seg, at(i), size);
    for (let i = 0; i < count; i++) if (mask.isSet(i, size)) ctx.write(insn.seg, at(i), data.get(i, size), size);
    return done();
  };

/** Offset of the element that index `i` names: base, sign-extended index scaled, displacement. */
function elementOffset(ctx: FpContext, i: number, indexSize: 4 | 8): bigint {
  const { insn } = ctx;
  const index = BigInt.asIntN(indexSize * 8, indices.get(i, indexSize)) << BigInt(insn.scale);
  const base = insn.base >= 0 ? ctx.getReg(insn.base, 8) : 0n;
  return truncate(ctx, base + index + insn.disp);
}

/** What an element that faults leaves behind: the elements before it are there, and their masks are clear. */
function keepProgress(fpu: FpuArea, ctx: FpContext): void {
  data.store(fpu, ctx.insn.reg);
  mask.store(fpu, ctx.insn.vex.vvvv);
}

function gatherElements(ctx: FpContext, fpu: FpuArea, count: number, indexSize: 4 | 8, size: 4 | 8): void {
  try {
    for (let i = 0; i < count; i++) {
      if (mask.isSet(i, size)) {
        data.set(i, size, ctx.read(ctx.insn.seg, elementOffset(ctx, i, indexSize), size));
      }
      mask.set(i, size, 0n);
    }
  } catch (error) {
    // An access that waits for user space starts again from its read log: with nothing changed.
    if (error instanceof GuestException) keepProgress(fpu, ctx);
    throw error;
  }
}

/** Masks become all ones or all zeros before the first access (SDM vol. 2 VPGATHERDD); AMD processors change them one by one. */
function extendMask(count: number, size: 4 | 8): void {
  const all = size === 4 ? 0xffffffffn : 0xffffffffffffffffn;
  for (let i = 0; i < count; i++) mask.set(i, size, mask.isSet(i, size) ? all : 0n);
}

const gather =
  (indexSize: 4 | 8, size: 4 | 8): FpFunction =>
  (ctx) => {
    const { insn } = ctx;
    const fpu = fpuOf(ctx);
    const count = (isWide(ctx) ? 32 : 16) / Math.max(indexSize, size);
    data.load(fpu, insn.reg);
    mask.load(fpu, insn.vex.vvvv);
    indices.load(fpu, insn.index);
    if (ctx.vendor === 'intel') extendMask(count, size);
    gatherElements(ctx, fpu, count, indexSize, size);
    data.clearFrom(count * size);
    mask.clearFrom(0);
    keepProgress(fpu, ctx);
    return done();
  };

const GATHERS: Readonly<Record<string, FpFunction>> = {
  pgatherdd: gather(4, 4),
  pgatherdq: gather(4, 8),
  pgatherqd: gather(8, 4),
  pgatherqq: gather(8, 8),
  gatherdps: gather(4, 4),
  gatherdpd: gather(4, 8),
  gatherqps: gather(8, 4),
  gatherqpd: gather(8, 8),
};
const ELEMENT: Readonly<Record<string, 4 | 8>> = { maskmovps: 4, maskmovpd: 8, pmaskmovd: 4, pmaskmovq: 8 };

/** The function of a VEX row of this family, or undefined. */
export function maskedFunction(row: Row): FpFunction | undefined {
  const name = operationName(row);
  const size = ELEMENT[name];
  if (size === undefined) return GATHERS[name];
  return row.operands[0] === 'Mx' ? store(size) : load(size);
}
