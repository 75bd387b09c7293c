/**
 * System management mode: building the save map, the state that an SMI gives, and RSM's way back.
 * Manual: APM vol. 2 ch. 10, SDM vol. 3 ch. 31; KVM: smm.c. One implementation for the bare processor and for KVM.
 */
import type { X86EmulateOps } from '../ops.ts';
import { X86Emul } from '../ops.ts';
import type { Segment } from '../state-layout.ts';
import { Attrib, CR0, CR4, EFER, Seg } from '../state-layout.ts';
import { MSR } from './common.ts';
import {
  SEGMENTS_32,
  SEGMENTS_64,
  SMM_MAP_SIZE,
  SMM_REVISION_32,
  SMM_REVISION_64,
  SmmMap32,
  SmmMap64,
  SmmMapView,
} from './smm-map.ts';

export { SMM_MAP_OFFSET, SMM_MAP_SIZE, SmmMap32, SmmMap64 } from './smm-map.ts';

/** What the map is built from. `interruptShadow`: 0, 1 (STI) or 2 (MOV SS). */
export interface SmmSource
  extends Pick<
    X86EmulateOps,
    'readGpr' | 'getRip' | 'getRflags' | 'getSegment' | 'getGdt' | 'getIdt' | 'getCr' | 'getDr' | 'getMsr'
  > {
  getSmbase(): number;
  getInterruptShadow(): number;
}

/** What RSM loads into. Setters say non-zero (MSRs, CRs, DRs) where the value is not legal. */
export interface SmmTarget
  extends Pick<
    X86EmulateOps,
    'writeGpr' | 'setRip' | 'setRflags' | 'setDr' | 'getCr' | 'setCr' | 'setMsr' | 'setSegment' | 'setGdt' | 'setIdt'
  > {
  setSmbase(smbase: number): void;
  setInterruptShadow(shadow: 0 | 1 | 2): void;
}

/** KVM numbers the shadows the other way round: 1 MOV SS, 2 STI. Its own inverse. */
const kvmShadow = (shadow: number): 0 | 1 | 2 => (shadow & 1 ? 2 : shadow & 2 ? 1 : 0);

/** The 32-bit map (KVM: enter_smm_save_state_32). Revision 00020000. */
export const buildSmmSaveMap32 = (s: SmmSource): Uint8Array => {
  const bytes = new Uint8Array(SMM_MAP_SIZE);
  const m = new SmmMapView(bytes);
  m.set32(SmmMap32.cr0, s.getCr(0));
  m.set32(SmmMap32.cr3, s.getCr(3));
  m.set32(SmmMap32.cr4, s.getCr(4));
  m.set32(SmmMap32.eflags, s.getRflags());
  m.set32(SmmMap32.eip, s.getRip());
  for (let i = 0; i < 8; i++) m.set32(SmmMap32.gprs + 4 * i, s.readGpr(i));
  m.set32(SmmMap32.dr6, s.getDr(6));
  m.set32(SmmMap32.dr7, s.getDr(7));
  for (const [seg, at, selectorAt] of SEGMENTS_32) m.putSegment32(at, selectorAt, s.getSegment(seg));
  for (const [at, table] of [
    [SmmMap32.gdtr, s.getGdt()],
    [SmmMap32.idtr, s.getIdt()],
  ] as const) {
    m.set32(at + 4, table.limit);
    m.set32(at + 8, table.base);
  }
  m.set32(SmmMap32.revision, SMM_REVISION_32);
  m.set32(SmmMap32.smbase, s.getSmbase());
  m.set8(SmmMap32.intShadow, kvmShadow(s.getInterruptShadow()));
  return bytes;
};

/** The 64-bit map (KVM: enter_smm_save_state_64). Revision 00020064; SVM's fields are the vendor's to fill in. */
export const buildSmmSaveMap64 = (s: SmmSource): Uint8Array => {
  const bytes = new Uint8Array(SMM_MAP_SIZE);
  const m = new SmmMapView(bytes);
  for (let i = 0; i < 16; i++) m.set64(SmmMap64.gprs + 8 * (15 - i), s.readGpr(i));
  m.set64(SmmMap64.rip, s.getRip());
  m.set64(SmmMap64.rflags, s.getRflags());
  m.set64(SmmMap64.dr6, s.getDr(6));
  m.set64(SmmMap64.dr7, s.getDr(7));
  m.set64(SmmMap64.cr0, s.getCr(0));
  m.set64(SmmMap64.cr3, s.getCr(3));
  m.set64(SmmMap64.cr4, s.getCr(4));
  m.set32(SmmMap64.smbase, s.getSmbase());
  m.set32(SmmMap64.revision, SMM_REVISION_64);
  m.set64(SmmMap64.efer, s.getMsr(MSR.EFER) ?? 0n);
  for (const [seg, at] of SEGMENTS_64) m.putSegment64(at, s.getSegment(seg));
  for (const [at, table] of [
    [SmmMap64.gdtr, s.getGdt()],
    [SmmMap64.idtr, s.getIdt()],
  ] as const) {
    m.set32(at + 4, table.limit);
    m.set64(at + 8, table.base);
  }
  m.set8(SmmMap64.intShadow, kvmShadow(s.getInterruptShadow()));
  return bytes;
};

