// Goes on with a saved machine in a process of its own: node resume.ts STATE_FILE. Prints the trace and the outcome as JSON.
import { readFileSync } from 'node:fs';
import { deserialize } from 'node:v8';
import type { MachineState } from '../src/machine/machine.ts';
import { type TracedOptions, tracedGuest } from './guest-trace.ts';

const { options, state } = deserialize(readFileSync(process.argv[2])) as {
  options: TracedOptions;
  state: MachineState;
};
const { machine, lines } = await tracedGuest(options);
lines.length = 0;
machine.load(state);
const stop = await machine.run({ maxInstructions: 30_000_000 });
process.stdout.write(JSON.stringify({ stop, lines }));
