/** `tskvm run --profile`: what it says, that it says the same each time, its file, and what is wrong with its options. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ProfileData } from '../src/profile/collect.ts';
import type { SpeedscopeFile } from '../src/profile/speedscope.ts';
import { profileText } from '../src/report/profile-table.ts';
import { tskvm } from './command-line.ts';

/**
 * mov ecx, 200000 / l: add eax, ecx / xor edx, eax / dec ecx / jnz l (at 7C06h) / mov cx, 500 / m: push cx / xor eax, eax / cpuid /
 * pop cx / loop m / mov al, 0 / out F4h, al
 */
const GUEST = [
  ...[0x66, 0xb9, 0x40, 0x0d, 0x03, 0x00, 0x66, 0x01, 0xc8, 0x66, 0x31, 0xc2, 0x66, 0x49, 0x75, 0xf6],
  ...[0xb9, 0xf4, 0x01, 0x51, 0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x59, 0xe2, 0xf7, 0xb0, 0x00, 0xe6, 0xf4],
];
const LINUX = fileURLToPath(new URL('../../../.cache/linux/amd64/', import.meta.url));
const SEABIOS = '/usr/share/seabios/bios.bin';

let dir: string;
let guest: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'tskvm-profile-'));
  guest = join(dir, 'guest.bin');
  const bytes = new Uint8Array(512);
  bytes.set(GUEST);
  bytes.set([0x55, 0xaa], 510);
  writeFileSync(guest, bytes);
  writeFileSync(join(dir, 'names'), '0000000000007c10 t second\n0000000000007c00 T first\n');
  writeFileSync(join(dir, 'no-names'), 'nothing here\n');
});
afterAll(() => rmSync(dir, { recursive: true }));

async function profileOf(args: readonly string[]): Promise<ProfileData> {
  const { stdout, stderr } = await tskvm(['run', '--profile', '--json', ...args]);
  expect(stderr).toBe('');
  return (JSON.parse(stdout) as { profile: ProfileData }).profile;
}
let plain: Promise<ProfileData> | undefined;
/** The guest's profile under svm, run once for all that look at it. */
const plainProfile = (): Promise<ProfileData> => (plain ??= profileOf([guest]));
const sum = (list: readonly { share: number }[]): number => list.reduce((total, { share }) => total + share, 0);
const countOf = (list: readonly { name: string; count: number }[], name: string): number | undefined =>
  list.find((each) => each.name === name)?.count;

describe.each(['svm', 'vmx'])('under %s', (backend) => {
  test('a hot loop is a region with its instructions, and exits are counted', async () => {
    const data = await profileOf(['--backend', backend, guest]);
    expect(data.ticks).toBeGreaterThan(800_000);
    expect(sum(data.engines)).toBeCloseTo(1);
    expect(sum(data.modes)).toBeCloseTo(1);
    expect(data.modes[0].name).toBe('real');
    expect(data.engines[0]).toMatchObject({ name: 'translated' });
    expect(data.engines[0].share).toBeGreaterThan(0.5);
    const [hot] = data.regions;
    expect(hot).toMatchObject({ start: '0x7c00', end: '0x7c10', by: 'translated', mode: 'real' });
    const pieces = [{ start: '0x7c00', end: '0x7c10' }];
    expect(hot.region).toMatchObject({ instructions: 5, translations: 1, pieces });
    expect(hot.region!.entered).toBeGreaterThan(0);
    expect(hot.instructions.map(({ text }) => text)).toEqual([
      'add eax,ecx',
      'xor edx,eax',
      'dec ecx',
      'jne short 7C06h',
    ]);
    expect(sum(hot.instructions)).toBeCloseTo(1);
    expect(countOf(data.exits, backend === 'svm' ? 'cpuid' : 'CPUID')).toBe(500);
    expect(countOf(data.handedBack, 'cpuid')).toBe(500);
    expect(data.tlb.fills).toBeGreaterThan(0);
    expect(data.translations).toMatchObject({ regions: data.translations!.live, evicted: 0 });
  });
});

test('a region with a gap is named by its pieces, and percentages stand below one another', async () => {
  const file = join(dir, 'gap.bin');
  const bytes = new Uint8Array(512);
  // mov ecx, 300000; jmp 7C20h; …; 7C20h: dec ecx; jz 7C60h; jmp 7C40h; …; 7C40h: add eax, ecx; jmp 7C20h; …; 7C60h: out F4h, al
  bytes.set([0x66, 0xb9, 0xe0, 0x93, 4, 0, 0xeb, 0x18]);
  bytes.set([0x66, 0x49, 0x74, 0x3c, 0xeb, 0x1a], 0x20);
  bytes.set([0x66, 0x01, 0xc8, 0xeb, 0xdb], 0x40);
  bytes.set([0xe6, 0xf4], 0x60);
  bytes.set([0x55, 0xaa], 510);
  writeFileSync(file, bytes);
  const [hot] = (await profileOf([file])).regions;
  expect(hot.region?.pieces).toEqual([
    { start: '0x7c20', end: '0x7c26' },
    { start: '0x7c40', end: '0x7c45' },
  ]);
  const { stderr } = await tskvm(['run', '--profile', file]);
  expect(stderr).toContain('0x7c20-0x7c26, 0x7c40-0x7c45');
  expect(stderr).toMatch(/^ {3}[ \d]\d\.\d % {2}0x7c20 {2}dec ecx$/m);
});

