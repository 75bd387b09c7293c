/**
 * The opcode maps as the decoder looks them up, compiled from the row tables.
 * Manual: APM vol. 3 appendix A, SDM vol. 2 appendix A.
 */
import type { TableRow } from '../rows.ts';
import { AVX } from './avx.ts';
import { ONE_BYTE } from './one-byte.ts';
import { MMX, SSE } from './sse.ts';
import { TWO_BYTE, VEX_INTEGER } from './two-byte.ts';
import { X87 } from './x87.ts';

/** All rows of all tables. */
export const ALL_ROWS: readonly TableRow[] = [...ONE_BYTE, ...TWO_BYTE, ...VEX_INTEGER, ...X87, ...MMX, ...SSE, ...AVX];

/** What stands at an opcode: one row whatever follows, a row per modrm byte, or nothing. */
export type Node = TableRow | readonly (TableRow | null)[] | null;

/** One mode's maps, by their number. Column: for legacy opcodes the prefix (0 none, 1 66, 2 F3, 3 F2), for VEX pp * 4 + L * 2 + W. */
export interface OpcodeMaps {
  legacy: readonly OpcodeMap[];
  vex: readonly OpcodeMap[];
}

const dependsOnModrm = (row: TableRow): boolean =>
  row.slot.ext >= 0 || row.slot.modrmFirst >= 0 || row.modrm === 'memory' || row.modrm === 'register';

function matchesModrm({ slot, modrm: form }: TableRow, modrm: number): boolean {
  if (slot.modrmFirst >= 0) return modrm >= slot.modrmFirst && modrm < slot.modrmFirst + slot.modrmCount;
  if (slot.ext >= 0 && ((modrm >> 3) & 7) !== slot.ext) return false;
  return form === 'memory' ? modrm < 0xc0 : form === 'register' ? modrm >= 0xc0 : true;
}

/** The more a row says about its encoding, the more it counts. */
const specificity = ({ slot, modrm }: TableRow): number =>
  (slot.prefixes !== 0 ? 8 : 0) +
  (slot.modrmFirst >= 0 ? 4 : 0) +
  (slot.ext >= 0 ? 2 : 0) +
  (modrm === 'memory' || modrm === 'register' ? 1 : 0);

function compileNode(candidates: readonly TableRow[]): Node {
  if (candidates.length === 0) return null;
  const sorted = [...candidates].sort((a, b) => specificity(b) - specificity(a));
  if (!sorted.some(dependsOnModrm)) return sorted[0];
  return Array.from({ length: 256 }, (_, modrm) => sorted.find((row) => matchesModrm(row, modrm)) ?? null);
}

const takesPrefix =
  (pp: number) =>
  ({ slot }: TableRow): boolean =>
    slot.prefixes === 0 || ((slot.prefixes >> pp) & 1) === 1;
const takesLw =
  (l: number, w: number) =>
  ({ slot }: TableRow): boolean =>
    (slot.l < 0 || slot.l === l) && (slot.w < 0 || slot.w === w);

/** One map. What stands at an opcode is worked out when it is first looked up: most programs use few of them. */
export class OpcodeMap {
  readonly #rows: readonly TableRow[];
  readonly #vex: boolean;
  readonly #nodes: (Node | undefined)[];
  #byOpcode: TableRow[][] | undefined;

  constructor(rows: readonly TableRow[], vex: boolean) {
    this.#rows = rows;
    this.#vex = vex;
    this.#nodes = new Array<Node | undefined>(256 * (vex ? 16 : 4)).fill(undefined);
  }

  at(opcode: number, column: number): Node {
    const index = opcode * (this.#vex ? 16 : 4) + column;
    return this.#nodes[index] ?? this.#find(opcode, column, index);
  }

  #find(opcode: number, column: number, index: number): Node {
    // Nothing stands there.
    if (this.#nodes[index] === null) return null;
    const here = (this.#byOpcode ??= byOpcode(this.#rows))[opcode];
    const node = this.#vex
      ? compileNode(here.filter(takesPrefix(column >> 2)).filter(takesLw((column >> 1) & 1, column & 1)))
      : compileNode(here.filter(takesPrefix(column)));
    this.#nodes[index] = node;
    return node;
  }
}

function byOpcode(rows: readonly TableRow[]): TableRow[][] {
  const lists = Array.from({ length: 256 }, (): TableRow[] => []);
  for (const row of rows) {
    const { opcode, opcodeCount } = row.slot;
    for (let n = opcode; n < opcode + opcodeCount; n++) lists[n].push(row);
  }
  return lists;
}

function compile(long: boolean, intel: boolean): OpcodeMaps {
  const other = intel ? 'amd' : 'intel';
  const legacy: TableRow[][] = [[], [], [], []];
  const vex: TableRow[][] = [[], [], [], []];
  for (const row of ALL_ROWS) {
    if ((long ? row.no64 : row.only64) || row.vendor === other) continue;
    (row.slot.vex ? vex : legacy)[row.slot.map].push(row);
  }
  return {
    legacy: legacy.map((rows) => new OpcodeMap(rows, false)),
    vex: vex.map((rows) => new OpcodeMap(rows, true)),
  };
}

const compiled: (OpcodeMaps | undefined)[] = [];

/** Opcode maps of 64-bit or other code for one vendor; made at first use. */
export function opcodeMaps(long: boolean, intel: boolean): OpcodeMaps {
  const key = (long ? 2 : 0) + (intel ? 1 : 0);
  return (compiled[key] ??= compile(long, intel));
}
