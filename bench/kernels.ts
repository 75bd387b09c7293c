/**
 * One run of a kernel (bench/guests/kernels.asm) on one engine, as a process of its own: prints milliseconds of processor time (machines
 * that run benchmarks are rarely idle).
 * Run: `npx tsx --conditions=@tskvm/source bench/kernels.ts KERNEL ENGINE WIDTH [UNITS]`; ENGINE: translate, interpret, v86, v86-nojit, tcg.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svm } from '@tskvm/svm';
import { createMachine, firmware, type MachineOptions } from '../packages/cli/src/index.ts';
import { assemble, cpuMs, onV86 } from './peers.ts';

/** Units that take about a second where they are translated. */
export const KERNELS = {
  ALU: 200_000_000,
  MEMORY: 100_000_000,
  FIB: 100,
  SIEVE: 60,
  MIX: 60_000,
  MOVS: 400,
  STOS: 400,
  SSED: 10_000_000,
  SSEI: 10_000_000,
  X87: 1_000_000,
} as const;
export type KernelName = keyof typeof KERNELS;
const FIRST = 'S'.charCodeAt(0);

async function tskvm(rom: Uint8Array, engine: MachineOptions['engine']): Promise<number> {
  let started = 0;
  let ended = 0;
  const machine = await createMachine({
    backend: svm(),
    image: firmware(rom, 'kernel'),
    memory: 32 * 2 ** 20,
    engine,
    onDebug: (byte) => {
      if (byte === FIRST) started = cpuMs();
      else ended = cpuMs() - started;
    },
  });
  const stop = await machine.run({ slice: 5_000_000 });
  if (stop.reason !== 'debug-exit') throw new Error(`the kernel did not end: ${JSON.stringify(stop)}`);
  return ended;
}

/** User time of another process in milliseconds (proc(5), field 14, in hundredths of a second). */
const userTime = (pid: number): number =>
  Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[11]) * 10;

/** QEMU's TCG, timed by what comes out of port 0xE9. */
function tcg(image: Uint8Array): Promise<number> {
  const rom = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), 'rom.bin');
  writeFileSync(rom, image);
  const args = ['-accel', 'tcg', '-cpu', 'qemu64', '-m', '32', '-display', 'none', '-nodefaults', '-bios', rom];
  args.push('-chardev', 'stdio,id=d', '-device', 'isa-debugcon,iobase=0xe9,chardev=d');
  args.push('-device', 'isa-debug-exit,iobase=0xf4,iosize=1');
  const child = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  return new Promise((resolve) => {
    let started = 0;
    child.stdout.on('data', (data: Buffer) => {
      for (const byte of data) {
        if (byte === FIRST) started = userTime(child.pid!);
        else resolve(userTime(child.pid!) - started);
      }
    });
  });
}

/** Milliseconds of processor time for `units` of a kernel. */
export async function measure(kernel: KernelName, engine: string, long: boolean, units: number): Promise<number> {
  const rom = assemble('kernels', [`KERNEL_${kernel}`, `ITERATIONS=${units}`, ...(long ? ['LONG'] : [])]);
  if (engine === 'v86' || engine === 'v86-nojit') return onV86(rom, engine === 'v86');
  if (engine === 'tcg') return tcg(rom);
  return tskvm(rom, engine as MachineOptions['engine']);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [kernel, engine, width, units] = process.argv.slice(2);
  const ms = await measure(
    kernel as KernelName,
    engine,
    width === '64',
    Number(units ?? KERNELS[kernel as KernelName]),
  );
  process.stdout.write(`${ms.toFixed(1)}\n`);
  process.exit(0);
}
