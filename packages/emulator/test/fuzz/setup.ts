/**
 * The machine that a made-up program finds: descriptor tables, page tables, handlers, registers.
 */
import type { Processor } from '../../src/cpu/processor.ts';
import { Attrib, CR0, CR4, EFER, Flag, S, Seg, type SegmentIndex } from '../../src/state-layout.ts';
import { placeHandlers } from './handlers.ts';
import { CODE_SIZE, codeBits, dataBase, type FuzzMode, isReal, MEMORY_SIZE, Place, Sel, TaskVector } from './layout.ts';
import { makeCode, makeData, type PieceMaker } from './program.ts';
import { Random } from './random.ts';
import { placeSmiHandler, placeTasks } from './tasks.ts';

export interface Program {
  readonly mode: FuzzMode;
  /** All of memory. */
  readonly image: Uint8Array;
  /** Puts the registers in place. */
  readonly enter: (cpu: Processor) => void;
  /** Where it stops to look: ticks to go, and what is raised then. */
  readonly slices: readonly { ticks: number; event: HostEvent }[];
}
/** What is raised between two slices; `translate`: what stands at RIP is translated. */
export type HostEvent = 'none' | 'interrupt' | 'nmi' | 'smi' | 'translate';

const DESCRIPTORS: readonly (readonly [number, bigint])[] = [
  [Sel.code64, 0x00af9b000000ffffn],
  [Sel.data, 0x00cf93000000ffffn],
  [Sel.userCode32, 0x00cffb000000ffffn],
  [Sel.userData, 0x00cff3000000ffffn],
  [Sel.userCode64, 0x00affb000000ffffn],
  [Sel.code32, 0x00cf9b000000ffffn],
  [Sel.userCode16, 0x0000fb010000ffffn],
  [Sel.tss, 0x00008b0020000087n],
  [Sel.code16, 0x00009b010000ffffn],
  [Sel.smallData, 0x0000f3040000ffffn],
  [Sel.conforming, 0x00cf9f000000ffffn],
  [Sel.absent, 0x00cf73000000ffffn],
  [Sel.tss32, 0x0000890000000067n | (BigInt(Place.tss32) << 16n)],
  [Sel.tss16, 0x000081000000002bn | (BigInt(Place.tss16) << 16n)],
  [Sel.taskGate, 0x0000e50000000000n | (BigInt(Sel.tss32) << 16n)],
  [Sel.low16, 0x00009b000000ffffn],
];

function placeTables(view: DataView, mode: FuzzMode): void {
  const long = codeBits(mode) === 64 || mode === 'compat';
  for (const [selector, descriptor] of DESCRIPTORS) view.setBigUint64(Place.gdt + (selector & ~7), descriptor, true);
  // Call gates to the tenth chunk, for everybody.
  const gate = BigInt(Place.code + 0x140);
  const to = BigInt(long ? Sel.code64 : Sel.code32);
  const callGate = (gate & 0xffffn) | (to << 16n) | (0xec00n << 32n) | ((gate >> 16n) << 48n);
  view.setBigUint64(Place.gdt + (Sel.gate & ~7), callGate, true);
  view.setBigUint64(Place.gdt + (Sel.gateWithParameters & ~7), callGate | (long ? 0n : 3n << 32n), true);
  for (let vector = 0; vector < 256; vector++) placeGate(view, mode, vector, long);
  view.setUint32(Place.tss + 4, Place.kernelStack, true);
  view.setUint32(Place.tss + 8, long ? 0 : Sel.data, true);
  if (long) view.setUint32(Place.tss + 36, Place.kernelStack, true);
  // Ports 0..7Fh are free for user code, the others not.
  view.setUint16(Place.tss + 102, 0x68, true);
  for (let at = 0x78; at < 0x88; at++) view.setUint8(Place.tss + at, 0xff);
}
function placeGate(view: DataView, mode: FuzzMode, vector: number, long: boolean): void {
  const offset = Place.stubs + vector * 16;
  if (mode === 'real') {
    view.setUint32(Place.idt + vector * 4, offset, true);
    return;
  }
  const task = vector === TaskVector.tss32 ? Sel.tss32 : vector === TaskVector.tss16 ? Sel.tss16 : 0;
  if (task !== 0 && !long) {
    view.setBigUint64(Place.idt + vector * 8, 0x0000e50000000000n | (BigInt(task) << 16n), true);
    return;
  }
  // Some interrupts come through trap gates, which leave IF as it is.
  const trap = vector >= 0x28 && vector < 0x30 ? 1 : 0;
  const access = vector === 3 || vector === 4 || vector >= 0x20 ? 0xee | trap : 0x8e;
  const ist = long ? 1n << 32n : 0n;
  const selector = BigInt(long ? Sel.code64 : Sel.code32);
  const low = BigInt(offset) | (selector << 16n) | ist | (BigInt(access) << 40n);
  view.setBigUint64(Place.idt + vector * (long ? 16 : 8), low, true);
}

