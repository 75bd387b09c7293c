/**
 * MC146818 real-time clock with 128 bytes of CMOS memory (ports 0x70, 0x71).
 * Manual: Motorola MC146818A data sheet. The clock runs on guest time from a fixed start, so that runs are deterministic.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

const REG_A = 10;
const REG_B = 11;
const REG_C = 12;
const REG_D = 13;
const B_24H = 0x02;
const B_BINARY = 0x04;
const B_UPDATE_IRQ = 0x10;
const B_ALARM_IRQ = 0x20;
const B_PERIODIC_IRQ = 0x40;
const C_IRQ = 0x80;
/** Bit 7 of the hour in 12-hour mode. */
const HOUR_PM = 0x80;
/** An alarm register from here on matches everything. */
const ALARM_ANY = 0xc0;
/** Update-in-progress shows for the last 244 µs of each second. */
const UIP_NS = 244_000;
const SECOND = 1_000_000_000;

/** Where the clock starts unless told otherwise: 2024-01-01 00:00:00 UTC. */
export const DEFAULT_START = Date.UTC(2024, 0, 1) / 1000;

const { integer, time, times, u8, uint } = shape;
const STATE = deviceShape({
  cmos: times(128, u8),
  index: uint(7),
  start: integer(-(2 ** 40), 2 ** 40),
  flagsSince: time,
});

export class Rtc implements Device, PortDevice {
  readonly name = 'rtc';
  readonly stateShape = STATE;
  readonly cmos = new Uint8Array(128);
  #index = 0;
  #start: number;
  #flagsSince = 0;
  readonly #host: DeviceHost;

  constructor(host: DeviceHost, start = DEFAULT_START) {
    this.#host = host;
    this.#start = start;
    this.cmos[REG_A] = 0x26;
    this.cmos[REG_B] = B_24H;
    this.cmos[REG_D] = 0x80;
  }

