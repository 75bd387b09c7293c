/** Registers of both sides under one set of names, and what counts as a difference. */
import type { KvmSegment, Vcpu } from '@tskvm/core';
import { type Instruction, RflagsBits } from 'iced-x86';

export type State = Map<string, bigint>;

const GPRS = ['ax', 'bx', 'cx', 'dx', 'si', 'di', 'bp', 'sp', '8', '9', '10', '11', '12', '13', '14', '15'] as const;
const SEGMENTS = ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'ldt', 'tr'] as const;

/** QEMU's `info registers`. */
export function parseRegisters(text: string): State {
  const state: State = new Map();
  const put = (name: string, digits: string): void => {
    state.set(name, BigInt(`0x${digits}`));
  };
  for (const [, name, digits] of text.matchAll(/\b([A-Z][A-Z0-9]{1,4})\s*=([0-9a-f]+)/g)) {
    const general =
      /^[ER]([A-D]X|[SD]I|[BS]P|IP|FL)$/.exec(name)?.[1] ?? (/^R(8|9|1[0-5])$/.exec(name)?.[1] || undefined);
    if (general) put(`r${general.toLowerCase()}`, digits);
    else if (/^(CR\d|DR\d|EFER|SMM|FCW|FSW|FTW|MXCSR)$/.test(name)) put(name.toLowerCase(), digits);
  }
  for (const [, name, selector, base, limit, attributes] of text.matchAll(
    /^(CS|SS|DS|ES|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)/gm,
  )) {
    const at = name.toLowerCase();
    put(at, selector);
    put(`${at}.base`, base);
    put(`${at}.limit`, limit);
    // QEMU shows the descriptor's upper half, limit 19:16 among it.
    state.set(`${at}.attributes`, BigInt(`0x${attributes}`) & 0xf0ff00n);
  }
  for (const [, name, base, limit] of text.matchAll(/^(GDT|IDT) *= *([0-9a-f]+) ([0-9a-f]+)/gm)) {
    put(`${name.toLowerCase()}.base`, base);
    put(`${name.toLowerCase()}.limit`, limit);
  }
  return state;
}

const attributesOf = (s: KvmSegment): bigint =>
  BigInt(
    ((s.type | (s.s << 4) | (s.dpl << 5) | (s.present << 7)) << 8) |
      ((s.avl | (s.l << 1) | (s.db << 2) | (s.g << 3)) << 20),
  );

/** The same names for a vCPU; a segment that can't be used has its selector alone. */
export function stateOf(vcpu: Vcpu): State {
  const regs = vcpu.getRegs() as unknown as Record<string, bigint>;
  const sregs = vcpu.getSregs();
  const debug = vcpu.getDebugregs();
  const state: State = new Map();
  for (const name of [...GPRS, 'ip']) state.set(`r${name}`, regs[`r${name}`]);
  state.set('rfl', regs.rflags);
  for (const name of SEGMENTS) {
    const segment = sregs[name];
    state.set(name, BigInt(segment.selector));
    if (segment.unusable) continue;
    state.set(`${name}.base`, segment.base);
    state.set(`${name}.limit`, BigInt(segment.limit));
    state.set(`${name}.attributes`, attributesOf(segment));
  }
  for (const name of ['gdt', 'idt'] as const) {
    state.set(`${name}.base`, sregs[name].base);
    state.set(`${name}.limit`, BigInt(sregs[name].limit));
  }
  for (const name of ['cr0', 'cr2', 'cr3', 'cr4', 'efer'] as const) state.set(name, sregs[name]);
  debug.db.forEach((value, i) => {
    state.set(`dr${i}`, value);
  });
  state.set('dr6', debug.dr6);
  state.set('dr7', debug.dr7);
  state.set('smm', vcpu.getVcpuEvents().smi.smm ? 1n : 0n);
  return state;
}

export const is64Bit = (state: State): boolean =>
  ((state.get('cs.attributes') ?? 0n) & (1n << 21n)) !== 0n && ((state.get('efer') ?? 0n) & 0x400n) !== 0n;

/** What QEMU does not set in a descriptor that it caches: accessed (far branches to code) and busy (LTR). */
const TOLERATED = [0x100n, 0x200n];

/** Names whose values differ; QEMU shows 32 bits outside 64-bit code. */
const maskOf = (name: string, long: boolean, undefinedFlags: bigint): bigint => {
  const wide = /^(r|cr|dr|gdt|idt|.*base)/;
  // QEMU 7.2 does not keep RF in the images of faults; KVM on AMD derives G from the limit. SYSENTER and SYSEXIT there leave D beside L.
  if (name === 'rfl') return ~(undefinedFlags | 0x10000n);
  if (name === 'cs.attributes' && long) return ~0xc00000n;
  if (name.endsWith('attributes')) return ~0x800000n;
  return long || !wide.test(name) ? -1n : 0xffff_ffffn;
};
export function differences(ours: State, theirs: State, undefinedFlags: bigint): string[] {
  const long = is64Bit(ours);
  return [...ours.keys()].filter((name) => {
    const theirsValue = theirs.get(name);
    if (theirsValue === undefined) return false;
    const mask = maskOf(name, long, undefinedFlags);
    const value = ours.get(name) ?? 0n;
    if (name.endsWith('attributes') && TOLERATED.includes((value & mask) - (theirsValue & mask))) return false;
    return BigInt.asUintN(64, value & mask) !== BigInt.asUintN(64, theirsValue & mask);
  });
}

const FLAG_BITS: [number, bigint][] = [
  [RflagsBits.OF, 0x800n],
  [RflagsBits.SF, 0x80n],
  [RflagsBits.ZF, 0x40n],
  [RflagsBits.AF, 0x10n],
  [RflagsBits.CF, 0x1n],
  [RflagsBits.PF, 0x4n],
];
export const undefinedFlagsOf = (instruction: Instruction): bigint =>
  FLAG_BITS.reduce((mask, [bit, flag]) => (instruction.rflagsUndefined & bit ? mask | flag : mask), 0n);
