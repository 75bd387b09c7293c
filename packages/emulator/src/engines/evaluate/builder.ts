/**
 * EvaluateBuilder: the Builder that computes at once. Values are bigint (unsigned, 64 bits), conditions are boolean.
 * Manual: APM vol. 1 section 3.1.4 (flags). It is the reference for the other engines.
 */
import type { Access, Builder, Cond, FlagName, FlagUpdate, RegRef, Size, Value, Var } from '../../builder/builder.ts';
import { AssertionError } from '../../exceptions.ts';
import { Flag } from '../../state-layout.ts';
import { type EvaluateContext, MASK } from './context.ts';

/** The contract with this engine's representation in place of the opaque types. */
type Computed<T> = T extends Value
  ? bigint
  : T extends Cond
    ? boolean
    : T extends (...args: infer A) => infer R
      ? (...args: { [K in keyof A]: Computed<A[K]> }) => Computed<R>
      : T extends object
        ? { [K in keyof T]: Computed<T[K]> }
        : T;

const FLAG_BITS: Readonly<Record<FlagName, number>> = {
  cf: Flag.CF,
  pf: Flag.PF,
  af: Flag.AF,
  zf: Flag.ZF,
  sf: Flag.SF,
  of: Flag.OF,
};

const U64 = MASK[8]!;

/** PF of a byte, as its RFLAGS bit. */
const PARITY = Uint8Array.from({ length: 256 }, (_, byte) => {
  let ones = 0;
  for (let rest = byte; rest !== 0; rest >>= 1) ones += rest & 1;
  return ones % 2 === 0 ? Flag.PF : 0;
});

const low32 = (a: bigint): number => Number(a & 0xffffffffn) | 0;
const high32 = (a: bigint): number => Number((a >> 32n) & 0xffffffffn) | 0;
/** The top bits of a `size`-byte value, with its sign in bit 31. */
const top32 = (a: bigint, size: Size): number => (size === 8 ? high32(a) : low32(a) << (32 - size * 8));

class EvaluateVar {
  constructor(private value: bigint) {}
  get(): bigint {
    return this.value;
  }
  set(value: bigint): void {
    this.value = value;
  }
}

export class EvaluateBuilder implements Computed<Builder> {
  /** True after the first visible effect: from then on a fault would be torn. Tests check it. */
  private committed = false;

  constructor(
    private readonly context: EvaluateContext,
    readonly vendor: 'amd' | 'intel',
    /** Checks the commit rule. */
    private readonly strict = false,
  ) {}

  begin(): void {
    this.committed = false;
  }

  get codeSize(): 2 | 4 | 8 {
    return this.context.insn.codeSize;
  }
  get stackSize(): 2 | 4 | 8 {
    return this.context.stackSize();
  }

  // Values

