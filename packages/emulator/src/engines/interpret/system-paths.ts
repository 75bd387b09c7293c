/**
 * Generated paths of the system instructions that kernels and firmware live on: CLI, STI, PUSHF, POPF, SWAPGS, moves of
 * segment registers, PAUSE, RDTSC.
 * Each is the plain case of the function of the same name in system/; whatever is not plain goes back to JavaScript, which runs that.
 * Manual: APM vol. 3 ch. 4 (CLI, STI, SWAPGS), ch. 3 (MOV, PUSH, POP, PUSHF, POPF), APM vol. 2 section 4.5 (segment registers in real mode).
 */
import type { Cond, Operation, Value } from '../../builder/builder.ts';
import type { Instruction, Row } from '../../decode/instruction.ts';
import { Layout, WalkFlag, WalkWords } from '../../memory/layout.ts';
import { loadStack, push, setStackPointer, stackOffset, stackPointer } from '../../semantics/support.ts';
import { Attrib, Flag, RAX, RCX, RDX, S, Seg } from '../../state-layout.ts';
import type { Form } from './form.ts';
import { Jump } from './jump-cache.ts';
import type { Recorder } from './recorder.ts';
import { KeyPart, P } from './records.ts';

interface SystemPath {
  /** Is there a generated path for this form? */
  accepts(insn: Instruction): boolean;
  record(r: Recorder, op: Operation, form: Form): void;
}

const always = (): boolean => true;
/** Offsets in the state block. */
const PRIVATE_SLOT = (address: number): number => address - Layout.state;

const has = (r: Recorder, value: Value, bits: number): Cond => r.ne(r.and(value, r.const(bits)), r.const(0));
const rawFlags = (r: Recorder): Value => r.state(S.rflags, 8);
const cpl = (r: Recorder): Value => r.state(S.cpl, 1);

/** CPL <= IOPL: IF is what CLI, STI and POPF work on. */
function ownsInterruptFlag(r: Recorder): Cond {
  const iopl = r.and(r.shrU(rawFlags(r), r.const(12)), r.const(3));
  return r.leU(cpl(r), iopl);
}

/** Something waits for IF to be set. */
const awaited = (r: Recorder): Cond => r.ne(r.state(PRIVATE_SLOT(P.awaited), 4), r.const(0));
/** PUSHF or POPF may be intercepted, or the mode is virtual-8086. */
const flagsNotPlain = (r: Recorder): Cond =>
  r.orC(r.ne(r.state(PRIVATE_SLOT(P.flagsIntercepted), 4), r.const(0)), has(r, rawFlags(r), Flag.VM));

const cli: SystemPath = {
  accepts: always,
  record: (r) => {
    r.handBackWhen(r.notC(ownsInterruptFlag(r)));
    r.setRflags(r.const(0), Flag.IF);
  },
};

/**
 * The shadow follows a change of IF from 0 to 1: the engine then executes one instruction by itself. Where nothing waits for IF and nobody
 * can look before that instruction is done, there is no need.
 */
const sti: SystemPath = {
  accepts: always,
  record: (r, _op, form) => {
    r.handBackWhen(r.notC(ownsInterruptFlag(r)));
    const rises = r.notC(has(r, rawFlags(r), Flag.IF));
    const leaves = form.followed ? r.andC(rises, awaited(r)) : rises;
    r.setRflags(r.const(Flag.IF), Flag.IF);
    r.when(leaves, () => {
      r.setState(S.shadow, 1, r.const(1));
      r.setState(PRIVATE_SLOT(P.shadowLeft), 4, r.const(0));
      r.leaveShadowed();
    });
  },
};

const pushf: SystemPath = {
  accepts: always,
  record: (r, op) => {
    r.handBackWhen(flagsNotPlain(r));
    push(r, r.and(r.getRflags(), r.const(~BigInt(Flag.VM | Flag.RF))), op.size);
  },
};

/** What generated code does not change by itself: each of them belongs to the mode, to privilege or to traps. */
const GUARDED = Flag.TF | Flag.IOPL | Flag.AC | Flag.VIF | Flag.VIP;

