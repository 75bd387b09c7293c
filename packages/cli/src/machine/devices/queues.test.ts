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
