/** The tasks, scored: rows of data in, metrics out. It reads no files and prints nothing. */
import { SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../adapter.ts";
import { contextLimit } from "../config.ts";
import type { Decoder } from "../decoder.ts";
import { generateTexts } from "../generate-text.ts";
import { describeFields } from "../records.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { finalNumber } from "./final-number.ts";
import type { Metric } from "./intervals.ts";
import { scoreWindows, slidingWindows } from "./perplexity.ts";
import {
  checkLengths,
  type EvalRow,
  encodeAnswer,
  followUpIds,
  type PromptTemplate,
  promptIds,
  scoringItem,
} from "./prompts.ts";
import { itemLength, scoreContinuations } from "./score-continuations.ts";
import {
  type ChoiceQuestion,
  choiceQuestion,
  choiceRow,
  criticRow,
  criticStep,
  criticVerdict,
  FIRST_WRONG_LEAD,
  gsm8kQuestion,
  gsm8kRow,
  isRight,
  type Task,
} from "./tasks.ts";

export type { EvalRow, PromptTemplate } from "./prompts.ts";

/** How a model is evaluated. */
export interface EvalOptions {
  readonly task: Task;
  readonly template: PromptTemplate;
  /** Prompts, or windows, that go through the model together. */
  readonly batchSize: number;
  /** Tokens of a window, and by how many the next is further on. */
  readonly context: number;
  readonly stride: number;
  /** All texts as one, with a blank line between, instead of each by itself. */
  readonly joinTexts: boolean;
  /** Tokens of text that are looked at, from the start; null: all. */
  readonly maxTokens: number | null;
  /** Tokens that a generated answer may have. */
  readonly answerTokens: number;
}

/** Called with the number of items scored so far and in all. */
export type OnProgress = (done: number, total: number) => void;

/** The single answer that is right most often, and its accuracy when given to every question. */
export interface ConstantAnswer {
  readonly answer: string;
  readonly accuracy: number;
}

function constantAnswer(questions: readonly ChoiceQuestion[]): ConstantAnswer | null {
  const [{ choices }] = questions;
  const isSame = (other: readonly string[]) => other.join("\n") === choices.join("\n");
  if (!questions.every((question) => isSame(question.choices))) return null;
  const right = choices.map((_, i) => questions.filter(({ label }) => label === i).length);
  const most = best(right);
  return { answer: choices[most], accuracy: right[most] / questions.length };
}

/** A task over its rows, tokenized; scored with or without an adapter. */
export interface Evaluation {
  /** Questions, or windows of text. */
  readonly count: number;
  /** What an accuracy is to be held against; null where no one answer is among the choices of all questions. */
  readonly constantAnswer: ConstantAnswer | null;
  /** Scores a model, with an adapter or (null) without. Throws what the device throws. */
  run(decoder: Decoder, adapter: Adapter | null, onProgress?: OnProgress): Promise<EvalResult>;
}

/** What a model, or a model with an adapter, scored. */
export interface EvalResult {
  /** The first is the task's main score. */
  readonly metrics: readonly Metric[];
  /** What was found for each item, for a file. */
  readonly predictions: readonly object[];
}

/** Turns rows into what is scored. Throws `L-RECORD`, `L-CHAT-TEMPLATE`, `L-OPTION` or `L-EVAL`. */
export function prepareEvaluation(
  rows: readonly EvalRow[],
  tokenizer: Tokenizer,
  options: EvalOptions,
): Evaluation {
  if (options.task === "perplexity") return perplexity(rows, tokenizer, options);
  if (options.task === "gsm8k") return finalNumbers(rows, tokenizer, options);
  if (options.task === "critic") return critic(rows, tokenizer, options);
  return choices(rows, tokenizer, options);
}

const bytes = (text: string): number => new TextEncoder().encode(text).length;

/** Index of the largest; the first of equals. */
const best = (values: readonly number[]): number => values.indexOf(Math.max(...values));

const proportion = (name: string, right: readonly (boolean | null)[]): Metric => ({
  name,
  items: right.map((one) => ({ top: one ? 1 : 0, bottom: one === null ? 0 : 1 })),
});

function choices(rows: readonly EvalRow[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const { batchSize } = options;
  const questions = rows.map(({ value, source }) => choiceQuestion(choiceRow(value, source), options.task));
  const items = questions.map((question, i) =>
    scoringItem(question, rows[i].source, tokenizer, options.template),
  );
  return {
    count: rows.length,
    constantAnswer: constantAnswer(questions),
    async run(decoder, adapter, onProgress) {
      checkLengths(rows, decoder, (i) => itemLength(items[i]));
      const scored = await scoreContinuations(decoder, adapter, items, { batchSize, onProgress });
      const scores = scored.map(({ continuations }) => continuations);
      const chosen = scores.map(best);
      const normalized = scores.map((row, i) =>
        best(row.map((score, choice) => score / bytes(questions[i].choices[choice]))),
      );
      const right = (found: readonly number[]) => found.map((choice, i) => choice === questions[i].label);
      return {
        metrics: [
          proportion("accuracy", right(chosen)),
          proportion("accuracy_normalized", right(normalized)),
        ],
        predictions: questions.map(({ label }, i) => ({
          source: rows[i].source,
          label,
          chosen: chosen[i],
          chosen_normalized: normalized[i],
          log_likelihoods: scores[i],
        })),
      };
    },
  };
}

function critic(rows: readonly EvalRow[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const { batchSize, template } = options;
  const parsed = rows.map(({ value, source }) => criticRow(value, source));
  const verdicts = parsed.map(criticVerdict);
  const steps = parsed.map(criticStep);
  const items = verdicts.map((question, i) => {
    const step = steps[i];
    const item = scoringItem(question, rows[i].source, tokenizer, template);
    return step ? { ...item, afterLead: followUpIds(step, tokenizer) } : item;
  });
  const lead = encodeAnswer(verdicts[0], FIRST_WRONG_LEAD, tokenizer, template);
  return {
    count: rows.length,
    constantAnswer: constantAnswer(verdicts),
    async run(decoder, adapter, onProgress) {
      checkLengths(rows, decoder, (i) => itemLength(items[i], lead));
      const scores = await scoreContinuations(decoder, adapter, items, { batchSize, lead, onProgress });
      const verdict = scores.map(({ continuations }) => best(continuations));
      const step = scores.map(({ afterLead }, i) => (steps[i] ? best(afterLead) : null));
      const right = verdict.map((found, i) => found === verdicts[i].label);
      const of = (label: number) => right.map((one, i) => (verdicts[i].label === label ? one : null));
      const stepRight = steps.map((known, i) => known && step[i] === known.label);
      return {
        metrics: [
          proportion("accuracy", right),
          proportion("accuracy_of_incorrect", of(0)),
          proportion("accuracy_of_correct", of(1)),
          proportion("first_wrong_step", stepRight),
        ],
        predictions: rows.map(({ source }, i) => ({
          source,
          label: verdicts[i].label,
          chosen: verdict[i],
          log_likelihoods: scores[i].continuations,
          first_error_step: steps[i]?.label ?? null,
          chosen_step: step[i],
        })),
      };
    },
  };
}

/** In plain text a model continues with a question of its own. */
const NEXT_QUESTION = "\nQuestion:";

function finalNumbers(rows: readonly EvalRow[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const questions = rows.map(({ value, source }) => gsm8kQuestion(gsm8kRow(value, source)));
  const prompts = questions.map((question) => promptIds(question, tokenizer, options.template));
  return {
    count: rows.length,
    constantAnswer: null,
    async run(decoder, adapter, onProgress) {
      const { answerTokens } = options;
      checkLengths(rows, decoder, (i) => prompts[i].length + answerTokens - 1, ", lower --answer-tokens");
      const texts: string[] = questions.map(() => "");
      const tokens: number[] = questions.map(() => 0);
      const order = [...prompts.keys()].sort((a, b) => prompts[a].length - prompts[b].length);
      for (let start = 0; start < order.length; start += options.batchSize) {
        const group = order.slice(start, start + options.batchSize);
        const found = await generateTexts(
          decoder,
          adapter,
          tokenizer,
          group.map((i) => prompts[i]),
          { maxTokens: answerTokens, stop: [NEXT_QUESTION] },
        );
        for (const [g, i] of group.entries()) {
          texts[i] = found[g].text;
          tokens[i] = found[g].ids.length;
        }
        onProgress?.(start + group.length, order.length);
      }
      const right = questions.map((question, i) => isRight(question, texts[i]));
      return {
        metrics: [
          proportion("exact_match", right),
          proportion(
            "has_number",
            texts.map((text) => finalNumber(text) !== null),
          ),
          { name: "answer_tokens", items: tokens.map((count) => ({ top: count, bottom: 1 })) },
        ],
        predictions: rows.map(({ source }, i) => ({
          source,
          final: questions[i].final,
          found: finalNumber(texts[i]),
          text: texts[i],
        })),
      };
    },
  };
}

function textOf({ value, source }: EvalRow): string {
  const text = (value as { text?: unknown } | null)?.text;
  if (typeof text === "string") return text;
  throw new SidenetError(
    "L-RECORD",
    `${source}: it has no text, but ${describeFields(value)}. Map the one that is scored, such as --map text=completion.`,
  );
}

function perplexity(rows: readonly EvalRow[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const { batchSize, context, stride, joinTexts, maxTokens } = options;
  if (!(stride < context)) {
    throw new SidenetError(
      "L-OPTION",
      `a stride of ${stride} leaves nothing before the first token of a window of ${context}. Take one below ${context}.`,
    );
  }
  const texts = rows.map((row) => ({ text: textOf(row), source: row.source }));
  const documents = joinTexts
    ? [{ text: texts.map(({ text }) => text).join("\n\n"), source: texts[0].source }]
    : texts;
  let left = maxTokens ?? Number.POSITIVE_INFINITY;
  const kept = documents.map(({ text, source }) => {
    const ids = tokenizer.encode(text).slice(0, left);
    left -= ids.length;
    return { ids, source };
  });
  const windows = kept.flatMap(({ ids, source }) => slidingWindows(ids, context, stride, source));
  if (windows.length === 0) {
    throw new SidenetError(
      "L-EVAL",
      "no text has two tokens, so there is nothing to score. Is this the right file?",
    );
  }
  const byteCounts = windows.map(({ labels }) => bytes(tokenizer.decode(labels.filter((id) => id !== -100))));
  return {
    count: windows.length,
    constantAnswer: null,
    async run(decoder, adapter, onProgress) {
      const limit = contextLimit(decoder.config);
      if (context > limit) {
        throw new SidenetError(
          "L-OPTION",
          `windows of ${context} tokens pass the model's context of ${limit}. Lower --context.`,
        );
      }
      const scores = await scoreWindows(decoder, adapter, windows, { batchSize, onProgress });
      const nats = (bottom: (i: number) => number, scale = 1) =>
        scores.map((score, i) => ({ top: score.nats * scale, bottom: bottom(i) }));
      return {
        metrics: [
          { name: "perplexity", items: nats((i) => scores[i].tokens), transform: "exp" },
          { name: "nats_per_token", items: nats((i) => scores[i].tokens) },
          { name: "bits_per_byte", items: nats((i) => byteCounts[i], 1 / Math.LN2) },
        ],
        predictions: scores.map((score, i) => ({ source: windows[i].source, ...score })),
      };
    },
  };
}
