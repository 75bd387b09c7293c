/** Runs the command line in a process of its own: the built one if the build is newer than every source, else the source. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const packages = fileURLToPath(new URL('../../', import.meta.url));
const BUILT = join(packages, 'cli/dist/cli.js');
const SOURCE = join(packages, 'cli/src/cli.ts');

function newest(folder: string): number {
  let time = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    time = Math.max(time, entry.isDirectory() ? newest(path) : statSync(path).mtimeMs);
  }
  return time;
}
function isBuilt(): boolean {
  return ['emulator', 'core', 'svm', 'vmx', 'cli'].every((name) => {
    const built = join(packages, name, 'dist/index.js');
    return existsSync(built) && statSync(built).mtimeMs > newest(join(packages, name, 'src'));
  });
}
const COMMAND = isBuilt() ? [BUILT] : ['--conditions=@tskvm/source', '--import', 'tsx', SOURCE];

export interface Result {
  status: number | null;
  stdout: string;
  stderr: string;
}
/** @param input bytes for standard input, which then ends */
export function tskvm(args: readonly string[], options: { input?: string; timeout?: number } = {}): Promise<Result> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...COMMAND, ...args], {
      // Neither the test runner's flags nor colours.
      env: { ...process.env, NODE_OPTIONS: '', NO_COLOR: '1', FORCE_COLOR: undefined },
      timeout: options.timeout ?? 60_000,
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
  });
}
