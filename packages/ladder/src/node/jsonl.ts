import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { parseRecord, type Source, type TextRecord } from "../records.ts";

/** Which fields of a JSON object become the record, where they are not called `text`, or `prompt` and `completion`. */
export interface FieldMapping {
  readonly text?: string;
  readonly prompt?: string;
  readonly completion?: string;
}

/**
 * Lines end at "\n" and nowhere else: JSON may hold the other characters that Unicode, and readline, take for line ends.
 * A byte order mark is dropped. Throws a `TypeError` on text that is not UTF-8.
 */
async function* readLines(path: string): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  for await (const chunk of createReadStream(path)) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  yield rest + decoder.decode();
}

/** Reads records of a JSONL file one by one; blank lines are skipped. Throws `L-DATA` or `L-RECORD`, with the line number. */
export async function* readRecords(
  path: string,
  fields: FieldMapping = {},
): AsyncGenerator<{ record: TextRecord; source: Source }> {
  let number = 0;
  let count = 0;
  try {
    for await (const line of readLines(path)) {
      number++;
      if (line.trim() === "") continue;
      const source = `${basename(path)}, line ${number}`;
      yield { record: parseRecord(mapFields(parseLine(line, source), fields), source), source };
      count++;
    }
  } catch (cause) {
    if (cause instanceof SidenetError) throw cause;
    if (cause instanceof TypeError) {
      throw new SidenetError(
        "L-DATA",
        `${path} is not UTF-8 text somewhere after line ${number}. Save it as UTF-8.`,
        { cause },
      );
    }
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SidenetError("L-DATA", `cannot read the data file ${path}: ${why}. Check --data.`, { cause });
  }
  if (count === 0) {
    throw new SidenetError("L-DATA", `${path} has no records. A data file has one JSON object a line.`);
  }
}

function parseLine(line: string, source: Source): unknown {
  try {
    return JSON.parse(line);
  } catch (cause) {
    const shown = line.length > 60 ? `${line.slice(0, 60)}...` : line;
    throw new SidenetError(
      "L-RECORD",
      `${source} is not JSON: ${shown}. Each line is one whole JSON object.`,
      { cause },
    );
  }
}

function mapFields(value: unknown, fields: FieldMapping): unknown {
  const names = Object.entries(fields);
  if (names.length === 0 || value === null || typeof value !== "object") return value;
  const object = value as Record<string, unknown>;
  return Object.fromEntries(names.map(([to, from]) => [to, object[from as string]]));
}
