/**
 * Random tables under two page walks: that of generated code (engines/interpret/page-walk.ts) and that of the walker. Where generated code
 * fills a TLB entry, the walker must make the same one of the same tables, and change nothing; where it leaves the access to JavaScript it
 * must have changed nothing itself.
 */
import { mainModule } from '../engines/interpret/main-module.ts';
import { P } from '../engines/interpret/records.ts';
import type { GuestMode } from '../guest-mode.ts';
import { Layout, TlbEntry, WalkWords } from '../memory/layout.ts';
import { AccessKind } from '../memory/paging.ts';
import { PAGE, PRIVATE } from '../memory/physical.ts';
import { CR0, CR4, EFER, Flag, S } from '../state-layout.ts';
import { TestMachine } from './machine.ts';

/** Frames of RAM; the guest's are shuffled among those behind the nested tables. */
const FRAMES = 32;
const GUEST_FRAMES = 16;
const NESTED_TABLES = [1, 2, 3, 4] as const;
const GUEST_TABLES = [1, 2, 3, 4, 5] as const;
const TAGS = [TlbEntry.tagRead, TlbEntry.tagWrite, TlbEntry.tagExec] as const;
const KINDS = [AccessKind.read, AccessKind.write, AccessKind.fetch] as const;

/** A sequence of numbers in [0, 2^32) (xorshift). */
class Dice {
  #state: number;
  constructor(seed: number) {
    this.#state = seed | 1;
  }
  next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }
  below(count: number): number {
    return this.next() % count;
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
  /** `bits`, nearly always or rarely. */
  bits(bits: bigint, percent: number): bigint {
    return this.chance(percent) ? bits : 0n;
  }
}

/** Nested tables as a vendor has them. */
export interface NestedFormat {
  /** Bits of entries that point to tables, and of leaves, each with how often it is set. */
  table: readonly (readonly [bits: bigint, percent: number])[];
  leaf: readonly (readonly [bits: bigint, percent: number])[];
  /** Bits that are turned over now and then, in trials whose tables need not be plain. */
  odd: readonly bigint[];
  /** `root`: host physical address of the top table. */
  owner: (machine: TestMachine, root: number) => GuestMode;
}

export interface WalkCounts {
  /** Entries that generated code filled. */
  filled: number;
  /** Accesses that it left to JavaScript. */
  left: number;
}

type Fill = (linear: bigint, tag: number) => number;
type Mode = 'off' | '32-bit' | 'PAE' | '4-level' | '5-level';
const MODES: readonly Mode[] = ['off', '32-bit', '32-bit', 'PAE', 'PAE', '4-level', '4-level', '4-level', '5-level'];
const SHIFTS: Readonly<Record<Mode, readonly number[]>> = {
  off: [],
  '32-bit': [22, 12],
  PAE: [30, 21, 12],
  '4-level': [39, 30, 21, 12],
  '5-level': [48, 39, 30, 21, 12],
};
const GUEST_ODD = [1n << 7n, 1n << 8n, 1n << 13n, 1n << 14n, 1n << 21n, 1n << 40n, 1n << 47n, 1n << 51n, 1n << 58n];

export class WalkTrials {
  readonly #machine: TestMachine;
  readonly #dice: Dice;
  readonly #format: NestedFormat | null;
  readonly #owner: GuestMode | null;
  readonly #fill: Fill;
  readonly #ram: Int32Array;
  #plain = true;
  #mode: Mode = 'off';
  #linear = 0n;

  constructor(vendor: 'amd' | 'intel', seed: number, format: NestedFormat | null = null) {
    this.#machine = new TestMachine({ size: FRAMES * PAGE, vendor });
    this.#dice = new Dice(seed);
    this.#format = format;
    this.#owner = format?.owner(this.#machine, NESTED_TABLES[0] * PAGE) ?? null;
    this.#fill = fillOf(this.#machine);
    this.#ram = new Int32Array(this.#machine.memory.memory.buffer, PRIVATE, (FRAMES * PAGE) / 4);
  }

