import { describe, expect, it } from 'vitest';
import { CODE, DATA, READ_ONLY } from '../../../test/vectors/environment.ts';
import { FlatMachine } from '../../../test/vectors/flat-machine.ts';
import { readVectors } from '../../../test/vectors/format.ts';
import { AssertionError, IO_NEEDED } from '../../exceptions.ts';
import { type InstructionInfo, type InterceptStage, X86Emul } from '../../ops.ts';
import { Flag, RAX, RCX, RDI, RSI, RSP, Seg, Vector } from '../../state-layout.ts';
import { EvaluateBuilder } from './builder.ts';
import { EvaluateContext } from './context.ts';
import { Evaluator, type EvaluatorOptions } from './evaluator.ts';

const header = (mode: 16 | 32 | 64) =>
  readVectors(new URL(`../../../test/vectors/sample/${mode}_misc.jsonl.gz`, import.meta.url).pathname).header;
const HEADERS = { 16: header(16), 32: header(32), 64: header(64) };

/** A page of MMIO that answers only after it was asked once in vain, as user space does. */
const MMIO = 0x3000_0000n;

class Bench extends FlatMachine {
  readonly reads: bigint[] = [];
  readonly answers = new Map<bigint, bigint>();
  readonly asked: [InstructionInfo['intercept'], InterceptStage][] = [];
  intercepted: InstructionInfo['intercept'] = 'none';

  override readEmulated(linear: bigint, size: number): bigint {
    if (linear < MMIO || linear >= MMIO + 0x1000n) return super.readEmulated(linear, size);
    this.reads.push(linear);
    const answer = this.answers.get(linear);
    if (answer === undefined) throw IO_NEEDED;
    this.answers.delete(linear);
    return answer;
  }
  override intercept(info: InstructionInfo, stage?: InterceptStage): X86Emul {
    this.asked.push([info.intercept, stage!]);
    return info.intercept === this.intercepted ? X86Emul.INTERCEPTED : X86Emul.CONTINUE;
  }
}

function bench(code: number[], options: EvaluatorOptions = {}, mode: 16 | 32 | 64 = 64, at = 0x100) {
  const machine = new Bench(HEADERS[mode]);
  machine.reset();
  machine.rip = BigInt(CODE + at) - machine.segments[Seg.CS]!.base;
  machine.rflags = 0x202n;
  machine.gpr[RSP] = BigInt(DATA + 0x800);
  machine.patch(CODE + at, Uint8Array.from(code));
  return { machine, evaluator: new Evaluator(machine, { vendor: 'amd', ...options }), start: machine.rip };
}

describe('reads are done once', () => {
  // cmpsb with both operands in MMIO, in KVM's emulator.
  const waitTwice = () => {
    const { machine, evaluator } = bench([0xa6], { subset: 'kvm' });
    machine.gpr[RSI] = MMIO;
    machine.gpr[RDI] = MMIO + 8n;
    expect(evaluator.emulate()).toBe(X86Emul.IO_NEEDED);
    machine.answers.set(MMIO, 5n);
    expect(evaluator.emulate()).toBe(X86Emul.IO_NEEDED);
    return { machine, evaluator };
  };
  it('cmpsb: after the second wait the first operand comes from the log', () => {
    const { machine, evaluator } = waitTwice();
    machine.answers.set(MMIO + 8n, 5n);
    expect(evaluator.emulate()).toBe(X86Emul.CONTINUE);
    expect(machine.reads).toEqual([MMIO, MMIO, MMIO + 8n, MMIO + 8n]);
    expect(machine.rflags & BigInt(Flag.ZF)).not.toBe(0n);
    expect(machine.gpr[RSI]).toBe(MMIO + 1n);
  });
  it('nothing is committed while it waits', () => {
    const { machine } = waitTwice();
    expect(machine.gpr[RSI]).toBe(MMIO);
    expect(machine.rip).toBe(BigInt(CODE + 0x100));
  });
  it('a saved session goes on in another evaluator', () => {
    const { machine, evaluator } = waitTwice();
    const saved = structuredClone(evaluator.context.session.save());
    const other = new Evaluator(machine, { vendor: 'amd', subset: 'kvm' });
    other.context.session.load(saved);
    machine.answers.set(MMIO + 8n, 5n);
    expect(other.emulate()).toBe(X86Emul.CONTINUE);
    expect(machine.reads.filter((address) => address === MMIO)).toHaveLength(2);
  });
  it('the next instruction does not see the log', () => {
    const { machine, evaluator } = bench([0x8a, 0x06, 0x8a, 0x06]);
    machine.gpr[RSI] = BigInt(DATA);
    evaluator.emulate();
    machine.patch(DATA, Uint8Array.of(0x77));
    evaluator.emulate();
    expect(machine.gpr[RAX]! & 0xffn).toBe(0x77n);
  });
});

