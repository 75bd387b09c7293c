/**
 * How large a region may be: as large as the host's compiler compiles well. Loops that go round within one region run faster than
 * regions that call each other by way of the interpreter.
 */

/** What is looked at of Node's `process`; a browser has none. */
export interface HostProcess {
  readonly versions?: { readonly v8?: string };
  getBuiltinModule?(name: 'node:v8'): { setFlagsFromString(flags: string): void } | undefined;
}
/** What is looked at of the global object. Only the thread that draws a page has a document. */
export interface HostGlobal {
  readonly process?: HostProcess;
  readonly document?: unknown;
}

/** Instructions of a region at most. */
export const LARGE = 1000;
/**
 * A function of so many stays below the limit of V8 before 12, and takes 30 ms at most to be translated (0.1 ms an instruction as long as the
 * translator itself is new to the host): no page may stand still for more than 50.
 */
export const SMALL = 250;
/** From here on V8 allocates registers of large functions as well as those of small ones. */
const GOOD_V8 = 12;
/** Before, a function of more than 8192 virtual registers falls to an allocator that makes its code half as fast. */
const NO_FALLBACK = '--no-turbo-use-mid-tier-regalloc-for-huge-functions';

/**
 * Instructions that a region has at most on this host. Node with a V8 before 12 (Node 20) is told to allocate registers of large functions
 * as those of small ones, which says nothing about any function's results; where it can't be told, regions stay small.
 */
export function regionSize({ process, document }: HostGlobal): number {
  if (document !== undefined) return SMALL;
  const version = Number.parseInt(process?.versions?.v8 ?? '', 10);
  if (Number.isNaN(version) || version >= GOOD_V8) return LARGE;
  const v8 = process?.getBuiltinModule?.('node:v8');
  if (!v8) return SMALL;
  v8.setFlagsFromString(NO_FALLBACK);
  return LARGE;
}
