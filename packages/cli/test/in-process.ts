/** Runs commands of the command line in this process: what they print, and the exit status that they set. */

import { KvmError } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';
import { Command, CommanderError } from 'commander';
import { addBackendsCommand } from '../src/commands/backends.ts';
import { addCallersCommand } from '../src/commands/callers.ts';
import { addModesCommand } from '../src/commands/modes.ts';
import { addOpsCommand } from '../src/commands/ops.ts';
import { addRunCommand } from '../src/commands/run.ts';
import { addTourCommand } from '../src/commands/tour.ts';
import { addTraceCommand } from '../src/commands/trace.ts';
import { UsageError } from '../src/machine/errors.ts';

export const COMMANDS = {
  run: addRunCommand,
  modes: addModesCommand,
  trace: addTraceCommand,
  tour: addTourCommand,
  callers: addCallersCommand,
  ops: addOpsCommand,
  backends: addBackendsCommand,
};

export interface Outcome {
  /** As the process would end: 2 for usage. */
  status: number;
  stdout: string;
  stderr: string;
}

function program(): Command {
  const command = new Command('tskvm').exitOverride();
  for (const add of Object.values(COMMANDS)) add(command);
  return command;
}

/** Text behind `tskvm COMMAND --help`. */
export async function helpOf(command: string): Promise<string> {
  return (await inProcess([command, '--help'])).stdout;
}

/** @param columns of the terminal; undefined: piped */
export async function inProcess(args: readonly string[], columns?: number): Promise<Outcome> {
  const out = { stdout: '', stderr: '' };
  const saved = { columns: process.stdout.columns, code: process.exitCode };
  const writes = [process.stdout.write, process.stderr.write] as const;
  const into = (name: 'stdout' | 'stderr') => (data: string | Uint8Array) => {
    out[name] += typeof data === 'string' ? data : Buffer.from(data).toString('latin1');
    return true;
  };
  process.stdout.write = into('stdout') as typeof process.stdout.write;
  process.stderr.write = into('stderr') as typeof process.stderr.write;
  process.stdout.columns = columns as number;
  process.exitCode = 0;
  let status = 0;
  try {
    await program().parseAsync(['node', 'tskvm', ...args]);
    status = Number(process.exitCode);
  } catch (error) {
    if (error instanceof CommanderError) status = error.exitCode === 0 ? 0 : 2;
    else if (error instanceof UsageError) status = error.status;
    else if (error instanceof KvmError || error instanceof NotImplementedError) status = 1;
    else throw error;
    if (!(error instanceof CommanderError)) out.stderr += `tskvm: ${(error as Error).message}\n`;
  } finally {
    [process.stdout.write, process.stderr.write] = writes;
    process.stdout.columns = saved.columns;
    process.exitCode = saved.code;
  }
  return { status, ...out };
}
