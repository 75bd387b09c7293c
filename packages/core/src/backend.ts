/** A backend: one vendor as a plugin. */
import type { CpuModel, PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import type { Kvm } from './kvm.ts';
import type { KvmX86Ops } from './ops-table.ts';
import type { CallerErrno } from './types.ts';

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
  /** Name of the TypeScript function behind an op, for reports; defaults to the function's name. */
}

export interface Backend extends Readonly<BackendDefinition> {
  readonly kind: 'tskvm-backend';
}

/** Checks a definition's shape and makes a backend of it. Throws KvmError that names the op and the fix. */
export function defineBackend(definition: BackendDefinition): Backend {
  return { kind: 'tskvm-backend', ...definition };
}