  /** Throws at the first difference, with what is needed to look at it. */
  run(count: number): WalkCounts {
    const counts: WalkCounts = { filled: 0, left: 0 };
    for (let n = 0; n < count; n++) counts[this.#trial() ? 'filled' : 'left']++;
    return counts;
  }

  #trial(): boolean {
    this.#plain = this.#dice.chance(50);
    this.#registers();
    if (this.#format !== null) this.#nestedTables(this.#format);
    this.#guestTables();
    const { access } = this.#machine.cpu;
    access.codePages.fill(0);
    if (this.#dice.chance(20))
      for (let frame = 0; frame < FRAMES; frame++) access.codePages[frame] = this.#dice.below(2);
    this.#forget();
    return this.#compare(this.#dice.below(3));
  }

  /** The TLB is empty, and no page of tables is known. */
  #forget(): void {
    const { cpu } = this.#machine;
    cpu.access.tlb.flushAll();
    cpu.guest = null;
    cpu.access.context();
    cpu.guest = this.#owner;
    const context = cpu.access.context();
    const { view } = this.#machine.memory;
    view.setBigUint64(P.context, BigInt(context), true);
    view.setUint32(P.contextHash, ((context * 37) % Layout.tlbEntries) * TlbEntry.size, true);
  }

  #registers(): void {
    const { state } = this.#machine;
    const dice = this.#dice;
    this.#mode = MODES[dice.below(MODES.length)];
    const long = this.#mode === '4-level' || this.#mode === '5-level';
    const user = dice.chance(50);
    state.cr0 = CR0.PE | CR0.ET | dice.bits(CR0.WP, 50) | (this.#mode === 'off' ? 0n : CR0.PG);
    state.cr4 =
      (this.#mode === '32-bit' || this.#mode === 'off' ? 0n : CR4.PAE) |
      (this.#mode === '5-level' ? CR4.LA57 : 0n) |
      dice.bits(CR4.PSE, 80) |
      dice.bits(CR4.PGE, 50) |
      dice.bits(CR4.SMEP, 40) |
      dice.bits(CR4.SMAP, 40) |
      dice.bits(CR4.PKE, this.#plain ? 0 : 10);
    state.pkru = 0xc;
    state.efer = (long ? EFER.LME | EFER.LMA : 0n) | dice.bits(EFER.NXE, 80);
    state.rflags = 2n | dice.bits(BigInt(Flag.AC), 30);
    state.cpl = user ? 3 : 0;
    state.cr3 = BigInt(GUEST_TABLES[0] * PAGE) | dice.bits(0x18n, 10);
    this.#linear = this.#address();
    this.#machine.cpu.stateReplaced('test');
  }

  #address(): bigint {
    const dice = this.#dice;
    const low = BigInt(dice.next());
    if (this.#mode === 'off') return BigInt(dice.below(GUEST_FRAMES * PAGE));
    if (this.#mode !== '4-level' && this.#mode !== '5-level') return low;
    const bits = this.#mode === '4-level' || dice.chance(50) ? 48 : 57;
    const linear = BigInt.asIntN(bits, (BigInt(dice.next()) << 32n) | low);
    return BigInt.asUintN(64, this.#plain || dice.chance(90) ? linear : linear ^ (1n << 60n));
  }

  /** Host physical address of a guest physical one, as the nested tables mean it. */
  #host(gpa: number): number {
    if (this.#format === null) return gpa;
    return hostFrame(Math.floor(gpa / PAGE)) * PAGE + (gpa % PAGE);
  }

  #nestedTables(format: NestedFormat): void {
    const dice = this.#dice;
    const { memory } = this.#machine;
    const mixed = (rows: NestedFormat['table']): bigint => {
      let bits = 0n;
      for (const [value, percent] of rows) bits |= dice.bits(value, percent);
      return bits ^ (this.#plain ? 0n : dice.bits(format.odd[dice.below(format.odd.length)], 8));
    };
    NESTED_TABLES.slice(0, 3).forEach((table, n) => {
      const large = n === 2 && dice.chance(5);
      const entry = large ? mixed(format.leaf) | 0x80n : mixed(format.table) | BigInt(NESTED_TABLES[n + 1] * PAGE);
      memory.write64(table * PAGE, entry);
    });
    for (let frame = 0; frame < GUEST_FRAMES; frame++) {
      memory.write64(NESTED_TABLES[3] * PAGE + frame * 8, BigInt(hostFrame(frame) * PAGE) | mixed(format.leaf));
    }
  }

  #guestTables(): void {
    const shifts = SHIFTS[this.#mode];
    shifts.forEach((shift, n) => {
      const wide = this.#mode !== '32-bit';
      const bare = this.#mode === 'PAE' && n === 0;
      const index = Number((this.#linear >> BigInt(shift)) & BigInt(bare ? 3 : wide ? 511 : 1023));
      const entry = this.#guestEntry(n === shifts.length - 1, bare, shift, n);
      const gpa = GUEST_TABLES[n] * PAGE + index * (wide ? 8 : 4);
      const { memory, state } = this.#machine;
      if (wide) memory.write64(this.#host(gpa), entry);
      else memory.write32(this.#host(gpa), Number(entry & 0xffffffffn));
      if (bare) state.set64(S.pdpte + index * 8, entry);
    });
  }

  #guestEntry(last: boolean, bare: boolean, shift: number, n: number): bigint {
    const dice = this.#dice;
    const odd = this.#plain ? 0n : dice.bits(GUEST_ODD[dice.below(GUEST_ODD.length)], 10);
    const large = !last && !bare && (shift === 21 || shift === 22 || shift === 30) && dice.chance(10);
    const frame = large ? 0 : last ? dice.below(GUEST_FRAMES) : GUEST_TABLES[n + 1];
    const address = BigInt((this.#plain || dice.chance(97) ? frame : dice.below(4 * FRAMES)) * PAGE);
    if (bare) return odd | address | dice.bits(1n, 95);
    const rights =
      dice.bits(1n, 95) | dice.bits(2n, 80) | dice.bits(4n, 80) | dice.bits(0x20n, 92) | dice.bits(0x18n, 10);
    const leaf = last || large ? dice.bits(0x40n, 70) | dice.bits(0x100n, 20) : 0n;
    const noExecute = this.#mode === '32-bit' ? 0n : dice.bits(1n << 63n, this.#machine.state.efer & EFER.NXE ? 10 : 2);
    return (odd ^ rights) | leaf | noExecute | address | (large ? 0x80n | dice.bits(0x1000n, 10) : 0n);
  }

  #compare(which: number): boolean {
    const { cpu } = this.#machine;
    const { tlb } = cpu.access;
    const before = this.#ram.slice();
    const fills = tlb.fills;
    const answer = this.#fill(this.#linear, TAGS[which]);
    const filled = tlb.fills !== fills;
    const entry = this.#entry();
    this.#same(this.#ram, before, 'generated code changed memory');
    if (!filled) {
      this.#check(answer === 0 && entry.every((byte) => byte === 0), 'generated code refused and changed the TLB');
      this.#checkRefusal(which, before);
      return false;
    }
    const hpa = this.#walk(which, this.#dice.chance(50));
    this.#check(hpa >= 0, 'generated code filled what the walker refuses');
    this.#same(this.#ram, before, 'the walker had something to mark');
    this.#same(this.#entry(), entry, 'entries differ');
    const code = which === 1 && cpu.access.codePages[Math.floor(hpa / PAGE)] !== 0;
    this.#check(answer === (code ? 0 : 1), `generated code answers ${answer}`);
    return true;
  }

  /** What it leaves to JavaScript must have a reason, where nothing about the tables is odd. */
  #checkRefusal(which: number, before: Int32Array): void {
    if (!this.#plain) return;
    const { fills } = this.#machine.cpu.access.tlb;
    if (this.#walk(which, true) < 0 || this.#machine.cpu.access.tlb.fills === fills) return;
    const marked = this.#ram.some((word, at) => word !== before[at]);
    this.#check(marked, 'generated code refused the plain case');
  }

  /** Host physical address by the walker, or -1. The entry that generated code has made is gone, `all`: and what it knows of table pages. */
  #walk(which: number, all: boolean): number {
    const { cpu } = this.#machine;
    if (all) this.#forget();
    else cpu.access.tlb.flushPage(this.#owner?.asid ?? 0, this.#linear);
    try {
      return cpu.access.translate(Number(this.#linear & 0xffffffffn) | 0, Number(this.#linear >> 32n), KINDS[which]);
    } catch {
      return -1;
    }
  }
  /** The page's entries for data and for fetches. */
  #entry(): Uint8Array {
    const context = this.#machine.cpu.access.context();
    const index = (Number((this.#linear >> 12n) & 0xfffn) ^ (context * 37)) & (Layout.tlbEntries - 1);
    const { u8 } = this.#machine.memory;
    const at = Layout.tlb + index * TlbEntry.size;
    const both = new Uint8Array(2 * TlbEntry.size);
    [at, at + TlbEntry.fetches].forEach((from, n) => {
      both.set(u8.subarray(from, from + TlbEntry.size), n * TlbEntry.size);
    });
    return both;
  }

  #same(a: Uint8Array | Int32Array, b: Uint8Array | Int32Array, what: string): void {
    for (let n = 0; n < b.length; n++) if (a[n] !== b[n]) this.#check(false, `${what} at 0x${n.toString(16)}`);
  }
  #check(right: boolean, what: string): void {
    if (right) return;
    const { cr0, cr4, efer, cpl } = this.#machine.state;
    const registers = [cr0, cr4, efer].map((value) => value.toString(16)).join(' ');
    const kind = this.#machine.memory.view.getUint32(WalkWords.kind, true);
    throw new Error(
      `${what}: ${this.#mode} ${this.#linear.toString(16)} cr0 cr4 efer ${registers} cpl ${cpl} kind ${kind}`,
    );
  }
}

/** Frames behind one another, none of those that hold nested tables. */
const hostFrame = (guest: number): number => 8 + ((guest * 5 + 3) % GUEST_FRAMES);

function fillOf({ memory: { memory } }: TestMachine): Fill {
  const refuse = (): number => {
    throw new Error('the page walk has nothing to ask of JavaScript');
  };
  const names = ['slowRead', 'slowReadForWrite', 'slowProbe', 'slowWrite', 'slowLinear', 'hostException'];
  const host = Object.fromEntries(names.map((name) => [name, refuse]));
  const module = new WebAssembly.Module(mainModule([], true));
  return new WebAssembly.Instance(module, { env: { memory }, host }).exports.fill as Fill;
}
