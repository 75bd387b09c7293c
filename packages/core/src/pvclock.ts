/** kvmclock: the paravirtual clock page and the wall clock. KVM: kvm_guest_time_update, kvm_write_wall_clock (x86.c). */
import { kvmReadL1Tsc } from './msrs.ts';
import { kvmMakeRequest } from './requests.ts';
import { type MsrData, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const SYSTEM_TIME = 0x12;
const SYSTEM_TIME_NEW = 0x4b564d01;
/** PVCLOCK_TSC_STABLE_BIT. */
const TSC_STABLE = 1;

/** MSR_KVM_SYSTEM_TIME: bit 0 enables, the rest is the page's address. */
export function kvmWriteSystemTime(vcpu: Vcpu, msr: MsrData): number {
  vcpu.arch.msrs.set(SYSTEM_TIME, msr.data);
  vcpu.arch.msrs.set(SYSTEM_TIME_NEW, msr.data);
  kvmMakeRequest(Req.CLOCK_UPDATE, vcpu);
  return 0;
}

/** MSR_KVM_WALL_CLOCK: writes {version, seconds, nanoseconds} of power-on, which is an option: nothing here reads a wall clock. */
export function kvmWriteWallClock(vcpu: Vcpu, msr: MsrData): number {
  vcpu.arch.msrs.set(msr.index, msr.data);
  const gpa = Number(msr.data);
  if (gpa === 0 || !vcpu.vm.isWritable(gpa, 12)) return 0;
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 2, true);
  view.setUint32(4, vcpu.kvm.bootTime, true);
  vcpu.vm.writeGuest(gpa, bytes);
  return 0;
}

/** Fixed-point form of nanoseconds per TSC tick: ns = ((ticks << shift) * mul) >> 32. */
function scale(nsPerTick: number): { mul: number; shift: number } {
  let shift = 0;
  let factor = nsPerTick;
  while (factor >= 1) {
    factor /= 2;
    shift++;
  }
  while (factor < 0.5) {
    factor *= 2;
    shift--;
  }
  return { mul: Math.floor(factor * 2 ** 32), shift };
}

/** Fills the vCPU's pvclock_vcpu_time_info: 32 bytes. */
export function kvmGuestTimeUpdate(vcpu: Vcpu): void {
  const msr = vcpu.arch.msrs.get(SYSTEM_TIME) ?? 0n;
  const gpa = Number(msr & ~1n);
  if ((msr & 1n) === 0n || !vcpu.vm.isWritable(gpa, 32)) return;
  const { mul, shift } = scale(vcpu.kvm.nsPerTick / vcpu.kvm.tscPerTick);
  const old = new DataView(vcpu.vm.readGuest(gpa, 4).buffer).getUint32(0, true);
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, (old + 2) & ~1, true);
  view.setBigUint64(8, kvmReadL1Tsc(vcpu, vcpu.kvm.hostTsc()), true);
  view.setBigUint64(16, BigInt(Math.floor(vcpu.kvm.now() * vcpu.kvm.nsPerTick)), true);
  view.setUint32(24, mul, true);
  view.setInt8(28, shift);
  view.setUint8(29, TSC_STABLE);
  vcpu.vm.writeGuest(gpa, bytes);
}
