/**
 * What a machine holds beside guest RAM: over an hour of guest time in which Linux works, and under guests that mean to defeat the
 * translator. As a program, one of these in a process of its own: `bench/memory.ts NAME`.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Machine } from 'tskvm';
import { busyboxInitramfs } from '../scripts/cpio.ts';
import { progress, type Row } from './harness.ts';
import { engineOf, hasLinux, KERNEL_MIB, kernelMachine, LINUX_MIB, linuxFile, residentBeside } from './machines.ts';
import { benchProgram, root, temporary, userTime } from './peers.ts';

const MB = 1e6 / 2 ** 20;
const MOST_MIB = 300 * MB;

/** Rounds of work, some three seconds each, and sleep between them; what is printed: the round, seconds of guest time, those of them that were idle. */
const WORK = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
round=0
while :; do
  i=0
  while [ $i -lt 200 ]; do i=$((i + 1)); done
  dmesg | sort | md5sum > /sum
  head -c 300000 /bin/busybox | gzip -c | gunzip | wc -c | grep -q 300000 || echo "tskvm: gzip failed"
  ls -lR /sys/class /proc/self | grep -c : > /count
  awk 'BEGIN { for (i = 0; i < 2000; i++) s += sin(i) * i; print s }' > /sine
  for file in /proc/[0-9]*/status; do sed -n 's/^Name:.//p' $file; done | tr a-z A-Z | uniq -c > /names
  round=$((round + 1))
  echo "round $round $(cat /proc/uptime)"
  sleep 50
done
`;
const HOUR = 3600;
const SAMPLES = 60;

/** MiB beside guest RAM: when the guest begins its work, half-way, at the end, and the most; and what was done. */
interface Result {
  start: number;
  middle: number;
  end: number;
  most: number;
  /** In words. */
  work: string;
}
const summary = (seen: readonly number[], work: string): Result => ({
  start: seen[0]!,
  middle: seen[seen.length >> 1]!,
  end: seen[seen.length - 1]!,
  most: Math.max(...seen),
  work,
});

/** Runs until `share` (0 to 1, of what is asked for) is 1, and looks at the process {@link SAMPLES} times on the way. */
async function watch(machine: Machine, guestMib: number, share: () => number): Promise<number[]> {
  const seen: number[] = [];
  await machine.run({
    slice: 1_000_000,
    between: () => {
      while (seen.length <= share() * SAMPLES) {
        seen.push(residentBeside(process.pid, guestMib));
        if (seen.length % 10 === 1) progress(`memory at ${seen.length - 1}/${SAMPLES}: ${mib(seen.at(-1)!)} MiB`);
      }
      return share() >= 1;
    },
  });
  return seen;
}

/** The program that `pnpm bench` has built: a user's. */
async function hour(): Promise<Result> {
  const initrd = temporary('initrd', busyboxInitramfs(readFileSync(linuxFile('amd64', 'busybox')), WORK));
  const words = ['run', '--memory', `${LINUX_MIB}M`, '--kernel', linuxFile('amd64', 'vmlinuz'), '--initrd', initrd];
  const program = join(root, 'packages/cli/dist/cli.js');
  const child = spawn('node', [program, ...words, '--append', 'console=ttyS0'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const seen: number[] = [];
  let began = 0;
  for await (const line of createInterface(child.stdout)) {
    if (line.includes('gzip failed')) throw new Error(line);
    const [, round, up, idle] = /^round (\d+) ([\d.]+) ([\d.]+)/.exec(line) ?? [];
    if (round === undefined) continue;
    if (seen.length === 0) began = Number(up);
    seen.push(residentBeside(child.pid!, LINUX_MIB));
    if (seen.length % 10 === 1) progress(`memory at ${up} s: ${mib(seen.at(-1)!)} MiB`);
    if (Number(up) - began < HOUR) continue;
    const busy = Number(up) - Number(idle);
    const work = `${round} rounds, ${busy.toFixed(0)} s of ${up} s busy; ${(userTime(child.pid!) / 1000).toFixed(0)} s of processor time`;
    child.kill('SIGKILL');
    return summary(seen, work);
  }
  throw new Error('Linux ended early');
}

/** Kernels of bench/guests/user-kernels.inc, and what each runs: about 20 s. */
export const HOSTILE = {
  CROWD: { what: '20,000 of 786,432 loops of 16 bytes get hot', iterations: 20_000 },
  BYTES: { what: 'a jump to each byte of a page, 500 times', iterations: 500 },
  REWRITE: { what: 'a loop that is rewritten before each of 20,000 runs', iterations: 20_000 },
  FORMS: { what: '6,144 forms of instructions, each 64 times in a row, 20 rounds', iterations: 20 },
} as const;
export type Hostile = keyof typeof HOSTILE;

async function hostile(name: Hostile): Promise<Result> {
  const { iterations } = HOSTILE[name];
  const machine = await kernelMachine('svm', name, iterations);
  // EBX counts down to 0.
  const [vcpu] = machine.vm.vcpus;
  let left: number = iterations;
  const seen = await watch(machine, KERNEL_MIB, () => {
    const { rbx } = vcpu.getRegs();
    if (rbx > 0n && rbx <= BigInt(left)) left = Number(rbx);
    return 1 - left / iterations;
  });
  const { regions, modules, live, evicted, invalidated } = engineOf(machine).statistics!;
  const work = `${regions} regions in ${modules} modules, ${live} kept, ${evicted} evicted, ${invalidated} invalidated`;
  return summary([...seen, residentBeside(process.pid, KERNEL_MIB)], work);
}

/** A hostile guest in a process of its own; what it writes to standard error is shown. */
async function runAlone(name: Hostile): Promise<Result> {
  const child = spawn('node', benchProgram('memory.ts', name), { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.on('data', (data: Buffer) => {
    text += data.toString();
  });
  const [status] = (await once(child, 'close')) as [number];
  if (status !== 0) throw new Error(`bench/memory.ts ${name} ended with status ${status}`);
  return JSON.parse(text) as Result;
}

const mib = (value: number): string => value.toFixed(0);
function row(what: string, { work, ...found }: Result): Row {
  const { start, middle, end, most } = found;
  return {
    what: `memory beside guest RAM, ${what}`,
    value: `${mib(start)}, ${mib(middle)}, ${mib(end)} MiB at the start, half-way, at the end; at most ${mib(most)}; ${work}`,
    target: '<= 300 MB, bounded',
    met: most <= MOST_MIB && end <= middle * 1.1,
    figures: { ...found },
  };
}

export const MEMORY_PARTS = ['HOUR', ...Object.keys(HOSTILE)];
export async function memoryRows(parts: readonly string[]): Promise<Row[]> {
  const rows: Row[] = [];
  for (const name of MEMORY_PARTS) {
    if (parts.length > 0 && !parts.includes(name)) continue;
    const what =
      name === 'HOUR' ? 'an hour of guest time of a shell that works and sleeps' : HOSTILE[name as Hostile].what;
    if (name === 'HOUR' && !hasLinux()) {
      rows.push({ what, value: 'run scripts/fetch-linux.sh first', target: '<= 300 MB, bounded', met: null });
      continue;
    }
    progress(`memory ${name}`);
    rows.push(row(what, await (name === 'HOUR' ? hour() : runAlone(name as Hostile))));
  }
  return rows;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name] = process.argv.slice(2);
  const found = await hostile(name as Hostile);
  process.stdout.write(`${JSON.stringify(found)}\n`);
  process.exit(0);
}
