/**
 * What a system instruction sees while it executes (KVM: struct x86_emulate_ctxt).
 * Implemented by engines/evaluate; used alike by KVM's emulator and by the silicon.
 */
import type { Instruction } from '../decode/instruction.ts';
import type { X86Emul, X86EmulateOps } from '../ops.ts';

/** X86EMUL_MODE_*. */
export type EmulateMode = 'real' | 'vm86' | 'prot16' | 'prot32' | 'prot64';

export interface EmulateContext {
  readonly ops: X86EmulateOps;
  /** `kvm`: exactly the subset that KVM's emulator knows; a function returns UNHANDLEABLE for what KVM lacks. `x86`: everything. */
  readonly subset: 'x86' | 'kvm';
  readonly mode: EmulateMode;
  readonly vendor: 'amd' | 'intel';
  readonly insn: Instruction;
  /** RIP of this instruction (offset in CS). */
  readonly rip: bigint;
  /** RIP at commit: next instruction unless the function sets it (far transfers). Truncated by whoever sets it. */
  eip: bigint;
  /** RFLAGS; a function that writes it does so after its last possible fault. */
  rflags: bigint;
  /** True: RIP stays at this instruction (REP goes on, HLT does not). */
  restart: boolean;
  /** Set by MOV SS, POP SS (2) and STI (1): shadow after this instruction. */
  interruptShadow: 0 | 1 | 2;
  /** Set by a function after which mode and segments must be looked at anew. */
  modeChanged: boolean;
  /** TF as it counts for the single-step trap after this instruction: as it began, but SYSCALL goes by what it leaves. */
  singleStep: boolean;
  /** A #DB trap to raise after commit: the bits to merge into DR6 (task switch to a TSS with T set: BT). */
  debugTrap?: bigint | undefined;

  /** Checks segment:offset for an access of `size` bytes and returns the linear address; throws #GP, #SS. */
  linearize(seg: number, offset: bigint, size: number, write: boolean): bigint;
  /** Offset of the memory operand, truncated to the address size. */
  effectiveAddress(): bigint;
  /** Port input that is not repeated when the instruction starts again. */
  pioIn(size: number, port: number): number;
  /** Data access by segment:offset. */
  read(seg: number, offset: bigint, size: number): bigint;
  write(seg: number, offset: bigint, value: bigint, size: number): void;
  /** Operand `n` of the row, zero-extended to the operand's size; memory operands are read once. */
  readOperand(n: number): bigint;
  writeOperand(n: number, value: bigint): void;
  operandSize(n: number): number;
  /** General register by size (1: low byte only). Writing 4 bytes clears the upper half in 64-bit mode and is harmless elsewhere. */
  getReg(reg: number, size: number): bigint;
  setReg(reg: number, size: number, value: bigint): void;
  /** Pushes/pops by operand size through SS with the stack's address size; `pop` moves RSP at once, `push` after the write. */
  push(value: bigint, size: number): void;
  pop(size: number): bigint;
  stackSize(): 2 | 4 | 8;
  /** Throws. */
  raise(vector: number, errorCode?: number, payload?: bigint): never;
}

/** Executes one system instruction after legality, privilege and PRE/POST_EXCEPT intercepts. CONTINUE, or why not. */
export type SystemFunction = (ctx: EmulateContext) => X86Emul;
