/**
 * The local APIC's registers: writes and reads, the MMIO page, the x2APIC MSRs.
 * KVM: kvm_lapic_reg_write, kvm_lapic_reg_read, kvm_x2apic_msr_* (lapic.c); manual: SDM vol. 3 10.4.1 and 10.12.
 */
import { Apic, LVT_MASKED, LVT_MASKS, LVTS } from './apicdef.ts';
import { type Lapic, sendIpi, setTpr } from './lapic.ts';
import { kvmMakeRequest } from './requests.ts';
import { trace } from './trace.ts';
import { Req } from './types.ts';

/** KVM: apic_set_eoi. */
function setEoi(apic: Lapic): void {
  const vector = apic.highest(Apic.ISR);
  trace(apic.vcpu, 'kvm_eoi', () => ({ apicid: apic.id, vector }));
  if (vector < 0) return;
  apic.setBit(Apic.ISR, vector, false);
  apic.updatePpr();
  apic.vcpu.vm.irqchip?.ioapic.eoi(vector);
  kvmMakeRequest(Req.EVENT, apic.vcpu);
}

type Writer = (apic: Lapic, value: number) => void;
const lvtWriter =
  (lvt: number): Writer =>
  (apic, value) => {
    const masked = apic.swEnabled ? value : value | LVT_MASKED;
    apic.set(lvt, masked & LVT_MASKS[lvt]);
  };

const WRITERS = new Map<number, Writer>([
  [Apic.ID, (apic, value) => !apic.x2apic && apic.set(Apic.ID, (value & 0xff000000) >>> 0)],
  [Apic.TPR, (apic, value) => setTpr(apic, value)],
  [Apic.EOI, setEoi],
  [Apic.LDR, (apic, value) => !apic.x2apic && apic.set(Apic.LDR, value & 0xff000000)],
  [Apic.DFR, (apic, value) => !apic.x2apic && apic.set(Apic.DFR, value | 0x0fffffff)],
  [
    Apic.SPIV,
    (apic, value) => {
      apic.set(Apic.SPIV, value & 0x3ff);
      if (!apic.swEnabled) for (const lvt of LVTS) apic.set(lvt, apic.get(lvt) | LVT_MASKED);
      else kvmMakeRequest(Req.EVENT, apic.vcpu);
    },
  ],
  [Apic.ESR, (apic) => apic.set(Apic.ESR, 0)],
  [
    Apic.ICR,
    (apic, value) => {
      const low = value & ~(1 << 12);
      sendIpi(apic, low, apic.x2apic ? apic.get(Apic.ICR2) : apic.get(Apic.ICR2) >>> 24);
      apic.set(Apic.ICR, low);
    },
  ],
  [Apic.ICR2, (apic, value) => apic.set(Apic.ICR2, apic.x2apic ? value : value & 0xff000000)],
  [Apic.LVTTHMR, lvtWriter(Apic.LVTTHMR)],
  [Apic.LVTPC, lvtWriter(Apic.LVTPC)],
  [Apic.LVT0, lvtWriter(Apic.LVT0)],
  [Apic.LVT1, lvtWriter(Apic.LVT1)],
  [Apic.LVTERR, lvtWriter(Apic.LVTERR)],
  [
    Apic.LVTT,
    (apic, value) => {
      const before = (apic.get(Apic.LVTT) >> 17) & 3;
      lvtWriter(Apic.LVTT)(apic, value);
      if (((apic.get(Apic.LVTT) >> 17) & 3) !== before) apic.timer.modeChanged(before);
    },
  ],
  [
    Apic.TMICT,
    (apic, value) => {
      if (apic.timer.isTscDeadline) return;
      apic.set(Apic.TMICT, value);
      apic.timer.start();
    },
  ],
  [
    Apic.TDCR,
    (apic, value) => {
      const left = apic.timer.currentCount();
      apic.set(Apic.TDCR, value & 0xb);
      apic.timer.rescale(left);
    },
  ],
  [
    Apic.SELF_IPI,
    (apic, value) => {
      if (apic.x2apic) sendIpi(apic, (value & 0xff) | (1 << 18), 0);
    },
  ],
]);

