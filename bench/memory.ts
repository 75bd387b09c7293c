/**
 * What a machine holds beside guest RAM: over an hour of guest time in which Linux works, and under guests that mean to defeat the
 * translator. As a program, one of them in a process of its own: `bench/memory.ts NAME`; it prints what RESULT says.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Machine } from 'tskvm';
import { progress, type Row } from './harness.ts';
import { engineOf, hasLinux, KERNEL_MIB, kernelMachine, LINUX_MIB, linuxMachine, residentBeside } from './machines.ts';
import { benchProgram, root } from './peers.ts';

const MB = 1e6 / 2 ** 20;
const MOST_MIB = 300 * MB;

/** Rounds of work, each followed by so long a sleep that an hour has about ten busy minutes. */
const WORK = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
echo "tskvm: initramfs up"
round=0
while :; do
  round=$((round + 1))
  i=0
  while [ $i -lt 200 ]; do i=$((i + 1)); done
  dmesg | sort | md5sum > /sum
  gzip -c /bin/busybox | gunzip | cmp - /bin/busybox || echo "tskvm: gzip failed"
  ls -lR /sys/class /proc/self | grep -c : > /count
  awk 'BEGIN { for (i = 0; i < 5000; i++) s += sin(i) * i; print s }' > /sine
  for file in /proc/[0-9]*/status; do sed -n 's/^Name:.//p' $file; done | tr a-z A-Z | uniq -c > /names
  echo "round $round"
  sleep 10
done
`;
const HOUR_NS = 3600e9;
const SAMPLES = 60;

interface Result {
  /** MiB beside guest RAM: when the guest begins its work, half-way, at the end, and the most. */
  start: number;
  middle: number;
  end: number;
  most: number;
  /** Guest seconds, those of them that were not idle, host seconds of processor time. */
  guest: number;
  busy: number;
  host: number;
  instructions: number;
  /** Rounds of its work, or units of the kernel. */
  rounds: number;
  regions: number;
  modules: number;
  live: number;
  evicted: number;
  invalidated: number;
}

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

function result(machine: Machine, seen: readonly number[], rounds: number): Result {
  const { regions, modules, live, evicted, invalidated } = engineOf(machine).statistics!;
  const { nanoseconds, instructions, idleTicks } = machine;
  return {
    start: seen[0],
    middle: seen[seen.length >> 1],
    end: seen[seen.length - 1],
    most: Math.max(...seen),
    guest: nanoseconds / 1e9,
    busy: (instructions - idleTicks) / (instructions / (nanoseconds / 1e9)),
    host: process.cpuUsage().user / 1e6,
    instructions: instructions - idleTicks,
    rounds,
    ...{ regions, modules, live, evicted, invalidated },
  };
}

async function hour(): Promise<Result> {
  let text = '';
  let rounds = 0;
  const onSerial = (byte: number): void => {
    text = byte === 10 ? '' : text + String.fromCharCode(byte);
    if (byte === 13 && text.startsWith('round ')) rounds = Number.parseInt(text.slice(6), 10);
    if (text.includes('gzip failed')) throw new Error(text);
  };
  const machine = await linuxMachine('svm', onSerial, WORK);
  let began = Number.POSITIVE_INFINITY;
  const seen = await watch(machine, LINUX_MIB, () => {
    if (rounds > 0 && began === Number.POSITIVE_INFINITY) began = machine.nanoseconds;
    return (machine.nanoseconds - began) / HOUR_NS;
  });
  return result(machine, seen, rounds);
}

/** Kernels of bench/guests/user-kernels.inc, and what each runs: about 20 s. */
export const HOSTILE = {
  CROWD: { what: '40,000 of 786,432 loops of 16 bytes get hot', iterations: 40_000 },
  BYTES: { what: 'a jump to each byte of a page, 500 times', iterations: 500 },
  REWRITE: { what: 'a loop that is rewritten before each of 20,000 runs', iterations: 20_000 },
} as const;
type Hostile = keyof typeof HOSTILE;

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
  return result(machine, [...seen, residentBeside(process.pid, KERNEL_MIB)], iterations - left);
}

/** A run in a process of its own; what it writes to standard error is shown. */
async function runAlone(name: string): Promise<Result> {
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
function row(what: string, found: Result): Row {
  const { start, middle, end, most, regions, modules, live, evicted, invalidated } = found;
  const code = `${regions} regions in ${modules} modules, ${live} kept, ${evicted} evicted, ${invalidated} invalidated`;
  const work = `${found.rounds} rounds, ${found.busy.toFixed(0)} s busy of ${found.guest.toFixed(0)} s, ${found.host.toFixed(0)} s of processor time`;
  return {
    what: `memory beside guest RAM, ${what}`,
    value: `${mib(start)}, ${mib(middle)}, ${mib(end)} MiB at the start, half-way, at the end; at most ${mib(most)}; ${code}; ${work}`,
    target: '<= 300 MB, bounded',
    met: most <= MOST_MIB && end <= Math.max(middle * 1.1, MOST_MIB / 2),
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
    rows.push(row(what, await runAlone(name)));
  }
  return rows;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name] = process.argv.slice(2);
  const found = await (name === 'HOUR' ? hour() : hostile(name as Hostile));
  process.stdout.write(`${JSON.stringify(found)}\n`);
  process.exit(0);
}
