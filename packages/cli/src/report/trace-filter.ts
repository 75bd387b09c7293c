/** Which events `tskvm trace` prints: names with wildcards, and a filter on fields in trace-cmd's form (`-f 'reason == 28'`) or on text. */
import { nearest, TRACE_FIELDS, type TraceEvents, type TraceName } from '@tskvm/core';
import { UsageError } from '../machine/errors.ts';
import { camelCase } from './call-graph.ts';

const NAMES = Object.keys(TRACE_FIELDS) as TraceName[];

/** `kvm_*`, `kvm:kvm_exit`: shell-like. */
function glob(pattern: string): RegExp {
  return new RegExp(`^${pattern.replace(/[.+^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*')}$`);
}

/** The events that patterns name; all without a pattern. Throws {@link UsageError} for one that names none. */
export function selectEvents(patterns: readonly string[] = []): Set<TraceName> {
  if (patterns.length === 0) return new Set(NAMES);
  const selected = patterns.map((pattern) => {
    const plain = pattern.replace(/^kvm:/, '');
    const found = NAMES.filter((name) => glob(plain).test(name));
    if (found.length > 0) return found;
    const near = nearest(plain, NAMES);
    const hint = near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '.';
    throw new UsageError('UNKNOWN_EVENT', `unknown event ${pattern}${hint} Known: ${NAMES.join(', ')}`);
  });
  return new Set(selected.flat());
}

type Test = (value: unknown) => boolean;
const TERM = /^\s*(\w+)\s*(==|!=|<=|>=|<|>|~)\s*(.+?)\s*$/;
/** `port = 0x3f8`: meant as a comparison. */
const SINGLE_EQUALS = /^\s*(\w+)\s*=\s*([^=\s].*)$/;

/** Text of a value for == and ~; objects count by their name (`from`, `to`, `exit`). */
const textOf = (value: unknown): string =>
  typeof value === 'object' && value !== null && 'name' in value ? String(value.name) : String(value);
/** What numbers, 64-bit values and flags are compared as. */
const numberOf = (value: unknown): bigint | undefined => {
  if (typeof value === 'bigint') return value;
  if (typeof value === 'boolean') return value ? 1n : 0n;
  return typeof value === 'number' && Number.isInteger(value) ? BigInt(value) : undefined;
};
const literal = (text: string): bigint | undefined => {
  if (text === 'true') return 1n;
  if (text === 'false') return 0n;
  return /^(0x[0-9a-f]+|\d+)$/i.test(text) ? BigInt(text) : undefined;
};
const ORDER: Readonly<Record<string, (a: bigint, b: bigint) => boolean>> = {
  '<': (a, b) => a < b,
  '<=': (a, b) => a <= b,
  '>': (a, b) => a > b,
  '>=': (a, b) => a >= b,
};

function comparison(operator: string, operand: string): Test {
  const text = operand.replace(/^(["'])(.*)\1$/, '$2');
  const wanted = literal(text);
  if (operator === '~') return (value) => glob(text).test(textOf(value));
  const equal: Test = (value) => {
    const number = numberOf(value);
    return number !== undefined && wanted !== undefined ? number === wanted : textOf(value) === text;
  };
  if (operator === '==') return equal;
  if (operator === '!=') return (value) => !equal(value);
  if (wanted === undefined)
    throw new UsageError('BAD_FILTER', `--filter: ${operator} compares numbers, ${operand} is none`);
  return (value) => {
    const number = numberOf(value);
    return number !== undefined && ORDER[operator](number, wanted);
  };
}

/** A field that one of the events has. */
function checkField(given: string, events: ReadonlySet<TraceName>): string {
  const field = camelCase(given);
  const fields = new Set([...events].flatMap((name): readonly string[] => TRACE_FIELDS[name]));
  if (fields.has(field)) return field;
  const near = nearest(field, fields);
  const hint = near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '.';
  throw new UsageError(
    'UNKNOWN_FIELD',
    `--filter: no selected event has a field ${given}${hint} Fields: ${[...fields].sort().join(', ')}`,
  );
}

/** `port ==`: the value is missing. */
const HALF = /^\s*\w+\s*(==|!=|<=|>=|<|>|~)\s*$/;
const noComparison = (text: string): UsageError =>
  new UsageError(
    'BAD_FILTER',
    `--filter: '${text.trim()}' is no comparison; write FIELD OPERATOR VALUE (==, !=, <, <=, >, >=, ~), joined by &&, a value with spaces in quotes`,
  );

/** Decides by an event and its printed line. */
export type TraceFilter = (event: TraceEvents[TraceName], line: string) => boolean;

/**
 * `name == CR_ACCESS`, `port == 0x3f8 && rw == write` (==, !=, <, <=, >, >=, ~ with wildcards); anything else is text that the line must contain.
 * An event without the field is not shown. Throws {@link UsageError}: UNKNOWN_FIELD, BAD_FILTER.
 */
export function parseFilter(text: string | undefined, events: ReadonlySet<TraceName>): TraceFilter {
  if (text === undefined) return () => true;
  const terms = text.split('&&').map((part) => TERM.exec(part));
  const [, name, value] = SINGLE_EQUALS.exec(text) ?? [];
  if (
    name !== undefined &&
    [...events].some((event) => (TRACE_FIELDS[event] as readonly string[]).includes(camelCase(name)))
  ) {
    throw new UsageError('BAD_FILTER', `--filter: = compares nothing, write ==: '${name} == ${value}'`);
  }
  if (HALF.test(text)) throw noComparison(text);
  if (terms.every((term) => term === null)) return (_event, line) => line.includes(text);
  const bad = text.split('&&').find((_part, i) => terms[i] === null || /^=|^[^"']*\s/.test(terms[i][3]));
  if (bad !== undefined) throw noComparison(bad);
  const tests = terms
    .map((term) => term!)
    .map(([, name, operator, operand]) => ({
      field: checkField(name, events),
      test: comparison(operator, operand),
    }));
  return (event) =>
    tests.every(({ field, test }) => field in event && test((event as unknown as Record<string, unknown>)[field]));
}
