/**
 * The plainest encoding of a row of the decode tables: mandatory prefixes only, registers 0 and 1, memory at [rBX] (or [EBX + index * 1]).
 */
import type { TableRow } from '../../src/decode/rows.ts';

const IMMEDIATE_SIZES: Readonly<Record<string, number>> = { b: 1, w: 2, z: 4, v: 4, p: 6 };

/** In 32- or 64-bit code. @param wide REX.W or VEX.W where the row leaves it open */
export function encodeRow(row: TableRow, wide = false): number[] {
  const { slot } = row;
  const pp = slot.prefixes === 0 ? 0 : [0, 1, 2, 3].find((n) => (slot.prefixes >> n) & 1)!;
  const out: number[] = [];
  if (slot.vex) {
    const w = slot.w === 1 || (slot.w < 0 && wide) ? 0x80 : 0;
    const vvvv = row.usesVvvv ? 0x68 : 0x78;
    out.push(0xc4, 0xe0 | slot.map, w | vvvv | (slot.l === 1 ? 4 : 0) | pp);
  } else {
    if (pp > 0) out.push([0x66, 0xf3, 0xf2][pp - 1]!);
    if (wide) out.push(0x48);
    out.push(...[[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]][slot.map]!);
  }
  out.push(slot.opcode);
  if (row.hasModrm) out.push(...modrm(row));
  for (const spec of row.immediates) {
    const size = spec[0] === 'O' ? (wide ? 8 : 4) : (IMMEDIATE_SIZES[spec[1]!] ?? 1);
    for (let i = 0; i < size; i++) out.push(0);
  }
  return out;
}

function modrm(row: TableRow): number[] {
  const { slot } = row;
  if (slot.modrmFirst >= 0) return [slot.modrmFirst];
  const reg = Math.max(slot.ext, 0) << 3;
  if (row.vsib) return [reg | 4, 0x0b];
  return row.modrm === 'memory' ? [reg | 3] : [0xc1 | reg];
}
