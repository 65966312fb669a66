/** Linear weights in NF4: as bitsandbytes stores them in a checkpoint, and as tensors on a device. */
import {
  firstNonFinite,
  formatShape,
  type HostArray,
  NF4_BLOCKS,
  NF4_OFFSET_AT,
  nf4Table,
  type Ops,
  type ParamStore,
  SidenetError,
  sameShape,
  sizeOf,
  type Tensor,
} from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type Checkpoint, requireTensor } from "../formats/checkpoint.ts";
import type { Projection, WeightRange } from "./projection.ts";

/** Suffixes of a weight's tensors in a `ParamStore`; the codes have the weight's own name. */
export const TABLE = ".table";
export const ABSMAX = ".absmax";
export const SCALES = ".scales";
/** Suffixes of further tensors in a checkpoint. */
export const STATE = ".quant_state.bitsandbytes__nf4";
export const MAP = ".quant_map";
export const NESTED_ABSMAX = ".nested_absmax";
export const NESTED_MAP = ".nested_quant_map";

/** Size of the table with double quantization: 16 levels, the map of 8-bit scales, and the offset. */
const DOUBLE_TABLE = NF4_OFFSET_AT + 1;

const PARTS = [ABSMAX, MAP, NESTED_ABSMAX, NESTED_MAP, STATE];

/** The names that the tensors of a quantized weight may have in a checkpoint. */
export const nf4Names = (weight: string): string[] => [weight, ...PARTS.map((part) => weight + part)];

/** Whether a checkpoint holds the weight in NF4. */
export const isNf4 = (checkpoint: Checkpoint, weight: string): boolean =>
  checkpoint.tensors.has(weight + STATE);

const size = z.int().positive();

const stateSchema = z.looseObject({
  quant_type: z.literal("nf4"),
  blocksize: size,
  shape: z.array(z.int().nonnegative()),
  nested_blocksize: size.optional(),
  nested_offset: z.number().optional(),
});

async function readState(checkpoint: Checkpoint, weight: string): Promise<z.infer<typeof stateSchema>> {
  const text = new TextDecoder().decode(await requireTensor(checkpoint, weight + STATE).readBytes());
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    json = null;
  }
  const where = `${checkpoint.name}: ${weight}${STATE}`;
  const refuse = (why: string) => new SidenetError("L-NF4", `${where}: ${why}. Is the file damaged?`);
  return checked(stateSchema, json, refuse);
}

/** A weight that can be loaded from a checkpoint: it was checked, but not read. */
export interface WeightSource {
  readonly sizeBytes: number;
  /** Uploads its tensors. */
  readonly load: (store: ParamStore) => Promise<void>;
}

/**
 * The NF4 tensors of a weight [out, in] in a checkpoint, to be loaded without requantizing. Throws `L-NF4` where its state does
 * not fit, and `L-TENSOR-MISSING` or `L-TENSOR-SHAPE`.
 */
export async function nf4Source(
  checkpoint: Checkpoint,
  weight: string,
  shape: readonly number[],
): Promise<WeightSource> {
  const state = await readState(checkpoint, weight);
  if (!sameShape(state.shape, shape)) {
    throw new SidenetError(
      "L-TENSOR-SHAPE",
      `${checkpoint.name}: "${weight}" was quantized as ${formatShape(state.shape)}, but the config wants ` +
        `${formatShape(shape)}. Do the config and the weights belong to the same model?`,
    );
  }
  const elements = sizeOf(shape);
  const blocks = Math.ceil(elements / state.blocksize);
  const isDouble = state.nested_blocksize !== undefined;
  const wanted: [string, number[]][] = [
    [ABSMAX, [blocks]],
    [MAP, [16]],
  ];
  if (isDouble) {
    wanted.push([NESTED_ABSMAX, [Math.ceil(blocks / state.nested_blocksize!)]], [NESTED_MAP, [256]]);
    if (!Number.isFinite(state.nested_offset)) {
      throw new SidenetError("L-NF4", `${checkpoint.name}: ${weight}${STATE} has no nested_offset.`);
    }
  }
  const codes = requireTensor(checkpoint, weight);
  checkBytes(checkpoint, codes, weight, Math.ceil(elements / 2));
  const parts = wanted.map(([name, extent]) => requireTensor(checkpoint, weight + name, extent));
  checkType(checkpoint, parts[0].dtype, weight + ABSMAX, isDouble ? "U8" : "F32");
  return {
    sizeBytes: [codes, ...parts].reduce((sum, part) => sum + part.sizeBytes, 0),
    async load(store) {
      const [absmax, levels, nested, map] = await Promise.all(
        parts.map((part, i) => (i === 0 && isDouble ? part.read() : part.readFloat32())),
      );
      for (const [i, values] of [absmax, levels, nested, map].entries()) {
        if (values) checkFinite(`${checkpoint.name}: ${weight}${wanted[i][0]}`, values);
      }
      const table = nf4Table({
        double: isDouble,
        levels,
        ...(isDouble && { map, offset: state.nested_offset! }),
      });
      uploadNf4(store, weight, {
        codes: await codes.readBytes(),
        table,
        absmax: isDouble ? nested : absmax,
        scales: isDouble ? absmax : null,
      });
    },
  };
}

