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
import Table from 'cli-table3';
import type { Command } from 'commander';
import { SPECIAL_CPUS } from '../machine/cpu.ts';

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

/** Words in lines of at most `width` characters. */
function wrap(words: readonly string[], width: number): string {
  const lines = [''];
  for (const word of words) {
    const last = lines[lines.length - 1];
    if (last !== '' && last.length + word.length + 1 > width) lines.push(word);
    else lines[lines.length - 1] = last === '' ? word : `${last} ${word}`;
  }
  return lines.join('\n');
}

function printText(): void {
  const table = new Table({ head: ['model', 'what', 'features'], style: { head: [], border: [], compact: true } });
  for (const { name, description, features: names, backend } of models()) {
    table.push([name, wrap([...description.split(' '), backend ? `(runs ${backend})` : ''], 30), wrap(names, 70)]);
  }
  for (const [name, description] of Object.entries(SPECIAL_CPUS)) {
    table.push([name, wrap(description.split(' '), 30), '']);
  }
  const names = features();
  const some = (list: typeof names): string =>
    wrap(
      list.map(({ name }) => name),
      100,
    );
  process.stdout.write(`${table.toString()}\n`);
  process.stdout.write(`\nFeatures for +name and -name:\n${some(names.filter(({ missing }) => missing === null))}\n`);
  process.stdout.write(
    `\nNot implemented, so on no model:\n${some(names.filter(({ missing }) => missing !== null))}\n`,
  );
}

export function addCpusCommand(program: Command): void {
  program
    .command('cpus')
    .description('list the CPU models and features for --cpu')
    .option('--json', 'print as JSON, with the CPUID bit of each feature and what each needs')
    .addHelpText(
      'after',
      `
The model decides the guest's CPUID. Its features are those of the real processor that tskvm has; Linux's and QEMU's spellings of names are understood, too.

Examples:
  tskvm cpus
  tskvm run --cpu qemu64 boot.bin
  tskvm run --backend vmx --cpu epyc,-sse42,+umip boot.bin     an AMD guest on VT-x`,
    )
    .action((flags: { json?: boolean }) => {
      if (flags.json) process.stdout.write(`${JSON.stringify({ models: models(), features: features() })}\n`);
      else printText();
    });
}
