/** One run of the ALU loop on one engine, as a process of its own: prints million guest instructions per second. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { createMachine, firmware } from '../packages/cli/src/index.ts';

/** Instructions in the loop: see bench/guests/alu.asm. */
const ITERATIONS = 60_000_000;
const PER_ITERATION = 10;
const root = fileURLToPath(new URL('..', import.meta.url));

/** Assembles the guest; `long`: 64-bit code. */
export function assemble(long: boolean): Uint8Array {
  const out = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), 'alu.bin');
  const args = ['-f', 'bin', ...(long ? ['-DLONG'] : []), '-o', out, join(root, 'bench/guests/alu.asm')];
  const result = spawnSync('nasm', args, { encoding: 'utf8' });
  if (result.status !== 0)
    throw new Error(`nasm is needed (Debian package nasm): ${result.stderr ?? result.error?.message}`);
  return new Uint8Array(readFileSync(out));
}

async function tskvm(rom: Uint8Array, vendor: string): Promise<number> {
  let started = 0;
  let ended = 0;
  const machine = await createMachine({
    backend: vendor === 'vmx' ? vmx() : svm(),
    image: firmware(rom, 'alu'),
    memory: 16 * 2 ** 20,
    engine: 'interpret',
    onDebug: (byte) => {
      if (byte === 0x53) started = performance.now();
      else ended = performance.now();
    },
  });
  const stop = await machine.run({ slice: 5_000_000 });
  if (stop.reason !== 'debug-exit') throw new Error(`the loop did not end: ${JSON.stringify(stop)}`);
  return (ITERATIONS * PER_ITERATION) / (ended - started) / 1000;
}

async function v86(rom: Uint8Array, jit: boolean): Promise<number> {
  const { V86 } = await import('v86');
  return new Promise((resolve) => {
    let started = 0;
    const emulator = new V86({
      wasm_path: join(root, 'node_modules/v86/build/v86.wasm'),
      memory_size: 32 * 2 ** 20,
      bios: { buffer: rom.buffer.slice(rom.byteOffset, rom.byteOffset + rom.length) as ArrayBuffer },
      autostart: false,
      disable_jit: !jit,
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
    } as ConstructorParameters<typeof V86>[0]);
    emulator.add_listener('emulator-ready', () => {
      const { io } = (
        emulator as unknown as {
          v86: { cpu: { io: { register_write(port: number, device: object, write: (value: number) => void): void } } };
        }
      ).v86.cpu;
      io.register_write(0xe9, { name: 'bench' }, (value) => {
        if (value === 0x53) started = performance.now();
        else resolve((ITERATIONS * PER_ITERATION) / (performance.now() - started) / 1000);
      });
      emulator.run();
    });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [engine, width] = process.argv.slice(2);
  const rom = assemble(width === '64');
  const mips =
    engine === 'v86' ? await v86(rom, true) : engine === 'v86-nojit' ? await v86(rom, false) : await tskvm(rom, engine);
  process.stdout.write(`${mips.toFixed(1)}\n`);
  process.exit(0);
}
