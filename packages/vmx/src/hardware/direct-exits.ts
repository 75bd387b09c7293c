/**
 * The short way to a guest's frequent VM exits: verdicts by intercept number, and exits that are recorded from plain numbers.
 * Manual: SDM vol. 3 25.1.2, 25.1.3 and table 27-3; same answers as controls.ts, which has the rules of all instructions.
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
import { Primary, Reason } from './bits.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const S = stateLayout;

/** When an instruction leaves (controls.ts). */
export interface DirectRule {
  reason: number;
  word: 'always' | 'primary' | 'secondary';
  bit: number;
  enabledBy?: number;
  detail?: unknown;
}

/** What it needs of the guest. */
export interface DirectGuest {
  readonly primary: number;
  readonly secondary: number;
  /** Mask low, mask high, shadow low, shadow high. */
  readonly cr0Halves: Int32Array;
  readonly cr4Halves: Int32Array;
  record(reason: number, length: number, qualification?: number): true;
  crWriteExits(cr: number, value: bigint): boolean;
  cr0Holds(low: number): boolean;
  msrExits(index: number, write: boolean): boolean;
  portExits(port: number, size: number): boolean;
}

/** Intercepts that are questions as soon as one of these bits is set. */
const ASKED: readonly (readonly [Intercept, number])[] = [
  ['crRead', Primary.cr3Store | Primary.cr8Store],
  ['drRead', Primary.movDr],
  ['drWrite', Primary.movDr],
  ['in', Primary.ioBitmaps | Primary.unconditionalIo],
  ['ins', Primary.ioBitmaps | Primary.unconditionalIo],
  ['out', Primary.ioBitmaps | Primary.unconditionalIo],
  ['outs', Primary.ioBitmaps | Primary.unconditionalIo],
];
const ALWAYS_ASKED: readonly Intercept[] = ['crWrite', 'lmsw', 'rdmsr', 'wrmsr'];
/** Windows open and close often, and no instruction asks for them. */
const WINDOWS = Primary.interruptWindow | Primary.nmiWindow | Primary.monitorTrap;

const TS = Number(CR0.TS);
const WP = Number(CR0.WP);

export class VmxDirectExits implements DirectExits {
  readonly verdicts = new Uint8Array(INTERCEPTS.length);
  readonly #guest: DirectGuest;
  readonly #words: Int32Array;
  readonly #rules: (DirectRule | undefined)[] = new Array<DirectRule | undefined>(INTERCEPTS.length).fill(undefined);
  #primary = 0;
  #secondary = 0;

  /** @param rules the rule of each intercept, or a function that knows */
  constructor(guest: DirectGuest, processor: ProcessorApi, rules: { readonly [I in Intercept]?: unknown }) {
    this.#guest = guest;
    this.#words = new Int32Array(processor.state.view.buffer, processor.state.base, S.size / 4);
    for (const [name, rule] of Object.entries(rules)) {
      if (typeof rule === 'object' && rule !== null) this.#rules[INTERCEPT_ID[name as Intercept]] = rule as DirectRule;
    }
    this.#decide();
  }

  /** Follows the controls. */
  update(): void {
    const { primary, secondary, cr0Halves } = this.#guest;
    // CLTS follows the mask: a TS that the host owns stays (SDM 25.3).
    this.verdicts[INTERCEPT_ID.clts] = cr0Halves[0] & TS ? Verdict.ask : Verdict.pass;
    if (((primary ^ this.#primary) & ~WINDOWS) === 0 && secondary === this.#secondary) return;
    this.#primary = primary;
    this.#secondary = secondary;
    this.#decide();
  }

  #decide(): void {
    const { verdicts } = this;
    for (let id = 0; id < verdicts.length; id++) {
      const rule = this.#rules[id];
      if (id !== INTERCEPT_ID.clts) verdicts[id] = rule === undefined ? Verdict.pass : this.#verdictOf(rule);
    }
    for (const name of ALWAYS_ASKED) verdicts[INTERCEPT_ID[name]] = Verdict.ask;
    for (const [name, bits] of ASKED) if (this.#primary & bits) verdicts[INTERCEPT_ID[name]] = Verdict.ask;
  }
  #verdictOf({ word, bit, enabledBy, detail }: DirectRule): number {
    // Without its control the instruction is #UD, which is the long way's.
    if (enabledBy !== undefined && !(this.#secondary & enabledBy)) return Verdict.ask;
    if (word === 'primary' && !(this.#primary & bit)) return Verdict.pass;
    if (word === 'secondary' && !(this.#secondary & bit)) return Verdict.pass;
    return detail === undefined ? Verdict.leave : Verdict.ask;
  }

  leave(id: number, length: number): void {
    this.#guest.record(this.#rules[id]!.reason, length);
  }

  cr0Owned(): number {
    const [mask] = this.#guest.cr0Halves;
    return (mask & TS) !== 0 ? -1 : mask;
  }

  /** No rule of VMX operation fixes it. */
  yieldsWp(): boolean {
    return (this.#guest.cr0Halves[0] & WP) === 0;
  }

  mergeCr0(low: number): number | undefined {
    const [mask] = this.#guest.cr0Halves;
    const real = (low & ~mask) | (this.#words[S.cr0 >> 2] & mask);
    return this.#guest.cr0Holds(real) ? real : undefined;
  }

  movCr(cr: number, write: boolean, gpr: number, length: number): boolean {
    const guest = this.#guest;
    if (write ? !this.#writeExits(cr, gpr) : !this.#readExits(cr)) return false;
    return guest.record(Reason.CR_ACCESS, length, cr | (write ? 0 : 1 << 4) | (gpr << 8));
  }
  #readExits(cr: number): boolean {
    const bit = cr === 3 ? Primary.cr3Store : cr === 8 ? Primary.cr8Store : 0;
    return (this.#guest.primary & bit) !== 0;
  }
  #writeExits(cr: number, gpr: number): boolean {
    const words = this.#words;
    const at = (S.gpr >> 2) + gpr * 2;
    const high = this.#in64Bit() ? words[at + 1] : 0;
    if (cr === 0) return differs(this.#guest.cr0Halves, words[at], high);
    if (cr === 4) return differs(this.#guest.cr4Halves, words[at], high);
    const bit = cr === 3 ? Primary.cr3Load : Primary.cr8Load;
    if ((this.#guest.primary & bit) === 0) return false;
    return this.#guest.crWriteExits(cr, (BigInt(high >>> 0) << 32n) | BigInt(words[at] >>> 0));
  }
  #in64Bit(): boolean {
    const words = this.#words;
    return (words[S.efer >> 2] & 0x400) !== 0 && ((words[(S.segments >> 2) + Seg.CS * 4] >> 16) & Attrib.L) !== 0;
  }

  msr(index: number, write: boolean, length: number): boolean {
    const guest = this.#guest;
    return guest.msrExits(index, write) && guest.record(write ? Reason.MSR_WRITE : Reason.MSR_READ, length);
  }

  port(port: number, size: number, input: boolean, immediate: boolean, length: number): boolean {
    const guest = this.#guest;
    if (!guest.portExits(port, size)) return false;
    const flags = (input ? 8 : 0) | (immediate ? 64 : 0);
    return guest.record(Reason.IO_INSTRUCTION, length, ((size - 1) | flags | (port << 16)) >>> 0);
  }
}

/** Does a bit that the host owns change against the shadow? */
const differs = (owned: Int32Array, low: number, high: number): boolean =>
  ((low ^ owned[2]) & owned[0]) !== 0 || ((high ^ owned[3]) & owned[1]) !== 0;
