/** `tskvm callers`: who can call a function, and who did in a run; the butterfly of a setter. */
import { writeFileSync } from 'node:fs';
import { type CallerEdge, nearest } from '@tskvm/core';
import type { Command } from 'commander';
import pc from 'picocolors';
import { UsageError } from '../machine/errors.ts';
import {
  type CallerNode,
  callerDot,
  callerTree,
  camelCase,
  functionNames,
  graphRow,
  treeLines,
} from '../report/call-graph.ts';
import { outputWidth, wrapText } from '../report/text-table.ts';
import { addRunOptions, backendSpecs, machineOptions, parseNumber, type RunFlags, writing } from './options.ts';
import { runSession } from './session.ts';
import { CONFIGURATIONS, runTour } from './tour.ts';

interface CallersFlags extends RunFlags {
  svg?: string;
  depth?: string;
}

/** A function by its name here or in KVM; unknown names get the nearest ones. */
export function findFunction(name: string): string {
  for (const candidate of [name, camelCase(name), `staticCall.${camelCase(name.replace(/^kvm_x86_/, ''))}`]) {
    if (graphRow(candidate)) return candidate;
  }
  const near = nearest(camelCase(name), functionNames());
  throw new UsageError(
    'UNKNOWN_FUNCTION',
    `no function ${name}${near.length > 0 ? `; the nearest are ${near.join(', ')}` : ''}. Give its name here (svmSetCr0) or in KVM (svm_set_cr0); functions of other packages are not known`,
  );
}

/** Edges of several runs added up. */
export function mergeEdges(lists: readonly (readonly CallerEdge[])[]): CallerEdge[] {
  const merged = new Map<string, CallerEdge>();
  for (const edge of lists.flat()) {
    const key = `${edge.caller}>${edge.callee}`;
    const known = merged.get(key);
    if (known) known.count += edge.count;
    else merged.set(key, { ...edge });
  }
  return [...merged.values()];
}

/** Configurations whose tour can reach a function: its vendor's, or all. */
function defaultSpecs(name: string): string[] {
  const file = graphRow(name)?.[2] ?? '';
  if (file.startsWith('packages/svm')) return ['svm', 'svm,sevEs=1'];
  if (file.startsWith('packages/vmx')) return CONFIGURATIONS.filter((spec) => spec.startsWith('vmx'));
  return [...CONFIGURATIONS, 'svm,sevEs=1'];
}

async function recordedEdges(
  name: string,
  image: string | undefined,
  flags: CallersFlags,
): Promise<{ what: string; edges: CallerEdge[] }> {
  const own = image !== undefined || flags.bios || flags.kernel || flags.disk || flags.cdrom;
  const specs = await backendSpecs(flags, own ? ['svm'] : defaultSpecs(name));
  const lists: CallerEdge[][] = [];
  for (const spec of specs) {
    if (!own) {
      const result = await runTour(spec, spec.includes('sevEs=1') ? 'sevEs' : 'tour');
      lists.push(result.tracer?.edges() ?? []);
      continue;
    }
    const result = await runSession({
      spec,
      common: machineOptions(image, flags),
      flags,
      prepare: (machine) => machine.kvm.on('mode_switch', () => {}),
    });
    lists.push(result.tracer?.edges() ?? []);
  }
  return { what: `${own ? 'this run' : 'the tour'} under ${specs.join('; ')}`, edges: mergeEdges(lists) };
}

const mark = (node: CallerNode, text: string): string => (node.count > 0 ? pc.green(text) : pc.dim(text));

/** The tree as JSON-safe data. */
const treeData = (node: CallerNode): unknown => ({
  name: node.name,
  file: node.file,
  label: node.label,
  count: node.count,
  taken: node.count > 0,
  callers: node.callers.map(treeData),
});

export function addCallersCommand(program: Command): void {
  addRunOptions(
    program
      .command('callers')
      .description('who can call a function, from the source, and who did in a run (default run: the tour)')
      .argument('<function>', "a function's name, here or in KVM (svmSetCr0, svm_set_cr0)")
      .option('--svg <file>', 'write the graph as SVG')
      .option('--depth <n>', 'levels of callers to show (default 14)')
      .addHelpText(
        'after',
        "\nThe functions known are those of tskvm's own source; a plugin's are not.\n\nExamples:\n  tskvm callers svmSetCr0\n  tskvm callers vmx_set_cr0 --svg butterfly.svg\n  tskvm callers kvmSetCr0 --backend vmx hello\n\n--json prints the tree: name, file, label, count, taken, callers.",
      ),
  ).action(async (name: string, image: string | undefined, flags: CallersFlags) => {
    const target = findFunction(name);
    const depth = flags.depth === undefined ? 14 : parseNumber(flags.depth, '--depth', 1);
    const { what, edges } = await recordedEdges(target, image, flags);
    const tree = callerTree(target, edges, depth);
    if (flags.svg) {
      const { Graphviz } = await import('@hpcc-js/wasm-graphviz');
      const svg = (await Graphviz.load()).dot(callerDot(tree), 'svg');
      const file = flags.svg;
      writing(file, '--svg', () => writeFileSync(file, svg));
      process.stderr.write(`tskvm: wrote ${flags.svg}\n`);
    }
    if (flags.json) process.stdout.write(`${JSON.stringify(treeData(tree))}\n`);
    else {
      const legend = `taken: in ${what}; possible: from the source; … stands elsewhere in the tree`;
      process.stdout.write(`${treeLines(tree, mark).join('\n')}\n\n${wrapText(legend, outputWidth()).join('\n')}\n`);
    }
  });
}