test('is the same in each run, but for the host', async () => {
  const strip = ({ host, ...rest }: ProfileData) => ({ ...rest, host: Object.keys(host) });
  expect(strip(await profileOf([guest]))).toEqual(strip(await plainProfile()));
});

test('the other engines have no regions', async () => {
  const interpreted = await profileOf(['--engine', 'interpret', guest]);
  expect(interpreted.regions).toEqual([]);
  expect(interpreted.translations).toBeNull();
  expect(interpreted.others[0]).toMatchObject({ by: 'interpreted', why: 'engine' });
  const stepped = await profileOf(['--engine', 'evaluate', '--max-instructions', '20000', guest]);
  expect(stepped.engines.find(({ name }) => name === 'stepped')?.share).toBe(1);
});

test('on a terminal: tables that fit', async () => {
  const { stderr, stdout, status } = await tskvm(['run', '--profile', guest]);
  expect([status, stdout]).toEqual([1, '']);
  for (const text of ['engines', 'translated', 'hottest regions', '0x7c00-0x7c10', 'dec ecx', 'host time'])
    expect(stderr).toContain(text);
  expect(Math.max(...stderr.split('\n').map((line) => line.length))).toBeLessThanOrEqual(100);
  const data = await plainProfile();
  for (const width of [60, 80, 132])
    expect(
      Math.max(
        ...profileText(data, width)
          .split('\n')
          .map((line) => line.length),
      ),
    ).toBeLessThanOrEqual(width);
});

test('the file has every tick once, and its stacks name what is there', async () => {
  const file = join(dir, 'out.speedscope.json');
  const { stderr } = await tskvm(['run', '--profile-file', file, guest]);
  expect(stderr).toContain(`wrote ${file}`);
  expect(stderr).not.toContain('hottest');
  const { $schema, shared, profiles } = JSON.parse(readFileSync(file, 'utf8')) as SpeedscopeFile;
  expect($schema).toBe('https://www.speedscope.app/file-format-schema.json');
  const [{ type, unit, samples, weights, startValue, endValue }] = profiles;
  expect([profiles.length, type, unit, startValue]).toEqual([1, 'sampled', 'none', 0]);
  expect(samples.length).toBe(weights.length);
  const { ticks } = await plainProfile();
  expect(weights.reduce((a, b) => a + b)).toBe(ticks);
  expect(endValue).toBe(ticks);
  const stacks = samples.map((stack) => stack.map((frame) => shared.frames[frame].name));
  expect(stacks).toContainEqual(['real', 'translated', '0x7c00-0x7c10', '0x7c06']);
});

test('symbols name places', async () => {
  const data = await profileOf(['--symbols', join(dir, 'names'), guest]);
  expect(data.regions[0].symbol).toBe('first');
  expect(data.others.some(({ symbol }) => symbol === 'second')).toBe(true);
});

test.each([
  [
    'a file that can not be written',
    ['--profile-file', '/nowhere/at/all.json'],
    ["can't be written", 'no such folder'],
  ],
  ['symbols that are not there', ['--profile', '--symbols', '/nowhere/map'], ['there is no such file']],
  ['symbols without a symbol', ['--profile', '--symbols', '@no-names'], ['System.map']],
  ['symbols without a profile', ['--symbols', '@names'], ['--profile']],
])('%s', async (_, args, texts) => {
  const { status, stderr, stdout } = await tskvm(['run', ...args.map((arg) => arg.replace('@', `${dir}/`)), guest]);
  expect([status, stdout]).toEqual([2, '']);
  for (const text of texts) expect(stderr).toContain(text);
  expect(stderr.trim().split('\n').length).toBe(1);
});

test.skipIf(!existsSync(join(LINUX, 'vmlinuz')))('a Linux kernel', async () => {
  const data = await profileOf(['--max-instructions', '60000000', '--kernel', join(LINUX, 'vmlinuz')]);
  expect(data.ticks).toBe(60_000_000);
  expect(data.modes[0].name).toBe('long, CPL 0');
  expect(data.regions.length).toBeGreaterThan(0);
});

test.skipIf(!existsSync(SEABIOS))('firmware', async () => {
  const data = await profileOf(['--bios', SEABIOS, '--max-instructions', '3000000']);
  expect(data.modes.map(({ name }) => name)).toContain('protected32, CPL 0');
  expect(data.exits.length).toBeGreaterThan(0);
});
