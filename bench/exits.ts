/** Nanoseconds of one kind of VM exit with KVM's handler and re-entry, in both vendors: `npx tsx [--conditions=@tskvm/source] bench/exits.ts [driver cpuid out …]`. */
import { fileURLToPath } from 'node:url';
import type { Backend } from '@tskvm/core';
import type { InstructionInfo, RunStop } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine } from 'tskvm';
import { assemble, cpuMs } from './peers.ts';

export const EXITS = ['cpuid', 'out', 'cr0', 'rdmsr', 'mmio', 'hlt', 'none'] as const;
export type ExitKind = (typeof EXITS)[number];
const COUNT: Partial<Record<ExitKind, number>> = { mmio: 40_000, hlt: 100, none: 1_000_000 };

/** The boot sector that causes one kind of exit. */
export const exitGuest = (kind: ExitKind): Uint8Array =>
  assemble('exits', [`WHAT=${EXITS.indexOf(kind)}`, `COUNT=${COUNT[kind] ?? 200_000}`]);

/** Nanoseconds of processor time an exit, handler, re-entry and the guest's loop included: the best of the guest's batches. */
export async function exitTime(backend: Backend, kind: ExitKind, image: Uint8Array): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  let start = 0;
  const machine = await createMachine({
    backend,
    image: bootSector(image, kind),
    memory: 2 ** 21,
    onDebug: (byte) => {
      if (byte === 0x53) start = cpuMs();
      else best = Math.min(best, ((cpuMs() - start) * 1e6) / (COUNT[kind] ?? 200_000));
    },
  });
  await machine.run();
  return best;
}

/**
 * KVM's and the silicon's share of a CPUID exit: the processor's own run is replaced by one that leaves at once, by the same instruction
 * at the same place. What is left is the run loop, the world switch, the handler and the skip.
 */
export async function driverTime(backend: Backend, image: Uint8Array): Promise<number> {
  const machine = await createMachine({ backend, image: bootSector(image, 'cpuid'), memory: 2 ** 21 });
  machine.runSlice(30_000);
  const { processor } = machine.kvm;
  const [vcpu] = machine.vm.vcpus;
  const own = Object.getPrototypeOf(processor) as { run(): RunStop };
  const original = own.run;
  const info: InstructionInfo = {
    intercept: 'cpuid',
    ...{ opcode: 0x0fa2, rip: processor.state.rip, nextRip: processor.state.rip + 2n },
    ...{ rep: 0, mod: 0, reg: 0, rm: 0, seg: 3, linear: 0n, imm: 0n },
    ...{ srcVal: 0n, dstVal: 0n, srcBytes: 0, dstBytes: 0, adBytes: 2 },
  };
  own.run = function (this: typeof processor): RunStop {
    this.guest?.intercept(info, 'postExcept');
    return 'guest-exit';
  };
  let best = Number.POSITIVE_INFINITY;
  for (let n = 0; n < 25; n++) {
    const start = cpuMs();
    vcpu.run({ budget: 100_000 });
    best = Math.min(best, ((cpuMs() - start) * 1e6) / 100_000);
  }
  own.run = original;
  return best;
}

const VENDORS: readonly (readonly [string, () => Backend])[] = [
  ['svm', () => svm()],
  ['vmx', () => vmx()],
];

/** Both vendors in turn, three times: the best of each. */
async function best(measured: (backend: Backend) => Promise<number>): Promise<string> {
  const found = VENDORS.map(() => Number.POSITIVE_INFINITY);
  for (let round = 0; round < 3; round++)
    for (const [i, [, backend]] of VENDORS.entries()) found[i] = Math.min(found[i], await measured(backend()));
  return VENDORS.map(([name], i) => `${name} ${found[i].toFixed(0)} ns`).join('  ');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const wanted = process.argv.slice(2);
  const chosen = (name: string): boolean => wanted.length === 0 || wanted.includes(name);
  const cpuid = exitGuest('cpuid');
  if (chosen('driver')) console.log('driver', await best((backend) => driverTime(backend, cpuid)));
  for (const kind of EXITS.filter(chosen)) {
    const image = exitGuest(kind);
    console.log(kind, await best((backend) => exitTime(backend, kind, image)));
  }
  process.exit(0);
}
