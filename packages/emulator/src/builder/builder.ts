/**
 * The Builder: the small abstract machine in which every instruction's semantics is written once.
 * evaluate computes with it, interpret generates wasm from it, translate (later) joins many of its recordings into one function.
 *
 * Rules that make all three agree
 * - Values are opaque 64-bit integers. No JavaScript `if` on a {@link Value} or {@link Cond}: use `select`, `when`, `loop`.
 *   Static facts (operand size, operand kind, LOCK, REP, code size) are ordinary JavaScript and specialise the handler.
 * - Sizes are bytes (1, 2, 4, 8). Operand reads are zero-extended. `setReg` with size 4 clears the upper half, sizes 1 and 2 keep the rest.
 * - The commit rule: nothing becomes visible before the last access that may fault. All loads, probes and `raise`s come before the first
 *   register, flag or memory write; an instruction with several stores probes all of them first. A builder asserts this.
 * - Flags are updated last, as one masked update; flags outside the mask keep their value.
 */

declare const valueBrand: unique symbol;
declare const condBrand: unique symbol;
/** A 64-bit integer of the running guest. */
export type Value = { readonly [valueBrand]: true };
/** A truth value of the running guest. */
export type Cond = { readonly [condBrand]: true };
/** A mutable cell inside one instruction (loop counters, conditional results). */
export interface Var {
  get(): Value;
  set(value: Value): void;
}

export type Size = 1 | 2 | 4 | 8;

/** Names a guest register whose number is static in the handler (`fixed`) or stands in a record field (`reg`, `rm`, `opReg`, `base`, `index`). */
export type RegRef = { fixed: number } | { field: 'reg' | 'rm' | 'opReg' | 'vvvv' };

/** The six arithmetic flags; an absent member is not changed. */
export interface FlagUpdate {
  cf?: Cond;
  pf?: Cond;
  af?: Cond;
  zf?: Cond;
  sf?: Cond;
  of?: Cond;
}
export type FlagName = keyof FlagUpdate;

/** Access attributes. */
export interface Access {
  /** Segment 0..5 if static (`Seg.SS` for the stack, `Seg.ES` for string destinations); 'operand' = the instruction's effective segment. */
  seg: 0 | 1 | 2 | 3 | 4 | 5 | 'operand';
  size: Size;
  /** Faults as a write would (read-modify-write). */
  forWrite?: boolean;
  locked?: boolean;
  /** Linear alignment in bytes that the instruction itself demands: #GP(0) otherwise (CMPXCHG16B). */
  align?: number;
}

export interface Builder {
  /** Code size of the running code in bytes, and stack address size (2, 4, 8): static. */
  readonly codeSize: 2 | 4 | 8;
  readonly stackSize: 2 | 4 | 8;
  /** Undefined flags and results follow this vendor: static. */
  readonly vendor: 'amd' | 'intel';

  const(value: bigint | number): Value;
  /** The first immediate, already extended as the instruction defines (record field). */
  imm(): Value;
  imm2(): Value;
  /** RIP of the next instruction, truncated to the code size (offset in CS). */
  nextRip(): Value;
  rip(): Value;

  add(a: Value, b: Value): Value;
  sub(a: Value, b: Value): Value;
  /** Low 64 bits. */
  mul(a: Value, b: Value): Value;
  /** High 64 bits of the 128-bit product. */
  mulHighU(a: Value, b: Value): Value;
  mulHighS(a: Value, b: Value): Value;
  /** 64-bit division; the divisor is known not to be zero, and divS is known not to overflow. */
  divU(a: Value, b: Value): Value;
  remU(a: Value, b: Value): Value;
  divS(a: Value, b: Value): Value;
  remS(a: Value, b: Value): Value;
  /** (hi:lo) / d, known to fit in 64 bits: quotient and remainder. A shared subroutine. */
  div128U(hi: Value, lo: Value, d: Value): { quotient: Value; remainder: Value };
  and(a: Value, b: Value): Value;
  or(a: Value, b: Value): Value;
  xor(a: Value, b: Value): Value;
  not(a: Value): Value;
  neg(a: Value): Value;
  /** Shift counts are taken modulo 64. */
  shl(a: Value, count: Value): Value;
  shrU(a: Value, count: Value): Value;
  shrS(a: Value, count: Value): Value;
  rotl(a: Value, count: Value): Value;
  rotr(a: Value, count: Value): Value;
  /** 64 for zero. */
  clz(a: Value): Value;
  ctz(a: Value): Value;
  popcnt(a: Value): Value;
  /** Zero- or sign-extends the low `size` bytes. */
  zext(a: Value, size: Size): Value;
  sext(a: Value, size: Size): Value;
  bswap(a: Value, size: 4 | 8): Value;

  eq(a: Value, b: Value): Cond;
  ne(a: Value, b: Value): Cond;
  ltU(a: Value, b: Value): Cond;
  ltS(a: Value, b: Value): Cond;
  leU(a: Value, b: Value): Cond;
  leS(a: Value, b: Value): Cond;
  isZero(a: Value): Cond;
  true(): Cond;
  false(): Cond;
  notC(a: Cond): Cond;
  andC(a: Cond, b: Cond): Cond;
  orC(a: Cond, b: Cond): Cond;
  xorC(a: Cond, b: Cond): Cond;
  /** Bit `bit` (static) of a value. */
  bit(a: Value, bit: number): Cond;
  /** 0 or 1. */
  fromCond(c: Cond): Value;
  select(c: Cond, ifTrue: Value, ifFalse: Value): Value;
  selectC(c: Cond, ifTrue: Cond, ifFalse: Cond): Cond;

