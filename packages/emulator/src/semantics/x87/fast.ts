/**
 * x87 instructions, recorded: loads, stores, the four operations, comparisons, control words; with all exceptions masked, nearest rounding
 * to 64 bits, normal numbers and zeros, and a stack that is as the instruction wants it. The rest is handed back to semantics/fp.
 * Manual: APM vol. 5, APM vol. 1 chapter 6.
 */
import type { Cond, Value } from '../../builder/builder.ts';
import type { X87Builder, X87Form, X87Known } from '../../builder/x87.ts';
import type { Row } from '../../decode/instruction.ts';
import { RAX, S } from '../../state-layout.ts';
import {
  add,
  DOUBLE,
  divide,
  EXP_MASK,
  fromInteger,
  isPlain,
  isZero,
  multiply,
  narrow,
  type Rounded,
  relation,
  SINGLE,
  toInteger,
  widen,
  type X87Number,
} from './number.ts';

const C0 = 0x100;
const C1 = 0x200;
const C2 = 0x400;
const C3 = 0x4000;
const TOP = 0x3800;
const PE = 0x20;
const ERROR_SUMMARY = 7;
/** FCW: precision, rounding and masks; and what the fast way takes: 64 bits, nearest, all masked. */
const CONTROL = 0x0f3f;
const PLAIN_CONTROL = 0x033f;
/** Rounding and masks alone, for what precision control does not apply to. */
const ROUNDING_AND_MASKS = 0x0c3f;
const NEAREST_MASKED = 0x003f;

/** The register stack during one instruction. */
class Stack {
  readonly status: Value;
  readonly tags: Value;
  readonly #known: X87Known;
  readonly #first: Value;
  /** The memory operand is an integer. */
  integer = false;

  constructor(
    readonly b: X87Builder,
    readonly form: X87Form,
  ) {
    b.handBackWhen(b.isX87Gated());
    this.status = b.state(S.fsw, 2);
    this.tags = b.state(S.ftw, 1);
    const known = b.x87Known() ?? nothingKnown();
    known.first ??= b.and(b.shrU(this.status, b.const(11)), b.const(7));
    this.#first = known.first;
    this.#known = known;
    if (!known.checked) b.handBackWhen(b.bit(this.status, ERROR_SUMMARY));
    known.checked = true;
  }

