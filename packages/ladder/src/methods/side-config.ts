/** The configuration of a side network, and the parameters that follow from it (methods.md, 2). */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type BlockShape, blockParameters, type ParameterSpec } from "../model/block.ts";
import { MAX_LAYERS, type ModelConfig } from "../model/config.ts";
import { refuseField as refuse } from "./config-error.ts";

const size = z
  .int()
  .positive()
  .max(2 ** 31 - 1);

/** The fields of `adapter_config.json` of a side network, as methods.md (2) names them. */
const sideConfigSchema = z.object({
  method: z.enum(["ladder", "xladder"]),
  base_model_name_or_path: z.string(),
  /** [l] */
  num_hidden_layers: size.max(MAX_LAYERS),
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
  init: z.enum(["random", "pruned"]).default("random"),
  seed: z.int().nonnegative().default(0),
});

/**
 * The configuration of a side network, with the field names of `adapter_config.json`.
 * @interface
 */
export type SideConfig = z.infer<typeof sideConfigSchema>;

/** Parses an `adapter_config.json`. Throws `L-ADAPTER-CONFIG` with the path of each wrong field. */
export const parseSideConfig = (json: unknown, source: string): SideConfig =>
  checked(sideConfigSchema, json, (why) => {
    return new SidenetError("L-ADAPTER-CONFIG", `${source} is not a side network's configuration: ${why}.`);
  });

/** Throws `L-ADAPTER-CONFIG` when the side network does not fit the backbone. */
export function checkSideConfig(config: SideConfig, model: ModelConfig): void {
  const { rungs, num_hidden_layers: l, num_attention_heads: heads, num_key_value_heads: keyHeads } = config;
  const L = model.numHiddenLayers;
  if (rungs.length > l)
    refuse("rungs", `${rungs.length} of them are more than the ${l} side layers, which read one each.`);
  for (const [k, rung] of rungs.entries()) {
    if (rung > L) refuse("rungs", `${rung} is past the backbone's last hidden state, H_${L}.`);
    if (k > 0 && rung < rungs[k - 1])
      refuse("rungs", `${rung} comes after ${rungs[k - 1]}, and rungs may not descend.`);
  }
  if (rungs.length === 0 && !config.initial_rung) refuse("rungs", "a side network without any has no input.");
  if (heads % keyHeads !== 0)
    refuse("num_attention_heads", `${heads} is not a multiple of num_key_value_heads ${keyHeads}.`);
  if (config.head_dim % 2 !== 0) refuse("head_dim", `${config.head_dim} is odd, and rope rotates pairs.`);
}

/** Number of blocks on the longest path from tokens to logits (methods.md, 3): max(L, max_k (t_k + l - k + 1)). */
export function sideDepth(side: SideConfig, { numHiddenLayers: L }: ModelConfig): number {
  const { rungs, num_hidden_layers: l } = side;
  return Math.max(L, l, ...rungs.map((rung, k) => rung + l - k)); // k counts from 0 here
}

/** The shape of a side block: the options of the backbone's block at the side network's sizes. */
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

export const rungName = (k: number): string => `ladder.rungs.${k}.down.weight`;
export const gateName = (k: number): string => `ladder.rungs.${k}.gate`;
export const sideLayerName = (k: number, rest: string): string => `ladder.layers.${k}.${rest}`;
export const SIDE_NORM = "ladder.norm.weight";
export const SIDE_UP = "ladder.up.weight";

/**
 * Every parameter of a side network, by its name in `adapter_model.safetensors`. Throws `L-ADAPTER-CONFIG` when the side network
 * does not fit the backbone.
 */
export function sideParameters(config: SideConfig, model: ModelConfig): ParameterSpec[] {
  checkSideConfig(config, model);
  const { hiddenSize: d } = model;
  const { hidden_size: dSide, rungs, num_hidden_layers: l } = config;
  const shape = sideBlockShape(config, model);
  const specs: ParameterSpec[] = [];
  for (let k = config.initial_rung ? 0 : 1; k <= rungs.length; k++) {
    specs.push({ name: rungName(k), shape: [dSide, d], kind: "linear" });
    if (k > 0 && config.fusion === "gate") specs.push({ name: gateName(k), shape: [1], kind: "bias" });
  }
  for (let k = 1; k <= l; k++) {
    for (const spec of blockParameters(shape)) specs.push({ ...spec, name: sideLayerName(k, spec.name) });
  }
  specs.push({ name: SIDE_NORM, shape: [dSide], kind: "norm" });
  specs.push({ name: SIDE_UP, shape: [d, dSide], kind: "linear" });
  return specs;
}
