/**
 * struct kvm_lapic: the local APIC in the kernel: registers, priorities, timer, interrupt messages, INIT and SIPI.
 * KVM: arch/x86/kvm/lapic.c; manual: SDM vol. 3 ch. 10, APM vol. 2 ch. 16.
 */

import { Apic, LVT_MASKED, LVTS, SPIV_ENABLED } from './apicdef.ts';
import { guestCpuidHas, kvmUpdateCpuidRuntime } from './cpuid.ts';
import { kvmInjectNmi, kvmInjectSmi } from './exceptions.ts';
import { isSmm } from './kvm-cache-regs.ts';
import { LapicTimer } from './lapic-timer.ts';
import { kvmMakeRequest } from './requests.ts';
import { kvmVcpuReset } from './reset.ts';
import { trace } from './trace.ts';
import { MpState, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

export { Apic } from './apicdef.ts';

/** Delivery modes. */
export const DeliveryMode = { FIXED: 0, LOWEST: 1, SMI: 2, NMI: 4, INIT: 5, STARTUP: 6, EXTINT: 7 } as const;
const BASE_ENABLE = 1n << 11n;
const BASE_EXTD = 1n << 10n;
const BASE_BSP = 1n << 8n;
export const APIC_DEFAULT_BASE = 0xfee00000n;
/** Integrated APIC, six LVT entries. */
const APIC_VERSION = 0x14 | (5 << 16);
const PENDING_INIT = 1;
const PENDING_SIPI = 2;

/** An interrupt message. KVM: struct kvm_lapic_irq. */
export interface LapicIrq {
  vector: number;
  deliveryMode: number;
  /** 0 physical, 1 logical. */
  destMode: 0 | 1;
  dest: number;
  level: boolean;
  /** 0 edge, 1 level. */
  trigMode: 0 | 1;
  /** 0 none, 1 self, 2 all, 3 all but self. */
  shorthand: number;
  lowestPriority: boolean;
}

export class Lapic {
  /** The register page, one 32-bit word per 16 bytes. */
  readonly regs = new Uint32Array(64);
  readonly timer: LapicTimer;
  /** APIC id after reset: the vCPU's. */
  readonly id: number;

  constructor(readonly vcpu: Vcpu) {
    this.id = vcpu.vcpuId;
    this.timer = new LapicTimer(this);
  }
  get(reg: number): number {
    return this.regs[reg >> 4];
  }
  set(reg: number, value: number): void {
    this.regs[reg >> 4] = value;
  }
  get hwEnabled(): boolean {
    return (this.vcpu.arch.apicBase & BASE_ENABLE) !== 0n;
  }
  get swEnabled(): boolean {
    return (this.get(Apic.SPIV) & SPIV_ENABLED) !== 0;
  }
  get x2apic(): boolean {
    return (this.vcpu.arch.apicBase & (BASE_ENABLE | BASE_EXTD)) === (BASE_ENABLE | BASE_EXTD);
  }
  get enabled(): boolean {
    return this.hwEnabled && this.swEnabled;
  }

  testBit(base: number, vector: number): boolean {
    return (this.get(base + (vector >> 5) * 0x10) & (1 << (vector & 31))) !== 0;
  }
  setBit(base: number, vector: number, on: boolean): void {
    const reg = base + (vector >> 5) * 0x10;
    const mask = 1 << (vector & 31);
    this.set(reg, on ? this.get(reg) | mask : this.get(reg) & ~mask);
  }
  /** Highest vector set in IRR, ISR or TMR, -1 for none. */
  highest(base: number): number {
    for (let word = 7; word >= 0; word--) {
      const bits = this.get(base + word * 0x10);
      if (bits !== 0) return word * 32 + 31 - Math.clz32(bits);
    }
    return -1;
  }
  /** PPR: the larger of TPR and the class in service (SDM vol. 3 10.8.3.1). */
  updatePpr(): number {
    const tpr = this.get(Apic.TPR);
    const isr = this.highest(Apic.ISR);
    const isrClass = isr < 0 ? 0 : isr & 0xf0;
    const ppr = (tpr & 0xf0) >= isrClass ? tpr & 0xff : isrClass;
    this.set(Apic.PPR, ppr);
    return ppr;
  }

  save(): unknown {
    return { version: 1, regs: this.regs.slice(), timer: this.timer.save() };
  }
  load(state: unknown): void {
    const s = state as { regs: Uint32Array; timer: unknown };
    this.regs.set(s.regs);
    this.timer.load(s.timer);
  }
}

export const kvmLapicInKernel = (vcpu: Vcpu): boolean => vcpu.arch.apic !== null;

/** KVM: kvm_create_lapic. */
export function kvmCreateLapic(vcpu: Vcpu): void {
  vcpu.arch.apic = new Lapic(vcpu);
}

/** RESET (false) or INIT (true). KVM: kvm_lapic_reset. */
export function kvmLapicReset(vcpu: Vcpu, initEvent: boolean): void {
  const { apic } = vcpu.arch;
  if (!initEvent) {
    const bsp = vcpu.vcpuId === vcpu.vm.bspVcpuId ? BASE_BSP : 0n;
    vcpu.arch.apicBase = APIC_DEFAULT_BASE | BASE_ENABLE | bsp;
  }
  vcpu.arch.cr8 = 0n;
  vcpu.arch.pendingApicEvents = 0;
  if (!apic) return;
  apic.regs.fill(0);
  apic.timer.stop();
  apic.set(Apic.ID, apic.x2apic ? apic.id : (apic.id << 24) >>> 0);
  apic.set(Apic.LVR, APIC_VERSION);
  apic.set(Apic.DFR, 0xffffffff);
  if (apic.x2apic) apic.set(Apic.LDR, x2apicLogicalId(apic.id));
  apic.set(Apic.SPIV, 0xff);
  for (const lvt of LVTS) apic.set(lvt, LVT_MASKED);
  // Quirk LINT0_REENABLED: the boot processor takes the PIC's interrupts without asking.
  if (vcpu.vcpuId === vcpu.vm.bspVcpuId && (vcpu.vm.disabledQuirks & 1) === 0) apic.set(Apic.LVT0, 0x700);
}
const x2apicLogicalId = (id: number): number => (((id >> 4) << 16) | (1 << (id & 15))) >>> 0;

/** TPR from CR8's four bits. KVM: kvm_lapic_set_tpr. */
export function lapicSetTpr(apic: Lapic, cr8: bigint): void {
  setTpr(apic, Number(cr8 & 0xfn) << 4);
}
export function setTpr(apic: Lapic, tpr: number): void {
  const before = apic.get(Apic.PPR);
  apic.set(Apic.TPR, tpr & 0xff);
  if (apic.updatePpr() < before) kvmMakeRequest(Req.EVENT, apic.vcpu);
}
/** CR8 from the TPR. KVM: kvm_lapic_get_cr8. */
export const lapicGetTpr = (apic: Lapic): bigint => BigInt((apic.get(Apic.TPR) & 0xf0) >> 4);

/** Puts a vector into the IRR. The vendor's deliverInterrupt calls it. KVM: kvm_lapic_set_irr. */
export function kvmLapicSetIrr(vector: number, apic: Lapic): void {
  apic.setBit(Apic.IRR, vector, true);
}
/** What a vendor without posted interrupts does to deliver: IRR, request, wake. KVM: svm_complete_interrupt_delivery and its twin. */
export function kvmLapicDeliver(vcpu: Vcpu, vector: number): void {
  if (!vcpu.arch.apic) return;
  kvmLapicSetIrr(vector, vcpu.arch.apic);
  kvmMakeRequest(Req.EVENT, vcpu);
}
export const kvmLapicFindHighestIrr = (apic: Lapic): number => apic.highest(Apic.IRR);

/** Vector above PPR that waits, -1 for none. KVM: kvm_apic_has_interrupt. */
export function kvmApicHasInterrupt(vcpu: Vcpu): number {
  const { apic } = vcpu.arch;
  if (!apic?.enabled) return -1;
  const irr = apic.highest(Apic.IRR);
  return irr < 0 || (irr & 0xf0) <= (apic.updatePpr() & 0xf0) ? -1 : irr;
}
/** Moves it from IRR to ISR. KVM: kvm_get_apic_interrupt. */
export function kvmGetApicInterrupt(vcpu: Vcpu): number {
  const vector = kvmApicHasInterrupt(vcpu);
  const { apic } = vcpu.arch;
  if (vector < 0 || !apic) return -1;
  apic.setBit(Apic.IRR, vector, false);
  apic.setBit(Apic.ISR, vector, true);
  apic.updatePpr();
  return vector;
}

/** Does this vCPU take the PIC's interrupts: ExtINT on LINT0, or an APIC that is off. KVM: kvm_apic_accept_pic_intr. */
export function kvmApicAcceptPicIntr(vcpu: Vcpu): boolean {
  const { apic } = vcpu.arch;
  if (!apic?.hwEnabled) return vcpu.vcpuId === vcpu.vm.bspVcpuId;
  const lvt0 = apic.get(Apic.LVT0);
  return (lvt0 & LVT_MASKED) === 0 && ((lvt0 >> 8) & 7) === DeliveryMode.EXTINT;
}
/** The PIC's output rose. KVM: kvm_pic_irq wake-up. */
export function kvmPicWakeup(vm: Vm): void {
  for (const vcpu of vm.vcpus) {
    if (kvmApicAcceptPicIntr(vcpu)) kvmMakeRequest(Req.EVENT, vcpu);
  }
}

/** Accepts a message into one APIC. False: it can't take it. KVM: __apic_accept_irq. */
export function kvmApicSetIrq(vcpu: Vcpu, irq: LapicIrq): boolean {
  const { apic, mpState } = vcpu.arch;
  if (!apic) return false;
  trace(vcpu, 'kvm_apic_accept_irq', () => ({
    apicid: apic.id,
    dm: irq.deliveryMode,
    tm: irq.trigMode,
    vec: irq.vector,
  }));
  switch (irq.deliveryMode) {
    case DeliveryMode.FIXED:
    case DeliveryMode.LOWEST:
      if (!apic.enabled) return false;
      apic.setBit(Apic.TMR, irq.vector, irq.trigMode === 1);
      vcpu.kvm.calls.deliverInterrupt(vcpu, irq.deliveryMode, irq.trigMode, irq.vector);
      return true;
    case DeliveryMode.SMI:
      kvmInjectSmi(vcpu);
      return true;
    case DeliveryMode.NMI:
      kvmInjectNmi(vcpu);
      return true;
    case DeliveryMode.INIT:
      if (irq.trigMode === 1 && !irq.level) return true;
      vcpu.arch.pendingApicEvents = PENDING_INIT;
      kvmMakeRequest(Req.EVENT, vcpu);
      return true;
    case DeliveryMode.STARTUP:
      vcpu.arch.sipiVector = irq.vector;
      vcpu.arch.pendingApicEvents |= PENDING_SIPI;
      kvmMakeRequest(Req.EVENT, vcpu);
      return true;
    default:
      // ExtINT messages do nothing by themselves: the PIC's output tells.
      return mpState !== undefined;
  }
}

/** Logical destination match (SDM vol. 3 10.6.2.2). KVM: kvm_apic_match_logical_addr. */
function matchesLogical(apic: Lapic, dest: number): boolean {
  const ldr = apic.get(Apic.LDR);
  if (apic.x2apic) return ldr >>> 16 === dest >>> 16 && (ldr & dest & 0xffff) !== 0;
  const mine = ldr >>> 24;
  if (apic.get(Apic.DFR) >>> 28 === 0xf) return (mine & dest) !== 0;
  return mine >> 4 === dest >> 4 && (mine & dest & 0xf) !== 0;
}
/**
 * Physical destination match: in xAPIC mode by the APIC ID register, which the guest may write; an ID that does not fit it is the vCPU's own.
 * KVM: kvm_apic_match_physical_addr.
 */
const matchesPhysical = (apic: Lapic, dest: number): boolean =>
  (apic.x2apic || dest > 0xff ? apic.id : apic.get(Apic.ID) >>> 24) === dest;

/** KVM: kvm_apic_match_dest. */
function matches(apic: Lapic, source: Lapic | undefined, irq: LapicIrq): boolean {
  if (irq.shorthand === 1) return apic === source;
  if (irq.shorthand === 2) return true;
  if (irq.shorthand === 3) return apic !== source;
  const broadcast = source?.x2apic ? 0xffffffff : 0xff;
  if (irq.dest >>> 0 === broadcast) return true;
  return irq.destMode === 0 ? matchesPhysical(apic, irq.dest >>> 0) : matchesLogical(apic, irq.dest);
}

/** Sends a message to all that it addresses; lowest priority: to one. KVM: kvm_irq_delivery_to_apic. */
export function kvmIrqDeliveryToApic(vm: Vm, irq: LapicIrq, source?: Lapic): boolean {
  const targets = vm.vcpus.filter((vcpu) => vcpu.arch.apic?.hwEnabled && matches(vcpu.arch.apic, source, irq));
  const lowest = irq.deliveryMode === DeliveryMode.LOWEST || irq.lowestPriority;
  if (lowest) {
    const able = targets.filter((vcpu) => vcpu.arch.apic?.enabled);
    // Round robin by vector keeps the choice deterministic.
    return able.length > 0 && kvmApicSetIrq(able[irq.vector % able.length], irq);
  }
  let accepted = false;
  for (const vcpu of targets) accepted = kvmApicSetIrq(vcpu, irq) || accepted;
  return accepted;
}

/** ICR was written. KVM: kvm_apic_send_ipi. */
export function sendIpi(apic: Lapic, icrLow: number, dest: number): void {
  trace(apic.vcpu, 'kvm_apic_ipi', () => ({ icrLow, dest }));
  kvmIrqDeliveryToApic(
    apic.vcpu.vm,
    {
      vector: icrLow & 0xff,
      deliveryMode: (icrLow >> 8) & 7,
      destMode: ((icrLow >> 11) & 1) as 0 | 1,
      level: ((icrLow >> 14) & 1) !== 0,
      trigMode: ((icrLow >> 15) & 1) as 0 | 1,
      shorthand: (icrLow >> 18) & 3,
      dest,
      lowestPriority: false,
    },
    apic,
  );
}

/**
 * KVM_HC_SEND_IPI: one message to every vCPU whose bit is set, from APIC id `min` on.
 * @param bitmap 128 bits for a 64-bit caller, 64 bits for others
 * @returns how many took it, or -KVM_EINVAL (-22). KVM: kvm_pv_send_ipi
 */
export function kvmPvSendIpi(vm: Vm, bitmap: bigint, min: number, icr: number): number {
  // Destination mode and shorthand make no sense beside a bitmap.
  if ((icr & ((1 << 11) | (3 << 18))) !== 0) return -22;
  const irq: Omit<LapicIrq, 'dest'> = {
    vector: icr & 0xff,
    deliveryMode: (icr >> 8) & 7,
    destMode: 0,
    level: ((icr >> 14) & 1) !== 0,
    trigMode: ((icr >> 15) & 1) as 0 | 1,
    shorthand: 0,
    lowestPriority: false,
  };
  let count = 0;
  for (const vcpu of vm.vcpus) {
    const id = vcpu.arch.apic?.id;
    if (id === undefined || id < min || ((bitmap >> BigInt(id - min)) & 1n) === 0n) continue;
    if (kvmApicSetIrq(vcpu, { ...irq, dest: id })) count++;
  }
  return count;
}

/** Fires an LVT. KVM: kvm_apic_local_deliver. */
export function kvmApicLocalDeliver(apic: Lapic, lvt: number): boolean {
  const value = apic.get(lvt);
  if (!apic.hwEnabled || (value & LVT_MASKED) !== 0) return false;
  return kvmApicSetIrq(apic.vcpu, {
    vector: value & 0xff,
    deliveryMode: lvt === Apic.LVTT || lvt === Apic.LVTERR ? 0 : (value >> 8) & 7,
    destMode: 0,
    dest: apic.id,
    level: true,
    trigMode: ((value >> 15) & 1) as 0 | 1,
    shorthand: 0,
    lowestPriority: false,
  });
}

/** IA32_APIC_BASE. 0, or 1: reserved bits or a forbidden change of mode. KVM: kvm_set_apic_base. */
export function kvmSetApicBase(vcpu: Vcpu, value: bigint, hostInitiated: boolean): number {
  const mode = (base: bigint): bigint => base & (BASE_ENABLE | BASE_EXTD);
  const reserved = vcpu.arch.reservedGpaBits | 0x2ffn | (guestCpuidHas(vcpu, 'x2apic') ? 0n : BASE_EXTD);
  if ((value & reserved) !== 0n || mode(value) === BASE_EXTD) return 1;
  const old = vcpu.arch.apicBase;
  if (!hostInitiated) {
    // x2APIC can't go back to xAPIC, nor off to x2APIC (SDM vol. 3 figure 10-27).
    if (mode(old) === (BASE_ENABLE | BASE_EXTD) && mode(value) === BASE_ENABLE) return 1;
    if (mode(old) === 0n && mode(value) === (BASE_ENABLE | BASE_EXTD)) return 1;
  }
  vcpu.arch.apicBase = value;
  if (((old ^ value) & BASE_ENABLE) !== 0n) kvmUpdateCpuidRuntime(vcpu);
  const { apic } = vcpu.arch;
  if (apic && mode(old) !== mode(value)) {
    apic.set(Apic.ID, apic.x2apic ? apic.id : (apic.id << 24) >>> 0);
    if (apic.x2apic) apic.set(Apic.LDR, x2apicLogicalId(apic.id));
    vcpu.kvm.calls.setVirtualApicMode(vcpu);
  }
  return 0;
}

/** Is INIT or SIPI waiting and may be taken. */
export const lapicHasInitOrSipi = (vcpu: Vcpu): boolean =>
  vcpu.arch.pendingApicEvents !== 0 && !isSmm(vcpu) && !vcpu.kvm.calls.apicInitSignalBlocked(vcpu);

/** Takes INIT and SIPI. KVM: kvm_apic_accept_events. */
export function kvmApicAcceptEvents(vcpu: Vcpu): void {
  const { arch, kvm } = vcpu;
  if (!arch.apic || arch.pendingApicEvents === 0) return;
  if (isSmm(vcpu) || kvm.calls.apicInitSignalBlocked(vcpu)) {
    // A SIPI that comes at a bad time is lost; INIT waits.
    arch.pendingApicEvents &= ~PENDING_SIPI;
    return;
  }
  if ((arch.pendingApicEvents & PENDING_INIT) !== 0) {
    const sipi = arch.pendingApicEvents & PENDING_SIPI;
    kvmVcpuReset(vcpu, true);
    arch.pendingApicEvents = sipi;
    arch.mpState = vcpu.vcpuId === vcpu.vm.bspVcpuId ? MpState.RUNNABLE : MpState.INIT_RECEIVED;
  }
  if ((arch.pendingApicEvents & PENDING_SIPI) !== 0) {
    arch.pendingApicEvents &= ~PENDING_SIPI;
    if (arch.mpState === MpState.INIT_RECEIVED) {
      kvm.calls.vcpuDeliverSipiVector(vcpu, arch.sipiVector);
      arch.mpState = MpState.RUNNABLE;
    }
  }
}
