/**
 * The world switch: guest and host state between the current VMCS and the processor's state block.
 * Manual: SDM vol. 3 26.3.2 (loading guest state), 27.3 (saving it), 27.5 (loading host state).
 *
 * Guest fields lie in the VMCS at the state block's distances, so that both directions are one loop over a list of words. The lists
 * follow from the controls and are made anew when those were written; no bigint is made on the way.
 */
import { Attrib, type PhysicalMemory, type ProcessorApi, S } from '@tskvm/emulator';
import { EntryCtl, ExitCtl, Interruptibility, PendingDebug, Secondary } from './bits.ts';
import { F, GUEST_AREA, type Vmcs } from './vmcs.ts';

const word = (stateOffset: number): number => stateOffset >> 2;
/** CR0 bits that entry and exit leave alone: ET, NW, CD and the reserved ones (SDM 26.3.2.1). */
const CR0_KEPT = 0x7ffaffd0;
const EFER_LMA = 0x400;
const EFER_LME = 0x100;
const CR0_PG = 0x80000000 | 0;
const CR4_PAE = 0x20;
const RFLAGS_TF = 0x100;
const DEBUGCTL_BTF = 2;
const SS_WORD = word(S.segments) + 8;
const DPL_SHIFT = 16 + Attrib.dplShift;

/** Controls that decide what is switched. */
export interface SwitchControls {
  secondary: number;
  exit: number;
  entry: number;
}
/** A run of the state block: offset and length in bytes. */
type Range = readonly [number, number];
const SEGMENTS: Range = [S.segments, 160];
const DEBUG: readonly Range[] = [
  [S.dr7, 8],
  [S.debugctl, 8],
];
const ALWAYS: readonly Range[] = [[S.gpr + 32, 8], [S.rip, 16], SEGMENTS, [S.cr0, 8], [S.cr3, 16], [S.sysenterCs, 24]];
const PAT: Range = [S.pat, 8];
const EFER: Range = [S.efer, 8];
const PDPTES: Range = [S.pdpte, 32];

function words(ranges: readonly Range[]): Int32Array<ArrayBuffer> {
  const list: number[] = [];
  for (const [offset, bytes] of ranges) for (let at = 0; at < bytes; at += 4) list.push(word(offset + at));
  return Int32Array.from(list);
}

export class WorldSwitch {
  readonly #u32: Int32Array;
  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  readonly #vmcs: Vmcs;
  /** Word index of the state block. */
  readonly #block: number;
  #loadWords = new Int32Array(0);
  #saveWords = new Int32Array(0);
  #hostWords = new Int32Array(0);
  #hostValues = new Int32Array(0);

  constructor(processor: ProcessorApi, memory: PhysicalMemory, vmcs: Vmcs) {
    this.#u32 = new Int32Array(memory.memory.buffer);
    this.#processor = processor;
    this.#memory = memory;
    this.#vmcs = vmcs;
    this.#block = processor.state.base >> 2;
  }

  /** Makes the lists; call after a control or host field was written or another VMCS became current. */
  prepare(c: SwitchControls): void {
    const ept = (c.secondary & Secondary.ept) !== 0;
    const load = [...ALWAYS];
    if (c.entry & EntryCtl.loadDebug) load.push(...DEBUG);
    if (c.entry & EntryCtl.loadPat) load.push(PAT);
    if (c.entry & EntryCtl.loadEfer) load.push(EFER);
    if (ept) load.push(PDPTES);
    const save = [...ALWAYS];
    if (c.exit & ExitCtl.saveDebug) save.push(...DEBUG);
    if (c.exit & ExitCtl.savePat) save.push(PAT);
    if (c.exit & ExitCtl.saveEfer) save.push(EFER);
    if (ept) save.push(PDPTES);
    this.#loadWords = words(load);
    this.#saveWords = words(save);
    this.#buildHost(c.exit);
  }

  /** Word of the guest area such that adding a state block word gives the same register. */
  get #area(): number {
    return (this.#vmcs.base + GUEST_AREA - S.segments) / 4;
  }

  // Entry

