/**
 * The smallest host that an engine can run on: identity-mapped memory, no devices, one address space. For tests and benchmarks.
 * Contract: engines/engine.ts.
 */
import { Layout, TlbEntry } from '../../memory/layout.ts';
import { PAGE, PhysicalMemory, PRIVATE } from '../../memory/physical.ts';
import type { ProcessorState } from '../../processor-api.ts';
import { Attrib, S } from '../../state-layout.ts';
import { type CodeKey, type Engine, type EngineHost, Stale } from '../engine.ts';

const CONTEXT = 1;

export class MiniHost implements EngineHost {
  readonly memory: PhysicalMemory;
  engine: Engine | null = null;
  key: CodeKey = { codeSize: 8, stackSize: 8, flat: true, flatCode: true, alignmentCheck: false };
  /** The last fault: vector, error code, address. */
  fault: { vector: number; errorCode: number | undefined; linear: number } | null = null;
  /** Host pages with predecoded code. */
  readonly code = new Set<number>();
  /** How often each slow path was taken. */
  slow = 0;

  constructor(size = 16 * 1024 * 1024) {
    this.memory = new PhysicalMemory(size);
    this.reset();
  }
  /** Flat segments, RFLAGS bit 1. */
  reset(): void {
    const { view } = this.memory;
    this.memory.u8.fill(0, Layout.state, Layout.state + S.size);
    this.flushTlb();
    for (let seg = 0; seg < 6; seg++) {
      const at = Layout.state + S.segments + seg * 16;
      view.setUint16(at + 2, seg === 1 ? Attrib.P | Attrib.S | 0xb : Attrib.P | Attrib.S | 3, true);
      view.setUint32(at + 4, 0xffffffff, true);
    }
    view.setBigUint64(Layout.state + S.rflags, 2n, true);
  }
  flushTlb(): void {
    this.memory.u8.fill(0, Layout.tlb, Layout.tlb + 2 * Layout.tlbEntries * TlbEntry.size);
  }
  get state(): ProcessorState {
    throw new Error('engines reach the state through memory');
  }
  takeStale(): number {
    return Stale.all;
  }
  tlbContext(): number {
    return CONTEXT;
  }
  codeKey(): CodeKey {
    return this.key;
  }
  awaitsInterrupts(): boolean {
    return false;
  }
  cr0Owned(): number {
    return -1;
  }
  cr0Seen(): number {
    return 0;
  }
  otherContext(): number {
    return 0;
  }
  contextExchanged(): void {}
  loadsSegments(): number {
    return 0;
  }
  segmentsLoaded(): void {}
  readonly tick = 0;
  readonly tscPerTick = 1;
  tscOffset(): bigint {
    return 0n;
  }
  tscReaders(): number {
    return 0;
  }
  plainFlagImages(): boolean {
    return true;
  }
  get rip(): bigint {
    return this.memory.view.getBigUint64(Layout.state + S.rip, true);
  }
  set rip(value: bigint) {
    this.memory.view.setBigUint64(Layout.state + S.rip, value, true);
  }
  get rflags(): bigint {
    return this.memory.view.getBigUint64(Layout.state + S.rflags, true);
  }
  set rflags(value: bigint) {
    this.memory.view.setBigUint64(Layout.state + S.rflags, value, true);
  }
  gpr(n: number): bigint {
    return this.memory.view.getBigUint64(Layout.state + S.gpr + n * 8, true);
  }
  setGpr(n: number, value: bigint): void {
    this.memory.view.setBigUint64(Layout.state + S.gpr + n * 8, value, true);
  }

  #fill(page: number): void {
    const at = Layout.tlb + ((page ^ (CONTEXT * 37)) & (Layout.tlbEntries - 1)) * TlbEntry.size;
    const tag = (BigInt(page) << 12n) | BigInt(CONTEXT);
    const { view } = this.memory;
    view.setBigUint64(at + TlbEntry.tagRead, tag, true);
    view.setBigUint64(at + TlbEntry.tagWrite, this.code.has(page) ? 0n : tag, true);
    view.setBigUint64(at + TlbEntry.tagExec, tag, true);
    view.setUint32(at + TlbEntry.addend, PRIVATE, true);
    view.setUint32(at + TlbEntry.info, page * PAGE, true);
    view.setUint32(at + TlbEntry.infoExec, page * PAGE, true);
  }
  #reach(low: number, high: number, size: number, write: boolean): number {
    this.slow++;
    const linear = (low >>> 0) + high * 2 ** 32;
    if (high !== 0 || !this.memory.contains(linear, size)) {
      this.fault = { vector: 14, errorCode: write ? 2 : 0, linear };
      return -1;
    }
    this.#fill(linear >>> 12);
    this.#fill((linear + size - 1) >>> 12);
    return linear;
  }
  get #scratch(): number {
    return Layout.state + S.scratch;
  }
  #read(low: number, high: number, size: number, write: boolean): number {
    const at = this.#reach(low, high, size, write);
    if (at < 0) return 1;
    this.memory.u8.copyWithin(this.#scratch, PRIVATE + at, PRIVATE + at + size);
    return 0;
  }
  slowRead(low: number, high: number, size: number): number {
    return this.#read(low, high, size, false);
  }
  slowReadForWrite(low: number, high: number, size: number): number {
    return this.#read(low, high, size, true);
  }
  slowProbe(low: number, high: number, size: number): number {
    return this.#reach(low, high, size, true) < 0 ? 1 : 0;
  }
  slowWrite(low: number, high: number, size: number): number {
    const at = this.#reach(low, high, size, true);
    if (at < 0) return 1;
    this.memory.u8.copyWithin(PRIVATE + at, this.#scratch, this.#scratch + size);
    let hit = 0;
    for (const page of new Set([at >>> 12, (at + size - 1) >>> 12])) {
      const from = Math.max(at, page * PAGE);
      if (!this.engine?.holdsCode(from, Math.min(at + size, (page + 1) * PAGE) - from)) continue;
      this.code.delete(page);
      hit = 2;
      this.engine.invalidatePage(page);
    }
    return hit;
  }
  translateFetch(linear: bigint): number {
    const at = this.#reach(Number(linear & 0xffffffffn), Number(linear >> 32n), 1, false);
    return at;
  }
  slowLinear(seg: number, low: number, _high: number, _size: number, _write: number): number {
    this.slow++;
    const base = this.memory.view.getBigUint64(Layout.state + S.segments + seg * 16 + 8, true);
    this.fault = { vector: seg === 2 ? 12 : 13, errorCode: 0, linear: Number(base) + (low >>> 0) };
    return 1;
  }
  recordException(vector: number, hasErrorCode: number, errorCode: number): void {
    this.fault = { vector, errorCode: hasErrorCode ? errorCode : undefined, linear: 0 };
  }
  protectCodePage(hostPage: number): void {
    this.code.add(hostPage);
    this.#fill(hostPage);
  }
}
