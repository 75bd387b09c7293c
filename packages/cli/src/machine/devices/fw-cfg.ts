/**
 * QEMU's firmware configuration device (ports 0x510 selector, 0x511 data; traditional interface without DMA).
 * Source: QEMU's specification "fw_cfg".
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

const FILE_DIR = 0x19;
const FIRST_FILE = 0x20;

const bytesOf = (value: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
  return bytes;
};

export interface FwCfgOptions {
  ramSize: number;
  cpus: number;
  /** Named files, e.g. `etc/sercon-port`. */
  files: ReadonlyMap<string, Uint8Array>;
}

export class FwCfg implements Device, PortDevice {
  readonly name = 'fw_cfg';
  readonly stateShape = deviceShape({ selector: shape.u16, cursor: shape.u32 });
  readonly #items = new Map<number, Uint8Array>();
  #selector = 0;
  #cursor = 0;

  constructor(options: FwCfgOptions) {
    this.#items.set(0x00, new TextEncoder().encode('QEMU'));
    this.#items.set(0x01, bytesOf(1, 4));
    this.#items.set(0x03, bytesOf(options.ramSize, 8));
    this.#items.set(0x04, bytesOf(0, 2)); // graphics
    this.#items.set(0x05, bytesOf(options.cpus, 2));
    this.#items.set(0x0d, bytesOf(0, 8)); // NUMA
    this.#items.set(0x0e, bytesOf(0, 2)); // boot menu
    this.#items.set(0x0f, bytesOf(options.cpus, 2));
    this.#addFiles([...options.files].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  #addFiles(files: [string, Uint8Array][]): void {
    const directory = new Uint8Array(4 + 64 * files.length);
    const view = new DataView(directory.buffer);
    view.setUint32(0, files.length);
    files.forEach(([name, bytes], i) => {
      const at = 4 + 64 * i;
      view.setUint32(at, bytes.length);
      view.setUint16(at + 4, FIRST_FILE + i);
      directory.set(new TextEncoder().encode(name).subarray(0, 55), at + 8);
      this.#items.set(FIRST_FILE + i, bytes);
    });
    this.#items.set(FILE_DIR, directory);
  }

  read(offset: number, size: number): number {
    if (offset === 0 && size === 1) return 0;
    // Bit 14 selects the (absent) write channel; bit 15 the architecture's own items.
    const item = this.#items.get(this.#selector & ~0x4000);
    return item && this.#cursor < item.length ? item[this.#cursor++] : 0;
  }
  write(offset: number, size: number, value: number): void {
    if (offset !== 0 || size !== 2) return;
    this.#selector = value & 0xffff;
    this.#cursor = 0;
  }
  save(): DeviceState {
    return { version: 1, selector: this.#selector, cursor: this.#cursor };
  }
  load(state: DeviceState): void {
    this.#selector = state.selector as number;
    this.#cursor = state.cursor as number;
  }
}
