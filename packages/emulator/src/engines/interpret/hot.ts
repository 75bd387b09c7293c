/**
 * The list of hot handlers: what compilers emit in inner loops. At most about 250; V8's code gets slower beyond.
 */
import type { Size } from '../../builder/builder.ts';
import type { Form } from './form.ts';

export interface HotForm {
  forms: readonly Form[];
  dropFlags: boolean;
}

const ALU = ['add', 'sub', 'and', 'or', 'xor'] as const;
/** Conditions that follow comparisons: B AE E NE BE A S NS L GE LE G. */
const AFTER_COMPARE = [2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15];

class HotList {
  readonly list: HotForm[] = [];
  readonly #size: 4 | 8;

  constructor(readonly long: boolean) {
    this.#size = long ? 8 : 4;
  }
  /** Operand sizes worth a handler of their own. */
  get sizes(): Size[] {
    return this.long ? [4, 8] : [4];
  }
  get word(): 4 | 8 {
    return this.#size;
  }
  get addresses(): ('base' | 'index' | 'rip')[] {
    return this.long ? ['base', 'index', 'rip'] : ['base', 'index'];
  }

  form(mnemonic: string, operands: string, opSize: Size, more: Partial<Form> = {}): Form {
    return {
      mnemonic,
      operands: operands.split(' '),
      opSize,
      addrSize: this.#size,
      codeSize: this.#size,
      stackSize: this.#size,
      segments: this.long ? 'long' : 'flat',
      special: -1,
      memory: 'none',
      lock: false,
      rep: 0,
      condition: -1,
      countNotZero: false,
      vendor: 'amd',
      ...more,
    };
  }
  live(form: Form): void {
    this.list.push({ forms: [form], dropFlags: false });
  }
  dead(form: Form): void {
    this.list.push({ forms: [form], dropFlags: true });
  }
  both(form: Form): void {
    this.live(form);
    this.dead(form);
  }
  jcc(condition: number): Form {
    // Near branches have the operand size of the code in 64-bit mode and in 32-bit code.
    return this.form('jcc', 'Jb', this.#size, { condition });
  }
  fuse(first: Form, conditions: readonly number[]): void {
    for (const condition of conditions) {
      this.list.push({ forms: [first, this.jcc(condition)], dropFlags: false });
    }
  }
}

function arithmetic(h: HotList): void {
  for (const size of h.sizes) {
    for (const name of ALU) {
      h.both(h.form(name, 'Rv Gv', size));
      h.both(h.form(name, 'Rv Iz', size));
    }
    for (const name of ['inc', 'dec'] as const) h.both(h.form(name, 'Rv', size));
    for (const name of ['shl', 'shr', 'sar'] as const) {
      const form = h.form(name, 'Rv Ib', size, { countNotZero: true });
      h.both(form);
    }
    h.live(h.form('neg', 'Rv', size));
    h.live(h.form('not', 'Rv', size));
    h.live(h.form('imul', 'Gv Rv', size));
    h.dead(h.form('imul', 'Gv Rv', size));
    h.live(h.form('cwd', '', size));
  }
}

function comparisons(h: HotList): void {
  for (const size of h.sizes) {
    for (const operands of ['Rv Gv', 'Rv Iz']) {
      h.live(h.form('cmp', operands, size));
      h.fuse(h.form('cmp', operands, size), AFTER_COMPARE);
    }
    h.live(h.form('test', 'Rv Gv', size));
    h.fuse(h.form('test', 'Rv Gv', size), [4, 5, 8, 9]);
    h.fuse(h.form('dec', 'Rv', size), [4, 5]);
    h.fuse(h.form('sub', 'Rv Iz', size), [4, 5]);
    for (const memory of ['base', 'rip'] as const) {
      if (memory === 'rip' && !h.long) continue;
      h.live(h.form('cmp', 'Ev Iz', size, { memory }));
      h.live(h.form('cmp', 'Gv Ev', size, { memory }));
    }
  }
  h.live(h.form('cmp', 'Rb Ib', 1));
  h.fuse(h.form('cmp', 'Rb Ib', 1), [4, 5]);
  h.live(h.form('test', 'Rb Gb', 1));
  h.fuse(h.form('test', 'Rb Gb', 1), [4, 5]);
  h.live(h.form('test', 'Rb Ib', 1));
  h.live(h.form('cmp', 'Eb Ib', 1, { memory: 'base' }));
  h.live(h.form('cmp', 'Eb Ib', 1, { memory: 'index' }));
  h.live(h.form('test', 'Eb Ib', 1, { memory: 'base' }));
}

function moves(h: HotList): void {
  for (const size of h.sizes) {
    h.live(h.form('mov', 'Rv Gv', size));
    h.live(h.form('mov', 'Rv Iz', size));
    h.live(h.form('movsx', 'Gv Rb', size));
  }
  h.live(h.form('movzx', 'Gv Rb', 4));
  h.live(h.form('movzx', 'Gv Rw', 4));
  if (h.long) h.live(h.form('movsxd', 'Gv Rz', 8));
  if (h.long) h.live(h.form('cbw', '', 8));
  for (const memory of h.addresses) {
    for (const size of h.sizes) {
      h.live(h.form('mov', 'Gv Ev', size, { memory }));
      h.live(h.form('mov', 'Ev Gv', size, { memory }));
      h.live(h.form('lea', 'Gv M', size, { memory }));
    }
    h.live(h.form('movzx', 'Gv Eb', 4, { memory }));
    h.live(h.form('mov', 'Eb Gb', 1, { memory }));
  }
  for (const memory of ['base', 'index'] as const) {
    h.live(h.form('movzx', 'Gv Ew', 4, { memory }));
    h.live(h.form('mov', 'Eb Ib', 1, { memory }));
    for (const size of h.sizes) h.live(h.form('mov', 'Ev Iz', size, { memory }));
  }
  for (const size of h.sizes) {
    h.live(h.form('add', 'Gv Ev', size, { memory: 'base' }));
    h.dead(h.form('add', 'Gv Ev', size, { memory: 'base' }));
    h.live(h.form('add', 'Ev Gv', size, { memory: 'base' }));
    h.live(h.form('add', 'Ev Iz', size, { memory: 'base' }));
  }
}

function control(h: HotList): void {
  for (let cc = 0; cc < 16; cc++) h.live(h.jcc(cc));
  h.live(h.form('jmp', 'Jb', h.word));
  h.live(h.form('jmp', 'Rv', h.word));
  h.live(h.form('jmp', 'Ev', h.word, { memory: 'base' }));
  h.live(h.form('call', 'Jz', h.word));
  h.live(h.form('call', 'Rv', h.word));
  h.live(h.form('call', 'Ev', h.word, { memory: 'base' }));
  h.live(h.form('ret', '', h.word));
  h.live(h.form('push', 'Rv', h.word));
  h.live(h.form('pop', 'Rv', h.word));
  h.live(h.form('push', 'Iz', h.word));
  h.live(h.form('leave', '', h.word));
  h.live(h.form('nop', '', 4));
  for (const cc of [4, 5]) {
    h.live(h.form('setcc', 'Rb', 1, { condition: cc }));
    for (const size of h.sizes) h.live(h.form('cmovcc', 'Gv Rv', size, { condition: cc }));
  }
}

/** Repeated string instructions: a handler of their own saves the call per element. */
function strings(h: HotList): void {
  for (const size of [1, h.word] as const) {
    const letter = size === 1 ? 'b' : 'v';
    h.live(h.form('movs', `Y${letter} X${letter}`, size, { rep: 0xf3 }));
    h.live(h.form('stos', size === 1 ? 'Yb AL' : 'Yv rAX', size, { rep: 0xf3 }));
  }
}

/** All of them, in the order of their numbers. */
export function hotForms(long: boolean): HotForm[] {
  const h = new HotList(long);
  moves(h);
  arithmetic(h);
  comparisons(h);
  control(h);
  strings(h);
  return h.list;
}
