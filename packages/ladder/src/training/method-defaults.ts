/** Defaults of each method: learning rate, storage of the model, and memory options. */
import type { Device } from "@sidenet/tensor";
import type { Method } from "../methods/adapter.ts";
import { hasSideNetwork, type MethodOptions, quantizesByDefault, sideConfigOf } from "../methods/method.ts";
import type { SideConfig } from "../methods/side-config.ts";
import type { BaseStorage } from "../model/base-storage.ts";
import type { ModelConfig } from "../model/config.ts";
import type { MemoryOptions } from "./trainer.ts";

/** Peak learning rates of methods without a side network; docs/decisions.md says how they were found. */
const LEARNING_RATES: Readonly<Record<Exclude<Method, SideConfig["method"]>, number>> = {
  lora: 1e-3,
  qlora: 1e-3,
  full: 5e-5,
  head: 1e-3,
};

/**
 * A side network's learning rate is this constant / (d_s · √d). Adam moves every weight of U [d, d_s] by about the rate, so a
 * step moves each element of y in proportion to d_s (muP, Yang et al. 2022, 2203.03466), and the logits in proportion to √d,
 * since all d elements move along the gradient. It gives 9e-3 for tiny-books (d_s 16, d 128) and 9.4e-4 for SmolLM2-135M
 * (d_s 72, d 576).
 */
const SIDE_RATE_SCALE = 1.63;

/** The default peak learning rate, rounded to two digits. Throws `L-OPTION`. */
export function defaultLearningRate(options: MethodOptions, model: ModelConfig): number {
  const { method } = options;
  if (!hasSideNetwork(method)) return LEARNING_RATES[method];
  const width = sideConfigOf(options, model, "")!.hidden_size;
  return Number((SIDE_RATE_SCALE / (width * Math.sqrt(model.hiddenSize))).toPrecision(2));
}

/** Default storage of the model: in f16 on a GPU that has it, unless the weights themselves are trained. */
export const defaultStorage = (
  method: Method,
  { kind, profile }: Pick<Device, "kind" | "profile">,
): Required<BaseStorage> => ({
  dtype: profile.f16 && kind !== "cpu" && method !== "full" ? "f16" : "f32",
  quantizeBlocks: quantizesByDefault(method),
  quantizeEmbeddings: false,
});

/** Default memory options for a model with this storage. `rungNorm`: whether rungs read normalized hidden states. */
export const defaultMemory = (
  method: Method,
  { dtype, quantizeBlocks }: Required<BaseStorage>,
  rungNorm = true,
): Required<Pick<MemoryOptions, "gradientCheckpointing" | "optimizerState" | "savedFormats">> => ({
  gradientCheckpointing: hasSideNetwork(method),
  optimizerState: quantizeBlocks ? "8bit" : "f32",
  savedFormats: { saved: dtype, rungs: rungNorm ? dtype : "f32" }, // hidden states without a norm may overflow f16
});
