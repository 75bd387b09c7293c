import { describe, expect, it } from 'vitest';
import { AccessKind, PageWalker, type PagingConfig, type PagingMode } from './paging.ts';
import { PhysicalMemory } from './physical.ts';

const { read, write, fetch } = AccessKind;
const P = 1n;
const RW = 2n;
const US = 4n;
const A = 0x20n;
const D = 0x40n;
const PS = 0x80n;
const G = 0x100n;
const NX = 1n << 63n;
const ALL = P | RW | US;

const ROOT = 0x1000;
const FRAME = 0x20000n;

/** Tables for linear 0x40201000-ish addresses: one entry per level, at fixed places. */
interface Setup {
  mode: PagingMode;
  /** Entries from the top, without the address of the next table (added unless `raw`). */
  entries: readonly bigint[];
  config?: Partial<PagingConfig>;
}

const LINEAR = 0x5678;

function build({ mode, entries, config }: Setup): { walker: PageWalker; memory: PhysicalMemory } {
  const memory = new PhysicalMemory(0x100000);
  const size = mode === '32-bit' ? 4 : 8;
  // Linear 0x5678: index 0 at all levels but the last, which has index 5.
  entries.forEach((entry, level) => {
    const last = level === entries.length - 1;
    const table = ROOT + level * 0x1000;
    const small = entries.length === { off: 0, '32-bit': 2, PAE: 3, '4-level': 4, '5-level': 5 }[mode];
    const index = last && small ? LINEAR >> 12 : 0;
    const next = last ? (small ? FRAME : 0n) : BigInt(table + 0x1000);
    if (size === 4) memory.write32(table + index * 4, Number((entry | next) & 0xffffffffn));
    else memory.write64(table + index * 8, entry | next);
  });
  const walker = new PageWalker({
    entryAddress: (gpa) => gpa,
    read32: (hpa) => memory.view.getInt32(memory.offset(hpa, 4), true),
    write32: (hpa, value) => memory.write32(hpa, value),
  });
  walker.configure({
    mode,
    root: ROOT,
    wp: true,
    nx: true,
    smep: false,
    smap: false,
    pse: true,
    pge: true,
    maxphyaddr: 46,
    gbPages: true,
    bit8Reserved: true,
    pdpte: undefined,
    ...config,
  });
  return { walker, memory };
}

/** The error code of an access, or 'ok'. */
function outcome(setup: Setup, kind: number, user: boolean, smap = false): number | 'ok' {
  const { walker } = build(setup);
  return walker.walk(LINEAR, 0, kind, user, smap) ? 'ok' : walker.errorCode;
}

const full = { '32-bit': [ALL, ALL], PAE: [P, ALL, ALL], '4-level': [ALL, ALL, ALL, ALL] } as const;
const modes = ['32-bit', 'PAE', '4-level'] as const;
/** `full` with bits taken from or added to the entry at `level` from the end. */
const changed = (mode: (typeof modes)[number], fromEnd: number, clear: bigint, set = 0n): bigint[] => {
  const entries: bigint[] = [...full[mode]];
  const at = entries.length - 1 - fromEnd;
  entries[at] = (entries[at] & ~clear) | set;
  return entries;
};

