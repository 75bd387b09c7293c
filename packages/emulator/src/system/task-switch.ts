/**
 * Hardware task switches with 16- and 32-bit TSS, by JMP, CALL, IRET and task gates.
 * Manual: APM vol. 2 ch. 12.3, SDM vol. 3 ch. 7.3; KVM: emulator_task_switch. One implementation for the processor and for KVM.
 */
import { X86Emul } from '../ops.ts';
import type { Segment, SegmentIndex } from '../state-layout.ts';
import { Attrib, CR0, Flag, RSP, Seg, Vector } from '../state-layout.ts';
import { badLongCode } from './code-transfer.ts';
import type { EventContext } from './common.ts';
import { cplOf, maskOf, setStackPointer, withFlag } from './common.ts';
import type { Descriptor } from './descriptors.ts';
import {
  fetchDescriptor,
  GP_FAULT,
  isCode,
  isConforming,
  isNull,
  lookUpDescriptor,
  markAccessed,
  markBusy,
  parseDescriptor,
  raiseSelector,
  rplOf,
  SystemType,
  segmentOf,
  TS_FAULT,
} from './descriptors.ts';
import type { DataSegment } from './segments.ts';
import { prepareDataSegment, prepareStackSegment, realModeSegment } from './segments.ts';
import { StackFrame, stackWidth } from './stack.ts';

export type TaskSwitchReason = 'call' | 'jmp' | 'iret' | 'gate';

/** Field offsets of a TSS (APM vol. 2 figures 12-3 and 12-4). */
interface TssLayout {
  /** Bytes per field. */
  width: 2 | 4;
  minLimit: number;
  cr3: number;
  eip: number;
  eflags: number;
  /** Eight general registers in encoding order. */
  gpr: number;
  /** ES, CS, SS, DS and, in 32-bit TSS, FS, GS. */
  segments: number;
  segmentCount: number;
  ldt: number;
  /** Word whose bit 0 asks for #DB; -1: none. */
  trap: number;
}
const TSS32: TssLayout = {
  width: 4,
  minLimit: 0x67,
  cr3: 0x1c,
  eip: 0x20,
  eflags: 0x24,
  gpr: 0x28,
  segments: 0x48,
  segmentCount: 6,
  ldt: 0x60,
  trap: 0x64,
};
const TSS16: TssLayout = {
  width: 2,
  minLimit: 0x2b,
  cr3: -1,
  eip: 0x0e,
  eflags: 0x10,
  gpr: 0x12,
  segments: 0x22,
  segmentCount: 4,
  ldt: 0x2a,
  trap: -1,
};

interface TaskState {
  cr3: bigint;
  eip: bigint;
  eflags: bigint;
  gpr: bigint[];
  segments: number[];
  ldt: number;
  trap: boolean;
}

const DR6_BT = 0x8000n;
/** DR7 bits that a task switch clears: L0..L3 and LE (APM vol. 2 section 13.1.1.4). */
const DR7_LOCAL = 0x155n;

const layoutOf = (type: number): TssLayout => (type & 8 ? TSS32 : TSS16);

const readTask = (ctx: EventContext, base: bigint, t: TssLayout): TaskState => {
  const field = (offset: number, size: number = t.width): bigint => ctx.ops.readStd(base + BigInt(offset), size, true);
  return {
    cr3: t.cr3 < 0 ? 0n : field(t.cr3),
    eip: field(t.eip),
    eflags: field(t.eflags),
    gpr: Array.from({ length: 8 }, (_, i) => field(t.gpr + i * t.width)),
    segments: Array.from({ length: t.segmentCount }, (_, i) => Number(field(t.segments + i * t.width, 2))),
    ldt: Number(field(t.ldt, 2)),
    trap: t.trap >= 0 && (field(t.trap, 2) & 1n) !== 0n,
  };
};

/** Writes the dynamic fields of the outgoing task's TSS. Segment slots take their two selector bytes. */
const saveTask = (ctx: EventContext, base: bigint, t: TssLayout, eflags: bigint): void => {
  const { ops } = ctx;
  const store = (offset: number, value: bigint, size: number = t.width): void =>
    ops.writeStd(base + BigInt(offset), value & maskOf(size), size, true);
  store(t.eip, ctx.eip);
  store(t.eflags, eflags);
  for (let i = 0; i < 8; i++) store(t.gpr + i * t.width, ops.readGpr(i));
  for (let i = 0; i < t.segmentCount; i++)
    store(t.segments + i * t.width, BigInt(ops.getSegment(i as SegmentIndex).selector), 2);
};

const oldDescriptor = (ctx: EventContext, selector: number): Descriptor => {
  const linear = ctx.ops.getGdt().base + BigInt(selector & 0xfff8);
  return parseDescriptor(ctx.ops.readStd(linear, 8, true), linear);
};

