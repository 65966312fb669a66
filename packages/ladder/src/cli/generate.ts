import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import { Decoder } from "../decoder.ts";
import { generateGreedy } from "../generate.ts";
import { loadWeights, type WeightDType } from "../load-weights.ts";
import { loadAdapter } from "../node/adapter-files.ts";
import { openModel } from "../node/open-model.ts";
import { deviceOption, jsonOption, withDevice } from "./device.ts";
import { positiveInteger } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import type { Report } from "./terminal.ts";

interface GenerateOptions {
  readonly model: string;
  readonly adapter?: string;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly device: DeviceName;
  readonly dtype: WeightDType;
}

const HELP = `
The prompt is continued as it stands, greedily; no chat template is put around it.

Example:
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The capital of France is" --max-tokens 16
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/run --prompt "Question: ..."`;

export function defineGenerate(program: Command, session: Session): void {
  program
    .command("generate")
    .description("Continue a text with a model and, if given, an adapter.")
    .requiredOption("--model <path>", "folder with config.json, .safetensors or .gguf file, or hub id")
    .requiredOption("--prompt <text>", "text to continue")
    .option("--adapter <dir>", "folder that train wrote")
    .option("--max-tokens <n>", "new tokens at most", positiveInteger, 64)
    .addOption(new Option("--dtype <type>", "storage of the weights").choices(["f32", "f16"]).default("f32"))
    .addOption(deviceOption(["auto", "webgpu", "cpu"]))
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(generate));
}

async function generate(report: Report, options: GenerateOptions): Promise<Outcome> {
  const model = await openModel(options.model);
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
      using side =
        options.adapter === undefined ? null : await loadAdapter(options.adapter, device, model.config);
      const promptIds = tokenizer.encode(options.prompt);
      const started = performance.now();
      const ids = await generateGreedy(decoder, side, promptIds, {
        maxTokens: options.maxTokens,
        stopIds: tokenizer.eosIds,
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
        },
      };
    });
  } finally {
    await model.close();
  }
}
