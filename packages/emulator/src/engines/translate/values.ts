/**
 * Values of a region in wasm: each node either has a local or is computed where it is used, in 32 bits where 32 bits are enough.
 * Spec: WebAssembly 2.0, section 4.3.2 (integer operations).
 */
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import type { Node } from '../interpret/ir.ts';
import { PURE_VECTOR_NODES } from '../interpret/vector-emit.ts';
import { type Code, I32, I64, MEM, OP, V128, type ValType } from '../wasm/emitter.ts';

/** Where the function keeps the machine. */
export interface Machine {
  /** Type of the locals of general registers: 64 bits in 64-bit code, 32 bits elsewhere. */
  readonly word: ValType;
  /** Local of a general register. */
  register(number: number): number;
  /** Local of 16 bytes of the vector registers, counted from YMM0's lower half. */
  vector(number: number): number;
  /** Local: RIP at the start of the region's first page. */
  readonly base: number;
  readonly result: number;
  readonly aux: number;
  variable(id: number): number;
  /** Function index of a shared subroutine. */
  helper(name: 'div128' | 'mulHighU' | 'mulHighS' | 'block'): number;
  /** Pushes the ticks that a repeated instruction may use. */
  spare(code: Code): void;
}

const GPR = Layout.state + S.gpr;
const ZERO = Layout.state + S.zero;
const LOAD64: Record<number, number> = { 1: MEM.i64Load8U, 2: MEM.i64Load16U, 4: MEM.i64Load32U, 8: MEM.i64Load };
const LOAD32: Record<number, number> = { 1: MEM.i32Load8U, 2: MEM.i32Load16U, 4: MEM.i32Load, 8: MEM.i32Load };

/** Address that a register node or effect names: `k` alone, or `k` plus a constant. */
export const addressOf = (node: Node | null, k: bigint): number => Number(k) + (node === null ? 0 : Number(node.k));

/** General register and byte in it, or null for other parts of the state. */
export function gprAt(address: number): { number: number; byte: number } | null {
  const offset = address - GPR;
  return offset >= 0 && offset < 128 ? { number: offset >> 3, byte: offset & 7 } : null;
}

/** Number of a half of a vector register: 2 n, and 2 n + 1 for bits 255:128. */
export const vectorAt = (address: number): number => (address - Layout.state - S.ymm) >> 4;

/** i64 operations whose low half depends on low halves only, and their 32-bit counterparts. */
const NARROW: Partial<Record<Node['op'], number>> = {
  i64Add: OP.i32Add,
  i64Sub: OP.i32Sub,
  i64Mul: OP.i32Mul,
  i64And: OP.i32And,
  i64Or: OP.i32Or,
  i64Xor: OP.i32Xor,
};
const UNSIGNED: Partial<Record<Node['op'], number>> = {
  i64Eq: OP.i32Eq,
  i64Ne: OP.i32Ne,
  i64LtU: OP.i32LtU,
  i64LeU: OP.i32LeU,
};
const SIGNED: Partial<Record<Node['op'], number>> = {
  i64Eq: OP.i32Eq,
  i64Ne: OP.i32Ne,
  i64LtS: OP.i32LtS,
  i64LeS: OP.i32LeS,
};

/** Is the value its own low half, sign-extended? */
const isSigned32 = (node: Node): boolean =>
  node.op === 'i64Extend32S' ||
  node.op === 'i64Extend16S' ||
  node.op === 'i64Extend8S' ||
  node.bits <= 31 ||
  (node.op === 'const' && BigInt.asIntN(32, node.k) === node.k);

export class Values {
  code: Code;
  readonly #machine: Machine;
  /** Locals of the block at hand. */
  readonly #locals = new Map<Node, number>();
  /** Locals that keep operands of flags beyond their block. */
  readonly #kept = new Map<Node, number>();
  /** Values come from what was kept. */
  #later = false;

