/** Turns of conversations, as data sets write them. */
import * as z from "zod";

type Fields = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Who speaks in ShareGPT's `{from, value}`, by the names that chat templates have. */
const SPEAKERS: Readonly<Record<string, string>> = {
  human: "user",
  user: "user",
  gpt: "assistant",
  chatgpt: "assistant",
  bot: "assistant",
  assistant: "assistant",
  system: "system",
  tool: "tool",
};

function refuse(context: z.RefinementCtx, message: string): never {
  context.addIssue({ code: "custom", message });
  return z.NEVER;
}

/** `{from, value}` as `{role, content}`. */
function named(turn: Fields, context: z.RefinementCtx): Fields {
  const { from, value, ...rest } = turn;
  if (typeof from !== "string" || "role" in turn) return turn;
  if (Object.hasOwn(SPEAKERS, from)) return { role: SPEAKERS[from], content: value, ...rest };
  return refuse(context, `is from "${from}", which is none of ${Object.keys(SPEAKERS).join(", ")}`);
}

/** Content in parts, `[{"type": "text", "text": "..."}, ...]`, as one text. */
function joined(content: unknown, context: z.RefinementCtx): unknown {
  if (!Array.isArray(content)) return content;
  const isText = (part: unknown) => isObject(part) && part.type === "text" && typeof part.text === "string";
  const other = content.findIndex((part) => !isText(part));
  if (other < 0) return content.map(({ text }) => text).join("");
  return refuse(context, `has other content than text: ${JSON.stringify(content[other]?.type ?? null)}`);
}

function readTurn(given: unknown, context: z.RefinementCtx): unknown {
  if (!isObject(given)) return given;
  const turn = named(given, context);
  return { ...turn, content: joined(turn.content, context) };
}

/** One turn of a conversation; one that calls tools may have no content. Further fields are passed on to the template. */
export const messageSchema = z.preprocess(
  readTurn,
  z
    .looseObject({ role: z.string(), content: z.string().nullish() })
    .refine(({ content, tool_calls: calls }) => content != null || Array.isArray(calls), "has no content"),
);
/**
 * One turn of a conversation.
 * @interface
 */
export type ChatMessage = z.infer<typeof messageSchema>;
