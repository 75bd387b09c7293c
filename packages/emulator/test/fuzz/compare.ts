/**
 * Runs made-up programs on all engines side by side and says where they part: registers, x87 and vector state, MSRs, memory, devices.
 */
import { createProcessor, type EngineName, installInterpreter, installTranslator } from '../../src/cpu/create.ts';
import { CPU_MODELS } from '../../src/cpu/models/index.ts';
import type { Processor } from '../../src/cpu/processor.ts';
import { TranslateEngine } from '../../src/engines/translate/translate.ts';
import { NotImplementedError } from '../../src/exceptions.ts';
import { PhysicalMemory } from '../../src/memory/physical.ts';
import type { PlatformBus } from '../../src/processor-api.ts';
import { S, Seg } from '../../src/state-layout.ts';
import { type FuzzMode, MEMORY_SIZE, MODES } from './layout.ts';
import { type HostEvent, makeProgram, type Program } from './setup.ts';

/** Devices: what is read depends on how much has happened before, so that nothing is read twice or left out unseen. */
class Devices implements PlatformBus {
  seen = 1;
  /** Interrupts that wait to be acknowledged. */
  waiting = 0;
  #next = 0x20;
  #mix(...values: number[]): number {
    for (const value of values) this.seen = (Math.imul(this.seen, 0x01000193) ^ value) >>> 0;
    return this.seen;
  }
  reset(): void {
    this.seen = 1;
    this.waiting = 0;
    this.#next = 0x20;
  }
  pioIn(port: number, size: number): number {
    return size === 4 ? this.#mix(1, port, size) : this.#mix(1, port, size) % 2 ** (size * 8);
  }
  pioOut(port: number, size: number, value: number): void {
    this.#mix(2, port, size, value);
  }
  read(pa: number, size: number): bigint {
    return BigInt.asUintN(size * 8, BigInt(this.#mix(3, pa, size)) * 0x9e3779b97f4a7c15n);
  }
  write(pa: number, size: number, value: bigint): void {
    this.#mix(4, pa, size, Number(value & 0xffffffffn));
  }
  acknowledgeInterrupt(): number {
    if (this.waiting === 0) return -1;
    this.waiting--;
    this.#next = this.#next >= 0xf0 ? 0x20 : this.#next + 1;
    return this.#next;
  }
}

export interface FuzzMachine {
  readonly cpu: Processor;
  readonly bus: Devices;
  readonly engine: EngineName;
}

/** A machine for one engine; reused for many programs. Translate samples as densely as it can. */
export async function fuzzMachine(engine: EngineName, vendor: 'amd' | 'intel'): Promise<FuzzMachine> {
  const bus = new Devices();
  const model = vendor === 'amd' ? CPU_MODELS.epyc! : CPU_MODELS.xeon!;
  const cpu = await createProcessor(new PhysicalMemory(MEMORY_SIZE), model, { engine: 'evaluate', bus });
  if (engine === 'interpret') installInterpreter(cpu);
  if (engine === 'translate') installTranslator(cpu, { sample: 80, hot: 1 });
  return { cpu, bus, engine };
}

/** Byte ranges of the state block that are nobody's business: lazy flags, scratch, derived bases. */
const PRIVATE: readonly (readonly [number, number])[] = [
  [S.zero, S.segments],
  [S.derived, S.ymm],
];

const FIELDS = Object.entries(S)
  .filter(([name]) => name !== 'size')
  .sort((a, b) => a[1] - b[1]);
function fieldAt(offset: number): string {
  const [name, start] = FIELDS.filter(([, at]) => at <= offset).at(-1)!;
  return `${name}+${(offset - start).toString(16)}h`;
}
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).reverse().toString('hex');

function blockDifferences(a: Processor, b: Processor): string[] {
  const found: string[] = [];
  for (let at = 0; at < S.size; at += 8) {
    if (PRIVATE.some(([from, to]) => at >= from && at < to)) continue;
    const [x, y] = [a.state.u8.subarray(at, at + 8), b.state.u8.subarray(at, at + 8)];
    if (Buffer.compare(x, y) !== 0) found.push(`${fieldAt(at)}: ${hex(x)} | ${hex(y)}`);
  }
  return found;
}

function memoryDifference(a: Processor, b: Processor): string[] {
  const view = (cpu: Processor): Uint8Array => {
    const from = cpu.memory.offset(0, MEMORY_SIZE);
    return cpu.memory.u8.subarray(from, from + MEMORY_SIZE);
  };
  const [x, y] = [view(a), view(b)];
  if (Buffer.compare(x, y) === 0) return [];
  const at = x.findIndex((byte, i) => byte !== y[i]) & ~7;
  return [`memory ${at.toString(16)}: ${hex(x.subarray(at, at + 8))} | ${hex(y.subarray(at, at + 8))}`];
}

