/** Parquet files row by row, a row group in memory at a time, by the library `hyparquet`. */
import { open } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import {
  type Compressors,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  type RowGroup,
  type SchemaTree,
} from "hyparquet";
import { readFully } from "../file-source.ts";

/** A page that unpacks to more is taken for a damaged one. */
const MAX_PAGE_BYTES = 2 ** 28;

/** Loaded with the first file: the library instantiates WebAssembly, which fails where a process may have little address space. */
async function boundedCompressors(): Promise<Compressors> {
  const { compressors } = await import("hyparquet-compressors");
  const bounded = Object.entries(compressors).map(([name, unpack]) => [
    name,
    (input: Uint8Array, outputLength: number) => {
      if (outputLength > MAX_PAGE_BYTES) throw new RangeError(`a page claims ${outputLength} bytes`);
      return unpack(input, outputLength);
    },
  ]);
  return Object.fromEntries(bounded);
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Numbers of 64 bits as numbers where they fit, dates as text, bytes as UTF-8: what JSON has. */
function plain(_key: string, value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Uint8Array) return utf8.decode(value);
  return value;
}

/** A group that claims more rows is taken for a damaged one: they are objects in memory, all at once. */
const MAX_GROUP_ROWS = 2 ** 22;

/**
 * The library may drop a read that it has begun, when it finds another mistake first: nobody would hear of its failure, and
 * Node ends the process. Whoever waits for the read still gets it.
 */
function observed<T>(
  read: (start: number, end?: number) => Promise<T>,
): (start: number, end?: number) => Promise<T> {
  return (start, end) => {
    const promise = read(start, end);
    promise.catch(() => {});
    return promise;
  };
}

/** Paths of the columns, "a.list.element". */
function leavesOf(tree: SchemaTree): string[] {
  return tree.children.length > 0 ? tree.children.flatMap(leavesOf) : [tree.path.join(".")];
}

/** Throws a `RangeError` unless the group has each column of the schema once: the library begins with all of them at once. */
function checkGroup({ num_rows, columns }: RowGroup, leaves: readonly string[]): void {
  const rows = Number(num_rows);
  if (!(Number.isSafeInteger(rows) && rows >= 0 && rows <= MAX_GROUP_ROWS))
    throw new RangeError(`a row group claims ${num_rows} rows, more than ${MAX_GROUP_ROWS}`);
  const paths = columns.map(({ meta_data }) => meta_data?.path_in_schema.join("."));
  if (paths.length !== leaves.length || leaves.some((leaf) => !paths.includes(leaf)))
    throw new RangeError("the columns of a row group are not those of the schema");
}

/** Throws `L-DATA` for a file that is damaged or of a kind that the library does not read. */
export async function* readParquet(path: string): AsyncGenerator<unknown> {
  const handle = await open(path, "r");
  try {
    const { size } = await handle.stat();
    const file = {
      byteLength: size,
      slice: observed(async (start: number, end = size) => {
        const first = start < 0 ? size + start : start;
        const count = Math.min(end, size) - first;
        if (!(first >= 0 && count >= 0)) throw new RangeError(`it refers to bytes ${start} to ${end}`);
        return (await readFully(handle, first, count)).buffer;
      }),
    };
    const whole = await parquetMetadataAsync(file);
    const leaves = leavesOf(parquetSchema(whole));
    const twice = leaves.find((leaf, i) => leaves.indexOf(leaf) < i);
    if (twice !== undefined) throw new RangeError(`it has several columns ${JSON.stringify(twice)}`);
    const compressors = await boundedCompressors();
    for (const group of whole.row_groups) {
      checkGroup(group, leaves);
      // One group alone, so that no other group's claims matter while it is read.
      const metadata = { ...whole, row_groups: [group], num_rows: group.num_rows };
      const rowEnd = Number(group.num_rows);
      const rows = await parquetReadObjects({ file, metadata, rowStart: 0, rowEnd, compressors });
      for (const row of rows) yield JSON.parse(JSON.stringify(row, plain));
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
