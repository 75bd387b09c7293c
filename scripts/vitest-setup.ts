// Tests need no build: what the build generates in the source tree is made here if it is missing.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

export default function setup(): void {
  if (existsSync(`${root}packages/cli/src/data/callgraph.ts`)) return;
  const result = spawnSync('npx', ['tsx', 'scripts/callgraph.ts'], { cwd: root, encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`scripts/callgraph.ts failed:\n${result.stderr}`);
}
