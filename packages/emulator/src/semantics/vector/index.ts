/**
 * SSE and AVX instructions as they are recorded for generated code. What is missing here JavaScript executes (semantics/simd).
 */

import type { VectorBuilder, VectorForm } from '../../builder/vector.ts';
import type { Row } from '../../decode/instruction.ts';
import { CRYPTO } from './crypto.ts';
import { floatRule } from './float.ts';
import { INTEGERS } from './integer.ts';
import { MOVES } from './move.ts';
import { Operands } from './operands.ts';
import { PACKED } from './packed.ts';
import { PERMUTATIONS } from './permute.ts';
import type { Rule } from './rule.ts';

const rules = new Map<string, Rule | undefined>();

/** The rule of a mnemonic (with v for VEX forms), or undefined. */
function ruleOf(mnemonic: string, vex: boolean): Rule | undefined {
  const name = vex ? mnemonic.slice(1) : mnemonic;
  if (!rules.has(name))
    rules.set(
      name,
      MOVES[name] ?? INTEGERS[name] ?? PERMUTATIONS[name] ?? PACKED[name] ?? CRYPTO[name] ?? floatRule(name),
    );
  return rules.get(name);
}

/** Has a row a recorded form? Rows of MMX and x87 have none. */
export const hasVectorSemantics = (row: Row): boolean =>
  (row.unit === 'sse' || row.unit === 'avx') && ruleOf(row.mnemonic, row.unit === 'avx') !== undefined;

/** Records a vector instruction. */
export function recordVector(b: VectorBuilder, mnemonic: string, form: VectorForm): void {
  ruleOf(mnemonic, form.vex)!(new Operands(b, form, mnemonic));
}
