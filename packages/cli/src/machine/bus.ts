/**
 * The PC's two address spaces as devices see them: ports and memory-mapped registers.
 * A device registers ranges and gets the offset into its range, never the address.
 */

import { shape } from '@tskvm/core';

type Shape = shape.Shape;

export interface PortDevice {
  /** Reads `size` (1, 2, 4) bytes at `offset` of the range. */
  read(offset: number, size: number): number;
  write(offset: number, size: number, value: number): void;
}

export interface MmioDevice {
  read(offset: number, size: number): bigint;
  write(offset: number, size: number, value: bigint): void;
}

/** The shape of a device's state: version 1 and these fields. */
export const deviceShape = (fields: Readonly<Record<string, Shape>>): Shape =>
  shape.struct({ version: shape.oneOf(1), ...fields });

/** Plain, versioned state of a device. */
export type DeviceState = Record<string, unknown>;

/** What every device can do besides its registers. */
export interface Device {
  readonly name: string;
  /** What `save` gives; nothing else reaches `load`. */
  readonly stateShape: Shape;
  save(): DeviceState;
  load(state: DeviceState): void;
}

/** What a device may ask of the machine. */
export interface DeviceHost {
  /** Raises or lowers an interrupt line (ISA number = GSI). */
  setIrq(line: number, level: boolean): void;
  /** Guest time in nanoseconds: derived from instructions retired. */
  now(): number;
  /** Calls the device back at or after this guest time; one pending call a device and key. */
  callAt(key: string, time: number, callback: () => void): void;
  /** Reads and writes guest physical memory (DMA). */
  readMemory(gpa: number, length: number): Uint8Array;
  writeMemory(gpa: number, bytes: Uint8Array): void;
  /** Asks for a reset of the machine at the next opportunity. */
  requestReset(): void;
  /** Asks for an SMI on the boot processor. */
  requestSmi(): void;
}

interface PortRange {
  first: number;
  last: number;
  device: PortDevice;
  name: string;
}
interface MmioRange {
  first: number;
  last: number;
  device: MmioDevice;
  name: string;
}

const allOnes = (size: number): number => (size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff);

export class IoBus {
  readonly #ports: (PortRange | undefined)[] = new Array(65536);
  readonly #mmio: MmioRange[] = [];
  /** Unassigned ports that were touched, with counts: a hole is named, not hidden. */
  readonly unassigned = new Map<string, number>();

  registerPorts(name: string, first: number, count: number, device: PortDevice): void {
    const range = { first, last: first + count - 1, device, name };
    for (let port = first; port <= range.last; port++) this.#ports[port] = range;
  }
  unregisterPorts(first: number, count: number): void {
    for (let port = first; port < first + count; port++) this.#ports[port] = undefined;
  }
  registerMmio(name: string, first: number, length: number, device: MmioDevice): void {
    this.#mmio.push({ first, last: first + length - 1, device, name });
  }

  /** An access that no device claims reads all ones; one that spans devices is split into bytes, as the ISA bus does. */
  readPort(port: number, size: number): number {
    const range = this.#ports[port];
    if (range && port + size - 1 <= range.last) return range.device.read(port - range.first, size) >>> 0;
    if (size === 1 || !this.#anyPort(port, size)) {
      this.#note('in', port);
      return allOnes(size);
    }
    let value = 0;
    for (let i = 0; i < size; i++) value += this.readPort((port + i) & 0xffff, 1) * 2 ** (8 * i);
    return value;
  }
  writePort(port: number, size: number, value: number): void {
    const range = this.#ports[port];
    if (range && port + size - 1 <= range.last) {
      range.device.write(port - range.first, size, value);
      return;
    }
    if (size === 1 || !this.#anyPort(port, size)) {
      this.#note('out', port);
      return;
    }
    for (let i = 0; i < size; i++) this.writePort((port + i) & 0xffff, 1, (value >>> (8 * i)) & 0xff);
  }
  #anyPort(port: number, size: number): boolean {
    for (let i = 0; i < size; i++) if (this.#ports[(port + i) & 0xffff]) return true;
    return false;
  }

  readMmio(address: number, size: number): bigint {
    const range = this.#findMmio(address);
    if (range) return range.device.read(address - range.first, size);
    this.#note('read', address);
    return (1n << BigInt(size * 8)) - 1n;
  }
  writeMmio(address: number, size: number, value: bigint): void {
    const range = this.#findMmio(address);
    if (range) range.device.write(address - range.first, size, value);
    else this.#note('write', address);
  }
  #findMmio(address: number): MmioRange | undefined {
    return this.#mmio.find((range) => address >= range.first && address <= range.last);
  }
  #note(kind: string, address: number): void {
    const key = `${kind} 0x${address.toString(16)}`;
    if (this.unassigned.size < 1024 || this.unassigned.has(key))
      this.unassigned.set(key, (this.unassigned.get(key) ?? 0) + 1);
  }
}
