// Writes docs/errors.md from the tables and the source: refused VM entries, and what callers are told. `--check` compares instead.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svmHardware } from '@tskvm/svm';
import { vmxHardware } from '@tskvm/vmx';
import { Node, Project, SyntaxKind } from 'ts-morph';

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

/** Literal text of a message; what is filled in stands in angle brackets. */
function messageOf(node: Node | undefined): string {
  if (!node) return '';
  if (Node.isStringLiteral(node) || Node.isNoSubstitutionTemplateLiteral(node)) return node.getLiteralText();
  if (!Node.isTemplateExpression(node)) return '';
  return (
    node.getHead().getLiteralText() +
    node
      .getTemplateSpans()
      .map((span) => `…${span.getLiteral().getLiteralText()}`)
      .join('')
  );
}

/** What shapes say of a value that does not fit. */
const FIT = '… is …: give …';

/** Every `new KvmError('CODE', Errno.X, message)` and `refuse('CODE', Errno.X, message)`; `new UsageError('CODE', message)` and `requireFit('CODE', …)`. */
function callerErrors(): { code: string; errno: string; message: string }[] {
  const project = new Project({ compilerOptions: { allowJs: false } });
  project.addSourceFilesAtPaths([
    join(root, 'packages/{core,svm,vmx,cli}/src/**/*.ts'),
    `!${join(root, 'packages/**/*.test.ts')}`,
  ]);
  const found = new Map<string, { code: string; errno: string; message: string }>();
  for (const file of project.getSourceFiles()) {
    const calls = [
      ...file.getDescendantsOfKind(SyntaxKind.NewExpression),
      ...file.getDescendantsOfKind(SyntaxKind.CallExpression),
    ];
    for (const call of calls) {
      const [first, second, third] = call.getArguments();
      if (!first || !Node.isStringLiteral(first) || !/^[A-Z][A-Z0-9_]+$/.test(first.getLiteralText())) continue;
      const errno = /Errno\.(\w+)/.exec(second?.getText() ?? '')?.[1];
      const callee = call.getExpression().getText();
      const fit = callee === 'requireFit';
      if (errno === undefined && !fit && callee !== 'UsageError') continue;
      const message = fit ? FIT : messageOf(errno === undefined ? second : third);
      const code = first.getLiteralText();
      const key = `${code} ${errno ?? 'usage'}`;
      if (!found.has(key) || (found.get(key)?.message ?? '') === '')
        found.set(key, { code, errno: errno ?? 'exit status 2', message });
    }
  }
  return [...found.values()].sort((a, b) => (a.code + a.errno < b.code + b.errno ? -1 : 1));
}

const errors = callerErrors();
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
