/**
 * Words of the state block that a region keeps in variables: the x87 control, status and tag words and pointers.
 * Manual: APM vol. 1 section 6.2 (x87 registers).
 */
import { S } from '../../state-layout.ts';
import type { Variable } from '../interpret/ir.ts';
import { MEM } from '../wasm/emitter.ts';

export interface Word {
  readonly offset: number;
  readonly size: 1 | 2 | 8;
  readonly variable: Variable;
}

/** Ids below that of the carry (liveness.ts). */
const FIRST = -2;
const WORDS: readonly Word[] = (
  [
    [S.fcw, 2],
    [S.fsw, 2],
    [S.ftw, 1],
    [S.fop, 2],
    [S.fip, 8],
    [S.fdp, 8],
  ] as const
).map(([offset, size], i) => ({ offset, size, variable: { id: FIRST - i, version: 0 } }));
const byOffset = new Map(WORDS.map((word) => [word.offset, word]));

export const wordAt = (offset: number): Word | undefined => byOffset.get(offset);
export const wordOf = (variable: number): Word | undefined => WORDS[FIRST - variable];

export const LOAD_WORD = { 1: MEM.i64Load8U, 2: MEM.i64Load16U, 8: MEM.i64Load } as const;
export const STORE_WORD = { 1: MEM.i64Store8, 2: MEM.i64Store16, 8: MEM.i64Store } as const;
