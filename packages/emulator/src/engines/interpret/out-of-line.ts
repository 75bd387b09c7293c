/**
 * Handlers outside the dispatch function: a small module for every batch of forms, compiled once in a process.
 * They reach the lazy flags and the TLB context through the state block.
 */
import { Layout } from '../../memory/layout.ts';
import { S } from '../../state-layout.ts';
import {
  Code,
  encodeModule,
  type FuncBody,
  type FuncImport,
  I32,
  I64,
  type Label,
  MEM,
  OP,
  V128,
  type ValType,
} from '../wasm/emitter.ts';
import { HandlerEmitter } from './emit.ts';
import { type Frame, HELPERS, type Helper, pushContext, pushContextHash } from './frame.ts';
import { HELPER_TYPES } from './helpers.ts';
import type { Recording } from './ir.ts';
import { OUT_OF_LINE } from './main-module.ts';
import { Outcome, P, RECORD_SHIFT } from './records.ts';

const PARAMS = 2;

class FunctionFrame implements Frame {
  readonly code = new Code();
  readonly pc = 0;
  readonly pageBase = 1;
  readonly locals: ValType[] = [];
  readonly #free: Record<ValType, number[]> = { [I32]: [], [I64]: [], [V128]: [] };
  readonly fault: Label;

  constructor(readonly long: boolean) {
    this.fault = this.code.block();
  }
  helper(name: Helper): number {
    return HELPERS.indexOf(name);
  }
  #flag(which: 'result' | 'aux'): number {
    return Layout.state + (which === 'result' ? S.lazyResult : S.lazyAux);
  }
  getFlag(which: 'result' | 'aux'): void {
    this.code.i32(0).mem(MEM.i64Load, this.#flag(which));
  }
  setFlag(which: 'result' | 'aux'): void {
    const local = this.acquire(I64);
    this.code.set(local).i32(0).get(local).mem(MEM.i64Store, this.#flag(which));
    this.release(local, I64);
  }
  context(): void {
    pushContext(this.code);
  }
  contextHash(): void {
    pushContextHash(this.code);
  }
  acquire(type: ValType): number {
    const free = this.#free[type].pop();
    if (free !== undefined) return free;
    this.locals.push(type);
    return PARAMS + this.locals.length - 1;
  }
  release(local: number, type: ValType): void {
    this.#free[type].push(local);
  }
  jump(target: () => void, _direct: boolean, check: ((local: number) => void) | null): void {
    const local = this.acquire(I64);
    target();
    this.code.set(local);
    check?.(local);
    this.code
      .i32(0)
      .get(local)
      .mem(MEM.i64Store, Layout.state + S.rip)
      .i32(Outcome.jumped)
      .op(OP.return);
    this.release(local, I64);
  }
  repeat(): void {
    this.code.i32(Outcome.repeat | (1 << RECORD_SHIFT)).op(OP.return);
  }
  repeatAfter(ticks: number): void {
    this.code.get(ticks).i32(RECORD_SHIFT).op(OP.i32Shl).i32(Outcome.repeat).op(OP.i32Or).op(OP.return);
  }
  ticksLeft(): void {
    this.code.i32(0).mem(MEM.i32Load, P.left);
  }
  handBack(): void {
    this.code.i32(Outcome.handBack).op(OP.return);
  }
  shadowed(next: () => void): void {
    this.#leave(next, Outcome.shadowed);
  }
  recontext(next: () => void): void {
    this.#leave(next, Outcome.recontext);
  }
  #leave(next: () => void, outcome: number): void {
    this.code.i32(0);
    next();
    this.code
      .mem(MEM.i64Store, Layout.state + S.rip)
      .i32(outcome)
      .op(OP.return);
  }
}

function body(recording: Recording, long: boolean): FuncBody {
  const frame = new FunctionFrame(long);
  new HandlerEmitter(frame).emit(recording, false);
  frame.code.i32(Outcome.next).op(OP.return).end().i32(Outcome.fault);
  return { type: OUT_OF_LINE, locals: frame.locals, code: frame.code };
}

const imports = (): FuncImport[] => HELPERS.map((name) => ({ module: 'helpers', name, type: HELPER_TYPES[name] }));

/** A module that exports `f0`, `f1`, … for the recordings. */
export function outOfLineModule(recordings: readonly Recording[], long: boolean): Uint8Array<ArrayBuffer> {
  return encodeModule({
    imports: imports(),
    functions: recordings.map((recording, i) => ({ ...body(recording, long), export: `f${i}` })),
  });
}
/** A module that puts its functions into the table's first elements. */
export function usualModule(recordings: readonly Recording[], long: boolean): Uint8Array<ArrayBuffer> {
  const functions = recordings.map((recording) => body(recording, long));
  return encodeModule({ imports: imports(), functions, fillsTable: true });
}
