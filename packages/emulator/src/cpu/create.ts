/**
 * Creating a processor: asynchronous because the interpreter's module is compiled.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import type { PhysicalMemory } from '../memory/physical.ts';
import { Processor, type ProcessorOptions } from './processor.ts';

/** Which engine runs the guest's code. */
export type EngineName = 'interpret' | 'evaluate';

/**
 * Builds a processor in its RESET state.
 * @param options `engine`: `evaluate` computes one instruction at a time
 */
export async function createProcessor(
  memory: PhysicalMemory,
  model: CpuModel,
  options: Omit<ProcessorOptions, 'memory' | 'model'> & { engine?: EngineName } = {},
): Promise<Processor> {
  return new Processor({ memory, model, ...options });
}
