/** What is made from the source is up to date. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
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

test('the built emulator carries the interpreter that its source generates', () => {
  const code = `
    import { generateMain } from './packages/emulator/src/engines/interpret/handlers.ts';
    import { toBase64 } from './packages/emulator/src/engines/interpret/prebuilt.ts';
    import { generateUsual } from './packages/emulator/src/engines/interpret/usual-handlers.ts';
    for (const make of [generateMain, generateUsual])
      for (const long of [false, true]) console.log(toBase64(make(long).module));`;
  const args = ['--conditions=@tskvm/source', '--import', 'tsx', '--input-type=module', '-e', code];
  const result = spawnSync('node', args, { cwd: root, encoding: 'utf8' });
  expect(result.status, result.stderr).toBe(0);
  const dist = `${root}packages/emulator/dist/`;
  const built = readdirSync(dist).filter((name) => name.endsWith('.js'));
  const text = built.map((name) => readFileSync(`${dist}${name}`, 'utf8')).join('');
  const modules = result.stdout.trim().split('\n');
  expect(modules).toHaveLength(4);
  for (const module of modules) expect(text.includes(module)).toBe(true);
}, 120_000);
