import { SidenetError } from "@sidenet/tensor";
import { type Command, Option } from "commander";
import { deviceName } from "../device-name.ts";
import { checkPrompts, type Sampling } from "../generation/generate.ts";
import { type Continuation, generateTexts } from "../generation/generate-text.ts";
import { readText } from "../node/file-source.ts";
import { type Inference, openInference } from "../node/inference.ts";
import { requireChatTemplate, startId } from "../text/tokenizer.ts";
import { addConfigOptions } from "./config-options.ts";
import { peakJson, withDevice } from "./device.ts";
import { showLoading } from "./download-progress.ts";
import {
  addInferenceOptions,
  addSamplingOptions,
  collect,
  type InferenceFlags,
  inferenceOptions,
  samplerOf,
  samplingJson,
  samplingOf,
} from "./inference-options.ts";
import { positiveInteger } from "./options.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { Interrupt } from "./signals.ts";
import type { Report } from "./terminal.ts";

interface GenerateFlags extends InferenceFlags, Sampling {
  readonly prompt?: readonly string[];
  readonly promptFile?: string;
  readonly template: "plain" | "chat";
  readonly system?: string;
  readonly maxTokens: number;
  readonly stop?: readonly string[];
  readonly batchSize: number;
}

const HELP = `
Decoding is greedy unless one of --temperature, --top-k, --top-p, --min-p and --seed is given; then the temperature is 1 by
default, the seed 0, and the same seed gives the same text. --top-k, --top-p and --min-p are applied in this order. Prompts in
a batch do not influence each other. Ctrl-C ends the text; what there is of it stands, and the exit code is 130.

Examples:
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The capital of France is" --max-tokens 16
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/run --prompt "Question: ..."
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt "Once" --temperature 0.8 --top-p 0.95 --seed 7
  $ npx sidenet generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompt-file prompts.txt --stop "." --json`;

export function defineGenerate(program: Command, session: Session): void {
  const command = program
    .command("generate")
    .description("Generate text with a model and, if given, an adapter.")
    .option("--prompt <text>", "text to continue; may be given again", collect)
    .option("--prompt-file <file>", "file of texts to continue, one per line")
    .addOption(
      new Option(
        "--template <kind>",
        "plain: continue the prompt; chat: answer it as a user's turn of the chat template",
      )
        .choices(["plain", "chat"])
        .default("plain"),
    )
    .option("--system <text>", "chat: system message")
    .option("--max-tokens <n>", "maximum number of new tokens", positiveInteger, 64)
    .option("--stop <text>", "end the text before this string; may be given again", collect)
    .option("--batch-size <n>", "prompts per batch", positiveInteger, 8);
  addInferenceOptions(addSamplingOptions(command))
    .addHelpText("after", HELP)
    .action(session.action(continueTexts));
  addConfigOptions(command);
}

async function promptsOf({ prompt = [], promptFile }: GenerateFlags): Promise<string[]> {
  const lines = promptFile === undefined ? [] : (await readText(promptFile)).split("\n");
  const prompts = [...prompt, ...lines.filter((line) => line !== "")];
  if (prompts.length > 0) return prompts;
  throw new SidenetError(
    "C-USAGE",
    "there is nothing to continue: give --prompt, or --prompt-file with a line or more.",
  );
}

function idsOf(
  prompt: string,
  { tokenizer }: Inference,
  { template, system, model }: GenerateFlags,
): number[] {
  if (template === "plain") {
    if (system !== undefined) throw new SidenetError("C-USAGE", "--system needs --template chat.");
    const ids = tokenizer.encode(prompt);
    return ids.length > 0 ? ids : [startId(tokenizer)]; // a text from nothing
  }
  const chat = requireChatTemplate(tokenizer, model, "continue plain text");
  const messages = [
    ...(system === undefined ? [] : [{ role: "system", content: system }]),
    { role: "user", content: prompt },
  ];
  return tokenizer.encode(chat.render(messages, true), { addSpecialTokens: false });
}

async function continueTexts(report: Report, flags: GenerateFlags): Promise<Outcome> {
  const sampling = samplingOf(flags);
  const prompts = await promptsOf(flags);
  return withDevice(flags, report, async (device) => {
    using inference = await openInference(device, inferenceOptions(flags, report), showLoading(report));
    const ids = prompts.map((prompt) => idsOf(prompt, inference, flags));
    const started = performance.now();
    const all = await writeTexts(report, inference, flags, prompts, ids, samplerOf(sampling));
    const seconds = (performance.now() - started) / 1000;
    const count = all.reduce((sum, one) => sum + one.ids.length, 0);
    report.note(`${count} tokens in ${seconds.toFixed(1)} s`);
    const results = all.map(({ text, ids: own, stopped }, i) => ({
      prompt: prompts[i],
      text,
      ids: own,
      prompt_ids: ids[i],
      stopped,
    }));
    const { prompt: _, ...first } = results[0];
    const isWhole = all.length === prompts.length && all.every(({ stopped }) => stopped !== "interrupted");
    return {
      exitCode: isWhole ? EXIT.ok : EXIT.SIGINT,
      json: {
        ...first,
        results,
        seconds,
        tokens_per_second: count / seconds,
        model: flags.model,
        adapter: flags.adapter ?? null,
        device: deviceName(device),
        sampling: samplingJson(sampling),
        ...peakJson(device),
      },
    };
  });
}

/** Writes the text after each prompt: a single one as it comes, several one after the other. */
async function writeTexts(
  report: Report,
  { decoder, adapter, tokenizer }: Inference,
  flags: GenerateFlags,
  prompts: readonly string[],
  ids: readonly (readonly number[])[],
  sampling: Sampling | null,
): Promise<Continuation[]> {
  const { maxTokens, batchSize, stop = [] } = flags;
  const isSingle = prompts.length === 1;
  const shown = (i: number) => (flags.template === "plain" ? prompts[i] : "");
  const all: Continuation[] = [];
  checkPrompts(decoder, ids, flags); // before anything is written
  if (isSingle) report.write(shown(0));
  using interrupt = new Interrupt();
  for (let start = 0; start < ids.length && !interrupt.signal.aborted; start += batchSize) {
    const some = await generateTexts(decoder, adapter, tokenizer, ids.slice(start, start + batchSize), {
      maxTokens,
      stop,
      sampling,
      firstStream: start, // a prompt's text does not depend on --batch-size
      signal: interrupt.signal,
      ...(isSingle && { onText: (text: string) => report.write(text) }),
    });
    all.push(...some);
    if (isSingle) report.write("\n");
    else for (const [i, { text }] of some.entries()) report.print(`${shown(start + i)}${text}\n`);
  }
  return all;
}
