/** A client of gdb's remote serial protocol, as far as QEMU's stub needs it: steps, register writes, monitor commands. Manual: GDB, appendix E. */
import { createConnection, type Socket } from 'node:net';

export class GdbRemote {
  readonly #socket: Socket;
  #received = '';
  #waiting: ((packet: string) => void) | undefined;
  #lost: ((error: Error) => void) | undefined;
  readonly #packets: string[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => this.#take(text));
    socket.on('close', () => this.#lost?.(new Error('QEMU has gone: a triple fault there')));
  }

  /** Connects to a stub that listens on a Unix socket, and agrees on packets without acknowledgement. */
  static async connect(path: string): Promise<GdbRemote> {
    const socket = await new Promise<Socket>((resolve, reject) => {
      const made = createConnection(path, () => resolve(made));
      made.once('error', reject);
    });
    const remote = new GdbRemote(socket);
    socket.write('+');
    await remote.ask('QStartNoAckMode');
    // QEMU takes register writes only from whoever has read the target's description.
    await remote.ask('qXfer:features:read:target.xml:0,fff');
    return remote;
  }

  /** Packets are `$text#checksum`; acknowledgements between them are of no interest. */
  #take(text: string): void {
    this.#received += text;
    for (;;) {
      const start = this.#received.indexOf('$');
      const end = this.#received.indexOf('#', start);
      if (start < 0 || end < 0 || this.#received.length < end + 3) return;
      const packet = this.#received.slice(start + 1, end);
      this.#received = this.#received.slice(end + 3);
      const waiting = this.#waiting;
      this.#waiting = undefined;
      if (waiting) waiting(packet);
      else this.#packets.push(packet);
    }
  }
  #next(): Promise<string> {
    const packet = this.#packets.shift();
    if (packet !== undefined) return Promise.resolve(packet);
    return new Promise((resolve, reject) => {
      this.#waiting = resolve;
      this.#lost = reject;
    });
  }
  /** Sends a packet, gives the answer's text. */
  ask(text: string): Promise<string> {
    let sum = 0;
    for (let i = 0; i < text.length; i++) sum = (sum + text.charCodeAt(i)) & 0xff;
    this.#socket.write(`$${text}#${sum.toString(16).padStart(2, '0')}`, 'latin1');
    return this.#next();
  }

  /** One instruction of the current thread. */
  step(): Promise<string> {
    return this.ask('s');
  }
  /** What a command of the monitor prints. */
  async monitor(command: string): Promise<string> {
    let text = '';
    let packet = await this.ask(`qRcmd,${Buffer.from(command).toString('hex')}`);
    while (packet !== 'OK' && packet.startsWith('O')) {
      text += Buffer.from(packet.slice(1), 'hex').toString('latin1');
      packet = await this.#next();
    }
    return text;
  }
  /** Register by its number in the target's description, `bytes` wide. */
  writeRegister(number: number, value: bigint, bytes: number): Promise<string> {
    const image = Buffer.alloc(8);
    image.writeBigUInt64LE(BigInt.asUintN(64, value));
    return this.ask(`P${number.toString(16)}=${image.subarray(0, bytes).toString('hex')}`);
  }
  async readMemory(address: number, length: number): Promise<Buffer> {
    return Buffer.from(await this.ask(`m${address.toString(16)},${length.toString(16)}`), 'hex');
  }
  close(): void {
    this.#socket.destroy();
  }
}
