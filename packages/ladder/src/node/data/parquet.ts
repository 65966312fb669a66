/** Parquet files row by row, a row group in memory at a time, by the library `hyparquet`. */
import { open } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import { type Compressors, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";

/** A page that unpacks to more is taken for a damaged one. */
const MAX_PAGE_BYTES = 2 ** 28;

const bounded = Object.fromEntries(
  Object.entries(compressors).map(([name, unpack]) => [
    name,
    (input: Uint8Array, outputLength: number) => {
      if (outputLength > MAX_PAGE_BYTES) throw new RangeError(`a page claims ${outputLength} bytes`);
      return unpack(input, outputLength);
    },
  ]),
) as Compressors;

/** Numbers of 64 bits as numbers where they fit, dates as text, bytes as UTF-8: what JSON has. */
function plain(_key: string, value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Uint8Array) return new TextDecoder().decode(value);
  return value;
}

/** Throws `L-DATA` for a file that is damaged or of a kind that the library does not read. */
export async function* readParquet(path: string): AsyncGenerator<unknown> {
  const handle = await open(path, "r");
  try {
    const { size } = await handle.stat();
    const file = {
      byteLength: size,
      slice: async (start: number, end = size) => {
        const first = start < 0 ? size + start : start;
        const count = Math.min(end, size) - first;
        if (!(first >= 0 && count >= 0)) throw new RangeError(`it refers to bytes ${start} to ${end}`);
        const bytes = new Uint8Array(count);
        await handle.read(bytes, 0, count, first);
        return bytes.buffer;
      },
    };
    const metadata = await parquetMetadataAsync(file);
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows);
      const rows = await parquetReadObjects({ file, metadata, rowStart, rowEnd, compressors: bounded });
      for (const row of rows) yield JSON.parse(JSON.stringify(row, plain));
      rowStart = rowEnd;
    }
  } catch (cause) {
    if (cause instanceof SidenetError) throw cause;
    throw new SidenetError(
      "L-DATA",
      `${path} cannot be read as Parquet: ${(cause as Error).message}. Is the file complete?`,
      { cause },
    );
  } finally {
    await handle.close();
  }
}
