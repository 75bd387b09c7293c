import { defineConfig } from 'tsup';
import { constants } from '../../scripts/tsup-constants.ts';

export default defineConfig({
  entry: ['src/index.ts'],
  format: 'esm',
  target: 'es2022',
  sourcemap: true,
  clean: true,
  plugins: [constants],
});