/** What tells two machines apart; empty: nothing. */
function differences(a: FuzzMachine, b: FuzzMachine, stops: readonly [string, string]): string[] {
  const found = stops[0] === stops[1] ? [] : [`stop: ${stops[0]} | ${stops[1]}`];
  if (a.cpu.tick !== b.cpu.tick) found.push(`tick: ${a.cpu.tick} | ${b.cpu.tick}`);
  if (a.cpu.events.waiting !== b.cpu.events.waiting)
    found.push(`#DB: ${a.cpu.events.waiting} | ${b.cpu.events.waiting}`);
  if (a.bus.seen !== b.bus.seen) found.push('devices');
  found.push(...blockDifferences(a.cpu, b.cpu), ...memoryDifference(a.cpu, b.cpu));
  const [m, n] = [a.cpu.msrs.save(), b.cpu.msrs.save()];
  if (m.some(([index, value], i) => n[i]?.[0] !== index || n[i]?.[1] !== value)) found.push('MSRs');
  return found;
}

export function enter({ cpu, bus }: FuzzMachine, program: Program): void {
  cpu.memory.writeBytes(0, program.image);
  cpu.tick = 0;
  cpu.events.deliveredAt = -1;
  cpu.interruptPending = false;
  cpu.nmiPending = false;
  cpu.smiPending = false;
  bus.reset();
  program.enter(cpu);
}

/** Runs to a tick; a guest that asks for what is not implemented stops. */
export function runTo({ cpu }: FuzzMachine, tick: number): string {
  cpu.deadline = tick;
  try {
    return cpu.run();
  } catch (error) {
    if (error instanceof NotImplementedError) return 'not implemented';
    throw error;
  }
}

/** Raises an event at the place where all stand. */
export function raise(machine: FuzzMachine, event: HostEvent, stop: string): void {
  const { cpu, bus } = machine;
  if (event === 'interrupt') {
    bus.waiting = (cpu.tick % 3) + 1;
    cpu.interruptPending = true;
  }
  if (event === 'nmi') cpu.nmiPending = true;
  if (event === 'smi') cpu.smiPending = true;
  if (event === 'translate' && stop === 'deadline' && cpu.engine instanceof TranslateEngine) cpu.engine.translateHere();
}

export interface Difference {
  readonly seed: number;
  readonly mode: FuzzMode;
  readonly vendor: 'amd' | 'intel';
  readonly engine: EngineName;
  /** Ticks of the last stop at which all agreed, and of the one where they did not. */
  readonly from: number;
  readonly to: number;
  readonly what: readonly string[];
}

export const vendorOf = (machines: readonly FuzzMachine[]): 'amd' | 'intel' => machines[0]!.cpu.model.vendor;
export const modeOf = (seed: number): FuzzMode => MODES[seed % MODES.length]!;

/**
 * Runs the program of a seed on all machines (the first is the reference).
 * @returns where one parted from the reference; null if none did. And how many instructions ran.
 */
export function runSeed(
  machines: readonly FuzzMachine[],
  seed: number,
  mode = modeOf(seed),
): { difference: Difference | null; ticks: number } {
  const program = makeProgram(seed, mode);
  for (const machine of machines) enter(machine, program);
  let from = 0;
  let target = 0;
  for (const { ticks, event } of program.slices) {
    target += ticks;
    const stops = machines.map((machine) => runTo(machine, target));
    const [reference] = machines;
    for (const [n, machine] of machines.entries()) {
      if (n === 0) continue;
      const what = differences(reference!, machine, [stops[0]!, stops[n]!]);
      if (what.length === 0) continue;
      const difference = { seed, mode, vendor: vendorOf(machines), engine: machine.engine, from, to: target, what };
      return { difference, ticks: reference!.cpu.tick };
    }
    from = reference!.cpu.tick;
    if (stops[0] !== 'deadline' && (event !== 'interrupt' || stops[0] !== 'halt')) break;
    machines.forEach((machine, n) => {
      raise(machine, event, stops[n]!);
    });
  }
  return { difference: null, ticks: machines[0]!.cpu.tick };
}

/** Linear address of RIP, for the report. */
export function place(cpu: Processor): string {
  const cs = cpu.state.getSegment(Seg.CS);
  return `${cs.selector.toString(16)}:${cpu.state.rip.toString(16)}`;
}