describe('REP', () => {
  it('rep movsb: one iteration per call, RF set in between', () => {
    const { machine, evaluator, start } = bench([0xf3, 0xa4]);
    machine.gpr[RCX] = 2n;
    machine.gpr[RSI] = BigInt(DATA);
    machine.gpr[RDI] = BigInt(DATA + 16);
    expect(evaluator.emulate()).toBe(X86Emul.CONTINUE);
    expect([machine.gpr[RCX], machine.rip]).toEqual([1n, start]);
    expect(machine.rflags & BigInt(Flag.RF)).not.toBe(0n);
    expect(evaluator.emulate()).toBe(X86Emul.CONTINUE);
    expect([machine.gpr[RCX], machine.rip]).toEqual([0n, start + 2n]);
    expect(machine.rflags & BigInt(Flag.RF)).toBe(0n);
  });
  it('rep stosb into a read-only page keeps the iterations before the fault', () => {
    const { machine, evaluator, start } = bench([0xf3, 0xaa]);
    machine.gpr[RCX] = 5n;
    machine.gpr[RDI] = BigInt(READ_ONLY - 2);
    expect(evaluator.emulateToEnd()).toBe(X86Emul.PROPAGATE_FAULT);
    expect(evaluator.exception.vector).toBe(Vector.PF);
    expect([machine.gpr[RCX], machine.gpr[RDI], machine.rip]).toEqual([3n, BigInt(READ_ONLY), start]);
  });
});

describe('fetching', () => {
  it('an instruction that ends where the code ends is executed', () => {
    const { evaluator } = bench([0x90], {}, 64, 0x1fff);
    expect(evaluator.emulate()).toBe(X86Emul.CONTINUE);
  });
  it('one that goes on beyond faults at the next page', () => {
    const { evaluator } = bench([0x66], {}, 64, 0x1fff);
    expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
    expect([evaluator.exception.vector, evaluator.exception.payload]).toEqual([Vector.PF, BigInt(CODE + 0x2000)]);
  });
  it('16 bytes are #GP(0)', () => {
    const { evaluator } = bench([...new Array<number>(15).fill(0x66), 0x90]);
    expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
    expect([evaluator.exception.vector, evaluator.exception.errorCode]).toEqual([Vector.GP, 0]);
  });
  it('bytes that came with the exit are taken instead of memory', () => {
    const { machine, evaluator } = bench([0x90]);
    expect(evaluator.decode(Uint8Array.of(0xb0, 0x42))).toBe(X86Emul.CONTINUE);
    expect(evaluator.execute(evaluator.instruction)).toBe(X86Emul.CONTINUE);
    expect(machine.gpr[RAX]! & 0xffn).toBe(0x42n);
  });
});

describe("KVM's subset", () => {
  it('undefined bytes are UNHANDLEABLE, for x86 they are #UD', () => {
    expect(bench([0x0f, 0x0b], { subset: 'kvm' }).evaluator.emulate()).toBe(X86Emul.UNHANDLEABLE);
    const { evaluator } = bench([0x0f, 0x0b]);
    expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
    expect(evaluator.exception.vector).toBe(Vector.UD);
  });
  it('popcnt, which KVM lacks, is UNHANDLEABLE', () => {
    expect(bench([0xf3, 0x0f, 0xb8, 0xc0], { subset: 'kvm' }).evaluator.emulate()).toBe(X86Emul.UNHANDLEABLE);
  });
  it('popa that faults keeps nothing; on the processor the registers before the fault', () => {
    const popa = (subset: 'x86' | 'kvm') => {
      const { machine, evaluator } = bench([0x61], { subset }, 32);
      machine.gpr[RDI] = 1n;
      machine.gpr[RSP] = BigInt(READ_ONLY + 0x1000 - 4);
      expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
      return machine.gpr[RDI];
    };
    expect(popa('kvm')).toBe(1n);
    expect(popa('x86')).not.toBe(1n);
  });
});

