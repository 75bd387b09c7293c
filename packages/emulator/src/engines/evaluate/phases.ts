/**
 * The checks between decoding and execution, in KVM's order: legality, unit, mode, privilege, and the intercepts between them.
 * Manual: APM vol. 2 section 8.5 (priorities), APM vol. 3 sections 1.2.5 and 3. KVM: x86_emulate_insn().
 */
import type { Instruction, Row } from '../../decode/instruction.ts';
import { type InstructionInfo, type InterceptStage, X86Emul } from '../../ops.ts';
import { CR0, CR4, Seg, Vector } from '../../state-layout.ts';
import type { EvaluateContext } from './context.ts';
import { isMemory, operandSize } from './operands.ts';

/** KVM's emulator asks the guest's CPUID for these only: VMMCALL on an Intel guest, say, is executed (guest_has_movbe and its like). */
const KVM_ASKS: ReadonlySet<string | undefined> = new Set(['movbe', 'fxsr', 'rdpid']);

/** #UD for LOCK where it is not allowed, and for instructions that the mode or the CPU model doesn't have. */
export function checkLegality(ctx: EvaluateContext): void {
  const { insn } = ctx;
  const { row } = insn;
  if (insn.lock && (!row.lockable || insn.mod === 3)) ctx.raise(Vector.UD);
  if (ctx.mode === 'prot64' ? row.no64 : row.only64) ctx.raise(Vector.UD);
  const asks = ctx.subset === 'x86' || KVM_ASKS.has(row.feature);
  if (row.feature !== undefined && asks && !ctx.ops.guestHas(row.feature)) ctx.raise(Vector.UD);
  if (row.unit !== 'integer') checkUnit(ctx, row.unit);
  // An invalid opcode comes before the intercept, which is asked for early (SDM vol. 3 section 26.1.1).
  if (row.intercept === 'xsetbv' && ctx.subset === 'x86' && (ctx.ops.getCr(4) & CR4.OSXSAVE) === 0n) {
    ctx.raise(Vector.UD);
  }
}

/** CR0.EM, CR0.TS, CR4.OSFXSR, CR4.OSXSAVE and XCR0 (APM vol. 2 section 3.1.1, APM vol. 4 section 1.2.4). */
function checkUnit(ctx: EvaluateContext, unit: Row['unit']): void {
  const cr0 = ctx.ops.getCr(0);
  if (unit === 'x87') {
    checkX87(ctx, cr0);
    return;
  }
  if (unit === 'avx') {
    const enabled = ctx.mode !== 'real' && ctx.mode !== 'vm86' && (ctx.ops.getCr(4) & CR4.OSXSAVE) !== 0n;
    if (!enabled || (ctx.ops.getXcr(0) & 6n) !== 6n) ctx.raise(Vector.UD);
  } else {
    if ((cr0 & CR0.EM) !== 0n) ctx.raise(Vector.UD);
    if (unit === 'sse' && (ctx.ops.getCr(4) & CR4.OSFXSR) === 0n) ctx.raise(Vector.UD);
  }
  if ((cr0 & CR0.TS) !== 0n) ctx.raise(Vector.NM);
}

/** WAIT looks at TS only if MP is set; the others at EM and TS. */
function checkX87(ctx: EvaluateContext, cr0: bigint): void {
  const unavailable =
    ctx.insn.row.mnemonic === 'wait'
      ? (cr0 & (CR0.MP | CR0.TS)) === (CR0.MP | CR0.TS)
      : (cr0 & (CR0.EM | CR0.TS)) !== 0n;
  if (unavailable) ctx.raise(Vector.NM);
}

/** #UD outside protected mode, then #GP(0) for lack of privilege. */
export function checkPrivilege(ctx: EvaluateContext): void {
  const { row } = ctx.insn;
  const { mode } = ctx;
  if (row.protectedOnly && (mode === 'real' || mode === 'vm86')) ctx.raise(Vector.UD);
  if (row.privileged && mode !== 'real' && (mode === 'vm86' || ctx.ops.cpl() !== 0)) ctx.raise(Vector.GP, 0);
}

/** Asks the context around for the row's intercept, if this is its stage. */
export function checkIntercept(ctx: EvaluateContext, info: InstructionInfo, stage: InterceptStage): X86Emul {
  const { row } = ctx.insn;
  if (row.intercept === 'none' || row.interceptStage !== stage) return X86Emul.CONTINUE;
  describe(ctx, info);
  return ctx.ops.intercept(info, stage);
}

/** An info object to be filled by {@link checkIntercept} again and again. */
export const createInfo = (): InstructionInfo => ({
  intercept: 'none',
  rep: 0,
  mod: 0,
  reg: 0,
  rm: 0,
  srcVal: 0n,
  dstVal: 0n,
  srcBytes: 0,
  dstBytes: 0,
  adBytes: 0,
  seg: Seg.DS,
  linear: 0n,
  rip: 0n,
  nextRip: 0n,
  opcode: 0,
  imm: 0n,
});

function describe(ctx: EvaluateContext, info: InstructionInfo): void {
  const { insn, forms } = ctx;
  info.intercept = insn.row.intercept;
  info.rep = insn.rep;
  info.mod = insn.mod;
  info.reg = insn.reg;
  info.rm = insn.rm;
  info.adBytes = insn.addrSize;
  info.seg = insn.seg;
  info.rip = ctx.rip;
  info.nextRip = ctx.eip;
  info.opcode = insn.opcode;
  info.imm = insn.imm;
  const last = forms.length > 1 ? 1 : 0;
  info.dstVal = operandBefore(ctx, 0);
  info.dstBytes = forms.length > 0 ? operandSize(forms[0]!, insn) : 0;
  info.srcVal = operandBefore(ctx, last);
  info.srcBytes = forms.length > 0 ? operandSize(forms[last]!, insn) : 0;
  info.linear = unchecked(ctx, insn);
}

/** Value of an operand before memory is read: registers and immediates. */
function operandBefore(ctx: EvaluateContext, n: number): bigint {
  const form = ctx.forms[n];
  if (form === undefined || isMemory(form, ctx.insn)) return 0n;
  return ctx.registerOperand(form, operandSize(form, ctx.insn));
}

/** Linear address of the memory or string operand without any check, 0 if there is none. */
function unchecked(ctx: EvaluateContext, insn: Instruction): bigint {
  for (const form of ctx.forms) {
    const string = form.place === 'source' || form.place === 'destination';
    if (!string && !isMemory(form, insn)) continue;
    const seg = form.place === 'destination' ? Seg.ES : insn.seg;
    const flat = ctx.mode === 'prot64' && seg !== Seg.FS && seg !== Seg.GS;
    const base = flat ? 0n : ctx.ops.getCachedSegmentBase(seg as 0 | 1 | 2 | 3 | 4 | 5);
    const offset = string ? ctx.stringOffset(form.place as 'source' | 'destination') : ctx.effectiveAddress();
    return ctx.mode === 'prot64' ? BigInt.asUintN(64, base + offset) : (base + offset) & 0xffffffffn;
  }
  return 0n;
}
