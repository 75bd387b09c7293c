/** Runs a program of cases on both sides: tells of differences, puts tables back behind each case, goes on behind a difference at the next one. */
import { inspect } from 'node:util';
import { isHandler, LAYOUT, type Program } from './common.ts';
import { describe, type Pair, type Step, textOf } from './pair.ts';
import { is64Bit, type State } from './registers.ts';

/** Instructions of a case that a report shows, and differing dwords of memory. */
const HISTORY = 12;
const DWORDS = 8;
/** Words of the stack: an error code and what it stands on. */
const FRAME_WORDS = 6;
/** Steps to the next case after a difference. */
const MEETING = 400;
/** RF in pushed flags, which QEMU 7.2 leaves out, and what it does not set: accessed bits of code that far branches load, busy bits. */
const TOLERATED = [0x10000, 1, 0x100, 0x200];

type Reader = (at: number, length: number) => Promise<Uint8Array>;
const dword = (bytes: Uint8Array, at: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
const hex8 = (value: number): string => value.toString(16).padStart(8, '0');
/** QEMU 7.2 counts gates of 16 bytes in error codes: vector * 16 + 2. */
const isIdtError = (mine: number, other: number): boolean =>
  mine < 0x800 && (mine & 7) === 2 && other === (mine - 2) * 2 + 2;

/** Offsets of the dwords in which memories differ. */
function memoryDifferences(ours: Uint8Array, theirs: Uint8Array): number[] {
  const found: number[] = [];
  for (let i = 0; i < ours.length; i += 4) {
    const [mine, other] = [dword(ours, i), dword(theirs, i)];
    if (mine !== other && !TOLERATED.some((bit) => mine - other === bit) && !isIdtError(mine, other)) found.push(i);
  }
  return found;
}

export class CaseRun {
  found = 0;
  steps = 0;
  #case = -1;
  #history: Step[] = [];
  readonly #pair: Pair;
  readonly #program: Program;
  readonly #say: (line: string) => void;

  constructor(pair: Pair, program: Program, say: (line: string) => void) {
    this.#pair = pair;
    this.#program = program;
    this.#say = say;
  }

  /** Until our machine ends, or the two can't be brought together again. */
  async run(): Promise<void> {
    const { ram, once } = this.#program;
    await this.#pair.write(LAYOUT.idt, ram);
    for (const [at, bytes] of once) await this.#pair.write(at, bytes);
    while (await this.#step());
  }

  get #next(): bigint {
    return BigInt(dword(this.#pair.readOurs(LAYOUT.next, 4), 0));
  }
  async #step(): Promise<boolean> {
    const step = await this.#pair.step();
    this.steps++;
    this.#history.push(step);
    if (step.ended) {
      const { stop } = this.#pair;
      if (stop?.reason !== 'debug-exit') this.#report(`the machine ended: ${inspect(stop)}`);
      return false;
    }
    const differs = step.differ.length > 0;
    if (!differs && step.ours.get('rip') !== this.#next) return true;
    if (differs) {
      this.#report(describe(step));
      await this.#showStacks(step);
      if (!(await this.#pair.meetAt(this.#next, MEETING))) {
        this.#say('the two do not meet again');
        return false;
      }
    }
    await this.#endCase(differs);
    return true;
  }

  /** Compares memory, unless it was told already that the two went different ways, and puts it back. */
  async #endCase(told: boolean): Promise<void> {
    this.#case++;
    const { ram } = this.#program;
    const ours = this.#pair.readOurs(LAYOUT.idt, ram.length);
    const theirs = await this.#pair.readTheirs(LAYOUT.idt, ram.length);
    const differ = memoryDifferences(ours, theirs);
    if (differ.length > 0 && !told) {
      const places = differ.slice(0, DWORDS).map((i) => {
        const address = (i + LAYOUT.idt).toString(16);
        return `${address}: ${dword(ours, i).toString(16)}, QEMU ${dword(theirs, i).toString(16)}`;
      });
      this.#report(`memory ${places.join('; ')}`);
    }
    if (Buffer.compare(ours, ram) !== 0 || differ.length > 0) await this.#pair.write(LAYOUT.idt, ram);
    this.#history = [];
  }

  #report(text: string): void {
    this.found++;
    const own = this.#history.filter(({ before }) => !isHandler(before.get('rip') ?? 0n));
    const lines = own.map(textOf).slice(-HISTORY);
    this.#say(`case ${this.#case} ${text}\n    ${lines.join(' | ')}`);
    for (const name of lines.join(' ').match(/\b0?[0-9A-F]+h\b/g) ?? []) this.#showDescriptor(name);
  }
  /** The top of both stacks: of an exception, its frame. */
  async #showStacks({ ours, theirs }: Step): Promise<void> {
    const size = is64Bit(ours) ? 8 : 4;
    const words = async (state: State, read: Reader): Promise<string> => {
      const at = Number(state.get('rsp') ?? 0n);
      if (at > LAYOUT.end - FRAME_WORDS * size) return '?';
      const bytes = Buffer.from(await read(at, FRAME_WORDS * size));
      const all = Array.from({ length: FRAME_WORDS }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
      return all
        .map((word) =>
          Buffer.from(word)
            .reverse()
            .toString('hex')
            .replace(/^0+(?=.)/, ''),
        )
        .join(' ');
    };
    const mine = await words(ours, (at, length) => Promise.resolve(this.#pair.readOurs(at, length)));
    const other = await words(theirs, (at, length) => this.#pair.readTheirs(at, length));
    this.#say(`    stack ${mine}; QEMU ${other}`);
  }
  /** A number in an instruction that may be a selector. */
  #showDescriptor(name: string): void {
    const { ram } = this.#program;
    const selector = Number.parseInt(name, 16);
    const at = (selector & 4 ? LAYOUT.ldt : LAYOUT.gdt) + (selector & ~7) - LAYOUT.idt;
    if (selector < 0x60 || selector >= 0x280) return;
    this.#say(`      ${name}: ${hex8(dword(ram, at + 4))} ${hex8(dword(ram, at))}`);
  }
}
