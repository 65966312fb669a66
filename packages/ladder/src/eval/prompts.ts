/** Questions as tokens: what a model is shown, and what it may answer. */
import { SidenetError } from "@sidenet/tensor";
import type { ChatTemplate } from "../chat-template.ts";
import { contextLimit } from "../config.ts";
import type { Decoder } from "../decoder.ts";
import type { Source } from "../records.ts";
import type { Tokenizer } from "../tokenizer.ts";
import type { ScoringItem } from "./score-continuations.ts";
import type { ChoiceQuestion, Question } from "./tasks.ts";

/** A row of data and where it came from. */
export interface EvalRow {
  readonly value: unknown;
  readonly source: Source;
}

/** Questions as turns of the model's chat template, or as plain text. */
export type PromptTemplate = "plain" | "chat";

function templateOf(tokenizer: Tokenizer): ChatTemplate {
  const template = tokenizer.chatTemplate();
  if (template !== null) return template;
  throw new SidenetError(
    "L-CHAT-TEMPLATE",
    "the model has no chat template. Give one with --chat-template, or ask with --template plain.",
  );
}

/** The token that a text starts from where nothing is before it. */
function startId(tokenizer: Tokenizer): number {
  const id = tokenizer.bosId ?? tokenizer.eosIds[0];
  if (id !== undefined) return id;
  throw new SidenetError(
    "L-PROMPT",
    "the first token of a text is predicted from nothing: this model has no begin-of-text.",
  );
}

/** Ids of a question up to where its answer begins. */
export function promptIds({ user, ask }: Question, tokenizer: Tokenizer, template: PromptTemplate): number[] {
  if (ask === "") return [startId(tokenizer)];
  if (template === "plain") return tokenizer.encode(user + ask);
  const text = templateOf(tokenizer).render([{ role: "user", content: user }], true);
  return tokenizer.encode(text, { addSpecialTokens: false });
}

/** In plain text a blank stands before an answer; after a template's opening, and for texts of their own, none. */
const blank = ({ ask }: Question, template: PromptTemplate): string =>
  ask !== "" && template === "plain" ? " " : "";

/** Throws `L-RECORD` for a choice without tokens, which has no likelihood. */
export function scoringItem(
  question: ChoiceQuestion,
  source: Source,
  tokenizer: Tokenizer,
  template: PromptTemplate,
): ScoringItem {
  const { lead, ask } = question;
  const before = blank(question, template);
  const go = { addSpecialTokens: false, continues: ask !== "" };
  const prompt = promptIds(question, tokenizer, template);
  if (lead !== "") prompt.push(...tokenizer.encode(before + lead, go));
  const gap = lead !== "" ? " " : before;
  const end = question.ends ? tokenizer.eosIds.slice(0, 1) : [];
  const continuations = question.choices.map((choice) => [...tokenizer.encode(gap + choice, go), ...end]);
  const empty = continuations.findIndex(({ length }) => length === end.length);
  if (empty < 0) return { prompt, continuations };
  throw new SidenetError(
    "L-RECORD",
    `${source}: choice ${empty} is empty. Give it a text, or leave the row out.`,
  );
}

/** Throws `L-CONTEXT` with the first row that does not fit, before any is scored. */
export function checkLengths(
  rows: readonly EvalRow[],
  { config }: Decoder,
  lengthOf: (row: number) => number,
  cure = "",
): void {
  const limit = contextLimit(config);
  const row = rows.findIndex((_, i) => lengthOf(i) > limit);
  if (row < 0) return;
  throw new SidenetError(
    "L-CONTEXT",
    `${rows[row].source}: with its answer it has ${lengthOf(row)} tokens, more than the model's context of ${limit}. Leave the ` +
      `row out${cure}, or choose a model with a longer context.`,
  );
}

/** Tokens of a question with its longest answer, of which the last is never read. */
export const itemLength = ({ prompt, continuations }: ScoringItem): number =>
  prompt.length + Math.max(...continuations.map((ids) => ids.length)) - 1;
