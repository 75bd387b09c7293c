/**
 * Vector nodes and effects to wasm: 16-byte accesses through the TLB, and the vector instructions themselves.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import { type Code, I32, I64, MEM, OP, V128 } from '../wasm/emitter.ts';
import * as simd from '../wasm/simd.ts';
import type { Frame } from './frame.ts';
import type { MemoryAccess, Node, NodeOp } from './ir.ts';
import { P } from './records.ts';

/** What these functions need of the emitter around them. */
export interface VectorEmitter {
  readonly code: Code;
  readonly frame: Frame;
  /** Pushes a node's value. */
  value(node: Node): void;
  /** Evaluates a linear address into a local of its own. */
  linear(node: Node): number;
  /** Leaves on the stack whether the TLB has the linear address. */
  probeTlb(linear: number, entry: number, size: number, tag: number): void;
  /** Pushes the host offset of a TLB hit. */
  hostAddress(linear: number, entry: number): void;
  /** Pushes size | segment << 8 | (span - size) << 16, for the helpers. */
  sizeAndSegment(access: MemoryAccess, size?: number, span?: number): void;
}

const SCRATCH = Layout.state + S.scratch;

const vectorOp = (code: Code, opcode: number): Code => code.byte(simd.SIMD_PREFIX).u32(opcode);
/** Load or store of 16 bytes with a static offset (alignment as everywhere: 1). */
export const vectorMem = (code: Code, opcode: number, offset: number): Code =>
  vectorOp(code, opcode).u32(0).u32(offset);

function bytes16(code: Code, bits: bigint): void {
  for (let i = 0; i < 16; i++) code.byte(Number((bits >> BigInt(8 * i)) & 0xffn));
}

/** Address node or 0, then the absolute offset `k`. */
function address(e: VectorEmitter, node: Node | null | undefined): void {
  if (node) e.value(node);
  else e.code.i32(0);
}

export function setVector(e: VectorEmitter, at: Node | null, k: bigint, value: Node): void {
  address(e, at);
  e.value(value);
  vectorMem(e.code, simd.V128_STORE, Number(k));
}

/** Pushes linear + 8 for the upper half of a missed access. */
const half = (code: Code, linear: number, upper: boolean): Code => {
  code.get(linear);
  return upper ? code.i64(8n).op(OP.i64Add) : code;
};

/** A miss is two accesses of eight bytes: nothing is committed in between. */
function missLoad(e: VectorEmitter, linear: number, access: MemoryAccess): void {
  const { code, frame } = e;
  const low = frame.acquire(I64);
  for (const upper of [false, true]) {
    half(code, linear, upper);
    e.sizeAndSegment(access, 8, upper ? 8 : (access.span ?? 16));
    code.call(frame.helper('missRead')).brIf(frame.fault);
    if (!upper) code.i32(0).mem(MEM.i64Load, SCRATCH).set(low);
  }
  vectorOp(code.get(low), simd.I64X2_SPLAT);
  code.i32(0).mem(MEM.i64Load, SCRATCH);
  vectorOp(code, simd.SIMD_REPLACE.i64x2ReplaceLane).byte(1);
  frame.release(low, I64);
}

function load128(e: VectorEmitter, node: Node): void {
  const { code, frame } = e;
  const linear = e.linear(node.args[0]);
  const entry = frame.acquire(I32);
  e.probeTlb(linear, entry, 16, TlbEntry.tagRead);
  code.if(V128);
  e.hostAddress(linear, entry);
  vectorMem(code, simd.V128_LOAD, 0);
  code.else();
  missLoad(e, linear, node.access!);
  code.end();
  frame.release(linear, I64);
  frame.release(entry, I32);
}

/** Both pages are known to be writable before anything is written. */
function missStore(e: VectorEmitter, linear: number, value: number, access: MemoryAccess): void {
  const { code, frame } = e;
  code.get(linear);
  e.sizeAndSegment(access, 16);
  code.call(frame.helper('missProbe')).brIf(frame.fault);
  // Says where, should the host want execution to stop behind this instruction.
  code.i32(0).get(frame.pc).mem(MEM.i32Store, P.pc);
  for (const lane of [0, 1]) {
    half(code, linear, lane === 1);
    vectorOp(code.get(value), simd.SIMD_EXTRACT.i64x2ExtractLane).byte(lane);
    e.sizeAndSegment(access, 8, 8);
    code.call(frame.helper('missWrite')).brIf(frame.fault);
  }
}

