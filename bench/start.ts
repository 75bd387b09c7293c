/**
 * Start of a machine: from `createMachine` to its guest's first instruction, in a fresh process behind the loading of the modules; on the
 * built packages, whose interpreter is generated already. `pnpm build && npx tsx [--conditions=@tskvm/source] bench/start.ts`
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { median } from './harness.ts';

export const VENDORS = ['svm', 'vmx'] as const;

const built = (name: string): string => new URL(`../packages/${name}/dist/index.js`, import.meta.url).href;

/** MOV AL, 'S'; OUT 0E9h, AL; HLT. */
const program = (vendor: string): string => `
  import { ${vendor} } from '${built(vendor)}';
  import { bootSector, createMachine } from '${built('cli')}';
  const image = new Uint8Array(512);
  image.set([0xb0, 0x53, 0xe6, 0xe9, 0xf4]);
  image.set([0x55, 0xaa], 510);
  const start = [performance.now(), process.cpuUsage()];
  const onDebug = () => {
    const { user, system } = process.cpuUsage(start[1]);
    console.log(JSON.stringify({ elapsed: performance.now() - start[0], processor: (user + system) / 1000 }));
    process.exit(0);
  };
  const machine = await createMachine({ backend: ${vendor}(), image: bootSector(image, 'start'), memory: 2 ** 27, onDebug });
  await machine.run();`;

/** Milliseconds that have passed, and of processor time (all threads). */
export function startTime(vendor: string): { elapsed: number; processor: number } {
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', program(vendor)], { encoding: 'utf8' });
  return JSON.parse(stdout) as { elapsed: number; processor: number };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const vendor of VENDORS) {
    const times = Array.from({ length: 9 }, () => startTime(vendor));
    const elapsed = median(times.map((time) => time.elapsed)).toFixed(0);
    const processor = median(times.map((time) => time.processor)).toFixed(0);
    console.log(`${vendor} ${elapsed} ms, of processor time ${processor} ms`);
  }
}
