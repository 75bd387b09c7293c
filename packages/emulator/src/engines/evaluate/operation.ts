/**
 * The static form of the instruction at hand, as semantics functions see it: one preallocated object, bound per instruction.
 * Contract: builder/builder.ts, `Operation` and `OperandAccess`.
 */
import type { OperandAccess, Size } from '../../builder/builder.ts';
import type { Instruction } from '../../decode/instruction.ts';
import { type EvaluateContext, MASK } from './context.ts';
import { isMemory, type OperandForm, operandSize } from './operands.ts';

class EvaluateOperand {
  kind: OperandAccess['kind'] = 'reg';
  size: Size = 1;
  private form!: OperandForm;

  constructor(private readonly context: EvaluateContext) {}

  bind(form: OperandForm, insn: Instruction): void {
    this.form = form;
    this.size = operandSize(form, insn);
    if (isMemory(form, insn)) this.kind = 'mem';
    else if (form.place === 'imm' || form.place === 'rel' || form.place === 'one') this.kind = 'imm';
    else this.kind = form.place === 'gpr' ? 'fixed' : 'reg';
  }

  get(): bigint {
    const context = this.context;
    if (this.kind === 'mem') return context.read(context.insn.seg, context.effectiveAddress(), this.size);
    return context.registerOperand(this.form, this.size);
  }

  getForWrite(): bigint {
    const context = this.context;
    if (this.kind === 'mem') return context.readForWrite(context.insn.seg, context.effectiveAddress(), this.size);
    return context.registerOperand(this.form, this.size);
  }

  set(value: bigint): void {
    const context = this.context;
    if (this.kind === 'mem') {
      context.write(context.insn.seg, context.effectiveAddress(), value & MASK[this.size]!, this.size);
    } else if (this.kind === 'fixed') context.setReg(this.form.fixed, this.size, value);
    else context.setOperandRegister(this.form, this.size, value);
  }
}

export class EvaluateOperation {
  size: Size = 1;
  addrSize: 2 | 4 | 8 = 2;
  lock = false;
  rep: 0 | 0xf2 | 0xf3 = 0;
  condition = 0;
  operands: EvaluateOperand[] = [];
  /** One list per operand count, so that binding allocates nothing. */
  private readonly lists: EvaluateOperand[][];

  constructor(context: EvaluateContext) {
    const all = [0, 1, 2, 3].map(() => new EvaluateOperand(context));
    this.lists = [0, 1, 2, 3, 4].map((count) => all.slice(0, count));
  }

  bind(forms: readonly OperandForm[], insn: Instruction): void {
    this.size = insn.opSize;
    this.addrSize = insn.addrSize;
    this.lock = insn.lock;
    this.rep = insn.row.string ? insn.rep : 0;
    this.condition = insn.row.condition ?? 0;
    this.operands = this.lists[forms.length]!;
    for (let n = 0; n < forms.length; n++) this.operands[n]!.bind(forms[n]!, insn);
  }
}
