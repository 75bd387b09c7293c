/**
 * Runs firmware instruction by instruction here and on QEMU's TCG (by gdb's remote protocol), and compares the registers after each.
 * `node --conditions=@tskvm/source --import tsx scripts/lockstep/main.ts [--backend svm] IMAGE`, or `--seed N --cases N` for random cases.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect, parseArgs } from 'node:util';
import { makeProgram32 } from './cases32.ts';
import { makeProgram64 } from './cases64.ts';
import { isHandler, LAYOUT, type Program } from './common.ts';
import { describe, Pair, type Step, textOf } from './pair.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'svm' },
    limit: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1' },
    cases: { type: 'string', default: '200' },
    mode: { type: 'string', default: 'protected' },
    verbose: { type: 'boolean', default: false },
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

const dword = (bytes: Uint8Array, at: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
/** RF in pushed flags, which QEMU 7.2 leaves out, and what it does not set: accessed bits of code that far branches load, busy bits. */
const TOLERATED = [0x10000, 1, 0x100, 0x200];
/** QEMU 7.2 counts gates of 16 bytes in error codes: vector * 16 + 2. */
const isIdtError = (mine: number, other: number): boolean =>
  mine < 0x800 && (mine & 7) === 2 && other === (mine - 2) * 2 + 2;
/** Offsets of the dwords in which memories differ. */
function memoryDifferences(ours: Uint8Array, theirs: Uint8Array): number[] {
  const found: number[] = [];
  for (let i = 0; i < ours.length; i += 4) {
    const [mine, other] = [dword(ours, i), dword(theirs, i)];
    if (mine !== other && !TOLERATED.some((bit) => mine - other === bit) && !isIdtError(mine, other)) found.push(i);
  }
  return found;
}

/** Instructions of a case that a report shows. */
const HISTORY = 12;

const hex8 = (value: number): string => value.toString(16).padStart(8, '0');
async function runCases(): Promise<number> {
  const make = values.mode === 'long' ? makeProgram64 : makeProgram32;
  const program = make(Number(values.seed), Number(values.cases), values.backend.startsWith('svm'));
  const { path, image } = assemble(program);
  const pair = await Pair.start(path, image, values.backend);
  const { ram } = program;
  await pair.write(LAYOUT.idt, ram);
  for (const [at, bytes] of program.once) await pair.write(at, bytes);
  const next = (): bigint => BigInt(Buffer.from(pair.readOurs(LAYOUT.next, 4)).readUInt32LE());
  let found = 0;
  let steps = 0;
  let cases = -1;
  let history: Step[] = [];
  const report = (text: string): void => {
    found++;
    const own = history.filter(({ before }) => !isHandler(before.get('rip') ?? 0n));
    say(`case ${cases} ${text}\n    ${own.map(textOf).slice(-HISTORY).join(' | ')}`);
    for (const name of own
      .map(textOf)
      .join(' ')
      .match(/\b0?[0-9A-F]+h\b/g) ?? []) {
      const selector = Number.parseInt(name, 16);
      const entry = (selector & 4 ? LAYOUT.ldt : LAYOUT.gdt) + (selector & ~7) - LAYOUT.idt;
      if (own.map(textOf).join(' ').includes(`int ${name}`)) {
        const gate = LAYOUT.idt - LAYOUT.idt + 8 * selector;
        say(`      gate ${name}: ${hex8(dword(ram, gate + 4))} ${hex8(dword(ram, gate))}`);
      }
      if (selector >= 0x60 && selector < 0x280)
        say(`      ${name}: ${hex8(dword(ram, entry + 4))} ${hex8(dword(ram, entry))}`);
    }
  };
  try {
    for (;;) {
      const step = await pair.step();
      steps++;
      history.push(step);
      if (step.ended) {
        if (pair.stop?.reason !== 'debug-exit') report(`the machine ended: ${inspect(pair.stop)}`);
        break;
      }
      const rip = step.ours.get('rip');
      if (step.differ.length > 0) {
        report(describe(step));
        if (!(await pair.meetAt(next(), 400))) {
          say('the two do not meet again');
          return 1;
        }
      }
      if (rip !== next() && step.differ.length === 0) continue;
      cases++;
      if (values.verbose) say(`case ${cases}`);
      const ours = pair.readOurs(LAYOUT.idt, ram.length);
      const theirs = await pair.readTheirs(LAYOUT.idt, ram.length);
      const differ = memoryDifferences(ours, theirs);
      if (differ.length > 0 && step.differ.length === 0) {
        const at = differ
          .slice(0, 8)
          .map(
            (i) =>
              `${(i + LAYOUT.idt).toString(16)}: ${dword(ours, i).toString(16)}, QEMU ${dword(theirs, i).toString(16)}`,
          );
        report(`memory ${at.join('; ')}`);
      }
      if (Buffer.compare(ours, ram) !== 0 || differ.length > 0) await pair.write(LAYOUT.idt, ram);
      history = [];
    }
  } finally {
    pair.close();
  }
  say(`seed ${values.seed}: ${steps} instructions, ${found} differences`);
  return found > 0 ? 1 : 0;
}

process.exit(positionals.length > 0 ? await runImage(positionals[0]) : await runCases());
