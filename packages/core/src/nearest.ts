/** Names that are close to a misspelt one, for "did you mean". */

/** KVM's snake case and camel case are one spelling. */
const plainName = (name: string): string => name.toLowerCase().replaceAll('_', '');

/** Edit distance; two letters that changed places count once. */
function distance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] && j > 1 && i > 1)
        next[j] = Math.min(next[j], before[j - 2] + 1);
    }
    before = row;
    row = next;
  }
  return row[b.length];
}

/** Shorter than this a beginning says nothing. */
const BEGINNING = 3;

/**
 * The names that were most likely meant, at most `count`, nearest first: those that begin like that if they are so few, else those within a
 * third of the given one's length.
 */
export function nearest(given: string, names: Iterable<string>, count = 3): string[] {
  const wanted = plainName(given);
  const all = [...names];
  const longer = wanted.length < BEGINNING ? [] : all.filter((name) => plainName(name).startsWith(wanted));
  if (longer.length > 0 && longer.length <= count) return longer;
  const most = Math.ceil(wanted.length / 3);
  return all
    .map((name) => ({ name, d: distance(wanted, plainName(name)) }))
    .filter(({ d }) => d <= most)
    .sort((a, b) => a.d - b.d || (a.name < b.name ? -1 : 1))
    .slice(0, count)
    .map(({ name }) => name);
}
