/**
 * The static form of an instruction as semantics functions see it while they are recorded.
 * Contract: builder/builder.ts, `Operation`. Operand letters: decode/mnemonics.ts.
 */
import type { Builder, OperandAccess, Operation, Size, Value } from '../../builder/builder.ts';
import { AssertionError } from '../../exceptions.ts';
import { SEMANTICS } from '../../semantics/index.ts';
import { recordVector } from '../../semantics/vector/index.ts';
import { recordX87 } from '../../semantics/x87/fast.ts';
import { type OperandForm, parseOperand, sizeOf } from '../evaluate/operands.ts';
import type { Form } from './form.ts';
import type { Recording } from './ir.ts';
import type { Recorder } from './recorder.ts';
import { systemPath } from './system-paths.ts';
import { VectorRecorder } from './vector-recorder.ts';

type Place = Pick<OperandAccess, 'get' | 'getForWrite' | 'set'>;

function memoryPlace(b: Builder, op: OperandForm, size: Size, lock: boolean): Place {
  // moffs stand in the immediate, already of the address size.
  const offset = (): Value => (op.place === 'moffs' ? b.imm() : b.ea());
  const access = { seg: 'operand', size } as const;
  return {
    get: () => b.load(offset(), access),
    getForWrite: () => b.load(offset(), { ...access, forWrite: true, locked: lock }),
    set: (value) => b.store(offset(), value, { ...access, locked: lock }),
  };
}

function immediatePlace(b: Builder, op: OperandForm, size: Size): Place {
  const get = (): Value => (op.place === 'one' ? b.const(1) : b.zext(b.imm(), size));
  const set = (): never => {
    throw new TypeError('an immediate is no destination');
  };
  return { get, getForWrite: get, set };
}

function registerPlace(b: Builder, op: OperandForm, size: Size): Place {
  const field = op.place === 'rmRegister' ? 'rm' : op.place;
  const ref = op.place === 'gpr' ? { fixed: op.fixed } : { field: field as 'reg' | 'rm' | 'opReg' | 'vvvv' };
  const get = (): Value => b.getReg(ref, size);
  return { get, getForWrite: get, set: (value) => b.setReg(ref, size, value) };
}

const IMMEDIATE = new Set(['imm', 'rel', 'one']);

function operandAccess(b: Builder, spec: string, form: Form): OperandAccess {
  const op = parseOperand(spec);
  const memory = op.place === 'moffs' || (op.place === 'rm' && form.memory !== 'none');
  const letter = memory ? op.memorySize : op.registerSize;
  const full = op.place === 'imm' && letter !== 'b' && letter !== 'w';
  const size = full ? form.opSize : (sizeOf(letter, form.opSize) as Size);
  if (memory) return { kind: 'mem', size, ...memoryPlace(b, op, size, form.lock) };
  if (IMMEDIATE.has(op.place)) return { kind: 'imm', size, ...immediatePlace(b, op, size) };
  return { kind: op.place === 'gpr' ? 'fixed' : 'reg', size, ...registerPlace(b, op, size) };
}

function operationOf(b: Builder, form: Form): Operation {
  const specs = form.operands.filter((s) => s !== '');
  return {
    size: form.opSize,
    addrSize: form.addrSize,
    lock: form.lock,
    rep: form.rep,
    condition: form.condition,
    operands: specs.map((spec) => operandAccess(b, spec, form)),
  };
}

export const hasSemantics = (mnemonic: string): boolean => Object.hasOwn(SEMANTICS, mnemonic);

/** Records the semantics of a form; several forms follow each other in consecutive records. */
export function recordForms(forms: readonly Form[]): Recording {
  const recorder = new VectorRecorder(forms[0]);
  forms.forEach((form, i) => {
    if (i > 0) recorder.advance(form);
    recordInto(recorder, form);
  });
  return recorder.recording();
}

/** JavaScript raises #UD or #NM where the unit is not to be used. */
function recordGated(recorder: VectorRecorder, form: Form, vector: NonNullable<Form['vector']>): void {
  recorder.handBackWhen(recorder.isGated(vector.vex));
  const { mnemonic, operands, opSize, memory } = form;
  recordVector(recorder, mnemonic, { operands, opSize, memory: memory !== 'none', ...vector });
}

/** Records one form's semantics behind what the recorder holds. */
export function recordInto(recorder: Recorder, form: Form): void {
  if (form.vector !== undefined) {
    if (!(recorder instanceof VectorRecorder)) throw new AssertionError(`${form.mnemonic}: no recorder for vectors`);
    recordGated(recorder, form, form.vector);
    return;
  }
  if (form.x87 === true) {
    if (!(recorder instanceof VectorRecorder)) throw new AssertionError(`${form.mnemonic}: no recorder for x87`);
    recordX87(recorder, form.mnemonic, { operands: form.operands, memory: form.memory !== 'none' });
    return;
  }
  const operation = operationOf(recorder, form);
  const system = systemPath(form.mnemonic);
  if (system) system(recorder, operation, form);
  else SEMANTICS[form.mnemonic](recorder, operation);
}
