/**
 * The VMCB at its real layout, and accessors to one in host physical memory.
 * Manual: APM vol. 2 appendix B; KVM: arch/x86/include/asm/svm.h (struct vmcb).
 */
import type { PhysicalMemory, SegmentIndex } from '@tskvm/emulator';

/** Bits of the clean field at 0C0h: a set bit says that software left the group as the last #VMEXIT did (APM 15.15.3). */
export const Clean = {
  INTERCEPTS: 0,
  PERM_MAP: 1,
  ASID: 2,
  INTR: 3,
  NPT: 4,
  CR: 5,
  DR: 6,
  DT: 7,
  SEG: 8,
  CR2: 9,
  LBR: 10,
  AVIC: 11,
  CET: 12,
} as const;

type Row = readonly [offset: number, size: 1 | 2 | 4 | 8 | 16, clean?: number];

/** Every field: offset from the VMCB's start, size in bytes (16: a segment slot), clean-bit group. */
export const VMCB_FIELDS = {
  // Control area
  interceptCr: [0x000, 4, Clean.INTERCEPTS],
  interceptDr: [0x004, 4, Clean.INTERCEPTS],
  interceptExceptions: [0x008, 4, Clean.INTERCEPTS],
  intercept3: [0x00c, 4, Clean.INTERCEPTS],
  intercept4: [0x010, 4, Clean.INTERCEPTS],
  intercept5: [0x014, 4, Clean.INTERCEPTS],
  pauseFilterThreshold: [0x03c, 2, Clean.INTERCEPTS],
  pauseFilterCount: [0x03e, 2, Clean.INTERCEPTS],
  iopmBasePa: [0x040, 8, Clean.PERM_MAP],
  msrpmBasePa: [0x048, 8, Clean.PERM_MAP],
  tscOffset: [0x050, 8, Clean.INTERCEPTS],
  asid: [0x058, 4, Clean.ASID],
  tlbCtl: [0x05c, 1],
  intCtl: [0x060, 4, Clean.INTR],
  intVector: [0x064, 4, Clean.INTR],
  intState: [0x068, 4],
  exitCode: [0x070, 8],
  exitInfo1: [0x078, 8],
  exitInfo2: [0x080, 8],
  exitIntInfo: [0x088, 4],
  exitIntInfoErr: [0x08c, 4],
  miscCtl: [0x090, 8, Clean.NPT],
  avicBar: [0x098, 8, Clean.AVIC],
  ghcbGpa: [0x0a0, 8],
  eventInj: [0x0a8, 4],
  eventInjErr: [0x0ac, 4],
  nestedCr3: [0x0b0, 8, Clean.NPT],
  miscCtl2: [0x0b8, 8, Clean.LBR],
  clean: [0x0c0, 4],
  nextRip: [0x0c8, 8],
  insnLen: [0x0d0, 1],
  insnBytes: [0x0d1, 1],
  avicBackingPage: [0x0e0, 8, Clean.AVIC],
  avicLogicalId: [0x0f0, 8, Clean.AVIC],
  avicPhysicalId: [0x0f8, 8, Clean.AVIC],
  vmsaPa: [0x108, 8],
  // State save area
  es: [0x400, 16, Clean.SEG],
  cs: [0x410, 16, Clean.SEG],
  ss: [0x420, 16, Clean.SEG],
  ds: [0x430, 16, Clean.SEG],
  fs: [0x440, 16],
  gs: [0x450, 16],
  gdtr: [0x460, 16, Clean.DT],
  ldtr: [0x470, 16],
  idtr: [0x480, 16, Clean.DT],
  tr: [0x490, 16],
  cpl: [0x4cb, 1, Clean.SEG],
  efer: [0x4d0, 8, Clean.CR],
  cr4: [0x548, 8, Clean.CR],
  cr3: [0x550, 8, Clean.CR],
  cr0: [0x558, 8, Clean.CR],
  dr7: [0x560, 8, Clean.DR],
  dr6: [0x568, 8, Clean.DR],
  rflags: [0x570, 8],
  rip: [0x578, 8],
  rsp: [0x5d8, 8],
  rax: [0x5f8, 8],
  star: [0x600, 8],
  lstar: [0x608, 8],
  cstar: [0x610, 8],
  sfmask: [0x618, 8],
  kernelGsBase: [0x620, 8],
  sysenterCs: [0x628, 8],
  sysenterEsp: [0x630, 8],
  sysenterEip: [0x638, 8],
  cr2: [0x640, 8, Clean.CR2],
  gPat: [0x668, 8, Clean.NPT],
  dbgCtl: [0x670, 8, Clean.LBR],
  brFrom: [0x678, 8, Clean.LBR],
  brTo: [0x680, 8, Clean.LBR],
  lastExcpFrom: [0x688, 8, Clean.LBR],
  lastExcpTo: [0x690, 8, Clean.LBR],
  specCtrl: [0x6e0, 8],
} as const satisfies Record<string, Row>;

