/**
 * FpuArea: x87, MMX and SSE registers behind one view of the state block's bytes from `S.ymm` on.
 * Manual: APM vol. 1 sections 4.2, 5.3 and 6.2 (registers), APM vol. 2 section 11.4.4 (images).
 */
import { S } from '../../state-layout.ts';
import type { Lanes } from '../simd/lanes.ts';

const START = S.ymm;
const LOW64 = (1n << 64n) - 1n;

export class FpuArea {
  /** @param view bytes `S.ymm` .. `S.mxcsr` + 4 of a state block, live */
  constructor(readonly view: DataView) {}

  get cw(): number {
    return this.view.getUint16(S.fcw - START, true);
  }
  set cw(value: number) {
    this.view.setUint16(S.fcw - START, value, true);
  }
  get sw(): number {
    return this.view.getUint16(S.fsw - START, true);
  }
  set sw(value: number) {
    this.view.setUint16(S.fsw - START, value, true);
  }
  /** Abridged tags: bit p set = physical register p is not empty. */
  get tw(): number {
    return this.view.getUint8(S.ftw - START);
  }
  set tw(value: number) {
    this.view.setUint8(S.ftw - START, value);
  }
  get opcode(): number {
    return this.view.getUint16(S.fop - START, true);
  }
  set opcode(value: number) {
    this.view.setUint16(S.fop - START, value, true);
  }
  get ip(): bigint {
    return this.view.getBigUint64(S.fip - START, true);
  }
  set ip(value: bigint) {
    this.view.setBigUint64(S.fip - START, value, true);
  }
  get dp(): bigint {
    return this.view.getBigUint64(S.fdp - START, true);
  }
  set dp(value: bigint) {
    this.view.setBigUint64(S.fdp - START, value, true);
  }
  get mxcsr(): number {
    return this.view.getUint32(S.mxcsr - START, true);
  }
  set mxcsr(value: number) {
    this.view.setUint32(S.mxcsr - START, value, true);
  }

  get top(): number {
    return (this.sw >> 11) & 7;
  }
  set top(value: number) {
    this.sw = (this.sw & ~0x3800) | ((value & 7) << 11);
  }

  /** Physical register, 80 bits. */
  register(physical: number): bigint {
    const at = S.fpr - START + physical * 16;
    return (BigInt(this.view.getUint16(at + 8, true)) << 64n) | this.view.getBigUint64(at, true);
  }
  setRegister(physical: number, value: bigint): void {
    const at = S.fpr - START + physical * 16;
    this.view.setBigUint64(at, value & LOW64, true);
    this.view.setUint16(at + 8, Number(value >> 64n) & 0xffff, true);
  }
  physical(i: number): number {
    return (this.top + i) & 7;
  }
  isEmpty(i: number): boolean {
    return ((this.tw >> this.physical(i)) & 1) === 0;
  }
  st(i: number): bigint {
    return this.register(this.physical(i));
  }
  /** Writes ST(i) and marks it as in use. */
  setSt(i: number, value: bigint): void {
    const physical = this.physical(i);
    this.setRegister(physical, value);
    this.tw |= 1 << physical;
  }
  free(i: number): void {
    this.tw &= ~(1 << this.physical(i));
  }
  pop(): void {
    this.free(0);
    this.top = this.top + 1;
  }

  /** Copies a 16-byte register out and in. */
  readXmm(n: number, into: Lanes): void {
    this.#copyOut(n * 32, into, 4);
  }
  writeXmm(n: number, from: Lanes): void {
    this.#copyIn(n * 32, from, 4);
  }
  /** Bits 255:128 of a YMM register. */
  readHigh(n: number, into: Lanes): void {
    this.#copyOut(n * 32 + 16, into, 4);
  }
  writeHigh(n: number, from: Lanes): void {
    this.#copyIn(n * 32 + 16, from, 4);
  }
  high(n: number): bigint {
    return (this.view.getBigUint64(n * 32 + 24, true) << 64n) | this.view.getBigUint64(n * 32 + 16, true);
  }
  setHigh(n: number, value: bigint): void {
    this.view.setBigUint64(n * 32 + 16, value & LOW64, true);
    this.view.setBigUint64(n * 32 + 24, value >> 64n, true);
  }
  clearHigh(n: number): void {
    this.setHigh(n, 0n);
  }
  xmm(n: number): bigint {
    return (this.view.getBigUint64(n * 32 + 8, true) << 64n) | this.view.getBigUint64(n * 32, true);
  }
  setXmm(n: number, value: bigint): void {
    this.view.setBigUint64(n * 32, value & LOW64, true);
    this.view.setBigUint64(n * 32 + 8, value >> 64n, true);
  }
  readMm(n: number, into: Lanes): void {
    this.#copyOut(S.fpr - START + n * 16, into, 2);
  }
  /** Writing an MMX register sets the exponent field to all ones (APM vol. 1 section 5.4.5). */
  writeMm(n: number, from: Lanes): void {
    const at = S.fpr - START + n * 16;
    this.#copyIn(at, from, 2);
    this.view.setUint16(at + 8, 0xffff, true);
  }
  /** Every MMX instruction but EMMS: TOP is 0, all registers are in use. */
  enterMmx(): void {
    this.top = 0;
    this.tw = 0xff;
  }

  #copyOut(at: number, into: Lanes, words: number): void {
    for (let i = 0; i < words; i++) into.i32[i] = this.view.getInt32(at + i * 4, true);
  }
  #copyIn(at: number, from: Lanes, words: number): void {
    for (let i = 0; i < words; i++) this.view.setInt32(at + i * 4, from.i32[i]!, true);
  }
}
