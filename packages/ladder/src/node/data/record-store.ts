/** Records on disk, in any order: an index of where each lies, and nothing of them in memory. */
import { type FileHandle, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import type { FieldMapping } from "../../data/field-mapping.ts";
import { parseLine, sourceAt } from "../../data/lines.ts";
import {
  type RecordList,
  type RecordParser,
  recordParser,
  type StoredRecord,
} from "../../data/record-list.ts";
import { parseRecord, type Source } from "../../data/records.ts";
import { isStream } from "../atomic-write.ts";
import { readFully, writeFully } from "../file-source.ts";
import { isGzip, readLines } from "./jsonl.ts";
import { dataError, isJsonl, noRecords, readRows } from "./rows.ts";

/** A list of records that holds files open. */
export interface RecordStore extends RecordList {
  /** Closes the files; records cannot be read then. */
  close(): Promise<void>;
}

/** The records of files one by one, each checked. Throws `L-DATA` or `L-RECORD`, with the line or row. */
export async function* readRecords(path: string, fields: FieldMapping = {}): AsyncGenerator<StoredRecord> {
  const parse = recordParser(fields);
  for await (const { value, source } of readRows(path)) yield { record: parse(value, source), source };
}

/** A file of one JSON object a line, and where its records are. */
interface IndexedFile {
  readonly handle: FileHandle;
  readonly starts: number[];
  readonly ends: number[];
  readonly sourceOf: (index: number) => Source;
}

const utf8 = new TextDecoder(); // leaves a byte order mark out

async function readLineAt({ handle, starts, ends }: IndexedFile, index: number): Promise<string> {
  return utf8.decode(await readFully(handle, starts[index], ends[index] - starts[index]));
}

/** Every line is parsed once, so that a mistake is reported before training. */
async function indexJsonl(path: string, parse: RecordParser): Promise<IndexedFile> {
  const handle = await open(path, "r");
  try {
    const [starts, ends, numbers]: [number[], number[], number[]] = [[], [], []];
    for await (const { text, number, start, end } of readLines(path)) {
      if (text.trim() === "") continue;
      const source = sourceAt(basename(path), "line", number);
      parse(parseLine(text, source), source);
      starts.push(start);
      ends.push(end);
      numbers.push(number);
    }
    return { handle, starts, ends, sourceOf: (index) => sourceAt(basename(path), "line", numbers[index]) };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/**
 * Rows of other formats, and those that can be read only from the start on, are written once as JSON lines to a file that is gone
 * when it is closed.
 */
async function spool(path: string, parse: RecordParser): Promise<IndexedFile> {
  const folder = await mkdtemp(join(tmpdir(), "sidenet-data-"));
  const handle = await open(join(folder, "rows.jsonl"), "w+");
  // Where the system allows it the name goes at once, and the file with its last handle, however the process ends.
  await rm(folder, { recursive: true, force: true }).catch(() => {});
  try {
    const [starts, ends, sources]: [number[], number[], Source[]] = [[], [], []];
    let at = 0;
    for await (const { value, source } of readRows(path)) {
      const line = Buffer.from(JSON.stringify(parse(value, source)));
      await writeFully(handle, line, at);
      starts.push(at);
      at += line.length;
      ends.push(at);
      sources.push(source);
    }
    return { handle, starts, ends, sourceOf: (index) => sources[index] };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/**
 * Opens data files: each record is checked now, and read again from its place when it is asked for, so files may be larger
 * than memory. Throws `L-DATA` or `L-RECORD`, with the line or row.
 */
export async function openRecords(paths: readonly string[], parse: RecordParser): Promise<RecordStore> {
  const files: { file: IndexedFile; first: number; parse: RecordParser; path: string }[] = [];
  let length = 0;
  const close = async () => {
    for (const { file } of files) await file.handle.close();
  };
  for (const path of paths) {
    try {
      const inPlace = isJsonl(path) && !isGzip(path) && !(await isStream(path));
      const file = await (inPlace ? indexJsonl(path, parse) : spool(path, parse));
      // What was spooled is a record already.
      files.push({ file, first: length, parse: inPlace ? parse : parseRecord, path });
      length += file.starts.length;
      if (file.starts.length === 0) throw noRecords(path);
    } catch (cause) {
      await close();
      throw cause instanceof SidenetError ? cause : dataError(path, cause);
    }
  }
  const get = async (index: number): Promise<StoredRecord> => {
    const { file, first, parse: parseAgain, path } = files.findLast((one) => one.first <= index)!;
    const source = file.sourceOf(index - first);
    try {
      const record = parseAgain(parseLine(await readLineAt(file, index - first), source), source);
      return { record, source };
    } catch (cause) {
      throw cause instanceof SidenetError ? cause : dataError(path, cause);
    }
  };
  return { length, get, close };
}
