/** A model's parameters for conversion, each read from its file only when it is written to another. */
import { type Device, SidenetError } from "@sidenet/tensor";
import { type Checkpoint, requireTensor } from "../formats/checkpoint.ts";
import type { ParameterSpec } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { LM_HEAD } from "../model/decoder.ts";
import { checkCheckpoint } from "../model/load-weights.ts";
import { readNf4 } from "../model/nf4-file.ts";
import type { Adapter } from "./adapter.ts";
import { Lora } from "./lora.ts";

/** One parameter under its Hugging Face name. */
export interface ModelTensor extends ParameterSpec {
  /** The type in its file: "F16", "Q4_1", "NF4", ... */
  readonly storedAs: string;
  /** Values, row-major. */
  readonly read: () => Promise<Float32Array>;
}

/**
 * Every parameter of a model, in the order of the forward pass; nothing is read yet. `device` dequantizes NF4. Throws
 * `L-QUANTIZED`, `L-TENSOR-UNEXPECTED`, `L-TENSOR-MISSING` or `L-TENSOR-SHAPE` when config and checkpoint do not fit.
 */
export function modelTensors(config: ModelConfig, checkpoint: Checkpoint, device: Device): ModelTensor[] {
  const { specs, quantized } = checkCheckpoint(config, checkpoint);
  return specs.map((spec): ModelTensor => {
    const { name, shape } = spec;
    if (quantized.has(name)) {
      return { ...spec, storedAs: "NF4", read: () => readNf4(device, checkpoint, name, shape) };
    }
    const tensor = requireTensor(checkpoint, name, shape);
    return { ...spec, storedAs: tensor.dtype, read: () => tensor.readFloat32() };
  });
}

/** The tensors with W + scale · B · A in place of each adapted W. */
function mergeLora(tensors: readonly ModelTensor[], lora: Lora): ModelTensor[] {
  const updates = new Map(lora.updates().map((update) => [update.weight, update]));
  return tensors.map((tensor) => {
    const update = updates.get(tensor.name);
    if (!update) return tensor;
    const read = async (): Promise<Float32Array> => {
      const { device } = update.a;
      const values = await tensor.read();
      using delta = device.scope(() =>
        device.ops.scale(device.ops.matmul(update.b, update.a), { factor: update.scale }),
      );
      const change = await delta.read();
      return values.map((value, i) => value + change[i]);
    };
    return { ...tensor, read };
  });
}

/**
 * The model with an adapter merged into its weights, and its configuration: LoRA's updates are added, a trained head replaces
 * the model's. Throws `L-MERGE` for a side network, which adds a computation and cannot be merged.
 */
export function mergeAdapter(
  config: ModelConfig,
  tensors: readonly ModelTensor[],
  adapter: Adapter,
): { config: ModelConfig; tensors: ModelTensor[] } {
  if (adapter instanceof Lora) return { config, tensors: mergeLora(tensors, adapter) };
  if (adapter.side || !adapter.parameters.has(LM_HEAD)) {
    const why = adapter.side ? "it is a network beside the model" : "only LoRA and a trained head are";
    throw new SidenetError(
      "L-MERGE",
      `an adapter of the method "${adapter.method}" cannot be merged into the model's weights: ${why}. Export it as an ` +
        "adapter: docs/adapter-format.md says how others read it.",
    );
  }
  const head = adapter.parameters.get(LM_HEAD);
  const read = async () => (await head.read()) as Float32Array;
  const own: ModelTensor = { name: LM_HEAD, shape: head.shape, kind: "linear", storedAs: "F32", read };
  return {
    config: { ...config, tieWordEmbeddings: false },
    tensors: [...tensors.filter(({ name }) => name !== LM_HEAD), own],
  };
}
