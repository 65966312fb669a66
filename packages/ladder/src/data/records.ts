/** Records of text data, and their encoding as tokens with labels. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checkCounts } from "../check-counts.ts";
import type { ChatTemplate, TextPiece, Tool } from "../text/chat-template.ts";
import { type ChatMessage, messageSchema } from "../text/messages.ts";
import { type EncodingOptions, leadingBos, type Tokenizer } from "../text/tokenizer.ts";

/** Where a record came from, such as "train.jsonl, line 7"; it appears in error messages. */
export type Source = string;

const text = z.string();

/** A value, or its JSON as a text, which is what a cell of a table has. */
const orJson = <Schema extends z.ZodType>(schema: Schema) =>
  z.preprocess((value) => {
    if (typeof value !== "string") return value;
    try {
      return JSON.parse(value);
    } catch {
      return value;
    }
  }, schema);
const listOf = <Item extends z.ZodType>(item: Item) => orJson(z.array(item).min(1));

/** A plain text, of which every token is learned. */
const plainSchema = z.object({ text });
/** A prompt and its completion, which is learned. */
const pairSchema = z.object({ prompt: text, completion: text });
const turns = listOf(messageSchema);
/** What may stand beside the turns of a conversation: what the system says first, and the tools that the assistant may call. */
const besideTurns = {
  system: text.nullish(),
  tools: orJson(z.array(z.record(z.string(), z.unknown())).nullish()),
};
type BesideTurns = z.infer<z.ZodObject<typeof besideTurns>>;
const chatOf = (
  said: ChatMessage[],
  { system, tools }: BesideTurns,
): { messages: ChatMessage[]; tools?: BesideTurns["tools"] } => ({
  messages: system && said[0].role !== "system" ? [{ role: "system", content: system }, ...said] : said,
  tools,
});
/** A conversation, of which the assistant's turns are learned. */
const chatSchema = z
  .object({ messages: turns, ...besideTurns })
  .transform(({ messages, ...beside }) => chatOf(messages, beside));
/** As ShareGPT has it. */
const conversationsSchema = z
  .object({ conversations: turns, ...besideTurns })
  .transform(({ conversations, ...beside }) => chatOf(conversations, beside));
/** A task as Alpaca has it: a blank line separates the instruction, the input if there is one, and the output. */
const instructionSchema = z.object({ instruction: text, input: text.nullish(), output: text });
/** The index of a choice, as a number, as digits, or as a letter. */
const labelSchema = z.union([
  z.int().nonnegative(),
  z
    .string()
    .regex(/^(\d{1,9}|[A-Z])$/)
    .transform((mark) => (mark >= "A" ? mark.charCodeAt(0) - 65 : Number(mark))),
]);
/** A question with choices, of which the right one is learned. */
export const choiceSchema = z
  .object({
    context: text.nullish(),
    question: text,
    choices: listOf(text),
    label: labelSchema,
  })
  .refine(({ choices, label }) => label < choices.length, { message: "label is not an index into choices" });

/** The kinds of record. A value that fits several is of the first of them, and keeps the fields of that one only. */
const recordSchema = z.union([
  chatSchema,
  conversationsSchema,
  pairSchema,
  choiceSchema,
  instructionSchema,
  plainSchema,
]);
/** A record: a text, a prompt and its completion, a conversation, or a question with choices. */
export type TextRecord = z.infer<typeof recordSchema>;
export type ChoiceRecord = z.infer<typeof choiceSchema>;

const TURNS =
  'a list of {"role": "...", "content": "..."} or {"from": "human" or "gpt", "value": "..."}, each a text; only beside "tool_calls" ' +
  "the content may be missing";
