/**
 * Creating a processor: asynchronous because the interpreter's module is compiled.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import { InterpretEngine } from '../engines/interpret/interpret.ts';
import type { PhysicalMemory } from '../memory/physical.ts';
import { featureSet } from './features.ts';
import { Processor, type ProcessorOptions } from './processor.ts';

/** Which engine runs the guest's code. */
export type EngineName = 'interpret' | 'evaluate';

/**
 * Builds a processor in its RESET state.
 * @param options `engine`: `interpret` (default), or `evaluate`, which computes one instruction at a time
 */
export async function createProcessor(
  memory: PhysicalMemory,
  model: CpuModel,
  options: Omit<ProcessorOptions, 'memory' | 'model'> & { engine?: EngineName } = {},
): Promise<Processor> {
  const processor = new Processor({ memory, model, ...options });
  if (options.engine !== 'evaluate') installInterpreter(processor);
  return processor;
}

/** Gives a processor the interpreter, with the features that its model announces. */
export function installInterpreter(processor: Processor): void {
  const features = featureSet((leaf, subleaf) => processor.cpuid(leaf, subleaf));
  processor.engine = new InterpretEngine(processor, { vendor: processor.model.vendor, features });
}
