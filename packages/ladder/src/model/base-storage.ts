/** The formats in which a backbone is stored on a device, for loading, planning and checking alike. */
import { type Device, type DType, ParamStore, type Shape } from "@sidenet/tensor";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { decoderParameters } from "./decoder.ts";
import { nf4Sizes } from "./nf4-weight.ts";

/** Dtype of weights that are not quantized. */
export type WeightDType = "f32" | "f16";

/** How the frozen weights are stored. */
export interface BaseStorage {
  /** Dtype of matrices that are not quantized; norms and biases, a thousandth of the bytes, stay f32. Default f32. */
  readonly dtype?: WeightDType;
  /** Store the seven linear layers of every block in NF4 with double quantization. Default false. */
  readonly quantizeBlocks?: boolean;
  /** Store the embedding table and lm_head in NF4 as well. Default false. */
  readonly quantizeEmbeddings?: boolean;
}

/** Whether a parameter is the weight of a linear layer of a block. */
export const isBlockMatrix = ({ kind, name }: ParameterSpec): boolean =>
  kind === "linear" && name.startsWith("model.layers.");

/** The format of one parameter. */
export function formatOf(spec: ParameterSpec, storage: BaseStorage): WeightDType | "nf4" {
  if (spec.kind !== "linear") return "f32";
  if (isBlockMatrix(spec) ? storage.quantizeBlocks : storage.quantizeEmbeddings) return "nf4";
  return storage.dtype ?? "f32";
}

/**
 * Uninitialized weights of the right shapes, for plans and for measurements that do not depend on values. Blocks that the model's
 * files hold in NF4 are loaded as they are, whatever is asked for.
 */
export function emptyWeights(device: Device, config: ModelConfig, wanted: BaseStorage): ParamStore {
  const storage = config.quantization ? { ...wanted, quantizeBlocks: true } : wanted;
  return ParamStore.filled(device, "weights", (store) => {
    const put = (name: string, shape: Shape, dtype: DType) =>
      store.add(name, device.empty(shape, { dtype, category: "weights", label: name }));
    for (const spec of decoderParameters(config)) {
      const { name, shape } = spec;
      const format = formatOf(spec, storage);
      if (format !== "nf4") put(name, shape, format);
      else for (const part of nf4Sizes(name, shape)) put(part.name, [part.size], part.dtype);
    }
  });
}
