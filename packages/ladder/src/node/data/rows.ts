/** Data files of every format as rows, one by one. */
import { isUtf8 } from "node:buffer";
import { basename, extname } from "node:path";
import { Readable } from "node:stream";
import { TextDecoder } from "node:util";
import { SidenetError } from "@sidenet/tensor";
import { CsvError, parse as parseCsv } from "csv-parse";
import { sourceAt } from "../../data/lines.ts";
import { jsonlRows, type Row, textRows } from "../../data/rows.ts";
import { fileError } from "../file-source.ts";
import { isGzip, readBytes, readLines } from "./jsonl.ts";
import { readParquet } from "./parquet.ts";

/** JSON is parsed whole; longer texts are no string in V8. */
const MAX_JSON_BYTES = 2 ** 28;
/** An array, or an object with one field that is an array. */
async function* jsonRows(path: string): AsyncGenerator<Row> {
  const refuse = (problem: string, cause?: unknown): SidenetError =>
    new SidenetError(
      "L-DATA",
      `${path} ${problem}. A JSON file is an array of records, or an object with one such array; name a file with one record ` +
        "a line .jsonl.",
      { cause },
    );
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of readBytes(path)) {
    size += chunk.length;
    if (size > MAX_JSON_BYTES) throw refuse(`has more than ${MAX_JSON_BYTES} bytes`);
    chunks.push(chunk);
  }
  let parsed: unknown;
  const bytes = Buffer.concat(chunks);
  if (!isUtf8(bytes)) throw new SidenetError("L-DATA", `${path} is not UTF-8 text. Save it as UTF-8.`);
  try {
    parsed = JSON.parse(bytes.toString("utf8").replace(/^\ufeff/, ""));
  } catch (cause) {
    throw refuse(`is not JSON: ${(cause as Error).message}`, cause);
  }
  const arrays = Array.isArray(parsed)
    ? [parsed]
    : Object.values((parsed ?? {}) as object).filter((field) => Array.isArray(field));
  if (arrays.length !== 1) throw refuse(`holds ${arrays.length} arrays`);
  for (const [i, value] of arrays[0].entries())
    yield { value, source: sourceAt(basename(path), "item", i + 1) };
}

/** Throws `L-DATA` unless the header names each column once, with the separator that the name of the file tells. */
function checkHeader(header: readonly string[], path: string, delimiter: string): string[] {
  const other = header.length === 1 ? [",", ";", "\t"].find((mark) => header[0].includes(mark)) : undefined;
  if (other !== undefined && other !== delimiter) {
    throw new SidenetError(
      "L-DATA",
      `${path} has one column, ${JSON.stringify(header[0])}. Are its columns separated by ${JSON.stringify(other)}? Commas ` +
        "separate them in a .csv file and tabs in a .tsv file: save it as one of these.",
    );
  }
  const twice = header.find((name, i) => header.indexOf(name) < i);
  if (twice === undefined) return [...header];
  throw new SidenetError(
    "L-DATA",
    `${path} has several columns ${JSON.stringify(twice)}. Give each column a name of its own in the first line.`,
  );
}

/** Chunks of a table as UTF-8 text, or UTF-16 if it begins with that byte order mark, as spreadsheets write it. */
async function* tableText(path: string): AsyncGenerator<string> {
  let decoder: TextDecoder | null = null;
  const decode = (chunk?: Uint8Array): string => {
    try {
      return decoder?.decode(chunk, { stream: chunk !== undefined }) ?? "";
    } catch (cause) {
      throw new SidenetError(
        "L-DATA",
        `${path} is not ${decoder?.encoding.toUpperCase()} text. Save it as UTF-8.`,
        {
          cause,
        },
      );
    }
  };
  for await (const chunk of readBytes(path)) {
    const isWide = chunk[0] === 0xff && chunk[1] === 0xfe;
    decoder ??= new TextDecoder(isWide ? "utf-16le" : "utf-8", { fatal: true });
    yield decode(chunk);
  }
  yield decode();
}

async function* csvRows(path: string, delimiter: string): AsyncGenerator<Row> {
  const parser = parseCsv({
    columns: (header: string[]) => checkHeader(header, path, delimiter),
    delimiter,
    relax_quotes: true,
    skip_empty_lines: true,
    max_record_size: 2 ** 26,
  });
  const source = Readable.from(tableText(path));
  source.on("error", (error) => parser.destroy(error));
  let number = 0;
  try {
    for await (const value of source.pipe(parser) as AsyncIterable<Record<string, string>>) {
      yield { value, source: sourceAt(basename(path), "row", ++number) };
    }
  } catch (cause) {
    if (!(cause instanceof CsvError)) throw cause;
    throw new SidenetError(
      "L-DATA",
      `${path} cannot be read as a table: ${cause.message}. The first line names the columns; text with a separator or a ` +
        "line end stands in quotes.",
      { cause },
    );
  } finally {
    source.destroy();
  }
}

async function* parquetRows(path: string): AsyncGenerator<Row> {
  if (isGzip(path))
    throw new SidenetError(
      "L-DATA",
      `${path}: Parquet is read from its end. Decompress the file, such as with gunzip.`,
    );
  let number = 0;
  for await (const value of readParquet(path))
    yield { value, source: sourceAt(basename(path), "row", ++number) };
}

const textFileRows = (path: string) => textRows(readLines(path), basename(path));

/** By the end of a file's name; what is not here is JSONL. */
const READERS: Readonly<Record<string, (path: string) => AsyncGenerator<Row>>> = {
  ".json": jsonRows,
  ".csv": (path) => csvRows(path, ","),
  ".tsv": (path) => csvRows(path, "\t"),
  ".parquet": parquetRows,
  ".txt": textFileRows,
  ".md": textFileRows,
};

const formatOf = (path: string): string => extname(isGzip(path) ? path.slice(0, -3) : path).toLowerCase();

/** Whether the records of this file lie one a line. */
export const isJsonl = (path: string): boolean => !Object.hasOwn(READERS, formatOf(path));

/**
 * The rows of a file: JSONL, JSON, CSV, TSV, Parquet or plain text, by the end of its name. No format but JSON is held in
 * memory. Throws `L-DATA`, `L-RECORD`, or `L-FILE-MISSING`.
 */
export async function* readRows(path: string): AsyncGenerator<Row> {
  const rows = isJsonl(path) ? jsonlRows(readLines(path), basename(path)) : READERS[formatOf(path)](path);
  let count = 0;
  try {
    for await (const row of rows) {
      count++;
      yield row;
    }
  } catch (cause) {
    throw cause instanceof SidenetError ? cause : dataError(path, cause);
  }
  if (count === 0) throw noRecords(path);
}

/** What a pipe brought is gone. */
const pipeCure = (path: string, cause?: unknown): string =>
  path.startsWith("/dev/") && (cause as NodeJS.ErrnoException | undefined)?.code !== "ENXIO"
    ? " What came from a pipe is read once: to read it again, pipe it in again and name it with --data."
    : "";

/** The error for a file without a record. */
export const noRecords = (path: string): SidenetError =>
  new SidenetError(
    "L-DATA",
    `${path} has no records. ${isJsonl(path) ? "A data file has one JSON object a line." : "Is it the right file?"}${pipeCure(path)}`,
  );

/** An error of the file system, as one of this library. */
export function dataError(path: string, cause: unknown): SidenetError {
  return new SidenetError("L-DATA", `data file ${fileError(path, cause).text}${pipeCure(path, cause)}`, {
    cause,
  });
}
