/** What runs the benchmarks' guests beside tskvm: the host itself, npm's v86, QEMU's TCG, Bochs; and NASM, which makes the guests. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('..', import.meta.url));
/** Folder of this process's images and configurations. */
const folder = mkdtempSync(join(tmpdir(), 'tskvm-bench-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

/** Milliseconds of this process's own processor time: what the neighbours on the machine take does not count. */
export const cpuMs = (): number => process.cpuUsage().user / 1000;

/**
 * Arguments for a program of bench/ in a process of its own, with the built packages, or the sources if this process has them
 * (`--conditions=@tskvm/source`).
 */
export const benchProgram = (name: string, ...args: readonly string[]): string[] => [
  ...process.execArgv,
  join(root, 'bench', name),
  ...args,
];

/** A file of this process's own, gone when it ends. */
export function temporary(name: string, contents: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, contents);
  return path;
}

function tool(command: string, needs: string, args: readonly string[]): void {
  const result = spawnSync(command, args, { encoding: 'utf8', cwd: join(root, 'bench/guests') });
  if (result.status !== 0)
    throw new Error(`${command} is needed (Debian package ${needs}): ${result.stderr || result.error?.message}`);
}

/** Assembles `bench/guests/NAME.asm`; defines as NASM takes them behind -D, such as `LONG` or `COUNT=5`. Throws where NASM is missing or refuses. */
export function assemble(name: string, defines: readonly string[] = [], format = 'bin'): Uint8Array {
  const out = join(folder, `${name}.${format}`);
  tool('nasm', 'nasm', ['-f', format, ...defines.map((define) => `-D${define}`), '-o', out, `${name}.asm`]);
  return new Uint8Array(readFileSync(out));
}

/** What a peer needs to be there, by the name that the rows give it. */
const NEEDS: Readonly<Record<string, { command: string; install: string }>> = {
  tcg: { command: 'qemu-system-x86_64', install: 'qemu-system-x86' },
  bochs: { command: 'bochs', install: 'bochs and bochs-term' },
  native: { command: 'ld', install: 'binutils' },
};

/** Peers that `--without` leaves out. */
export const leftOut = new Set<string>();

/** Why a peer has no figure, or null where it can run. */
export function missing(peer: string): string | null {
  if (leftOut.has(peer)) return 'left out';
  const needs = NEEDS[peer];
  if (needs === undefined) return null;
  if (spawnSync('sh', ['-c', `command -v ${needs.command}`]).status !== 0) return `install ${needs.install}`;
  const display = '/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so';
  return peer === 'bochs' && !existsSync(display) ? `install ${needs.install}` : null;
}

/** The kernel as a program of the host: milliseconds. */
export function native(defines: readonly string[]): number {
  const object = temporary('native.o', assemble('native', defines, 'elf64'));
  const program = join(folder, 'native');
  tool('ld', 'binutils', ['-Ttext=0x20000000', '-o', program, object]);
  const { stdout, status } = spawnSync(program);
  if (status !== 0) throw new Error('bench/guests/native.asm: the host gave it no memory at 4 MiB');
  return Number(stdout.readBigUInt64LE()) / 1e6;
}

interface V86Machine {
  v86: {
    cpu: {
      io: { register_write(port: number, device: object, write: (value: number) => void): void };
      write_blob(bytes: Uint8Array, at: number): void;
    };
  };
}
export interface V86Options {
  memory: number;
  jit?: boolean;
  /** What stands in memory before it starts. */
  segments?: readonly { at: number; bytes: Uint8Array }[];
  onDebug?: (byte: number) => void;
  onSerial?: (byte: number) => void;
}

/** Starts npm's v86 with a firmware image. */
export async function startV86(rom: Uint8Array, options: V86Options): Promise<void> {
  const { V86 } = await import('v86');
  const emulator = new V86({
    wasm_path: join(root, 'node_modules/v86/build/v86.wasm'),
    memory_size: options.memory,
    bios: { buffer: rom.buffer.slice(rom.byteOffset, rom.byteOffset + rom.length) as ArrayBuffer },
    autostart: false,
    disable_jit: options.jit === false,
    disable_keyboard: true,
    disable_mouse: true,
    disable_speaker: true,
  } as ConstructorParameters<typeof V86>[0]);
  await new Promise<void>((resolve) => emulator.add_listener('emulator-ready', resolve));
  const { cpu } = (emulator as unknown as V86Machine).v86;
  cpu.io.register_write(0xe9, { name: 'bench' }, (value) => options.onDebug?.(value));
  for (const { at, bytes } of options.segments ?? []) cpu.write_blob(bytes, at);
  emulator.add_listener('serial0-output-byte', (byte: number) => options.onSerial?.(byte));
  emulator.run();
}

/** Runs a firmware image on v86: milliseconds of processor time between the bytes 'S' and 'E' on port 0xE9. `jit`: whether v86 translates. */
export function onV86(rom: Uint8Array, jit: boolean): Promise<number> {
  return new Promise((resolve, reject) => {
    let started = 0;
    const onDebug = (byte: number): void => {
      if (byte === 0x53) started = cpuMs();
      else resolve(cpuMs() - started);
    };
    startV86(rom, { memory: 32 * 2 ** 20, jit, onDebug }).catch(reject);
  });
}

/** User time of another process in milliseconds (proc(5), field 14, in hundredths of a second). */
export const userTime = (pid: number): number =>
  Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')[11]) * 10;

/** Milliseconds of another process's time between an 'S' that begins a line of what it prints and the 'E' behind it; then it is killed. */
function betweenMarks(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    let started: number | undefined;
    let text = '';
    child.stdout!.on('data', (data: Buffer) => {
      for (const byte of data) {
        text = (text + String.fromCharCode(byte)).slice(-2000);
        if (started === undefined && (text === 'S' || text.endsWith('\nS'))) started = userTime(child.pid!);
        else if (started !== undefined && byte === 0x45) {
          resolve(userTime(child.pid!) - started);
          child.kill('SIGKILL');
          return;
        }
      }
    });
    child.on('error', reject);
    child.on('exit', () => reject(new Error(`${child.spawnfile} ended early: ${text}`)));
  });
}

