/** Adds up what some work takes, while somebody wants to know. Nothing depends on it. */
export class Stopwatch {
  /** Milliseconds of the host; null: nobody wants to know. */
  clock: (() => number) | null = null;
  milliseconds = 0;

  time<T>(work: () => T): T {
    if (this.clock === null) return work();
    const began = this.clock();
    const result = work();
    this.milliseconds += this.clock() - began;
    return result;
  }
}
