/**
 * The world switch: the copies between a save area (in the VMCB or a VMSA) and the processor's state block.
 * Manual: APM vol. 2 sections 15.5.1 (VMRUN), 15.6 (#VMEXIT), 15.5.2 (VMLOAD, VMSAVE), appendix B.
 *
 * Everything is copied in 32-bit words, so that no bigint is made on the way.
 */
import { Attrib, type ProcessorState, S } from '@tskvm/emulator';
import { Clean, SAVE_AREA, V, VMSA } from './vmcb.ts';

/** Bit 31 of a segment slot's first word: the block's own mark of a null selector. */
const UNUSABLE = Attrib.unusable << 16;
const PRESENT = Attrib.P << 16;

/** Copies 8 bytes between word indices. */
const copy8 = (to: Int32Array, toWord: number, from: Int32Array, fromWord: number): void => {
  to[toWord] = from[fromWord];
  to[toWord + 1] = from[fromWord + 1];
};

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

function saveSegment(save: Int32Array, to: number, block: Int32Array, from: number): void {
  const first = block[from];
  save[to] = (first < 0 ? first & ~PRESENT : first) & 0x0fff_ffff;
  save[to + 1] = block[from + 1];
  save[to + 2] = block[from + 2];
  save[to + 3] = block[from + 3];
}

const isTable = (slot: number): boolean => slot === 6 || slot === 8;
/** Slots that VMRUN and #VMEXIT move; FS, GS, LDTR and TR are VMLOAD's. */
const VMRUN_SLOTS = [0, 1, 2, 3, 6, 8] as const;
const VMLOAD_SLOTS = [4, 5, 7, 9] as const;
/** STAR LSTAR CSTAR SFMASK KernelGSBase SYSENTER_CS/ESP/EIP stand in one run of 64 bytes on both sides. */
const VMLOAD_MSR_WORDS = 16;

/** The copies of one processor. Word indices count from the start of the arrays given. */
export class WorldSwitch {
  readonly #block: Int32Array;
  readonly #bytes: Uint8Array;

  constructor(state: ProcessorState) {
    this.#block = new Int32Array(state.view.buffer, state.base, S.size / 4);
    this.#bytes = state.u8;
  }

  /**
   * VMRUN's part of the guest state. `saveAt`: byte offset of the save area in `save`.
   * @param clean clean-bit groups that may be skipped (0: load all)
   * @returns true if a segment or CPL changed
   */
  loadGuest(save: Int32Array, saveAt: number, clean: number): boolean {
    const block = this.#block;
    const base = (saveAt - SAVE_AREA) >> 2;
    copy8(block, S.rflags >> 2, save, base + (V.rflags >> 2));
    copy8(block, (S.gpr + 128) >> 2, save, base + (V.rip >> 2));
    copy8(block, (S.gpr + 32) >> 2, save, base + (V.rsp >> 2));
    copy8(block, S.gpr >> 2, save, base + (V.rax >> 2));
    if ((clean & (1 << Clean.CR2)) === 0) copy8(block, S.cr2 >> 2, save, base + (V.cr2 >> 2));
    if ((clean & (1 << Clean.DR)) === 0) {
      copy8(block, S.dr7 >> 2, save, base + (V.dr7 >> 2));
      copy8(block, S.dr6 >> 2, save, base + (V.dr6 >> 2));
    }
    if ((clean & (1 << Clean.CR)) === 0) {
      copy8(block, S.efer >> 2, save, base + (V.efer >> 2));
      copy8(block, S.cr4 >> 2, save, base + (V.cr4 >> 2));
      copy8(block, S.cr3 >> 2, save, base + (V.cr3 >> 2));
      copy8(block, S.cr0 >> 2, save, base + (V.cr0 >> 2));
    }
    return (clean & SEGMENT_MASK) !== SEGMENT_MASK && this.#loadSegments(save, base, VMRUN_SLOTS);
  }

