/**
 * The world switch: the copies between a save area (in the VMCB or a VMSA) and the processor's state block.
 * Manual: APM vol. 2 sections 15.5.1 (VMRUN), 15.6 (#VMEXIT), 15.5.2 (VMLOAD, VMSAVE), appendix B.
 *
 * Copies go from typed array to typed array, 64 bits at a time: the compiler makes no bigint on that way.
 */
import { Attrib, CR0, type ProcessorState, S } from '@tskvm/emulator';
import { Clean, SAVE_AREA, type SaveArea, V, VMSA } from './vmcb.ts';

/** Where fields stand in a save area. */
const quad = (offset: number): number => (offset - SAVE_AREA) >> 3;
const A = {
  slots: quad(V.es),
  efer: quad(V.efer),
  cr0: quad(V.cr0),
  cr2: quad(V.cr2),
  cr3: quad(V.cr3),
  cr4: quad(V.cr4),
  dr6: quad(V.dr6),
  dr7: quad(V.dr7),
  rflags: quad(V.rflags),
  rip: quad(V.rip),
  rsp: quad(V.rsp),
  rax: quad(V.rax),
  star: quad(V.star),
  pat: quad(V.gPat),
} as const;
/** The word that has CPL in its upper byte. */
const CPL_WORD = (V.cpl - SAVE_AREA) >> 2;
const SLOT_WORDS = A.slots * 2;

/** Bit 31 of a segment slot's first word: the block's own mark of a null selector. */
const UNUSABLE = Attrib.unusable << 16;
const PRESENT = Attrib.P << 16;

/** VMCB to block: P=0 is how a VMCB says "null selector". True if anything differed. */
function loadSegment(block: Int32Array, to: number, save: Int32Array, from: number, codeOrTable: boolean): boolean {
  const stored = save[from] & 0x0fff_ffff;
  const first = codeOrTable || (stored & PRESENT) !== 0 ? stored : stored | UNUSABLE;
  const same =
    block[to] === first &&
    block[to + 1] === save[from + 1] &&
    block[to + 2] === save[from + 2] &&
    block[to + 3] === save[from + 3];
  if (same) return false;
  block[to] = first;
  block[to + 1] = save[from + 1];
  block[to + 2] = save[from + 2];
  block[to + 3] = save[from + 3];
  return true;
}

/** Block to VMCB; indices in words. */
function saveSegment(to: SaveArea, toWord: number, words: Int32Array, quads: BigUint64Array, fromWord: number): void {
  const first = words[fromWord];
  to.words[toWord] = (first < 0 ? first & ~PRESENT : first) & 0x0fff_ffff;
  to.words[toWord + 1] = words[fromWord + 1];
  to.quads[(toWord >> 1) + 1] = quads[(fromWord >> 1) + 1];
}

const isTable = (slot: number): boolean => slot === 6 || slot === 8;
/** Slots that VMRUN and #VMEXIT move; FS, GS, LDTR and TR are VMLOAD's. */
const VMRUN_SLOTS = [0, 1, 2, 3, 6, 8] as const;
const VMLOAD_SLOTS = [4, 5, 7, 9] as const;
/** STAR LSTAR CSTAR SFMASK KernelGSBase SYSENTER_CS/ESP/EIP stand in one run on both sides. */
const VMLOAD_MSRS = 8;

/** The general registers, which both sides have at their start, less RAX and RSP, which the VMCB has too. */
function copyGprs(to: BigUint64Array, from: BigUint64Array): void {
  to[1] = from[1];
  to[2] = from[2];
  to[3] = from[3];
  to[5] = from[5];
  to[6] = from[6];
  to[7] = from[7];
  to[8] = from[8];
  to[9] = from[9];
  to[10] = from[10];
  to[11] = from[11];
  to[12] = from[12];
  to[13] = from[13];
  to[14] = from[14];
  to[15] = from[15];
}
const PE = Number(CR0.PE);
/** PE is one of them while PG is clear. */
const PLAIN_CR0 = Number(CR0.MP | CR0.EM | CR0.TS | CR0.NE | CR0.WP | CR0.AM);
/** Quad of the block at which the slots start. */
const SLOTS = S.segments >> 3;
const B = {
  rax: S.gpr >> 3,
  rsp: (S.gpr + 32) >> 3,
  rip: S.rip >> 3,
  rflags: S.rflags >> 3,
  efer: S.efer >> 3,
  cr0: S.cr0 >> 3,
  cr2: S.cr2 >> 3,
  cr3: S.cr3 >> 3,
  cr4: S.cr4 >> 3,
  dr6: S.dr6 >> 3,
  dr7: S.dr7 >> 3,
} as const;

/** The copies of one processor. */
export class WorldSwitch {
  readonly #words: Int32Array;
  readonly #quads: BigUint64Array;
  readonly #bytes: Uint8Array;

  constructor(state: ProcessorState) {
    this.#words = new Int32Array(state.view.buffer, state.base, S.size / 4);
    this.#quads = new BigUint64Array(state.view.buffer, state.base, S.size / 8);
    this.#bytes = state.u8;
  }

