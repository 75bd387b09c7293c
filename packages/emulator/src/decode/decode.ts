/**
 * The decoder: bytes to one {@link Instruction}, for 16-, 32- and 64-bit code of both vendors.
 * Manual: APM vol. 3 chapter 1, SDM vol. 2 chapter 2.
 */
import type { DecodeMode, DecodeResult, Instruction } from './instruction.ts';
import type { TableRow } from './rows.ts';
import { type Node, type OpcodeMaps, opcodeMaps } from './tables/index.ts';
import { NOP_ROW } from './tables/one-byte.ts';

/** Longest instruction in bytes (APM vol. 3 section 1.1, SDM vol. 2 section 2.3.11). */
export const MAX_INSTRUCTION_LENGTH = 15;

/** A fresh {@link Instruction} for {@link decode} to fill. */
export function createInstruction(): Instruction {
  return {
    row: NOP_ROW,
    length: 0,
    bytes: new Uint8Array(MAX_INSTRUCTION_LENGTH),
    codeSize: 2,
    opSize: 2,
    addrSize: 2,
    rex: 0,
    lock: false,
    rep: 0,
    opSizePrefix: false,
    segOverride: -1,
    opcode: 0,
    modrm: -1,
    mod: 0,
    reg: 0,
    rm: 0,
    opReg: 0,
    seg: 3,
    base: -1,
    index: -1,
    scale: 0,
    disp: 0n,
    ripRelative: false,
    imm: 0n,
    imm2: 0,
    vex: { present: false, l: 0, w: 0, vvvv: 0, pp: 0 },
  };
}

/** The bytes being decoded. Decoding never nests, so that one reader serves. */
const reader = {
  bytes: new Uint8Array(0) as Uint8Array,
  position: 0,
  limit: 0,
  /** A byte beyond the limit was asked for. */
  exhausted: false,
};

function next8(): number {
  if (reader.position < reader.limit) return reader.bytes[reader.position++];
  reader.exhausted = true;
  return 0;
}
const nextS8 = (): number => (next8() << 24) >> 24;
const next16 = (): number => next8() | (next8() << 8);
const nextS16 = (): number => (next16() << 16) >> 16;
const nextS32 = (): number => next16() | (next16() << 16);
const next64 = (): bigint => BigInt(nextS32() >>> 0) | (BigInt(nextS32() >>> 0) << 32n);

const OPERAND_SIZE = 7;
const ADDRESS_SIZE = 8;
const LOCK = 9;
const REPNE = 10;
const REPE = 11;
/** Kind of each legacy prefix: segment number + 1, or one of the above; 0: not a prefix. */
const PREFIX_KIND = new Uint8Array(256);
for (const [byte, kind] of [
  [0x26, 1],
  [0x2e, 2],
  [0x36, 3],
  [0x3e, 4],
  [0x64, 5],
  [0x65, 6],
  [0x66, OPERAND_SIZE],
  [0x67, ADDRESS_SIZE],
  [0xf0, LOCK],
  [0xf2, REPNE],
  [0xf3, REPE],
]) {
  PREFIX_KIND[byte] = kind;
}

function reset(into: Instruction, mode: DecodeMode): void {
  into.codeSize = mode.codeSize;
  into.addrSize = mode.codeSize;
  into.rex = 0;
  into.lock = false;
  into.rep = 0;
  into.opSizePrefix = false;
  into.segOverride = -1;
  into.modrm = -1;
  into.mod = 0;
  into.reg = 0;
  into.rm = 0;
  into.base = -1;
  into.index = -1;
  into.scale = 0;
  into.disp = 0n;
  into.ripRelative = false;
  into.imm = 0n;
  into.imm2 = 0;
  into.vex.present = false;
  into.vex.l = 0;
  into.vex.w = 0;
  into.vex.vvvv = 0;
  into.vex.pp = 0;
}

function applyPrefix(into: Instruction, kind: number): void {
  switch (kind) {
    case OPERAND_SIZE:
      into.opSizePrefix = true;
      break;
    case ADDRESS_SIZE:
      into.addrSize = into.codeSize === 4 ? 2 : 4;
      break;
    case LOCK:
      into.lock = true;
      break;
    case REPNE:
      into.rep = 0xf2;
      break;
    case REPE:
      into.rep = 0xf3;
      break;
    default:
      // 64-bit mode ignores ES, CS, SS and DS overrides; an FS or GS override before them stays (APM vol. 3 section 1.2.4).
      if (into.codeSize !== 8 || kind >= 5) into.segOverride = kind - 1;
  }
}

