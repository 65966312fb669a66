/**
 * Reader of the safetensors format: 8 bytes of header length, a JSON header, then the data.
 * Rules: header at most 100 MB and starting with "{", no key twice, tensors inside the data, neither overlapping nor
 * leaving holes, sizes equal to shape times element size. The data may start at an unaligned offset.
 */
import { float16ToFloat32, formatShape, SidenetError, sizeOf } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type ByteSource, refuse } from "./byte-source.ts";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";
import { asFloat32, asInt32, asUint16, bfloat16ToFloat32 } from "./float-codec.ts";
import { findDuplicateKey } from "./json-keys.ts";

/** Same limit as the format's reference implementation. */
const MAX_HEADER_BYTES = 100_000_000;

/** Bits of every type the format knows; `read` supports F32, F16, BF16, I32 and U8. */
const TYPE_BITS: Readonly<Record<string, number>> = {
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F8_E4M3: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2: 8,
  F8_E5M2FNUZ: 8,
  F8_E8M0: 8,
  BOOL: 8,
  U8: 8,
  I8: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
};

const extent = z.int().nonnegative();
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(extent),
  data_offsets: z.tuple([extent, extent]),
});
const metadataSchema = z.record(z.string(), z.string());

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly start: number;
  readonly stop: number;
}

/** The header's text and the offset at which data starts. */
async function readHeader(source: ByteSource): Promise<{ json: string; dataStart: number }> {
  if (source.sizeBytes < 8) {
    refuse(
      source,
      "L-SAFETENSORS-TRUNCATED",
      `${source.sizeBytes} bytes cannot hold the 8 bytes of header length. Is the download complete?`,
    );
  }
  const head = await source.read(0, 8);
  const declared = new DataView(head.buffer, head.byteOffset, 8).getBigUint64(0, true);
  if (declared > BigInt(MAX_HEADER_BYTES)) {
    refuse(
      source,
      "L-SAFETENSORS-HEADER",
      `the header claims ${declared} bytes, more than the ${MAX_HEADER_BYTES} allowed. Is this a safetensors file?`,
    );
  }
  const length = Number(declared);
  if (8 + length > source.sizeBytes) {
    refuse(
      source,
      "L-SAFETENSORS-TRUNCATED",
      `the header claims ${length} bytes, but only ${source.sizeBytes - 8} follow. Is the download complete?`,
    );
  }
  const bytes = await source.read(8, length);
  try {
    return { json: new TextDecoder("utf-8", { fatal: true }).decode(bytes), dataStart: 8 + length };
  } catch (cause) {
    throw new SidenetError(
      "L-SAFETENSORS-HEADER",
      `${source.name}: the header is not UTF-8 text. Is this a safetensors file?`,
      { cause },
    );
  }
}

function parseHeader(source: ByteSource, json: string): { [key: string]: unknown } {
  let header: unknown;
  try {
    header = json.startsWith("{") ? JSON.parse(json) : null;
  } catch {
    header = null;
  }
  if (typeof header !== "object" || header === null) {
    const shown = JSON.stringify(json.slice(0, 24));
    refuse(
      source,
      "L-SAFETENSORS-HEADER",
      `the header is not a JSON object (it starts ${shown}). Is this a safetensors file?`,
    );
  }
  const twice = findDuplicateKey(json);
  if (twice !== null) {
    refuse(source, "L-SAFETENSORS-HEADER", `the header names "${twice}" twice. Write the file again.`);
  }
  return header as { [key: string]: unknown };
}

function parseEntry(source: ByteSource, name: string, value: unknown): Entry {
  const { dtype, shape, data_offsets } = checked(entrySchema, value, (why) =>
    refuse(
      source,
      "L-SAFETENSORS-HEADER",
      `the entry of "${name}" is malformed: ${why}. Write the file again.`,
    ),
  );
  const bits = Object.hasOwn(TYPE_BITS, dtype) ? TYPE_BITS[dtype] : undefined;
  if (bits === undefined) {
    refuse(
      source,
      "L-SAFETENSORS-HEADER",
      `"${name}" has the unknown type "${dtype}"; known are ${Object.keys(TYPE_BITS).join(", ")}.`,
    );
  }
  const [start, stop] = data_offsets;
  const wantedBytes = (sizeOf(shape) * bits) / 8;
  if (stop - start !== wantedBytes) {
    refuse(
      source,
      "L-SAFETENSORS-OFFSETS",
      `"${name}" is ${dtype} ${formatShape(shape)} = ${wantedBytes} bytes, but its offsets ${start}..${stop} ` +
        `hold ${stop - start}. The header and the data do not belong together: fetch the file again.`,
    );
  }
  return { name, dtype, shape, start, stop };
}

