/** `tskvm run`: a machine on standard input and output. */
import type { Command } from 'commander';
import { addRunOptions, backendSpec, INPUT_HELP, machineOptions, type RunFlags } from './options.ts';
import { addProfileOptions, type ProfileFlags, startProfiling } from './profile.ts';
import { describeStop, exitStatus, runSession } from './session.ts';

export function addRunCommand(program: Command): void {
  addProfileOptions(
    addRunOptions(
      program
        .command('run')
        .description('run a guest; its serial port is standard input and output')
        .addHelpText(
          'after',
          `
Examples:
  tskvm run hello                                     under AMD-V
  tskvm run --backend vmx,unrestrictedGuest=0 hello   VT-x without it
  tskvm run --json --max-instructions 100000 hello    outcome as data
  tskvm run --kernel vmlinuz --initrd initramfs.cpio --append console=ttyS0
                                                      Linux (docs/linux.md)
  tskvm run --profile hello                           where guest time goes
  tskvm run --profile-file out.speedscope.json hello
                                                      the same for a flame-graph
                                                      viewer (docs/profile.md)

--json prints one object: backend, reason (debug-exit, shutdown, budget, idle,
reset, guest-terminated, error, or interrupted by a signal) with its details,
instructions, serial, and with --profile, profile.

Exit status: the guest's by the debug-exit port 0xF4, value*2+1 as QEMU has it,
so a guest that writes 0 ends with 1; 0 halted for ever, reset, or the text of
--until was seen; 3 triple fault; 124 instructions used up; 1 error; 2 usage;
130 and 143 by SIGINT and SIGTERM. A text of --until that was never seen is told
on stderr and leaves the status as it is. On a terminal Ctrl-] ends the run.
${INPUT_HELP}`,
        ),
    ),
  ).action(async (image: string | undefined, flags: RunFlags & ProfileFlags) => {
    const common = machineOptions(image, flags);
    const spec = await backendSpec(flags);
    const profiling = startProfiling(flags, spec);
    const printJson = (outcome: object): void => {
      process.stdout.write(`${JSON.stringify({ backend: spec, ...outcome, profile: profiling?.finish() })}\n`);
    };
    const result = await runSession({
      spec,
      common,
      flags,
      interactive: true,
      onSerial: flags.json ? undefined : (byte) => process.stdout.write(Uint8Array.of(byte)),
      prepare: (machine) => profiling?.attach(machine),
      onInterrupt: ({ instructions, serial }) => {
        if (flags.json) printJson({ reason: 'interrupted', instructions, serial });
        else profiling?.print();
      },
    });
    if (flags.json) {
      printJson({ ...result.stop, exit: undefined, instructions: result.instructions, serial: result.serial });
    } else if (result.stop.reason !== 'debug-exit') process.stderr.write(`tskvm: ${describeStop(result.stop)}\n`);
    if (!flags.json) profiling?.print();
    process.exitCode = exitStatus(result.stop);
  });
}
