/**
 * An ATAPI CD-ROM drive: the packet commands that firmware and boot loaders use.
 * Manual: MMC-3, SFF-8020i; ATA/ATAPI-6 section 8.23 (PACKET).
 */
import { shape } from '@tskvm/core';
import { type DeviceState, deviceShape } from '../bus.ts';
import { putAtaString } from './ata-disk.ts';
import type { BlockImage, Drive, TaskFile, Transfer } from './ide.ts';

const CD_SECTOR = 2048;
const DRDY_DSC = 0x50;
const ERR = 0x01;
const ABRT = 0x04;
/** Interrupt reason in the count register. */
const REASON_COMMAND = 1;
const REASON_IN = 2;
const REASON_DONE = 3;

/** Sense: key, additional code, qualifier. */
type Sense = readonly [number, number, number];
const NO_SENSE: Sense = [0, 0, 0];
const ILLEGAL_REQUEST: Sense = [5, 0x20, 0];
const OUT_OF_RANGE: Sense = [5, 0x21, 0];
const INVALID_FIELD: Sense = [5, 0x24, 0];
const UNIT_ATTENTION: Sense = [6, 0x29, 0];

/** Bytes a block, as the host has asked for them; 0 stands for the most. */
const byteCount = (task: TaskFile): number => task.lba[1] + task.lba[2] * 256 || 0xfffe;

/** What a saved drive looks like, with a medium of so many bytes. */
function stateShape(size: number): shape.Shape {
  const { bytes, flag, integer, nullable, struct, times, u8, union } = shape;
  const byteLimit = integer(1, 0xffff);
  const phase = union('kind', {
    packet: struct({}),
    reply: struct({ bytes: bytes(0, 0xffff), limit: byteLimit }),
    medium: struct({ offset: integer(0, size), length: integer(0, size), limit: byteLimit }),
  });
  return deviceShape({ sense: times(3, u8), attention: flag, phase: nullable(phase) });
}

/** What comes behind the block that the host is reading or writing. */
type Phase =
  /** The 12 bytes of a command packet. */
  | { kind: 'packet' }
  /** More of a reply, in blocks of at most `limit` bytes. */
  | { kind: 'reply'; bytes: Uint8Array; limit: number }
  /** More of the medium: `length` bytes from `offset`. */
  | { kind: 'medium'; offset: number; length: number; limit: number };

export class AtapiDrive implements Drive {
  readonly kind = 'atapi';
  readonly #image: BlockImage;
  readonly #sectors: number;
  #sense: Sense = UNIT_ATTENTION;
  #phase: Phase | null = null;
  readonly stateShape: shape.Shape;

