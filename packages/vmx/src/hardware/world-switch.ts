/**
 * The world switch: what VM entry and exit move beyond the fields that live in the state block anyway (vmcs.ts).
 * Manual: SDM vol. 3 26.3.2 (loading guest state), 27.3 (saving it), 27.5 (loading host state).
 */
import { Attrib, type PhysicalMemory, type ProcessorApi, S as stateLayout } from '@tskvm/emulator';
import {
  EntryCtl as entryControls,
  ExitCtl as exitControls,
  Interruptibility as interruptibilityBits,
  PendingDebug,
  Secondary as secondaryControls,
} from './bits.ts';
import { F, type Vmcs, Word as vmcsWords } from './vmcs.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const S = stateLayout;
const ExitCtl = exitControls;
const EntryCtl = entryControls;
const Secondary = secondaryControls;
const Interruptibility = interruptibilityBits;

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
/** Words of the state block. */
const B = {
  ss: word(S.segments) + 8,
  efer: word(S.efer),
  cr0: word(S.cr0),
  cr3: word(S.cr3),
  cr4: word(S.cr4),
  rflags: word(S.rflags),
  dr7: word(S.dr7),
  debugctl: word(S.debugctl),
  pat: word(S.pat),
  pdpte: word(S.pdpte),
  /** CPL, shadow, NMI blocking and activity: a byte each. */
  status: word(S.cpl),
} as const;
const DPL_SHIFT = 16 + Attrib.dplShift;

/** Controls that decide what is switched. */
export interface SwitchControls {
  secondary: number;
  exit: number;
  entry: number;
}

export class WorldSwitch {
  readonly #block: Int32Array;
  readonly #processor: ProcessorApi;
  readonly #memory: PhysicalMemory;
  readonly #vmcs: Vmcs;

  constructor(processor: ProcessorApi, memory: PhysicalMemory, vmcs: Vmcs) {
    this.#block = vmcs.block;
    this.#processor = processor;
    this.#memory = memory;
    this.#vmcs = vmcs;
  }

  // Entry

  /** Loads guest state (26.3.2); MSR areas, events and the TLB are the caller's. */
  loadGuest({ entry, secondary }: SwitchControls): void {
    const block = this.#block;
    const { words } = this.#vmcs;
    // ET is always 1 and the host runs with caches on: that is what the bits that entry keeps hold.
    block[B.cr0] = (block[B.cr0] & ~CR0_KEPT) | CR0_ET;
    if ((entry & EntryCtl.loadDebug) !== 0) {
      block[B.dr7] = words[Word.dr7];
      block[B.dr7 + 1] = words[Word.dr7 + 1];
      block[B.debugctl] = words[Word.debugctl];
      block[B.debugctl + 1] = words[Word.debugctl + 1];
    }
    if ((entry & EntryCtl.loadPat) !== 0) {
      block[B.pat] = words[Word.pat];
      block[B.pat + 1] = words[Word.pat + 1];
    }
    if ((entry & EntryCtl.loadEfer) !== 0) {
      block[B.efer] = words[Word.efer];
      block[B.efer + 1] = words[Word.efer + 1];
    } else this.#derivedEfer(entry);
    if ((secondary & Secondary.ept) === 0) this.#loadPdptes();
    // CPL is the DPL of SS (SDM 24.4.1), in virtual-8086 mode too; shadow, NMI blocking and activity stand behind it.
    const blocking = words[Word.interruptibility];
    const nmi = (blocking & Interruptibility.nmi) !== 0 ? 1 : 0;
    block[B.status] =
      ((block[B.ss] >> DPL_SHIFT) & 3) | ((blocking & 3) << 8) | (nmi << 16) | (words[Word.activity] << 24);
  }

