/** Debian's kernels, unmodified, from the boot protocol's entry to a shell on the serial console and to the end. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { busyboxInitramfs } from '../../../scripts/cpio.ts';
import { findBackend } from '../src/backends.ts';
import { linux } from '../src/machine/loaders/linux.ts';
import { createMachine, type Machine, type MachineStop } from '../src/machine/machine.ts';

/** Where scripts/fetch-linux.sh puts kernels and busybox. */
const FILES = process.env['TSKVM_LINUX'] ?? fileURLToPath(new URL('../../../.cache/linux', import.meta.url));
/** Set where nothing may be skipped: what is missing fails then. */
const REQUIRED = Boolean(process.env['TSKVM_REQUIRE_GUESTS']);
const MIB = 2 ** 20;
const LIMIT = 20_000_000_000;
const PROMPT = '# ';
const MINUTES = 60_000;

/** What a kernel says only where something is wrong with the machine under it. */
const COMPLAINTS =
  /soft lockup|hard LOCKUP|rcu.*stall|hung task|BUG:|Oops|WARNING: CPU|general protection|unchecked MSR|Firmware Bug|Call Trace|self-?tests? .*fail|alg: .*fail|double fault|unable to handle|spurious|nobody cared|MP-BIOS bug|Machine check|Kernel panic|not syncing|unstable|clocksource watchdog|TSC.*(skew|warp)|lost.*interrupt|timed out|Bad page|segfault|divide error|invalid opcode|trap.*ip:/i;

interface Console {
  machine: Machine;
  /** All that the serial port has said. */
  log: string;
}

async function start(spec: string, arch: string, append: string, entry?: 32 | 64): Promise<Console> {
  const read = (name: string) => new Uint8Array(readFileSync(join(FILES, arch, name)));
  const console: Console = { machine: undefined as unknown as Machine, log: '' };
  const memory = 256 * MIB;
  console.machine = await createMachine({
    backend: await findBackend(spec),
    memory,
    image: linux({
      kernel: read('vmlinuz'),
      kernelName: 'vmlinuz',
      initrd: busyboxInitramfs(read('busybox')),
      append,
      memory,
      entry,
    }),
    onSerial: (byte) => {
      console.log += String.fromCharCode(byte);
    },
  });
  return console;
}
/** Runs until the console shows a text that was not there before. */
async function until(console: Console, text: string, from = console.log.length): Promise<MachineStop> {
  return console.machine.run({ maxInstructions: LIMIT, between: () => console.log.includes(text, from) });
}
/** Types a line; gives what comes before the next prompt. */
async function command(console: Console, line: string): Promise<string> {
  const from = console.log.length;
  console.machine.devices.com1.receive(new TextEncoder().encode(`${line}; echo do""ne\r`));
  await until(console, 'done', from);
  await until(console, PROMPT, console.log.indexOf('done', from));
  return console.log.slice(from);
}
/** The kernel's lines, not what commands print. */
const complaints = (log: string): string[] =>
  log.split(/\r?\n/).filter((line) => /^\[ *\d+\.\d+\]/.test(line) && COMPLAINTS.test(line));

interface Boot {
  spec: string;
  arch: 'amd64' | 'i386';
  machine: string;
  entry?: 32 | 64;
  /** The last command and how the run must end. */
  end: readonly [string, string, MachineStop['reason']];
}
const HALT = ['poweroff -f', 'System halted', 'idle'] as const;
const RESET = ['reboot -f', 'Restarting system', 'reset'] as const;
const BOOTS: readonly Boot[] = [
  { spec: 'svm', arch: 'amd64', machine: 'x86_64', end: HALT },
  { spec: 'vmx', arch: 'amd64', machine: 'x86_64', entry: 32, end: RESET },
  { spec: 'svm', arch: 'i386', machine: 'i686', end: RESET },
  { spec: 'vmx', arch: 'i386', machine: 'i686', end: HALT },
];

describe("Debian's kernel boots to a shell", () => {
  for (const { spec, arch, machine, entry, end } of BOOTS) {
    const there = existsSync(join(FILES, arch, 'busybox'));
    // The 686 kernel comes from a second architecture, which not every mirror serves.
    const skip = !there && !(REQUIRED && arch === 'amd64');
    const hint = skip
      ? ` (run scripts/fetch-linux.sh: it gets linux-image-${arch === 'amd64' ? arch : '686'} and busybox-static)`
      : '';
    test.skipIf(skip)(
      `${arch} under ${spec}${entry ? `, ${entry}-bit entry` : ''}${hint}`,
      async () => {
        expect(there, 'scripts/fetch-linux.sh gets the kernel').toBe(true);
        const console = await start(spec, arch, 'console=ttyS0', entry);
        await until(console, 'initramfs up', 0);
        expect(console.log).toContain('Hypervisor detected: KVM');
        expect(console.log).toContain('Run /init as init process');
        await until(console, PROMPT, console.log.indexOf('initramfs up'));

        expect(await command(console, 'uname -m')).toContain(`\n${machine}`);
        const interrupts = await command(console, 'cat /proc/interrupts');
        expect(interrupts).toMatch(/IO-APIC +4-edge +ttyS0/);
        expect(interrupts).toMatch(/LOC: +[1-9]/);
        expect(interrupts).toMatch(/ERR: +0\r/);
        // Every algorithm that the kernel has tested by now has passed.
        const crypto = await command(
          console,
          'grep -c "selftest *: passed" /proc/crypto; grep selftest /proc/crypto | grep -vc passed',
        );
        expect(crypto).toMatch(/\n[1-9]\d*\r\n0\r/);
        expect(await command(console, 'sleep 1; awk "BEGIN { print 10 / 3 * 1.5 }"')).toContain('\n5\r');
        expect(await command(console, 'dmesg | md5sum | md5sum | wc -c')).toContain('\n36');
        expect(complaints(console.log)).toEqual([]);

        const [line, message, reason] = end;
        console.machine.devices.com1.receive(new TextEncoder().encode(`${line}\r`));
        const stop = await console.machine.run({ maxInstructions: LIMIT });
        expect(console.log).toContain(message);
        expect(stop.reason).toBe(reason);
      },
      25 * MINUTES,
    );
  }
});
