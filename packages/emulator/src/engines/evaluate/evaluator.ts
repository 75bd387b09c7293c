/**
 * Evaluator: executes one instruction at a time, directly, through X86EmulateOps.
 * It is KVM's emulator (x86_decode_insn, x86_emulate_insn) for core, and the processor's engine for whatever the others hand back.
 *
 * REP: one call is one iteration. Everything a guest can cause ends in a result code; what escapes is NotImplementedError or a bug.
 */
import type { Builder, Operation, Semantics } from '../../builder/builder.ts';
import { createInstruction, decode, MAX_INSTRUCTION_LENGTH } from '../../decode/decode.ts';
import type { DecodeMode, DecodeResult, Instruction, Row } from '../../decode/instruction.ts';
import { GuestException, NotImplementedError, Unwind } from '../../exceptions.ts';
import { X86Emul, type X86EmulateOps } from '../../ops.ts';
import { fpFunction } from '../../semantics/fp/index.ts';
import { SEMANTICS } from '../../semantics/index.ts';
import { Attrib, RCX, Seg, type Segment, Vector } from '../../state-layout.ts';
import type { EmulateContext, EmulateMode, SystemFunction } from '../../system/context.ts';
import { CHECKS, SYSTEM } from '../../system/index.ts';
import { asBuilder, EvaluateBuilder } from './builder.ts';
import { EvaluateContext, emulateMode, emulateModeWith } from './context.ts';
import { type OperandForm, operandForms } from './operands.ts';
import { EvaluateOperation } from './operation.ts';
import { checkIntercept, checkLegality, checkPrivilege, createInfo } from './phases.ts';

export interface EvaluatorOptions {
  /** `kvm`: exactly the instructions that KVM's emulator knows; the others are UNHANDLEABLE. Default `x86`. */
  subset?: 'x86' | 'kvm';
  /** Decides undefined results and what vendors do differently. Default: by `ops.isIntelCompatible()`. */
  vendor?: 'amd' | 'intel';
  /** The mode, if the caller tracks it; by default it is derived from CR0, RFLAGS, CS and EFER before each instruction. */
  mode?: () => EmulateMode;
  /** Checks the commit rule (tests). */
  strict?: boolean;
}

export class Evaluator {
  readonly context: EvaluateContext;
  /** What `decode` filled. */
  readonly instruction: Instruction = createInstruction();
  /** After PROPAGATE_FAULT: the exception. Valid until the next call. */
  exception: GuestException;
  /** After IO_NEEDED, RETRY_INSTR or UNHANDLEABLE: what was thrown, if anything was. */
  unwind: Unwind | undefined = undefined;
  private readonly builder: EvaluateBuilder;
  private readonly operation: EvaluateOperation;
  /** Both under the opaque types of the contract. */
  private readonly builderView: Builder;
  private readonly operationView: Operation;
  private readonly info = createInfo();
  private readonly code = new Uint8Array(16);
  /** How many bytes of `code` the last `decode` had. */
  private fetched = 0;
  /** What comes from the second page. */
  private readonly more = new Uint8Array(16);
  /** `decode` has just found the mode; nothing has happened since. */
  private modeIsFresh = false;
  private readonly codeMode: DecodeMode;

  constructor(
    readonly ops: X86EmulateOps,
    private readonly options: EvaluatorOptions = {},
  ) {
    const vendor = options.vendor ?? (ops.isIntelCompatible() ? 'intel' : 'amd');
    this.context = new EvaluateContext(ops, options.subset ?? 'x86', vendor);
    // KVM's decoder treats near branches and far pointers alike for both vendors: as Intel does.
    this.codeMode = { codeSize: 2, intel: vendor === 'intel' || options.subset === 'kvm' };
    this.exception = this.context.exception;
    // Which operand is read first is the same for both vendors there.
    this.builder = new EvaluateBuilder(this.context, options.subset === 'kvm' ? 'intel' : vendor, options.strict);
    this.operation = new EvaluateOperation(this.context);
    this.builderView = asBuilder(this.builder);
    this.operationView = this.operation as unknown as Operation;
  }

  /** Fetches, decodes and executes the instruction at CS:RIP; with REP one iteration. KVM: x86_emulate_instruction without its policy. */
  emulate(): X86Emul {
    const code = this.decode();
    return code === X86Emul.CONTINUE ? this.execute(this.instruction) : code;
  }

  /** As `emulate`, but a REP instruction runs to its end (or until it faults, or must wait). */
  emulateToEnd(): X86Emul {
    let code = this.emulate();
    while (code === X86Emul.CONTINUE && this.context.restart) code = this.execute(this.instruction);
    return code;
  }

