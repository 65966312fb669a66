/** How a backbone's matrices are stored on a device: one decision for loading, planning and checking. */
import { type Device, type DType, ParamStore, type Shape } from "@sidenet/tensor";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { decoderParameters } from "./decoder.ts";
import { nf4Sizes } from "./nf4-weight.ts";

/** Storage of weights that are not quantized. */
export type WeightDType = "f32" | "f16";

/** How the frozen weights are stored. */
export interface BaseStorage {
  /** Of matrices that are not quantized; vectors (norms, biases) stay f32, they are a thousandth of the bytes. Default f32. */
  readonly dtype?: WeightDType;
  /** The seven linear layers of every block in NF4 with double quantization. Default false. */
  readonly quantizeBlocks?: boolean;
  /** Embeddings and head in NF4 as well. Default false. */
  readonly quantizeEmbeddings?: boolean;
}

/** How one parameter is stored. */
export function formatOf(spec: ParameterSpec, storage: BaseStorage): WeightDType | "nf4" {
  if (spec.kind !== "linear") return "f32";
  const inBlock = spec.name.startsWith("model.layers.");
  if (inBlock ? storage.quantizeBlocks : storage.quantizeEmbeddings) return "nf4";
  return storage.dtype ?? "f32";
}

/** Weights of the right shapes and no particular values: for planning, and for memory runs of models that are not at hand. */
export function emptyWeights(device: Device, config: ModelConfig, storage: BaseStorage): ParamStore {
  return ParamStore.filled(device, "weights", (store) => {
    const put = (name: string, shape: Shape, dtype: DType) =>
      store.set(name, device.empty(shape, { dtype, category: "weights", label: name }));
    for (const spec of decoderParameters(config)) {
      const { name, shape } = spec;
      const format = formatOf(spec, storage);
      if (format !== "nf4") put(name, shape, format);
      else for (const part of nf4Sizes(name, shape)) put(part.name, [part.size], part.dtype);
    }
  });
}
