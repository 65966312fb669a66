// Extracts one file from a zip archive (a Python wheel is one) as a stream.
// Layout: PKWARE's APPNOTE, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end of central directory).
// Zip64, for archives of 4 GiB or 65,535 files and more, is refused.

import { open } from "node:fs/promises";
import { createInflateRaw } from "node:zlib";

const END_SIGNATURE = 0x06054b50;
const END_BYTES = 22;
const COMMENT_BYTES_MAX = 0xffff;
const ENTRY_SIGNATURE = 0x02014b50;
const ENTRY_BYTES = 46;
const LOCAL_SIGNATURE = 0x04034b50;
const LOCAL_BYTES = 30;
const STORED = 0;
const DEFLATED = 8;

/** A readable stream of the file `name` in the archive at `path`. The CRC is not checked: the caller checks a hash. */
export async function openZipEntry(path, name) {
  const file = await open(path);
  try {
    const entry = await findEntry(file, name);
    if (entry === null) throw new Error(`${path} holds no ${name}`);
    const local = await readAt(file, entry.offset, LOCAL_BYTES);
    expectSignature(local, LOCAL_SIGNATURE);
    // The lengths of name and extra field in the local header may differ from the central directory's.
    const start = entry.offset + LOCAL_BYTES + local.readUInt16LE(26) + local.readUInt16LE(28);
    const raw = file.createReadStream({ start, end: start + entry.packedBytes - 1 }); // closes the file at its end
    if (entry.method === STORED) return raw;
    const inflate = createInflateRaw();
    raw.on("error", (error) => inflate.destroy(error));
    return raw.pipe(inflate);
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function findEntry(file, name) {
  const { size } = await file.stat();
  const tailBytes = Math.min(size, END_BYTES + COMMENT_BYTES_MAX);
  const tail = await readAt(file, size - tailBytes, tailBytes);
  let end = tail.length - END_BYTES;
  while (end >= 0 && tail.readUInt32LE(end) !== END_SIGNATURE) end--; // a comment may follow the record
  if (end < 0) throw new Error("not a zip archive, or cut short");

  const count = tail.readUInt16LE(end + 10);
  const directory = await readAt(file, tail.readUInt32LE(end + 16), tail.readUInt32LE(end + 12));
  for (let i = 0, at = 0; i < count; i++) {
    expectSignature(directory.subarray(at), ENTRY_SIGNATURE);
    const nameBytes = directory.readUInt16LE(at + 28);
    const skip = nameBytes + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    if (directory.toString("utf8", at + ENTRY_BYTES, at + ENTRY_BYTES + nameBytes) === name) {
      const method = directory.readUInt16LE(at + 10);
      if (method !== STORED && method !== DEFLATED) throw new Error(`zip method ${method} is not supported`);
      const entry = {
        method,
        packedBytes: directory.readUInt32LE(at + 20),
        offset: directory.readUInt32LE(at + 42),
      };
      if (Math.max(entry.packedBytes, entry.offset) === 0xffffffff) throw new Error("zip64 is not supported");
      return entry;
    }
    at += ENTRY_BYTES + skip;
  }
  return null;
}

async function readAt(file, position, length) {
  const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(length), position });
  if (bytesRead !== length) throw new Error("the zip archive is cut short");
  return buffer;
}

function expectSignature(bytes, signature) {
  if (bytes.length < 4 || bytes.readUInt32LE(0) !== signature) throw new Error("the zip archive is damaged");
}
