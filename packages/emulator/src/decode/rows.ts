/**
 * How the decode tables are written: an encoding as the manuals print it, a mnemonic, operands, flags; and what follows from them.
 * Manual: APM vol. 3 section 1.2, SDM vol. 2 section 3.1.1 (encoding notation).
 */
import type { FeatureName } from '../cpu/features.ts';
import { INTERCEPT_ID, type Intercept } from '../intercepts.ts';
import type { InterceptStage } from '../ops.ts';
import type { OperandSpec, Row } from './instruction.ts';

/** Flags of a row: what its encoding and operands do not say already. */
export type RowFlag =
  | 'lock'
  | 'no64'
  | 'only64'
  /** Operand size in 64-bit mode: 64 or 16 / always 64 / as near branches (64; AMD: 16 with 66). */
  | 'd64'
  | 'f64'
  | 'near64'
  /** #UD in real and virtual-8086 mode. */
  | 'prot'
  | 'priv'
  | 'string'
  /** Exists for this vendor only. */
  | 'amd'
  | 'intel'
  /** In KVM's emulator / not in it / in its table without an implementation. */
  | 'kvm'
  | '-kvm'
  | 'kvm-decode'
  | 'on-ud'
  /** modrm.mod is ignored: always a register. */
  | 'mod-ignored'
  /** The memory operand has a vector index. */
  | 'vsib'
  | `?${FeatureName}`
  | `@${Intercept}`;

/** Where an encoding sits in the opcode maps. */
export interface Slot {
  vex: boolean;
  /** 0 one byte, 1 0F, 2 0F38, 3 0F3A. */
  map: 0 | 1 | 2 | 3;
  opcode: number;
  /** 8 where the low three bits name a register: one row object serves all. */
  opcodeCount: number;
  /** Mandatory prefixes, one bit each: 1 none, 2 66, 4 F3, 8 F2; 0: prefixes select nothing. */
  prefixes: number;
  /** modrm.reg, or -1; whole modrm byte (first, count), or -1. */
  ext: number;
  modrmFirst: number;
  modrmCount: number;
  /** VEX.L and VEX.W: 0, 1, or -1 (ignored). */
  l: number;
  w: number;
}

/** What the decoder needs of a row beyond the contract. */
export interface TableRow extends Row {
  slot: Slot;
  /** How opSize is found; see decode.ts. */
  sizeRule: 'byte' | 'v' | 'y' | 'z';
  near64: boolean;
  /** Immediate bytes to fetch, in order. */
  immediates: readonly string[];
  hasModrm: boolean;
  modIgnored: boolean;
  vsib: boolean;
  /** The segment register, control or debug register operand in modrm.reg, if any, and whether it is written. */
  special: '' | 'S' | 'C' | 'D';
  specialWritten: boolean;
  /** Far pointer in memory: AMD has no 64-bit offset. */
  farMemory: boolean;
  usesVvvv: boolean;
  /** modrm.reg / modrm.rm names a register of which there are eight (MMX, x87, segment): REX.R / REX.B is ignored. */
  reg8: boolean;
  rm8: boolean;
  /** The row with REX.W in 64-bit mode, where that is another instruction. */
  wide: TableRow | undefined;
  /** What an `or-plain` row is without its feature. */
  plain: TableRow | undefined;
  vendor: '' | 'amd' | 'intel';
}

/** Stage of each intercept (facts of KVM's x86_intercept map; VMX instructions exit before their CPL check, SDM vol. 3 section 26.1). */
const PRE_EXCEPT: ReadonlySet<Intercept> = new Set<Intercept>([
  'cpuid',
  'rsm',
  'pause',
  'pushf',
  'popf',
  'intn',
  'iret',
  'icebp',
  'xsetbv',
  'vmcall',
  'vmclear',
  'vmlaunch',
  'vmptrld',
  'vmptrst',
  'vmread',
  'vmresume',
  'vmwrite',
  'vmxoff',
  'vmxon',
  'invept',
  'invvpid',
  'vmfunc',
  'getsec',
]);
const stageOf = (intercept: Intercept): InterceptStage =>
  PRE_EXCEPT.has(intercept) ? 'preExcept' : intercept === 'monitor' ? 'postMemAccess' : 'postExcept';