/** KVM: kvm_lapic_reg_write. False: reserved register. */
export function kvmLapicRegWrite(apic: Lapic, reg: number, value: number): boolean {
  trace(apic.vcpu, 'kvm_apic', () => ({ rw: 'write', reg, val: value }));
  const writer = WRITERS.get(reg);
  if (!writer) return false;
  writer(apic, value >>> 0);
  return true;
}
/** KVM: kvm_lapic_reg_read. */
export function kvmLapicRegRead(apic: Lapic, reg: number): number {
  let value: number;
  if (reg === Apic.TMCCT) value = apic.timer.currentCount();
  else if (reg === Apic.PPR) value = apic.updatePpr();
  else value = apic.get(reg);
  trace(apic.vcpu, 'kvm_apic', () => ({ rw: 'read', reg, val: value }));
  return value;
}

/** Is this address in the page of this vCPU's APIC (xAPIC mode). */
export function lapicContains(apic: Lapic, gpa: number): boolean {
  const base = Number(apic.vcpu.arch.apicBase & 0xffffff000n);
  return apic.hwEnabled && !apic.x2apic && gpa >= base && gpa < base + 0x1000;
}
/** MMIO read of 1, 2, 4 or 8 bytes; only aligned 32-bit words exist. KVM: apic_mmio_read. */
export function lapicMmioRead(apic: Lapic, gpa: number, size: number): bigint {
  const offset = gpa & 0xfff;
  const word = BigInt(offset < 0x400 ? kvmLapicRegRead(apic, offset & ~0xf) : 0);
  return ((offset & 0xc) === 0 ? word >> BigInt(8 * (offset & 3)) : 0n) & ((1n << BigInt(8 * size)) - 1n);
}
/** KVM: apic_mmio_write: other sizes and misaligned writes are dropped. */
export function lapicMmioWrite(apic: Lapic, gpa: number, value: bigint, size: number): void {
  const offset = gpa & 0xfff;
  if (size === 4 && (offset & 0xf) === 0) kvmLapicRegWrite(apic, offset, Number(value & 0xffffffffn));
}

/** Registers that can be read in x2APIC mode. KVM: kvm_lapic_readable_reg_mask. */
const X2APIC_READABLE = new Set<number>([
  Apic.ID,
  Apic.LVR,
  Apic.TPR,
  Apic.PPR,
  Apic.LDR,
  Apic.SPIV,
  ...[Apic.ISR, Apic.TMR, Apic.IRR].flatMap((first) => Array.from({ length: 8 }, (_, n) => first + 16 * n)),
  Apic.ESR,
  Apic.ICR,
  ...LVTS,
  Apic.TMICT,
  Apic.TMCCT,
  Apic.TDCR,
]);

/** x2APIC MSR 0x800..0x8FF. Undefined: #GP. KVM: kvm_x2apic_msr_read. */
export function kvmX2apicMsrRead(apic: Lapic, msr: number): bigint | undefined {
  const reg = (msr - 0x800) << 4;
  if (!apic.x2apic || !X2APIC_READABLE.has(reg)) return undefined;
  if (reg === Apic.ICR) return BigInt(apic.get(Apic.ICR)) | (BigInt(apic.get(Apic.ICR2)) << 32n);
  return BigInt(kvmLapicRegRead(apic, reg));
}
/** 0, or 1 for #GP. KVM: kvm_x2apic_msr_write. */
export function kvmX2apicMsrWrite(apic: Lapic, msr: number, value: bigint): number {
  const reg = (msr - 0x800) << 4;
  if (!apic.x2apic || reg === Apic.ICR2 || reg === Apic.ID || reg === Apic.LDR || reg === Apic.DFR) return 1;
  if (reg === Apic.EOI && value !== 0n) return 1;
  if (reg === Apic.SELF_IPI && value > 0xffn) return 1;
  if (reg === Apic.ICR) kvmLapicRegWrite(apic, Apic.ICR2, Number(value >> 32n));
  else if (value >> 32n !== 0n) return 1;
  return kvmLapicRegWrite(apic, reg, Number(value & 0xffffffffn)) ? 0 : 1;
}
