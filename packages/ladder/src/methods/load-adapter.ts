/** Adapters of every method from the contents of their two files. */
import { type Device, type ParamStore, SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { type Checkpoint, requireTensor } from "../formats/checkpoint.ts";
import type { ParameterSpec } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { floatSource, loadParameters, refuseUnexpected } from "../model/load-weights.ts";
import { type Adapter, METHODS } from "./adapter.ts";
import { HeadTuning, headParameters } from "./head-tuning.ts";
import { Lora, loraParameters } from "./lora.ts";
import { type LoraConfig, parseLoraConfig } from "./lora-config.ts";
import { parseSideConfig, type SideConfig, sideParameters } from "./side-config.ts";
import { SideNetwork } from "./side-network.ts";

const weightsSchema = z.object({ method: z.enum(["head", "full"]), base_model_name_or_path: z.string() });
/**
 * The `adapter_config.json` of a trained head, or of full tuning.
 * @interface
 */
export type WeightsConfig = z.infer<typeof weightsSchema>;

/** A parsed `adapter_config.json`. */
export type AdapterConfig =
  | { readonly kind: "side"; readonly config: SideConfig }
  | { readonly kind: "lora"; readonly config: LoraConfig }
  | { readonly kind: "head" | "full"; readonly config: WeightsConfig };

const kindSchema = z.looseObject({ method: z.string().optional(), peft_type: z.string().optional() });

/**
 * Parses an `adapter_config.json`: PEFT's LoRA, or one with a `method` of `METHODS`. Throws `L-ADAPTER-CONFIG`, naming each
 * wrong field, or the kind of adapter if that is unknown.
 */
export function parseAdapterConfig(json: unknown, source: string): AdapterConfig {
  const { method, peft_type: peft } = kindSchema.safeParse(json).data ?? {};
  if (peft === "LORA") return { kind: "lora", config: parseLoraConfig(json, source) };
  if (peft !== undefined) {
    throw new SidenetError(
      "L-ADAPTER-CONFIG",
      `${source}: PEFT adapters of type ${peft} are not supported, LORA is.`,
    );
  }
  if (method !== undefined && !(METHODS as readonly string[]).includes(method)) {
    throw new SidenetError(
      "L-ADAPTER-CONFIG",
      `${source}: the method "${method}" is none of ${METHODS.join(", ")}. For a method of your own, make its adapter and read ` +
        "its parameters with restoreAdapter.",
    );
  }
  const weights = weightsSchema.safeParse(json);
  if (weights.success) return { kind: weights.data.method, config: weights.data };
  return { kind: "side", config: parseSideConfig(json, source) };
}

/** The content of `adapter_config.json`; `baseModel` is used for adapters that do not hold the name of their model. */
export function adapterConfigJson(adapter: Adapter, baseModel: string): object {
  return adapter.configJson?.(baseModel) ?? { method: adapter.method, base_model_name_or_path: baseModel };
}

/** Key of `modelSignature` in the metadata of `adapter_model.safetensors`. */
export const BASE_MODEL_KEY = "base_model";

/** The family and sizes in which a backbone must equal the one that an adapter was trained with: "llama d=576 L=30 ...". */
export function modelSignature(config: ModelConfig): string {
  const { family, hiddenSize: d, numHiddenLayers: L, vocabSize: V } = config;
  const heads = `${config.numAttentionHeads}/${config.numKeyValueHeads}x${config.headDim}`;
  return `${family} d=${d} f=${config.intermediateSize} L=${L} V=${V} heads=${heads} rope=${config.rope.theta}`;
}

function specsOf(adapter: AdapterConfig, model: ModelConfig): ParameterSpec[] {
  if (adapter.kind === "lora") return loraParameters(adapter.config, model);
  return adapter.kind === "side" ? sideParameters(adapter.config, model) : headParameters(model);
}

function assemble(adapter: AdapterConfig, model: ModelConfig, parameters: ParamStore): Adapter {
  if (adapter.kind === "lora") return new Lora(adapter.config, model, parameters);
  if (adapter.kind === "side") return new SideNetwork(adapter.config, model, parameters);
  return new HeadTuning(model, parameters);
}

/** Throws `L-ADAPTER-MODEL` when an adapter was trained with a model of other sizes; `baseModel` is the name of that model. */
export function checkTrainedWith(baseModel: string, model: ModelConfig, checkpoint: Checkpoint): void {
  const trainedWith = checkpoint.metadata.get(BASE_MODEL_KEY);
  if (trainedWith === undefined || trainedWith === modelSignature(model)) return;
  throw new SidenetError(
    "L-ADAPTER-MODEL",
    `${checkpoint.name} was trained with ${baseModel} (${trainedWith}), ` +
      `but this model is ${modelSignature(model)}. Give that model to --model.`,
  );
}

/**
 * Overwrites the parameters of an adapter of one's own with those of its checkpoint. Throws `L-TENSOR-MISSING`,
 * `L-TENSOR-SHAPE` and `L-TENSOR-UNEXPECTED`, and changes nothing then.
 */
export async function assignAdapter({ parameters }: Adapter, checkpoint: Checkpoint): Promise<void> {
  const specs = [...parameters].map(([name, { shape }]): ParameterSpec => ({ name, shape, kind: "linear" }));
  refuseUnexpected(checkpoint, specs, () => false);
  const tensors = specs.map(({ name, shape }) => requireTensor(checkpoint, name, shape));
  for (const [i, [, parameter]] of [...parameters].entries())
    parameters.device.assign(parameter, await tensors[i].readFloat32());
}

/**
 * A trained adapter from its checkpoint. Its parameters are f32 on the device, whatever the dtype in the file.
 *
 * Throws `L-ADAPTER-CONFIG` when the configuration does not fit the model, `L-ADAPTER-MODEL` when the file says that it
 * belongs to another model, `L-FULL` for all weights of a model, and the `L-TENSOR-...` errors of `loadWeights`.
 */
export async function loadAdapter(
  device: Device,
  adapter: AdapterConfig,
  model: ModelConfig,
  checkpoint: Checkpoint,
): Promise<Adapter> {
  checkTrainedWith(adapter.config.base_model_name_or_path, model, checkpoint);
  if (adapter.kind === "full") {
    throw new SidenetError(
      "L-FULL",
      `${checkpoint.name} holds all weights of a model, not an adapter beside one. Write the model with sidenet export ` +
        "--model, --adapter and --output, and give that output to --model.",
    );
  }
  const specs = specsOf(adapter, model);
  refuseUnexpected(checkpoint, specs, () => false);
  const sources = specs.map((spec) => floatSource(checkpoint, spec, "f32"));
  return assemble(adapter, model, await loadParameters(device, "adapter", sources));
}
