/**
 * x87, MMX and SSE by decode row.
 * Manual: APM vol. 4 and 5. What is not here is not implemented (NotImplementedError).
 */
import type { Row } from '../../decode/instruction.ts';
import { convertFunction } from '../simd/convert.ts';
import { floatFunction } from '../simd/float.ts';
import { moveFunction } from '../simd/move.ts';
import { packedFunction } from '../simd/packed.ts';
import { STRING_FUNCTIONS } from '../simd/string.ts';
import type { FpFunction } from './context.ts';
import { CONTROL } from './control.ts';
import { x87ArithmeticFunction } from './x87-arithmetic.ts';
import { x87MoveFunction } from './x87-move.ts';
import { x87TranscendentalFunction } from './x87-transcendental.ts';

const BY_MNEMONIC: Readonly<Record<string, FpFunction>> = { ...CONTROL };
const UNITS = new Set<Row['unit']>(['mmx', 'sse']);

/** The function that executes a row, or undefined. */
export function fpFunction(row: Row): FpFunction | undefined {
  const known = BY_MNEMONIC[row.mnemonic];
  if (known !== undefined) return known;
  if (row.unit === 'x87') return x87MoveFunction(row) ?? x87ArithmeticFunction(row) ?? x87TranscendentalFunction(row);
  if (!UNITS.has(row.unit)) return undefined;
  return (
    moveFunction(row) ??
    packedFunction(row) ??
    floatFunction(row) ??
    convertFunction(row) ??
    STRING_FUNCTIONS[row.mnemonic]?.(row)
  );
}