/** Consumes prefixes; returns the first byte that is none. A REX counts only if it is the last (APM vol. 3 section 1.2.7). */
function readPrefixes(into: Instruction): number {
  for (;;) {
    const byte = next8();
    if (into.codeSize === 8 && (byte & 0xf0) === 0x40) {
      into.rex = byte;
      continue;
    }
    const kind = PREFIX_KIND[byte];
    if (kind === 0) return byte;
    into.rex = 0;
    applyPrefix(into, kind);
    if (reader.exhausted) return 0;
  }
}

/** REX.W, R, X, B of the instruction at hand, from REX or VEX, as a REX byte's low nibble; 0 outside 64-bit mode. */
let wrxb = 0;

/** C4 and C5 are VEX in 64-bit mode, and elsewhere if what follows would be a register form of LES or LDS. */
const isVex = (into: Instruction, byte: number): boolean =>
  (byte === 0xc4 || byte === 0xc5) &&
  (into.codeSize === 8 || (reader.position < reader.limit && reader.bytes[reader.position] >= 0xc0));

/** Reads a VEX prefix and the opcode behind it; the node, or null. */
function readVex(into: Instruction, first: number, maps: OpcodeMaps): Node {
  const { vex } = into;
  const illegal = into.lock || into.rep !== 0 || into.opSizePrefix || into.rex !== 0;
  let map = 1;
  let payload = next8();
  wrxb = (~payload >> 5) & 4;
  if (first === 0xc4) {
    wrxb = (~payload >> 5) & 7;
    map = payload & 0x1f;
    payload = next8();
    vex.w = payload >> 7;
    wrxb |= vex.w << 3;
  }
  if (into.codeSize !== 8) wrxb = 0;
  vex.present = true;
  vex.vvvv = (~payload >> 3) & 15;
  vex.l = (payload >> 2) & 1;
  vex.pp = payload & 3;
  const opcode = next8();
  if (illegal || map < 1 || map > 3) return null;
  into.opcode = opcodeId(map, opcode);
  return maps.vex[map].at(opcode, vex.pp * 4 + vex.l * 2 + vex.w);
}

const MAP_BASE = [0, 0x0f00, 0x0f3800, 0x0f3a00];
const opcodeId = (map: number, opcode: number): number => MAP_BASE[map] | opcode;
/** F2 and F3 select before 66 does. */
const prefixColumn = (into: Instruction): number =>
  into.rep === 0xf3 ? 2 : into.rep === 0xf2 ? 3 : into.opSizePrefix ? 1 : 0;

/** Reads escape bytes and the opcode; the node, or null. */
function readOpcode(into: Instruction, first: number, maps: OpcodeMaps): Node {
  if (isVex(into, first)) return readVex(into, first, maps);
  wrxb = into.rex & 15;
  let map = 0;
  let opcode = first;
  if (first === 0x0f) {
    map = 1;
    opcode = next8();
    if (opcode === 0x38 || opcode === 0x3a) {
      map = opcode === 0x38 ? 2 : 3;
      opcode = next8();
    }
  }
  into.opcode = opcodeId(map, opcode);
  return maps.legacy[map].at(opcode, prefixColumn(into));
}

/** Base and index of 16-bit addressing by rm (APM vol. 3 table 1-9): BX+SI, BX+DI, BP+SI, BP+DI, SI, DI, BP, BX. */
const BASE16 = [3, 3, 5, 5, 6, 7, 5, 3];
const INDEX16 = [6, 7, 6, 7, -1, -1, -1, -1];

function readAddress16(into: Instruction, mod: number, rm: number): void {
  if (mod === 0 && rm === 6) {
    into.disp = BigInt(nextS16());
    return;
  }
  into.base = BASE16[rm];
  into.index = INDEX16[rm];
  if (mod !== 0) into.disp = BigInt(mod === 1 ? nextS8() : nextS16());
}