/** Throws `L-NF4-FINITE`. */
export function checkFinite(name: string, values: HostArray): void {
  const found = firstNonFinite(values);
  if (found === null) return;
  throw new SidenetError(
    "L-NF4-FINITE",
    `${name}: value ${found.index} is ${found.value}, which NF4 cannot represent. Is the checkpoint damaged?`,
  );
}

function checkType(checkpoint: Checkpoint, dtype: string, name: string, wanted: string): void {
  if (dtype === wanted) return;
  throw new SidenetError("L-NF4", `${checkpoint.name}: "${name}" is ${dtype}, wanted ${wanted}.`);
}

function checkBytes(
  checkpoint: Checkpoint,
  { dtype, shape }: { dtype: string; shape: readonly number[] },
  name: string,
  bytes: number,
): void {
  checkType(checkpoint, dtype, name, "U8");
  if (sizeOf(shape) === bytes) return;
  throw new SidenetError(
    "L-TENSOR-SHAPE",
    `${checkpoint.name}: "${name}" is ${formatShape(shape)}, the config wants ${bytes} bytes of codes.`,
  );
}

/** Names, sizes and dtypes of the tensors of a double-quantized weight in a `ParamStore`. */
export function nf4Sizes(
  weight: string,
  shape: readonly number[],
): { name: string; size: number; dtype: "u8" | "f32" }[] {
  const elements = sizeOf(shape);
  const blocks = Math.ceil(elements / NF4_BLOCKS.block);
  return [
    { name: weight, size: Math.ceil(elements / 2), dtype: "u8" },
    { name: weight + TABLE, size: DOUBLE_TABLE, dtype: "f32" },
    { name: weight + ABSMAX, size: Math.ceil(blocks / NF4_BLOCKS.nestedBlock), dtype: "f32" },
    { name: weight + SCALES, size: blocks, dtype: "u8" },
  ];
}

/** An NF4 weight on the host. Without double quantization `scales` is null and `absmax` has one f32 per block. */
export interface Nf4Values {
  readonly codes: Uint8Array;
  readonly table: Float32Array;
  readonly absmax: ArrayLike<number>;
  readonly scales: ArrayLike<number> | null;
}

/** A double-quantized NF4 weight on the host. */
export interface DoubleNf4 extends Nf4Values {
  readonly absmax: Float32Array;
  readonly scales: Uint8Array;
}

/** Uploads the tensors of a weight. */
export function uploadNf4(
  store: ParamStore,
  weight: string,
  { codes, table, absmax, scales }: Nf4Values,
): void {
  const { device, category } = store;
  const put = (name: string, values: ArrayLike<number>, dtype: "u8" | "f32") =>
    store.add(name, device.tensor(values, [values.length], { dtype, category, label: name }));
  put(weight, codes, "u8");
  put(weight + TABLE, table, "f32");
  put(weight + ABSMAX, absmax, "f32");
  if (scales) put(weight + SCALES, scales, "u8");
}

