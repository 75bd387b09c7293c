/**
 * One run of a kernel (bench/guests/kernels.asm) on one engine, as a process of its own: prints milliseconds of processor time (machines
 * that run benchmarks are rarely idle).
 * Run: `npx tsx --conditions=@tskvm/source bench/kernels.ts KERNEL ENGINE WIDTH`; ENGINE: translate, interpret, v86, tcg.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { createMachine, firmware, type MachineOptions } from '../packages/cli/src/index.ts';

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
const root = fileURLToPath(new URL('..', import.meta.url));
const FIRST = 'S'.charCodeAt(0);

/** Assembles a kernel; the file's name. `long`: 64-bit code. */
export function assemble(kernel: KernelName, long: boolean): string {
  const out = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), 'kernel.bin');
  const defines = [`-DKERNEL_${kernel}`, `-DITERATIONS=${KERNELS[kernel]}`, ...(long ? ['-DLONG'] : [])];
  const args = ['-f', 'bin', ...defines, '-o', out, join(root, 'bench/guests/kernels.asm')];
  const result = spawnSync('nasm', args, { encoding: 'utf8' });
  if (result.status !== 0)
    throw new Error(`nasm is needed (Debian package nasm): ${result.stderr ?? result.error?.message}`);
  return out;
}

async function tskvm(file: string, engine: MachineOptions['engine'], vendor: string): Promise<number> {
  let started = process.cpuUsage();
  let ended = 0;
  const machine = await createMachine({
    backend: vendor === 'vmx' ? vmx() : svm(),
    image: firmware(new Uint8Array(readFileSync(file)), 'kernel'),
    memory: 32 * 2 ** 20,
    engine,
    onDebug: (byte) => {
      if (byte === FIRST) started = process.cpuUsage();
      else ended = process.cpuUsage(started).user / 1000;
    },
  });
  const stop = await machine.run({ slice: 5_000_000 });
  if (stop.reason !== 'debug-exit') throw new Error(`the kernel did not end: ${JSON.stringify(stop)}`);
  return ended;
}

async function v86(file: string): Promise<number> {
  const { V86 } = await import('v86');
  const rom = new Uint8Array(readFileSync(file));
  return new Promise((resolve) => {
    let started = process.cpuUsage();
    const emulator = new V86({
      wasm_path: join(root, 'node_modules/v86/build/v86.wasm'),
      memory_size: 32 * 2 ** 20,
      bios: { buffer: rom.buffer as ArrayBuffer },
      autostart: false,
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
    } as ConstructorParameters<typeof V86>[0]);
    emulator.add_listener('emulator-ready', () => {
      const { io } = (
        emulator as unknown as {
          v86: { cpu: { io: { register_write(port: number, device: object, write: (value: number) => void): void } } };
        }
      ).v86.cpu;
      io.register_write(0xe9, { name: 'bench' }, (value) => {
        if (value === FIRST) started = process.cpuUsage();
        else resolve(process.cpuUsage(started).user / 1000);
      });
      emulator.run();
    });
  });
}

/** User time of another process in milliseconds (proc(5), field 14, in hundredths of a second). */
const userTime = (pid: number): number =>
  Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[11]) * 10;

/** QEMU's TCG, timed by what comes out of port 0xE9. */
function tcg(file: string): Promise<number> {
  const rom = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), 'rom.bin');
  writeFileSync(rom, readFileSync(file));
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

/** Milliseconds of a whole kernel. */
export async function measure(kernel: KernelName, engine: string, long: boolean, vendor = 'svm'): Promise<number> {
  const file = assemble(kernel, long);
  if (engine === 'v86') return v86(file);
  if (engine === 'tcg') return tcg(file);
  return tskvm(file, engine as MachineOptions['engine'], vendor);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [kernel, engine, width, vendor] = process.argv.slice(2);
  const ms = await measure(kernel as KernelName, engine, width === '64', vendor);
  process.stdout.write(`${ms.toFixed(1)}\n`);
  process.exit(0);
}
