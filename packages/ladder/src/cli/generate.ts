import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import type { WeightDType } from "../base-storage.ts";
import { Decoder } from "../decoder.ts";
import { generate, type Sampling } from "../generate.ts";
import { loadWeights } from "../load-weights.ts";
import { openAdapter } from "../node/adapter-files.ts";
import { openModel } from "../node/open-model.ts";
import { deviceOption, jsonOption, withDevice } from "./device.ts";
import { hubOptions } from "./download-progress.ts";
import { nonNegativeInteger, numberWithin, positiveInteger, seed, share, temperature } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import type { Report } from "./terminal.ts";

interface GenerateOptions extends Sampling {
  readonly model: string;
  readonly adapter?: string;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly device: DeviceName;
  readonly dtype: WeightDType;
}

const HELP = `
The prompt is continued as it stands; no chat template is put around it. The likeliest token is taken each time, unless
one of --temperature, --top-k, --top-p, --min-p and --seed asks for chance: temperature is then 1 where it is not given,
seed 0, and the same seed gives the same text. Tokens are cut by --top-k, --top-p and --min-p, in this order.

Examples:
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The capital of France is" --max-tokens 16
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/run --prompt "Question: ..."
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "Once" --temperature 0.8 --top-p 0.95 --seed 7`;

/** Chance only where it is asked for: greedy otherwise, though a repetition penalty holds for that as well. */
function samplingOf(options: Sampling): Required<Sampling> {
  const { topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  const chosen = [options.topK, options.topP, options.minP, options.seed].some(
    (value) => value !== undefined,
  );
  const { temperature = chosen ? 1 : 0, seed = 0 } = options;
  return { temperature, topK, topP, minP, repetitionPenalty, seed };
}

export function defineGenerate(program: Command, session: Session): void {
  program
    .command("generate")
    .description("Continue a text with a model and, if given, an adapter.")
    .requiredOption("--model <path>", "folder with config.json, .safetensors or .gguf file, or hub id")
    .requiredOption("--prompt <text>", "text to continue")
    .option("--adapter <dir>", "folder that train wrote")
    .option("--max-tokens <n>", "new tokens at most", positiveInteger, 64)
    .option("--temperature <t>", "chance of less likely tokens: 0 for none, 1 as the model says", temperature)
    .option("--top-k <n>", "draw from the n likeliest tokens; 0 for all", nonNegativeInteger)
    .option("--top-p <share>", "draw from the likeliest tokens that have this share together", share)
    .option(
      "--min-p <share>",
      "draw from tokens with this share of the likeliest one's, or more",
      numberWithin(0, 1),
    )
    .option("--repetition-penalty <x>", "divide the logits of earlier tokens", numberWithin(0.001, 1000))
    .option("--seed <n>", "seed of the draws", seed)
    .addOption(new Option("--dtype <type>", "storage of the weights").choices(["f32", "f16"]).default("f32"))
    .addOption(deviceOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(continueText));
}

async function continueText(report: Report, options: GenerateOptions): Promise<Outcome> {
  const model = await openModel(options.model, hubOptions(report));
  try {
    const tokenizer = await model.tokenizer();
    return await withDevice(options.device, report, async (device) => {
      const onProgress = (done: number, total: number) =>
        report.progress(`reading the model: ${Math.round((100 * done) / total)} %`);
      const weights = await loadWeights(device, model.config, model.checkpoint, {
        dtype: options.dtype,
        onProgress,
      });
      using decoder = new Decoder(model.config, weights);
      using adapter =
        options.adapter === undefined ? null : await openAdapter(options.adapter, device, model.config);
      const promptIds = tokenizer.encode(options.prompt);
      const sampling = samplingOf(options);
      const started = performance.now();
      const ids = await generate(decoder, adapter, promptIds, {
        maxTokens: options.maxTokens,
        stopIds: tokenizer.eosIds,
        sampling: sampling.temperature === 0 && sampling.repetitionPenalty === 1 ? null : sampling,
        onToken: () => report.progress(`${((performance.now() - started) / 1000).toFixed(0)} s`),
      });
      const seconds = (performance.now() - started) / 1000;
      const text = tokenizer.decode(ids);
      report.print(options.prompt + text);
      report.note(`${ids.length} tokens in ${seconds.toFixed(1)} s`);
      return {
        json: {
          text,
          ids,
          prompt_ids: promptIds,
          stopped: ids.length < options.maxTokens ? "end of text" : "max tokens",
          seconds,
          tokens_per_second: ids.length / seconds,
          device: device.kind,
          adapter: options.adapter ?? null,
          sampling,
        },
      };
    });
  } finally {
    await model.close();
  }
}
