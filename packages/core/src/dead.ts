/** Is a machine halted for good? KVM has no counterpart: there such a vCPU sleeps until user space gives it up. */
import { Apic, LVT_MASKED } from './apicdef.ts';
import { isGuestMode } from './kvm-cache-regs.ts';
import { DeliveryMode } from './lapic.ts';
import { MpState } from './types.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

const IOAPIC_MASKED = 1n << 16n;

/** Delivery modes that RFLAGS.IF does not hold back. */
const isUnmaskable = (mode: number): boolean =>
  mode === DeliveryMode.NMI || mode === DeliveryMode.SMI || mode === DeliveryMode.INIT;

/** Does an unmasked local interrupt line deliver an NMI, as watchdogs are wired. */
function hasLocalNmi(vcpu: Vcpu): boolean {
  const { apic } = vcpu.arch;
  if (!apic) return true;
  return [Apic.LVT0, Apic.LVTPC].some((lvt) => {
    const value = apic.get(lvt);
    return (value & LVT_MASKED) === 0 && isUnmaskable((value >> 8) & 7);
  });
}

function isDead(vcpu: Vcpu): boolean {
  const { arch } = vcpu;
  if (arch.mpState === MpState.UNINITIALIZED || arch.mpState === MpState.INIT_RECEIVED) return true;
  if (arch.mpState !== MpState.HALTED || isGuestMode(vcpu) || arch.guestStateProtected) return false;
  return !vcpu.kvm.calls.getIfFlag(vcpu) && !hasLocalNmi(vcpu);
}

/**
 * Has every processor stopped where nothing inside the machine can wake it: HLT with interrupts off (or never started), and no line is wired
 * to NMI, SMI or INIT. That is how a kernel halts that can't switch the power off; timers that still tick don't matter then.
 */
export function vmIsDead(vm: Vm): boolean {
  if (!vm.irqchip || !vm.vcpus.every(isDead)) return false;
  return vm.irqchip.ioapic.table.every(
    (entry) => (entry & IOAPIC_MASKED) !== 0n || !isUnmaskable(Number((entry >> 8n) & 7n)),
  );
}