/** Setters without guest-visible checks, for the state that an SMI gives. */
export interface SmmEntryTarget extends Pick<X86EmulateOps, 'setRip' | 'setRflags' | 'setSegment' | 'setIdt'> {
  setCr0(value: bigint): void;
  setCr4(value: bigint): void;
  setDr7(value: bigint): void;
  setEfer(value: bigint): void;
}

/** Expand-up, writable, present, 4 GiB, DPL 0, 16-bit. */
const SMM_ATTRIB = Attrib.P | Attrib.S | Attrib.G | 3;

/**
 * The state in which the SMI handler starts (KVM: the second half of enter_smm; APM vol. 2 table 10-3).
 * @param cr0 CR0 as it was: all but PE, EM, TS and PG stays
 */
export const enterSmmState = (t: SmmEntryTarget, smbase: number, cr0: bigint): void => {
  t.setRflags(2n);
  t.setRip(0x8000n);
  t.setCr0(cr0 & ~(CR0.PE | CR0.EM | CR0.TS | CR0.PG));
  t.setCr4(0n);
  t.setIdt({ base: 0n, limit: 0 });
  t.setDr7(0x400n);
  const flat: Segment = { selector: 0, base: 0n, limit: 0xffff_ffff, attrib: SMM_ATTRIB };
  t.setSegment(Seg.CS, { ...flat, selector: (smbase >>> 4) & 0xffff, base: BigInt(smbase >>> 0) });
  for (const seg of [Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS] as const) t.setSegment(seg, flat);
  t.setEfer(0n);
};

/**
 * Back to the saved paging mode (KVM: rsm_enter_protected_mode): CR3, CR4 without PCIDE, CR0 (which sets LMA), then PCIDE and the PCID,
 * since PCIDE may only be set in long mode with CR3 bits 11:0 clear.
 * @returns UNHANDLEABLE if one of them refuses: the caller makes it a triple fault
 */
export const rsmEnterProtectedMode = (t: SmmTarget, cr0: bigint, cr3: bigint, cr4: bigint): X86Emul => {
  const usesPcid = (cr4 & CR4.PCIDE) !== 0n;
  const pcid = usesPcid ? cr3 & 0xfffn : 0n;
  const steps: readonly (readonly [number, bigint])[] = [
    [3, usesPcid ? cr3 & ~0xfffn : cr3],
    [4, cr4 & ~CR4.PCIDE],
    [0, cr0],
    ...(usesPcid ? ([[4, cr4]] as const) : []),
    ...(pcid ? ([[3, cr3]] as const) : []),
  ];
  for (const [cr, value] of steps) if (t.setCr(cr, value) !== 0) return X86Emul.UNHANDLEABLE;
  return X86Emul.CONTINUE;
};

/** KVM: rsm_load_state_32. UNHANDLEABLE: corrupt map. */
export const rsmLoadState32 = (t: SmmTarget, bytes: Uint8Array): X86Emul => {
  const m = new SmmMapView(bytes);
  const wide = (at: number): bigint => BigInt(m.get32(at));
  t.setRflags(wide(SmmMap32.eflags) | 2n);
  t.setRip(wide(SmmMap32.eip));
  for (let i = 0; i < 8; i++) t.writeGpr(i, wide(SmmMap32.gprs + 4 * i));
  if (t.setDr(6, wide(SmmMap32.dr6)) !== 0 || t.setDr(7, wide(SmmMap32.dr7)) !== 0) return X86Emul.UNHANDLEABLE;
  const load = (seg: number): void => {
    const [index, at, selectorAt] = SEGMENTS_32.find((row) => row[0] === seg)!;
    t.setSegment(index, m.segment32(at, selectorAt));
  };
  load(Seg.TR);
  load(Seg.LDTR);
  t.setGdt({ limit: m.get32(SmmMap32.gdtr + 4), base: wide(SmmMap32.gdtr + 8) });
  t.setIdt({ limit: m.get32(SmmMap32.idtr + 4), base: wide(SmmMap32.idtr + 8) });
  for (let seg = 0; seg < 6; seg++) load(seg);
  t.setSmbase(m.get32(SmmMap32.smbase));
  const result = rsmEnterProtectedMode(t, wide(SmmMap32.cr0), wide(SmmMap32.cr3), wide(SmmMap32.cr4));
  if (result === X86Emul.CONTINUE) t.setInterruptShadow(kvmShadow(m.get8(SmmMap32.intShadow)));
  return result;
};

