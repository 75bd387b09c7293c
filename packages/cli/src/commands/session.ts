/** One machine run from the command line: serial console in and out, limits, outcome. */
import type { Tracer } from '@tskvm/core';
import { findBackend } from '../backends.ts';
import { createMachine, type Machine, type MachineStop } from '../machine/machine.ts';
import { type CommonOptions, parseNumber, type RunFlags, unescapeInput } from './options.ts';

export interface SessionOptions {
  spec: string;
  common: CommonOptions;
  flags: RunFlags;
  /** Gets the guest's serial output. */
  onSerial?: (byte: number) => void;
  /** Connects standard input. */
  interactive?: boolean;
  /** Called with the machine before it runs (to attach listeners). */
  prepare?: (machine: Machine) => void;
  /** Called before Ctrl-], SIGINT or SIGTERM ends the process. */
  onInterrupt?: (soFar: SoFar) => void;
}
/** What a run that is cut off has come to. */
export interface SoFar {
  instructions: number;
  serial: string;
}

export interface SessionResult {
  backend: string;
  stop: MachineStop;
  instructions: number;
  /** Exits of the silicon by KVM's names, if traced. */
  serial: string;
  tracer: Tracer | null;
}

/** Runs to the end. The end of standard input does not stop the guest. A text of `--until` that never came is told on stderr. */
export async function runSession(options: SessionOptions): Promise<SessionResult> {
  const { flags, spec } = options;
  let serial = '';
  let found = false;
  const machine = await createMachine({
    ...options.common,
    backend: await findBackend(spec),
    onSerial: (byte) => {
      serial = (serial + String.fromCharCode(byte)).slice(-65536);
      if (flags.until !== undefined && serial.endsWith(flags.until)) found = true;
      options.onSerial?.(byte);
    },
    onDebug: flags.debugcon ? (byte) => process.stderr.write(Uint8Array.of(byte)) : undefined,
  });
  options.prepare?.(machine);
  const { onInterrupt } = options;
  const interrupted = onInterrupt && (() => onInterrupt({ instructions: machine.instructions, serial }));
  const detach = connectInput(machine, options, interrupted);
  const heedless = heedSignals(interrupted);
  try {
    const stop = await machine.run({
      maxInstructions:
        flags.maxInstructions === undefined ? undefined : parseNumber(flags.maxInstructions, '--max-instructions', 1),
      between: () => found,
    });
    if (flags.until !== undefined && !found) process.stderr.write(`${unseen(flags.until)}\n`);
    return {
      backend: spec,
      stop: found ? { reason: 'debug-exit', status: 0 } : stop,
      instructions: machine.instructions,
      serial,
      tracer: machine.kvm.tracer,
    };
  } finally {
    heedless();
    detach();
  }
}

const unseen = (text: string): string =>
  `tskvm: the serial console never showed the text of --until: ${JSON.stringify(text)}`;

const SIGNALS = { SIGINT: 130, SIGTERM: 143 } as const;
/** What was gathered so far is shown before a signal ends the run; gives what takes that back. */
function heedSignals(interrupted: (() => void) | undefined): () => void {
  if (interrupted === undefined) return () => {};
  const end = (signal: NodeJS.Signals): void => {
    if (process.stdin.isTTY) process.stdin.setRawMode(false);
    interrupted();
    process.exit(SIGNALS[signal as keyof typeof SIGNALS]);
  };
  for (const signal of Object.keys(SIGNALS)) process.once(signal, end);
  return () => {
    for (const signal of Object.keys(SIGNALS)) process.off(signal, end);
  };
}

function connectInput(machine: Machine, options: SessionOptions, interrupted?: () => void): () => void {
  if (options.flags.input !== undefined) machine.devices.com1.receive(unescapeInput(options.flags.input));
  if (!options.interactive) return () => {};
  const { stdin } = process;
  const onData = (chunk: Buffer): void => machine.devices.com1.receive(chunk);
  if (stdin.isTTY) stdin.setRawMode(true);
  const onInterrupt = (chunk: Buffer): void => {
    // Ctrl-] ends a session on a terminal, as telnet's does: Ctrl-C belongs to the guest.
    if (stdin.isTTY && chunk.includes(0x1d)) {
      stdin.setRawMode(false);
      interrupted?.();
      process.exit(130);
    }
  };
  stdin.on('data', onInterrupt);
  stdin.on('data', onData);
  return () => {
    stdin.off('data', onInterrupt);
    stdin.off('data', onData);
    if (stdin.isTTY) stdin.setRawMode(false);
    stdin.pause();
  };
}

/** Exit status of the command line for an outcome. */
export function exitStatus(stop: MachineStop): number {
  switch (stop.reason) {
    case 'debug-exit':
      return stop.status;
    case 'idle':
    case 'reset':
      return 0;
    case 'budget':
      return 124;
    case 'shutdown':
      return 3;
    default:
      return 1;
  }
}

/** One line that says how a run ended. */
export function describeStop(stop: MachineStop): string {
  switch (stop.reason) {
    case 'debug-exit':
      return `the guest ended the run with status ${stop.status}`;
    case 'shutdown':
      return `triple fault (shutdown) at ${stop.detail}: ${stop.cause}`;
    case 'budget':
      return 'all instructions of --max-instructions are used up';
    case 'idle':
      return 'every processor is halted and nothing can wake one';
    case 'reset':
      return 'the guest asked for a reset';
    case 'guest-terminated':
      return `the guest asked to be terminated, code 0x${stop.code.toString(16)}`;
    case 'error':
      return stop.message;
  }
}
