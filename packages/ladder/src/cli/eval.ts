import { SidenetError } from "@sidenet/tensor";
import { type Command, Option } from "commander";
import type { Estimate } from "../eval/intervals.ts";
import { TASKS, type Task } from "../eval/tasks.ts";
import { type Estimates, type EvalSummary, evalRun } from "../node/eval-run.ts";
import { addConfigOptions } from "./config-options.ts";
import { mapOption, parseMapping } from "./data-options.ts";
import { peakJson, withDevice } from "./device.ts";
import { showLoading } from "./download-progress.ts";
import { addInferenceOptions, type InferenceFlags, inferenceOptions } from "./inference-options.ts";
import { givenOptions, positiveInteger, seed } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import { formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";

interface EvalFlags extends InferenceFlags {
  readonly task: Task;
  readonly data: readonly string[];
  readonly template: "plain" | "chat";
  readonly limit?: number;
  readonly batchSize: number;
  readonly context?: number;
  readonly stride?: number;
  readonly join: boolean;
  readonly maxTokens?: number;
  readonly answerTokens: number;
  readonly map?: readonly string[];
  readonly seed: number;
  readonly predictions?: string;
}

const HELP = `
Tasks, and the fields of a row of data (docs/guide-evaluate.md has the exact definitions):
  loss              any record that train takes: the loss of what train would learn of it
  perplexity        text: sliding windows of --context tokens, --stride tokens apart; each token is scored once
  choice, boolq,    context?, question, choices, label: the choice with the largest log-likelihood, and the same divided by
  arc                 the choice's length in bytes
  blimp             choices, label: the likelier of whole sentences
  critic            question, solution, label, first_error_step?: is the solution correct; which step is the first wrong one
  gsm8k             question, answer: an answer is generated and its final number compared

With --adapter every task is scored without the adapter (before) and with it (after); the difference has a confidence interval
of its own, over the same items. Intervals are at 95 %: Wilson's for proportions, a bootstrap seeded by --seed for the rest.

Examples:
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task loss --data dev.jsonl --adapter out/run
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task boolq --data boolq.dev.jsonl --limit 200
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task critic --data critic.jsonl --adapter out/run
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task perplexity --data wikitext2.jsonl --join --max-tokens 20000`;

export function defineEval(program: Command, session: Session): void {
  const command = program
    .command("eval")
    .description(
      "Evaluate a model with and without an adapter: loss, perplexity, multiple choice, gsm8k, critic.",
    )
    .addOption(new Option("--task <name>", "evaluation task").choices(TASKS).makeOptionMandatory())
    .requiredOption("--data <file...>", "JSONL, JSON, CSV, TSV, Parquet or text files")
    .addOption(
      new Option("--template <kind>", "questions as plain text, or as turns of the model's chat template")
        .choices(["plain", "chat"])
        .default("plain"),
    )
    .option("--limit <n>", "evaluate only the first n rows (default: all)", positiveInteger)
    .addOption(mapOption())
    .option("--batch-size <n>", "prompts or windows per batch", positiveInteger, 4)
    .option(
      "--context <n>",
      "perplexity: tokens per window (default: 512, or the model's context if shorter)",
      positiveInteger,
    )
    .option(
      "--stride <n>",
      "perplexity: tokens between windows (default: half of --context)",
      positiveInteger,
    )
    .option("--join", "perplexity: join all texts into one, separated by blank lines", false)
    .option(
      "--max-tokens <n>",
      "perplexity: evaluate only the first n tokens (default: all)",
      positiveInteger,
    )
    .option("--answer-tokens <n>", "gsm8k: maximum number of tokens of an answer", positiveInteger, 256)
    .option("--predictions <file>", "write the result for each row, as JSON lines")
    .option("--seed <n>", "seed of the bootstrap", seed, 0);
  addInferenceOptions(command).addHelpText("after", HELP).action(session.action(evaluate));
  addConfigOptions(command);
}

/** Options of one task. */
const TASK_OPTIONS: { readonly [flag in keyof EvalFlags]?: Task } = {
  context: "perplexity",
  stride: "perplexity",
  join: "perplexity",
  maxTokens: "perplexity",
  answerTokens: "gsm8k",
};

/** Throws `C-USAGE` for an option of another task: it would do nothing. */
function refuseOtherTasks(command: Command, task: Task): void {
  for (const option of givenOptions(command)) {
    const owner = TASK_OPTIONS[option.attributeName() as keyof EvalFlags] ?? task;
    if (owner !== task)
      throw new SidenetError(
        "C-USAGE",
        `${option.long} is for ${owner}, and does nothing for ${task}. Leave it out.`,
      );
  }
}

/** Throws `C-USAGE` for a template that nothing is put into. The end of its turns ends the answers of gsm8k, plain ones too. */
function refuseIdleTemplates({ task, template, chatTemplate }: EvalFlags): void {
  const asks = task !== "blimp" && task !== "perplexity";
  if (template === "chat" && !asks)
    throw new SidenetError(
      "C-USAGE",
      `--template chat does nothing for ${task}, which asks nothing. Leave it out.`,
    );
  if (chatTemplate !== undefined && template === "plain" && task !== "loss" && task !== "gsm8k")
    throw new SidenetError(
      "C-USAGE",
      `--chat-template does nothing for ${task} in plain text. ${asks ? "Add --template chat, or leave" : "Leave"} it out.`,
    );
}

async function evaluate(report: Report, flags: EvalFlags, command: Command): Promise<Outcome> {
  refuseOtherTasks(command, flags.task);
  refuseIdleTemplates(flags);
  const { task, data, template, batchSize, context, answerTokens } = flags;
  return withDevice(flags, report, async (device) => {
    const summary = await evalRun(
      device,
      {
        ...inferenceOptions(flags, report),
        task,
        data,
        template,
        batchSize,
        answerTokens,
        context: context ?? null,
        fields: parseMapping(flags.map ?? []),
        limit: flags.limit ?? null,
        stride: flags.stride ?? null,
        joinTexts: flags.join,
        maxTokens: flags.maxTokens ?? null,
        seed: flags.seed,
        predictions: flags.predictions ?? null,
      },
      {
        onLoad: showLoading(report),
        onProgress: (done, total) => report.progress(`scored ${done} of ${total}`),
      },
    );
    report.print(describe(summary));
    return { json: { ...summary, ...peakJson(device) } };
  });
}

/** Shares of right answers in percent, all else as it is. */
function number(value: number, isShare: boolean, sign = false): string {
  if (!Number.isFinite(value)) return "-"; // no item has a say
  const digits = isShare ? `${(100 * value).toFixed(1)} %` : value.toPrecision(5);
  return sign && value >= 0 ? `+${digits}` : digits;
}

const cells = ({ value, low, high }: Estimate, isShare: boolean, sign: boolean): string =>
  `${number(value, isShare, sign)} [${number(low, isShare, sign)}, ${number(high, isShare, sign)}]`;

const SHARES = /^(accuracy|exact_match|has_number|first_wrong_step)/;

function describe(summary: EvalSummary): string {
  const { before, after, difference } = summary;
  const row = (name: string): (string | number)[] => {
    const isShare = SHARES.test(name);
    const column = (estimates: Estimates | null, sign = false) =>
      estimates === null ? [] : [cells(estimates[name], isShare, sign)];
    return [name, before[name].count, ...column(before), ...column(after), ...column(difference, true)];
  };
  const head = [summary.task, "items", "before", ...(after ? ["after", "difference"] : [])];
  const constant = summary.constant_answer;
  return [
    formatTable(head, Object.keys(before).map(row)),
    "",
    ...(constant ? [`always "${constant.answer}" would be ${number(constant.accuracy, true)} right`] : []),
    `${summary.count} items in ${summary.seconds.toFixed(1)} s; intervals of 95 %; ${summary.template} template; linear weights ` +
      `${summary.quantized ? "in NF4" : "as loaded"}` +
      (summary.prefix_tokens > 0 ? `; after a prefix of ${summary.prefix_tokens} tokens` : ""),
  ].join("\n");
}
