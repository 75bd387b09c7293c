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
