import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { createInterface } from "node:readline";
import { SidenetError } from "@sidenet/tensor";
import { parseRecord, type Source, type TextRecord } from "../records.ts";

/** Which fields of a JSON object become the record, where they are not called `text`, or `prompt` and `completion`. */
export interface FieldMapping {
  readonly text?: string;
  readonly prompt?: string;
  readonly completion?: string;
}

/** Reads records of a JSONL file one by one; blank lines are skipped. Throws `L-DATA` or `L-RECORD`, with the line number. */
export async function* readRecords(
  path: string,
  fields: FieldMapping = {},
): AsyncGenerator<{ record: TextRecord; source: Source }> {
  const stream = createReadStream(path, { encoding: "utf8" });
  let number = 0;
  let count = 0;
  try {
    for await (const line of createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY })) {
      number++;
      if (line.trim() === "") continue;
      const source = `${basename(path)}, line ${number}`;
      yield { record: parseRecord(mapFields(parseLine(line, source), fields), source), source };
      count++;
    }
  } catch (cause) {
    if (cause instanceof SidenetError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SidenetError("L-DATA", `cannot read the data file ${path}: ${why}. Check --data.`, { cause });
  } finally {
    stream.destroy();
  }
  if (count === 0)
    throw new SidenetError("L-DATA", `${path} has no records. A data file has one JSON object a line.`);
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
