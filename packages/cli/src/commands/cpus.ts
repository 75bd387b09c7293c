/** `tskvm cpus`: what can be given to --cpu. */
import {
  CPU_MODELS,
  FEATURE_NAMES,
  FEATURES,
  modelFeatures,
  NOT_IMPLEMENTED,
  REQUIRES,
  VENDOR_ONLY,
} from '@tskvm/emulator';
import type { Command } from 'commander';
import { SPECIAL_CPUS } from '../machine/cpu.ts';
import { outputWidth, textTable, wrapText } from '../report/text-table.ts';

const REGISTERS = ['EAX', 'EBX', 'ECX', 'EDX'];

const models = () =>
  Object.values(CPU_MODELS).map((model) => ({
    name: model.name,
    vendor: model.vendor,
    description: model.description ?? '',
    backend: model.cpuid['80000001'] === undefined ? null : hostOf(modelFeatures(model)),
    features: modelFeatures(model),
    lacks: model.lacks ?? [],
  }));
/** The backend whose processor a model can be. */
const hostOf = (names: readonly string[]): string | null =>
  names.includes('svm') ? 'svm' : names.includes('vmx') ? 'vmx' : null;

const features = () =>
  FEATURE_NAMES.map((name) => {
    const { leaf, subleaf, reg, bit } = FEATURES[name];
    return {
      name,
      cpuid: `${leaf.toString(16)}${subleaf === 0 ? '' : `.${subleaf}`} ${REGISTERS[reg]} bit ${bit}`,
      vendor: VENDOR_ONLY[name] ?? null,
      needs: REQUIRES[name] ?? [],
      missing: NOT_IMPLEMENTED[name] ?? null,
    };
  });

function printText(): void {
  const rows = [
    ...models().map(({ name, description, backend, features: names }) => ({
      cells: [name, backend ? `${description}; runs ${backend}` : description],
      notes: [names.join(' ')],
    })),
    ...Object.entries(SPECIAL_CPUS).map((cells) => ({ cells })),
  ];
  const all = features();
  const named = (missing: boolean): string =>
    wrapText(
      all
        .filter((feature) => (feature.missing !== null) === missing)
        .map(({ name }) => name)
        .join(' '),
      outputWidth(),
    ).join('\n');
  process.stdout.write(`${textTable([{ head: 'model' }, { head: 'what, and its features' }], rows)}\n`);
  process.stdout.write(`\nFeatures for +name and -name:\n${named(false)}\n`);
  process.stdout.write(`\nNot implemented, so on no model:\n${named(true)}\n`);
}

export function addCpusCommand(program: Command): void {
  program
    .command('cpus')
    .description('list the CPU models and features for --cpu')
    .option('--json', 'print as JSON, with the CPUID bit of each feature and what each needs')
    .addHelpText(
      'after',
      `
The model decides the guest's CPUID. Its features are those of the real
processor that tskvm has; Linux's and QEMU's spellings of names are understood,
too.

Examples:
  tskvm cpus
  tskvm run --cpu qemu64 boot.bin
  tskvm run --backend vmx --cpu epyc,-sha,+umip boot.bin   (AMD guest on VT-x)`,
    )
    .action((flags: { json?: boolean }) => {
      if (flags.json) process.stdout.write(`${JSON.stringify({ models: models(), features: features() })}\n`);
      else printText();
    });
}
