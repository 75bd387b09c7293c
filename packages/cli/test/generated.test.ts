/** What is made from the source is up to date. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../..', import.meta.url));

test('docs/errors.md is what the tables and the source say', () => {
  const result = spawnSync('node', ['--conditions=@tskvm/source', '--import', 'tsx', 'scripts/errors.ts', '--check'], {
    cwd: root,
    encoding: 'utf8',
  });
  expect(result.status, result.stderr).toBe(0);
}, 120_000);
