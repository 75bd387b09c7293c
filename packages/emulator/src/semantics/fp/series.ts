/**
 * Elementary functions in fixed point: bigint fractions with W bits behind the point, good to about 2^-(W - 10).
 * Mathematics: Taylor series after argument reduction; Machin's formula.
 */

/** Bits behind the point: 64 of the result, as many of cancellation near the fixed points, and room for small arguments. */
export const W = 360;
const ONE = 1n << BigInt(W);
/** Rounds toward zero: a shift would leave negative terms of a series at -1 for ever. */
export function multiplyFixed(a: bigint, b: bigint): bigint {
  const product = a * b;
  return product < 0n ? -(-product >> BigInt(W)) : product >> BigInt(W);
}
export const divideFixed = (a: bigint, b: bigint): bigint => (a << BigInt(W)) / b;
export { ONE as FIXED_ONE };

/** Sum of terms until they vanish: term(0) = first, each next by `next(previous, n)`; `part(term, n)` is what is added. */
function series(
  first: bigint,
  next: (term: bigint, n: bigint) => bigint,
  part: (term: bigint, n: bigint) => bigint,
): bigint {
  let sum = 0n;
  let term = first;
  for (let n = 0n; term !== 0n; n++) {
    sum += part(term, n);
    term = next(term, n);
  }
  return sum;
}

/** atanh(z) for |z| < 1/2. */
export function atanhFixed(z: bigint): bigint {
  const square = multiplyFixed(z, z);
  return series(
    z,
    (term) => multiplyFixed(term, square),
    (term, n) => term / (2n * n + 1n),
  );
}

/** atan(z) for |z| < 1/2. */
function atanSmall(z: bigint): bigint {
  const square = multiplyFixed(z, z);
  return series(
    z,
    (term) => multiplyFixed(-term, square),
    (term, n) => term / (2n * n + 1n),
  );
}

/** atan(z) for 0 <= z <= 1: halves the angle until the series is short. */
export function atanFixed(z: bigint): bigint {
  let t = z;
  let halvings = 0n;
  while (t > ONE >> 4n) {
    t = divideFixed(t, ONE + rootFixed(ONE + multiplyFixed(t, t)));
    halvings++;
  }
  return atanSmall(t) << halvings;
}

function rootFixed(value: bigint): bigint {
  const n = value << BigInt(W);
  let x = ONE * 2n;
  for (;;) {
    const next = (x + n / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

/** exp(y) - 1 for |y| < 1. */
export const expm1Fixed = (y: bigint): bigint =>
  series(
    y,
    (term, n) => multiplyFixed(term, y) / (n + 2n),
    (term) => term,
  );

/** sin(r) and cos(r) for |r| < 1. */
export function sinFixed(r: bigint): bigint {
  const square = multiplyFixed(r, r);
  return series(
    r,
    (term, n) => multiplyFixed(-term, square) / ((2n * n + 2n) * (2n * n + 3n)),
    (term) => term,
  );
}
export function cosFixed(r: bigint): bigint {
  const square = multiplyFixed(r, r);
  return series(
    ONE,
    (term, n) => multiplyFixed(-term, square) / ((2n * n + 1n) * (2n * n + 2n)),
    (term) => term,
  );
}

const lazy = (compute: () => bigint): (() => bigint) => {
  let value: bigint | undefined;
  return () => (value ??= compute());
};
/** ln 2 = 2 atanh(1/3). */
export const ln2 = lazy(() => 2n * atanhFixed(ONE / 3n));
/** pi = 16 atan(1/5) - 4 atan(1/239). */
export const pi = lazy(() => 16n * atanSmall(ONE / 5n) - 4n * atanSmall(ONE / 239n));
