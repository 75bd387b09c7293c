/** The command line: one clear message for what is wrong, exit statuses, help, JSON, and each command once. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Result, tskvm } from './command-line.ts';

let dir: string;
const file = (name: string, bytes: readonly number[] | Uint8Array): void => {
  writeFileSync(join(dir, name), Uint8Array.from(bytes));
};
/** A boot sector with this code. */
const sector = (code: readonly number[]): Uint8Array => {
  const bytes = new Uint8Array(512);
  bytes.set(code);
  bytes.set([0x55, 0xaa], 510);
  return bytes;
};
/** mov eax, cr0; or al, 1; mov cr0, eax; and al, FEh; mov cr0, eax; mov al, 5; out F4h, al. */
const THERE_AND_BACK = [0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xb0, 5, 0xe6, 0xf4];

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'tskvm-cli-'));
  file('text.txt', Buffer.from('no guest at all\n'));
  file('empty.bin', []);
  file('odd.rom', new Uint8Array(1000));
  file('large.bin', new Uint8Array(3 << 20));
  file('switch.bin', sector(THERE_AND_BACK));
  file('loop.bin', sector([0xeb, 0xfe]));
  // cli; hlt
  file('halt.bin', sector([0xfa, 0xf4]));
  // lidt [7d00h] (six zero bytes); ud2
  file('fault.bin', sector([0x0f, 0x01, 0x1e, 0, 0x7d, 0x0f, 0x0b]));
  // mov al, [46Ch]; out F4h, al: a flat binary
  file('flat.bin', [0xb0, 1, 0xe6, 0xf4]);
  mkdirSync(join(dir, 'folder'));
  writeFileSync(join(dir, 'broken-backend.mjs'), 'export default 42;\n');
  writeFileSync(join(dir, 'syntax.mjs'), 'export default (\n');
});
afterAll(() => rmSync(dir, { recursive: true }));

