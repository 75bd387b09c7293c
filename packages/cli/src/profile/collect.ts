/**
 * Collects a profile of a running machine: samples by place, exits by reason, and at the end the numbers of TLB and translator.
 * Everything but {@link ProfileData.host} is the same in each run.
 */
import { type ModeName, type RegionFacts, type Sample, type Sampling, startSampling } from '@tskvm/emulator';
import type { Machine } from '../machine/machine.ts';
import { disassemble } from '../report/disassembly.ts';
import type { Symbols } from './symbols.ts';

/** Who ran an instruction. */
export type By = 'translated' | 'interpreted' | 'stepped';
export interface Share {
  name: string;
  ticks: number;
  /** Of all ticks, 0 to 1. */
  share: number;
}
export interface HotInstruction {
  address: string;
  /** Of its place's ticks. */
  share: number;
  text: string;
}
/** Code without a gap: linear addresses, first, and behind the last. */
export interface Piece {
  start: string;
  end: string;
}
/** A translated region, or other code: a symbol's, or 64 bytes. */
export interface HotPlace extends Share {
  by: By;
  mode: string;
  /** Linear addresses: first, and behind the last. */
  start: string;
  end: string;
  symbol?: string;
  /** Of a region: how often it was entered, its instructions, bytes of wasm, how often it was translated, and where its code lies. */
  region?: { entered: number; instructions: number; bytes: number; translations: number; pieces: Piece[] };
  /** Why it is in no region, by most of its samples. */
  why?: string;
  instructions: HotInstruction[];
}
export interface ProfileData {
  backend: string;
  engine: string;
  /** Instructions retired and REP iterations, without idle time; then the idle time. */
  ticks: number;
  idleTicks: number;
  samples: number;
  engines: Share[];
  modes: Share[];
  regions: HotPlace[];
  others: HotPlace[];
  exits: { name: string; count: number }[];
  /** Exits that went on to user space, by KVM's exit reason. */
  userspace: { name: string; count: number }[];
  /** What engines handed to the processor, by mnemonic. */
  handedBack: { name: string; count: number }[];
  tlb: { misses: number; fills: number };
  translations: {
    regions: number;
    instructions: number;
    bytes: number;
    live: number;
    liveBytes: number;
    invalidated: number;
    evicted: number;
  } | null;
  /** Milliseconds of the host's time: not the same in each run. */
  host: { total: number; generatedCode: number; translating: number; rest: number };
}

/** A stack of frames, as a flame graph shows it; ids of {@link Profile.stacks}. */
export interface Stretch {
  stack: number;
  ticks: number;
}

interface Place {
  by: By;
  mode: ModeName;
  label: string;
  start: bigint;
  end: bigint;
  ticks: number;
  symbol?: string;
  regions: Set<RegionFacts>;
  why: Map<string, number>;
  at: Map<bigint, { ticks: number; bytes: Uint8Array }>;
}

/** Bytes of code that is in no region and has no symbol, and counts as one place. */
const BLOCK = 64n;
const hex = (value: bigint): string => `0x${value.toString(16)}`;
const bump = <K>(map: Map<K, number>, key: K, by = 1): void => void map.set(key, (map.get(key) ?? 0) + by);
const descending = (map: ReadonlyMap<string, number>): { name: string; count: number }[] =>
  [...map].map(([name, count]) => ({ name, count })).sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1));

/** `long, CPL 0`, `real`. */
function modeLabel({ mode, cpl, smm }: Sample): string {
  const ring = mode === 'real' || mode === 'unreal' || mode === 'virtual8086' ? '' : `, CPL ${cpl}`;
  return `${mode}${ring}${smm ? ', SMM' : ''}`;
}
const byOf = ({ place }: Sample): By =>
  place.region !== null ? 'translated' : place.why === 'handed-back' ? 'stepped' : 'interpreted';