export type VmcbField = keyof typeof VMCB_FIELDS;

/** Offset of each field from the VMCB's start. */
export const V = Object.freeze(
  Object.fromEntries(Object.entries(VMCB_FIELDS).map(([name, row]) => [name, row[0]])),
) as { readonly [N in VmcbField]: (typeof VMCB_FIELDS)[N][0] };

/** Bits of int_ctl at 060h. */
export const IntCtl = {
  V_TPR_MASK: 0x0f,
  V_IRQ: 1 << 8,
  V_GIF: 1 << 9,
  V_INTR_PRIO_SHIFT: 16,
  V_INTR_PRIO_MASK: 0xf << 16,
  V_IGN_TPR: 1 << 20,
  V_INTR_MASKING: 1 << 24,
  V_GIF_ENABLE: 1 << 25,
} as const;

/** Bits of int_state at 068h. */
export const IntState = { SHADOW: 1, GUEST_IF: 2 } as const;

/** Bits of the field at 090h. */
export const MiscCtl = { NP: 1, SEV: 2, SEV_ES: 4 } as const;

/** TLB control values at 05Ch (APM 15.16.2). */
export const TlbCtl = { NONE: 0, ALL: 1, ASID: 3, ASID_LOCAL: 7 } as const;

/** Layout of EVENTINJ and EXITINTINFO (APM 15.20). */
export const EventInfo = {
  VECTOR: 0xff,
  TYPE_SHIFT: 8,
  TYPE_MASK: 7 << 8,
  TYPE_INTR: 0 << 8,
  TYPE_NMI: 2 << 8,
  TYPE_EXCEPTION: 3 << 8,
  TYPE_SOFT: 4 << 8,
  ERROR_VALID: 1 << 11,
  VALID: 0x8000_0000,
} as const;

/** Fields that the VMSA of SEV-ES has beyond the save area, as offsets from the VMSA's start (APM vol. 2 table B-4). */
export const VMSA = {
  dr0: 0x180,
  rcx: 0x308,
  rdx: 0x310,
  rbx: 0x318,
  rbp: 0x328,
  rsi: 0x330,
  rdi: 0x338,
  r8: 0x340,
  sevFeatures: 0x3b0,
  xcr0: 0x3e8,
  mxcsr: 0x408,
  ftw: 0x40c,
  fsw: 0x40e,
  fcw: 0x410,
  x87: 0x420,
  xmm: 0x470,
  ymmHigh: 0x570,
  size: 0x670,
} as const;

/** Offset of the state save area in the VMCB: a VMSA field stands at `V.field - SAVE_AREA`. */
export const SAVE_AREA = 0x400;

/** One save area: that of a VMCB, the host's, or a sealed VMSA. A field stands at `V.field - SAVE_AREA` bytes. */
export interface SaveArea {
  readonly words: Int32Array;
  readonly quads: BigUint64Array;
}
/** @param at byte offset in the buffer */
export const saveArea = (buffer: ArrayBufferLike, at: number): SaveArea => ({
  words: new Int32Array(buffer, at, (4096 - SAVE_AREA) / 4),
  quads: new BigUint64Array(buffer, at, (4096 - SAVE_AREA) / 8),
});

/** VMCB offset of a segment slot by the number that `S.segments` gives it. */
export const segmentOffset = (seg: SegmentIndex): number => V.es + 16 * seg;

/** The same as a 32-bit word's number in {@link Vmcb.words}, for what every entry and exit looks at. */
export const W = {
  exitCode: V.exitCode >> 2,
  exitInfo1: V.exitInfo1 >> 2,
  exitInfo2: V.exitInfo2 >> 2,
  exitIntInfo: V.exitIntInfo >> 2,
  exitIntInfoErr: V.exitIntInfoErr >> 2,
  eventInj: V.eventInj >> 2,
  intCtl: V.intCtl >> 2,
  intState: V.intState >> 2,
  /** TLB control in its lowest byte. */
  tlbCtl: V.tlbCtl >> 2,
  clean: V.clean >> 2,
  nextRip: V.nextRip >> 2,
  /** Pause filter threshold, and its count in the upper half. */
  pauseFilter: V.pauseFilterThreshold >> 2,
  /** The length of the instruction's bytes in its lowest byte. */
  insnLen: V.insnLen >> 2,
  cr0: V.cr0 >> 2,
  cr3: V.cr3 >> 2,
  dr6: V.dr6 >> 2,
  rflags: V.rflags >> 2,
} as const;

