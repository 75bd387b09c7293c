/**
 * An IDE channel in PIO mode with an ATA disk or an ATAPI CD-ROM as master.
 * Manual: ATA/ATAPI-6 (T13 1410D), MMC-3 for the packet commands.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';
import { AtaDisk } from './ata-disk.ts';
import { AtapiDrive } from './atapi.ts';

/** A medium: sectors by number. `write` is absent on read-only media. */
export interface BlockImage {
  /** Bytes. */
  readonly size: number;
  read(offset: number, length: number): Uint8Array;
  write?(offset: number, bytes: Uint8Array): void;
}

/** An image in memory; writes stay in memory. */
export const memoryImage = (bytes: Uint8Array): BlockImage => ({
  size: bytes.length,
  read: (offset, length) => {
    const out = new Uint8Array(length);
    out.set(bytes.subarray(offset, offset + length));
    return out;
  },
  write: (offset, data) => bytes.set(data.subarray(0, Math.max(0, bytes.length - offset)), offset),
});

export const Status = { BSY: 0x80, DRDY: 0x40, DSC: 0x10, DRQ: 0x08, ERR: 0x01 } as const;
export const ErrorBit = { ABRT: 0x04, IDNF: 0x10 } as const;

/** The register file that a drive and its channel share. */
export interface TaskFile {
  error: number;
  features: number;
  /** Current and previous byte (48-bit commands use both). */
  count: number;
  countHigh: number;
  lba: [number, number, number];
  lbaHigh: [number, number, number];
  device: number;
  status: number;
}

/** What a drive does with a command. */
export interface Drive {
  readonly kind: 'ata' | 'atapi';
  /** Puts signature and status after reset. */
  reset(task: TaskFile): void;
  command(task: TaskFile, code: number, transfer: Transfer): void;
  /** The host has read the block, or has written these bytes: what comes next is the drive's own state, never a closure. */
  blockDone(task: TaskFile, bytes: Uint8Array, transfer: Transfer): void;
  readonly stateShape: shape.Shape;
  save(): DeviceState;
  load(state: DeviceState): void;
}

/** PIO data phase. */
export interface Transfer {
  /** Offers a block to the host; when it has been read, the drive's `blockDone` follows. */
  dataIn(bytes: Uint8Array): void;
  /** Wants a block from the host; when it is there, the drive's `blockDone` follows. */
  dataOut(length: number): void;
  /** Raises the interrupt (unless nIEN). */
  interrupt(): void;
}

const { bytes, integer, nullable, struct, times, u8 } = shape;
/** A block is at most 64 KiB: an ATAPI byte count, or 128 sectors. */
export const MAX_BLOCK = 65536;
const TASK = struct({
  error: u8,
  features: u8,
  count: u8,
  countHigh: u8,
  lba: times(3, u8),
  lbaHigh: times(3, u8),
  device: u8,
  status: u8,
});

export class IdeChannel implements Device {
  readonly name: string;
  readonly stateShape: shape.Shape;
  readonly #host: DeviceHost;
  readonly #irq: number;
  readonly #drive: Drive | null;
  readonly task: TaskFile = {
    error: 1,
    features: 0,
    count: 1,
    countHigh: 0,
    lba: [1, 0, 0],
    lbaHigh: [0, 0, 0],
    device: 0,
    status: Status.DRDY | Status.DSC,
  };
  #control = 0;
  #buffer: Uint8Array = new Uint8Array(0);
  #at = 0;

  constructor(name: string, host: DeviceHost, irq: number, drive: Drive | null) {
    this.name = name;
    this.stateShape = deviceShape({
      task: TASK,
      control: u8,
      buffer: bytes(0, MAX_BLOCK),
      at: integer(0, MAX_BLOCK),
      drive: drive ? drive.stateShape : nullable(struct({})),
    });
    this.#host = host;
    this.#irq = irq;
    this.#drive = drive;
    drive?.reset(this.task);
  }

