/** The files of a model by their names, wherever they are. */
import { SidenetError } from "@sidenet/tensor";
import { type ByteSource, byteSource } from "./byte-source.ts";
import { checkJsonSize, parseJson } from "./json.ts";

/** Files of one folder, or those that the user of a page has chosen. */
export interface FileSet {
  /** In error messages. */
  readonly name: string;
  readonly names: ReadonlySet<string>;
  /** Opens one of them. Throws where there is none of that name. */
  open(file: string): Promise<ByteSource>;
}

/** What is used of a `Blob` of a page. */
export interface BlobLike {
  readonly size: number;
  /** The part from byte `start` to before `end`. */
  slice(
    start: number,
    end: number,
  ): {
    /** Reads the part. */
    arrayBuffer(): Promise<ArrayBuffer>;
  };
}

/** What is used of a `File` of a page. */
export interface FileLike extends BlobLike {
  readonly name: string;
  /** Its path from the folder that was chosen, if one was. */
  readonly webkitRelativePath?: string;
}

/** A source over a blob, such as a file of a page; only what is asked for is read. */
export const blobSource = (blob: BlobLike, name: string): ByteSource =>
  byteSource(name, blob.size, async (offset, length) => {
    try {
      const bytes = new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      if (bytes.length !== length) throw new Error(`${length} bytes were asked for, ${bytes.length} came.`);
      return bytes;
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new SidenetError("L-FILE", `${name} cannot be read: ${why} Has it changed? Choose it again.`, {
        cause,
      });
    }
  });

/** Files of a page as a set. Of a folder that was chosen, files of its subfolders are left out. */
export function fileSet(files: Iterable<FileLike>, name: string): FileSet {
  const isDeep = ({ webkitRelativePath: path = "" }: FileLike) => path.split("/").length > 2;
  const byName = new Map([...files].filter((file) => !isDeep(file)).map((file) => [file.name, file]));
  return {
    name,
    names: new Set(byName.keys()),
    async open(file) {
      const blob = byName.get(file);
      if (blob) return blobSource(blob, file);
      throw new SidenetError("L-FILE-MISSING", `${name} has no file ${file}. Choose that file too.`);
    },
  };
}

/** The content of a file, and what the file is called in messages. */
interface Content<T> {
  readonly value: T;
  readonly name: string;
}

async function readAs<T>(
  files: FileSet,
  file: string,
  parse: (text: string, name: string) => T,
): Promise<Content<T>> {
  const source = await files.open(file);
  const { name, sizeBytes } = source;
  try {
    checkJsonSize(name, sizeBytes);
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(await source.read(0, sizeBytes));
    return { value: parse(text, name), name };
  } finally {
    await source.close();
  }
}

/** The text of a file in UTF-8. */
export const readText = (files: FileSet, file: string): Promise<Content<string>> =>
  readAs(files, file, (text) => text);

/** The value of a JSON file. Throws `L-JSON`. */
export const readJson = (files: FileSet, file: string): Promise<Content<unknown>> =>
  readAs(files, file, parseJson);
