/**
 * What arguments and saved states look like, as data: refused by name before anything is changed. No KVM counterpart: copy_from_user
 * and C's types do it there.
 */
import { KvmError } from './diagnostics.ts';

/** Says what is wrong with a value that stands at `at` (a path like `sregs.cs.limit`); undefined: nothing. */
export type Shape = (value: unknown, at: string) => string | undefined;

/** A value in a message: short, and never its own `toString`. */
function shown(value: unknown): string {
  switch (typeof value) {
    case 'bigint':
      return `${value < 0n ? '-' : ''}0x${(value < 0n ? -value : value).toString(16).slice(0, 40)}n`;
    case 'string':
      return JSON.stringify(value.slice(0, 40));
    case 'object':
      return value === null ? 'null' : Array.isArray(value) ? `an array of ${value.length}` : 'an object';
    case 'function':
    case 'symbol':
      return `a ${typeof value}`;
    default:
      return String(value);
  }
}
const wrong = (at: string, value: unknown, give: string): string => `${at} is ${shown(value)}: give ${give}`;
const hex = (n: number): string => (n > 9 ? `0x${n.toString(16)}` : String(n));

/** An integer in a number. */
export const integer =
  (min: number, max: number): Shape =>
  (value, at) =>
    Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max
      ? undefined
      : wrong(at, value, `an integer from ${hex(min)} to ${hex(max)}`);
/** An unsigned number of so many bits, at most 53. */
export const uint = (bits: number): Shape => integer(0, 2 ** bits - 1);
export const bit = uint(1);
export const u8 = uint(8);
export const u16 = uint(16);
export const u32 = uint(32);
/** A guest physical address or a size in bytes. */
export const address = uint(52);
export const i32 = integer(-(2 ** 31), 2 ** 31 - 1);
/** Ticks and nanoseconds: beyond 2^52 one more would not be counted exactly. */
export const MAX_TICK = 2 ** 52;
export const tick = integer(0, MAX_TICK);
/** A point in time that may lie between two ticks. */
export const time: Shape = (value, at) =>
  typeof value === 'number' && value >= 0 && value <= MAX_TICK ? undefined : wrong(at, value, 'a time from 0 to 2^52');
/** The same, or Infinity: never. */
export const timeOrNever: Shape = (value, at) => (value === Number.POSITIVE_INFINITY ? undefined : time(value, at));
/** Any number: its rules are told one by one elsewhere. */
export const anyNumber: Shape = (value, at) => (typeof value === 'number' ? undefined : wrong(at, value, 'a number'));
/** A limit: any number from `min`, Infinity included. */
export const limit =
  (min: number): Shape =>
  (value, at) =>
    typeof value === 'number' && value >= min ? undefined : wrong(at, value, `a number from ${min}, or Infinity`);

/** An unsigned bigint of so many bits. */
export const ubig =
  (bits: number): Shape =>
  (value, at) =>
    typeof value === 'bigint' && value >= 0n && value >> BigInt(bits) === 0n
      ? undefined
      : wrong(at, value, `a bigint from 0 to 2^${bits}-1`);
export const u64 = ubig(64);

export const flag: Shape = (value, at) => (typeof value === 'boolean' ? undefined : wrong(at, value, 'true or false'));
export const text: Shape = (value, at) => (typeof value === 'string' ? undefined : wrong(at, value, 'a string'));
export const anything: Shape = () => undefined;
/** A function, or nothing. */
export const callback: Shape = (value, at) =>
  value === undefined || typeof value === 'function' ? undefined : wrong(at, value, 'a function');

export const oneOf =
  (...allowed: readonly unknown[]): Shape =>
  (value, at) =>
    allowed.includes(value) ? undefined : wrong(at, value, allowed.map(shown).join(' or '));
export const optional =
  (shape: Shape): Shape =>
  (value, at) =>
    value === undefined ? undefined : shape(value, at);
export const nullable =
  (shape: Shape): Shape =>
  (value, at) =>
    value === null ? undefined : shape(value, at);

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;
/** Those that it must have, then those that it may have. */
function fieldNames(fields: Readonly<Record<string, Shape>>): string {
  const names = Object.keys(fields);
  const required = names.filter((name) => fields[name](undefined, name) !== undefined);
  const others = names.filter((name) => !required.includes(name));
  if (others.length === 0) return required.join(', ');
  return `${required.join(', ')}${required.length > 0 ? ' and, if wanted, ' : 'any of '}${others.join(', ')}`;
}

/** An object with these fields; what else it has is ignored. */
export const struct = (fields: Readonly<Record<string, Shape>>): Shape => {
  const entries = Object.entries(fields);
  return (value, at) => {
    if (!isRecord(value)) return wrong(at, value, `an object with ${fieldNames(fields)}`);
    for (const [name, shape] of entries) {
      const problem = shape(value[name], `${at}.${name}`);
      if (problem !== undefined) return problem;
    }
    return undefined;
  };
};
/** One of several structs, told apart by one of their fields. */
export const union =
  (by: string, cases: Readonly<Record<string, Shape>>): Shape =>
  (value, at) => {
    if (!isRecord(value)) return wrong(at, value, 'an object');
    const kind = value[by];
    const shape = typeof kind === 'string' && Object.hasOwn(cases, kind) ? cases[kind] : undefined;
    return shape ? shape(value, at) : wrong(`${at}.${by}`, kind, `one of ${Object.keys(cases).join(', ')}`);
  };
/** An array of at most `max` values. */
export const list =
  (of: Shape, max = 65536): Shape =>
  (value, at) => {
    if (!Array.isArray(value) || value.length > max) return wrong(at, value, `an array of at most ${max}`);
    for (let i = 0; i < value.length; i++) {
      const problem = of(value[i], `${at}[${i}]`);
      if (problem !== undefined) return problem;
    }
    return undefined;
  };
/** An array with one shape for each place. */
export const tuple =
  (...shapes: readonly Shape[]): Shape =>
  (value, at) => {
    if (!Array.isArray(value) || value.length !== shapes.length)
      return wrong(at, value, `an array of ${shapes.length}`);
    for (let i = 0; i < shapes.length; i++) {
      const problem = shapes[i](value[i], `${at}[${i}]`);
      if (problem !== undefined) return problem;
    }
    return undefined;
  };
/** An array of exactly `length` values of one shape. */
export const times = (length: number, of: Shape): Shape => tuple(...new Array<Shape>(length).fill(of));

const typed =
  (name: string, is: (value: unknown) => value is ArrayLike<number>) =>
  (min = 0, max = Number.MAX_SAFE_INTEGER): Shape =>
  (value, at) => {
    if (!is(value)) return wrong(at, value, `a ${name}`);
    if (value.length >= min && value.length <= max) return undefined;
    return `${at} has ${value.length} elements: give ${min === max ? min : `${min} to ${max}`}`;
  };
/** A Uint8Array (Node's Buffer is one) of `min` to `max` bytes. */
export const bytes = typed('Uint8Array', (value): value is Uint8Array => value instanceof Uint8Array);
/** A Uint32Array of `min` to `max` words. */
export const words = typed('Uint32Array', (value): value is Uint32Array => value instanceof Uint32Array);

/** Throws KvmError with this code and errno if the value hasn't the shape; `what` opens the message, `at` its path. */
export function requireShape(
  code: string,
  errno: number,
  what: string,
  value: unknown,
  at: string,
  shape: Shape,
): void {
  const problem = shape(value, at);
  if (problem !== undefined) throw new KvmError(code, errno, `${what}${problem}`, 'types and widths of the arguments');
}
