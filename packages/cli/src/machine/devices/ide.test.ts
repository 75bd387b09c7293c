/** A drive is saved and loaded at any time, also between the words of a data phase. */
import { describe, expect, it } from 'vitest';
import type { DeviceHost } from '../bus.ts';
import { AtaDisk } from './ata-disk.ts';
import { AtapiDrive } from './atapi.ts';
import { IdeChannel, memoryImage, Status } from './ide.ts';

const host: DeviceHost = {
  setIrq: () => {},
  now: () => 0,
  callAt: () => {},
  readMemory: (_gpa, length) => new Uint8Array(length),
  writeMemory: () => {},
  requestReset: () => {},
  requestSmi: () => {},
};
const medium = (size: number): Uint8Array => Uint8Array.from({ length: size }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
const disk = (bytes: Uint8Array): IdeChannel => new IdeChannel('ide0', host, 14, new AtaDisk(memoryImage(bytes)));
const cdrom = (bytes: Uint8Array): IdeChannel => new IdeChannel('ide1', host, 15, new AtapiDrive(memoryImage(bytes)));

/** The same drive in another machine, by way of a plain object. */
function moved(from: IdeChannel, to: IdeChannel): IdeChannel {
  const state = structuredClone(from.save());
  expect(to.stateShape(state, 'state')).toBeUndefined();
  to.load(state);
  expect(to.save()).toEqual(state);
  return to;
}
const busy = (channel: IdeChannel): boolean => (channel.controlPort.read(0, 1) & Status.DRQ) !== 0;
const command = (channel: IdeChannel, lba: number, count: number, code: number): void => {
  for (const [register, value] of [
    [2, count],
    [3, lba],
    [4, 0],
    [5, 0],
    [6, 0xe0],
    [7, code],
  ])
    channel.registers.write(register, 1, value);
};
/** Moves the drive to another machine behind every `every`th word. */
function readAll(channel: IdeChannel, every: number, other: () => IdeChannel): Uint8Array {
  const out: number[] = [];
  let at = channel;
  for (let word = 0; busy(at); word++) {
    if (word % every === every - 1) at = moved(at, other());
    const value = at.registers.read(0, 2);
    out.push(value & 0xff, value >> 8);
  }
  return Uint8Array.from(out);
}

describe('a drive that moves in the middle of a transfer', () => {
  it.each([0x20, 0xc4])('READ SECTORS (%i), four sectors', (code) => {
    const bytes = medium(8192);
    const channel = disk(bytes);
    command(channel, 2, 4, code);
    expect(readAll(channel, 100, () => disk(bytes))).toEqual(bytes.subarray(1024, 3072));
  });
  it('WRITE SECTORS, three sectors: the one that takes the last word has them all', () => {
    const bytes = medium(8192);
    let channel = disk(bytes);
    command(channel, 1, 3, 0x30);
    for (let word = 0; busy(channel); word++) {
      if (word % 100 === 99) channel = moved(channel, disk(bytes));
      channel.registers.write(0, 2, word);
    }
    const view = new DataView(bytes.buffer);
    for (let word = 0; word < 768; word++) expect(view.getUint16(512 + 2 * word, true)).toBe(word);
    expect(channel.registers.read(7, 1)).toBe(Status.DRDY | Status.DSC);
  });
  it('PACKET, READ(10): the packet, then two sectors in blocks of 700 bytes', () => {
    const bytes = medium(10 * 2048);
    let channel = cdrom(bytes);
    const send = (packet: number[]): void => {
      channel.registers.write(4, 1, 700 & 0xff);
      channel.registers.write(5, 1, 700 >> 8);
      channel.registers.write(7, 1, 0xa0);
      packet.forEach((byte, i) => {
        if (i % 2 === 1) return;
        channel = moved(channel, cdrom(bytes));
        channel.registers.write(0, 2, byte | (packet[i + 1] << 8));
      });
    };
    // The first command after a reset reports unit attention.
    send([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    send([0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0]);
    expect(readAll(channel, 77, () => cdrom(bytes))).toEqual(bytes.subarray(3 * 2048, 5 * 2048));
  });
  it('a command that comes instead of the rest of the data starts afresh', () => {
    const bytes = medium(8192);
    const channel = disk(bytes);
    command(channel, 0, 4, 0x20);
    for (let i = 0; i < 256; i++) channel.registers.read(0, 2);
    command(channel, 0, 1, 0xec);
    for (let i = 0; i < 256; i++) channel.registers.read(0, 2);
    expect(busy(channel)).toBe(false);
  });
  it('a state that points beyond the medium does not fit', () => {
    const channel = disk(medium(8192));
    command(channel, 2, 4, 0x20);
    const state = structuredClone(channel.save()) as { drive: { phase: { lba: number } } };
    state.drive.phase.lba = 17;
    expect(channel.stateShape(state, 'ide0')).toBe('ide0.drive.phase.lba is 17: give an integer from 0 to 0x10');
  });
});
