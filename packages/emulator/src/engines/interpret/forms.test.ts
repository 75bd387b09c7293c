import { expect, it } from 'vitest';
import type { Form } from './form.ts';
import { HandlerSet, VECTOR_FORMS } from './handlers.ts';
import { PLAIN, TABLE_SIZE } from './main-module.ts';

it('a guest that uses every immediate of every shuffle leaves room for the other forms', () => {
  const handlers = new HandlerSet(true);
  const shuffles = ['pshufd', 'shufps', 'pshuflw', 'pshufhw', 'palignr', 'pblendw', 'blendps', 'cmpps'];
  let made = 0;
  for (const memory of ['none', 'base', 'index', 'rip'] as const) {
    for (const segments of ['long', 'flat'] as const) {
      for (const mnemonic of shuffles) {
        for (let imm = 0; imm < 256; imm++) {
          const vector = { vex: false, wide: false, imm };
          const form: Form = {
            ...PLAIN,
            mnemonic,
            operands: ['Vdq', 'Wdq', 'Ib'],
            memory,
            segments,
            opSize: 4,
            vector,
          };
          if (!handlers.hasRoomFor(form)) continue;
          handlers.info(form);
          made++;
        }
      }
    }
  }
  expect(made).toBe(VECTOR_FORMS);
  expect(VECTOR_FORMS).toBeLessThan(TABLE_SIZE);
  expect(handlers.hasRoomFor({ ...PLAIN, mnemonic: 'add', operands: ['Gv', 'Ev'] })).toBe(true);
});
