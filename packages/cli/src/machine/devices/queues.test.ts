import { describe, expect, it } from 'vitest';
import type { DeviceHost } from '../bus.ts';
import { I8042 } from './i8042.ts';
import { Uart16550 } from './uart16550.ts';

const host: DeviceHost = {
  setIrq: () => {},
  now: () => 0,
  callAt: () => {},
  readMemory: (_gpa, length) => new Uint8Array(length),
  writeMemory: () => {},
  requestReset: () => {},
  requestSmi: () => {},
};

describe('a guest that writes and never reads', () => {
  it('UART in loop-back: the receiver holds 16 bytes, the rest is overrun', () => {
    const com1 = new Uart16550('com1', host, 4);
    com1.write(4, 1, 0x10);
    for (let i = 0; i < 1000; i++) com1.write(0, 1, i & 0xff);
    expect(com1.receiveQueueLength).toBe(16);
    expect(com1.read(0, 1)).toBe(0);
  });
  it('keyboard controller: replies stop at 16 bytes and go on after a read', () => {
    const keyboard = new I8042(host);
    for (let i = 0; i < 1000; i++) keyboard.command.write(0, 1, 0xaa);
    expect((keyboard.save().output as number[]).length).toBe(16);
    expect(keyboard.data.read(0, 1)).toBe(0x55);
    keyboard.command.write(0, 1, 0xab);
    expect((keyboard.save().output as number[]).at(-1)).toBe(0);
  });
});

describe('what comes from outside before the guest listens', () => {
  const bytes = [...'a line that is longer than the FIFO\n'].map((c) => c.charCodeAt(0));
  const withInput = (): Uart16550 => {
    const com1 = new Uart16550('com1', host, 4);
    com1.receive(bytes);
    return com1;
  };
  /** As a driver comes up: a loop-back test, FIFO cleared, every register read. */
  const bringUp = (com1: Uart16550): void => {
    com1.write(4, 1, 0x1f);
    com1.write(4, 1, 0x0b);
    for (const fcr of [1, 7, 0]) com1.write(2, 1, fcr);
    for (const offset of [5, 0, 2, 6]) com1.read(offset, 1);
    com1.write(3, 1, 3);
    for (const offset of [5, 0, 2, 6]) com1.read(offset, 1);
  };
  it('a driver that clears and reads what is there loses nothing, and gets it by interrupts', () => {
    const com1 = withInput();
    bringUp(com1);
    com1.write(2, 1, 7);
    com1.write(1, 1, 1);
    com1.write(2, 1, 7);
    com1.write(1, 1, 1);
    const got: number[] = [];
    while ((com1.read(2, 1) & 0xf) === 4) got.push(com1.read(0, 1));
    expect(got).toEqual(bytes);
  });
  it('a guest that polls gets it, also one that reads the modem status in between', () => {
    for (const between of [[], [6]]) {
      const com1 = withInput();
      bringUp(com1);
      const got: number[] = [];
      for (let polls = 0; polls < 1000; polls++) {
        for (const offset of between) com1.read(offset, 1);
        if (com1.read(5, 1) & 1) got.push(com1.read(0, 1));
      }
      expect(got).toEqual(bytes);
    }
  });
});

describe("the keyboard controller's auxiliary port", () => {
  it('a byte written into its buffer comes back marked, with IRQ 12 if that is on', () => {
    const lines = new Map<number, boolean>();
    const keyboard = new I8042({ ...host, setIrq: (line, level) => lines.set(line, level) });
    keyboard.command.write(0, 1, 0x60);
    keyboard.data.write(0, 1, 0x03);
    keyboard.command.write(0, 1, 0xd3);
    keyboard.data.write(0, 1, 0x5a);
    expect(keyboard.command.read(0, 1) & 0x21).toBe(0x21);
    expect([lines.get(1), lines.get(12)]).toEqual([false, true]);
    expect(keyboard.data.read(0, 1)).toBe(0x5a);
    expect(lines.get(12)).toBe(false);
  });
  it('a command to the mouse that is not there times out at once', () => {
    const keyboard = new I8042(host);
    keyboard.command.write(0, 1, 0xd4);
    keyboard.data.write(0, 1, 0xff);
    expect(keyboard.command.read(0, 1) & 0x61).toBe(0x61);
    expect(keyboard.data.read(0, 1)).toBe(0xfe);
  });
});
