/** One wasm module of several regions' functions, compiled and instantiated. */
import type { PhysicalMemory } from '../../memory/physical.ts';
import { HELPER_TYPES } from '../interpret/helpers.ts';
import type { Instance } from '../interpret/interpret.ts';
import { REGION } from '../interpret/main-module.ts';
import { encodeModule, type FuncBody } from '../wasm/emitter.ts';
import { REGION_HELPERS } from './region-frame.ts';

/** V8 keeps all of a module as long as one of its functions stands in a table. */
export interface Assembly {
  readonly bytes: number;
  /** Functions that stand. */
  live: number;
}

const IMPORTS = REGION_HELPERS.map((name) => ({ module: 'helpers', name, type: HELPER_TYPES[name] }));

/** Compiles functions; each is exported as `f` and its place. */
export function assemble(
  functions: readonly FuncBody[],
  memory: PhysicalMemory,
  main: Instance,
): { assembly: Assembly; exports: WebAssembly.Exports } {
  const bytes = encodeModule({ types: [REGION], imports: IMPORTS, functions });
  const helpers = Object.fromEntries(REGION_HELPERS.map((name) => [name, main.exports[name]]));
  const module = new WebAssembly.Module(bytes);
  const { exports } = new WebAssembly.Instance(module, { env: { memory: memory.memory }, helpers });
  return { assembly: { bytes: bytes.length, live: functions.length }, exports };
}