  /** Arguments of vector operations have the types of their nodes. */
  readonly #sink = {
    code: undefined as unknown as Code,
    value: (node: Node): void => this.push(node, node.type === 'v128' ? V128 : node.type === 'i32' ? I32 : I64),
  };

  constructor(code: Code, machine: Machine) {
    this.code = code;
    this.#machine = machine;
  }

  /** Type of a node's local. */
  typeOf(node: Node): ValType {
    if (node.type === 'v128') return V128;
    if (node.type === 'i32' || node.bits <= 32) return I32;
    // A 64-bit read of a register that is kept in 32 bits: addresses take its low half.
    return node.op === 'reg' && this.#machine.word === I32 && gprAt(addressOf(node.args[0] ?? null, node.k)) !== null
      ? I32
      : I64;
  }
  setLocal(node: Node, local: number): void {
    this.#locals.set(node, local);
  }
  /** Gives a value a local that no block uses for anything else. */
  reserve(node: Node, local: number): void {
    this.#kept.set(node, local);
  }
  /** Copies it there. */
  keep(node: Node): void {
    this.push(node, this.typeOf(node));
    this.code.set(this.#kept.get(node)!);
  }
  /** Pushes a value of a block that ran some time ago, from what it kept. */
  pushLater(node: Node, want: ValType): void {
    this.#later = true;
    this.push(node, want);
    this.#later = false;
  }

  /** Pushes a value as 64 bits, or its low 32. */
  push(node: Node, want: ValType): void {
    const local = (this.#later ? this.#kept : this.#locals).get(node);
    if (local === undefined) {
      this.compute(node, want);
      return;
    }
    this.code.get(local);
    this.#convert(this.typeOf(node), want);
  }
  #convert(have: ValType, want: ValType): void {
    if (have === want) return;
    this.code.op(want === I64 ? OP.i64ExtendI32U : OP.i32WrapI64);
  }

  compute(node: Node, want: ValType): void {
    const vector = PURE_VECTOR_NODES[node.op];
    if (vector !== undefined) {
      this.#sink.code = this.code;
      vector(this.#sink, node);
      if (node.type !== 'v128') this.#convert(node.type === 'i32' ? I32 : I64, want);
    } else if (node.op === 'vector') {
      this.code.get(this.#machine.vector(vectorAt(addressOf(node.args[0] ?? null, node.k))));
    } else if (node.type === 'i32') this.#condition(node);
    else if (want === I32) this.#low(node);
    else this.#wide(node);
  }

  // ---- conditions and other i32 nodes

  #condition(node: Node): void {
    const { code } = this;
    const [a, b] = node.args;
    switch (node.op) {
      case 'const':
        code.i32(Number(BigInt.asIntN(32, node.k)));
        return;
      case 'i64Eqz':
        if (a.bits <= 32 || isSigned32(a)) {
          this.push(a, I32);
          code.op(OP.i32Eqz);
        } else {
          this.push(a, I64);
          code.op(OP.i64Eqz);
        }
        return;
      case 'i32WrapI64':
        this.push(a, I32);
        return;
      case 'select32':
        this.push(node.args[1], I32);
        this.push(node.args[2], I32);
        this.push(a, I32);
        code.op(OP.select);
        return;
    }
    if (a.type === 'i64') this.#compare(node, a, b);
    else {
      for (const arg of node.args) this.push(arg, I32);
      code.op(OP[node.op as keyof typeof OP]);
    }
  }
  #compare(node: Node, a: Node, b: Node): void {
    const unsigned = a.bits <= 32 && b.bits <= 32 ? UNSIGNED[node.op] : undefined;
    const opcode = unsigned ?? (isSigned32(a) && isSigned32(b) ? SIGNED[node.op] : undefined);
    const type = opcode === undefined ? I64 : I32;
    this.push(a, type);
    this.push(b, type);
    this.code.op(opcode ?? OP[node.op as keyof typeof OP]);
  }

  // ---- low halves

  #low(node: Node): void {
    const { code } = this;
    const [a, b] = node.args;
    const narrow = NARROW[node.op];
    if (narrow !== undefined) {
      this.#lowBinary(node, a, b, narrow);
      return;
    }
    switch (node.op) {
      case 'const':
        code.i32(Number(BigInt.asIntN(32, node.k)));
        return;
      case 'zext32':
      case 'i64Extend32S':
        this.push(a, I32);
        return;
      case 'i64Extend16S':
      case 'i64Extend8S':
        this.push(a, I32);
        code.op(node.op === 'i64Extend16S' ? OP.i32Extend16S : OP.i32Extend8S);
        return;
      case 'i64ExtendI32U':
        this.push(a, I32);
        return;
      case 'select64':
        this.push(node.args[1], I32);
        this.push(node.args[2], I32);
        this.push(a, I32);
        code.op(OP.select);
        return;
      case 'i64Shl':
      case 'i64ShrU':
      case 'i64ShrS':
        if (this.#lowShift(node, a, b)) return;
        break;
      case 'i64Popcnt':
        if (a.bits > 32) break;
        this.push(a, I32);
        code.op(OP.i32Popcnt);
        return;
      case 'nextRip':
      case 'rip':
        code.get(this.#machine.base).op(OP.i32WrapI64).i32(Number(node.k)).op(OP.i32Add);
        return;
      case 'reg':
        this.#register(node, I32);
        return;
      case 'field':
        if (node.size === 8) break;
        this.push(a, I32);
        code.mem(LOAD32[node.size], Number(node.k));
        return;
    }
    this.#wide(node);
    code.op(OP.i32WrapI64);
  }
  #lowBinary(node: Node, a: Node, b: Node, opcode: number): void {
    if (node.op === 'i64And' && b.op === 'const' && (b.k & 0xffffffffn) === 0xffffffffn) {
      this.push(a, I32);
      return;
    }
    this.push(a, I32);
    this.push(b, I32);
    this.code.op(opcode);
  }
  #lowShift(node: Node, a: Node, b: Node): boolean {
    if (b.op !== 'const' || b.k < 0n || b.k > 31n) return false;
    if (node.op === 'i64ShrU' && a.bits > 32) return false;
    if (node.op === 'i64ShrS' && !isSigned32(a)) return false;
    this.push(a, I32);
    this.code.i32(Number(b.k));
    this.code.op(node.op === 'i64Shl' ? OP.i32Shl : node.op === 'i64ShrU' ? OP.i32ShrU : OP.i32ShrS);
    return true;
  }

  // ---- all 64 bits

  #wide(node: Node): void {
    const { code } = this;
    const [a] = node.args;
    if (isNarrow(node)) {
      if (node.op === 'reg') this.#register(node, I64);
      else {
        this.#low(node);
        code.op(OP.i64ExtendI32U);
      }
      return;
    }
    switch (node.op) {
      case 'const':
        code.i64(node.k);
        return;
      case 'i64Extend32S':
        this.push(a, I32);
        code.op(OP.i64ExtendI32S);
        return;
      case 'select64':
        this.push(node.args[1], I64);
        this.push(node.args[2], I64);
        this.push(a, I32);
        code.op(OP.select);
        return;
      case 'nextRip':
      case 'rip':
        code.get(this.#machine.base).i64(node.k).op(OP.i64Add);
        return;
      case 'reg':
        this.#register(node, I64);
        return;
      case 'var':
        code.get(this.#machine.variable(Number(node.k)));
        return;
      case 'flagResult':
        code.get(this.#machine.result);
        return;
      case 'flagAux':
        code.get(this.#machine.aux);
        return;
      case 'field':
        this.push(a, I32);
        code.mem(LOAD64[node.size], Number(node.k));
        return;
      case 'rflags':
        code.i32(0).mem(MEM.i64Load, Layout.state + S.rflags);
        return;
      case 'segmentBase':
        code.i32(0).mem(MEM.i64Load, Layout.state + S.segments + Number(node.k) * 16 + 8);
        return;
      case 'block':
        for (const arg of node.args) this.push(arg, I64);
        this.#machine.spare(code);
        code.i32(Number(node.k)).call(this.#machine.helper('block')).op(OP.i64ExtendI32U);
        return;
      case 'div128':
      case 'mulHighU':
      case 'mulHighS':
        for (const arg of node.args) this.push(arg, I64);
        code.call(this.#machine.helper(node.op));
        return;
    }
    for (const arg of node.args) this.push(arg, arg.type === 'i32' ? I32 : I64);
    code.op(OP[node.op as keyof typeof OP]);
  }

  #register(node: Node, want: ValType): void {
    const { code } = this;
    const address = addressOf(node.args[0] ?? null, node.k);
    if (address === ZERO) {
      if (want === I64) code.i64(0n);
      else code.i32(0);
      return;
    }
    const gpr = gprAt(address);
    if (gpr === null) code.i32(0).mem((want === I64 ? LOAD64 : LOAD32)[node.size], address);
    else this.#gpr(gpr.number, gpr.byte, node.size, want);
  }
  #gpr(number: number, byte: number, size: number, want: ValType): void {
    const { code } = this;
    const { word } = this.#machine;
    code.get(this.#machine.register(number));
    if (size === 8) {
      this.#convert(word, want);
      return;
    }
    if (word === I64) code.op(OP.i32WrapI64);
    if (byte === 1) code.i32(8).op(OP.i32ShrU);
    if (size === 1) code.i32(0xff).op(OP.i32And);
    if (size === 2) code.i32(0xffff).op(OP.i32And);
    this.#convert(I32, want);
  }
}

/** At most 32 significant bits, and a low half that is computed in 32 bits. */
function isNarrow(node: Node): boolean {
  if (node.bits > 32) return false;
  if (node.op === 'i64ShrU') return node.args[0].bits <= 32 && node.args[1].op === 'const' && node.args[1].k < 32n;
  if (node.op === 'i64Popcnt') return node.args[0].bits <= 32;
  return NARROW[node.op] !== undefined || node.op === 'zext32' || node.op === 'reg' || node.op === 'select64';
}
