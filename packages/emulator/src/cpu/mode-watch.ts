/**
 * Watches the processor's mode and reports each change: who did it, from what to what, which control registers moved.
 * Manual: APM vol. 2 section 1.3 (operating modes).
 */
import type { Instruction } from '../decode/instruction.ts';
import type { ModeChange, ProcessorMode } from '../processor-api.ts';
import { S } from '../state-layout.ts';
import { type ControlView, computeMode, modeKey, sameMode, viewControls } from './mode.ts';
import type { Processor } from './processor.ts';
import type { StateBlock } from './state.ts';

/** CR0, CR4 and EFER as they were, for the report of a change. Low halves: the upper ones hold no bit. */
class Controls {
  #cr0 = 0;
  #cr4 = 0;
  #efer = 0;

  read(state: StateBlock, view: ControlView): this {
    this.#cr0 = view.cr0;
    this.#cr4 = view.cr4;
    this.#efer = state.block.getInt32(S.efer, true);
    return this;
  }

  static pairs(before: Controls, after: Controls): Pick<ModeChange, 'cr0' | 'cr4' | 'efer'> {
    const pair = (from: number, to: number) => ({ before: BigInt(from >>> 0), after: BigInt(to >>> 0) });
    return {
      cr0: pair(before.#cr0, after.#cr0),
      cr4: pair(before.#cr4, after.#cr4),
      efer: pair(before.#efer, after.#efer),
    };
  }
}

export class ModeWatch {
  listener: ((change: ModeChange) => void) | null = null;
  readonly #cpu: Processor;
  #mode: ProcessorMode;
  #key = -1;
  #controls = new Controls();
  readonly #view: ControlView = { cr0: 0, cr4: 0 };

  constructor(cpu: Processor) {
    this.#cpu = cpu;
    this.#mode = this.mode();
  }

  /** CR0 and CR4 as whoever runs sees them. */
  #look(): ControlView {
    return viewControls(this.#cpu.state, this.#cpu.guest, this.#view);
  }
  mode(): ProcessorMode {
    const { state, guest, nested } = this.#cpu;
    return computeMode(state, guest !== null, nested, this.#look());
  }
  #keyNow(view: ControlView): number {
    const { state, guest, nested } = this.#cpu;
    return modeKey(state, guest !== null, nested, view);
  }

  /** What the next change is compared with. */
  remember(): void {
    this.#mode = this.mode();
    this.#key = this.#keyNow(this.#view);
    this.#controls = new Controls().read(this.#cpu.state, this.#view);
  }

  /**
   * Looks at the mode and reports a change.
   * Outside a guest that a silicon wing runs the block still holds that guest's state: leaving is no change of mode, and entering is one
   * only if the guest comes back in another mode.
   */
  notice(cause: string, insn: Instruction | undefined): void {
    const { state } = this.#cpu;
    state.modeStale = false;
    const { listener } = this;
    if (listener === null) return;
    const view = this.#look();
    const key = this.#keyNow(view);
    const before = this.#controls;
    if (key === this.#key) {
      before.read(state, view);
      return;
    }
    this.#key = key;
    const from = this.#mode;
    const to = this.mode();
    this.#controls = new Controls().read(state, view);
    this.#mode = to;
    if (sameMode(from, to)) return;
    const rip = insn && this.#cpu.executedAt();
    const bytes = insn?.bytes.slice(0, insn.length);
    listener({ tick: this.#cpu.tick, from, to, cause, rip, bytes, ...Controls.pairs(before, this.#controls) });
  }
}
