/** Turns of conversations, as data sets write them. */
import * as z from "zod";

type Fields = Readonly<Record<string, unknown>>;
export const isObject = (value: unknown): value is Fields =>
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

function readField(name: string, field: unknown, context: z.RefinementCtx): unknown {
  if (name === "content") return joined(field, context);
  return name === "tool_calls" && Array.isArray(field) && field.length === 0 ? null : field;
}

/** Templates ask whether a field is there, so one that holds nothing is left out, as tables have it on every turn. */
function readTurn(given: unknown, context: z.RefinementCtx): unknown {
  if (!isObject(given)) return given;
  const fields = Object.entries(named(given, context)).map(
    ([name, field]) => [name, readField(name, field, context)] as const,
  );
  return Object.fromEntries(fields.filter(([name, field]) => name === "content" || field !== null));
}

/** One turn of a conversation; one that calls tools may have no content. Further fields are passed on to the template. */
export const messageSchema = z.preprocess(
  readTurn,
  z
    .looseObject({ role: z.string(), content: z.string().nullish() })
    .refine(({ content, tool_calls: calls }) => content != null || Array.isArray(calls), "has no content")
    .refine(
      ({ weight = 1 }) => weight === 0 || weight === 1,
      "has a weight other than 0 (not learned) and 1",
    ),
);
/**
 * One turn of a conversation.
 * @interface
 */
export type ChatMessage = z.infer<typeof messageSchema>;