  /**
   * Decodes the instruction at CS:RIP into `instruction`.
   * @param provided bytes that the hardware delivered with the exit (decode assists); they are used before memory is fetched
   * @returns CONTINUE; PROPAGATE_FAULT (#PF, #GP of the fetch, #UD, #GP of an overlong instruction); UNHANDLEABLE for undefined bytes in KVM's subset
   */
  decode(provided?: Uint8Array): X86Emul {
    const cs = this.ops.getSegment(Seg.CS);
    this.context.mode = this.options.mode?.() ?? emulateModeWith(this.ops, cs.attrib);
    try {
      const code = this.decoded(this.fetchAndDecode(provided ?? this.interruptedBytes(), cs));
      // Not after a failed fetch: the next instruction may be executed without being decoded here, in another mode.
      this.modeIsFresh = code === X86Emul.CONTINUE;
      return code;
    } catch (error) {
      return this.thrown(error);
    }
  }

  /** The bytes that the last `decode` had to work on, decoded or not, 15 at most. KVM: the emulation context's fetch cache. */
  get fetchedBytes(): Uint8Array {
    return this.code.slice(0, Math.min(this.fetched, MAX_INSTRUCTION_LENGTH));
  }
  /** An emulation without an instruction begins. */
  forgetInstruction(): void {
    this.fetched = 0;
  }

  private decoded(result: DecodeResult): X86Emul {
    if (result === 'ok') return X86Emul.CONTINUE;
    if (this.context.subset === 'kvm') return X86Emul.UNHANDLEABLE;
    return this.context.raise(result === 'too-long' ? Vector.GP : Vector.UD, result === 'too-long' ? 0 : undefined);
  }

  /** Bytes of an instruction that waited for user space and starts again: they are not fetched twice. */
  private interruptedBytes(): Uint8Array | undefined {
    const { session } = this.context;
    return session.waitingAt === this.ops.getRip() ? session.bytes : undefined;
  }

  /** Decodes with what is there, and fetches more (up to the next page's end) while that is not enough. */
  private fetchAndDecode(provided: Uint8Array | undefined, cs: Segment): DecodeResult {
    const { code } = this;
    const mode = this.decodeMode(cs);
    let available = Math.min(provided?.length ?? 0, MAX_INSTRUCTION_LENGTH);
    if (provided !== undefined) code.set(provided.subarray(0, available));
    for (;;) {
      this.fetched = available;
      const result = available === 0 ? 'need-more' : decode(code, available, mode, this.instruction);
      if (result !== 'need-more') return result;
      available += this.fetchMore(available, cs);
    }
  }

  /** Real and virtual-8086 code follow CS.D too: it survives the way back from protected mode (APM vol. 2 section 4.7.2). */
  private decodeMode(cs: Segment): DecodeMode {
    const { codeMode } = this;
    if (this.context.mode === 'prot64') codeMode.codeSize = 8;
    else codeMode.codeSize = (cs.attrib & Attrib.DB) !== 0 ? 4 : 2;
    return codeMode;
  }

  /** Fetches up to the end of the page; raises if there is nothing to fetch. Returns how many bytes came. */
  private fetchMore(have: number, cs: Segment): number {
    const { context, ops } = this;
    let linear = ops.getRip();
    if (have > 0) linear = context.truncateRip(linear + BigInt(have));
    let most = MAX_INSTRUCTION_LENGTH - have;
    if (context.mode === 'prot64') {
      if (!context.isCanonical(linear)) context.raise(Vector.GP, 0);
    } else {
      const left = cs.limit - Number(linear) + 1;
      if (left <= 0) context.raise(Vector.GP, 0);
      if (left < most) most = left;
      linear = (cs.base + linear) & 0xffffffffn;
    }
    most = Math.min(most, 0x1000 - Number(linear & 0xfffn));
    if (have === 0) return ops.fetch(linear, this.code, most);
    const got = ops.fetch(linear, this.more, most);
    for (let i = 0; i < got; i++) this.code[have + i] = this.more[i]!;
    return got;
  }

  /**
   * Executes a decoded instruction that stands at CS:RIP; with REP one iteration (`context.restart` says whether it goes on).
   * @returns CONTINUE: committed. PROPAGATE_FAULT: `exception`, nothing committed (a trap: committed). INTERCEPTED, UNHANDLEABLE, RETRY_INSTR: nothing
   *   committed. IO_NEEDED: nothing committed, execute again once the access can be answered (see EmulateSession).
   */
  execute(insn: Instruction): X86Emul {
    if (!this.modeIsFresh) this.context.mode = this.options.mode?.() ?? emulateMode(this.ops);
    this.modeIsFresh = false;
    const { context } = this;
    const { session } = context;
    const plan = planOf(insn.row);
    context.begin(insn, plan.forms);
    if (session.waitingAt === context.rip) session.restart();
    else session.begin();
    try {
      const code = this.run(insn, plan);
      if (code === X86Emul.CONTINUE) context.commit();
      return code;
    } catch (error) {
      return this.thrown(error);
    }
  }

