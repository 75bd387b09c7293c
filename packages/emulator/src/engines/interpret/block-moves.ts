/**
 * REP MOVS and REP STOS over whole parts of pages: as far as both sides are RAM that the TLB has and nothing is left to check, elements go by
 * memory.copy and memory.fill. What they leave is done one element at a time.
 * Manual: APM vol. 3 ch. 3 (MOVS, STOS), section 1.2.6 (repeat prefixes), APM vol. 2 section 13.1.3.2 (RFLAGS.RF).
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { Flag, RAX, RCX, RDI, RSI, S, Seg } from '../../state-layout.ts';
import { Code, type FuncBody, type FuncType, I32, I64, type Label, MEM, OP } from '../wasm/emitter.ts';
import { I64X2_SPLAT, SIMD_PREFIX, V128_STORE } from '../wasm/simd.ts';
import { P } from './records.ts';

/** `how`: bits 3:0 size of an element, bits 7:4 size of addresses, bits 15:8 segment of the source, and these. */
export const How = { fill: 1 << 16, long: 1 << 17, leaveOne: 1 << 18 } as const;

export const BLOCK_TYPES = {
  /** (source offset or value, destination offset, count, most iterations, how) → iterations done. */
  block: { params: [I64, I64, I64, I32, I32], results: [I32] },
  /** (how, most iterations) → iterations done, with the registers of the state block; at least one is left. */
  repeatBlock: { params: [I32, I32], results: [I32] },
} as const satisfies Record<string, FuncType>;

const FROM = 0;
const TO = 1;
const COUNT = 2;
const LIMIT = 3;
const HOW = 4;
const L = {
  most: 5,
  size: 6,
  shift: 7,
  done: 8,
  part: 9,
  entry: 10,
  hostTo: 11,
  hostFrom: 12,
  bytes: 13,
  distance: 14,
  pattern: 15,
  offset: 16,
  addend: 17,
  length: 18,
} as const;
const LOCALS = [I64, I32, I64, I32, I32, I32, I32, I32, I32, I32, I64, I64, I32, I32] as const;

const TLB_MASK = (Layout.tlbEntries - 1) * TlbEntry.size;
const SEGMENTS = Layout.state + S.segments;
const RFLAGS = Layout.state + S.rflags;
/** Segment types that may be read (data that expands up, readable code) and written (data that expands up). */
const READABLE = 0xcc0f;
const WRITABLE = 0x000c;
const COMMON_RIGHTS = { mask: 0x8090, value: 0x90 } as const;
/** Fewer are not worth it where one element at a time is possible. */
const FEW = 4n;

/** More are made in another go: byte counts stay small. */
const MOST = 1n << 24n;

const bulk = (code: Code, opcode: number, immediates: number): Code => {
  code.byte(0xfc).u32(opcode);
  for (let i = 0; i < immediates; i++) code.byte(0);
  return code;
};
/** (to, from, bytes), (to, value, bytes). */
const memoryCopy = (code: Code): Code => bulk(code, 10, 2);
const memoryFill = (code: Code): Code => bulk(code, 11, 1);

const returnZero = (code: Code): Code => code.i32(0).op(OP.return).end();
const has = (code: Code, bit: number): Code => code.get(HOW).i32(bit).op(OP.i32And);

/** `most` is at most the i64 that `push` pushes. */
function limitMost(code: Code, push: () => void): void {
  push();
  code.tee(L.offset).get(L.most).get(L.offset).get(L.most).op(OP.i64LtU).op(OP.select).set(L.most);
}

/** Pushes the state block's offset of a segment. */
type PushSegment = () => void;

