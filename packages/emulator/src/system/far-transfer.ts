/**
 * JMP, CALL and RET far: direct, through call gates, to tasks.
 * Manual: APM vol. 2 ch. 4.10-4.11 and 12, APM vol. 3 CALL/JMP/RET (far), SDM vol. 3 ch. 5.8; KVM: em_jmp_far, em_call_far, em_ret_far.
 */
import { X86Emul } from '../ops.ts';
import type { Segment } from '../state-layout.ts';
import { RSP, Seg, Vector } from '../state-layout.ts';
import {
  badLongCode,
  checkDirectTransfer,
  checkReturn,
  checkTarget,
  codeSegment,
  fetchNonNull,
  innerStack,
  is64BitCode,
} from './code-transfer.ts';
import { inLongMode, maskOf, operandOffset, setStackPointer } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import type { Descriptor } from './descriptors.ts';
import {
  GP_FAULT,
  isCode,
  isConforming,
  isNull,
  raiseSelector,
  readUpperHalf,
  rplOf,
  SystemType,
} from './descriptors.ts';
import {
  dropInnerSegments,
  farPointerOffsetSize,
  nullStackSegment,
  prepareStackSegment,
  realModeSegment,
} from './segments.ts';
import { currentStack, StackFrame, StackReader, stackWidth } from './stack.ts';
import { switchToTask } from './task-switch.ts';

interface FarPointer {
  selector: number;
  offset: bigint;
}

const readFarPointer = (ctx: EmulateContext): FarPointer => {
  const { insn } = ctx;
  const mask = maskOf(insn.opSize);
  if (insn.opcode !== 0xff) return { selector: insn.imm2 & 0xffff, offset: insn.imm & mask };
  if (insn.mod === 3) ctx.raise(Vector.UD);
  const size = farPointerOffsetSize(ctx);
  const offset = ctx.read(insn.seg, ctx.effectiveAddress(), size);
  return { offset, selector: Number(ctx.read(insn.seg, operandOffset(ctx, size), 2)) };
};

const commitCode = (ctx: EmulateContext, cs: Segment, offset: bigint): X86Emul => {
  ctx.ops.setSegment(Seg.CS, cs);
  ctx.eip = offset;
  ctx.modeChanged = true;
  return X86Emul.CONTINUE;
};

const isReal = (ctx: EmulateContext): boolean => ctx.mode === 'real' || ctx.mode === 'vm86';

/** CS and limit check of a transfer in real or virtual-8086 mode. */
const realTarget = (ctx: EmulateContext, p: FarPointer): Segment => {
  const cs = realModeSegment(ctx, Seg.CS, p.selector, ctx.mode);
  checkTarget(ctx, cs, p.offset);
  return cs;
};

/** CS for a direct transfer to a code segment. */
const directTarget = (ctx: EmulateContext, d: Descriptor, p: FarPointer): Segment => {
  const cpl = ctx.ops.cpl();
  checkDirectTransfer(ctx, d, p.selector, cpl);
  const cs = codeSegment(ctx, d, p.selector, cpl);
  checkTarget(ctx, cs, p.offset);
  return cs;
};

/** What a call gate names (APM vol. 2 sections 4.8.1 and 4.8.3). */
interface CallGate {
  target: Descriptor;
  selector: number;
  offset: bigint;
  /** Bytes per pushed item: 2, 4 or 8. */
  size: 2 | 4 | 8;
  parameters: number;
}

const checkGateRights = (ctx: EmulateContext, gate: Descriptor, selector: number): void => {
  if (gate.dpl < ctx.ops.cpl() || rplOf(selector) > gate.dpl) raiseSelector(ctx, Vector.GP, selector);
  if (!gate.present) raiseSelector(ctx, Vector.NP, selector);
};

const gateTarget = (ctx: EmulateContext, selector: number): Descriptor => {
  const d = fetchNonNull(ctx, selector, GP_FAULT);
  const cpl = ctx.ops.cpl();
  if (!isCode(d) || d.dpl > cpl) raiseSelector(ctx, Vector.GP, selector);
  return d;
};

const openGate = (ctx: EmulateContext, gate: Descriptor, gateSelector: number): CallGate => {
  const long = inLongMode(ctx.ops);
  let offset = BigInt(((gate.low & 0xffff) | (gate.high & 0xffff_0000)) >>> 0);
  if (long) {
    const { upper, typeZero } = readUpperHalf(ctx, gate);
    if (!typeZero) raiseSelector(ctx, Vector.GP, gateSelector);
    offset |= upper << 32n;
  }
  checkGateRights(ctx, gate, gateSelector);
  const selector = gate.low >>> 16;
  const target = gateTarget(ctx, selector);
  const bad = long && (badLongCode(ctx, target) || !(target.attrib & 0x200));
  if (bad) raiseSelector(ctx, Vector.GP, selector);
  if (!target.present) raiseSelector(ctx, Vector.NP, selector);
  const size = long ? 8 : gate.type === SystemType.callGate16 ? 2 : 4;
  const narrow = size === 2 ? offset & 0xffffn : offset;
  return { target, selector, offset: narrow, size, parameters: long ? 0 : gate.high & 0x1f };
};