  /**
   * VMRUN's part of the guest state.
   * @param clean clean-bit groups that may be skipped (0: load all)
   */
  loadGuest(save: SaveArea, clean: number): void {
    const block = this.#quads;
    const from = save.quads;
    this.loadAlways(save);
    if ((clean & (1 << Clean.DR)) === 0) {
      block[B.dr7] = from[A.dr7];
      block[B.dr6] = from[A.dr6];
    }
    if ((clean & (1 << Clean.CR)) === 0) {
      block[B.efer] = from[A.efer];
      block[B.cr4] = from[A.cr4];
      block[B.cr3] = from[A.cr3];
      block[B.cr0] = from[A.cr0];
    }
    if ((clean & SEGMENT_MASK) === SEGMENT_MASK) return;
    this.#loadSegments(save.words, VMRUN_SLOTS);
    this.#bytes[S.cpl] = (save.words[CPL_WORD] >>> 24) & 3;
  }
  /** What no clean bit keeps VMRUN from loading, or none that KVM ever sets (CR2). */
  loadAlways({ quads }: SaveArea): void {
    const block = this.#quads;
    block[B.rflags] = quads[A.rflags];
    block[B.rip] = quads[A.rip];
    block[B.rsp] = quads[A.rsp];
    block[B.rax] = quads[A.rax];
    block[B.cr2] = quads[A.cr2];
  }

  /**
   * The group of the control registers was written. All that has changed is bits of CR0 that no rule of VMRUN reads and that paging and
   * caching do not follow: takes them over. False: it is more, and nothing has happened.
   */
  loadPlainCr0({ words }: SaveArea): boolean {
    const block = this.#words;
    const same =
      words[A.efer * 2] === block[B.efer * 2] &&
      words[A.efer * 2 + 1] === block[B.efer * 2 + 1] &&
      words[A.cr4 * 2] === block[B.cr4 * 2] &&
      words[A.cr4 * 2 + 1] === block[B.cr4 * 2 + 1] &&
      words[A.cr3 * 2] === block[B.cr3 * 2] &&
      words[A.cr3 * 2 + 1] === block[B.cr3 * 2 + 1] &&
      words[A.cr0 * 2 + 1] === block[B.cr0 * 2 + 1];
    const cr0 = words[A.cr0 * 2];
    const plain = cr0 < 0 ? PLAIN_CR0 : PLAIN_CR0 | PE;
    if (!same || ((cr0 ^ block[B.cr0 * 2]) & ~plain) !== 0) return false;
    block[B.cr0 * 2] = cr0;
    return true;
  }