/** Tensors must tile the data exactly: no overlap, no hole, nothing behind the last. */
function checkTiling(source: ByteSource, entries: readonly Entry[], dataBytes: number): void {
  let end = 0;
  let previous = "the start";
  for (const entry of [...entries].sort((a, b) => a.start - b.start || a.stop - b.stop)) {
    if (entry.start !== end) {
      const what = entry.start < end ? "overlaps" : "leaves a hole after";
      refuse(
        source,
        "L-SAFETENSORS-OFFSETS",
        `"${entry.name}" starts at ${entry.start} and ${what} ${previous}, which ends at ${end}. Write the file again.`,
      );
    }
    end = entry.stop;
    previous = `"${entry.name}"`;
  }
  if (end > dataBytes) {
    refuse(
      source,
      "L-SAFETENSORS-TRUNCATED",
      `${previous} ends at byte ${end} of the data, but the file holds ${dataBytes}. Is the download complete?`,
    );
  }
  if (end < dataBytes) {
    refuse(
      source,
      "L-SAFETENSORS-OFFSETS",
      `${dataBytes - end} bytes follow the last tensor. The header and the data do not belong together.`,
    );
  }
}

function decode(
  tensor: CheckpointTensor,
  where: string,
  bytes: Uint8Array,
): Float32Array | Int32Array | Uint8Array {
  switch (tensor.dtype) {
    case "F32":
      return asFloat32(bytes);
    case "F16":
      return float16ToFloat32(asUint16(bytes));
    case "BF16":
      return bfloat16ToFloat32(asUint16(bytes));
    case "I32":
      return asInt32(bytes);
    case "U8":
      return bytes;
    default:
      throw new SidenetError(
        "L-DTYPE",
        `${where}: "${tensor.name}" is ${tensor.dtype}; F32, F16, BF16, I32 and U8 can be read. Convert the checkpoint.`,
      );
  }
}

function lazyTensor(source: ByteSource, entry: Entry, dataStart: number): CheckpointTensor {
  const tensor: CheckpointTensor = {
    name: entry.name,
    dtype: entry.dtype,
    shape: entry.shape,
    sizeBytes: entry.stop - entry.start,
    readBytes: () => source.read(dataStart + entry.start, entry.stop - entry.start),
    async read() {
      return decode(tensor, source.name, await tensor.readBytes());
    },
    async readFloat32() {
      if (tensor.dtype === "F32" || tensor.dtype === "F16" || tensor.dtype === "BF16") {
        return (await tensor.read()) as Float32Array;
      }
      throw new SidenetError(
        "L-DTYPE",
        `${source.name}: "${entry.name}" is ${entry.dtype}, wanted a float tensor (F32, F16 or BF16). ` +
          "Is it quantized, or does it belong to another model?",
      );
    },
  };
  return tensor;
}

/**
 * Opens a safetensors file: reads and checks its header; tensors are read on demand. The checkpoint owns the source.
 * Throws `L-SAFETENSORS-TRUNCATED`, `L-SAFETENSORS-HEADER` or `L-SAFETENSORS-OFFSETS`.
 */
export async function openSafetensors(source: ByteSource): Promise<Checkpoint> {
  const { json, dataStart } = await readHeader(source);
  const { __metadata__, ...rest } = parseHeader(source, json);
  const metadata = checked(metadataSchema, __metadata__ ?? {}, () =>
    refuse(source, "L-SAFETENSORS-HEADER", "__metadata__ must map text to text. Write the file again."),
  );
  const entries = Object.entries(rest).map(([name, value]) => parseEntry(source, name, value));
  checkTiling(source, entries, source.sizeBytes - dataStart);
  return {
    name: source.name,
    tensors: new Map(entries.map((entry) => [entry.name, lazyTensor(source, entry, dataStart)])),
    metadata: new Map(Object.entries(metadata)),
    close: () => source.close(),
  };
}
