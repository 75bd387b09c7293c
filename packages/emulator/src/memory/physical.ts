/**
 * The host's physical memory: one WebAssembly.Memory, sized at creation and never grown.
 * The first `PRIVATE` bytes are the processor's private structures (state block, TLB, predecoded records); host physical address 0
 * lies behind them, so that no physical address can reach them.
 */

/** Bytes of linear memory in front of host physical address 0. */
export const PRIVATE = 64 * 1024 * 1024;
export const PAGE = 4096;

/** Called after bytes in host physical memory changed by anyone but the processor's own fast path. */
export type WriteListener = (pa: number, length: number) => void;

/** A host physical address outside memory. */
export class BusError extends Error {
  override readonly name = 'BusError';
  constructor(
    readonly pa: number,
    readonly length: number,
  ) {
    super(`host physical address 0x${pa.toString(16)} (+${length}) is outside memory`);
  }
}

export class PhysicalMemory {
  readonly memory: WebAssembly.Memory;
  readonly u8: Uint8Array;
  readonly view: DataView;
  readonly #listeners: WriteListener[] = [];

  /** @param size bytes of host physical memory; a multiple of 64 KiB, at most 4 GiB - 64 MiB - 64 KiB */
  constructor(readonly size: number) {
    const pages = (PRIVATE + size) / 65536;
    if (!Number.isInteger(pages) || size <= 0 || pages > 65535) {
      throw new RangeError(
        `memory size ${size}: give a multiple of 65536 bytes between 65536 and ${65535 * 65536 - PRIVATE}`,
      );
    }
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    this.u8 = new Uint8Array(this.memory.buffer);
    this.view = new DataView(this.memory.buffer);
  }

  /** The one gate: host physical address to offset in linear memory. Throws {@link BusError}. */
  offset(pa: number, length: number): number {
    if (pa < 0 || pa + length > this.size) throw new BusError(pa, length);
    return PRIVATE + pa;
  }
  contains(pa: number, length: number): boolean {
    return pa >= 0 && pa + length <= this.size;
  }

  /** Listeners hear of every write below and of `notify`. */
  onWrite(listener: WriteListener): void {
    this.#listeners.push(listener);
  }
  notify(pa: number, length: number): void {
    for (const listener of this.#listeners) listener(pa, length);
  }

  read8(pa: number): number {
    return this.u8[this.offset(pa, 1)];
  }
  read16(pa: number): number {
    return this.view.getUint16(this.offset(pa, 2), true);
  }
  read32(pa: number): number {
    return this.view.getUint32(this.offset(pa, 4), true);
  }
  read64(pa: number): bigint {
    return this.view.getBigUint64(this.offset(pa, 8), true);
  }
  write8(pa: number, value: number): void {
    this.u8[this.offset(pa, 1)] = value;
    this.notify(pa, 1);
  }
  write16(pa: number, value: number): void {
    this.view.setUint16(this.offset(pa, 2), value, true);
    this.notify(pa, 2);
  }
  write32(pa: number, value: number): void {
    this.view.setUint32(this.offset(pa, 4), value, true);
    this.notify(pa, 4);
  }
  write64(pa: number, value: bigint): void {
    this.view.setBigUint64(this.offset(pa, 8), value, true);
    this.notify(pa, 8);
  }
  /** A copy. */
  readBytes(pa: number, length: number): Uint8Array {
    const at = this.offset(pa, length);
    return this.u8.slice(at, at + length);
  }
  writeBytes(pa: number, bytes: Uint8Array): void {
    this.u8.set(bytes, this.offset(pa, bytes.length));
    this.notify(pa, bytes.length);
  }
  fill(pa: number, length: number, value: number): void {
    const at = this.offset(pa, length);
    this.u8.fill(value, at, at + length);
    this.notify(pa, length);
  }
}
