/**
 * Small facts that every family of system instructions asks for: long mode, canonicality, MSR numbers, 16-bit r/m operands.
 * Manual: APM vol. 2 ch. 1 and 3, SDM vol. 3 ch. 2.
 */
import type { X86EmulateOps } from '../ops.ts';
import { X86Emul } from '../ops.ts';
import { CR3, CR4, EFER, Flag, RSP, Vector } from '../state-layout.ts';
import type { EmulateContext } from './context.ts';

/** MSR indices that system instructions touch by themselves (APM vol. 2 appendix A). */
export const MSR = {
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MISC_FEATURES_ENABLES: 0x140,
  EFER: 0xc000_0080,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  SFMASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
} as const;

/** The part of a context that event delivery needs: no instruction. */
export type EventContext = Omit<
  EmulateContext,
  'insn' | 'pioIn' | 'effectiveAddress' | 'readOperand' | 'writeOperand' | 'operandSize' | 'restart'
>;

export const efer = (ops: X86EmulateOps): bigint => ops.getMsr(MSR.EFER) ?? 0n;

/** Long mode is active: 64-bit or compatibility mode. */
export const inLongMode = (ops: X86EmulateOps): boolean => (efer(ops) & EFER.LMA) !== 0n;

/** 16-byte system descriptors: in long mode. KVM's emulator looks at 64-bit mode only. */
export const wideDescriptors = (ctx: EventContext): boolean =>
  ctx.subset === 'kvm' ? ctx.mode === 'prot64' : inLongMode(ctx.ops);

/** True if `address` is sign-extended from 48 bits, or 57 with CR4.LA57 (APM vol. 2 section 5.3.1). */
export const isCanonical = (ops: X86EmulateOps, address: bigint): boolean => {
  const bits = ops.getCr(4) & CR4.LA57 ? 57 : 48;
  return BigInt.asUintN(64, BigInt.asIntN(bits, address)) === address;
};

/**
 * True if a base or an address register may hold `address`: descriptor tables, segment bases, INVPCID. They go by the width that the processor
 * has, not by the paging mode (SDM vol. 3 section 4.5.3; KVM: max_host_virt_addr_bits).
 */
export const isCanonicalBase = (ops: X86EmulateOps, address: bigint): boolean => {
  if (address < LOW_HALF_END || address >= HIGH_HALF) return true;
  return ops.guestHas('la57') && BigInt.asUintN(64, BigInt.asIntN(57, address)) === address;
};

/** The canonical halves of 48-bit linear addresses: no metadata changes them. */
export const LOW_HALF_END = 1n << 47n;
export const HIGH_HALF = 0xffff_8000_0000_0000n;
const SIGN = 1n << 63n;

/** Bit from which LAM sign-extends an address, or 0: it is taken as it is (SDM vol. 1 section 3.3.7.2). */
const lamBit = (ops: X86EmulateOps, address: bigint): number => {
  if ((address & SIGN) === 0n) {
    const cr3 = ops.getCr(3);
    return cr3 & CR3.LAM_U57 ? 57 : cr3 & CR3.LAM_U48 ? 48 : 0;
  }
  const cr4 = ops.getCr(4);
  return cr4 & CR4.LAM_SUP ? (cr4 & CR4.LA57 ? 57 : 48) : 0;
};

/** A data address of 64-bit mode without the metadata that LAM allows in it: bit 63 stays. KVM: vmx_get_untagged_addr. */
export const untagged = (ops: X86EmulateOps, address: bigint): bigint => {
  if (address < LOW_HALF_END || address >= HIGH_HALF) return address;
  const bits = lamBit(ops, address);
  if (bits === 0) return address;
  return (BigInt.asUintN(64, BigInt.asIntN(bits, address)) & ~SIGN) | (address & SIGN);
};

/** All ones in `size` bytes. */
export const maskOf = (size: number): bigint => (1n << BigInt(size * 8)) - 1n;

/** Privilege level as instructions see it: 0 in real mode, 3 in virtual-8086 mode. */
export const cplOf = (ctx: EventContext): number => (ctx.mode === 'real' ? 0 : ctx.mode === 'vm86' ? 3 : ctx.ops.cpl());

export const iopl = (rflags: bigint): number => Number((rflags >> 12n) & 3n);

/** Raises #GP(0) unless CPL is 0. */
export const requireCpl0 = (ctx: EventContext): void => {
  if (cplOf(ctx) !== 0) ctx.raise(Vector.GP, 0);
};

/** Raises #UD outside protected mode. */
export const requireProtected = (ctx: EventContext): void => {
  if (ctx.mode === 'real' || ctx.mode === 'vm86') ctx.raise(Vector.UD);
};

/** UMIP hides the tables and CR0 from user code (SDM vol. 2, SMSW). */
export const checkUmip = (ctx: EventContext): void => {
  if (ctx.ops.getCr(4) & CR4.UMIP && cplOf(ctx) > 0) ctx.raise(Vector.GP, 0);
};

/** Operand size of instructions that use 8 bytes in 64-bit mode and 4 elsewhere. */
export const nativeSize = (ctx: EventContext): 4 | 8 => (ctx.mode === 'prot64' ? 8 : 4);

/** Reads a 16-bit register or memory operand (Ew). */
export const readRm16 = (ctx: EmulateContext): number =>
  Number(ctx.insn.mod === 3 ? ctx.getReg(ctx.insn.rm, 2) : ctx.read(ctx.insn.seg, ctx.effectiveAddress(), 2));

/** Writes Rv/Mw: the operand size in a register, 2 bytes in memory. */
export const writeRegOrMem16 = (ctx: EmulateContext, value: bigint): void => {
  const { insn } = ctx;
  if (insn.mod === 3) ctx.setReg(insn.rm, insn.opSize, value & maskOf(insn.opSize));
  else ctx.write(insn.seg, ctx.effectiveAddress(), value & 0xffffn, 2);
};

/** Offset `add` bytes behind the memory operand, wrapped to the address size. */
export const operandOffset = (ctx: EmulateContext, add: number): bigint =>
  (ctx.effectiveAddress() + BigInt(add)) & maskOf(ctx.insn.addrSize);

/** `rflags` with `flag` set or cleared. */
export const withFlag = (rflags: bigint, flag: number, set: boolean): bigint =>
  set ? rflags | BigInt(flag) : rflags & ~BigInt(flag);

export const setZf = (ctx: EmulateContext, zf: boolean): X86Emul => {
  ctx.rflags = withFlag(ctx.rflags, Flag.ZF, zf);
  return X86Emul.CONTINUE;
};

/** Moves the stack pointer: all of RSP, ESP (upper half cleared) or SP only, by the stack's address size. */
export const setStackPointer = (ops: X86EmulateOps, sp: bigint, width: 2 | 4 | 8): void => {
  if (width === 2) ops.writeGpr(RSP, (ops.readGpr(RSP) & ~0xffffn) | (sp & 0xffffn));
  else ops.writeGpr(RSP, sp & maskOf(width));
};

/**
 * Does an access over the end of a 4 GiB segment fault? AMD's processors do that; SDM vol. 3 section 5.3 leaves it open, and KVM's __linearize
 * wraps.
 */
export const endsAt4G = (ctx: { readonly subset: 'x86' | 'kvm'; readonly vendor: 'amd' | 'intel' }): boolean =>
  ctx.subset === 'x86' && ctx.vendor === 'amd';
