/** Real firmware and a real boot loader under the three configurations, and the guests' images against their sources. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { findBackend } from '../src/backends.ts';
import { SEABIOS } from '../src/commands/options.ts';
import { CONFIGURATIONS } from '../src/commands/tour.ts';
import { memoryImage } from '../src/machine/devices/ide.ts';
import { firmware } from '../src/machine/loaders/image.ts';
import { createMachine, type Machine, type MachineStop } from '../src/machine/machine.ts';

const GRUB = '/usr/lib/grub-rescue/grub-rescue-cdrom.iso';
/** Set where nothing may be skipped: what is missing fails then. */
const REQUIRED = Boolean(process.env['TSKVM_REQUIRE_GUESTS']);
const missing = [
  [SEABIOS, 'seabios'],
  [GRUB, 'grub-rescue-pc'],
]
  .filter(([file]) => !existsSync(file))
  .map(([, name]) => name);
const LIMIT = 3_000_000_000;
const MENU = 'executed automatically';
const PROMPT = 'grub>';

interface Console {
  machine: Machine;
  /** Text since the last look. */
  text: string;
}
async function boot(spec: string): Promise<Console> {
  const read = (file: string) => new Uint8Array(readFileSync(file));
  const console: Console = { machine: undefined as unknown as Machine, text: '' };
  console.machine = await createMachine({
    backend: await findBackend(spec),
    image: firmware(read(SEABIOS), SEABIOS),
    cdrom: { ...memoryImage(read(GRUB)), write: undefined },
    onSerial: (byte) => {
      console.text += String.fromCharCode(byte);
    },
  });
  return console;
}
/** Runs until the console has shown a text. */
async function until(console: Console, text: string): Promise<MachineStop> {
  return console.machine.run({ maxInstructions: LIMIT, slice: 500_000, between: () => console.text.includes(text) });
}
async function command(console: Console, line: string): Promise<string> {
  console.text = '';
  console.machine.devices.com1.receive(new TextEncoder().encode(`${line}\r`));
  await until(console, PROMPT);
  return console.text;
}

describe('SeaBIOS starts GRUB', () => {
  const name = missing.length > 0 && !REQUIRED ? `%s (install the Debian packages ${missing.join(', ')})` : '%s';
  test.skipIf(missing.length > 0 && !REQUIRED).each(CONFIGURATIONS)(
    name,
    async (spec) => {
      expect(missing, 'Debian packages to install').toEqual([]);
      const console = await boot(spec);
      const switches: string[] = [];
      // Only while the firmware starts: what is watched runs slower.
      const off = console.machine.kvm.on('mode_switch', (event) => {
        switches.push(`${event.from.name} ${event.to.name}`);
        if (event.exit === null) return;
        expect(event.path.length + (event.why ?? '').length).toBeGreaterThan(0);
      });
      await until(console, 'SeaBIOS');
      off();
      await until(console, MENU);
      expect(console.text).toContain('SeaBIOS');
      // c: GRUB's command line instead of its menu.
      console.machine.devices.com1.receive(new TextEncoder().encode('c'));
      await until(console, PROMPT);
      expect(console.text).toContain(PROMPT);
      expect(switches.filter((s) => s.startsWith('real ')).length).toBeGreaterThan(0);
      expect(switches.filter((s) => s.includes('protected32')).length).toBeGreaterThan(10);
      expect(await command(console, 'echo one two')).toContain('\none two');
      expect(await command(console, 'ls')).toMatch(/\(cd0?\)|\(cd\d/);
    },
    240_000,
  );
});

test('the images of the guests are what their sources assemble to', (context) => {
  const root = fileURLToPath(new URL('../../../', import.meta.url));
  const result = spawnSync('npx', ['tsx', 'scripts/guests.ts', '--check'], { cwd: root, encoding: 'utf8' });
  if (result.status === 77 && !REQUIRED) context.skip('no assembler: install the Debian package nasm');
  expect(result.stderr.replace(/^npm warn.*\n/gm, '')).toBe('');
  expect(result.status).toBe(0);
});
