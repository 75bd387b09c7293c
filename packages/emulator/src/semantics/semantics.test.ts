import { describe, expect, it } from 'vitest';
import { MNEMONICS } from '../decode/mnemonics.ts';
import { SYSTEM } from '../system/index.ts';
import { SEMANTICS } from './index.ts';

describe('every mnemonic has one meaning', () => {
  it('semantics and system functions are for mnemonics of the decode tables', () => {
    const unknown = [...Object.keys(SEMANTICS), ...Object.keys(SYSTEM)].filter((name) => !(name in MNEMONICS));
    expect(unknown).toEqual([]);
  });
  it('none has two', () => {
    expect(Object.keys(SEMANTICS).filter((name) => name in SYSTEM)).toEqual([]);
  });
});
