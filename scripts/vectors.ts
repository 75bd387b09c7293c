/**
 * Runs a directory of test vectors on an engine: pnpm test:vectors DIR [--engine evaluate|processor|interpret|translate] [--group REGEXP] [--show N]
 * Prints passed and failed cases per group with the first mismatches; exit status 1 if anything failed.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { vectorEngine } from '../packages/emulator/test/vectors/engines.ts';
import { type Header, readVectors } from '../packages/emulator/test/vectors/format.ts';
import { runCase, type VectorEngine } from '../packages/emulator/test/vectors/run-case.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    engine: { type: 'string', default: 'evaluate' },
    group: { type: 'string', default: '.' },
    show: { type: 'string', default: '5' },
  },
});

interface Tally {
  passed: number;
  failed: number;
  /** Engine translate: cases that ran as regions. */
  translated: number;
  byTemplate: Map<string, number>;
}

async function runFile(engine: VectorEngine, path: string, show: number): Promise<Tally> {
  const { header, cases } = readVectors(path);
  const machine = await engine.create(header);
  const tally: Tally = { passed: 0, failed: 0, translated: 0, byTemplate: new Map() };
  for (const test of cases) {
    const differences = attempt(() => runCase(machine, header, test));
    if (differences.length === 0) {
      tally.passed++;
      continue;
    }
    tally.failed++;
    const name = header.templates[test.t]!.name;
    const before = tally.byTemplate.get(name) ?? 0;
    tally.byTemplate.set(name, before + 1);
    if (before === 0 && tally.byTemplate.size <= show) report(header, test, differences);
  }
  tally.translated = machine.coverage?.translated ?? 0;
  return tally;
}

/** A throw is a failure of the case like any other. */
function attempt(run: () => string[]): string[] {
  try {
    return run();
  } catch (error) {
    return [String(error instanceof Error ? (error.stack ?? error.message).split('\n').slice(0, 3).join(' ') : error)];
  }
}

function report(header: Header, test: Parameters<typeof runCase>[2], differences: string[]): void {
  const template = header.templates[test.t]!;
  console.log(`  ${template.name} (${template.form}): ${test.c} at ${test.ip}`);
  for (const difference of differences) console.log(`    ${difference}`);
  console.log(`    case: ${JSON.stringify(test)}`);
}

async function main(): Promise<number> {
  const [directory] = positionals;
  if (directory === undefined) {
    console.error('usage: vectors DIR [--engine evaluate|processor|interpret|translate] [--group REGEXP] [--show N]');
    return 2;
  }
  const group = new RegExp(values.group);
  const names = readdirSync(directory)
    .filter((name) => name.endsWith('.jsonl.gz') && group.test(name.replace('.jsonl.gz', '')))
    .sort();
  const engine = await vectorEngine(values.engine);
  let passed = 0;
  let failed = 0;
  let translated = 0;
  for (const name of names) {
    const started = Date.now();
    const tally = await runFile(engine, join(directory, name), Number(values.show));
    passed += tally.passed;
    failed += tally.failed;
    translated += tally.translated;
    const worst = [...tally.byTemplate].map(([template, count]) => `${template} ${count}`).join(', ');
    const seconds = ((Date.now() - started) / 1000).toFixed(1);
    const regions = tally.translated > 0 ? `, ${tally.translated} as regions` : '';
    console.log(
      `${name.replace('.jsonl.gz', '')}: ${tally.passed} passed, ${tally.failed} failed${regions}, ${seconds} s${worst === '' ? '' : ` [${worst}]`}`,
    );
  }
  const regions = translated > 0 ? ` (${translated} as regions of translated code)` : '';
  console.log(`${engine.name}: ${passed} passed, ${failed} failed in ${names.length} groups${regions}`);
  return failed === 0 && names.length > 0 ? 0 : 1;
}

process.exitCode = await main();