const popf: SystemPath = {
  accepts: always,
  record: (r, op) => {
    r.handBackWhen(flagsNotPlain(r));
    const top = stackPointer(r);
    const image = loadStack(r, top, op.size);
    const old = rawFlags(r);
    const owns = ownsInterruptFlag(r);
    const width = op.size === 2 ? 0xffff : 0xffffff;
    const changed = r.xor(image, old);
    r.handBackWhen(has(r, changed, GUARDED & ~(Flag.VIF | Flag.VIP) & width));
    const rises = r.andC(owns, r.andC(has(r, image, Flag.IF), r.notC(has(r, old, Flag.IF))));
    r.handBackWhen(r.andC(rises, awaited(r)));
    setStackPointer(r, stackOffset(r, top, op.size));
    const interrupt = r.and(r.select(owns, image, old), r.const(Flag.IF));
    const value = r.or(r.and(image, r.const(~BigInt(Flag.IF))), interrupt);
    r.setRflags(value, (Flag.arith | Flag.IF | Flag.DF | Flag.NT | Flag.ID) & width);
  },
};

const GS_BASE = S.segments + Seg.GS * 16 + 8;

const swapgs: SystemPath = {
  accepts: (insn) => insn.codeSize === 8,
  record: (r) => {
    r.handBackWhen(r.ne(cpl(r), r.const(0)));
    const [user, kernel] = [r.state(GS_BASE, 8), r.state(S.kernelGsBase, 8)];
    r.setState(GS_BASE, 8, kernel);
    r.setState(S.kernelGsBase, 8, user);
  },
};

const TS = 8;
const WP = 0x1_0000;
/** CR0.TS is the code's own, and it may execute CLTS and MOV to CR0. */
function guardTaskSwitched(r: Recorder): Value {
  const owned = r.state(PRIVATE_SLOT(P.cr0Owned), 4);
  r.handBackWhen(r.orC(r.eq(owned, r.const(0xffffffffn)), r.ne(cpl(r), r.const(0))));
  return owned;
}
/** SSE, AVX and x87 instructions do not run as they are while TS is set. */
function setTaskSwitched(r: Recorder, cr0: Value): void {
  const gates = r.select(has(r, cr0, TS), r.const(7), r.state(PRIVATE_SLOT(P.vectorsClear), 4));
  r.setState(S.cr0, 8, cr0);
  r.setState(PRIVATE_SLOT(P.vectors), 4, gates);
}

const clts: SystemPath = {
  accepts: always,
  record: (r) => {
    guardTaskSwitched(r);
    setTaskSwitched(r, r.and(r.state(S.cr0, 8), r.const(~BigInt(TS))));
  },
};

/** Exchanges what stands in two places. */
function exchange(r: Recorder, one: number, other: number, size: 4 | 8): void {
  const [first, second] = [r.state(PRIVATE_SLOT(one), size), r.state(PRIVATE_SLOT(other), size)];
  r.setState(PRIVATE_SLOT(one), size, second);
  r.setState(PRIVATE_SLOT(other), size, first);
}
/** The address space with CR0.WP the other way: another TLB context, and a page walk that differs in a flag. */
function exchangeContexts(r: Recorder): void {
  const flags = r.state(PRIVATE_SLOT(WalkWords.flags), 4);
  r.setState(PRIVATE_SLOT(WalkWords.flags), 4, r.xor(flags, r.const(WalkFlag.wp)));
  r.setState(PRIVATE_SLOT(WalkWords.context), 4, r.state(PRIVATE_SLOT(P.otherContext), 4));
  exchange(r, P.context, P.otherContext, 8);
  exchange(r, P.contextHash, P.otherHash, 4);
}

/** MOV to CR0 that changes TS or WP alone; kernels that switch their FPU late, or write through read-only mappings, live on it. */
const movcr: SystemPath = {
  accepts: (insn) => insn.opcode === 0x0f22 && insn.reg === 0 && insn.mod === 3 && insn.codeSize !== 2,
  record: (r, op) => {
    const owned = guardTaskSwitched(r);
    const value = op.operands[1].get();
    const old = r.state(S.cr0, 8);
    const seen = r.state(PRIVATE_SLOT(P.cr0Seen), 4);
    // Host-owned bits as they are seen, all others as they are.
    const asSeen = r.or(r.and(seen, owned), r.and(old, r.xor(owned, r.const(0xffffffffn))));
    const changed = r.xor(value, asSeen);
    r.handBackWhen(r.ne(r.and(changed, r.const(~BigInt(TS | WP))), r.const(0)));
    const toggles = has(r, changed, WP);
    r.handBackWhen(r.andC(toggles, r.isZero(r.state(PRIVATE_SLOT(P.otherContext), 8))));
    const cr0 = r.or(r.and(old, r.const(~BigInt(TS))), r.and(value, r.const(TS)));
    setTaskSwitched(r, r.xor(cr0, r.and(changed, r.const(WP))));
    r.when(toggles, () => {
      exchangeContexts(r);
      r.recontext();
    });
  },
};

