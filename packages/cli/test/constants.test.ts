/** The build's plugin that gives bundles back their constants. */
import { expect, test } from 'vitest';
import { keepConstants } from '../../../scripts/tsup-constants.ts';

test('what is never assigned to again becomes a constant, at the same length', () => {
  const code = 'var A = 1;\nvar B = class {\n};\nif (A === 2 || A <= 3) use(A => A, B);\n';
  const kept = keepConstants(code);
  expect(kept).toBe('const A=1;\nconst B=class {\n};\nif (A === 2 || A <= 3) use(A => A, B);\n');
  expect(kept).toHaveLength(code.length);
});

test.each(['A = 2', 'A += 2', 'A ??= 2', 'A >>>= 1', 'A++', '--A', 'for (A = 0; ;) {}', 'var A = 3'])(
  'stays a variable: %s',
  (change) => {
    const code = `var A = 1;\nfunction f() {\n  ${change};\n}\n`;
    expect(keepConstants(code)).toBe(code);
  },
);

test('a member or a longer name that is written is another', () => {
  const code = 'var A = {};\nA.x = 1;\nthis.A = 2;\nAB = 3;\n';
  expect(keepConstants(code)).toBe(code.replace('var A = ', 'const A='));
});