/** From the offset in a local to the linear address; returns 0 from the function where the segment needs a closer look. */
function linearise(code: Code, local: number, slot: PushSegment, rights: number): void {
  // Offsets wrap at the size of addresses.
  has(code, 0x80).op(OP.i32Eqz).if();
  limitMost(code, () => {
    code.i64(0x100000000n).i64(0x10000n);
    has(code, 0x40).op(OP.select).get(local).op(OP.i64Sub).get(L.shift).op(OP.i64ShrU);
  });
  code.end();
  has(code, How.long).if();
  // Only FS and GS have bases there.
  code.i64(0n);
  slot();
  code.mem(MEM.i64Load, SEGMENTS + 8);
  slot();
  code
    .i32(Seg.FS * 16)
    .op(OP.i32LtU)
    .op(OP.select)
    .get(local)
    .op(OP.i64Add)
    .set(local);
  code.else();
  slot();
  code
    .mem(MEM.i32Load16U, SEGMENTS + 2)
    .tee(L.entry)
    .i32(COMMON_RIGHTS.mask)
    .op(OP.i32And);
  code.i32(COMMON_RIGHTS.value).op(OP.i32Eq);
  code
    .i32(rights)
    .get(L.entry)
    .i32(15)
    .op(OP.i32And)
    .op(OP.i32ShrU)
    .op(OP.i32And)
    .i32(1)
    .op(OP.i32And)
    .op(OP.i32Eqz)
    .if();
  returnZero(code);
  code.get(local);
  slot();
  code
    .mem(MEM.i64Load32U, SEGMENTS + 4)
    .op(OP.i64GtU)
    .if();
  returnZero(code);
  limitMost(code, () => {
    slot();
    code
      .mem(MEM.i64Load32U, SEGMENTS + 4)
      .get(local)
      .op(OP.i64Sub)
      .i64(1n)
      .op(OP.i64Add)
      .get(L.shift)
      .op(OP.i64ShrU);
  });
  slot();
  code
    .mem(MEM.i64Load, SEGMENTS + 8)
    .get(local)
    .op(OP.i64Add)
    .i64(0xffffffffn)
    .op(OP.i64And)
    .set(local);
  code.end();
}

/** Puts the host address of a linear address, and how many bytes from there on lie in one piece, into locals; leaves by `out` if none does. */
function reach(code: Code, linear: number, tag: number, found: { host: number; length: number }, out: Label): void {
  const entryOf = (address: number): void => {
    code.get(address).i64(7n).op(OP.i64ShrU).op(OP.i32WrapI64);
    code.i32(0).mem(MEM.i32Load, P.contextHash).op(OP.i32Xor).i32(TLB_MASK).op(OP.i32And).tee(L.entry);
    code
      .mem(MEM.i64Load, Layout.tlb + tag)
      .get(address)
      .i64(-4096n)
      .op(OP.i64And);
    code.i32(0).mem(MEM.i64Load, P.context).op(OP.i64Or).op(OP.i64Ne);
  };
  const addend = (): Code => code.get(L.entry).mem(MEM.i32Load, Layout.tlb + TlbEntry.addend);
  entryOf(linear);
  code.brIf(out);
  addend().tee(L.addend).get(linear).op(OP.i32WrapI64).op(OP.i32Add).set(found.host);
  code.i32(4096).get(linear).op(OP.i32WrapI64).i32(4095).op(OP.i32And).op(OP.i32Sub).set(found.length);
  // Pages behind it, as long as they lie behind each other in the host, too.
  const end = code.block();
  const again = code.loop();
  code.get(found.length).get(L.bytes).op(OP.i32GeU).brIf(end);
  code.get(linear).get(found.length).op(OP.i64ExtendI32U).op(OP.i64Add);
  code.i32(0).mem(MEM.i64Load, P.linearMask).op(OP.i64And).set(L.offset);
  entryOf(L.offset);
  code.brIf(end);
  addend().get(L.addend).op(OP.i32Ne).brIf(end);
  code.get(found.length).i32(4096).op(OP.i32Add).set(found.length).br(again).end().end();
}

/**
 * Copies as elements in ascending order do: where the destination lies a short way behind the source, what lies between is repeated. Leaves
 * by `out` if elements overlap themselves.
 */
function copy(code: Code, out: Label): void {
  code.get(L.hostTo).get(L.hostFrom).op(OP.i32Sub).tee(L.distance).get(L.bytes).op(OP.i32GeU).if();
  memoryCopy(code.get(L.hostTo).get(L.hostFrom).get(L.bytes));
  code.else();
  code.get(L.distance).if();
  code.get(L.distance).get(L.size).op(OP.i32LtU).brIf(out);
  memoryCopy(code.get(L.hostTo).get(L.hostFrom).get(L.distance));
  const again = code.loop();
  const left = (): Code => code.get(L.bytes).get(L.distance).op(OP.i32Sub);
  code.get(L.hostTo).get(L.distance).op(OP.i32Add).get(L.hostTo).get(L.distance);
  left().get(L.distance);
  left().op(OP.i32LtU).op(OP.select);
  memoryCopy(code);
  code.get(L.distance).i32(1).op(OP.i32Shl).tee(L.distance).get(L.bytes).op(OP.i32LtU).brIf(again);
  code.end().end().end();
}