describe.each(modes)('%s paging', (mode) => {
  const rows: [string, Partial<Setup> & { entries: bigint[] }, number, boolean, number | 'ok'][] = [
    ['maps a page that permits all', { entries: changed(mode, 0, 0n) }, read, true, 'ok'],
    ['user read of an absent page', { entries: changed(mode, 0, P) }, read, true, 4],
    ['supervisor write to an absent page', { entries: changed(mode, 0, P) }, write, false, 2],
    ['user write to an absent page', { entries: changed(mode, 0, P) }, write, true, 6],
    ['absent table', { entries: changed(mode, 1, P) }, read, false, 0],
    ['user read of a supervisor page', { entries: changed(mode, 0, US) }, read, true, 5],
    ['user read through a supervisor table', { entries: changed(mode, 1, US) }, read, true, 5],
    ['user write to a read-only page', { entries: changed(mode, 0, RW) }, write, true, 7],
    ['user write through a read-only table', { entries: changed(mode, 1, RW) }, write, true, 7],
    ['supervisor write to a read-only page, WP=1', { entries: changed(mode, 0, RW) }, write, false, 3],
    [
      'supervisor write to a read-only page, WP=0',
      { entries: changed(mode, 0, RW), config: { wp: false } },
      write,
      false,
      'ok',
    ],
    ['user write to a read-only page, WP=0', { entries: changed(mode, 0, RW), config: { wp: false } }, write, true, 7],
    ['supervisor read of a supervisor page', { entries: changed(mode, 0, US) }, read, false, 'ok'],
    [
      'SMEP: supervisor fetch from a user page',
      { entries: changed(mode, 0, 0n), config: { smep: true, nx: false } },
      fetch,
      false,
      17,
    ],
    [
      'SMEP: supervisor fetch through one supervisor table',
      { entries: changed(mode, 1, US), config: { smep: true } },
      fetch,
      false,
      'ok',
    ],
    ['SMEP: user fetch from a user page', { entries: changed(mode, 0, 0n), config: { smep: true } }, fetch, true, 'ok'],
    [
      'fetch of an absent page without NX and SMEP has no I bit',
      { entries: changed(mode, 0, P), config: { nx: false } },
      fetch,
      true,
      4,
    ],
    [
      'fetch of an absent page with SMEP has the I bit',
      { entries: changed(mode, 0, P), config: { nx: false, smep: true } },
      fetch,
      true,
      20,
    ],
  ];
  it.each(rows)('%s', (_name, setup, kind, user, expected) => {
    // Legacy PAE's table above the last but one is a PDPTE, which has no U/S and R/W.
    expect(outcome({ mode, ...setup }, kind, user)).toBe(expected);
  });

  it('SMAP: supervisor read of a user page faults only while SMAP is active', () => {
    const setup: Setup = { mode, entries: full[mode] };
    expect(outcome(setup, read, false, true)).toBe(1);
    expect(outcome(setup, write, false, true)).toBe(3);
    expect(outcome(setup, read, false, false)).toBe('ok');
    expect(outcome(setup, fetch, false, true)).toBe('ok');
    expect(outcome({ mode, entries: changed(mode, 0, US) }, read, false, true)).toBe('ok');
  });

  it('sets A in all entries of a read, D in the leaf of a write, nothing for a fault', () => {
    const leafAt = ROOT + (full[mode].length - 1) * 0x1000 + (LINEAR >> 12) * (mode === '32-bit' ? 4 : 8);
    const leaf = (kind: number, entries: readonly bigint[], user = true): bigint => {
      const { walker, memory } = build({ mode, entries });
      walker.walk(LINEAR, 0, kind, user, false);
      return BigInt(memory.read32(leafAt)) & (A | D);
    };
    expect(leaf(read, full[mode])).toBe(A);
    expect(leaf(write, full[mode])).toBe(A | D);
    expect(leaf(write, changed(mode, 0, RW))).toBe(0n);
    const { walker, memory } = build({ mode, entries: full[mode] });
    walker.walk(LINEAR, 0, read, true, false);
    const tableAt = ROOT + (full[mode].length - 2) * 0x1000;
    expect(BigInt(memory.read32(tableAt)) & (A | D)).toBe(A);
  });

  it('reports a global leaf only with CR4.PGE', () => {
    const entries = changed(mode, 0, 0n, G);
    const withPge = build({ mode, entries });
    withPge.walker.walk(LINEAR, 0, read, true, false);
    expect(withPge.walker.global).toBe(true);
    const without = build({ mode, entries, config: { pge: false } });
    without.walker.walk(LINEAR, 0, read, true, false);
    expect(without.walker.global).toBe(false);
  });
});

