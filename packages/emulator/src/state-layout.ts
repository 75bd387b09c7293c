/**
 * The processor's state block: one region of linear memory that generated code, the silicon and JavaScript share.
 * Manual: APM vol. 2 appendix B (the save area's segment packing), SDM vol. 3 ch. 3.
 *
 * Offsets are bytes from the block's base. The ten segment slots stand in the order and packing of the VMCB save area
 * (selector u16, attrib u16, limit u32, base u64), so that a world switch copies them in one piece.
 */

/** Byte offsets in the state block. `u64` unless said otherwise. */
export const S = {
  /** RAX RCX RDX RBX RSP RBP RSI RDI R8..R15, 8 bytes each. */
  gpr: 0x000,
  rip: 0x080,
  /** Exact wherever JavaScript looks; while generated code runs the arithmetic flags may live in `lazyResult`/`lazyAux`. */
  rflags: 0x088,
  /** Always zero: the base or index of an address that has none. */
  zero: 0x090,
  /** Generated code's private form of the six arithmetic flags (engines/interpret). */
  lazyResult: 0x098,
  lazyAux: 0x0a0,
  /** Scratch for results that generated code receives from JavaScript: 64 bytes. */
  scratch: 0x0c0,
  /** ES CS SS DS FS GS GDTR LDTR IDTR TR: 16 bytes each, VMCB packing; `attrib` bit 15 is ours: unusable (null). */
  segments: 0x100,
  efer: 0x1a8,
  cr0: 0x1b0,
  cr2: 0x1b8,
  cr3: 0x1c0,
  cr4: 0x1c8,
  cr8: 0x1d0,
  /** DR0..DR3, DR6, DR7. */
  dr0: 0x1d8,
  dr6: 0x1f8,
  dr7: 0x200,
  star: 0x208,
  lstar: 0x210,
  cstar: 0x218,
  sfmask: 0x220,
  kernelGsBase: 0x228,
  sysenterCs: 0x230,
  sysenterEsp: 0x238,
  sysenterEip: 0x240,
  pat: 0x248,
  tscAux: 0x250,
  xcr0: 0x258,
  debugctl: 0x260,
  smbase: 0x268,
  apicBase: 0x270,
  /** PDPTE0..3 as loaded (legacy PAE paging without nested paging, and VMX guests). */
  pdpte: 0x278,
  /** u8: current privilege level. */
  cpl: 0x298,
  /** u8: interrupt shadow, bit 0 STI, bit 1 MOV SS (KVM_X86_SHADOW_INT_STI is 2 and _MOV_SS 1 in KVM; ours follow VMX's field). */
  shadow: 0x299,
  /** u8: 1 while NMIs are blocked. */
  nmiBlocked: 0x29a,
  /** u8: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI (VMX's activity states); 4 frozen in front of an x87 instruction (FERR#). */
  activity: 0x29b,
  /** u8: 1 inside SMM. */
  smm: 0x29c,
  /** State of the sequence behind RDRAND and RDSEED. */
  random: 0x2a0,
  /** i32: PAUSEs that the guest may execute before its owner has to be asked; negative: any number. The owner sets it at each entry. */
  pauses: 0x2a8,
  /** Linear base of memory operands per segment as generated code uses it; engine-private, ES..GS, 32 bytes each. */
  derived: 0x300,
  /** YMM0..YMM15, 32 bytes each. */
  ymm: 0x400,
  /** Physical x87 registers 0..7, 16 bytes each (80 bits used). */
  fpr: 0x600,
  /** u16 each. */
  fcw: 0x680,
  fsw: 0x682,
  /** u8, abridged as in FXSAVE: bit p set = physical register p is not empty. */
  ftw: 0x684,
  fop: 0x686,
  fip: 0x688,
  fdp: 0x690,
  /** u32. */
  mxcsr: 0x698,
  /** u32: rights of user pages' protection keys. */
  pkru: 0x69c,
  /** u64, IA32_PKRS: rights of supervisor pages' protection keys. */
  pkrs: 0x6a0,
  size: 0x800,
} as const;

/** General registers by number. */
export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;