function readSib(into: Instruction, mod: number, vectorIndex: boolean): void {
  const sib = next8();
  const index = ((sib >> 3) & 7) | ((wrxb & 2) << 2);
  into.scale = sib >> 6;
  into.index = index === 4 && !vectorIndex ? -1 : index;
  if ((sib & 7) === 5 && mod === 0) into.disp = BigInt(nextS32());
  else into.base = (sib & 7) | ((wrxb & 1) << 3);
}

function readAddress(into: Instruction, vectorIndex: boolean): void {
  const { mod } = into;
  const rm = into.modrm & 7;
  if (into.addrSize === 2) {
    readAddress16(into, mod, rm);
  } else if (rm === 4) {
    readSib(into, mod, vectorIndex);
  } else if (rm === 5 && mod === 0) {
    into.disp = BigInt(nextS32());
    into.ripRelative = into.codeSize === 8;
  } else {
    into.base = rm | ((wrxb & 1) << 3);
  }
  if (into.addrSize !== 2 && mod !== 0) into.disp = BigInt(mod === 1 ? nextS8() : nextS32());
}

/** Takes modrm apart and reads what follows it. */
function readOperandBytes(into: Instruction, row: TableRow): void {
  const { modrm } = into;
  into.mod = row.modIgnored ? 3 : modrm >> 6;
  into.reg = ((modrm >> 3) & 7) | (row.reg8 ? 0 : (wrxb & 4) << 1);
  into.rm = (modrm & 7) | (row.rm8 ? 0 : (wrxb & 1) << 3);
  if (into.mod !== 3) readAddress(into, row.vsib);
}

/** Default segment: SS if the base is rSP or rBP (APM vol. 1 section 2.2.2), else DS. */
const effectiveSegment = (into: Instruction): number =>
  into.segOverride >= 0 ? into.segOverride : into.base === 4 || into.base === 5 ? 2 : 3;

/** Operand size of a row by prefixes and mode (APM vol. 3 section 1.2.2, table 1-2; SDM vol. 1 section 3.6). */
function operandSize(into: Instruction, row: TableRow, intel: boolean): 1 | 2 | 4 | 8 {
  if (row.sizeRule === 'byte') return 1;
  const long = into.codeSize === 8;
  if (long && (row.force64 || (row.near64 && (intel || !into.opSizePrefix)))) return 8;
  const wide = long && (wrxb & 8) !== 0;
  // AMD has no 64-bit offsets in far pointers.
  if (wide && row.farMemory && !intel) return 4;
  if (row.sizeRule === 'y') return wide ? 8 : 4;
  if (wide && row.sizeRule !== 'z') return 8;
  if (long && row.default64) return into.opSizePrefix ? 2 : 8;
  return into.opSizePrefix === (into.codeSize === 2) ? 4 : 2;
}

/** Reads one immediate of `opSize`; see mnemonics.ts for the letters. */
function readImmediate(into: Instruction, spec: string): bigint {
  switch (spec) {
    case 'Ibs':
    case 'Jb':
      return BigInt(nextS8());
    case 'Iw':
      return BigInt(next16());
    case 'Iz':
    case 'Jz':
      return BigInt(into.opSize === 2 ? nextS16() : nextS32());
    case 'Iv':
      return into.opSize === 8 ? BigInt.asIntN(64, next64()) : BigInt(into.opSize === 2 ? nextS16() : nextS32());
    case 'Ap':
      return BigInt(into.opSize === 2 ? next16() : nextS32() >>> 0);
    case 'Ob':
    case 'Ov':
      return into.addrSize === 8 ? next64() : BigInt(into.addrSize === 2 ? next16() : nextS32() >>> 0);
    default:
      return BigInt(next8());
  }
}

function readImmediates(into: Instruction, row: TableRow): void {
  const { immediates } = row;
  if (immediates.length === 0) return;
  into.imm = readImmediate(into, immediates[0]);
  if (immediates[0] === 'Ap') into.imm2 = next16();
  else if (immediates.length > 1) into.imm2 = next8();
}

/** LOCK: legal on lockable rows with a memory destination; before MOV CR0 it means CR8 (AMD, APM vol. 3 MOV CRn). */
function lockLegal(into: Instruction, row: TableRow, mode: DecodeMode): boolean {
  if (row.lockable) return into.mod !== 3 && (row.operands[0][0] === 'E' || row.operands[0][0] === 'M');
  if (row.special !== 'C' || mode.intel || into.reg !== 0) return false;
  if (mode.features !== undefined && !mode.features.has('cr8legacy')) return false;
  into.reg = 8;
  into.lock = false;
  return true;
}

