/** From a checkpoint to tensors on a device, one at a time: the host never holds more than one of them. */
import { type Device, type DType, ParamStore, SidenetError } from "@sidenet/tensor";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { decoderParameters } from "./decoder.ts";
import { type Checkpoint, requireTensor } from "./formats/checkpoint.ts";
import { checkSideConfig, type SideConfig } from "./ladder-config.ts";
import { SideNetwork, sideParameters } from "./side-network.ts";

/** How the backbone is stored on the device. */
export type WeightDType = "f32" | "f16";

export interface LoadOptions {
  /** f16 halves the matrices; vectors (norms, biases) stay f32, they are a thousandth of the bytes. Default f32. */
  readonly dtype?: WeightDType;
  /** Called after each tensor with the bytes read so far and in all, as the file stores them. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** What some checkpoints carry beside their weights, and this library computes itself. */
const COMPUTED = /(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$/;

/** Throws `L-TENSOR-UNEXPECTED` for a tensor that the configuration has no place for: ignoring it would change the model. */
function refuseUnexpected(
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  ignored: (name: string) => boolean,
): void {
  const expected = new Set(specs.map((spec) => spec.name));
  const unexpected = [...checkpoint.tensors.keys()].filter((name) => !expected.has(name) && !ignored(name));
  if (unexpected.length === 0) return;
  const shown = unexpected.slice(0, 4).join(", ");
  throw new SidenetError(
    "L-TENSOR-UNEXPECTED",
    `${checkpoint.name}: ${shown}${unexpected.length > 4 ? ` and ${unexpected.length - 4} more` : ""}: the config has no ` +
      "place for this, and without it the model would compute something else. Do the two belong together?",
  );
}

async function loadParameters(
  device: Device,
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  options: {
    category: "weights" | "adapter";
    dtypeOf: (spec: ParameterSpec) => DType;
    onProgress?: LoadOptions["onProgress"];
  },
): Promise<ParamStore> {
  const { category, dtypeOf, onProgress } = options;
  const tensors = specs.map((spec) => requireTensor(checkpoint, spec.name, spec.shape)); // all, before any is uploaded
  const totalBytes = tensors.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const store = new ParamStore(device, category);
  try {
    let doneBytes = 0;
    for (const [i, spec] of specs.entries()) {
      const values = await tensors[i].readFloat32();
      const placement = { dtype: dtypeOf(spec), category, label: spec.name };
      store.set(spec.name, device.tensor(values, spec.shape, placement));
      doneBytes += tensors[i].sizeBytes;
      onProgress?.(doneBytes, totalBytes);
    }
    return store;
  } catch (error) {
    store.dispose();
    throw error;
  }
}

/**
 * The weights of a decoder of this configuration, float or quantized in the file, dequantized here.
 *
 * Throws `L-QUANTIZED` for a bitsandbytes checkpoint, `L-TENSOR-MISSING`, `L-TENSOR-SHAPE` or `L-TENSOR-UNEXPECTED` when
 * config and checkpoint do not fit, all before anything is uploaded; then what the file or the device throws, with
 * nothing left on the device.
 */
export async function loadWeights(
  device: Device,
  config: ModelConfig,
  checkpoint: Checkpoint,
  options: LoadOptions = {},
): Promise<ParamStore> {
  const { dtype = "f32", onProgress } = options;
  if (config.quantization) {
    throw new SidenetError(
      "L-QUANTIZED",
      `${checkpoint.name}: its weights are ${config.quantization.type}, which cannot be loaded yet. Use the float checkpoint.`,
    );
  }
  const specs = decoderParameters(config);
  // A tied head in the file is the embedding table once more: transformers ignores it too.
  const tiedHead = (name: string) => config.tieWordEmbeddings && name === "lm_head.weight";
  refuseUnexpected(checkpoint, specs, (name) => COMPUTED.test(name) || tiedHead(name));
  return loadParameters(device, checkpoint, specs, {
    category: "weights",
    dtypeOf: (spec) => (spec.kind === "linear" ? dtype : "f32"),
    ...(onProgress ? { onProgress } : {}),
  });
}

/** Key of `modelSignature` in the metadata of `adapter_model.safetensors`. */
export const BASE_MODEL_KEY = "base_model";

/** What a backbone must agree in with the one that an adapter was trained beside: "llama d=576 L=30 ...". */
export function modelSignature(config: ModelConfig): string {
  const { family, hiddenSize: d, numHiddenLayers: L, vocabSize: V } = config;
  const heads = `${config.numAttentionHeads}/${config.numKeyValueHeads}x${config.headDim}`;
  return `${family} d=${d} f=${config.intermediateSize} L=${L} V=${V} heads=${heads} rope=${config.rope.theta}`;
}

/**
 * A trained side network from its checkpoint. Its parameters are f32 on the device, whatever the file holds.
 *
 * Throws `L-ADAPTER-CONFIG` when the configuration does not fit the model, `L-ADAPTER-MODEL` when the file says that it
 * belongs to another model, and the `L-TENSOR-...` errors of `loadWeights`.
 */
export async function loadSideNetwork(
  device: Device,
  config: SideConfig,
  model: ModelConfig,
  checkpoint: Checkpoint,
): Promise<SideNetwork> {
  checkSideConfig(config, model);
  const trainedBeside = checkpoint.metadata.get(BASE_MODEL_KEY);
  if (trainedBeside !== undefined && trainedBeside !== modelSignature(model)) {
    throw new SidenetError(
      "L-ADAPTER-MODEL",
      `${checkpoint.name} was trained beside ${config.base_model_name_or_path} (${trainedBeside}), ` +
        `but this model is ${modelSignature(model)}. Give --model that one.`,
    );
  }
  const specs = sideParameters(config, model);
  refuseUnexpected(checkpoint, specs, () => false);
  const parameters = await loadParameters(device, checkpoint, specs, {
    category: "adapter",
    dtypeOf: () => "f32",
  });
  return new SideNetwork(config, model, parameters);
}
