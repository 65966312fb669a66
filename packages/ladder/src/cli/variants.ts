/** Methods as `plan` and `compare` name them: "qlora", or with a memory lever switched on, "qlora+checkpointing". */
import { InvalidArgumentError } from "commander";
import { METHODS, type Method } from "../methods/adapter.ts";
import type { MethodOptions } from "../methods/method.ts";
import type { BaseStorage, WeightDType } from "../model/base-storage.ts";
import type { MemoryOptions } from "../training/trainer.ts";
import {
  type MemoryFlags,
  memoryOptions,
  methodOptions,
  type SizeFlags,
  storageOf,
  type WeightChoice,
  weightDType,
} from "./method-options.ts";

/** What may follow a method after "+": options of the same meaning, for this method alone. */
const LEVERS: Readonly<Record<string, Partial<MemoryFlags>>> = {
  checkpointing: { gradientCheckpointing: true },
  "no-checkpointing": { gradientCheckpointing: false },
  "8bit": { optimizerState: "8bit" },
  "nf4-ends": { quantizeEnds: true },
  "int8-rungs": { rungs: "int8" },
  f32: { saved: "f32", rungs: "f32", optimizerState: "f32" },
};

/** A method with the levers that are its own. */
export interface Variant {
  /** As it was given, and stands in tables. */
  readonly name: string;
  readonly method: Method;
  readonly flags: Partial<MemoryFlags>;
}

/** Parses "qlora+checkpointing". Throws commander's error for an unknown method or lever. */
export function parseVariant(text: string): Variant {
  const [method, ...levers] = text.split("+");
  const known = METHODS.find((name) => name === method);
  if (known === undefined) {
    throw new InvalidArgumentError(`"${method}" is not a method. Methods are ${METHODS.join(", ")}.`);
  }
  const flags = levers.map((lever) => {
    if (Object.hasOwn(LEVERS, lever)) return LEVERS[lever];
    throw new InvalidArgumentError(
      `"${lever}" is not a method suffix. Suffixes are ${Object.keys(LEVERS).join(", ")}.`,
    );
  });
  return { name: text, method: known, flags: Object.assign({}, ...flags) as Partial<MemoryFlags> };
}

/** The options that a variant stands for, on a device. */
export function settingsOf(
  variant: Variant,
  flags: SizeFlags & MemoryFlags & { readonly dtype: WeightChoice },
  device: Parameters<typeof weightDType>[1],
): { method: MethodOptions; storage: Required<BaseStorage>; memory: MemoryOptions; dtype: WeightDType } {
  const { method } = variant;
  const all = { ...flags, ...variant.flags };
  const dtype = weightDType(flags.dtype, device, method);
  const storage = storageOf(method, dtype, all);
  return {
    method: methodOptions(method, flags),
    storage,
    memory: memoryOptions(all, method, storage),
    dtype,
  };
}