export class Profile {
  readonly #machine: Machine;
  readonly #symbols: Symbols | undefined;
  readonly #sampling: Sampling;
  readonly #places = new Map<string, Place>();
  readonly #modes = new Map<string, number>();
  readonly #by = new Map<By, number>();
  readonly #exits = new Map<string, number>();
  readonly #userspace = new Map<string, number>();
  readonly #off: (() => void)[];
  readonly #began = performance.now();
  readonly #stackIds = new Map<string, number>();
  /** Frames from the outermost in, by id. */
  readonly stacks: string[][] = [];
  /** By vCPU, in the order of time; neighbours with the same stack are one. */
  readonly stretches = new Map<number, Stretch[]>();

  /** Listens from now on. */
  constructor(machine: Machine, symbols?: Symbols) {
    const { kvm } = machine;
    this.#machine = machine;
    this.#symbols = symbols;
    this.#off = [
      kvm.on('kvm_exit', ({ name }) => bump(this.#exits, name)),
      kvm.on('kvm_userspace_exit', ({ reason }) => bump(this.#userspace, reason)),
    ];
    this.#sampling = startSampling(kvm.processor, {
      onSample: (sample) => this.#take(sample),
      idle: () => machine.idleTicks,
      clock: () => performance.now(),
    });
  }

  #take(sample: Sample): void {
    const by = byOf(sample);
    const label = modeLabel(sample);
    bump(this.#modes, label, sample.ticks);
    bump(this.#by, by, sample.ticks);
    const place = this.#placeOf(sample, by, label);
    place.ticks += sample.ticks;
    if (sample.place.region !== null) place.regions.add(sample.place.region);
    else bump(place.why, sample.place.why ?? '', sample.ticks);
    const known = place.at.get(sample.linear);
    if (known !== undefined) known.ticks += sample.ticks;
    else place.at.set(sample.linear, { ticks: sample.ticks, bytes: this.#sampling.codeAt(sample.linear, 15) });
    this.#stretch(sample, [label, by, place.symbol ?? `${hex(place.start)}-${hex(place.end)}`, hex(sample.linear)]);
  }

  #placeOf({ linear, mode, place: { region, at } }: Sample, by: By, label: string): Place {
    const symbol = this.#symbols?.at(linear);
    const block = { start: linear & ~(BLOCK - 1n), end: (linear & ~(BLOCK - 1n)) + BLOCK };
    const { start, end } = region === null ? (symbol ?? block) : spanOf(region, linear - BigInt(at));
    const key = `${label} ${by} ${start}`;
    let place = this.#places.get(key);
    if (place === undefined) {
      const empty = { ticks: 0, regions: new Set<never>(), why: new Map(), at: new Map() };
      place = { by, mode, label, start, end, symbol: symbol?.name, ...empty };
      this.#places.set(key, place);
    }
    return place;
  }

  #stretch({ ticks }: Sample, frames: string[]): void {
    const text = frames.join(';');
    let stack = this.#stackIds.get(text);
    if (stack === undefined) {
      this.#stackIds.set(text, (stack = this.stacks.length));
      this.stacks.push(frames);
    }
    const vcpu = this.#machine.kvm.runningVcpu?.vcpuId ?? 0;
    let list = this.stretches.get(vcpu);
    if (list === undefined) this.stretches.set(vcpu, (list = []));
    const last = list.at(-1);
    if (last?.stack === stack) last.ticks += ticks;
    else list.push({ stack, ticks });
  }

  /** Ends the profile. @param top so many places of each kind are kept */
  finish(backend: string, engine: string, top = 20): ProfileData {
    this.#sampling.stop();
    for (const off of this.#off) off();
    const { counts } = this.#sampling;
    const { ticks, translate } = counts;
    const total = performance.now() - this.#began;
    const translating = translate?.milliseconds ?? 0;
    const share = (n: number): number => (ticks === 0 ? 0 : n / ticks);
    const places = [...this.#places.values()].sort((a, b) => b.ticks - a.ticks || (a.start < b.start ? -1 : 1));
    const hot = (regions: boolean): HotPlace[] =>
      places
        .filter((place) => (place.by === 'translated') === regions)
        .slice(0, top)
        .map((p) => hotPlace(p, share));
    return {
      backend,
      engine,
      ticks,
      idleTicks: this.#machine.idleTicks,
      samples: counts.samples,
      engines: this.#engineShares(share),
      modes: descending(this.#modes).map(({ name, count }) => ({ name, ticks: count, share: share(count) })),
      regions: hot(true),
      others: hot(false),
      exits: descending(this.#exits),
      userspace: descending(this.#userspace),
      handedBack: descending(counts.handedBack).map(({ name, count }) => ({ name: name || '(not decoded)', count })),
      tlb: { misses: counts.tlbMisses, fills: counts.tlbFills },
      translations: translate && {
        regions: translate.regions,
        instructions: translate.instructions,
        bytes: translate.translated,
        live: translate.live,
        liveBytes: translate.bytes,
        invalidated: translate.invalidated,
        evicted: translate.evicted,
      },
      host: {
        total,
        generatedCode: counts.engineMilliseconds - translating,
        translating,
        rest: total - counts.engineMilliseconds,
      },
    };
  }

  /** What generated code retired is counted; samples tell the two that make it. */
  #engineShares(share: (ticks: number) => number): Share[] {
    const { ticks, generated } = this.#sampling.counts;
    const [translated, interpreted] = [this.#by.get('translated') ?? 0, this.#by.get('interpreted') ?? 0];
    const part = translated + interpreted === 0 ? 0 : translated / (translated + interpreted);
    const whole = { translated: Math.round(generated * part), interpreted: 0, stepped: ticks - generated };
    whole.interpreted = generated - whole.translated;
    return Object.entries(whole).map(([name, n]) => ({ name, ticks: n, share: share(n) }));
  }
}

/** Where a region's instructions lie. */
function spanOf(region: RegionFacts, base: bigint): { start: bigint; end: bigint } {
  let span = SPANS.get(region);
  if (span === undefined) {
    const { instructions } = region;
    SPANS.set(region, (span = [Math.min(...instructions.keys()), Math.max(...instructions.values())]));
  }
  return { start: base + BigInt(span[0]), end: base + BigInt(span[1]) };
}
const SPANS = new WeakMap<RegionFacts, readonly [number, number]>();

/** Its instructions, those that follow one another as one piece. @param start linear address of the lowest */
function piecesOf({ instructions }: RegionFacts, start: bigint): Piece[] {
  const spans: [number, number][] = [];
  for (const [from, to] of [...instructions].sort(([a], [b]) => a - b)) {
    const last = spans.at(-1);
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else spans.push([from, to]);
  }
  const at = (offset: number): string => hex(start + BigInt(offset - spans[0][0]));
  return spans.map(([from, to]) => ({ start: at(from), end: at(to) }));
}

function hotPlace(place: Place, share: (ticks: number) => number): HotPlace {
  const { by, mode, label, start, end, ticks, symbol, regions, why, at } = place;
  const facts = [...regions];
  const instructions = [...at]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([address, hit]) => ({
      address: hex(address),
      share: hit.ticks / ticks,
      text: hit.bytes.length === 0 ? '?' : disassemble(hit.bytes, address, mode),
    }));
  return {
    name: symbol ?? hex(start),
    ticks,
    share: share(ticks),
    by,
    mode: label,
    start: hex(start),
    end: hex(end),
    symbol,
    region:
      facts.length === 0
        ? undefined
        : {
            entered: facts.reduce((sum, each) => sum + (each.entered() ?? 0), 0),
            instructions: facts[facts.length - 1].instructions.size,
            bytes: facts[facts.length - 1].bytes,
            translations: facts.length,
            pieces: piecesOf(facts[facts.length - 1], start),
          },
    why: descending(why)[0]?.name,
    instructions,
  };
}
