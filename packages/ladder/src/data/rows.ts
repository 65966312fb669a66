/** Lines of JSON and of plain text as rows; `name` is what messages call their file. */
import type { Source } from "../records.ts";
import { type Line, parseLine, sourceAt } from "./lines.ts";

/** One row: its fields, not checked yet. */
export interface Row {
  readonly value: unknown;
  readonly source: Source;
}

/** Paragraphs of plain text are joined up to about so many characters. */
const TEXT_CHARACTERS = 2000;

/** One JSON value a line; blank lines are passed over. Throws `L-RECORD`. */
export async function* jsonlRows(lines: AsyncIterable<Line>, name: string): AsyncGenerator<Row> {
  for await (const { text, number } of lines) {
    if (text.trim() === "") continue;
    const source = sourceAt(name, "line", number);
    yield { value: parseLine(text, source), source };
  }
}

/** Whole paragraphs together; a paragraph ends at a blank line, and a very long one at a line's end. */
export async function* textRows(lines: AsyncIterable<Line>, name: string): AsyncGenerator<Row> {
  let held: string[] = [];
  let length = 0;
  let first = 1;
  const take = (): Row | null => {
    const text = held.join("\n").trim();
    held = [];
    length = 0;
    return text === "" ? null : { value: { text }, source: sourceAt(name, "line", first) };
  };
  for await (const { text, number } of lines) {
    const ends = text.trim() === "";
    if ((ends && length >= TEXT_CHARACTERS) || length >= 4 * TEXT_CHARACTERS) {
      const row = take();
      if (row) yield row;
    }
    if (length === 0 && ends) continue;
    if (length === 0) first = number;
    held.push(text.replace(/\r$/, ""));
    length += text.length + 1;
  }
  const row = take();
  if (row) yield row;
}
