/** What the benchmarks share: medians of runs in turn, ratios, and tables. */

/** Median of a list. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export interface Contender {
  name: string;
  /** One measurement, in the benchmark's unit. */
  run: () => number | Promise<number>;
}

/** Measures contenders in turn (A B C, A B C, …), so that a drifting machine hits all alike. */
export async function inTurn(contenders: readonly Contender[], rounds = 3): Promise<Map<string, number>> {
  const values = new Map<string, number[]>(contenders.map((c) => [c.name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, run } of contenders) values.get(name)?.push(await run());
  }
  return new Map([...values].map(([name, list]) => [name, median(list)]));
}

/** Nanoseconds a call, best understood as a median over batches. */
export function nsPerCall(call: () => void, batch: number, batches = 15): number {
  for (let i = 0; i < batch; i++) call();
  const results: number[] = [];
  for (let b = 0; b < batches; b++) {
    const start = performance.now();
    for (let i = 0; i < batch; i++) call();
    results.push(((performance.now() - start) * 1e6) / batch);
  }
  return median(results);
}

/** A line of the result. */
export interface Row {
  what: string;
  value: string;
  target: string;
  /** null: nothing to meet, or a peer isn't there. */
  met: boolean | null;
  /** The numbers in `value`, for tools. */
  figures?: Readonly<Record<string, number>>;
}

/** Says on standard error what is being measured. */
export const progress = (text: string): void => void process.stderr.write(`bench: ${text}\n`);