  /** Loads guest state (26.3.2); MSR areas, events and the TLB are the caller's. */
  loadGuest(c: SwitchControls): void {
    const area = this.#area;
    const block = this.#block;
    const u32 = this.#u32;
    const list = this.#loadWords;
    const cr0 = block + word(S.cr0);
    const kept = u32[cr0] & CR0_KEPT;
    for (let i = 0; i < list.length; i++) u32[block + list[i]] = u32[area + list[i]];
    u32[cr0] = (u32[cr0] & ~CR0_KEPT) | kept;
    if (!(c.entry & EntryCtl.loadEfer)) this.#loadEfer(c.entry);
    if (!(c.secondary & Secondary.ept)) this.#loadPdptes();
    this.#loadNonRegister();
  }

  #loadEfer(entry: number): void {
    const at = this.#block + word(S.efer);
    const paging = (this.#u32[this.#block + word(S.cr0)] & CR0_PG) !== 0;
    const long = (entry & EntryCtl.ia32e) !== 0;
    let efer = this.#u32[at] & ~EFER_LMA;
    if (long) efer |= EFER_LMA;
    if (paging) efer = long ? efer | EFER_LME : efer & ~EFER_LME;
    this.#u32[at] = efer;
  }

  #loadPdptes(): void {
    const u32 = this.#u32;
    const block = this.#block;
    const pae = (u32[block + word(S.cr0)] & CR0_PG) !== 0 && (u32[block + word(S.cr4)] & CR4_PAE) !== 0;
    if (!pae || u32[block + word(S.efer)] & EFER_LMA) return;
    const table = (u32[block + word(S.cr3)] & 0xffffffe0) >>> 0;
    if (!this.#memory.contains(table, 32)) return;
    const from = this.#memory.offset(table, 32) / 4;
    for (let i = 0; i < 8; i++) u32[block + word(S.pdpte) + i] = u32[from + i];
  }

  #loadNonRegister(): void {
    const v = this.#vmcs;
    const { view, base } = this.#processor.state;
    const blocking = v.read32(F.GUEST_INTERRUPTIBILITY_INFO);
    // CPL is the DPL of SS (SDM 24.4.1), in virtual-8086 mode too.
    view.setUint8(base + S.cpl, (this.#u32[this.#block + SS_WORD] >> DPL_SHIFT) & 3);
    view.setUint8(base + S.shadow, blocking & 3);
    view.setUint8(base + S.nmiBlocked, blocking & Interruptibility.nmi ? 1 : 0);
    view.setUint8(base + S.activity, v.read32(F.GUEST_ACTIVITY_STATE));
  }

  // Exit

  /** Saves guest state (27.3). */
  saveGuest(c: SwitchControls): void {
    const area = this.#area;
    const block = this.#block;
    const u32 = this.#u32;
    const list = this.#saveWords;
    for (let i = 0; i < list.length; i++) u32[area + list[i]] = u32[block + list[i]];
    const { view, base } = this.#processor.state;
    const cpl = view.getUint8(base + S.cpl);
    u32[area + SS_WORD] = (u32[area + SS_WORD] & ~(3 << DPL_SHIFT)) | (cpl << DPL_SHIFT);
    if (c.secondary & Secondary.unrestrictedGuest) this.#saveLongMode(c.entry);
    this.#saveNonRegister();
  }

  /** "IA-32e mode guest" follows EFER.LMA (27.2, IA32_VMX_MISC bit 5). */
  #saveLongMode(entry: number): void {
    const long = (this.#u32[this.#block + word(S.efer)] & EFER_LMA) !== 0;
    if (long === ((entry & EntryCtl.ia32e) !== 0)) return;
    this.#vmcs.write32(F.VM_ENTRY_CONTROLS, (entry ^ EntryCtl.ia32e) >>> 0);
  }

  #saveNonRegister(): void {
    const v = this.#vmcs;
    const { view, base } = this.#processor.state;
    const shadow = view.getUint8(base + S.shadow) & 3;
    const nmi = view.getUint8(base + S.nmiBlocked) ? Interruptibility.nmi : 0;
    v.saveWord(F.GUEST_INTERRUPTIBILITY_INFO, shadow | nmi);
    v.saveWord(F.GUEST_ACTIVITY_STATE, view.getUint8(base + S.activity));
    // A trap that MOV SS holds back stays pending across the exit (27.3.4).
    v.writeWords(F.GUEST_PENDING_DBG_EXCEPTIONS, shadow !== 0 && this.#stepping() ? Number(PendingDebug.bs) : 0, 0);
  }
  #stepping(): boolean {
    const debugctl = this.#u32[this.#block + word(S.debugctl)];
    return (this.#u32[this.#block + word(S.rflags)] & RFLAGS_TF) !== 0 && !(debugctl & DEBUGCTL_BTF);
  }

  /** Loads host state (27.5): all of it is constant while no host field is written. */
  loadHost(c: SwitchControls): void {
    const u32 = this.#u32;
    const block = this.#block;
    const at = this.#hostWords;
    const values = this.#hostValues;
    const kept = u32[block + word(S.cr0)] & CR0_KEPT;
    for (let i = 0; i < at.length; i++) u32[block + at[i]] = values[i];
    u32[block + word(S.cr0)] |= kept;
    if (!(c.exit & ExitCtl.loadEfer)) this.#hostEfer(c.exit);
    // cpl, shadow, nmiBlocked and activity stand in one word.
    u32[block + word(S.cpl)] = 0;
  }

  /** Only LMA and LME follow the size of the host (27.5.1). */
  #hostEfer(exit: number): void {
    const at = this.#block + word(S.efer);
    const long = EFER_LMA | EFER_LME;
    this.#u32[at] = exit & ExitCtl.host64 ? this.#u32[at] | long : this.#u32[at] & ~long;
  }

