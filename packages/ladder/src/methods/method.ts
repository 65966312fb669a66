/** Adapters from options: the one file that knows every method by name. */
import { SidenetError } from "@sidenet/tensor";
import type { LabeledBatch } from "../model/batch-loss.ts";
import { parameterCount } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { Decoder } from "../model/decoder.ts";
import { type Adapter, METHODS, type Method } from "./adapter.ts";
import { ConfigError } from "./config-error.ts";
import { FullTuning } from "./full-tuning.ts";
import { HeadTuning } from "./head-tuning.ts";
import { type LadderOptions, ladderConfig, type XLadderOptions, xladderConfig } from "./ladder-config.ts";
import { Lora } from "./lora.ts";
import { type LoraOptions, loraConfig } from "./lora-config.ts";
import { prunedValues } from "./pruned-init.ts";
import { type SideConfig, sideParameters } from "./side-config.ts";
import { residualScale } from "./side-init.ts";
import { SideNetwork } from "./side-network.ts";

/** A method with its options; the options of other methods are ignored. */
export interface MethodOptions {
  readonly method: Method;
  readonly ladder?: LadderOptions;
  readonly xladder?: XLadderOptions;
  readonly lora?: LoraOptions;
  /** Of initial values and dropout, unless the options of a side network have a seed. Default 0. */
  readonly seed?: number;
}

/** Whether a method trains a network beside the model. */
export const hasSideNetwork = (method: string): method is SideConfig["method"] =>
  method === "ladder" || method === "xladder";

/** Whether a method's backbone is stored in NF4 by default. */
export const quantizesByDefault = (method: string): boolean => hasSideNetwork(method) || method === "qlora";

/** Options of the side network. An xLadder also takes those of the Ladder whose number of parameters it matches, but for its rungs. */
function sideOptionsOf({ method, ladder = {}, xladder }: MethodOptions): XLadderOptions {
  if (method !== "xladder") return ladder;
  const { rungs: _, ...shared } = ladder;
  return { ...shared, ...xladder };
}

/** Throws `L-OPTION` for another method, which would be taken for LoRA, and for other arguments than those of `makeAdapter`. */
function checkArguments({ method }: MethodOptions, decoder: Decoder, baseModel: string): void {
  const problem = !METHODS.includes(method)
    ? `there is no method "${method}", only ${METHODS.join(", ")}. An adapter of your own needs no makeAdapter`
    : !(decoder instanceof Decoder)
      ? "the second argument is not a Decoder"
      : typeof baseModel !== "string"
        ? `the name of the base model is ${baseModel}, wanted a string: the adapter's configuration has it`
        : null;
  if (problem) throw new SidenetError("L-OPTION", `${problem}.`);
}

/** The options that fields of an adapter's configuration come from, where these have other names. */
const OPTION_OF: Readonly<Record<string, string>> = {
  num_hidden_layers: "layers",
  hidden_size: "width",
  r: "rank",
  lora_alpha: "alpha",
  lora_dropout: "dropout",
  use_rslora: "rsLora",
  target_modules: "targets",
  layers_to_transform: "layers",
  rank_pattern: "rankPattern",
  alpha_pattern: "alphaPattern",
};

/**
 * Runs `make` with `L-OPTION` in place of `L-ADAPTER-CONFIG`, which is about files, and with the names of options, such as
 * "lora.layers": here the values come from these.
 */
function ofOptions<Made>(group: "ladder" | "xladder" | "lora", make: () => Made): Made {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw error.renamed((field) => (field ? `${group}.${OPTION_OF[field] ?? field}` : group), "L-OPTION");
  }
}

/** The configuration of a method's side network; null for a method without. Throws `L-OPTION` for sizes that do not fit. */
export function sideConfigOf(
  options: MethodOptions,
  model: ModelConfig,
  baseModel: string,
): SideConfig | null {
  const { method, seed = 0 } = options;
  if (!hasSideNetwork(method)) return null;
  const own = { seed, ...sideOptionsOf(options) };
  const xladder = (sizes: XLadderOptions) =>
    ofOptions("xladder", () => xladderConfig(model, baseModel, sizes));
  if (method === "xladder" && (own.width !== undefined || own.parameters !== undefined)) return xladder(own);
  const ladder = ofOptions("ladder", () => ladderConfig(model, baseModel, { seed, ...options.ladder }));
  if (method === "ladder") return ladder;
  // As in the published comparison, it has as many parameters as the Ladder of the same reduction.
  return xladder({ ...own, parameters: parameterCount(sideParameters(ladder, model)) });
}

/**
 * An adapter with initial values, with which the model computes exactly what its backbone computes. For a side network it runs
 * the backbone once, to measure the size of its residual stream, and reads the values of `init: "pruned"` from it.
 * `calibration` is called only for Fisher importance. Throws what `makeAdapter` throws, and `L-CALIBRATION`.
 */
export async function initializeAdapter(
  options: MethodOptions,
  decoder: Decoder,
  baseModel: string,
  calibration: () => readonly LabeledBatch[] = () => [],
): Promise<Adapter> {
  checkArguments(options, decoder, baseModel);
  const { config, device } = decoder;
  const side = sideConfigOf(options, config, baseModel);
  if (!side) return makeAdapter(options, decoder, baseModel);
  const { importance = "l1" } = sideOptionsOf(options);
  const measured = { importance, calibration: importance === "fisher" ? calibration() : [] };
  const pruned = side.init === "pruned" ? await prunedValues(decoder, side, measured) : null;
  return SideNetwork.initialize(device, side, config, {
    pruned,
    scale: await residualScale(decoder, side.seed),
  });
}

/**
 * An adapter with initial values that do not need a run of the backbone, so it works on `meta` too: the final norm of a side
 * network starts at 1.
 * Throws `L-OPTION` for an unknown method and for sizes that do not fit the model, `L-PRUNED` for `init: "pruned"`, `L-HEAD`, and `L-METHOD` for QLoRA
 * over weights that are not in NF4, or full tuning over others than f32.
 */
export function makeAdapter(options: MethodOptions, decoder: Decoder, baseModel: string): Adapter {
  checkArguments(options, decoder, baseModel);
  const { method, seed = 0 } = options;
  const { device, config } = decoder;
  const side = sideConfigOf(options, config, baseModel);
  if (side) return SideNetwork.initialize(device, side, config);
  if (method === "full") return new FullTuning(decoder);
  if (method === "head") return HeadTuning.initialize(decoder);
  if (method === "qlora" && !decoder.isQuantized && config.quantization === null) {
    throw new SidenetError(
      "L-METHOD",
      "QLoRA is LoRA over weights in NF4, and this model's are not. Use --quantize nf4, or --method lora.",
    );
  }
  return ofOptions("lora", () => Lora.initialize(device, loraConfig(baseModel, options.lora), config, seed));
}
