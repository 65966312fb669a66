/**
 * Reader of GGUF, versions 2 and 3, little-endian: magic, counts, metadata, tensor table, then aligned data.
 * Every count, length and offset is checked against the file's size before it is used.
 */
import { formatShape, sizeOf } from "@sidenet/tensor";
import { type ByteSource, refuse } from "./byte-source.ts";
import { GgufCursor } from "./gguf-cursor.ts";
import { GGUF_TYPES, type GgufType } from "./gguf-types.ts";

/** A value of a GGUF file's metadata. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

/** Type, shape and position of a tensor in a GGUF file. */
export interface GgufTensorInfo {
  readonly name: string;
  readonly type: GgufType;
  /** Outermost axis first, as everywhere in this project; the file has the reverse order. */
  readonly shape: readonly number[];
  /** The file that holds it, of several one. */
  readonly source: ByteSource;
  /** Offset in that file, in bytes. */
  readonly offset: number;
  readonly sizeBytes: number;
}

/** The header of a GGUF file: metadata by name, and the position of each tensor. */
export interface GgufFile {
  readonly source: ByteSource;
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>;
}

const MAGIC = new TextEncoder().encode("GGUF");
const MAX_DIMS = 4;
const MAX_ARRAY_DEPTH = 4;
const DEFAULT_ALIGNMENT = 32;

/** Value kinds by number: [size in bytes, reader]. 8 is a string, 9 an array. */
const SCALARS: Readonly<Record<number, readonly [bytes: number, read: (cursor: GgufCursor) => GgufValue]>> = {
  0: [1, (c) => c.u8()],
  1: [1, (c) => c.i8()],
  2: [2, (c) => c.u16()],
  3: [2, (c) => c.i16()],
  4: [4, (c) => c.u32()],
  5: [4, (c) => c.i32()],
  6: [4, (c) => c.f32()],
  7: [1, (c) => c.u8() !== 0],
  10: [8, (c) => c.u64()],
  11: [8, (c) => c.i64()],
  12: [8, (c) => c.f64()],
};
const STRING = 8;
const ARRAY = 9;
const MIN_BYTES: Readonly<Record<number, number>> = { [STRING]: 8, [ARRAY]: 12 };

async function readLength(cursor: GgufCursor, minBytesEach: number, what: string): Promise<number> {
  if (!cursor.has(8)) await cursor.need(8, what);
  const count = Number(cursor.u64());
  cursor.claim(count * minBytesEach, `${what} (${count} of at least ${minBytesEach} bytes)`);
  return count;
}

async function readString(cursor: GgufCursor, what: string): Promise<string> {
  const bytes = await readLength(cursor, 1, what);
  if (!cursor.has(bytes)) await cursor.need(bytes, what);
  return cursor.utf8(bytes);
}

async function readArray(
  source: ByteSource,
  cursor: GgufCursor,
  key: string,
  depth: number,
): Promise<GgufValue[]> {
  if (depth > MAX_ARRAY_DEPTH) {
    refuse(
      source,
      "L-GGUF-METADATA",
      `"${key}" nests arrays deeper than ${MAX_ARRAY_DEPTH}. Is the file damaged?`,
    );
  }
  await cursor.need(4, `the element type of "${key}"`);
  const kind = cursor.u32();
  const scalar = SCALARS[kind];
  const minBytes = scalar?.[0] ?? MIN_BYTES[kind];
  if (minBytes === undefined)
    refuse(source, "L-GGUF-METADATA", `"${key}" has elements of the unknown type ${kind}.`);
  const count = await readLength(cursor, minBytes, `the array "${key}"`);
  const values: GgufValue[] = [];
  for (let i = 0; i < count; i++) {
    if (scalar) {
      if (!cursor.has(minBytes)) await cursor.need(minBytes, `the array "${key}"`);
      values.push(scalar[1](cursor));
    } else values.push(await readValue(source, cursor, key, kind, depth));
  }
  return values;
}

async function readValue(
  source: ByteSource,
  cursor: GgufCursor,
  key: string,
  kind: number,
  depth: number,
): Promise<GgufValue> {
  const scalar = SCALARS[kind];
  if (scalar) {
    await cursor.need(scalar[0], `the value of "${key}"`);
    return scalar[1](cursor);
  }
  if (kind === STRING) return readString(cursor, `the text of "${key}"`);
  if (kind === ARRAY) return readArray(source, cursor, key, depth + 1);
  return refuse(source, "L-GGUF-METADATA", `"${key}" has the unknown type ${kind}. Is the file damaged?`);
}

async function readMetadata(
  source: ByteSource,
  cursor: GgufCursor,
  count: number,
): Promise<Map<string, GgufValue>> {
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < count; i++) {
    const key = await readString(cursor, `metadata key ${i}`);
    if (metadata.has(key)) refuse(source, "L-GGUF-METADATA", `the metadata names "${key}" twice.`);
    await cursor.need(4, `the type of "${key}"`);
    metadata.set(key, await readValue(source, cursor, key, cursor.u32(), 0));
  }
  return metadata;
}

