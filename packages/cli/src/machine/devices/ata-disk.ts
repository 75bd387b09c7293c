/**
 * An ATA disk: IDENTIFY, READ/WRITE SECTORS (28 and 48 bit, multiple), the rest of the mandatory command set.
 * Manual: ATA/ATAPI-6 ch. 8.
 */
import { shape } from '@tskvm/core';
import { type DeviceState, deviceShape } from '../bus.ts';
import type { BlockImage, Drive, TaskFile, Transfer } from './ide.ts';

const SECTOR = 512;
const DRDY_DSC = 0x50;
const ERR = 0x01;
const ABRT = 0x04;
const IDNF = 0x10;

/** ATA strings are byte-swapped and padded with blanks. */
export function putAtaString(into: DataView, word: number, words: number, text: string): void {
  const padded = text.padEnd(words * 2, ' ');
  for (let i = 0; i < words; i++)
    into.setUint16((word + i) * 2, (padded.charCodeAt(2 * i) << 8) | padded.charCodeAt(2 * i + 1), true);
}

/** A transfer in progress: `count` sectors from `lba` on are still to be moved, `step` a block. */
interface Phase {
  direction: 'in' | 'out';
  lba: number;
  count: number;
  step: number;
}

export class AtaDisk implements Drive {
  readonly kind = 'ata';
  readonly #image: BlockImage;
  readonly #sectors: number;
  #multiple = 16;
  /** What comes behind the block that the host is reading or writing; null: nothing. */
  #phase: Phase | null = null;
  readonly stateShape: shape.Shape;

  constructor(image: BlockImage) {
    this.#image = image;
    this.#sectors = Math.ceil(image.size / SECTOR);
    const { integer, nullable, oneOf, struct } = shape;
    const sector = integer(0, this.#sectors);
    const phase = struct({ direction: oneOf('in', 'out'), lba: sector, count: sector, step: integer(1, 16) });
    this.stateShape = deviceShape({ multiple: integer(1, 16), phase: nullable(phase) });
  }

  reset(task: TaskFile): void {
    this.#phase = null;
    task.error = 1;
    task.count = 1;
    task.lba = [1, 0, 0];
    task.status = DRDY_DSC;
  }

  command(task: TaskFile, code: number, transfer: Transfer): void {
    this.#phase = null;
    switch (code) {
      case 0xec:
        transfer.dataIn(this.#identify());
        return;
      case 0x20:
      case 0x21:
      case 0xc4:
        this.#read(task, transfer, this.#address(task, false), task.count || 256, code === 0xc4 ? this.#multiple : 1);
        return;
      case 0x24:
      case 0x29:
        this.#read(
          task,
          transfer,
          this.#address(task, true),
          task.count + 256 * task.countHigh || 65536,
          code === 0x29 ? this.#multiple : 1,
        );
        return;
      case 0x30:
      case 0x31:
      case 0xc5:
        this.#write(task, transfer, this.#address(task, false), task.count || 256, code === 0xc5 ? this.#multiple : 1);
        return;
      case 0x34:
      case 0x39:
        this.#write(
          task,
          transfer,
          this.#address(task, true),
          task.count + 256 * task.countHigh || 65536,
          code === 0x39 ? this.#multiple : 1,
        );
        return;
      case 0xc6:
        if (task.count > 0 && task.count <= 16) this.#multiple = task.count;
        this.#done(task, transfer);
        return;
      case 0x90:
        task.error = 1;
        this.#done(task, transfer);
        return;
      case 0x10:
      case 0x40:
      case 0x70:
      case 0x91:
      case 0xe0:
      case 0xe1:
      case 0xe7:
      case 0xea:
      case 0xef:
        this.#done(task, transfer);
        return;
      default:
        this.#fail(task, transfer, ABRT);
    }
  }

