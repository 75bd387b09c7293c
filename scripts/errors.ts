// Writes docs/errors.md from the tables and the source: refused VM entries, and what callers are told. `--check` compares instead.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svmHardware } from '@tskvm/svm';
import { vmxHardware } from '@tskvm/vmx';
import { callerErrors } from './caller-errors.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const output = join(root, 'docs/errors.md');

interface CheckRow {
  code: string;
  field: string;
  rule: string;
  section: string;
}
const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const checkTable = (rows: readonly CheckRow[]): string =>
  [
    '| code | field | rule | source |',
    '|---|---|---|---|',
    ...rows.map((r) => `| \`${r.code}\` | ${r.field} | ${cell(r.rule)} | ${r.section} |`),
  ].join('\n');

const errors = callerErrors(root);
const text = `# Refusals

Made by \`pnpm exec tsx --conditions=@tskvm/source scripts/errors.ts\` from the tables and the source; don't edit.

A refusal is data: a stable code, the field, its value, the rule and the manual's section. Four kinds, never mixed: what the guest sees, what the caller did wrong
(\`KvmError\` with KVM's errno; on the command line one line on stderr), what is not implemented (\`NotImplementedError\` with feature and section), and bugs.

## VM entries that AMD-V refuses

VMRUN ends with exit code -1; \`fail_entry\` carries every row that failed.

${checkTable(svmHardware.ENTRY_CHECKS)}

## VM entries that VT-x refuses

Controls: VMfail 7. Host state: VMfail 8. Guest state: exit 33 with bit 31.

### Controls

${checkTable(vmxHardware.CONTROL_ROWS)}

### Host state

${checkTable(vmxHardware.HOST_ROWS)}

### Guest state

${checkTable(vmxHardware.GUEST_ROWS)}

## What callers are told

| code | errno | message |
|---|---|---|
${errors.map((e) => `| \`${e.code}\` | ${e.errno} | ${cell(e.message)} |`).join('\n')}
`;
if (!process.argv.includes('--check')) writeFileSync(output, text);
else if (readFileSync(output, 'utf8') !== text) {
  process.stderr.write('docs/errors.md is stale; run: pnpm exec tsx --conditions=@tskvm/source scripts/errors.ts\n');
  process.exit(1);
}
