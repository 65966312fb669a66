/** Rows from lines of JSON or of plain text; `name` is the file's name in error messages. */

import { type Line, parseLine, sourceAt } from "./lines.ts";
import type { Source } from "./records.ts";

/** One row of data: its fields, not checked yet. */
export interface Row {
  readonly value: unknown;
  readonly source: Source;
}

/** Paragraphs of plain text are joined up to about this many characters. */
const TEXT_CHARACTERS = 2000;

/** One JSON value per line; blank lines are skipped. Throws `L-RECORD`. */
export async function* jsonlRows(lines: AsyncIterable<Line>, name: string): AsyncGenerator<Row> {
  for await (const { text, number } of lines) {
    if (text.trim() === "") continue;
    const source = sourceAt(name, "line", number);
    yield { value: parseLine(text, source), source };
  }
}

/** Rows of whole paragraphs, which end at blank lines; a very long paragraph is split at a line end. */
export async function* textRows(lines: AsyncIterable<Line>, name: string): AsyncGenerator<Row> {
  let held: string[] = [];
  let length = 0;
  let first = 1;
  const take = (): Row => {
    const text = held.join("\n").trimEnd();
    held = [];
    length = 0;
    return { value: { text }, source: sourceAt(name, "line", first) };
  };
  for await (const { text, number } of lines) {
    const ends = text.trim() === "";
    if ((ends && length >= TEXT_CHARACTERS) || length >= 4 * TEXT_CHARACTERS) yield take();
    if (length === 0 && ends) continue;
    if (length === 0) first = number;
    held.push(text.replace(/\r$/, ""));
    length += text.length + 1;
  }
  if (length > 0) yield take();
}
