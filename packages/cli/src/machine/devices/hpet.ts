/**
 * High-precision event timers: one 64-bit counter of 10 ns and three timers on IOAPIC lines 20 to 23, without the legacy replacement route.
 * Manual: IA-PC HPET Specification 1.0a, chapter 2. The counter runs on guest time.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type MmioDevice } from '../bus.ts';

/** Where a PC has it; 1 KiB of registers. */
export const HPET_BASE = 0xfed00000;
export const HPET_LENGTH = 0x400;

const PERIOD_NS = 10;
const PERIOD_FS = 10_000_000n;
const TIMERS = 3;
/** COUNTER_CLK_PERIOD, vendor 8086h, COUNT_SIZE_CAP (64 bits), NUM_TIM_CAP, revision 1 (2.3.4). */
const CAPABILITIES = (PERIOD_FS << 32n) | 0x8086_0000n | (1n << 13n) | BigInt((TIMERS - 1) << 8) | 1n;
const GENERAL_CAPABILITIES = 0x00;
const GENERAL_CONFIGURATION = 0x10;
const INTERRUPT_STATUS = 0x20;
const MAIN_COUNTER = 0xf0;
const FIRST_TIMER = 0x100;
const TIMER_STRIDE = 0x20;
const ENABLE_CNF = 1n;

/** Tn_INT_ROUTE_CAP: lines 20 to 23. */
const ROUTES = 0x00f0_0000n;
const INT_TYPE_LEVEL = 1n << 1n;
const INT_ENB = 1n << 2n;
const TYPE_PERIODIC = 1n << 3n;
const VAL_SET = 1n << 6n;
const MODE_32 = 1n << 8n;
const INT_ROUTE = 0x1fn << 9n;
const WRITABLE = INT_TYPE_LEVEL | INT_ENB | TYPE_PERIODIC | MODE_32 | INT_ROUTE;
/** PER_INT_CAP and SIZE_CAP beside the routes. */
const TIMER_CAPABILITIES = (ROUTES << 32n) | 0x30n;

interface Timer {
  configuration: bigint;
  comparator: bigint;
  period: bigint;
  /** The next write to the comparator sets it although the timer is periodic (Tn_VAL_SET_CNF). */
  setsValue: boolean;
  /** Guest time at which the counter meets the comparator. */
  due: number;
}

const { flag, struct, timeOrNever, times, u64, u8 } = shape;
const STATE = deviceShape({
  enabled: flag,
  base: u64,
  status: u8,
  timers: times(
    TIMERS,
    struct({ configuration: u64, comparator: u64, period: u64, setsValue: flag, due: timeOrNever }),
  ),
});

export class Hpet implements Device, MmioDevice {
  readonly name = 'hpet';
  readonly stateShape = STATE;
  #enabled = false;
  /** The counter's value where it stands, or its value less the guest's clock where it runs. */
  #base = 0n;
  #status = 0;
  #timers: Timer[];
  readonly #host: DeviceHost;

