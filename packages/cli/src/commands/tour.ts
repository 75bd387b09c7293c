/** `tskvm tour`: the embedded guest that walks through every mode, under one or several configurations. */
import type { Command } from 'commander';
import pc from 'picocolors';
import { expandImage } from '../guests/image.ts';
import { GUEST_IMAGES } from '../guests/images.ts';
import { firmware } from '../machine/loaders/image.ts';
import { switchData, switchTable } from '../report/mode-switches.ts';
import { type ModesResult, recordModes, sideBySide } from './modes.ts';
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
  compare?: boolean;
  json?: boolean;
  memory?: string;
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

function printResult(result: TourResult): void {
  process.stdout.write(
    `\n${pc.bold(result.backend)}: ${result.passed ? pc.green('all stages passed') : pc.red('FAILED')}, ${result.instructions} instructions\n`,
  );
  process.stdout.write(`stages: ${result.stages.join(', ')}\n`);
  if (result.failure) process.stdout.write(`${pc.red(result.failure)}\n`);
  process.stdout.write(`${switchTable(result.switches)}\n`);
}

export function addTourCommand(program: Command): void {
  program
    .command('tour')
    .description('run the embedded guest through every mode and back, and show each switch')
    .option(
      '--backend <name[,param=value…]>',
      'svm (default), vmx, a path or a package; may be repeated',
      (value: string, list: string[] | undefined) => [...(list ?? []), value],
    )
    .option('--cpu <model[,+feature,-feature…]>', "what the guest's CPUID says; see tskvm cpus")
    .option('--all', `all three configurations: ${CONFIGURATIONS.join('; ')}`)
    .option(
      '--sev-es',
      'the CR0 part for a guest whose registers KVM cannot read: CR0 write traps instead of intercepts',
    )
    .option('--compare', 'one table, the configurations side by side')
    .option('--json', 'print the outcome as JSON')
    .addHelpText(
      'after',
      '\nExamples:\n  tskvm tour\n  tskvm tour --all\n  tskvm tour --backend svm --backend vmx --compare\n  tskvm tour --sev-es',
    )
    .action(async (flags: TourFlags) => {
      const specs = flags.sevEs ? ['svm,sevEs=1'] : (flags.backend ?? (flags.all ? [...CONFIGURATIONS] : ['svm']));
      const results: TourResult[] = [];
      for (const spec of specs) {
        const result = await runTour(spec, flags.sevEs ? 'sevEs' : 'tour', flags.cpu);
        results.push(result);
        if (!flags.json && !flags.compare) printResult(result);
      }
      if (flags.json) {
        const data = results.map((r) => ({
          backend: r.backend,
          passed: r.passed,
          failure: r.failure,
          stages: r.stages,
          instructions: r.instructions,
          switches: r.switches.map(switchData),
        }));
        process.stdout.write(`${JSON.stringify(data.length === 1 ? data[0] : data)}\n`);
      } else {
        if (flags.compare) process.stdout.write(`${sideBySide(results)}\n`);
        const passed = results.filter((r) => r.passed).length;
        process.stdout.write(`\n${passed} of ${results.length} configurations passed every stage\n`);
      }
      process.exitCode = results.every((r) => r.passed) ? 0 : 1;
    });
}
