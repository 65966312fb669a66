/** The tasks, scored: rows of data in, metrics out. It reads no files and prints nothing. */
import { SidenetError } from "@sidenet/tensor";
import { describeFields, encodeRecord, encodingBy, parseRecord } from "../data/records.ts";
import type { Row } from "../data/rows.ts";
import { type Continuation, generateTexts } from "../generation/generate-text.ts";
import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { finalNumber } from "./final-number.ts";
import type { Metric } from "./intervals.ts";
import { scoredBytes, scoreWindows, slidingWindows, type WindowScore } from "./perplexity.ts";
import {
  checkLengths,
  encodeAnswer,
  followUpIds,
  type PromptTemplate,
  promptIds,
  scoringItem,
} from "./prompts.ts";
import { itemLength, type Scores, scoreContinuations } from "./score-continuations.ts";
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
  type Task,
} from "./tasks.ts";

export type { PromptTemplate } from "./prompts.ts";

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

/** A task over its rows, tokenized. */
export interface Evaluation {
  /** Questions, or windows of text. */
  readonly count: number;
  /** What an accuracy is to be held against; null where no one answer is among the choices of all questions. */
  readonly constantAnswer: ConstantAnswer | null;
  /**
   * Scores a model with each adapter; null is the model alone. Adapters that leave the backbone's hidden states as they are share
   * its passes, except in `gsm8k`, where each writes a text of its own. Throws what the device throws.
   */
  run(
    decoder: Decoder,
    adapters: readonly (Adapter | null)[],
    onProgress?: OnProgress,
  ): Promise<EvalResult[]>;
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
  rows: readonly Row[],
  tokenizer: Tokenizer,
  options: EvalOptions,
): Evaluation {
  if (options.task === "loss") return loss(rows, tokenizer, options);
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

function choices(rows: readonly Row[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const { batchSize } = options;
  const questions = rows.map(({ value, source }) =>
    choiceQuestion(choiceRow(value, source, options.task), options.task),
  );
  const items = questions.map((question, i) =>
    scoringItem(question, rows[i].source, tokenizer, options.template),
  );
  const resultOf = (scored: readonly Scores[]): EvalResult => {
    const scores = scored.map(({ continuations }) => continuations);
    const chosen = scores.map(best);
    const normalized = scores.map((row, i) =>
      best(row.map((score, choice) => score / bytes(questions[i].choices[choice]))),
    );
    const right = (found: readonly number[]) => found.map((choice, i) => choice === questions[i].label);
    return {
      metrics: [proportion("accuracy", right(chosen)), proportion("accuracy_normalized", right(normalized))],
      predictions: questions.map(({ label }, i) => ({
        source: rows[i].source,
        label,
        chosen: chosen[i],
        chosen_normalized: normalized[i],
        log_likelihoods: scores[i],
      })),
    };
  };
  return {
    count: rows.length,
    constantAnswer: constantAnswer(questions),
    async run(decoder, adapters, onProgress) {
      checkLengths(rows, decoder, (i) => itemLength(items[i]));
      return (await scoreContinuations(decoder, adapters, items, { batchSize, onProgress })).map(resultOf);
    },
  };
}

function critic(rows: readonly Row[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const { batchSize, template } = options;
  const parsed = rows.map(({ value, source }) => criticRow(value, source));
  const verdicts = parsed.map(criticVerdict);
  const steps = parsed.map(criticStep);
  const items = verdicts.map((question, i) => {
    const step = steps[i];
    const item = scoringItem(question, rows[i].source, tokenizer, template);
    return step ? { ...item, afterLead: followUpIds(step, tokenizer, template) } : item;
  });
  const lead = encodeAnswer(verdicts[0], FIRST_WRONG_LEAD, tokenizer, template);
  const resultOf = (scores: readonly Scores[]): EvalResult => {
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
  };
  return {
    count: rows.length,
    constantAnswer: constantAnswer(verdicts),
    async run(decoder, adapters, onProgress) {
      checkLengths(rows, decoder, (i) => itemLength(items[i], lead));
      return (await scoreContinuations(decoder, adapters, items, { batchSize, lead, onProgress })).map(
        resultOf,
      );
    },
  };
}

/** In plain text a model continues with a question of its own. */
const NEXT_QUESTION = "\nQuestion:";

function finalNumbers(rows: readonly Row[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
  const questions = rows.map(({ value, source }) => gsm8kQuestion(gsm8kRow(value, source)));
  const prompts = questions.map((question) => promptIds(question, tokenizer, options.template));
  const resultOf = (answers: readonly Continuation[]): EvalResult => {
    const numbers = answers.map(({ text }) => finalNumber(text));
    const right = questions.map(({ final }, i) => numbers[i] === final);
    return {
      metrics: [
        proportion("exact_match", right),
        proportion(
          "has_number",
          numbers.map((number) => number !== null),
        ),
        { name: "answer_tokens", items: answers.map(({ ids }) => ({ top: ids.length, bottom: 1 })) },
      ],
      predictions: rows.map(({ source }, i) => ({
        source,
        final: questions[i].final,
        found: numbers[i],
        text: answers[i].text,
      })),
    };
  };
  return {
    count: rows.length,
    constantAnswer: null,
    async run(decoder, adapters, onProgress) {
      const { answerTokens } = options;
      checkLengths(rows, decoder, (i) => prompts[i].length + answerTokens - 1, ", lower --answer-tokens");
      const all = adapters.map((): Continuation[] => new Array(prompts.length));
      const order = [...prompts.keys()].sort((a, b) => prompts[a].length - prompts[b].length);
      for (let start = 0; start < order.length; start += options.batchSize) {
        const group = order.slice(start, start + options.batchSize);
        for (const [a, adapter] of adapters.entries()) {
          const found = await generateTexts(
            decoder,
            adapter,
            tokenizer,
            group.map((i) => prompts[i]),
            { maxTokens: answerTokens, stop: [NEXT_QUESTION] },
          );
          for (const [g, i] of group.entries()) all[a][i] = found[g];
        }
        onProgress?.(start + group.length, order.length);
      }
      return all.map(resultOf);
    },
  };
}

/** Of windows or records that were scored. */
function tokenMetrics(scores: readonly WindowScore[]): Metric[] {
  const items = scores.map(({ nats, tokens }) => ({ top: nats, bottom: tokens }));
  return [
    { name: "perplexity", items, transform: "exp" },
    { name: "nats_per_token", items },
  ];
}

/** Records as `train` encodes them: what it would learn of each is scored. */
function loss(rows: readonly Row[], tokenizer: Tokenizer, { batchSize, template }: EvalOptions): Evaluation {
  const encoding = {
    ...encodingBy(tokenizer),
    maxLength: Number.POSITIVE_INFINITY, // run() knows the context, and a prefix in it
    cut: false,
    asChat: template === "chat",
  };
  const records = rows.map(({ value, source }) =>
    encodeRecord(parseRecord(value, source), source, tokenizer, encoding),
  );
  const resultOf = (scores: readonly WindowScore[]): EvalResult => ({
    metrics: tokenMetrics(scores),
    predictions: scores.map((score, i) => ({ source: rows[i].source, ...score })),
  });
  return {
    count: rows.length,
    constantAnswer: null,
    async run(decoder, adapters, onProgress) {
      checkLengths(rows, decoder, (i) => records[i].inputIds.length);
      return (await scoreWindows(decoder, adapters, records, { batchSize, onProgress })).map(resultOf);
    },
  };
}

function textOf({ value, source }: Row): string {
  const text = (value as { text?: unknown } | null)?.text;
  if (typeof text === "string") return text;
  throw new SidenetError(
    "L-RECORD",
    `${source}: it has no text, but ${describeFields(value)}. Map the one that is scored, such as --map text=completion.`,
  );
}

function perplexity(rows: readonly Row[], tokenizer: Tokenizer, options: EvalOptions): Evaluation {
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
  const byteCounts = kept.flatMap(({ ids }) => scoredBytes(ids, context, stride, tokenizer));
  if (windows.length === 0) {
    throw new SidenetError(
      "L-EVAL",
      "no text has two tokens, so there is nothing to score. Is this the right file?",
    );
  }
  const resultOf = (scores: readonly WindowScore[]): EvalResult => {
    const bits = scores.map(({ nats }, i) => ({ top: nats * (1 / Math.LN2), bottom: byteCounts[i] }));
    return {
      metrics: [...tokenMetrics(scores), { name: "bits_per_byte", items: bits }],
      predictions: scores.map((score, i) => ({ source: windows[i].source, ...score })),
    };
  };
  return {
    count: windows.length,
    constantAnswer: null,
    async run(decoder, adapters, onProgress) {
      if (context > decoder.contextLimit) {
        throw new SidenetError(
          "L-OPTION",
          `windows of ${context} tokens pass ${decoder.contextText}. Lower --context.`,
        );
      }
      return (await scoreWindows(decoder, adapters, windows, { batchSize, onProgress })).map(resultOf);
    },
  };
}