  requireControl(mask: number, value: number): void {
    const { b } = this;
    b.handBackWhen(b.ne(b.and(b.state(S.fcw, 2), b.const(mask)), b.const(value)));
  }
  /** i of ST(i). */
  index(): Value {
    return this.b.and(this.b.imm2(), this.b.const(7));
  }
  /** ST(i) counted from the first instruction's ST(0); null: i is not known. */
  #place(i: Value): number | null {
    const constant = this.b.constantOf(i);
    return constant === null ? null : (this.#known.top + constant) & 7;
  }
  physical(i: Value): Value {
    const { b } = this;
    return b.and(b.add(this.#first, b.add(i, b.const(this.#known.top))), b.const(7));
  }
  #bit(i: Value): Value {
    return this.b.shl(this.b.const(1), this.physical(i));
  }
  requireUsed(i: Value): void {
    const place = this.#place(i);
    if (place !== null && this.#known.used.has(place)) return;
    this.b.handBackWhen(this.b.isZero(this.b.and(this.tags, this.#bit(i))));
    if (place !== null) this.#known.used.add(place);
  }
  /** Room for a push. */
  requireRoom(): void {
    const { b } = this;
    const seven = b.const(7);
    if (!this.#known.empty.has(this.#place(seven)!))
      b.handBackWhen(b.ne(b.and(this.tags, this.#bit(seven)), b.const(0)));
  }
  #distance(i: Value): Value {
    return this.b.shl(this.physical(i), this.b.const(4));
  }
  #field(of: Map<number, Value>, i: Value, offset: number, size: 2 | 8): Value {
    const place = this.#place(i);
    const known = place === null ? undefined : of.get(place);
    if (known !== undefined) return known;
    const value = this.b.stateAt(this.#distance(i), offset, size);
    if (place !== null) of.set(place, value);
    return value;
  }
  mant(i: Value): Value {
    return this.#field(this.#known.mant, i, S.fpr, 8);
  }
  signExponent(i: Value): Value {
    return this.#field(this.#known.signExponent, i, S.fpr + 8, 2);
  }
  read(i: Value): X87Number {
    const { b } = this;
    const signExponent = this.signExponent(i);
    return {
      sign: b.shrU(signExponent, b.const(15)),
      exp: b.and(signExponent, b.const(EXP_MASK)),
      mant: this.mant(i),
    };
  }
  readPlain(i: Value): X87Number {
    const place = this.#place(i);
    const x = this.read(i);
    if (place !== null && this.#known.plain.has(place)) return x;
    this.b.handBackWhen(this.b.notC(isPlain(this.b, x)));
    if (place !== null) this.#known.plain.add(place);
    return x;
  }
  /** Is ST(i) known to be a normal number or a zero? */
  isKnownPlain(i: Value): boolean {
    const place = this.#place(i);
    return place !== null && this.#known.plain.has(place);
  }

  // Commits; places are by the old top.

  writeRaw(i: Value, mant: Value, signExponent: Value, plain = false): void {
    this.b.setStateAt(this.#distance(i), S.fpr, 8, mant);
    this.b.setStateAt(this.#distance(i), S.fpr + 8, 2, signExponent);
    const place = this.#place(i);
    const known = this.#known;
    if (place === null) {
      for (const facts of [known.mant, known.signExponent, known.plain]) facts.clear();
      return;
    }
    known.mant.set(place, mant);
    known.signExponent.set(place, signExponent);
    if (plain) known.plain.add(place);
    else known.plain.delete(place);
  }
  write(i: Value, x: X87Number): void {
    this.writeRaw(i, x.mant, this.b.or(x.exp, this.b.shl(x.sign, this.b.const(15))), true);
  }
  /** Status word with C1, PE and TOP as told; tags. */
  finish(change: {
    up?: Cond;
    inexact?: Cond;
    pushed?: boolean;
    pops?: number;
    conditions?: Value;
    used?: Value;
    keepsC1?: boolean;
  }): void {
    const { b } = this;
    const cleared = change.keepsC1 === true ? 0 : change.conditions === undefined ? C1 : C0 | C1 | C2 | C3;
    let status = b.and(this.status, b.const(~(cleared | TOP) & 0xffff));
    if (change.up !== undefined) status = b.or(status, b.select(change.up, b.const(C1), b.const(0)));
    if (change.inexact !== undefined) status = b.or(status, b.select(change.inexact, b.const(PE), b.const(0)));
    if (change.conditions !== undefined) status = b.or(status, change.conditions);
    const pops = change.pops ?? 0;
    const pushed = change.pushed === true;
    const moved = this.physical(b.const(pushed ? 7 : pops));
    b.setState(S.fsw, 2, b.or(status, b.shl(moved, b.const(11))));
    let tags = this.tags;
    if (change.used !== undefined) tags = b.or(tags, this.#bit(change.used));
    for (let i = 0; i < pops; i++) tags = b.and(tags, b.not(this.#bit(b.const(i))));
    if (pushed) tags = b.or(tags, this.#bit(b.const(7)));
    if (tags !== this.tags) b.setState(S.ftw, 1, tags);
    this.#move(change.used, pops, pushed);
    this.#notePointers();
  }
  /** What is known behind the instruction. */
  #move(used: Value | undefined, pops: number, pushed: boolean): void {
    const known = this.#known;
    const mark = (place: number | null, full: boolean): void => {
      if (place === null) return;
      (full ? known.used : known.empty).add(place);
      (full ? known.empty : known.used).delete(place);
    };
    if (used !== undefined) mark(this.#place(used), true);
    for (let i = 0; i < pops; i++) mark((known.top + i) & 7, false);
    known.top = (known.top + (pushed ? 7 : pops)) & 7;
    if (pushed) mark(known.top, true);
  }
  /** Where the instruction is and what it addresses. */
  #notePointers(): void {
    const { b } = this;
    b.setState(S.fop, 2, b.imm2());
    b.setState(S.fip, 8, b.rip());
    if (this.form.memory) b.setState(S.fdp, 8, b.ea());
  }
}
const nothingKnown = (): X87Known => ({
  top: 0,
  first: null,
  checked: false,
  used: new Set(),
  empty: new Set(),
  plain: new Set(),
  mant: new Map(),
  signExponent: new Map(),
});

type Rule = (s: Stack) => void;

const load = (s: Stack, size: 1 | 2 | 4 | 8): Value => s.b.load(s.b.ea(), { seg: 'operand', size });

/** The memory operand as a number: `Md` and `Mq` reals, or integers. */
function memoryNumber(s: Stack, integer: boolean): X87Number {
  const { b } = s;
  const size = { Mw: 2, Md: 4, Mq: 8 }[s.form.operands[0]!] as 2 | 4 | 8;
  if (integer) return fromInteger(b, b.sext(load(s, size), size));
  const x = widen(b, load(s, size), size === 8 ? DOUBLE : SINGLE);
  b.handBackWhen(x.bad);
  return x;
}

const pushNumber =
  (integer: boolean): Rule =>
  (s) => {
    s.requireRoom();
    s.requireControl(0x3f, 0x3f);
    const x = memoryNumber(s, integer);
    s.write(s.b.const(7), x);
    s.finish({ pushed: true });
  };
const pushTen: Rule = (s) => {
  const { b } = s;
  s.requireRoom();
  const mant = load(s, 8);
  const high = b.load(b.add(b.ea(), b.const(8)), { seg: 'operand', size: 2 });
  s.writeRaw(b.const(7), mant, high);
  s.finish({ pushed: true });
};
const pushRegister: Rule = (s) => {
  s.requireRoom();
  const i = s.index();
  s.requireUsed(i);
  s.writeRaw(s.b.const(7), s.mant(i), s.signExponent(i), s.isKnownPlain(i));
  s.finish({ pushed: true });
};
/** Constants as nearest rounding has them. */
const pushConstant =
  (signExponent: number, mant: bigint): Rule =>
  (s) => {
    s.requireRoom();
    s.requireControl(ROUNDING_AND_MASKS, NEAREST_MASKED);
    s.writeRaw(s.b.const(7), s.b.const(mant), s.b.const(signExponent), true);
    s.finish({ pushed: true });
  };

const storeReal =
  (pops: number): Rule =>
  (s) => {
    const { b } = s;
    const size = s.form.operands[0] === 'Mq' ? 8 : 4;
    s.requireControl(ROUNDING_AND_MASKS, NEAREST_MASKED);
    s.requireUsed(b.const(0));
    const result = narrow(b, s.readPlain(b.const(0)), size === 8 ? DOUBLE : SINGLE);
    b.handBackWhen(result.bad);
    b.store(b.ea(), result.bits, { seg: 'operand', size });
    s.finish({ up: result.up, inexact: result.inexact, pops });
  };
const storeInteger =
  (pops: number, truncate: boolean): Rule =>
  (s) => {
    const { b } = s;
    const size = { Mw: 2, Md: 4, Mq: 8 }[s.form.operands[0]!] as 2 | 4 | 8;
    if (truncate) s.requireControl(0x3f, 0x3f);
    else s.requireControl(ROUNDING_AND_MASKS, NEAREST_MASKED);
    s.requireUsed(b.const(0));
    const result = toInteger(b, s.readPlain(b.const(0)), (size * 8) as 16 | 32 | 64, truncate);
    b.handBackWhen(result.bad);
    b.store(b.ea(), b.zext(result.value, size), { seg: 'operand', size });
    s.finish({ up: result.up, inexact: result.inexact, pops });
  };
const storeTen: Rule = (s) => {
  const { b } = s;
  s.requireUsed(b.const(0));
  const [mant, signExponent] = [s.mant(b.const(0)), s.signExponent(b.const(0))];
  const behind = b.add(b.ea(), b.const(8));
  b.probe(b.ea(), { seg: 'operand', size: 8 });
  b.probe(behind, { seg: 'operand', size: 2 });
  b.store(b.ea(), mant, { seg: 'operand', size: 8 });
  b.store(behind, signExponent, { seg: 'operand', size: 2 });
  s.finish({ pops: 1 });
};
const storeRegister =
  (pops: number): Rule =>
  (s) => {
    const { b } = s;
    s.requireUsed(b.const(0));
    const i = s.index();
    const [mant, signExponent] = [s.mant(b.const(0)), s.signExponent(b.const(0))];
    s.writeRaw(i, mant, signExponent, s.isKnownPlain(b.const(0)));
    s.finish({ pops, used: i });
  };

const exchange: Rule = (s) => {
  const { b } = s;
  const zero = b.const(0);
  const i = s.index();
  s.requireUsed(zero);
  s.requireUsed(i);
  const [x, y] = [
    [s.mant(zero), s.signExponent(zero)],
    [s.mant(i), s.signExponent(i)],
  ] as const;
  const plain = [s.isKnownPlain(zero), s.isKnownPlain(i)];
  s.writeRaw(zero, y[0], y[1], plain[1]);
  s.writeRaw(i, x[0], x[1], plain[0]);
  s.finish({});
};
const changeSign =
  (change: (b: X87Builder, signExponent: Value) => Value): Rule =>
  (s) => {
    const zero = s.b.const(0);
    s.requireUsed(zero);
    s.writeRaw(zero, s.mant(zero), change(s.b, s.signExponent(zero)), s.isKnownPlain(zero));
    s.finish({});
  };

// Arithmetic

type Operation = (s: Stack, x: X87Number, y: X87Number) => Rounded;
const negated = (b: X87Builder, x: X87Number): X87Number => ({ ...x, sign: b.xor(x.sign, b.const(1)) });
const quotient: Operation = ({ b }, x, y) => {
  b.handBackWhen(isZero(b, y));
  return divide(b, x, y);
};
const OPERATIONS: Readonly<Record<string, Operation>> = {
  add: ({ b }, x, y) => add(b, x, y),
  sub: ({ b }, x, y) => add(b, x, negated(b, y)),
  subr: ({ b }, x, y) => add(b, y, negated(b, x)),
  mul: ({ b }, x, y) => multiply(b, x, y),
  div: quotient,
  divr: (s, x, y) => quotient(s, y, x),
};

/** Into ST(0) or ST(i). */
const arithmetic =
  (operation: Operation, pops: number): Rule =>
  (s) => {
    const { b, form } = s;
    const zero = b.const(0);
    s.requireControl(CONTROL, PLAIN_CONTROL);
    s.requireUsed(zero);
    const i = s.index();
    if (!form.memory) s.requireUsed(i);
    const toTop = form.memory || form.operands[0] === 'ST0';
    const other = form.memory ? memoryNumber(s, s.integer) : s.readPlain(i);
    const st = s.readPlain(zero);
    const result = toTop ? operation(s, st, other) : operation(s, other, st);
    b.handBackWhen(result.bad);
    s.write(toTop ? zero : i, result);
    s.finish({ up: result.up, inexact: result.inexact, pops });
  };

// Comparisons

function compared(s: Stack, other: () => X87Number): { less: Cond; equal: Cond } {
  const { b } = s;
  s.requireControl(0x3f, 0x3f);
  s.requireUsed(b.const(0));
  const y = other();
  return relation(b, s.readPlain(b.const(0)), y);
}
const otherRegister = (s: Stack, i: Value) => (): X87Number => {
  s.requireUsed(i);
  return s.readPlain(i);
};
const compare =
  (pops: number, fixed = false): Rule =>
  (s) => {
    const { b } = s;
    const i = fixed ? b.const(1) : s.index();
    const { less, equal } = compared(s, s.form.memory ? () => memoryNumber(s, s.integer) : otherRegister(s, i));
    const conditions = b.select(less, b.const(C0), b.select(equal, b.const(C3), b.const(0)));
    s.finish({ conditions, pops });
  };

/** FCOMI and its kin: into RFLAGS; C1 stays. */
const compareFlags =
  (pops: number): Rule =>
  (s) => {
    const { b } = s;
    const { less, equal } = compared(s, otherRegister(s, s.index()));
    s.finish({ pops, keepsC1: true });
    b.setFlags({ zf: equal, cf: less, pf: b.false(), af: b.false(), sf: b.false(), of: b.false() });
  };

/** FCMOVcc by a condition code of Jcc. */
const moveWhen =
  (condition: number): Rule =>
  (s) => {
    const { b } = s;
    const zero = b.const(0);
    const i = s.index();
    s.requireUsed(zero);
    s.requireUsed(i);
    const holds = b.condition(condition);
    const mant = b.select(holds, s.mant(i), s.mant(zero));
    const signExponent = b.select(holds, s.signExponent(i), s.signExponent(zero));
    s.writeRaw(zero, mant, signExponent);
    s.finish({ keepsC1: true });
  };

const RULES: Readonly<Record<string, Rule>> = {
  fxch: exchange,
  fchs: changeSign((b, value) => b.xor(value, b.const(0x8000))),
  fabs: changeSign((b, value) => b.and(value, b.const(EXP_MASK))),
  fld1: pushConstant(0x3fff, 1n << 63n),
  fldz: pushConstant(0, 0n),
  fldl2t: pushConstant(0x4000, 0xd49a784bcd1b8afen),
  fldl2e: pushConstant(0x3fff, 0xb8aa3b295c17f0bcn),
  fldpi: pushConstant(0x4000, 0xc90fdaa22168c235n),
  fldlg2: pushConstant(0x3ffd, 0x9a209a84fbcff799n),
  fldln2: pushConstant(0x3ffe, 0xb17217f7d1cf79acn),
  fild: pushNumber(true),
  fist: storeInteger(0, false),
  fistp: storeInteger(1, false),
  fisttp: storeInteger(1, true),
  fcom: compare(0),
  fcomp: compare(1),
  fcompp: compare(2, true),
  fucom: compare(0),
  fucomp: compare(1),
  fucompp: compare(2, true),
  ficom: compare(0),
  ficomp: compare(1),
  fcomi: compareFlags(0),
  fucomi: compareFlags(0),
  fcomip: compareFlags(1),
  fucomip: compareFlags(1),
  fcmovb: moveWhen(2),
  fcmovnb: moveWhen(3),
  fcmove: moveWhen(4),
  fcmovne: moveWhen(5),
  fcmovbe: moveWhen(6),
  fcmovnbe: moveWhen(7),
  fcmovu: moveWhen(10),
  fcmovnu: moveWhen(11),
};

/** FLD, FST, FSTP by operand. */
function move(mnemonic: string, spec: string): Rule | undefined {
  if (mnemonic === 'fld') return spec === 'STi' ? pushRegister : spec === 'Mt' ? pushTen : pushNumber(false);
  const pops = mnemonic === 'fstp' ? 1 : 0;
  if (mnemonic !== 'fst' && pops === 0) return undefined;
  return spec === 'STi' ? storeRegister(pops) : spec === 'Mt' ? storeTen : storeReal(pops);
}

/** FADD and its kin, with I for integers and P for a pop. */
function arithmeticRule(mnemonic: string): Rule | undefined {
  const match = /^fi?(add|subr?|mul|divr?)(p?)$/.exec(mnemonic);
  return match === null ? undefined : arithmetic(OPERATIONS[match[1]!]!, match[2] === 'p' ? 1 : 0);
}

// Control

/** Bits of FCW that exist; bit 6 reads as one. */
const CW_MASK = 0x1f7f;
const CW_ONES = 0x40;

const storeWord =
  (offset: number) =>
  (b: X87Builder, form: X87Form): void => {
    b.handBackWhen(b.isX87Gated());
    const value = b.state(offset, 2);
    if (form.memory) b.store(b.ea(), value, { seg: 'operand', size: 2 });
    else b.setReg({ fixed: RAX }, 2, value);
  };
/** A new mask must not make a pending exception an error. */
const loadControl = (b: X87Builder): void => {
  b.handBackWhen(b.isX87Gated());
  const status = b.state(S.fsw, 2);
  b.handBackWhen(b.bit(status, ERROR_SUMMARY));
  const loaded = b.load(b.ea(), { seg: 'operand', size: 2 });
  const control = b.or(b.and(loaded, b.const(CW_MASK)), b.const(CW_ONES));
  const pending = b.and(b.and(status, b.not(control)), b.const(0x3f));
  b.handBackWhen(b.notC(b.isZero(pending)));
  b.setState(S.fcw, 2, control);
};
/** WAIT: its row is an integer one. */
const wait = (b: X87Builder): void => {
  b.handBackWhen(b.isX87Gated());
  b.handBackWhen(b.bit(b.state(S.fsw, 2), ERROR_SUMMARY));
};
/** Instructions that leave the stack and the pointers alone. */
const CONTROLS: Readonly<Record<string, (b: X87Builder, form: X87Form) => void>> = {
  fnstsw: storeWord(S.fsw),
  fnstcw: storeWord(S.fcw),
  fldcw: loadControl,
  wait,
};

const ruleOf = (mnemonic: string, operands: readonly string[]): Rule | undefined =>
  RULES[mnemonic] ?? arithmeticRule(mnemonic) ?? move(mnemonic, operands[0] ?? '');

/** Has an x87 row, or WAIT's, a recorded form? */
export const hasX87Semantics = ({ mnemonic, operands }: Row): boolean =>
  mnemonic in CONTROLS || ruleOf(mnemonic, operands) !== undefined;

/** Records an x87 instruction. */
export function recordX87(b: X87Builder, mnemonic: string, form: X87Form): void {
  const control = CONTROLS[mnemonic];
  if (control !== undefined) {
    control(b, form);
    return;
  }
  const stack = new Stack(b, form);
  stack.integer = mnemonic.startsWith('fi');
  ruleOf(mnemonic, form.operands)!(stack);
}
