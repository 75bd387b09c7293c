/**
 * The engines that vectors can be run on, by name.
 */
import type { VectorEngine } from './run-case.ts';

const ENGINES: Readonly<Record<string, () => Promise<VectorEngine>>> = {
  evaluate: async () => (await import('./evaluate-engine.ts')).evaluateEngine,
};

/** Loads an engine; throws for an unknown name. */
export async function vectorEngine(name: string): Promise<VectorEngine> {
  const load = ENGINES[name];
  if (load === undefined) throw new Error(`no engine ${name}; there are: ${Object.keys(ENGINES).join(', ')}`);
  return load();
}
