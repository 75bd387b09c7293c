/** `tskvm ops`: the symbol that can't be grepped: an operation's kind, and what it is bound to under each backend. */
import { KVM_X86_OPS, nearest, type OpName } from '@tskvm/core';
import type { Command } from 'commander';
import { UsageError } from '../machine/errors.ts';
import { camelCase, graphRow } from '../report/call-graph.ts';
import { textTable } from '../report/text-table.ts';

const KIND_TEXT = {
  required: 'required: loading fails without it',
  optional: 'optional: a missing op is a no-op',
  'optional-ret0': 'optional: a missing op returns 0',
} as const;

function findOp(name: string): OpName {
  const wanted = camelCase(name.replace(/^kvm_x86_/, '').replace(/^static_call\(?/, ''));
  if (wanted in KVM_X86_OPS) return wanted as OpName;
  const near = nearest(wanted, Object.keys(KVM_X86_OPS));
  throw new UsageError(
    'UNKNOWN_OP',
    `no operation ${name}${near.length > 0 ? `; the nearest are ${near.join(', ')}` : ''}. tskvm ops lists all`,
  );
}

/** What an op is bound to, by vendor, with the place of the function. */
function bindings(op: OpName): { backend: string; implementation: string; file: string }[] {
  const row = graphRow(`staticCall.${op}`);
  const found = (row?.[4] ?? []).map(([target, vendor]) => ({
    backend: vendor ?? '',
    implementation: target,
    file: graphRow(target)?.[2] ?? '',
  }));
  return ['svm', 'vmx'].flatMap((backend) => {
    const own = found.filter((f) => f.backend === backend);
    return own.length > 0
      ? own
      : [{ backend, implementation: KVM_X86_OPS[op].kind === 'required' ? '(inline)' : '(none)', file: '' }];
  });
}

export function addOpsCommand(program: Command): void {
  program
    .command('ops')
    .description('show an operation of the vendor interface: kind, bindings and implementing functions')
    .argument('[operation]', 'its name here or in KVM (setCr0, set_cr0, kvm_x86_set_cr0); without one, all are listed')
    .option('--json', 'print as JSON')
    .addHelpText('after', '\nExamples:\n  tskvm ops set_cr0\n  tskvm ops')
    .action((name: string | undefined, flags: { json?: boolean }) => {
      const names = name === undefined ? (Object.keys(KVM_X86_OPS) as OpName[]) : [findOp(name)];
      const data = names.map((op) => ({
        op,
        kind: KVM_X86_OPS[op].kind,
        does: KVM_X86_OPS[op].does,
        call: `kvm.calls.${op}`,
        bindings: bindings(op),
      }));
      if (flags.json) {
        process.stdout.write(`${JSON.stringify(name === undefined ? data : data[0])}\n`);
        return;
      }
      if (name !== undefined) {
        const [{ op, kind, does, bindings: bound }] = data;
        process.stdout.write(
          `${op}  (KVM: kvm_x86_call(${op.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`)}))\n${does}\n${KIND_TEXT[kind]}\ncalled as kvm.calls.${op}(…); in call paths: staticCall.${op}\n`,
        );
        for (const { backend, implementation, file } of bound)
          process.stdout.write(`  ${backend}: ${implementation}${file ? `  ${file}` : ''}\n`);
        return;
      }
      const rows = data.map(({ op, kind, bindings: bound }) => {
        const of = (backend: string): string =>
          bound
            .filter((b) => b.backend === backend)
            .map((b) => b.implementation)
            .join(', ');
        return { cells: [op, kind, of('svm'), of('vmx')] };
      });
      const columns = ['operation', 'kind', 'svm', 'vmx'].map((head) => ({ head }));
      process.stdout.write(`${textTable(columns, rows)}\n`);
    });
}
