/**
 * The PC's small devices, a few registers each: debug console, debug-exit, fast A20/reset, SMI trigger, DMA page registers and the
 * kvm-unit-tests test device. facts: QEMU's documented debug devices, PC/AT port map.
 */
import { shape } from '@tskvm/core';
import {
  type Device,
  type DeviceHost,
  type DeviceState,
  deviceShape,
  type MmioDevice,
  type PortDevice,
} from '../bus.ts';

const { bytes, times, u8 } = shape;

const stateless = {
  stateShape: deviceShape({}),
  save: (): DeviceState => ({ version: 1 }),
  load: (_state: DeviceState): void => {},
};

/** Bochs/QEMU debug console (ports 0x402 and 0xE9): every byte goes to `sink`; reads say that it is there. */
export const debugcon = (name: string, sink: (byte: number) => void): Device & PortDevice => ({
  name,
  ...stateless,
  read: () => 0xe9,
  write: (_offset, _size, value) => sink(value & 0xff),
});

/** isa-debug-exit: a write ends the run with exit status (value << 1) | 1. */
export const debugExit = (exit: (status: number) => void): Device & PortDevice => ({
  name: 'debug-exit',
  ...stateless,
  read: () => 0,
  write: (_offset, _size, value) => exit((value * 2 + 1) & 0xff),
});

/** A device that only remembers what was written (DMA controllers, POST code, PAM-like latches). */
export class Latch implements Device, PortDevice {
  readonly name: string;
  readonly stateShape: shape.Shape;
  #bytes: Uint8Array;
  constructor(name: string, length: number) {
    this.name = name;
    this.stateShape = deviceShape({ bytes: times(length, u8) });
    this.#bytes = new Uint8Array(length);
  }
  read(offset: number, size: number): number {
    let value = 0;
    for (let i = 0; i < size; i++) value += this.#bytes[offset + i] * 2 ** (8 * i);
    return value;
  }
  write(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.#bytes[offset + i] = (value >>> (8 * i)) & 0xff;
  }
  save(): DeviceState {
    return { version: 1, bytes: [...this.#bytes] };
  }
  load(state: DeviceState): void {
    this.#bytes.set(state.bytes as number[]);
  }
}

/** Port 0x92: bit 0 resets the processor, bit 1 is A20 (always on here; the bit is remembered). */
export class SystemControlPortA implements Device, PortDevice {
  readonly name = 'port92';
  readonly stateShape = deviceShape({ value: u8 });
  #value = 2;
  readonly #host: DeviceHost;
  constructor(host: DeviceHost) {
    this.#host = host;
  }
  read(): number {
    return this.#value;
  }
  write(_offset: number, _size: number, value: number): void {
    if (value & 1 & ~this.#value) this.#host.requestReset();
    this.#value = value & 0xfe;
  }
  save(): DeviceState {
    return { version: 1, value: this.#value };
  }
  load(state: DeviceState): void {
    this.#value = state.value as number;
  }
}

/** APM control and status (ports 0xB2, 0xB3): a write of the control port raises an SMI. */
export class ApmControl implements Device, PortDevice {
  readonly name = 'apm';
  readonly stateShape = deviceShape({ control: u8, status: u8 });
  #control = 0;
  #status = 0;
  readonly #host: DeviceHost;
  constructor(host: DeviceHost) {
    this.#host = host;
  }
  read(offset: number): number {
    return offset === 0 ? this.#control : this.#status;
  }
  write(offset: number, _size: number, value: number): void {
    if (offset === 1) {
      this.#status = value & 0xff;
      return;
    }
    this.#control = value & 0xff;
    this.#host.requestSmi();
  }
  save(): DeviceState {
    return { version: 1, control: this.#control, status: this.#status };
  }
  load(state: DeviceState): void {
    this.#control = state.control as number;
    this.#status = state.status as number;
  }
}

/** kvm-unit-tests' interrupt lines: port 0x2000 + n sets ISA line n to (value != 0). */
export const irqTestDevice = (host: DeviceHost): Device & PortDevice => ({
  name: 'testdev-irq',
  ...stateless,
  read: () => 0,
  write: (offset, _size, value) => host.setIrq(offset, value !== 0),
});

/** kvm-unit-tests' MMIO memory at 0xFF000000: 64 KiB that must be reached through MMIO. */
export class TestMemory implements Device, MmioDevice {
  readonly name = 'testdev-iomem';
  readonly stateShape = deviceShape({ bytes: bytes(0x10000, 0x10000) });
  #bytes = new Uint8Array(0x10000);
  read(offset: number, size: number): bigint {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[(offset + i) & 0xffff]);
    return value;
  }
  write(offset: number, size: number, value: bigint): void {
    for (let i = 0; i < size; i++) this.#bytes[(offset + i) & 0xffff] = Number((value >> BigInt(8 * i)) & 0xffn);
  }
  save(): DeviceState {
    return { version: 1, bytes: this.#bytes.slice() };
  }
  load(state: DeviceState): void {
    this.#bytes.set(state.bytes as Uint8Array);
  }
}
