/** Adapters as the contents of their two files (methods.md, 2 and 4). */
import { firstNonFinite, SidenetError } from "@sidenet/tensor";
import { checkNarrowed } from "../formats/float-codec.ts";
import { encodeSafetensors, type FloatType, type WritableTensor } from "../formats/safetensors-write.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Adapter } from "./adapter.ts";
import { adapterConfigJson, BASE_MODEL_KEY, modelSignature } from "./load-adapter.ts";

/** The file names in the folder of an adapter, as in PEFT. */
export const ADAPTER_FILES = {
  config: "adapter_config.json",
  weights: "adapter_model.safetensors",
} as const;

/** The model that an adapter was trained with. */
export interface BaseModel {
  /** For base_model_name_or_path: a path or a hub id. */
  readonly name: string;
  readonly config: ModelConfig;
  /** Whether the linear weights of its blocks were NF4; absent: unknown. */
  readonly quantized?: boolean;
  /** `Decoder.prefixIds` in training. Default: none. */
  readonly prefixIds?: readonly number[];
}

/** Key in the metadata of `adapter_model.safetensors` for the quantization of the backbone in training. */
export const STORAGE_KEY = "base_quantization";

/** Key in the same metadata for the ids of the prefix, with spaces between them. */
export const PREFIX_KEY = "prefix_ids";

/** The contents of an adapter's files. */
export interface EncodedAdapter {
  /** Text of `adapter_config.json`. */
  readonly config: string;
  /** `adapter_model.safetensors`, in chunks. */
  readonly weights: readonly Uint8Array[];
}

/**
 * Reads an adapter from its device and encodes it. Throws `L-ADAPTER-VALUES` for a parameter that is not finite, and
 * `L-CONVERT-RANGE` for one outside the range of `dtype`.
 */
export async function encodeAdapter(
  adapter: Adapter,
  base: BaseModel,
  dtype: FloatType = "F32",
): Promise<EncodedAdapter> {
  const tensors: Record<string, WritableTensor> = {};
  for (const [name, tensor] of adapter.parameters) {
    const data = new Float32Array(await tensor.read());
    if (firstNonFinite(data)) {
      throw new SidenetError(
        "L-ADAPTER-VALUES",
        `${name} holds a value that is not finite, so nothing was written. Train with a lower learning rate.`,
      );
    }
    checkNarrowed(name, data, dtype);
    tensors[name] = { dtype, shape: tensor.shape, data };
  }
  const { prefixIds = [] } = base;
  const prefix = prefixIds.length === 0 ? {} : { [PREFIX_KEY]: prefixIds.join(" ") };
  const storage = base.quantized === undefined ? {} : { [STORAGE_KEY]: base.quantized ? "nf4" : "none" };
  const metadata = { format: "pt", [BASE_MODEL_KEY]: modelSignature(base.config), ...storage, ...prefix };
  return {
    config: `${JSON.stringify(adapterConfigJson(adapter, base.name), null, 2)}\n`,
    weights: encodeSafetensors(tensors, metadata),
  };
}
