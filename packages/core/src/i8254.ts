/** The 8254 interval timer with port 61h. KVM: arch/x86/kvm/i8254.c; manual: Intel 8254 data sheet. */
import type { Vm } from './vm.ts';

const HZ = 1193182;
/** IRQ source id of the PIT. */
const PIT_SOURCE = 2;

interface Channel {
  count: number;
  latchedCount: number;
  /** 0: nothing latched; else which bytes are still to be read, as rwState counts. */
  countLatched: number;
  statusLatched: boolean;
  status: number;
  readState: number;
  writeState: number;
  writeLatch: number;
  rwMode: number;
  mode: number;
  bcd: boolean;
  gate: boolean;
  /** Nanoseconds at which the count was loaded. */
  loadTime: number;
}
const newChannel = (gate: boolean): Channel => ({
  count: 0x10000,
  latchedCount: 0,
  countLatched: 0,
  statusLatched: false,
  status: 0,
  readState: 1,
  writeState: 1,
  writeLatch: 0,
  rwMode: 3,
  mode: 3,
  bcd: false,
  gate,
  loadTime: 0,
});
const LSB = 1;
const MSB = 2;
const WORD0 = 3;
const WORD1 = 4;

export class Pit {
  readonly channels: Channel[] = [newChannel(true), newChannel(true), newChannel(false)];
  #speakerOn = false;
  #edge = Number.POSITIVE_INFINITY;
  /** An edge waits until the interrupt before was acknowledged (KVM: reinjection). */
  #pending = 0;
  #acknowledged = true;

  constructor(readonly vm: Vm) {}

