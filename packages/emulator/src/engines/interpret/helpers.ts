/**
 * The hand-written functions of the interpreter's module: the slow side of memory accesses, segment and target checks, wide arithmetic.
 * Manual: APM vol. 2 section 4.5.3 (limits), APM vol. 1 section 2.1.2 (canonical addresses).
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { S, Vector } from '../../state-layout.ts';
import {
  Code,
  type FuncBody,
  type FuncImport,
  type FuncType,
  I32,
  I64,
  MEM,
  OP,
  type ValType,
} from '../wasm/emitter.ts';
import { BLOCK_TYPES, blockFunctions } from './block-moves.ts';
import type { Helper } from './frame.ts';
import { FILL_FUNCTIONS, fillFunctions } from './page-walk.ts';
import { Covered, P } from './records.ts';

const type = (params: ValType[], results: ValType[]): FuncType => ({ params, results });

export const HELPER_TYPES: Record<Helper, FuncType> = {
  missRead: type([I64, I32], [I32]),
  missReadForWrite: type([I64, I32], [I32]),
  missProbe: type([I64, I32], [I32]),
  missWrite: type([I64, I64, I32], [I32]),
  checkedLinear: type([I32, I64, I32], [I64]),
  badTarget: type([I64], [I32]),
  recordException: type([I32, I32, I32], []),
  div128: type([I64, I64, I64], [I64]),
  mulHighU: type([I64, I64], [I64]),
  mulHighS: type([I64, I64], [I64]),
  ...BLOCK_TYPES,
};

/** What the module imports from JavaScript. */
export const HOST_IMPORTS = {
  slowRead: type([I32, I32, I32], [I32]),
  slowReadForWrite: type([I32, I32, I32], [I32]),
  slowProbe: type([I32, I32, I32], [I32]),
  slowWrite: type([I32, I32, I32], [I32]),
  slowLinear: type([I32, I32, I32, I32, I32], [I32]),
  hostException: type([I32, I32, I32], []),
} as const;
export type HostImport = keyof typeof HOST_IMPORTS;
export const HOST_NAMES = Object.keys(HOST_IMPORTS) as HostImport[];

export const hostImports = (): FuncImport[] =>
  HOST_NAMES.map((name) => ({ module: 'host', name, type: HOST_IMPORTS[name] }));
const host = (name: HostImport): number => HOST_NAMES.indexOf(name);

/** Internal functions stand in front of the helpers. */
export const FIRST_FUNCTION = HOST_NAMES.length;
const CANONICAL = FIRST_FUNCTION;
const REFUSED = FIRST_FUNCTION + 1;
const UNTAG = FIRST_FUNCTION + 2;
const WALK = FIRST_FUNCTION + 3;
const INTERNAL = 3 + FILL_FUNCTIONS;
/** Function index of the walk that fills the TLB (page-walk.ts). */
export const FILL = WALK + FILL_FUNCTIONS - 1;
const NAMES = Object.keys(HELPER_TYPES) as Helper[];
/** Function index of a helper in the main module. */
export const helperIndex = (name: Helper): number => FIRST_FUNCTION + INTERNAL + NAMES.indexOf(name);

const SCRATCH = Layout.state + S.scratch;

/** (value) → value is canonical, by CR4.LA57. */
function canonical(): FuncBody {
  const code = new Code();
  code
    .get(0)
    .i64(7n)
    .i64(16n)
    .i32(0)
    .mem(MEM.i64Load, Layout.state + S.cr4)
    .op(OP.i32WrapI64)
    .i32(1 << 12);
  code.op(OP.i32And).op(OP.select).tee(1).op(OP.i64Shl).get(1).op(OP.i64ShrS).get(0).op(OP.i64Eq);
  return { type: type([I64], [I32]), locals: [I64], code };
}

const CR3_HIGH = Layout.state + S.cr3 + 4;
/** CR3.LAM_U57 and LAM_U48 in the register's upper half, CR4.LAM_SUP and LA57. */
const LAM_U57 = 1 << 29;
const LAM_U48 = 1 << 30;
const LAM_SUP = 1 << 28;
const LA57 = 1 << 12;

