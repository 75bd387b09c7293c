/**
 * The world switch: guest and host state between the current VMCS and the processor's state block.
 * Manual: SDM vol. 3 26.3.2 (loading guest state), 27.3 (saving it), 27.5 (loading host state).
 *
 * Everything is copied in 32-bit words, so that no bigint is made on the way.
 */
import { Attrib, type PhysicalMemory, type ProcessorApi, S } from '@tskvm/emulator';
import { EntryCtl, ExitCtl, Interruptibility, PendingDebug, Secondary } from './bits.ts';
import { F, GUEST_AREA, type Vmcs } from './vmcs.ts';

const word = (stateOffset: number): number => stateOffset >> 2;
/** Words of the ten segment slots. */
const SEGMENT_WORDS = 40;
/** CR0 bits that entry and exit leave alone: ET, NW, CD and the reserved ones (SDM 26.3.2.1). */
const CR0_KEPT = 0x7ffaffd0;
const EFER_LMA = 0x400;
const EFER_LME = 0x100;
const CR0_PG = 0x80000000 | 0;
const CR4_PAE = 0x20;
const RFLAGS_TF = 0x100;
const DEBUGCTL_BTF = 2;

/** Controls that decide what is switched. */
export interface SwitchControls {
  secondary: number;
  exit: number;
  entry: number;
}

export class WorldSwitch {
  readonly #u32: Int32Array;
  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  readonly #vmcs: Vmcs;
  /** Word index of the state block. */
  readonly #block: number;
  /** Segments as a VM exit leaves them, rebuilt when a host field was written. */
  readonly #hostSegments = new Int32Array(SEGMENT_WORDS);

  constructor(processor: ProcessorApi, memory: PhysicalMemory, vmcs: Vmcs) {
    this.#u32 = new Int32Array(memory.memory.buffer);
    this.#processor = processor;
    this.#memory = memory;
    this.#vmcs = vmcs;
    this.#block = processor.state.base >> 2;
  }