/** Pages of the page tables. */
const isTable = (page: number): boolean => page >= Place.pml4 >> 12 && page <= Place.pae >> 12;

/** Pages 40h..4Fh: usual, read-only, absent, supervisor, an alias, no code, a device, code's alias. */
function mapping(page: number): bigint {
  const at = BigInt(page) << 12n;
  const P = 1n;
  const W = 2n;
  const U = 4n;
  if (page < 0x10) return at | P | W;
  if (page === 0x43 || page === 0x4f) return at | P | U;
  if (page === 0x44 || page === 0x4e) return 0n;
  if (page === 0x46) return at | P | W;
  if (page === 0x47) return 0x40000n | P | W | U;
  if (page === 0x49) return at | P | W | U | (1n << 63n);
  if (page === 0x4a) return 0xa0000n | P | W | U;
  return (page === 0x4c ? BigInt(Place.code) : at) | P | W | U;
}
/**
 * `ownTables`: the program can reach the tables. What it changes without a flush goes on by what the TLB has, for as long as nobody else
 * flushes: a machine that is moved has another TLB.
 */
function placePages(view: DataView, ownTables: boolean): void {
  view.setBigUint64(Place.pml4, BigInt(Place.pdpt) | 7n, true);
  view.setBigUint64(Place.pdpt, BigInt(Place.pd) | 7n, true);
  view.setBigUint64(Place.pae, BigInt(Place.pd) | 1n, true);
  view.setBigUint64(Place.pd, BigInt(Place.pt) | 7n, true);
  for (let page = 0; page < 512; page++) {
    const entry = isTable(page) && !ownTables ? 0n : mapping(page);
    view.setBigUint64(Place.pt + page * 8, entry, true);
  }
}

/** RBX, RBP, RSI, RDI: in data, often near the end of a page. */
function bases(random: Random, mode: FuzzMode): number[] {
  const place = (): number =>
    Place.data -
    dataBase(mode) +
    random.pick([0, 1, 2, 5, 8, 0xb, 0xd]) * 0x1000 +
    random.pick([0x100, 0x800, 0xd00, 0xfc0, 0xfe0, 0xff0, 0xff8, 0xffb]);
  return [place(), place(), place(), place()];
}

function setControls(cpu: Processor, mode: FuzzMode, random: Random): void {
  const { state } = cpu;
  const kernel = random.chance(90);
  let cr0 = CR0.ET | CR0.NE | CR0.MP | (random.chance(50) ? CR0.AM : 0n) | (random.chance(80) ? CR0.WP : 0n);
  if (random.chance(3)) cr0 |= random.pick([CR0.TS, CR0.EM]);
  let cr4 = CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE | CR4.FSGSBASE | (random.chance(50) ? CR4.DE : 0n);
  if (!kernel) cr4 ^= random.pick([CR4.OSFXSR, CR4.OSXMMEXCPT, CR4.OSXSAVE, CR4.FSGSBASE, CR4.UMIP, CR4.TSD, CR4.PCE]);
  if (mode !== 'real') {
    cr0 |= CR0.PE | CR0.PG;
    cr4 |= CR4.PAE;
    const long = codeBits(mode) === 64 || mode === 'compat';
    state.cr3 = BigInt(long ? Place.pml4 : Place.pae);
    state.efer = EFER.NXE | EFER.SCE | (long ? EFER.LME | EFER.LMA : 0n);
  }
  state.cr0 = cr0;
  state.cr4 = cr4;
  for (let n = 0; n < 4; n++) state.set64(S.pdpte + n * 8, n === 0 ? BigInt(Place.pd) | 1n : 0n);
  state.set64(S.xcr0, random.chance(90) ? 7n : random.pick([1n, 3n]));
  state.set64(S.star, (0x18n << 48n) | (8n << 32n) | BigInt(Place.code + 0x200));
  state.set64(S.lstar, BigInt(Place.code + 0x400));
  state.set64(S.cstar, BigInt(Place.code + 0x600));
  state.set64(S.sfmask, 0x700n);
  state.set64(S.sysenterCs, BigInt(random.chance(90) ? Sel.code64 : 0));
  state.set64(S.sysenterEsp, BigInt(Place.kernelStack - 0x600));
  state.set64(S.sysenterEip, BigInt(Place.code + 0x800));
}