/** (linear) → the address without the metadata that LAM allows (SDM vol. 1 section 3.3.7.2). What is canonical with 48 bits has none. */
function untag(): FuncBody {
  const code = new Code();
  const [linear, shift] = [0, 1];
  const plain = (): Code => code.get(linear).op(OP.return).end();
  code.get(linear).i64(47n).op(OP.i64ShrS).i64(1n).op(OP.i64Add).i64(1n).op(OP.i64LeU).if();
  plain();
  // 63 less the bit that is extended: 7 for LAM57, 16 for LAM48.
  const width = (): Code => code.i64(7n).i64(16n);
  code.get(linear).i64(0n).op(OP.i64LtS).if();
  code
    .i32(0)
    .mem(MEM.i32Load, Layout.state + S.cr4)
    .i32(LAM_SUP)
    .op(OP.i32And)
    .op(OP.i32Eqz)
    .if();
  plain();
  width()
    .i32(0)
    .mem(MEM.i32Load, Layout.state + S.cr4)
    .i32(LA57)
    .op(OP.i32And)
    .op(OP.select)
    .set(shift);
  code.else();
  code
    .i32(0)
    .mem(MEM.i32Load, CR3_HIGH)
    .i32(LAM_U57 | LAM_U48)
    .op(OP.i32And)
    .op(OP.i32Eqz)
    .if();
  plain();
  width().i32(0).mem(MEM.i32Load, CR3_HIGH).i32(LAM_U57).op(OP.i32And).op(OP.select).set(shift);
  code.end();
  code
    .get(linear)
    .get(shift)
    .op(OP.i64Shl)
    .get(shift)
    .op(OP.i64ShrS)
    .i64((1n << 63n) - 1n)
    .op(OP.i64And);
  code
    .get(linear)
    .i64(-(1n << 63n))
    .op(OP.i64And)
    .op(OP.i64Or);
  return { type: type([I64], [I64]), locals: [I64], code };
}

/**
 * (linear, size | segment << 8 | (span - size) << 16) → 1 with #SS(0) or #GP(0) recorded if a part of the access is not canonical, or lies behind the end of a segment
 * of 4 GiB that begins at 0: all others have been checked.
 */
function refused(): FuncBody {
  const code = new Code();
  const last = (): Code =>
    code
      .get(0)
      .get(1)
      .i32(0xff)
      .op(OP.i32And)
      .get(1)
      .i32(16)
      .op(OP.i32ShrU)
      .op(OP.i32Add)
      .op(OP.i64ExtendI32U)
      .op(OP.i64Add)
      .i64(1n)
      .op(OP.i64Sub);
  code.get(0).call(CANONICAL);
  last().call(CANONICAL).op(OP.i32And).if();
  last().i64(32n).op(OP.i64ShrU).op(OP.i64Eqz);
  code
    .i32(0)
    .mem(MEM.i32Load, P.linearMask + 4)
    .op(OP.i32Or);
  code.i32(0).mem(MEM.i32Load, P.endsAt4G).op(OP.i32Eqz).op(OP.i32Or);
  code
    .get(1)
    .i32(4)
    .op(OP.i32ShrU)
    .i32(0x70)
    .op(OP.i32And)
    .mem(MEM.i64Load, Layout.state + S.segments + 8)
    .op(OP.i64Eqz)
    .op(OP.i32Eqz)
    .op(OP.i32Or)
    .if();
  code.i32(0).op(OP.return).end().end();
  code.i32(Vector.SS).i32(Vector.GP).get(1).i32(0x700).op(OP.i32And).i32(0x200).op(OP.i32Eq).op(OP.select);
  code.i32(1).i32(0).call(host('hostException')).i32(1);
  return { type: type([I64, I32], [I32]), locals: [], code };
}

const halves = (code: Code, local: number): Code =>
  code.get(local).op(OP.i32WrapI64).get(local).i64(32n).op(OP.i64ShrU).op(OP.i32WrapI64);

/** Returns 1 from the function if the access is refused. */
function refuse(code: Code, flags: number): void {
  code.get(0).get(flags).call(REFUSED).if();
  code.i32(1).op(OP.return).end();
}

const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;
/** `TlbEntry.info`: writes are permitted, though not inline, because the page holds code. */
const MAY_WRITE = 8;

/**
 * `inside` for an access within a page of RAM that may be written but holds code; it has the entry's offset in `entry`. Falls out otherwise.
 * @param flags local: size | segment << 8 | (span - size) << 16
 */