/** One row of the tensor table; its offset still counts from the start of the data. */
async function readTensorInfo(
  source: ByteSource,
  cursor: GgufCursor,
  index: number,
): Promise<GgufTensorInfo> {
  const name = await readString(cursor, `the name of tensor ${index}`);
  await cursor.need(4, `the table entry of "${name}"`);
  const dims = cursor.u32();
  if (dims > MAX_DIMS)
    refuse(source, "L-GGUF-TENSOR", `"${name}" claims ${dims} axes, more than ${MAX_DIMS}.`);
  await cursor.need(8 * dims + 12, `the table entry of "${name}"`);
  const shape = Array.from({ length: dims }, () => Number(cursor.u64())).reverse();
  const typeId = cursor.u32();
  const type = GGUF_TYPES.get(typeId);
  if (!type)
    refuse(
      source,
      "L-GGUF-TYPE",
      `"${name}" has the unknown type ${typeId}. Is the file newer than this reader?`,
    );
  const elements = sizeOf(shape);
  const rowElements = shape.at(-1) ?? 1;
  if (!Number.isSafeInteger(elements) || rowElements % type.blockElements !== 0) {
    refuse(
      source,
      "L-GGUF-TENSOR",
      `"${name}" is ${type.name} ${formatShape(shape)}, but rows of ${type.name} come in blocks of ` +
        `${type.blockElements}. Is the file damaged?`,
    );
  }
  const offset = Number(cursor.u64());
  return { name, type, shape, source, offset, sizeBytes: (elements / type.blockElements) * type.blockBytes };
}

function alignmentOf(source: ByteSource, metadata: ReadonlyMap<string, GgufValue>): number {
  const alignment = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT;
  const isWhole = typeof alignment === "number" && Number.isInteger(alignment) && alignment > 0;
  return isWhole && alignment < 2 ** 31 && (alignment & (alignment - 1)) === 0
    ? alignment
    : refuse(source, "L-GGUF-METADATA", `general.alignment is ${String(alignment)}, wanted a power of two.`);
}

/** Turns offsets into offsets in the file; each tensor must be aligned, inside the file, and not overlap another. */
function placeTensors(
  source: ByteSource,
  infos: readonly GgufTensorInfo[],
  tableEnd: number,
  alignment: number,
): Map<string, GgufTensorInfo> {
  const dataStart = Math.ceil(tableEnd / alignment) * alignment;
  const placed = new Map<string, GgufTensorInfo>();
  let end = 0;
  for (const info of [...infos].sort((a, b) => a.offset - b.offset || a.sizeBytes - b.sizeBytes)) {
    if (placed.has(info.name)) refuse(source, "L-GGUF-TENSOR", `it holds "${info.name}" twice.`);
    if (info.offset % alignment !== 0 || info.offset < end) {
      refuse(
        source,
        "L-GGUF-TENSOR",
        `"${info.name}" starts at ${info.offset} of the data, wanted a multiple of ${alignment} at or after ${end}, ` +
          "where the tensor before it ends. Is the file damaged?",
      );
    }
    end = info.offset + info.sizeBytes;
    if (!(dataStart + end <= source.sizeBytes)) {
      refuse(
        source,
        "L-GGUF-TRUNCATED",
        `"${info.name}" ends at byte ${dataStart + end}, but the file has ${source.sizeBytes}. ` +
          "It is cut short or damaged: fetch it again.",
      );
    }
    placed.set(info.name, { ...info, offset: dataStart + info.offset });
  }
  return placed;
}

async function readVersion(source: ByteSource, cursor: GgufCursor): Promise<number> {
  const start = await source.read(0, Math.min(4, source.sizeBytes));
  if (start.join() !== MAGIC.join()) {
    refuse(
      source,
      "L-GGUF-MAGIC",
      'it does not start with "GGUF", so it is no GGUF file. A model is such a file, a .safetensors file, or a folder.',
    );
  }
  await cursor.need(24, "the header");
  cursor.u32();
  const version = cursor.u32();
  if (version !== 0 && (version & 0xffff) === 0) {
    refuse(source, "L-GGUF-ENDIAN", "is big-endian. Convert it with llama.cpp's gguf_convert_endian.py.");
  }
  if (version !== 2 && version !== 3) {
    refuse(source, "L-GGUF-VERSION", `has version ${version}; 2 and 3 can be read. Convert the model again.`);
  }
  return version;
}

/**
 * Reads the header of a GGUF file, not its tensors. Throws `L-GGUF-MAGIC`, `L-GGUF-ENDIAN`, `L-GGUF-VERSION`,
 * `L-GGUF-TRUNCATED`, `L-GGUF-METADATA`, `L-GGUF-TENSOR` or `L-GGUF-TYPE`.
 */
export async function readGguf(source: ByteSource): Promise<GgufFile> {
  const cursor = new GgufCursor(source);
  const version = await readVersion(source, cursor);
  const tensorCount = Number(cursor.u64());
  const metadataCount = Number(cursor.u64());
  cursor.claim(metadataCount * 13, `a table of ${metadataCount} metadata entries`);
  cursor.claim(tensorCount * 24, `a table of ${tensorCount} tensors`);
  const metadata = await readMetadata(source, cursor, metadataCount);
  const infos: GgufTensorInfo[] = [];
  for (let i = 0; i < tensorCount; i++) infos.push(await readTensorInfo(source, cursor, i));
  const tensors = placeTensors(source, infos, cursor.position, alignmentOf(source, metadata));
  return { source, version, metadata, tensors };
}