const inDir = (args: readonly string[]): string[] => args.map((arg) => arg.replaceAll('@', `${dir}/`));
/** One message, no stack. */
function expectMessage({ status, stderr }: Result, texts: readonly string[]): void {
  expect(status).not.toBe(0);
  expect(status).not.toBeNull();
  for (const text of texts) expect(stderr).toContain(text);
  expect(stderr).not.toMatch(/\n\s+at .*[:(]/);
  expect(stderr).not.toContain('internal error');
  expect(stderr.trim().split('\n').length, stderr).toBeLessThanOrEqual(2);
}

const BAD_INPUT: readonly (readonly [string, string[], string[]])[] = [
  ['nothing to run', ['run'], ['nothing to run', '--load']],
  ['an image that is not bootable', ['run', '@text.txt'], ['text.txt', 'not bootable', '--load']],
  ['an empty image', ['run', '@empty.bin'], ['empty.bin', 'is empty']],
  ['a missing image', ['run', '@missing.bin'], ['missing.bin', 'no such file']],
  ['a device that never ends', ['run', '/dev/zero'], ['/dev/zero', 'does not end', 'give a file']],
  ['a folder', ['run', '@folder'], ['folder', "can't be read"]],
  ['firmware of an odd size', ['run', '--bios', '@odd.rom'], ['odd.rom', 'multiple of 4096']],
  ['missing firmware', ['run', '--bios', '@missing.rom'], ['missing.rom', 'no such file']],
  ['a missing disk', ['run', '--disk', '@missing.img'], ['missing.img', 'no such file']],
  ['a missing CD-ROM', ['run', '--cdrom', '@missing.iso'], ['missing.iso', 'no such file']],
  ['a kernel without a Multiboot header', ['run', '--kernel', '@text.txt'], ['text.txt', 'Multiboot']],
  [
    'an image too large for memory',
    ['run', '--load', '1000', '--memory', '2M', '@large.bin'],
    ['behind the end of memory', '--memory'],
  ],
  [
    'an address beyond memory',
    ['run', '--load', '4000000:1000', '@flat.bin'],
    ['behind the end of memory', '--memory'],
  ],
  ['two images', ['run', '--load', '1000', '--bios', '@odd.rom', '@flat.bin'], ['exclude each other']],
  ['--load without a file', ['run', '--load', '1000'], ['--load', 'FILE']],
  ['a bad address', ['run', '--load', 'xyz', '@flat.bin'], ['xyz', 'hexadecimal']],
  [
    'an address that real mode does not reach',
    ['run', '--load', 'ffffffff0', '@flat.bin'],
    ['0xffffffff0', 'below 0x100000'],
  ],
  ['an entry that real mode does not reach', ['run', '--load', '1000:200000', '@flat.bin'], ['0x200000', 'real mode']],
  ['a bad size', ['run', '--memory', 'lots', '@switch.bin'], ['lots', '64M']],
  ['no memory', ['run', '--memory', '0', '@switch.bin'], ['memory', '1 MiB']],
  ['too much memory', ['run', '--memory', '64G', '@switch.bin'], ['memory', '3584 MiB']],
  ['a memory that is no multiple', ['run', '--memory', '3000001', '@switch.bin'], ['memory', '64 KiB']],
  ['too many processors', ['run', '--cpus', '99', '@switch.bin'], ['99', '1 to 8']],
  ['no processors', ['run', '--cpus', '0', '@switch.bin'], ['--cpus', 'at least 1']],
  ['a bad number', ['run', '--max-instructions', 'many', '@loop.bin'], ['many', 'whole number']],
  ['a negative number', ['run', '--max-instructions=-5', '@loop.bin'], ['-5', 'whole number']],
  ['an unknown engine', ['run', '--engine', 'warp', '@switch.bin'], ['warp', 'interpret']],
  ['an unknown CPU model', ['run', '--cpu', 'epyk', '@switch.bin'], ['epyk', 'did you mean epyc', 'qemu64']],
  ['an unknown CPU feature', ['run', '--cpu', 'epyc,+shaa', '@switch.bin'], ['shaa', 'did you mean sha']],
  ['a CPU feature without its base', ['run', '--cpu', 'qemu64,+avx2', '@switch.bin'], ['avx', 'needs']],
  ['features that exclude each other', ['modes', '--cpu', 'epyc,+la57,-lm', '@switch.bin'], ['lm']],
  [
    "the other vendor's virtualisation",
    ['run', '--backend', 'vmx', '--cpu', 'epyc,+svm', '@switch.bin'],
    ['svm', 'backend vmx'],
  ],
  ['an unknown backend', ['run', '--backend', 'smv', '@switch.bin'], ['smv', 'svm', 'vmx']],
  ['a backend file that is missing', ['run', '--backend', '@none.mjs', '@switch.bin'], ['none.mjs', 'no such file']],
  [
    'a backend that is none',
    ['run', '--backend', '@broken-backend.mjs', '@switch.bin'],
    ['broken-backend.mjs', 'defineBackend'],
  ],
  [
    'a backend that does not parse',
    ['run', '--backend', '@syntax.mjs', '@switch.bin'],
    ['syntax.mjs', "can't be imported"],
  ],
  ['an unknown parameter', ['run', '--backend', 'vmx,npt=1', '@switch.bin'], ["no parameter 'npt'", 'ept']],
  ['a parameter without a value', ['run', '--backend', 'svm,npt', '@switch.bin'], ['npt', 'name=value']],
  ['a parameter of a wrong type', ['run', '--backend', 'vmx,ept=7', '@switch.bin'], ["'ept'", 'boolean']],
  ['an unknown command', ['walk'], ['walk']],
  ['an unknown option', ['run', '--warp', '@switch.bin'], ['--warp']],
  ['an unknown function', ['callers', 'svm_set_cr00'], ['svm_set_cr00', 'svmSetCr0']],
  ['an unknown op', ['ops', 'set_cr00'], ['set_cr00', 'setCr0']],
  ['a guest that triple-faults at once', ['run', '@fault.bin'], ['triple fault', '0000:7c05']],
  ['the same on VT-x', ['run', '--backend', 'vmx', '@fault.bin'], ['triple fault', '0000:7c05']],
  [
    'the same without unrestricted guest',
    ['run', '--backend', 'vmx,unrestricted_guest=0', '@fault.bin'],
    ['triple fault'],
  ],
  ['a guest that never ends', ['run', '--max-instructions', '10_000', '@loop.bin'], ['--max-instructions']],
];

describe('bad input is one message', () => {
  test.concurrent.each(BAD_INPUT)('%s', async (_what, args, texts) => {
    expectMessage(await tskvm(inDir(args)), texts);
  });
  // Not a file without permission: the superuser reads that.
  test('an image that can not be read', async () => {
    expectMessage(await tskvm(inDir(['run', '@.'])), ["can't be read"]);
  });
  test('--debug adds the stack trace', async () => {
    const { stderr } = await tskvm(inDir(['--debug', 'run', '@missing.bin']));
    expect(stderr).toMatch(/\n\s+at /);
  });
});

describe('exit statuses', () => {
  const rows: readonly (readonly [string, string[], number])[] = [
    ["the guest's, by the debug-exit port", ['run', '@switch.bin'], 11],
    ['a flat binary', ['run', '--load', '0x1000', '@flat.bin'], 3],
    ['triple fault', ['run', '@fault.bin'], 3],
    ['instructions used up', ['run', '--max-instructions', '1000', '@loop.bin'], 124],
    ['halted for ever', ['run', '@halt.bin'], 0],
    ['usage', ['run', '@missing.bin'], 2],
  ];
  test.concurrent.each(rows)('%s', async (_what, args, status) => {
    expect((await tskvm(inDir(args))).status).toBe(status);
  });
});

describe('help', () => {
  test.concurrent.each(['run', 'modes', 'trace', 'tour', 'callers', 'ops', 'backends'])(
    '%s --help has examples',
    async (command) => {
      const { status, stdout } = await tskvm([command, '--help']);
      expect(status).toBe(0);
      expect(stdout).toMatch(/Examples?:\n {2}tskvm /);
    },
  );
  test('tskvm --help lists the commands', async () => {
    const { status, stdout } = await tskvm(['--help']);
    expect(status).toBe(0);
    for (const command of ['tour', 'run', 'modes', 'trace', 'callers', 'ops', 'backends', 'cpus'])
      expect(stdout).toContain(command);
  });
});

describe('commands', () => {
  test("run --until with a text that never came: told, and the status is the guest's", async () => {
    const { status, stderr } = await tskvm(inDir(['run', '--until', 'never', '@switch.bin']));
    expect(status).toBe((await tskvm(inDir(['run', '@switch.bin']))).status);
    expect(stderr).toContain('never showed the text of --until: "never"');
  });
  test('modes --json: both switches with their path', async () => {
    const { status, stdout } = await tskvm(inDir(['modes', '--json', '@switch.bin']));
    expect(status).toBe(11);
    const data = JSON.parse(stdout);
    const [into, back] = data.switches.filter((s: { cause?: string }) => s).slice(-2);
    expect(JSON.stringify(into)).toContain('crInterception');
    expect(JSON.stringify(back)).toContain('svmSetCr0');
  });
  test('modes of three backends stand side by side', async () => {
    const specs = ['--backend', 'svm', '--backend', 'vmx', '--backend', 'vmx,unrestrictedGuest=0'];
    const { stdout } = await tskvm(inDir(['modes', ...specs, '@switch.bin']));
    for (const text of ['svmSetCr0', 'handleSetCr0', 'enterPmode|emulatorSetCr', 'unrestrictedGuest']) {
      expect(stdout.replace(/[\s│]+/g, '')).toMatch(new RegExp(text));
    }
  });
  test('run --json', async () => {
    const { stdout } = await tskvm(inDir(['run', '--json', '@switch.bin']));
    expect(JSON.parse(stdout)).toMatchObject({ backend: 'svm', reason: 'debug-exit', status: 11 });
  });
  test('trace --json: one event a line, filtered by name', async () => {
    const { stdout } = await tskvm(inDir(['trace', '--json', '-e', 'kvm_exit,kvm_cr', '@switch.bin']));
    const events = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(new Set(events.map((event) => event.event))).toEqual(new Set(['kvm_exit', 'kvm_cr']));
  });
  test("trace: trace-cmd's form", async () => {
    const { stdout } = await tskvm(inDir(['trace', '-e', 'kvm_*', '@switch.bin']));
    expect(stdout).toMatch(/^\S+ +\[000\] +\d+\.\d{6}: kvm_exit: +\S+/m);
  });
  test('callers kvm_set_cr0: possible and taken, as JSON and as text', async () => {
    const [text, json] = await Promise.all([
      tskvm(['callers', 'kvm_set_cr0']),
      tskvm(['callers', '--json', 'kvmSetCr0']),
    ]);
    for (const name of ['crInterception', 'handleSetCr0', 'kvmLmsw', 'emulatorSetCr'])
      expect(text.stdout).toContain(name);
    expect(JSON.stringify(JSON.parse(json.stdout))).toContain('crInterception');
  });
  test('ops set_cr0: what each backend binds', async () => {
    const { stdout, status } = await tskvm(['ops', 'set_cr0']);
    expect(status).toBe(0);
    for (const text of ['svmSetCr0', 'vmxSetCr0', 'packages/svm/src/']) expect(stdout).toContain(text);
  });
  test('backends', async () => {
    const [text, json] = await Promise.all([tskvm(['backends']), tskvm(['backends', '--json'])]);
    expect(text.stdout).toMatch(/svm[\s\S]*vmx/);
    const svm = JSON.parse(json.stdout).find(({ name }: { name: string }) => name === 'svm');
    const { stderr } = await tskvm(inDir(['run', '--backend', 'svm,nosuchparam=1', '@switch.bin']));
    expect(stderr).toContain(`It has ${Object.keys(svm.params).join(', ')}`);
  });
  test('cpus', async () => {
    const [text, json] = await Promise.all([tskvm(['cpus']), tskvm(['cpus', '--json'])]);
    expect(text.stdout).toMatch(/epyc[\s\S]*xeon[\s\S]*qemu64[\s\S]*umip/);
    const { models, features } = JSON.parse(json.stdout);
    expect(models.map(({ name }: { name: string }) => name)).toEqual(['epyc', 'xeon', 'qemu64']);
    expect(features).toContainEqual({
      name: 'la57',
      cpuid: '7 ECX bit 16',
      vendor: null,
      needs: ['lm'],
      missing: null,
    });
  });
  test("run --cpu: the tour's guest under the other vendor's CPUID", async () => {
    const { status } = await tskvm(['tour', '--backend', 'vmx', '--cpu', 'epyc']);
    expect(status).toBe(0);
  });
  test('tour --json under svm', async () => {
    const { stdout, status } = await tskvm(['tour', '--json']);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ backend: 'svm', passed: true, failure: null });
  });
});

test('a signal ends a run, and its object says so', async () => {
  const { status, stdout, stderr } = await tskvm(['run', '--json', join(dir, 'loop.bin')], { timeout: 8000 });
  expect(JSON.parse(stdout)).toMatchObject({ backend: 'svm', reason: 'interrupted', instructions: expect.any(Number) });
  expect([status, stderr]).toEqual([143, '']);
}, 30_000);