function onCodePage(code: Code, flags: number, entry: number, inside: () => void): void {
  const out = code.block();
  code.get(0).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
  code.i32(0).mem(MEM.i32Load, P.contextHash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And).tee(entry);
  code.mem(MEM.i64Load, Layout.tlb + TlbEntry.tagRead);
  code.get(0).get(flags).i32(0xff).op(OP.i32And).op(OP.i64ExtendI32U).op(OP.i64Add).i64(1n).op(OP.i64Sub);
  code.i64(-4096n).op(OP.i64And).i32(0).mem(MEM.i64Load, P.context).op(OP.i64Or).op(OP.i64Ne).brIf(out);
  code
    .get(entry)
    .mem(MEM.i32Load, Layout.tlb + TlbEntry.info)
    .i32(MAY_WRITE)
    .op(OP.i32And)
    .op(OP.i32Eqz)
    .brIf(out);
  inside();
  code.end();
}
const hostAddress = (code: Code, entry: number): Code =>
  code
    .get(0)
    .op(OP.i32WrapI64)
    .get(entry)
    .mem(MEM.i32Load, Layout.tlb + TlbEntry.addend)
    .op(OP.i32Add);

/** Stores beside the code of a page and returns 0 from the function. */
function storeBeside(code: Code, entry: number, page: number): void {
  const out = code.block();
  code
    .get(entry)
    .mem(MEM.i32Load, Layout.tlb + TlbEntry.info)
    .i32(12)
    .op(OP.i32ShrU)
    .tee(page);
  const place = (): Code =>
    code
      .get(page)
      .i32(Covered.places - 1)
      .op(OP.i32And);
  place().i32(2).op(OP.i32Shl).mem(MEM.i32Load, Covered.tags).op(OP.i32Ne).brIf(out);
  place().i32(Covered.bytes).op(OP.i32Mul);
  code
    .get(0)
    .op(OP.i32WrapI64)
    .i32(0xfff)
    .op(OP.i32And)
    .i32(3)
    .op(OP.i32ShrU)
    .op(OP.i32Add)
    .mem(MEM.i32Load, Covered.bits);
  code.get(0).op(OP.i32WrapI64).i32(7).op(OP.i32And).op(OP.i32ShrU);
  code.i32(1).get(2).i32(0xff).op(OP.i32And).op(OP.i32Shl).i32(1).op(OP.i32Sub).op(OP.i32And).brIf(out);
  writeAt(code, entry);
  code.end();
}

/** Stores at an entry's page and returns 0 from the function. */
function writeAt(code: Code, entry: number): void {
  const stores = [
    [4, MEM.i64Store32],
    [1, MEM.i64Store8],
    [8, MEM.i64Store],
    [2, MEM.i64Store16],
  ] as const;
  for (const [size, store] of stores) {
    code.get(2).i32(0xff).op(OP.i32And).i32(size).op(OP.i32Eq).if();
    hostAddress(code, entry).get(1).mem(store, 0);
    code.i32(0).op(OP.return).end();
  }
}

/** The operand into S.scratch; returns 0 from the function. */
function readAt(code: Code, entry: number): void {
  const loads = [
    [4, MEM.i64Load32U],
    [1, MEM.i64Load8U],
    [8, MEM.i64Load],
    [2, MEM.i64Load16U],
  ] as const;
  for (const [size, load] of loads) {
    code.get(1).i32(0xff).op(OP.i32And).i32(size).op(OP.i32Eq).if();
    hostAddress(code.i32(0), entry).mem(load, 0).mem(MEM.i64Store, SCRATCH);
    code.i32(0).op(OP.return).end();
  }
}

/** `inside` for an access within a page that the walk has found; `entry` has the entry's offset. Falls out otherwise. */
function afterWalk(code: Code, flags: number, tag: number, entry: number, inside: () => void): void {
  code.get(0).op(OP.i32WrapI64).i32(0xfff).op(OP.i32And).get(flags).i32(0xff).op(OP.i32And).op(OP.i32Add);
  code.i32(4096).op(OP.i32LeU).if();
  code.get(0).i32(tag).call(FILL).if();
  code.get(0).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
  code.i32(0).mem(MEM.i32Load, P.contextHash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And).set(entry);
  inside();
  code.end().end();
}

