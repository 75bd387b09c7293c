/**
 * A 16550A serial port with transmit to the outside and a receive queue.
 * Manual: National Semiconductor PC16550D data sheet.
 */
import { shape } from '@tskvm/core';
import { type Device, type DeviceHost, type DeviceState, deviceShape, type PortDevice } from '../bus.ts';

const IER_RX = 1;
const IER_TX = 2;
const LSR_DATA = 0x01;
const LSR_IDLE = 0x60;
const IIR_NONE = 0x01;
const IIR_TX = 0x02;
const IIR_RX = 0x04;
const MCR_OUT2 = 0x08;
const MCR_LOOP = 0x10;
/** What the receiver holds; a byte that comes in loop-back while it is full is lost (overrun). */
const FIFO_SIZE = 16;

/** A guest that asks so often whether something has come waits for it; drivers on their way up ask a few times. */
const LISTENS = 8;

const { flag, list, u8, u16 } = shape;
/** What may wait for the guest at most in a saved state (the outside may paste a file). */
const RX_MAX = 2 ** 24;
const STATE = deviceShape({
  ier: u8,
  lcr: u8,
  mcr: u8,
  scr: u8,
  fcr: u8,
  divisor: u16,
  txPending: flag,
  rx: list(u8, FIFO_SIZE),
  outside: list(u8, RX_MAX),
  polls: u8,
});

export class Uart16550 implements Device, PortDevice {
  readonly name: string;
  readonly stateShape = STATE;
  /** Gets every transmitted byte. */
  onByte: ((byte: number) => void) | null = null;
  #ier = 0;
  #lcr = 0;
  #mcr = 0;
  #scr = 0;
  #fcr = 0;
  #divisor = 12;
  #txPending = false;
  /** The receiver's FIFO. */
  #rx: number[] = [];
  /** What the other side has not sent yet: it waits until the guest listens. */
  #outside: number[] = [];
  /** Reads of LSR since something was received or written. */
  #polls = 0;
  readonly #host: DeviceHost;
  readonly #irq: number;

  constructor(name: string, host: DeviceHost, irq: number) {
    this.name = name;
    this.#host = host;
    this.#irq = irq;
  }

  /**
   * Bytes from outside; they wait until the guest listens: it wants an interrupt for them, or asks LSR again and again. A driver that
   * clears the FIFO and reads it empty on its way up loses none of them.
   */
  receive(bytes: Iterable<number>): void {
    for (const byte of bytes) this.#outside.push(byte & 0xff);
    this.#listen();
    this.#update();
  }
  get receiveQueueLength(): number {
    return this.#rx.length + this.#outside.length;
  }
  #listen(): void {
    if ((this.#ier & IER_RX) !== 0) this.#fill();
  }
  #fill(): void {
    if ((this.#mcr & MCR_LOOP) !== 0) return;
    this.#rx.push(...this.#outside.splice(0, FIFO_SIZE - this.#rx.length));
  }

  read(offset: number, size: number): number {
    if (offset === 5) {
      if (this.#polls < LISTENS) this.#polls++;
      else this.#fill();
    }
    if (offset === 0) this.#polls = 0;
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.#readByte(offset + i) << (8 * i);
    return value >>> 0;
  }
  write(offset: number, size: number, value: number): void {
    this.#polls = 0;
    for (let i = 0; i < size; i++) this.#writeByte(offset + i, (value >>> (8 * i)) & 0xff);
  }

  #readByte(offset: number): number {
    const dlab = (this.#lcr & 0x80) !== 0;
    switch (offset) {
      case 0: {
        if (dlab) return this.#divisor & 0xff;
        const byte = this.#rx.shift() ?? 0;
        this.#listen();
        this.#update();
        return byte;
      }
      case 1:
        return dlab ? this.#divisor >> 8 : this.#ier;
      case 2: {
        const iir = this.#pending();
        if (iir === IIR_TX) {
          this.#txPending = false;
          this.#update();
        }
        return iir | (this.#fcr & 1 ? 0xc0 : 0);
      }
      case 3:
        return this.#lcr;
      case 4:
        return this.#mcr;
      case 5:
        return LSR_IDLE | (this.#rx.length > 0 ? LSR_DATA : 0);
      case 6:
        // In loop-back the modem inputs are the outputs: DTR->DSR, RTS->CTS, OUT1->RI, OUT2->DCD.
        return this.#mcr & MCR_LOOP ? ((this.#mcr & 1) << 5) | ((this.#mcr & 2) << 3) | ((this.#mcr & 0xc) << 4) : 0xb0;
      case 7:
        return this.#scr;
      default:
        return 0xff;
    }
  }

  #writeByte(offset: number, value: number): void {
    const dlab = (this.#lcr & 0x80) !== 0;
    switch (offset) {
      case 0:
        if (dlab) this.#divisor = (this.#divisor & 0xff00) | value;
        else this.#transmit(value);
        break;
      case 1:
        if (dlab) this.#divisor = (this.#divisor & 0xff) | (value << 8);
        else {
          if (value & ~this.#ier & IER_TX) this.#txPending = true;
          this.#ier = value & 0x0f;
          this.#listen();
        }
        break;
      case 2:
        this.#fcr = value & 0xc9;
        if (value & 2) this.#clear();
        break;
      case 3:
        this.#lcr = value;
        break;
      case 4:
        if (value & ~this.#mcr & MCR_LOOP) this.#clear();
        this.#mcr = value & 0x1f;
        break;
      case 7:
        this.#scr = value;
        break;
    }
    this.#update();
  }
  /** What came from outside is sent again when the guest listens. */
  #clear(): void {
    if ((this.#mcr & MCR_LOOP) === 0) this.#outside.unshift(...this.#rx);
    this.#rx = [];
  }
  #transmit(value: number): void {
    if (this.#mcr & MCR_LOOP) {
      if (this.#rx.length < FIFO_SIZE) this.#rx.push(value);
    } else this.onByte?.(value);
    this.#txPending = true;
  }

  #pending(): number {
    if (this.#ier & IER_RX && this.#rx.length > 0) return IIR_RX;
    if (this.#ier & IER_TX && this.#txPending) return IIR_TX;
    return IIR_NONE;
  }
  #update(): void {
    this.#host.setIrq(this.#irq, this.#pending() !== IIR_NONE && (this.#mcr & MCR_OUT2) !== 0);
  }

  save(): DeviceState {
    return {
      version: 1,
      ier: this.#ier,
      lcr: this.#lcr,
      mcr: this.#mcr,
      scr: this.#scr,
      fcr: this.#fcr,
      divisor: this.#divisor,
      txPending: this.#txPending,
      rx: [...this.#rx],
      outside: [...this.#outside],
      polls: this.#polls,
    };
  }
  load(state: DeviceState): void {
    this.#ier = state.ier as number;
    this.#lcr = state.lcr as number;
    this.#mcr = state.mcr as number;
    this.#scr = state.scr as number;
    this.#fcr = state.fcr as number;
    this.#divisor = state.divisor as number;
    this.#txPending = state.txPending as boolean;
    this.#rx = [...(state.rx as number[])];
    this.#outside = [...(state.outside as number[])];
    this.#polls = state.polls as number;
  }
}
