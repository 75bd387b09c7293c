/**
 * Runs firmware instruction by instruction here and on QEMU's TCG (by gdb's remote protocol), and compares the registers after each.
 * `node --conditions=@tskvm/source --import tsx scripts/lockstep/main.ts [--backend svm] IMAGE`, or `--seed N --cases N` for random cases.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { makeProgram32 } from './cases32.ts';
import { makeProgram64 } from './cases64.ts';
import type { Program } from './common.ts';
import { describe, Pair } from './pair.ts';
import { CaseRun } from './run-cases.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'svm' },
    limit: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1' },
    cases: { type: 'string', default: '200' },
    mode: { type: 'string', default: 'protected' },
    keep: { type: 'string' },
  },
});
const say = (line: string): void => void process.stdout.write(`${line}\n`);

/** Goes on behind a difference while both stand at the same instruction. */
async function runImage(path: string): Promise<number> {
  const pair = await Pair.start(path, readFileSync(path), values.backend);
  let found = 0;
  let steps = 0;
  try {
    for (; steps < Number(values.limit); steps++) {
      const step = await pair.step();
      if (step.ended) break;
      if (step.differ.length === 0) continue;
      found++;
      say(describe(step));
      if (step.differ.includes('rip')) break;
      await pair.align();
    }
  } finally {
    pair.close();
  }
  say(`${steps} instructions, ${found} differences`);
  return found > 0 ? 1 : 0;
}

function assemble(program: Program): { path: string; image: Buffer } {
  const path = join(values.keep ?? mkdtempSync(join(tmpdir(), 'lockstep-')), `cases-${values.seed}`);
  writeFileSync(`${path}.asm`, program.source);
  const result = spawnSync('nasm', ['-f', 'bin', '-o', `${path}.bin`, `${path}.asm`], { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(result.stderr.slice(0, 2000));
  return { path: `${path}.bin`, image: readFileSync(`${path}.bin`) };
}

async function runCases(): Promise<number> {
  const make = values.mode === 'long' ? makeProgram64 : makeProgram32;
  const program = make(Number(values.seed), Number(values.cases), values.backend.startsWith('svm'));
  const { path, image } = assemble(program);
  const pair = await Pair.start(path, image, values.backend);
  const cases = new CaseRun(pair, program, say);
  try {
    await cases.run();
  } finally {
    pair.close();
  }
  say(`seed ${values.seed}: ${cases.steps} instructions, ${cases.found} differences`);
  return cases.found > 0 ? 1 : 0;
}

process.exit(positionals.length > 0 ? await runImage(positionals[0]) : await runCases());
