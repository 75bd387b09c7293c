/**
 * Delivery of interrupts and exceptions through the IVT or the IDT, and the instructions that cause them.
 * Manual: APM vol. 2 ch. 8.6-8.10, SDM vol. 3 ch. 6.11-6.14 and 20.3; KVM: __emulate_int_real.
 */
import type { PendingEvent } from '../guest-mode.ts';
import { X86Emul } from '../ops.ts';
import type { Segment } from '../state-layout.ts';
import { CR4, Flag, RSP, Seg, Vector } from '../state-layout.ts';
import { badLongCode, checkTarget, codeSegment, fetchNonNull, innerStack, longModeStack } from './code-transfer.ts';
import type { EventContext } from './common.ts';
import { cplOf, inLongMode, iopl, isCanonical, setStackPointer, withFlag } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import type { Descriptor } from './descriptors.ts';
import { isCode, isConforming, parseDescriptor, raiseSelector, readUpperHalf, SystemType } from './descriptors.ts';
import { nullDataSegment, nullStackSegment, realModeSegment } from './segments.ts';
import type { StackTarget } from './stack.ts';
import { currentStack, StackFrame } from './stack.ts';
import { switchToTask } from './task-switch.ts';

/** EXT of error codes: the event is not the program's own INT n, INT3 or INTO (SDM vol. 3 section 6.13). */
const extOf = (event: PendingEvent): number => (event.kind === 'softint' || event.kind === 'softexception' ? 0 : 1);

/** Gate DPL counts for INT n, INT3 and INTO. */
const isSoftware = (event: PendingEvent): boolean => extOf(event) === 0;

const idtError = (event: PendingEvent): number => (event.vector << 3) | 2 | extOf(event);

/** Flags as handlers find them: TF, NT, RF, VM cleared, IF too through an interrupt gate. */
const handlerFlags = (rflags: bigint, clearIf: boolean): bigint =>
  rflags & ~BigInt(Flag.TF | Flag.NT | Flag.RF | Flag.VM | (clearIf ? Flag.IF : 0));

/** Pushes flags, CS, IP as words and goes to CS:IP of the vector; for real mode and VME's redirected interrupts. */
const enterRealHandler = (
  ctx: EventContext,
  event: PendingEvent,
  table: bigint,
  image: bigint,
  rflags: bigint,
  system: boolean,
): void => {
  const { ops } = ctx;
  const stack = currentStack(ctx);
  const vector = ops.readStd(table + BigInt(event.vector * 4), 4, system);
  const frame = new StackFrame(ctx, stack).push(image, 2).push(BigInt(ops.getSegment(Seg.CS).selector), 2);
  frame.push(ctx.eip, 2).check();
  const cs = realModeSegment(ctx, Seg.CS, Number(vector >> 16n), ctx.mode);
  checkTarget(ctx, cs, vector & 0xffffn);
  frame.write();
  setStackPointer(ops, frame.sp, stack.width);
  ops.setSegment(Seg.CS, cs);
  ctx.eip = vector & 0xffffn;
  ctx.rflags = rflags;
  ctx.modeChanged = true;
};

const deliverReal = (ctx: EventContext, event: PendingEvent): void => {
  const idt = ctx.ops.getIdt();
  if (event.vector * 4 + 3 > idt.limit) ctx.raise(Vector.GP, idtError(event));
  const cleared = ctx.rflags & ~BigInt(Flag.IF | Flag.TF | Flag.AC | Flag.RF);
  enterRealHandler(ctx, event, idt.base, ctx.rflags, cleared, true);
};

/** VME's bitmap below the I/O map: a clear bit sends INT n to the 8086 program's own handler (APM vol. 2 section 8.10.2). */
const isRedirected = (ctx: EventContext, vector: number): boolean => {
  const tr = ctx.ops.getSegment(Seg.TR);
  if (tr.limit < 103) return false;
  const at = Number(ctx.ops.readStd(tr.base + 102n, 2, true)) - 32 + (vector >> 3);
  if (at < 0 || at > tr.limit) ctx.raise(Vector.GP, 0);
  return ((Number(ctx.ops.readStd(tr.base + BigInt(at), 1, true)) >> (vector & 7)) & 1) === 0;
};