  read(offset: number): number {
    if (offset === 0) return 0xff;
    const index = this.#index;
    if (index <= 9 || index === 0x32) return this.#time(index);
    if (index === REG_A) return (this.cmos[REG_A] & 0x7f) | (this.#host.now() % SECOND >= SECOND - UIP_NS ? 0x80 : 0);
    if (index === REG_C) return this.#readC();
    return this.cmos[index];
  }
  write(offset: number, _size: number, value: number): void {
    if (offset === 0) {
      this.#index = value & 0x7f;
      return;
    }
    const index = this.#index;
    if (index === REG_C || index === REG_D) return;
    if (index <= 9 && index !== 1 && index !== 3 && index !== 5) {
      this.#setTime(index, value & 0xff);
      return;
    }
    this.cmos[index] = value & 0xff;
    if (index === REG_A || index === REG_B) this.#schedule();
  }

  /** Seconds since 1970 of the guest's clock. */
  #seconds(): number {
    return this.#start + Math.floor(this.#host.now() / SECOND);
  }
  #encode(value: number): number {
    return this.cmos[REG_B] & B_BINARY ? value : (Math.floor(value / 10) << 4) | (value % 10);
  }
  #decode(value: number): number {
    return this.cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
  }
  /** The hour register: 1 to 12 with bit 7 for PM, unless register B chooses 24 hours. */
  #encodeHours(hours: number): number {
    if (this.cmos[REG_B] & B_24H) return this.#encode(hours);
    return this.#encode(hours % 12 === 0 ? 12 : hours % 12) | (hours >= 12 ? HOUR_PM : 0);
  }
  #decodeHours(raw: number): number {
    if (this.cmos[REG_B] & B_24H) return this.#decode(raw);
    return (this.#decode(raw & ~HOUR_PM) % 12) + (raw & HOUR_PM ? 12 : 0);
  }
  #time(index: number): number {
    const date = new Date(this.#seconds() * 1000);
    switch (index) {
      case 0:
        return this.#encode(date.getUTCSeconds());
      case 2:
        return this.#encode(date.getUTCMinutes());
      case 4:
        return this.#encodeHours(date.getUTCHours());
      case 6:
        return this.#encode(date.getUTCDay() + 1);
      case 7:
        return this.#encode(date.getUTCDate());
      case 8:
        return this.#encode(date.getUTCMonth() + 1);
      case 9:
        return this.#encode(date.getUTCFullYear() % 100);
      case 0x32:
        return this.#encode(Math.floor(date.getUTCFullYear() / 100));
      default:
        return this.cmos[index];
    }
  }
  #setTime(index: number, raw: number): void {
    const date = new Date(this.#seconds() * 1000);
    const value = this.#decode(raw & 0x7f);
    if (index === 0) date.setUTCSeconds(value);
    else if (index === 2) date.setUTCMinutes(value);
    else if (index === 4) date.setUTCHours(this.#decodeHours(raw));
    else if (index === 7) date.setUTCDate(value);
    else if (index === 8) date.setUTCMonth(value - 1);
    else if (index === 9) date.setUTCFullYear(2000 + value);
    this.#start += Math.floor(date.getTime() / 1000) - this.#seconds();
  }

  /** Periodic interrupt period in ns by the rate bits of register A; 0: off. */
  #period(): number {
    const rate = this.cmos[REG_A] & 15;
    if (rate === 0) return 0;
    return Math.round(SECOND / (32768 >> ((rate <= 2 ? rate + 7 : rate) - 1)));
  }
  #alarmDue(seconds: number): boolean {
    const date = new Date(seconds * 1000);
    const matches = (reg: number, now: number): boolean => this.cmos[reg] >= ALARM_ANY || this.cmos[reg] === now;
    return (
      matches(1, this.#encode(date.getUTCSeconds())) &&
      matches(3, this.#encode(date.getUTCMinutes())) &&
      matches(5, this.#encodeHours(date.getUTCHours()))
    );
  }
  #readC(): number {
    const value = this.cmos[REG_C];
    this.cmos[REG_C] = 0;
    this.#host.setIrq(8, false);
    return value;
  }
  #schedule(): void {
    const now = this.#host.now();
    const b = this.cmos[REG_B];
    let next = Number.POSITIVE_INFINITY;
    const period = this.#period();
    if (b & B_PERIODIC_IRQ && period > 0) next = (Math.floor(now / period) + 1) * period;
    if (b & (B_UPDATE_IRQ | B_ALARM_IRQ)) next = Math.min(next, (Math.floor(now / SECOND) + 1) * SECOND);
    this.#flagsSince = now;
    if (Number.isFinite(next)) this.#host.callAt('rtc', next, () => this.#fire());
  }
  #fire(): void {
    const now = this.#host.now();
    const b = this.cmos[REG_B];
    const period = this.#period();
    let flags = 0;
    if (b & B_PERIODIC_IRQ && period > 0 && Math.floor(now / period) > Math.floor(this.#flagsSince / period))
      flags |= 0x40;
    if (Math.floor(now / SECOND) > Math.floor(this.#flagsSince / SECOND)) {
      flags |= 0x10;
      if (this.#alarmDue(this.#seconds())) flags |= 0x20;
    }
    this.cmos[REG_C] |= flags;
    if (flags & b & (B_PERIODIC_IRQ | B_ALARM_IRQ | B_UPDATE_IRQ)) {
      this.cmos[REG_C] |= C_IRQ;
      this.#host.setIrq(8, true);
    }
    this.#schedule();
  }

  save(): DeviceState {
    return { version: 1, cmos: [...this.cmos], index: this.#index, start: this.#start, flagsSince: this.#flagsSince };
  }
  load(state: DeviceState): void {
    this.cmos.set(state.cmos as number[]);
    this.#index = state.index as number;
    this.#start = state.start as number;
    this.#schedule();
    this.#flagsSince = state.flagsSince as number;
  }
}
