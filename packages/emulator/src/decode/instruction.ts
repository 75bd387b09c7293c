/**
 * The decoder's output: one instruction with all that is static about it.
 * Manual: APM vol. 3 ch. 1 (encoding), SDM vol. 2 ch. 2.
 */
import type { Intercept } from '../intercepts.ts';
import type { InterceptStage } from '../ops.ts';

/** How an instruction ends a run of predecoded records. */
export type BlockEnd = 'none' | 'branch' | 'system';

/**
 * Operand specifiers, in the manual's letters. E modrm r/m, G modrm reg, M memory only, R register only (mod ignored or 3),
 * I immediate, J relative, O moffs, X DS:rSI, Y ES:rDI, C control, D debug, S segment register, Z register in opcode bits 2:0;
 * size letter: b w d q v (16/32/64) z (16/32) y (32/64) p (far pointer) s (table pseudo-descriptor) a (BOUND pair) dq x.
 * Fixed ones: `AL`, `CL`, `DX`, `rAX`, `1`, `ES`… . x87/SSE operands: V W U P Q N with dq/x/ss/sd/ps/pd/q/d.
 */
export type OperandSpec = string;

/** One row of the decode tables: an instruction as the manual lists it. Phases: legality → privilege → operands → execute → commit. */
export interface Row {
  /** Lower-case mnemonic as in the manual (`mov`, `add`, `jcc` with `condition`, `lgdt`, `movcr`, `movdr`, …): key of the semantics. */
  mnemonic: string;
  operands: readonly OperandSpec[];
  /** Byte operation: opSize is 1. */
  byteOp: boolean;
  /** LOCK is legal with a memory destination. */
  lockable: boolean;
  /** #UD in 64-bit mode / outside it. */
  no64: boolean;
  only64: boolean;
  /** 64-bit mode: operand size defaults to 64 (stack, near branches) / is forced to 64. */
  default64: boolean;
  force64: boolean;
  /** #UD in real and virtual-8086 mode. */
  protectedOnly: boolean;
  /** CPL must be 0 (else #GP(0)). */
  privileged: boolean;
  /** Only a memory / only a register r/m is legal. */
  modrm: 'none' | 'any' | 'memory' | 'register';
  /** String instruction: REP prefixes repeat it. */
  string: boolean;
  /** Feature that must exist, else #UD (cpu/features.ts names: `cmov`, `sse2`, …). */
  feature?: string;
  /** jcc, setcc, cmovcc: condition 0..15. */
  condition?: number;
  intercept: Intercept;
  interceptStage: InterceptStage;
  /** KVM's emulator knows this instruction (what it lacks takes KVM's own failure path). */
  kvm: boolean;
  /** It stands in KVM's tables (length, intercept check) but without an implementation: KVM cannot execute it. */
  kvmDecodeOnly: boolean;
  /** KVM: EmulateOnUD. */
  emulateOnUD: boolean;
  blockEnd: BlockEnd;
  /** `intercept` by number (INTERCEPT_ID). */
  interceptId: number;
  /** Number of the mnemonic among those that end a run as `system` instructions do (`systemNumber`), 0 for all others. */
  systemNumber: number;
  /** x87 / MMX / SSE / AVX class: checks of CR0.EM, CR0.TS, CR4.OSFXSR, XCR0. */
  unit: 'integer' | 'x87' | 'mmx' | 'sse' | 'avx';
}

export type Rep = 0 | 0xf2 | 0xf3;

/** A decoded instruction. Mutable and reusable: the decoder fills the object that it is given. */
export interface Instruction {
  row: Row;
  /** 1..15 bytes. */
  length: number;
  /** The bytes themselves (`length` valid). */
  bytes: Uint8Array;
  /** Code size: 2, 4 or 8 bytes (16-, 32-, 64-bit code). */
  codeSize: 2 | 4 | 8;
  /** Effective operand size in bytes (1 for byte operations). */
  opSize: 1 | 2 | 4 | 8;
  addrSize: 2 | 4 | 8;
  /** REX prefix byte, 0 if none. */
  rex: number;
  lock: boolean;
  rep: Rep;
  /** 66 was present. */
  opSizePrefix: boolean;
  /** Explicit segment override 0..5, or -1. */
  segOverride: number;
  /** Opcode as one number: 0x89, 0x0f22, 0x0f38f0, 0x0f3a0f. */
  opcode: number;
  /** Raw modrm byte, -1 if none; `reg` and `rm` carry REX.R and REX.B. */
  modrm: number;
  mod: number;
  reg: number;
  rm: number;
  /** Register in opcode bits 2:0 with REX.B. */
  opReg: number;
  /** Memory operand: effective segment (override or default), registers (-1: none), scale as shift, displacement (sign-extended). */
  seg: number;
  base: number;
  index: number;
  scale: number;
  disp: bigint;
  ripRelative: boolean;
  /** First immediate, sign- or zero-extended as the instruction defines, as signed bigint; also J's displacement and moffs. */
  imm: bigint;
  /** Second immediate: ENTER's level, a far pointer's selector. */
  imm2: number;
  /** VEX fields; vvvv as register number, 0 where absent. */
  vex: { present: boolean; l: number; w: number; vvvv: number; pp: number };
}

/** Why bytes are not an instruction. `undefined-opcode` → #UD, `too-long` → #GP(0), `need-more`: the fetch must go on (or fault). */
export type DecodeResult = 'ok' | 'undefined-opcode' | 'too-long' | 'need-more';

/** What decoding depends on. */
export interface DecodeMode {
  codeSize: 2 | 4 | 8;
  /** Intel-compatible decoding where vendors differ (66 on near branches in 64-bit code). */
  intel: boolean;
  /**
   * Features that the processor has (cpu/features.ts `featureSet`): rows of absent ones are undefined opcodes, TZCNT and LZCNT fall back to BSF
   * and BSR, LOCK MOV CR0 is MOV CR8. Absent: every row decodes (KVM's emulator decodes without asking CPUID).
   */
  features?: ReadonlySet<string>;
}