  #done(task: TaskFile, transfer: Transfer): void {
    task.status = DRDY_DSC;
    transfer.interrupt();
  }
  #fail(task: TaskFile, transfer: Transfer, error: number): void {
    task.error = error;
    task.status = DRDY_DSC | ERR;
    transfer.interrupt();
  }

  /** LBA of a command, or by cylinder/head/sector if bit 6 of the device register is clear. */
  #address(task: TaskFile, wide: boolean): number {
    const [a, b, c] = task.lba;
    if (wide) {
      const [d, e, f] = task.lbaHigh;
      return a + b * 2 ** 8 + c * 2 ** 16 + d * 2 ** 24 + e * 2 ** 32 + f * 2 ** 40;
    }
    if (task.device & 0x40) return a + b * 2 ** 8 + c * 2 ** 16 + (task.device & 15) * 2 ** 24;
    return ((b + c * 256) * 16 + (task.device & 15)) * 63 + a - 1;
  }

  #read(task: TaskFile, transfer: Transfer, lba: number, count: number, step: number): void {
    if (lba < 0 || lba + count > this.#sectors) {
      this.#fail(task, transfer, IDNF);
      return;
    }
    const n = Math.min(step, count);
    this.#phase = count > n ? { direction: 'in', lba: lba + n, count: count - n, step } : null;
    transfer.dataIn(this.#image.read(lba * SECTOR, n * SECTOR));
  }
  #write(task: TaskFile, transfer: Transfer, lba: number, count: number, step: number): void {
    if (lba < 0 || lba + count > this.#sectors) {
      this.#fail(task, transfer, IDNF);
      return;
    }
    if (!this.#image.write) {
      this.#fail(task, transfer, ABRT);
      return;
    }
    this.#phase = { direction: 'out', lba, count, step };
    transfer.dataOut(Math.min(step, count) * SECTOR);
  }
  blockDone(task: TaskFile, bytes: Uint8Array, transfer: Transfer): void {
    const phase = this.#phase;
    if (!phase) return;
    this.#phase = null;
    const { direction, lba, count, step } = phase;
    if (direction === 'in') {
      this.#read(task, transfer, lba, count, step);
      return;
    }
    this.#image.write?.(lba * SECTOR, bytes);
    const n = bytes.length / SECTOR;
    if (count > n) {
      this.#write(task, transfer, lba + n, count - n, step);
      transfer.interrupt();
    } else this.#done(task, transfer);
  }

  #identify(): Uint8Array {
    const bytes = new Uint8Array(SECTOR);
    const view = new DataView(bytes.buffer);
    const word = (index: number, value: number): void => view.setUint16(index * 2, value, true);
    const cylinders = Math.min(16383, Math.floor(this.#sectors / (16 * 63)));
    word(0, 0x0040);
    word(1, cylinders);
    word(3, 16);
    word(6, 63);
    putAtaString(view, 10, 10, 'TSKVM0001');
    putAtaString(view, 23, 4, '1.0');
    putAtaString(view, 27, 20, 'TSKVM HARDDISK');
    word(47, 0x8010);
    word(49, 0x0200); // LBA, no DMA
    word(53, 0x0003);
    word(54, cylinders);
    word(55, 16);
    word(56, 63);
    view.setUint32(57 * 2, cylinders * 16 * 63, true);
    word(59, 0x0110);
    view.setUint32(60 * 2, Math.min(this.#sectors, 0x0fffffff), true);
    word(64, 0x0003);
    word(67, 120);
    word(68, 120);
    word(80, 0x0070);
    word(83, 0x7400); // 48-bit, FLUSH CACHE (EXT)
    word(84, 0x4000);
    word(86, 0x3400);
    word(87, 0x4000);
    view.setBigUint64(100 * 2, BigInt(this.#sectors), true);
    return bytes;
  }

  save(): DeviceState {
    return { version: 1, multiple: this.#multiple, phase: this.#phase && { ...this.#phase } };
  }
  load(state: DeviceState): void {
    this.#multiple = state.multiple as number;
    this.#phase = state.phase ? { ...(state.phase as Phase) } : null;
  }
}
