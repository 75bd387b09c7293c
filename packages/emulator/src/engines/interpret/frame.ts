/**
 * What a handler's emitter needs of the function around it: inside the dispatch function and out of line these differ.
 */
import { type Code, type Label, MEM, type ValType } from '../wasm/emitter.ts';
import { P } from './records.ts';

/** Functions that handlers call; the same names serve as imports of out-of-line modules. */
export const HELPERS = [
  /** (linear, size | segment << 8 | (span - size) << 16) → 0 (value in S.scratch) or 1. */
  'missRead',
  'missReadForWrite',
  'missProbe',
  /** (linear, value, size | segment << 8 | (span - size) << 16) → 0 or 1. */
  'missWrite',
  /** (segment, offset, size | write << 4) → linear, or -1 after a fault. */
  'checkedLinear',
  /** (target) → 1 if RIP may not become that. */
  'badTarget',
  /** (vector, hasErrorCode, errorCode). */
  'recordException',
  /** (hi, lo, divisor) → quotient. */
  'div128',
  'mulHighU',
  'mulHighS',
  /** (how, most iterations) → iterations of REP MOVS or STOS that were done (block-moves.ts). */
  'block',
  'repeatBlock',
] as const;
export type Helper = (typeof HELPERS)[number];

/** Where the surrounding function keeps things. */
export interface Frame {
  readonly code: Code;
  /** Local: address of the record. */
  readonly pc: number;
  /** Local: RIP at offset 0 of the page. */
  readonly pageBase: number;
  helper(name: Helper): number;
  getFlag(which: 'result' | 'aux'): void;
  setFlag(which: 'result' | 'aux'): void;
  /** Pushes the TLB context (i64), or its hash in place (i32). */
  context(): void;
  contextHash(): void;
  /** A free local, from a pool. */
  acquire(type: ValType): number;
  release(local: number, type: ValType): void;
  /** Where a fault goes. */
  readonly fault: Label;
  /** 64-bit code. */
  readonly long: boolean;
  /** Transfers to a linked or computed target; all effects are done. `target` pushes it, `check` raises if the local's value is illegal. */
  jump(target: () => void, direct: boolean, check: ((local: number) => void) | null): void;
  /** This record again. */
  repeat(): void;
  /** The same behind as many ticks as the local says. */
  repeatAfter(ticks: number): void;
  /** Pushes the ticks that are left before this instruction. */
  ticksLeft(): void;
  /** JavaScript executes this instruction. */
  handBack(): void;
  /** Leaves behind this instruction; `next` pushes the RIP. */
  shadowed(next: () => void): void;
  /** Goes on in another TLB context or by another code key: code is looked up anew. `next` pushes the RIP. */
  recontext(next: () => void): void;
}

/** The TLB context from its private slots (for frames without locals for it). */
export const pushContext = (code: Code): void => void code.i32(0).mem(MEM.i64Load, P.context);
export const pushContextHash = (code: Code): void => void code.i32(0).mem(MEM.i32Load, P.contextHash);