/** JMP through a call gate never changes CPL. */
const jumpThroughGate = (ctx: EmulateContext, gate: CallGate): X86Emul => {
  const cpl = ctx.ops.cpl();
  if (!isConforming(gate.target) && gate.target.dpl !== cpl) raiseSelector(ctx, Vector.GP, gate.selector);
  const cs = codeSegment(ctx, gate.target, gate.selector, cpl);
  checkTarget(ctx, cs, gate.offset);
  return commitCode(ctx, cs, gate.offset);
};

/** Pushes in order without probing: a fault at the second push leaves the first in memory, below the stack pointer, as processors do. */
const callSameLevel = (ctx: EmulateContext, cs: Segment, offset: bigint, size: number): X86Emul => {
  const stack = currentStack(ctx);
  const frame = new StackFrame(ctx, stack);
  frame
    .push(BigInt(ctx.ops.getSegment(Seg.CS).selector), size)
    .push(ctx.eip, size)
    .write();
  setStackPointer(ctx.ops, frame.sp, stack.width);
  return commitCode(ctx, cs, offset);
};

/** Parameters stand above the caller's stack pointer, the last pushed lowest; they are copied in the same order. */
const readParameters = (ctx: EmulateContext, gate: CallGate): bigint[] => {
  const reader = new StackReader(ctx);
  return Array.from({ length: gate.parameters }, () => reader.pop(gate.size)).reverse();
};

const callInnerLevel = (ctx: EmulateContext, gate: CallGate): X86Emul => {
  const { ops } = ctx;
  const cpl = gate.target.dpl;
  const stack = innerStack(ctx, cpl, 0);
  const parameters = readParameters(ctx, gate);
  const frame = new StackFrame(ctx, stack);
  frame.push(BigInt(ops.getSegment(Seg.SS).selector), gate.size).push(ops.readGpr(RSP), gate.size);
  for (const p of parameters) frame.push(p, gate.size);
  frame.push(BigInt(ops.getSegment(Seg.CS).selector), gate.size).push(ctx.eip, gate.size);
  const cs = codeSegment(ctx, gate.target, gate.selector, cpl);
  checkTarget(ctx, cs, gate.offset);
  frame.write();
  ops.setSegment(Seg.SS, stack.ss);
  setStackPointer(ops, frame.sp, stack.width);
  return commitCode(ctx, cs, gate.offset);
};

const callThroughGate = (ctx: EmulateContext, gate: CallGate): X86Emul => {
  const cpl = ctx.ops.cpl();
  if (!isConforming(gate.target) && gate.target.dpl < cpl) return callInnerLevel(ctx, gate);
  const cs = codeSegment(ctx, gate.target, gate.selector, cpl);
  checkTarget(ctx, cs, gate.offset);
  return callSameLevel(ctx, cs, gate.offset, gate.size);
};

/** JMP or CALL to a system descriptor. */
const systemTransfer = (ctx: EmulateContext, d: Descriptor, selector: number, kind: 'jmp' | 'call'): X86Emul => {
  const through = (): X86Emul => {
    const gate = openGate(ctx, d, selector);
    return kind === 'jmp' ? jumpThroughGate(ctx, gate) : callThroughGate(ctx, gate);
  };
  const long = inLongMode(ctx.ops);
  if (d.type === SystemType.callGate32 || (!long && d.type === SystemType.callGate16)) return through();
  if (long) return raiseSelector(ctx, Vector.GP, selector);
  if (d.type === SystemType.taskGate) {
    checkGateRights(ctx, d, selector);
    return switchToTask(ctx, d.low >>> 16, kind);
  }
  if (d.type !== SystemType.availableTss16 && d.type !== SystemType.availableTss32)
    return raiseSelector(ctx, Vector.GP, selector);
  if (d.dpl < ctx.ops.cpl() || rplOf(selector) > d.dpl) raiseSelector(ctx, Vector.GP, selector);
  return switchToTask(ctx, selector, kind);
};

/** System descriptors are beyond KVM's emulator; everything that is not code is a fault there too. */
const protectedTransfer = (ctx: EmulateContext, p: FarPointer, kind: 'jmp' | 'call'): X86Emul => {
  const d = fetchNonNull(ctx, p.selector, GP_FAULT);
  if (!d.s) return ctx.subset === 'kvm' ? X86Emul.UNHANDLEABLE : systemTransfer(ctx, d, p.selector, kind);
  if (!isCode(d)) raiseSelector(ctx, Vector.GP, p.selector);
  const cs = directTarget(ctx, d, p);
  return kind === 'jmp' ? commitCode(ctx, cs, p.offset) : callSameLevel(ctx, cs, p.offset, ctx.insn.opSize);
};

