/**
 * Debian's kernels from start to the initramfs's first line, on tskvm and on its peers, as processes of their own.
 * As a program: v86, which has no loader, with the console on standard output: `bench/linux.ts KERNEL INITRD`.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { type AddressInfo, createServer, Socket } from 'node:net';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { linux } from '../packages/cli/src/machine/loaders/linux.ts';
import { median, progress, type Row } from './harness.ts';
import { LINUX_MIB, linuxFile, residentBeside } from './machines.ts';
import { assemble, benchProgram, missing, root, startBochs, startV86, temporary, userTime } from './peers.ts';

const MEMORY = LINUX_MIB;
const MIB = 2 ** 20;
const FIRST_LINE = 'tskvm: initramfs up';
const APPEND = 'console=ttyS0';
const TOO_LONG_MS = 1_800_000;

interface Files {
  kernel: string;
  initrd: string;
}
const filesOf = (architecture: string): Files => ({
  kernel: linuxFile(architecture, 'vmlinuz'),
  initrd: linuxFile(architecture, 'initramfs.cpio'),
});

/** Kernel, zero page, command line and initramfs as our loader lays them out for the 32-bit entry, and a ROM that starts them. */
function direct({ kernel, initrd }: Files): { rom: Uint8Array; segments: { at: number; bytes: Uint8Array }[] } {
  const plan = linux({
    kernel: new Uint8Array(readFileSync(kernel)),
    kernelName: kernel,
    initrd: new Uint8Array(readFileSync(initrd)),
    append: APPEND,
    memory: MEMORY * MIB,
    entry: 32,
  });
  if (plan.start.kind !== 'protected32') throw new Error('the loader chose another entry');
  const defines = [`KERNEL=${plan.start.eip}`, `PARAMS=${plan.start.esi}`, `MEMORY=${MEMORY * MIB}`];
  // The BIOS's own area is the ROM's here.
  return { rom: assemble('direct', defines), segments: plan.segments.filter(({ at }) => at < 0xf0000 || at >= MIB) };
}

/** What Bochs never gives RAM for: VGA memory and ROMs. */
const HOLE = { from: 0xa0000, to: MIB } as const;
/** One image of all memory, in the order in which the ROM makes Bochs give it out. */
async function onBochs(files: Files): Promise<Started> {
  const { rom, segments } = direct(files);
  const image = new Uint8Array(MEMORY * MIB - (HOLE.to - HOLE.from));
  for (const { at, bytes } of segments) image.set(bytes, at < HOLE.from ? at : at - (HOLE.to - HOLE.from));
  const lines = [`optramimage1: file=${temporary('memory', image)}, address=0`];
  // Its file and terminal modes keep the last lines back.
  const server = createServer().listen(0, 'localhost');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const child = startBochs(rom, MEMORY, [...lines, `com1: enabled=1, mode=socket-client, dev=localhost:${port}`]);
  child.on('exit', () => server.close());
  const [socket] = (await Promise.race([once(server, 'connection'), once(child, 'exit')])) as [Socket | number];
  if (!(socket instanceof Socket)) throw new Error('bochs ended before it had a serial port');
  return { child, serial: socket };
}

function onQemu({ kernel, initrd }: Files): ChildProcess {
  const machine = ['-accel', 'tcg', '-cpu', 'qemu64', '-m', String(MEMORY), '-display', 'none', '-no-reboot'];
  const args = [...machine, '-nodefaults', '-serial', 'stdio'];
  args.push('-kernel', kernel, '-initrd', initrd, '-append', APPEND);
  return spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'inherit'] });
}

