/** Configurations of Ladders and xLadders for a backbone, from a few options (methods.md, 2 and 3). */
import { parameterCount } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { refuseField as refuse } from "./config-error.ts";
import type { Importance } from "./pruning.ts";
import { checkSideConfig, type SideConfig, sideParameters } from "./side-config.ts";

/** Options that Ladder and xLadder share (methods.md, 2). */
export interface SideOptions {
  /** [r] The side network's width is the backbone's divided by this. Default 8. */
  readonly reduction?: number;
  /** [d_s] Its width, instead of a reduction. */
  readonly width?: number;
  readonly fusion?: "add" | "gate";
  readonly initialRung?: boolean;
  readonly rungNorm?: boolean;
  /** Default random. */
  readonly init?: "random" | "pruned";
  /** By which importance `pruned` selects rows and columns: Σ |w|, or Σ of squared gradients. Default l1. */
  readonly importance?: Importance;
  readonly seed?: number;
}

export interface LadderOptions extends SideOptions {
  /** [l] Number of side layers, each with a rung. Default L / 2, or the number of `rungs` if these are given. */
  readonly layers?: number;
  /** t_1 <= ... <= t_m, the hidden states that are read. Default round(k · L / m). Layers after the m-th are free. */
  readonly rungs?: readonly number[];
}

export interface XLadderOptions extends SideOptions {
  /** [δ] Number of layers at the top of the backbone whose inputs are read. Default L / 4. */
  readonly delta?: number;
  /** [l] Number of side layers, of which l - δ are free. Default 2 δ. */
  readonly layers?: number;
  /** Number of trainable parameters, met within 1 % by the choice of d_s and f_s. Absent: sizes follow from the reduction. */
  readonly parameters?: number;
}

interface Sizes {
  readonly heads: number;
  readonly headDim: number;
  readonly width: number;
  readonly intermediate: number;
}

const isWholeWithin = (value: number, min: number, max: number): boolean =>
  Number.isInteger(value) && value >= min && value <= max;

/** Sizes of the side network's blocks (methods.md, 2). */
function sizesOf(model: ModelConfig, { reduction: r = 8, width }: SideOptions): Sizes {
  const { hiddenSize: d, intermediateSize: f, numAttentionHeads } = model;
  if (!(r >= 1)) refuse("reduction", `${r} is not 1 or more.`);
  const factor = width === undefined ? r : d / width;
  if (width !== undefined && !isWholeWithin(width, 1, d))
    refuse("width", `${width} is not a whole number from 1 to ${d}.`);
  const heads = Math.max(1, Math.floor(numAttentionHeads / factor));
  if (width !== undefined && width % (2 * heads) !== 0) {
    refuse(
      "width",
      `${width} does not divide into ${heads} heads of even size. Take a multiple of ${2 * heads}.`,
    );
  }
  const headDim = 2 * Math.round(d / (factor * heads) / 2);
  if (headDim < 2) {
    refuse(
      "reduction",
      `${r} leaves a side width of ${(d / r).toFixed(1)} for ${heads} head, too small for a rope pair. ` +
        `Take at most ${d / 2}.`,
    );
  }
  return { heads, headDim, width: heads * headDim, intermediate: 8 * Math.ceil(f / factor / 8) };
}

function assemble(
  method: SideConfig["method"],
  model: ModelConfig,
  baseModel: string,
  { heads, headDim, width, intermediate }: Sizes,
  layers: number,
  rungs: number[],
  options: SideOptions,
): SideConfig {
  const config: SideConfig = {
    method,
    base_model_name_or_path: baseModel,
    num_hidden_layers: layers,
    hidden_size: width,
    intermediate_size: intermediate,
    num_attention_heads: heads,
    num_key_value_heads: heads,
    head_dim: headDim,
    rungs,
    initial_rung: options.initialRung ?? false,
    fusion: options.fusion ?? "add",
    gate_temperature: 0.1,
    rung_norm: options.rungNorm ?? true,
    init: options.init ?? "random",
    seed: options.seed ?? 0,
  };
  checkSideConfig(config, model);
  return config;
}

/**
 * The configuration of a Ladder for this backbone: unless `rungs` are given, m rungs at round(k · L / m), so the last one
 * reads H_L. Throws `L-ADAPTER-CONFIG`, by the names of the options.
 */
