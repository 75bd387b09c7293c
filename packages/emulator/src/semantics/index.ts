/**
 * Every instruction whose semantics is written against the Builder, by the mnemonic of its decode row.
 * Manual: APM vol. 3. What is not here is a plain function in system/.
 */
import type { Semantics } from '../builder/builder.ts';
import { ARITHMETIC } from './arithmetic.ts';
import { BCD } from './bcd.ts';
import { BIT } from './bit.ts';
import { BRANCH } from './branch.ts';
import { EXCHANGE } from './exchange.ts';
import { FLAGS } from './flags.ts';
import { LOGIC } from './logic.ts';
import { MOVE } from './move.ts';
import { MULDIV } from './muldiv.ts';
import { SHIFT } from './shift.ts';
import { STACK } from './stack.ts';
import { STRING } from './string.ts';

export const SEMANTICS: Readonly<Record<string, Semantics>> = {
  ...ARITHMETIC,
  ...LOGIC,
  ...SHIFT,
  ...MULDIV,
  ...MOVE,
  ...STACK,
  ...STRING,
  ...BRANCH,
  ...BIT,
  ...BCD,
  ...FLAGS,
  ...EXCHANGE,
};
