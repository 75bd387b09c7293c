/**
 * Rules of VM entry for the guest's segment registers.
 * Manual: SDM vol. 3 section 26.3.1.2 (exit 33).
 */
import { byMode, type CheckContext, type CheckRow, CR0_PE, canonical, row, upperZero } from './entry-checks.ts';
import { Dirty, F, type FieldName } from './vmcs.ts';

const SEGMENTS = Dirty.guestSegments | Dirty.guestRegisters | Dirty.controls;
const NAMES = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS', 'LDTR', 'TR'] as const;
type SegmentName = (typeof NAMES)[number];
export const CS = 1;
export const SS = 2;
const LDTR = 6;
const TR = 7;
const selector = (c: CheckContext, i: number): number => c.vmcs.read16(F.GUEST_ES_SELECTOR + 2 * i);
const limit = (c: CheckContext, i: number): number => c.vmcs.read32(F.GUEST_ES_LIMIT + 2 * i);
export const rights = (c: CheckContext, i: number): number => c.vmcs.read32(F.GUEST_ES_AR_BYTES + 2 * i);
const baseField = (i: number): number => F.GUEST_ES_BASE + 2 * i;
const usable = (ar: number): boolean => (ar & 0x10000) === 0;
export const dpl = (ar: number): number => (ar >> 5) & 3;
const typeOf = (ar: number): number => ar & 15;
/** Does the segment have to obey the rules for AR: CS and TR always, others if usable. */
const inForce = (i: number, ar: number): boolean => i === CS || i === TR || usable(ar);

const field = (name: SegmentName, part: 'SELECTOR' | 'BASE' | 'LIMIT' | 'AR_BYTES'): FieldName =>
  `GUEST_${name}_${part}` as FieldName;
const segment = (code: string, name: FieldName, rule: string, ok: (c: CheckContext) => boolean): CheckRow =>
  row(`vmx.guest.${code}`, name, SEGMENTS, rule, '26.3.1.2', ok);

/** Types that each register may have (SDM 26.3.1.2, access rights, type). */
const typeAllowed = (c: CheckContext, i: number, ar: number): boolean => {
  const type = typeOf(ar);
  if (i === CS) return (type >= 9 && (type & 1) === 1) || (type === 3 && c.urg);
  if (i === SS) return type === 3 || type === 7;
  if (i === TR) return type === 11 || (type === 3 && !c.ia32e);
  if (i === LDTR) return type === 2;
  return (type & 1) === 1 && ((type & 8) === 0 || (type & 2) !== 0);
};
const TYPE_RULES: Record<SegmentName, string> = {
  ES: 'accessed, and readable if code',
  CS: 'accessed code (or accessed read/write data if unrestricted)',
  SS: 'accessed read/write data',
  DS: 'accessed, and readable if code',
  FS: 'accessed, and readable if code',
  GS: 'accessed, and readable if code',
  LDTR: 'LDT (2)',
  TR: 'busy TSS: 11, or 3 outside IA-32e mode',
};
/** G follows the limit: some low bit clear needs G=0, some high bit set needs G=1. */
const granularity = (size: number, ar: number): boolean =>
  ((size & 0xfff) === 0xfff || !(ar & 0x8000)) && (size >>> 20 === 0 || (ar & 0x8000) !== 0);

function segmentRows(name: SegmentName, i: number): CheckRow[] {
  const low = name.toLowerCase();
  const plain = i < LDTR;
  /** The rule holds in virtual-8086 mode for the six segments by its own rows. */
  const check = (ok: (ar: number, c: CheckContext) => boolean) => (c: CheckContext) => {
    const ar = rights(c, i);
    return (plain && c.v86) || !inForce(i, ar) || ok(ar, c);
  };
  return [
    segment(
      `${low}.type`,
      field(name, 'AR_BYTES'),
      TYPE_RULES[name],
      check((ar, c) => typeAllowed(c, i, ar)),
    ),
    segment(
      `${low}.s`,
      field(name, 'AR_BYTES'),
      plain ? 'S set' : 'S clear',
      check((ar) => ((ar & 0x10) !== 0) === plain),
    ),
    segment(
      `${low}.present`,
      field(name, 'AR_BYTES'),
      'P set',
      check((ar) => (ar & 0x80) !== 0),
    ),
    segment(
      `${low}.reserved`,
      field(name, 'AR_BYTES'),
      'bits 11:8 and 31:17 clear',
      check((ar) => (ar & 0xfffe0f00) === 0),
    ),
    segment(
      `${low}.granularity`,
      field(name, 'AR_BYTES'),
      'G agrees with the limit',
      check((ar, c) => granularity(limit(c, i), ar)),
    ),
  ];
}

