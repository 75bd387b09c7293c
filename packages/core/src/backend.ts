/** A backend: one vendor as a plugin, its shape checks and the merging of `extends`. KVM: struct kvm_x86_init_ops. */
import type { CpuModel, PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { Kvm } from './kvm.ts';
import { KVM_X86_OPS, type KvmX86Ops, type OpName } from './ops-table.ts';
import { type CallerErrno, Errno } from './types.ts';

/** Version of the contract between core and backends. */
export const BACKEND_API_VERSION = 1;

export interface BackendDefinition {
  /** `svm`, `vmx`, or a third party's name. */
  name: string;
  apiVersion: typeof BACKEND_API_VERSION;
  /** A backend whose ops and hardware are taken where this one has none. */
  extends?: Backend;
  /** The ops; KVM's runtime_ops and nested_ops in one object. With `extends`, a part of them: `(base) => ({...})` wraps. */
  ops: Partial<KvmX86Ops> | ((base: KvmX86Ops) => Partial<KvmX86Ops>);
  /** Makes the silicon: installs it into the processor and returns the handle by which the driver reaches it. */
  hardware?: (processor: ProcessorApi, memory: PhysicalMemory, model: CpuModel) => unknown;
  /** CPU model on which this backend runs unless told otherwise. */
  model?: CpuModel;
  /** KVM: hardware_setup: probes features, fixes parameters, fills kvm.caps, configures the MMU. 0 or -errno. */
  hardwareSetup?: (kvm: Kvm) => CallerErrno;
  /** Module parameters as given (KVM's names in camel case), for reports. */
  params?: Readonly<Record<string, unknown>>;
}

export interface Backend extends Readonly<BackendDefinition> {
  readonly kind: 'tskvm-backend';
}

/** Name of the op that was most likely meant: smallest edit distance, undefined beyond a third of its length. */
function nearestOp(given: string): OpName | undefined {
  let best: OpName | undefined;
  let bestDistance = Math.max(3, Math.floor(given.length / 3)) + 1;
  for (const name of Object.keys(KVM_X86_OPS) as OpName[]) {
    const distance = editDistance(given.toLowerCase().replaceAll('_', ''), name.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [name, distance];
  }
  return best;
}
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}

const refuse = (code: string, message: string): never => {
  throw new KvmError(code, Errno.EINVAL, message);
};

/** Checks the names and kinds of an ops object. */
function checkOps(name: string, ops: Partial<KvmX86Ops>): void {
  for (const [op, fn] of Object.entries(ops)) {
    if (!Object.hasOwn(KVM_X86_OPS, op)) {
      const near = nearestOp(op);
      const hint = near ? `did you mean '${near}'?` : 'see KVM_X86_OPS for the list';
      refuse('BACKEND_UNKNOWN_OP', `backend '${name}': there is no op '${op}'; ${hint}`);
    }
    if (fn !== undefined && typeof fn !== 'function') {
      refuse('BACKEND_OP_NOT_FUNCTION', `backend '${name}': op '${op}' is a ${typeof fn}; make it a function`);
    }
  }
}

/**
 * Checks a definition's shape and makes a backend of it. Missing ops are found when it is loaded.
 * Throws KvmError (EINVAL): BACKEND_NAME, BACKEND_API_VERSION, BACKEND_OPS, BACKEND_UNKNOWN_OP, BACKEND_OP_NOT_FUNCTION.
 */
export function defineBackend(definition: BackendDefinition): Backend {
  const { name, apiVersion, ops } = definition;
  if (typeof name !== 'string' || name === '') refuse('BACKEND_NAME', 'a backend needs a name: { name: "svm", … }');
  if (apiVersion !== BACKEND_API_VERSION) {
    refuse(
      'BACKEND_API_VERSION',
      `backend '${name}' was made for api version ${String(apiVersion)}, this core has ${BACKEND_API_VERSION}; update the older of the two`,
    );
  }
  if (typeof ops === 'function' && !definition.extends) {
    refuse('BACKEND_OPS', `backend '${name}': ops as a function wraps a base; name it with 'extends'`);
  }
  if (typeof ops !== 'function') {
    if (ops === null || typeof ops !== 'object') refuse('BACKEND_OPS', `backend '${name}': ops must be an object`);
    checkOps(name, ops);
  }
  return { kind: 'tskvm-backend', ...definition };
}

/** A backend with `extends` followed to its end: every op, hardware, model and set-up in one object. */
export interface ResolvedBackend {
  name: string;
  ops: Partial<KvmX86Ops>;
  hardware: BackendDefinition['hardware'];
  hardwareSetup: BackendDefinition['hardwareSetup'];
  model: CpuModel | undefined;
}

/** Merges a backend over its base. A member that the backend lacks comes from the base. */
export function resolveBackend(backend: Backend): ResolvedBackend {
  const base = backend.extends ? resolveBackend(backend.extends) : undefined;
  const own = typeof backend.ops === 'function' ? backend.ops((base?.ops ?? {}) as KvmX86Ops) : backend.ops;
  checkOps(backend.name, own);
  return {
    name: backend.name,
    ops: { ...base?.ops, ...own },
    hardware: backend.hardware ?? base?.hardware,
    hardwareSetup: backend.hardwareSetup ?? base?.hardwareSetup,
    model: backend.model ?? base?.model,
  };
}
