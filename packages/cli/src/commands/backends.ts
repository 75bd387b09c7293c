/** `tskvm backends`: what can be given to --backend here. */

import Table from 'cli-table3';
import type { Command } from 'commander';
import { listBackends } from '../backends.ts';

export function addBackendsCommand(program: Command): void {
  program
    .command('backends')
    .description('list the backends that can be used from this folder')
    .option('--json', 'print as JSON')
    .addHelpText(
      'after',
      '\nA package shows up when it is a dependency of the nearest package.json and has the keyword tskvm-backend.\n\nExample:\n  tskvm backends',
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
      const table = new Table({
        head: ['backend', 'from', 'module parameters'],
        style: { head: [], border: [], compact: true },
      });
      for (const row of rows) {
        const params = Object.entries(row.params ?? {}).map(([key, value]) => `${key}=${String(value)}`);
        table.push([
          row.extends ? `${row.name} (extends ${row.extends})` : row.name,
          row.from,
          row.problem ?? params.join(' '),
        ]);
      }
      process.stdout.write(`${table.toString()}\n`);
    });
}
