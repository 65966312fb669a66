/** Loads a checkpoint to a device, one tensor at a time, so that the host never holds more than one. */

import { type Device, type DType, ParamStore, SidenetError } from "@sidenet/tensor";
import { type Checkpoint, requireTensor } from "../formats/checkpoint.ts";
import { type BaseStorage, formatOf } from "./base-storage.ts";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { decoderParameters, LM_HEAD } from "./decoder.ts";
import { isNf4, nf4Names, nf4Source, quantizeNf4, type WeightSource } from "./nf4-weight.ts";

/** How weights are stored on the device, and a callback for progress. */
export interface LoadOptions extends BaseStorage {
  /** Called after each tensor with the bytes read so far and in total, as stored in the file. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Tensors in some checkpoints that this library computes itself. */
const COMPUTED = /(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$/;

/** Throws `L-TENSOR-UNEXPECTED` for a tensor that the configuration does not use: ignoring it would change the model. */
export function refuseUnexpected(
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
    `${checkpoint.name}: ${shown}${unexpected.length > 4 ? ` and ${unexpected.length - 4} more` : ""}: the config does not use ` +
      "this, and without it the model would compute something else. Do config and weights belong together?",
  );
}

/** A weight that is loaded as `dtype`. Throws `L-TENSOR-MISSING` or `L-TENSOR-SHAPE`. */
export function floatSource(
  checkpoint: Checkpoint,
  { name, shape }: ParameterSpec,
  dtype: DType,
): WeightSource {
  const tensor = requireTensor(checkpoint, name, shape);
  return {
    sizeBytes: tensor.sizeBytes,
    async load(store) {
      const { device, category } = store;
      store.add(name, device.tensor(await tensor.readFloat32(), shape, { dtype, category, label: name }));
    },
  };
}

/** A weight that is quantized to NF4 on the device. */
function quantizedSource(checkpoint: Checkpoint, { name, shape }: ParameterSpec): WeightSource {
  const tensor = requireTensor(checkpoint, name, shape);
  return {
    sizeBytes: tensor.sizeBytes,
    async load(store) {
      quantizeNf4(store, name, await tensor.readFloat32());
      await store.device.synchronize(); // bounds the memory that waits in the queue to be freed
    },
  };
}

/** Loads all sources into a new store; if one fails, nothing is left on the device. */
export async function loadParameters(
  device: Device,
  category: "weights" | "adapter",
  sources: readonly WeightSource[],
  onProgress?: LoadOptions["onProgress"],
): Promise<ParamStore> {
  const totalBytes = sources.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const store = new ParamStore(device, category);
  try {
    let doneBytes = 0;
    for (const source of sources) {
      await source.load(store);
      doneBytes += source.sizeBytes;
      onProgress?.(doneBytes, totalBytes);
    }
    return store;
  } catch (error) {
    store.dispose();
    throw error;
  }
}

/**
 * The parameters of this configuration, and the names of those that the checkpoint holds in NF4. Throws `L-QUANTIZED` when the
 * config says NF4 and no weight is, and `L-TENSOR-UNEXPECTED`.
 */
export function checkCheckpoint(
  config: ModelConfig,
  checkpoint: Checkpoint,
): { specs: ParameterSpec[]; quantized: ReadonlySet<string> } {
  const specs = decoderParameters(config);
  const quantized = new Set(
    config.quantization ? specs.filter(({ name }) => isNf4(checkpoint, name)).map(({ name }) => name) : [],
  );
  if (config.quantization && quantized.size === 0) {
    throw new SidenetError(
      "L-QUANTIZED",
      `${checkpoint.name}: the config says ${config.quantization.type}, but no weight has an NF4 state. Do the two belong together?`,
    );
  }
  // A tied head in the file is the embedding table once more: transformers ignores it too.
  const tiedHead = (name: string) => config.tieWordEmbeddings && name === LM_HEAD;
  const parts = new Set([...quantized].flatMap(nf4Names));
  refuseUnexpected(checkpoint, specs, (name) => COMPUTED.test(name) || tiedHead(name) || parts.has(name));
  return { specs, quantized };
}

/**
 * Loads the weights of a decoder in the storage formats of `options`. Weights that a checkpoint holds in bitsandbytes' NF4
 * are loaded as they are; other quantized types are dequantized first.
 *
 * Throws `L-QUANTIZED` when the config says NF4 and no weight is, `L-NF4` for a damaged weight, `L-TENSOR-MISSING`,
 * `L-TENSOR-SHAPE` or `L-TENSOR-UNEXPECTED` when config and checkpoint do not fit, all before anything is uploaded; then what
 * the file or the device throws, with nothing left on the device.
 */
export async function loadWeights(
  device: Device,
  config: ModelConfig,
  checkpoint: Checkpoint,
  options: LoadOptions = {},
): Promise<ParamStore> {
  const { onProgress } = options;
  const { specs, quantized } = checkCheckpoint(config, checkpoint);
  const sources: WeightSource[] = []; // all are checked before any is uploaded
  for (const spec of specs) {
    const { name, shape } = spec;
    const format = formatOf(spec, options);
    if (quantized.has(name)) sources.push(await nf4Source(checkpoint, name, shape));
    else if (format === "nf4") sources.push(quantizedSource(checkpoint, spec));
    else sources.push(floatSource(checkpoint, spec, format));
  }
  return loadParameters(device, "weights", sources, onProgress);
}
