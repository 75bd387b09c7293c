/**
 * Writes packages/emulator/src/engines/interpret/usual-table.ts anew: boots Debian's kernels (scripts/fetch-linux.sh) and SeaBIOS with GRUB, and takes
 * down the forms that got handlers. node --conditions=@tskvm/source --import tsx scripts/usual-forms.ts
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createMachine, firmware, type Machine, memoryImage } from 'tskvm';
import { linux } from '../packages/cli/src/machine/loaders/linux.ts';
import { IN_TURN } from '../packages/emulator/src/engines/interpret/cold-forms.ts';
import { type Form, formKey } from '../packages/emulator/src/engines/interpret/form.ts';
import { HandlerSet } from '../packages/emulator/src/engines/interpret/handlers.ts';
import { writeForm } from '../packages/emulator/src/engines/interpret/usual.ts';
import { svm } from '../packages/svm/src/index.ts';

const ROOT = new URL('../', import.meta.url).pathname;
const TABLE = `${ROOT}packages/emulator/src/engines/interpret/usual-table.ts`;
const GUESTS = ['amd64', 'i386', 'grub'];
const MEMORY = 256 * 2 ** 20;
const file = (path: string): Uint8Array => new Uint8Array(readFileSync(path));

async function start(guest: string, onSerial: (byte: number) => void): Promise<Machine> {
  const options = { backend: svm(), memory: MEMORY, onSerial };
  if (guest === 'grub') {
    const cdrom = { ...memoryImage(file('/usr/lib/grub-rescue/grub-rescue-cdrom.iso')), write: undefined };
    return createMachine({ ...options, image: firmware(file('/usr/share/seabios/bios.bin'), 'bios.bin'), cdrom });
  }
  const from = (name: string): Uint8Array => file(`${ROOT}.cache/linux/${guest}/${name}`);
  const image = linux({
    kernel: from('vmlinuz'),
    kernelName: 'vmlinuz',
    initrd: from('initramfs.cpio'),
    append: 'console=ttyS0',
    memory: MEMORY,
  });
  return createMachine({ ...options, image });
}

/** Runs a guest up to its prompt and a little further; the forms that it ran often. */
async function collect(guest: string): Promise<Form[]> {
  Object.assign(IN_TURN, { usual: false, runs: 16, gather: 64, ticksEach: 100, burst: 100 });
  const made = new Map<string, Form>();
  const { make } = HandlerSet.prototype;
  HandlerSet.prototype.make = function (forms) {
    for (const form of forms) made.set(formKey(form), form);
    return make.call(this, forms);
  };
  let text = '';
  const machine = await start(guest, (byte) => {
    text = (text + String.fromCharCode(byte)).slice(-400);
  });
  let end = guest === 'grub' ? 1.5e9 : 12e9;
  const between = (): boolean => {
    if (text.includes('tskvm: initramfs up')) end = Math.min(end, machine.instructions + 100e6);
    return machine.instructions > end;
  };
  await machine.run({ maxInstructions: end, between });
  return [...made.values()];
}

/** Forms by name and operands, a line each. */
function table(forms: readonly Form[]): string {
  const lines = new Map<string, Set<string>>();
  for (const form of forms) {
    const [name, variant] = writeForm(form);
    lines.set(name, (lines.get(name) ?? new Set()).add(variant));
  }
  const text = [...lines].map(([name, variants]) => `${name} ${[...variants].sort().join(' ')}`);
  return text.sort().join('\n');
}

const [guest] = process.argv.slice(2);
if (guest !== undefined) {
  process.stdout.write(JSON.stringify(await collect(guest)));
  process.exit(0);
}
const forms = GUESTS.flatMap((name) => {
  const args = [...process.execArgv, process.argv[1]!, name];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (status !== 0) throw new Error(`${name}: ${stderr}`);
  return JSON.parse(stdout) as Form[];
});
const isLong = ({ segments }: Form): boolean => segments === 'long';
writeFileSync(
  TABLE,
  `/** Written by scripts/usual-forms.ts; how to read it: usual.ts. */
export const LONG = \`
${table(forms.filter(isLong))}
\`;
export const LEGACY = \`
${table(forms.filter((form) => !isLong(form)))}
\`;
`,
);
execFileSync(`${ROOT}node_modules/.bin/biome`, ['check', '--write', TABLE]);
