/**
 * Instructions on single flags. Those that need a privilege (CLI, STI, PUSHF, POPF) are in system/.
 * Manual: APM vol. 3 ch. 3 (CLC, CLD, CMC, LAHF, SAHF, STC, STD); SALC is undocumented.
 */
import type { Semantics } from '../builder/builder.ts';
import { Flag } from '../state-layout.ts';
import { reg } from './support.ts';

/** SF ZF AF PF CF, as LAHF and SAHF move them. */
const AH_FLAGS = Flag.SF | Flag.ZF | Flag.AF | Flag.PF | Flag.CF;

const lahf: Semantics = (b) => {
  const flags = b.or(b.and(b.getRflags(), b.const(AH_FLAGS)), b.const(2));
  b.setReg(reg.rax, 2, b.or(b.shl(flags, b.const(8)), b.getReg(reg.rax, 1)));
};

const sahf: Semantics = (b) => b.setRflags(b.shrU(b.getReg(reg.rax, 2), b.const(8)), AH_FLAGS);

export const FLAGS: Record<string, Semantics> = {
  clc: (b) => b.setFlags({ cf: b.false() }),
  stc: (b) => b.setFlags({ cf: b.true() }),
  cmc: (b) => b.setFlags({ cf: b.notC(b.flag('cf')) }),
  cld: (b) => b.setRflags(b.const(0), Flag.DF),
  std: (b) => b.setRflags(b.const(Flag.DF), Flag.DF),
  lahf,
  sahf,
  salc: (b) => b.setReg(reg.rax, 1, b.neg(b.fromCond(b.flag('cf')))),
};
