/**
 * How long compiling holds up the thread that a machine runs on: what one turn of the event loop (two million ticks) spends on
 * handlers for new forms of instructions, on looking for regions and on translating; and each call of WebAssembly's constructors. As a program, one guest in a process of its own: `bench/compile.ts GUEST`.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Machine } from 'tskvm';
import { progress, type Row } from './harness.ts';
import { engineOf, hasLinux, kernelMachine, linuxMachine } from './machines.ts';
import { HOSTILE, type Hostile } from './memory.ts';
import { benchProgram, root } from './peers.ts';

const FIRST_LINE = 'tskvm: initramfs up';
const TARGET_MS = 50;
/** Ticks that a guest without an end gets. */
const TICKS = 1e9;

interface Blocks {
  /** Milliseconds that each turn spent, and that each call of a constructor took. */
  turns: number[];
  calls: number[];
}

/** Milliseconds of this process's processor time: on a busy machine less passes by chance than by the clock on the wall. */
function now(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Times each call of WebAssembly's constructors from now on. */
function timeCalls(calls: number[]): void {
  const timed = <T extends new (...args: never[]) => object>(target: T): T =>
    new Proxy(target, {
      construct(made, args) {
        const began = now();
        const instance = Reflect.construct(made, args) as object;
        calls.push(now() - began);
        return instance;
      },
    });
  WebAssembly.Module = timed(WebAssembly.Module);
  WebAssembly.Instance = timed(WebAssembly.Instance);
}

async function turnsOf(machine: Machine, ended: () => boolean): Promise<number[]> {
  const engine = engineOf(machine);
  engine.timeTranslations!(now);
  const spent = (): number => engine.statistics!.milliseconds + engine.statistics!.handlers;
  const turns: number[] = [];
  let before = spent();
  const between = (): boolean => {
    turns.push(spent() - before);
    before = spent();
    return ended();
  };
  await machine.run({ between, maxInstructions: 20 * TICKS });
  return turns;
}

async function blocks(guest: string): Promise<Blocks> {
  const calls: number[] = [];
  timeCalls(calls);
  let text = '';
  const onSerial = (byte: number): void => {
    text = (text + String.fromCharCode(byte)).slice(-200);
  };
  const machine =
    guest === 'LINUX'
      ? await linuxMachine('svm', onSerial)
      : await kernelMachine('svm', guest, HOSTILE[guest as Hostile].iterations);
  const ended = (): boolean => (guest === 'LINUX' ? text.includes(FIRST_LINE) : machine.instructions >= TICKS);
  return { turns: await turnsOf(machine, ended), calls };
}

/**
 * V8 compiles functions when they are first called, unless it is told to do it at once: then the constructors' time has it all. Its second
 * compiler works on other threads, whose processor time must not count.
 */
const V8 = ['--no-wasm-lazy-compilation', '--liftoff-only'];
function blocksAlone(guest: string): Blocks {
  const [first, ...others] = benchProgram('compile.ts', guest);
  const result = spawnSync('node', [...V8, first!, ...others], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  if (result.status !== 0) throw new Error(`bench/compile.ts ${guest}: ${result.stderr || result.error}`);
  return JSON.parse(result.stdout) as Blocks;
}

/** Of each its shortest time in all runs: they do the same each time, and collections of garbage hit now one, now another. */
const shortest = (runs: readonly number[][]): number[] =>
  runs[0]!.map((_, i) => Math.min(...runs.map((run) => run[i] ?? Number.POSITIVE_INFINITY)));
const longest = (values: readonly number[]): number => values.reduce((a, b) => Math.max(a, b), 0);

export async function compileRows(rounds: number): Promise<Row[]> {
  const guests = {
    LINUX: "the amd64 kernel's boot",
    ...Object.fromEntries(Object.entries(HOSTILE).map(([name, { what }]) => [name, what])),
  };
  return Object.entries(guests)
    .filter(([name]) => name !== 'LINUX' || hasLinux())
    .map(([name, what]) => {
      progress(`compile ${name}`);
      const runs = Array.from({ length: rounds }, () => blocksAlone(name));
      const turns = shortest(runs.map((run) => run.turns));
      const [turn, call] = [longest(turns), longest(shortest(runs.map((run) => run.calls)))];
      const all = turns.reduce((sum, ms) => sum + ms, 0);
      return {
        what: `longest hold-up by compiling, ${what}`,
        value: `${turn.toFixed(1)} ms in a turn of 2 M instructions, ${call.toFixed(1)} ms at once; ${(all / 1000).toFixed(2)} s in ${turns.length} turns`,
        target: `<= ${TARGET_MS} ms`,
        met: Math.max(turn, call) <= TARGET_MS,
        figures: { turn, call, all },
      };
    });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.stdout.write(`${JSON.stringify(await blocks(process.argv[2]!))}\n`);
  process.exit(0);
}