/** And as a quad's number in {@link Vmcb.quads}. */
export const Q = {
  cr0: V.cr0 >> 3,
  cr2: V.cr2 >> 3,
  cr3: V.cr3 >> 3,
  nextRip: V.nextRip >> 3,
  rip: V.rip >> 3,
  rsp: V.rsp >> 3,
  rax: V.rax >> 3,
} as const;

/**
 * One VMCB in host physical memory. Numbers are unsigned; 64-bit fields are `bigint`. The views are windows on the page: indices that are
 * constants cost nothing, and from typed array to typed array no bigint is made on the way.
 */
export class Vmcb {
  readonly pa: number;
  readonly words: Int32Array;
  readonly quads: BigUint64Array;
  readonly bytes: Uint8Array;
  readonly halves: Uint16Array;
  /** The state save area. */
  readonly save: SaveArea;

  /** @param pa host physical address, page aligned */
  constructor(memory: PhysicalMemory, pa: number) {
    this.pa = pa;
    const { buffer } = memory.memory;
    const at = memory.offset(pa, 4096);
    this.words = new Int32Array(buffer, at, 1024);
    this.quads = new BigUint64Array(buffer, at, 512);
    this.bytes = new Uint8Array(buffer, at, 4096);
    this.halves = new Uint16Array(buffer, at, 2048);
    this.save = saveArea(buffer, at + SAVE_AREA);
  }
  get8(offset: number): number {
    return this.bytes[offset];
  }
  get16(offset: number): number {
    return this.halves[offset >> 1];
  }
  get32(offset: number): number {
    return this.words[offset >> 2] >>> 0;
  }
  get64(offset: number): bigint {
    return this.quads[offset >> 3];
  }
  set8(offset: number, value: number): void {
    this.bytes[offset] = value;
  }
  set16(offset: number, value: number): void {
    this.halves[offset >> 1] = value;
  }
  set32(offset: number, value: number): void {
    this.words[offset >> 2] = value;
  }
  set64(offset: number, value: bigint): void {
    this.quads[offset >> 3] = value;
  }
  /** Copies a 64-bit field to two words, without a bigint on the way; true if they differed. */
  copyOut(offset: number, to: Int32Array, word: number): boolean {
    const { words } = this;
    const low = words[offset >> 2];
    const high = words[(offset >> 2) + 1];
    if (to[word] === low && to[word + 1] === high) return false;
    to[word] = low;
    to[word + 1] = high;
    return true;
  }
  isZero64(offset: number): boolean {
    return (this.words[offset >> 2] | this.words[(offset >> 2) + 1]) === 0;
  }
  /** Physical address of a page in a 64-bit field. */
  address(offset: number): number {
    return (this.words[(offset >> 2) + 1] >>> 0) * 2 ** 32 + ((this.words[offset >> 2] & ~0xfff) >>> 0);
  }
  /** Sets bits of a 32-bit field. */
  or32(offset: number, bits: number): void {
    this.set32(offset, this.get32(offset) | bits);
  }
  /** Clears bits of a 32-bit field. */
  andNot32(offset: number, bits: number): void {
    this.set32(offset, this.get32(offset) & ~bits);
  }
  /** Says that a clean-bit group was changed. */
  markDirty(group: number): void {
    this.andNot32(V.clean, 1 << group);
  }
  /** Sets or clears an intercept by its bit number (word * 32 + bit). */
  setIntercept(bit: number, on: boolean): void {
    if (this.hasIntercept(bit) === on) return;
    const offset = (bit >>> 5) * 4;
    if (on) this.or32(offset, 1 << (bit & 31));
    else this.andNot32(offset, 1 << (bit & 31));
    this.markDirty(Clean.INTERCEPTS);
  }
  hasIntercept(bit: number): boolean {
    return (this.get32((bit >>> 5) * 4) & (1 << (bit & 31))) !== 0;
  }
  /** All bytes zero. */
  clear(): void {
    this.bytes.fill(0);
  }
  /** A field by name, whatever its size (for reports); a segment slot gives its base. */
  field(name: VmcbField): bigint {
    const [offset, size] = VMCB_FIELDS[name];
    if (size === 1) return BigInt(this.get8(offset));
    if (size === 2) return BigInt(this.get16(offset));
    if (size === 4) return BigInt(this.get32(offset));
    return this.get64(size === 16 ? offset + 8 : offset);
  }
}