/** A firmware image on QEMU's TCG. */
export function tcg(rom: Uint8Array): Promise<number> {
  const args = ['-accel', 'tcg', '-cpu', 'qemu64', '-m', '32', '-display', 'none', '-nodefaults'];
  args.push('-bios', temporary('rom.bin', rom), '-chardev', 'stdio,id=d', '-device', 'isa-debugcon,chardev=d');
  args.push('-device', 'isa-debug-exit,iobase=0xf4,iosize=1');
  return betweenMarks(spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'inherit'] }));
}

/** Starts Bochs, headless; `lines` are added to its configuration. Debian's has the debugger built in, which has to be told to go on. */
export function startBochs(rom: Uint8Array, megabytes: number, lines: readonly string[] = []): ChildProcess {
  const configuration = temporary(
    'bochsrc',
    [
      `megs: ${megabytes}`,
      `romimage: file=${temporary('bochs-rom.bin', rom)}`,
      'display_library: term',
      'port_e9_hack: enabled=1',
      'cpu: model=ryzen, ips=100000000, reset_on_triple_fault=0',
      'clock: sync=none',
      'plugin_ctrl: sb16=0, speaker=0, gameport=0, parallel=0',
      `log: ${join(folder, 'bochs.log')}`,
      ...['panic: action=report', 'error: action=ignore', 'info: action=ignore', ...lines, ''],
    ].join('\n'),
  );
  const args = ['-q', '-f', configuration, '-rc', temporary('bochs-commands', 'c\n')];
  // /usr/bin/bochs is a script that starts it.
  return spawn('bochs-bin', args, { stdio: ['ignore', 'pipe', 'ignore'], env: { ...process.env, TERM: 'vt100' } });
}

/** A firmware image on Bochs. */
export async function bochs(rom: Uint8Array): Promise<number> {
  return betweenMarks(startBochs(rom, 32));
}
