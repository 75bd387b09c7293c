/**
 * Accessors over the state block: what JavaScript sees of the processor's registers.
 * Manual: APM vol. 2 ch. 3 and appendix B (segment packing of the save area).
 */
import { Layout } from '../memory/layout.ts';
import type { PhysicalMemory } from '../memory/physical.ts';
import type { ProcessorState } from '../processor-api.ts';
import { type DescriptorTable, Flag, S, Seg, type Segment, type SegmentIndex } from '../state-layout.ts';

/** RFLAGS bits that change the mode, the TLB context or the code key. */
const MODE_FLAGS = Flag.VM | Flag.AC;

export class StateBlock implements ProcessorState {
  readonly base = Layout.state;
  readonly view: DataView;
  /** As `view`, from the block's base. */
  readonly block: DataView;
  readonly u8: Uint8Array;
  readonly gpr: BigUint64Array;
  /** The block as 32-bit words: a field stands at `S.field >> 2`. */
  readonly words: Int32Array;
  /** TLB contexts must be computed anew before the next use. */
  derivedStale = true;
  /** More than CR0 and RFLAGS may have changed of what they follow from. */
  spaceStale = true;
  /** PKRU or IA32_PKRS was written: TLB contexts must be computed anew whatever else has stayed. */
  keysStale = true;
  /** The mode must be looked at when the instruction has ended. */
  modeStale = true;
  /** What an engine prepared for its last run may not hold any more: everything that makes something else here stale, and XCR0. */
  runStale = true;
  /** TLB contexts, CR0 or RFLAGS.AC may be others: of that, what follows from them may not hold any more. */
  rightsStale = true;
  /** Segments were loaded: likewise. */
  segmentsStale = true;
  /** Something was made stale, or derived anew, or a descriptor table was loaded, since whoever cares set this to false. */
  touched = true;
  /** Likewise: segments, descriptor tables, CPL, CR3, CR4 or EFER may have been written. */
  moved = true;

  constructor(memory: PhysicalMemory) {
    const { buffer } = memory.memory;
    this.view = memory.view;
    this.block = new DataView(buffer, this.base, S.size);
    this.u8 = new Uint8Array(buffer, this.base, S.size);
    this.words = new Int32Array(buffer, this.base, S.size >> 2);
    this.gpr = new BigUint64Array(buffer, this.base + S.gpr, 17);
  }

