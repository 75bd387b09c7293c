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

/** One mode's maps. Index: legacy opcode * 4 + prefix (0 none, 1 66, 2 F3, 3 F2); VEX (opcode * 4 + pp) * 4 + L * 2 + W. */
export interface OpcodeMaps {
  legacy: readonly (readonly Node[])[];
  vex: readonly (readonly Node[])[];
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

const inSlot =
  (vex: boolean, map: number, opcode: number) =>
  ({ slot }: TableRow): boolean =>
    slot.vex === vex && slot.map === map && opcode >= slot.opcode && opcode < slot.opcode + slot.opcodeCount;
const takesPrefix =
  (pp: number) =>
  ({ slot }: TableRow): boolean =>
    slot.prefixes === 0 || ((slot.prefixes >> pp) & 1) === 1;
const takesLw =
  (l: number, w: number) =>
  ({ slot }: TableRow): boolean =>
    (slot.l < 0 || slot.l === l) && (slot.w < 0 || slot.w === w);

function compileMap(rows: readonly TableRow[], vex: boolean, map: number): Node[] {
  const nodes: Node[] = [];
  for (let opcode = 0; opcode < 256; opcode++) {
    const here = rows.filter(inSlot(vex, map, opcode));
    for (let pp = 0; pp < 4; pp++) {
      const withPrefix = here.filter(takesPrefix(pp));
      if (!vex) nodes.push(compileNode(withPrefix));
      else for (let lw = 0; lw < 4; lw++) nodes.push(compileNode(withPrefix.filter(takesLw(lw >> 1, lw & 1))));
    }
  }
  return nodes;
}

function compile(long: boolean, intel: boolean): OpcodeMaps {
  const rows = ALL_ROWS.filter((row) => !(long ? row.no64 : row.only64) && row.vendor !== (intel ? 'amd' : 'intel'));
  const maps = (vex: boolean): Node[][] =>
    [0, 1, 2, 3].map((map) =>
      compileMap(
        rows.filter((row) => row.slot.vex === vex && row.slot.map === map),
        vex,
        map,
      ),
    );
  return { legacy: maps(false), vex: maps(true) };
}

const compiled: (OpcodeMaps | undefined)[] = [];

/** Opcode maps of 64-bit or other code for one vendor; compiled at first use. */
export function opcodeMaps(long: boolean, intel: boolean): OpcodeMaps {
  const key = (long ? 2 : 0) + (intel ? 1 : 0);
  return (compiled[key] ??= compile(long, intel));
}
