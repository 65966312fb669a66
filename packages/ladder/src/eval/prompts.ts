/** Questions as tokens: what a model is shown, and what it may answer. */
import { SidenetError } from "@sidenet/tensor";
import type { Source } from "../data/records.ts";
import type { Row } from "../data/rows.ts";
import type { Decoder } from "../model/decoder.ts";
import { requireChatTemplate, startId, type Tokenizer, turnEndId } from "../text/tokenizer.ts";
import type { ScoringItem } from "./score-continuations.ts";
import type { ChoiceQuestion, FollowUp, Question } from "./tasks.ts";

/** Questions as turns of the model's chat template, or as plain text. */
export type PromptTemplate = "plain" | "chat";

/** Ids of a question up to where its answer begins. */
export function promptIds({ user, ask }: Question, tokenizer: Tokenizer, template: PromptTemplate): number[] {
  if (ask === "") return [startId(tokenizer)];
  if (template === "plain") return tokenizer.encode(user + ask);
  const chat = requireChatTemplate(tokenizer, "the model", "ask with --template plain");
  const text = chat.render([{ role: "user", content: user }], true);
  return tokenizer.encode(text, { addSpecialTokens: false });
}

/** Encodes what follows a question. In plain text an answer begins with a blank; after a chat template's opening it does not. */
export function encodeAnswer(
  { ask }: Question,
  answer: string,
  tokenizer: Tokenizer,
  template: PromptTemplate,
): number[] {
  const blank = ask !== "" && template === "plain" ? " " : "";
  return tokenizer.encode(blank + answer, { addSpecialTokens: false, continues: ask !== "" });
}

/** Throws `L-RECORD` for a choice without tokens, which has no likelihood. */
export function scoringItem(
  question: ChoiceQuestion,
  source: Source,
  tokenizer: Tokenizer,
  template: PromptTemplate,
): ScoringItem {
  const continuations = question.choices.map((choice) => encodeAnswer(question, choice, tokenizer, template));
  const empty = continuations.findIndex(({ length }) => length === 0);
  if (empty < 0) return { prompt: promptIds(question, tokenizer, template), continuations };
  throw new SidenetError(
    "L-RECORD",
    `${source}: choice ${empty} is empty. Give it a text, or leave the row out.`,
  );
}

/**
 * Answers to a follow-up, each with the token that ends it, a text's or a turn's: without it 1 would be likelier than 12, which
 * begins with it.
 */
export function followUpIds(
  { choices }: FollowUp,
  tokenizer: Tokenizer,
  template: PromptTemplate,
): number[][] {
  const turnEnd = template === "chat" ? turnEndId(tokenizer) : null;
  const end = turnEnd === null ? tokenizer.eosIds.slice(0, 1) : [turnEnd];
  return choices.map((choice) => [
    ...tokenizer.encode(` ${choice}`, { addSpecialTokens: false, continues: true }),
    ...end,
  ]);
}

/** Throws `L-CONTEXT` with the first row that does not fit, before any is scored. */
export function checkLengths(
  rows: readonly Row[],
  { contextLimit: limit, contextText }: Decoder,
  lengthOf: (row: number) => number,
  cure = "",
): void {
  const row = rows.findIndex((_, i) => lengthOf(i) > limit);
  if (row < 0) return;
  throw new SidenetError(
    "L-CONTEXT",
    `${rows[row].source}: with its answer it has ${lengthOf(row)} tokens, more than ${contextText}. Leave the ` +
      `row out${cure}, or choose a model with a longer context.`,
  );
}
