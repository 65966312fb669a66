/** The `adapter_config.json` of a LoRA adapter, with the fields and rules of PEFT (methods.md, 4). */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { PROJECTION_NAMES, PROJECTIONS, type ProjectionName } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { layerName } from "../model/decoder.ts";
import { mayHang } from "../regular-expression.ts";
import { ConfigError, refuseField } from "./config-error.ts";

const size = z.int().positive();
const positive = z.number().positive();
const rate = z.number().min(0).lt(1).default(0);
const block = z.int().nonnegative();
const namesOrPattern = z.union([z.array(z.string()), z.string()]);
const perModule = z.record(z.string(), z.number().positive()).nullish();

const loraSchema = z.looseObject({
  peft_type: z.literal("LORA"),
  base_model_name_or_path: z.string().nullish(),
  r: size,
  lora_alpha: positive,
  lora_dropout: rate,
  target_modules: namesOrPattern,
  exclude_modules: namesOrPattern.nullish(),
  use_rslora: z.boolean().default(false),
  rank_pattern: perModule,
  alpha_pattern: perModule,
  layers_to_transform: z.union([block, z.array(block)]).nullish(),
});

/** Fields that do not change the result. */
const WITHOUT_EFFECT = [
  "task_type",
  "auto_mapping",
  "revision",
  "inference_mode",
  "peft_version",
  "layers_pattern",
  "megatron_core",
  "eva_config",
  "corda_config",
  "lora_ga_config",
  "qalora_group_size",
  "runtime_config",
];

/** Values of `init_lora_weights` that leave the backbone's weights unchanged, and so do not matter for a trained adapter. */
const PLAIN_INITS: readonly unknown[] = [true, false, null, undefined, "gaussian", "eva", "orthogonal"];

/** The configuration of a LoRA adapter, with PEFT's field names. */
export interface LoraConfig {
  readonly base_model_name_or_path: string;
  readonly r: number;
  readonly lora_alpha: number;
  readonly lora_dropout: number;
  readonly target_modules: readonly string[] | string;
  readonly exclude_modules: readonly string[] | string | null;
  readonly use_rslora: boolean;
  readonly rank_pattern: Readonly<Record<string, number>>;
  readonly alpha_pattern: Readonly<Record<string, number>>;
  readonly layers_to_transform: readonly number[] | null;
}

/** The linear layers of a block, by the last part of their names: "q_proj" and so on. */
const MODULES = Object.values(PROJECTIONS).map((name) => name.split(".")[1]);

/** A linear layer that LoRA adapts. */
export interface LoraSite {
  readonly layer: number;
  readonly projection: ProjectionName;
  /** [r] */
  readonly rank: number;
  /** alpha / r, or alpha / √r with rsLoRA */
  readonly scale: number;
}

function refuse(source: string, problem: string): never {
  throw new SidenetError("L-ADAPTER-CONFIG", `${source}: ${problem}`);
}

/** Whether a value switches a feature off: null, false, 0, "none", or an empty string, list or object. */
const isOff = (value: unknown): boolean =>
  !value || value === "none" || (typeof value === "object" && Object.keys(value).length === 0);

/**
 * Parses PEFT's `adapter_config.json`. Throws `L-ADAPTER-CONFIG` with the path of a wrong field, or with the name of a feature
 * that changes the mathematics and is not supported (DoRA, trained biases or embeddings, initial values that change the
 * backbone).
 */
export function parseLoraConfig(json: unknown, source: string): LoraConfig {
  const { init_lora_weights: init, ...raw } = checked(loraSchema, json, (why) =>
    refuse(source, `not a LoRA configuration: ${why}.`),
  );
  for (const [field, value] of Object.entries(raw)) {
    if (field in loraSchema.shape || WITHOUT_EFFECT.includes(field) || isOff(value)) continue;
    refuse(source, `${field} = ${JSON.stringify(value)} is not supported. Train the adapter without it.`);
  }
  if (!PLAIN_INITS.includes(init)) {
    refuse(source, `init_lora_weights = ${JSON.stringify(init)} changes the model's own weights as well.`);
  }
  const layers = [raw.layers_to_transform ?? []].flat();
  return {
    base_model_name_or_path: raw.base_model_name_or_path ?? "",
    r: raw.r,
    lora_alpha: raw.lora_alpha,
    lora_dropout: raw.lora_dropout,
    target_modules: raw.target_modules,
    exclude_modules: raw.exclude_modules ?? null,
    use_rslora: raw.use_rslora,
    rank_pattern: raw.rank_pattern ?? {},
    alpha_pattern: raw.alpha_pattern ?? {},
    layers_to_transform: layers.length > 0 ? layers : null, // PEFT treats an empty list like no list
  };
}

/** The content of `adapter_config.json`, which PEFT's `PeftModel.from_pretrained` reads. */
export function peftConfigJson(config: LoraConfig): object {
  return {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    auto_mapping: null,
    revision: null,
    inference_mode: true,
    fan_in_fan_out: false,
    bias: "none",
    use_dora: false,
    modules_to_save: null,
    init_lora_weights: true,
    layers_pattern: null,
    ...config,
  };
}