/** LDTR of the new task; #TS(selector). Null makes it unusable. */
const loadLdt = (ctx: EventContext, selector: number): void => {
  if (isNull(selector)) return;
  if (selector & 4) raiseSelector(ctx, Vector.TS, selector);
  const d = fetchDescriptor(ctx, selector, TS_FAULT);
  if (d.s || d.type !== SystemType.ldt || !d.present) raiseSelector(ctx, Vector.TS, selector);
  ctx.ops.setSegment(Seg.LDTR, segmentOf(d, selector));
};

const taskCodeSegment = (ctx: EventContext, selector: number): Segment => {
  if (isNull(selector)) raiseSelector(ctx, Vector.TS, selector);
  const d = fetchDescriptor(ctx, selector, TS_FAULT);
  const rpl = rplOf(selector);
  const rights = isConforming(d) ? d.dpl <= rpl : d.dpl === rpl;
  if (!isCode(d) || !rights || badLongCode(ctx, d)) raiseSelector(ctx, Vector.TS, selector);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector);
  markAccessed(ctx, d);
  return segmentOf(d, selector);
};

/** Loads the descriptors of the new task's segments; their faults belong to the new task. */
const loadTaskSegments = (ctx: EventContext, state: TaskState, cpl: number): void => {
  const { ops } = ctx;
  const selectors = [0, 1, 2, 3, 4, 5].map((i) => state.segments[i] ?? 0);
  if (state.eflags & BigInt(Flag.VM)) {
    for (const seg of [0, 1, 2, 3, 4, 5] as const)
      ops.setSegment(seg, realModeSegment(ctx, seg, selectors[seg]!, 'vm86'));
    return;
  }
  // CS first: CPL comes from it, and SS is checked against that.
  ops.setSegment(Seg.CS, taskCodeSegment(ctx, selectors[Seg.CS]!));
  ops.setSegment(Seg.SS, prepareStackSegment(ctx, selectors[Seg.SS]!, cpl, TS_FAULT));
  for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as readonly DataSegment[])
    ops.setSegment(seg, prepareDataSegment(ctx, seg, selectors[seg]!, cpl, TS_FAULT));
};

/** Registers and selectors of the new task; hidden parts stay unusable until their descriptors are loaded. */
const commitTask = (ctx: EventContext, state: TaskState, t: TssLayout, cpl: number): void => {
  const { ops } = ctx;
  const paging = (ops.getCr(0) & CR0.PG) !== 0n;
  if (t.cr3 >= 0 && (paging || ctx.subset === 'kvm') && ops.setCr(3, state.cr3) !== 0) ctx.raise(Vector.GP, 0);
  ctx.eip = state.eip;
  ctx.rflags = state.eflags | 2n;
  ops.setRip(ctx.eip);
  ops.setRflags(ctx.rflags);
  for (let i = 0; i < 8; i++) ops.writeGpr(i, state.gpr[i]!);
  const vm86 = (state.eflags & BigInt(Flag.VM)) !== 0n;
  const attrib = Attrib.unusable | (cpl << Attrib.dplShift);
  const empty = (selector: number): Segment => ({ selector, attrib: vm86 ? 0xf3 : attrib, limit: 0, base: 0n });
  for (const seg of [0, 1, 2, 3, 4, 5] as const) ops.setSegment(seg, empty(state.segments[seg] ?? 0));
  ops.setSegment(Seg.LDTR, { selector: state.ldt, attrib: Attrib.unusable, limit: 0, base: 0n });
  ctx.modeChanged = true;
};

const pushErrorCode = (ctx: EventContext, errorCode: number, width: 2 | 4): void => {
  const { ops } = ctx;
  const ss = ops.getSegment(Seg.SS);
  const stack = stackWidth(ss, false);
  const sp = ops.readGpr(RSP) & maskOf(stack);
  const frame = new StackFrame(ctx, { ss, sp, width: stack, system: false, errorCode: 0 });
  frame.push(BigInt(errorCode), width).check().write();
  setStackPointer(ops, frame.sp, stack);
};

/** The rest of the switch, in the new task's context (SDM vol. 3 section 7.3 steps 13-14). */
const finishTask = (ctx: EventContext, state: TaskState, t: TssLayout, errorCode: number | undefined): void => {
  const { ops } = ctx;
  const vm86 = (state.eflags & BigInt(Flag.VM)) !== 0n;
  const cpl = vm86 ? 3 : rplOf(state.segments[Seg.CS]!);
  loadLdt(ctx, state.ldt);
  loadTaskSegments(ctx, state, cpl);
  if (ctx.subset === 'x86' && ctx.eip > BigInt(ops.getSegment(Seg.CS).limit)) ctx.raise(Vector.GP, 0);
  if (errorCode !== undefined) pushErrorCode(ctx, errorCode, t.width);
  ops.setDr(7, ops.getDr(7) & ~DR7_LOCAL);
  if (state.trap && ctx.subset === 'x86') ctx.debugTrap = (ctx.debugTrap ?? 0n) | DR6_BT;
};

