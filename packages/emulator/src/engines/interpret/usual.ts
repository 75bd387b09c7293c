/**
 * The usual forms: what booting Linux, SeaBIOS and GRUB runs often, besides hot forms. Their handlers are one module, generated with the build: the
 * host compiles of it what is called.
 */
import type { Size } from '../../builder/builder.ts';
import type { Form } from './form.ts';
import { LEGACY, LONG } from './usual-table.ts';

/** How a form of {@link usualForms} is written. Size of the operand, then in this order, where it differs from the code's plain ones: */
const VARIANT = new RegExp(
  '^([1248])' +
    // Memory by base, index, RIP; sizes of addresses, code and stack; checked segments; the operand's segment.
    '([bir]?)(?:a([248]))?(?:c([248]))?(?:s([248]))?(q?)(?:g([145]))?' +
    // LOCK, REP, REPNE, a count that is not zero, x87; VEX, 256 bits, immediate of a vector instruction.
    '(L?)([en]?)(k?)(x?)(?:v(x?)(w?)(\\d+))?$',
);
const MEMORY = { '': 'none', b: 'base', i: 'index', r: 'rip' } as const;

const word = (text: string | undefined, plain: 4 | 8): 2 | 4 | 8 =>
  text === undefined ? plain : (Number(text) as 2 | 4 | 8);

/** @param name mnemonic, and its condition behind a point */
function formFrom(name: string, operands: string, variant: string, long: boolean): Form {
  const [mnemonic, condition = '-1'] = name.split('.');
  const [, size, memory, address, code, stack, checked, segment, lock, rep, counted, x87, vex, wide, imm] =
    VARIANT.exec(variant)!;
  const plain = long ? 8 : 4;
  return {
    mnemonic: mnemonic!,
    operands: operands.split(','),
    opSize: Number(size) as Size,
    addrSize: word(address, plain),
    codeSize: word(code, plain),
    stackSize: word(stack, plain),
    segments: long ? 'long' : checked === '' ? 'flat' : 'checked',
    special: segment === undefined ? -1 : (Number(segment) as 1 | 4 | 5),
    memory: MEMORY[memory as keyof typeof MEMORY],
    lock: lock !== '',
    rep: rep === '' ? 0 : rep === 'e' ? 0xf3 : 0xf2,
    condition: Number(condition),
    countNotZero: counted !== '',
    vendor: 'amd',
    ...(imm === undefined ? {} : { vector: { vex: vex !== '', wide: wide !== '', imm: Number(imm) } }),
    ...(x87 === '' ? {} : { x87: true as const }),
  };
}

/** The form as {@link formFrom} reads it: name and operands, variant. */
export function writeForm(form: Form): [string, string] {
  const plain = form.segments === 'long' ? 8 : 4;
  const size = (letter: string, bytes: number): string => (bytes === plain ? '' : `${letter}${bytes}`);
  const memory = form.memory === 'none' ? '' : form.memory[0];
  const { vector } = form;
  return [
    `${form.mnemonic}${form.condition < 0 ? '' : `.${form.condition}`} ${form.operands.join()}`,
    [
      `${form.opSize}${memory}${size('a', form.addrSize)}${size('c', form.codeSize)}${size('s', form.stackSize)}`,
      `${form.segments === 'checked' ? 'q' : ''}${form.special < 0 ? '' : `g${form.special}`}`,
      `${form.lock ? 'L' : ''}${{ 0: '', 243: 'e', 242: 'n' }[form.rep]}${form.countNotZero ? 'k' : ''}`,
      `${form.x87 ? 'x' : ''}`,
      vector === undefined ? '' : `v${vector.vex ? 'x' : ''}${vector.wide ? 'w' : ''}${vector.imm}`,
    ].join(''),
  ];
}

/** All of 64-bit code (`long`) or all other code, in the order of their slots. */
export function usualForms(long: boolean): Form[] {
  return (long ? LONG : LEGACY)
    .trim()
    .split('\n')
    .flatMap((line) => {
      const [name, operands, ...variants] = line.split(' ');
      return variants.map((variant) => formFrom(name!, operands!, variant, long));
    });
}