/** Leaves 1 on non-canonical addresses, else what JavaScript says. */
function miss(name: 'slowRead' | 'slowReadForWrite' | 'slowProbe'): FuncBody {
  const code = new Code();
  if (name !== 'slowRead') {
    onCodePage(code, 1, 2, () => {
      if (name === 'slowReadForWrite') readAt(code, 2);
      else code.i32(0).op(OP.return);
    });
  }
  code.get(0).call(UNTAG).set(0);
  refuse(code, 1);
  afterWalk(code, 1, name === 'slowRead' ? TlbEntry.tagRead : TlbEntry.tagWrite, 2, () => {
    if (name === 'slowProbe') code.i32(0).op(OP.return);
    else readAt(code, 2);
  });
  halves(code, 0).get(1).i32(0xff).op(OP.i32And).call(host(name));
  return { type: type([I64, I32], [I32]), locals: [I32], code };
}

function missWrite(): FuncBody {
  const code = new Code();
  const known = code.block();
  onCodePage(code, 2, 3, () => {
    storeBeside(code, 3, 4);
    // The TLB has the page: a walk might find another by now.
    code.br(known);
  });
  code.get(0).call(UNTAG).set(0);
  refuse(code, 2);
  afterWalk(code, 2, TlbEntry.tagWrite, 3, () => writeAt(code, 3));
  code.end();
  code.i32(0).get(1).mem(MEM.i64Store, SCRATCH);
  halves(code, 0).get(2).i32(0xff).op(OP.i32And).call(host('slowWrite'));
  // 2: predecoded code was hit. Its records are stale by now, so that dispatch stops at the next one.
  code.i32(1).op(OP.i32Eq);
  return { type: HELPER_TYPES.missWrite, locals: [I32, I32], code };
}

/** Segment types that may be read (data that expands up, readable code) and written (data that expands up). */
const READABLE = 0xcc0f;
const WRITABLE = 0x000c;

/** (segment, offset, size | write << 4). Outside the plain cases JavaScript decides. */
function checkedLinear(): FuncBody {
  const code = new Code();
  const [seg, offset, flags, slot, attrib] = [0, 1, 2, 3, 4];
  const segments = Layout.state + S.segments;
  code
    .get(seg)
    .i32(4)
    .op(OP.i32Shl)
    .tee(slot)
    .mem(MEM.i32Load16U, segments + 2)
    .set(attrib);
  code.get(attrib).i32(0x8090).op(OP.i32And).i32(0x90).op(OP.i32Eq);
  code.i32(WRITABLE).i32(READABLE).get(flags).i32(16).op(OP.i32And).op(OP.select);
  code.get(attrib).i32(15).op(OP.i32And).op(OP.i32ShrU).op(OP.i32And);
  code.get(offset).get(flags).i32(15).op(OP.i32And).op(OP.i64ExtendI32U).op(OP.i64Add).i64(1n).op(OP.i64Sub);
  code
    .get(slot)
    .mem(MEM.i64Load32U, segments + 4)
    .op(OP.i64LeU)
    .op(OP.i32And)
    .if();
  code
    .get(slot)
    .mem(MEM.i64Load, segments + 8)
    .get(offset)
    .op(OP.i64Add);
  code.op(OP.i32WrapI64).op(OP.i64ExtendI32U).op(OP.return).end();
  code.get(seg);
  halves(code, offset).get(flags).i32(15).op(OP.i32And).get(flags).i32(4).op(OP.i32ShrU).call(host('slowLinear')).if();
  code.i64(-1n).op(OP.return).end();
  code.i32(0).mem(MEM.i64Load32U, SCRATCH);
  return { type: HELPER_TYPES.checkedLinear, locals: [I32, I32], code };
}

function badTarget(): FuncBody {
  const code = new Code();
  code.get(0).i32(0).mem(MEM.i64Load, P.codeLimit).op(OP.i64GtU);
  code.get(0).call(CANONICAL).op(OP.i32Eqz).op(OP.i32Or);
  return { type: HELPER_TYPES.badTarget, locals: [], code };
}

function recordException(): FuncBody {
  const code = new Code().get(0).get(1).get(2).call(host('hostException'));
  return { type: HELPER_TYPES.recordException, locals: [], code };
}

/**
 * Two digits of 32 bits, each guessed from the divisor's upper half and put right at most twice (Knuth, The Art of Computer Programming,
 * section 4.3.1, algorithm D). The quotient is known to fit into 64 bits.
 */
