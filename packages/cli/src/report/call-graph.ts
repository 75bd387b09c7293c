/** Who can call a function (from the source) and who did (from a run), as trees and as a graph. */
import type { CallerEdge } from '@tskvm/core';
import { CALL_GRAPH } from '../data/callgraph.ts';
import { outputWidth, wrapText } from './text-table.ts';

/** [name, kind, file:line, framed, [callee, table key or vendor?]…]. */
export type CallGraphRow = readonly [
  name: string,
  kind: 'function' | 'table' | 'staticCall' | 'emulateOp',
  file: string,
  framed: 0 | 1,
  calls: readonly (readonly [string] | readonly [string, string])[],
];

/** A caller of a function in the condensed graph: only framed functions, static calls and entry points remain. */
export interface CallerNode {
  name: string;
  file: string;
  /** Handler-table key or vendor on the way down, if there is one. */
  label: string;
  /** How often this edge ran; 0: possible, not taken. */
  count: number;
  callers: CallerNode[];
  /** Callers left out because the function stands elsewhere in the tree, nearer to the root. */
  again: boolean;
}

const rows = new Map(CALL_GRAPH.map((row) => [row[0], row]));
const callersOf = new Map<string, { name: string; label: string }[]>();
for (const [name, , , , calls] of CALL_GRAPH) {
  for (const [callee, label] of calls) {
    let list = callersOf.get(callee);
    if (!list) callersOf.set(callee, (list = []));
    list.push({ name, label: label ?? '' });
  }
}

/** All names that can be asked for. */
export const functionNames = (): string[] => [...rows.keys()].filter((name) => rows.get(name)?.[1] !== 'table');
export const graphRow = (name: string): CallGraphRow | undefined => rows.get(name);

/** `svm_set_cr0` → `svmSetCr0`. */
export const camelCase = (name: string): string =>
  name.replace(/_+([a-z0-9])/g, (_, c: string) => c.toUpperCase()).replace(/^_+/, '');

const isVisible = (name: string): boolean => rows.get(name)?.[3] === 1;

/** Framed callers of a function, looking through functions and tables that keep no frame. */
function framedCallers(name: string): { name: string; label: string }[] {
  const found = new Map<string, string>();
  const seen = new Set<string>([name]);
  const queue = [{ name, label: '' }];
  for (let item = queue.pop(); item; item = queue.pop()) {
    for (const caller of callersOf.get(item.name) ?? []) {
      if (seen.has(caller.name)) continue;
      seen.add(caller.name);
      const label = /^\d*$/.test(caller.label) ? item.label : caller.label;
      if (isVisible(caller.name)) found.set(caller.name, label);
      else queue.push({ name: caller.name, label });
    }
  }
  return [...found].map(([caller, label]) => ({ name: caller, label }));
}

/**
 * The tree of callers: possible ones from the source, counts from recorded edges. Each function is expanded once, where it stands
 * nearest to the root.
 * @param edges what ran; edges that ran but that the analysis does not show are added
 */
export function callerTree(name: string, edges: readonly CallerEdge[], depth = 14): CallerNode {
  const total = edges.filter((e) => e.callee === name).reduce((sum, e) => sum + e.count, 0);
  const make = (of: string, label: string, count: number): CallerNode => ({
    name: of,
    file: rows.get(of)?.[2] ?? '',
    label,
    count,
    callers: [],
    again: false,
  });
  const root = make(name, '', total);
  const other = otherVendor(root.file);
  const expanded = new Set<string>();
  let level = [root];
  for (let left = depth; level.length > 0 && left > 0; left--) {
    const next: CallerNode[] = [];
    for (const node of level) {
      const callers = callersFor(node.name, edges).filter((c) => !foreign(c, other));
      if (expanded.has(node.name)) {
        node.again = callers.length > 0;
        continue;
      }
      expanded.add(node.name);
      callers.sort((x, y) => y.count - x.count || (x.name < y.name ? -1 : 1));
      node.callers = callers.map((c) => make(c.name, c.label, c.count));
      next.push(...node.callers);
    }
    level = next;
  }
  for (const node of level) node.again = callersFor(node.name, edges).length > 0;
  return root;
}

/** Both vendors can't be loaded into one kernel: a vendor's function has no callers in the other's. */
const otherVendor = (file: string): string | null =>
  file.startsWith('packages/svm/') ? 'packages/vmx/' : file.startsWith('packages/vmx/') ? 'packages/svm/' : null;
const foreign = (caller: { name: string; label: string }, other: string | null): boolean =>
  other !== null && ((rows.get(caller.name)?.[2] ?? '').startsWith(other) || other === `packages/${caller.label}/`);

function callersFor(name: string, edges: readonly CallerEdge[]): { name: string; label: string; count: number }[] {
  const callers = new Map(framedCallers(name).map((c) => [c.name, { ...c, count: 0 }]));
  for (const { caller, callee, count } of edges) {
    if (callee !== name) continue;
    const known = callers.get(caller);
    if (known) known.count += count;
    else callers.set(caller, { name: caller, label: '', count });
  }
  return [...callers.values()];
}

/** Lines of a tree, callers indented below what they call; what is too long for `width` goes on below itself. */
export function treeLines(
  node: CallerNode,
  mark: (node: CallerNode, text: string) => string,
  width = outputWidth(),
): string[] {
  const lines: string[] = [];
  const walk = (n: CallerNode, prefix: string, isLast: boolean, isRoot: boolean): void => {
    const branch = isRoot ? '' : isLast ? '└─ ' : '├─ ';
    const label = n.label ? ` [${n.label}]` : '';
    const taken = n.count > 0 ? `  taken ${n.count}x` : '  possible, not taken';
    const below = prefix + (isRoot ? '' : isLast ? '   ' : '│  ');
    const text = `${n.name}${label}${taken}${n.again ? ' …' : ''}`;
    const goesOn = `${below}${n.callers.length > 0 ? '│' : ' '}    `;
    const room = width - goesOn.length;
    const parts = prefix.length + branch.length + text.length <= width ? [text] : wrapText(text, Math.max(20, room));
    for (const [i, part] of parts.entries()) lines.push((i === 0 ? prefix + branch : goesOn) + mark(n, part));
    for (const [i, caller] of n.callers.entries()) walk(caller, below, i === n.callers.length - 1, false);
  };
  walk(node, '', true, true);
  return lines;
}

/** The butterfly as Graphviz input: taken edges solid with counts, possible ones dashed. */
export function callerDot(root: CallerNode): string {
  const lines = [
    'digraph callers {',
    'rankdir=LR; node [shape=box, fontname="monospace", fontsize=10]; edge [fontsize=9];',
  ];
  lines.push(`"${root.name}" [style=filled, fillcolor="#ffe9a8"];`);
  const seen = new Set<string>();
  const walk = (n: CallerNode): void => {
    for (const caller of n.callers) {
      const key = `${caller.name}>${n.name}`;
      if (!seen.has(key)) {
        seen.add(key);
        const style = caller.count > 0 ? `label="${caller.count}", penwidth=1.6` : 'style=dashed, color="#888888"';
        lines.push(`"${caller.name}" -> "${n.name}" [${style}];`);
      }
      walk(caller);
    }
  };
  walk(root);
  lines.push('}');
  return lines.join('\n');
}
