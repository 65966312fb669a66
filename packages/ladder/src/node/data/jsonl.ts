import { createReadStream } from "node:fs";
import { type Line, linesOf } from "../../data/lines.ts";

/** The lines of a file, as `linesOf` gives them, with its path in messages. */
export const readLines = (path: string): AsyncGenerator<Line> =>
  linesOf(createReadStream(path, { highWaterMark: 2 ** 18 }) as AsyncIterable<Uint8Array>, path);
