import { isUtf8 } from "node:buffer";
import { type FileHandle, open, readFile } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import { type ByteSource, byteSource } from "../formats/byte-source.ts";

/** Some systems refuse one read or write of 2 GiB or more. */
const MAX_TRANSFER_BYTES = 2 ** 30;

const CURES: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or folder. Check the path.",
  EISDIR: "it is a folder. Name a file in it.",
  ENOTDIR: "a part of the path is a file, not a folder. Check the path.",
  EEXIST: "there is a file of that name. Choose another, or remove it.",
  EACCES: "no permission. Check its owner and mode.",
  EPERM: "the system does not allow it. Check its owner and mode, or choose another folder.",
  EROFS: "the file system is read-only. Choose a folder that can be written.",
  ENOSPC: "the disk is full. Free some space; existing files are intact.",
  EDQUOT: "the disk quota is used up. Free some space; existing files are intact.",
  ENAMETOOLONG: "the name is too long. Choose a shorter one.",
  ELOOP: "its links lead in a circle. Check them.",
  ESPIPE: "it is a pipe, and a file is needed, since it is read more than once. Save it to a file first.",
  ENXIO:
    'it is a socket, which cannot be opened by its name. Put "cat |" before the command, or "| cat" after it.',
  Z_BUF_ERROR: "it ends too early for a gzip file. Is it complete?",
  Z_DATA_ERROR:
    "it is not what gzip writes. Is it complete? If it is not compressed, its name may not end in .gz.",
  EFBIG: "the file would pass the largest size allowed here. Raise the limit, or choose another disk.",
};

/**
 * A typed error for a failed file operation: `L-FILE-MISSING` when there is no such file, `L-DISK-FULL` when nothing more
 * can be written, else `L-FILE`.
 */
export function fileError(path: string, cause: unknown): SidenetError {
  const code = (cause as NodeJS.ErrnoException).code ?? "";
  const text = CURES[code] ?? `${(cause as Error).message}. Check the path and the disk.`;
  const kind =
    code === "ENOENT" ? "L-FILE-MISSING" : /ENOSPC|EDQUOT|EFBIG/.test(code) ? "L-DISK-FULL" : "L-FILE";
  return new SidenetError(kind, `${path}: ${text}`, { cause });
}

/**
 * The text of a file that a person wrote, in UTF-8: a byte order mark is dropped and lines end in "\n", whatever system they were
 * written on. Throws as `fileError` says, and `L-FILE` for text that is not UTF-8.
 */
export async function readText(path: string | URL): Promise<string> {
  const bytes = await readFile(path).catch((cause) => {
    throw fileError(String(path), cause);
  });
  if (!isUtf8(bytes)) throw new SidenetError("L-FILE", `${path} is not UTF-8 text. Save it as UTF-8.`);
  return new TextDecoder().decode(bytes).replaceAll("\r\n", "\n");
}

/** Writes all of `bytes` at `position`, or at the file's own place: one write may store less, as on a disk that is nearly full. */
export async function writeFully(file: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const length = Math.min(bytes.length - done, MAX_TRANSFER_BYTES);
    const at = position === undefined ? null : position + done;
    done += (await file.write(bytes, done, length, at)).bytesWritten;
  }
}

/** Reads exactly `length` bytes from `offset`: one read may bring less. Throws where the file ends before. */
export async function readFully(
  file: FileHandle,
  offset: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const out = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const count = Math.min(length - done, MAX_TRANSFER_BYTES);
    const { bytesRead } = await file.read(out, done, count, offset + done);
    if (bytesRead === 0) throw new Error("it became shorter while it was read, so something is writing it");
    done += bytesRead;
  }
  return out;
}

/** Opens a file of any size for random access. Throws `L-FILE-MISSING` or `L-FILE`. */
export async function openFileSource(path: string): Promise<ByteSource> {
  let file: FileHandle;
  let sizeBytes: number;
  try {
    file = await open(path, "r");
  } catch (cause) {
    throw fileError(path, cause);
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) throw new SidenetError("L-FILE", `${path}: it is not a file. Name a file in it.`);
    sizeBytes = stats.size;
  } catch (error) {
    await file.close();
    throw error;
  }
  const read = async (offset: number, length: number) => {
    try {
      return await readFully(file, offset, length);
    } catch (cause) {
      throw fileError(path, cause);
    }
  };
  return byteSource(path, sizeBytes, read, () => file.close());
}