/** Nobody has to be asked about it. */
const pause: SystemPath = {
  accepts: always,
  record: (r) => {
    const left = r.state(S.pauses, 4);
    r.handBackWhen(r.isZero(left));
    const counted = r.isZero(r.and(left, r.const(0x80000000n)));
    r.setState(S.pauses, 4, r.select(counted, r.sub(left, r.const(1)), left));
  },
};

/** The TSC at this instruction into EDX:EAX. `reader`: its bit in P.tscReaders. */
function readTimeStamp(r: Recorder, reader: number): void {
  r.handBackWhen(r.notC(has(r, r.state(PRIVATE_SLOT(P.tscReaders), 4), reader)));
  const tick = r.sub(r.state(PRIVATE_SLOT(P.sliceEnd), 8), r.state(PRIVATE_SLOT(P.left), 4));
  const tsc = r.add(r.mul(tick, r.state(PRIVATE_SLOT(P.tscPerTick), 4)), r.state(PRIVATE_SLOT(P.tscOffset), 8));
  r.setReg({ fixed: RAX }, 4, r.and(tsc, r.const(0xffffffffn)));
  r.setReg({ fixed: RDX }, 4, r.shrU(tsc, r.const(32)));
}
const rdtsc: SystemPath = { accepts: always, record: (r) => readTimeStamp(r, 1) };
const rdtscp: SystemPath = {
  accepts: always,
  record: (r) => {
    const aux = r.state(S.tscAux, 4);
    readTimeStamp(r, 2);
    r.setReg({ fixed: RCX }, 4, aux);
  },
};

/** Offsets in a segment's slot. */
const SELECTOR = 0;
const ATTRIB = 2;
const LIMIT = 4;
const BASE = 8;

/** A load in real mode that leaves limit and rights as they are; anything else has to be looked at. */
function guardRealMode(r: Recorder): void {
  r.handBackWhen(has(r, r.state(S.cr0, 8), 1));
  r.handBackWhen(has(r, r.slot(ATTRIB, 2), Attrib.unusable));
  r.handBackWhen(r.ne(r.slot(LIMIT, 4), r.const(0xffff)));
}
function loadRealMode(r: Recorder, selector: Value): void {
  const low = r.zext(selector, 2);
  r.setSlot(SELECTOR, 2, low);
  r.setSlot(BASE, 8, r.shl(low, r.const(4)));
}

/** ES, DS, FS, GS: SS makes a shadow. */
const isPlainSegment = (seg: number): boolean => seg === Seg.ES || (seg >= Seg.DS && seg <= Seg.GS);
const isLoadable = (seg: number): boolean => seg === Seg.SS || isPlainSegment(seg);
const isStore = (insn: Instruction): boolean => insn.row.operands[0] === 'Rv/Mw';

const GDTR = S.segments + Seg.GDTR * 16;
/** What is wanted of a descriptor, and of which of its bits: accessed writable data that does not expand down, present, of level 0. */
const DATA_MASK = 0xff00n << 32n;
const DATA = 0x9300n << 32n;
/** Accessed code that does not conform, present, of level 0, not of 64 bits. */
const CODE_MASK = 0x20_fd00n << 32n;
const CODE = 0x9900n << 32n;
/** Bits of P.loadsSegments. */
const PROTECTED = 1;
const REAL = 2;
const mayLoad = (r: Recorder, which: number): Cond => has(r, r.state(PRIVATE_SLOT(P.loadsSegments), 4), which);

