/**
 * The kernels (bench/guests/kernels.asm) and their targets, and one run of one of them on one engine, as a process of its own: prints
 * milliseconds of processor time (machines that run benchmarks are rarely idle).
 * Run: `npx tsx [--conditions=@tskvm/source] bench/kernels.ts KERNEL ENGINE WIDTH [UNITS]`; ENGINE: translate (svm), vmx, interpret, v86,
 * v86-nojit, tcg, bochs, native, host.
 */
import { fileURLToPath } from 'node:url';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { createMachine, firmware, type MachineOptions } from 'tskvm';
import { assemble, bochs, cpuMs, native, onV86, tcg } from './peers.ts';

/** How many times as fast as each peer; `fastest`: as the fastest of the emulators; `host`: as the host's own memcpy and memset. */
export type Target = Partial<Record<'v86' | 'tcg' | 'fastest' | 'host', number>>;
export interface Kernel {
  what: string;
  /** Units that no engine takes long for: where calibration starts. Whole multiples of it are run. */
  units: number;
  /** What exits to KVM is measured under both vendors, at a steady rate: every engine runs half as many units first. */
  exits?: boolean;
  /** The same instructions run as a program of the host. */
  native?: boolean;
  /** Long mode, too. */
  long: boolean;
  target: Target;
}

const USER = { native: true, long: true } as const;
const EXIT = { exits: true, long: true } as const;
export const KERNELS = {
  ALU: { what: 'ALU: 8 instructions, dec, jnz', units: 1_000_000, ...USER, target: { v86: 2, tcg: 1 } },
  MEMORY: { what: 'memory: 2 loads, 2 stores over 4 MB', units: 400_000, ...USER, target: { v86: 2, tcg: 1 } },
  FIB: { what: 'recursive fib(27)', units: 1, ...USER, target: { v86: 2, tcg: 1 } },
  SIEVE: { what: 'sieve of a million', units: 1, ...USER, target: { v86: 2, tcg: 1 } },
  MIX: { what: 'mix: list, matrix, state machine, CRC', units: 500, ...USER, target: { v86: 2, tcg: 1 } },
  SSED: { what: 'SSE2, double', units: 300_000, ...USER, target: { v86: 1, tcg: 0.7 } },
  SSEI: { what: 'SSE2, integer', units: 300_000, ...USER, target: { v86: 1, tcg: 0.7 } },
  X87: { what: 'x87', units: 50_000, ...USER, target: {} },
  MOVS: { what: 'rep movsd, 1 MiB', units: 4, ...USER, target: { host: 0.5 } },
  STOS: { what: 'rep stosd, 1 MiB', units: 4, ...USER, target: { host: 0.5 } },
  PATCH: { what: 'code that patches itself', units: 5000, ...USER, target: { fastest: 1 } },
  BESIDE: { what: 'data in the page of the code', units: 20_000, ...USER, target: { fastest: 1 } },
  PORT: { what: 'OUT to a port', units: 20_000, ...EXIT, target: {} },
  CPUID: { what: 'CPUID', units: 20_000, ...EXIT, target: {} },
  TS: { what: 'CR0.TS set and cleared', units: 10_000, ...EXIT, target: { fastest: 0.5 } },
  WP: { what: 'CR0.WP cleared and set', units: 10_000, ...EXIT, target: { fastest: 0.5 } },
  ROUND: { what: 'real to protected mode and back', units: 5000, exits: true, long: false, target: { fastest: 0.5 } },
} as const satisfies Readonly<Record<string, Kernel>>;
export type KernelName = keyof typeof KERNELS;

async function tskvm(rom: Uint8Array, engine: string): Promise<number> {
  let started = 0;
  let ended = 0;
  const machine = await createMachine({
    backend: engine === 'vmx' ? vmx() : svm(),
    image: firmware(rom, 'kernel'),
    memory: 32 * 2 ** 20,
    engine: (engine === 'vmx' ? 'translate' : engine) as MachineOptions['engine'],
    onDebug: (byte) => {
      if (byte === 0x53) started = cpuMs();
      else ended = cpuMs() - started;
    },
  });
  const stop = await machine.run({ slice: 5_000_000 });
  if (stop.reason !== 'debug-exit') throw new Error(`the kernel did not end: ${JSON.stringify(stop)}`);
  return ended;
}

/** The host's memcpy and memset, as Node has them, on blocks of the kernels' sizes. */
function host(kernel: KernelName, units: number): number {
  const memory = Buffer.alloc(12 * 2 ** 20);
  const start = cpuMs();
  for (let n = 0; n < units; n++) {
    if (kernel === 'MOVS') memory.copy(memory, 0x800000, 0x400000, 0x500000);
    else memory.fill(0, 0x400000, 0x500000);
  }
  return cpuMs() - start;
}

/** Milliseconds of processor time for `units` of a kernel. */
export async function measure(kernel: KernelName, engine: string, long: boolean, units: number): Promise<number> {
  const { exits }: Kernel = KERNELS[kernel];
  const defines = [`KERNEL_${kernel}`, `ITERATIONS=${units}`, ...(exits ? [`WARM=${Math.ceil(units / 2)}`] : [])];
  if (engine === 'native') return native(defines);
  if (engine === 'host') return host(kernel, units);
  const rom = assemble('kernels', long ? [...defines, 'LONG'] : defines);
  if (engine === 'v86' || engine === 'v86-nojit') return onV86(rom, engine === 'v86');
  if (engine === 'tcg') return tcg(rom);
  return engine === 'bochs' ? bochs(rom) : tskvm(rom, engine);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name, engine, width, units] = process.argv.slice(2);
  const kernel = name as KernelName;
  const ms = await measure(kernel, engine, width === '64', Number(units ?? KERNELS[kernel].units * 50));
  process.stdout.write(`${ms.toFixed(2)}\n`);
  process.exit(0);
}