  #loadSegments(save: Int32Array, slots: readonly number[]): boolean {
    let changed = false;
    for (const slot of slots) {
      const to = (S.segments >> 2) + slot * 4;
      const from = SLOT_WORDS + slot * 4;
      if (loadSegment(this.#words, to, save, from, slot === 1 || isTable(slot)) && !isTable(slot)) changed = true;
    }
    return changed;
  }

  /** #VMEXIT's part. */
  saveGuest(save: SaveArea): void {
    this.saveAlways(save);
    this.saveRest(save);
  }
  /** What any instruction may change. */
  saveAlways({ quads }: SaveArea): void {
    const block = this.#quads;
    quads[A.rflags] = block[B.rflags];
    quads[A.rip] = block[B.rip];
    quads[A.rsp] = block[B.rsp];
    quads[A.rax] = block[B.rax];
    quads[A.cr2] = block[B.cr2];
    quads[A.cr0] = block[B.cr0];
    quads[A.dr7] = block[B.dr7];
    quads[A.dr6] = block[B.dr6];
  }
  /** What the processor knows to have changed or not. ES, CS, SS, DS, GDTR and IDTR have the same slots on both sides. */
  saveRest(save: SaveArea): void {
    const block = this.#quads;
    const words = this.#words;
    const to = save.quads;
    to[A.efer] = block[B.efer];
    to[A.cr4] = block[B.cr4];
    to[A.cr3] = block[B.cr3];
    to[A.slots] = block[SLOTS];
    to[A.slots + 1] = block[SLOTS + 1];
    to[A.slots + 2] = block[SLOTS + 2];
    to[A.slots + 3] = block[SLOTS + 3];
    to[A.slots + 4] = block[SLOTS + 4];
    to[A.slots + 5] = block[SLOTS + 5];
    to[A.slots + 6] = block[SLOTS + 6];
    to[A.slots + 7] = block[SLOTS + 7];
    to[A.slots + 12] = block[SLOTS + 12];
    to[A.slots + 13] = block[SLOTS + 13];
    to[A.slots + 16] = block[SLOTS + 16];
    to[A.slots + 17] = block[SLOTS + 17];
    save.words[CPL_WORD] = (save.words[CPL_WORD] & 0x00ff_ffff) | (words[S.cpl >> 2] << 24);
    const marks = words[SEGMENTS] | words[SEGMENTS + 4] | words[SEGMENTS + 8] | words[SEGMENTS + 12];
    if ((marks | words[SEGMENTS + 24] | words[SEGMENTS + 32]) >>> 28 !== 0) this.#saveMarked(save);
  }
  /** A null selector's mark stands in the block alone. */
  #saveMarked(save: SaveArea): void {
    for (const slot of VMRUN_SLOTS) {
      saveSegment(save, SLOT_WORDS + slot * 4, this.#words, this.#quads, SEGMENTS + slot * 4);
    }
  }

  /** The general registers that VMRUN does not load, as the host hands them in. */
  loadGprs(from: BigUint64Array): void {
    copyGprs(this.#quads, from);
  }
  /** All of them and RIP. */
  saveGprs(to: BigUint64Array): void {
    const block = this.#quads;
    copyGprs(to, block);
    to[0] = block[B.rax];
    to[4] = block[B.rsp];
    to[16] = block[B.rip];
  }

  /** VMLOAD (APM 15.5.2). True if FS, GS, LDTR or TR changed. */
  vmload(save: SaveArea): boolean {
    for (let n = 0; n < VMLOAD_MSRS; n += 1) this.#quads[(S.star >> 3) + n] = save.quads[A.star + n];
    return this.#loadSegments(save.words, VMLOAD_SLOTS);
  }

  /** VMSAVE (APM 15.5.2). */
  vmsave(save: SaveArea): void {
    for (let n = 0; n < VMLOAD_MSRS; n += 1) save.quads[A.star + n] = this.#quads[(S.star >> 3) + n];
    for (const slot of VMLOAD_SLOTS) {
      saveSegment(save, SLOT_WORDS + slot * 4, this.#words, this.#quads, SEGMENTS + slot * 4);
    }
  }

  /** G_PAT under nested paging. */
  loadPat(save: SaveArea): void {
    this.#quads[S.pat >> 3] = save.quads[A.pat];
  }
  savePat(save: SaveArea): void {
    save.quads[A.pat] = this.#quads[S.pat >> 3];
  }

  /** What only a VMSA holds: the other general registers, DR0-3, XCR0 and the FPU (APM table B-4). */
  loadProtected({ words }: SaveArea): void {
    for (const [at, to, count] of PROTECTED) {
      for (let n = 0; n < count; n += 1) this.#words[(to >> 2) + n] = words[(at >> 2) + n];
    }
    for (let n = 0; n < 16; n += 1) this.#ymm(words, n, true);
    const bytes = new Uint8Array(words.buffer, words.byteOffset);
    for (const [at, to] of FPU_WORDS) this.#bytes.set(bytes.subarray(at, at + 2), to);
    for (let n = 0; n < 8; n += 1)
      this.#bytes.set(bytes.subarray(VMSA.x87 + n * 10, VMSA.x87 + n * 10 + 10), S.fpr + n * 16);
  }

  saveProtected({ words }: SaveArea): void {
    for (const [at, from, count] of PROTECTED) {
      for (let n = 0; n < count; n += 1) words[(at >> 2) + n] = this.#words[(from >> 2) + n];
    }
    for (let n = 0; n < 16; n += 1) this.#ymm(words, n, false);
    const bytes = new Uint8Array(words.buffer, words.byteOffset);
    for (const [at, from] of FPU_WORDS) bytes.set(this.#bytes.subarray(from, from + 2), at);
    for (let n = 0; n < 8; n += 1)
      bytes.set(this.#bytes.subarray(S.fpr + n * 16, S.fpr + n * 16 + 10), VMSA.x87 + n * 10);
  }

  /** The VMSA keeps XMM and the upper halves of YMM apart. */
  #ymm(save: Int32Array, n: number, load: boolean): void {
    for (let word = 0; word < 8; word += 1) {
      const at = word < 4 ? VMSA.xmm + n * 16 + word * 4 : VMSA.ymmHigh + n * 16 + (word - 4) * 4;
      const inBlock = (S.ymm + n * 32 + word * 4) >> 2;
      if (load) this.#words[inBlock] = save[at >> 2];
      else save[at >> 2] = this.#words[inBlock];
    }
  }
}

/** Words in the block at which the segment slots start. */
const SEGMENTS = S.segments >> 2;
const SEGMENT_MASK = (1 << Clean.SEG) | (1 << Clean.DT);
/** [VMSA offset, state offset, words] */
const PROTECTED = [
  [VMSA.rcx, S.gpr + 8, 2],
  [VMSA.rdx, S.gpr + 16, 2],
  [VMSA.rbx, S.gpr + 24, 2],
  [VMSA.rbp, S.gpr + 40, 2],
  [VMSA.rsi, S.gpr + 48, 2],
  [VMSA.rdi, S.gpr + 56, 2],
  [VMSA.r8, S.gpr + 64, 16],
  [VMSA.dr0, S.dr0, 8],
  [VMSA.xcr0, S.xcr0, 2],
  [VMSA.mxcsr, S.mxcsr, 1],
] as const;
const FPU_WORDS = [
  [VMSA.fcw, S.fcw],
  [VMSA.fsw, S.fsw],
  [VMSA.ftw, S.ftw],
] as const;
