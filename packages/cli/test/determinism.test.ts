/** The same guest runs the same way: twice, in another process from a saved state, on shuffled host frames, in either engine. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serialize } from 'node:v8';
import { describe, expect, test } from 'vitest';
import { findBackend } from '../src/backends.ts';
import { CONFIGURATIONS } from '../src/commands/tour.ts';
import { firmware } from '../src/machine/loaders/image.ts';
import type { MachineStop } from '../src/machine/machine.ts';
import { guestVisible, type Traced, type TracedOptions, tracedGuest, tracedMachine } from './guest-trace.ts';

const LIMIT = 30_000_000;
const SEABIOS = '/usr/share/seabios/bios.bin';

async function whole(options: TracedOptions): Promise<{ stop: MachineStop; lines: string[] }> {
  const { machine, lines } = await tracedGuest(options);
  const stop = await machine.run({ maxInstructions: LIMIT });
  return { stop, lines };
}
/** Equal, and on failure only the first difference. */
function expectSameTrace(actual: readonly string[], expected: readonly string[]): void {
  const at = expected.findIndex((line, i) => line !== actual[i]);
  expect(actual[at], `event ${at}`).toBe(expected[at]);
  expect(actual.length).toBe(expected.length);
}

describe.each(CONFIGURATIONS)('%s', (backend) => {
  test('two runs of the tour and of hello give byte-equal traces', async () => {
    for (const guest of ['tour', 'hello'] as const) {
      const first = await whole({ backend, guest });
      const second = await whole({ backend, guest });
      expect(first.lines.length).toBeGreaterThan(50);
      expectSameTrace(second.lines, first.lines);
      expect(second.stop).toEqual(first.stop);
    }
  });

  test('a state saved in the middle of the tour goes on in another process with the same trace', async () => {
    const options: TracedOptions = { backend, guest: 'tour' };
    const { machine, lines } = await tracedGuest(options);
    machine.runSlice(23_200);
    lines.length = 0;
    const state = machine.save();
    const stop = await machine.run({ maxInstructions: LIMIT });
    expect(stop.reason).toBe('shutdown');
    const other = goOn(options, state);
    expectSameTrace(guestVisible(other.lines), guestVisible(lines));
    expect(other.stop).toEqual(stop);
  });

  test('shuffled host frames make no difference', async () => {
    const plain = await whole({ backend, guest: 'tour' });
    for (const shuffleFrames of [1, 77]) {
      const shuffled = await whole({ backend, guest: 'tour', shuffleFrames });
      expectSameTrace(guestVisible(shuffled.lines), guestVisible(plain.lines));
      expect(shuffled.stop).toEqual(plain.stop);
    }
  });

  test('the engines make no difference', async () => {
    const interpreted = await whole({ backend, guest: 'tour', engine: 'interpret' });
    const evaluated = await whole({ backend, guest: 'tour', engine: 'evaluate' });
    expectSameTrace(evaluated.lines, interpreted.lines);
    const translated = await whole({ backend, guest: 'tour', engine: 'translate' });
    expectSameTrace(translated.lines, interpreted.lines);
  });

  test.skipIf(!existsSync(SEABIOS))("SeaBIOS's first million instructions (Debian package seabios)", async () => {
    const run = async (shuffleFrames?: number): Promise<string[]> => {
      const { machine, lines }: Traced = await tracedMachine({
        backend: await findBackend(backend),
        image: firmware(new Uint8Array(readFileSync(SEABIOS)), 'bios.bin'),
        memory: 2 ** 24,
        shuffleFrames,
      });
      await machine.run({ maxInstructions: 1_000_000 });
      return lines;
    };
    const first = await run();
    expect(first.length).toBeGreaterThan(1000);
    expectSameTrace(await run(), first);
    expectSameTrace(guestVisible(await run(5)), guestVisible(first));
  });
});

function goOn(options: TracedOptions, state: unknown): { stop: MachineStop; lines: string[] } {
  const dir = mkdtempSync(join(tmpdir(), 'tskvm-resume-'));
  try {
    const file = join(dir, 'state');
    writeFileSync(file, serialize({ options, state }));
    const script = fileURLToPath(new URL('resume.ts', import.meta.url));
    const child = spawnSync(
      process.execPath,
      ['--conditions=@tskvm/source', '--import', 'tsx', script, file],
      // The test runner's own flags are not for this process.
      { encoding: 'utf8', maxBuffer: 2 ** 28, env: { ...process.env, NODE_OPTIONS: '' } },
    );
    expect(child.stderr).toBe('');
    return JSON.parse(child.stdout) as { stop: MachineStop; lines: string[] };
  } finally {
    rmSync(dir, { recursive: true });
  }
}
