/**
 * The examples in README and docs run as they stand.
 * ```console blocks: each `$ tskvm …` line is run; every following line must appear in the output, in order (`…` skips).
 * ```ts blocks that import something are written to a file and executed; `// prints: text` lines must appear in the output in order.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const scratch = mkdtempSync(join(root, 'packages/cli/test/.docs-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const TSX = ['--conditions=@tskvm/source', '--import', 'tsx'];
const GUEST_FILES = /\/usr\/(share|lib)\//;

interface Block {
  language: string;
  text: string;
  line: number;
}
function blocks(file: string): Block[] {
  const found: Block[] = [];
  const text = readFileSync(join(root, file), 'utf8');
  for (const match of text.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)) {
    found.push({ language: match[1], text: match[2], line: text.slice(0, match.index).split('\n').length });
  }
  return found;
}

function run(args: string[], cwd = root): { output: string; status: number | null } {
  const result = spawnSync('node', [...TSX, ...args], {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, NO_COLOR: '1' },
    timeout: 120_000,
  });
  return { output: result.stdout + result.stderr, status: result.status };
}

/** Words of a shell line; quotes group, nothing else is special. */
const words = (line: string): string[] =>
  [...line.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2] ?? m[3]);

const squeeze = (text: string): string => text.replace(/\s+/g, ' ').trim();
function expectInOrder(output: string, lines: readonly string[], where: string): void {
  const have = output.split('\n').map(squeeze);
  let at = 0;
  for (const line of lines.map(squeeze).filter((l) => l !== '' && l !== '…')) {
    const found = have.findIndex((h, i) => i >= at && h.includes(line));
    expect(found, `${where}: the output lacks "${line}"; it was:\n${output}`).toBeGreaterThanOrEqual(0);
    at = found + 1;
  }
}

function runConsole(block: Block, file: string): void {
  const lines = block.text.split('\n');
  for (let i = 0; i < lines.length; ) {
    const line = lines[i++];
    if (!line.startsWith('$ ')) continue;
    const expected: string[] = [];
    while (i < lines.length && !lines[i].startsWith('$ ')) expected.push(lines[i++]);
    const [command, ...args] = words(line.slice(2));
    if (command !== 'tskvm') continue;
    const { output } = run([join(root, 'packages/cli/src/cli.ts'), ...args]);
    expectInOrder(output, expected, `${file}:${block.line} ${line}`);
  }
}
function runTypeScript(block: Block, file: string, index: number): void {
  const path = join(scratch, `${file.replace(/\W/g, '_')}_${index}.ts`);
  writeFileSync(path, block.text);
  const { output, status } = run([path]);
  expect(status, `${file}:${block.line} failed:\n${output}`).toBe(0);
  expectInOrder(
    output,
    [...block.text.matchAll(/\/\/ prints: (.*)$/gm)].map((m) => m[1]),
    `${file}:${block.line}`,
  );
}

const files = [
  'README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((f) => f.endsWith('.md'))
    .map((f) => `docs/${f}`),
];
const isExample = ({ language, text }: Block): boolean =>
  (language === 'console' && /^\$ tskvm/m.test(text)) ||
  (language === 'ts' && /^import /m.test(text) && !text.includes('vitest'));

for (const file of files) {
  const examples = blocks(file).filter(isExample);
  if (examples.length === 0) continue;
  describe(file, () => {
    for (const [index, block] of examples.entries()) {
      const needsPackages = GUEST_FILES.test(block.text) && process.env.TSKVM_REQUIRE_GUESTS === undefined;
      test.skipIf(needsPackages)(
        `${block.language} example at line ${block.line}`,
        () => (block.language === 'console' ? runConsole(block, file) : runTypeScript(block, file, index)),
        240_000,
      );
    }
  });
}

test('docs/READING.md names files and folders that exist', () => {
  const text = readFileSync(join(root, 'docs/READING.md'), 'utf8');
  const named = [...text.matchAll(/`((?:packages|guests|docs)\/[\w./-]+)`/g)].map((match) => match[1]);
  expect(named.length).toBeGreaterThan(15);
  expect(named.filter((path) => !existsSync(join(root, path)))).toEqual([]);
});
