/**
 * The static calls: the ops of the loaded vendor as an object whose every member can be called.
 * KVM: kvm_ops_update and kvm_x86_call(op) (x86.c, kvm-x86-ops.h).
 */
import { AssertionError, GuestException, NotImplementedError, Unwind } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { KVM_X86_OPS, type KvmX86Calls, type KvmX86Ops, type OpName } from './ops-table.ts';
import { frame, isFramed } from './trace.ts';
import { Errno } from './types.ts';

// biome-ignore lint/suspicious/noExplicitAny: ops of any signature pass through here
type AnyOp = (...args: any[]) => any;
const OP_NAMES = Object.keys(KVM_X86_OPS) as OpName[];

const returnZero = (): number => 0;
const doNothing = (): void => undefined;

/** Errors that already say what they are. */
const isDescribed = (error: unknown): boolean =>
  error instanceof KvmError ||
  error instanceof NotImplementedError ||
  error instanceof AssertionError ||
  error instanceof GuestException ||
  error instanceof Unwind;

/** Names the op and the backend in an error that escaped from it. */
export function attributeError(backend: string, op: string, error: unknown): unknown {
  if (isDescribed(error)) return error;
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  const described = new KvmError(
    'OP_THREW',
    Errno.EIO,
    `backend '${backend}': op '${op}' threw ${text}; an op answers with a value, it does not throw`,
  );
  described.cause = error;
  return described;
}

/** Six parameters cover every op; a fixed count keeps the call monomorphic and free of allocation. */
function guarded(backend: string, name: string, op: AnyOp): AnyOp {
  return (a: unknown, b: unknown, c: unknown, d: unknown, e: unknown, f: unknown) => {
    try {
      return op(a, b, c, d, e, f);
    } catch (error) {
      throw attributeError(backend, name, error);
    }
  };
}

/** Required ops that the table lacks. */
export const missingOps = (ops: Partial<KvmX86Ops>): OpName[] =>
  OP_NAMES.filter((name) => KVM_X86_OPS[name].kind === 'required' && typeof ops[name] !== 'function');

/**
 * Builds the calls. Optional ops that are missing do nothing or return 0. With `traced`, each call has a frame `staticCall.<op>`.
 * Throws KvmError OP_MISSING (EINVAL), which names every missing op and what it has to do.
 */
export function kvmOpsUpdate(backend: string, ops: Partial<KvmX86Ops>, traced: boolean): KvmX86Calls {
  const missing = missingOps(ops);
  if (missing.length > 0) {
    const list = missing.map((name) => `'${name}' (${KVM_X86_OPS[name].does})`).join(', ');
    throw new KvmError(
      'OP_MISSING',
      Errno.EINVAL,
      `backend '${backend}' lacks ${missing.length === 1 ? 'the required op' : 'required ops'} ${list}; add ${missing.length === 1 ? 'it' : 'them'} to ops, or name a base with 'extends'`,
    );
  }
  const calls: Record<string, AnyOp> = {};
  for (const name of OP_NAMES) {
    const op = ops[name] as AnyOp | undefined;
    const fallback = KVM_X86_OPS[name].kind === 'optional-ret0' ? returnZero : doNothing;
    const call = op ? guarded(backend, name, traced && !isFramed(op) ? frame(op.name || name, op) : op) : fallback;
    calls[name] = traced && op ? frame(`staticCall.${name}`, call) : call;
  }
  return calls as unknown as KvmX86Calls;
}

/** The calls of a kernel without a vendor: each says so. */
export function unloadedCalls(): KvmX86Calls {
  const calls: Record<string, AnyOp> = {};
  for (const name of OP_NAMES) {
    calls[name] = () => {
      throw new KvmError(
        'NO_VENDOR',
        Errno.EOPNOTSUPP,
        `no vendor is loaded, op '${name}' can't run; call kvm.load(backend)`,
      );
    };
  }
  return calls as unknown as KvmX86Calls;
}
