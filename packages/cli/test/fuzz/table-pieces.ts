/**
 * Pieces of made-up programs that change their own page tables, mostly without a flush, and look whether anybody has noticed: what the TLB
 * still holds then must not depend on engines, budgets and hosts.
 */

import { CHUNK, CHUNKS, type FuzzMode, Place } from '../../../emulator/test/fuzz/layout.ts';
import type { PieceMaker } from '../../../emulator/test/fuzz/program.ts';
import { littleEndian, type Random } from '../../../emulator/test/fuzz/random.ts';
import { exitPiece } from './exit-pieces.ts';

/** Modes whose code runs at level 0 with flat segments. */
export const TABLE_MODES: readonly FuzzMode[] = ['long', 'prot32'];

/** Pages of data, of code, of the stack, of handlers and tables. */
const PAGES = [0x40, 0x41, 0x45, 0x48, 0x4c, 0x43, 0x10, 0x10, 0x11, 0x11, 0x36, 0x09, 0x06];
const DATA = 6;
/** A port of nobody. */
const WITNESS = 0x70;
/** All of memory once more, 16 MiB and 32 MiB up: the same places in a TLB of 4096. */
export const ALIASES = [0x1000000, 0x2000000] as const;
const directory = (alias: number): number => Place.pd + (alias >>> 21) * 8;

/** Makes memory operands of an absolute address. */
type Operand = (reg: number, address: number) => number[];
const operandOf =
  (mode: FuzzMode): Operand =>
  (reg, address) => [...(mode === 'long' ? [(reg << 3) | 4, 0x25] : [(reg << 3) | 5]), ...littleEndian(address, 4)];

const linearOf = (random: Random, page: number): number =>
  random.pick([0, 0, ...ALIASES]) + page * 0x1000 + random.pick([0, 8, 0x100, 0xff8, 0xffd]);

/** BTC, BTS or BTR of a bit of an entry. */
function flip(random: Random, operand: Operand, page: number, at: number): number[] {
  const bits =
    at < DATA ? [5, 5, 6, 6, 1, 1, 0, 2, 8, 12, 63] : page >= 0x10 && page < 0x12 ? [5, 5, 6, 8, 12] : [5, 5, 6, 8];
  const bit = random.pick(bits);
  const entry = Place.pt + page * 8 + (bit >> 5) * 4;
  return [0x0f, 0xba, ...operand(random.pick([5, 6, 7, 7]), entry), bit & 31];
}
function flipDirectory(random: Random, operand: Operand): number[] {
  return [
    0x0f,
    0xba,
    ...operand(random.pick([5, 6, 7, 7]), directory(random.pick(ALIASES))),
    random.pick([5, 5, 1, 0]),
  ];
}
/** Opcodes and their registers: MOV and ADD; MOV, ADD and INC. */
type Access = readonly [opcode: number, reg: number];
const READS: readonly Access[] = [
  [0x8b, 1],
  [0x03, 2],
];
const WRITES: readonly Access[] = [
  [0x89, 0],
  [0x01, 1],
  [0xff, 0],
];
/** Reads or writes a page under one of its names. */
function access(random: Random, operand: Operand, page: number): number[] {
  const linear = linearOf(random, page);
  const data = page >= 0x40;
  const [opcode, reg] = random.pick(data ? [...READS, ...WRITES] : READS);
  return [opcode, ...operand(reg, linear)];
}
/** Accesses a page, clears its accessed or dirty bit, accesses it again, and tells a port what the entry is now. */
function watch(random: Random, operand: Operand, page: number): number[] {
  const entry = Place.pt + page * 8;
  const again = access(random, operand, page);
  return [
    ...(random.chance(70) ? again : []),
    ...[0x0f, 0xba, ...operand(6, entry), random.pick([5, 5, 5, 6])],
    ...again,
    ...[0x8a, ...operand(0, entry), 0xe6, WITNESS],
  ];
}
/** MOV EAX, target; JMP EAX: into code under one of its names. */
function leap(random: Random): number[] {
  const target = Place.code + random.below(CHUNKS) * CHUNK + random.pick([0, ...ALIASES]);
  return [0xb8, ...littleEndian(target, 4), 0xff, 0xe0];
}
/** INVLPG, MOV CR3, CR4.PGE, PCIDs. */
function flush(random: Random, mode: FuzzMode, operand: Operand, page: number): number[] {
  const kind = random.below(10);
  if (kind < 5) return [0x0f, 0x01, ...operand(7, linearOf(random, page))];
  if (kind < 7) return [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
  if (kind < 8) return [0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0];
  if (mode !== 'long') return [];
  if (kind < 9) return [0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xf8, 17, 0x0f, 0x22, 0xe0];
  const keep = BigInt(random.below(2)) << 63n;
  return [0x48, 0xb8, ...littleEndian(BigInt(Place.pml4 + random.below(3)) | keep, 8), 0x0f, 0x22, 0xd8];
}

/** A piece of at most 32 bytes: one of these, or one that leaves the guest. */
export const tablePiece: PieceMaker = (random, mode) => {
  const kind = random.below(100);
  if (kind < 12) return exitPiece(random, mode);
  const operand = operandOf(mode);
  const at = random.below(PAGES.length);
  const page = PAGES[at]!;
  if (kind < 24) return flip(random, operand, page, at);
  if (kind < 27) return flipDirectory(random, operand);
  if (kind < 65) return watch(random, operand, random.chance(50) ? page : (Place.code >> 12) + random.below(2));
  if (kind < 80) return [...access(random, operand, page), ...access(random, operand, random.pick(PAGES))];
  return kind < 90 ? leap(random) : flush(random, mode, operand, page);
};

/** The program's tables are the program's, and its memory has more names. */
export function openTables(image: Uint8Array): void {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  for (let page = Place.pml4 >> 12; page <= Place.pae >> 12; page++)
    view.setBigUint64(Place.pt + page * 8, BigInt(page << 12) | 3n, true);
  for (const alias of ALIASES) view.setBigUint64(directory(alias), BigInt(Place.pt) | 7n, true);
}
