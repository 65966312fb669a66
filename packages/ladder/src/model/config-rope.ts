import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";

/** How rotary frequencies are scaled for contexts longer than that of pretraining. */
export type RopeScaling =
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    };

/** Rotary position embedding: base frequency and scaling. */
export interface Rope {
  readonly theta: number;
  readonly scaling: RopeScaling | null;
}

const positive = z.number().positive();

const parametersSchema = z.looseObject({
  rope_theta: positive.optional(),
  rope_type: z.string().optional(),
  type: z.string().optional(),
  factor: positive.optional(),
  low_freq_factor: positive.optional(),
  high_freq_factor: positive.optional(),
  original_max_position_embeddings: positive.optional(),
  partial_rotary_factor: z.number().optional(),
});

const sourceSchema = z.looseObject({
  rope_theta: positive.nullish(),
  rope_scaling: parametersSchema.nullish(),
  rope_parameters: parametersSchema.nullish(),
  original_max_position_embeddings: positive.nullish(),
});

function fail(name: string, text: string): never {
  throw new SidenetError("L-CONFIG-ROPE", `${name}: ${text}`);
}

/**
 * Rope of a config in any of its three spellings: `rope_theta` with `rope_scaling` {`rope_type`}, the older {`type`}, or
 * `rope_parameters` {`rope_theta`, `rope_type`}. As in transformers, a `rope_scaling` that is not empty replaces
 * `rope_parameters`. Throws `L-CONFIG-ROPE` on other kinds than default, linear and llama3.
 */
export function ropeFrom(raw: unknown, name: string): Rope {
  const source = checked(sourceSchema, raw, (why) => fail(name, `${why}. Is the file complete?`));
  const { rope_theta, rope_scaling, rope_parameters, original_max_position_embeddings: N } = source;
  const isScaled = Object.keys(rope_scaling ?? {}).length > 0;
  const given = (isScaled ? rope_scaling : rope_parameters) ?? {};
  for (const [field, value] of Object.entries(given)) {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      fail(name, `rope_parameters differ by layer ("${field}"); one set for all layers is supported.`);
    }
  }
  if ((given.partial_rotary_factor ?? 1) !== 1) {
    fail(
      name,
      `partial_rotary_factor = ${given.partial_rotary_factor}; only 1 (the whole head) is supported.`,
    );
  }
  if (N && (given.original_max_position_embeddings ?? N) !== N) {
    // Some versions of transformers use one, some the other.
    fail(
      name,
      `original_max_position_embeddings is ${N}, but ${given.original_max_position_embeddings} in the rope parameters.`,
    );
  }
  return { theta: given.rope_theta ?? rope_theta ?? 10000, scaling: scalingFrom(given, name) };
}

function scalingFrom(given: z.infer<typeof parametersSchema>, name: string): RopeScaling | null {
  const type = given.rope_type ?? given.type ?? "default";
  const need = (field: keyof typeof given): number => {
    const value = given[field];
    return typeof value === "number" ? value : fail(name, `rope type "${type}" needs the field "${field}".`);
  };
  switch (type) {
    case "default":
      return null;
    case "linear":
      return { type, factor: need("factor") };
    case "llama3": {
      const scaling = {
        type: "llama3" as const,
        factor: need("factor"),
        lowFreqFactor: need("low_freq_factor"),
        highFreqFactor: need("high_freq_factor"),
        originalMaxPositionEmbeddings: need("original_max_position_embeddings"),
      };
      if (scaling.highFreqFactor <= scaling.lowFreqFactor) {
        fail(
          name,
          `high_freq_factor ${scaling.highFreqFactor} must exceed low_freq_factor ${scaling.lowFreqFactor}.`,
        );
      }
      return scaling;
    }
    default:
      return fail(
        name,
        `rope type "${type}"; default, linear and llama3 are supported. Choose another model.`,
      );
  }
}