  /** Next edge of channel 0 in nanoseconds, Infinity: none armed. */
  get #nextEdge(): number {
    return this.#edge;
  }
  set #nextEdge(time: number) {
    this.#edge = time;
    this.vm.timersChanged();
  }
  #now(): number {
    return this.vm.kvm.now() * this.vm.kvm.nsPerTick;
  }
  /** Counts since the load. */
  #elapsed(channel: Channel): number {
    return Math.floor(((this.#now() - channel.loadTime) * HZ) / 1e9);
  }
  #counter(channel: Channel): number {
    const d = this.#elapsed(channel);
    switch (channel.mode) {
      case 0:
      case 1:
      case 4:
      case 5:
        return (channel.count - d) & 0xffff;
      case 3:
        // Counts down by two.
        return channel.count - ((2 * d) % channel.count);
      default:
        return channel.count - (d % channel.count);
    }
  }
  #output(channel: Channel): boolean {
    const d = this.#elapsed(channel);
    switch (channel.mode) {
      case 0:
        return d >= channel.count;
      case 1:
        return d < channel.count;
      case 2:
        return d % channel.count !== 0 || d === 0;
      case 3:
        return d % channel.count < (channel.count + 1) >> 1;
      default:
        return d === channel.count;
    }
  }

  #load(index: number, value: number): void {
    const channel = this.channels[index];
    channel.count = value === 0 ? 0x10000 : value;
    channel.loadTime = this.#now();
    if (index === 0) this.#arm();
  }
  #arm(): void {
    const channel = this.channels[0];
    const period = (channel.count * 1e9) / HZ;
    const periodic = channel.mode === 2 || channel.mode === 3;
    const oneShot = channel.mode === 0 || channel.mode === 1 || channel.mode === 4;
    this.#nextEdge = periodic || oneShot ? channel.loadTime + period : Number.POSITIVE_INFINITY;
    this.#pending = 0;
    this.#acknowledged = true;
  }

  /** Tick of the next edge of channel 0, Infinity if none comes. */
  nextDeadline(): number {
    return this.#nextEdge / this.vm.kvm.nsPerTick;
  }
  /** Fires what is due. KVM: pit_timer_fn, pit_do_work. */
  run(): void {
    const now = this.#now();
    if (now < this.#nextEdge) return;
    const channel = this.channels[0];
    if (channel.mode === 2 || channel.mode === 3) {
      const period = (channel.count * 1e9) / HZ;
      const edges = Math.floor((now - this.#nextEdge) / period) + 1;
      this.#nextEdge += edges * period;
      this.#pending += edges;
    } else {
      this.#nextEdge = Number.POSITIVE_INFINITY;
      this.#pending++;
    }
    this.#deliver();
  }
  #deliver(): void {
    if (this.#pending === 0 || !this.#acknowledged) return;
    this.#pending--;
    this.#acknowledged = false;
    const irqchip = this.vm.irqchip;
    irqchip?.setIrq(0, true, PIT_SOURCE);
    irqchip?.setIrq(0, false, PIT_SOURCE);
  }
  /** The guest acknowledged IRQ 0: the next edge that was missed may come. KVM: kvm_pit_ack_irq. */
  acknowledge(): void {
    this.#acknowledged = true;
    this.#deliver();
  }

  #control(value: number): void {
    const select = value >> 6;
    if (select === 3) {
      this.#readBack(value);
      return;
    }
    const channel = this.channels[select];
    const access = (value >> 4) & 3;
    if (access === 0) {
      this.#latch(channel);
      return;
    }
    channel.rwMode = access;
    channel.readState = access === 3 ? WORD0 : access;
    channel.writeState = access === 3 ? WORD0 : access;
    channel.mode = (value >> 1) & 7;
    if (channel.mode > 5) channel.mode -= 4;
    channel.bcd = (value & 1) !== 0;
    if (select === 0) this.#nextEdge = Number.POSITIVE_INFINITY;
  }
  #readBack(value: number): void {
    for (let i = 0; i < 3; i++) {
      if ((value & (2 << i)) === 0) continue;
      const channel = this.channels[i];
      if ((value & 0x20) === 0) this.#latch(channel);
      if ((value & 0x10) === 0 && !channel.statusLatched) {
        channel.status =
          (this.#output(channel) ? 0x80 : 0) | (channel.rwMode << 4) | (channel.mode << 1) | (channel.bcd ? 1 : 0);
        channel.statusLatched = true;
      }
    }
  }
  #latch(channel: Channel): void {
    if (channel.countLatched !== 0) return;
    channel.latchedCount = this.#counter(channel);
    channel.countLatched = channel.rwMode === 3 ? WORD0 : channel.rwMode;
  }

  #writeCount(index: number, value: number): void {
    const channel = this.channels[index];
    switch (channel.writeState) {
      case LSB:
        this.#load(index, value);
        break;
      case MSB:
        this.#load(index, value << 8);
        break;
      case WORD0:
        channel.writeLatch = value;
        channel.writeState = WORD1;
        break;
      default:
        channel.writeState = WORD0;
        this.#load(index, channel.writeLatch | (value << 8));
    }
  }
  #readCount(channel: Channel): number {
    if (channel.statusLatched) {
      channel.statusLatched = false;
      return channel.status;
    }
    if (channel.countLatched !== 0) return this.#readLatched(channel);
    const count = this.#counter(channel);
    switch (channel.readState) {
      case LSB:
        return count & 0xff;
      case MSB:
        return (count >> 8) & 0xff;
      case WORD0:
        channel.readState = WORD1;
        return count & 0xff;
      default:
        channel.readState = WORD0;
        return (count >> 8) & 0xff;
    }
  }
  #readLatched(channel: Channel): number {
    const { latchedCount, countLatched } = channel;
    channel.countLatched = countLatched === WORD0 ? MSB : 0;
    return countLatched === MSB ? (latchedCount >> 8) & 0xff : latchedCount & 0xff;
  }

  /** Port read, undefined: not ours. */
  read(port: number): number | undefined {
    if (port === 0x61) {
      const two = this.channels[2];
      // Bit 4 toggles with memory refresh, about every 15 us.
      const refresh = Math.floor(this.#now() / 15085) & 1;
      return (this.#speakerOn ? 2 : 0) | (two.gate ? 1 : 0) | (this.#output(two) ? 0x20 : 0) | (refresh << 4);
    }
    if (port < 0x40 || port > 0x43) return undefined;
    return port === 0x43 ? 0 : this.#readCount(this.channels[port & 3]);
  }
  /** Port write, false: not ours. */
  write(port: number, value: number): boolean {
    if (port === 0x61) {
      this.#speakerOn = (value & 2) !== 0;
      this.#setGate(2, (value & 1) !== 0);
      return true;
    }
    if (port < 0x40 || port > 0x43) return false;
    if (port === 0x43) this.#control(value & 0xff);
    else this.#writeCount(port & 3, value & 0xff);
    return true;
  }
  #setGate(index: number, gate: boolean): void {
    const channel = this.channels[index];
    // A rising gate restarts modes 1, 2, 3 and 5.
    if (gate && !channel.gate && [1, 2, 3, 5].includes(channel.mode)) channel.loadTime = this.#now();
    channel.gate = gate;
  }

  save(): unknown {
    return {
      version: 1,
      channels: this.channels.map((channel) => ({ ...channel })),
      speakerOn: this.#speakerOn,
      nextEdge: this.#nextEdge,
      pending: this.#pending,
      acknowledged: this.#acknowledged,
    };
  }
  load(state: unknown): void {
    const s = state as {
      channels: Channel[];
      speakerOn: boolean;
      nextEdge: number;
      pending: number;
      acknowledged: boolean;
    };
    for (let i = 0; i < 3; i++) Object.assign(this.channels[i], s.channels[i]);
    this.#speakerOn = s.speakerOn;
    this.#nextEdge = s.nextEdge;
    this.#pending = s.pending;
    this.#acknowledged = s.acknowledged;
  }
}