/** The type of each field, and its description for error messages. */
const WANTED: readonly (readonly [string, z.ZodType, string])[] = [
  ["messages", turns, TURNS],
  ["conversations", turns, TURNS],
  ["system", besideTurns.system, "a text"],
  ["tools", besideTurns.tools, "a list of objects, each of which describes a tool"],
  ["text", text, "a text"],
  ["prompt", text, "a text"],
  ["completion", text, "a text"],
  ["label", labelSchema, "the index of one of its choices, or its letter"],
];
/** What may be the turns of a conversation: each names who speaks. */
const turnsSchema = listOf(
  z
    .record(z.string(), z.unknown())
    .refine((turn) => Object.keys(turn).some((name) => /^(role|from|speaker|author|sender)$/i.test(name))),
);
/** Usual names of the field that is learned. */
const ANSWER_NAMES = /^(output|response|answer|target|completion|chosen)s?$/i;

type Fields = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Fields =>
  value !== null && typeof value === "object" && !Array.isArray(value);

/** What is wrong with a field that has the name of one of a record; null: nothing. */
function faultOf(fields: Fields): string | null {
  const { label, choices } = fields;
  if (Array.isArray(choices) && Number(label) >= choices.length)
    return `its "label" is past its ${choices.length} choices, which count from 0.`;
  for (const [name, schema, wanted] of WANTED) {
    if (!Object.hasOwn(fields, name)) continue;
    const { error } = schema.safeParse(fields[name]);
    if (!error) continue;
    const { code, path, message } = error.issues[0];
    const problem = code === "custom" ? message : "is something else";
    const found = typeof path[0] === "number" ? `item ${path[0] + 1} ${problem}` : typeName(fields[name]);
    return `its "${name}" must be ${wanted}; found: ${found}.`;
  }
  return null;
}

/** How the fields of a value could be mapped to those of a record. */
function cureFor(value: unknown): string {
  if (recordSchema.safeParse(value).success)
    return "Leave the field mapping out: without it this is a valid record.";
  if (!isObject(value))
    return "A record is one JSON object; a file that holds one array of records is named .json.";
  const fields: Fields = { ...value };
  const texts = Object.keys(fields).filter((name) => typeof fields[name] === "string");
  const asked = texts.filter((name) => !ANSWER_NAMES.test(name));
  const answer = texts.find((name) => ANSWER_NAMES.test(name)) ?? asked[1];
  const chosen = [asked[0], answer].filter((name) => name !== undefined);
  const [first, second] = chosen.map((name) => (/^[\w.-]+$/.test(name) ? name : `'${name}'`));
  const turns = Object.keys(fields).find((name) => turnsSchema.safeParse(fields[name]).success);
  if (turns !== undefined)
    return `Map its turns with --map messages=${turns}; each needs the fields role and content, or from and value.`;
  if (first === undefined) return "Map other fields with --text, or --prompt and --completion, or --map.";
  if (second === undefined && first === "prompt") return 'Its "completion" is missing.';
  const flags = second === undefined ? `--text ${first}` : `--prompt ${first} --completion ${second}`;
  const left = texts.filter((name) => !chosen.includes(name));
  const loss = left.length === 0 ? "" : `, which leaves out ${left.join(", ")}`;
  return `Map its fields, such as ${flags} (or --text, --map)${loss}.`;
}

const typeName = (value: unknown): string =>
  Array.isArray(value) ? "array" : value === null ? "null" : typeof value;

/** "has the fields ..." with their types, or what a value is that has none, for error messages. */
export function describeFields(value: unknown): string {
  if (!isObject(value)) return `is ${Array.isArray(value) ? "an array" : JSON.stringify(value)}`;
  const fields = Object.entries(value).map(([key, field]) => `${key} (${typeName(field)})`);
  return `has the fields ${fields.join(", ")}`;
}

/** Parses one record; `given` is the value before its fields were mapped. Throws `L-RECORD` with its source and what is wrong. */
export function parseRecord(value: unknown, source: Source, given: unknown = value): TextRecord {
  const parsed = recordSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const fault = [value, given].filter(isObject).map(faultOf).find(Boolean);
  if (fault) throw new SidenetError("L-RECORD", `${source}: ${fault}`);
  throw new SidenetError(
    "L-RECORD",
    `${source}: a record is {"text": "..."}, {"prompt": "...", "completion": "..."}, {"messages": [{"role": "user", ` +
      '"content": "..."}, ...]} or {"question": "...", "choices": ["...", ...], "label": 0}; this one ' +
      `${describeFields(given)}. ${cureFor(given)}`,
  );
}

