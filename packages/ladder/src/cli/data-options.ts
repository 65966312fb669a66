/** Options about the model and the data that several commands have. */
import { existsSync } from "node:fs";
import { SidenetError } from "@sidenet/tensor";
import { type Command, Option } from "commander";
import { type FieldMapping, RECORD_FIELDS, type RecordField } from "../data/field-mapping.ts";
import { QUESTION_TASKS, type QuestionTask } from "../eval/tasks.ts";
import type { WeightedFile } from "../node/run/train-run-options.ts";
import { countOrShare } from "./options.ts";

/** `--model` of the commands that read its weights. */
export const modelOption = (): Option =>
  new Option("--model <path>", "folder with config.json, .safetensors or .gguf file, hub id, or tiny-books");

export const mapOption = (): Option =>
  new Option("--map <field=name...>", "names of the fields in the data, such as question=problem");

/** Of `--map`. Throws `C-USAGE`. */
export function parseMapping(pairs: readonly string[]): FieldMapping {
  const fields: Partial<Record<RecordField, string>> = {};
  for (const pair of pairs) {
    const [, to, from] = /^([^=]+)=(.+)$/.exec(pair) ?? [];
    if (!RECORD_FIELDS.includes(to as RecordField)) {
      throw new SidenetError(
        "C-USAGE",
        `--map ${pair}: wanted FIELD=NAME with a field of ${RECORD_FIELDS.join(", ")}.`,
      );
    }
    fields[to as RecordField] = from;
  }
  return fields;
}

/** Fields of the records, as commander hands them over. */
export interface FieldFlags {
  readonly map?: readonly string[];
  readonly text?: string;
  readonly prompt?: string;
  readonly completion?: string;
}

export const addFieldOptions = (command: Command): Command =>
  command
    .option("--text <field>", "field with a text to train on")
    .option("--prompt <field>", "field with the prompt, which gets no loss")
    .option("--completion <field>", "field with the completion, which is trained on")
    .addOption(mapOption());

/** Throws `C-USAGE` for fields that do not go together. */
export function fieldMapping({ text, prompt, completion, map }: FieldFlags): FieldMapping {
  if (map !== undefined) {
    if (text === undefined && prompt === undefined && completion === undefined) return parseMapping(map);
    throw new SidenetError(
      "C-USAGE",
      "--map cannot be combined with --text, --prompt or --completion. Use one or the other.",
    );
  }
  if ((prompt === undefined) !== (completion === undefined) || (text !== undefined && prompt !== undefined)) {
    throw new SidenetError("C-USAGE", "give --text alone, or --prompt and --completion together.");
  }
  if (text !== undefined) return { text };
  return prompt !== undefined && completion !== undefined ? { prompt, completion } : {};
}

/** "a.jsonl:2.5" is a file and its weight, unless a file has that very name. */
export function weightedFile(text: string): WeightedFile {
  const [, path, digits] = /^(.+):([^:/\\]*)$/.exec(text) ?? [];
  if (path === undefined || existsSync(text)) return { path: text, weight: 1 };
  const weight = Number(digits);
  if (digits !== "" && weight > 0 && Number.isFinite(weight)) return { path, weight };
  throw new SidenetError(
    "C-USAGE",
    `--data ${text}: "${digits}" is no weight. Wanted a number above 0 after the colon.`,
  );
}

/** As commander hands them over. */
export interface QuestionFlags {
  readonly heldOut?: number;
  readonly evalData?: readonly string[];
  readonly task?: QuestionTask;
  readonly template: "plain" | "chat";
  readonly chatTemplate?: string;
  readonly prefix?: string;
}

/** How records are put to the model, and which it is evaluated with. */
export function addQuestionSettings(command: Command): void {
  command
    .option(
      "--held-out <n>",
      "records held out for evaluation, from the end of the data (default: a fifth, at most 16); below 1: a random fraction; 0: none",
      countOrShare,
    )
    .option("--eval-data <file...>", "evaluation files, in place of held-out records")
    .addOption(
      new Option(
        "--task <name>",
        "train on rows of this task, as eval asks them (default: records as they are)",
      ).choices(QUESTION_TASKS),
    )
    .addOption(
      new Option("--template <kind>", "prompt and completion as plain text, or as turns of the chat template")
        .choices(["plain", "chat"])
        .default("plain"),
    )
    .option("--chat-template <file>", "Jinja chat template, in place of the model's")
    .option(
      "--prefix <file>",
      "text before every record, such as solved examples; the frozen model reads it once",
    );
}
