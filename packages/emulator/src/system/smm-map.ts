/**
 * The SMRAM save map: 512 bytes at SMBASE + FE00, in the 32-bit and the 64-bit format.
 * Manual: APM vol. 2 ch. 10.2.3 (64-bit); the 32-bit one is the common legacy layout. KVM: struct kvm_smm_state_32, kvm_smm_state_64.
 */
import type { Segment, SegmentIndex } from '../state-layout.ts';
import { Attrib, Seg } from '../state-layout.ts';

export const SMM_MAP_SIZE = 512;
/** Of the map, from SMBASE. */
export const SMM_MAP_OFFSET = 0xfe00;

/** Offsets from SMBASE + FE00 in the 32-bit map. */
export const SmmMap32 = {
  smbase: 0xf8,
  revision: 0xfc,
  cr4: 0x114,
  /** KVM's own: its number of the interrupt shadow. */
  intShadow: 0x11a,
  idtr: 0x150,
  gdtr: 0x16c,
  dr7: 0x1c8,
  dr6: 0x1cc,
  gprs: 0x1d0,
  eip: 0x1f0,
  eflags: 0x1f4,
  cr3: 0x1f8,
  cr0: 0x1fc,
} as const;
export const SMM_REVISION_32 = 0x0002_0000;

/** Offsets from SMBASE + FE00 in the 64-bit map. */
export const SmmMap64 = {
  gdtr: 0x60,
  idtr: 0x80,
  intShadow: 0xcb,
  efer: 0xd0,
  svmGuestFlag: 0xd8,
  svmGuestVmcbGpa: 0xe0,
  revision: 0xfc,
  smbase: 0x100,
  cr4: 0x148,
  cr3: 0x150,
  cr0: 0x158,
  dr7: 0x160,
  dr6: 0x168,
  rflags: 0x170,
  rip: 0x178,
  /** R15 first, RAX last. */
  gprs: 0x180,
} as const;
export const SMM_REVISION_64 = 0x0002_0064;

/** Hidden parts and selectors of the 32-bit map: [segment, {flags, limit, base}, selector]. */
export const SEGMENTS_32: readonly (readonly [SegmentIndex, number, number])[] = [
  [Seg.ES, 0x184, 0x1a8],
  [Seg.CS, 0x190, 0x1ac],
  [Seg.SS, 0x19c, 0x1b0],
  [Seg.DS, 0x12c, 0x1b4],
  [Seg.FS, 0x138, 0x1b8],
  [Seg.GS, 0x144, 0x1bc],
  [Seg.LDTR, 0x178, 0x1c0],
  [Seg.TR, 0x15c, 0x1c4],
];

/** Records {selector, attributes, limit, base} of the 64-bit map. */
export const SEGMENTS_64: readonly (readonly [SegmentIndex, number])[] = [
  [Seg.ES, 0x00],
  [Seg.CS, 0x10],
  [Seg.SS, 0x20],
  [Seg.DS, 0x30],
  [Seg.FS, 0x40],
  [Seg.GS, 0x50],
  [Seg.LDTR, 0x70],
  [Seg.TR, 0x90],
];

/** Rights as the 64-bit map has them: the descriptor's second dword, shifted down by a byte. A null segment is one that is not present. */
export const packAttributes = (attrib: number): number => {
  const usable = attrib & Attrib.unusable ? attrib & ~Attrib.P : attrib;
  return (usable & 0xff) | ((usable & 0xf00) << 4);
};

export const unpackAttributes = (packed: number): number => {
  const attrib = (packed & 0xff) | ((packed >> 4) & 0xf00);
  return attrib & Attrib.P ? attrib : attrib | Attrib.unusable;
};

/** Little-endian access to the map's bytes. */
export class SmmMapView {
  private readonly view: DataView;

  constructor(bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  get8 = (at: number): number => this.view.getUint8(at);
  set8 = (at: number, value: number): void => this.view.setUint8(at, value);
  get16 = (at: number): number => this.view.getUint16(at, true);
  set16 = (at: number, value: number): void => this.view.setUint16(at, value, true);
  get32 = (at: number): number => this.view.getUint32(at, true);
  set32 = (at: number, value: number | bigint): void =>
    this.view.setUint32(at, Number(BigInt.asUintN(32, BigInt(value))), true);
  get64 = (at: number): bigint => this.view.getBigUint64(at, true);
  set64 = (at: number, value: bigint): void => this.view.setBigUint64(at, value, true);

  putSegment64(at: number, s: Segment): void {
    this.set16(at, s.selector);
    this.set16(at + 2, packAttributes(s.attrib));
    this.set32(at + 4, s.limit);
    this.set64(at + 8, s.base);
  }
  segment64(at: number): Segment {
    const attrib = unpackAttributes(this.get16(at + 2));
    return { selector: this.get16(at), attrib, limit: this.get32(at + 4), base: this.get64(at + 8) };
  }
  putSegment32(at: number, selectorAt: number, s: Segment): void {
    this.set32(at, packAttributes(s.attrib) << 8);
    this.set32(at + 4, s.limit);
    this.set32(at + 8, s.base);
    this.set32(selectorAt, s.selector);
  }
  segment32(at: number, selectorAt: number): Segment {
    const attrib = unpackAttributes(this.get32(at) >>> 8);
    return { selector: this.get16(selectorAt), attrib, limit: this.get32(at + 4), base: BigInt(this.get32(at + 8)) };
  }
}