function div128(): FuncBody {
  const code = new Code();
  const [hi, lo, divisor, shift, digit, rest, top, low] = [0, 1, 2, 3, 4, 5, 6, 7];
  const half = (local: number): Code => code.get(local).i64(32n).op(OP.i64ShrU);
  const lowHalf = (local: number): Code => code.get(local).i64(0xffffffffn).op(OP.i64And);
  code.get(hi).op(OP.i64Eqz).if();
  code.get(lo).get(divisor).op(OP.i64DivU).op(OP.return).end();
  code.get(divisor).get(divisor).op(OP.i64Clz).tee(shift).op(OP.i64Shl).set(divisor);
  // Counts are taken modulo 64: a shift by 1 and then by 63 - shift is one by 64 - shift, also where shift is 0.
  code.get(hi).get(shift).op(OP.i64Shl).get(lo).i64(1n).op(OP.i64ShrU).i64(63n).get(shift).op(OP.i64Sub).op(OP.i64ShrU);
  code.op(OP.i64Or).set(hi);
  code.get(lo).get(shift).op(OP.i64Shl).set(lo);
  half(divisor).set(top);
  lowHalf(divisor).set(low);
  /** hi:next digit by the divisor: the digit in `digit`, what is left in `hi`. */
  const step = (next: () => void): void => {
    code.get(hi).get(top).op(OP.i64DivU).set(digit);
    code.get(hi).get(digit).get(top).op(OP.i64Mul).op(OP.i64Sub).set(rest);
    const right = code.block();
    for (let i = 0; i < 2; i++) {
      half(digit).op(OP.i64Eqz);
      code.get(digit).get(low).op(OP.i64Mul).get(rest).i64(32n).op(OP.i64Shl);
      next();
      code.op(OP.i64Or).op(OP.i64LeU).op(OP.i32And).brIf(right);
      code.get(digit).i64(1n).op(OP.i64Sub).set(digit);
      code.get(rest).get(top).op(OP.i64Add).tee(rest).i64(32n).op(OP.i64ShrU).op(OP.i64Eqz).op(OP.i32Eqz).brIf(right);
    }
    code.end();
    code.get(hi).i64(32n).op(OP.i64Shl);
    next();
    code.op(OP.i64Or).get(digit).get(divisor).op(OP.i64Mul).op(OP.i64Sub).set(hi);
  };
  step(() => half(lo));
  code.get(digit).i64(32n).op(OP.i64Shl).set(shift);
  step(() => lowHalf(lo));
  code.get(shift).get(digit).op(OP.i64Or);
  return { type: HELPER_TYPES.div128, locals: [I64, I64, I64, I64, I64], code };
}

/** Schoolbook on 32-bit halves. */
function mulHighU(): FuncBody {
  const code = new Code();
  const low = (local: number): Code => code.get(local).op(OP.i32WrapI64).op(OP.i64ExtendI32U);
  const high = (local: number): Code => code.get(local).i64(32n).op(OP.i64ShrU);
  const [a, b, middle, other] = [0, 1, 2, 3];
  // middle = high(a) * low(b) + high(low(a) * low(b))
  high(a);
  low(b).op(OP.i64Mul);
  low(a);
  low(b).op(OP.i64Mul).i64(32n).op(OP.i64ShrU).op(OP.i64Add).set(middle);
  low(a);
  high(b).op(OP.i64Mul);
  low(middle).op(OP.i64Add).set(other);
  high(a);
  high(b).op(OP.i64Mul);
  high(middle).op(OP.i64Add);
  high(other).op(OP.i64Add);
  return { type: HELPER_TYPES.mulHighU, locals: [I64, I64], code };
}

function mulHighS(): FuncBody {
  const code = new Code();
  const correction = (sign: number, value: number): Code =>
    code.get(sign).i64(63n).op(OP.i64ShrS).get(value).op(OP.i64And).op(OP.i64Sub);
  code.get(0).get(1).call(helperIndex('mulHighU'));
  correction(0, 1);
  correction(1, 0);
  return { type: HELPER_TYPES.mulHighS, locals: [], code };
}

/** All of them, in index order behind the imports. */
export function helperFunctions(): FuncBody[] {
  const bodies: Record<Helper, () => FuncBody> = {
    missRead: () => miss('slowRead'),
    missReadForWrite: () => miss('slowReadForWrite'),
    missProbe: () => miss('slowProbe'),
    missWrite,
    checkedLinear,
    badTarget,
    recordException,
    div128,
    mulHighU,
    mulHighS,
    ...blockFunctions(helperIndex('block')),
  };
  return [
    canonical(),
    refused(),
    untag(),
    ...fillFunctions(WALK),
    ...NAMES.map((name) => ({ ...bodies[name](), export: name })),
  ];
}