/** The block size, a power of two from `smallest` on, that divides `count` elements into `blocks` blocks. */
function blockOf(count: number, blocks: number, smallest: number): number {
  let block = smallest;
  while (Math.ceil(count / block) > blocks) block *= 2;
  return block;
}

/** An NF4 weight on a device. */
export interface Nf4Weight {
  readonly codes: Tensor;
  readonly table: Tensor;
  readonly absmax: Tensor;
  readonly scales: Tensor | null;
  readonly attrs: { readonly block: number; readonly nestedBlock: number };
}

/** The tensors of an NF4 weight of `count` elements, with block sizes inferred from their lengths; null if it is not in NF4. */
export function nf4Parts(store: ParamStore, weight: string, count: number): Nf4Weight | null {
  const [codes, table, absmax, scales] = ["", TABLE, ABSMAX, SCALES].map((part) => store.find(weight + part));
  if (!codes || !table || !absmax) return null;
  const blocks = (scales ?? absmax).size;
  const block = blockOf(count, blocks, 8);
  const nestedBlock = scales ? blockOf(blocks, absmax.size, 4) : 256;
  return { codes, table, absmax, scales, attrs: { block, nestedBlock } };
}

/**
 * The linear layer x · Wᵀ + bias of an NF4 weight W [out, in], which the matmul dequantizes; null if the weight is not in NF4.
 */
export function nf4Projection(
  store: ParamStore,
  weight: string,
  [out, inner]: readonly number[],
  bias: Tensor | null,
): Projection | null {
  const parts = nf4Parts(store, weight, out * inner);
  if (!parts) return null;
  const { codes, table, absmax, scales, attrs } = parts;
  const layer =
    (extent: number, part = {}) =>
    (ops: Ops, x: Tensor) =>
      ops.nf4Linear(x, codes, table, absmax, scales, bias, { out: extent, ...part, ...attrs });
  if (bias) return layer(out);
  const whole = [out, inner];
  return Object.assign(layer(out), {
    rows: (ops: Ops, x: Tensor, { start, count }: WeightRange) =>
      layer(count, { whole, from: [start, 0] })(ops, x),
    columns: (ops: Ops, x: Tensor, { start }: WeightRange) => layer(out, { whole, from: [0, start] })(ops, x),
  });
}

/** An f32 copy of a weight in any storage format. Throws `T-NAME` where it is missing. */
export function denseMatrix(store: ParamStore, weight: string, shape: readonly number[]): Tensor {
  const { ops } = store.device;
  const parts = nf4Parts(store, weight, sizeOf(shape));
  if (!parts) return ops.cast(store.get(weight), { to: "f32" });
  const { codes, table, absmax, scales, attrs } = parts;
  return ops.nf4Dequantize(codes, table, absmax, scales, { shape, ...attrs });
}

/** Elements of a weight that are quantized at a time: 16 MiB in f32. */
const PART = 2 ** 22;

/**
 * Quantizes a weight on the device of a store, with double quantization, and puts its tensors into the store. It works in parts,
 * so that only one part at a time is on the device in f32. Throws `L-NF4-FINITE`, naming the weight, for a value that is not
 * finite.
 */
export function quantizeNf4(store: ParamStore, weight: string, values: Float32Array): void {
  checkFinite(weight, values);
  const { device } = store;
  const { ops } = device;
  const parts = device.scope(() => {
    const table = device.tensor(nf4Table(), [DOUBLE_TABLE], { label: weight + TABLE });
    const codes = device.empty([Math.ceil(values.length / 2)], { dtype: "u8", label: weight });
    const absmax = device.empty([Math.ceil(values.length / NF4_BLOCKS.block)], { label: weight + ABSMAX });
    for (let at = 0; at < values.length; at += PART) {
      device.scope(() => {
        const part = values.subarray(at, at + PART);
        ops.nf4QuantizePart(codes, absmax, device.tensor(part, [part.length]), table, { at });
      });
    }
    const [scales, nested] = ops.nf4QuantizeScales(absmax, table);
    return [codes, table, nested, scales];
  });
  for (const [i, part] of ["", TABLE, ABSMAX, SCALES].entries()) store.add(weight + part, parts[i]);
}
