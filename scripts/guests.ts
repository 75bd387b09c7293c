// Assembles guests/*.asm with nasm, writes guests/*.bin and packages/cli/src/guests/images.ts (sparse, base64).
// `--check`: compares instead of writing; exit status 1 on a difference, 77 where nasm is missing.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const guests = join(root, 'guests');
const check = process.argv.includes('--check');

if (spawnSync('nasm', ['-v']).status !== 0) {
  process.stderr.write('guests: nasm is not installed (Debian package nasm); nothing rebuilt\n');
  process.exit(77);
}

/** Runs of bytes between stretches of 64 or more equal filler bytes (00 or FF). */
function sparse(bytes: Uint8Array): { filler: number; parts: [number, string][] } {
  const filler = bytes[bytes.length - 64] === 0xff || bytes[bytes.length - 32] === 0xff ? 0xff : 0;
  const parts: [number, string][] = [];
  let at = 0;
  while (at < bytes.length) {
    while (at < bytes.length && bytes[at] === filler) at++;
    let end = at;
    let quiet = 0;
    while (end < bytes.length && quiet < 64) quiet = bytes[end++] === filler ? quiet + 1 : 0;
    if (end - quiet > at) parts.push([at, Buffer.from(bytes.subarray(at, end - quiet)).toString('base64')]);
    at = end;
  }
  return { filler, parts };
}

const temporary = mkdtempSync(join(tmpdir(), 'guests-'));
let stale = false;
function emit(path: string, content: Uint8Array | string): void {
  const now = Buffer.from(content);
  if (!check) writeFileSync(path, now);
  else if (!readFileSync(path).equals(now)) {
    process.stderr.write(`guests: ${path} is not what its source assembles to; run: pnpm exec tsx scripts/guests.ts\n`);
    stale = true;
  }
}

const images: string[] = [];
for (const file of readdirSync(guests)
  .filter((name) => name.endsWith('.asm'))
  .sort()) {
  const name = file.slice(0, -4);
  const built = join(temporary, `${name}.bin`);
  const result = spawnSync('nasm', ['-f', 'bin', '-O2', '-o', built, join(guests, file)], { encoding: 'utf8' });
  if (result.status !== 0) {
    process.stderr.write(result.stderr);
    process.exit(1);
  }
  const bytes = readFileSync(built);
  emit(join(guests, `${name}.bin`), bytes);
  const { filler, parts } = sparse(bytes);
  const lines = parts.map(([at, text]) => `      [0x${at.toString(16)}, '${text}'],`).join('\n');
  const key = name.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase());
  images.push(
    `  ${key}: {\n    size: 0x${bytes.length.toString(16)},\n    filler: 0x${filler.toString(16)},\n    parts: [\n${lines}\n    ],\n  },`,
  );
}
emit(
  join(root, 'packages/cli/src/guests/images.ts'),
  `/** The embedded guests, built from guests/*.asm by scripts/guests.ts: sparse images as [offset, base64]. Generated: don't edit. */
import type { SparseImage } from './image.ts';

export const GUEST_IMAGES = {
${images.join('\n')}
} as const satisfies Record<string, SparseImage>;
`,
);
process.exit(stale ? 1 : 0);