  const(value: bigint | number): bigint {
    return BigInt.asUintN(64, BigInt(value));
  }
  imm(): bigint {
    return BigInt.asUintN(64, this.context.insn.imm);
  }
  imm2(): bigint {
    return BigInt(this.context.insn.imm2);
  }
  nextRip(): bigint {
    const { rip, insn } = this.context;
    return (rip + BigInt(insn.length)) & MASK[insn.codeSize]!;
  }
  rip(): bigint {
    return this.context.rip;
  }
  add(a: bigint, b: bigint): bigint {
    return (a + b) & U64;
  }
  sub(a: bigint, b: bigint): bigint {
    return (a - b) & U64;
  }
  mul(a: bigint, b: bigint): bigint {
    return (a * b) & U64;
  }
  mulHighU(a: bigint, b: bigint): bigint {
    return (a * b) >> 64n;
  }
  mulHighS(a: bigint, b: bigint): bigint {
    return ((BigInt.asIntN(64, a) * BigInt.asIntN(64, b)) >> 64n) & U64;
  }
  divU(a: bigint, b: bigint): bigint {
    return a / b;
  }
  remU(a: bigint, b: bigint): bigint {
    return a % b;
  }
  divS(a: bigint, b: bigint): bigint {
    return (BigInt.asIntN(64, a) / BigInt.asIntN(64, b)) & U64;
  }
  remS(a: bigint, b: bigint): bigint {
    return (BigInt.asIntN(64, a) % BigInt.asIntN(64, b)) & U64;
  }
  div128U(hi: bigint, lo: bigint, d: bigint): { quotient: bigint; remainder: bigint } {
    const dividend = (hi << 64n) | lo;
    return { quotient: dividend / d, remainder: dividend % d };
  }
  and(a: bigint, b: bigint): bigint {
    return a & b;
  }
  or(a: bigint, b: bigint): bigint {
    return a | b;
  }
  xor(a: bigint, b: bigint): bigint {
    return a ^ b;
  }
  not(a: bigint): bigint {
    return a ^ U64;
  }
  neg(a: bigint): bigint {
    return -a & U64;
  }
  shl(a: bigint, count: bigint): bigint {
    return (a << (count & 63n)) & U64;
  }
  shrU(a: bigint, count: bigint): bigint {
    return a >> (count & 63n);
  }
  shrS(a: bigint, count: bigint): bigint {
    return (BigInt.asIntN(64, a) >> (count & 63n)) & U64;
  }
  rotl(a: bigint, count: bigint): bigint {
    const n = count & 63n;
    return ((a << n) | (a >> (64n - n))) & U64;
  }
  rotr(a: bigint, count: bigint): bigint {
    const n = count & 63n;
    return ((a >> n) | (a << (64n - n))) & U64;
  }
  clz(a: bigint): bigint {
    const high = high32(a);
    return BigInt(high !== 0 ? Math.clz32(high) : 32 + Math.clz32(low32(a)));
  }
  ctz(a: bigint): bigint {
    if (a === 0n) return 64n;
    const low = low32(a);
    const part = low !== 0 ? low : high32(a);
    return BigInt((low !== 0 ? 31 : 63) - Math.clz32(part & -part));
  }
  popcnt(a: bigint): bigint {
    let count = 0n;
    for (let rest = a; rest !== 0n; rest &= rest - 1n) count++;
    return count;
  }
  zext(a: bigint, size: Size): bigint {
    return size === 8 ? a : a & MASK[size]!;
  }
  sext(a: bigint, size: Size): bigint {
    return size === 8 ? a : BigInt.asIntN(size * 8, a) & U64;
  }
  bswap(a: bigint, size: 4 | 8): bigint {
    let result = 0n;
    for (let i = 0, rest = a; i < size; i++, rest >>= 8n) result = (result << 8n) | (rest & 0xffn);
    return result;
  }

  // Conditions

  eq(a: bigint, b: bigint): boolean {
    return a === b;
  }
  ne(a: bigint, b: bigint): boolean {
    return a !== b;
  }
  ltU(a: bigint, b: bigint): boolean {
    return a < b;
  }
  ltS(a: bigint, b: bigint): boolean {
    return BigInt.asIntN(64, a) < BigInt.asIntN(64, b);
  }
  leU(a: bigint, b: bigint): boolean {
    return a <= b;
  }
  leS(a: bigint, b: bigint): boolean {
    return BigInt.asIntN(64, a) <= BigInt.asIntN(64, b);
  }
  isZero(a: bigint): boolean {
    return a === 0n;
  }
  true(): boolean {
    return true;
  }
  false(): boolean {
    return false;
  }
  notC(a: boolean): boolean {
    return !a;
  }
  andC(a: boolean, b: boolean): boolean {
    return a && b;
  }
  orC(a: boolean, b: boolean): boolean {
    return a || b;
  }
  xorC(a: boolean, b: boolean): boolean {
    return a !== b;
  }
  bit(a: bigint, bit: number): boolean {
    return ((a >> BigInt(bit)) & 1n) !== 0n;
  }
  fromCond(c: boolean): bigint {
    return c ? 1n : 0n;
  }
  select(c: boolean, ifTrue: bigint, ifFalse: bigint): bigint {
    return c ? ifTrue : ifFalse;
  }
  selectC(c: boolean, ifTrue: boolean, ifFalse: boolean): boolean {
    return c ? ifTrue : ifFalse;
  }
  variable(initial: bigint): Computed<Var> {
    return new EvaluateVar(initial);
  }
  when(c: boolean, then: () => void, otherwise?: () => void): void {
    if (c) then();
    else otherwise?.();
  }
  loop(body: () => boolean): void {
    while (body());
  }

