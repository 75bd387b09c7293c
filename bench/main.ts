/**
 * The benchmarks of docs/performance.md: medians, peers in the same run and in turn, as ratios.
 * `pnpm bench` runs all; `pnpm bench NAME…` some (alu, kernels, exits, boot, tour); `--json` for tools.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Backend } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine, firmware, type Machine, memoryImage } from '../packages/cli/src/index.ts';
import { exitGuest, exitTime } from './exits.ts';
import { inTurn, nsPerCall, type Row } from './harness.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const SEABIOS = '/usr/share/seabios/bios.bin';
const GRUB = '/usr/lib/grub-rescue/grub-rescue-cdrom.iso';
const CONFIGURATIONS: readonly (readonly [string, () => Backend])[] = [
  ['svm', () => svm()],
  ['vmx', () => vmx()],
  ['vmx without unrestricted guest', () => vmx({ unrestrictedGuest: false })],
];

/** One process of bench/kernels.ts: milliseconds of processor time. `units`: how much of it; the kernel's own number if left out. */
function kernel(name: string, engine: string, width: string, units: readonly number[] = []): number {
  const words = [name, engine, width, ...units.map(String)];
  const args = ['--conditions=@tskvm/source', '--import', 'tsx', join(root, 'bench/kernels.ts'), ...words];
  const result = spawnSync('node', args, { cwd: root, encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`bench/kernels.ts ${words.join(' ')}: ${result.stderr}`);
  return Number(result.stdout);
}

/** The ALU kernel as million instructions a second: ten instructions a unit. */
const alu = (engine: string, width: string): number => (60e6 * 10) / kernel('ALU', engine, width, [60e6]) / 1000;

async function aluRows(): Promise<Row[]> {
  const mips = await inTurn(
    [
      { name: '64', run: () => alu('interpret', '64') },
      { name: '32', run: () => alu('interpret', '32') },
      { name: 'v86 without JIT', run: () => alu('v86-nojit', '32') },
    ],
    5,
  );
  const at = (name: string): number => mips.get(name) ?? Number.NaN;
  const ratio = at('32') / at('v86 without JIT');
  return [
    {
      what: 'interpret, ALU loop, paged long mode',
      value: `${at('64').toFixed(0)} M instructions/s`,
      target: '>= 400',
      met: at('64') >= 400,
    },
    {
      what: 'interpret, ALU loop, paged 32-bit, against v86 with its JIT off',
      value: `${at('32').toFixed(0)} : ${at('v86 without JIT').toFixed(0)} M instructions/s = ${ratio.toFixed(1)}x`,
      target: '>= 6x',
      met: ratio >= 6,
    },
  ];
}

async function exitRows(): Promise<Row[]> {
  const image = exitGuest('cpuid');
  // Both vendors run in the process before anything is measured: the call sites are as general as they get.
  for (const [, backend] of CONFIGURATIONS.slice(0, 2)) await exitTime(backend(), 'cpuid', image);
  const ns = await inTurn(
    CONFIGURATIONS.slice(0, 2).map(([name, backend]) => ({ name, run: () => exitTime(backend(), 'cpuid', image) })),
  );
  const rows: Row[] = [...ns].map(([name, value]) => ({
    what: `CPUID exit, KVM's handler and re-entry, ${name}`,
    value: `${value.toFixed(0)} ns`,
    target: '<= 500 ns',
    met: value <= 500,
  }));
  const machines: Machine[] = [];
  for (const [, backend] of CONFIGURATIONS.slice(0, 2))
    machines.push(await createMachine({ backend: backend(), image: bootSector(image, 'cpuid'), memory: 2 ** 21 }));
  const vcpus = machines.map((machine) => machine.vm.vcpus[0]);
  let turn = 0;
  let sum = 0;
  const loop = nsPerCall(() => {
    sum += vcpus[turn++ & 1].vcpuId;
  }, 1_000_000);
  const call = nsPerCall(() => {
    const vcpu = vcpus[turn++ & 1];
    sum += vcpu.kvm.calls.hasWbinvdExit(vcpu.kvm) ? 1 : 0;
  }, 1_000_000);
  rows.push({
    what: 'static call, both vendors through one site, callee included',
    value: `${Math.max(0, call - loop).toFixed(1)} ns`,
    target: '<= 5 ns',
    met: call - loop <= 5,
  });
  void sum;
  return rows;
}

/** Seconds from power-on to GRUB's prompt. */
async function boot(backend: Backend): Promise<number> {
  let text = '';
  const start = performance.now();
  const machine = await createMachine({
    backend,
    image: firmware(new Uint8Array(readFileSync(SEABIOS)), SEABIOS),
    cdrom: { ...memoryImage(new Uint8Array(readFileSync(GRUB))), write: undefined },
    onSerial: (byte) => {
      text = (text + String.fromCharCode(byte)).slice(-4096);
    },
  });
  machine.devices.com1.receive([0x63]); // c: the command line
  await machine.run({ slice: 200_000, between: () => text.includes('grub> '), maxInstructions: 2e9 });
  if (!text.includes('grub> ')) throw new Error(`no prompt; the console's end: ${text.slice(-200)}`);
  return (performance.now() - start) / 1000;
}

async function bootRows(): Promise<Row[]> {
  if (!existsSync(SEABIOS) || !existsSync(GRUB)) {
    return [
      {
        what: "SeaBIOS to GRUB's prompt",
        value: 'not measured: install seabios and grub-rescue-pc',
        target: '<= 15 s, 60 s',
        met: null,
      },
    ];
  }
  const seconds = await inTurn(CONFIGURATIONS.map(([name, backend]) => ({ name, run: () => boot(backend()) })));
  return [...seconds].map(([name, value], i) => ({
    what: `SeaBIOS to GRUB's prompt, ${name}`,
    value: `${value.toFixed(1)} s`,
    target: i < 2 ? '<= 15 s' : '<= 60 s',
    met: value <= (i < 2 ? 15 : 60),
  }));
}

async function tourRows(): Promise<Row[]> {
  const { runTour, CONFIGURATIONS: specs } = await import('../packages/cli/src/commands/tour.ts');
  const total = await inTurn([
    {
      name: 'tour',
      run: async () => {
        const start = performance.now();
        for (const spec of specs) if (!(await runTour(spec)).passed) throw new Error(`the tour fails under ${spec}`);
        return (performance.now() - start) / 1000;
      },
    },
  ]);
  const seconds = total.get('tour') ?? Number.NaN;
  return [{ what: 'the three tours, traced', value: `${seconds.toFixed(1)} s`, target: '<= 10 s', met: seconds <= 10 }];
}

async function kernelRows(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const name of ['ALU', 'MEMORY', 'FIB', 'SIEVE', 'MIX']) {
    for (const width of ['32', '64']) {
      const engines = width === '32' ? ['translate', 'v86', 'tcg'] : ['translate', 'tcg'];
      const ms = await inTurn(engines.map((engine) => ({ name: engine, run: () => kernel(name, engine, width) })));
      for (const peer of engines.slice(1)) {
        const ratio = ms.get(peer)! / ms.get('translate')!;
        const target = peer === 'v86' ? 2 : 1;
        rows.push({
          what: `translate, ${name}, ${width}-bit, against ${peer}`,
          value: `${ratio.toFixed(2)}x`,
          target: `>= ${target}x`,
          met: ratio >= target,
        });
      }
    }
  }
  return rows;
}

const GROUPS = { alu: aluRows, kernels: kernelRows, exits: exitRows, tour: tourRows, boot: bootRows } as const;
const names = process.argv.slice(2).filter((a) => !a.startsWith('--'));
const rows: Row[] = [];
for (const [name, run] of Object.entries(GROUPS)) {
  if (names.length > 0 && !names.includes(name)) continue;
  process.stderr.write(`bench: ${name}\n`);
  rows.push(...(await run()));
}
if (process.argv.includes('--json')) process.stdout.write(`${JSON.stringify(rows)}\n`);
else
  for (const { what, value, target, met } of rows)
    process.stdout.write(`| ${what} | ${value} | ${target} | ${met === null ? '-' : met ? 'met' : 'not met'} |\n`);
process.exit(0);