const jmpfar: SystemFunction = (ctx) => {
  const p = readFarPointer(ctx);
  return isReal(ctx) ? commitCode(ctx, realTarget(ctx, p), p.offset) : protectedTransfer(ctx, p, 'jmp');
};

const callfar: SystemFunction = (ctx) => {
  const p = readFarPointer(ctx);
  if (isReal(ctx)) return callSameLevel(ctx, realTarget(ctx, p), p.offset, ctx.insn.opSize);
  return protectedTransfer(ctx, p, 'call');
};

/**
 * SS for a return to privilege level `cpl`; a null SS goes with 64-bit code outside level 3 (APM vol. 3, RET far).
 */
export const returnStackSegment = (ctx: EmulateContext, selector: number, cpl: number, cs: Segment): Segment => {
  if (!isNull(selector)) return prepareStackSegment(ctx, selector, cpl, GP_FAULT);
  if (!is64BitCode(ctx, cs) || cpl === 3 || rplOf(selector) !== cpl) ctx.raise(Vector.GP, 0);
  return nullStackSegment(selector, cpl);
};

/** Commits a return that takes SS:RSP from the stack too. */
export const commitReturn = (ctx: EmulateContext, cs: Segment, offset: bigint, ss: Segment, sp: bigint): X86Emul => {
  ctx.ops.setSegment(Seg.SS, ss);
  setStackPointer(ctx.ops, sp, stackWidth(ss, is64BitCode(ctx, cs)));
  return commitCode(ctx, cs, offset);
};

/** AMD's processors read the outer stack's pointer before they look at the code segment. */
export const probeOuterStack = (ctx: EmulateContext, stack: StackReader, distance: number): void => {
  if (ctx.vendor === 'amd') stack.probe(distance, 2, ctx.insn.opSize);
};

/** SS of an outer return, and the check of its target: AMD's processors check the target first (APM vol. 3 IRET), Intel's last. */
export const checkedReturn = (
  ctx: EmulateContext,
  cs: Segment,
  offset: bigint,
  selector: number,
  rpl: number,
): Segment => {
  if (ctx.vendor === 'amd') checkTarget(ctx, cs, offset);
  const ss = returnStackSegment(ctx, selector, rpl, cs);
  checkTarget(ctx, cs, offset);
  return ss;
};

const outerReturn = (ctx: EmulateContext, cs: Segment, offset: bigint, stack: StackReader, extra: number): X86Emul => {
  const size = ctx.insn.opSize;
  const sp = stack.pop(size);
  const selector = Number(stack.pop(size) & 0xffffn);
  const ss = checkedReturn(ctx, cs, offset, selector, rplOf(cs.selector));
  const result = commitReturn(ctx, cs, offset, ss, sp + BigInt(extra));
  dropInnerSegments(ctx, rplOf(cs.selector));
  return result;
};

const protectedReturn = (ctx: EmulateContext, stack: StackReader, p: FarPointer, extra: number): X86Emul => {
  const cpl = ctx.ops.cpl();
  const rpl = rplOf(p.selector);
  if (ctx.subset === 'kvm' && rpl > cpl) return X86Emul.UNHANDLEABLE;
  if (rpl !== cpl) probeOuterStack(ctx, stack, extra);
  const d = fetchNonNull(ctx, p.selector, GP_FAULT);
  checkReturn(ctx, d, p.selector, cpl);
  const cs = codeSegment(ctx, d, p.selector, rpl);
  stack.skip(extra);
  if (rpl > cpl) return outerReturn(ctx, cs, p.offset, stack, extra);
  checkTarget(ctx, cs, p.offset);
  setStackPointer(ctx.ops, stack.sp, stack.width);
  return commitCode(ctx, cs, p.offset);
};

const retfar: SystemFunction = (ctx) => {
  const { insn } = ctx;
  const extra = insn.opcode === 0xca ? Number(insn.imm & 0xffffn) : 0;
  const stack = new StackReader(ctx);
  const [offset, selector] = stack.popAll(2, insn.opSize);
  const p = { offset: offset!, selector: Number(selector! & 0xffffn) };
  if (!isReal(ctx)) return protectedReturn(ctx, stack, p, extra);
  const cs = realTarget(ctx, p);
  stack.skip(extra);
  setStackPointer(ctx.ops, stack.sp, stack.width);
  return commitCode(ctx, cs, p.offset);
};

export const FAR_INSTRUCTIONS = { jmpfar, callfar, retfar } as const satisfies Record<string, SystemFunction>;