/** The value in every element of eight bytes. */
function spread(code: Code): void {
  const times = (mask: bigint, factor: bigint): Code =>
    code.get(FROM).i64(mask).op(OP.i64And).i64(factor).op(OP.i64Mul);
  code.get(FROM).set(L.pattern);
  const sizes = [
    [1, 0xffn, 0x0101010101010101n],
    [2, 0xffffn, 0x0001000100010001n],
    [4, 0xffffffffn, 0x0000000100000001n],
  ] as const;
  for (const [size, mask, factor] of sizes) {
    code.get(L.size).i32(size).op(OP.i32Eq).if();
    times(mask, factor).set(L.pattern).end();
  }
}
/** While `step` bytes are left, stores them. */
function storeLoop(code: Code, step: number, store: () => void): void {
  const end = code.block();
  const again = code.loop();
  code.get(L.bytes).i32(step).op(OP.i32LtU).brIf(end);
  store();
  code.get(L.hostTo).i32(step).op(OP.i32Add).set(L.hostTo);
  code.get(L.bytes).i32(step).op(OP.i32Sub).set(L.bytes).br(again).end().end();
}
/** So much is stored, the rest is copied from it: it stays in the first-level cache. */
const PIECE = 8192;
/** `bytes` is 0 afterwards. */
function fill(code: Code): void {
  code.get(L.pattern).get(L.pattern).i64(8n).op(OP.i64Rotl).op(OP.i64Eq).if();
  memoryFill(code.get(L.hostTo).get(L.pattern).op(OP.i32WrapI64).get(L.bytes));
  code.else();
  const rest = L.distance;
  code.get(L.hostTo).set(L.hostFrom);
  code.get(L.bytes).set(rest);
  code.get(rest).i32(PIECE).get(rest).i32(PIECE).op(OP.i32LtU).op(OP.select).set(L.bytes);
  code.get(rest).get(L.bytes).op(OP.i32Sub).set(rest);
  const vector = (at: number): void => {
    code.get(L.hostTo).get(L.pattern).byte(SIMD_PREFIX).u32(I64X2_SPLAT);
    code.byte(SIMD_PREFIX).u32(V128_STORE).u32(0).u32(at);
  };
  storeLoop(code, 64, () => [0, 16, 32, 48].forEach(vector));
  storeLoop(code, 8, () => code.get(L.hostTo).get(L.pattern).mem(MEM.i64Store, 0));
  const narrow = { 4: MEM.i32Store, 2: MEM.i32Store16, 1: MEM.i32Store8 };
  for (const step of [4, 2, 1] as const) {
    storeLoop(code, step, () => code.get(L.hostTo).get(L.pattern).op(OP.i32WrapI64).mem(narrow[step], 0));
  }
  code.get(rest).set(L.bytes);
  storeLoop(code, PIECE, () => memoryCopy(code.get(L.hostTo).get(L.hostFrom).i32(PIECE)));
  memoryCopy(code.get(L.hostTo).get(L.hostFrom).get(L.bytes)).end();
}

/** One piece of memory after the other, until something is in the way. */
function parts(code: Code): void {
  const out = code.block();
  const again = code.loop();
  code.get(L.most).op(OP.i32WrapI64).tee(L.part).get(L.shift).op(OP.i32WrapI64).op(OP.i32Shl).set(L.bytes);
  reach(code, TO, TlbEntry.tagWrite, { host: L.hostTo, length: L.length }, out);
  const limit = (): Code =>
    code.get(L.length).get(L.bytes).get(L.length).get(L.bytes).op(OP.i32LtU).op(OP.select).set(L.bytes);
  limit();
  has(code, How.fill).op(OP.i32Eqz).if();
  reach(code, FROM, TlbEntry.tagRead, { host: L.hostFrom, length: L.length }, out);
  limit();
  code.end();
  // None: an element goes across.
  code.get(L.bytes).get(L.shift).op(OP.i32WrapI64).op(OP.i32ShrU).tee(L.part).op(OP.i32Eqz).brIf(out);
  code.get(L.part).get(L.shift).op(OP.i32WrapI64).op(OP.i32Shl).set(L.bytes);
  has(code, How.fill).if();
  fill(code);
  code.else();
  copy(code, out);
  forward(code, FROM);
  code.end();
  forward(code, TO);
  code.get(L.done).get(L.part).op(OP.i32Add).set(L.done);
  code.get(L.most).get(L.part).op(OP.i64ExtendI32U).op(OP.i64Sub).tee(L.most).op(OP.i64Eqz).brIf(out);
  code.br(again).end().end();
}
const forward = (code: Code, linear: number): void => {
  code.get(linear).get(L.part).op(OP.i64ExtendI32U).get(L.shift).op(OP.i64Shl).op(OP.i64Add);
  code.i32(0).mem(MEM.i64Load, P.linearMask).op(OP.i64And).set(linear);
};

