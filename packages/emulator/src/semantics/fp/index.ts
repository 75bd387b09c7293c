/**
 * x87, MMX and SSE by decode row.
 * Manual: APM vol. 4 and 5. What is not here is not implemented (NotImplementedError).
 */
import type { Row } from '../../decode/instruction.ts';
import { convertFunction } from '../simd/convert.ts';
import { floatFunction } from '../simd/float.ts';
import { fmaFunction } from '../simd/fma.ts';
import { maskedFunction } from '../simd/masked.ts';
import { moveFunction } from '../simd/move.ts';
import { operationName } from '../simd/operands.ts';
import { packedFunction } from '../simd/packed.ts';
import { permuteFunction } from '../simd/permute.ts';
import { STRING_FUNCTIONS } from '../simd/string.ts';
import type { FpFunction } from './context.ts';
import { CONTROL } from './control.ts';
import { x87ArithmeticFunction } from './x87-arithmetic.ts';
import { x87MoveFunction } from './x87-move.ts';
import { x87TranscendentalFunction } from './x87-transcendental.ts';

const BY_MNEMONIC: Readonly<Record<string, FpFunction>> = { ...CONTROL };
const UNITS = new Set<Row['unit']>(['mmx', 'sse', 'avx']);

/** The function that executes a row, or undefined. */
export function fpFunction(row: Row): FpFunction | undefined {
  const name = operationName(row);
  const known = BY_MNEMONIC[name];
  if (known !== undefined) return known;
  if (row.unit === 'x87') return x87MoveFunction(row) ?? x87ArithmeticFunction(row) ?? x87TranscendentalFunction(row);
  if (!UNITS.has(row.unit)) return undefined;
  return (
    (row.unit === 'avx' ? (permuteFunction(row) ?? maskedFunction(row) ?? fmaFunction(row)) : undefined) ??
    moveFunction(row) ??
    packedFunction(row) ??
    floatFunction(row) ??
    convertFunction(row) ??
    STRING_FUNCTIONS[name]?.(row)
  );
}
