/** What runs the benchmarks' guests beside tskvm: NASM's output and npm's v86. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Milliseconds of this process's own processor time: what the neighbours on the machine take does not count. */
export const cpuMs = (): number => process.cpuUsage().user / 1000;

/** Assembles `bench/guests/NAME.asm`; defines as NASM takes them behind -D, such as `LONG` or `COUNT=5`. Throws where NASM is missing or refuses. */
export function assemble(name: string, defines: readonly string[] = []): Uint8Array {
  const out = join(mkdtempSync(join(tmpdir(), 'tskvm-bench-')), `${name}.bin`);
  const args = ['-f', 'bin', ...defines.map((define) => `-D${define}`), '-o', out];
  const result = spawnSync('nasm', [...args, join(root, `bench/guests/${name}.asm`)], { encoding: 'utf8' });
  if (result.status !== 0)
    throw new Error(`nasm is needed (Debian package nasm): ${result.stderr ?? result.error?.message}`);
  return new Uint8Array(readFileSync(out));
}

/** Runs a firmware image on npm's v86: milliseconds of processor time between the bytes 'S' and 'E' on port 0xE9. `jit`: whether v86 translates. */
export async function onV86(rom: Uint8Array, jit: boolean): Promise<number> {
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
        if (value === 0x53) started = cpuMs();
        else resolve(cpuMs() - started);
      });
      emulator.run();
    });
  });
}