  #loadSegments(save: Int32Array, base: number, slots: readonly number[]): boolean {
    let changed = false;
    for (const slot of slots) {
      const to = (S.segments >> 2) + slot * 4;
      const from = base + (V.es >> 2) + slot * 4;
      if (loadSegment(this.#block, to, save, from, slot === 1 || isTable(slot)) && !isTable(slot)) changed = true;
    }
    if (slots === VMRUN_SLOTS) {
      const cpl = (save[base + (V.cpl >> 2)] >>> 24) & 3;
      if (this.#bytes[S.cpl] !== cpl) {
        this.#bytes[S.cpl] = cpl;
        changed = true;
      }
    }
    return changed;
  }

  /** #VMEXIT's part. */
  saveGuest(save: Int32Array, saveAt: number): void {
    const block = this.#block;
    const base = (saveAt - SAVE_AREA) >> 2;
    copy8(save, base + (V.rflags >> 2), block, S.rflags >> 2);
    copy8(save, base + (V.rip >> 2), block, (S.gpr + 128) >> 2);
    copy8(save, base + (V.rsp >> 2), block, (S.gpr + 32) >> 2);
    copy8(save, base + (V.rax >> 2), block, S.gpr >> 2);
    copy8(save, base + (V.cr2 >> 2), block, S.cr2 >> 2);
    copy8(save, base + (V.dr7 >> 2), block, S.dr7 >> 2);
    copy8(save, base + (V.dr6 >> 2), block, S.dr6 >> 2);
    copy8(save, base + (V.efer >> 2), block, S.efer >> 2);
    copy8(save, base + (V.cr4 >> 2), block, S.cr4 >> 2);
    copy8(save, base + (V.cr3 >> 2), block, S.cr3 >> 2);
    copy8(save, base + (V.cr0 >> 2), block, S.cr0 >> 2);
    const to = base + (V.es >> 2);
    const from = S.segments >> 2;
    for (let slot = 0; slot < 4; slot += 1) saveSegment(save, to + slot * 4, block, from + slot * 4);
    saveSegment(save, to + 24, block, from + 24);
    saveSegment(save, to + 32, block, from + 32);
    const cpl = base + (V.cpl >> 2);
    save[cpl] = (save[cpl] & 0x00ff_ffff) | (this.#bytes[S.cpl] << 24);
  }

  /** VMLOAD (APM 15.5.2). True if FS, GS, LDTR or TR changed. */
  vmload(save: Int32Array, saveAt: number): boolean {
    const base = (saveAt - SAVE_AREA) >> 2;
    const from = base + (V.star >> 2);
    for (let n = 0; n < VMLOAD_MSR_WORDS; n += 1) this.#block[(S.star >> 2) + n] = save[from + n];
    return this.#loadSegments(save, base, VMLOAD_SLOTS);
  }

  /** VMSAVE (APM 15.5.2). */
  vmsave(save: Int32Array, saveAt: number): void {
    const base = (saveAt - SAVE_AREA) >> 2;
    const to = base + (V.star >> 2);
    for (let n = 0; n < VMLOAD_MSR_WORDS; n += 1) save[to + n] = this.#block[(S.star >> 2) + n];
    for (const slot of VMLOAD_SLOTS) {
      saveSegment(save, base + (V.es >> 2) + slot * 4, this.#block, (S.segments >> 2) + slot * 4);
    }
  }

  /** G_PAT under nested paging. */
  loadPat(save: Int32Array, saveAt: number): void {
    copy8(this.#block, S.pat >> 2, save, (saveAt + V.gPat - SAVE_AREA) >> 2);
  }
  savePat(save: Int32Array, saveAt: number): void {
    copy8(save, (saveAt + V.gPat - SAVE_AREA) >> 2, this.#block, S.pat >> 2);
  }

  /** What only a VMSA holds: the other general registers, DR0-3, XCR0 and the FPU (APM table B-4). */
  loadProtected(save: Int32Array, saveAt: number): void {
    for (const [at, to, words] of PROTECTED) {
      for (let n = 0; n < words; n += 1) this.#block[(to >> 2) + n] = save[((saveAt + at) >> 2) + n];
    }
    for (let n = 0; n < 16; n += 1) this.#ymm(save, saveAt, n, true);
    const fpu = new DataView(save.buffer, save.byteOffset + saveAt);
    const block = new DataView(this.#bytes.buffer, this.#bytes.byteOffset);
    for (const [at, to] of FPU_WORDS) block.setUint16(to, fpu.getUint16(at, true), true);
    for (let n = 0; n < 8; n += 1) {
      for (let byte = 0; byte < 10; byte += 1) {
        this.#bytes[S.fpr + n * 16 + byte] = fpu.getUint8(VMSA.x87 + n * 10 + byte);
      }
    }
  }

  saveProtected(save: Int32Array, saveAt: number): void {
    for (const [at, from, words] of PROTECTED) {
      for (let n = 0; n < words; n += 1) save[((saveAt + at) >> 2) + n] = this.#block[(from >> 2) + n];
    }
    for (let n = 0; n < 16; n += 1) this.#ymm(save, saveAt, n, false);
    const fpu = new DataView(save.buffer, save.byteOffset + saveAt);
    const block = new DataView(this.#bytes.buffer, this.#bytes.byteOffset);
    for (const [at, from] of FPU_WORDS) fpu.setUint16(at, block.getUint16(from, true), true);
    for (let n = 0; n < 8; n += 1) {
      for (let byte = 0; byte < 10; byte += 1) {
        fpu.setUint8(VMSA.x87 + n * 10 + byte, this.#bytes[S.fpr + n * 16 + byte]);
      }
    }
  }

  /** The VMSA keeps XMM and the upper halves of YMM apart. */
  #ymm(save: Int32Array, saveAt: number, n: number, load: boolean): void {
    for (let word = 0; word < 8; word += 1) {
      const at = word < 4 ? VMSA.xmm + n * 16 + word * 4 : VMSA.ymmHigh + n * 16 + (word - 4) * 4;
      const inBlock = (S.ymm + n * 32 + word * 4) >> 2;
      const inSave = (saveAt + at) >> 2;
      if (load) this.#block[inBlock] = save[inSave];
      else save[inSave] = this.#block[inBlock];
    }
  }
}

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
