/** Rows of the kernels: how many times as fast as each peer on the same image, per unit of work, in processor time. */
import { spawnSync } from 'node:child_process';
import { inTurn, progress, type Row } from './harness.ts';
import { KERNELS, type Kernel, type KernelName } from './kernels.ts';
import { benchProgram, missing, root } from './peers.ts';

type Width = '32' | '64';
/** A measurement takes so many milliseconds: translation and warm-up, some 0.1 s, are a small part. */
const WANTED_MS = 1000;
/** What calibration goes by: in a shorter run warm-up, which more units don't prolong, would count as work. */
const ENOUGH_MS = WANTED_MS / 2;

/** One process of bench/kernels.ts: milliseconds of processor time. */
export function kernelMs(name: string, engine: string, width: Width, units: number): number {
  const words = [name, engine, width, String(units)];
  const result = spawnSync('node', benchProgram('kernels.ts', ...words), {
    cwd: root,
    encoding: 'utf8',
    timeout: 300_000,
  });
  if (result.status !== 0) throw new Error(`bench/kernels.ts ${words.join(' ')}: ${result.stderr || result.error}`);
  return Number(result.stdout);
}

/** Where calibration starts, in the kernel's units: as far as an engine is known to be fast. */
const FIRST: Readonly<Record<string, number>> = { translate: 8, tcg: 8, v86: 4, native: 24, host: 24 };

/** Units that take an engine as long as is wanted. */
function calibrate(name: KernelName, engine: string, width: Width): number {
  const { units: least, exits }: Kernel = KERNELS[name];
  let units = least * (exits ? 4 : (FIRST[engine] ?? 1));
  for (;;) {
    const ms = kernelMs(name, engine, width, units);
    const wanted = (units * WANTED_MS) / Math.max(ms, 5);
    units = Math.min(Math.max(1, Math.round(wanted / least)), Math.floor((2 ** 32 - 1) / least)) * least;
    if (ms >= ENOUGH_MS || units > 2 ** 31) return units;
  }
}

/** Nanoseconds a unit of every engine that is there, medians of runs in turn. */
export async function unitTimes(
  name: KernelName,
  engines: readonly string[],
  width: Width,
  rounds: number,
): Promise<Map<string, number>> {
  const contenders = engines.map((engine) => {
    progress(`${name} ${width} ${engine}: calibrating`);
    const units = calibrate(name, engine, width);
    const run = (): number => (kernelMs(name, engine, width, units) * 1e6) / units;
    return { name: engine, run };
  });
  progress(`${name} ${width}: ${rounds} rounds`);
  return inTurn(contenders, rounds);
}

const EMULATORS = ['v86', 'tcg', 'bochs'] as const;
/** v86 has no long mode. */
const emulators = (width: Width): readonly string[] => EMULATORS.filter((peer) => width === '32' || peer !== 'v86');
/** What a kernel is measured against in a width. */
function peersOf(kernel: Kernel, width: Width): readonly string[] {
  const peers = [...emulators(width)];
  if (kernel.target.host !== undefined) peers.push('host');
  if (kernel.native === true && width === '64') peers.push('native');
  return peers;
}

const show = (ratio: number): string => (ratio < 10 ? ratio.toFixed(2) : ratio.toFixed(0));

/** Each demand on a row: its words and whether the ratios meet it. A peer that is not there decides nothing. */
function demands({ target }: Kernel, ratios: ReadonlyMap<string, number>): { text: string; met: boolean | null }[] {
  const fastest = Math.min(...EMULATORS.map((peer) => ratios.get(peer) ?? Number.POSITIVE_INFINITY));
  return Object.entries(target).flatMap(([peer, wanted]) => {
    const ratio = peer === 'fastest' ? fastest : (ratios.get(peer) ?? Number.POSITIVE_INFINITY);
    if (peer === 'v86' && ratio === Number.POSITIVE_INFINITY) return [];
    const text = `>= ${wanted}x ${peer === 'fastest' ? 'the fastest' : peer}`;
    return [{ text, met: Number.isFinite(ratio) ? ratio >= wanted : null }];
  });
}

function row(name: KernelName, width: Width, vendor: string, times: ReadonlyMap<string, number>): Row {
  const kernel: Kernel = KERNELS[name];
  const own = times.get(vendor)!;
  const peers = peersOf(kernel, width);
  const ratios = new Map(peers.filter((peer) => times.has(peer)).map((peer) => [peer, times.get(peer)! / own]));
  const cells = peers.map((peer) => {
    const ratio = ratios.get(peer);
    return ratio === undefined ? `${peer}: ${missing(peer)}` : `${show(ratio)}x ${peer}`;
  });
  const wanted = demands(kernel, ratios);
  const suffix = kernel.exits ? `, ${vendor === 'vmx' ? 'vmx' : 'svm'}` : '';
  return {
    what: `${kernel.what}, ${kernel.long ? `${width}-bit` : 'not paged'}${suffix}`,
    value: [`${own < 1000 ? own.toPrecision(3) : own.toFixed(0)} ns`, ...cells].join(', '),
    target: wanted.map(({ text }) => text).join(', ') || '-',
    met: wanted.length === 0 || wanted.some(({ met }) => met === null) ? null : wanted.every(({ met }) => met),
    figures: { ns: own, ...Object.fromEntries(ratios) },
  };
}

/** All rows, or those of the kernels that `parts` names. */
export async function kernelRows(parts: readonly string[], rounds: number): Promise<Row[]> {
  const rows: Row[] = [];
  for (const name of Object.keys(KERNELS) as KernelName[]) {
    if (parts.length > 0 && !parts.includes(name)) continue;
    const kernel: Kernel = KERNELS[name];
    const vendors = kernel.exits ? ['translate', 'vmx'] : ['translate'];
    for (const width of kernel.long ? (['32', '64'] as const) : (['32'] as const)) {
      const peers = peersOf(kernel, width).filter((peer) => missing(peer) === null);
      const times = await unitTimes(name, [...vendors, ...peers], width, rounds);
      for (const vendor of vendors) {
        const found = row(name, width, vendor, times);
        progress(`${found.what}: ${found.value}`);
        rows.push(found);
      }
    }
  }
  return rows;
}
