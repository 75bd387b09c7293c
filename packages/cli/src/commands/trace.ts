/** `tskvm trace`: KVM's tracepoints of a run, in trace-cmd's text form or as JSON lines. */
import type { TraceEvents, TraceName } from '@tskvm/core';
import type { Command } from 'commander';
import { UsageError } from '../machine/errors.ts';
import { parseFilter, selectEvents } from '../report/trace-filter.ts';
import { jsonSafe, traceLine } from '../report/trace-text.ts';
import { addRunOptions, backendSpec, INPUT_HELP, machineOptions, type RunFlags } from './options.ts';
import { describeStop, exitStatus, runSession } from './session.ts';

interface TraceFlags extends RunFlags {
  event?: string[];
  filter?: string;
  ts?: string;
  serial?: boolean;
}
const collect = (value: string, list: string[] | undefined): string[] => [...(list ?? []), ...value.split(',')];

/** Nanoseconds or microseconds behind the second. */
function timeUnit(text: string | undefined): 'usec' | 'nsec' {
  if (text === undefined || text === 'usec') return 'usec';
  if (text === 'nsec') return 'nsec';
  throw new UsageError('BAD_TIME_UNIT', `--ts ${text}: choose usec or nsec`);
}

export function addTraceCommand(program: Command): void {
  addRunOptions(
    program
      .command('trace')
      .description("run a guest and print KVM's tracepoints")
      .option(
        '-e, --event <names>',
        'only these events (kvm_exit, kvm_*); may be repeated or separated by commas; an unknown name lists all',
        collect,
      )
      .option(
        '-f, --filter <filter>',
        "only events whose fields fit ('name == CR_ACCESS', 'port == 0x3f8 && rw == write', 'name ~ EPT*'), or lines that contain a text",
      )
      .option('--ts <unit>', 'time as seconds with usec (default) or nsec behind the point; one instruction is 10 ns')
      .option('--serial', "show the guest's serial output on stderr")
      .addHelpText(
        'after',
        `
Each line: task [vcpu] seconds: event: fields, as trace-cmd report prints them.
With --json each line is an object: event, tick and the fields of the event.

Examples:
  tskvm trace hello
  tskvm trace -e kvm_exit,kvm_cr --backend vmx hello
  tskvm trace -e kvm_pio --filter 'port == 0x3f8' --ts nsec hello
  tskvm trace --json -e mode_switch hello
${INPUT_HELP}`,
      ),
  ).action(async (image: string | undefined, flags: TraceFlags) => {
    const common = machineOptions(image, flags);
    const spec = await backendSpec(flags);
    const events = selectEvents(flags.event);
    const filter = parseFilter(flags.filter, events);
    const unit = timeUnit(flags.ts);
    const seen = new Set<string>();
    let printed = 0;
    const result = await runSession({
      spec,
      common,
      flags,
      onSerial: flags.serial ? (byte) => process.stderr.write(Uint8Array.of(byte)) : undefined,
      prepare: (machine) => {
        machine.kvm.on('*', (event: TraceEvents[TraceName], name: TraceName) => {
          seen.add(name);
          if (!events.has(name)) return;
          const vcpu = 'vcpuId' in event ? event.vcpuId : 0;
          const line = flags.json
            ? JSON.stringify({ event: name, tick: machine.instructions, ...(jsonSafe(event) as object) })
            : traceLine(name, event, machine.nanoseconds, vcpu, unit);
          if (!filter(event, line)) return;
          printed++;
          process.stdout.write(`${line}\n`);
        });
      },
    });
    for (const pattern of flags.event ?? []) {
      if ([...selectEvents([pattern])].some((name) => seen.has(name))) continue;
      process.stderr.write(`tskvm: no event ${pattern} in this run; it had ${[...seen].sort().join(', ')}\n`);
    }
    if (flags.filter !== undefined && printed === 0 && seen.size > 0) {
      process.stderr.write(`tskvm: no selected event of this run fits --filter '${flags.filter}'\n`);
    }
    if (result.stop.reason !== 'debug-exit') process.stderr.write(`tskvm: ${describeStop(result.stop)}\n`);
    process.exitCode = exitStatus(result.stop);
  });
}