export function ladderConfig(model: ModelConfig, baseModel: string, options: LadderOptions = {}): SideConfig {
  const L = model.numHiddenLayers;
  if (options.rungs) {
    const { rungs, layers = rungs.length } = options;
    if (!isWholeWithin(layers, 1, Number.MAX_SAFE_INTEGER))
      refuse("layers", `${layers} is not a whole number above 0.`);
    const fraction = rungs.find((rung) => !isWholeWithin(rung, 0, L));
    if (fraction !== undefined)
      refuse("rungs", `${fraction} is not the index of a hidden state, 0 to L = ${L}.`);
    return assemble("ladder", model, baseModel, sizesOf(model, options), layers, [...rungs], options);
  }
  const { layers: m = Math.max(1, Math.floor(L / 2)) } = options;
  if (!isWholeWithin(m, 1, L)) refuse("layers", `${m} is not a whole number from 1 to L = ${L}.`);
  const rungs = Array.from({ length: m }, (_, k) => Math.round(((k + 1) * L) / m));
  return assemble("ladder", model, baseModel, sizesOf(model, options), m, rungs, options);
}

/**
 * The configuration of an xLadder: rungs at the inputs of the top δ layers, then l - δ free layers (methods.md, 3). With
 * `parameters`, width and feed-forward size are chosen to have that many within 1 %. Throws `L-ADAPTER-CONFIG`, by the names of the options.
 */
export function xladderConfig(
  model: ModelConfig,
  baseModel: string,
  options: XLadderOptions = {},
): SideConfig {
  const L = model.numHiddenLayers;
  if ((options as LadderOptions).rungs) {
    refuse(
      "rungs",
      "those of an xLadder are the inputs of the top δ layers. Give δ, or take method ladder for others.",
    );
  }
  const { delta = Math.max(1, Math.floor(L / 4)), parameters } = options;
  const { layers = 2 * delta } = options;
  if (!isWholeWithin(delta, 1, L)) refuse("delta", `${delta} is not a whole number from 1 to L = ${L}.`);
  if (!isWholeWithin(layers, delta, Number.MAX_SAFE_INTEGER)) {
    refuse("layers", `${layers} are fewer than δ = ${delta}, the number of rungs. Take more, or a lower δ.`);
  }
  const rungs = Array.from({ length: delta }, (_, k) => L - delta + k);
  const make = (sizes: Sizes) => assemble("xladder", model, baseModel, sizes, layers, rungs, options);
  if (parameters === undefined) return make(sizesOf(model, options));
  return matchParameters(model, parameters, sizesOf(model, options), make);
}

/** Relative tolerance of the parameter count. */
const PARAMETER_TOLERANCE = 0.01;

/**
 * The configuration with this number of heads that comes within 1 % of `parameters`; among several, the one whose ratio
 * f_s / d_s is closest to the backbone's. Throws `L-ADAPTER-CONFIG`, by the names of the options where there is none.
 */
function matchParameters(
  model: ModelConfig,
  parameters: number,
  { heads }: Sizes,
  make: (sizes: Sizes) => SideConfig,
): SideConfig {
  const proportion = model.intermediateSize / model.hiddenSize;
  let best: { config: SideConfig; distance: number } | null = null;
  for (let headDim = 2; heads * headDim <= model.hiddenSize; headDim += 2) {
    const width = heads * headDim;
    const sizesWith = (intermediate: number): Sizes => ({ heads, headDim, width, intermediate });
    const countWith = (f: number) => parameterCount(sideParameters(make(sizesWith(f)), model));
    const atEight = countWith(8); // linear in f
    const perUnit = (countWith(16) - atEight) / 8;
    const exact = 8 + (parameters - atEight) / perUnit;
    for (const intermediate of [8 * Math.round(exact / 8), Math.round(exact)]) {
      if (intermediate < 1) continue;
      const off = Math.abs(atEight + (intermediate - 8) * perUnit - parameters) / parameters;
      if (off > PARAMETER_TOLERANCE) continue;
      const distance = Math.abs(Math.log(intermediate / width / proportion));
      if (best === null || distance < best.distance)
        best = { config: make(sizesWith(intermediate)), distance };
      break; // a multiple of 8 is preferred
    }
  }
  return (
    best?.config ??
    refuse(
      "parameters",
      `no width with ${heads} heads comes within 1 % of ${parameters}. Give the width instead (--side-width).`,
    )
  );
}