  variable(initial: Value): Var;
  when(c: Cond, then: () => void, otherwise?: () => void): void;
  /** Repeats `body` while it returns a true condition. */
  loop(body: () => Cond): void;

  /** Reads a register zero-extended; size 1 follows the REX rules (AH..BH without REX): the record says which byte. */
  getReg(ref: RegRef, size: Size): Value;
  setReg(ref: RegRef, size: Size, value: Value): void;

  /**
   * Effective address of the memory operand: base + index << scale + disp, truncated to the address size. No segment base.
   * @param popped bytes (static) by which RSP counts as already moved if it is the base (POP to memory); default 0
   */
  ea(popped?: number): Value;
  /** Loads zero-extended from segment:offset. Faults: #PF, #GP/#SS by limit, rights and canonicality, #AC. */
  load(offset: Value, access: Access): Value;
  store(offset: Value, value: Value, access: Access): void;
  /** Raises what a store there would raise. */
  probe(offset: Value, access: Access): void;

  /** Current flag. */
  flag(name: FlagName): Cond;
  /** Masked update of the arithmetic flags: members that are absent keep their value. */
  setFlags(update: FlagUpdate): void;
  /** The usual cases, which engines keep lazy. `size` is static. */
  flagsAdd(a: Value, b: Value, result: Value, size: Size): void;
  flagsSub(a: Value, b: Value, result: Value, size: Size): void;
  /** Add/subtract with carry-in: result already includes it. */
  flagsAdc(a: Value, b: Value, result: Value, size: Size): void;
  flagsSbb(a: Value, b: Value, result: Value, size: Size): void;
  /** INC / DEC: as add/sub of 1, CF kept. */
  flagsInc(result: Value, size: Size): void;
  flagsDec(result: Value, size: Size): void;
  /** CF = OF = AF = 0, SF ZF PF from the result. */
  flagsLogic(result: Value, size: Size): void;
  /** The condition of jcc/setcc/cmovcc, 0..15 (static). */
  condition(cc: number): Cond;
  /** RFLAGS.DF as +size / -size. */
  stringStep(size: Size): Value;
  /** Whole RFLAGS, arithmetic flags materialised. */
  getRflags(): Value;
  /** Writes bits under a static mask (only bits that change no mode: arithmetic flags, DF, AC, ID, NT). */
  setRflags(value: Value, mask: number): void;

  /** Ends the instruction with an exception; nothing may have been committed. */
  raise(vector: number, errorCode?: Value): void;
  raiseWhen(c: Cond, vector: number, errorCode?: number): void;

  /**
   * Effects so far stay even if a later access faults; the instruction executed again gives the same result (PUSHA, POPA, ENTER on AMD).
   * Engines that write through do nothing.
   */
  checkpoint(): void;

  /** Raises what `jump` there would raise; for instructions that store before they jump. */
  probeJump(target: Value): void;
  /**
   * Near control transfer: checks canonicality / CS limit (#GP(0)), then commits RIP. Last effect but one.
   * `target` is an offset in CS, truncated to the operand size already (in 16-bit code a 32-bit target beyond the limit faults).
   */
  jump(target: Value): void;
  jumpWhen(c: Cond, target: Value): void;
  /** REP: leaves RIP at this instruction, so that it executes again (one iteration per tick). */
  repeat(c: Cond): void;
  /**
   * REP MOVS and REP STOS, rCX not zero, in front of the element: an engine may do iterations at once here, and then go on as `repeat` does.
   * Returns whether it does all of them, so that no element is to follow.
   */
  repeatBlock(block: Block): boolean;
}

/** What a repeated instruction moves: elements of `size` bytes, ascending or descending by RFLAGS.DF. Offsets and count have the size of addresses. */
export interface Block {
  readonly size: Size;
  readonly addrSize: 2 | 4 | 8;
  readonly count: Value;
  readonly to: Value;
  /** Offset in the operand segment, or the value of every element. */
  readonly from: Value;
  readonly fill: boolean;
}

/** What a semantics function may know statically about its operands. */
export interface OperandAccess {
  /** 'reg' | 'mem' | 'imm' | 'fixed'. */
  readonly kind: 'reg' | 'mem' | 'imm' | 'fixed';
  readonly size: Size;
  /** Reads, zero-extended to 64 bits (immediates: sign-extended, then truncated to the size). */
  get(): Value;
  /** Reads and announces a later `set` (read-modify-write: write probe, LOCK). */
  getForWrite(): Value;
  set(value: Value): void;
}

/** The static form in which a semantics function is instantiated. */
export interface Operation {
  readonly size: Size;
  readonly addrSize: 2 | 4 | 8;
  readonly lock: boolean;
  readonly rep: 0 | 0xf2 | 0xf3;
  readonly condition: number;
  readonly operands: readonly OperandAccess[];
}

/** Semantics of one mnemonic. */
export type Semantics = (b: Builder, op: Operation) => void;
