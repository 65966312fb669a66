import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import type { Estimate } from "../eval/intervals.ts";
import { TASKS, type Task } from "../eval/tasks.ts";
import { type Estimates, type EvalSummary, evalRun } from "../node/eval-run.ts";
import { addConfigOptions } from "./config-options.ts";
import { mapOption, parseMapping } from "./data-options.ts";
import { peakJson, withDevice } from "./device.ts";
import { addInferenceOptions, type InferenceFlags, inferenceOptions } from "./inference-options.ts";
import { positiveInteger, seed } from "./options.ts";
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
  readonly device: DeviceName;
}

const HELP = `
Tasks, and the fields of a row of data (docs/guide-evaluate.md has the exact definitions):
  perplexity        text: over sliding windows of --context tokens, --stride apart; each token is scored once
  choice, boolq,    context?, question, choices, label: the choice of the largest log-likelihood, as it is and divided
  arc                 by the choice's bytes
  blimp             choices, label: the likelier of whole sentences
  critic            question, solution, label, first_error_step?: is the solution right; which step is wrong first
  gsm8k             question, answer: a text is written, and its final number compared

With --adapter every task is scored twice, without it (before) and with it (after), and the difference has an interval of its
own, over the same items. Intervals hold 95 %: Wilson's for shares of right answers, a bootstrap by --seed for the rest.

Examples:
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task boolq --data boolq.dev.jsonl --limit 200
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task critic --data critic.jsonl --adapter out/run
  $ npx sidenet eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task perplexity --data wikitext2.jsonl --join --max-tokens 20000`;

export function defineEval(program: Command, session: Session): void {
  const command = program
    .command("eval")
    .description(
      "Score a model, and an adapter against it: perplexity, multiple choice, final numbers, critic.",
    )
    .addOption(new Option("--task <name>", "what is asked").choices(TASKS).makeOptionMandatory())
    .requiredOption("--data <file...>", "JSONL, JSON, CSV, TSV, Parquet or text files")
    .addOption(
      new Option("--template <kind>", "questions as plain text, or as turns of the model's chat template")
        .choices(["plain", "chat"])
        .default("plain"),
    )
    .option("--limit <n>", "rows that are looked at, from the start (default: all)", positiveInteger)
    .addOption(mapOption())
    .option("--batch-size <n>", "prompts or windows that go through together", positiveInteger, 4)
    .option(
      "--context <n>",
      "perplexity: tokens of a window (default: 512, or the model's context)",
      positiveInteger,
    )
    .option(
      "--stride <n>",
      "perplexity: tokens between windows (default: half of --context)",
      positiveInteger,
    )
    .option("--join", "perplexity: all texts as one, with blank lines between", false)
    .option("--max-tokens <n>", "perplexity: tokens that are looked at (default: all)", positiveInteger)
    .option("--answer-tokens <n>", "gsm8k: tokens an answer may have", positiveInteger, 256)
    .option("--predictions <file>", "write what was found for each row, as JSON lines")
    .option("--seed <n>", "of the bootstrap", seed, 0);
  addInferenceOptions(command).addHelpText("after", HELP).action(session.action(evaluate));
  addConfigOptions(command);
}

async function evaluate(report: Report, flags: EvalFlags): Promise<Outcome> {
  const { task, data, template, batchSize, context, answerTokens } = flags;
  return withDevice(flags, report, async (device) => {
    const summary = await evalRun(
      device,
      {
        ...inferenceOptions(flags, report),
        ...{ task, data, template, batchSize, answerTokens },
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
        onLoad: (done, total) => report.progress(`reading the model: ${Math.round((100 * done) / total)} %`),
        onProgress: (pass, done, total) => report.progress(`${pass}: ${done} of ${total}`),
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

const cells = ({ value, low, high }: Estimate, isShare: boolean, sign = false): string =>
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
      `${summary.quantized ? "in NF4" : "as loaded"}`,
  ].join("\n");
}
