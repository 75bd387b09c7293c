/**
 * The benchmarks of docs/performance.md: medians, peers in the same run and in turn, as ratios. USAGE says how to choose.
 */
import { existsSync, readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import type { Backend } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine, firmware, type Machine, memoryImage } from 'tskvm';
import { compileRows } from './compile.ts';
import { exitGuest, exitTime } from './exits.ts';
import { inTurn, median, nsPerCall, progress, type Row } from './harness.ts';
import { kernelMs, kernelRows } from './kernel-rows.ts';
import { KERNELS } from './kernels.ts';
import { LINUX, linuxRows } from './linux.ts';
import { MEMORY_PARTS, memoryRows } from './memory.ts';
import { leftOut } from './peers.ts';
import { startTime, VENDORS } from './start.ts';

const SEABIOS = '/usr/share/seabios/bios.bin';
const GRUB = '/usr/lib/grub-rescue/grub-rescue-cdrom.iso';
const CONFIGURATIONS: readonly (readonly [string, () => Backend])[] = [
  ['svm', () => svm()],
  ['vmx', () => vmx()],
  ['vmx without unrestricted guest', () => vmx({ unrestrictedGuest: false })],
];

/** The ALU kernel as million instructions a second: ten instructions a unit. */
const alu = (engine: string, width: '32' | '64'): number => (60e6 * 10) / kernelMs('ALU', engine, width, 60e6) / 1000;

async function aluRows(rounds: number): Promise<Row[]> {
  const mips = await inTurn(
    [
      { name: '64', run: () => alu('interpret', '64') },
      { name: '32', run: () => alu('interpret', '32') },
      { name: 'v86 without JIT', run: () => alu('v86-nojit', '32') },
    ],
    Math.max(rounds, 5),
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
    target: '<= 300 ns (at first <= 500)',
    met: value <= 300,
    figures: { ns: value },
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

async function startRows(): Promise<Row[]> {
  const processor = new Map<string, number[]>(VENDORS.map((name) => [name, []]));
  const run = (name: string): number => {
    const time = startTime(name);
    processor.get(name)?.push(time.processor);
    return time.elapsed;
  };
  const ms = await inTurn(
    VENDORS.map((name) => ({ name, run: () => run(name) })),
    7,
  );
  return [...ms].map(([name, value]) => ({
    what: `start of a machine to its first instruction, fresh process, ${name}`,
    value: `${value.toFixed(0)} ms elapsed, ${median(processor.get(name)!).toFixed(0)} ms of processor time`,
    target: '<= 80 ms',
    met: value <= 80,
    figures: { elapsed: value, processor: median(processor.get(name)!) },
  }));
}

type Group = (parts: readonly string[], rounds: number) => Promise<Row[]>;
const GROUPS: Readonly<Record<string, { parts: readonly string[]; rows: Group }>> = {
  kernels: { parts: Object.keys(KERNELS), rows: kernelRows },
  exits: { parts: [], rows: exitRows },
  start: { parts: [], rows: startRows },
  linux: { parts: Object.keys(LINUX), rows: linuxRows },
  compile: { parts: [], rows: (_, rounds) => compileRows(rounds) },
  memory: { parts: MEMORY_PARTS, rows: memoryRows },
  alu: { parts: [], rows: (_, rounds) => aluRows(rounds) },
  tour: { parts: [], rows: tourRows },
  boot: { parts: [], rows: bootRows },
};
const USAGE = `usage: npm run bench -- [NAME[:PART],...] [--rounds n] [--without PEER] [--json]
All of it takes about an hour, of two processors. NAME is one of ${Object.keys(GROUPS).join(', ')};
PART, as in kernels:ALU,kernels:FIB, one of
${Object.entries(GROUPS)
  .filter(([, { parts }]) => parts.length > 0)
  .map(([name, { parts }]) => `  ${name}: ${parts.join(' ')}`)
  .join('\n')}
--rounds: measurements of each, of which the median counts (default 3).
--without: v86, tcg, bochs or native is left out (bochs takes minutes for Linux).
`;

/** What the command line asks for, or undefined for what it can't. */
function parse(): { wanted: Map<string, string[]>; rounds: number; json: boolean } | undefined {
  try {
    const options = {
      rounds: { type: 'string', default: '3' },
      without: { type: 'string', multiple: true },
      json: { type: 'boolean', default: false },
    } as const;
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    for (const peer of values.without ?? []) leftOut.add(peer);
    const rounds = Number(values.rounds);
    const wanted = new Map<string, string[]>();
    for (const word of positionals.flatMap((text) => text.split(','))) {
      const [name, part] = word.split(':');
      if (!(name in GROUPS) || (part !== undefined && !GROUPS[name].parts.includes(part))) return undefined;
      wanted.set(name, [...(wanted.get(name) ?? []), ...(part === undefined ? [] : [part])]);
    }
    return Number.isInteger(rounds) && rounds > 0 ? { wanted, rounds, json: values.json } : undefined;
  } catch {
    return undefined;
  }
}

const asked = parse();
if (asked === undefined) {
  process.stderr.write(USAGE);
  process.exit(2);
}
const rows: Row[] = [];
for (const [name, group] of Object.entries(GROUPS)) {
  if (asked.wanted.size > 0 && !asked.wanted.has(name)) continue;
  progress(name);
  rows.push(...(await group.rows(asked.wanted.get(name) ?? [], asked.rounds)));
}
const verdict = (met: boolean | null): string => (met === null ? '' : met ? 'met' : 'missed');
if (asked.json) process.stdout.write(`${JSON.stringify(rows)}\n`);
else {
  process.stdout.write('| what | figure | target | |\n|---|---|---|---|\n');
  for (const { what, value, target, met } of rows)
    process.stdout.write(`| ${what} | ${value} | ${target} | ${verdict(met)} |\n`);
}
process.exit(0);
