/**
 * x87 loads, stores, constants, exchanges and conditional moves.
 * Manual: APM vol. 5 (FLD, FST, FILD, FIST, FISTTP, FBLD, FBSTP, FXCH, FCMOVcc, FLD constants).
 */
import type { Row } from '../../decode/instruction.ts';
import { Flag } from '../../state-layout.ts';
import { convertFormat, toSigned } from '../simd/arithmetic.ts';
import type { FpuArea } from './area.ts';
import type { FpContext, FpFunction } from './context.ts';
import { DE, F32, F64, IE, isNan, PE, pack32, pack64, pack80, quiet, TRUNCATE, toInteger, unpack80 } from './float.ts';
import {
  bytesOf,
  C1,
  finish,
  INDEFINITE,
  indexOf,
  isBlocked,
  type MemoryFormat,
  onData,
  probeTen,
  push,
  readOperand,
  readTen,
  signal,
  stackFault,
  writeTen,
  x87,
} from './x87.ts';

const clearC1 = (fpu: FpuArea): void => {
  fpu.sw &= ~C1;
};

/** FLD m32, m64 and FILD: a signalling NaN or a denormal is noticed. AMD's processors load a denormal even if that is unmasked. */
const load = (format: MemoryFormat): FpFunction =>
  onData((ctx, fpu) => {
    const x = readOperand(ctx, format);
    clearC1(fpu);
    if (!fpu.isEmpty(7)) {
      push(fpu, INDEFINITE);
      return;
    }
    x87.start(fpu.cw);
    if (x.kind === 'snan') x87.flags |= IE;
    if (x.denormal) x87.flags |= DE;
    if (!isBlocked(fpu) || (x.denormal && ctx.vendor === 'amd')) push(fpu, pack80(isNan(x) ? quiet(x) : x));
    signal(fpu, x87.flags);
  });

const loadTen = onData((ctx, fpu) => {
  const value = readTen(ctx);
  clearC1(fpu);
  push(fpu, value);
});

function replaceTop(fpu: FpuArea, value: bigint): void {
  fpu.top = fpu.top - 1;
  fpu.setSt(0, value);
}

const loadRegister = onData((ctx, fpu) => {
  clearC1(fpu);
  const i = indexOf(ctx);
  if (fpu.isEmpty(i)) {
    // Not an overflow even if there is no room.
    if (stackFault(fpu, false)) replaceTop(fpu, INDEFINITE);
  } else push(fpu, fpu.st(i));
});

/** Constants: exponent, significand cut off, and whether nearest rounds it up (APM vol. 5). */
const constant = (exponent: bigint, significand: bigint, inexact: 'exact' | 'below-half' | 'above-half'): FpFunction =>
  onData((_ctx, fpu) => {
    clearC1(fpu);
    const rounding = (fpu.cw >> 10) & 3;
    const up = inexact !== 'exact' && (rounding === 2 || (rounding === 0 && inexact === 'above-half'));
    push(fpu, (exponent << 64n) | (significand + (up ? 1n : 0n)));
  });

// Stores

interface Stored {
  value: bigint;
  bytes: number;
}

/** FST, FIST, FISTTP to memory: `convert` gives the image of ST(0), `indefinite` stands for an empty register. */
function store(convert: () => (st: bigint) => bigint, indefinite: bigint, bytes: number, pop: boolean): FpFunction {
  const f = convert();
  return onData((ctx, fpu) => {
    if (fpu.isEmpty(0)) {
      storeFault(ctx, fpu, { value: indefinite, bytes }, pop);
      return;
    }
    x87.start(fpu.cw, false);
    const value = f(fpu.st(0));
    // Only inexactness lets a result through while unmasked; inexactness of a result that is not stored is not reported.
    const stored = (x87.flags & ~fpu.cw & ~PE & 0x3f) === 0;
    if (stored) writeImage(ctx, { value, bytes });
    else {
      probeImage(ctx, bytes);
      x87.up = false;
      x87.flags &= ~PE;
    }
    finish(fpu);
    if (stored && pop) fpu.pop();
  });
}
function storeFault(ctx: FpContext, fpu: FpuArea, image: Stored, pop: boolean): void {
  if ((fpu.cw & IE) !== 0) writeImage(ctx, image);
  else probeImage(ctx, image.bytes);
  if (stackFault(fpu, false) && pop) fpu.pop();
}
/** The memory operand is checked before the exception is noticed. */
function probeImage(ctx: FpContext, bytes: number): void {
  if (bytes === 10) probeTen(ctx);
  else ctx.probeWrite(ctx.insn.seg, ctx.effectiveAddress(), bytes);
}
function writeImage(ctx: FpContext, { value, bytes }: Stored): void {
  if (bytes === 10) writeTen(ctx, value);
  else ctx.write(ctx.insn.seg, ctx.effectiveAddress(), BigInt.asUintN(bytes * 8, value), bytes);
}