  // Registers and memory

  getReg(ref: RegRef, size: Size): bigint {
    if ('fixed' in ref) return this.context.getReg(ref.fixed, size);
    return this.context.getEncodedReg(this.numberOf(ref.field), size);
  }
  setReg(ref: RegRef, size: Size, value: bigint): void {
    this.committed = true;
    if ('fixed' in ref) this.context.setReg(ref.fixed, size, value);
    else this.context.setEncodedReg(this.numberOf(ref.field), size, value);
  }
  private numberOf(field: 'reg' | 'rm' | 'opReg' | 'vvvv'): number {
    const insn = this.context.insn;
    return field === 'vvvv' ? insn.vex.vvvv : insn[field];
  }
  ea(popped = 0): bigint {
    return this.context.effectiveAddress(popped);
  }
  private segment(access: Computed<Access>): number {
    return access.seg === 'operand' ? this.context.insn.seg : access.seg;
  }
  load(offset: bigint, access: Computed<Access>): bigint {
    this.mayFault();
    const context = this.context;
    const linear = context.linearize(this.segment(access), offset, access.size, access.forWrite === true);
    if (access.align !== undefined && (linear & BigInt(access.align - 1)) !== 0n) context.raise(13, 0);
    return context.readLinear(linear, access.size, access.forWrite === true);
  }
  store(offset: bigint, value: bigint, access: Computed<Access>): void {
    this.context.write(this.segment(access), offset, value & MASK[access.size]!, access.size);
    this.committed = true;
  }
  probe(offset: bigint, access: Computed<Access>): void {
    this.mayFault();
    this.context.probeWrite(this.segment(access), offset, access.size);
  }
  /** The commit rule. Stores are exempt: several of them follow probes. */
  private mayFault(): void {
    if (this.strict && this.committed) {
      throw new AssertionError(`${this.context.insn.row.mnemonic}: an access that may fault follows a visible effect`);
    }
  }

  // Flags