/** Sometimes breakpoints from the start, on code and on data. */
function setBreakpoints(cpu: Processor, random: Random): void {
  if (!random.chance(20)) return;
  let dr7 = 0x400;
  for (let n = 0; n < 4; n++) {
    const code = random.chance(40);
    const address = code ? Place.code + random.below(CODE_SIZE) : Place.data + random.below(0x1000) * 8;
    cpu.state.set64(S.dr0 + n * 8, BigInt(address));
    const condition = code ? 0 : (random.below(4) << 2) | random.pick([1, 3]);
    if (random.chance(60)) dr7 |= (2 << (n * 2)) | (condition << (16 + n * 4));
  }
  cpu.state.set64(S.dr7, BigInt(dr7 >>> 0));
}

function setSegments(cpu: Processor, mode: FuzzMode): void {
  const { state } = cpu;
  const flat = (seg: SegmentIndex, selector: number, attrib: number, base = 0, limit = 0xffffffff): void =>
    state.setSegment(seg, { selector, attrib, limit, base: BigInt(base) });
  state.setTable('idtr', { base: BigInt(Place.idt), limit: mode === 'real' ? 0x3ff : 0xfff });
  state.setTable('gdtr', { base: BigInt(Place.gdt), limit: 0xff });
  flat(Seg.LDTR, 0, Attrib.unusable, 0, 0);
  flat(Seg.TR, Sel.tss, 0x8b, Place.tss, 0x87);
  const data = [Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const;
  if (isReal(mode)) {
    const attrib = mode === 'vm86' ? 0xf3 : 0x93;
    flat(Seg.CS, Place.code >> 4, mode === 'vm86' ? 0xf3 : 0x9b, Place.code, 0xffff);
    flat(Seg.SS, 0x3000, attrib, 0x30000, 0xffff);
    for (const seg of data) flat(seg, Place.data >> 4, attrib, Place.data, 0xffff);
    return;
  }
  const user = mode !== 'long' && mode !== 'prot32';
  const code = { 64: [Sel.code64, 0xa9b], 32: [Sel.code32, 0xc9b], 16: [Sel.code16, 0x9b] }[codeBits(mode)] as [
    number,
    number,
  ];
  const userCode = { 64: [Sel.userCode64, 0xafb], 32: [Sel.userCode32, 0xcfb], 16: [Sel.userCode16, 0xfb] }[
    codeBits(mode)
  ] as [number, number];
  const [selector, attrib] = user ? userCode : code;
  const small = mode === 'prot16-user';
  flat(Seg.CS, selector, attrib, small ? Place.code : 0, small ? 0xffff : 0xffffffff);
  flat(Seg.SS, user ? Sel.userData : Sel.data, user ? 0xcf3 : 0xc93);
  for (const seg of data) {
    if (small) flat(seg, Sel.smallData, 0xf3, Place.data, 0xffff);
    else flat(seg, Sel.userData, 0xcf3);
  }
}

function setFloats(cpu: Processor, random: Random, mxcsr: number): void {
  const { state } = cpu;
  const number = (): bigint =>
    (BigInt(random.between(1000, 1046) | (random.below(2) << 11)) << 52n) | (random.bits64() >> 12n);
  for (let at = 0; at < 512; at += 8) state.set64(S.ymm + at, random.chance(60) ? number() : random.bits64());
  for (let n = 0; n < 8; n++) {
    state.set64(S.fpr + n * 16, random.bits64() | (1n << 63n));
    state.block.setUint16(
      S.fpr + n * 16 + 8,
      random.chance(80) ? random.between(0x3ff0, 0x400f) : random.below(0x10000),
      true,
    );
  }
  state.block.setUint16(S.fcw, random.chance(75) ? 0x37f : ((0x37f ^ random.below(0x1000)) & ~0xc0) | 0x40, true);
  state.block.setUint16(S.fsw, random.below(8) << 11, true);
  state.u8[S.ftw] = random.chance(60) ? 0xff : random.below(256);
  state.block.setUint32(S.mxcsr, mxcsr, true);
}

const EVENTS = [
  ...(['none', 'interrupt', 'interrupt', 'interrupt', 'nmi', 'nmi', 'smi'] as const),
  ...(['translate', 'translate', 'translate', 'translate'] as const),
];

/** The program of a seed. `more`: see {@link makeCode}. */
export function makeProgram(seed: number, mode: FuzzMode, more?: PieceMaker): Program {
  const random = new Random(seed);
  const image = new Uint8Array(MEMORY_SIZE);
  const view = new DataView(image.buffer);
  placeTables(view, mode);
  placePages(view, more === undefined);
  placeHandlers(image, mode === 'real' ? 16 : codeBits(mode) === 64 || mode === 'compat' ? 64 : 32);
  placeTasks(image, random, mode);
  placeSmiHandler(image, random);
  image.set(makeCode(random, mode, more), Place.code);
  image.fill(0xf4, Place.code + CODE_SIZE, Place.code + 2 * CODE_SIZE);
  image.set(makeData(random, mode), Place.data);
  const repaired = bases(random, mode);
  repaired.forEach((base, n) => {
    view.setBigUint64(Place.log + 8 + n * 8, BigInt(base), true);
  });
  const stack = isReal(mode) ? Place.stack - 0x30000 : Place.stack;
  view.setBigUint64(Place.log + 40, BigInt(stack), true);
  const mxcsr = random.chance(40) ? 0x1fa0 : random.chance(60) ? 0x1f80 : 0x1f80 ^ (random.below(0x1000) << 6);
  view.setUint32(Place.log + 48, mxcsr & 0xffff, true);
  view.setUint32(Place.log + 52, mode === 'prot16-user' ? Sel.smallData : Sel.userData, true);
  const registers = Array.from({ length: 16 }, () => (random.chance(50) ? BigInt(random.below(64)) : random.bits64()));
  const entry = random.next();
  const slices = Array.from({ length: random.between(6, 24) }, () => ({
    ticks: random.chance(40) ? random.between(1, 70) : random.between(65, 600),
    event: random.pick(EVENTS),
  }));
  const enter = (cpu: Processor): void => {
    const { state } = cpu;
    const own = new Random(entry);
    cpu.reset(false);
    setControls(cpu, mode, own);
    setSegments(cpu, mode);
    setFloats(cpu, own, mxcsr & 0xffff);
    setBreakpoints(cpu, own);
    const wide = codeBits(mode) === 64;
    registers.forEach((value, n) => {
      state.gpr[n] = wide ? value : value & 0xffffffffn;
    });
    [3, 5, 6, 7].forEach((number, n) => {
      state.gpr[number] = BigInt(repaired[n]!);
    });
    state.gpr[4] = BigInt(stack);
    state.rip = BigInt(isReal(mode) || mode === 'prot16-user' ? 0 : Place.code);
    const user = mode === 'long-user' || mode === 'compat' || mode.endsWith('-user') || mode === 'vm86';
    state.cpl = user ? 3 : 0;
    const iopl = mode === 'vm86' ? (own.chance(80) ? Flag.IOPL : 0) : own.chance(50) ? Flag.IOPL : 0;
    const more = (own.chance(80) ? Flag.IF : 0) | (own.chance(5) ? Flag.AC : 0) | (own.chance(5) ? Flag.DF : 0);
    state.rflags = BigInt(2 | iopl | more | (mode === 'vm86' ? Flag.VM : 0) | (own.chance(2) ? Flag.TF : 0));
    cpu.stateReplaced('test');
  };
  return { mode, image, enter, slices };
}
