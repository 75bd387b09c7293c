/**
 * Made-up programs on evaluate, interpret and translate side by side, for as long as one likes:
 * pnpm test:fuzz [--seed N] [--minutes M | --count N] [--mode NAME] [--vendor amd|intel] [--keep-going]
 * Seeds count up from N; a difference is printed with its seed, which gives it again. Exit status 1 if there was one.
 */
import { parseArgs } from 'node:util';
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
    vendor: { type: 'string' },
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

async function main(): Promise<number> {
  const mode = values.mode as FuzzMode | undefined;
  const seed = Number(values.seed);
  const count = values.count === undefined ? Number.POSITIVE_INFINITY : Number(values.count);
  const vendors = values.vendor === undefined ? (['amd', 'intel'] as const) : ([values.vendor] as ('amd' | 'intel')[]);
  if (!Number.isInteger(seed) || !(count > 0) || (mode !== undefined && !MODES.includes(mode))) {
    console.error(`usage: fuzz [--seed N] [--minutes M | --count N] [--mode ${MODES.join('|')}] [--vendor amd|intel]`);
    return 2;
  }
  const end = values.count === undefined ? Date.now() + Number(values.minutes) * 60_000 : Number.POSITIVE_INFINITY;
  const sets = await Promise.all(vendors.map(machinesOf));
  let programs = 0;
  let ticks = 0;
  let found = 0;
  for (let n = 0; n < count && Date.now() < end; n++) {
    const one = seed + n;
    const result = runSeed(sets[Math.floor(one / MODES.length) % sets.length]!, one, mode ?? modeOf(one));
    programs++;
    ticks += result.ticks;
    if (result.difference === null) continue;
    found++;
    await report(result.difference);
    if (!values['keep-going']) break;
  }
  console.log(`${programs} programs from seed ${seed}, ${ticks} instructions, ${found} differences`);
  return found === 0 ? 0 : 1;
}

process.exitCode = await main();
