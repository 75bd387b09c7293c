/**
 * A third party's plugin: all packages packed, installed as tarballs in an empty folder, the plugin of docs/backends.md verbatim,
 * compiled under strict tsc, run through backendSuite, loaded by path and by name.
 */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const PACKAGES = ['emulator', 'core', 'svm', 'vmx', 'cli'] as const;
const built = PACKAGES.every((name) => existsSync(join(root, 'packages', name, 'dist/index.js')));
let folder = '';

function run(command: string, args: string[], cwd: string): { output: string; status: number | null } {
  const result = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, NO_COLOR: '1' },
    timeout: 300_000,
  });
  return { output: `${result.stdout}${result.stderr}${result.error?.message ?? ''}`, status: result.status };
}
function must(command: string, args: string[], cwd: string): string {
  const { output, status } = run(command, args, cwd);
  expect(status, `${command} ${args.join(' ')}:\n${output}`).toBe(0);
  return output;
}
/** A fenced block of docs/backends.md by its first line. */
function docBlock(first: string): string {
  const text = readFileSync(join(root, 'docs/backends.md'), 'utf8');
  const block = [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].find((m) => m[1].startsWith(first));
  if (!block) throw new Error(`docs/backends.md has no block that starts with ${first}`);
  return block[1];
}

function makePlugin(at: string): void {
  mkdirSync(join(at, 'src'), { recursive: true });
  writeFileSync(join(at, 'src/index.ts'), docBlock('// src/index.ts'));
  writeFileSync(
    join(at, 'package.json'),
    JSON.stringify({
      name: 'my-backend',
      version: '1.0.0',
      type: 'module',
      exports: './dist/index.js',
      keywords: ['tskvm-backend'],
    }),
  );
  writeFileSync(
    join(at, 'tsconfig.json'),
    JSON.stringify({
      compilerOptions: {
        target: 'ES2022',
        module: 'NodeNext',
        moduleResolution: 'NodeNext',
        strict: true,
        exactOptionalPropertyTypes: true,
        noUncheckedIndexedAccess: true,
        rootDir: 'src',
        outDir: 'dist',
        types: [],
        lib: ['ES2022', 'DOM'],
      },
      include: ['src'],
    }),
  );
}

describe.skipIf(!built)('a third party plugin, from packed packages', () => {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'tskvm-plugin-'));
    const tarballs = join(folder, 'tarballs');
    mkdirSync(tarballs);
    for (const name of PACKAGES) must('pnpm', ['pack', '--pack-destination', tarballs], join(root, 'packages', name));
    const app = join(folder, 'app');
    mkdirSync(app);
    const files = readdirSync(tarballs).map((file) => join(tarballs, file));
    writeFileSync(join(app, 'package.json'), JSON.stringify({ name: 'app', private: true, type: 'module' }));
    must('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', ...files], app);
    makePlugin(join(app, 'plugin'));
    must('node', [join(root, 'node_modules/@typescript/native/bin/tsc'), '-p', 'plugin'], app);
    // Installed as a dependency too, so that it is found by name and by keyword.
    cpSync(join(app, 'plugin'), join(app, 'node_modules/my-backend'), { recursive: true });
    const json = JSON.parse(readFileSync(join(app, 'package.json'), 'utf8')) as {
      dependencies: Record<string, string>;
    };
    json.dependencies['my-backend'] = '1.0.0';
    writeFileSync(join(app, 'package.json'), JSON.stringify(json));
    cpSync(join(root, 'guests/hello.bin'), join(app, 'hello.bin'));
  }, 300_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const tskvm = (...args: string[]): { output: string; status: number | null } =>
    run('node', ['node_modules/tskvm/dist/cli.js', ...args], join(folder, 'app'));

  test('is listed by keyword', () => {
    expect(tskvm('backends').output).toMatch(/my-backend|counting/);
  });
  test.each([['./plugin/dist/index.js'], ['my-backend']])(
    'is loaded as %s and its frame stands in the call path',
    (spec) => {
      const { output, status } = tskvm('modes', '--json', '--backend', spec, 'hello.bin');
      expect(status, output).toBe(1);
      const paths = (JSON.parse(output) as { switches: { path: string[] }[] }).switches.map((s) => s.path);
      expect(paths.map((path) => path.slice(-3).join(' → '))).toContain(
        'staticCall.setCr0 → countingSetCr0 → svmSetCr0',
      );
    },
  );
  test('passes backendSuite', () => {
    const app = join(folder, 'app');
    symlinkSync(join(root, 'node_modules/vitest'), join(app, 'node_modules/vitest'));
    writeFileSync(join(app, 'plugin/dist/plugin.test.js'), docBlock('// test.ts'));
    must('node', ['node_modules/vitest/vitest.mjs', 'run', '--root', app, 'plugin/dist/plugin.test.js'], app);
  }, 180_000);

  const broken: [string, string, RegExp][] = [
    ['a missing operation', 'setCr0: undefined', /setCr0/],
    ['a misspelt operation', 'setCrO: () => {}', /setCrO.*setCr0/s],
    [
      'a throwing operation',
      "enableVirtualizationCpu: () => { throw new Error('no such bit'); }",
      /enableVirtualizationCpu.*no such bit/s,
    ],
  ];
  test.each(broken)('%s is one message that names the operation', (_what, member, message) => {
    const file = join(folder, 'app', `broken-${_what.replaceAll(' ', '-')}.js`);
    writeFileSync(
      file,
      `import { defineBackend } from '@tskvm/core';\nimport { svm } from '@tskvm/svm';\nexport default () => defineBackend({ name: 'broken', apiVersion: 1, extends: svm(), ops: { ${member} } });\n`,
    );
    const { output, status } = tskvm('run', '--backend', file, 'hello.bin');
    expect(status).toBe(1);
    expect(output).toMatch(message);
    expect(output.trim().split('\n')).toHaveLength(1);
  });
  test('a wrong apiVersion is one message that names both versions', () => {
    const file = join(folder, 'app', 'broken-version.js');
    writeFileSync(
      file,
      "import { defineBackend } from '@tskvm/core';\nimport { svm } from '@tskvm/svm';\nexport default () => defineBackend({ name: 'broken', apiVersion: 99, extends: svm(), ops: {} });\n",
    );
    const { output, status } = tskvm('run', '--backend', file, 'hello.bin');
    expect(status).toBe(1);
    expect(output).toMatch(/version 99.*\b1\b/s);
  });
});