const BRANCHES = new Set(['jcc', 'jmp', 'call', 'ret', 'loop', 'loope', 'loopne', 'jcxz', 'xbegin']);
/** Instructions without an intercept that change mode, segments, interruptibility, or never complete. */
const SYSTEM = new Set(
  (
    'callfar jmpfar retfar sti cli popseg les lds lss lfs lgs syscall sysret sysenter sysexit swapgs clac stac into int3 int1 ' +
    'ud0 ud1 ud2 wrfsbase wrgsbase vmgexit mwaitx monitorx encls enclu enclv'
  ).split(' '),
);

const systemNumbers = new Map<string, number>();
/** Numbers from 1 in the order of first use: what tables by system instruction are indexed by. */
export function systemNumber(mnemonic: string): number {
  let number = systemNumbers.get(mnemonic);
  if (number === undefined) systemNumbers.set(mnemonic, (number = systemNumbers.size + 1));
  return number;
}

const PREFIX_BITS: Record<string, number> = { NP: 1, '66': 2, F3: 4, F2: 8 };
const MAPS: Record<string, 0 | 1 | 2 | 3> = { '0F': 1, '0F38': 2, '0F3A': 3 };
const MEMORY_SPEC = /^M/;
const REGISTER_SPEC = /^[RUN][a-z]+$/;
const MODRM_SPEC = /^([EGMRVWUPQN]([a-z]|$)|[CD]y|Sw)/;
const BYTE_SPEC = /^([EGZXYO]b|AL)$/;
const IMMEDIATE_SPEC = /^([IJOL][a-z]|Ap)/;

const prefixBits = (token: string): number =>
  token.split('|').reduce((bits, part) => bits | (PREFIX_BITS[part] ?? Number.NaN), 0);

function parseVex(token: string, slot: Slot): void {
  const [, l, pp, map, w] = token.split('.');
  slot.vex = true;
  slot.l = l === '256' ? 1 : l === 'LIG' ? -1 : 0;
  slot.prefixes = prefixBits(pp);
  slot.map = MAPS[map];
  slot.w = w === 'W0' ? 0 : w === 'W1' ? 1 : -1;
}

/** Parses an encoding: `VEX.128.66.0F.WIG 6F /r`, `F3 0F B8 /r`, `0F 01 C1`, `D8 C0+i`, `40+r`. */
function parseEncoding(encoding: string): Slot {
  const slot: Slot = {
    vex: false,
    map: 0,
    opcode: -1,
    opcodeCount: 1,
    prefixes: 0,
    ext: -1,
    modrmFirst: -1,
    modrmCount: 0,
    l: -1,
    w: -1,
  };
  const tokens = encoding.split(' ');
  for (const [i, token] of tokens.entries()) {
    if (token.startsWith('VEX')) parseVex(token, slot);
    else if (i === 0 && tokens.length > 1 && (token in PREFIX_BITS || token.includes('|')))
      slot.prefixes = prefixBits(token);
    else if (slot.map === 0 && slot.opcode < 0 && token in MAPS) slot.map = MAPS[token];
    else if (token === '/r') continue;
    else if (token.startsWith('/')) slot.ext = Number(token[1]);
    else if (slot.opcode < 0) {
      slot.opcode = Number.parseInt(token, 16);
      if (token.endsWith('+r')) slot.opcodeCount = 8;
    } else {
      slot.modrmFirst = Number.parseInt(token, 16);
      slot.modrmCount = token.endsWith('+i') ? 8 : 1;
    }
  }
  return slot;
}

function modrmOf(slot: Slot, operands: readonly OperandSpec[], modIgnored: boolean): Row['modrm'] {
  if (slot.modrmFirst >= 0) return 'register';
  if (!modIgnored && operands.some((spec) => MEMORY_SPEC.test(spec))) return 'memory';
  if (operands.some((spec) => REGISTER_SPEC.test(spec))) return modIgnored ? 'any' : 'register';
  return slot.ext >= 0 || operands.some((spec) => MODRM_SPEC.test(spec)) ? 'any' : 'none';
}

