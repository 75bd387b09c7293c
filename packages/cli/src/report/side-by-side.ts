/** The same guest under several configurations: its mode switches aligned, the exits beside one another, each call path once. */
import type { ModeSwitch } from '@tskvm/core';
import pc from 'picocolors';
import { bitsChanged, exitText, instructionText, modeName, pathText } from './mode-switches.ts';
import { hanging, outputWidth, textTable, wrapText } from './text-table.ts';

export interface Run {
  backend: string;
  switches: readonly ModeSwitch[];
}

/** What makes two switches the same one: modes, instruction, place and processor. */
const keyOf = (event: ModeSwitch): string =>
  [modeName(event.from), modeName(event.to), instructionText(event), event.rip, event.vcpuId].join('|');

/**
 * Rows of the same switch, one entry a run, undefined where a run lacks it. A switch comes first that stands in no other run further
 * behind, so that what only one run has doesn't part the others.
 */
export function alignSwitches(runs: readonly (readonly ModeSwitch[])[]): (ModeSwitch | undefined)[][] {
  const keys = runs.map((list) => list.map(keyOf));
  const at = runs.map(() => 0);
  const isBehind = (key: string, run: number): boolean => keys[run].indexOf(key, at[run]) > at[run];
  const rows: (ModeSwitch | undefined)[][] = [];
  for (;;) {
    const open = runs.map((_, i) => i).filter((i) => at[i] < keys[i].length);
    if (open.length === 0) return rows;
    const lead = open.find((i) => !open.some((other) => isBehind(keys[i][at[i]], other))) ?? open[0];
    const key = keys[lead][at[lead]];
    rows.push(runs.map((list, i) => (keys[i][at[i]] === key ? list[at[i]++] : undefined)));
  }
}

/** Numbers call paths in order of first use, and remembers under which backends each ran. */
class PathList {
  readonly #paths = new Map<string, { number: number; backends: Set<string> }>();
  number(path: string, backend: string): number {
    let entry = this.#paths.get(path);
    if (!entry) this.#paths.set(path, (entry = { number: this.#paths.size + 1, backends: new Set() }));
    entry.backends.add(backend);
    return entry.number;
  }
  /** The paths under headings that say which backends took them. */
  text(width: number): string {
    const groups = new Map<string, string[]>();
    for (const [path, { number, backends }] of this.#paths) {
      const heading = [...backends].join('; ');
      let lines = groups.get(heading);
      if (!lines) groups.set(heading, (lines = []));
      lines.push(...hanging(`${`[${number}]`.padStart(5)} `, path, width));
    }
    return [...groups].map(([heading, lines]) => [pc.bold(heading), ...lines].join('\n')).join('\n');
  }
}

/**
 * The table and below it the call paths.
 * @param bits show the changed bits below each switch
 */
export function sideBySide(runs: readonly Run[], bits: boolean, width = outputWidth()): string {
  const paths = new PathList();
  const cell = (event: ModeSwitch | undefined, { backend }: Run): string =>
    event ? `${exitText(event, runs.length < 3)} [${paths.number(pathText(event), backend)}]` : '-';
  const rows = alignSwitches(runs.map((run) => run.switches)).map((row) => {
    const lead = row.find((event) => event !== undefined) as ModeSwitch;
    const cells = [modeName(lead.from), modeName(lead.to), instructionText(lead)];
    for (const [i, run] of runs.entries()) cells.push(cell(row[i], run));
    const changed = bits ? bitsChanged(lead) : '';
    return { cells, notes: changed ? [changed] : [] };
  });
  if (rows.length === 0) return 'no mode switch';
  const columns = ['from', 'to', 'by', ...runs.map((run) => run.backend)].map((head) => ({
    head,
    style: head === 'to' ? pc.bold : undefined,
  }));
  const legend =
    'The exit, in brackets the call path below. none: the guest switched without one; not running: KVM changed a vCPU that did not run.';
  return [
    textTable(columns, rows, width),
    pc.dim(wrapText(legend, width).join('\n')),
    '',
    'call paths',
    paths.text(width),
  ].join('\n');
}
