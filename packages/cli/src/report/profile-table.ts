/** A profile on a terminal: `tskvm run --profile`. */
import type { HotPlace, ProfileData, Share } from '../profile/collect.ts';
import { type Row, textTable, wrapText } from './text-table.ts';

/** Places of each kind that are printed, the share that they need, and instructions of one; `--json` has more. */
const PLACES = 8;
const LEAST = 0.001;
/** Pieces of a region that are named. */
const PIECES = 3;
const INSTRUCTIONS = { region: 6, other: 3 } as const;
/** What is rarer is left out of lists. */
const LISTED = 8;

const WHY: Readonly<Record<string, string>> = {
  changes: 'its page has lost regions to changed code',
  'no-region': 'looked at: no loop, or not worth it yet',
  cold: 'not hot yet',
  'handed-back': 'no generated code for it',
  unknown: 'not decoded yet',
  engine: 'the engine translates nothing',
};

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
const count = (n: number): string => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ' ');
const ms = (n: number): string => `${(n / 1000).toFixed(2)} s`;
const kib = (bytes: number): string => `${count(bytes / 1024)} KiB`;

const shares = (list: readonly Share[]): string =>
  list
    .filter(({ ticks }) => ticks > 0)
    .map(({ name, share }) => `${name} ${percent(share)}`)
    .join('; ');
function counts(list: readonly { name: string; count: number }[]): string {
  const rest = list.slice(LISTED).reduce((sum, each) => sum + each.count, 0);
  const shown = list.slice(0, LISTED).map(({ name, count: n }) => `${name} ${count(n)}`);
  return [...shown, ...(rest > 0 ? [`others ${count(rest)}`] : [])].join('; ') || 'none';
}

/** The hottest instructions in the order of their addresses. */
function hottest({ instructions, region }: HotPlace): (readonly [string, string])[] {
  const most = region ? INSTRUCTIONS.region : INSTRUCTIONS.other;
  const least = instructions.map(({ share }) => share).sort((a, b) => b - a)[most - 1] ?? 0;
  return instructions
    .filter(({ share }) => share >= least)
    .slice(0, most)
    .map(({ address, share, text }) => [`${percent(share).padStart(7)}  ${address}  `, text] as const);
}
/** A region's pieces, or the whole. */
function addresses({ start, end, region }: HotPlace): string {
  const pieces = region?.pieces ?? [{ start, end }];
  const more = pieces.length > PIECES ? `, ${pieces.length - PIECES} more` : '';
  return (
    pieces
      .slice(0, PIECES)
      .map((piece) => `${piece.start}-${piece.end}`)
      .join(', ') + more
  );
}
function placeRow(place: HotPlace): Row {
  const { share, mode, symbol, region, why } = place;
  const first = [percent(share), `${addresses(place)}${symbol ? ` ${symbol}` : ''}`, mode];
  return {
    cells: region
      ? [...first, String(region.instructions), `${count(region.entered)} times`]
      : [...first, WHY[why ?? ''] ?? ''],
    notes: hottest(place),
  };
}
function placeTable(places: readonly HotPlace[], regions: boolean, width: number): string {
  const heads = regions
    ? ['share', 'address', 'mode', 'instr.', 'entered']
    : ['share', 'address', 'mode', 'why not translated'];
  const columns = heads.map((head) => ({ head }));
  const worth = places.slice(0, PLACES).filter(({ share }, i) => i === 0 || share >= LEAST);
  return textTable(columns, worth.map(placeRow), width);
}

function translations({ translations: t, host }: ProfileData): string {
  if (t === null) return 'none: the engine translates nothing';
  return (
    `${count(t.regions)} regions of ${count(t.instructions)} instructions, ${kib(t.bytes)} of wasm, in ${ms(host.translating)} of host time; ` +
    `${count(t.live)} stand (${kib(t.liveBytes)}), ${count(t.invalidated)} lost to changed code, ${count(t.evicted)} evicted`
  );
}

/** Lines of at most `width` characters. */
export function profileText(data: ProfileData, width: number): string {
  const { host } = data;
  const facts: readonly (readonly [string, string])[] = [
    ['ticks', `${count(data.ticks)} (and ${count(data.idleTicks)} idle), ${count(data.samples)} samples`],
    ['engines', shares(data.engines)],
    ['modes', shares(data.modes)],
    ['exits', counts(data.exits)],
    ['to user space', counts(data.userspace)],
    ['handed back', counts(data.handedBack)],
    ['TLB', `${count(data.tlb.misses)} misses, ${count(data.tlb.fills)} fills`],
    ['translations', translations(data)],
    [
      'host time',
      `${ms(host.total)}: generated code ${ms(host.generatedCode)}, translating ${ms(host.translating)}, the rest (KVM, devices, evaluate) ${ms(host.rest)}`,
    ],
  ];
  const label = Math.max(...facts.map(([name]) => name.length)) + 2;
  const lines = facts.flatMap(([name, text]) =>
    wrapText(text, width - label).map((line, i) => (i === 0 ? name : '').padEnd(label) + line),
  );
  const sections = [`profile: ${data.backend}, ${data.engine}`, ...lines];
  if (data.regions.length > 0) sections.push('', 'hottest regions', placeTable(data.regions, true, width));
  if (data.others.length > 0) sections.push('', 'hottest code outside regions', placeTable(data.others, false, width));
  return sections.join('\n');
}
