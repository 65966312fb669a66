/** A GGUF file under the names, shapes and row order of a Hugging Face checkpoint. */
import { formatShape, SidenetError } from "@sidenet/tensor";
import type { ModelConfig } from "../model/config.ts";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";
import type { GgufFile, GgufTensorInfo } from "./gguf.ts";
import { huggingFaceName, ROPE_FACTORS } from "./gguf-names.ts";
import { dequantize } from "./gguf-quants.ts";

/**
 * The place of a row of q or k in a GGUF file. llama.cpp's rope pairs neighbours there, so its converter stores, within each head
 * of the "llama" architecture, row i + h·c/2 (h = 0, 1) as row 2i + h.
 */
function storedRow(row: number, headDim: number): number {
  const inHead = row % headDim;
  const half = headDim / 2;
  return row - inHead + (inHead < half ? 2 * inHead : 2 * (inHead - half) + 1);
}

/** Rows are whole blocks of any quantized type, so the bytes move and no value changes. */
function moveRows(
  bytes: Uint8Array,
  rows: number,
  move: (row: number) => readonly [from: number, to: number],
): Uint8Array {
  const rowBytes = bytes.byteLength / rows;
  const out = new Uint8Array(bytes.byteLength);
  for (let row = 0; row < rows; row++) {
    const [from, to] = move(row);
    out.set(bytes.subarray(from * rowBytes, (from + 1) * rowBytes), to * rowBytes);
  }
  return out;
}

/** Undoes the row order that llama.cpp's converter gives q and k. */
export const unpermuteRows = (bytes: Uint8Array, heads: number, headDim: number): Uint8Array =>
  moveRows(bytes, heads * headDim, (row) => [storedRow(row, headDim), row]);

/** The inverse of `unpermuteRows`. */
export const permuteRows = (bytes: Uint8Array, heads: number, headDim: number): Uint8Array =>
  moveRows(bytes, heads * headDim, (row) => [row, storedRow(row, headDim)]);

/** Heads whose rows a GGUF file holds in llama.cpp's order, for the tensor of this Hugging Face name; 0 for none. */
export function permutedHeads(name: string, config: ModelConfig): number {
  if (config.family !== "llama" && config.family !== "mistral") return 0; // both are "llama" there
  const match = /\.self_attn\.([qk])_proj\./.exec(name);
  if (!match) return 0;
  return match[1] === "q" ? config.numAttentionHeads : config.numKeyValueHeads;
}

function lazyTensor(
  gguf: GgufFile,
  info: GgufTensorInfo,
  name: string,
  config: ModelConfig,
): CheckpointTensor {
  const heads = permutedHeads(name, config);
  if (heads > 0 && info.shape[0] !== heads * config.headDim) {
    throw new SidenetError(
      "L-TENSOR-SHAPE",
      `${gguf.source.name}: "${info.name}" has ${info.shape[0]} rows, but ${heads} heads of ${config.headDim} need ` +
        `${heads * config.headDim}. The metadata and the weights do not belong together.`,
    );
  }
  const readBytes = async (): Promise<Uint8Array> => {
    const bytes = await info.source.read(info.offset, info.sizeBytes);
    return heads > 0 ? unpermuteRows(bytes, heads, config.headDim) : bytes;
  };
  const readFloat32 = async () => dequantize(info.type.name, await readBytes(), info.name);
  const { shape, sizeBytes } = info;
  return { name, dtype: info.type.name, shape, sizeBytes, readBytes, read: readFloat32, readFloat32 };
}

/**
 * The file's tensors under Hugging Face names, q and k rows in rotate-half order; the checkpoint owns the source.
 * Throws `L-GGUF-TENSOR` on a tensor that a block of this family does not have, `L-TENSOR-SHAPE` on q or k of wrong size.
 */
export function checkpointFromGguf(gguf: GgufFile, config: ModelConfig): Checkpoint {
  const tensors = new Map<string, CheckpointTensor>();
  for (const info of gguf.tensors.values()) {
    if (info.name === ROPE_FACTORS) continue;
    const name = huggingFaceName(info.name);
    if (name === null) {
      throw new SidenetError(
        "L-GGUF-TENSOR",
        `${gguf.source.name}: "${info.name}" ${formatShape(info.shape)} has no place in a ${config.family} model. ` +
          "Is it another architecture under this name?",
      );
    }
    tensors.set(name, lazyTensor(gguf, info, name, config));
  }
  const texts = [...gguf.metadata].filter((entry): entry is [string, string] => typeof entry[1] === "string");
  return { name: gguf.source.name, tensors, metadata: new Map(texts), close: () => gguf.source.close() };
}