  /** Word of the guest area such that adding a state block word gives the same register. */
  get #area(): number {
    return (this.#vmcs.base + GUEST_AREA - S.segments) / 4;
  }
  #copy(to: number, from: number, stateOffset: number, words: number): void {
    const u32 = this.#u32;
    const at = word(stateOffset);
    for (let i = at; i < at + words; i++) u32[to + i] = u32[from + i];
  }

  // Entry

  /**
   * Loads guest state (26.3.2); MSR areas, events and the TLB are the caller's.
   * @returns true if a segment, CPL or RFLAGS.VM differs from what the processor holds
   */
  loadGuest(c: SwitchControls): boolean {
    const area = this.#area;
    const block = this.#block;
    const u32 = this.#u32;
    const segments = this.#loadSegments(area);
    const cr0 = block + word(S.cr0);
    u32[cr0] = (u32[area + word(S.cr0)] & ~CR0_KEPT) | (u32[cr0] & CR0_KEPT);
    u32[cr0 + 1] = u32[area + word(S.cr0) + 1];
    this.#copy(block, area, S.cr3, 4);
    this.#copy(block, area, S.sysenterCs, 6);
    if (c.entry & EntryCtl.loadDebug) {
      this.#copy(block, area, S.dr7, 2);
      this.#copy(block, area, S.debugctl, 2);
    }
    if (c.entry & EntryCtl.loadPat) this.#copy(block, area, S.pat, 2);
    this.#loadEfer(c.entry, area);
    if (c.secondary & Secondary.ept) this.#copy(block, area, S.pdpte, 8);
    else this.#loadPdptes();
    this.#loadRipFlags();
    this.#loadNonRegister();
    return segments;
  }

  #loadSegments(area: number): boolean {
    const u32 = this.#u32;
    const at = word(S.segments);
    let changed = false;
    for (let i = at; i < at + SEGMENT_WORDS; i++) {
      const value = u32[area + i];
      if (u32[this.#block + i] !== value) {
        u32[this.#block + i] = value;
        changed = true;
      }
    }
    const { state } = this.#processor;
    // CPL is the DPL of SS (SDM 24.4.1), in virtual-8086 mode too.
    const cpl = (u32[area + at + 8] >> (16 + Attrib.dplShift)) & 3;
    if (state.view.getUint8(state.base + S.cpl) !== cpl) changed = true;
    state.view.setUint8(state.base + S.cpl, cpl);
    return changed;
  }

  #loadEfer(entry: number, area: number): void {
    const at = this.#block + word(S.efer);
    if (entry & EntryCtl.loadEfer) {
      this.#copy(this.#block, area, S.efer, 2);
      return;
    }
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
    const memory = this.#memory;
    const table = (u32[block + word(S.cr3)] & 0xffffffe0) >>> 0;
    if (!memory.contains(table, 32)) return;
    const from = memory.offset(table, 32) / 4;
    for (let i = 0; i < 8; i++) u32[block + word(S.pdpte) + i] = u32[from + i];
  }

  #loadRipFlags(): void {
    const v = this.#vmcs;
    const u32 = this.#u32;
    const block = this.#block;
    u32[block + word(S.rip)] = v.readLow(F.GUEST_RIP);
    u32[block + word(S.rip) + 1] = v.readHigh(F.GUEST_RIP);
    u32[block + word(S.gpr) + 8] = v.readLow(F.GUEST_RSP);
    u32[block + word(S.gpr) + 9] = v.readHigh(F.GUEST_RSP);
    u32[block + word(S.rflags)] = v.readLow(F.GUEST_RFLAGS);
    u32[block + word(S.rflags) + 1] = 0;
  }

  #loadNonRegister(): void {
    const v = this.#vmcs;
    const { state } = this.#processor;
    const blocking = v.read32(F.GUEST_INTERRUPTIBILITY_INFO);
    state.view.setUint8(state.base + S.shadow, blocking & 3);
    state.view.setUint8(state.base + S.nmiBlocked, blocking & Interruptibility.nmi ? 1 : 0);
    state.view.setUint8(state.base + S.activity, v.read32(F.GUEST_ACTIVITY_STATE));
  }

  // Exit

  /** Saves guest state (27.3). */
  saveGuest(c: SwitchControls): void {
    const area = this.#area;
    const block = this.#block;
    this.#saveSegments(area);
    this.#copy(area, block, S.cr0, 2);
    this.#copy(area, block, S.cr3, 4);
    this.#copy(area, block, S.sysenterCs, 6);
    if (c.exit & ExitCtl.saveDebug) {
      this.#copy(area, block, S.dr7, 2);
      this.#copy(area, block, S.debugctl, 2);
    }
    if (c.exit & ExitCtl.savePat) this.#copy(area, block, S.pat, 2);
    if (c.exit & ExitCtl.saveEfer) this.#copy(area, block, S.efer, 2);
    if (c.secondary & Secondary.ept) this.#copy(area, block, S.pdpte, 8);
    if (c.secondary & Secondary.unrestrictedGuest) this.#saveLongMode(c.entry);
    this.#saveRipFlags();
    this.#saveNonRegister();
  }

  #saveSegments(area: number): void {
    this.#copy(area, this.#block, S.segments, SEGMENT_WORDS);
    const { state } = this.#processor;
    const u32 = this.#u32;
    const ss = area + word(S.segments) + 8;
    const cpl = state.view.getUint8(state.base + S.cpl);
    u32[ss] = (u32[ss] & ~(3 << (16 + Attrib.dplShift))) | (cpl << (16 + Attrib.dplShift));
  }

  /** "IA-32e mode guest" follows EFER.LMA (27.2, IA32_VMX_MISC bit 5). */
  #saveLongMode(entry: number): void {
    const long = (this.#u32[this.#block + word(S.efer)] & EFER_LMA) !== 0;
    if (long === ((entry & EntryCtl.ia32e) !== 0)) return;
    this.#vmcs.write32(F.VM_ENTRY_CONTROLS, (entry ^ EntryCtl.ia32e) >>> 0);
  }

  #saveRipFlags(): void {
    const v = this.#vmcs;
    const u32 = this.#u32;
    const block = this.#block;
    v.writeWords(F.GUEST_RIP, u32[block + word(S.rip)], u32[block + word(S.rip) + 1]);
    v.writeWords(F.GUEST_RSP, u32[block + word(S.gpr) + 8], u32[block + word(S.gpr) + 9]);
    v.writeWords(F.GUEST_RFLAGS, u32[block + word(S.rflags)], 0);
  }

  #saveNonRegister(): void {
    const v = this.#vmcs;
    const { state } = this.#processor;
    const shadow = state.view.getUint8(state.base + S.shadow) & 3;
    const nmi = state.view.getUint8(state.base + S.nmiBlocked) ? Interruptibility.nmi : 0;
    v.saveWord(F.GUEST_INTERRUPTIBILITY_INFO, shadow | nmi);
    v.saveWord(F.GUEST_ACTIVITY_STATE, state.view.getUint8(state.base + S.activity));
    const rflags = this.#u32[this.#block + word(S.rflags)];
    const debugctl = this.#u32[this.#block + word(S.debugctl)];
    // A trap that MOV SS holds back stays pending across the exit (27.3.4).
    const held = shadow !== 0 && (rflags & RFLAGS_TF) !== 0 && !(debugctl & DEBUGCTL_BTF);
    v.writeWords(F.GUEST_PENDING_DBG_EXCEPTIONS, held ? Number(PendingDebug.bs) : 0, 0);
  }

  /** Loads host state (27.5). */
  loadHost(c: SwitchControls, hostDirty: boolean): void {
    const v = this.#vmcs;
    const u32 = this.#u32;
    const block = this.#block;
    if (hostDirty) this.#buildHostSegments();
    u32.set(this.#hostSegments, block + word(S.segments));
    const cr0 = block + word(S.cr0);
    u32[cr0] = (v.readLow(F.HOST_CR0) & ~CR0_KEPT) | (u32[cr0] & CR0_KEPT);
    u32[cr0 + 1] = 0;
    this.#hostField(S.cr3, F.HOST_CR3);
    this.#hostField(S.cr4, F.HOST_CR4);
    this.#hostField(S.sysenterEsp, F.HOST_IA32_SYSENTER_ESP);
    this.#hostField(S.sysenterEip, F.HOST_IA32_SYSENTER_EIP);
    u32[block + word(S.sysenterCs)] = v.read32(F.HOST_IA32_SYSENTER_CS);
    u32[block + word(S.dr7)] = 0x400;
    u32[block + word(S.debugctl)] = 0;
    if (c.exit & ExitCtl.loadPat) this.#hostField(S.pat, F.HOST_IA32_PAT);
    this.#hostEfer(c.exit);
    this.#hostField(S.rip, F.HOST_RIP);
    this.#hostField(S.gpr + 32, F.HOST_RSP);
    u32[block + word(S.rflags)] = 2;
    const { state } = this.#processor;
    // cpl, shadow, nmiBlocked and activity stand in one word.
    state.view.setUint32(state.base + S.cpl, 0, true);
  }
  #hostField(stateOffset: number, field: number): void {
    const at = this.#block + word(stateOffset);
    this.#u32[at] = this.#vmcs.readLow(field);
    this.#u32[at + 1] = this.#vmcs.readHigh(field);
  }
  #hostEfer(exit: number): void {
    if (exit & ExitCtl.loadEfer) {
      this.#hostField(S.efer, F.HOST_IA32_EFER);
      return;
    }
    const at = this.#block + word(S.efer);
    const long = EFER_LMA | EFER_LME;
    this.#u32[at] = exit & ExitCtl.host64 ? this.#u32[at] | long : this.#u32[at] & ~long;
  }

  /** Hidden parts of the host's segments are fixed (27.5.2). */
  #buildHostSegments(): void {
    const v = this.#vmcs;
    const out = this.#hostSegments;
    const long = (v.read32(F.VM_EXIT_CONTROLS) & ExitCtl.host64) !== 0;
    const code = 0x89b | (long ? Attrib.L : Attrib.DB);
    const put = (slot: number, selector: number, attrib: number, limit: number, base: number): void => {
      out[slot * 4] = selector | (attrib << 16);
      out[slot * 4 + 1] = limit;
      out[slot * 4 + 2] = base < 0 ? 0 : v.readLow(base);
      out[slot * 4 + 3] = base < 0 ? 0 : v.readHigh(base);
    };
    for (let i = 0; i < 6; i++) {
      const selector = v.read16(F.HOST_ES_SELECTOR + 2 * i);
      const attrib = i === 1 ? code : selector === 0 ? Attrib.unusable : 0xc93;
      put(i, selector, attrib, -1, i === 4 ? F.HOST_FS_BASE : i === 5 ? F.HOST_GS_BASE : -1);
    }
    put(6, 0, 0, 0xffff, F.HOST_GDTR_BASE);
    put(7, 0, Attrib.unusable, 0, -1);
    put(8, 0, 0, 0xffff, F.HOST_IDTR_BASE);
    put(9, v.read16(F.HOST_TR_SELECTOR), 0x8b, 0x67, F.HOST_TR_BASE);
  }
}
