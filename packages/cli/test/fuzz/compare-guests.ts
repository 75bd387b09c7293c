/**
 * Runs made-up programs inside guests on all engines and says where they part: exits, ticks, registers, events, memory, devices.
 */
import type { Kvm, KvmExit, KvmVcpuEvents, Vcpu } from '@tskvm/core';
import type { EngineName } from '@tskvm/emulator';
import { type FuzzMode, MEMORY_SIZE, MODES } from '../../../emulator/test/fuzz/layout.ts';
import { Random } from '../../../emulator/test/fuzz/random.ts';
import { makeProgram } from '../../../emulator/test/fuzz/setup.ts';
import { exitPiece } from './exit-pieces.ts';
import { BACKEND_NAMES, type BackendName, fuzzKvm, makeSetup, openGuest, startProgram, tlbOf } from './guest.ts';
import { Host, makeTurns, type Turn, type Variant } from './host.ts';
import { openTables, TABLE_MODES, tablePiece } from './table-pieces.ts';

/** What is compared with evaluate: the two engines alone, and each beside something that must not matter. */
export interface Contender {
  readonly engine: EngineName;
  readonly variant: Variant;
}
const REFERENCE: Contender = { engine: 'evaluate', variant: 'plain' };
const CONTENDERS: readonly Contender[] = [
  { engine: 'interpret', variant: 'plain' },
  { engine: 'translate', variant: 'plain' },
];
const BESIDE: readonly Contender[] = [
  { engine: 'translate', variant: 'reads' },
  { engine: 'interpret', variant: 'writes' },
  { engine: 'interpret', variant: 'traced' },
  { engine: 'translate', variant: 'moved' },
  { engine: 'translate', variant: 'split' },
];

/** For programs that change their tables: what flushes, as KVM does when registers are written, is left out. */
const BESIDE_TABLES: readonly Contender[] = [
  { engine: 'evaluate', variant: 'split' },
  { engine: 'interpret', variant: 'split' },
  { engine: 'translate', variant: 'split' },
  { engine: 'translate', variant: 'reads' },
  { engine: 'interpret', variant: 'traced' },
];

const text = (value: unknown): string =>
  JSON.stringify(value, (_, part) =>
    typeof part === 'bigint'
      ? `${part.toString(16)}h`
      : part instanceof Uint8Array
        ? Buffer.from(part.buffer, part.byteOffset, part.byteLength).toString('hex')
        : part,
  );
function checksum(bytes: Uint8Array): string {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);
  let sum = 0x811c9dc5;
  for (let n = 0; n < words.length; n++) sum = Math.imul(sum ^ words[n]!, 0x01000193);
  return (sum >>> 0).toString(16);
}

/** An exit as far as it is the guest's: what a failed emulation says of the hardware exit before it depends on what KVM had mapped. */
const exitOf = (exit: KvmExit): unknown =>
  exit.reason === 'internal_error' ? { ...exit, data: [], detail: '' } : exit;

/** Numbers of events that are not there are nobody's business. */
function eventsOf(vcpu: Vcpu): KvmVcpuEvents {
  const events = vcpu.getVcpuEvents();
  const { exception, interrupt } = events;
  const none = { injected: false, pending: false, nr: 0, hasErrorCode: false, errorCode: 0 };
  return {
    ...events,
    exception: exception.injected || exception.pending ? exception : none,
    interrupt: { ...interrupt, nr: interrupt.injected ? interrupt.nr : 0, soft: interrupt.injected && interrupt.soft },
  };
}

/** Segments as a guest has them: a null one has no rights. */
function sregsOf(vcpu: Vcpu): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(vcpu.getSregs2()).map(([name, value]) => {
      if (typeof value !== 'object' || !('unusable' in value) || value.unusable === 0) return [name, value];
      return [name, { selector: value.selector, base: value.base, dpl: name === 'ss' ? value.dpl : 0 }];
    }),
  );
}

/** What the TLB holds: nothing that a guest must see, but what its history alone decides. */
const TLB = 'tlb ';
/** Variants that begin with an empty TLB now and then: KVM flushes it where registers are written, and another kernel has its own. */
const FLUSHING: readonly Variant[] = ['writes', 'moved'];

/** All that a guest has, as lines. */
function look(vcpu: Vcpu): string[] {
  return [
    text(vcpu.getRegs()),
    text(sregsOf(vcpu)),
    text(eventsOf(vcpu)),
    text(vcpu.getDebugregs()),
    `xsave ${checksum(vcpu.getXsave())}`,
    `memory ${checksum(vcpu.vm.readGuest(0, MEMORY_SIZE))}`,
    TLB + tlbOf(vcpu).join(' '),
  ];
}

