/**
 * Creating a processor: asynchronous because the interpreter's module is compiled.
 */
import type { CpuModel } from '../cpu-model-types.ts';
import { type FormOptions, IN_TURN } from '../engines/interpret/cold-forms.ts';
import { InterpretEngine } from '../engines/interpret/interpret.ts';
import { TranslateEngine } from '../engines/translate/translate.ts';
import type { TranslateOptions } from '../engines/translate/translator.ts';
import type { PhysicalMemory } from '../memory/physical.ts';
import { featureSet } from './features.ts';
import { Processor, type ProcessorOptions } from './processor.ts';

/** Which engine runs the guest's code. */
export type EngineName = 'translate' | 'interpret' | 'evaluate';

/**
 * Builds a processor in its RESET state.
 * @param options `engine`: `translate` (default), which compiles what is hot; `interpret`, on which it stands; `evaluate`, which computes one instruction at a time
 */
export async function createProcessor(
  memory: PhysicalMemory,
  model: CpuModel,
  options: Omit<ProcessorOptions, 'memory' | 'model'> & { engine?: EngineName } = {},
): Promise<Processor> {
  const processor = new Processor({ memory, model, ...options });
  if (options.engine === 'interpret') installInterpreter(processor, IN_TURN);
  else if (options.engine !== 'evaluate') installTranslator(processor, {}, IN_TURN);
  return processor;
}

const featuresOf = (processor: Processor): ReadonlySet<string> =>
  featureSet((leaf, subleaf) => processor.cpuid(leaf, subleaf));

/** Gives a processor the interpreter, with the features that its model announces. `forms`: when forms of instructions get handlers; default: at once. */
export function installInterpreter(processor: Processor, forms?: FormOptions): void {
  const { vendor } = processor.model;
  processor.engine = new InterpretEngine(processor, { vendor, features: featuresOf(processor), forms });
}

/** Gives a processor the translator on top of the interpreter. */
export function installTranslator(
  processor: Processor,
  translate?: Partial<TranslateOptions>,
  forms?: FormOptions,
): void {
  const { vendor } = processor.model;
  processor.engine = new TranslateEngine(processor, { vendor, features: featuresOf(processor), translate, forms });
}
