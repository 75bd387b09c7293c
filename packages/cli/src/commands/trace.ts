/** `tskvm trace`: KVM's tracepoints of a run, in trace-cmd's text form or as JSON lines. */
import type { TraceEvents, TraceName } from '@tskvm/core';
import type { Command } from 'commander';
import { jsonSafe, traceLine } from '../report/trace-text.ts';
import { addRunOptions, backendSpec, machineOptions, type RunFlags } from './options.ts';
import { describeStop, exitStatus, runSession } from './session.ts';

interface TraceFlags extends RunFlags {
  event?: string[];
  filter?: string;
  serial?: boolean;
}
const collect = (value: string, list: string[] | undefined): string[] => [...(list ?? []), ...value.split(',')];

/** `kvm_*`, `kvm_exit`: shell-like names. */
function matcher(patterns: readonly string[] | undefined): (name: string) => boolean {
  if (!patterns || patterns.length === 0) return () => true;
  const expressions = patterns.map(
    (p) =>
      new RegExp(
        `^${p
          .replace(/^kvm:/, '')
          .replace(/[.+^${}()|[\]\\]/g, '\\$&')
          .replaceAll('*', '.*')}$`,
      ),
  );
  return (name) => expressions.some((e) => e.test(name));
}

export function addTraceCommand(program: Command): void {
  addRunOptions(
    program
      .command('trace')
      .description("run a guest and print KVM's tracepoints")
      .option(
        '-e, --event <names>',
        'only these events (kvm_exit, kvm_*); may be repeated or separated by commas',
        collect,
      )
      .option('--filter <text>', 'only lines that contain this text')
      .option('--serial', "show the guest's serial output on stderr")
      .addHelpText(
        'after',
        `
Examples:
  tskvm trace boot.bin
  tskvm trace -e kvm_exit,kvm_cr --backend vmx boot.bin
  tskvm trace --json -e mode_switch boot.bin | jq .`,
      ),
  ).action(async (image: string | undefined, flags: TraceFlags) => {
    const common = machineOptions(image, flags);
    const spec = await backendSpec(flags);
    const wanted = matcher(flags.event);
    const seen = new Set<string>();
    const result = await runSession({
      spec,
      common,
      flags,
      onSerial: flags.serial ? (byte) => process.stderr.write(Uint8Array.of(byte)) : undefined,
      prepare: (machine) => {
        machine.kvm.on('*', (event: TraceEvents[TraceName], name: TraceName) => {
          seen.add(name);
          if (!wanted(name)) return;
          const vcpu = 'vcpuId' in event ? event.vcpuId : 0;
          const line = flags.json
            ? JSON.stringify({ event: name, tick: machine.instructions, ...(jsonSafe(event) as object) })
            : traceLine(name, event, machine.nanoseconds, vcpu);
          if (flags.filter === undefined || line.includes(flags.filter)) process.stdout.write(`${line}\n`);
        });
      },
    });
    for (const pattern of flags.event ?? []) {
      if ([...seen].some(matcher([pattern]))) continue;
      process.stderr.write(`tskvm: no event ${pattern} in this run; it had ${[...seen].sort().join(', ')}\n`);
    }
    if (result.stop.reason !== 'debug-exit') process.stderr.write(`tskvm: ${describeStop(result.stop)}\n`);
    process.exitCode = exitStatus(result.stop);
  });
}