describe.each(['PAE', '4-level'] as const)('%s paging, 64-bit entries', (mode) => {
  const rows: [string, bigint[], Partial<PagingConfig>, number, boolean, number | 'ok'][] = [
    ['NX page, user fetch', changed(mode, 0, 0n, NX), {}, fetch, true, 21],
    ['NX table, supervisor fetch', changed(mode, 1, 0n, NX), {}, fetch, false, 17],
    ['NX page, read', changed(mode, 0, 0n, NX), {}, read, true, 'ok'],
    ['bit 63 without EFER.NXE is reserved', changed(mode, 0, 0n, NX), { nx: false }, read, true, 13],
    ['bit 63 without EFER.NXE in a table', changed(mode, 1, 0n, NX), { nx: false }, write, false, 11],
    ['bit 51 with MAXPHYADDR 46', changed(mode, 0, 0n, 1n << 51n), {}, read, true, 13],
    ['bit 46 with MAXPHYADDR 46', changed(mode, 0, 0n, 1n << 46n), {}, fetch, true, 29],
    ['reserved bit of an absent entry is ignored', changed(mode, 0, P, 1n << 51n), {}, read, true, 4],
    ['bits 62:52', changed(mode, 0, 0n, 1n << 52n), {}, read, true, mode === 'PAE' ? 13 : 'ok'],
    ['2 MiB page: bit 13', [...full[mode].slice(0, -2), ALL | PS | (1n << 13n)], {}, read, true, 13],
    ['2 MiB page: bit 12 is PAT', [...full[mode].slice(0, -2), ALL | PS | (1n << 12n)], {}, read, true, 'ok'],
  ];
  it.each(rows)('%s', (_name, entries, config, kind, user, expected) => {
    expect(outcome({ mode, entries, config }, kind, user)).toBe(expected);
  });
});

describe('4-level paging, upper tables', () => {
  const rows: [string, bigint[], Partial<PagingConfig>, number | 'ok'][] = [
    ['PS in a PML4E', [ALL | PS, ALL, ALL, ALL], {}, 13],
    ['bit 8 in a PML4E on AMD', [ALL | G, ALL, ALL, ALL], {}, 13],
    ['bit 8 in a PML4E on Intel', [ALL | G, ALL, ALL, ALL], { bit8Reserved: false }, 'ok'],
    ['bit 8 in a PDPTE on AMD', [ALL, ALL | G, ALL, ALL], {}, 13],
    ['1 GiB page', [ALL, ALL | PS], {}, 'ok'],
    ['1 GiB page: bit 13', [ALL, ALL | PS | (1n << 13n)], {}, 13],
    ['1 GiB page without the feature', [ALL, ALL | PS], { gbPages: false }, 13],
  ];
  it.each(rows)('%s', (_name, entries, config, expected) => {
    expect(outcome({ mode: '4-level', entries, config }, read, true)).toBe(expected);
  });
  it('a 1 GiB page gives its offset', () => {
    const { walker } = build({ mode: '4-level', entries: [ALL, ALL | PS | (3n << 30n)] });
    expect(walker.walk(0x12345678, 0, read, true, false)).toBe(true);
    expect(walker.gpa).toBe(3 * 2 ** 30 + 0x12345678);
  });
});

describe('32-bit paging, 4 MiB pages', () => {
  it('PSE-36 takes bits 20:13 as address bits 39:32', () => {
    const { walker } = build({ mode: '32-bit', entries: [ALL | PS | (5n << 13n) | 0xc00000n] });
    expect(walker.walk(0x00345678, 0, read, true, false)).toBe(true);
    expect(walker.gpa).toBe(5 * 2 ** 32 + 0xf45678);
  });
  it('bit 21 is reserved', () => {
    expect(outcome({ mode: '32-bit', entries: [ALL | PS | (1n << 21n)] }, read, true)).toBe(13);
  });
  it('address bits above MAXPHYADDR are reserved', () => {
    const entries = [ALL | PS | (1n << 17n)];
    expect(outcome({ mode: '32-bit', entries, config: { maxphyaddr: 36 } }, read, true)).toBe(13);
    expect(outcome({ mode: '32-bit', entries, config: { maxphyaddr: 40 } }, read, true)).toBe('ok');
  });
  it('PS counts for nothing without CR4.PSE', () => {
    const { walker } = build({ mode: '32-bit', entries: [ALL | PS, ALL], config: { pse: false } });
    expect(walker.walk(LINEAR, 0, read, true, false)).toBe(true);
    expect(walker.gpa).toBe(Number(FRAME) + 0x678);
  });
});

describe('PAE with PDPTE registers', () => {
  it('takes the top level from the registers', () => {
    const pdpte = Uint32Array.from([0x2001, 0, 0, 0, 0, 0, 0, 0]);
    const { walker } = build({ mode: 'PAE', entries: [0n, ALL, ALL], config: { pdpte } });
    expect(walker.walk(LINEAR, 0, read, true, false)).toBe(true);
    expect(walker.walk(0x40000000, 0, read, true, false)).toBe(false);
    expect(walker.errorCode).toBe(4);
  });
});
