import { readFileSync } from 'node:fs';
import { defineConfig } from 'tsup';
import { constants } from '../../scripts/tsup-constants.ts';
import { generateMain, type MainModule } from './src/engines/interpret/handlers.ts';
import { toBase64 } from './src/engines/interpret/prebuilt.ts';
import { generateUsual } from './src/engines/interpret/usual-handlers.ts';

/** Puts the interpreter's modules, generated now, where `prebuilt.ts` has none. */
const prebuilt = {
  name: 'prebuilt',
  setup(build: { onLoad(filter: { filter: RegExp }, load: (args: { path: string }) => unknown): void }): void {
    build.onLoad({ filter: /interpret[\\/]prebuilt\.ts$/ }, ({ path }) => {
      const text = ({ module, facts }: MainModule) => ({ module: toBase64(module), facts });
      const prebuilt = (long: boolean) => ({ ...text(generateMain(long)), usual: text(generateUsual(long)) });
      const modules = JSON.stringify({ legacy: prebuilt(false), long: prebuilt(true) });
      const contents = readFileSync(path, 'utf8').replace(/ \| null = null;/, ` | null = ${modules};`);
      if (!contents.includes(modules)) throw new Error(`${path}: there is no place for the modules`);
      return { contents, loader: 'ts' };
    });
  },
};

export default defineConfig({
  entry: { index: 'src/index.ts', 'testing/index': 'src/testing/index.ts' },
  format: 'esm',
  target: 'es2022',
  sourcemap: true,
  clean: true,
  plugins: [constants],
  esbuildPlugins: [prebuilt],
});
