import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { BlockShape } from "./block.ts";
import type { ModelConfig } from "./config.ts";

const size = z.int().positive();

/** The fields of `adapter_config.json` of a side network, as methods.md (2) names them. */
export const sideConfigSchema = z.object({
  method: z.enum(["ladder", "xladder"]),
  base_model_name_or_path: z.string(),
  /** [l] */
  num_hidden_layers: size,
  /** [d_s] */
  hidden_size: size,
  intermediate_size: size,
  num_attention_heads: size,
  num_key_value_heads: size,
  head_dim: size,
  /** t_1 <= ... <= t_m, indices of H_0 .. H_L */
  rungs: z.array(z.int().nonnegative()),
  initial_rung: z.boolean().default(false),
  fusion: z.enum(["add", "gate"]).default("add"),
  gate_temperature: z.number().positive().default(0.1),
  rung_norm: z.boolean().default(true),
  init: z.enum(["random"]).default("random"),
  seed: z.int().nonnegative().default(0),
});

export type SideConfig = z.infer<typeof sideConfigSchema>;

/** Parses an `adapter_config.json`. Throws `L-ADAPTER-CONFIG` with the path of each wrong field. */
export function parseSideConfig(json: unknown, source: string): SideConfig {
  const parsed = sideConfigSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(
    (issue) => `${issue.path.join(".") || "(file)"}: ${issue.message}`,
  );
  throw new SidenetError(
    "L-ADAPTER-CONFIG",
    `${source} is not a side network's configuration: ${problems.join("; ")}.`,
  );
}

const refuse = (message: string): never => {
  throw new SidenetError("L-ADAPTER-CONFIG", message);
};

/** Throws `L-ADAPTER-CONFIG` when the side network does not fit the backbone. */
export function checkSideConfig(config: SideConfig, model: ModelConfig): void {
  const { rungs, num_hidden_layers: l } = config;
  const L = model.numHiddenLayers;
  if (rungs.length > l) refuse(`${rungs.length} rungs are more than num_hidden_layers = ${l} side layers.`);
  for (const [k, rung] of rungs.entries()) {
    if (rung > L) refuse(`rungs[${k}] = ${rung} is past the backbone's last hidden state, H_${L}.`);
    if (k > 0 && rung < rungs[k - 1])
      refuse(`rungs[${k}] = ${rung} comes after ${rungs[k - 1]}: rungs may not descend.`);
  }
  if (rungs.length === 0 && !config.initial_rung) refuse("without rungs the side network would see nothing.");
  if (config.num_attention_heads % config.num_key_value_heads !== 0) {
    refuse(
      `num_attention_heads ${config.num_attention_heads} is not a multiple of num_key_value_heads ${config.num_key_value_heads}.`,
    );
  }
  if (config.head_dim % 2 !== 0) refuse(`head_dim ${config.head_dim} is odd, and rope rotates pairs.`);
}

/** Where a Ladder reads and how wide it is, when the caller does not say (methods.md, 2). */
export interface LadderOptions {
  /** [r] The side network's width is the backbone's divided by this. Default 8. */
  readonly reduction?: number;
  /** [l = m] Side layers, each with a rung. Default L / 2. */
  readonly layers?: number;
  readonly seed?: number;
}

/** A Ladder for this backbone: m rungs at round(k · L / m), so the last is H_L. Throws `L-ADAPTER-CONFIG`. */
export function ladderConfig(model: ModelConfig, baseModel: string, options: LadderOptions = {}): SideConfig {
  const L = model.numHiddenLayers;
  const { reduction: r = 8, layers: m = Math.max(1, Math.floor(L / 2)), seed = 0 } = options;
  if (!(r > 0)) refuse(`reduction ${r} is not above 0.`);
  if (!Number.isInteger(m) || m < 1 || m > L)
    refuse(`${m} side layers: wanted a whole number from 1 to L = ${L}.`);
  const heads = Math.max(1, Math.floor(model.numAttentionHeads / r));
  const headDim = Math.max(2, 2 * Math.round(model.hiddenSize / (r * heads) / 2));
  const config: SideConfig = {
    method: "ladder",
    base_model_name_or_path: baseModel,
    num_hidden_layers: m,
    hidden_size: heads * headDim,
    intermediate_size: 8 * Math.ceil(model.intermediateSize / r / 8),
    num_attention_heads: heads,
    num_key_value_heads: heads,
    head_dim: headDim,
    rungs: Array.from({ length: m }, (_, k) => Math.round(((k + 1) * L) / m)),
    initial_rung: false,
    fusion: "add",
    gate_temperature: 0.1,
    rung_norm: true,
    init: "random",
    seed,
  };
  checkSideConfig(config, model);
  return config;
}

/** The side block: the backbone's form at the side network's sizes. */
export function sideBlockShape(config: SideConfig, model: ModelConfig): BlockShape {
  return {
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    numAttentionHeads: config.num_attention_heads,
    numKeyValueHeads: config.num_key_value_heads,
    headDim: config.head_dim,
    rmsNormEps: model.rmsNormEps,
    attentionBias: model.attentionBias,
    mlpBias: model.mlpBias,
    qkNorm: model.qkNorm,
  };
}
