/**
 * Draws the repository's sample from a directory of test vectors: tsx scripts/vector-sample.ts DIR [--seed N] [--budget BYTES] [--group REGEXP]
 * Every template of the groups (default: the integer ones) is in it; how many of its cases is chosen so that all files together fit the budget.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { gunzipSync, gzipSync } from 'node:zlib';

const INTEGER = '^(16|32|64)_(alu|bit|branch|fault|misc|mov|muldiv|seg|shift|stack|string)$';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seed: { type: 'string', default: '1' },
    budget: { type: 'string', default: '2000000' },
    group: { type: 'string', default: INTEGER },
  },
});
const OUT = new URL('../packages/emulator/test/vectors/sample/', import.meta.url).pathname;

const SUFFIX = '.jsonl.gz';

/** A 32-bit xorshift: the draw depends on the seed alone. */
function generator(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

interface Source {
  name: string;
  header: string;
  byTemplate: string[][];
}

function readSource(path: string, name: string): Source {
  const lines = gunzipSync(readFileSync(join(path, name)))
    .toString('utf8')
    .split('\n');
  const byTemplate: string[][] = [];
  for (const line of lines.slice(1)) {
    if (line === '') continue;
    (byTemplate[(JSON.parse(line) as { t: number }).t] ??= []).push(line);
  }
  return { name, header: lines[0]!, byTemplate };
}

/** The file with at most `count` cases of each template, in their order. */
function draw(source: Source, count: number, random: () => number): Buffer {
  const chosen = source.byTemplate.flatMap((cases) => {
    const order = cases.map((line, i) => ({ line, i, key: random() }));
    const drawn = order.sort((a, b) => a.key - b.key || a.i - b.i).slice(0, count);
    return drawn.sort((a, b) => a.i - b.i).map(({ line }) => line);
  });
  return gzipSync([source.header, ...chosen, ''].join('\n'), { level: 9 });
}

function main(): number {
  const [directory] = positionals;
  if (directory === undefined) {
    console.error('usage: vector-sample DIR [--seed N] [--budget BYTES] [--group REGEXP]');
    return 2;
  }
  const group = new RegExp(values.group);
  const names = readdirSync(directory).filter(
    (name) => name.endsWith(SUFFIX) && group.test(name.slice(0, -SUFFIX.length)),
  );
  const sources = names.sort().map((name) => readSource(directory, name));
  let best: Buffer[] = [];
  for (let count = 2; ; count += 2) {
    const files = sources.map((source) => draw(source, count, generator(Number(values.seed))));
    const total = files.reduce((sum, file) => sum + file.length, 0);
    console.log(`${count} cases per template: ${total} bytes`);
    if (total > Number(values.budget)) break;
    best = files;
  }
  mkdirSync(OUT, { recursive: true });
  sources.forEach((source, i) => {
    writeFileSync(join(OUT, source.name), best[i]!);
  });
  return best.length > 0 ? 0 : 1;
}

process.exitCode = main();