  /** Without "load IA32_EFER" only LMA, and with PG LME, follow "IA-32e mode guest" (26.3.2.1). */
  #derivedEfer(entry: number): void {
    const block = this.#block;
    const paging = (block[B.cr0] & CR0_PG) !== 0;
    const long = (entry & EntryCtl.ia32e) !== 0;
    let efer = block[B.efer] & ~EFER_LMA;
    if (long) efer |= EFER_LMA;
    if (paging) efer = long ? efer | EFER_LME : efer & ~EFER_LME;
    block[B.efer] = efer;
  }

  #loadPdptes(): void {
    const block = this.#block;
    const pae = (block[B.cr0] & CR0_PG) !== 0 && (block[B.cr4] & CR4_PAE) !== 0;
    if (!pae || (block[B.efer] & EFER_LMA) !== 0) return;
    const table = (block[B.cr3] & 0xffffffe0) >>> 0;
    if (!this.#memory.contains(table, 32)) return;
    const from = this.#memory.offset(table, 32) / 4;
    for (let i = 0; i < 8; i++) block[B.pdpte + i] = this.#vmcs.u32[from + i];
  }

  // Exit

  /** Saves guest state (27.3). */
  saveGuest({ exit, entry, secondary }: SwitchControls): void {
    const block = this.#block;
    const { words } = this.#vmcs;
    const status = block[B.status];
    block[B.ss] = (block[B.ss] & ~(3 << DPL_SHIFT)) | ((status & 3) << DPL_SHIFT);
    if ((exit & ExitCtl.saveDebug) !== 0) {
      words[Word.dr7] = block[B.dr7];
      words[Word.dr7 + 1] = block[B.dr7 + 1];
      words[Word.debugctl] = block[B.debugctl];
      words[Word.debugctl + 1] = block[B.debugctl + 1];
    }
    if ((exit & ExitCtl.savePat) !== 0) {
      words[Word.pat] = block[B.pat];
      words[Word.pat + 1] = block[B.pat + 1];
    }
    if ((exit & ExitCtl.saveEfer) !== 0) {
      words[Word.efer] = block[B.efer];
      words[Word.efer + 1] = block[B.efer + 1];
    }
    if ((secondary & Secondary.unrestrictedGuest) !== 0) this.#saveLongMode(entry);
    const nmi = (status & 0xff_0000) !== 0 ? Interruptibility.nmi : 0;
    words[Word.interruptibility] = ((status >> 8) & 3) | nmi;
    words[Word.activity] = status >>> 24;
    words[Word.pendingDebug] =
      (status & 0xff00) === 0 && this.#processor.pendingDebug === 0n ? 0 : this.#pending(status);
  }

  /** "IA-32e mode guest" follows EFER.LMA (27.2, IA32_VMX_MISC bit 5). */
  #saveLongMode(entry: number): void {
    const long = (this.#block[B.efer] & EFER_LMA) !== 0;
    if (long === ((entry & EntryCtl.ia32e) !== 0)) return;
    this.#vmcs.write32(F.VM_ENTRY_CONTROLS, (entry ^ EntryCtl.ia32e) >>> 0);
  }

  /** A trap that MOV SS holds back stays pending across the exit (27.3.4). */
  #pending(status: number): number {
    const processor = this.#processor;
    let pending = (status & 0xff00) !== 0 && this.#stepping() ? PENDING_BS : 0;
    if (processor.pendingDebug !== 0n) {
      pending |= Number(processor.pendingDebug & 0xfn) | Number(PendingDebug.enabledBreakpoint);
      processor.pendingDebug = 0n;
    }
    return pending;
  }
  #stepping(): boolean {
    const block = this.#block;
    return (block[B.rflags] & RFLAGS_TF) !== 0 && (block[B.debugctl] & DEBUGCTL_BTF) === 0;
  }

  /** What an exit sets at once: the registers that the next host instruction could not do without (27.5). */
  loadHost({ exit }: SwitchControls): void {
    const block = this.#block;
    const { words } = this.#vmcs;
    block[B.dr7] = 0x400;
    block[B.debugctl] = 0;
    if ((exit & ExitCtl.loadPat) !== 0) {
      block[B.pat] = words[Word.hostPat];
      block[B.pat + 1] = words[Word.hostPat + 1];
    }
    if ((exit & ExitCtl.loadEfer) !== 0) {
      block[B.efer] = words[Word.hostEfer];
      block[B.efer + 1] = words[Word.hostEfer + 1];
    } else this.#hostEfer(exit);
    block[B.status] = 0;
  }
  /** Only LMA and LME follow the size of the host (27.5.1). */
  #hostEfer(exit: number): void {
    const block = this.#block;
    const long = EFER_LMA | EFER_LME;
    block[B.efer] = (exit & ExitCtl.host64) !== 0 ? block[B.efer] | long : block[B.efer] & ~long;
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