/** Options of a LoRA adapter. */
export interface LoraOptions {
  /** [r] Default 16. */
  readonly rank?: number;
  /** Default 2 r. */
  readonly alpha?: number;
  /** Dropout rate of A's input in training. Default 0. */
  readonly dropout?: number;
  /** Scale by alpha / √r instead of alpha / r. Default false. */
  readonly rsLora?: boolean;
  /** Linear layers to adapt, by the last part of their names, such as "q_proj". Default: all seven. */
  readonly targets?: readonly string[];
  /** Blocks to adapt, counted from 0. Default: all. */
  readonly layers?: readonly number[];
  /** Ranks of single layers, by the end of a layer's name, such as "layers.0.self_attn.q_proj", or a regular expression. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Alphas of single layers, by the same kind of key. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
}

const optionsSchema = z.object({
  rank: size.default(16),
  alpha: positive.optional(),
  dropout: rate,
  rsLora: z.boolean().default(false),
  targets: namesOrPattern.default(MODULES),
  layers: z.array(block).min(1, "no block is named. Leave the option out to adapt all.").nullish(),
  rankPattern: perModule,
  alphaPattern: perModule,
});

/** A LoRA configuration from options. Throws `L-ADAPTER-CONFIG`, by the names of the options. */
export function loraConfig(baseModel: string, options: LoraOptions = {}): LoraConfig {
  const { rank, alpha, ...rest } = checked(optionsSchema, options, (_, faults) => new ConfigError(faults));
  return {
    base_model_name_or_path: baseModel,
    r: rank,
    lora_alpha: alpha ?? 2 * rank,
    lora_dropout: rest.dropout,
    target_modules: rest.targets,
    exclude_modules: null,
    use_rslora: rest.rsLora,
    rank_pattern: rest.rankPattern ?? {},
    alpha_pattern: rest.alphaPattern ?? {},
    layers_to_transform: rest.layers ?? null,
  };
}

/** An expression of Python. With the flag u, JavaScript refuses what it would read differently: unknown escapes and {,n}. */
function pattern(text: string, field: string): RegExp {
  if (mayHang(text)) {
    refuseField(
      field,
      `matching the expression "${text}" may never end. Write it without repetitions inside repetitions.`,
    );
  }
  try {
    return new RegExp(text, "u");
  } catch {
    return refuseField(field, `"${text}" is not a regular expression that JavaScript can read.`);
  }
}

/** Whether PEFT's target or exclude list names the module: by its name, by the end of its name, or by one expression. */
function isListed(list: readonly string[] | string, module: string, field: string): boolean {
  if (list === "all-linear") return true;
  if (typeof list === "string") return pattern(`^(?:${list})$`, field).test(module);
  return list.some((name) => module === name || module.endsWith(`.${name}`));
}

/** The value of the first key that matches the end of the module's name, as in PEFT. */
function patternValue(
  values: Readonly<Record<string, number>>,
  module: string,
  field: string,
): number | null {
  for (const [key, value] of Object.entries(values)) {
    if (pattern(`^(.*\\.)?(${key})$`, field).test(module)) return value;
  }
  return null;
}

/**
 * Every linear layer that the configuration adapts, by layer. Throws `L-ADAPTER-CONFIG`, by PEFT's names, when a target is not a linear
 * layer of a block, a layer is past the model's last, a rank is not a whole number, or nothing is left to train.
 */
export function loraSites(config: LoraConfig, model: ModelConfig): LoraSite[] {
  const { target_modules: targets, exclude_modules: excluded, layers_to_transform: layers } = config;
  const L = model.numHiddenLayers;
  const past = layers?.find((layer) => layer >= L);
  if (past !== undefined)
    refuseField("layers_to_transform", `layer ${past} is past the last of ${L} (0 to ${L - 1}).`);
  const sites: LoraSite[] = [];
  const used = new Set<string>();
  for (let layer = 0; layer < L; layer++) {
    for (const projection of PROJECTION_NAMES) {
      const name = layerName(layer, PROJECTIONS[projection]);
      // As in PEFT, the list of layers does not concern a target with its full name.
      if (layers && !layers.includes(layer) && !(Array.isArray(targets) && targets.includes(name))) continue;
      if (!isListed(targets, name, "target_modules")) continue;
      if (Array.isArray(targets)) for (const t of targets) if (isListed([t], name, "")) used.add(t);
      if (excluded !== null && isListed(excluded, name, "exclude_modules")) continue;
      const rank = patternValue(config.rank_pattern, name, "rank_pattern") ?? config.r;
      if (!Number.isInteger(rank))
        refuseField("rank_pattern", `rank ${rank} of ${name} is not a whole number.`);
      const alpha = patternValue(config.alpha_pattern, name, "alpha_pattern") ?? config.lora_alpha;
      sites.push({ layer, projection, rank, scale: alpha / (config.use_rslora ? Math.sqrt(rank) : rank) });
    }
  }
  const unknown = Array.isArray(targets) ? targets.find((target: string) => !used.has(target)) : undefined;
  if (unknown !== undefined) {
    refuseField(
      "target_modules",
      `"${unknown}" is not a linear layer of a block. These are: ${MODULES.join(", ")}.`,
    );
  }
  if (sites.length === 0)
    refuseField("target_modules", `${JSON.stringify(targets)} leaves nothing to train.`);
  return sites;
}
