/** Defaults by method: the learning rate, how the model is stored, and what saves memory. */
import type { Device } from "@sidenet/tensor";
import type { Method } from "./adapter.ts";
import type { BaseStorage, WeightDType } from "./base-storage.ts";
import type { ModelConfig } from "./config.ts";
import { hasSideNetwork, type MethodOptions, quantizesByDefault, sideConfigOf } from "./method.ts";
import type { MemoryOptions } from "./trainer.ts";

/** Highest learning rates of methods without a side network; docs/decisions.md says how they were found. */
const LEARNING_RATES: Readonly<Record<Exclude<Method, "ladder" | "xladder">, number>> = {
  lora: 1e-3,
  qlora: 1e-3,
  full: 5e-5,
  head: 1e-3,
};

/**
 * A side network's rate times its width times the root of the backbone's. Adam moves every weight by the rate, so y moves by as
 * much more as U has inputs (muP, Yang et al. 2022, 2203.03466), and all of its d dimensions in the gradient's direction, which
 * a head of rows of unit size turns into √d. 9e-3 for tiny-books (16 beside 128), 9.4e-4 for SmolLM2-135M (72 beside 576).
 */
const SIDE_RATE_SCALE = 1.63;

/** The highest learning rate where none is asked for, to two digits. Throws `L-OPTION`. */
export function defaultLearningRate(options: MethodOptions, model: ModelConfig): number {
  const { method } = options;
  if (method !== "ladder" && method !== "xladder") return LEARNING_RATES[method];
  const width = sideConfigOf(options, model, "")!.hidden_size;
  return Number((SIDE_RATE_SCALE / (width * Math.sqrt(model.hiddenSize))).toPrecision(2));
}

/** Storage of frozen weights: f16 where the adapter has it, but for weights that are trained. */
export const defaultDType = (
  { kind, profile }: Pick<Device, "kind" | "profile">,
  method: Method,
): WeightDType => (profile.f16 && kind !== "cpu" && method !== "full" ? "f16" : "f32");

/** How the model is stored unless the caller says otherwise. */
export const defaultStorage = (
  method: Method,
  device: Pick<Device, "kind" | "profile">,
): Required<BaseStorage> => ({
  dtype: defaultDType(device, method),
  quantizeBlocks: quantizesByDefault(method),
  quantizeEmbeddings: false,
});

/** Memory options of a method, for a model that is stored so. `rungNorm`: the side network norms what its rungs read. */
export const defaultMemory = (
  method: Method,
  { dtype, quantizeBlocks }: Required<BaseStorage>,
  rungNorm = true,
): Required<Pick<MemoryOptions, "gradientCheckpointing" | "optimizerState" | "savedFormats">> => ({
  gradientCheckpointing: hasSideNetwork(method),
  optimizerState: quantizeBlocks ? "8bit" : "f32",
  savedFormats: { saved: dtype, rungs: rungNorm ? dtype : "f32" }, // unnormed states may pass what f16 holds
});
