/** What a recorded vector instruction is: a function of its operands. */
import type { Operands } from './operands.ts';

export type Rule = (o: Operands) => void;

/** Sixteen byte numbers. */
export const bytesFrom = (f: (i: number) => number): number[] => Array.from({ length: 16 }, (_, i) => f(i));
