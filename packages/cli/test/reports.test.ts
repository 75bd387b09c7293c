/** What the commands print: tables that fit, a tour that begins with its result, switches that are named precisely, names offered for misspelt ones. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { TRACE_FIELDS, type TraceEvents, type TraceName } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { afterAll, describe, expect, test } from 'vitest';
import { runSession } from '../src/commands/session.ts';
import { expandImage } from '../src/guests/image.ts';
import { GUEST_IMAGES } from '../src/guests/images.ts';
import { firmware } from '../src/machine/loaders/image.ts';
import { alignSwitches } from '../src/report/side-by-side.ts';
import { textTable, wrapText } from '../src/report/text-table.ts';
import { parseFilter, selectEvents } from '../src/report/trace-filter.ts';
import { COMMANDS, helpOf, inProcess, type Outcome } from './in-process.ts';

const scratch = mkdtempSync(join(tmpdir(), 'tskvm-reports-'));
afterAll(() => rmSync(scratch, { recursive: true }));

const lines = (text: string): string[] => text.trimEnd().split('\n');
const widest = (text: string): number =>
  Math.max(...lines(stripVTControlCharacters(text)).map((line) => [...line].length));

describe('tables', () => {
  test('a column shrinks, words wrap, and nothing gets lost', () => {
    const text = textTable([{ head: 'a' }, { head: 'b' }], [{ cells: ['one two three', 'x'.repeat(30)] }], 30);
    expect(widest(text)).toBeLessThanOrEqual(30);
    expect(text.replace(/[\s─]/g, '')).toContain('one');
    expect(text.match(/x/g)).toHaveLength(30);
  });
  test('an arrow stays behind what it follows', () => {
    expect(wrapText('kvmSetCr0 → staticCall.setCr0 → svmSetCr0', 33)).toEqual([
      'kvmSetCr0 → staticCall.setCr0 →',
      'svmSetCr0',
    ]);
  });
  test('a note that is too long goes on below its text, and keeps its columns', () => {
    const notes = [['  3.5 %  0xffffffff9469137f  ', 'mov qword [rel 0FFFFFFFF95A2BF20h],0FFFFFFFFFFFFFFFFh']] as const;
    expect(lines(textTable([{ head: 'a' }], [{ cells: ['1'], notes }], 66)).slice(3)).toEqual([
      '    3.5 %  0xffffffff9469137f  mov qword [rel',
      `${' '.repeat(31)}0FFFFFFFF95A2BF20h],`,
      `${' '.repeat(31)}0FFFFFFFFFFFFFFFFh`,
    ]);
  });
  test('a range of addresses that is too long is cut behind its hyphen', () => {
    expect(wrapText('0xffffffff94b69f96-0xffffffff94b6a01b', 30)).toEqual([
      '0xffffffff94b69f96-',
      '0xffffffff94b6a01b',
    ]);
  });
  test('a name that is too long is cut between its parts', () => {
    expect(wrapText('svmCheckProcessorCompatibility', 20)).toEqual(['svmCheckProcessor', 'Compatibility']);
    expect(wrapText('vmx,unrestrictedGuest=0', 20)).toEqual(['vmx,', 'unrestrictedGuest=0']);
  });
  const commands = [
    'modes hello',
    'modes --backend svm --backend vmx --backend vmx,unrestrictedGuest=0 hello',
    'tour --all',
    'backends',
    'ops',
    'callers kvmSetCr0',
  ];
  test.each([80, 100, 132])('every table fits %i columns', async (columns) => {
    for (const command of commands) {
      const { stdout } = await inProcess(command.split(' '), columns);
      expect(widest(stdout), `${command}\n${stdout}`).toBeLessThanOrEqual(columns);
    }
  });
  test('a pipe has 100', async () => {
    const { stdout } = await inProcess(['backends']);
    expect(widest(stdout)).toBeGreaterThan(80);
    expect(widest(stdout)).toBeLessThanOrEqual(100);
  });
});

describe('tour --all', () => {
  let outcome: Outcome;
  test('a line for each configuration comes first: stages, switches, exits', async () => {
    outcome = await inProcess(['tour', '--all']);
    expect(outcome.status).toBe(0);
    const plain = lines(stripVTControlCharacters(outcome.stdout));
    for (const [i, name] of ['svm', 'vmx', 'vmx,unrestrictedGuest=0'].entries()) {
      expect(plain[i]).toMatch(new RegExp(`^${name} +passed \\d+ stages, \\d+ mode switches, \\d+ exits$`));
    }
    expect(plain[3]).toBe('3 of 3 configurations passed every stage');
    expect(plain.length).toBeLessThan(110);
  });
  test('the exits stand side by side, each call path once, and where more is', () => {
    const text = outcome.stdout.replace(/\s+/g, ' ');
    for (const path of [
      'svmHandleExit → svmInvokeExitHandler → crInterception → kvmSetCr0 → staticCall.setCr0 → svmSetCr0',
      'vmxHandleExit → handleCr → handleSetCr0 → kvmSetCr0 → staticCall.setCr0 → vmxSetCr0',
      'handleExceptionNmi → handleRmodeException → kvmEmulateInstruction → x86EmulateInstruction → emulatorSetCr → kvmSetCr0',
    ])
      expect(text.split(path)).toHaveLength(2);
    expect(text).toMatch(/mov cr0,eax cr0_sel_write \S* ?CR_ACCESS/);
    expect(text).toContain('modes hello');
  });
});

describe('mode switches', () => {
  interface Switch {
    cause: string;
    instruction: string;
    exit: { name: string } | null;
    path: string[];
    why: string | null;
  }
  let switches: Switch[] = [];
  test('an RSM that KVM emulates is named as such, not by the exit before', async () => {
    const { stdout } = await inProcess(['tour', '--json', '--backend', 'vmx,unrestrictedGuest=0']);
    switches = JSON.parse(stdout).switches;
    const rsm = switches.filter((s) => s.instruction === 'rsm');
    expect(rsm.length).toBeGreaterThan(1);
    for (const { exit, path } of rsm) {
      expect(exit).toEqual({ name: 'emulated invalid guest state', reason: 0x80000021 });
      expect(path).toContain('handleInvalidGuestState');
    }
  });
  test("INIT of a vCPU that waits for it has no exit; another vCPU's is not its own", () => {
    expect(switches.find((s) => s.cause === 'INIT')?.exit).toBeNull();
  });
  test('a native switch says why there was no exit, by its disassembled instruction', async () => {
    expect(switches.filter((s) => s.path.length === 0).map((s) => s.why)).not.toHaveLength(0);
    const { stdout } = await inProcess(['modes', 'hello']);
    expect(stdout).toContain('jmp 8:7C22h');
    expect(stdout).toContain(
      'native: no exit, because neither a control register nor EFER changed, nothing to intercept',
    );
    expect(stdout).not.toContain('jmpfar');
  });
  test('switches that one run has alone do not part the others', () => {
    const event = (name: string): never =>
      ({ from: { name }, to: { name }, cause: name, cr0: {}, rip: 0n, vcpuId: 0 }) as never;
    const rows = alignSwitches(['abc', 'axbc', 'abyc'].map((run) => [...run].map(event)));
    const text = rows.map((row) => row.map((e) => (e ? (e as { cause: string }).cause : '-')).join(''));
    expect(text).toEqual(['aaa', '-x-', 'bbb', '--y', 'ccc']);
  });
});

describe('misspelt names are usage, with the nearest', () => {
  const rows: readonly (readonly [string, string[]])[] = [
    ['run --backend svm,ntp=1 hello', ["'ntp'", "did you mean 'npt'?", 'pauseFilterCount']],
    ['run --backend vmx,unrestricted_gest=0 hello', ["did you mean 'unrestrictedGuest'?", 'emulateInvalidGuestState']],
    ['run --backend svm,npt=7 hello', ["'npt' is a boolean"]],
    ['run --backend smv hello', ['smv', 'did you mean svm', 'vmx']],
    ['trace -e kvm_exti hello', ['kvm_exti', 'kvm_exit', 'kvm_mmio']],
    ['trace -e kvm:foo* hello', ['foo*', 'mode_switch']],
    ['trace --filter reson==3 hello', ['reson', 'did you mean reason']],
    ['trace --filter port=0x3f8 hello', ['port == 0x3f8']],
    ['trace -e kvm_cr --filter port==1 hello', ['port', 'cr, rw, val, vcpuId']],
    ['trace --ts msec hello', ['usec or nsec']],
    ['callers svmSetCr00', ['svmSetCr0']],
    ['callers countingSetCr0', ['functions of other packages are not known']],
    ['ops set_cr00', ['setCr0']],
    ['tour --backend foo', ['unknown backend foo']],
    ['tour --all --backend vmx', ['exclude each other']],
    ['run --linux-entry 32 hello', ['--linux-entry belongs to a kernel']],
    ['trace --filter port== hello', ['no comparison']],
    ['tour --backend vmx --sev-es', ["AMD's", 'leave']],
    ['callers svmSetCr0 --svg /nowhere/x.svg', ["can't be written", 'no such folder']],
    ['run --backend / hello', ['it is a folder']],
    ['run --cpu epyc,-sse2 hello', ['need sse2: add -sse3', '-avx2,']],
  ];
  test.each(rows)('%s', async (command, texts) => {
    const { status, stderr, stdout } = await inProcess(command.split(' '));
    expect(status).toBe(2);
    expect(stdout).toBe('');
    for (const text of texts) expect(stderr).toContain(text);
    expect(lines(stderr)).toHaveLength(1);
  });
  test('through the API: KvmError with its rule', () => {
    for (const make of [() => svm({ ntp: true } as never), () => vmx({ ebt: true } as never)]) {
      expect(make).toThrow(
        expect.objectContaining({ name: 'KvmError', code: 'UNKNOWN_PARAM', errno: 22, rule: expect.any(String) }),
      );
    }
  });
});

describe('run --until', () => {
  test('a text that is never seen is told, and the status stays', async () => {
    const unseen = await inProcess(['run', '--until', 'login:', 'hello']);
    expect(unseen.status).toBe(1);
    expect(unseen.stderr).toBe('tskvm: the serial console never showed the text of --until: "login:"\n');
    const budget = await inProcess(['run', '--until', 'login:', '--max-instructions', '10', 'hello']);
    expect(budget.status).toBe(124);
    expect(lines(budget.stderr)).toHaveLength(2);
  });
  test('one that is seen ends the run with 0', async () => {
    const shown = (await inProcess(['run', 'hello'])).stdout.trim().slice(0, 4);
    const seen = await inProcess(['run', '--until', shown, 'hello']);
    expect([seen.status, seen.stderr]).toEqual([0, '']);
  });
});

describe('help', () => {
  const examples = async (command: string): Promise<string[]> =>
    lines((await helpOf(command)).split('Examples:\n')[1])
      .filter((line) => line.startsWith('  tskvm '))
      .map((line) => line.trim().split(/ {3,}/)[0]);
  const words = (line: string): string[] => [...line.matchAll(/'([^']*)'|(\S+)/g)].slice(1).map((m) => m[1] ?? m[2]);
  test.each(Object.keys(COMMANDS))('the examples of %s run as they stand', async (command) => {
    const all = await examples(command);
    expect(all.length).toBeGreaterThanOrEqual(2);
    // Firmware, boot loaders and kernels are the user's files; real-guests.test.ts and linux.test.ts boot them.
    for (const line of all.filter((text) => !/\/usr\/|vmlinuz/.test(text))) {
      const args = words(line.replace(/\S+\.(svg|speedscope\.json)/, (file) => join(scratch, file)));
      const { status, stdout, stderr } = await inProcess(args);
      // The embedded guest writes 0 to the debug-exit port: status 1.
      expect(status, `${line}\n${stderr}`).toBe(args.includes('hello') && command !== 'callers' ? 1 : 0);
      expect(stdout).not.toBe('');
    }
  });
  test.each(['run', 'modes', 'trace'])('%s explains --json and --input, in 80 columns', async (command) => {
    const text = await helpOf(command);
    expect(text).toMatch(/\n(With )?--json /);
    expect(text).toContain('--input is typed on the serial console');
    expect(text).toMatch(/--input c --until/);
    const long = lines(text.split('Examples:')[1]).filter((line) => line.length > 80 && !line.includes('/usr/'));
    expect(long).toEqual([]);
  });
});

describe('trace', () => {
  test('--ts nsec: nine digits, 10 ns an instruction', async () => {
    const { stdout } = await inProcess(['trace', '-e', 'kvm_cr', '--ts', 'nsec', 'hello']);
    expect(lines(stdout)[0]).toMatch(/ 0\.0000\d{5}: kvm_cr: /);
    expect(lines(stdout)[0]).toMatch(/0: kvm_cr/);
  });
  test('--filter on fields, on text, and with wildcards', async () => {
    expect((await inProcess(['trace', '--filter', 'name == CR_ACCES', 'hello'])).stderr).toContain('no selected event');
    const of = async (filter: string): Promise<string[]> =>
      lines((await inProcess(['trace', '--backend', 'vmx', '--filter', filter, 'hello'])).stdout);
    const exits = await of('name == CR_ACCESS');
    expect(exits).toHaveLength(2);
    expect(exits.every((line) => line.includes('reason CR_ACCESS'))).toBe(true);
    expect((await of('port == 0x3f8 && rw == write')).length).toBeGreaterThan(10);
    expect((await of('name ~ CR_*')).length).toBe(2);
    expect(await of('cr_write 0')).toHaveLength(2);
    expect(await of('val < 0x11 && cr == 0')).toHaveLength(1);
  });
  test('a comparison of sizes wants a number', () => {
    expect(() => parseFilter('name < x', selectEvents(['kvm_exit']))).toThrow(/compares numbers/);
    for (const text of ['reason === 3', 'reason == 3 &&', 'reason == 3 x', "name ~ 'a' && b"])
      expect(() => parseFilter(text, selectEvents(['kvm_exit'])), text).toThrow(/is no comparison/);
  });
  test('the table of fields is what the events of a tour carry', async () => {
    const wrong: string[] = [];
    await runSession({
      spec: 'vmx',
      flags: { maxInstructions: '30000' },
      common: { image: firmware(expandImage(GUEST_IMAGES.tour), 'tour'), memory: 16 << 20, cpus: 2, disks: [] },
      prepare: (machine) =>
        machine.kvm.on('*', (event: TraceEvents[TraceName], name: TraceName) => {
          if (String(Object.keys(event).sort()) !== String([...TRACE_FIELDS[name]].sort())) wrong.push(name);
        }),
    });
    expect([...new Set(wrong)]).toEqual([]);
  });
  test('the table has every field of every event', () => {
    type Missing = { [N in TraceName]: Exclude<keyof TraceEvents[N], (typeof TRACE_FIELDS)[N][number]> }[TraceName];
    const complete: [Missing] extends [never] ? true : false = true;
    expect(complete).toBe(true);
  });
});
