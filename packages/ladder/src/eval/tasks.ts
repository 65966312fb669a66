/** What the tasks of `eval` ask: rows of data as questions, each in plain text and as a person would put it in a chat. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import {
  ANSWER,
  type ChoiceRecord,
  choiceSchema,
  describeFields,
  questionText,
  type Source,
  type TextRecord,
} from "../data/records.ts";
import { finalNumber } from "./final-number.ts";

/** Tasks whose rows are questions with a right answer, which can be trained on too. */
export const QUESTION_TASKS = ["choice", "boolq", "arc", "blimp", "critic", "gsm8k"] as const;
/** The name of such a task, as `train --task` takes it. */
export type QuestionTask = (typeof QUESTION_TASKS)[number];
/** Names of the tasks of `eval`; docs/guide-evaluate.md defines each. */
export const TASKS = ["loss", "perplexity", ...QUESTION_TASKS] as const;
/** The name of a task, as `eval --task` takes it. */
export type Task = (typeof TASKS)[number];

/** What a model is asked, before any template. */
export interface Question {
  /** A user's turn. */
  readonly user: string;
  /** Ends the question in plain text; "": nothing is asked, and the choices are texts of their own. */
  readonly ask: string;
}

/** A question of which one of several answers is right. */
export interface ChoiceQuestion extends Question {
  readonly choices: readonly string[];
  /** Index of the right choice. */
  readonly label: number;
}

/** A second question, asked after `FIRST_WRONG_LEAD` in place of an answer to the first. */
export type FollowUp = Pick<ChoiceQuestion, "choices" | "label">;

/** A text is written, and the number it arrives at is right or wrong. */
interface NumberQuestion extends Question {
  readonly final: number;
}

function parseRow<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  source: Source,
  wanted: string,
): z.infer<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const fields = value as Record<PropertyKey, unknown>; // of a value that is none, no problem has a name
  const problems = parsed.error.issues.map(({ path, message }) => {
    const [name] = path;
    if (name === undefined) return message;
    return fields[name] === undefined ? `${String(name)} is missing` : `${String(name)}: ${message}`;
  });
  throw new SidenetError(
    "L-RECORD",
    `${source}: ${problems.join("; ")}. Wanted ${wanted}; this row ${describeFields(value)}. Map other names with --map.`,
  );
}

const gsm8kSchema = z.looseObject({ question: z.string(), answer: z.string() });
/** GSM8K's calculator annotations, which are not meant to be read. */
const CALCULATOR = /<<[^<>]*>>/g;

interface Gsm8kRow {
  readonly question: string;
  /** The worked solution, without calculator annotations. */
  readonly solution: string;
  readonly final: number;
}

/** Throws `L-RECORD`. */
export function gsm8kRow(value: unknown, source: Source): Gsm8kRow {
  const wanted = 'the fields question and answer, whose last line is "#### number"';
  const { question, answer } = parseRow(gsm8kSchema, value, source, wanted);
  const solution = answer.replace(CALCULATOR, "").trim();
  const final = finalNumber(solution);
  if (final === null) {
    throw new SidenetError("L-RECORD", `${source}: the answer ends in no number. Wanted ${wanted}.`);
  }
  return { question, solution, final };
}

const criticSchema = z
  .looseObject({
    question: z.string(),
    solution: z.string(),
    label: z.union([z.literal(0), z.literal(1)]),
    first_error_step: z.int().gte(-1).nullish(),
  })
  .refine(
    ({ solution, first_error_step: step }) => step == null || step < solution.split("\n").length,
    "first_error_step is no line of the solution",
  );
type CriticRow = z.infer<typeof criticSchema>;

/** Throws `L-RECORD`. */
export const criticRow = (value: unknown, source: Source): CriticRow =>
  parseRow(
    criticSchema,
    value,
    source,
    "the fields question, solution, label (0 incorrect, 1 correct) and, if known, first_error_step (a line, from 0; -1: none)",
  );

const VERDICTS = ["incorrect", "correct"] as const;
/** Follows a critic question and asks which step is wrong first. */
export const FIRST_WRONG_LEAD = "incorrect\nFirst wrong step:";

const criticQuestion = ({ question, solution }: CriticRow): Question => ({
  user:
    `Question: ${question}\nSolution:\n` +
    solution
      .split("\n")
      .map((line, i) => `${i + 1}. ${line}\n`)
      .join("") +
    "Is the solution correct or incorrect?",
  ask: ANSWER,
});

/** Whether a solution is right. */
export const criticVerdict = (row: CriticRow): ChoiceQuestion => ({
  ...criticQuestion(row),
  choices: VERDICTS,
  label: row.label,
});

/** Which step of a wrong solution is wrong first; null where that is not known, or no step is. */
export function criticStep({ first_error_step: step, solution }: CriticRow): FollowUp | null {
  if (step == null || step < 0) return null;
  const choices = solution.split("\n").map((_, i) => String(i + 1));
  return { choices, label: step };
}

/** A record as a question with choices. BLiMP's sentences are judged by themselves: its question is not shown. */
export function choiceQuestion(record: ChoiceRecord, task: Task): ChoiceQuestion {
  const { choices, label } = record;
  if (task === "blimp") return { user: "", ask: "", choices, label };
  return { user: questionText(record), ask: ANSWER, choices, label };
}

export const gsm8kQuestion = ({ question, final }: Gsm8kRow): NumberQuestion => ({
  user: questionText({ question }),
  ask: ANSWER,
  final,
});

/** A question that is not shown may be missing. */
const sentencesSchema = z.preprocess(
  (value) => (typeof value === "object" && value !== null ? { question: "", ...value } : value),
  choiceSchema,
);

/** Throws `L-RECORD`. */
export const choiceRow = (value: unknown, source: Source, task: Task): ChoiceRecord =>
  parseRow(
    task === "blimp" ? sentencesSchema : choiceSchema,
    value,
    source,
    `the fields ${task === "blimp" ? "" : "question, "}choices (a list of texts) and label (the right one: its index, from 0, or its letter)`,
  );

/** A row of a task as `train` learns it: what `eval` asks, and the right answer to it. Throws `L-RECORD`. */
export function trainingRecord(
  task: QuestionTask,
  value: unknown,
  source: Source,
  asChat: boolean,
): TextRecord {
  const pair = ({ user, ask }: Question, answer: string): TextRecord => {
    if (ask === "") return { text: answer };
    if (!asChat) return { prompt: user + ask, completion: ` ${answer}` };
    const turn = (role: string, content: string) => ({ role, content });
    return { messages: [turn("user", user), turn("assistant", answer)] };
  };
  if (task === "gsm8k") {
    const row = gsm8kRow(value, source);
    return pair(gsm8kQuestion(row), row.solution);
  }
  if (task === "critic") {
    const row = criticRow(value, source);
    const step = criticStep(row);
    const answer =
      row.label === 1 ? VERDICTS[1] : step ? `${FIRST_WRONG_LEAD} ${step.choices[step.label]}` : VERDICTS[0];
    return pair(criticQuestion(row), answer);
  }
  const question = choiceQuestion(choiceRow(value, source, task), task);
  return pair(question, question.choices[question.label]);
}