const kernels = new Map<string, Promise<Kvm>>();
function kernel(backend: BackendName, engine: EngineName, n: number): Promise<Kvm> {
  const key = `${backend} ${engine} ${n}`;
  let kvm = kernels.get(key);
  if (kvm === undefined) kernels.set(key, (kvm = fuzzKvm(backend, engine)));
  return kvm;
}

/** Programs end after so many ticks. */
const TICKS = 12_000;

/** What came of a program, as lines. */
interface Played {
  readonly lines: readonly string[];
  readonly reasons: readonly string[];
  readonly ticks: number;
}
async function play(
  seed: number,
  mode: FuzzMode,
  backend: BackendName,
  { engine, variant }: Contender,
  tables: boolean,
): Promise<Played> {
  const program = makeProgram(seed, mode, tables ? tablePiece : exitPiece);
  if (tables) openTables(program.image);
  const random = new Random(seed ^ 0x5a5a);
  const setup = makeSetup(random);
  const turns = makeTurns(random);
  const own = [await kernel(backend, engine, 0), ...(variant === 'moved' ? [await kernel(backend, engine, 1)] : [])];
  const host = new Host(own, (kvm) => openGuest(kvm, setup), mode, variant);
  try {
    startProgram(host.vcpu, setup, program);
    const { lines, reasons } = run(host, turns, tables);
    return { lines, reasons, ticks: host.vcpu.kvm.now() };
  } finally {
    host.close();
  }
}
function run(host: Host, turns: readonly Turn[], tables: boolean): { lines: string[]; reasons: string[] } {
  const lines: string[] = [];
  const reasons: string[] = [];
  for (const turn of turns) {
    const exit = host.turn(turn);
    lines.push(`${host.vcpu.kvm.now()} ${text(exitOf(exit))} ${host.seen}`);
    reasons.push(exit.reason);
    if (turn.look) lines.push(...look(host.vcpu));
    // A guest that is stuck behind a failed emulation uses up its budgets, each with what is granted on top.
    if (tables && exit.reason === 'internal_error') break;
    if (!host.answer(exit) || host.vcpu.kvm.now() > TICKS) break;
  }
  lines.push(...look(host.vcpu));
  return { lines, reasons };
}

export interface GuestDifference {
  readonly seed: number;
  readonly mode: FuzzMode;
  readonly backend: BackendName;
  readonly contender: Contender;
  /** The last line on which both agreed, the reference's next, the contender's. */
  readonly before: string | undefined;
  readonly expected: string | undefined;
  readonly actual: string | undefined;
}
export interface GuestResult {
  readonly difference: GuestDifference | null;
  readonly ticks: number;
  /** Reasons of the exits. */
  readonly reasons: readonly string[];
}

/** Where two lines part, from a little before. */
export function partedAt(expected: string | undefined, actual: string | undefined): [string, string] {
  const [a, b] = [expected ?? 'nothing', actual ?? 'nothing'];
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  const window = (line: string): string => (at < 160 ? line.slice(0, 240) : `… ${line.slice(at - 100, at + 140)}`);
  return [window(a), window(b)];
}

export const guestModeOf = (seed: number): FuzzMode => MODES[seed % MODES.length]!;
export const backendOf = (seed: number): BackendName =>
  BACKEND_NAMES[Math.floor(seed / MODES.length) % BACKEND_NAMES.length]!;

/** Does the program of a seed change its page tables without flushing? */
export const changesTables = (seed: number, mode: FuzzMode): boolean =>
  TABLE_MODES.includes(mode) && Math.floor(seed / MODES.length / BACKEND_NAMES.length) % 2 === 1;

/** Which of them a seed compares: all plain ones, and one of the others. */
export const contendersOf = (seed: number, tables: boolean): readonly Contender[] => [
  ...CONTENDERS,
  new Random(seed).pick(tables ? BESIDE_TABLES : BESIDE),
];

/** Runs the program of a seed inside a guest on evaluate, then on all contenders; ends with the first difference. */
export async function runGuestSeed(
  seed: number,
  mode = guestModeOf(seed),
  backend = backendOf(seed),
  tables = changesTables(seed, mode),
  contenders = contendersOf(seed, tables),
): Promise<GuestResult> {
  const { lines: all, ticks, reasons } = await play(seed, mode, backend, REFERENCE, tables);
  for (const contender of contenders) {
    const comparable = (line: string): boolean => !FLUSHING.includes(contender.variant) || !line.startsWith(TLB);
    const lines = all.filter(comparable);
    const other = (await play(seed, mode, backend, contender, tables)).lines.filter(comparable);
    const length = Math.max(lines.length, other.length);
    let at = 0;
    while (at < length && lines[at] === other[at]) at++;
    if (at === length) continue;
    const parted = { before: lines[at - 1], expected: lines[at], actual: other[at] };
    return { difference: { seed, mode, backend, contender, ...parted }, ticks, reasons };
  }
  return { difference: null, ticks, reasons };
}