function sizeRuleOf(operands: readonly OperandSpec[], unit: Row['unit']): TableRow['sizeRule'] {
  const some = (test: RegExp): boolean => operands.some((spec) => test.test(spec));
  if (unit === 'integer' && some(BYTE_SPEC) && !some(/^([A-Z][vzy]|rAX|eAX)$/)) return 'byte';
  if (some(/^(eAX|[XY]z)$/)) return 'z';
  return some(/^[A-Z]y/) && !some(/^[A-Z]v$/) ? 'y' : 'v';
}

/** Facts that hold for a whole table. */
export interface TableDefaults {
  unit: Row['unit'];
  kvm: boolean;
  feature?: FeatureName;
}

function blockEndOf(mnemonic: string, intercept: Intercept, operands: readonly OperandSpec[]): Row['blockEnd'] {
  if (BRANCHES.has(mnemonic)) return 'branch';
  if (SYSTEM.has(mnemonic) || intercept !== 'none') return 'system';
  return mnemonic === 'movseg' && operands[0] === 'Sw' ? 'system' : 'none';
}

function makeRow(
  slot: Slot,
  mnemonic: string,
  operandText: string,
  flags: readonly RowFlag[],
  defaults: TableDefaults,
): TableRow {
  const operands = operandText === '' ? [] : operandText.split(' ');
  const has = (flag: RowFlag): boolean => flags.includes(flag);
  const feature = flags.find((flag) => flag[0] === '?')?.slice(1) ?? defaults.feature;
  const intercept = (flags.find((flag) => flag[0] === '@')?.slice(1) ?? 'none') as Intercept;
  const sizeRule = sizeRuleOf(operands, defaults.unit);
  const modrm = modrmOf(slot, operands, has('mod-ignored'));
  const special = operands.find((spec) => /^([CD]y|Sw)$/.test(spec));
  const blockEnd = blockEndOf(mnemonic, intercept, operands);
  return {
    mnemonic,
    operands,
    byteOp: sizeRule === 'byte',
    lockable: has('lock'),
    no64: has('no64'),
    only64: has('only64'),
    default64: has('d64') || has('near64'),
    force64: has('f64'),
    protectedOnly: has('prot') || slot.vex,
    privileged: has('priv'),
    modrm,
    string: has('string'),
    feature,
    intercept,
    interceptId: INTERCEPT_ID[intercept],
    interceptStage: stageOf(intercept),
    kvm: has('kvm') || has('kvm-decode') || (defaults.kvm && !has('-kvm')),
    kvmDecodeOnly: has('kvm-decode'),
    emulateOnUD: has('on-ud'),
    blockEnd,
    systemNumber: blockEnd === 'system' ? systemNumber(mnemonic) : 0,
    unit: defaults.unit,
    slot,
    sizeRule,
    near64: has('near64'),
    immediates: operands.filter((spec) => IMMEDIATE_SPEC.test(spec)),
    hasModrm: modrm !== 'none',
    modIgnored: has('mod-ignored'),
    vsib: has('vsib'),
    special: (special?.[0] ?? '') as TableRow['special'],
    specialWritten: special !== undefined && operands[0] === special,
    farMemory: operands.includes('Mp'),
    usesVvvv: operands.some((spec) => /^[HB][a-z]/.test(spec)),
    reg8: operands.some((spec) => /^(P[a-z]|Sw)/.test(spec)),
    rm8: defaults.unit === 'x87' || operands.some((spec) => /^[QN][a-z]/.test(spec)),
    wide: undefined,
    plain: undefined,
    vendor: has('amd') ? 'amd' : has('intel') ? 'intel' : '',
  };
}

/** A row as it is written in a table: encoding, mnemonic, operands, flags. `+cc` in the encoding makes sixteen rows with a condition each. */
export type RowText = readonly [encoding: string, mnemonic: string, operands: string, ...flags: RowFlag[]];

/** Turns written rows into table rows. */
export function rows(defaults: TableDefaults, texts: readonly RowText[]): TableRow[] {
  const result: TableRow[] = [];
  for (const [encoding, mnemonic, operands, ...flags] of texts) {
    const slot = parseEncoding(encoding.replace('+cc', ''));
    const row = makeRow(slot, mnemonic, operands, flags, defaults);
    if (encoding.includes('+cc')) {
      for (let condition = 0; condition < 16; condition++) {
        result.push({ ...row, condition, slot: { ...slot, opcode: slot.opcode + condition } });
      }
    } else {
      result.push(row);
    }
  }
  return result;
}
