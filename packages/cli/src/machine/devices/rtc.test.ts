/** The hour in its four forms: 12 or 24 hours, BCD or binary. */
import { describe, expect, it } from 'vitest';
import type { DeviceHost } from '../bus.ts';
import { Rtc } from './rtc.ts';

const HOUR = 4;
const HOUR_ALARM = 5;
const BINARY_24 = 0x06;

function makeRtc(): {
  rtc: Rtc;
  read: (index: number) => number;
  write: (index: number, value: number) => void;
  pass: (seconds: number) => void;
  irqs: () => number;
} {
  let now = 0;
  let due: { time: number; callback: () => void } | undefined;
  let irqs = 0;
  const host: DeviceHost = {
    setIrq: (_line, level) => {
      if (level) irqs++;
    },
    now: () => now,
    callAt: (_key, time, callback) => {
      due = { time, callback };
    },
    readMemory: (_gpa, length) => new Uint8Array(length),
    writeMemory: () => {},
    requestReset: () => {},
    requestSmi: () => {},
  };
  const rtc = new Rtc(host);
  const write = (index: number, value: number): void => {
    rtc.write(0, 1, index);
    rtc.write(1, 1, value);
  };
  const read = (index: number): number => {
    rtc.write(0, 1, index);
    return rtc.read(1);
  };
  const pass = (seconds: number): void => {
    const end = now + seconds * 1e9;
    while (due && due.time <= end) {
      const { time, callback } = due;
      due = undefined;
      now = time;
      callback();
    }
    now = end;
  };
  return { rtc, read, write, pass, irqs: () => irqs };
}

describe('12-hour mode', () => {
  it.each([
    [0x92, 12],
    [0x81, 13],
    [0x91, 23],
    [0x12, 0],
    [0x01, 1],
    [0x11, 11],
  ])('hour register %i in BCD is hour %i', (register, hour) => {
    const { read, write } = makeRtc();
    write(11, 0);
    write(HOUR, register);
    expect(read(HOUR)).toBe(register);
    write(11, BINARY_24);
    expect(read(HOUR)).toBe(hour);
  });
  it('binary: 8Ch is noon', () => {
    const { read, write } = makeRtc();
    write(11, 4);
    write(HOUR, 0x8c);
    write(11, BINARY_24);
    expect(read(HOUR)).toBe(12);
  });
  it('an alarm at 1 PM comes at 13 hours, not at 1', () => {
    const { write, read, pass, irqs } = makeRtc();
    write(11, 0x20);
    for (const register of [1, 3]) write(register, 0);
    write(HOUR_ALARM, 0x81);
    pass(13 * 3600 - 1);
    expect(irqs()).toBe(0);
    pass(2);
    expect(irqs()).toBe(1);
    expect(read(12) & 0xa0).toBe(0xa0);
  });
});
