/**
 * The world switch: what VM entry and exit move beyond the fields that live in the state block anyway (vmcs.ts).
 * Manual: SDM vol. 3 26.3.2 (loading guest state), 27.3 (saving it), 27.5 (loading host state).
 */
import { Attrib, type PhysicalMemory, type ProcessorApi, S } from '@tskvm/emulator';
import { EntryCtl, ExitCtl, Interruptibility, PendingDebug, Secondary } from './bits.ts';
import { F, type Vmcs, Word } from './vmcs.ts';

const word = (stateOffset: number): number => stateOffset >> 2;
/** CR0 bits that entry and exit leave alone: ET, NW, CD and the reserved ones (SDM 26.3.2.1). */
const CR0_KEPT = 0x7ffaffd0;
const CR0_ET = 0x10;
const EFER_LMA = 0x400;
const EFER_LME = 0x100;
const CR0_PG = 0x80000000 | 0;
const CR4_PAE = 0x20;
const RFLAGS_TF = 0x100;
const DEBUGCTL_BTF = 2;
const PENDING_BS = Number(PendingDebug.bs);
const SS_WORD = word(S.segments) + 8;
const DPL_SHIFT = 16 + Attrib.dplShift;

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

  constructor(processor: ProcessorApi, memory: PhysicalMemory, vmcs: Vmcs) {
    this.#u32 = new Int32Array(memory.memory.buffer);
    this.#processor = processor;
    this.#memory = memory;
    this.#vmcs = vmcs;
    this.#block = processor.state.base >> 2;
  }

  /** Field (a `Word`) to register. */
  #load(stateOffset: number, field: number): void {
    const from = this.#vmcs.region + field;
    const to = this.#block + word(stateOffset);
    this.#u32[to] = this.#u32[from];
    this.#u32[to + 1] = this.#u32[from + 1];
  }
  /** Register to field. */
  #save(stateOffset: number, field: number): void {
    const to = this.#vmcs.region + field;
    const from = this.#block + word(stateOffset);
    this.#u32[to] = this.#u32[from];
    this.#u32[to + 1] = this.#u32[from + 1];
  }

  // Entry

  /** Loads guest state (26.3.2); MSR areas, events and the TLB are the caller's. */
  loadGuest(c: SwitchControls): void {
    const cr0 = this.#block + word(S.cr0);
    // ET is always 1 and the host runs with caches on: that is what the bits that entry keeps hold.
    this.#u32[cr0] = (this.#u32[cr0] & ~CR0_KEPT) | CR0_ET;
    if (c.entry & EntryCtl.loadDebug) {
      this.#load(S.dr7, Word.dr7);
      this.#load(S.debugctl, Word.debugctl);
    }
    if (c.entry & EntryCtl.loadPat) this.#load(S.pat, Word.pat);
    if (c.entry & EntryCtl.loadEfer) this.#load(S.efer, Word.efer);
    else this.#derivedEfer(c.entry);
    if (!(c.secondary & Secondary.ept)) this.#loadPdptes();
    this.#loadNonRegister();
  }

  /** Without "load IA32_EFER" only LMA, and with PG LME, follow "IA-32e mode guest" (26.3.2.1). */
  #derivedEfer(entry: number): void {
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
    const blocking = v.u32[v.region + Word.interruptibility];
    // CPL is the DPL of SS (SDM 24.4.1), in virtual-8086 mode too.
    view.setUint8(base + S.cpl, (this.#u32[this.#block + SS_WORD] >> DPL_SHIFT) & 3);
    view.setUint8(base + S.shadow, blocking & 3);
    view.setUint8(base + S.nmiBlocked, blocking & Interruptibility.nmi ? 1 : 0);
    view.setUint8(base + S.activity, v.u32[v.region + Word.activity]);
  }

  // Exit

  /** Saves guest state (27.3). */
  saveGuest(c: SwitchControls): void {
    const { view, base } = this.#processor.state;
    const u32 = this.#u32;
    const ss = this.#block + SS_WORD;
    u32[ss] = (u32[ss] & ~(3 << DPL_SHIFT)) | (view.getUint8(base + S.cpl) << DPL_SHIFT);
    if (c.exit & ExitCtl.saveDebug) {
      this.#save(S.dr7, Word.dr7);
      this.#save(S.debugctl, Word.debugctl);
    }
    if (c.exit & ExitCtl.savePat) this.#save(S.pat, Word.pat);
    if (c.exit & ExitCtl.saveEfer) this.#save(S.efer, Word.efer);
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
    v.u32[v.region + Word.interruptibility] = shadow | nmi;
    v.u32[v.region + Word.activity] = view.getUint8(base + S.activity);
    // A trap that MOV SS holds back stays pending across the exit (27.3.4).
    let pending = shadow !== 0 && this.#stepping() ? PENDING_BS : 0;
    if (this.#processor.pendingDebug !== 0n) {
      pending |= Number(this.#processor.pendingDebug & 0xfn) | Number(PendingDebug.enabledBreakpoint);
      this.#processor.pendingDebug = 0n;
    }
    v.u32[v.region + Word.pendingDebug] = pending;
  }
  #stepping(): boolean {
    const debugctl = this.#u32[this.#block + word(S.debugctl)];
    return (this.#u32[this.#block + word(S.rflags)] & RFLAGS_TF) !== 0 && !(debugctl & DEBUGCTL_BTF);
  }

  /** What an exit sets at once: the registers that the next host instruction could not do without (27.5). */
  loadHost(c: SwitchControls): void {
    const u32 = this.#u32;
    u32[this.#block + word(S.dr7)] = 0x400;
    u32[this.#block + word(S.debugctl)] = 0;
    if (c.exit & ExitCtl.loadPat) this.#load(S.pat, Word.hostPat);
    if (c.exit & ExitCtl.loadEfer) this.#load(S.efer, Word.hostEfer);
    else this.#hostEfer(c.exit);
    // cpl, shadow, nmiBlocked and activity stand in one word.
    u32[this.#block + word(S.cpl)] = 0;
  }
  /** Only LMA and LME follow the size of the host (27.5.1). */
  #hostEfer(exit: number): void {
    const at = this.#block + word(S.efer);
    const long = EFER_LMA | EFER_LME;
    this.#u32[at] = exit & ExitCtl.host64 ? this.#u32[at] | long : this.#u32[at] & ~long;
  }
}

/**
 * The rest of the host's state, as words of the state block and their values: what an exit leaves in the registers that the current
 * VMCS's guest fields occupy. It is put there when the VMCS gives them back.
 */
export function hostImage(v: Vmcs): (readonly [stateWord: number, value: number])[] {
  const image: (readonly [number, number])[] = [];
  const put = (stateOffset: number, low: number, high = 0): void => {
    image.push([word(stateOffset), low], [word(stateOffset) + 1, high]);
  };
  const field = (stateOffset: number, encoding: number): void =>
    put(stateOffset, v.readLow(encoding), v.readHigh(encoding));
  hostSegments(v, put);
  put(S.cr0, (v.readLow(F.HOST_CR0) & ~CR0_KEPT) | CR0_ET);
  field(S.cr3, F.HOST_CR3);
  field(S.cr4, F.HOST_CR4);
  put(S.sysenterCs, v.read32(F.HOST_IA32_SYSENTER_CS));
  field(S.sysenterEsp, F.HOST_IA32_SYSENTER_ESP);
  field(S.sysenterEip, F.HOST_IA32_SYSENTER_EIP);
  field(S.rip, F.HOST_RIP);
  field(S.gpr + 32, F.HOST_RSP);
  put(S.rflags, 2);
  return image;
}

/** Hidden parts of the host's segments are fixed (27.5.2). */
function hostSegments(v: Vmcs, put: (stateOffset: number, low: number, high?: number) => void): void {
  const long = (v.read32(F.VM_EXIT_CONTROLS) & ExitCtl.host64) !== 0;
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