/** INT n in virtual-8086 mode; true if it went to the 8086 program's handler. */
const redirectVm86Int = (ctx: EventContext, event: PendingEvent): boolean => {
  const trusted = iopl(ctx.rflags) === 3;
  const redirected = (ctx.ops.getCr(4) & CR4.VME) !== 0n && isRedirected(ctx, event.vector);
  if (!redirected) {
    if (!trusted) ctx.raise(Vector.GP, 0);
    return false;
  }
  const cleared = ctx.rflags & ~BigInt(Flag.TF | Flag.NT | Flag.RF | (trusted ? Flag.IF : Flag.VIF));
  const vif = (ctx.rflags & BigInt(Flag.VIF)) !== 0n;
  const image = trusted ? ctx.rflags : withFlag(ctx.rflags | BigInt(Flag.IOPL), Flag.IF, vif);
  enterRealHandler(ctx, event, 0n, image, cleared, false);
  return true;
};

const GATE_TYPES: readonly number[] = [
  SystemType.taskGate,
  SystemType.interruptGate16,
  SystemType.trapGate16,
  SystemType.interruptGate32,
  SystemType.trapGate32,
];
const LONG_GATE_TYPES: readonly number[] = [SystemType.interruptGate32, SystemType.trapGate32];

/** The checked gate of an event, 8 or 16 bytes long. */
const fetchGate = (ctx: EventContext, event: PendingEvent, long: boolean): Descriptor => {
  const { ops } = ctx;
  const idt = ops.getIdt();
  const size = long ? 16 : 8;
  const error = idtError(event);
  if (event.vector * size + size - 1 > idt.limit) ctx.raise(Vector.GP, error);
  const linear = idt.base + BigInt(event.vector * size);
  const gate = parseDescriptor(ops.readStd(linear, 8, true), linear);
  if (gate.s || !(long ? LONG_GATE_TYPES : GATE_TYPES).includes(gate.type)) ctx.raise(Vector.GP, error);
  if (isSoftware(event) && gate.dpl < cplOf(ctx)) ctx.raise(Vector.GP, error);
  if (!gate.present) ctx.raise(Vector.NP, error);
  return gate;
};

/** The handler's code segment descriptor (APM vol. 2 sections 8.7.3 and 8.9.2). */
const fetchHandler = (ctx: EventContext, selector: number, ext: number, long: boolean): Descriptor => {
  const d = fetchNonNull(ctx, selector, { vector: Vector.GP, ext });
  const notLong = long && (!(d.attrib & 0x200) || badLongCode(ctx, d));
  if (!isCode(d) || d.dpl > cplOf(ctx) || notLong) raiseSelector(ctx, Vector.GP, selector, ext);
  if (!d.present) raiseSelector(ctx, Vector.NP, selector, ext);
  return d;
};

interface Handler {
  cs: Segment;
  offset: bigint;
  cpl: number;
  /** Bytes per pushed item. */
  size: 2 | 4 | 8;
  clearIf: boolean;
}

/** CPL of the handler; from virtual-8086 mode only 0 will do. */
const handlerCpl = (ctx: EventContext, d: Descriptor, selector: number, ext: number): number => {
  const cpl = isConforming(d) ? cplOf(ctx) : d.dpl;
  if (ctx.mode === 'vm86' && cpl !== 0) raiseSelector(ctx, Vector.GP, selector, ext);
  return cpl;
};