/** The program that `pnpm bench` has built: a user's. */
function onTskvm({ kernel, initrd }: Files, vendor: string): ChildProcess {
  const cli = join(root, 'packages/cli/dist/cli.js');
  const args = ['run', '--backend', vendor, '--memory', `${MEMORY}M`, '--kernel', kernel, '--initrd', initrd];
  return spawn('node', [cli, ...args, '--append', APPEND], { stdio: ['ignore', 'pipe', 'inherit'] });
}
function inV86({ kernel, initrd }: Files): ChildProcess {
  return spawn('node', benchProgram('linux.ts', kernel, initrd), { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
}

/** An emulator, and where the guest's serial port comes out. */
interface Started {
  child: ChildProcess;
  serial: Readable;
}
const withStdout = (child: ChildProcess): Started => ({ child, serial: child.stdout! });

interface Boot {
  /** Seconds from the start of the process to the line, and what the process used of the processors until then. */
  elapsed: number;
  processor: number;
  /** MiB that the process holds beside guest RAM. */
  beside: number;
}

/** Waits for the first line, and ends the process. */
function bootOf({ child, serial }: Started, began: number): Promise<Boot> {
  return new Promise((resolve, reject) => {
    let text = '';
    const tooLong = setTimeout(() => child.kill('SIGKILL'), TOO_LONG_MS);
    serial.on('data', (data: Buffer) => {
      text = (text + data.toString('latin1')).slice(-4000);
      if (!text.includes(FIRST_LINE)) return;
      const elapsed = (performance.now() - began) / 1000;
      resolve({ elapsed, processor: userTime(child.pid!) / 1000, beside: residentBeside(child.pid!, MEMORY) });
      child.kill('SIGKILL');
    });
    child.on('error', reject);
    child.on('exit', () => {
      clearTimeout(tooLong);
      reject(new Error(`${child.spawnfile}: no "${FIRST_LINE}"; the console's end: ${text.slice(-400)}`));
    });
  });
}

const STARTS: Readonly<Record<string, (files: Files) => Started | Promise<Started>>> = {
  svm: (files) => withStdout(onTskvm(files, 'svm')),
  vmx: (files) => withStdout(onTskvm(files, 'vmx')),
  tcg: (files) => withStdout(onQemu(files)),
  v86: (files) => withStdout(inV86(files)),
  bochs: onBochs,
};

interface Series {
  architecture: string;
  what: string;
  peers: readonly string[];
  /** At most so much of a peer's time. */
  target: Readonly<Record<string, number>>;
  hint: string;
}
export const LINUX: Readonly<Record<string, Series>> = {
  amd64: {
    architecture: 'amd64',
    what: "Debian's amd64 kernel to the initramfs's first line",
    peers: ['tcg'],
    target: { tcg: 1.5 },
    hint: '<= 1.5x the time of tcg (wanted 1.0x)',
  },
  i386: {
    architecture: 'i386',
    what: "Debian's 686 kernel to the initramfs's first line",
    peers: ['v86', 'bochs', 'tcg'],
    target: { v86: 0.6, bochs: 0.6 },
    hint: '<= 0.6x the time of v86 and bochs',
  },
};

/** Every contender's boots, in turn. */
async function boots(names: readonly string[], files: Files, architecture: string, rounds: number) {
  const all = new Map<string, Boot[]>(names.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      progress(`linux ${architecture} ${name}`);
      const began = performance.now();
      all.get(name)!.push(await bootOf(await STARTS[name](files), began));
    }
  }
  const medianOf = (name: string, what: keyof Boot): number => median(all.get(name)!.map((boot) => boot[what]));
  return medianOf;
}

async function seriesRows({ architecture, what, peers, target, hint }: Series, rounds: number): Promise<Row[]> {
  const files = filesOf(architecture);
  if (!existsSync(files.kernel)) return [{ what, value: 'run scripts/fetch-linux.sh first', target: hint, met: null }];
  const there = peers.filter((peer) => missing(peer) === null);
  const of = await boots(['svm', 'vmx', ...there], files, architecture, rounds);
  const timeRow = (vendor: string, which: 'elapsed' | 'processor'): Row => {
    const own = of(vendor, which);
    const ratios = Object.fromEntries(there.map((peer) => [peer, own / of(peer, which)]));
    const cells = peers.map((peer) =>
      peer in ratios
        ? `${ratios[peer].toFixed(2)}x ${peer} (${of(peer, which).toFixed(1)} s)`
        : `${peer}: ${missing(peer)}`,
    );
    const wanted = Object.entries(target);
    return {
      what: `${what}, ${vendor}, ${which === 'elapsed' ? 'elapsed' : 'processor time'}`,
      value: `${own.toFixed(1)} s, ${cells.join(', ')}`,
      target: hint,
      met: wanted.some(([peer]) => !(peer in ratios)) ? null : wanted.every(([peer, most]) => ratios[peer] <= most),
      figures: { seconds: own, ...ratios },
    };
  };
  return ['svm', 'vmx'].flatMap((vendor) => {
    const memory = of(vendor, 'beside');
    return [
      timeRow(vendor, 'elapsed'),
      timeRow(vendor, 'processor'),
      {
        what: `memory beside guest RAM after that boot, ${architecture}, ${vendor}`,
        value: `${memory.toFixed(0)} MiB`,
        target: '<= 300 MB',
        met: memory * MIB <= 300e6,
        figures: { mib: memory },
      },
    ];
  });
}

export async function linuxRows(parts: readonly string[], rounds: number): Promise<Row[]> {
  const rows: Row[] = [];
  for (const [name, series] of Object.entries(LINUX))
    if (parts.length === 0 || parts.includes(name)) rows.push(...(await seriesRows(series, rounds)));
  return rows;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [kernel, initrd] = process.argv.slice(2);
  const { rom, segments } = direct({ kernel, initrd });
  const onSerial = (byte: number): void => void process.stdout.write(Uint8Array.of(byte));
  await startV86(rom, { memory: MEMORY * MIB, segments, onSerial });
}