/** KVM: rsm_load_state_64. EFER goes in without LMA: setting CR0.PG brings it back. */
export const rsmLoadState64 = (t: SmmTarget, bytes: Uint8Array): X86Emul => {
  const m = new SmmMapView(bytes);
  for (let i = 0; i < 16; i++) t.writeGpr(i, m.get64(SmmMap64.gprs + 8 * (15 - i)));
  t.setRip(m.get64(SmmMap64.rip));
  t.setRflags(m.get64(SmmMap64.rflags) | 2n);
  if (t.setDr(6, m.get64(SmmMap64.dr6)) !== 0 || t.setDr(7, m.get64(SmmMap64.dr7)) !== 0) return X86Emul.UNHANDLEABLE;
  t.setSmbase(m.get32(SmmMap64.smbase));
  if (t.setMsr(MSR.EFER, m.get64(SmmMap64.efer) & ~EFER.LMA) !== 0) return X86Emul.UNHANDLEABLE;
  const load = (seg: number): void => {
    const [index, at] = SEGMENTS_64.find((row) => row[0] === seg)!;
    t.setSegment(index, m.segment64(at));
  };
  load(Seg.TR);
  t.setIdt({ limit: m.get32(SmmMap64.idtr + 4), base: m.get64(SmmMap64.idtr + 8) });
  load(Seg.LDTR);
  t.setGdt({ limit: m.get32(SmmMap64.gdtr + 4), base: m.get64(SmmMap64.gdtr + 8) });
  const [cr0, cr3, cr4] = [SmmMap64.cr0, SmmMap64.cr3, SmmMap64.cr4].map(m.get64);
  const result = rsmEnterProtectedMode(t, cr0!, cr3!, cr4!);
  if (result !== X86Emul.CONTINUE) return result;
  for (let seg = 0; seg < 6; seg++) load(seg);
  t.setInterruptShadow(kvmShadow(m.get8(SmmMap64.intShadow)));
  return X86Emul.CONTINUE;
};

/** Whoever leaves SMM: the target, and what surrounds the loading. */
export interface LeaveSmmHost extends SmmTarget {
  /** Format of the map: the CPU model has long mode. */
  readonly longMode: boolean;
  /** The 512 bytes at SMBASE + FE00, or undefined if they can't be read. */
  readSaveMap(): Uint8Array | undefined;
  /** SMM is over: NMIs unmasked unless the SMI came inside an NMI, SMM flag off. */
  smmEnded(): void;
  /** Vendor's part (nested guest mode), non-zero: corrupt. */
  vendorLeaveSmm(map: Uint8Array): number;
}

/**
 * Down to real mode first, so that the saved mode can be entered in the architectural order. Refusals are ignored: the loads will fail.
 * With L set in CS, CR0.PG could not be cleared; with PCIDE neither.
 */
const unwindMode = (h: LeaveSmmHost): void => {
  if (h.longMode) {
    const cr4 = h.getCr(4);
    if (cr4 & CR4.PCIDE) h.setCr(4, cr4 & ~CR4.PCIDE);
    h.setSegment(Seg.CS, {
      selector: 0,
      base: 0n,
      limit: 0xffff_ffff,
      attrib: Attrib.P | Attrib.S | Attrib.G | 11,
    });
  }
  const cr0 = h.getCr(0);
  if (cr0 & CR0.PE) h.setCr(0, cr0 & ~(CR0.PG | CR0.PE));
  if (!h.longMode) return;
  const cr4 = h.getCr(4);
  if (cr4 & CR4.PAE) h.setCr(4, cr4 & ~CR4.PAE);
  h.setMsr(MSR.EFER, 0n);
};

/**
 * RSM (KVM: emulator_leave_smm). CONTINUE, or UNHANDLEABLE: the caller makes it a shutdown.
 */
export const emulatorLeaveSmm = (h: LeaveSmmHost): X86Emul => {
  const map = h.readSaveMap();
  if (!map) return X86Emul.UNHANDLEABLE;
  h.smmEnded();
  unwindMode(h);
  if (h.vendorLeaveSmm(map) !== 0) return X86Emul.UNHANDLEABLE;
  return h.longMode ? rsmLoadState64(h, map) : rsmLoadState32(h, map);
};