  #buildHost(exit: number): void {
    const list: number[] = [];
    const put = (stateOffset: number, low: number, high = 0): void => {
      list.push(word(stateOffset), low, word(stateOffset) + 1, high);
    };
    const field = (stateOffset: number, encoding: number): void =>
      put(stateOffset, this.#vmcs.readLow(encoding), this.#vmcs.readHigh(encoding));
    this.#hostSegments((exit & ExitCtl.host64) !== 0, put);
    put(S.cr0, this.#vmcs.readLow(F.HOST_CR0) & ~CR0_KEPT);
    field(S.cr3, F.HOST_CR3);
    field(S.cr4, F.HOST_CR4);
    put(S.sysenterCs, this.#vmcs.read32(F.HOST_IA32_SYSENTER_CS));
    field(S.sysenterEsp, F.HOST_IA32_SYSENTER_ESP);
    field(S.sysenterEip, F.HOST_IA32_SYSENTER_EIP);
    put(S.dr7, 0x400);
    put(S.debugctl, 0);
    if (exit & ExitCtl.loadPat) field(S.pat, F.HOST_IA32_PAT);
    if (exit & ExitCtl.loadEfer) field(S.efer, F.HOST_IA32_EFER);
    field(S.rip, F.HOST_RIP);
    field(S.gpr + 32, F.HOST_RSP);
    put(S.rflags, 2);
    this.#hostWords = Int32Array.from(list.filter((_, i) => i % 2 === 0));
    this.#hostValues = Int32Array.from(list.filter((_, i) => i % 2 === 1));
  }

  /** Hidden parts of the host's segments are fixed (27.5.2). */
  #hostSegments(long: boolean, put: (stateOffset: number, low: number, high?: number) => void): void {
    const v = this.#vmcs;
    const slot = (index: number, selector: number, attrib: number, limit: number, base: number): void => {
      put(S.segments + 16 * index, selector | (attrib << 16), limit);
      put(S.segments + 16 * index + 8, base < 0 ? 0 : v.readLow(base), base < 0 ? 0 : v.readHigh(base));
    };
    const bases = [-1, -1, -1, -1, F.HOST_FS_BASE, F.HOST_GS_BASE];
    for (let i = 0; i < 6; i++) {
      const selector = v.read16(F.HOST_ES_SELECTOR + 2 * i);
      const code = 0x89b | (long ? Attrib.L : Attrib.DB);
      const attrib = i === 1 ? code : selector === 0 ? Attrib.unusable : 0xc93;
      slot(i, selector, attrib, -1, bases[i]);
    }
    slot(6, 0, 0, 0xffff, F.HOST_GDTR_BASE);
    slot(7, 0, Attrib.unusable, 0, -1);
    slot(8, 0, 0, 0xffff, F.HOST_IDTR_BASE);
    slot(9, v.read16(F.HOST_TR_SELECTOR), 0x8b, 0x67, F.HOST_TR_BASE);
  }
}
