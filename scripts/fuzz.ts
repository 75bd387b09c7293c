/**
 * Made-up programs on evaluate, interpret and translate side by side, on the bare processor and inside guests, for as long as one likes:
 * pnpm test:fuzz [--seed N] [--minutes M | --count N] [--mode NAME] [--in processor|guests] [--vendor amd|intel] [--backend NAME] [--tables]
 *   [--keep-going]
 * `--tables`: programs in guests all change their page tables without flushing, in 64-bit and 32-bit code at level 0.
 * Seeds count up from N, half of the time on the processor, half in guests; a difference is printed with its seed, which gives it again.
 * Exit status 1 if there was one.
 */
import { parseArgs } from 'node:util';
import {
  backendOf,
  type GuestDifference,
  guestModeOf,
  partedAt,
  runGuestSeed,
} from '../packages/cli/test/fuzz/compare-guests.ts';
import { BACKEND_NAMES, type BackendName } from '../packages/cli/test/fuzz/guest.ts';
import { TABLE_MODES } from '../packages/cli/test/fuzz/table-pieces.ts';
import {
  type Difference,
  enter,
  type FuzzMachine,
  fuzzMachine,
  modeOf,
  place,
  raise,
  runSeed,
  runTo,
} from '../packages/emulator/test/fuzz/compare.ts';
import { type FuzzMode, MODES } from '../packages/emulator/test/fuzz/layout.ts';
import { makeProgram } from '../packages/emulator/test/fuzz/setup.ts';

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    minutes: { type: 'string', default: '1' },
    count: { type: 'string' },
    mode: { type: 'string' },
    in: { type: 'string' },
    vendor: { type: 'string' },
    backend: { type: 'string' },
    tables: { type: 'boolean', default: false },
    'keep-going': { type: 'boolean', default: false },
  },
});

const machinesOf = (vendor: 'amd' | 'intel'): Promise<FuzzMachine[]> =>
  Promise.all((['evaluate', 'interpret', 'translate'] as const).map((engine) => fuzzMachine(engine, vendor)));

/** The last instructions of the reference before the difference shows. */
async function history({ seed, mode, vendor, from, to }: Difference): Promise<string[]> {
  const machine = await fuzzMachine('evaluate', vendor);
  const program = makeProgram(seed, mode);
  enter(machine, program);
  const { cpu } = machine;
  const lines: string[] = [];
  let target = 0;
  for (const { ticks, event } of program.slices) {
    target += ticks;
    for (; cpu.tick < Math.min(target, to); ) {
      const before = cpu.tick;
      const at = place(cpu);
      const stop = runTo(machine, before + 1);
      const { instruction } = cpu.evaluator;
      const bytes = Buffer.from(instruction.bytes.subarray(0, instruction.length)).toString('hex');
      if (before >= from) lines.push(`${before} ${at} ${bytes} ${instruction.row?.mnemonic ?? '?'}`);
      if (stop !== 'deadline') break;
    }
    if (target >= to) break;
    raise(machine, event, 'none');
  }
  return lines.slice(-24);
}

async function report(difference: Difference): Promise<void> {
  const { seed, mode, vendor, engine, from, to, what } = difference;
  console.log(`seed ${seed} (${mode}, ${vendor}): evaluate | ${engine} differ between ticks ${from} and ${to}`);
  for (const line of what.slice(0, 12)) console.log(`  ${line}`);
  for (const line of await history(difference)) console.log(`    ${line}`);
}
function reportGuest({ seed, mode, backend, contender, before, expected, actual }: GuestDifference): void {
  const { engine, variant } = contender;
  console.log(`seed ${seed} (${mode} in a guest, ${backend}): evaluate | ${engine}, ${variant}, differ behind`);
  for (const line of [before?.slice(0, 240) ?? 'the start', ...partedAt(expected, actual)]) console.log(`  ${line}`);
}

/** Runs one seed; ticks, and whether the engines differed. */
type RunOne = (seed: number) => Promise<{ ticks: number; differs: boolean }>;

async function onProcessor(mode: FuzzMode | undefined, vendors: readonly ('amd' | 'intel')[]): Promise<RunOne> {
  const sets = await Promise.all(vendors.map(machinesOf));
  return async (seed) => {
    const machines = sets[Math.floor(seed / MODES.length) % sets.length]!;
    const { difference, ticks } = runSeed(machines, seed, mode ?? modeOf(seed));
    if (difference !== null) await report(difference);
    return { ticks, differs: difference !== null };
  };
}
const inGuests =
  (mode: FuzzMode | undefined, backend: BackendName | undefined): RunOne =>
  async (seed) => {
    const all = values.tables;
    const chosen = mode ?? (all ? TABLE_MODES[seed % TABLE_MODES.length]! : guestModeOf(seed));
    const from = backend ?? (all ? BACKEND_NAMES[(seed >> 1) % BACKEND_NAMES.length]! : backendOf(seed));
    const tables = all ? TABLE_MODES.includes(chosen) : undefined;
    const result = await runGuestSeed(seed, chosen, from, tables);
    if (result.difference !== null) reportGuest(result.difference);
    return { ticks: result.ticks, differs: result.difference !== null };
  };

/** Runs seeds until time or count is over, or the first difference. */
async function runAll(
  name: string,
  runOne: RunOne,
  seed: number,
  count: number,
  milliseconds: number,
): Promise<number> {
  const end = Date.now() + milliseconds;
  let programs = 0;
  let ticks = 0;
  let found = 0;
  for (; programs < count && Date.now() < end; programs++) {
    const result = await runOne(seed + programs);
    ticks += result.ticks;
    if (!result.differs) continue;
    found++;
    if (!values['keep-going']) break;
  }
  console.log(`${name}: ${programs} programs from seed ${seed}, ${ticks} instructions, ${found} differences`);
  return found;
}

const oneOf = <T extends string>(value: string | undefined, list: readonly T[]): value is T | undefined =>
  value === undefined || (list as readonly string[]).includes(value);

async function main(): Promise<number> {
  const { mode, vendor, backend } = values;
  const seed = Number(values.seed);
  const count = values.count === undefined ? Number.POSITIVE_INFINITY : Number(values.count);
  const known = oneOf(mode, MODES) && oneOf(vendor, ['amd', 'intel']) && oneOf(backend, BACKEND_NAMES);
  if (!Number.isInteger(seed) || !(count > 0) || !known || !oneOf(values.in, ['processor', 'guests'])) {
    console.error(
      `usage: fuzz [--seed N] [--minutes M | --count N] [--mode ${MODES.join('|')}] [--in processor|guests]\n` +
        `  [--vendor amd|intel] [--backend '${BACKEND_NAMES.join("'|'")}'] [--tables] [--keep-going]`,
    );
    return 2;
  }
  const parts = values.in === undefined ? 2 : 1;
  const time = values.count === undefined ? (Number(values.minutes) * 60_000) / parts : Number.POSITIVE_INFINITY;
  let found = 0;
  if (values.in !== 'guests') {
    const runOne = await onProcessor(mode, vendor === undefined ? ['amd', 'intel'] : [vendor]);
    found += await runAll('processor', runOne, seed, count, time);
  }
  if (values.in !== 'processor') found += await runAll('guests', inGuests(mode, backend), seed, count, time);
  return found === 0 ? 0 : 1;
}

process.exitCode = await main();
