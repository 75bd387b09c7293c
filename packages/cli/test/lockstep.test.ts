/** The lock-step comparison with QEMU's TCG on fixed seeds, where QEMU (of the version whose ways the tool knows) and nasm are installed. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const versionOf = (command: string, flag: string): string =>
  spawnSync(command, [flag], { encoding: 'utf8' }).stdout ?? '';
const installed =
  versionOf('nasm', '-v') !== '' && / version 7\.2\./.test(versionOf('qemu-system-x86_64', '--version'));

describe.skipIf(!installed)('lock-step with QEMU', () => {
  test.each([
    ['protected', 'svm', 21, 40],
    ['protected', 'vmx,unrestrictedGuest=0', 21, 40],
    ['long', 'vmx', 41, 40],
  ])(
    '%s mode, %s: seed %i, %i cases',
    (mode, backend, seed, cases) => {
      const args = ['--mode', mode, '--backend', backend, '--seed', String(seed), '--cases', String(cases)];
      const tool = ['--conditions=@tskvm/source', '--import', 'tsx', 'scripts/lockstep/main.ts'];
      const { stdout, stderr } = spawnSync('node', [...tool, ...args], {
        cwd: root,
        encoding: 'utf8',
        timeout: 120_000,
      });
      expect(stdout + stderr).toMatch(new RegExp(`^seed ${seed}: [1-9]\\d{3} instructions, 0 differences\n$`));
    },
    120_000,
  );
});