/** The descriptor of a selector of level 0; anything but plain data or code is handed back. */
function plainDescriptor(r: Recorder, selector: Value, mask: bigint, wanted: bigint): Value {
  const offset = r.and(selector, r.const(0xfff8));
  const odd = r.ne(r.and(selector, r.const(7)), r.const(0));
  r.handBackWhen(r.orC(r.notC(mayLoad(r, PROTECTED)), r.orC(odd, r.isZero(offset))));
  r.handBackWhen(r.ltU(r.state(GDTR + LIMIT, 4), r.add(offset, r.const(7))));
  const found = r.loadLinear(r.zext(r.add(r.state(GDTR + BASE, 8), offset), 4), 8);
  r.handBackWhen(r.ne(r.and(found, r.const(mask)), r.const(wanted)));
  return found;
}
/** A descriptor's parts (APM vol. 2 section 4.7.1): `head` is a slot's first eight bytes. */
function segmentOf(r: Recorder, selector: Value, found: Value): { head: Value; limit: Value; base: Value } {
  const high = r.shrU(found, r.const(32));
  const units = r.or(r.and(found, r.const(0xffff)), r.and(high, r.const(0xf_0000)));
  const pages = r.or(r.shl(units, r.const(12)), r.const(0xfff));
  const limit = r.select(has(r, high, 0x80_0000), pages, units);
  const attrib = r.or(r.and(r.shrU(high, r.const(8)), r.const(0xff)), r.and(r.shrU(high, r.const(12)), r.const(0xf00)));
  const base = r.or(
    r.or(r.shrU(r.zext(found, 4), r.const(16)), r.shl(r.and(high, r.const(0xff)), r.const(16))),
    r.and(high, r.const(0xff00_0000n)),
  );
  return { head: r.or(r.or(selector, r.shl(attrib, r.const(16))), r.shl(limit, r.const(32))), limit, base };
}
function loadProtected(r: Recorder, selector: Value): void {
  const { head, base } = segmentOf(r, selector, plainDescriptor(r, selector, DATA_MASK, DATA));
  r.setSlot(SELECTOR, 8, head);
  r.setSlot(BASE, 8, base);
  r.setState(PRIVATE_SLOT(P.segmentsLoaded), 8, r.const(1));
}

/** A slot's attributes above its selector: those of flat data, and all that are asked for it (cpu/code-key.ts). */
const FLAT_DATA = (Attrib.P | Attrib.S | 0x2) << 16;
const FLAT_DATA_MASK = (Attrib.P | Attrib.S | 0xe | Attrib.unusable) * 0x10000;
const slotOf = (seg: number): number => S.segments + seg * 16;
function spansAll(r: Recorder, seg: number): Cond {
  const whole = r.eq(r.state(slotOf(seg) + LIMIT, 4), r.const(0xffffffffn));
  return r.andC(whole, r.isZero(r.state(slotOf(seg) + BASE, 8)));
}
function isFlatData(r: Recorder, seg: number): Cond {
  const attributes = r.and(r.state(slotOf(seg), 4), r.const(FLAT_DATA_MASK));
  return r.andC(spansAll(r, seg), r.eq(attributes, r.const(FLAT_DATA)));
}
/** Is the code key another than the form's, now that a segment register other than CS has been loaded? */
function changesKey(r: Recorder, { stackSize, segments }: Form): Cond {
  const big = has(r, r.state(slotOf(Seg.SS), 4), Attrib.DB << 16);
  const stack = stackSize === 4 ? r.notC(big) : big;
  const data = r.andC(isFlatData(r, Seg.ES), r.andC(isFlatData(r, Seg.SS), isFlatData(r, Seg.DS)));
  const flat = r.andC(spansAll(r, Seg.CS), data);
  return r.orC(stack, segments === 'flat' ? r.notC(flat) : flat);
}

/** What follows from the segments, as the engine prepares it (cpu/code-key.ts): outside long and virtual-8086 mode, at level 0. */
function followSegments(r: Recorder): void {
  const part = (cond: Cond, weight: number): Value => r.select(cond, r.const(weight), r.const(0));
  const isBig = (seg: number): Cond => has(r, r.state(slotOf(seg), 4), Attrib.DB << 16);
  const sizes = r.add(part(isBig(Seg.CS), KeyPart.code), part(isBig(Seg.SS), KeyPart.stack));
  const limit = r.state(slotOf(Seg.CS) + LIMIT, 4);
  const data = r.andC(isFlatData(r, Seg.ES), r.andC(isFlatData(r, Seg.SS), isFlatData(r, Seg.DS)));
  const flat = part(r.andC(spansAll(r, Seg.CS), data), KeyPart.flat);
  const whole = part(r.eq(limit, r.const(0xffffffffn)), KeyPart.flatCode);
  const id = r.add(r.add(sizes, r.const(KeyPart.first)), r.add(flat, whole));
  r.setState(PRIVATE_SLOT(P.key), 8, r.shl(id, r.const(Jump.idShift)));
  r.setState(PRIVATE_SLOT(P.codeBase), 8, r.state(slotOf(Seg.CS) + BASE, 8));
  r.setState(PRIVATE_SLOT(P.codeLimit), 8, limit);
  r.setState(PRIVATE_SLOT(P.segmentsLoaded), 8, r.const(1));
}

