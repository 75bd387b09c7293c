/**
 * Decimal adjustment.
 * Manual: APM vol. 3 ch. 3 (AAA, AAD, AAM, AAS, DAA, DAS).
 */
import type { Builder, Cond, Semantics, Value } from '../builder/builder.ts';
import { Vector } from '../state-layout.ts';
import { reg, resultFlags } from './support.ts';

const lowDigitOver9 = (b: Builder, al: Value): Cond => b.ltU(b.const(9), b.and(al, b.const(15)));

/** DAA, DAS: AL by 6 for the low digit, by 0x60 for the high one. */
const packed =
  (subtract: boolean): Semantics =>
  (b) => {
    const al = b.getReg(reg.rax, 1);
    const oldCarry = b.flag('cf');
    const low = b.orC(b.flag('af'), lowDigitOver9(b, al));
    const high = b.orC(oldCarry, b.ltU(b.const(0x99), al));
    const by = b.or(b.select(low, b.const(6), b.const(0)), b.select(high, b.const(0x60), b.const(0)));
    const result = b.zext(subtract ? b.sub(al, by) : b.add(al, by), 1);
    // DAS: a borrow of the low digit's adjustment sets CF too.
    const cf = subtract ? b.orC(high, b.andC(low, b.ltU(al, b.const(6)))) : high;
    b.setReg(reg.rax, 1, result);
    // OF is undefined; the processor's is that of the addition or subtraction.
    const of = b.bit(b.and(b.xor(al, result), subtract ? b.xor(al, by) : b.xor(by, result)), 7);
    b.setFlags({ cf, af: low, of, ...resultFlags(b, result, 1) });
  };

/** AAA, AAS: the carry or borrow goes to AH. */
const unpacked =
  (subtract: boolean): Semantics =>
  (b) => {
    const ax = b.getReg(reg.rax, 2);
    const adjust = b.orC(b.flag('af'), lowDigitOver9(b, ax));
    const by = b.select(adjust, b.const(0x106), b.const(0));
    const raw = subtract ? b.sub(ax, by) : b.add(ax, by);
    b.setReg(reg.rax, 2, b.and(raw, b.const(0xff0f)));
    // SF, ZF, PF, OF are undefined; the processor's are those of AX before AL's high digit is cleared.
    const of = b.bit(b.and(b.xor(ax, raw), subtract ? ax : raw), 15);
    b.setFlags({ cf: adjust, af: adjust, of, ...resultFlags(b, raw, 2) });
  };

const aam: Semantics = (b) => {
  const base = b.zext(b.imm(), 1);
  b.raiseWhen(b.isZero(base), Vector.DE);
  const al = b.getReg(reg.rax, 1);
  const digit = b.remU(al, base);
  b.setReg(reg.rax, 2, b.or(b.shl(b.divU(al, base), b.const(8)), digit));
  b.setFlags({ cf: b.false(), of: b.false(), af: b.false(), ...resultFlags(b, digit, 1) });
};

const aad: Semantics = (b) => {
  const base = b.zext(b.imm(), 1);
  const ax = b.getReg(reg.rax, 2);
  const tens = b.zext(b.mul(b.shrU(ax, b.const(8)), base), 1);
  const sum = b.add(b.zext(ax, 1), tens);
  b.setReg(reg.rax, 2, b.zext(sum, 1));
  b.flagsAdd(ax, tens, sum, 1);
};

export const BCD: Record<string, Semantics> = {
  daa: packed(false),
  das: packed(true),
  aaa: unpacked(false),
  aas: unpacked(true),
  aam,
  aad,
};
