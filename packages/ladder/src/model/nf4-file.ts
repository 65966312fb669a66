/** Reading and writing NF4 weights of bitsandbytes checkpoints, for conversion. */
import { type Device, NF4_BLOCKS, NF4_MAP_AT, NF4_OFFSET_AT, ParamStore, sizeOf } from "@sidenet/tensor";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { storedBytes, type TensorHeader } from "../formats/safetensors-write.ts";
import {
  ABSMAX,
  type DoubleNf4,
  denseMatrix,
  MAP,
  NESTED_ABSMAX,
  NESTED_MAP,
  nf4Source,
  quantizeNf4,
  SCALES,
  STATE,
  TABLE,
} from "./nf4-weight.ts";

/** The f32 values of an NF4 weight of a checkpoint, dequantized on a device. Throws what `nf4Source` throws. */
export async function readNf4(
  device: Device,
  checkpoint: Checkpoint,
  weight: string,
  shape: readonly number[],
): Promise<Float32Array> {
  const source = await nf4Source(checkpoint, weight, shape);
  using store = new ParamStore(device, "weights");
  await source.load(store);
  using values = device.scope(() => denseMatrix(store, weight, shape));
  return (await values.read()) as Float32Array;
}

/** The tensors of a double-quantized weight in a bitsandbytes checkpoint, in an order that keeps all of them aligned. */
export function nf4Headers(weight: string, shape: readonly number[]): TensorHeader[] {
  const elements = sizeOf(shape);
  const blocks = Math.ceil(elements / NF4_BLOCKS.block);
  const codeBytes = Math.ceil(elements / 2);
  return [
    { name: weight + NESTED_ABSMAX, dtype: "F32", shape: [Math.ceil(blocks / NF4_BLOCKS.nestedBlock)] },
    { name: weight + NESTED_MAP, dtype: "F32", shape: [256] },
    { name: weight + MAP, dtype: "F32", shape: [16] },
    { name: weight, dtype: "U8", shape: [codeBytes, 1] },
    { name: weight + ABSMAX, dtype: "U8", shape: [blocks] },
    { name: weight + STATE, dtype: "U8", shape: [stateBytes(shape, codeBytes + blocks)] },
  ];
}

/** Size of the state's JSON, padded with spaces so that the next tensor is aligned to 4 bytes. */
function stateBytes(shape: readonly number[], bytesBefore: number): number {
  const longest = stateText(shape, "bfloat16", -1.2345678901234567e-100).length + 4;
  return longest + ((4 - ((bytesBefore + longest) % 4)) % 4);
}

const stateText = (shape: readonly number[], dtype: string, offset: number): string =>
  JSON.stringify({
    quant_type: "nf4",
    blocksize: NF4_BLOCKS.block,
    dtype,
    shape,
    nested_blocksize: NF4_BLOCKS.nestedBlock,
    nested_dtype: "float32",
    nested_offset: offset,
  });

/** Quantizes a weight on a device and reads the result. Throws `L-NF4-FINITE`. */
export async function quantizedValues(
  device: Device,
  weight: string,
  values: Float32Array,
): Promise<DoubleNf4> {
  using store = new ParamStore(device, "weights");
  quantizeNf4(store, weight, values);
  const [codes, table, absmax, scales] = await Promise.all(
    ["", TABLE, ABSMAX, SCALES].map((part) => store.get(weight + part).read()),
  );
  return { codes, table, absmax, scales } as DoubleNf4;
}

/**
 * The bytes of the tensors of `nf4Headers`, in that order. `dtype` is the type to which bitsandbytes dequantizes the weight.
 */
export function nf4Bytes(
  weight: string,
  shape: readonly number[],
  { codes, table, absmax, scales }: DoubleNf4,
  dtype: string,
): Uint8Array[] {
  const f32 = (data: Float32Array) => storedBytes({ dtype: "F32", data });
  const headers = nf4Headers(weight, shape);
  const state = new Uint8Array(headers[5].shape[0]).fill(0x20);
  new TextEncoder().encodeInto(stateText(shape, dtype, table[NF4_OFFSET_AT]), state);
  return [
    f32(absmax),
    f32(table.slice(NF4_MAP_AT, NF4_OFFSET_AT)),
    f32(table.slice(0, NF4_MAP_AT)),
    codes,
    scales,
    state,
  ];
}
