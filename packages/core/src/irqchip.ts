/** The interrupt controllers of a VM together: wiring of lines, routing, in-kernel ports. KVM: irq.c, irq_comm.c. */
import { KvmError } from './diagnostics.ts';
import { Pit } from './i8254.ts';
import { Pic } from './i8259.ts';
import { Ioapic } from './ioapic.ts';
import { kvmIrqDeliveryToApic } from './lapic.ts';
import { trace } from './trace.ts';
import { Errno } from './types.ts';
import type { Vm } from './vm.ts';

/** struct kvm_irq_routing_entry. */
export type RoutingEntry =
  | { gsi: number; type: 'irqchip'; irqchip: 'pic-master' | 'pic-slave' | 'ioapic'; pin: number }
  | { gsi: number; type: 'msi'; address: bigint; data: number };

export class Irqchip {
  readonly pic: Pic;
  readonly ioapic: Ioapic;
  /** KVM_CREATE_PIT2. */
  pit: Pit | null = null;
  /** Entries by GSI. */
  readonly #routes = new Map<number, RoutingEntry[]>();
  /** Level that each source drives on a GSI: bit per source. */
  readonly #levels = new Map<number, number>();

  constructor(readonly vm: Vm) {
    this.pic = new Pic(vm);
    this.ioapic = new Ioapic(vm);
    this.setRouting(defaultRouting());
  }

  /** KVM_SET_GSI_ROUTING: replaces all. */
  setRouting(entries: readonly RoutingEntry[]): void {
    this.#routes.clear();
    for (const entry of entries) {
      const list = this.#routes.get(entry.gsi);
      if (list) list.push(entry);
      else this.#routes.set(entry.gsi, [entry]);
    }
  }
  routing(): RoutingEntry[] {
    return [...this.#routes.values()].flat();
  }

  /** Drives a line from one source. KVM: kvm_set_irq. */
  setIrq(gsi: number, level: boolean, source = 0): void {
    const before = this.#levels.get(gsi) ?? 0;
    const now = level ? before | (1 << source) : before & ~(1 << source);
    this.#levels.set(gsi, now);
    trace(this.vm, 'kvm_set_irq', () => ({ gsi, level: level ? 1 : 0, source }));
    for (const entry of this.#routes.get(gsi) ?? []) this.#drive(entry, now !== 0);
  }
  #drive(entry: RoutingEntry, level: boolean): void {
    if (entry.type === 'msi') {
      if (level) kvmSetMsi(this.vm, entry.address, entry.data);
    } else if (entry.irqchip === 'ioapic') this.ioapic.setIrq(entry.pin, level);
    else this.pic.setIrq(entry.irqchip === 'pic-slave' ? entry.pin + 8 : entry.pin, level);
  }

  /** In-kernel ports. Undefined: nobody in the kernel has it. */
  readPort(port: number): number | undefined {
    return this.pic.read(port) ?? this.pit?.read(port);
  }
  writePort(port: number, value: number): boolean {
    return this.pic.write(port, value) || (this.pit?.write(port, value) ?? false);
  }

  save(): unknown {
    return {
      version: 1,
      pic: this.pic.save(),
      ioapic: this.ioapic.save(),
      pit: this.pit?.save() ?? null,
      levels: [...this.#levels],
      routing: this.routing(),
    };
  }
  load(state: unknown): void {
    const s = state as {
      pic: unknown;
      ioapic: unknown;
      pit: unknown;
      levels: [number, number][];
      routing: RoutingEntry[];
    };
    this.pic.load(s.pic);
    this.ioapic.load(s.ioapic);
    if (s.pit) {
      this.pit ??= new Pit(this.vm);
      this.pit.load(s.pit);
    }
    this.#levels.clear();
    for (const [gsi, level] of s.levels) this.#levels.set(gsi, level);
    this.setRouting(s.routing);
  }
}

/** ISA lines go to PIC and IOAPIC alike (IRQ 0 to IOAPIC pin 2), the others to the IOAPIC. KVM: default_routing. */
function defaultRouting(): RoutingEntry[] {
  const out: RoutingEntry[] = [];
  for (let gsi = 0; gsi < 24; gsi++) {
    if (gsi < 16) {
      const irqchip = gsi < 8 ? 'pic-master' : 'pic-slave';
      out.push({ gsi, type: 'irqchip', irqchip, pin: gsi % 8 });
    }
    // Boards wire the PIT to pin 2; KVM's table does so in the IOAPIC itself.
    out.push({ gsi, type: 'irqchip', irqchip: 'ioapic', pin: gsi });
  }
  return out;
}

/** KVM_SIGNAL_MSI and MSI routes. KVM: kvm_set_msi_irq. */
export function kvmSetMsi(vm: Vm, address: bigint, data: number): boolean {
  trace(vm, 'kvm_msi_set_irq', () => ({ address, data }));
  return kvmIrqDeliveryToApic(vm, {
    vector: data & 0xff,
    deliveryMode: (data >>> 8) & 7,
    destMode: Number((address >> 2n) & 1n) as 0 | 1,
    dest: Number((address >> 12n) & 0xffn),
    level: true,
    trigMode: ((data >>> 15) & 1) as 0 | 1,
    shorthand: 0,
    lowestPriority: ((address >> 3n) & 1n) !== 0n,
  });
}

/** KVM_CREATE_IRQCHIP. Throws KvmError IRQCHIP_EXISTS (EEXIST), IRQCHIP_LATE (EINVAL). */
export function kvmCreateIrqchip(vm: Vm): void {
  if (vm.irqchip) throw new KvmError('IRQCHIP_EXISTS', Errno.EEXIST, 'the VM has an irqchip already');
  if (vm.vcpus.length > 0) {
    throw new KvmError('IRQCHIP_LATE', Errno.EINVAL, 'create the irqchip before the first vCPU');
  }
  vm.irqchip = new Irqchip(vm);
}
/** KVM_CREATE_PIT2. Throws KvmError PIT_EXISTS (EEXIST), PIT_WITHOUT_IRQCHIP (EINVAL). */
export function kvmCreatePit2(vm: Vm): void {
  if (!vm.irqchip) throw new KvmError('PIT_WITHOUT_IRQCHIP', Errno.EINVAL, 'create the irqchip before the PIT');
  if (vm.irqchip.pit) throw new KvmError('PIT_EXISTS', Errno.EEXIST, 'the VM has a PIT already');
  vm.irqchip.pit = new Pit(vm);
}
