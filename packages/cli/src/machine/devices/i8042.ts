/**
 * Keyboard controller with a PS/2 keyboard (ports 0x60, 0x64). The auxiliary port is there and nothing is plugged into it.
 * Manual: Intel 8042 data sheet; IBM PS/2 technical reference.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

const STATUS_OUTPUT_FULL = 0x01;
const STATUS_SYSTEM = 0x04;
const STATUS_COMMAND = 0x08;
const STATUS_UNLOCKED = 0x10;
const STATUS_AUXILIARY = 0x20;
const STATUS_TIMEOUT = 0x40;
const CONFIG_IRQ1 = 0x01;
const CONFIG_IRQ12 = 0x02;
const CONFIG_TRANSLATE = 0x40;
const CONFIG_AUXILIARY_OFF = 0x20;
const ACK = 0xfa;
/** Marks in the queue, above the byte: it came by the auxiliary port; the device there did not answer. */
const FROM_AUXILIARY = 0x100;
const TIMED_OUT = 0x200;
const RESEND = 0xfe;
/** Bytes that wait for the guest; replies to commands beyond them are lost, as in the keyboard's own buffer. */
const QUEUE_SIZE = 16;

const { flag, list, u8 } = shape;
const STATE = deviceShape({
  config: u8,
  output: list(u8),
  last: u8,
  expect: u8,
  keyboardExpect: u8,
  lastWasCommand: flag,
  outputPort: u8,
});

export class I8042 implements Device {
  readonly name = 'i8042';
  readonly stateShape = STATE;
  /** Ports: 0x60 data, 0x64 command and status. */
  readonly data: PortDevice = { read: () => this.#readData(), write: (_o, _s, value) => this.#writeData(value & 0xff) };
  readonly command: PortDevice = {
    read: () => this.#status(),
    write: (_o, _s, value) => this.#writeCommand(value & 0xff),
  };
  #config = CONFIG_IRQ1 | CONFIG_TRANSLATE;
  #output: number[] = [];
  #last = 0;
  /** Controller command that waits for its data byte, 0: none. */
  #expect = 0;
  /** Keyboard command that waits for its parameter, 0: none. */
  #keyboardExpect = 0;
  #lastWasCommand = false;
  #outputPort = 3;
  readonly #host: DeviceHost;

  constructor(host: DeviceHost) {
    this.#host = host;
  }

  /** Scan codes (set 1 after translation) from outside. */
  type(scanCodes: Iterable<number>): void {
    for (const code of scanCodes) this.#output.push(code);
    this.#update();
  }

  #status(): number {
    const [next = 0] = this.#output;
    return (
      (this.#output.length > 0 ? STATUS_OUTPUT_FULL : 0) |
      (next & FROM_AUXILIARY ? STATUS_AUXILIARY : 0) |
      (next & TIMED_OUT ? STATUS_TIMEOUT : 0) |
      STATUS_SYSTEM |
      STATUS_UNLOCKED |
      (this.#lastWasCommand ? STATUS_COMMAND : 0)
    );
  }
  #readData(): number {
    if (this.#output.length > 0) this.#last = (this.#output.shift() as number) & 0xff;
    this.#host.setIrq(1, false);
    this.#host.setIrq(12, false);
    this.#update();
    return this.#last;
  }
  #reply(...bytes: number[]): void {
    if (this.#output.length + bytes.length <= QUEUE_SIZE) this.#output.push(...bytes);
    this.#update();
  }
  #update(): void {
    const full = this.#output.length > 0;
    const auxiliary = full && (this.#output[0] & FROM_AUXILIARY) !== 0;
    this.#host.setIrq(1, full && !auxiliary && (this.#config & CONFIG_IRQ1) !== 0);
    this.#host.setIrq(12, auxiliary && (this.#config & CONFIG_IRQ12) !== 0);
  }

  #writeCommand(command: number): void {
    this.#lastWasCommand = true;
    switch (command) {
      case 0x20:
        this.#reply(this.#config);
        break;
      case 0x60:
      case 0xd1:
      case 0xd2:
      case 0xd3:
      case 0xd4:
        this.#expect = command;
        break;
      case 0xa7:
        this.#config |= CONFIG_AUXILIARY_OFF;
        break;
      case 0xa8:
        this.#config &= ~CONFIG_AUXILIARY_OFF;
        break;
      case 0xa9:
        this.#reply(0x00);
        break;
      case 0xaa:
        this.#reply(0x55);
        break;
      case 0xab:
        this.#reply(0x00);
        break;
      case 0xad:
        this.#config |= 0x10;
        break;
      case 0xae:
        this.#config &= ~0x10;
        break;
      case 0xd0:
        this.#reply(this.#outputPort);
        break;
      default:
        // F0..FF pulse output lines; line 0 is the processor's reset.
        if (command >= 0xf0 && !(command & 1)) this.#host.requestReset();
    }
  }
  #writeData(value: number): void {
    this.#lastWasCommand = false;
    const expected = this.#expect;
    this.#expect = 0;
    if (expected === 0x60) {
      this.#config = value;
      this.#update();
    } else if (expected === 0xd1) {
      if (!(value & 1)) this.#host.requestReset();
      this.#outputPort = value;
    } else if (expected === 0xd2) this.#reply(value);
    else if (expected === 0xd3) this.#reply(value | FROM_AUXILIARY);
    else if (expected === 0xd4) this.#reply(RESEND | FROM_AUXILIARY | TIMED_OUT);
    else if (expected === 0) this.#keyboard(value);
  }
  #keyboard(value: number): void {
    if (this.#keyboardExpect !== 0) {
      const command = this.#keyboardExpect;
      this.#keyboardExpect = 0;
      if (command === 0xf0 && value === 0) this.#reply(ACK, 2);
      else this.#reply(ACK);
      return;
    }
    switch (value) {
      case 0xed:
      case 0xf0:
      case 0xf3:
        this.#keyboardExpect = value;
        this.#reply(ACK);
        break;
      case 0xee:
        this.#reply(0xee);
        break;
      case 0xf2:
        this.#reply(ACK, 0xab, 0x83);
        break;
      case 0xff:
        this.#reply(ACK, 0xaa);
        break;
      default:
        this.#reply(ACK);
    }
  }

  save(): DeviceState {
    return {
      version: 1,
      config: this.#config,
      output: [...this.#output],
      last: this.#last,
      expect: this.#expect,
      keyboardExpect: this.#keyboardExpect,
      lastWasCommand: this.#lastWasCommand,
      outputPort: this.#outputPort,
    };
  }
  load(state: DeviceState): void {
    this.#config = state.config as number;
    this.#output = [...(state.output as number[])];
    this.#last = state.last as number;
    this.#expect = state.expect as number;
    this.#keyboardExpect = state.keyboardExpect as number;
    this.#lastWasCommand = state.lastWasCommand as boolean;
    this.#outputPort = state.outputPort as number;
  }
}
