/**
 * Debug registers and breakpoints: DR0-DR3 with DR7, hits in DR6.
 * Manual: APM vol. 2 section 13.1, SDM vol. 3 sections 17.2 and 17.3.
 */
import { CR4, S } from '../state-layout.ts';
import type { StateBlock } from './state.ts';

export const Dr6 = { B: 0xfn, BD: 1n << 13n, BS: 1n << 14n, BT: 1n << 15n } as const;
const DR6_FIXED = 0xffff0ff0n;
const DR6_WRITABLE = 0xe00fn;
/** Bit 10 reads 1; 12, 14, 15 read 0. */
const DR7_FIXED = 0x400n;
const DR7_WRITABLE = 0xffff2bffn;
export const DR7_GD = 0x2000n;
/** IA32_DEBUGCTL, DebugCtl on AMD. */
export const DebugCtl = { BTF: 2 } as const;

/** R/W fields of DR7. */
const Kind = { execute: 0, write: 1, io: 2, readWrite: 3 } as const;
const LENGTHS = [1, 2, 8, 4] as const;

export interface Breakpoint {
  bit: bigint;
  linear: bigint;
  kind: number;
  length: number;
}

const NONE: readonly Breakpoint[] = [];

/** The breakpoints that DR7 enables. */
export function armedBreakpoints(state: StateBlock): readonly Breakpoint[] {
  const dr7 = state.block.getUint32(S.dr7, true);
  if ((dr7 & 0xff) === 0) return NONE;
  const armed: Breakpoint[] = [];
  for (let n = 0; n < 4; n++) {
    if ((dr7 & (3 << (n * 2))) === 0) continue;
    const kind = (dr7 >>> (16 + n * 4)) & 3;
    const length = LENGTHS[(dr7 >>> (18 + n * 4)) & 3];
    // An address is compared under the mask of its length (SDM vol. 3 section 17.2.5).
    const linear = state.get64(S.dr0 + n * 8) & ~BigInt(kind === Kind.execute ? 0 : length - 1);
    armed.push({ bit: 1n << BigInt(n), linear, kind, length });
  }
  return armed;
}

const overlaps = (point: Breakpoint, linear: bigint, size: number): boolean =>
  linear < point.linear + BigInt(point.length) && point.linear < linear + BigInt(size);

/** DR6 bits of the data breakpoints that an access hits. */
export const dataHits = (armed: readonly Breakpoint[], linear: bigint, size: number, write: boolean): bigint =>
  armed.reduce((hits, point) => {
    const watched = point.kind === Kind.readWrite || (write && point.kind === Kind.write);
    return watched && overlaps(point, linear, size) ? hits | point.bit : hits;
  }, 0n);

/** DR6 bits of the instruction breakpoints at an address. */
export const codeHits = (armed: readonly Breakpoint[], linear: bigint): bigint =>
  armed.reduce((hits, point) => (point.kind === Kind.execute && point.linear === linear ? hits | point.bit : hits), 0n);

/** DR6 bits of the I/O breakpoints on a port (only with CR4.DE). */
export const ioHits = (state: StateBlock, armed: readonly Breakpoint[], port: number, size: number): bigint =>
  (state.cr4 & CR4.DE) === 0n
    ? 0n
    : armed.reduce(
        (hits, point) => (point.kind === Kind.io && overlaps(point, BigInt(port), size) ? hits | point.bit : hits),
        0n,
      );

/** A debug register by number; 4 and 5 name 6 and 7. */
export function readDr(state: StateBlock, dr: number): bigint {
  if (dr < 4) return state.get64(S.dr0 + dr * 8);
  return state.get64(dr === 4 || dr === 6 ? S.dr6 : S.dr7);
}

/** True: refused (#GP(0)): bits 63:32 of DR6 and DR7 must be zero. */
export function writeDr(state: StateBlock, dr: number, value: bigint): boolean {
  if (dr < 4) {
    state.set64(S.dr0 + dr * 8, value);
    return false;
  }
  if (value >> 32n !== 0n) return true;
  if (dr === 4 || dr === 6) state.set64(S.dr6, (value & DR6_WRITABLE) | DR6_FIXED);
  else state.set64(S.dr7, (value & DR7_WRITABLE) | DR7_FIXED);
  return false;
}

/** Merges what a #DB reports into DR6: B3:B0 are replaced, the others accumulate (SDM vol. 3 section 17.2.3). */
export const mergeDr6 = (dr6: bigint, payload: bigint): bigint => (dr6 & ~Dr6.B) | payload | DR6_FIXED;