const toSingle = () => (st: bigint) => BigInt(pack32(convertStored(st, true)));
const toDouble = () => (st: bigint) => pack64(convertStored(st, false));
/** Denormals are not reported by stores. */
function convertStored(st: bigint, single: boolean) {
  const x = unpack80(st);
  return convertFormat(x87, single ? F32 : F64, x.denormal ? { ...x, denormal: false } : x);
}

const toIntegerImage = (bytes: number, truncate: boolean) => () => (st: bigint) => {
  const x = unpack80(st);
  const rounding = truncate ? TRUNCATE : x87.control.rounding;
  const value = toSigned(x87, x, bytes * 8, rounding);
  x87.up = (x87.flags & PE) !== 0 && toInteger(x, rounding).up;
  return value;
};

const storeInteger = (format: MemoryFormat, pop: boolean, truncate = false): FpFunction => {
  const bytes = bytesOf(format);
  return store(toIntegerImage(bytes, truncate), 1n << BigInt(bytes * 8 - 1), bytes, pop);
};

const storeTen = onData((ctx, fpu) => {
  if (fpu.isEmpty(0)) storeFault(ctx, fpu, { value: INDEFINITE, bytes: 10 }, true);
  else {
    writeTen(ctx, fpu.st(0));
    clearC1(fpu);
    fpu.pop();
  }
});

const storeRegister = (pop: boolean): FpFunction =>
  onData((ctx, fpu) => {
    clearC1(fpu);
    const i = indexOf(ctx);
    if (!fpu.isEmpty(0)) fpu.setSt(i, fpu.st(0));
    else if (stackFault(fpu, false)) fpu.setSt(i, INDEFINITE);
    else return;
    if (pop) fpu.pop();
  });

/** D9 D8+i: as FSTP ST(i), but an empty ST(0) raises nothing. */
const storeNoFault = onData((ctx, fpu) => {
  clearC1(fpu);
  if (!fpu.isEmpty(0)) fpu.setSt(indexOf(ctx), fpu.st(0));
  fpu.pop();
});

// Decimal

const BCD_INDEFINITE = (0xffffn << 64n) | 0xc000000000000000n;
const BCD_LIMIT = 10n ** 18n;

const toDecimal = () => (st: bigint) => {
  const x = unpack80(st);
  if (x.kind !== 'finite' && x.kind !== 'zero') return invalidDecimal();
  const { value, inexact, up } = toInteger(x, x87.control.rounding);
  let rest = value < 0n ? -value : value;
  if (rest >= BCD_LIMIT) return invalidDecimal();
  if (inexact) x87.flags |= PE;
  x87.up = up;
  let image = x.sign ? 0x80n << 72n : 0n;
  for (let digit = 0n; rest > 0n; digit += 4n, rest /= 10n) image |= (rest % 10n) << digit;
  return image;
};
function invalidDecimal(): bigint {
  x87.flags |= IE;
  return BCD_INDEFINITE;
}