/** The part of a tokenizer that encoding records needs. */
export interface Encoder {
  /** Token ids of a text. */
  encode(text: string, options?: EncodingOptions): number[];
}

/** One sequence of tokens. Labels are aligned with inputIds; -100 is not scored. */
export interface TokenRecord {
  readonly inputIds: readonly number[];
  readonly labels: readonly number[];
  /** Ids of the sequences packed into a row; attention stays within each. Absent for a single sequence. */
  readonly segments?: readonly number[];
  readonly source: Source;
}

/** Options of encoding records as tokens. */
export interface EncodeOptions {
  readonly bosId: number | null;
  /** Appended to each record, and learned; null: nothing is. */
  readonly eosId: number | null;
  /** Ids that end a turn of a conversation; what a template writes after one is not learned. Default: `eosId`. */
  readonly endIds?: readonly number[];
  /** The largest number of tokens of a record. */
  readonly maxLength: number;
  /** Truncate longer records instead of throwing. */
  readonly cut: boolean;
  /** The chat template that writes conversations as text. */
  readonly chat?: ChatTemplate | null;
  /** Encode prompts and completions, and questions with choices, as conversations too. */
  readonly asChat?: boolean;
}

/** The options that a tokenizer decides. */
export const encodingBy = (
  tokenizer: Tokenizer,
): Required<Pick<EncodeOptions, "bosId" | "eosId" | "endIds" | "chat">> => ({
  bosId: leadingBos(tokenizer),
  eosId: tokenizer.eosIds[0] ?? null,
  endIds: tokenizer.eosIds,
  chat: tokenizer.chatTemplate(),
});

/** The text of a question, with its context. */
export const questionText = ({ context, question }: Pick<ChoiceRecord, "context" | "question">) =>
  `${context ? `${context}\n` : ""}Question: ${question}`;

/** Ends a question in plain text; the answer follows after a space. */
export const ANSWER = "\nAnswer:";

/** A record as pieces of text, learned or not. */
interface Piecewise {
  readonly pieces: readonly TextPiece[];
  /** The pieces contain the begin and end tokens, since a chat template wrote them. */
  readonly framed: boolean;
}

function templateOf({ chat }: EncodeOptions, source: Source): ChatTemplate {
  if (chat) return chat;
  throw new SidenetError(
    "L-CHAT-TEMPLATE",
    `${source}: a conversation needs a chat template, and the model has none. Give one with --chat-template, or use ` +
      "records of prompt and completion.",
  );
}

function piecesOf(record: TextRecord, source: Source, options: EncodeOptions): Piecewise {
  const conversation = (messages: readonly ChatMessage[], tools?: readonly Tool[] | null): Piecewise => {
    const template = templateOf(options, source);
    try {
      return { pieces: template.pieces(messages, tools), framed: true };
    } catch (cause) {
      if (!(cause instanceof SidenetError)) throw cause;
      throw new SidenetError(cause.code, `${source}: ${cause.text}`, { cause });
    }
  };
  const pair = (prompt: string, completion: string): Piecewise => ({
    pieces: [
      { text: prompt, learned: false },
      { text: completion, learned: true },
    ],
    framed: false,
  });
  const turns = (user: string, assistant: string) =>
    conversation([
      { role: "user", content: user },
      { role: "assistant", content: assistant },
    ]);
  const { asChat = false } = options;
  if ("messages" in record) return conversation(record.messages, record.tools);
  if ("completion" in record) {
    const { prompt, completion } = record;
    return asChat ? turns(prompt, completion) : pair(prompt, completion);
  }
  if ("choices" in record) {
    const [question, answer] = [questionText(record), record.choices[record.label]];
    return asChat ? turns(question, answer) : pair(question + ANSWER, ` ${answer}`);
  }
  if ("instruction" in record) {
    const task = record.input ? `${record.instruction}\n\n${record.input}` : record.instruction;
    return asChat ? turns(task, record.output) : pair(`${task}\n\n`, record.output);
  }
  return { pieces: [{ text: record.text, learned: true }], framed: false };
}

