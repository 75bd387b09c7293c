/** Who can call a function (from the source) and who did (from a run), as trees and as a graph. */
import type { CallerEdge } from '@tskvm/core';
import { CALL_GRAPH } from '../data/callgraph.ts';

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
  /** Callers left out because the function stands above itself, or stands elsewhere in the tree already. */
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
      const label = caller.label || item.label;
      if (isVisible(caller.name)) found.set(caller.name, label);
      else queue.push({ name: caller.name, label });
    }
  }
  return [...found].map(([caller, label]) => ({ name: caller, label }));
}

/**
 * The tree of callers: possible ones from the source, counts from recorded edges.
 * @param edges what ran; edges that ran but that the analysis does not show are added
 */
export function callerTree(name: string, edges: readonly CallerEdge[], depth = 14): CallerNode {
  const expanded = new Set<string>();
  const build = (
    current: string,
    label: string,
    count: number,
    above: ReadonlySet<string>,
    left: number,
  ): CallerNode => {
    const node: CallerNode = {
      name: current,
      file: rows.get(current)?.[2] ?? '',
      label,
      count,
      callers: [],
      again: false,
    };
    if (above.has(current) || expanded.has(current) || left === 0) {
      node.again = callersFor(current, edges).length > 0;
      return node;
    }
    expanded.add(current);
    const next = new Set(above).add(current);
    const callers = callersFor(current, edges).sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1));
    node.callers = callers.map((c) => build(c.name, c.label, c.count, next, left - 1));
    return node;
  };
  const total = edges.filter((e) => e.callee === name).reduce((sum, e) => sum + e.count, 0);
  return build(name, '', total, new Set(), depth);
}
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

/** Lines of a tree, callers indented below what they call. */
export function treeLines(node: CallerNode, mark: (node: CallerNode, text: string) => string): string[] {
  const lines: string[] = [];
  const walk = (n: CallerNode, prefix: string, isLast: boolean, isRoot: boolean): void => {
    const branch = isRoot ? '' : isLast ? '└─ ' : '├─ ';
    const label = n.label ? ` [${n.label}]` : '';
    const taken = n.count > 0 ? `  taken ${n.count}x` : '  possible, not taken';
    lines.push(prefix + branch + mark(n, `${n.name}${label}${taken}${n.again ? ' (see above)' : ''}`));
    for (const [i, caller] of n.callers.entries()) {
      walk(caller, prefix + (isRoot ? '' : isLast ? '   ' : '│  '), i === n.callers.length - 1, false);
    }
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
