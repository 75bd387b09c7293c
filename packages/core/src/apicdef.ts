/** Registers of the local APIC and their bits. KVM: arch/x86/include/asm/apicdef.h; manual: SDM vol. 3 table 10-1. */

/** Register offsets in the APIC page. */
export const Apic = {
  ID: 0x20,
  LVR: 0x30,
  TPR: 0x80,
  APR: 0x90,
  PPR: 0xa0,
  EOI: 0xb0,
  RRD: 0xc0,
  LDR: 0xd0,
  DFR: 0xe0,
  SPIV: 0xf0,
  ISR: 0x100,
  TMR: 0x180,
  IRR: 0x200,
  ESR: 0x280,
  ICR: 0x300,
  ICR2: 0x310,
  LVTT: 0x320,
  LVTTHMR: 0x330,
  LVTPC: 0x340,
  LVT0: 0x350,
  LVT1: 0x360,
  LVTERR: 0x370,
  TMICT: 0x380,
  TMCCT: 0x390,
  TDCR: 0x3e0,
  SELF_IPI: 0x3f0,
} as const;
export const LVT_MASKED = 1 << 16;
export const SPIV_ENABLED = 1 << 8;
export const LVTS = [Apic.LVTT, Apic.LVTTHMR, Apic.LVTPC, Apic.LVT0, Apic.LVT1, Apic.LVTERR] as const;
/** Bits that software may set in each LVT. */
export const LVT_MASKS: Readonly<Record<number, number>> = {
  [Apic.LVTT]: 0x700ff,
  [Apic.LVTTHMR]: 0x107ff,
  [Apic.LVTPC]: 0x107ff,
  [Apic.LVT0]: 0x1a7ff,
  [Apic.LVT1]: 0x1a7ff,
  [Apic.LVTERR]: 0x100ff,
};
