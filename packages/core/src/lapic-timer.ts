/** The local APIC's timer: one-shot, periodic, TSC deadline. KVM: struct kvm_timer in lapic.c; manual: SDM vol. 3 10.5.4. */
import { Apic, kvmApicLocalDeliver, type Lapic } from './lapic.ts';

/** KVM_APIC_BUS_CYCLE_NS: the bus runs at 1 GHz. */
const BUS_CYCLE_NS = 1;
const MODE_PERIODIC = 1;
const MODE_TSC_DEADLINE = 2;

export class LapicTimer {
  /** IA32_TSC_DEADLINE. */
  tscDeadline = 0n;
  #deadline = Number.POSITIVE_INFINITY;

  constructor(readonly apic: Lapic) {}

  /** Tick of the next expiry, Infinity: stopped. */
  get deadline(): number {
    return this.#deadline;
  }
  set deadline(tick: number) {
    this.#deadline = tick;
    this.apic.vcpu.vm.timersChanged();
  }
  get #mode(): number {
    return (this.apic.get(Apic.LVTT) >> 17) & 3;
  }
  get isTscDeadline(): boolean {
    return this.#mode === MODE_TSC_DEADLINE;
  }
  /** Divisor 1..128 (bits 3, 1, 0 of the divide register). */
  #divisor(): number {
    const tdcr = this.apic.get(Apic.TDCR);
    const shift = ((tdcr & 3) | ((tdcr & 8) >> 1)) + 1;
    return 1 << (shift & 7);
  }
  #ticksPerCount(): number {
    return (this.#divisor() * BUS_CYCLE_NS) / this.apic.vcpu.kvm.nsPerTick;
  }

  stop(): void {
    this.deadline = Number.POSITIVE_INFINITY;
    this.tscDeadline = 0n;
  }
  /** LVTT's mode has changed; only to and from TSC-deadline mode the timer is disarmed. KVM: apic_update_lvtt. */
  modeChanged(before: number): void {
    if (before !== MODE_TSC_DEADLINE && !this.isTscDeadline) return;
    this.stop();
    this.apic.set(Apic.TMICT, 0);
  }
  /** TMICT was written. */
  start(): void {
    const initial = this.apic.get(Apic.TMICT);
    const now = this.apic.vcpu.kvm.now();
    this.deadline = initial === 0 ? Number.POSITIVE_INFINITY : now + initial * this.#ticksPerCount();
  }
  /** TDCR was written while the timer ran. */
  rescale(left: number): void {
    if (this.deadline === Number.POSITIVE_INFINITY || this.isTscDeadline) return;
    this.deadline = this.apic.vcpu.kvm.now() + left * this.#ticksPerCount();
  }
  /** TMCCT. */
  currentCount(): number {
    if (this.isTscDeadline || this.deadline === Number.POSITIVE_INFINITY) return 0;
    const left = this.deadline - this.apic.vcpu.kvm.now();
    return left <= 0 ? 0 : Math.min(0xffffffff, Math.floor(left / this.#ticksPerCount()));
  }
  /** IA32_TSC_DEADLINE was written (guest TSC). */
  setTscDeadline(value: bigint): void {
    if (!this.isTscDeadline) return;
    this.tscDeadline = value;
    const { vcpu } = this.apic;
    if (value === 0n) {
      this.deadline = Number.POSITIVE_INFINITY;
      return;
    }
    const hostTsc = value - BigInt.asIntN(64, vcpu.arch.tscOffset);
    this.deadline = Math.max(Math.ceil(Number(hostTsc) / vcpu.kvm.tscPerTick), vcpu.kvm.now());
  }

  /** Fires if due. KVM: apic_timer_fn and kvm_inject_apic_timer_irqs. */
  run(): void {
    const now = this.apic.vcpu.kvm.now();
    if (now < this.deadline) return;
    if (this.#mode === MODE_PERIODIC) {
      const period = Math.max(1, this.apic.get(Apic.TMICT) * this.#ticksPerCount());
      // Expiries that were missed count as one (KVM coalesces them in the IRR).
      this.deadline += period * (Math.floor((now - this.deadline) / period) + 1);
    } else {
      this.deadline = Number.POSITIVE_INFINITY;
      if (this.isTscDeadline) this.tscDeadline = 0n;
    }
    kvmApicLocalDeliver(this.apic, Apic.LVTT);
  }

  save(): unknown {
    return { version: 1, tscDeadline: this.tscDeadline, deadline: this.deadline };
  }
  load(state: unknown): void {
    const s = state as { tscDeadline: bigint; deadline: number };
    this.tscDeadline = s.tscDeadline;
    this.deadline = s.deadline;
  }
}
