/** Nanoseconds of one kind of VM exit with KVM's handler and re-entry, in both vendors: `node … bench/exits.ts [cpuid out …]`. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Backend } from '@tskvm/core';
import type { InstructionInfo, RunStop } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine } from '../packages/cli/src/index.ts';

/** The process's own milliseconds: what the neighbours on the machine take does not count. */
const cpuMs = (): number => process.cpuUsage().user / 1000;
const root = fileURLToPath(new URL('..', import.meta.url));
export const EXITS = ['cpuid', 'out', 'cr0', 'rdmsr', 'mmio', 'hlt', 'none'] as const;
export type ExitKind = (typeof EXITS)[number];
const COUNT: Partial<Record<ExitKind, number>> = { mmio: 40_000, hlt: 100, none: 1_000_000 };

export function exitGuest(kind: ExitKind): Uint8Array {
  const out = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), `${kind}.bin`);
  const defines = [`-DWHAT=${EXITS.indexOf(kind)}`, `-DCOUNT=${COUNT[kind] ?? 200_000}`];
  const result = spawnSync('nasm', ['-f', 'bin', ...defines, '-o', out, join(root, 'bench/guests/exits.asm')], {
    encoding: 'utf8',
  });
  if (result.status !== 0)
    throw new Error(`nasm is needed (Debian package nasm): ${result.stderr ?? result.error?.message}`);
  return new Uint8Array(readFileSync(out));
}

/** The best of the guest's batches, loop included. */
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

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const names = process.argv.slice(2).filter((a) => a in Object.fromEntries(EXITS.map((e) => [e, 1]))) as ExitKind[];
  const rounds = Number(process.env.ROUNDS ?? 3);
  if (names.length === 0 || process.argv.includes('driver')) {
    const image = exitGuest('cpuid');
    for (const v of (process.env.VENDORS ?? 'svm,vmx,svm,vmx').split(','))
      console.log('driver', v, (await driverTime(v === 'svm' ? svm() : vmx(), image)).toFixed(0), 'ns');
  }
  for (const kind of process.argv.includes('driver') ? names : names.length > 0 ? names : EXITS) {
    const image = exitGuest(kind);
    const vendors = (process.env.VENDORS ?? 'svm,vmx').split(',');
    const best = new Map<string, number>();
    for (let n = 0; n < rounds; n++)
      for (const v of vendors) {
        const ns = await exitTime(v === 'svm' ? svm() : vmx(), kind, image);
        best.set(v, Math.min(best.get(v) ?? Number.POSITIVE_INFINITY, ns));
      }
    console.log(kind, [...best].map(([v, ns]) => `${v} ${ns.toFixed(0)} ns`).join('  '));
  }
  process.exit(0);
}