  flag(name: FlagName): boolean {
    return (Number(this.context.rflags & 0xfffn) & FLAG_BITS[name]) !== 0;
  }
  setFlags(update: Computed<FlagUpdate>): void {
    let mask = 0;
    let bits = 0;
    for (const name in update) {
      const bit = FLAG_BITS[name as FlagName];
      mask |= bit;
      if (update[name as FlagName] === true) bits |= bit;
    }
    this.change(mask, bits);
  }
  private change(mask: number, bits: number): void {
    this.committed = true;
    const context = this.context;
    context.rflags = (context.rflags & ~BigInt(mask)) | BigInt(bits);
  }
  /** SF ZF PF of a result. */
  private resultBits(result: bigint, size: Size): number {
    const masked = result & MASK[size]!;
    return (masked === 0n ? Flag.ZF : 0) | (top32(masked, size) < 0 ? Flag.SF : 0) | PARITY[Number(masked & 0xffn)]!;
  }
  /** All six flags of a sum: carries and overflow from the operands' and the result's top bits. */
  private sum(a: bigint, b: bigint, result: bigint, size: Size, mask: number): void {
    const x = top32(a, size);
    const y = top32(b, size);
    const r = top32(result, size);
    let bits = this.resultBits(result, size);
    if (((x & y) | ((x | y) & ~r)) < 0) bits |= Flag.CF;
    if (((x ^ r) & (y ^ r)) < 0) bits |= Flag.OF;
    this.change(mask, (bits | ((low32(a) ^ low32(b) ^ low32(result)) & Flag.AF)) & mask);
  }
  private difference(a: bigint, b: bigint, result: bigint, size: Size, mask: number): void {
    const x = top32(a, size);
    const y = top32(b, size);
    const r = top32(result, size);
    let bits = this.resultBits(result, size);
    if (((~x & y) | ((~x | y) & r)) < 0) bits |= Flag.CF;
    if (((x ^ y) & (x ^ r)) < 0) bits |= Flag.OF;
    this.change(mask, (bits | ((low32(a) ^ low32(b) ^ low32(result)) & Flag.AF)) & mask);
  }
  flagsAdd(a: bigint, b: bigint, result: bigint, size: Size): void {
    this.sum(a, b, result, size, Flag.arith);
  }
  flagsSub(a: bigint, b: bigint, result: bigint, size: Size): void {
    this.difference(a, b, result, size, Flag.arith);
  }
  flagsAdc(a: bigint, b: bigint, result: bigint, size: Size): void {
    this.sum(a, b, result, size, Flag.arith);
  }
  flagsSbb(a: bigint, b: bigint, result: bigint, size: Size): void {
    this.difference(a, b, result, size, Flag.arith);
  }
  flagsInc(result: bigint, size: Size): void {
    this.sum(result - 1n, 1n, result, size, Flag.arith & ~Flag.CF);
  }
  flagsDec(result: bigint, size: Size): void {
    this.difference(result + 1n, 1n, result, size, Flag.arith & ~Flag.CF);
  }
  flagsLogic(result: bigint, size: Size): void {
    this.change(Flag.arith, this.resultBits(result, size));
  }
  condition(cc: number): boolean {
    const flags = Number(this.context.rflags & 0xfffn);
    const sfIsOf = ((flags & Flag.SF) !== 0) === ((flags & Flag.OF) !== 0);
    const zf = (flags & Flag.ZF) !== 0;
    let holds: boolean;
    switch (cc >> 1) {
      case 0:
        holds = (flags & Flag.OF) !== 0;
        break;
      case 1:
        holds = (flags & Flag.CF) !== 0;
        break;
      case 2:
        holds = zf;
        break;
      case 3:
        holds = (flags & (Flag.CF | Flag.ZF)) !== 0;
        break;
      case 4:
        holds = (flags & Flag.SF) !== 0;
        break;
      case 5:
        holds = (flags & Flag.PF) !== 0;
        break;
      case 6:
        holds = !sfIsOf;
        break;
      default:
        holds = zf || !sfIsOf;
    }
    return holds !== ((cc & 1) !== 0);
  }
  /** One element at a time. */
  repeatBlock(): boolean {
    return false;
  }
  stringStep(size: Size): bigint {
    return (this.context.rflags & BigInt(Flag.DF)) === 0n ? BigInt(size) : U64 - BigInt(size - 1);
  }
  getRflags(): bigint {
    return this.context.rflags;
  }
  setRflags(value: bigint, mask: number): void {
    this.change(mask, Number(value & BigInt(mask)));
  }

  // Endings

  raise(vector: number, errorCode?: bigint): void {
    this.mayFault();
    this.context.raise(vector, errorCode === undefined ? undefined : Number(errorCode));
  }
  raiseWhen(c: boolean, vector: number, errorCode?: number): void {
    this.mayFault();
    if (c) this.context.raise(vector, errorCode);
  }
  checkpoint(): void {
    this.committed = false;
    this.context.checkpoint();
  }
  probeJump(target: bigint): void {
    this.mayFault();
    this.context.checkTarget(target);
  }
  jump(target: bigint): void {
    this.context.checkTarget(target);
    this.context.eip = target;
  }
  jumpWhen(c: boolean, target: bigint): void {
    if (c) this.jump(target);
  }
  repeat(c: boolean): void {
    this.context.restart = c;
  }
}

/** The builder under the type that semantics functions take. */
export const asBuilder = (builder: EvaluateBuilder): Builder => builder as unknown as Builder;