/** RF is set between iterations, and clear behind the last one. */
function resume(code: Code): void {
  code.i32(0).i32(0).mem(MEM.i32Load, RFLAGS).i32(~Flag.RF).op(OP.i32And);
  code.i32(Flag.RF).i32(0).get(L.done).op(OP.i64ExtendI32U).get(COUNT).op(OP.i64LtU).op(OP.select);
  code.op(OP.i32Or).mem(MEM.i32Store, RFLAGS);
}

function block(): FuncBody {
  const code = new Code();
  code.get(LIMIT).i32(0).op(OP.i32LeS).i32(0).mem(MEM.i32Load, RFLAGS).i32(Flag.DF).op(OP.i32And).op(OP.i32Or).if();
  returnZero(code);
  code.get(COUNT);
  has(code, How.leaveOne).i32(0).op(OP.i32Ne).op(OP.i64ExtendI32U).op(OP.i64Sub).set(L.most);
  limitMost(code, () => code.get(LIMIT).op(OP.i64ExtendI32U));
  limitMost(code, () => code.i64(MOST));
  has(code, 15).tee(L.size).op(OP.i32Ctz).op(OP.i64ExtendI32U).set(L.shift);
  const es = Seg.ES * 16;
  linearise(code, TO, () => code.i32(es), WRITABLE);
  has(code, How.fill).if();
  spread(code);
  code.else();
  const source = (): void => void code.get(HOW).i32(4).op(OP.i32ShrU).i32(0xff0).op(OP.i32And);
  linearise(code, FROM, source, READABLE);
  code.end();
  parts(code);
  code.get(L.done).if();
  resume(code);
  code.end().get(L.done);
  return { type: BLOCK_TYPES.block, locals: LOCALS, code };
}

const GPR = Layout.state + S.gpr;

/** @param blockIndex function index of {@link block} */
function repeatBlock(blockIndex: number): FuncBody {
  const code = new Code();
  const [how, left, mask, done, step] = [0, 1, 2, 3, 4];
  const bit = (value: number): Code => code.get(how).i32(value).op(OP.i32And);
  const register = (number: number): Code => code.i32(0).mem(MEM.i64Load, GPR + number * 8);
  const masked = (number: number): Code => register(number).get(mask).op(OP.i64And);
  code.i64(-1n).i64(0xffffffffn).i64(0xffffn);
  bit(0x40).op(OP.select);
  bit(0x80).op(OP.select).set(mask);
  masked(RCX).i64(FEW).op(OP.i64LtU).if();
  returnZero(code);
  register(RAX);
  masked(RSI);
  bit(How.fill).op(OP.select);
  masked(RDI);
  masked(RCX).get(left).get(how).i32(How.leaveOne).op(OP.i32Or).call(blockIndex).tee(done).op(OP.i32Eqz).if();
  returnZero(code);
  /** Of 32 bits the upper half becomes zero, of 16 the rest stays. */
  const move = (number: number, by: () => void): void => {
    code.i32(0);
    masked(number);
    by();
    code.op(OP.i64Add).get(mask).op(OP.i64And);
    register(number).i64(~0xffffn).i64(0n);
    bit(0x20)
      .op(OP.select)
      .op(OP.i64And)
      .op(OP.i64Or)
      .mem(MEM.i64Store, GPR + number * 8);
  };
  move(RCX, () => code.i64(0n).get(done).op(OP.i64ExtendI32U).op(OP.i64Sub));
  code.get(done).op(OP.i64ExtendI32U).get(how).i32(15).op(OP.i32And).op(OP.i64ExtendI32U).op(OP.i64Mul).set(step);
  move(RDI, () => code.get(step));
  bit(How.fill).op(OP.i32Eqz).if();
  move(RSI, () => code.get(step));
  code.end();
  // Translating would make nothing of it faster.
  code.i32(0).i32(0).mem(MEM.i32Load, P.translated).get(done).op(OP.i32Add).mem(MEM.i32Store, P.translated);
  code.get(done);
  return { type: BLOCK_TYPES.repeatBlock, locals: [I64, I32, I64], code };
}

/** Both, given the index of the first. */
export const blockFunctions = (first: number): Record<keyof typeof BLOCK_TYPES, () => FuncBody> => ({
  block,
  repeatBlock: () => repeatBlock(first),
});