  /** Ports base+0..7. */
  readonly registers: PortDevice = {
    read: (offset, size) => (offset === 0 ? this.#readData(size) : this.#readRegister(offset)),
    write: (offset, size, value) =>
      offset === 0 ? this.#writeData(size, value) : this.#writeRegister(offset, value & 0xff),
  };
  /** Alternate status and device control (0x3F6, 0x376). */
  readonly controlPort: PortDevice = {
    read: () => this.#status(),
    write: (_offset, _size, value) => this.#writeControl(value & 0xff),
  };

  /** The selected drive: only the master is there. */
  #selected(): Drive | null {
    return this.task.device & 0x10 ? null : this.#drive;
  }
  #status(): number {
    if (!this.#drive) return 0;
    return this.#selected() ? this.task.status : 0;
  }

  #readRegister(offset: number): number {
    const { task } = this;
    const high = (this.#control & 0x80) !== 0;
    if (!this.#drive) return offset === 7 ? 0 : 0xff;
    switch (offset) {
      case 1:
        return task.error;
      case 2:
        return high ? task.countHigh : task.count;
      case 3:
      case 4:
      case 5:
        return (high ? task.lbaHigh : task.lba)[offset - 3];
      case 6:
        return task.device | 0xa0;
      default:
        this.#host.setIrq(this.#irq, false);
        return this.#status();
    }
  }
  #writeRegister(offset: number, value: number): void {
    const { task } = this;
    this.#control &= 0x7f;
    switch (offset) {
      case 1:
        task.features = value;
        break;
      case 2:
        task.countHigh = task.count;
        task.count = value;
        break;
      case 3:
      case 4:
      case 5:
        task.lbaHigh[offset - 3] = task.lba[offset - 3];
        task.lba[offset - 3] = value;
        break;
      case 6:
        task.device = value;
        break;
      case 7:
        this.#host.setIrq(this.#irq, false);
        this.#command(value);
    }
  }
  #command(code: number): void {
    const drive = this.#selected();
    if (!drive) return;
    this.#clearBlock();
    this.task.error = 0;
    this.task.status = Status.DRDY | Status.DSC;
    drive.command(this.task, code, this.#transfer);
  }
  #clearBlock(): void {
    this.#buffer = new Uint8Array(0);
    this.#at = 0;
  }
  #writeControl(value: number): void {
    const wasReset = (this.#control & 4) !== 0;
    this.#control = value;
    if (value & 4) this.task.status = Status.BSY;
    else if (wasReset) {
      this.#clearBlock();
      this.task.device = 0;
      this.#drive?.reset(this.task);
    }
  }

  readonly #transfer: Transfer = {
    dataIn: (block) => {
      this.#buffer = block;
      this.#at = 0;
      this.task.status = Status.DRDY | Status.DSC | Status.DRQ;
      this.#transfer.interrupt();
    },
    dataOut: (length) => {
      this.#buffer = new Uint8Array(length);
      this.#at = 0;
      this.task.status = Status.DRDY | Status.DSC | Status.DRQ;
    },
    interrupt: () => {
      if (!(this.#control & 2)) this.#host.setIrq(this.#irq, true);
    },
  };

  #readData(size: number): number {
    let value = 0;
    for (let i = 0; i < size; i++) value += (this.#buffer[this.#at + i] ?? 0) * 2 ** (8 * i);
    this.#advance(size);
    return value;
  }
  #writeData(size: number, value: number): void {
    for (let i = 0; i < size && this.#at + i < this.#buffer.length; i++)
      this.#buffer[this.#at + i] = (value >>> (8 * i)) & 0xff;
    this.#advance(size);
  }
  #advance(size: number): void {
    if (!(this.task.status & Status.DRQ)) return;
    this.#at += size;
    if (this.#at < this.#buffer.length) return;
    this.task.status &= ~Status.DRQ;
    this.#drive?.blockDone(this.task, this.#buffer, this.#transfer);
  }

  save(): DeviceState {
    return {
      version: 1,
      task: structuredClone(this.task),
      control: this.#control,
      buffer: this.#buffer.slice(),
      at: this.#at,
      drive: this.#drive?.save() ?? null,
    };
  }
  load(state: DeviceState): void {
    Object.assign(this.task, structuredClone(state.task));
    this.#control = state.control as number;
    this.#buffer = (state.buffer as Uint8Array).slice();
    this.#at = state.at as number;
    if (state.drive) this.#drive?.load(state.drive as DeviceState);
  }
}

export { AtaDisk, AtapiDrive };
