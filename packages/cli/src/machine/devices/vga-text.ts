/**
 * VGA registers as far as text mode needs them; the screen itself is guest memory at 0xB8000.
 * Manual: IBM VGA technical reference. `dump` reads the screen as text.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

const TEXT_BASE = 0xb8000;

const { flag, struct, times, u8, uint } = shape;
const STATE = deviceShape({
  index: struct({ crtc: u8, sequencer: u8, graphics: u8, attribute: u8 }),
  crtc: times(256, u8),
  sequencer: times(8, u8),
  graphics: times(16, u8),
  attribute: times(32, u8),
  attributeData: flag,
  misc: u8,
  dac: times(768, u8),
  dacIndex: uint(10),
});

export class VgaText implements Device, PortDevice {
  readonly name = 'vga';
  readonly stateShape = STATE;
  #index = { crtc: 0, sequencer: 0, graphics: 0, attribute: 0 };
  #crtc = new Uint8Array(256);
  #sequencer = new Uint8Array(8);
  #graphics = new Uint8Array(16);
  #attribute = new Uint8Array(32);
  #attributeData = false;
  #misc = 0x67;
  #dac = new Uint8Array(768);
  #dacIndex = 0;
  readonly #host: DeviceHost;

  constructor(host: DeviceHost) {
    this.#host = host;
  }

  /** Ports 0x3C0..0x3DF. */
  read(offset: number): number {
    switch (offset) {
      case 0x00:
        return this.#index.attribute;
      case 0x01:
        return this.#attribute[this.#index.attribute & 31];
      case 0x04:
        return this.#index.sequencer;
      case 0x05:
        return this.#sequencer[this.#index.sequencer & 7];
      case 0x09:
        return this.#dac[this.#nextDac()];
      case 0x0c:
        return this.#misc;
      case 0x0e:
        return this.#index.graphics;
      case 0x0f:
        return this.#graphics[this.#index.graphics & 15];
      case 0x14:
        return this.#index.crtc;
      case 0x15:
        return this.#crtc[this.#index.crtc];
      case 0x1a:
        this.#attributeData = false;
        // Display enable and vertical retrace by guest time, 70 Hz.
        return this.#host.now() % 14_285_714 < 1_000_000 ? 0x09 : 0x00;
      default:
        return 0;
    }
  }
  write(offset: number, size: number, value: number): void {
    if (size > 1) {
      for (let i = 0; i < size; i++) this.write(offset + i, 1, (value >>> (8 * i)) & 0xff);
      return;
    }
    switch (offset) {
      case 0x00:
        if (this.#attributeData) this.#attribute[this.#index.attribute & 31] = value;
        else this.#index.attribute = value;
        this.#attributeData = !this.#attributeData;
        break;
      case 0x02:
        this.#misc = value;
        break;
      case 0x04:
        this.#index.sequencer = value;
        break;
      case 0x05:
        this.#sequencer[this.#index.sequencer & 7] = value;
        break;
      case 0x07:
      case 0x08:
        this.#dacIndex = (value & 0xff) * 3;
        break;
      case 0x09:
        this.#dac[this.#nextDac()] = value;
        break;
      case 0x0e:
        this.#index.graphics = value;
        break;
      case 0x0f:
        this.#graphics[this.#index.graphics & 15] = value;
        break;
      case 0x14:
        this.#index.crtc = value;
        break;
      case 0x15:
        this.#crtc[this.#index.crtc] = value;
        break;
    }
  }

  #nextDac(): number {
    const at = this.#dacIndex % 768;
    this.#dacIndex = at + 1;
    return at;
  }

  /** The text screen, one string a line, trailing blanks removed. */
  dump(columns = 80, rows = 25): string[] {
    const start = ((this.#crtc[0x0c] << 8) | this.#crtc[0x0d]) * 2;
    const cells = this.#host.readMemory(
      TEXT_BASE + (start & 0x7ffe),
      Math.min(columns * rows * 2, 0x8000 - (start & 0x7ffe)),
    );
    const lines: string[] = [];
    for (let row = 0; row < rows; row++) {
      let line = '';
      for (let column = 0; column < columns; column++) {
        const code = cells[(row * columns + column) * 2] ?? 0;
        line += code >= 32 && code < 127 ? String.fromCharCode(code) : ' ';
      }
      lines.push(line.trimEnd());
    }
    return lines;
  }

  save(): DeviceState {
    return {
      version: 1,
      index: { ...this.#index },
      crtc: [...this.#crtc],
      sequencer: [...this.#sequencer],
      graphics: [...this.#graphics],
      attribute: [...this.#attribute],
      attributeData: this.#attributeData,
      misc: this.#misc,
      dac: [...this.#dac],
      dacIndex: this.#dacIndex,
    };
  }
  load(state: DeviceState): void {
    Object.assign(this.#index, state.index);
    this.#crtc.set(state.crtc as number[]);
    this.#sequencer.set(state.sequencer as number[]);
    this.#graphics.set(state.graphics as number[]);
    this.#attribute.set(state.attribute as number[]);
    this.#attributeData = state.attributeData as boolean;
    this.#misc = state.misc as number;
    this.#dac.set(state.dac as number[]);
    this.#dacIndex = state.dacIndex as number;
  }
}
