/**
 * The engine evaluate on the flat machine.
 */
import { Evaluator } from '../../src/engines/evaluate/index.ts';
import { X86Emul } from '../../src/ops.ts';
import { Seg } from '../../src/state-layout.ts';
import { HANDLERS } from './environment.ts';
import { FlatMachine } from './flat-machine.ts';
import type { Header } from './format.ts';
import type { IntegerState, RaisedException, VectorEngine, VectorMachine } from './run-case.ts';

class EvaluateMachine implements VectorMachine {
  private readonly flat: FlatMachine;
  private readonly evaluator: Evaluator;

  constructor(header: Header) {
    this.flat = new FlatMachine(header);
    this.evaluator = new Evaluator(this.flat, { vendor: 'amd', strict: true });
  }

  load(input: IntegerState, patches: readonly (readonly [number, Uint8Array])[]): void {
    const { flat } = this;
    flat.reset();
    for (const [address, bytes] of patches) flat.patch(address, bytes);
    flat.rip = input.ip;
    flat.rflags = input.rflags;
    input.gpr.forEach((value, i) => {
      flat.gpr[i] = value;
    });
  }

  run(): RaisedException | undefined {
    const { flat, evaluator } = this;
    let code = evaluator.emulateToEnd();
    if (code === X86Emul.CONTINUE) {
      const vector = Number(flat.rip) - HANDLERS;
      if (vector >= 0 && vector < 0x1000) return this.delivered(vector / 16);
      code = evaluator.decode();
    }
    if (code === X86Emul.CONTINUE) return undefined;
    if (code !== X86Emul.PROPAGATE_FAULT) return { vector: -code, errorCode: 0, address: 0n };
    const { vector, errorCode, payload } = evaluator.exception;
    return { vector, errorCode: errorCode ?? 0, address: payload };
  }

  /** A handler was entered: undoes the delivery, so that the saved state is what shows. */
  private delivered(vector: number): RaisedException {
    const { flat } = this;
    const frame = [0, 1, 2, 3, 4].map((i) => flat.readStd(flat.gpr[4]! + BigInt(i * 8), 8, true));
    const [rip, cs, rflags, rsp, ss] = frame as [bigint, bigint, bigint, bigint, bigint];
    flat.rip = rip;
    flat.rflags = rflags;
    flat.gpr[4] = rsp;
    flat.segments[Seg.CS]!.selector = Number(cs);
    flat.segments[Seg.SS]!.selector = Number(ss);
    return { vector, errorCode: 0, address: 0n };
  }

  state(): IntegerState {
    return { ip: this.flat.rip, rflags: this.flat.rflags, gpr: this.flat.gpr };
  }
  selectors(): number[] {
    return this.flat.segments.slice(0, 6).map((segment) => segment.selector);
  }
  bases(): [bigint, bigint] {
    return [this.flat.segments[Seg.FS]!.base, this.flat.segments[Seg.GS]!.base];
  }
  fpu(): DataView {
    return this.flat.fpu;
  }
  data(): Uint8Array {
    return this.flat.data.bytes;
  }
}

export const evaluateEngine: VectorEngine = { name: 'evaluate', create: (header) => new EvaluateMachine(header) };
