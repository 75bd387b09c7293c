/**
 * The engines that vectors can be run on, by name.
 */
import type { VectorEngine } from './run-case.ts';

const ENGINES: Readonly<Record<string, () => Promise<VectorEngine>>> = {
  /** evaluate on a flat memory. */
  evaluate: async () => (await import('./evaluate-engine.ts')).evaluateEngine,
  /** The whole processor with evaluate inside. */
  processor: async () => (await import('./processor-engine.ts')).processorEngine('processor', 'evaluate'),
  /** The whole processor with interpret inside. */
  interpret: async () => (await import('./processor-engine.ts')).processorEngine('interpret', 'interpret'),
  /** The whole processor with translate inside: each case once more as a region of its own, if regions may contain it. */
  translate: async () => (await import('./processor-engine.ts')).processorEngine('translate', 'translate'),
};

/** Loads an engine; throws for an unknown name. */
export async function vectorEngine(name: string): Promise<VectorEngine> {
  const load = ENGINES[name];
  if (load === undefined) throw new Error(`no engine ${name}; there are: ${Object.keys(ENGINES).join(', ')}`);
  return load();
}
