/** The I/O APIC: 24 pins, redirection table, remote IRR. KVM: arch/x86/kvm/ioapic.c; manual: Intel 82093AA data sheet. */
import { kvmIrqDeliveryToApic } from './lapic.ts';
import { trace } from './trace.ts';
import type { Vm } from './vm.ts';

export const IOAPIC_BASE = 0xfec00000;
const PINS = 24;
const MASKED = 1n << 16n;
const LEVEL = 1n << 15n;
const REMOTE_IRR = 1n << 14n;
const DELIVERY_STATUS = 1n << 12n;

export class Ioapic {
  #select = 0;
  #id = 0;
  /** Requests, one bit per pin. */
  #irr = 0;
  /** Levels of the pins as last driven. */
  #levels = 0;
  readonly table: bigint[] = new Array<bigint>(PINS).fill(MASKED);

  constructor(readonly vm: Vm) {}

  /** Drives a pin. GSI 0 is wired to pin 2 on PCs; KVM keeps pin 0, as its MP and ACPI tables override IRQ 0. KVM: kvm_ioapic_set_irq. */
  setIrq(gsi: number, level: boolean): void {
    const pin = gsi === 0 ? 2 : gsi;
    if (gsi === 2) return;
    const mask = 1 << pin;
    const rising = level && (this.#levels & mask) === 0;
    this.#levels = level ? this.#levels | mask : this.#levels & ~mask;
    const entry = this.table[pin];
    if (!level) {
      // A request ends with its line, also one that waits behind a mask for an edge.
      this.#irr &= ~mask;
      return;
    }
    if ((entry & LEVEL) === 0n && !rising) return;
    this.#irr |= mask;
    trace(this.vm, 'kvm_ioapic_set_irq', () => ({ entry, pin, coalesced: false }));
    this.#service(pin);
  }

  /** KVM: ioapic_service. */
  #service(pin: number): void {
    const entry = this.table[pin];
    const mask = 1 << pin;
    if ((entry & MASKED) !== 0n || (this.#irr & mask) === 0) return;
    const level = (entry & LEVEL) !== 0n;
    if (level && (entry & REMOTE_IRR) !== 0n) return;
    const accepted = kvmIrqDeliveryToApic(this.vm, {
      vector: Number(entry & 0xffn),
      deliveryMode: Number((entry >> 8n) & 7n),
      destMode: Number((entry >> 11n) & 1n) as 0 | 1,
      dest: Number(entry >> 56n),
      level: true,
      trigMode: level ? 1 : 0,
      shorthand: 0,
      lowestPriority: false,
    });
    if (!accepted) return;
    if (level) this.table[pin] |= REMOTE_IRR;
    else this.#irr &= ~mask;
  }

  /** A local APIC saw EOI for a level-triggered vector. KVM: kvm_ioapic_update_eoi. */
  eoi(vector: number): void {
    for (let pin = 0; pin < PINS; pin++) {
      const entry = this.table[pin];
      if (Number(entry & 0xffn) !== vector) continue;
      this.vm.irqAcknowledged(pin === 2 ? 0 : pin);
      if ((entry & LEVEL) === 0n || (entry & REMOTE_IRR) === 0n) continue;
      this.table[pin] = entry & ~REMOTE_IRR;
      if ((this.#irr & (1 << pin)) !== 0) this.#service(pin);
    }
  }

  /** Does an entry send ExtINT (virtual wire through the IOAPIC). */
  contains(gpa: number): boolean {
    return gpa >= IOAPIC_BASE && gpa < IOAPIC_BASE + 0x100;
  }
  read(gpa: number): number {
    const offset = gpa & 0xff & ~0xf;
    if (offset === 0) return this.#select;
    if (offset !== 0x10) return 0;
    if (this.#select === 0 || this.#select === 2) return (this.#id << 24) >>> 0;
    if (this.#select === 1) return ((PINS - 1) << 16) | 0x11;
    const entry = this.table[(this.#select - 0x10) >> 1];
    if (entry === undefined || this.#select < 0x10) return this.#select < 0x10 ? 0 : 0xffffffff;
    return Number((this.#select & 1) !== 0 ? entry >> 32n : entry & 0xffffffffn);
  }
  write(gpa: number, value: number): void {
    const offset = gpa & 0xff & ~0xf;
    if (offset === 0) this.#select = value & 0xff;
    else if (offset === 0x10) this.#writeRegister(BigInt(value >>> 0));
  }
  #writeRegister(value: bigint): void {
    if (this.#select === 0) this.#id = Number((value >> 24n) & 0xfn);
    const pin = (this.#select - 0x10) >> 1;
    if (this.#select < 0x10 || pin >= PINS) return;
    const old = this.table[pin];
    const readonly = REMOTE_IRR | DELIVERY_STATUS;
    const next =
      (this.#select & 1) !== 0
        ? (old & 0xffffffffn) | (value << 32n)
        : (old & ~0xffffffffn & 0xffffffffffffffffn) | (value & ~readonly) | (old & readonly);
    // An edge entry has no remote IRR: software clears a stuck one by switching the mode.
    this.table[pin] = (next & LEVEL) === 0n ? next & ~REMOTE_IRR : next;
    // Only a level is still a request when its entry is unmasked. KVM: ioapic_write_indirect.
    if ((this.table[pin] & LEVEL) === 0n) return;
    if ((this.#levels & (1 << pin)) !== 0) this.#irr |= 1 << pin;
    this.#service(pin);
  }

  save(): unknown {
    return {
      version: 1,
      select: this.#select,
      id: this.#id,
      irr: this.#irr,
      levels: this.#levels,
      table: [...this.table],
    };
  }
  load(state: unknown): void {
    const s = state as { select: number; id: number; irr: number; levels: number; table: bigint[] };
    this.#select = s.select;
    this.#id = s.id;
    this.#irr = s.irr;
    this.#levels = s.levels;
    s.table.forEach((entry, pin) => {
      this.table[pin] = entry;
    });
  }
}
