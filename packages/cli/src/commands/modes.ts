/** `tskvm modes`: every mode switch of a run with what led to it; several backends side by side. */
import type { ModeSwitch } from '@tskvm/core';
import Table from 'cli-table3';
import type { Command } from 'commander';
import { bitsChanged, instructionText, modeName, pathText, switchData, switchTable } from '../report/mode-switches.ts';
import { addRunOptions, backendSpecs, machineOptions, type RunFlags } from './options.ts';
import { describeStop, exitStatus, runSession, type SessionResult } from './session.ts';

/** What a run of a guest showed. */
export interface ModesResult extends SessionResult {
  switches: ModeSwitch[];
}

/** Runs a guest and keeps its mode switches. */
export async function recordModes(options: Parameters<typeof runSession>[0]): Promise<ModesResult> {
  const switches: ModeSwitch[] = [];
  const result = await runSession({
    ...options,
    prepare: (machine) => {
      options.prepare?.(machine);
      machine.kvm.on('mode_switch', (event) => switches.push(event));
    },
  });
  return { ...result, switches };
}

/** The same switch on several backends: compared by instruction and place, in order. */
export function sideBySide(results: readonly ModesResult[]): string {
  const table = new Table({
    head: ['from', 'to', 'by', 'at', 'bits', ...results.map((r) => r.backend)],
    style: { head: [], border: [], compact: true },
    wordWrap: true,
    colWidths: [16, 16, 18, 12, 16, ...results.map(() => 44)],
  });
  const keys = (event: ModeSwitch): string =>
    [modeName(event.from), modeName(event.to), instructionText(event), event.rip, event.vcpuId].join('|');
  const rest = results.map((r) => [...r.switches]);
  while (rest.some((list) => list.length > 0)) {
    const lead = rest.find((list) => list.length > 0)?.[0] as ModeSwitch;
    const key = keys(lead);
    const cells = rest.map((list) => {
      if (list.length === 0 || keys(list[0]) !== key) return '';
      const event = list.shift() as ModeSwitch;
      return `${event.exit ? `${event.exit.name}: ` : ''}${pathText(event)}`;
    });
    table.push([
      modeName(lead.from),
      modeName(lead.to),
      instructionText(lead),
      lead.rip === undefined ? '' : `0x${lead.rip.toString(16)}`,
      bitsChanged(lead),
      ...cells,
    ]);
  }
  return table.toString();
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
  tskvm modes boot.bin
  tskvm modes --backend svm --backend vmx boot.bin       side by side
  tskvm modes --json --cdrom /usr/lib/grub-rescue/grub-rescue-cdrom.iso --input c --until 'grub>'`,
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
        instructions: r.instructions,
        switches: r.switches.map(switchData),
      }));
      process.stdout.write(`${JSON.stringify(data.length === 1 ? data[0] : data)}\n`);
    } else if (results.length > 1) process.stdout.write(`${sideBySide(results)}\n`);
    else if (results[0].switches.length === 0) process.stdout.write('no mode switch\n');
    else process.stdout.write(`${switchTable(results[0].switches)}\n`);
    for (const { backend, stop } of results) {
      if (stop.reason !== 'debug-exit' && !flags.json)
        process.stderr.write(`tskvm: ${backend}: ${describeStop(stop)}\n`);
    }
    process.exitCode = Math.max(...results.map((r) => exitStatus(r.stop)));
  });
}
