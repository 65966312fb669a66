import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import type { Source } from "../../records.ts";

const NEWLINE = 0x0a;
const BYTE_ORDER_MARK = "\ufeff";
/** A line is held in memory, so it has to end at some point. */
const MAX_LINE_BYTES = 2 ** 26;

/** A line of a file and where it lies there, in bytes. */
export interface Line {
  readonly text: string;
  /** Counted from 1. */
  readonly number: number;
  readonly start: number;
  readonly end: number;
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decodeLine(bytes: Uint8Array, number: number, path: string): string {
  try {
    const text = decoder.decode(bytes);
    return number === 1 && text.startsWith(BYTE_ORDER_MARK) ? text.slice(1) : text;
  } catch (cause) {
    const where = `${path} is not UTF-8 text in line ${number}`;
    throw new SidenetError("L-DATA", `${where}. Save it as UTF-8.`, { cause });
  }
}

/**
 * Lines end at "\n" and nowhere else: JSON may hold the other characters that Unicode, and readline, take for line ends.
 * A byte order mark is dropped. Throws `L-DATA` for text that is not UTF-8, and for lines of more than 64 MiB.
 */
export async function* readLines(path: string): AsyncGenerator<Line> {
  let held: Buffer[] = [];
  let heldBytes = 0;
  let number = 1;
  let start = 0;
  const line = (last: Buffer): Line => {
    const bytes = held.length === 0 ? last : Buffer.concat([...held, last]);
    held = [];
    heldBytes = 0;
    const end = start + bytes.length;
    return { text: decodeLine(bytes, number, path), number, start, end };
  };
  for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 18 }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE, from)) {
      const whole = line(chunk.subarray(from, at));
      yield whole;
      start = whole.end + 1;
      number++;
      from = at + 1;
    }
    held.push(chunk.subarray(from));
    heldBytes += chunk.length - from;
    if (heldBytes > MAX_LINE_BYTES) {
      throw new SidenetError(
        "L-DATA",
        `${path}, line ${number}: more than ${MAX_LINE_BYTES >> 20} MiB without a line end. A record is one line.`,
      );
    }
  }
  yield line(Buffer.alloc(0));
}

/** Throws `L-RECORD`, naming the line. */
export function parseLine(line: string, source: Source): unknown {
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

/** Where a record of a file is from, for messages. */
export const sourceAt = (path: string, unit: string, number: number): Source =>
  `${basename(path)}, ${unit} ${number}`;