const fbld = onData((ctx, fpu) => {
  const image = readTen(ctx, true);
  clearC1(fpu);
  let value = 0n;
  for (let digit = 17n; digit >= 0n; digit--) value = value * 10n + ((image >> (digit * 4n)) & 15n);
  const sign = image >> 79n !== 0n;
  const kind = value === 0n ? 'zero' : 'finite';
  push(fpu, pack80({ kind, sign, exp: 0, sig: value, denormal: false }));
});

// Register to register

const fxch = onData((ctx, fpu) => {
  clearC1(fpu);
  const i = indexOf(ctx);
  if ((fpu.isEmpty(0) || fpu.isEmpty(i)) && !stackFault(fpu, false)) return;
  const x = fpu.isEmpty(0) ? INDEFINITE : fpu.st(0);
  const y = fpu.isEmpty(i) ? INDEFINITE : fpu.st(i);
  fpu.setSt(0, y);
  fpu.setSt(i, x);
});

const fcmov = (mask: number, want: boolean): FpFunction =>
  onData((ctx, fpu) => {
    const i = indexOf(ctx);
    if (fpu.isEmpty(0) || fpu.isEmpty(i)) {
      if (stackFault(fpu, false)) fpu.setSt(0, INDEFINITE);
    } else if (((Number(ctx.rflags & 0xffffn) & mask) !== 0) === want) fpu.setSt(0, fpu.st(i));
  });

const CF = Flag.CF;
const ZF = Flag.ZF;
const PF = Flag.PF;

const SIMPLE: Readonly<Record<string, FpFunction>> = {
  fbld,
  fbstp: store(toDecimal, BCD_INDEFINITE, 10, true),
  fxch,
  fstpnce: storeNoFault,
  fld1: constant(0x3fffn, 1n << 63n, 'exact'),
  fldz: constant(0n, 0n, 'exact'),
  fldl2t: constant(0x4000n, 0xd49a784bcd1b8afen, 'below-half'),
  fldl2e: constant(0x3fffn, 0xb8aa3b295c17f0bbn, 'above-half'),
  fldpi: constant(0x4000n, 0xc90fdaa22168c234n, 'above-half'),
  fldlg2: constant(0x3ffdn, 0x9a209a84fbcff798n, 'above-half'),
  fldln2: constant(0x3ffen, 0xb17217f7d1cf79abn, 'above-half'),
  fcmovb: fcmov(CF, true),
  fcmove: fcmov(ZF, true),
  fcmovbe: fcmov(CF | ZF, true),
  fcmovu: fcmov(PF, true),
  fcmovnb: fcmov(CF, false),
  fcmovne: fcmov(ZF, false),
  fcmovnbe: fcmov(CF | ZF, false),
  fcmovnu: fcmov(PF, false),
};

const INTEGER_SIZES: Readonly<Record<string, MemoryFormat>> = { Mw: 'i16', Md: 'i32', Mq: 'i64' };

/** FLD, FST and FSTP by operand. */
function realMove(mnemonic: string, spec: string): FpFunction | undefined {
  const pop = mnemonic === 'fstp';
  if (mnemonic === 'fld') {
    if (spec === 'STi') return loadRegister;
    return spec === 'Mt' ? loadTen : load(spec === 'Md' ? 'single' : 'double');
  }
  if (mnemonic !== 'fst' && !pop) return undefined;
  if (spec === 'STi') return storeRegister(pop);
  if (spec === 'Mt') return storeTen;
  return spec === 'Md' ? store(toSingle, 0xffc00000n, 4, pop) : store(toDouble, 0xfff8n << 48n, 8, pop);
}

/** The function of an x87 row that moves data, or undefined. */
export function x87MoveFunction(row: Row): FpFunction | undefined {
  const { mnemonic, operands } = row;
  const spec = operands[0] ?? '';
  const integer = INTEGER_SIZES[spec];
  if (integer !== undefined) {
    if (mnemonic === 'fild') return load(integer);
    if (mnemonic === 'fist') return storeInteger(integer, false);
    if (mnemonic === 'fistp') return storeInteger(integer, true);
    if (mnemonic === 'fisttp') return storeInteger(integer, true, true);
  }
  return SIMPLE[mnemonic] ?? realMove(mnemonic, spec);
}
