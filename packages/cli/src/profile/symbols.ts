/** Names for addresses, from a file as Linux's System.map and nm(1) write it. */
import { UsageError } from '../machine/errors.ts';

const LINE = /^([0-9a-f]{1,16}) [a-z] (\S+)/i;

export class Symbols {
  readonly #at: BigUint64Array;
  readonly #names: readonly string[];

  /** @param text lines `address type name`, in any order. Throws {@link UsageError} if there are none. */
  constructor(text: string, file: string) {
    const found = text.split('\n').flatMap((line) => {
      const match = LINE.exec(line);
      return match === null ? [] : [{ at: BigInt(`0x${match[1]}`), name: match[2] }];
    });
    if (found.length === 0)
      throw new UsageError(
        'BAD_SYMBOLS',
        `--symbols ${file} has no line "address type name": give a System.map or what nm prints`,
      );
    found.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
    this.#at = BigUint64Array.from(found, ({ at }) => at);
    this.#names = found.map(({ name }) => name);
  }

  /** The symbol at or below an address, and where it begins and the next one does. */
  at(address: bigint): { name: string; start: bigint; end: bigint } | undefined {
    let from = 0;
    let to = this.#at.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#at[middle] <= address) from = middle + 1;
      else to = middle;
    }
    if (from === 0) return undefined;
    return { name: this.#names[from - 1], start: this.#at[from - 1], end: this.#at[from] ?? address + 1n };
  }
}
