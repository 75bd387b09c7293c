/** `tskvm backends`: what can be given to --backend here. */

import type { Command } from 'commander';
import { listBackends } from '../backends.ts';
import { textTable } from '../report/text-table.ts';

export function addBackendsCommand(program: Command): void {
  program
    .command('backends')
    .description('list the backends that can be used from this folder')
    .option('--json', 'print as JSON')
    .addHelpText(
      'after',
      '\nA package shows up when it is a dependency of the nearest package.json and has\nthe keyword tskvm-backend.\n\nExamples:\n  tskvm backends\n  tskvm backends --json',
    )
    .action(async (flags: { json?: boolean }) => {
      const list = await listBackends();
      const rows = list.map(({ name, from, factory, problem }) => {
        if (!factory) return { name, from, problem };
        try {
          const backend = factory({});
          return { name, from, params: backend.params ?? {}, extends: backend.extends?.name };
        } catch (error) {
          return { name, from, problem: (error as Error).message };
        }
      });
      if (flags.json) {
        process.stdout.write(`${JSON.stringify(rows)}\n`);
        return;
      }
      const lines = rows.map((row) => {
        const params = Object.entries(row.params ?? {}).map(([key, value]) => `${key}=${String(value)}`);
        const name = row.extends ? `${row.name} (extends ${row.extends})` : row.name;
        return { cells: [name, row.from, row.problem ?? params.join(' ')] };
      });
      const columns = ['backend', 'from', 'module parameters'].map((head) => ({ head }));
      process.stdout.write(`${textTable(columns, lines)}\n`);
    });
}
