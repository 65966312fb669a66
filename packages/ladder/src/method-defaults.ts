/** What a method takes where nothing else is asked for: its learning rate, how the model is stored, what saves memory. */
import type { Device } from "@sidenet/tensor";
import type { Method } from "./adapter.ts";
import type { BaseStorage, WeightDType } from "./base-storage.ts";
import { hasSideNetwork, quantizesByDefault } from "./method.ts";
import type { MemoryOptions } from "./trainer.ts";

/** Highest learning rates; docs/decisions.md says how they were found. */
export const LEARNING_RATES: Readonly<Record<Method, number>> = {
  ladder: 1e-2,
  xladder: 1e-2,
  lora: 1e-3,
  qlora: 1e-3,
  full: 5e-5,
  head: 1e-3,
};

/** Storage of frozen weights: f16 where the adapter has it, but for weights that are trained. */
export const defaultDType = (
  { kind, profile }: Pick<Device, "kind" | "profile">,
  method: Method,
): WeightDType => (profile.f16 && kind !== "cpu" && method !== "full" ? "f16" : "f32");

/** How the model of this method is stored. */
export const defaultStorage = (
  method: Method,
  device: Pick<Device, "kind" | "profile">,
): Required<BaseStorage> => ({
  dtype: defaultDType(device, method),
  quantizeBlocks: quantizesByDefault(method),
  quantizeEnds: false,
});

/** What saves memory beside a model that is stored so; `rungNorm` as the side network has it. */
export const defaultMemory = (
  method: Method,
  { dtype, quantizeBlocks }: Required<BaseStorage>,
  rungNorm = true,
): Required<Pick<MemoryOptions, "gradientCheckpointing" | "optimizerState" | "savedFormats">> => ({
  gradientCheckpointing: hasSideNetwork(method),
  optimizerState: quantizeBlocks ? "8bit" : "f32",
  savedFormats: { saved: dtype, rungs: rungNorm ? dtype : "f32" }, // unnormed states may pass what f16 holds
});