/** Segment slots, in the VMCB's order. The first six are the numbers that instructions encode. */
export const Seg = { ES: 0, CS: 1, SS: 2, DS: 3, FS: 4, GS: 5, GDTR: 6, LDTR: 7, IDTR: 8, TR: 9 } as const;
export type SegmentIndex = 0 | 1 | 2 | 3 | 4 | 5 | 7 | 9;

/** Bits of a segment's `attrib` (VMCB packing; VMX's access rights differ by a gap of four bits above bit 7). */
export const Attrib = {
  typeMask: 0x00f,
  S: 0x010,
  dplShift: 5,
  P: 0x080,
  AVL: 0x100,
  L: 0x200,
  DB: 0x400,
  G: 0x800,
  /** Ours: a null selector was loaded (VMX's "unusable"); not part of the VMCB image. */
  unusable: 0x8000,
} as const;

/** A segment register with its hidden part. `limit` is in bytes (already scaled by G). */
export interface Segment {
  selector: number;
  attrib: number;
  limit: number;
  base: bigint;
}

/** GDTR or IDTR. */
export interface DescriptorTable {
  base: bigint;
  limit: number;
}

/** RFLAGS bits. */
export const Flag = {
  CF: 0x1,
  PF: 0x4,
  AF: 0x10,
  ZF: 0x40,
  SF: 0x80,
  TF: 0x100,
  IF: 0x200,
  DF: 0x400,
  OF: 0x800,
  IOPL: 0x3000,
  NT: 0x4000,
  RF: 0x10000,
  VM: 0x20000,
  AC: 0x40000,
  VIF: 0x80000,
  VIP: 0x100000,
  ID: 0x200000,
  /** The six arithmetic flags. */
  arith: 0x8d5,
} as const;

/** CR0 bits. */
export const CR0 = {
  PE: 1n << 0n,
  MP: 1n << 1n,
  EM: 1n << 2n,
  TS: 1n << 3n,
  ET: 1n << 4n,
  NE: 1n << 5n,
  WP: 1n << 16n,
  AM: 1n << 18n,
  NW: 1n << 29n,
  CD: 1n << 30n,
  PG: 1n << 31n,
} as const;

/** CR4 bits. */
export const CR4 = {
  VME: 1n << 0n,
  PVI: 1n << 1n,
  TSD: 1n << 2n,
  DE: 1n << 3n,
  PSE: 1n << 4n,
  PAE: 1n << 5n,
  MCE: 1n << 6n,
  PGE: 1n << 7n,
  PCE: 1n << 8n,
  OSFXSR: 1n << 9n,
  OSXMMEXCPT: 1n << 10n,
  UMIP: 1n << 11n,
  LA57: 1n << 12n,
  VMXE: 1n << 13n,
  SMXE: 1n << 14n,
  FSGSBASE: 1n << 16n,
  PCIDE: 1n << 17n,
  OSXSAVE: 1n << 18n,
  SMEP: 1n << 20n,
  SMAP: 1n << 21n,
  PKE: 1n << 22n,
  CET: 1n << 23n,
  PKS: 1n << 24n,
  LAM_SUP: 1n << 28n,
} as const;

/** CR3 bits above the address. */
export const CR3 = {
  LAM_U57: 1n << 61n,
  LAM_U48: 1n << 62n,
  /** With CR4.PCIDE, in the source of MOV CR3: keep what is cached. */
  NOFLUSH: 1n << 63n,
} as const;

/** EFER bits. */
export const EFER = {
  SCE: 1n << 0n,
  LME: 1n << 8n,
  LMA: 1n << 10n,
  NXE: 1n << 11n,
  SVME: 1n << 12n,
  LMSLE: 1n << 13n,
  FFXSR: 1n << 14n,
  TCE: 1n << 15n,
  AUTOIBRS: 1n << 21n,
} as const;

/** Exception vectors. */
export const Vector = {
  DE: 0,
  DB: 1,
  NMI: 2,
  BP: 3,
  OF: 4,
  BR: 5,
  UD: 6,
  NM: 7,
  DF: 8,
  TS: 10,
  NP: 11,
  SS: 12,
  GP: 13,
  PF: 14,
  MF: 16,
  AC: 17,
  MC: 18,
  XM: 19,
  CP: 21,
  VC: 29,
} as const;

/** Page-fault error code bits. */
export const Pfec = { P: 1, W: 2, U: 4, RSVD: 8, F: 16, PK: 32, SS: 64 } as const;
