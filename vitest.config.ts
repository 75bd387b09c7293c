import { defineConfig } from 'vitest/config';

// One run over all packages; the source condition makes a build unnecessary.
export default defineConfig({
  resolve: { conditions: ['@tskvm/source'] },
  ssr: { resolve: { conditions: ['@tskvm/source', 'node', 'import', 'module', 'default'] } },
  test: {
    include: [
      'packages/*/src/**/*.test.ts',
      'packages/*/test/**/*.test.ts',
      'examples/*/src/**/*.test.ts',
      'scripts/**/*.test.ts',
    ],
    globalSetup: ['scripts/vitest-setup.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    pool: 'forks',
  },
});