  /** Says that something changed on which mode, TLB contexts or code key depend. */
  touch(): void {
    this.derivedStale = true;
    this.spaceStale = true;
    this.modeStale = true;
    this.moved = true;
    this.#touched();
  }
  #touched(): void {
    this.runStale = true;
    this.touched = true;
  }
  /** As `touch` for CR0 and RFLAGS alone, by who knows that the mode is what it was, or that nobody looks at it. */
  touchRights(): void {
    this.derivedStale = true;
    this.rightsStale = true;
    this.touched = true;
  }
  /** Segments were loaded without a change of CPL: no TLB context can have changed, and the mode is as for `touchRights`. */
  touchSegments(): void {
    this.segmentsStale = true;
    this.moved = true;
    this.touched = true;
  }
  /** What an engine prepared for its last run does not hold any more, and nothing else has changed. */
  touchRun(): void {
    this.#touched();
  }
  /** Everything is derived from what the block holds, and nobody has to look at the mode. */
  get isSettled(): boolean {
    const run = this.runStale || this.rightsStale || this.segmentsStale;
    return !(run || this.derivedStale || this.modeStale || this.keysStale);
  }
  /** What was settled when `touched` became false is so again. */
  settle(): void {
    this.derivedStale = false;
    this.spaceStale = false;
    this.modeStale = false;
    this.runPrepared();
  }
  /** An engine has prepared its next run. */
  runPrepared(): void {
    this.runStale = false;
    this.rightsStale = false;
    this.segmentsStale = false;
  }

  get64(offset: number): bigint {
    return this.block.getBigUint64(offset, true);
  }
  set64(offset: number, value: bigint): void {
    this.block.setBigUint64(offset, value, true);
    if (offset >= S.segments && offset <= S.cr8) this.touch();
    else if (offset === S.xcr0) this.#touched();
  }

  get rip(): bigint {
    return this.gpr[16];
  }
  set rip(value: bigint) {
    this.gpr[16] = value;
  }
  get rflags(): bigint {
    return this.block.getBigUint64(S.rflags, true);
  }
  set rflags(value: bigint) {
    if ((Number(BigInt.asUintN(32, value)) ^ this.rflagsLow) & MODE_FLAGS) this.touch();
    this.block.setBigUint64(S.rflags, value, true);
  }
  /** Bits 31:0 of RFLAGS as a signed 32-bit number, for tests by JavaScript's bit operators. */
  get rflagsLow(): number {
    return this.block.getInt32(S.rflags, true);
  }
  get cr0(): bigint {
    return this.get64(S.cr0);
  }
  set cr0(value: bigint) {
    this.set64(S.cr0, value);
  }
  get cr2(): bigint {
    return this.get64(S.cr2);
  }
  set cr2(value: bigint) {
    this.block.setBigUint64(S.cr2, value, true);
  }
  get cr3(): bigint {
    return this.get64(S.cr3);
  }
  set cr3(value: bigint) {
    this.set64(S.cr3, value);
  }
  get cr4(): bigint {
    return this.get64(S.cr4);
  }
  set cr4(value: bigint) {
    this.set64(S.cr4, value);
  }
  get cr8(): bigint {
    return this.get64(S.cr8);
  }
  set cr8(value: bigint) {
    this.block.setBigUint64(S.cr8, value, true);
  }
  get efer(): bigint {
    return this.get64(S.efer);
  }
  set efer(value: bigint) {
    this.set64(S.efer, value);
  }
  get pkru(): number {
    return this.block.getUint32(S.pkru, true);
  }
  set pkru(value: number) {
    this.block.setUint32(S.pkru, value, true);
    this.#keysWritten();
  }
  /** IA32_PKRS. */
  get pkrs(): number {
    return this.block.getUint32(S.pkrs, true);
  }
  set pkrs(value: number) {
    this.block.setUint32(S.pkrs, value, true);
    this.#keysWritten();
  }
  #keysWritten(): void {
    this.keysStale = true;
    this.derivedStale = true;
    this.spaceStale = true;
    this.#touched();
  }
  get cpl(): number {
    return this.u8[S.cpl];
  }
  set cpl(value: number) {
    if (this.u8[S.cpl] !== value) this.touch();
    this.u8[S.cpl] = value;
  }
  get shadow(): number {
    return this.u8[S.shadow];
  }
  set shadow(value: number) {
    this.u8[S.shadow] = value;
  }
  get nmiBlocked(): boolean {
    return this.u8[S.nmiBlocked] !== 0;
  }
  set nmiBlocked(value: boolean) {
    this.u8[S.nmiBlocked] = value ? 1 : 0;
  }
  get activity(): number {
    return this.u8[S.activity];
  }
  set activity(value: number) {
    this.u8[S.activity] = value;
  }
  get smm(): boolean {
    return this.u8[S.smm] !== 0;
  }
  set smm(value: boolean) {
    this.u8[S.smm] = value ? 1 : 0;
    this.touch();
  }

  getSegment(seg: SegmentIndex): Segment {
    const at = S.segments + seg * 16;
    return {
      selector: this.block.getUint16(at, true),
      attrib: this.block.getUint16(at + 2, true),
      limit: this.block.getUint32(at + 4, true),
      base: this.block.getBigUint64(at + 8, true),
    };
  }
  setSegment(seg: SegmentIndex, value: Segment): void {
    const at = S.segments + seg * 16;
    this.block.setUint16(at, value.selector, true);
    this.block.setUint16(at + 2, value.attrib, true);
    this.block.setUint32(at + 4, value.limit, true);
    this.block.setBigUint64(at + 8, value.base, true);
    this.touch();
  }
  attrib(seg: SegmentIndex): number {
    return this.block.getUint16(S.segments + seg * 16 + 2, true);
  }
  limit(seg: SegmentIndex): number {
    return this.block.getUint32(S.segments + seg * 16 + 4, true);
  }
  segmentBase(seg: number): bigint {
    return this.block.getBigUint64(S.segments + seg * 16 + 8, true);
  }
  getTable(which: 'gdtr' | 'idtr'): DescriptorTable {
    const at = S.segments + (which === 'gdtr' ? Seg.GDTR : Seg.IDTR) * 16;
    return { base: this.block.getBigUint64(at + 8, true), limit: this.block.getUint32(at + 4, true) };
  }
  setTable(which: 'gdtr' | 'idtr', value: DescriptorTable): void {
    const at = S.segments + (which === 'gdtr' ? Seg.GDTR : Seg.IDTR) * 16;
    this.block.setUint32(at + 4, value.limit, true);
    this.block.setBigUint64(at + 8, value.base, true);
    this.touched = true;
    this.moved = true;
  }
}
