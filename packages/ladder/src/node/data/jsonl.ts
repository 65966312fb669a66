import { open } from "node:fs/promises";
import { pipeline } from "node:stream";
import { isatty } from "node:tty";
import { createGunzip } from "node:zlib";
import { SidenetError } from "@sidenet/tensor";
import { type Line, linesOf } from "../../data/lines.ts";

/** Whether a file is unpacked as it is read. */
export const isGzip = (path: string): boolean => /\.gz$/i.test(path);

/** The bytes of a data file, in chunks. Throws `L-DATA` for a terminal, from which a run would wait for data. */
export async function* readBytes(path: string): AsyncGenerator<Uint8Array> {
  const file = await open(path, "r");
  if (isatty(file.fd)) {
    await file.close();
    throw new SidenetError(
      "L-DATA",
      `${path} is a terminal here. Pipe the data into the command, or name a file with --data.`,
    );
  }
  const stream = file.createReadStream({ highWaterMark: 2 ** 18 });
  yield* isGzip(path) ? pipeline(stream, createGunzip(), () => {}) : stream; // its error is that of the loop
}

/** The lines of a file, as `linesOf` gives them, with its path in messages. */
export const readLines = (path: string): AsyncGenerator<Line> => linesOf(readBytes(path), path);