  private run(insn: Instruction, plan: Plan): X86Emul {
    const { context, info } = this;
    const { row } = insn;
    if (context.subset === 'kvm' && !row.kvm) return X86Emul.UNHANDLEABLE;
    checkLegality(context);
    let code = checkIntercept(context, info, 'preExcept');
    if (code !== X86Emul.CONTINUE) return code;
    checkPrivilege(context);
    plan.check?.(context);
    // A processor does not even ask for an iteration that does not take place; KVM does.
    if (context.subset === 'x86' && this.hasNoIteration(insn)) return X86Emul.CONTINUE;
    // Rights that precede an intercept (KVM: check_perm); without one the instruction itself checks them.
    if (row.intercept !== 'none') CHECKS[row.mnemonic]?.(context);
    code = checkIntercept(context, info, 'postExcept');
    if (code !== X86Emul.CONTINUE) return code;
    context.clearResume();
    code = checkIntercept(context, info, 'postMemAccess');
    return code === X86Emul.CONTINUE ? this.perform(insn, plan) : code;
  }

  /** REP with a count of zero. */
  private hasNoIteration(insn: Instruction): boolean {
    if (insn.rep === 0 || !insn.row.string || this.context.getReg(RCX, insn.addrSize) !== 0n) return false;
    this.context.clearResume();
    return true;
  }

  private perform(insn: Instruction, plan: Plan): X86Emul {
    const { context } = this;
    if (context.subset === 'kvm' && insn.row.kvmDecodeOnly) return X86Emul.UNHANDLEABLE;
    if (plan.semantics !== undefined) {
      this.builder.begin();
      this.operation.bind(plan.forms, insn);
      plan.semantics(this.builderView, this.operationView);
      return X86Emul.CONTINUE;
    }
    if (plan.system !== undefined) return plan.system(context);
    if (context.subset === 'kvm') return X86Emul.UNHANDLEABLE;
    const name = insn.row.mnemonic.toUpperCase();
    throw new NotImplementedError(name, `APM vol. 3-5, ${name}`);
  }

  /** Turns what was thrown into a result code. */
  private thrown(error: unknown): X86Emul {
    if (error instanceof GuestException) {
      this.exception = error;
      return X86Emul.PROPAGATE_FAULT;
    }
    if (!(error instanceof Unwind)) throw error;
    this.unwind = error;
    switch (error.reason) {
      case 'io-needed':
        this.wait();
        return X86Emul.IO_NEEDED;
      case 'vmexit':
        return X86Emul.INTERCEPTED;
      case 'retry':
        return X86Emul.RETRY_INSTR;
      default:
        return X86Emul.UNHANDLEABLE;
    }
  }

  private wait(): void {
    const { session, insn, rip } = this.context;
    session.waitingAt = rip;
    session.bytes = insn.bytes.slice(0, insn.length);
  }
}

/** What a row means to this engine. */
interface Plan {
  forms: readonly OperandForm[];
  semantics: Semantics | undefined;
  system: SystemFunction | undefined;
  /** What has to hold before the POST_EXCEPT intercept (KVM: check_perm). */
  check: ((ctx: EmulateContext) => void) | undefined;
}

const plans = new Map<Row, Plan>();

function planOf(row: Row): Plan {
  let plan = plans.get(row);
  if (plan === undefined) {
    const { mnemonic } = row;
    plan = {
      forms: operandForms(row),
      semantics: SEMANTICS[mnemonic],
      system: SYSTEM[mnemonic] ?? (fpFunction(row) as SystemFunction | undefined),
      check: CHECKS[mnemonic],
    };
    plans.set(row, plan);
  }
  return plan;
}

/**
 * Fetches, decodes and executes one instruction on `ops`.
 * For more than one instruction keep an {@link Evaluator}: it allocates nothing per instruction.
 */
export function emulateInstruction(
  ops: X86EmulateOps,
  options: EvaluatorOptions = {},
): { code: X86Emul; exception: GuestException; evaluator: Evaluator } {
  const evaluator = new Evaluator(ops, options);
  const code = evaluator.emulate();
  return { code, exception: evaluator.exception, evaluator };
}