const switchTo = (
  ctx: EventContext,
  selector: number,
  next: Descriptor,
  reason: TaskSwitchReason,
  errorCode: number | undefined,
): X86Emul => {
  const { ops } = ctx;
  const t = layoutOf(next.type);
  if (!next.present || next.limit < t.minLimit) raiseSelector(ctx, Vector.TS, selector);
  const nested = reason === 'call' || reason === 'gate';
  const oldTr = ops.getSegment(Seg.TR);
  const old = oldDescriptor(ctx, oldTr.selector);
  const state = readTask(ctx, next.base, t);
  const eflags = reason === 'iret' ? withFlag(ctx.rflags, Flag.NT, false) : ctx.rflags;
  saveTask(ctx, oldTr.base, layoutOf(oldTr.attrib & Attrib.typeMask), eflags);
  if (!nested) markBusy(ctx, old, false);
  if (nested) ops.writeStd(next.base, BigInt(oldTr.selector), 2, true);
  if (reason !== 'iret') markBusy(ctx, next, true);
  if (nested) state.eflags = withFlag(state.eflags, Flag.NT, true);
  const cpl = state.eflags & BigInt(Flag.VM) ? 3 : rplOf(state.segments[Seg.CS]!);
  ops.setSegment(Seg.TR, { ...segmentOf(next, selector), attrib: next.attrib | 2 });
  ops.setCr(0, ops.getCr(0) | CR0.TS);
  commitTask(ctx, state, t, cpl);
  finishTask(ctx, state, t, errorCode);
  return X86Emul.CONTINUE;
};

/**
 * The task switch proper, after the checks that its cause asks for. On entry `ctx.eip` and `ctx.rflags` are what the old task resumes with;
 * on return they are the new task's. A fault while the new task's segments are loaded is raised with the new task's state in place: then
 * `modeChanged` is set, and RIP and RFLAGS have been set through ops.
 *
 * KVM: emulator_task_switch. The caller commits `eip` and `rflags`.
 * @param idtIndex vector whose task gate software used (its DPL is checked here), or -1
 */
export const emulatorTaskSwitch = (
  ctx: EventContext,
  selector: number,
  idtIndex: number,
  reason: TaskSwitchReason,
  hasErrorCode: boolean,
  errorCode: number,
): X86Emul => {
  if (reason === 'gate' && idtIndex !== -1) checkSoftwareGate(ctx, selector, idtIndex);
  const next = fetchDescriptor(ctx, selector, GP_FAULT);
  return switchTo(ctx, selector, next, reason, hasErrorCode ? errorCode : undefined);
};

const checkSoftwareGate = (ctx: EventContext, selector: number, idtIndex: number): void => {
  const idt = ctx.ops.getIdt();
  const errorCode = (idtIndex << 3) | 2;
  if (idtIndex * 8 + 7 > idt.limit) ctx.raise(Vector.GP, errorCode);
  const linear = idt.base + BigInt(idtIndex * 8);
  const gate = parseDescriptor(ctx.ops.readStd(linear, 8, true), linear);
  if (rplOf(selector) > gate.dpl || cplOf(ctx) > gate.dpl) ctx.raise(Vector.GP, errorCode);
};

/**
 * Checks the TSS that a JMP, CALL or task gate names, and switches to it (SDM vol. 3 section 7.3 steps 1-4).
 * @param ext EXT bit of error codes while an event is delivered
 */
export const switchToTask = (
  ctx: EventContext,
  selector: number,
  reason: 'jmp' | 'call' | 'gate',
  errorCode?: number,
  ext = 0,
): X86Emul => {
  const d = selector & 4 || isNull(selector) ? undefined : lookUpDescriptor(ctx, selector);
  const available = d && !d.s && (d.type === SystemType.availableTss16 || d.type === SystemType.availableTss32);
  if (!d || !available) return raiseSelector(ctx, Vector.GP, selector, ext);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector, ext);
  ctx.ops.beginTaskSwitch?.(selector, reason, errorCode);
  return switchTo(ctx, selector, d, reason, errorCode);
};

/** IRET with NT set: back to the task whose selector stands in the current TSS. It must be busy; faults are #TS(selector). */
export const returnToPreviousTask = (ctx: EventContext): X86Emul => {
  const tr = ctx.ops.getSegment(Seg.TR);
  const selector = Number(ctx.ops.readStd(tr.base, 2, true));
  const d = selector & 4 || isNull(selector) ? undefined : lookUpDescriptor(ctx, selector);
  const busy = d && !d.s && (d.type === SystemType.busyTss16 || d.type === SystemType.busyTss32);
  if (!d || !busy) return raiseSelector(ctx, Vector.TS, selector);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector);
  ctx.ops.beginTaskSwitch?.(selector, 'iret', undefined);
  return switchTo(ctx, selector, d, 'iret', undefined);
};
