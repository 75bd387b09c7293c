// Runs a root task on a machine that has only Node and npm: finds or fetches the pinned pnpm, installs, builds, runs.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = new URL('..', import.meta.url);
process.chdir(fileURLToPath(root));
process.env.TURBO_TELEMETRY_DISABLED = '1';
process.env.DO_NOT_TRACK = '1';

const pinned = JSON.parse(readFileSync('package.json', 'utf8')).packageManager.split('@')[1];
const [task, ...args] = process.argv.slice(2);

/** Runs a command with inherited streams (`quiet`: its output is shown only if it fails) and stops on failure. */
function run(command, quiet = false) {
  const result = spawnSync(command[0], command.slice(1), {
    stdio: quiet ? ['ignore', 'pipe', 'pipe'] : 'inherit',
    shell: process.platform === 'win32',
  });
  if (result.status === 0) return;
  if (quiet) process.stderr.write(Buffer.concat([result.stdout ?? Buffer.alloc(0), result.stderr ?? Buffer.alloc(0)]));
  if (result.error) process.stderr.write(`${result.error.message}\n`);
  process.exit(result.status ?? 1);
}

const version = spawnSync('pnpm', ['--version'], { encoding: 'utf8', shell: process.platform === 'win32' });
const pnpm = version.stdout?.trim() === pinned ? ['pnpm'] : ['npx', '--yes', `pnpm@${pinned}`];

const stamp = 'node_modules/.modules.yaml';
const stale = !existsSync(stamp) || statSync('pnpm-lock.yaml').mtimeMs > statSync(stamp).mtimeMs;
if (stale) {
  process.stderr.write('tskvm: installing dependencies (once)\n');
  run([...pnpm, 'install', '--frozen-lockfile', '--prefer-offline'], true);
}
/** Turbo knows what is up to date; only work is worth a word. */
const build = async () => {
  const [command, ...rest] = [...pnpm, 'exec', 'turbo', 'run', 'build'];
  const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'], shell: process.platform === 'win32' });
  const output = [];
  let silent = true;
  const hear = (chunk) => {
    output.push(chunk);
    if (!silent || !chunk.includes('cache miss')) return;
    silent = false;
    process.stderr.write('tskvm: building what has changed\n');
  };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  const [status] = await once(child, 'close').catch((error) => [1, output.push(Buffer.from(`${error.message}\n`))]);
  if (status === 0) return;
  process.stderr.write(Buffer.concat(output));
  process.exit(status ?? 1);
};
const tasks = {
  start: async () => {
    await build();
    run(['node', 'packages/cli/dist/cli.js', ...(args.length > 0 ? args : ['tour', '--all'])]);
  },
  test: async () => {
    await build();
    run([...pnpm, 'exec', 'biome', 'check', '.'], true);
    run([...pnpm, 'exec', 'tsc', '-p', 'tsconfig.json']);
    run([...pnpm, 'exec', 'vitest', 'run', ...args]);
  },
  bench: async () => {
    await build();
    run([...pnpm, 'exec', 'tsx', 'bench/main.ts', ...args]);
  },
  vectors: () => run([...pnpm, 'exec', 'tsx', '--conditions=@tskvm/source', 'scripts/vectors.ts', ...args]),
  fuzz: () => run([...pnpm, 'exec', 'tsx', '--conditions=@tskvm/source', 'scripts/fuzz.ts', ...args]),
};
if (!(task in tasks)) {
  process.stderr.write(`usage: node scripts/pm.mjs ${Object.keys(tasks).join('|')} [ARG...]\n`);
  process.exit(2);
}
await tasks[task]();
