/**
 * What a machine can be made of, and the refusal of what it can't.
 * Free of Node, as the machine is.
 */
import { type Backend, nearest, shape } from '@tskvm/core';
import type { CpuModel } from '@tskvm/emulator';
import type { BlockImage } from './devices/ide.ts';
import { UsageError } from './errors.ts';
import type { LoadPlan } from './loaders/image.ts';

const MIB = 2 ** 20;
/** RAM ends here; PCI, APICs and firmware lie above. */
export const LOW_RAM_LIMIT = 0xe0000000;

export interface MachineOptions {
  backend: Backend;
  /** What to start: see loaders/image.ts and loaders/multiboot.ts. */
  image: LoadPlan;
  /** Guest RAM in bytes, 1 MiB to 3.5 GiB, a multiple of 64 KiB (default 64 MiB). */
  memory?: number;
  /** Virtual processors (default 1, at most 8). */
  cpus?: number;
  /** Instructions that a processor runs before the next gets its turn (default 20,000); less: they answer each other sooner, at a price. */
  quantum?: number;
  /**
   * What the guest's CPUID says: `MODEL,+feature,-feature`, MODEL a name of CPU_MODELS, `host` or `max`. Default: `host`, all that KVM can pass
   * on of the processor below it.
   */
  cpu?: string;
  /** The processor below KVM; default: the backend's, or the model of `cpu` if it can run the backend. */
  model?: CpuModel;
  disks?: BlockImage[];
  cdrom?: BlockImage;
  /** Text of INT 10h on COM1 (SeaBIOS), default true. */
  serialConsole?: boolean;
  onSerial?: (byte: number) => void;
  onDebug?: (byte: number) => void;
  /** Hand out host frames shuffled by this seed. */
  shuffleFrames?: number;
  /** Where RDRAND's and RDSEED's numbers start (default 0): runs with the same seed repeat. */
  seed?: bigint;
  engine?: 'translate' | 'interpret' | 'evaluate';
  /** Guest nanoseconds an instruction takes (default 10: a 100 MHz machine; loops that poll a timer end sooner). */
  nsPerTick?: number;
}

/** Throws UsageError with this code if the value hasn't the shape. */
export function requireFit(code: string, value: unknown, at: string, wanted: shape.Shape, hint = ''): void {
  const problem = wanted(value, at);
  if (problem !== undefined) throw new UsageError(code, problem + hint);
}

const isMedium: shape.Shape = (value, at) =>
  shape.struct({ size: shape.address })(value, at) ??
  (typeof (value as BlockImage).read === 'function' ? undefined : `${at}.read is missing: give a BlockImage`);
const START = shape.union('kind', {
  reset: shape.struct({}),
  real: shape.struct({ cs: shape.u16, ip: shape.u16, dl: shape.u8 }),
  protected32: shape.struct({ eip: shape.u32, eax: shape.u32, ebx: shape.u32 }),
  long64: shape.struct({ rip: shape.address, rsi: shape.address, cr3: shape.address }),
});
const OPTIONS = shape.struct({
  backend: shape.struct({ kind: shape.oneOf('tskvm-backend') }),
  image: shape.struct({
    segments: shape.list(shape.struct({ at: shape.address, bytes: shape.bytes() })),
    rom: shape.optional(shape.bytes(1)),
    start: START,
  }),
  disks: shape.optional(shape.list(isMedium)),
  cdrom: shape.optional(isMedium),
  cpu: shape.optional(shape.text),
  serialConsole: shape.optional(shape.flag),
  onSerial: shape.callback,
  onDebug: shape.callback,
});

const NAMES = Object.keys({
  ...{ backend: 1, image: 1, memory: 1, cpus: 1, quantum: 1, cpu: 1, model: 1, disks: 1, cdrom: 1, serialConsole: 1 },
  ...{ onSerial: 1, onDebug: 1, shuffleFrames: 1, seed: 1, engine: 1, nsPerTick: 1 },
} satisfies Record<keyof MachineOptions, 1>);

/** A misspelt option would be a machine other than the one that was asked for. */
function checkNames(options: MachineOptions): void {
  const name = Object.keys(options).find((key) => !NAMES.includes(key));
  if (name === undefined) return;
  const near = nearest(name, NAMES, 1);
  const hint = near.length > 0 ? `did you mean ${near[0]}?` : `there are ${NAMES.join(', ')}`;
  throw new UsageError('BAD_OPTION', `createMachine has no option ${name}: ${hint}`);
}

/** Throws UsageError BAD_OPTION, BAD_MEMORY, BAD_CPUS, TOO_MANY_DISKS. @param memory bytes of guest RAM */
export function checkOptions(options: MachineOptions, memory: number): void {
  requireFit('BAD_OPTION', options, 'options', OPTIONS);
  checkNames(options);
  if (!Number.isInteger(memory) || memory < MIB || memory > LOW_RAM_LIMIT || memory % 65536 !== 0) {
    throw new UsageError(
      'BAD_MEMORY',
      `memory of ${String(memory)} bytes: give 1 MiB to 3584 MiB, a multiple of 64 KiB`,
    );
  }
  const cpus = options.cpus ?? 1;
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > 8)
    throw new UsageError('BAD_CPUS', `${String(cpus)} processors: give 1 to 8`);
  if ((options.disks?.length ?? 0) > 1) throw new UsageError('TOO_MANY_DISKS', 'one disk and one CD-ROM at most');
}