  constructor(image: BlockImage) {
    this.#image = image;
    this.#sectors = Math.ceil(image.size / CD_SECTOR);
    this.stateShape = stateShape(this.#sectors * CD_SECTOR);
  }

  reset(task: TaskFile): void {
    this.#phase = null;
    task.error = 1;
    task.count = 1;
    task.lba = [1, 0x14, 0xeb]; // the ATAPI signature
    task.status = 0;
  }

  command(task: TaskFile, code: number, transfer: Transfer): void {
    this.#phase = null;
    switch (code) {
      case 0xa1:
        transfer.dataIn(this.#identify());
        return;
      case 0xa0:
        task.count = REASON_COMMAND;
        this.#phase = { kind: 'packet' };
        transfer.dataOut(12);
        return;
      case 0x08:
        this.reset(task);
        return;
      case 0x90:
        task.error = 1;
        task.status = DRDY_DSC;
        transfer.interrupt();
        return;
      case 0xef:
      case 0xe0:
      case 0xe1:
      case 0xe7:
        task.status = DRDY_DSC;
        transfer.interrupt();
        return;
      default:
        // IDENTIFY DEVICE and the ATA reads are aborted with the signature in place.
        this.reset(task);
        task.error = ABRT;
        task.status = DRDY_DSC | ERR;
        transfer.interrupt();
    }
  }

  #packet(task: TaskFile, packet: Uint8Array, transfer: Transfer): void {
    const view = new DataView(packet.buffer, packet.byteOffset, 12);
    const opcode = packet[0];
    // After a reset the first command but INQUIRY and REQUEST SENSE reports unit attention once.
    if (this.#sense === UNIT_ATTENTION && opcode !== 0x12 && opcode !== 0x03) {
      this.#check(task, transfer, UNIT_ATTENTION);
      this.#sense = NO_SENSE;
      return;
    }
    switch (opcode) {
      case 0x00:
      case 0x1b:
      case 0x1e:
        this.#done(task, transfer);
        return;
      case 0x03:
        this.#reply(task, transfer, this.#requestSense(), packet[4]);
        return;
      case 0x12:
        this.#reply(task, transfer, this.#inquiry(), packet[4]);
        return;
      case 0x25:
        this.#reply(task, transfer, this.#capacity(), 8);
        return;
      case 0x28:
        this.#readSectors(task, transfer, view.getUint32(2), view.getUint16(7));
        return;
      case 0xa8:
        this.#readSectors(task, transfer, view.getUint32(2), view.getUint32(6));
        return;
      case 0x43:
        this.#reply(task, transfer, this.#toc((packet[1] & 2) !== 0), view.getUint16(7));
        return;
      case 0x4a:
        // GET EVENT STATUS: media present, no event.
        this.#reply(task, transfer, Uint8Array.of(0, 6, 4, 0x10, 0, 2, 0, 0), view.getUint16(7));
        return;
      case 0x5a:
        this.#reply(task, transfer, Uint8Array.of(0, 6, 1, 0, 0, 0, 0, 0), view.getUint16(7));
        return;
      default:
        this.#check(task, transfer, ILLEGAL_REQUEST);
    }
  }

  #done(task: TaskFile, transfer: Transfer): void {
    this.#sense = NO_SENSE;
    task.count = REASON_DONE;
    task.status = DRDY_DSC;
    transfer.interrupt();
  }
  #check(task: TaskFile, transfer: Transfer, sense: Sense): void {
    this.#sense = sense;
    task.count = REASON_DONE;
    task.error = (sense[0] << 4) | ABRT;
    task.status = DRDY_DSC | ERR;
    transfer.interrupt();
  }
  #reply(task: TaskFile, transfer: Transfer, bytes: Uint8Array, allocation: number): void {
    const length = Math.min(bytes.length, allocation);
    if (length === 0) {
      this.#done(task, transfer);
      return;
    }
    this.#send(task, transfer, { kind: 'reply', bytes: bytes.slice(0, length), limit: byteCount(task) });
  }
  /** One DRQ block of at most the byte count limit; the rest waits in the phase. */
  #send(task: TaskFile, transfer: Transfer, phase: Exclude<Phase, { kind: 'packet' }>): void {
    const { limit } = phase;
    const left = phase.kind === 'reply' ? phase.bytes.length : phase.length;
    const n = Math.min(left, limit & ~1 || 2);
    task.lba[1] = n & 0xff;
    task.lba[2] = n >> 8;
    task.count = REASON_IN;
    if (phase.kind === 'reply') {
      this.#phase = { kind: 'reply', bytes: phase.bytes.slice(n), limit };
      transfer.dataIn(phase.bytes.slice(0, n));
    } else {
      this.#phase = { kind: 'medium', offset: phase.offset + n, length: left - n, limit };
      transfer.dataIn(this.#image.read(phase.offset, n));
    }
  }
  blockDone(task: TaskFile, bytes: Uint8Array, transfer: Transfer): void {
    const phase = this.#phase;
    this.#phase = null;
    if (!phase) return;
    if (phase.kind === 'packet') this.#packet(task, bytes, transfer);
    else if ((phase.kind === 'reply' ? phase.bytes.length : phase.length) > 0) this.#send(task, transfer, phase);
    else this.#done(task, transfer);
  }
  #readSectors(task: TaskFile, transfer: Transfer, lba: number, count: number): void {
    if (count === 0) this.#done(task, transfer);
    else if (lba + count > this.#sectors) this.#check(task, transfer, OUT_OF_RANGE);
    else if (count > 0xffff) this.#check(task, transfer, INVALID_FIELD);
    else {
      const medium = { kind: 'medium', offset: lba * CD_SECTOR, length: count * CD_SECTOR } as const;
      this.#send(task, transfer, { ...medium, limit: byteCount(task) });
    }
  }

  #requestSense(): Uint8Array {
    const [key, code, qualifier] = this.#sense;
    this.#sense = NO_SENSE;
    return Uint8Array.of(0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0);
  }
  #inquiry(): Uint8Array {
    const bytes = new Uint8Array(36);
    bytes.set([0x05, 0x80, 0x00, 0x21, 31]);
    bytes.set(new TextEncoder().encode('TSKVM   CD-ROM          1.0 '), 8);
    return bytes;
  }
  #capacity(): Uint8Array {
    const bytes = new Uint8Array(8);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.#sectors - 1);
    view.setUint32(4, CD_SECTOR);
    return bytes;
  }
  /** One data track and the lead-out. */
  #toc(msf: boolean): Uint8Array {
    const bytes = new Uint8Array(20);
    const view = new DataView(bytes.buffer);
    const address = (lba: number): number => {
      if (!msf) return lba;
      const frames = lba + 150;
      return (Math.floor(frames / 4500) << 16) | ((Math.floor(frames / 75) % 60) << 8) | (frames % 75);
    };
    view.setUint16(0, 18);
    bytes.set([1, 1, 0, 0x14, 1, 0], 2);
    view.setUint32(8, address(0));
    bytes.set([0, 0x14, 0xaa, 0], 12);
    view.setUint32(16, address(this.#sectors));
    return bytes;
  }
  #identify(): Uint8Array {
    const bytes = new Uint8Array(512);
    const view = new DataView(bytes.buffer);
    const word = (index: number, value: number): void => view.setUint16(index * 2, value, true);
    word(0, 0x8580); // ATAPI CD-ROM, removable, 12-byte packets
    putAtaString(view, 10, 10, 'TSKVM0002');
    putAtaString(view, 23, 4, '1.0');
    putAtaString(view, 27, 20, 'TSKVM CD-ROM');
    word(49, 0x0200);
    word(53, 0x0003);
    word(64, 0x0003);
    word(80, 0x0070);
    return bytes;
  }

  save(): DeviceState {
    return {
      version: 1,
      sense: [...this.#sense],
      attention: this.#sense === UNIT_ATTENTION,
      phase: structuredClone(this.#phase),
    };
  }
  load(state: DeviceState): void {
    this.#sense = state.attention ? UNIT_ATTENTION : (state.sense as unknown as Sense);
    this.#phase = structuredClone(state.phase as Phase | null);
  }
}
