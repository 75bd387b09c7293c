/**
 * The static calls: the ops of the loaded vendor as an object whose every member can be called.
 * KVM: kvm_ops_update and kvm_x86_call(op) (x86.c, kvm-x86-ops.h).
 */
import { AssertionError, GuestException, NotImplementedError, Unwind } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { KVM_X86_OPS, type KvmX86Calls, type KvmX86Ops, type OpName } from './ops-table.ts';
import { frame, isListeners, named } from './trace.ts';
import { Errno } from './types.ts';

// biome-ignore lint/suspicious/noExplicitAny: ops of any signature pass through here
type AnyOp = (...args: any[]) => any;
const OP_NAMES = Object.keys(KVM_X86_OPS) as OpName[];

const returnZero = (): number => 0;
const doNothing = (): void => undefined;
/** Does nobody fill this optional op? */
export const isAbsentOp = (call: unknown): boolean => call === doNothing || call === returnZero;

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

/** Function names in a stack trace, innermost first (V8: `at name (…)`, others: `name@…`). */
const stackNames = (error: Error): string[] =>
  (error.stack ?? '')
    .split('\n')
    .flatMap((line) => /^\s*at (?:async )?(?:[\w$]+\.)*([\w$]+)|^([\w$]+)@/.exec(line)?.slice(1) ?? []);

/**
 * Names the op in an error that escaped from a run. The calls themselves are the vendor's functions, with nothing around them: the op is
 * found in the stack trace, by its function's name.
 */
export function attributeRunError(backend: string, ops: Partial<KvmX86Ops>, error: unknown): unknown {
  if (isDescribed(error) || !(error instanceof Error) || isListeners(error)) return error;
  const byFunction = new Map<string, OpName>();
  for (const name of OP_NAMES) if (ops[name]) byFunction.set((ops[name] as AnyOp).name, name);
  for (const frameName of stackNames(error)) {
    const op = byFunction.get(frameName);
    if (op !== undefined) return attributeError(backend, op, error);
  }
  return error;
}

/** The call site's own frame around the vendor's. */
const throughFrame = (name: OpName, op: AnyOp): AnyOp =>
  frame(`staticCall.${name}`, (a: unknown, b: unknown, c: unknown, d: unknown, e: unknown, f: unknown) =>
    op(a, b, c, d, e, f),
  );

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
  const table: Record<string, AnyOp> = {};
  for (const name of OP_NAMES) {
    const op = ops[name] as AnyOp | undefined;
    const fallback = KVM_X86_OPS[name].kind === 'optional-ret0' ? returnZero : doNothing;
    if (traced && op) table[name] = throughFrame(name, named(op));
    else table[name] = op ?? fallback;
  }
  return traced ? callsOf(table) : shared(table);
}

/**
 * The table as the prototype of the calls, as methods are: an engine knows what stands in a prototype, and compiles the vendor's function
 * into the call site. So it can with two vendors in the process, as long as each has one object for all its kernels.
 */
const callsOf = (table: Record<string, AnyOp>): KvmX86Calls => Object.create(table) as KvmX86Calls;

/** Tables in use, the last few: kernels with the same ops share their calls. */
const TABLES: { table: Record<string, AnyOp>; calls: KvmX86Calls }[] = [];
const MOST_TABLES = 8;
function shared(table: Record<string, AnyOp>): KvmX86Calls {
  const known = TABLES.find((other) => OP_NAMES.every((name) => other.table[name] === table[name]));
  if (known) return known.calls;
  const calls = callsOf(table);
  TABLES.push({ table, calls });
  if (TABLES.length > MOST_TABLES) TABLES.shift();
  return calls;
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