function v86Rows(name: SegmentName, i: number): CheckRow[] {
  const low = name.toLowerCase();
  return [
    segment(`${low}.v86-base`, field(name, 'BASE'), 'virtual-8086: base is selector * 16', (c) => {
      return !c.v86 || (upperZero(c, baseField(i)) && c.vmcs.readLow(baseField(i)) === selector(c, i) << 4);
    }),
    segment(`${low}.v86-limit`, field(name, 'LIMIT'), 'virtual-8086: 0xffff', (c) => !c.v86 || limit(c, i) === 0xffff),
    segment(`${low}.v86-rights`, field(name, 'AR_BYTES'), 'virtual-8086: 0xf3', (c) => !c.v86 || rights(c, i) === 0xf3),
  ];
}

function dataDplRow(name: SegmentName, i: number): CheckRow {
  return segment(
    `${name.toLowerCase()}.dpl`,
    field(name, 'AR_BYTES'),
    'data or non-conforming code: DPL at least RPL',
    (c) => {
      const ar = rights(c, i);
      if (c.v86 || c.urg || !usable(ar) || typeOf(ar) > 11) return true;
      return dpl(ar) >= (selector(c, i) & 3);
    },
  );
}

const csDpl = (c: CheckContext): boolean => {
  const ar = rights(c, CS);
  const ss = dpl(rights(c, SS));
  if (c.v86) return true;
  if (typeOf(ar) === 3) return dpl(ar) === 0;
  return typeOf(ar) < 12 ? dpl(ar) === ss : dpl(ar) <= ss;
};
const ssDpl = (c: CheckContext): boolean => {
  const ar = rights(c, SS);
  if (c.v86) return true;
  if (!c.urg && dpl(ar) !== (selector(c, SS) & 3)) return false;
  return dpl(ar) === 0 || (typeOf(rights(c, CS)) !== 3 && (c.cr0 & CR0_PE) !== 0);
};

export const SEGMENT_ROWS: CheckRow[] = [
  segment('tr.ti', 'GUEST_TR_SELECTOR', 'TI clear', (c) => (selector(c, TR) & 4) === 0),
  segment(
    'ldtr.ti',
    'GUEST_LDTR_SELECTOR',
    'TI clear',
    (c) => !usable(rights(c, LDTR)) || (selector(c, LDTR) & 4) === 0,
  ),
  segment('ss.rpl', 'GUEST_SS_SELECTOR', 'RPL equals that of CS', (c) => {
    return c.v86 || c.urg || (selector(c, SS) & 3) === (selector(c, CS) & 3);
  }),
  ...NAMES.slice(0, 6).flatMap((name, i) => v86Rows(name, i)),
  ...NAMES.flatMap((name, i) => segmentRows(name, i)),
  segment('cs.dpl', 'GUEST_CS_AR_BYTES', 'DPL agrees with that of SS (0 for a data segment)', csDpl),
  byMode(segment('ss.dpl', 'GUEST_SS_AR_BYTES', 'DPL equals RPL; 0 in real mode', ssDpl)),
  ...(['ES', 'DS', 'FS', 'GS'] as const).map((name) => dataDplRow(name, NAMES.indexOf(name))),
  segment('cs.d-with-l', 'GUEST_CS_AR_BYTES', 'IA-32e: D clear if L set', (c) => {
    return !c.ia32e || c.v86 || (rights(c, CS) & 0x6000) !== 0x6000;
  }),
  segment('tr.unusable', 'GUEST_TR_AR_BYTES', 'usable', (c) => usable(rights(c, TR))),
  ...(['FS', 'GS', 'TR'] as const).map((name) =>
    segment(`${name.toLowerCase()}.base`, field(name, 'BASE'), 'canonical', (c) =>
      canonical(c, baseField(NAMES.indexOf(name))),
    ),
  ),
  segment(
    'ldtr.base',
    'GUEST_LDTR_BASE',
    'canonical',
    (c) => !usable(rights(c, LDTR)) || canonical(c, F.GUEST_LDTR_BASE),
  ),
  segment('cs.base', 'GUEST_CS_BASE', 'bits 63:32 clear', (c) => upperZero(c, F.GUEST_CS_BASE)),
  ...(['SS', 'DS', 'ES'] as const).map((name) => {
    const i = NAMES.indexOf(name);
    return segment(`${name.toLowerCase()}.base`, field(name, 'BASE'), 'bits 63:32 clear', (c) => {
      return !usable(rights(c, i)) || upperZero(c, baseField(i));
    });
  }),
  ...(['GDTR', 'IDTR'] as const).flatMap((name) => [
    row(`vmx.guest.${name.toLowerCase()}.base`, `GUEST_${name}_BASE`, SEGMENTS, 'canonical', '26.3.1.3', (c) =>
      canonical(c, F[`GUEST_${name}_BASE`]),
    ),
    row(
      `vmx.guest.${name.toLowerCase()}.limit`,
      `GUEST_${name}_LIMIT`,
      SEGMENTS,
      'bits 31:16 clear',
      '26.3.1.3',
      (c) => c.vmcs.read32(F[`GUEST_${name}_LIMIT`]) <= 0xffff,
    ),
  ]),
];
