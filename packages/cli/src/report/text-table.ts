/** Tables that fit a terminal: columns shrink and wrap, notes stand below their row. */

/** A column; `style` colours what is printed, after its width is known. */
export interface Column {
  head: string;
  style?: (text: string) => string;
}
export interface Row {
  cells: readonly string[];
  /** Lines below the row, indented, over the whole width; of a pair, what is too long goes on below the second. */
  notes?: readonly (string | readonly [head: string, text: string])[];
}

const GAP = 2;
const NOTE_INDENT = 2;
/** Narrower than this no column gets: then the table is wider than asked for. */
const MIN_COLUMN = 6;
/** Width where the output is no terminal. */
const PIPED_WIDTH = 100;
const LEAST_WIDTH = 60;

/** Columns of standard output; 100 when it is piped. */
export const outputWidth = (): number => Math.max(LEAST_WIDTH, process.stdout.columns ?? PIPED_WIDTH);

/** Where a word that is too long for its line is cut: behind punctuation or a range's hyphen if it has some, else between the parts of a camelCaseName. */
function cutAt(word: string, width: number): number {
  const hyphen = word.lastIndexOf('-0x', width - 1);
  const punctuation = Math.max(word.lastIndexOf(',', width - 1), word.lastIndexOf('=', width - 1), hyphen) + 1;
  if (punctuation > 0) return punctuation;
  const part = word.slice(0, width + 1).search(/(?<=[a-z])[A-Z][a-z]*$/);
  return part > 0 && part <= width ? part : width;
}

/** Lines of at most `width` characters; an arrow stays behind what it follows, a word that is too long is cut. One line that fits stays as it is. */
export function wrapText(text: string, width: number): string[] {
  if (text.length <= width && !/[\t\r\n]/.test(text)) return [text];
  const lines: string[] = [];
  let line = '';
  for (const [word] of text.matchAll(/\S+(?: →)?/g)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = '';
    }
    line = line === '' ? word : `${line} ${word}`;
    while (line.length > width) {
      const at = cutAt(line, width);
      lines.push(line.slice(0, at));
      line = line.slice(at);
    }
  }
  return line === '' && lines.length > 0 ? lines : [...lines, line];
}

/** The same with a hanging indent: the first line behind `first`, the others below its end. */
export function hanging(first: string, text: string, width: number): string[] {
  const indent = ' '.repeat(first.length);
  return wrapText(text, Math.max(20, width - first.length)).map((line, i) => (i === 0 ? first : indent) + line);
}

const longestWord = (text: string): number =>
  Math.max(0, ...text.split(/\s+|(?<=[,=])|(?<=-)(?=0x)/).map((word) => word.length));

/** Widths of the columns: what they need, the widest cut down until all fit; words are broken only if nothing else helps. */
function columnWidths(texts: readonly (readonly string[])[], width: number): number[] {
  const count = texts[0].length;
  const over = (of: (text: string) => number): number[] =>
    Array.from({ length: count }, (_, i) => Math.max(...texts.map((cells) => of(cells[i] ?? ''))));
  const widths = over((text) => text.length);
  const room = width - GAP * (count - 1);
  for (const floor of [over(longestWord), widths.map(() => MIN_COLUMN)]) {
    for (let sum = widths.reduce((a, b) => a + b); sum > room; sum--) {
      const shrinkable = widths.map((w, i) => (w > floor[i] ? w : 0));
      const widest = shrinkable.indexOf(Math.max(...shrinkable));
      if (shrinkable[widest] === 0) break;
      widths[widest]--;
    }
  }
  return widths;
}

/** The text of a table, its head underlined. */
export function textTable(columns: readonly Column[], rows: readonly Row[], width = outputWidth()): string {
  const heads = columns.map((column) => column.head);
  const widths = columnWidths([heads, ...rows.map((row) => row.cells)], width);
  const lines: string[] = [];
  const push = (cells: readonly string[], styled: boolean): void => {
    const wrapped = cells.map((text, i) => wrapText(text, widths[i]));
    for (let n = 0; n < Math.max(...wrapped.map((cell) => cell.length)); n++) {
      const padded = wrapped.map((cell, i) => {
        const text = (cell[n] ?? '').padEnd(widths[i]);
        return styled ? (columns[i].style?.(text) ?? text) : text;
      });
      lines.push(padded.join(' '.repeat(GAP)).trimEnd());
    }
  };
  push(heads, false);
  lines.push(widths.map((w) => '─'.repeat(w)).join(' '.repeat(GAP)));
  for (const { cells, notes = [] } of rows) {
    push(cells, true);
    for (const note of notes) {
      const [head, text] = typeof note === 'string' ? ['', note] : note;
      lines.push(...hanging(' '.repeat(NOTE_INDENT) + head, text, width));
    }
  }
  return lines.join('\n');
}