/** CR0, CR2, CR3, CR4, CR8 exist. */
const CONTROL_REGISTERS = 0b1_0001_1101;

function specialLegal(into: Instruction, row: TableRow): boolean {
  if (row.special === 'S') return into.reg < 6 && !(row.specialWritten && into.reg === 1);
  if (row.special === 'C') return ((CONTROL_REGISTERS >> into.reg) & 1) === 1;
  return into.reg < 8;
}

/** A gather needs a SIB byte and three different registers (SDM vol. 2 VPGATHERDD). */
const vsibLegal = (into: Instruction): boolean =>
  (into.modrm & 7) === 4 &&
  into.addrSize !== 2 &&
  into.reg !== into.index &&
  into.reg !== into.vex.vvvv &&
  into.index !== into.vex.vvvv;

function legal(into: Instruction, row: TableRow, mode: DecodeMode): boolean {
  const { vex } = into;
  if (vex.present) {
    if (!row.usesVvvv && vex.vvvv !== 0) return false;
    if (into.codeSize !== 8) vex.vvvv &= 7;
    if (row.vsib && !vsibLegal(into)) return false;
  }
  if (into.lock && !lockLegal(into, row, mode)) return false;
  return row.special === '' || specialLegal(into, row);
}

/** Applies what the tables do not say: REX.W and REX.B variants, absent features. Undefined: no such instruction. */
function finalRow(into: Instruction, found: TableRow, features: ReadonlySet<string> | undefined): TableRow | undefined {
  let row = found;
  if (row.wide !== undefined && (wrxb & 8) !== 0) row = row.wide;
  if (into.opcode === 0x90 && (wrxb & 1) === 0 && row.mnemonic === 'xchg') row = NOP_ROW;
  if (features === undefined || row.feature === undefined || features.has(row.feature)) return row;
  return row.plain;
}

const runOut = (available: number): DecodeResult => (available >= MAX_INSTRUCTION_LENGTH ? 'too-long' : 'need-more');

/** Prefixes, opcode and modrm: the row, or why there is none. */
function findRow(into: Instruction, available: number, mode: DecodeMode): TableRow | DecodeResult {
  const maps = opcodeMaps(mode.codeSize === 8, mode.intel);
  const first = readPrefixes(into);
  if (reader.exhausted) return runOut(available);
  let node = readOpcode(into, first, maps);
  if (reader.exhausted) return runOut(available);
  if (node === null) return 'undefined-opcode';
  if (Array.isArray(node) || (node as TableRow).hasModrm) {
    into.modrm = next8();
    if (reader.exhausted) return runOut(available);
    if (Array.isArray(node)) node = node[into.modrm] as Node;
  }
  const row = node === null ? undefined : finalRow(into, node as TableRow, mode.features);
  return row ?? 'undefined-opcode';
}

/**
 * Decodes one instruction.
 *
 * @param bytes code bytes; they are copied into `into.bytes`
 * @param available how many of them may be used (more than 15 are never looked at)
 * @param mode code size, vendor, features
 * @param into filled; only meaningful if the result is 'ok'
 * @returns 'ok'; 'undefined-opcode' (#UD); 'too-long' (more than 15 bytes: #GP(0)); 'need-more' (a longer fetch, or its fault, is needed)
 */
export function decode(bytes: Uint8Array, available: number, mode: DecodeMode, into: Instruction): DecodeResult {
  reader.bytes = bytes;
  reader.position = 0;
  reader.limit = Math.min(available, MAX_INSTRUCTION_LENGTH);
  reader.exhausted = false;
  reset(into, mode);
  const row = findRow(into, available, mode);
  if (typeof row === 'string') return row;
  into.row = row;
  into.opReg = (into.opcode & 7) | ((wrxb & 1) << 3);
  into.opSize = operandSize(into, row, mode.intel);
  if (row.hasModrm) readOperandBytes(into, row);
  readImmediates(into, row);
  if (reader.exhausted) return runOut(available);
  into.seg = effectiveSegment(into);
  into.length = reader.position;
  for (let i = 0; i < into.length; i++) into.bytes[i] = bytes[i];
  return legal(into, row, mode) ? 'ok' : 'undefined-opcode';
}