const pushReturn = (ctx: EventContext, frame: StackFrame, h: Handler, event: PendingEvent): void => {
  frame
    .push(ctx.rflags, h.size)
    .push(BigInt(ctx.ops.getSegment(Seg.CS).selector), h.size)
    .push(ctx.eip, h.size);
  if (event.errorCode !== undefined) frame.push(BigInt(event.errorCode), h.size);
};

const commitHandler = (ctx: EventContext, h: Handler): void => {
  ctx.ops.setSegment(Seg.CS, h.cs);
  ctx.eip = h.offset;
  ctx.rflags = handlerFlags(ctx.rflags, h.clearIf);
  ctx.modeChanged = true;
};

const enterSameLevel = (ctx: EventContext, h: Handler, event: PendingEvent): void => {
  const stack = currentStack(ctx, extOf(event));
  const frame = new StackFrame(ctx, stack);
  pushReturn(ctx, frame, h, event);
  checkTarget(ctx, h.cs, h.offset, extOf(event));
  frame.check().write();
  setStackPointer(ctx.ops, frame.sp, stack.width);
  commitHandler(ctx, h);
};

const DATA_SEGMENTS = [Seg.GS, Seg.FS, Seg.DS, Seg.ES] as const;

const enterInnerLevel = (ctx: EventContext, h: Handler, event: PendingEvent): void => {
  const { ops } = ctx;
  const fromVm86 = ctx.mode === 'vm86';
  const stack = innerStack(ctx, h.cpl, extOf(event));
  const frame = new StackFrame(ctx, stack);
  if (fromVm86) for (const seg of DATA_SEGMENTS) frame.push(BigInt(ops.getSegment(seg).selector), h.size);
  frame.push(BigInt(ops.getSegment(Seg.SS).selector), h.size).push(ops.readGpr(RSP), h.size);
  pushReturn(ctx, frame, h, event);
  checkTarget(ctx, h.cs, h.offset, extOf(event));
  frame.write();
  if (fromVm86) for (const seg of DATA_SEGMENTS) ops.setSegment(seg, nullDataSegment(ctx, seg, 0));
  ops.setSegment(Seg.SS, stack.ss);
  setStackPointer(ops, frame.sp, stack.width);
  commitHandler(ctx, h);
};

const deliverProtected = (ctx: EventContext, event: PendingEvent): void => {
  const ext = extOf(event);
  const gate = fetchGate(ctx, event, false);
  const selector = gate.low >>> 16;
  if (gate.type === SystemType.taskGate) {
    switchToTask(ctx, selector, 'gate', event.errorCode, ext);
    return;
  }
  const d = fetchHandler(ctx, selector, ext, false);
  const cpl = handlerCpl(ctx, d, selector, ext);
  const size = gate.type & 8 ? 4 : 2;
  const high = size === 4 ? gate.high & 0xffff_0000 : 0;
  const offset = BigInt(((gate.low & 0xffff) | high) >>> 0);
  const cs = codeSegment(ctx, d, selector, cpl);
  const h: Handler = { cs, offset, cpl, size, clearIf: (gate.type & 1) === 0 };
  if (cpl < cplOf(ctx)) enterInnerLevel(ctx, h, event);
  else enterSameLevel(ctx, h, event);
};

/** The stack of a long-mode handler: IST, else the inner level's RSP, else the current one; aligned to 16 bytes. */
const longStack = (ctx: EventContext, h: Handler, ist: number, ext: number): StackTarget => {
  const inner = h.cpl < cplOf(ctx);
  const ss = inner ? nullStackSegment(h.cpl, h.cpl) : ctx.ops.getSegment(Seg.SS);
  const sp = ist || inner ? longModeStack(ctx, h.cpl, ist, ext) : ctx.ops.readGpr(RSP);
  return { ss, sp: sp & ~15n, width: 8, system: inner, errorCode: ext };
};