/** JMP ptr16:16 and ptr16:32 to code of the same level. */
const jmpfar: SystemPath = {
  accepts: (insn) => insn.opcode === 0xea,
  record: (r, op) => {
    const selector = r.imm2();
    const offset = r.zext(r.imm(), op.size);
    const inReal = (): void => {
      r.handBackWhen(r.notC(mayLoad(r, REAL)));
      r.handBackWhen(has(r, r.state(slotOf(Seg.CS), 4), Attrib.unusable * 0x10000));
      r.handBackWhen(r.ne(r.state(slotOf(Seg.CS) + LIMIT, 4), r.const(0xffff)));
      r.handBackWhen(r.ltU(r.const(0xffff), offset));
      r.setState(slotOf(Seg.CS), 2, selector);
      r.setState(slotOf(Seg.CS) + BASE, 8, r.shl(selector, r.const(4)));
    };
    const inProtected = (): void => {
      const { head, limit, base } = segmentOf(r, selector, plainDescriptor(r, selector, CODE_MASK, CODE));
      r.handBackWhen(r.ltU(limit, offset));
      r.setState(slotOf(Seg.CS), 8, head);
      r.setState(slotOf(Seg.CS) + BASE, 8, base);
    };
    r.when(has(r, r.state(S.cr0, 8), 1), inProtected, inReal);
    followSegments(r);
    r.recontext(offset);
  },
};

/** SS, too: where something waits for the end of its shadow, that ends the run. Where the key has become another, what follows is found anew. */
function loadRegister(r: Recorder, selector: Value, form: Form): void {
  if (form.codeSize === 4) loadProtected(r, selector);
  else {
    const inReal = (): void => {
      guardRealMode(r);
      loadRealMode(r, selector);
    };
    r.when(has(r, r.state(S.cr0, 8), 1), () => loadProtected(r, selector), inReal);
  }
  if (form.shadows) {
    r.setState(S.shadow, 1, r.const(2));
    r.setState(PRIVATE_SLOT(P.shadowLeft), 4, r.state(PRIVATE_SLOT(P.left), 4));
    r.when(awaited(r), () => r.leaveShadowed());
  }
  r.when(changesKey(r, form), () => {
    followSegments(r);
    r.recontext();
  });
}

const movseg: SystemPath = {
  accepts: (insn) =>
    isStore(insn) ? segmentOperand(insn) <= Seg.GS : insn.codeSize !== 8 && isLoadable(segmentOperand(insn)),
  record: (r, op, form) => {
    if (form.operands[0] === 'Rv/Mw') op.operands[0].set(r.slot(SELECTOR, 2));
    else loadRegister(r, r.zext(op.operands[1].get(), 2), form);
  },
};

const pushseg: SystemPath = {
  accepts: always,
  record: (r, op) => {
    const selector = r.slot(SELECTOR, 2);
    // Intel writes only the selector itself (SDM vol. 2, PUSH).
    if (op.size !== 4 || r.vendor === 'amd') {
      push(r, selector, op.size);
      return;
    }
    const top = stackOffset(r, stackPointer(r), -op.size);
    r.store(top, selector, { seg: Seg.SS, size: 2 });
    setStackPointer(r, top);
  },
};

const popseg: SystemPath = {
  accepts: (insn) => insn.codeSize === 2 && isPlainSegment(segmentOperand(insn)),
  record: (r, op) => {
    guardRealMode(r);
    const top = stackPointer(r);
    const selector = loadStack(r, top, op.size);
    setStackPointer(r, stackOffset(r, top, op.size));
    loadRealMode(r, selector);
  },
};

const PATHS: Readonly<Record<string, SystemPath>> = {
  ...{ cli, sti, pushf, popf, swapgs, clts, movcr, pause, rdtsc, rdtscp },
  ...{ movseg, pushseg, popseg, jmpfar },
};

const NAMES = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS'];

/** Segment register that an instruction names, or -1. */
export function segmentOperand(insn: Instruction): number {
  if (insn.row.mnemonic === 'movseg') return insn.reg & 7;
  return insn.row.mnemonic === 'pushseg' || insn.row.mnemonic === 'popseg' ? NAMES.indexOf(insn.row.operands[0]) : -1;
}

export const isSegmentInstruction = (row: Row): boolean =>
  row.mnemonic === 'movseg' || row.mnemonic === 'pushseg' || row.mnemonic === 'popseg';

/** Does a generated path exist for the instruction? */
export const hasSystemPath = (insn: Instruction): boolean =>
  Object.hasOwn(PATHS, insn.row.mnemonic) && PATHS[insn.row.mnemonic].accepts(insn);

/** Records the path of a mnemonic, if it is one of them. */
export function systemPath(mnemonic: string): SystemPath['record'] | undefined {
  return Object.hasOwn(PATHS, mnemonic) ? PATHS[mnemonic].record : undefined;
}