  constructor(host: DeviceHost) {
    this.#host = host;
    this.#timers = Array.from({ length: TIMERS }, () => ({
      configuration: 0n,
      comparator: (1n << 64n) - 1n,
      period: 0n,
      setsValue: false,
      due: Number.POSITIVE_INFINITY,
    }));
  }

  /** Registers are 64 bits wide and may be read by halves. */
  read(offset: number, size: number): bigint {
    const value = this.#register(offset & ~7) >> BigInt(8 * (offset & 7));
    return BigInt.asUintN(8 * size, value);
  }
  write(offset: number, size: number, value: bigint): void {
    const at = offset & ~7;
    const shift = BigInt(8 * (offset & 7));
    const mask = BigInt.asUintN(64, BigInt.asUintN(8 * size, -1n) << shift);
    const bits = (value << shift) & mask;
    if (at === INTERRUPT_STATUS) this.#clearStatus(Number(bits & 0xffn));
    else this.#setRegister(at, (this.#register(at) & ~mask) | bits);
  }

  #clock(): bigint {
    return BigInt(Math.floor(this.#host.now() / PERIOD_NS));
  }
  #counter(): bigint {
    return this.#enabled ? BigInt.asUintN(64, this.#base + this.#clock()) : this.#base;
  }
  #timerAt(at: number): Timer | undefined {
    return at < FIRST_TIMER ? undefined : this.#timers[Math.floor((at - FIRST_TIMER) / TIMER_STRIDE)];
  }
  #register(at: number): bigint {
    if (at === GENERAL_CAPABILITIES) return CAPABILITIES;
    if (at === GENERAL_CONFIGURATION) return this.#enabled ? ENABLE_CNF : 0n;
    if (at === INTERRUPT_STATUS) return BigInt(this.#status);
    if (at === MAIN_COUNTER) return this.#counter();
    const timer = this.#timerAt(at);
    if (at % TIMER_STRIDE === 0) return timer ? timer.configuration | TIMER_CAPABILITIES : 0n;
    return at % TIMER_STRIDE === 8 && timer ? timer.comparator : 0n;
  }
  #setRegister(at: number, value: bigint): void {
    if (at === GENERAL_CONFIGURATION) this.#enable((value & ENABLE_CNF) !== 0n);
    else if (at === MAIN_COUNTER) this.#base = this.#enabled ? BigInt.asUintN(64, value - this.#clock()) : value;
    else this.#setTimer(at, value);
    this.#schedule();
  }
  #setTimer(at: number, value: bigint): void {
    const timer = this.#timerAt(at);
    if (!timer) return;
    if (at % TIMER_STRIDE === 0) {
      timer.setsValue = (value & VAL_SET) !== 0n;
      timer.configuration = value & WRITABLE;
      if (this.#isNarrow(timer)) timer.comparator &= 0xffff_ffffn;
    } else if (at % TIMER_STRIDE === 8) this.#setComparator(timer, value);
  }
  /** For a periodic timer what is written is the period, too, unless Tn_VAL_SET_CNF asks for the comparator alone (2.3.9.2.2). */
  #setComparator(timer: Timer, value: bigint): void {
    const wide = this.#isNarrow(timer) ? value & 0xffff_ffffn : value;
    const isPeriodic = (timer.configuration & TYPE_PERIODIC) !== 0n;
    if (!isPeriodic || timer.setsValue) timer.comparator = wide;
    if (isPeriodic) timer.period = wide;
    timer.setsValue = false;
  }
  #isNarrow(timer: Timer): boolean {
    return (timer.configuration & MODE_32) !== 0n;
  }
  #enable(enabled: boolean): void {
    if (enabled === this.#enabled) return;
    const value = this.#counter();
    this.#enabled = enabled;
    this.#base = enabled ? BigInt.asUintN(64, value - this.#clock()) : value;
  }

  /** Counts until the counter meets the comparator: a full turn if it stands there now. */
  #distance(timer: Timer): bigint {
    const bits = this.#isNarrow(timer) ? 32 : 64;
    const ahead = BigInt.asUintN(bits, timer.comparator - this.#counter());
    return ahead === 0n ? 1n << BigInt(bits) : ahead;
  }
  #schedule(): void {
    for (const timer of this.#timers) {
      const wanted = this.#enabled && (timer.configuration & INT_ENB) !== 0n;
      const at = wanted
        ? (Number(this.#clock()) + Number(this.#distance(timer))) * PERIOD_NS
        : Number.POSITIVE_INFINITY;
      timer.due = at <= shape.MAX_TICK ? at : Number.POSITIVE_INFINITY;
    }
    this.#callBack();
  }
  #callBack(): void {
    const next = Math.min(...this.#timers.map(({ due }) => due));
    if (Number.isFinite(next)) this.#host.callAt('hpet', next, () => this.#fire());
  }
  #fire(): void {
    const now = this.#host.now();
    this.#timers.forEach((timer, index) => {
      if (timer.due <= now) this.#expire(timer, index);
    });
    this.#schedule();
  }
  #expire(timer: Timer, index: number): void {
    const bits = this.#isNarrow(timer) ? 32 : 64;
    if ((timer.configuration & TYPE_PERIODIC) !== 0n && timer.period > 0n) {
      const late = BigInt.asUintN(bits, this.#counter() - timer.comparator);
      timer.comparator = BigInt.asUintN(bits, timer.comparator + (late / timer.period + 1n) * timer.period);
    }
    this.#raise(timer, index);
  }
  #raise(timer: Timer, index: number): void {
    const line = Number((timer.configuration & INT_ROUTE) >> 9n);
    if (((ROUTES >> BigInt(line)) & 1n) === 0n) return;
    this.#host.setIrq(line, true);
    if ((timer.configuration & INT_TYPE_LEVEL) !== 0n) this.#status |= 1 << index;
    else this.#host.setIrq(line, false);
  }
  /** Status bits are cleared by writing 1; a line falls when no timer holds it. */
  #clearStatus(bits: number): void {
    const cleared = this.#status & bits;
    this.#status &= ~bits;
    this.#timers.forEach((timer, index) => {
      if (cleared & (1 << index)) this.#host.setIrq(Number((timer.configuration & INT_ROUTE) >> 9n), false);
    });
  }

  save(): DeviceState {
    const timers = this.#timers.map((timer) => ({ ...timer }));
    return { version: 1, enabled: this.#enabled, base: this.#base, status: this.#status, timers };
  }
  load(state: DeviceState): void {
    this.#enabled = state.enabled as boolean;
    this.#base = state.base as bigint;
    this.#status = state.status as number;
    this.#timers = (state.timers as Timer[]).map((timer) => ({ ...timer }));
    this.#callBack();
  }
}
