/**
 * How long compiling holds up the thread that a machine runs on: what one turn of the event loop (two million ticks) spends on
 * handlers for new forms of instructions, on looking for regions and on translating; and each call of WebAssembly's constructors. As a program, one guest in a process of its own: `bench/compile.ts GUEST`.
 */
import { spawnSync } from 'node:child_process';
import { openSync, readSync } from 'node:fs';
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
  /** Milliseconds that each turn spent on regions, and on handlers. */
  regions: number[];
  handlers: number[];
  /** Milliseconds that each call of a constructor took. */
  calls: number[];
}

/**
 * Milliseconds of this thread's processor time (proc(5), schedstat: nanoseconds first): on a busy machine less passes by chance than by the
 * clock on the wall, and what V8 does on threads of its own holds nobody up.
 */
const schedule = openSync('/proc/thread-self/schedstat', 'r');
const digits = Buffer.alloc(64);
function now(): number {
  readSync(schedule, digits, 0, digits.length, 0);
  return Number.parseInt(digits.toString('latin1'), 10) / 1e6;
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

async function turnsOf(machine: Machine, ended: () => boolean): Promise<Omit<Blocks, 'calls'>> {
  const engine = engineOf(machine);
  engine.timeTranslations!(now);
  const turns = { regions: [] as number[], handlers: [] as number[] };
  let before = { ...engine.statistics! };
  const between = (): boolean => {
    const after = { ...engine.statistics! };
    turns.regions.push(after.milliseconds - before.milliseconds);
    turns.handlers.push(after.handlers - before.handlers);
    before = after;
    return ended();
  };
  await machine.run({ between, maxInstructions: 20 * TICKS });
  return turns;
}

async function blocks(guest: string): Promise<Blocks> {
  const calls: number[] = [];
  timeCalls(calls);
  // As in the thread that draws a browser's page.
  Object.assign(globalThis, { document: {} });
  let text = '';
  const onSerial = (byte: number): void => {
    text = (text + String.fromCharCode(byte)).slice(-200);
  };
  const machine =
    guest === 'LINUX'
      ? await linuxMachine('svm', onSerial)
      : await kernelMachine('svm', guest, HOSTILE[guest as Hostile].iterations);
  const ended = (): boolean => (guest === 'LINUX' ? text.includes(FIRST_LINE) : machine.instructions >= TICKS);
  return { ...(await turnsOf(machine, ended)), calls };
}

/**
 * V8 compiles functions when they are first called, unless it is told to do it at once: then the constructors' time has it all. Its second
 * compiler works on other threads, whose processor time must not count.
 */
const V8 = ['--no-wasm-lazy-compilation', '--liftoff-only'];
function blocksAlone(guest: string): Blocks {
  // The built packages: from source, what a build has generated is generated at first use.
  const words = benchProgram('compile.ts', guest).filter((word) => !word.startsWith('--conditions'));
  const result = spawnSync('node', [...V8, ...words], {
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
      const [regions, handlers, calls] = (['regions', 'handlers', 'calls'] as const).map((part) =>
        shortest(runs.map((run) => run[part])),
      );
      const together = longest(regions!.map((ms, turn) => ms + handlers![turn]!));
      const ms = (values: readonly number[]): string => longest(values).toFixed(1);
      const all = [...regions!, ...handlers!].reduce((sum, one) => sum + one, 0);
      return {
        what: `compiling in the thread that the machine runs on, ${what}`,
        value: `in a turn of 2 M instructions at most ${ms(regions!)} ms for regions, ${ms(handlers!)} ms for handlers, ${together.toFixed(1)} ms together; one call of WebAssembly's at most ${ms(calls!)} ms; ${(all / 1000).toFixed(2)} s in ${regions!.length} turns`,
        target: `<= ${TARGET_MS} ms`,
        met: together <= TARGET_MS,
        figures: { together, regions: longest(regions!), handlers: longest(handlers!), call: longest(calls!) },
      };
    });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.stdout.write(`${JSON.stringify(await blocks(process.argv[2]!))}\n`);
  process.exit(0);
}
