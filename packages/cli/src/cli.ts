#!/usr/bin/env node
/** The command line: the only part of tskvm that touches process, files and terminals. */
import { KvmError } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';
import { Command, CommanderError } from 'commander';
import { addBackendsCommand } from './commands/backends.ts';
import { addCallersCommand } from './commands/callers.ts';
import { addCpusCommand } from './commands/cpus.ts';
import { addModesCommand } from './commands/modes.ts';
import { addOpsCommand } from './commands/ops.ts';
import { addRunCommand } from './commands/run.ts';
import { addTourCommand } from './commands/tour.ts';
import { addTraceCommand } from './commands/trace.ts';
import { UsageError } from './machine/errors.ts';

const program = new Command('tskvm')
  .description(
    "KVM's x86 half in TypeScript: boot unmodified guests under AMD-V and VT-x and see every mode switch explained",
  )
  .version('0.1.0')
  .option('--debug', 'print stack traces with errors')
  .showHelpAfterError('(tskvm --help, or tskvm COMMAND --help, shows examples)')
  .exitOverride();

addTourCommand(program);
addRunCommand(program);
addModesCommand(program);
addTraceCommand(program);
addCallersCommand(program);
addOpsCommand(program);
addBackendsCommand(program);
addCpusCommand(program);

/** One message on stderr; the stack only with --debug. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  const known = error instanceof UsageError || error instanceof KvmError || error instanceof NotImplementedError;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`tskvm: ${known ? '' : 'internal error: '}${message}\n`);
  if (program.opts<{ debug?: boolean }>().debug && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  else if (!known) process.stderr.write('tskvm: run again with --debug for the stack trace\n');
  return error instanceof UsageError ? error.status : 1;
}

// A reader that stops early (head) is not an error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`tskvm: standard output can't be written: ${error.message}\n`);
  process.exit(1);
});

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}
