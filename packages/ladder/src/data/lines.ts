/** Lines of text from chunks of bytes. */
import { SidenetError } from "@sidenet/tensor";
import { concatBytes } from "../formats/safetensors-write.ts";
import type { Source } from "./records.ts";

const NEWLINE = 0x0a;
const BYTE_ORDER_MARK = "\ufeff";
/** The limit on a line, which is held in memory. */
const MAX_LINE_BYTES = 2 ** 26;

/** A line of a file, and its range there in bytes. */
export interface Line {
  readonly text: string;
  /** Counted from 1. */
  readonly number: number;
  readonly start: number;
  readonly end: number;
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decodeLine(bytes: Uint8Array, number: number, name: string): string {
  try {
    const text = decoder.decode(bytes);
    return number === 1 && text.startsWith(BYTE_ORDER_MARK) ? text.slice(1) : text;
  } catch (cause) {
    const isGzip = number === 1 && bytes[0] === 0x1f && bytes[1] === 0x8b;
    const text = isGzip
      ? `${name} is compressed. Decompress it, such as with gunzip, or give it a name that ends in .gz.`
      : `${name} is not UTF-8 text in line ${number}. Save it as UTF-8.`;
    throw new SidenetError("L-DATA", text, { cause });
  }
}

/**
 * The lines of a file that is read in chunks; `name` appears in error messages. Lines end only at "\n": JSON may contain the
 * other characters that Unicode, and readline, treat as line ends. A byte order mark is dropped. Throws `L-DATA` for text
 * that is not UTF-8, and for lines of more than 64 MiB.
 */
export async function* linesOf(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  name: string,
): AsyncGenerator<Line> {
  let pending: Uint8Array[] = [];
  let pendingBytes = 0;
  let number = 1;
  let start = 0;
  const line = (last: Uint8Array): Line => {
    const bytes = pending.length === 0 ? last : concatBytes([...pending, last]);
    pending = [];
    pendingBytes = 0;
    const end = start + bytes.length;
    return { text: decodeLine(bytes, number, name), number, start, end };
  };
  for await (const chunk of chunks) {
    let from = 0;
    for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE, from)) {
      const whole = line(chunk.subarray(from, at));
      yield whole;
      start = whole.end + 1;
      number++;
      from = at + 1;
    }
    pending.push(chunk.subarray(from));
    pendingBytes += chunk.length - from;
    if (pendingBytes > MAX_LINE_BYTES) {
      throw new SidenetError(
        "L-DATA",
        `${name}, line ${number}: more than ${MAX_LINE_BYTES >> 20} MiB without a line end. A record is one line.`,
      );
    }
  }
  yield line(new Uint8Array(0));
}

/** Parses a line of JSON. Throws `L-RECORD` with its source. */
export function parseLine(line: string, source: Source): unknown {
  try {
    return JSON.parse(line);
  } catch (cause) {
    const shown = line.length > 60 ? `${line.slice(0, 60)}...` : line;
    const array = line.startsWith("[") ? " A file that holds one array of records is named .json." : "";
    throw new SidenetError(
      "L-RECORD",
      `${source} is not JSON: ${shown}. Each line is one whole JSON object.${array}`,
      { cause },
    );
  }
}

/** The source of a record of a file, for error messages. */
export const sourceAt = (name: string, unit: string, number: number): Source => `${name}, ${unit} ${number}`;
