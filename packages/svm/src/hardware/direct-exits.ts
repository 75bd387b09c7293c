/**
 * The short way to a guest's frequent #VMEXITs: verdicts by intercept number, and exits that are recorded from plain numbers.
 * Manual: APM vol. 2 sections 15.9-15.11 and table 15-7; same answers as intercepts.ts, which has the rules of all instructions.
 */
import {
  Attrib,
  CR0,
  type DirectExits,
  INTERCEPT_ID,
  INTERCEPTS,
  type Intercept,
  type ProcessorApi,
  Seg,
  S as stateLayout,
  Verdict,
} from '@tskvm/emulator';
import { SvmExit } from './exit-codes.ts';
import { cr0Illegal } from './rules.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const S = stateLayout;

/** What it needs of the guest. */
export interface DirectGuest {
  readonly features: { readonly decodeAssists: boolean; readonly nextRip: boolean };
  has(bit: number): boolean;
  /** Records an exit of the instruction at RIP; `nextLow` and `nextHigh` are halves of the next RIP. */
  recordWords(code: number, nextLow: number, nextHigh: number, low1: number, high1: number): void;
  /** EXITINFO2. */
  recordInfo2(low: number, high: number): void;
  portIntercepted(port: number, size: number): boolean;
  msrIntercepted(index: number, write: boolean): boolean;
}

/** Intercepts of which the exit describes operands or that follow a bitmap: bits of which any makes it a question. */
const ASKED: readonly (readonly [Intercept, first: number, count: number])[] = [
  ['crRead', SvmExit.READ_CR0, 16],
  ['crWrite', SvmExit.WRITE_CR0, 16],
  ['crWrite', SvmExit.CR0_SEL_WRITE, 1],
  ['lmsw', SvmExit.WRITE_CR0, 1],
  ['lmsw', SvmExit.CR0_SEL_WRITE, 1],
  ['drRead', SvmExit.READ_DR0, 16],
  ['drWrite', SvmExit.WRITE_DR0, 16],
  ['intn', SvmExit.SWINT, 1],
  ['pause', SvmExit.PAUSE, 1],
  ['invlpg', SvmExit.INVLPG, 1],
  ['invpcid', SvmExit.INVPCID, 1],
  ['rdmsr', SvmExit.MSR, 1],
  ['wrmsr', SvmExit.MSR, 1],
  ['in', SvmExit.IOIO, 1],
  ['ins', SvmExit.IOIO, 1],
  ['out', SvmExit.IOIO, 1],
  ['outs', SvmExit.IOIO, 1],
];
/** Exits that carry no information but where they are though their rule is a function. */
const PLAIN: readonly (readonly [Intercept, number])[] = [
  ['clts', SvmExit.WRITE_CR0],
  ['smsw', SvmExit.READ_CR0],
  ['hlt', SvmExit.HLT],
];
/** VMGEXIT is VMMCALL outside SEV-ES (APM 15.35.6). */
const VMGEXIT = INTERCEPT_ID.vmgexit;

const CR0_TS_MP = Number(CR0.TS | CR0.MP);
/** CR0 bits whose combinations MOV CR0 refuses before any intercept. */
const CR0_COMBINED = Number(CR0.PG | CR0.PE | CR0.NW | CR0.CD) | 0;

export class SvmDirectExits implements DirectExits {
  readonly verdicts = new Uint8Array(INTERCEPTS.length);
  readonly #guest: DirectGuest;
  readonly #processor: ProcessorApi;
  readonly #words: Int32Array;
  /** Exit code of each intercept that can leave plainly, -1: none. */
  readonly #codes = new Int32Array(INTERCEPTS.length).fill(-1);

  /** @param rules exit code by intercept, or a function that knows */
  constructor(guest: DirectGuest, processor: ProcessorApi, rules: { readonly [I in Intercept]?: unknown }) {
    this.#guest = guest;
    this.#processor = processor;
    this.#words = new Int32Array(processor.state.view.buffer, processor.state.base, S.size / 4);
    for (const [name, rule] of Object.entries(rules)) {
      if (typeof rule === 'number') this.#codes[INTERCEPT_ID[name as Intercept]] = rule;
    }
    for (const [name, code] of PLAIN) this.#codes[INTERCEPT_ID[name]] = code;
  }