/** Ids and labels of the pieces. Each piece is encoded by itself, so that no token spans two pieces. */
function encodePieces({ pieces, framed }: Piecewise, encoder: Encoder, { eosId, endIds }: EncodeOptions) {
  const ends = framed ? (endIds ?? [eosId]) : [];
  let inputIds: number[] = [];
  let labels: number[] = [];
  for (const { text, learned } of pieces) {
    const ids = encoder.encode(text, { addSpecialTokens: false, continues: inputIds.at(-1) ?? false });
    // Text that a template writes after the end token of a turn is never generated, so it is not learned.
    const end = ids.findLastIndex((id) => ends.includes(id));
    // Not push(...ids): a text may have more tokens than a call can have arguments.
    inputIds = inputIds.concat(ids);
    labels = labels.concat(ids.map((id, i) => (learned && (end < 0 || i <= end) ? id : -100)));
  }
  return { inputIds, labels };
}

/**
 * Tokens and labels of a record: a completion, the assistant's turns, the right choice or a whole text are learned. A `maxLength` of
 * Infinity takes records of any length. Throws `L-OPTION` for one that is no length, `L-TOO-LONG`, `L-CHAT-TEMPLATE`, or
 * `L-NOTHING-TO-LEARN` when no label is left after the first token.
 */
export function encodeRecord(
  record: TextRecord,
  source: Source,
  encoder: Encoder,
  options: EncodeOptions,
): TokenRecord {
  const { bosId, eosId, maxLength, cut } = options;
  if (maxLength !== Number.POSITIVE_INFINITY) checkCounts({ maxLength });
  const piecewise = piecesOf(record, source, options);
  const { framed } = piecewise;
  const { inputIds, labels } = encodePieces(piecewise, encoder, options);
  if (!framed && bosId !== null) {
    inputIds.unshift(bosId);
    labels.unshift(-100);
  }
  if (!framed && eosId !== null) {
    inputIds.push(eosId);
    labels.push(eosId);
  }
  if (inputIds.length > maxLength && !cut) {
    throw new SidenetError(
      "L-TOO-LONG",
      `${source}: ${inputIds.length} tokens are more than the ${maxLength} that the model's context has space for. Shorten the record, or ` +
        "truncate long ones with --max-length.",
    );
  }
  // The first token has nothing before it, so its label is never scored.
  const learnedFrom = labels.findIndex((label, i) => i > 0 && label !== -100);
  if (learnedFrom < 0 || learnedFrom >= maxLength) {
    throw new SidenetError(
      "L-NOTHING-TO-LEARN",
      learnedFrom < 0
        ? `${source}: after its first token it has nothing to learn: no text, no completion, no answer of the assistant. Remove the record.`
        : `${source}: its first ${maxLength} tokens have nothing to learn: the first label is that of token ${learnedFrom + 1}. ` +
            "Raise --max-length or remove the record.",
    );
  }
  return { inputIds: inputIds.slice(0, maxLength), labels: labels.slice(0, maxLength), source };
}

/**
 * A record as sequences of at most `maxLength` tokens: a plain text is split into consecutive windows, so that all of it is
 * learned; any other record is encoded by `encodeRecord`. A last window of one token is dropped. Throws as `encodeRecord`.
 */
export function encodeWindows(
  record: TextRecord,
  source: Source,
  encoder: Encoder,
  options: EncodeOptions,
): TokenRecord[] {
  const isPlain = !["messages", "completion", "choices", "instruction"].some((name) => name in record);
  if (!isPlain) return [encodeRecord(record, source, encoder, options)];
  const { maxLength } = options;
  checkCounts({ maxLength });
  const whole = encodeRecord(record, source, encoder, { ...options, maxLength: Number.POSITIVE_INFINITY });
  const windows: TokenRecord[] = [];
  for (let first = 0; first + 1 < whole.inputIds.length; first += maxLength) {
    const part = (values: readonly number[]) => values.slice(first, first + maxLength);
    windows.push({ inputIds: part(whole.inputIds), labels: part(whole.labels), source });
  }
  return windows;
}
