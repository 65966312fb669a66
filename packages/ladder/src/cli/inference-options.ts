/** Options of the commands that ask a model: generate, chat and eval. */
import { SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import type { Sampling } from "../generation/generate.ts";
import type { WeightDType } from "../model/base-storage.ts";
import type { InferenceOptions } from "../node/inference.ts";
import { modelOption } from "./data-options.ts";
import { deviceOption, jsonOption } from "./device.ts";
import { hubOptions } from "./download-progress.ts";
import { nonNegativeInteger, numberWithin, repeatable, seed, share, temperature } from "./options.ts";
import type { Report } from "./terminal.ts";

export interface InferenceFlags {
  readonly model: string;
  readonly adapter?: string;
  readonly dtype: WeightDType;
  readonly quantize: "auto" | "nf4" | "none";
  readonly chatTemplate?: string;
  readonly prefix?: string;
  readonly device: DeviceName;
}

/** `--model`, `--adapter`, how the weights are stored, where to compute. */
export function addInferenceOptions(command: Command): Command {
  return command
    .addOption(modelOption().makeOptionMandatory())
    .option("--adapter <dir>", "adapter: output folder of train, or a LoRA saved by PEFT")
    .option("--chat-template <file>", "Jinja chat template, in place of the model's")
    .option(
      "--prefix <file>",
      "text before every prompt (default: that of the adapter, if it was trained with one)",
    )
    .addOption(new Option("--dtype <type>", "type of the weights").choices(["f32", "f16"]).default("f32"))
    .addOption(
      new Option(
        "--quantize <kind>",
        "quantization of the blocks' linear weights; auto: as the adapter was trained",
      )
        .choices(["auto", "nf4", "none"])
        .default("auto"),
    )
    .addOption(deviceOption())
    .addOption(jsonOption());
}

export const inferenceOptions = (flags: InferenceFlags, report: Report): InferenceOptions => ({
  hub: hubOptions(report),
  model: flags.model,
  adapter: flags.adapter ?? null,
  dtype: flags.dtype,
  quantize: flags.quantize,
  chatTemplate: flags.chatTemplate ?? null,
  prefix: flags.prefix ?? null,
});

export function addSamplingOptions(command: Command): Command {
  return command
    .option("--temperature <t>", "sampling temperature; 0: greedy", temperature)
    .option("--top-k <n>", "sample from the n likeliest tokens; 0: all", nonNegativeInteger)
    .option("--top-p <share>", "sample from the likeliest tokens whose probabilities add up to this", share)
    .option(
      "--min-p <share>",
      "drop tokens below this fraction of the likeliest token's probability",
      numberWithin(0, 1),
    )
    .option(
      "--repetition-penalty <x>",
      "penalize tokens that occurred before; 1: no penalty",
      numberWithin(0.001, 1000),
    )
    .option("--seed <n>", "seed of the sampling", seed);
}

/**
 * Chance only where it is asked for: greedy otherwise, though a repetition penalty holds for that as well. Throws `C-USAGE` for what
 * does nothing without chance.
 */
export function samplingOf(options: Sampling): Required<Sampling> {
  const { topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  const chosen = [options.topK, options.topP, options.minP, options.seed].some(
    (value) => value !== undefined,
  );
  if (chosen && options.temperature === 0)
    throw new SidenetError(
      "C-USAGE",
      "--temperature 0 takes the likeliest token each time, so --top-k, --top-p, --min-p and --seed do nothing. Leave one or the other out.",
    );
  const { temperature: heat = chosen ? 1 : 0, seed: first = 0 } = options;
  return { temperature: heat, topK, topP, minP, repetitionPenalty, seed: first };
}

/** As `--json` has it. */
export const samplingJson = ({
  temperature,
  topK,
  topP,
  minP,
  repetitionPenalty,
  seed,
}: Required<Sampling>) => ({
  temperature,
  top_k: topK,
  top_p: topP,
  min_p: minP,
  repetition_penalty: repetitionPenalty,
  seed,
});

/** What `generate` takes: null for the likeliest token each time. */
export const samplerOf = (sampling: Required<Sampling>): Sampling | null =>
  sampling.temperature === 0 && sampling.repetitionPenalty === 1 ? null : sampling;

/** For options that may be given several times. */
export const collect = repeatable((value: string, earlier: readonly string[] = []): string[] => [
  ...earlier,
  value,
]);
