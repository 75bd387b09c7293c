/** `tskvm tour`: the embedded guest that walks through every mode, under one or several configurations. */
import type { Command } from 'commander';
import pc from 'picocolors';
import { findBackend } from '../backends.ts';
import { expandImage } from '../guests/image.ts';
import { GUEST_IMAGES } from '../guests/images.ts';
import { UsageError } from '../machine/errors.ts';
import { firmware } from '../machine/loaders/image.ts';
import { switchData, switchTable } from '../report/mode-switches.ts';
import { sideBySide } from '../report/side-by-side.ts';
import { hanging, outputWidth } from '../report/text-table.ts';
import { type ModesResult, recordModes } from './modes.ts';
import type { RunFlags } from './options.ts';
import { describeStop } from './session.ts';

/** The three configurations of the main job. */
export const CONFIGURATIONS = ['svm', 'vmx', 'vmx,unrestrictedGuest=0'] as const;
const BUDGET = '30000000';
const COMPLETE = 'tour complete';

interface TourFlags {
  backend?: string[];
  all?: boolean;
  sevEs?: boolean;
  json?: boolean;
  cpu?: string;
}

export interface TourResult extends ModesResult {
  stages: string[];
  passed: boolean;
  failure: string | null;
}

/** Runs the tour under one backend. */
export async function runTour(spec: string, guest: 'tour' | 'sevEs' = 'tour', cpu?: string): Promise<TourResult> {
  const flags: RunFlags = { maxInstructions: BUDGET };
  const rom = expandImage(GUEST_IMAGES[guest]);
  const result = await recordModes({
    spec,
    flags,
    common: {
      image: firmware(rom, `${guest}.bin`),
      memory: 16 * 2 ** 20,
      cpus: guest === 'tour' ? 2 : 1,
      cpu,
      disks: [],
    },
  });
  const lines = result.serial.split('\n');
  const stages = lines.filter((line) => line.startsWith('stage ')).map((line) => line.slice(6).replace('sev-es ', ''));
  const complete = lines.some((line) => line.startsWith(COMPLETE));
  const ended =
    guest === 'tour'
      ? result.stop.reason === 'shutdown'
      : result.stop.reason === 'guest-terminated' && result.stop.code === 0;
  const failure =
    complete && ended
      ? null
      : (lines.find((line) => line.startsWith('FAIL')) ??
        `after stage ${stages.at(-1) ?? 'none'}: ${describeStop(result.stop)}`);
  if (failure === null && guest === 'tour') stages.push('triple-fault');
  return { ...result, stages, passed: failure === null, failure };
}

/** One line a configuration, printed as soon as it is known. */
function summaryLine(result: TourResult, width: number): string {
  const { backend, stages, switches, exits, passed, failure } = result;
  const verdict = passed ? pc.green('passed') : pc.red('FAILED after');
  const counts = `${verdict} ${stages.length} stages, ${switches.length} mode switches, ${exits} exits`;
  return `${pc.bold(backend.padEnd(width))}  ${counts}${failure ? `\n  ${pc.red(failure)}` : ''}`;
}
const print = (...lines: string[]): void => {
  process.stdout.write(`${lines.join('\n')}\n`);
};

/** Where more is, in the words that work here: a checkout has no `tskvm` of its own. */
function more(): string {
  const command = process.env.npm_lifecycle_event === 'start' ? 'npm start --' : 'tskvm';
  return `
More:
  ${command} tour --backend vmx   each switch with its bits and addresses
  ${command} modes hello          a small guest; your own: its path for hello
  ${command} trace hello          every exit, entry and event
  ${command} callers svmSetCr0    who can call the setter, and who did
  ${command} COMMAND --help       options and examples`;
}

/** Summary, stages, switches with their call paths, and where more is. */
function printText(results: readonly TourResult[]): void {
  const passed = results.filter((r) => r.passed).length;
  const longest = results.reduce((a, b) => (b.stages.length > a.stages.length ? b : a));
  print(`${passed} of ${results.length} configurations passed every stage`, '');
  print(...hanging('stages: ', longest.stages.join(', '), outputWidth()), '');
  if (results.length === 1) print(switchTable(results[0].switches));
  else print(sideBySide(results, false), more());
}

const toData = (r: TourResult): object => ({
  backend: r.backend,
  passed: r.passed,
  failure: r.failure,
  stages: r.stages,
  instructions: r.instructions,
  exits: r.exits,
  switches: r.switches.map(switchData),
});

export function addTourCommand(program: Command): void {
  program
    .command('tour')
    .description('run the embedded guest through every mode and back, and show each switch')
    .option(
      '--backend <name[,param=value…]>',
      'svm (default), vmx, a path or a package; several stand side by side',
      (value: string, list: string[] | undefined) => [...(list ?? []), value],
    )
    .option('--cpu <model[,+feature,-feature…]>', "what the guest's CPUID says; see tskvm cpus")
    .option('--all', `all three configurations: ${CONFIGURATIONS.join('; ')}`)
    .option(
      '--sev-es',
      'the CR0 part for a guest whose registers KVM cannot read: CR0 write traps instead of intercepts',
    )
    .option('--json', 'print the outcome as JSON: stages, counts, each switch')
    .addHelpText(
      'after',
      '\nExamples:\n  tskvm tour\n  tskvm tour --all\n  tskvm tour --backend svm --backend vmx,ept=0\n  tskvm tour --sev-es',
    )
    .action(async (flags: TourFlags) => {
      if (flags.sevEs && (flags.backend?.some((spec) => spec !== 'svm') || flags.all))
        throw new UsageError('SEV_ES', "--sev-es is about AMD's encrypted state: leave --all and other backends out");
      if (flags.all && flags.backend)
        throw new UsageError('TWO_BACKENDS', '--all and --backend exclude each other: give one');
      const specs = flags.sevEs ? ['svm,sevEs=1'] : (flags.backend ?? (flags.all ? [...CONFIGURATIONS] : ['svm']));
      for (const spec of specs) await findBackend(spec);
      const width = Math.max(...specs.map((spec) => spec.length));
      const results: TourResult[] = [];
      for (const spec of specs) {
        const result = await runTour(spec, flags.sevEs ? 'sevEs' : 'tour', flags.cpu);
        results.push(result);
        if (!flags.json) print(summaryLine(result, width));
      }
      const data = results.map(toData);
      if (flags.json) print(JSON.stringify(data.length === 1 ? data[0] : data));
      else printText(results);
      process.exitCode = results.every((r) => r.passed) ? 0 : 1;
    });
}
