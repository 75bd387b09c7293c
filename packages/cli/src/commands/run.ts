/** `tskvm run`: a machine on standard input and output. */
import type { Command } from 'commander';
import { addRunOptions, backendSpec, machineOptions, type RunFlags } from './options.ts';
import { describeStop, exitStatus, runSession } from './session.ts';

export function addRunCommand(program: Command): void {
  addRunOptions(
    program
      .command('run')
      .description('run a guest; its serial port is standard input and output')
      .addHelpText(
        'after',
        `
Examples:
  tskvm run boot.bin                                     a boot sector under AMD-V
  tskvm run --backend vmx,unrestrictedGuest=0 boot.bin   under VT-x without unrestricted guest
  tskvm run --cdrom /usr/lib/grub-rescue/grub-rescue-cdrom.iso   SeaBIOS starts GRUB
  tskvm run --load 0x1000 code.bin --max-instructions 100000

Exit status: the guest's by the debug-exit port (0xF4: value*2+1, so 1 for a guest that writes 0); 3 triple fault; 124 instructions used up; 1 error; 2 usage.
On a terminal Ctrl-] ends the run.`,
      ),
  ).action(async (image: string | undefined, flags: RunFlags) => {
    const common = machineOptions(image, flags);
    const spec = await backendSpec(flags);
    const result = await runSession({
      spec,
      common,
      flags,
      interactive: true,
      onSerial: flags.json ? undefined : (byte) => process.stdout.write(Uint8Array.of(byte)),
    });
    if (flags.json) {
      process.stdout.write(
        `${JSON.stringify({ backend: spec, ...result.stop, exit: undefined, instructions: result.instructions, serial: result.serial })}\n`,
      );
    } else if (result.stop.reason !== 'debug-exit') process.stderr.write(`tskvm: ${describeStop(result.stop)}\n`);
    process.exitCode = exitStatus(result.stop);
  });
}