export function emitVectorStore(e: VectorEmitter, to: Node, from: Node, access: MemoryAccess): void {
  const { code, frame } = e;
  const linear = e.linear(to);
  const value = frame.acquire(V128);
  e.value(from);
  code.set(value);
  const entry = frame.acquire(I32);
  e.probeTlb(linear, entry, 16, TlbEntry.tagWrite);
  code.if();
  e.hostAddress(linear, entry);
  vectorMem(code.get(value), simd.V128_STORE, 0);
  code.else();
  missStore(e, linear, value, access);
  code.end();
  frame.release(entry, I32);
  frame.release(linear, I64);
  frame.release(value, V128);
}

/** What emitters of pure nodes need. */
export interface NodeSink {
  readonly code: Code;
  /** Pushes a node's value. */
  value(node: Node): void;
}
type NodeEmitter = (e: NodeSink, node: Node) => void;

const pushArguments = (e: NodeSink, node: Node): void => {
  for (const arg of node.args) e.value(arg);
};
const plain =
  (opcode: number): NodeEmitter =>
  (e, node) => {
    pushArguments(e, node);
    vectorOp(e.code, opcode);
  };
const withLane =
  (opcode: number): NodeEmitter =>
  (e, node) => {
    pushArguments(e, node);
    vectorOp(e.code, opcode).byte(Number(node.k));
  };
const table = (ops: Readonly<Record<string, number>>, make: (opcode: number) => NodeEmitter): [string, NodeEmitter][] =>
  Object.entries(ops).map(([name, opcode]) => [name, make(opcode)]);

/** Saturating truncations have a prefix of their own. */
const SATURATING = 0xfc;
const I64_TRUNC_SAT_F32_S = 0x04;
const I64_TRUNC_SAT_F64_S = 0x06;
const F32_CONVERT_I64_S = 0xb4;
const F64_CONVERT_I64_S = 0xb9;
const fromI64 =
  (convert: number, splat: number): NodeEmitter =>
  (e, node) => {
    pushArguments(e, node);
    vectorOp(e.code.op(convert), splat);
  };
const toI64 =
  (extract: number, truncate: number): NodeEmitter =>
  (e, node) => {
    pushArguments(e, node);
    vectorOp(e.code, extract).byte(0).byte(SATURATING).u32(truncate);
  };

/** Emitters of pure vector nodes by operation. */
export const PURE_VECTOR_NODES: Partial<Record<NodeOp, NodeEmitter>> = Object.fromEntries<NodeEmitter>([
  ...table(simd.SIMD_UNARY, plain),
  ...table(simd.SIMD_BINARY, plain),
  ...table(simd.SIMD_SHIFT, plain),
  ...table(simd.SIMD_TEST, plain),
  ...table(simd.SIMD_EXTRACT, withLane),
  ...table(simd.SIMD_REPLACE, withLane),
  ['bitselect', plain(0x52)],
  [
    'shuffle',
    (e, node) => {
      pushArguments(e, node);
      bytes16(vectorOp(e.code, simd.I8X16_SHUFFLE), node.k);
    },
  ],
  ['vconst', (e, node) => bytes16(vectorOp(e.code, simd.V128_CONST), node.k)],
  ['f64x2FromI64', fromI64(F64_CONVERT_I64_S, simd.F64X2_SPLAT)],
  ['f32x4FromI64', fromI64(F32_CONVERT_I64_S, simd.F32X4_SPLAT)],
  ['i64FromF64x2', toI64(simd.F64X2_EXTRACT_LANE, I64_TRUNC_SAT_F64_S)],
  ['i64FromF32x4', toI64(simd.F32X4_EXTRACT_LANE, I64_TRUNC_SAT_F32_S)],
]);
export const VECTOR_OPS = Object.keys(PURE_VECTOR_NODES) as NodeOp[];

/** Emitters of all vector nodes. */
export const VECTOR_NODES: Partial<Record<NodeOp, (e: VectorEmitter, node: Node) => void>> = {
  ...PURE_VECTOR_NODES,
  vector: (e, node) => {
    address(e, node.args[0]);
    vectorMem(e.code, simd.V128_LOAD, Number(node.k));
  },
  load128,
};