describe('intercepts', () => {
  it('hlt at CPL 3: #GP(0) before anybody is asked', () => {
    const { machine, evaluator } = bench([0xf4]);
    expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
    expect(machine.asked).toEqual([]);
  });
  it('pushf is asked for before its checks, and an intercept leaves everything as it was', () => {
    const { machine, evaluator, start } = bench([0x9c]);
    machine.intercepted = 'pushf';
    expect(evaluator.emulate()).toBe(X86Emul.INTERCEPTED);
    expect(machine.asked).toEqual([['pushf', 'preExcept']]);
    expect([machine.rip, machine.gpr[RSP]]).toEqual([start, BigInt(DATA + 0x800)]);
  });
});

describe('addresses', () => {
  const fault = (code: number[], mode: 16 | 32 | 64, prepare: (machine: Bench) => void) => {
    const { machine, evaluator } = bench(code, {}, mode);
    prepare(machine);
    expect(evaluator.emulate()).toBe(X86Emul.PROPAGATE_FAULT);
    return [evaluator.exception.vector, evaluator.exception.errorCode];
  };
  it('not canonical: #GP(0), through rSP #SS(0)', () => {
    expect(fault([0x8b, 0x06], 64, (m) => (m.gpr[RSI] = 1n << 60n))).toEqual([Vector.GP, 0]);
    expect(fault([0x58], 64, (m) => (m.gpr[RSP] = 1n << 60n))).toEqual([Vector.SS, 0]);
  });
  it('an access whose last byte is not canonical', () => {
    expect(fault([0x8b, 0x06], 64, (m) => (m.gpr[RSI] = (1n << 47n) - 2n))).toEqual([Vector.GP, 0]);
  });
  it('mov [cs:...]: code is not writable', () => {
    expect(fault([0x2e, 0x88, 0x06], 32, (m) => (m.gpr[RSI] = BigInt(DATA)))).toEqual([Vector.GP, 0]);
  });
  it('an expand-down segment begins above its limit', () => {
    const expandDown = (m: Bench) => {
      m.segments[Seg.DS] = { ...m.segments[Seg.DS]!, attrib: 0x0f7, limit: 0x7ff };
      m.gpr[RSI] = 0x7ffn;
    };
    expect(fault([0x67, 0x8a, 0x04], 32, expandDown)).toEqual([Vector.GP, 0]);
  });
});

describe('LOCK', () => {
  const run = (...code: number[]) => {
    const { machine, evaluator } = bench(code);
    machine.gpr[RSI] = BigInt(DATA);
    return evaluator.emulate() === X86Emul.CONTINUE ? 'ok' : evaluator.exception.vector;
  };
  it('lock add [rsi], al is executed', () => expect(run(0xf0, 0x00, 0x06)).toBe('ok'));
  it('lock add al, al is #UD', () => expect(run(0xf0, 0x00, 0xc0)).toBe(Vector.UD));
  it('lock mov [rsi], al is #UD', () => expect(run(0xf0, 0x88, 0x06)).toBe(Vector.UD));
});

describe('the commit rule', () => {
  it('a load after a register write is an assertion of ours', () => {
    const { machine, evaluator } = bench([0x90]);
    evaluator.decode();
    const context = new EvaluateContext(machine, 'x86', 'amd');
    context.mode = 'prot64';
    context.begin(evaluator.instruction, []);
    const builder = new EvaluateBuilder(context, 'amd', true);
    builder.setReg({ fixed: RAX }, 8, 1n);
    expect(() => builder.load(BigInt(DATA), { seg: Seg.DS, size: 1 })).toThrow(AssertionError);
  });
});
