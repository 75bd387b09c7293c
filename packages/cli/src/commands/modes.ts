/** `tskvm modes`: every mode switch of a run with what led to it; several backends side by side. */
import type { ModeSwitch } from '@tskvm/core';
import type { Command } from 'commander';
import { switchData, switchTable } from '../report/mode-switches.ts';
import { sideBySide } from '../report/side-by-side.ts';
import { addRunOptions, backendSpecs, INPUT_HELP, machineOptions, type RunFlags } from './options.ts';
import { describeStop, exitStatus, runSession, type SessionResult } from './session.ts';

/** What a run of a guest showed. */
export interface ModesResult extends SessionResult {
  switches: ModeSwitch[];
  /** Hardware exits. */
  exits: number;
}

/** Runs a guest and keeps its mode switches. */
export async function recordModes(options: Parameters<typeof runSession>[0]): Promise<ModesResult> {
  const switches: ModeSwitch[] = [];
  let exits = 0;
  const result = await runSession({
    ...options,
    prepare: (machine) => {
      options.prepare?.(machine);
      machine.kvm.on('mode_switch', (event) => switches.push(event));
      machine.kvm.on('kvm_exit', () => {
        exits++;
      });
    },
  });
  return { ...result, switches, exits };
}

export function addModesCommand(program: Command): void {
  addRunOptions(
    program
      .command('modes')
      .description('run a guest and show each mode switch: who did it, through which exit, handler and path')
      .addHelpText(
        'after',
        `
Examples:
  tskvm modes hello
  tskvm modes --backend svm --backend vmx hello   side by side
  tskvm modes --json --backend vmx hello          the same as data

--json prints an object (for several backends a list): backend, reason, exits,
instructions and switches with tick, from, to, cause, instruction, rip, bits,
exit, path, why.
${INPUT_HELP}`,
      ),
  ).action(async (image: string | undefined, flags: RunFlags) => {
    const specs = await backendSpecs(flags, ['svm']);
    const results: ModesResult[] = [];
    for (const spec of specs) results.push(await recordModes({ spec, common: machineOptions(image, flags), flags }));
    if (flags.json) {
      const data = results.map((r) => ({
        backend: r.backend,
        ...r.stop,
        exit: undefined,
        exits: r.exits,
        instructions: r.instructions,
        switches: r.switches.map(switchData),
      }));
      process.stdout.write(`${JSON.stringify(data.length === 1 ? data[0] : data)}\n`);
    } else if (results.length > 1) process.stdout.write(`${sideBySide(results, true)}\n`);
    else if (results[0].switches.length === 0) process.stdout.write('no mode switch\n');
    else process.stdout.write(`${switchTable(results[0].switches)}\n`);
    for (const { backend, stop } of results) {
      if (stop.reason !== 'debug-exit' && !flags.json)
        process.stderr.write(`tskvm: ${backend}: ${describeStop(stop)}\n`);
    }
    process.exitCode = Math.max(...results.map((r) => exitStatus(r.stop)));
  });
}
