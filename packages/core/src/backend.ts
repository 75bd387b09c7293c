/** A backend: one vendor as a plugin, its shape checks and the merging of `extends`. KVM: struct kvm_x86_init_ops. */
import type { CpuModel, PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { Kvm } from './kvm.ts';
import { nearest } from './nearest.ts';
import { KVM_X86_OPS, type KvmX86Ops } from './ops-table.ts';
import { MODE_SETTER_OPS, named, type Tracer } from './trace.ts';
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

const refuse = (code: string, message: string): never => {
  throw new KvmError(code, Errno.EINVAL, message);
};

/** KVM's numbers are unsigned integers. */
const isParam = (value: unknown): boolean =>
  typeof value !== 'number' || (Number.isInteger(value) && value >= 0 && value < 2 ** 32);
/** Rule of the refusals of {@link checkModuleParams}. */
const PARAM_RULE = 'a module takes its own parameters only, each of its type';

/**
 * Checks module parameters by name and type; `undefined` counts as not given. For a backend's factory.
 * Throws KvmError UNKNOWN_PARAM or BAD_PARAM (EINVAL, as insmod says it), with the nearest name and the list of all.
 * @param known every parameter with its default, or with a value of its type
 */
export function checkModuleParams(backend: string, given: object, known: Readonly<Record<string, unknown>>): void {
  const names = Object.keys(known);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(known, name)) {
      const [near] = nearest(name, names, 1);
      const hint = near ? `; did you mean '${near}'?` : '.';
      const message = `${backend} has no parameter '${name}'${hint} It has ${names.join(', ')}`;
      throw new KvmError('UNKNOWN_PARAM', Errno.EINVAL, message, PARAM_RULE);
    }
    if (typeof value !== typeof known[name] || !isParam(value)) {
      const kind = typeof known[name] === 'number' ? 'whole number from 0 to 2^32 - 1' : typeof known[name];
      const message = `${backend}: '${name}' is a ${kind}, not ${typeof value === 'number' ? value : JSON.stringify(value)}`;
      throw new KvmError('BAD_PARAM', Errno.EINVAL, message, PARAM_RULE);
    }
  }
}

/** Checks the names and kinds of an ops object. */
function checkOps(name: string, ops: Partial<KvmX86Ops>): void {
  for (const [op, fn] of Object.entries(ops)) {
    if (!Object.hasOwn(KVM_X86_OPS, op)) {
      const [near] = nearest(op, Object.keys(KVM_X86_OPS), 1);
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
  /** The objects handed to wrappers as `base`, each with the ops behind it: {@link frameBases} changes them in place. */
  bases: { handed: Partial<KvmX86Ops>; ops: Partial<KvmX86Ops> }[];
}

/** Merges a backend over its base. A member that the backend lacks comes from the base. */
export function resolveBackend(backend: Backend): ResolvedBackend {
  const base = backend.extends ? resolveBackend(backend.extends) : undefined;
  const handed = { ...base?.ops };
  const own = typeof backend.ops === 'function' ? backend.ops(handed as KvmX86Ops) : backend.ops;
  checkOps(backend.name, own);
  const bases = base?.bases ?? [];
  if (base && typeof backend.ops === 'function') bases.push({ handed, ops: base.ops });
  return {
    bases,
    name: backend.name,
    ops: { ...base?.ops, ...own },
    hardware: backend.hardware ?? base?.hardware,
    hardwareSetup: backend.hardwareSetup ?? base?.hardwareSetup,
    model: backend.model ?? base?.model,
  };
}

/** The CPU model that a backend wants, its own or its base's. */
export const backendModel = (backend: Backend): CpuModel | undefined =>
  backend.model ?? (backend.extends && backendModel(backend.extends));

/**
 * Gives the ops that wrappers call on their `base` frames of their own, or takes them away: while nobody traces, `base.setCr0` is the
 * vendor's function itself.
 */
export function frameBases(backend: ResolvedBackend, tracer: Tracer | null): void {
  for (const { handed, ops } of backend.bases) {
    for (const [name, op] of Object.entries(ops)) Object.assign(handed, { [name]: tracer && op ? named(op) : op });
    for (const op of MODE_SETTER_OPS) if (ops[op]) tracer?.baseSetters.set(ops[op].name, `staticCall.${op}`);
  }
}