  /** Follows the intercept bits. */
  update(): void {
    const guest = this.#guest;
    const { verdicts } = this;
    for (let id = 0; id < verdicts.length; id += 1) {
      const code = this.#codes[id];
      verdicts[id] = code >= 0 && guest.has(code) ? Verdict.leave : Verdict.pass;
    }
    verdicts[VMGEXIT] = Verdict.ask;
    for (const [name, first, count] of ASKED) {
      for (let bit = first; bit < first + count; bit += 1) {
        if (guest.has(bit)) verdicts[INTERCEPT_ID[name]] = Verdict.ask;
      }
    }
  }

  leave(id: number, length: number): void {
    this.#record(this.#codes[id], length, 0, 0);
  }

  #record(code: number, length: number, low1: number, high1: number): void {
    const words = this.#words;
    const next = (words[S.rip >> 2] + length) | 0;
    const carry = next >>> 0 < length ? 1 : 0;
    this.#guest.recordWords(code, next, this.#in64Bit() ? words[(S.rip >> 2) + 1] + carry : 0, low1, high1);
  }
  #in64Bit(): boolean {
    const words = this.#words;
    return (words[S.efer >> 2] & 0x400) !== 0 && ((words[(S.segments >> 2) + Seg.CS * 4] >> 16) & Attrib.L) !== 0;
  }

  /** The selective intercept ignores TS. */
  cr0Owned(): number {
    return this.#guest.has(SvmExit.WRITE_CR0) ? -1 : 0;
  }

  movCr(cr: number, write: boolean, gpr: number, length: number): boolean {
    const guest = this.#guest;
    if (write && cr === 0) return this.#writeCr0(gpr, length);
    const code = (write ? SvmExit.WRITE_CR0 : SvmExit.READ_CR0) + cr;
    if (!guest.has(code)) return false;
    this.#recordMov(code, gpr, length);
    return true;
  }
  #recordMov(code: number, gpr: number, length: number): void {
    if (this.#guest.features.decodeAssists) this.#record(code, length, gpr, -0x8000_0000);
    else this.#record(code, length, 0, 0);
  }

  /** The check of the value comes first; the selective intercept ignores TS and MP (APM table 15-7, 15.9). */
  #writeCr0(gpr: number, length: number): boolean {
    const guest = this.#guest;
    const words = this.#words;
    const long = this.#in64Bit();
    const low = words[(S.gpr >> 2) + gpr * 2];
    const high = long ? words[(S.gpr >> 2) + gpr * 2 + 1] : 0;
    const changed = low ^ words[S.cr0 >> 2];
    if (high !== 0) return false;
    if ((changed & CR0_COMBINED) !== 0 && cr0Illegal(this.#processor, low, 0)) return false;
    const selective = (changed & ~CR0_TS_MP) !== 0 && guest.has(SvmExit.CR0_SEL_WRITE);
    if (!guest.has(SvmExit.WRITE_CR0) && !selective) return false;
    this.#recordMov(guest.has(SvmExit.WRITE_CR0) ? SvmExit.WRITE_CR0 : SvmExit.CR0_SEL_WRITE, gpr, length);
    return true;
  }

  msr(index: number, write: boolean, length: number): boolean {
    if (!this.#guest.msrIntercepted(index, write)) return false;
    this.#record(SvmExit.MSR, length, write ? 1 : 0, 0);
    return true;
  }

  /** Address size and segment mean something for the string forms; the size in bits 9:7 is reported for all (APM figure 15-2). */
  port(port: number, size: number, input: boolean, _immediate: boolean, length: number, addrSize: number): boolean {
    if (!this.#guest.portIntercepted(port, size)) return false;
    this.#record(SvmExit.IOIO, length, (port << 16) | (addrSize << 6) | (size << 4) | (input ? 1 : 0), 0);
    const words = this.#words;
    const next = (words[S.rip >> 2] + length) | 0;
    const high = this.#in64Bit() ? words[(S.rip >> 2) + 1] + (next >>> 0 < length ? 1 : 0) : 0;
    this.#guest.recordInfo2(next, high);
    return true;
  }
}