const deliverLong = (ctx: EventContext, event: PendingEvent): void => {
  const { ops } = ctx;
  const ext = extOf(event);
  const gate = fetchGate(ctx, event, true);
  const { upper } = readUpperHalf(ctx, gate);
  const selector = gate.low >>> 16;
  const d = fetchHandler(ctx, selector, ext, true);
  const cpl = handlerCpl(ctx, d, selector, ext);
  const offset = BigInt(((gate.low & 0xffff) | (gate.high & 0xffff_0000)) >>> 0) | (upper << 32n);
  const cs = codeSegment(ctx, d, selector, cpl);
  const h: Handler = { cs, offset, cpl, size: 8, clearIf: (gate.type & 1) === 0 };
  const stack = longStack(ctx, h, gate.high & 7, ext);
  const frame = new StackFrame(ctx, stack);
  frame.push(BigInt(ops.getSegment(Seg.SS).selector), 8).push(ops.readGpr(RSP), 8);
  pushReturn(ctx, frame, h, event);
  if (!isCanonical(ops, offset)) ctx.raise(Vector.GP, ext);
  frame.check().write();
  if (cpl < cplOf(ctx)) ops.setSegment(Seg.SS, stack.ss);
  setStackPointer(ops, frame.sp, 8);
  commitHandler(ctx, h);
};

/**
 * Delivers an event through the IVT or the IDT. On entry `ctx.eip` and `ctx.rflags` are what the handler returns to (the caller sets RF in
 * the image); on return they are the handler's, and the caller commits them. CS, SS, RSP and, for task gates, all else go through ops.
 * @throws GuestException for faults on the way: EXT and IDT bits are in the error code; deciding on #DF is the caller's
 */
export const deliverEvent = (ctx: EventContext, event: PendingEvent): void => {
  if (ctx.mode === 'vm86' && event.kind === 'softint' && redirectVm86Int(ctx, event)) return;
  if (ctx.mode === 'real') deliverReal(ctx, event);
  else if (inLongMode(ctx.ops)) deliverLong(ctx, event);
  else deliverProtected(ctx, event);
};

/** A software event; KVM's emulator delivers it in real mode only. */
const raiseSoftware = (ctx: EmulateContext, kind: PendingEvent['kind'], vector: number): X86Emul => {
  if (ctx.subset === 'kvm' && ctx.mode !== 'real') return X86Emul.UNHANDLEABLE;
  const event: PendingEvent = { kind, vector, errorCode: undefined, instructionLength: ctx.insn.length };
  ctx.ops.beginEvent?.(event);
  deliverEvent(ctx, event);
  return X86Emul.CONTINUE;
};

const int: SystemFunction = (ctx) => raiseSoftware(ctx, 'softint', Number(ctx.insn.imm & 0xffn));
const int3: SystemFunction = (ctx) => raiseSoftware(ctx, 'softexception', Vector.BP);
const int1: SystemFunction = (ctx) => raiseSoftware(ctx, 'icebp', Vector.DB);
const into: SystemFunction = (ctx) =>
  ctx.rflags & BigInt(Flag.OF) ? raiseSoftware(ctx, 'softexception', Vector.OF) : X86Emul.CONTINUE;

/** Index below the first or above the second word of the pair, both signed: #BR, a fault. */
const bound: SystemFunction = (ctx) => {
  const { insn } = ctx;
  const bits = insn.opSize * 8;
  const at = ctx.effectiveAddress();
  const wrap = insn.addrSize * 8;
  const index = BigInt.asIntN(bits, ctx.getReg(insn.reg, insn.opSize));
  const lower = BigInt.asIntN(bits, ctx.read(insn.seg, at, insn.opSize));
  const second = BigInt.asUintN(wrap, at + BigInt(insn.opSize));
  const upper = BigInt.asIntN(bits, ctx.read(insn.seg, second, insn.opSize));
  if (index < lower || index > upper) ctx.raise(Vector.BR);
  return X86Emul.CONTINUE;
};

export const EVENT_INSTRUCTIONS = { int, int3, int1, into, bound } as const satisfies Record<string, SystemFunction>;
