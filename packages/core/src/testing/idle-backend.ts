/** A backend that loads and does nothing: for tests of what needs a kernel but runs no guest. */
import { type CpuModel, EPYC } from '@tskvm/emulator';
import { type Backend, defineBackend } from '../backend.ts';
import { KVM_X86_OPS, type KvmX86Ops, type OpName } from '../ops-table.ts';

/** Every required op, answering 0. */
export function idleOps(): KvmX86Ops {
  const ops: Record<string, () => unknown> = {};
  for (const name of Object.keys(KVM_X86_OPS) as OpName[]) {
    if (KVM_X86_OPS[name].kind === 'required') ops[name] = () => 0;
  }
  return ops as unknown as KvmX86Ops;
}
export const idleBackend = (over: Partial<KvmX86Ops> = {}, name = 'idle', model: CpuModel = EPYC): Backend =>
  defineBackend({ name, apiVersion: 1, ops: { ...idleOps(), ...over }, model });
