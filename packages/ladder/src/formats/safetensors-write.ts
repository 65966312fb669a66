import { SidenetError } from "@sidenet/tensor";
import { float32ToBfloat16, float32ToFloat16 } from "./float-codec.ts";

/** What the writer takes: Float32Array for F32, and rounded for F16 and BF16; Uint16Array are F16 or BF16 bits as they are. */
export type WritableTensor = { readonly shape: readonly number[] } & (
  | { readonly dtype: "F32"; readonly data: Float32Array }
  | { readonly dtype: "F16" | "BF16"; readonly data: Float32Array | Uint16Array }
  | { readonly dtype: "I32"; readonly data: Int32Array }
  | { readonly dtype: "U8"; readonly data: Uint8Array }
);

const ELEMENT_BYTES = { F32: 4, I32: 4, F16: 2, BF16: 2, U8: 1 } as const;

function stored({ dtype, data }: WritableTensor): Uint8Array {
  const narrow = dtype === "F16" ? float32ToFloat16 : float32ToBfloat16;
  const words = data instanceof Float32Array && dtype !== "F32" ? narrow(data) : data;
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/**
 * A safetensors file as chunks to be written one after the other, without a copy of the data.
 * Tensors stand by element size, then name, so every one is aligned to its type, and equal input gives equal bytes; the
 * header is padded with spaces to a multiple of 8. Throws `L-TENSOR-SHAPE` if a shape and its data differ in size.
 */
export function encodeSafetensors(
  tensors: Readonly<Record<string, WritableTensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array[] {
  const names = Object.keys(tensors).sort(
    (a, b) => ELEMENT_BYTES[tensors[b].dtype] - ELEMENT_BYTES[tensors[a].dtype] || (a < b ? -1 : 1),
  );
  const header: Record<string, unknown> = Object.create(null);
  if (Object.keys(metadata).length > 0) header.__metadata__ = metadata;
  const chunks: Uint8Array[] = [];
  let end = 0;
  for (const name of names) {
    const { dtype, shape, data } = tensors[name];
    if (shape.reduce((product, n) => product * n, 1) !== data.length || name === "__metadata__") {
      throw new SidenetError(
        "L-TENSOR-SHAPE",
        `cannot write "${name}": shape [${shape.join(", ")}] does not hold its ${data.length} elements, ` +
          "or the name is the reserved __metadata__.",
      );
    }
    const bytes = stored(tensors[name]);
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] };
    end += bytes.length;
    chunks.push(bytes);
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(head.length - 8), true);
  head.set(json, 8);
  return [head, ...chunks];
}

/** The chunks joined, for small files and tests. */
export function concatBytes(chunks: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    out.set(chunk, at);
    at += chunk.length;
  }
  return out;
}
