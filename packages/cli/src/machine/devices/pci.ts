/**
 * PCI configuration mechanism 1 (ports 0xCF8, 0xCFC) with a 440FX host bridge and a PIIX3 ISA bridge.
 * Manual: PCI local bus specification 2.3 section 3.2.2.3; Intel 82441FX and 82371SB data sheets.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

/** One PCI function: 256 bytes of configuration space and which bits of them can be written. */
export interface PciFunction {
  /** device << 3 | function, on bus 0. */
  readonly devfn: number;
  readonly config: Uint8Array;
  readonly writable: Uint8Array;
  /** Called after a configuration write changed bytes. */
  onConfigWrite?: (offset: number, size: number) => void;
}

/** Identity and class of a function, to make one from. */
export interface PciIdentity {
  devfn: number;
  vendor: number;
  device: number;
  /** 24 bits: base class, subclass, interface. */
  classCode: number;
  headerType?: number;
  revision?: number;
  /** Extra writable bytes as [offset, length, mask]. */
  writable?: readonly (readonly [number, number, number])[];
  /** Extra initial bytes as [offset, bytes]. */
  initial?: readonly (readonly [number, readonly number[]])[];
}

export function pciFunction(identity: PciIdentity): PciFunction {
  const config = new Uint8Array(256);
  const writable = new Uint8Array(256);
  const view = new DataView(config.buffer);
  view.setUint16(0, identity.vendor, true);
  view.setUint16(2, identity.device, true);
  view.setUint32(8, ((identity.classCode << 8) | (identity.revision ?? 0)) >>> 0, true);
  config[14] = identity.headerType ?? 0;
  writable[4] = 0x07; // command: I/O, memory, bus master
  writable[5] = 0x04; // interrupt disable
  writable[0x3c] = 0xff; // interrupt line
  for (const [offset, bytes] of identity.initial ?? []) config.set(bytes, offset);
  for (const [offset, length, mask] of identity.writable ?? []) writable.fill(mask, offset, offset + length);
  return { devfn: identity.devfn, config, writable };
}

const { list, times, tuple, u8, u32 } = shape;
const STATE = deviceShape({ address: u32, functions: list(tuple(u8, times(256, u8)), 256) });

export class PciHost implements Device {
  readonly name = 'pci';
  readonly stateShape = STATE;
  readonly #functions = new Map<number, PciFunction>();
  #address = 0;
  readonly #host: DeviceHost;

  constructor(host: DeviceHost) {
    this.#host = host;
    this.add(
      pciFunction({
        devfn: 0,
        vendor: 0x8086,
        device: 0x1237,
        classCode: 0x060000,
        revision: 2,
        // PAM registers and SMRAM control: remembered; shadow RAM is always on.
        writable: [[0x50, 0x24, 0xff]],
      }),
    );
    this.add(
      pciFunction({
        devfn: 1 << 3,
        vendor: 0x8086,
        device: 0x7000,
        classCode: 0x060100,
        headerType: 0x80,
        writable: [
          [0x4c, 0x3c, 0xff],
          [0x60, 4, 0xff],
        ],
        initial: [[0x60, [0x80, 0x80, 0x80, 0x80]]],
      }),
    );
  }

  add(fn: PciFunction): void {
    this.#functions.set(fn.devfn, fn);
  }

  /** Port 0xCF8 (dword accesses only; 0xCF9 is the reset control register). */
  readonly addressPort: PortDevice = {
    read: (offset, size) => (offset === 0 && size === 4 ? this.#address : 0),
    write: (offset, size, value) => {
      if (offset === 0 && size === 4) this.#address = value >>> 0;
      else if (offset === 1 && size === 1 && value & 4) this.#host.requestReset();
    },
  };
  /** Ports 0xCFC-0xCFF. */
  readonly dataPort: PortDevice = {
    read: (offset, size) => this.#access(offset, size, undefined),
    write: (offset, size, value) => {
      this.#access(offset, size, value);
    },
  };

  #access(offset: number, size: number, value: number | undefined): number {
    const ones = size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff;
    if (!(this.#address & 0x80000000)) return ones;
    const bus = (this.#address >>> 16) & 0xff;
    const fn = bus === 0 ? this.#functions.get((this.#address >>> 8) & 0xff) : undefined;
    if (!fn) return ones;
    const at = (this.#address & 0xfc) + offset;
    if (value === undefined) {
      let result = 0;
      for (let i = 0; i < size; i++) result += fn.config[(at + i) & 0xff] * 2 ** (8 * i);
      return result;
    }
    for (let i = 0; i < size; i++) {
      const mask = fn.writable[(at + i) & 0xff];
      fn.config[(at + i) & 0xff] = (fn.config[(at + i) & 0xff] & ~mask) | ((value >>> (8 * i)) & mask);
    }
    fn.onConfigWrite?.(at, size);
    return 0;
  }

  save(): DeviceState {
    return {
      version: 1,
      address: this.#address,
      functions: [...this.#functions.values()].map((fn) => [fn.devfn, [...fn.config]]),
    };
  }
  load(state: DeviceState): void {
    this.#address = state.address as number;
    for (const [devfn, config] of state.functions as [number, number[]][])
      this.#functions.get(devfn)?.config.set(config);
  }
}
